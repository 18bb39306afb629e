#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod addr;
mod barrier;
mod copy;
mod crc;
mod dirty;
pub mod fault;
pub mod record;
mod region;
mod ring;
mod space;
mod stream;
mod wide;

pub use addr::{Address, Gpa, Iova, RegionOffset, UserVa};
pub use barrier::{observe, publish, publish_then_check};
pub use crc::crc32c;
pub use dirty::DirtyLog;
pub use region::{Backing, OutsideRegion, Region, SharedSlice, read_from};
#[cfg(loom)]
pub use ring::model;
pub use ring::{
    ChannelRing, Descriptor, EventSuppression, InflightPacked, InflightPackedEntry, InflightSplit,
    InflightSplitEntry, Life, Mortal, PackedDescriptor, PackedRing, Raced, RingMemory, SplitRing,
    UsedElement, Window, WindowError,
};
pub use space::{AddressSpace, GuestMemory, RegionTable, Short, SpaceError, Span};
pub use stream::{PastCaches, ahead, ahead_later, past_caches};
pub use wide::{Kernel, wide};
