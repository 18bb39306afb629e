//! A device as bytes, for the process that goes on with it.
//!
//! The kernel keeps a device whose process died, but tells its successor neither
//! the status nor what the device was made with. Rings are not in the bytes: the
//! kernel says where they are, and what was in flight is written down elsewhere.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{DRIVER_OK, FEATURES_OK, Offer, Vduse};

const MAGIC: [u8; 8] = *b"LSvduse1";

/// Bytes of a saved device.
pub const SNAPSHOT_BYTES: usize = 48;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Record {
    magic: [u8; 8],
    offered: U64,
    device_id: U32,
    config_size: U32,
    queues: U16,
    queue_size_max: U16,
    status: u8,
    padding: [u8; 3],
    accepted: U64,
    check: U64,
}

const _: () = assert!(size_of::<Record>() == SNAPSHOT_BYTES);

/// Bytes that are not a device that this one can go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// They are something else, or were not written whole.
    #[error("nothing is written down of the device")]
    Nothing,
    /// The device was made as another one.
    #[error("the device was made as another one: {0:?}")]
    Offer(Offer),
    /// A status or features that no device has.
    #[error("status {status:#04x} with features {features:#x} cannot be")]
    State {
        /// The status.
        status: u8,
        /// The features.
        features: u64,
    },
}

impl Vduse {
    /// The device as bytes. They hold for any time between two effects.
    #[must_use]
    pub fn snapshot(&self) -> [u8; SNAPSHOT_BYTES] {
        self.record_with(self.status)
    }

    pub(super) fn record_with(&self, status: u8) -> [u8; SNAPSHOT_BYTES] {
        let offer = &self.offer;
        let mut record = Record {
            magic: MAGIC,
            offered: offer.features.into(),
            device_id: offer.device_id.into(),
            config_size: offer.config_size.into(),
            queues: offer.queues.into(),
            queue_size_max: offer.queue_size_max.into(),
            status,
            padding: [0; 3],
            accepted: self.features.into(),
            check: 0.into(),
        };
        record.check = sum(record.as_bytes()).into();
        zerocopy::transmute!(record)
    }

    /// The device that [`snapshot`](Self::snapshot) saved, which has no ring that
    /// runs. If the driver uses it, effects follow that bring its rings back.
    ///
    /// # Errors
    /// When the bytes are not those of such a device.
    pub fn restore(offer: Offer, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut record = Record::read_from_bytes(bytes).map_err(|_| RestoreError::Nothing)?;
        let check = record.check.get();
        record.check = 0.into();
        if record.magic != MAGIC || check != sum(record.as_bytes()) {
            return Err(RestoreError::Nothing);
        }
        let saved = Offer {
            device_id: record.device_id.get(),
            features: record.offered.get(),
            queues: record.queues.get(),
            queue_size_max: record.queue_size_max.get(),
            config_size: record.config_size.get(),
        };
        if saved != offer {
            return Err(RestoreError::Offer(saved));
        }
        let mut device = Self::new(offer);
        let (status, features) = (record.status, record.accepted.get());
        let agreed = status & FEATURES_OK != 0;
        let sound = match agreed {
            true => device.check_features(features).is_ok(),
            false => features == 0 && status & DRIVER_OK == 0,
        };
        if !sound {
            return Err(RestoreError::State { status, features });
        }
        device.status = status;
        device.features = features;
        if device.is_live() {
            device.resume();
        }
        Ok(device)
    }
}

/// Tells bytes that were written whole from others (FNV-1a).
fn sum(bytes: &[u8]) -> u64 {
    let start = 0xCBF2_9CE4_8422_2325_u64;
    bytes.iter().fold(start, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    })
}
