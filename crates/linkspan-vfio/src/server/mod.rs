//! The server of a vfio-user session: the side that has a device.
//!
//! [`Server`] is one connection. Bytes go in through [`Server::receive`], and what is
//! to be done comes out of [`Server::poll_effect`]. Each effect that wants an answer is
//! answered through [`Server::answer`], and only then is more received: so whatever
//! takes time is a state here, and the reply leaves when it is over.
//!
//! What is told of the device is the same for every connection; what one connection
//! left behind (maps, interrupts) ends with it, and the device's own state does not
//! (vfio-user: Client Disconnection).

mod ask;
mod dispatch;
mod effect;
mod snapshot;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem;

use zerocopy::IntoBytes as _;

pub use ask::AskError;
pub use effect::{Answer, Effect, PlaneState};
pub use linkspan_mem::record::RestoreError;
pub use snapshot::NotQuiet;

use crate::dma::{DmaMap, DmaMaps};
use crate::error::{Cause, Disposition, Error, Misuse};
use crate::fd::FdId;
use crate::framing::{Framing, message};
use crate::irq::Irq;
use crate::region::Region;
use crate::version::Capabilities;
use crate::wire::{Header, Version};
use ask::Questions;
use dispatch::{Commit, Step};

/// What a device offers to its client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its regions, by index: of a PCI device nine that the bus defines
    /// ([`pci::REGIONS`](crate::pci::REGIONS)), and then those that have a kind.
    pub regions: Vec<Region>,
    /// Its interrupts, by kind: of a PCI device five ([`pci::IRQS`](crate::pci::IRQS)).
    pub irqs: Vec<Irq>,
    /// Whether it can be reset.
    pub reset: bool,
    /// Maps of memory at once.
    pub dma_maps: u64,
    /// Whether it has planes to show.
    pub planes: bool,
}

/// The server of one connection.
#[derive(Debug)]
pub struct Server {
    offer: Offer,
    framing: Framing,
    /// What was agreed upon, and what the client takes.
    agreed: Option<Agreed>,
    maps: DmaMaps,
    over: bool,
    turn: Turn,
    outbox: VecDeque<(Vec<u8>, Vec<FdId>)>,
    told: Option<Effect>,
    questions: Questions,
}

/// What both ends agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version.
    pub version: (u16, u16),
    /// What both can do; of numbers, what the client takes.
    pub capabilities: Capabilities,
}

/// Whose turn it is to act.
#[derive(Debug)]
enum Turn {
    /// The peer's.
    Idle,
    /// The driver's, to take the effect.
    Asking(Effect, Question),
    /// The driver's, to answer it.
    Asked(Question),
}

/// What follows from the answer to an effect.
#[derive(Debug)]
struct Question {
    commit: Commit,
    context: Context,
}

/// The message that is being handled.
#[derive(Clone, Copy, Debug)]
struct Context {
    id: u16,
    code: u16,
    reply: bool,
}

impl Server {
    /// A session before its first message.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self {
            offer,
            framing: Framing::default(),
            agreed: None,
            maps: DmaMaps::default(),
            over: false,
            turn: Turn::Idle,
            outbox: VecDeque::new(),
            told: None,
            questions: Questions::default(),
        }
    }

    /// Bytes to read next from the socket: what is missing of a header, then of its
    /// body. Never read more, since descriptors belong to the message whose first byte
    /// they come with. 0 while an effect waits to be taken or answered, and after the
    /// end of the session.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match (&self.turn, &self.told) {
            (Turn::Idle, None) if !self.over && self.outbox.is_empty() => self.framing.wanted(),
            _ => 0,
        }
    }

    /// Whether a message has begun and is not all there: its descriptors are to be kept.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.framing.begun()
    }

    /// Takes bytes of the socket, at most [`wanted`](Self::wanted), and the number of
    /// descriptors that came with them. Descriptors are legal only with the first byte
    /// of a message.
    ///
    /// # Errors
    /// The message that ended with these bytes was refused, or the stream makes no
    /// sense; [`Error::disposition`] says what is left to do.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<(), Error> {
        let wanted = self.wanted();
        if self.over {
            return Err(self.fail(None, Misuse::Over.into()));
        }
        if bytes.len() > wanted {
            let got = bytes.len();
            return Err(self.fail(None, Misuse::Unwanted { got, wanted }.into()));
        }
        if bytes.is_empty() && fds == 0 {
            return Ok(());
        }
        let frame = match self.framing.push(bytes, fds) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(error) => return Err(self.fail(self.framing.command(), error.into())),
        };
        let context = Context {
            id: frame.header.id,
            code: frame.header.command,
            reply: !frame.is_reply() && frame.header.flags & Header::NO_REPLY == 0,
        };
        if frame.is_reply() {
            let told = self.questions.answered(&frame);
            self.told = Some(told.map_err(|cause| self.nack(context, cause))?);
            return Ok(());
        }
        let step = self.dispatch(frame);
        self.advance(context, step)
    }

    /// What is to be done next, if anything is.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if let Some((bytes, fds)) = self.outbox.pop_front() {
            return Some(Effect::Send { bytes, fds });
        }
        if let Some(told) = self.told.take() {
            return Some(told);
        }
        match mem::replace(&mut self.turn, Turn::Idle) {
            Turn::Asking(effect, question) => {
                self.turn = Turn::Asked(question);
                Some(effect)
            }
            other => {
                self.turn = other;
                None
            }
        }
    }

    /// The answer to the effect taken last, if [`Effect::needs_answer`]: how it went, or
    /// the error (a number of Linux) that the client is to be told.
    ///
    /// # Errors
    /// With an error the message is refused, as from [`receive`](Self::receive).
    pub fn answer(&mut self, answer: Result<Answer, u32>) -> Result<(), Error> {
        let Question { commit, context } = match mem::replace(&mut self.turn, Turn::Idle) {
            Turn::Asked(question) => question,
            other => {
                self.turn = other;
                return Err(self.fail(None, Misuse::NoQuestion.into()));
            }
        };
        let step = match answer {
            Ok(answer) => self.commit(commit, answer),
            Err(number) => Err(Cause::Failed(number)),
        };
        self.advance(context, step)
    }

    /// Ends the session: the client is gone, or an error said
    /// [`CloseLink`](Disposition::CloseLink), or the device is to stop. Nothing is to be
    /// done any more; what was mapped is void.
    pub fn disconnect(&mut self) {
        self.over = true;
        self.turn = Turn::Idle;
        self.outbox.clear();
        self.told = None;
        self.maps.clear();
        self.framing = Framing::default();
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What is offered.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// What was agreed upon, once it was.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        self.agreed
    }

    /// The maps that there are, by address.
    #[must_use]
    pub fn maps(&self) -> &[DmaMap] {
        self.maps.all()
    }

    /// Carries a message one step on: to the next effect, to its reply, to its refusal.
    fn advance(&mut self, context: Context, step: Result<Step, Cause>) -> Result<(), Error> {
        match step {
            Ok(Step::Ask(effect, commit)) => {
                self.turn = Turn::Asking(effect, Question { commit, context });
                Ok(())
            }
            Ok(Step::Reply(body, fds)) => {
                if context.reply {
                    let (id, code) = (context.id, context.code);
                    let bytes = message(id, code, Header::REPLY, 0, &[&body]);
                    self.outbox.push_back((bytes, fds));
                }
                Ok(())
            }
            Err(cause @ (Cause::Version(_) | Cause::Misuse(_))) => {
                Err(self.fail(Some(context.code), cause))
            }
            Err(cause) => Err(self.nack(context, cause)),
        }
    }

    /// Refuses a message: its reply is a header alone.
    fn nack(&mut self, context: Context, cause: Cause) -> Error {
        if context.reply {
            let (flags, number) = (Header::REPLY | Header::ERROR, cause.errno());
            let bytes = message(context.id, context.code, flags, number, &[]);
            self.outbox.push_back((bytes, Vec::new()));
        }
        Error {
            command: Some(context.code),
            cause,
            disposition: Disposition::Nack,
        }
    }

    fn fail(&mut self, command: Option<u16>, cause: Cause) -> Error {
        self.disconnect();
        Error {
            command,
            cause,
            disposition: Disposition::CloseLink,
        }
    }
}

/// The body of a version's answer.
pub(crate) fn version_body((major, minor): (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut body = Version { major, minor }.as_bytes().to_vec();
    body.extend_from_slice(data);
    body
}
