//! The socket over which a listener that runs is asked how it is, and told what to log.
//!
//! One line in, lines of JSON out. A thread of its own talks to whoever asks, one after the
//! other, so that nobody holds up the connections.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_backends::smbdirect::Classes;
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::socket::{Listener, Stream};

use crate::exit::{Failure, Status};

/// How long a question, and each step of the answer, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// How long until it is tried again to accept somebody, where that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a question at most.
const QUESTION_MAX: usize = 256;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// How everything is.
    Status,
    /// These classes are logged from now on.
    Log(Classes),
}

impl Question {
    fn to_line(self) -> String {
        match self {
            Self::Status => "status\n".to_owned(),
            Self::Log(classes) => format!("log {classes}\n"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "status" => Some(Self::Status),
            Some(("log", classes)) => Some(Self::Log(classes.parse().ok()?)),
            _ => None,
        }
    }
}

/// A question, and where its answer goes.
pub(super) type Asked = (Question, SyncSender<String>);

/// The listener's end.
pub(super) struct Control {
    asked: Receiver<Asked>,
    event: Arc<EventFd>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens at `path`.
    pub(super) fn new(path: &Path) -> Result<Self, Failure> {
        let listener =
            Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let event = Arc::new(EventFd::new().context("an event")?);
        let stop = Arc::new(EventFd::new().context("an event")?);
        let (ask, asked) = sync_channel(1);
        let thread = thread::Builder::new().name("control".to_owned()).spawn({
            let (event, stop) = (Arc::clone(&event), Arc::clone(&stop));
            move || serve(&listener, &ask, &event, &stop)
        });
        Ok(Self {
            asked,
            event,
            stop,
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// Readable when somebody asked.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// The next question.
    pub(super) fn take(&self) -> Option<Asked> {
        let question = self.asked.try_recv().ok();
        if question.is_none() {
            // One that comes in between makes it readable again.
            let _ = self.event.drain();
            return self.asked.try_recv().ok();
        }
        question
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Without it the process ends, and the thread with it.
        let told = self.stop.signal().is_ok();
        // Its channel has nobody at the other end any more.
        self.asked = sync_channel(0).1;
        if let Some(thread) = self.thread.take().filter(|_| told) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &Listener, ask: &SyncSender<Asked>, event: &EventFd, stop: &EventFd) {
    loop {
        match wait_for(listener.as_fd(), Direction::Read, Some(stop.as_fd()), None) {
            Ok(Wake::Ready) => {}
            _ => return,
        }
        let Ok(stream) = listener.accept() else {
            // No descriptor is free, say: whoever waits still does.
            let until = Some(Instant::now() + PAUSE);
            match wait_for(stop.as_fd(), Direction::Read, None, until) {
                Ok(Wake::Deadline) => continue,
                _ => return,
            }
        };
        // Whoever asks nonsense, or leaves, gets no answer.
        let _ = answer(&stream, ask, event, stop);
    }
}

fn answer(
    stream: &Stream,
    ask: &SyncSender<Asked>,
    event: &EventFd,
    stop: &EventFd,
) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let line = line(stream, stop, deadline)?;
    let text = match Question::parse(&line) {
        Some(question) => {
            let (answer, answered) = sync_channel(1);
            ask.send((question, answer)).map_err(io::Error::other)?;
            event.signal()?;
            answered.recv().map_err(io::Error::other)?
        }
        None => "{\"kind\":\"error\",\"error\":\"not understood\"}\n".to_owned(),
    };
    stream.send(text.as_bytes(), &[], Instant::now() + LIMIT)
}

/// The line that somebody sends, without its end.
fn line(stream: &Stream, stop: &EventFd, deadline: Instant) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        if line.last() == Some(&b'\n') {
            line.pop();
            return String::from_utf8(line).map_err(io::Error::other);
        }
        if line.len() >= QUESTION_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = [0; QUESTION_MAX];
        let room = QUESTION_MAX - line.len();
        match read(stream, &mut bytes[..room], Some(stop), deadline)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => line.extend_from_slice(&bytes[..count]),
        }
    }
}

/// Waits for bytes; none are the end.
fn read(
    stream: &Stream,
    bytes: &mut [u8],
    stop: Option<&EventFd>,
    deadline: Instant,
) -> io::Result<usize> {
    loop {
        match stream.receive(bytes, &mut Vec::new(), 0) {
            Ok(received) => return Ok(received.bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let stop = stop.map(AsFd::as_fd);
        match wait_for(stream.as_fd(), Direction::Read, stop, Some(deadline))? {
            Wake::Ready => {}
            Wake::Cancelled => return Err(io::ErrorKind::Interrupted.into()),
            Wake::Deadline => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Asks a listener; its answer is lines of JSON.
pub(super) fn ask(path: &Path, question: Question) -> Result<String, Failure> {
    let asked = || -> io::Result<String> {
        let stream = Stream::connect(path)?;
        let deadline = Instant::now() + LIMIT;
        stream.send(question.to_line().as_bytes(), &[], deadline)?;
        let mut text = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            match read(&stream, &mut bytes, None, Instant::now() + LIMIT)? {
                0 => return String::from_utf8(text).map_err(io::Error::other),
                count => text.extend_from_slice(&bytes[..count]),
            }
        }
    };
    let text = asked().map_err(|error| {
        let error = anyhow!(error).context(format!("the listener at {}", path.display()));
        Failure::new(Status::PeerUnreachable, error)
            .hint("linkspan smbdirect listen --control PATH")
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_lines() {
        for question in [
            Question::Status,
            Question::Log(Classes::NONE),
            Question::Log("send,keep-alive".parse().unwrap()),
        ] {
            let line = question.to_line();
            assert_eq!(Question::parse(line.trim_end()), Some(question));
        }
        for line in ["", "statu", "status now", "log", "log nothing", "log send;"] {
            assert_eq!(Question::parse(line), None, "{line}");
        }
    }

    #[test]
    fn questions_are_answered_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let control = Control::new(&path).unwrap();
        let asker = thread::spawn({
            let path = path.clone();
            move || {
                // One that leaves, one that says too much, and one that is in earnest.
                drop(Stream::connect(&path).unwrap());
                let deadline = Instant::now() + LIMIT;
                let loud = Stream::connect(&path).unwrap();
                let _ = loud.send(&[b'x'; 2 * QUESTION_MAX], &[], deadline);
                ask(&path, Question::Status).unwrap()
            }
        });
        wait_for(control.event().as_fd(), Direction::Read, None, None).unwrap();
        let (question, answer) = control.take().unwrap();
        assert_eq!(question, Question::Status);
        answer.send("{}\n".to_owned()).unwrap();
        assert_eq!(asker.join().unwrap(), "{}\n");
        assert!(control.take().is_none());
        drop(control);
        assert!(ask(&path, Question::Status).is_err());
    }
}
