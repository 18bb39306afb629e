//! The line between the process of a page and who feeds it: the supervisor of a plane, or
//! the demo.
//!
//! It is a socket, which the page has as its standard output. The page asks as others do at
//! a control socket, a line each; what it is told are blocks: a word, lines of JSON, and an
//! empty line. Who feeds it waits for it never, and believes it no more than whoever asks at
//! a control socket.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use linkspan_mem::fault::{self, Site};
use rustix::io::fcntl_dupfd_cloexec;

use crate::control::Question as _;
use crate::supervisor::Question;

/// Bytes of a line of a page at most: the longest name of a link has room.
const LINE_MAX: usize = 512;

/// Lines that are taken in before others have their turn. A page asks a few times a second.
const LINES_MAX: usize = 64;

/// Bytes of a block at most.
pub(crate) const BLOCK_MAX: usize = 64 << 20;

/// How long a page waits to be told its token.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// `at ADDRESS`: it listens there.
    At(SocketAddr),
    /// A question.
    Asks(Question),
}

impl Said {
    fn line(&self) -> String {
        match self {
            Self::At(address) => format!("at {address}"),
            Self::Asks(question) => question.line(),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line.strip_prefix("at ") {
            Some(address) => address.parse().ok().map(Self::At),
            None => Question::parse(line).map(Self::Asks),
        }
    }
}

/// What a block is about: its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The token that viewers have to say: a line that is no JSON.
    Token,
    /// All links, without their endpoints.
    List,
    /// All links with them.
    Inspect,
    /// Why what was asked for is not done.
    Refusal,
}

impl Kind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Token, "token"),
        (Self::List, "list"),
        (Self::Inspect, "inspect"),
        (Self::Refusal, "refusal"),
    ];
}

/// The end of who feeds a page.
#[derive(Debug)]
pub(crate) struct Feed {
    stream: UnixStream,
    heard: Vec<u8>,
    /// What the socket has no room for yet.
    left: Vec<u8>,
}

impl Feed {
    /// A line, and the other end of it for a page that knows viewers by this token.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn new(token: &str) -> io::Result<(Self, OwnedFd)> {
        fault::point(Site::Fd).map_err(io::Error::other)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut feed = Self {
            stream: ours,
            heard: Vec::new(),
            left: Vec::new(),
        };
        feed.tell(Kind::Token, &format!("{token}\n"))?;
        Ok((feed, theirs.into()))
    }

    /// Whether all that was told is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.left.is_empty()
    }

    /// Tells something. What finds no room is kept, so whoever tells much waits until it is
    /// [idle](Self::is_idle).
    ///
    /// # Errors
    /// The page is gone.
    pub(crate) fn tell(&mut self, kind: Kind, lines: &str) -> io::Result<()> {
        let (_, word) = Kind::ALL[kind as usize];
        self.left.extend_from_slice(word.as_bytes());
        self.left.push(b'\n');
        self.left.extend_from_slice(lines.as_bytes());
        self.left.push(b'\n');
        self.flush()
    }

    /// Goes on with what was kept.
    ///
    /// # Errors
    /// The page is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == self.left.len() {
                break Ok(());
            }
            match self.stream.write(&self.left[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.left.drain(..sent);
        result
    }

    /// Takes in all that the page has said.
    ///
    /// # Errors
    /// It is gone, says what no page of ours says, or talks without end.
    pub(crate) fn hear(&mut self) -> io::Result<Vec<Said>> {
        let mut said = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            let count = match self.stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(said),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for byte in &bytes[..count] {
                if *byte != b'\n' {
                    self.heard.push(*byte);
                    continue;
                }
                let line = std::mem::take(&mut self.heard);
                let line = String::from_utf8(line).map_err(io::Error::other)?;
                said.push(Said::parse(&line).ok_or(ErrorKind::InvalidData)?);
            }
            if self.heard.len() > LINE_MAX || said.len() > LINES_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }
}

impl AsFd for Feed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The page's end.
#[derive(Debug)]
pub(super) struct Fed {
    stream: UnixStream,
    heard: Vec<u8>,
}

/// What a page is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) kind: Kind,
    pub(super) lines: String,
}

impl Fed {
    /// The line of this process, and the token.
    ///
    /// # Errors
    /// It was not started by who feeds it.
    pub(super) fn of_this_process() -> io::Result<(Self, String)> {
        let stream = UnixStream::from(fcntl_dupfd_cloexec(io::stdout(), 3)?);
        stream.peer_addr()?;
        Self::on(stream)
    }

    fn on(stream: UnixStream) -> io::Result<(Self, String)> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let heard = Vec::new();
        let mut fed = Self { stream, heard };
        let mut told = Vec::new();
        while told.is_empty() {
            fed.read(&mut told)?;
        }
        let Told { kind, lines } = told.remove(0);
        if kind != Kind::Token || !told.is_empty() || !fed.heard.is_empty() {
            return Err(ErrorKind::InvalidData.into());
        }
        fed.stream.set_nonblocking(true)?;
        Ok((fed, lines.trim_end().to_owned()))
    }

    /// Says something.
    ///
    /// # Errors
    /// Nobody feeds this page any more.
    pub(super) fn say(&mut self, said: &Said) -> io::Result<()> {
        // So few short lines always have room.
        let line = said.line() + "\n";
        self.stream.write_all(line.as_bytes())
    }

    /// Takes in what has come.
    ///
    /// # Errors
    /// Nobody feeds this page any more.
    pub(super) fn hear(&mut self) -> io::Result<Vec<Told>> {
        let mut told = Vec::new();
        loop {
            match self.read(&mut told) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(told),
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&mut self, told: &mut Vec<Told>) -> io::Result<()> {
        let mut bytes = [0; 1 << 16];
        let count = match self.stream.read(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        for byte in &bytes[..count] {
            let is_end = *byte == b'\n' && matches!(self.heard.last(), None | Some(b'\n'));
            if !is_end {
                self.heard.push(*byte);
                continue;
            }
            let block = String::from_utf8(std::mem::take(&mut self.heard));
            let block = block.map_err(io::Error::other)?;
            let (word, lines) = block.split_once('\n').ok_or(ErrorKind::InvalidData)?;
            let kind = Kind::ALL.iter().find(|(_, it)| *it == word);
            let (kind, _) = *kind.ok_or(ErrorKind::InvalidData)?;
            let lines = lines.to_owned();
            told.push(Told { kind, lines });
        }
        if self.heard.len() > BLOCK_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

impl AsFd for Fed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::Verb;

    fn pair() -> (Feed, UnixStream) {
        let (feed, theirs) = Feed::new("secret").unwrap();
        (feed, theirs.into())
    }

    #[test]
    fn a_page_asks_and_is_told() {
        let (mut feed, theirs) = pair();
        let (mut fed, token) = Fed::on(theirs).unwrap();
        assert_eq!(token, "secret");
        let all = [
            Said::At("127.0.0.1:80".parse().unwrap()),
            Said::At("[::1]:80".parse().unwrap()),
            Said::Asks(Question::Inspect),
            Said::Asks(Question::Change(Verb::Restart, "a".into())),
        ];
        for said in &all {
            fed.say(said).unwrap();
        }
        assert_eq!(feed.hear().unwrap(), all);
        assert_eq!(feed.hear().unwrap(), []);
        feed.tell(Kind::List, "").unwrap();
        feed.tell(Kind::Inspect, "{}\n{}\n").unwrap();
        let told = |kind, lines: &str| Told {
            kind,
            lines: lines.into(),
        };
        let expected = [told(Kind::List, ""), told(Kind::Inspect, "{}\n{}\n")];
        assert_eq!(fed.hear().unwrap(), expected);
        drop(feed);
        assert!(fed.hear().is_err());
    }

    #[test]
    fn nobody_waits_for_a_page_that_does_not_listen() {
        let (mut feed, theirs) = pair();
        let large = "x".repeat(1 << 20) + "\n";
        feed.tell(Kind::Inspect, &large).unwrap();
        assert!(!feed.is_idle());
        let (mut fed, _) = Fed::on_any(theirs);
        let mut told = Vec::new();
        while told.is_empty() {
            feed.flush().unwrap();
            told = fed.hear().unwrap();
        }
        assert!(feed.is_idle());
        assert_eq!(told[0].lines.len(), large.len());
    }

    impl Fed {
        /// Where more than the token has come already.
        fn on_any(stream: UnixStream) -> (Self, String) {
            let mut fed = Self {
                stream,
                heard: Vec::new(),
            };
            let mut told = Vec::new();
            while told.is_empty() {
                fed.read(&mut told).unwrap();
            }
            fed.stream.set_nonblocking(true).unwrap();
            (fed, told.remove(0).lines)
        }
    }

    /// A page under somebody else's hand.
    #[test]
    fn nothing_that_a_page_says_harms_who_feeds_it() {
        for words in [
            "kill a\n".to_owned(),
            "at nowhere\n".to_owned(),
            "\n".to_owned(),
            "x".repeat(2 * LINE_MAX),
            "list\n".repeat(LINES_MAX + 1),
        ] {
            let (mut feed, mut theirs) = pair();
            theirs.write_all(words.as_bytes()).unwrap();
            assert!(feed.hear().is_err(), "{words:.40}");
        }
        let (mut feed, mut theirs) = pair();
        theirs.write_all(b"\xff\n").unwrap();
        assert!(feed.hear().is_err());
        let (mut feed, theirs) = pair();
        drop(theirs);
        assert!(feed.hear().is_err());
    }
}
