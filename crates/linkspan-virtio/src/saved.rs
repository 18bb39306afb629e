//! The saved form of a queue, of either layout and side: 16 bytes, little endian.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..2 | kind: what was saved (high byte) and version of this form (low byte) |
//! | 2..4 | entries of the queue |
//! | 4..6 | [`QueueState::next_available`] |
//! | 6..8 | [`QueueState::next_used`] |
//! | 8..16 | accepted features |

use crate::features::Features;
use crate::queue::{QueueState, RestoreError};

/// Bytes of a saved queue.
pub const SNAPSHOT_LEN: usize = 16;

/// A device's side of a split queue, version 1.
pub(crate) const SPLIT_DEVICE: u16 = 0x5301;

/// A driver's side of a split queue, version 1.
pub(crate) const SPLIT_DRIVER: u16 = 0x4401;

/// A device's side of a packed queue, version 1.
pub(crate) const PACKED_DEVICE: u16 = 0x5001;

/// A driver's side of a packed queue, version 1.
pub(crate) const PACKED_DRIVER: u16 = 0x5101;

/// What a queue is rebuilt from.
pub(crate) struct Saved {
    pub(crate) state: QueueState,
    pub(crate) features: Features,
}

pub(crate) fn save(kind: u16, size: u16, saved: &Saved) -> [u8; SNAPSHOT_LEN] {
    let mut bytes = [0; SNAPSHOT_LEN];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&size.to_le_bytes());
    bytes[4..6].copy_from_slice(&saved.state.next_available.to_le_bytes());
    bytes[6..8].copy_from_slice(&saved.state.next_used.to_le_bytes());
    bytes[8..].copy_from_slice(&saved.features.bits().to_le_bytes());
    bytes
}

/// Kind, size and layout can be wrong. Positions are left to the queue; in a split
/// ring any are possible, and what does not fit it shows as an index that jumps.
pub(crate) fn load(want: u16, size: u16, bytes: &[u8]) -> Result<Saved, RestoreError> {
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
    let packed = matches!(want, PACKED_DEVICE | PACKED_DRIVER);
    if packed != features.contains(Features::VIRTIO_F_RING_PACKED) {
        return Err(RestoreError::Features {
            features: Features::VIRTIO_F_RING_PACKED.bits(),
        });
    }
    let state = QueueState {
        next_available: u16::from_le_bytes([a0, a1]),
        next_used: u16::from_le_bytes([u0, u1]),
    };
    Ok(Saved { state, features })
}
