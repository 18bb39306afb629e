//! Time synchronisation: the host says what time it is (Linux:
//! `struct ictimesync_data` and, from version 4, `struct ictimesync_ref_data`).

use alloc::vec::Vec;

use super::guest::{GuestService, Handled, Loader, Saver};
use super::host::HostError;
use super::service::{Service, TIME_SYNC, Version};
use super::single::Single;
use super::status::Status;
use linkspan_mem::record::RestoreError;

pub use super::single::Event;

/// Units of 100 ns from 1601, where Windows begins to count, to 1970.
const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

/// From this version on the reference counter comes with the time.
const WITH_REFERENCE: Version = TIME_SYNC.versions[0];

/// Bytes of the messages before and from version 4.
const OLD_BODY: usize = 25;
const BODY: usize = 22;

/// Where the flags are in each.
const OLD_FLAGS: usize = 24;
const FLAGS: usize = 16;

/// What the time is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Only a question whether the guest answers.
    Probe = 0,
    /// The guest's clock is to be set: it was paused, or moved.
    Set = 1,
    /// One of a row of samples, to steer the clock by.
    Sample = 2,
}

/// What time it was at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What for.
    pub purpose: Purpose,
    /// Units of 100 ns since 1970.
    pub unix_100ns: u64,
    /// The partition's reference counter at that moment, in units of 100 ns;
    /// versions before 4 do not say.
    pub reference_100ns: Option<u64>,
}

/// The guest's end. Its effect is a time to set or to sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Follower;

impl GuestService for Follower {
    const SERVICE: &'static Service = &TIME_SYNC;
    type Effect = Sample;

    fn request(&mut self, version: Version, body: &mut [u8]) -> Handled<Sample> {
        let reference = version >= WITH_REFERENCE;
        let (len, flags) = if reference {
            (BODY, FLAGS)
        } else {
            (OLD_BODY, OLD_FLAGS)
        };
        let invalid = Handled::Answer(Status::INVALID_ARGUMENT);
        let Some(body) = body.get(..len) else {
            return invalid;
        };
        let Some((time, rest)) = body.split_first_chunk::<8>() else {
            return invalid;
        };
        // A time before 1970 is none.
        let unix = u64::from_le_bytes(*time).checked_sub(UNIX_EPOCH);
        let Some(unix_100ns) = unix else {
            return invalid;
        };
        // Setting wins, as in Linux.
        let purpose = match body[flags] & 3 {
            0 => return Handled::Answer(Status::OK),
            2 => Purpose::Sample,
            _ => Purpose::Set,
        };
        let counter = rest.first_chunk().copied().map(u64::from_le_bytes);
        Handled::Do(Sample {
            purpose,
            unix_100ns,
            reference_100ns: counter.filter(|_| reference),
        })
    }

    fn done(&mut self, status: Status) -> Handled<Sample> {
        Handled::Answer(status)
    }

    fn reset(&mut self) -> Option<Sample> {
        None
    }

    fn save(&self, _to: Saver<'_>) {}

    fn load(&mut self, _from: Loader<'_, '_>) -> Result<(), RestoreError> {
        Ok(())
    }
}

const MAGIC: [u8; 8] = *b"LSictim1";

/// The host's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock(Single);

impl Default for Clock {
    fn default() -> Self {
        Self(Single::new(&TIME_SYNC))
    }
}

impl Clock {
    /// The message that begins the conversation.
    pub fn start(&mut self) -> Vec<u8> {
        self.0.start()
    }

    /// The message with a time. One that was not answered is not awaited any more.
    ///
    /// # Errors
    /// Nothing is negotiated.
    pub fn tell(&mut self, sample: Sample) -> Result<Vec<u8>, HostError> {
        let agreed = self.0.agreed().ok_or(HostError::NotReady)?;
        let (len, flags) = if agreed.service >= WITH_REFERENCE {
            (BODY, FLAGS)
        } else {
            (OLD_BODY, OLD_FLAGS)
        };
        let header = self.0.request(len)?;
        let mut message = header.to_vec();
        message.extend(sample.unix_100ns.saturating_add(UNIX_EPOCH).to_le_bytes());
        message.extend(sample.reference_100ns.unwrap_or(0).to_le_bytes());
        message.resize(header.len() + len, 0);
        message[header.len() + flags] = sample.purpose as u8;
        Ok(message)
    }

    /// Takes a message of the guest.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn receive(&mut self, payload: &[u8]) -> Result<Event, HostError> {
        self.0.receive(payload)
    }

    /// The conversation as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        self.0.snapshot(MAGIC)
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        Single::restore(&TIME_SYNC, "clock of a host", MAGIC, bytes).map(Self)
    }
}
