//! The two rings of a channel, from either end (facts: Linux's
//! drivers/hv/ring_buffer.c and include/linux/hyperv.h).
//!
//! Indices of the other side are checked each time they are loaded, and a side
//! never reads its own index back from shared memory.

mod incoming;
mod outgoing;

pub use incoming::{Incoming, Packet};
pub use outgoing::{Outgoing, SendError};

use linkspan_mem::fault::Injected;
use linkspan_mem::{ChannelRing, OutsideRegion, Region, Window, WindowError};
use thiserror::Error;

/// Bytes of a page in all that VMBus counts in pages, whatever the guest's are.
pub const VMBUS_PAGE: u64 = 4096;

/// Bytes of the data that always stay free: a full ring is not an empty one.
pub(crate) const GAP: u32 = 8;

/// A ring cannot be used any more. Its first error retires it: every later call
/// gives the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The other side's index is outside of the ring or between two places.
    #[error("the peer's {index} index {value} is no multiple of 8 below {size}")]
    Index {
        /// Which index.
        index: &'static str,
        /// What it says.
        value: u32,
        /// Bytes of data of the ring.
        size: u32,
    },
    /// The receiver took back room that it had given, or the sender took back
    /// packets that it had published.
    #[error("the peer's {index} index went from {from} to {to}, back over {ours}")]
    Back {
        /// Which index.
        index: &'static str,
        /// What it was.
        from: u32,
        /// What it is now.
        to: u32,
        /// Our own index.
        ours: u32,
    },
    /// A descriptor whose lengths contradict each other.
    #[error("a packet of {len} bytes whose payload begins at {payload}")]
    Lengths {
        /// Bytes of the packet, its descriptor included.
        len: u32,
        /// Where its payload begins.
        payload: u32,
    },
    /// A packet that goes on behind what was published.
    #[error("a packet of {len} bytes and its trailer, where {available} bytes were published")]
    Unpublished {
        /// Bytes of the packet.
        len: u32,
        /// Bytes that there are.
        available: u32,
    },
    /// A packet longer than this side takes.
    #[error("a packet of {len} bytes where {max} are the most")]
    TooLong {
        /// Bytes of the packet.
        len: u32,
        /// The most.
        max: u32,
    },
}

/// A ring that cannot be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its memory cannot be a ring.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// What is in it cannot be.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
    /// Channel memory that is no two rings.
    #[error(
        "{len} bytes are no two rings with headers of {header} bytes, the second one at {second}"
    )]
    Shape {
        /// Bytes of channel memory.
        len: u64,
        /// Bytes of each header.
        header: u64,
        /// Where the second ring begins.
        second: u64,
    },
}

/// How the memory of a channel is divided: the ring from guest to host first, then
/// the ring from host to guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of both rings.
    pub len: u64,
    /// Where the ring from host to guest begins.
    pub second: u64,
    /// Bytes of each ring's header: a page of the guest, 4, 16 or 64 KiB.
    pub header: u64,
}

impl Shape {
    /// Two rings of one size: what UIO maps, and what Linux opens.
    #[must_use]
    pub fn halves(len: u64, header: u64) -> Self {
        Self {
            len,
            second: len / 2,
            header,
        }
    }

    /// Bytes of the two rings' data: guest to host, host to guest.
    ///
    /// # Errors
    /// There are none, or one does not begin at a page of VMBus.
    pub fn data(&self) -> Result<[u64; 2], StartError> {
        let Self {
            len,
            second,
            header,
        } = *self;
        let mut pages = [len, second, header].into_iter();
        let whole = pages.all(|at| at.is_multiple_of(VMBUS_PAGE)) && header > 0;
        let first = second.checked_sub(header);
        let other = len
            .checked_sub(second)
            .and_then(|len| len.checked_sub(header));
        match (first, other) {
            (Some(first @ 1..), Some(other @ 1..)) if whole => Ok([first, other]),
            _ => Err(StartError::Shape {
                len,
                header,
                second,
            }),
        }
    }

    /// The rings in `region`, beginning at `at`: guest to host, host to guest.
    ///
    /// # Errors
    /// They are not inside, or are none.
    pub fn rings(&self, region: &Region, at: u64) -> Result<[ChannelRing<Window>; 2], StartError> {
        let data = self.data()?;
        let ring = |begin: u64, data: u64| {
            let header = usize::try_from(self.header).unwrap_or(usize::MAX);
            let outside = WindowError::Outside(OutsideRegion {
                offset: at,
                len: self.len,
                size: region.len() as u64,
            });
            let begin = at.checked_add(begin).ok_or(outside)?;
            let behind = begin.checked_add(self.header).ok_or(outside)?;
            let data = usize::try_from(data).map_err(|_| outside)?;
            ChannelRing::new(region.window(begin, header)?, region.window(behind, data)?)
        };
        Ok([ring(0, data[0])?, ring(self.second, data[1])?])
    }
}

/// `index` if it can be one.
fn check_index(name: &'static str, index: u32, size: u32) -> Result<u32, RingError> {
    if index < size && index.is_multiple_of(8) {
        return Ok(index);
    }
    Err(RingError::Index {
        index: name,
        value: index,
        size,
    })
}

/// Bytes from one index on to another, around the end.
fn distance(from: u32, to: u32, size: u32) -> u32 {
    if to >= from {
        to - from
    } else {
        size - (from - to)
    }
}

/// The index `bytes` behind another, around the end; at most one round.
fn advance(index: u32, bytes: u32, size: u32) -> u32 {
    let next = u64::from(index) + u64::from(bytes);
    let size = u64::from(size);
    let next = if next >= size { next - size } else { next };
    u32::try_from(next).expect("below the size")
}
