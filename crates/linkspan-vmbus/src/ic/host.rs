//! The host's end of a service: negotiates, sends requests and matches replies.

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::IntoBytes;

use super::frame::{self, FrameError, HEADER_BYTES, IcHeader, flags};
use super::guest::{load_agreed, save_agreed};
use super::service::{Agreed, Service, Version};
use super::status::Status;
use linkspan_mem::record::{Reader, RestoreError, Writer};

/// The host's end of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    service: &'static Service,
    agreed: Option<Agreed>,
    negotiating: Option<u8>,
    next: u8,
    outstanding: Vec<u8>,
}

/// What a message of the guest means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent<'a> {
    /// Requests can be sent.
    Negotiated(Agreed),
    /// A request ended.
    Reply {
        /// Which.
        transaction: u8,
        /// How.
        status: Status,
        /// What the guest left in its body.
        body: &'a [u8],
    },
    /// The reply to a request that is not awaited any more.
    Stale {
        /// Which.
        transaction: u8,
    },
}

/// What a guest, or whoever drives this end, did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HostError {
    /// A message that is none.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message that is no reply.
    #[error("a message with flags {flags:#x} is no reply")]
    NotAReply {
        /// What it says.
        flags: u8,
    },
    /// A reply of another kind than its request.
    #[error("a reply of kind {got} to a request of kind {want}")]
    Kind {
        /// What it says.
        got: u16,
        /// What was asked.
        want: u16,
    },
    /// The guest has no version in common with us.
    #[error("the guest's {service} has none of our versions")]
    NoCommonVersion {
        /// Which service.
        service: &'static str,
    },
    /// The guest chose what it was not offered.
    #[error("the guest chose frame {framework} and version {version}, which it was not offered")]
    NotOffered {
        /// Version of the frame.
        framework: Version,
        /// Version of the service.
        version: Version,
    },
    /// A request before the negotiation was over.
    #[error("nothing is negotiated")]
    NotReady,
    /// More requests at once than there are numbers for.
    #[error("{outstanding} requests are outstanding")]
    Busy {
        /// Those.
        outstanding: usize,
    },
    /// A body that no message has room for.
    #[error("a body of {len} bytes is never sent")]
    Body {
        /// Bytes of it.
        len: usize,
    },
}

const MAGIC: [u8; 8] = *b"LSichst1";

/// Requests that can be outstanding: numbers have 8 bits, and one that comes back
/// late should not meet its successor.
const OUTSTANDING_MAX: usize = 64;

impl Host {
    /// A service on a channel that was just opened.
    #[must_use]
    pub fn new(service: &'static Service) -> Self {
        Self {
            service,
            agreed: None,
            negotiating: None,
            next: 0,
            outstanding: Vec::new(),
        }
    }

    /// What was negotiated, if anything.
    #[must_use]
    pub fn agreed(&self) -> Option<Agreed> {
        self.agreed
    }

    /// How many requests wait for a reply.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// The message that begins the conversation, or begins it anew: whatever is
    /// outstanding is not awaited any more.
    pub fn negotiate(&mut self) -> Vec<u8> {
        self.agreed = None;
        self.outstanding.clear();
        let transaction = self.number();
        self.negotiating = Some(transaction);
        let (frameworks, versions) = (self.service.frameworks, self.service.versions);
        let counts = [frameworks.len(), versions.len()];
        let mut body = Vec::new();
        for count in counts {
            body.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
        }
        body.extend([0; 4]);
        // The oldest one first, as Windows does.
        for version in frameworks.iter().rev().chain(versions.iter().rev()) {
            body.extend(version.to_bytes());
        }
        let none = Version { major: 0, minor: 0 };
        let agreed = Agreed {
            framework: none,
            service: none,
        };
        let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let header = IcHeader::request(frame::NEGOTIATE, agreed, len, transaction);
        let mut message = header.as_bytes().to_vec();
        message.extend(body);
        message
    }

    /// The header of a request with a body of `len` bytes, which are to be sent
    /// behind it; and its number.
    ///
    /// # Errors
    /// When it cannot be sent now.
    pub fn request(&mut self, len: usize) -> Result<(u8, [u8; HEADER_BYTES]), HostError> {
        let agreed = self.agreed.ok_or(HostError::NotReady)?;
        let outstanding = self.outstanding.len();
        if outstanding >= OUTSTANDING_MAX {
            return Err(HostError::Busy { outstanding });
        }
        let too_long = HostError::Body { len };
        let size = u16::try_from(len).map_err(|_| too_long)?;
        if len + HEADER_BYTES > frame::PIPE_MAX {
            return Err(too_long);
        }
        let transaction = self.number();
        self.outstanding.push(transaction);
        let header = IcHeader::request(self.service.kind, agreed, size, transaction);
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(header.as_bytes());
        Ok((transaction, bytes))
    }

    /// A reply that is not awaited any more. It is dropped if it comes.
    pub fn forget(&mut self, transaction: u8) {
        self.outstanding.retain(|number| *number != transaction);
    }

    /// Takes a message of the guest.
    ///
    /// # Errors
    /// The guest broke the protocol, or has no version in common with us.
    pub fn receive<'a>(&mut self, payload: &'a [u8]) -> Result<HostEvent<'a>, HostError> {
        let header = IcHeader::read(payload)?;
        if header.flags & flags::RESPONSE == 0 {
            return Err(HostError::NotAReply {
                flags: header.flags,
            });
        }
        // The pipe's length is what the request had, or less; the body's counts.
        header.room(payload)?;
        let body = &payload[HEADER_BYTES..HEADER_BYTES + usize::from(header.size.get())];
        let (transaction, got) = (header.transaction, header.kind.get());
        let negotiation = self.negotiating == Some(transaction);
        if !negotiation && !self.outstanding.contains(&transaction) {
            return Ok(HostEvent::Stale { transaction });
        }
        let want = if negotiation {
            frame::NEGOTIATE
        } else {
            self.service.kind
        };
        if got != want {
            return Err(HostError::Kind { got, want });
        }
        if negotiation {
            self.negotiating = None;
            let agreed = self.agreement(body)?;
            self.agreed = Some(agreed);
            return Ok(HostEvent::Negotiated(agreed));
        }
        self.forget(transaction);
        Ok(HostEvent::Reply {
            transaction,
            status: Status(header.status.get()),
            body,
        })
    }

    fn agreement(&self, body: &[u8]) -> Result<Agreed, HostError> {
        let (frameworks, versions) = frame::versions(body)?;
        let ([framework], [version]) = (frameworks, versions) else {
            return Err(HostError::NoCommonVersion {
                service: self.service.name,
            });
        };
        let agreed = Agreed {
            framework: Version::from_bytes(*framework),
            service: Version::from_bytes(*version),
        };
        let offered = self.service.frameworks.contains(&agreed.framework)
            && self.service.versions.contains(&agreed.service);
        if !offered {
            return Err(HostError::NotOffered {
                framework: agreed.framework,
                version: agreed.service,
            });
        }
        Ok(agreed)
    }

    /// The next number that nothing outstanding has.
    fn number(&mut self) -> u8 {
        while self.outstanding.contains(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        number
    }

    /// The conversation as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC);
        self.save(&mut writer);
        writer.finish()
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(service: &'static Service, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new("end of a host's service", MAGIC, bytes)?;
        let host = Self::load(service, &mut reader)?;
        reader.end()?;
        Ok(host)
    }

    /// The state of one that has at most one request outstanding, which it awaits.
    pub(super) fn save_awaiting(&self, writer: &mut Writer, awaited: Option<u8>) {
        self.save(writer);
        writer.u8(awaited.is_some().into());
        writer.u8(awaited.unwrap_or(0));
    }

    /// What [`save_awaiting`](Self::save_awaiting) saved.
    pub(super) fn load_awaiting(
        service: &'static Service,
        reader: &mut Reader<'_>,
    ) -> Result<(Self, Option<u8>), RestoreError> {
        let host = Self::load(service, reader)?;
        let awaited = reader.flag("whether a reply is awaited")?;
        let transaction = reader.u8()?;
        let awaited = awaited.then_some(transaction);
        if host.outstanding.as_slice() != awaited.as_slice() {
            return Err(RestoreError::Nonsense {
                what: "which reply is awaited",
            });
        }
        Ok((host, awaited))
    }

    pub(crate) fn save(&self, writer: &mut Writer) {
        writer.u16(self.service.kind);
        save_agreed(writer, self.agreed);
        writer.u8(self.negotiating.is_some().into());
        writer.u8(self.negotiating.unwrap_or(0));
        writer.u8(self.next);
        writer.count(self.outstanding.len());
        writer.bytes(&self.outstanding);
    }

    pub(crate) fn load(
        service: &'static Service,
        reader: &mut Reader<'_>,
    ) -> Result<Self, RestoreError> {
        if reader.u16()? != service.kind {
            return Err(RestoreError::Nonsense {
                what: "another service",
            });
        }
        let mut host = Self::new(service);
        host.agreed = load_agreed(reader, service)?;
        let negotiating = reader.flag("whether there is a negotiation")?;
        let transaction = reader.u8()?;
        host.negotiating = negotiating.then_some(transaction);
        host.next = reader.u8()?;
        for _ in 0..reader.count("the number of requests", 1, OUTSTANDING_MAX)? {
            let transaction = reader.u8()?;
            if host.outstanding.contains(&transaction) {
                return Err(RestoreError::Nonsense {
                    what: "a request that is outstanding twice",
                });
            }
            host.outstanding.push(transaction);
        }
        Ok(host)
    }
}
