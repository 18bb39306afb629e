//! The socket on which a back end makes requests of its own.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::IntoBytes;

use crate::backend::Misuse;
use crate::features::ProtocolFeatures;
use crate::framing::{Carries, Frame, Framing, FramingError};
use crate::message::{self, BACKEND_REQUESTS, BackendRequest, Gate, Reply};
use crate::wire::{self, Header};

/// The front end's end of the socket that
/// [`Command::SetBackendRequests`](super::Command::SetBackendRequests) gives the
/// back end.
///
/// It runs beside the session: a back end may wait for its request to be
/// acknowledged before it answers there. When [quiet](Self::is_quiet) it has no
/// state, so a successor process makes a new one.
#[derive(Debug)]
pub struct Requests {
    features: ProtocolFeatures,
    framing: Framing,
    events: VecDeque<RequestEvent>,
    over: bool,
}

/// What is to be done or known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestEvent {
    /// Write these bytes to this socket, without descriptors.
    Send {
        /// A whole message.
        bytes: Vec<u8>,
    },
    /// Configuration space changed: read it again.
    ConfigChanged,
}

/// A request that was refused. The socket is to be closed unless
/// [`is_nacked`](Self::is_nacked); the session itself can go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The stream makes no sense from here on.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// A request that does not exist, or that the negotiation did not allow.
    #[error("request {code} of the back end is not negotiated")]
    NotNegotiated {
        /// Its number.
        code: u32,
        /// Whether the back end is told.
        nacked: bool,
    },
    /// A request of the wrong length.
    #[error("request {code} of the back end has {got} bytes instead of {min} to {max}")]
    BodySize {
        /// Its number.
        code: u32,
        /// Bytes that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// A request with too few or too many descriptors.
    #[error("request {code} of the back end has {got} file descriptors instead of {min} to {max}")]
    FdCount {
        /// Its number.
        code: u32,
        /// Descriptors that came.
        got: usize,
        /// Fewest that make sense.
        min: usize,
        /// Most that make sense.
        max: usize,
    },
    /// Whoever drives this called it wrongly.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

impl RequestError {
    /// Whether the back end is told by what is to be sent, and goes on.
    #[must_use]
    pub fn is_nacked(&self) -> bool {
        matches!(self, Self::NotNegotiated { nacked: true, .. })
    }
}

impl Requests {
    /// The socket of a session that negotiated `features`.
    #[must_use]
    pub fn new(features: ProtocolFeatures) -> Self {
        Self {
            features,
            framing: Framing::new(Carries::Requests),
            events: VecDeque::new(),
            over: false,
        }
    }

    /// Whether no request is half received or half handled: then a successor
    /// process can make a new one.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.events.is_empty() && !self.framing.begun()
    }

    /// Bytes to read next, as in [`Frontend::wanted`](super::Frontend::wanted).
    #[must_use]
    pub fn wanted(&self) -> usize {
        if self.over || !self.events.is_empty() {
            return 0;
        }
        self.framing.wanted()
    }

    /// Takes bytes of the socket, at most [`wanted`](Self::wanted), and the
    /// number of descriptors that came with them, of which none is ever used.
    ///
    /// # Errors
    /// The request that ended with these bytes was refused.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<(), RequestError> {
        let (wanted, got) = (self.wanted(), bytes.len());
        if self.over {
            return Err(Misuse::Over.into());
        }
        let done = if got > wanted {
            Err(Misuse::Unwanted { got, wanted }.into())
        } else if bytes.is_empty() && fds == 0 {
            return Ok(());
        } else {
            match self.framing.push(bytes, fds) {
                Ok(Some(frame)) => self.handle(&frame),
                Ok(None) => return Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        if let Err(error) = &done {
            self.over = !error.is_nacked();
        }
        done
    }

    /// What is to be done or known next, if anything is.
    pub fn poll_event(&mut self) -> Option<RequestEvent> {
        self.events.pop_front()
    }

    fn handle(&mut self, frame: &Frame) -> Result<(), RequestError> {
        let code = frame.header.request;
        let asked = frame.header.flags & Header::NEED_REPLY != 0
            && self.features.contains(ProtocolFeatures::REPLY_ACK);
        let row = message::find(&BACKEND_REQUESTS, code);
        let open = row.filter(|row| {
            row.request == BackendRequest::ConfigChangeMsg
                && matches!(row.gate, Gate::Negotiated(needed) if self.features.contains(needed))
        });
        let Some(row) = open else {
            // A request that always has another reply cannot be refused in a
            // way that its sender understands.
            let nacked = asked && row.is_none_or(|row| row.reply == Reply::Ack);
            if nacked {
                self.reply(code, 1);
            }
            return Err(RequestError::NotNegotiated { code, nacked });
        };
        let sizes = row.payload.sizes();
        let (got, min, max) = (frame.body.len(), *sizes.start(), *sizes.end());
        if !sizes.contains(&got) {
            return Err(RequestError::BodySize {
                code,
                got,
                min,
                max,
            });
        }
        let (got, min, max) = (frame.fds, row.min_fds, row.max_fds);
        if !(min..=max).contains(&got) {
            return Err(RequestError::FdCount {
                code,
                got,
                min,
                max,
            });
        }
        self.events.push_back(RequestEvent::ConfigChanged);
        if asked {
            self.reply(code, 0);
        }
        Ok(())
    }

    fn reply(&mut self, code: u32, value: u64) {
        let bytes = wire::encode(code, Header::REPLY, value.as_bytes());
        self.events.push_back(RequestEvent::Send { bytes });
    }
}
