//! Configuration space of the GPU (virtio 1.3 5.7.4).

use zerocopy::little_endian::U32;
use zerocopy::{Immutable, IntoBytes};

/// Size of the configuration space in bytes, with what newer versions have beyond the
/// number of capability sets, which is zero.
pub const CONFIG_LEN: usize = 24;

/// `VIRTIO_GPU_EVENT_DISPLAY`: the sizes of the screens have changed.
pub const EVENT_DISPLAY: u32 = 1;

/// Configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What the driver is to look at.
    pub events: u32,
    /// Screens.
    pub heads: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Wire {
    events_read: U32,
    events_clear: U32,
    num_scanouts: U32,
    rest: [U32; 3],
}

const _: () = assert!(size_of::<Wire>() == CONFIG_LEN);

impl Config {
    /// Copies configuration space from `offset` on; `false` when that is not all inside.
    #[must_use]
    pub fn read(&self, offset: usize, target: &mut [u8]) -> bool {
        let wire = Wire {
            events_read: U32::new(self.events),
            events_clear: U32::ZERO,
            num_scanouts: U32::new(self.heads),
            rest: [U32::ZERO; 3],
        };
        crate::read_config(wire.as_bytes(), offset, target)
    }

    /// Writes configuration space from `offset` on: events that are cleared are no more,
    /// and all else stays, since front ends write the whole of it. `false` when that is
    /// not all inside.
    #[must_use]
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.checked_add(bytes.len());
        if end.is_none_or(|end| end > CONFIG_LEN) {
            return false;
        }
        let mut clear = [0; 4];
        for (at, byte) in (offset..).zip(bytes) {
            if let Some(place) = at.checked_sub(4).and_then(|at| clear.get_mut(at)) {
                *place = *byte;
            }
        }
        self.events &= !u32::from_le_bytes(clear);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cleared_and_nothing_else_is_written() {
        let mut config = Config {
            events: 3,
            heads: 2,
        };
        // A driver writes the one field, a front end the whole of the space.
        assert!(config.write(4, &EVENT_DISPLAY.to_le_bytes()));
        assert_eq!(config.events, 2);
        assert!(config.write(0, &[0xFF; CONFIG_LEN]));
        assert_eq!(
            config,
            Config {
                events: 0,
                heads: 2
            }
        );
        let mut bytes = [0xEE; CONFIG_LEN];
        assert!(config.read(0, &mut bytes));
        assert_eq!(bytes[8..12], [2, 0, 0, 0]);
        for (offset, len) in [(CONFIG_LEN, 1), (0, CONFIG_LEN + 1), (usize::MAX, 2)] {
            assert!(!config.write(offset, &[0; CONFIG_LEN + 1][..len]));
            assert!(!config.read(offset, &mut [0; CONFIG_LEN + 1][..len]));
        }
    }
}
