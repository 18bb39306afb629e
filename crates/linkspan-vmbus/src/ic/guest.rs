//! The guest's end of a service: one request at a time, answered in the buffer that
//! it came in.

use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use super::frame::{self, FrameError, HEADER_BYTES, IcHeader, flags};
use super::service::{Agreed, Service, Version};
use super::status::Status;
use crate::NotQuiet;
use linkspan_mem::record::{Reader, RestoreError, Writer};

/// Where a service writes what is saved of it.
pub struct Saver<'a>(pub(crate) &'a mut Writer);

/// Where a service reads what was saved of it.
pub struct Loader<'a, 'b>(pub(crate) &'a mut Reader<'b>);

/// What a service does with requests.
pub trait GuestService: Sized {
    /// Its row in the table.
    const SERVICE: &'static Service;

    /// What it asks of whoever drives it.
    type Effect: fmt::Debug;

    /// Takes a request. `body` is all that the pipe says there is, and what is left
    /// in it goes back with the reply.
    fn request(&mut self, version: Version, body: &mut [u8]) -> Handled<Self::Effect>;

    /// The effect asked for last was carried out, or failed with this status.
    fn done(&mut self, status: Status) -> Handled<Self::Effect>;

    /// Forgets what is under way; there may be something to do for that, whose
    /// answer goes to [`done`](Self::done) as well.
    fn reset(&mut self) -> Option<Self::Effect>;

    /// Writes its state down. There is no effect under way.
    fn save(&self, to: Saver<'_>);

    /// Becomes what was written down.
    ///
    /// # Errors
    /// It is no state that requests could have led to.
    fn load(&mut self, from: Loader<'_, '_>) -> Result<(), RestoreError>;
}

/// What becomes of a request, or follows from an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handled<E> {
    /// It is answered with this.
    Answer(Status),
    /// This is to be done first.
    Do(E),
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction<E> {
    /// Send the first so many bytes of the payload back.
    Reply(usize),
    /// Carry this out, then call [`Guest::answer`] with the same payload.
    Do(E),
}

/// How much of a request goes back with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Echo {
    /// All, as Linux does: a reply is as long as its request.
    #[default]
    Full,
    /// The header, but for negotiations. OpenVMM takes that; whether Windows does is
    /// not known.
    Header,
}

/// A message that is dropped, since there is nobody to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// It has not even a header.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It is a reply.
    #[error("a message with flags {flags:#x} is no request")]
    NotARequest {
        /// What it says.
        flags: u8,
    },
}

/// The guest's end of one service.
#[derive(Debug)]
pub struct Guest<S> {
    service: S,
    echo: Echo,
    agreed: Option<Agreed>,
    waiting: Waiting,
}

/// Whom the answer to an effect is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    Request,
    Negotiation,
    End,
}

const MAGIC: [u8; 8] = *b"LSicgst1";

impl<S: GuestService> Guest<S> {
    /// A service on a channel that was just opened.
    pub fn new(service: S, echo: Echo) -> Self {
        Self {
            service,
            echo,
            agreed: None,
            waiting: Waiting::Nothing,
        }
    }

    /// What was negotiated, if anything.
    pub fn agreed(&self) -> Option<Agreed> {
        self.agreed
    }

    /// The service.
    pub fn service(&self) -> &S {
        &self.service
    }

    /// The service, for what its driver asks of it.
    pub fn service_mut(&mut self) -> &mut S {
        &mut self.service
    }

    /// How much of a request goes back from now on.
    pub fn set_echo(&mut self, echo: Echo) {
        self.echo = echo;
    }

    /// Takes a message: the payload of a packet, which is answered in place.
    ///
    /// # Errors
    /// The message is dropped. Nothing has changed.
    ///
    /// # Panics
    /// When an effect was not answered: requests come one at a time.
    pub fn receive(&mut self, payload: &mut [u8]) -> Result<Reaction<S::Effect>, GuestError> {
        assert_eq!(self.waiting, Waiting::Nothing, "effects are answered first");
        let header = IcHeader::read(payload)?;
        if header.flags & flags::RESPONSE != 0 {
            return Err(GuestError::NotARequest {
                flags: header.flags,
            });
        }
        let Ok(room) = header.room(payload) else {
            return Ok(self.reply(Status::INVALID_ARGUMENT, payload));
        };
        let kind = header.kind.get();
        if kind == frame::NEGOTIATE {
            self.agreed = None;
            if let Some(effect) = self.service.reset() {
                self.waiting = Waiting::Negotiation;
                return Ok(Reaction::Do(effect));
            }
            return Ok(self.negotiate(payload));
        }
        let body = &mut payload[HEADER_BYTES..HEADER_BYTES + room];
        let handled = match self.agreed {
            Some(agreed) if kind == S::SERVICE.kind => self.service.request(agreed.service, body),
            _ => Handled::Answer(Status::FAIL),
        };
        Ok(self.handled(handled, payload))
    }

    /// Says how the effect went.
    ///
    /// # Panics
    /// When there was none.
    pub fn answer(&mut self, status: Status, payload: &mut [u8]) -> Reaction<S::Effect> {
        let waiting = core::mem::replace(&mut self.waiting, Waiting::Nothing);
        match waiting {
            Waiting::Request => {
                let handled = self.service.done(status);
                self.handled(handled, payload)
            }
            Waiting::Negotiation => match self.service.done(status) {
                Handled::Do(effect) => {
                    self.waiting = Waiting::Negotiation;
                    Reaction::Do(effect)
                }
                Handled::Answer(_) => self.negotiate(payload),
            },
            Waiting::Nothing | Waiting::End => panic!("an answer to no request"),
        }
    }

    /// The channel is gone, closed or rescinded: what is left to do. Its answer goes
    /// to [`ended`](Self::ended).
    pub fn end(&mut self) -> Option<S::Effect> {
        self.agreed = None;
        let effect = self.service.reset();
        self.waiting = if effect.is_some() {
            Waiting::End
        } else {
            Waiting::Nothing
        };
        effect
    }

    /// What was left to do is done, well or not.
    pub fn ended(&mut self, status: Status) {
        if core::mem::replace(&mut self.waiting, Waiting::Nothing) == Waiting::End {
            self.service.done(status);
        }
    }

    fn handled(&mut self, handled: Handled<S::Effect>, payload: &mut [u8]) -> Reaction<S::Effect> {
        match handled {
            Handled::Answer(status) => self.reply(status, payload),
            Handled::Do(effect) => {
                self.waiting = Waiting::Request;
                Reaction::Do(effect)
            }
        }
    }

    fn reply(&self, status: Status, payload: &mut [u8]) -> Reaction<S::Effect> {
        let Ok(mut header) = IcHeader::read(payload) else {
            return Reaction::Reply(payload.len());
        };
        let len = match self.echo {
            Echo::Full => payload.len(),
            Echo::Header => {
                header.pipe_len = 20.into();
                header.size = 0.into();
                HEADER_BYTES
            }
        };
        header.reply(payload, status);
        Reaction::Reply(len)
    }

    fn negotiate(&mut self, payload: &mut [u8]) -> Reaction<S::Effect> {
        let Ok(mut header) = IcHeader::read(payload) else {
            return Reaction::Reply(payload.len());
        };
        let room = header.room(payload).unwrap_or(0);
        let body = &mut payload[HEADER_BYTES..HEADER_BYTES + room];
        self.agreed = frame::choose(S::SERVICE, body).unwrap_or(None);
        frame::answer_negotiation(body, self.agreed);
        header.size = frame::ANSWER_BYTES.into();
        let status = if self.agreed.is_some() {
            Status::OK
        } else {
            Status::FAIL
        };
        header.reply(payload, status);
        Reaction::Reply(payload.len())
    }

    /// The conversation as bytes, between two requests.
    ///
    /// # Errors
    /// An effect is under way.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if self.waiting != Waiting::Nothing {
            return Err(NotQuiet);
        }
        let mut writer = Writer::new(MAGIC);
        writer.u16(S::SERVICE.kind);
        save_agreed(&mut writer, self.agreed);
        self.service.save(Saver(&mut writer));
        Ok(writer.finish())
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved, with a service that
    /// was just made.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(service: S, echo: Echo, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new("integration service", MAGIC, bytes)?;
        if reader.u16()? != S::SERVICE.kind {
            return Err(RestoreError::Nonsense {
                what: "another service",
            });
        }
        let mut guest = Self::new(service, echo);
        guest.agreed = load_agreed(&mut reader, S::SERVICE)?;
        guest.service.load(Loader(&mut reader))?;
        reader.end()?;
        Ok(guest)
    }
}

pub(super) fn save_agreed(writer: &mut Writer, agreed: Option<Agreed>) {
    writer.u8(agreed.is_some().into());
    if let Some(agreed) = agreed {
        writer.bytes(&agreed.framework.to_bytes());
        writer.bytes(&agreed.service.to_bytes());
    }
}

pub(super) fn load_agreed(
    reader: &mut Reader<'_>,
    service: &Service,
) -> Result<Option<Agreed>, RestoreError> {
    if !reader.flag("whether versions are agreed upon")? {
        return Ok(None);
    }
    let agreed = Agreed {
        framework: Version::from_bytes(reader.array()?),
        service: Version::from_bytes(reader.array()?),
    };
    if service.frameworks.contains(&agreed.framework) && service.versions.contains(&agreed.service)
    {
        return Ok(Some(agreed));
    }
    Err(RestoreError::Nonsense {
        what: "a version that is not offered",
    })
}
