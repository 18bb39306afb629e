//! The socket on which the back end tells us what we did not ask for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linkspan_sys::poll::Interest;
use linkspan_sys::{Epoll, Stream};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::{RequestError, RequestEvent, Requests};

use super::channel::{Channel, ChannelError};
use crate::limit::LogLimit;

/// How often the socket is read before the connection has its turn again: a back
/// end that floods the one does not keep us from the other.
const READS_AT_ONCE: usize = 32;

/// Our end of the socket (vhost-user: `VHOST_USER_SET_BACKEND_REQ_FD`), made for
/// one connection. The connection lives on when the socket does not.
#[derive(Debug)]
pub(super) struct Asked {
    /// What wakes the session: the socket, and whatever else it waits for.
    watch: Epoll,
    channel: Option<Channel>,
    requests: Requests,
    /// The end that the back end gets.
    theirs: Option<OwnedFd>,
}

/// Why the socket is of no further use.
#[derive(Debug, thiserror::Error)]
enum AskedError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl Asked {
    /// A socket for a connection that negotiated `features`, and that `bell`
    /// wakes as well.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub(super) fn open(features: ProtocolFeatures, bell: BorrowedFd<'_>) -> io::Result<Self> {
        let (ours, theirs) = Stream::pair()?;
        let watch = Epoll::new()?;
        watch.add(bell, 0, Interest::READ)?;
        Ok(Self {
            channel: Some(Channel::open(ours, &watch)?),
            watch,
            requests: Requests::new(features),
            theirs: Some(theirs.into()),
        })
    }

    /// Becomes readable when the back end asks for something, or the bell rings.
    pub(super) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// The back end's end, once. We keep none, or its close would go unnoticed.
    pub(super) fn take_theirs(&mut self) -> Option<OwnedFd> {
        self.theirs.take()
    }

    /// Takes in and answers what the back end asked for, as far as that is
    /// possible without waiting; whether configuration space changed.
    pub(super) fn pump(&mut self, refusals: &mut LogLimit) -> bool {
        let mut changed = false;
        let Err(error) = self.converse(&mut changed, refusals) else {
            return changed;
        };
        if let AskedError::Channel(ChannelError::Closed) = error {
            tracing::debug!("the socket for requests of the back end: {error}");
        } else if let Some(more) = refusals.allow() {
            tracing::warn!(
                more,
                "the socket for requests of the back end is closed: {error}"
            );
        }
        if let Some(channel) = self.channel.take() {
            channel.close(&self.watch);
        }
        changed
    }

    fn converse(&mut self, changed: &mut bool, refusals: &mut LogLimit) -> Result<(), AskedError> {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let mut buffer = [0; 256];
        let mut reads = 0;
        loop {
            // Nothing more is read from a back end that does not read our answers.
            let next = || loop {
                match self.requests.poll_event()? {
                    RequestEvent::ConfigChanged => *changed = true,
                    RequestEvent::Send { bytes } => break Some(bytes),
                    other => unreachable!("{other:?} is not one that we know"),
                }
            };
            if !channel.send(&self.watch, next)? || reads == READS_AT_ONCE {
                return Ok(());
            }
            reads += 1;
            let wanted = self.requests.wanted().min(buffer.len());
            let Some(received) = channel.receive(&mut buffer[..wanted])? else {
                return Ok(());
            };
            let bytes = &buffer[..received.bytes];
            match self.requests.receive(bytes, received.surplus) {
                Err(error) if error.is_nacked() => {
                    if let Some(more) = refusals.allow() {
                        tracing::warn!(more, "refused: {error}");
                    }
                }
                done => done?,
            }
        }
    }
}
