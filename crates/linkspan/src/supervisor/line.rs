//! A supervisor's end of the line to a link: it never waits for one, and believes nothing
//! that comes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use linkspan_sys::Stream;

use crate::tether::{ANSWER_MAX, Question};

/// Questions without an answer at most; who has so many is asked no more.
const ASKED_MAX: usize = 8;

/// Of them, those that are for the watchdog alone: whoever looks often does not keep a link
/// from being asked whether it lives.
const BEATS: usize = 2;

/// The line to one link.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    asked: VecDeque<Question>,
    /// The answer to the first question, as far as it has come.
    heard: Vec<u8>,
}

/// What a link said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// To which question.
    pub(crate) question: Question,
    /// Lines of JSON, if it told the truth.
    pub(crate) text: String,
}

impl Line {
    /// A line, and the other end of it for a link's process.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let line = Self {
            stream: ours,
            asked: VecDeque::new(),
            heard: Vec::new(),
        };
        Ok((line, theirs.into()))
    }

    /// Asks; whether an answer may come.
    pub(crate) fn ask(&mut self, question: Question) -> bool {
        let most = match question {
            Question::Beat => ASKED_MAX,
            _ => ASKED_MAX - BEATS,
        };
        if self.asked.len() >= most {
            return false;
        }
        let line = question.line().as_bytes();
        // So few short lines always have room; a part of one never goes.
        let sent = matches!(self.stream.write(line), Ok(count) if count == line.len());
        if sent {
            self.asked.push_back(question);
        }
        sent
    }

    /// Asks something that comes with a socket; whether an answer may come.
    pub(crate) fn ask_with(&mut self, question: Question, socket: BorrowedFd<'_>) -> bool {
        if self.asked.len() >= ASKED_MAX - BEATS {
            return false;
        }
        let send = || {
            let stream = Stream::check(self.stream.try_clone()?.into())?;
            stream.send(question.line().as_bytes(), &[socket], Instant::now())
        };
        let sent = send().is_ok();
        if sent {
            self.asked.push_back(question);
        }
        sent
    }

    /// Takes in what has come: answers, in the order of the questions.
    ///
    /// # Errors
    /// The link closed its end, or says what is no answer: nothing more is to be heard.
    pub(crate) fn hear(&mut self) -> io::Result<Vec<Heard>> {
        let mut answers = Vec::new();
        let mut bytes = [0; 4096];
        // What is left after some is heard in the next turn, so that nobody talks the
        // supervisor into doing nothing else.
        for _ in 0..16 {
            let count = match self.stream.read(&mut bytes) {
                Ok(count) if count > 0 => count,
                // What it said last counts. If it is gone, that is heard in the next turn.
                _ if !answers.is_empty() => break,
                Ok(_) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            for byte in &bytes[..count] {
                let is_end = *byte == b'\n' && matches!(self.heard.last(), None | Some(b'\n'));
                if !is_end {
                    self.heard.push(*byte);
                    continue;
                }
                let question = self.asked.pop_front();
                let question = question.ok_or(ErrorKind::InvalidData)?;
                let text = String::from_utf8(std::mem::take(&mut self.heard));
                let text = text.map_err(io::Error::other)?;
                answers.push(Heard { question, text });
            }
            if self.heard.len() > ANSWER_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        Ok(answers)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Line, UnixStream) {
        let (line, theirs) = Line::new().unwrap();
        (line, theirs.into())
    }

    #[test]
    fn answers_come_in_parts_and_belong_to_their_questions() {
        let (mut line, mut link) = pair();
        assert!(line.ask(Question::Inspect) && line.ask(Question::Beat));
        assert_eq!(line.hear().unwrap(), []);
        link.write_all(b"{\"a\":1}\n{\"b\"").unwrap();
        assert_eq!(line.hear().unwrap(), []);
        link.write_all(b":2}\n\n\n").unwrap();
        let heard = |question, text: &str| Heard {
            question,
            text: text.to_owned(),
        };
        let expected = [
            heard(Question::Inspect, "{\"a\":1}\n{\"b\":2}\n"),
            heard(Question::Beat, ""),
        ];
        assert_eq!(line.hear().unwrap(), expected);
        drop(link);
        assert!(line.hear().is_err());
    }

    /// Ours: what a successor said was lost if it ended right after.
    #[test]
    fn what_is_said_last_is_heard_before_the_end() {
        let (mut line, mut link) = pair();
        assert!(line.ask(Question::TakenOver));
        link.write_all(b"{}\n\n").unwrap();
        drop(link);
        let heard = Heard {
            question: Question::TakenOver,
            text: "{}\n".to_owned(),
        };
        assert_eq!(line.hear().unwrap(), [heard]);
        assert!(line.hear().is_err());
    }

    /// Ours: a link that was slow while somebody looked at it each second was not asked
    /// whether it lives, and was killed since it did not say so.
    #[test]
    fn who_looks_often_does_not_keep_the_watchdog_from_asking() {
        let (mut line, _link) = pair();
        while line.ask(Question::Inspect) {}
        assert!(!line.ask(Question::Trace));
        assert!(line.ask(Question::Beat));
    }

    /// A link under somebody else's hand.
    #[test]
    fn nothing_that_a_link_says_harms_its_supervisor() {
        // It answers what nobody asked.
        let (mut line, mut link) = pair();
        link.write_all(b"\n").unwrap();
        assert!(line.hear().is_err());
        // Its answer is no text.
        let (mut line, mut link) = pair();
        assert!(line.ask(Question::Inspect));
        link.write_all(b"\xff\n\n").unwrap();
        assert!(line.hear().is_err());
        // Its answer never ends.
        let (mut line, mut link) = pair();
        assert!(line.ask(Question::Inspect));
        let talks = std::thread::spawn(move || while link.write_all(&[b'x'; 4096]).is_ok() {});
        let refused = loop {
            match line.hear() {
                Ok(answers) => assert_eq!(answers, []),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::InvalidData);
        assert!(line.heard.capacity() <= 3 * ANSWER_MAX);
        drop(line);
        talks.join().unwrap();
        // It never answers.
        let (mut line, _link) = pair();
        assert!((0..ASKED_MAX).all(|_| line.ask(Question::Beat)));
        assert!(!line.ask(Question::Beat));
    }
}
