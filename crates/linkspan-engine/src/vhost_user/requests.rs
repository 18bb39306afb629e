//! The socket on which we tell the front end what it did not ask for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linkspan_sys::{Epoll, Stream};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::backend::{ReplyError, Requests};

use super::channel::{Channel, ChannelError};

/// Our end of the socket (vhost-user: `VHOST_USER_SET_BACKEND_REQ_FD`). Nothing
/// here waits for the front end, and what it does not read is kept once.
#[derive(Debug)]
pub(crate) struct RequestSocket {
    channel: Channel,
    requests: Requests,
}

/// Why the socket is of no further use. The session goes on without it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// The front end closed it, or it failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The front end's answers make no sense.
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

impl RequestSocket {
    /// Watches the socket as part of `watch` from now on.
    pub(crate) fn open(fd: OwnedFd, features: ProtocolFeatures, watch: &Epoll) -> io::Result<Self> {
        Ok(Self {
            channel: Channel::open(Stream::check(fd)?, watch)?,
            requests: Requests::new(features),
        })
    }

    /// Ends the watch and closes the socket.
    pub(crate) fn close(self, watch: &Epoll) {
        self.channel.close(watch);
    }

    /// Whether nothing is half said or waits for an answer.
    pub(crate) fn is_quiet(&self) -> bool {
        self.requests.is_quiet() && self.channel.is_quiet()
    }

    /// Configuration space changed: the front end hears of it with the next
    /// [`pump`](Self::pump), if it can be told at all.
    pub(crate) fn config_changed(&mut self) {
        if let Err(error) = self.requests.config_changed() {
            tracing::debug!("the front end is not told of a change: {error}");
        }
    }

    /// Takes in what the front end answered, and sends what there is to send, as
    /// far as that is possible without waiting.
    pub(crate) fn pump(&mut self, watch: &Epoll) -> Result<(), RequestError> {
        let mut buffer = [0; 64];
        loop {
            let wanted = self.requests.wanted().min(buffer.len());
            let Some(received) = self.channel.receive(&mut buffer[..wanted])? else {
                break;
            };
            let bytes = &buffer[..received.bytes];
            match self.requests.receive(bytes, received.surplus) {
                Err(error @ ReplyError::Refused { .. }) => {
                    tracing::debug!("a change of configuration: {error}");
                }
                done => done?,
            }
        }
        self.channel.send(watch, || self.requests.poll_send())?;
        Ok(())
    }
}

impl AsFd for RequestSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
