//! The heartbeat: the host counts, the guest answers with one more (Linux:
//! `struct heartbeat_msg_data`).

use alloc::vec::Vec;
use core::convert::Infallible;

use super::guest::{GuestService, Handled, Loader, Saver};
use super::host::{Host, HostError, HostEvent};
use super::service::{Agreed, HEARTBEAT, Service, Version};
use super::status::Status;
use linkspan_mem::record::{Reader, RestoreError, Writer};

/// Bytes of the message: a sequence number, the state of applications, reserved.
const BODY: usize = 40;

/// How the guest's applications are, as far as the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Health {
    /// It does not say.
    #[default]
    Unknown = 0,
    /// They run.
    Healthy = 1,
    /// They need somebody.
    Critical = 2,
}

/// The guest's end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    /// What the guest says of itself from now on.
    pub health: Health,
}

impl GuestService for Pulse {
    const SERVICE: &'static Service = &HEARTBEAT;
    type Effect = Infallible;

    fn request(&mut self, _version: Version, body: &mut [u8]) -> Handled<Infallible> {
        let Some((sequence, rest)) = body.split_first_chunk_mut::<8>() else {
            return Handled::Answer(Status::INVALID_ARGUMENT);
        };
        *sequence = u64::from_le_bytes(*sequence).wrapping_add(1).to_le_bytes();
        // Older hosts have a shorter message, without the state.
        if let Some(health) = rest.first_chunk_mut::<4>() {
            *health = (self.health as u32).to_le_bytes();
        }
        Handled::Answer(Status::OK)
    }

    fn done(&mut self, _status: Status) -> Handled<Infallible> {
        Handled::Answer(Status::OK)
    }

    fn reset(&mut self) -> Option<Infallible> {
        None
    }

    fn save(&self, _to: Saver<'_>) {}

    fn load(&mut self, _from: Loader<'_, '_>) -> Result<(), RestoreError> {
        Ok(())
    }
}

const MAGIC: [u8; 8] = *b"LSichbt1";

/// The host's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    host: Host,
    sequence: u64,
    awaited: Option<u8>,
    missed: u32,
}

/// What the guest's message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Beats can be sent.
    Ready(Agreed),
    /// The guest lives.
    Alive(Health),
    /// The guest answers, but not with the next number, or with a failure.
    Strange,
    /// An answer that came too late.
    Late,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            host: Host::new(&HEARTBEAT),
            sequence: 0,
            awaited: None,
            missed: 0,
        }
    }
}

impl Monitor {
    /// The message that begins the conversation.
    pub fn start(&mut self) -> Vec<u8> {
        self.awaited = None;
        self.host.negotiate()
    }

    /// The next beat, each time that the interval is over. The one before, if it was
    /// not answered, counts as missed.
    ///
    /// # Errors
    /// Nothing is negotiated.
    pub fn beat(&mut self) -> Result<Vec<u8>, HostError> {
        if let Some(late) = self.awaited.take() {
            self.host.forget(late);
            self.missed = self.missed.saturating_add(1);
        }
        let (transaction, header) = self.host.request(BODY)?;
        self.awaited = Some(transaction);
        let mut message = header.to_vec();
        message.extend(self.sequence.to_le_bytes());
        message.resize(header.len() + BODY, 0);
        Ok(message)
    }

    /// How many beats in a row were not answered.
    #[must_use]
    pub fn missed(&self) -> u32 {
        self.missed
    }

    /// Takes a message of the guest.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn receive(&mut self, payload: &[u8]) -> Result<Event, HostError> {
        let (status, body) = match self.host.receive(payload)? {
            HostEvent::Negotiated(agreed) => return Ok(Event::Ready(agreed)),
            HostEvent::Stale { .. } => return Ok(Event::Late),
            HostEvent::Reply { status, body, .. } => (status, body),
        };
        self.awaited = None;
        self.missed = 0;
        let wanted = self.sequence.wrapping_add(1);
        let counted = body
            .split_first_chunk::<8>()
            .filter(|(sequence, _)| u64::from_le_bytes(**sequence) == wanted);
        let Some((_, rest)) = counted.filter(|_| status.is_ok()) else {
            return Ok(Event::Strange);
        };
        self.sequence = wanted;
        let health = rest
            .first_chunk::<4>()
            .map(|health| u32::from_le_bytes(*health));
        Ok(Event::Alive(match health {
            Some(1) => Health::Healthy,
            Some(2) => Health::Critical,
            _ => Health::Unknown,
        }))
    }

    /// The conversation as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC);
        self.host.save_awaiting(&mut writer, self.awaited);
        writer.u64(self.sequence);
        writer.u32(self.missed);
        writer.finish()
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new("monitor of a heartbeat", MAGIC, bytes)?;
        let (host, awaited) = Host::load_awaiting(&HEARTBEAT, &mut reader)?;
        let monitor = Self {
            host,
            awaited,
            sequence: reader.u64()?,
            missed: reader.u32()?,
        };
        reader.end()?;
        Ok(monitor)
    }
}
