//! The socket on which a back end makes requests of its own.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::FromBytes;

use super::Misuse;
use crate::features::ProtocolFeatures;
use crate::framing::{Carries, Framing, FramingError};
use crate::message::{BackendRequest, Gate};
use crate::wire::{self, Header};

/// The back end's end of the socket that came with
/// [`Effect::SetRequestSocket`](super::Effect::SetRequestSocket).
///
/// It runs beside the session and never waits for it. With `REPLY_ACK` at most
/// one request is not acknowledged; changes that come meanwhile become one
/// request after that, so a front end that does not read costs nothing.
#[derive(Debug)]
pub struct Requests {
    features: ProtocolFeatures,
    framing: Framing,
    /// Something changed that the front end does not know of.
    changed: bool,
    /// A request waits for its acknowledgement.
    asked: bool,
    over: bool,
}

/// What a front end answered to a request. Unless it is
/// [`Refused`](Self::Refused), close this socket; the session itself can go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReplyError {
    /// The stream makes no sense from here on.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// A reply to nothing, or to something else.
    #[error("a reply to request {got}, which was not made")]
    Unasked {
        /// The number in the reply.
        got: u32,
    },
    /// A reply that is no `u64`, or that has descriptors.
    #[error("a reply of {bytes} bytes and {fds} file descriptors")]
    Size {
        /// Its bytes.
        bytes: usize,
        /// Its descriptors.
        fds: usize,
    },
    /// The front end refused the request, and goes on.
    #[error("the front end refused with {code}")]
    Refused {
        /// Not 0.
        code: u64,
    },
    /// The negotiation did not allow the request.
    #[error("not negotiated: it needs {needs}")]
    NotNegotiated {
        /// What would allow it.
        needs: Gate,
    },
    /// Whoever drives this called it wrongly.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

impl Requests {
    /// The socket of a session that negotiated `features`.
    #[must_use]
    pub fn new(features: ProtocolFeatures) -> Self {
        Self {
            features,
            framing: Framing::new(Carries::Replies),
            changed: false,
            asked: false,
            over: false,
        }
    }

    /// Configuration space changed; the front end is to be told
    /// (`VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`).
    ///
    /// # Errors
    /// Without `VHOST_USER_PROTOCOL_F_CONFIG` it cannot be told.
    pub fn config_changed(&mut self) -> Result<(), ReplyError> {
        let needs = BackendRequest::ConfigChangeMsg.message().gate;
        if !self.features.contains(ProtocolFeatures::CONFIG) {
            return Err(ReplyError::NotNegotiated { needs });
        }
        self.changed = !self.over;
        Ok(())
    }

    /// What to write to this socket now, without descriptors, if anything is.
    pub fn poll_send(&mut self) -> Option<Vec<u8>> {
        if self.asked || self.over || !core::mem::take(&mut self.changed) {
            return None;
        }
        self.asked = self.features.contains(ProtocolFeatures::REPLY_ACK);
        let flags = if self.asked { Header::NEED_REPLY } else { 0 };
        let code = BackendRequest::ConfigChangeMsg.code();
        Some(wire::encode(code, flags, &[]))
    }

    /// Whether nothing is to be sent or waits for an answer: then a successor
    /// process can make a new one.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.changed && !self.asked && !self.framing.begun()
    }

    /// Bytes to read next, as in [`Backend::wanted`](super::Backend::wanted).
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.over { 0 } else { self.framing.wanted() }
    }

    /// Takes bytes of the socket, at most [`wanted`](Self::wanted), and the
    /// number of descriptors that came with them, of which none is ever used.
    ///
    /// # Errors
    /// The reply makes no sense, or is a refusal.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<(), ReplyError> {
        let (wanted, got) = (self.wanted(), bytes.len());
        if self.over {
            return Err(Misuse::Over.into());
        }
        if bytes.is_empty() && fds == 0 {
            return Ok(());
        }
        let done = if got > wanted {
            Err(Misuse::Unwanted { got, wanted }.into())
        } else {
            self.reply(bytes, fds)
        };
        if let Err(error) = &done {
            self.over = !matches!(error, ReplyError::Refused { .. });
        }
        done
    }

    fn reply(&mut self, bytes: &[u8], fds: usize) -> Result<(), ReplyError> {
        let Some(frame) = self.framing.push(bytes, fds)? else {
            return Ok(());
        };
        let got = frame.header.request;
        if !self.asked || got != BackendRequest::ConfigChangeMsg.code() {
            return Err(ReplyError::Unasked { got });
        }
        let (bytes, fds) = (frame.body.len(), frame.fds);
        let Some(code) = u64::read_from_bytes(&frame.body).ok().filter(|_| fds == 0) else {
            return Err(ReplyError::Size { bytes, fds });
        };
        self.asked = false;
        match code {
            0 => Ok(()),
            code => Err(ReplyError::Refused { code }),
        }
    }
}
