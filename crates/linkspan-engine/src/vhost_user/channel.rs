//! The second socket of a session, on which the back end makes requests: what
//! both of its ends do with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use linkspan_sys::poll::Interest;
use linkspan_sys::socket::Received;
use linkspan_sys::{Epoll, Stream};

/// The number under which the socket is watched. Nobody asks which descriptor
/// woke the session: all of them are looked at then.
const TOKEN: u64 = 0;

/// One end of it. Nothing here waits for the other end, and what that does not
/// read is kept once.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: Stream,
    /// A message for which the socket had no room.
    unsent: Option<Vec<u8>>,
}

/// Why the socket is of no further use, before it is asked what it carried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The other end closed it.
    #[error("the peer closed it")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Socket(io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // It was closed with something of ours unread.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Socket(error),
        }
    }
}

impl Channel {
    /// Watches the socket as part of `watch` from now on.
    pub(crate) fn open(stream: Stream, watch: &Epoll) -> io::Result<Self> {
        watch.add(&stream, TOKEN, Interest::READ)?;
        Ok(Self {
            stream,
            unsent: None,
        })
    }

    /// Whether no message waits for room.
    pub(crate) fn is_quiet(&self) -> bool {
        self.unsent.is_none()
    }

    /// Ends the watch and closes the socket.
    pub(crate) fn close(self, watch: &Epoll) {
        // The peer may hold the same open file, which would stay watched.
        if let Err(error) = watch.delete(&self.stream) {
            panic!("a watched socket cannot be forgotten: {error}");
        }
    }

    /// Reads what is there; `None` if nothing is. Descriptors that came with it
    /// are counted and closed: no request of a back end here has any.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<Option<Received>, ChannelError> {
        match self.stream.receive(buffer, &mut Vec::new(), 0) {
            Ok(received) if received.bytes == 0 => Err(ChannelError::Closed),
            Ok(received) => Ok(Some(received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what `next` gives until it gives nothing; false if the socket has no
    /// room for all of it now. The watch then tells of room, and of nothing else.
    pub(crate) fn send(
        &mut self,
        watch: &Epoll,
        mut next: impl FnMut() -> Option<Vec<u8>>,
    ) -> Result<bool, ChannelError> {
        let stuck = self.unsent.is_some();
        while let Some(bytes) = self.unsent.take().or_else(&mut next) {
            match self.stream.send(&bytes, &[], Instant::now()) {
                Ok(()) => {}
                // A message this short goes whole or not at all.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    self.unsent = Some(bytes);
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let sent = self.unsent.is_none();
        if sent == stuck {
            let interest = if sent {
                Interest::READ
            } else {
                Interest::WRITE
            };
            watch.modify(&self.stream, TOKEN, interest)?;
        }
        Ok(sent)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
