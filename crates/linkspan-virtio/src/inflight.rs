//! What a device finds in an in-flight region that an earlier life of it left.

use alloc::vec::Vec;

use linkspan_mem::fault::Injected;

/// Why a region does not say what is in flight. The front end keeps it and can
/// write anything there; nothing of it is believed then, and the queue does not
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InflightError {
    /// Written by a version of the format that is not known.
    #[error("the in-flight region has version {version}, not 1")]
    Version {
        /// What it says.
        version: u16,
    },
    /// It was made for another number of descriptors.
    #[error(
        "the in-flight region says {desc_num} descriptors, has room for {room}, and the queue has {size}"
    )]
    Size {
        /// What it says.
        desc_num: u16,
        /// Entries that it has room for.
        room: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// An entry is neither in flight nor not (libvhost-user b9d248dfac).
    #[error("entry {index} of the in-flight region has state {value}, neither 0 nor 1")]
    State {
        /// Which entry.
        index: u16,
        /// What it says.
        value: u8,
    },
    /// A link or a head is not an entry (libvhost-user bf21298c08).
    #[error("the in-flight region names entry {index}, the queue has {size}")]
    OutOfRange {
        /// What it names.
        index: u16,
        /// Entries there are.
        size: u16,
    },
    /// The last batch has more chains than the queue has entries.
    #[error(
        "{count} chains were used since the in-flight region was settled, the queue has {size}"
    )]
    Batch {
        /// Chains used since.
        count: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// An entry is linked twice: in a batch, a chain, or the free list.
    #[error("entry {index} of the in-flight region is linked twice")]
    LinkedTwice {
        /// Which entry.
        index: u16,
    },
    /// An entry is neither free nor part of a chain.
    #[error("entry {index} of the in-flight region is neither free nor in flight")]
    Lost {
        /// Which entry.
        index: u16,
    },
    /// A chain does not end where it says, or has no length.
    #[error("the chain at entry {index} of the in-flight region does not have {num} entries")]
    Length {
        /// Its head.
        index: u16,
        /// Entries that it says it has.
        num: u16,
    },
    /// A position that the ring does not have.
    #[error("the in-flight region puts the device at {position}, the queue has {size} entries")]
    Position {
        /// What it says.
        position: u16,
        /// Entries of the queue.
        size: u16,
    },
    /// No later request could be put behind this one.
    #[error("entry {index} of the in-flight region has the last possible counter")]
    Counter {
        /// Which entry.
        index: u16,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

/// A chain that was in flight, by what the region calls it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) index: u16,
    pub(crate) counter: u64,
}

/// Puts what was found into the order in which it is resubmitted, the first one
/// last, and gives the counter of the next chain.
pub(crate) fn order(found: &mut [Found]) -> Result<u64, InflightError> {
    found.sort_unstable_by_key(|found| core::cmp::Reverse((found.counter, found.index)));
    match found.first() {
        None => Ok(0),
        Some(last) => last
            .counter
            .checked_add(1)
            .ok_or(InflightError::Counter { index: last.index }),
    }
}

/// A set of entries, to see none of them twice.
#[derive(Debug)]
pub(crate) struct Seen(Vec<bool>);

impl Seen {
    pub(crate) fn new(size: u16) -> Result<Self, Injected> {
        let mut seen = linkspan_mem::fault::try_with_capacity(usize::from(size))?;
        seen.resize(usize::from(size), false);
        Ok(Self(seen))
    }

    pub(crate) fn add(&mut self, index: u16) -> Result<(), InflightError> {
        match self.0.get_mut(usize::from(index)) {
            Some(true) => Err(InflightError::LinkedTwice { index }),
            Some(seen) => {
                *seen = true;
                Ok(())
            }
            None => {
                let size = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
                Err(InflightError::OutOfRange { index, size })
            }
        }
    }

    pub(crate) fn contains(&self, index: u16) -> bool {
        self.0.get(usize::from(index)) == Some(&true)
    }
}
