//! The host's end of a service with one request at a time.

use alloc::vec::Vec;

use super::frame::HEADER_BYTES;
use super::host::{Host, HostError, HostEvent};
use super::service::{Agreed, Service};
use super::status::Status;
use linkspan_mem::record::{Reader, RestoreError, Writer};

/// What the guest's message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Requests can be sent.
    Ready(Agreed),
    /// The guest did what the last one asked for, or did not.
    Answered(Status),
    /// An answer that came too late.
    Late,
}

/// A host that awaits one answer at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Single {
    host: Host,
    awaited: Option<u8>,
}

impl Single {
    pub(super) fn new(service: &'static Service) -> Self {
        Self {
            host: Host::new(service),
            awaited: None,
        }
    }

    pub(super) fn agreed(&self) -> Option<Agreed> {
        self.host.agreed()
    }

    pub(super) fn start(&mut self) -> Vec<u8> {
        self.awaited = None;
        self.host.negotiate()
    }

    /// The header of a request with a body of `len` bytes. One before that was not
    /// answered is not awaited any more.
    pub(super) fn request(&mut self, len: usize) -> Result<[u8; HEADER_BYTES], HostError> {
        if let Some(late) = self.awaited.take() {
            self.host.forget(late);
        }
        let (transaction, header) = self.host.request(len)?;
        self.awaited = Some(transaction);
        Ok(header)
    }

    pub(super) fn receive(&mut self, payload: &[u8]) -> Result<Event, HostError> {
        Ok(match self.host.receive(payload)? {
            HostEvent::Negotiated(agreed) => Event::Ready(agreed),
            HostEvent::Stale { .. } => Event::Late,
            HostEvent::Reply { status, .. } => {
                self.awaited = None;
                Event::Answered(status)
            }
        })
    }

    pub(super) fn snapshot(&self, magic: [u8; 8]) -> Vec<u8> {
        let mut writer = Writer::new(magic);
        self.host.save_awaiting(&mut writer, self.awaited);
        writer.finish()
    }

    /// What [`snapshot`](Self::snapshot) saved; `what` is what it is called in errors.
    pub(super) fn restore(
        service: &'static Service,
        what: &'static str,
        magic: [u8; 8],
        bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        let mut reader = Reader::new(what, magic, bytes)?;
        let (host, awaited) = Host::load_awaiting(service, &mut reader)?;
        reader.end()?;
        Ok(Self { host, awaited })
    }
}
