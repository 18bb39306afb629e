//! The socket on which we tell the front end what it did not ask for.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use linkspan_sys::poll::Interest;
use linkspan_sys::{Epoll, Stream};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::backend::{ReplyError, Requests};

/// The number under which the socket is watched. Nobody asks which descriptor
/// woke the session: all of them are looked at then.
const TOKEN: u64 = 0;

/// Our end of the socket (vhost-user: `VHOST_USER_SET_BACKEND_REQ_FD`). Nothing
/// here waits for the front end, and what it does not read is kept once.
#[derive(Debug)]
pub(super) struct RequestSocket {
    stream: Stream,
    requests: Requests,
    /// A message for which the socket had no room.
    unsent: Option<Vec<u8>>,
}

/// Why the socket is of no further use. The session goes on without it.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The front end closed it.
    #[error("the front end closed it")]
    Closed,
    /// The front end's answers make no sense.
    #[error(transparent)]
    Reply(#[from] ReplyError),
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

impl RequestSocket {
    /// Watches the socket as part of `watch` from now on.
    pub(super) fn open(fd: OwnedFd, features: ProtocolFeatures, watch: &Epoll) -> io::Result<Self> {
        let stream = Stream::check(fd)?;
        watch.add(&stream, TOKEN, Interest::READ)?;
        Ok(Self {
            stream,
            requests: Requests::new(features),
            unsent: None,
        })
    }

    /// Ends the watch and closes the socket.
    pub(super) fn close(self, watch: &Epoll) {
        // The peer may hold the same open file, which would stay watched.
        if let Err(error) = watch.delete(&self.stream) {
            panic!("a watched socket cannot be forgotten: {error}");
        }
    }

    /// Configuration space changed: the front end hears of it with the next
    /// [`pump`](Self::pump), if it can be told at all.
    pub(super) fn config_changed(&mut self) {
        if let Err(error) = self.requests.config_changed() {
            tracing::debug!("the front end is not told of a change: {error}");
        }
    }

    /// Takes in what the front end answered, and sends what there is to send, as
    /// far as that is possible without waiting.
    pub(super) fn pump(&mut self, watch: &Epoll) -> Result<(), RequestError> {
        self.hear()?;
        let stuck = self.unsent.is_some();
        while let Some(bytes) = self.unsent.take().or_else(|| self.requests.poll_send()) {
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
        if self.unsent.is_some() != stuck {
            let interest = if stuck {
                Interest::READ
            } else {
                Interest::READ_WRITE
            };
            watch.modify(&self.stream, TOKEN, interest)?;
        }
        Ok(())
    }

    fn hear(&mut self) -> Result<(), RequestError> {
        let mut buffer = [0; 64];
        loop {
            let wanted = self.requests.wanted().min(buffer.len());
            let target = &mut buffer[..wanted];
            let received = match self.stream.receive(target, &mut Vec::new(), 0) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if received.bytes == 0 {
                return Err(RequestError::Closed);
            }
            match self
                .requests
                .receive(&buffer[..received.bytes], received.surplus)
            {
                Err(error @ ReplyError::Refused { .. }) => {
                    tracing::debug!("a change of configuration: {error}");
                }
                done => done?,
            }
        }
    }
}
