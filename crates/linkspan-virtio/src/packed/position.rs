//! Positions in a ring that need not have a power of two of entries.

use super::{VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED};
use crate::queue::StartError;

/// A descriptor of the ring, and the wrap counter of the side that counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) index: u16,
    pub(super) wrap: bool,
}

/// The flags that say to whom a descriptor belongs.
pub(super) const OWNER: u16 = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;

impl Position {
    /// As vhost-user and event suppression structures pack it.
    #[inline]
    pub(super) const fn from_bits(bits: u16) -> Self {
        Self {
            index: bits & 0x7FFF,
            wrap: bits >> 15 != 0,
        }
    }

    #[inline]
    pub(super) fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// Fails when a ring of `size` entries has no such position.
    pub(super) fn checked(bits: u16, size: u16) -> Result<Self, StartError> {
        let position = Self::from_bits(bits);
        if position.index < size {
            Ok(position)
        } else {
            let position = position.index;
            Err(StartError::Position { position, size })
        }
    }

    /// The position `count` descriptors further on; `count` is at most `size`.
    #[inline]
    pub(super) fn plus(self, count: u16, size: u16) -> Self {
        // Both are at most 2^15, so the sum fits but for its very top.
        let sum = u32::from(self.index) + u32::from(count);
        match sum.checked_sub(u32::from(size)) {
            // Below `size`, as `index` is.
            Some(over) => Self {
                index: u16::try_from(over).unwrap_or(0),
                wrap: !self.wrap,
            },
            None => Self {
                index: self.index + count,
                wrap: self.wrap,
            },
        }
    }

    /// How many descriptors this lies behind `earlier`, modulo two rounds. An
    /// `earlier` that the ring does not have gives any number.
    #[inline]
    pub(super) fn since(self, earlier: Self, size: u16) -> u32 {
        let size = u32::from(size);
        let linear = |at: Self| u32::from(at.index) + if at.wrap { 0 } else { size };
        (linear(self) + 2 * size - linear(earlier).min(2 * size)) % (2 * size)
    }

    /// The flags of a descriptor that is available in this round.
    #[inline]
    pub(super) fn available(self) -> u16 {
        if self.wrap {
            VIRTQ_DESC_F_AVAIL
        } else {
            VIRTQ_DESC_F_USED
        }
    }

    /// The flags of a descriptor that is used in this round.
    #[inline]
    pub(super) fn used(self) -> u16 {
        if self.wrap { OWNER } else { 0 }
    }

    #[inline]
    pub(super) fn is_available(self, flags: u16) -> bool {
        flags & OWNER == self.available()
    }

    #[inline]
    pub(super) fn is_used(self, flags: u16) -> bool {
        flags & OWNER == self.used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_wrap_at_any_size() {
        for size in [1, 3, 7, 8, 1 << 15] {
            let start = Position::from_bits(1 << 15);
            assert_eq!(start.plus(size, size), Position::from_bits(0));
            assert_eq!(start.plus(size, size).plus(size, size), start);
            let last = start.plus(size - 1, size);
            assert_eq!(last.bits(), (size - 1) | 1 << 15);
            assert_eq!(last.plus(1, size), Position::from_bits(0));
            assert_eq!(last.plus(size, size).plus(1, size), start);
            assert_eq!(last.since(start, size), u32::from(size) - 1);
            let round = 2 * u32::from(size);
            assert_eq!(start.since(last, size), (u32::from(size) + 1) % round);
            assert!(Position::checked(size - 1, size).is_ok());
            if size < 1 << 15 {
                let error = StartError::Position {
                    position: size,
                    size,
                };
                assert_eq!(Position::checked(size, size), Err(error));
            }
        }
    }

    #[test]
    fn events_that_no_ring_has_do_no_harm() {
        let new = Position::from_bits(2);
        assert!(new.since(Position::from_bits(u16::MAX), 3) < 6);
        assert!(new.since(Position::from_bits(0x7FFF), 3) < 6);
    }
}
