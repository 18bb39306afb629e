//! The checksum of IPv4, TCP and UDP: a ones' complement sum (RFC 1071).

/// A sum under way. Its words are in the byte order of the machine: the sum is
/// the same in either order, but for the order of its own two bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// With bytes that begin at an even offset; an odd last one is padded with zero.
    #[inline]
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks();
        // 2^32 words fit before the sum wraps, far more than any frame has.
        let sum: u64 = words
            .iter()
            .map(|word: &[u8; 4]| u64::from(u32::from_ne_bytes(*word)))
            .sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    /// With a number as it stands on the wire.
    #[inline]
    #[must_use]
    pub fn with_u16(self, value: u16) -> Self {
        self.with(&value.to_be_bytes())
    }

    /// The sum as it stands on the wire.
    #[inline]
    pub fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum >> 16) + (sum & 0xFFFF);
        }
        let [low, high, ..] = sum.to_le_bytes();
        u16::from_le_bytes([low, high]).to_ne_bytes()
    }

    /// The checksum as it stands on the wire: the complement of the sum.
    #[inline]
    pub fn checksum(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// The checksum of a transport header: never zero, which in UDP says that
    /// there is none (RFC 768), and in TCP means the same as all ones.
    #[inline]
    pub fn transport_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xFF, 0xFF],
            checksum => checksum,
        }
    }
}
