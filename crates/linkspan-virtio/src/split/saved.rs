//! The saved form of a split queue, of either side: 16 bytes, little endian.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..2 | kind: what was saved (high byte) and version of this form (low byte) |
//! | 2..4 | entries of the queue |
//! | 4..6 | next position in the available ring |
//! | 6..8 | next position in the used ring |
//! | 8..16 | accepted features |

use crate::features::Features;
use crate::queue::{QueueState, RestoreError};

/// Bytes of a saved split queue.
pub const SNAPSHOT_LEN: usize = 16;

/// A device's side, version 1.
pub(super) const DEVICE: u16 = 0x5301;

/// A driver's side, version 1.
pub(super) const DRIVER: u16 = 0x4401;

/// What a queue is rebuilt from.
pub(super) struct Saved {
    pub(super) state: QueueState,
    pub(super) features: Features,
}

pub(super) fn save(kind: u16, size: u16, saved: &Saved) -> [u8; SNAPSHOT_LEN] {
    let mut bytes = [0; SNAPSHOT_LEN];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&size.to_le_bytes());
    bytes[4..6].copy_from_slice(&saved.state.next_available.to_le_bytes());
    bytes[6..8].copy_from_slice(&saved.state.next_used.to_le_bytes());
    bytes[8..].copy_from_slice(&saved.features.bits().to_le_bytes());
    bytes
}

/// Any positions are possible, so only kind, size and layout can be wrong; what
/// does not fit the ring shows as an index that jumps.
pub(super) fn load(want: u16, size: u16, bytes: &[u8]) -> Result<Saved, RestoreError> {
    let Ok(bytes) = <&[u8; SNAPSHOT_LEN]>::try_from(bytes) else {
        return Err(RestoreError::Length {
            len: bytes.len(),
            want: SNAPSHOT_LEN,
        });
    };
    let [k0, k1, s0, s1, a0, a1, u0, u1, features @ ..] = *bytes;
    let kind = u16::from_le_bytes([k0, k1]);
    if kind != want {
        return Err(RestoreError::Kind { kind, want });
    }
    let saved = u16::from_le_bytes([s0, s1]);
    if saved != size {
        return Err(RestoreError::Size { saved, size });
    }
    let features = Features::from_bits_retain(u64::from_le_bytes(features));
    let alien = features & Features::VIRTIO_F_RING_PACKED;
    if !alien.is_empty() {
        return Err(RestoreError::Features {
            features: alien.bits(),
        });
    }
    let state = QueueState {
        next_available: u16::from_le_bytes([a0, a1]),
        next_used: u16::from_le_bytes([u0, u1]),
    };
    Ok(Saved { state, features })
}
