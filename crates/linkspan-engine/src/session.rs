//! The one runner of all framed Unix sockets that carry descriptors.
//!
//! A [`Session`] is a protocol core with its resources: bytes and descriptors
//! in, bytes and descriptors out, no socket. The runner moves them, waits in one
//! place for the peer, for the session's own events and for the word to end, and
//! leaves a session quiet, however it ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Epoll, Interest, Ready, Wake, wait_for};
use linkspan_sys::{EventFd, Stream, reaper};

/// The most descriptors that one message may carry (vhost-user and vfio-user
/// peers send 8 at most). What goes beyond ends the session.
pub const MESSAGE_FDS_MAX: usize = 8;

/// How long a peer may leave our answer unread before it counts as gone.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// How long work in flight may take when somebody waits for its end. I/O that
/// takes longer is stuck in the system, and so would be whoever waits for it.
pub const QUIET_LIMIT: Duration = Duration::from_secs(30);

/// A protocol core with the resources that its effects act on.
pub trait Session {
    /// Why a session ends before its peer ends it.
    type Error: std::error::Error;

    /// How many bytes the session wants next, at most. Zero while it waits for
    /// an event of its own; it is then given none.
    fn wanted(&self) -> usize;

    /// Takes bytes, at most as many as wanted, with the descriptors that came
    /// with them. May answer; see [`poll_send`](Self::poll_send).
    ///
    /// # Errors
    /// When the session cannot go on.
    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), Self::Error>;

    /// The next message to send.
    fn poll_send(&mut self) -> Option<Outgoing>;

    /// Becomes readable when [`wake`](Self::wake) is due; `None` for a session
    /// that waits for its peer only.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;

    /// When [`wake`](Self::wake) is due at the latest, if anything the session
    /// waits for has a limit.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// How long the session may take to become quiet after [`close`](Self::close).
    fn quiet_limit(&self) -> Duration {
        QUIET_LIMIT
    }

    /// Takes in what other threads have for the session.
    ///
    /// # Errors
    /// When the session cannot go on.
    fn wake(&mut self) -> Result<(), Self::Error>;

    /// Begins to end: nothing more comes from the peer or goes to it.
    fn close(&mut self);

    /// Whether everything that was begun has ended, after [`close`](Self::close).
    fn is_quiet(&self) -> bool;
}

/// A message with its descriptors.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// The whole message.
    pub bytes: Vec<u8>,
    /// Descriptors that go with its first byte.
    pub fds: Vec<OwnedFd>,
}

/// How a session ended.
#[derive(Debug)]
pub enum End<E> {
    /// The peer closed the connection.
    PeerClosed,
    /// We were asked to end.
    Cancelled,
    /// What was waited for has happened; the session goes on.
    Reached,
    /// The deadline for it passed.
    Late,
    /// The session ended itself.
    Failed(E),
    /// The socket failed.
    Socket(io::Error),
    /// The peer sent more descriptors with a message than any message has.
    TooManyFds {
        /// How many came, as far as the system told.
        count: usize,
    },
}

const PEER: u64 = 0;
const WAKE: u64 = 1;
const CANCEL: u64 = 2;

/// Runs a session over a connected socket until either side ends it, then
/// waits until it is quiet.
///
/// # Errors
/// When the session did not become quiet within its limit; its resources are
/// then still in use.
pub fn run<S: Session>(
    session: &mut S,
    stream: &Stream,
    cancel: &EventFd,
) -> Result<End<S::Error>, NotQuiet> {
    let end = run_until(session, stream, cancel, None, |_| false);
    session.close();
    settle(session)?;
    Ok(end)
}

/// Runs a session over a connected socket until `reached` says that it has come
/// far enough, or it ends, or `deadline` passes. The session is not closed.
pub fn run_until<S: Session>(
    session: &mut S,
    stream: &Stream,
    cancel: &EventFd,
    deadline: Option<Instant>,
    reached: impl Fn(&S) -> bool,
) -> End<S::Error> {
    let end = converse(session, stream, cancel, deadline, reached);
    end.unwrap_or_else(|error| match error.kind() {
        // It left while we had something to say to it, or it to us.
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => End::PeerClosed,
        _ => End::Socket(error),
    })
}

/// A session that ended but whose work did not.
#[derive(Debug, thiserror::Error)]
#[error("work in flight did not end within {} seconds of the session", limit.as_secs())]
pub struct NotQuiet {
    /// How long it had.
    pub limit: Duration,
}

fn converse<S: Session>(
    session: &mut S,
    stream: &Stream,
    cancel: &EventFd,
    deadline: Option<Instant>,
    reached: impl Fn(&S) -> bool,
) -> io::Result<End<S::Error>> {
    let epoll = Epoll::new()?;
    epoll.add(stream, PEER, Interest::READ)?;
    if let Some(wake) = session.wake_fd() {
        epoll.add(wake, WAKE, Interest::READ)?;
    }
    epoll.add(cancel, CANCEL, Interest::READ)?;
    let mut ready = Ready::with_capacity(4);
    let mut listening = true;
    loop {
        send_all(session, stream)?;
        if reached(session) {
            return Ok(End::Reached);
        }
        // A peer that goes on talking while the session waits for something of
        // its own must not keep this thread awake; its end is noticed all the same.
        let wants = session.wanted() > 0;
        if wants != listening {
            let interest = if wants {
                Interest::READ
            } else {
                Interest::NONE
            };
            epoll.modify(stream, PEER, interest)?;
            listening = wants;
        }
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        let late = deadline.map(left);
        if late.is_some_and(|left| left.is_zero()) {
            return Ok(End::Late);
        }
        let due = session.deadline().map(left);
        epoll.wait(&mut ready, late.into_iter().chain(due).min())?;
        if due.is_some()
            && session.deadline().map(left) == Some(Duration::ZERO)
            && let Err(error) = session.wake()
        {
            return Ok(End::Failed(error));
        }
        for event in ready.iter() {
            let end = match event.token {
                CANCEL => Some(End::Cancelled),
                WAKE => session.wake().err().map(End::Failed),
                _ if session.wanted() > 0 => hear(session, stream)?,
                _ => event.closed.then_some(End::PeerClosed),
            };
            if let Some(end) = end {
                // A refusal that the session has ready still goes out; that the
                // peer may be gone by now changes nothing.
                let _ = send_all(session, stream);
                return Ok(end);
            }
        }
    }
}

/// Takes in what the peer sent, as far as the session wants it.
fn hear<S: Session>(session: &mut S, stream: &Stream) -> io::Result<Option<End<S::Error>>> {
    let mut buffer = [0; 4096];
    let wanted = session.wanted().min(buffer.len());
    let mut fds = Vec::new();
    let received = match stream.receive(&mut buffer[..wanted], &mut fds, MESSAGE_FDS_MAX) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    if received.surplus > 0 {
        fds.drain(..).for_each(reaper::dispose);
        let count = MESSAGE_FDS_MAX + received.surplus;
        return Ok(Some(End::TooManyFds { count }));
    }
    if received.bytes == 0 {
        return Ok(Some(End::PeerClosed));
    }
    let result = session.receive(&buffer[..received.bytes], fds);
    Ok(result.err().map(End::Failed))
}

fn send_all<S: Session>(session: &mut S, stream: &Stream) -> io::Result<()> {
    while let Some(message) = session.poll_send() {
        let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
        stream.send(&message.bytes, &fds, Instant::now() + SEND_LIMIT)?;
    }
    Ok(())
}

/// Waits until a session that was [closed](Session::close) is quiet.
///
/// # Errors
/// It did not become so within its limit.
pub(crate) fn settle<S: Session>(session: &mut S) -> Result<(), NotQuiet> {
    let limit = session.quiet_limit();
    let deadline = Instant::now() + limit;
    loop {
        // First without waiting: an error may have cut short a look at events,
        // whose signal was taken then. What goes wrong in a session that is over
        // changes nothing; what counts is whether it becomes quiet.
        let _ = session.wake();
        if session.is_quiet() {
            return Ok(());
        }
        let Some(wake) = session.wake_fd() else {
            return Err(NotQuiet { limit });
        };
        match wait_for(wake, Direction::Read, None, Some(deadline)) {
            Ok(Wake::Ready) => {}
            _ => return Err(NotQuiet { limit }),
        }
    }
}
