//! A connection of `linkspan_vmbus::link`: whole frames and their descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{Stream, reaper};
use linkspan_vmbus::link::{Conversation, Frame, LinkError, Phase, Role, Side};

use crate::session::MESSAGE_FDS_MAX;

/// How long a frame may take to go out. They are small, and the socket has room for
/// all that a peer which reads leaves unread.
const SEND_LIMIT: Duration = Duration::from_secs(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FramedError {
    /// The other end closed it.
    #[error("the other end closed the connection")]
    Closed,
    /// The other end broke the protocol.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It sent more descriptors at once than any frame has.
    #[error("{count} descriptors came at once")]
    TooManyFds {
        /// How many.
        count: usize,
    },
    /// We were asked to stop waiting.
    #[error("stopped")]
    Cancelled,
    /// Nothing came in time.
    #[error("the other end does not answer")]
    Late,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// One end of a connection.
#[derive(Debug)]
pub struct Framed {
    stream: Stream,
    conversation: Conversation,
    fds: Vec<OwnedFd>,
}

impl Framed {
    /// A connection that was accepted.
    #[must_use]
    pub fn accepted(stream: Stream) -> Self {
        Self::new(stream, Side::Host)
    }

    /// Connects, and says what this end is.
    ///
    /// # Errors
    /// Nobody listens there, or closes at once.
    pub fn connect(path: &Path, role: Role) -> Result<Self, FramedError> {
        Self::connect_with(path, &Frame::hello(role))
    }

    /// Connects, and says this first.
    ///
    /// # Errors
    /// Nobody listens there, or closes at once.
    pub fn connect_with(path: &Path, hello: &Frame) -> Result<Self, FramedError> {
        let mut framed = Self::new(Stream::connect(path)?, Side::Client);
        framed.say(hello, &[])?;
        Ok(framed)
    }

    fn new(stream: Stream, us: Side) -> Self {
        Self {
            stream,
            conversation: Conversation::new(us),
            fds: Vec::new(),
        }
    }

    /// How far the connection is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.conversation.phase()
    }

    /// The version that is spoken, once that is known.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.conversation.version()
    }

    /// Sends a frame. It must be our turn.
    ///
    /// # Errors
    /// The other end is gone, or reads nothing.
    pub fn say(&mut self, frame: &Frame, fds: &[BorrowedFd<'_>]) -> Result<(), FramedError> {
        let bytes = self.conversation.say(frame);
        let sent = self.stream.send(&bytes, fds, Instant::now() + SEND_LIMIT);
        sent.map_err(ended)
    }

    /// The next frame, if it is there already, and its descriptors, which are
    /// **unchecked**. Never waits.
    ///
    /// # Errors
    /// The connection is over.
    pub fn take(&mut self) -> Result<Option<(Frame, Vec<OwnedFd>)>, FramedError> {
        let mut buffer = [0; 2048];
        loop {
            let wanted = self.conversation.wanted().min(buffer.len());
            let before = self.fds.len();
            let bytes = &mut buffer[..wanted];
            let received = match self.stream.receive(bytes, &mut self.fds, MESSAGE_FDS_MAX) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(ended(error)),
            };
            if received.surplus > 0 {
                let count = self.fds.len() - before + received.surplus;
                return Err(FramedError::TooManyFds { count });
            }
            if received.bytes == 0 {
                return Err(FramedError::Closed);
            }
            let fds = self.fds.len() - before;
            let frame = self.conversation.receive(&buffer[..received.bytes], fds)?;
            if let Some(frame) = frame {
                return Ok(Some((frame, std::mem::take(&mut self.fds))));
            }
        }
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// The connection is over, or nothing came before `deadline`, or `cancel` became
    /// readable.
    pub fn await_frame(
        &mut self,
        cancel: BorrowedFd<'_>,
        deadline: Option<Instant>,
    ) -> Result<(Frame, Vec<OwnedFd>), FramedError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            let read = Direction::Read;
            match wait_for(self.stream.as_fd(), read, Some(cancel), deadline)? {
                Wake::Ready => {}
                Wake::Cancelled => return Err(FramedError::Cancelled),
                Wake::Deadline => return Err(FramedError::Late),
            }
        }
    }
}

impl AsFd for Framed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Framed {
    fn drop(&mut self) {
        // Of a frame that never was whole; nobody knows what they are.
        self.fds.drain(..).for_each(reaper::dispose);
    }
}

fn ended(error: io::Error) -> FramedError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => FramedError::Closed,
        _ => error.into(),
    }
}
