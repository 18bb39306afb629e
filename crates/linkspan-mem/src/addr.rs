//! The address spaces of a link, as types that do not mix.
//!
//! A number that names a place in memory means nothing without the space it
//! counts in. Confusing two of them is the oldest bug of this field, so each
//! has its own type and only an [`AddressSpace`](crate::AddressSpace) turns one
//! into a place.

use core::fmt;

/// An address in one of the peer's address spaces.
pub trait Address: Copy + Ord + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// What messages call an address of this space.
    const SPACE: &'static str;

    /// Wraps a number from the wire.
    fn from_raw(raw: u64) -> Self;

    /// The number as it stands on the wire.
    fn raw(self) -> u64;

    /// The address `bytes` further on, or `None` past the end of the space.
    fn checked_add(self, bytes: u64) -> Option<Self> {
        self.raw().checked_add(bytes).map(Self::from_raw)
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $space:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl Address for $name {
            const SPACE: &'static str = $space;

            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }

            fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($space, " {:#x}"), self.0)
            }
        }
    };
}

address!(
    /// A guest physical address: what a driver without an IOMMU writes into descriptors.
    Gpa,
    "guest address"
);
address!(
    /// An address that a device sees behind an IOMMU (`VIRTIO_F_ACCESS_PLATFORM`).
    Iova,
    "I/O address"
);
address!(
    /// An address in the virtual memory of the front-end's process: what
    /// `VHOST_USER_SET_VRING_ADDR` carries. Never dereferenced here.
    UserVa,
    "front-end address"
);
address!(
    /// A distance in bytes from the start of a [`Region`](crate::Region).
    RegionOffset,
    "region offset"
);
