//! The socket over which a program that runs is asked how it is, and told what to do.
//!
//! One line in, lines of JSON out. A thread of its own talks to whoever asks, one after the
//! other, so that nobody holds up what the program is there for; who asks what takes long has
//! another one.

use std::io::{self, ErrorKind::ConnectionReset, ErrorKind::PermissionDenied};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::socket::{Listener, Stream};
use rustix::process::geteuid;

use crate::exit::{Failure, Status};

/// How long a question, and each step of the answer, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// How long until it is tried again to accept somebody, where that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a question at most.
const QUESTION_MAX: usize = 4608;

/// What can be asked.
pub(crate) trait Question: Sized + Send + 'static {
    /// As it is sent, without the end of the line.
    fn line(&self) -> String;

    /// What a line asks, if it makes sense.
    fn parse(line: &str) -> Option<Self>;

    /// Whether the answer may take so long that others are not to wait for it.
    fn is_slow(&self) -> bool {
        false
    }
}

/// Who may ask. Who may connect at all, the rights of the socket say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Askers {
    /// Whoever may connect.
    All,
    /// Root, and the user that the program runs as.
    Ours,
}

/// A question, and where its answer goes.
pub(crate) type Asked<Q> = (Q, SyncSender<String>);

/// The end of who is asked.
pub(crate) struct Control<Q> {
    asked: Receiver<Asked<Q>>,
    event: Arc<EventFd>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl<Q: Question> Control<Q> {
    /// Listens at `path`.
    pub(crate) fn new(path: &Path, askers: Askers) -> Result<Self, Failure> {
        let listener =
            Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        Self::on(listener, askers)
    }

    /// Answers those who connect to a socket that listens already.
    pub(crate) fn on(listener: Listener, askers: Askers) -> Result<Self, Failure> {
        let event = Arc::new(EventFd::new().context("an event")?);
        let stop = Arc::new(EventFd::new().context("an event")?);
        let (ask, asked) = sync_channel(1);
        let thread = thread::Builder::new().name("control".to_owned()).spawn({
            let (event, stop) = (Arc::clone(&event), Arc::clone(&stop));
            move || {
                let desk = Desk {
                    askers,
                    ask,
                    event,
                    stop,
                };
                desk.serve(&listener);
            }
        });
        Ok(Self {
            asked,
            event,
            stop,
            thread: Some(thread.context("cannot start a thread")?),
        })
    }

    /// Readable when somebody asked.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// The next question.
    pub(crate) fn take(&self) -> Option<Asked<Q>> {
        let question = self.asked.try_recv().ok();
        if question.is_none() {
            // One that comes in between makes it readable again.
            let _ = self.event.drain();
            return self.asked.try_recv().ok();
        }
        question
    }
}

impl<Q> Drop for Control<Q> {
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

/// Where questions come in.
struct Desk<Q> {
    askers: Askers,
    ask: SyncSender<Asked<Q>>,
    event: Arc<EventFd>,
    stop: Arc<EventFd>,
}

impl<Q: Question> Desk<Q> {
    fn serve(&self, listener: &Listener) {
        let stop = self.stop.as_fd();
        loop {
            match wait_for(listener.as_fd(), Direction::Read, Some(stop), None) {
                Ok(Wake::Ready) => {}
                _ => return,
            }
            let Ok(stream) = listener.accept() else {
                // No descriptor is free, say: whoever waits still does.
                let until = Some(Instant::now() + PAUSE);
                match wait_for(stop, Direction::Read, None, until) {
                    Ok(Wake::Deadline) => continue,
                    _ => return,
                }
            };
            // Whoever asks nonsense, or leaves, gets no answer.
            let _ = self.answer(stream);
        }
    }

    fn answer(&self, stream: Stream) -> io::Result<()> {
        let tell =
            |stream: &Stream, text: &str| stream.send(text.as_bytes(), &[], Instant::now() + LIMIT);
        if !self.hears(&stream) {
            return tell(&stream, &refusal("this user may not ask"));
        }
        let line = line(&stream, &self.stop, Instant::now() + LIMIT)?;
        let Some(question) = Q::parse(&line) else {
            return tell(&stream, &refusal("not understood"));
        };
        let is_slow = question.is_slow();
        let (answer, answered) = sync_channel(1);
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.ask.send((question, answer)).map_err(gone)?;
        self.event.signal()?;
        let wait = move || {
            let text = answered.recv().map_err(io::Error::other)?;
            tell(&stream, &text)
        };
        if !is_slow {
            return wait();
        }
        // It ends with the answer, or when there will be none.
        let thread = thread::Builder::new().name("answer".to_owned());
        thread.spawn(move || drop(wait())).map(drop)
    }

    /// Whether this peer may ask.
    fn hears(&self, stream: &Stream) -> bool {
        let ours = |user: u32| user == 0 || user == geteuid().as_raw();
        match self.askers {
            Askers::All => true,
            Askers::Ours => stream.peer_credentials().is_ok_and(|peer| ours(peer.uid)),
        }
    }
}

/// An answer that is none.
pub(crate) fn refusal(why: &str) -> String {
    format!("{}\n", serde_json::json!({ "kind": "error", "error": why }))
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

/// Asks who listens at `path`; the answer is lines of JSON.
///
/// # Errors
/// Nobody answers.
pub(crate) fn ask(path: &Path, question: &impl Question) -> Result<String, Failure> {
    ask_within(path, question, LIMIT)
}

/// The same of what may take this long.
///
/// # Errors
/// As for [`ask`].
pub(crate) fn ask_within(
    path: &Path,
    question: &impl Question,
    limit: Duration,
) -> Result<String, Failure> {
    let asked = || -> io::Result<String> {
        let stream = Stream::connect(path)?;
        let deadline = Instant::now() + LIMIT;
        let line = format!("{}\n", question.line());
        stream.send(line.as_bytes(), &[], deadline)?;
        let mut text = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            match read(&stream, &mut bytes, None, Instant::now() + limit) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&bytes[..count]),
                // Who is refused is not listened to.
                Err(error) if error.kind() == ConnectionReset && text.ends_with(b"\n") => break,
                Err(error) => return Err(error),
            }
        }
        String::from_utf8(text).map_err(io::Error::other)
    };
    asked().map_err(|error| {
        let (status, what) = match error.kind() {
            PermissionDenied => (Status::Missing, "this user may not ask"),
            _ => (Status::PeerUnreachable, "nobody answers"),
        };
        let error = anyhow!(error).context(format!("{what} at {}", path.display()));
        Failure::new(status, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Well;

    impl Question for Well {
        fn line(&self) -> String {
            "well?".to_owned()
        }

        fn parse(line: &str) -> Option<Self> {
            (line == "well?").then_some(Self)
        }
    }

    /// Ours: who was refused was told that nobody answers, since the refusal does not wait for
    /// the question.
    #[test]
    fn a_refusal_is_heard_although_nobody_listened() {
        use std::io::Write as _;
        use std::os::unix::net::UnixListener;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let asker = thread::spawn({
            let path = path.clone();
            move || ask(&path, &Well).unwrap()
        });
        let (mut stream, _) = listener.accept().unwrap();
        // The question is there, and is left there.
        wait_for(stream.as_fd(), Direction::Read, None, None).unwrap();
        stream.write_all(refusal("no").as_bytes()).unwrap();
        drop(stream);
        assert_eq!(asker.join().unwrap(), refusal("no"));
    }

    /// Ours: who may not connect was told that nobody answers, with another status.
    #[test]
    fn who_may_not_ask_is_told_so() {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt as _;

        use rustix::process::{Gid, Uid};
        use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _control = Control::<Well>::new(&path, Askers::Ours).unwrap();
        set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        // Credentials of this thread alone: root may connect to anything.
        let asked = thread::spawn(move || {
            if geteuid().is_root() {
                let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
                set_thread_res_gid(group, group, group).unwrap();
                set_thread_res_uid(user, user, user).unwrap();
            }
            ask(&path, &Well).unwrap_err()
        });
        let failure = asked.join().unwrap();
        assert_eq!(failure.status, Status::Missing);
        assert!(failure.to_string().contains("may not ask"), "{failure}");
    }

    #[test]
    fn questions_are_answered_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let control = Control::<Well>::new(&path, Askers::Ours).unwrap();
        let asker = thread::spawn({
            let path = path.clone();
            move || {
                // One that leaves, one that says too much, and one that is in earnest.
                drop(Stream::connect(&path).unwrap());
                let deadline = Instant::now() + LIMIT;
                let loud = Stream::connect(&path).unwrap();
                let _ = loud.send(&[b'x'; 2 * QUESTION_MAX], &[], deadline);
                ask(&path, &Well).unwrap()
            }
        });
        wait_for(control.event().as_fd(), Direction::Read, None, None).unwrap();
        let (question, answer) = control.take().unwrap();
        assert_eq!(question, Well);
        answer.send("{}\n".to_owned()).unwrap();
        assert_eq!(asker.join().unwrap(), "{}\n");
        assert!(control.take().is_none());
        drop(control);
        assert!(ask(&path, &Well).is_err());
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Pace {
        Quick,
        Slow,
    }

    impl Question for Pace {
        fn line(&self) -> String {
            format!("{self:?}")
        }

        fn parse(line: &str) -> Option<Self> {
            [Self::Quick, Self::Slow]
                .into_iter()
                .find(|it| it.line() == line)
        }

        fn is_slow(&self) -> bool {
            *self == Self::Slow
        }
    }

    /// Ours: nobody was answered while a link was handed over.
    #[test]
    fn what_takes_long_holds_up_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let control = Control::<Pace>::new(&path, Askers::Ours).unwrap();
        let asker = |question: Pace| {
            let path = path.clone();
            thread::spawn(move || ask_within(&path, &question, 12 * LIMIT).unwrap())
        };
        let next = || loop {
            wait_for(control.event().as_fd(), Direction::Read, None, None).unwrap();
            if let Some(asked) = control.take() {
                break asked;
            }
        };
        let slow = asker(Pace::Slow);
        let (question, late) = next();
        assert_eq!(question, Pace::Slow);
        let quick = asker(Pace::Quick);
        let (question, answer) = next();
        assert_eq!(question, Pace::Quick);
        answer.send("quick\n".to_owned()).unwrap();
        assert_eq!(quick.join().unwrap(), "quick\n");
        late.send("slow\n".to_owned()).unwrap();
        assert_eq!(slow.join().unwrap(), "slow\n");
    }
}
