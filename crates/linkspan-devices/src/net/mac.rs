//! Ethernet addresses.

use core::fmt;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of all stations.
    pub const BROADCAST: Self = Self([0xFF; 6]);

    /// The destination of a frame that begins with `head`; zero where that is cut
    /// off.
    #[inline]
    pub fn destination(head: &[u8]) -> Self {
        head.first_chunk().map_or(Self::default(), |mac| Self(*mac))
    }

    /// The source of a frame that begins with `head`; zero where that is cut off.
    #[inline]
    pub fn source(head: &[u8]) -> Self {
        let mac = head.get(6..).and_then(|rest| rest.first_chunk());
        mac.map_or(Self::default(), |mac| Self(*mac))
    }

    /// Whether it stands for a group of stations, or for all.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it is no address at all.
    #[inline]
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// As a number of 48 bits, to compare and to hash.
    #[inline]
    pub const fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address of these [bits](Self::bits); what is above them counts for nothing.
    #[inline]
    pub const fn of_bits(bits: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
