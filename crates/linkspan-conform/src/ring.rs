//! A split ring, written byte by byte: what a driver writes, and what none would.

use std::time::{Duration, Instant};

use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_vhost::wire::VringAddr;
use std::os::fd::AsFd as _;

use crate::Stop;
use crate::memory::{GUEST, Memory, USER};

/// Entries of a ring.
pub(crate) const SIZE: u16 = 64;

/// Flags of descriptors (virtio 1.3 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Where ring `index` begins in memory, and how far its parts are apart.
const RINGS: u64 = 0x1000;
const RING: u64 = 0x4000;
const PART: u64 = 0x1000;

/// Where buffers begin.
pub(crate) const BUFFERS: u64 = 0x1_0000;

/// A descriptor: address, length, flags, next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc(
    pub(crate) u64,
    pub(crate) u32,
    pub(crate) u16,
    pub(crate) u16,
);

impl Desc {
    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.2.to_le_bytes());
        bytes[14..].copy_from_slice(&self.3.to_le_bytes());
        bytes
    }
}

/// A chain that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u32,
    pub(crate) len: u32,
}

/// What a ring did while it was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// It used a chain.
    Used(Used),
    /// It signalled its err descriptor.
    GaveUp,
    /// Nothing.
    Nothing,
}

/// One ring of the device.
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) err: EventFd,
    /// Chains made available, and looked for among those used.
    pub(crate) available: u16,
    used: u16,
}

impl Ring {
    pub(crate) fn new(index: u16) -> Result<Self, Stop> {
        Ok(Self {
            index,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            err: EventFd::new()?,
            available: 0,
            used: 0,
        })
    }

    /// Has both sides be at this index, here; the memory is another matter.
    pub(crate) fn go_on_at(&mut self, index: u16) {
        (self.available, self.used) = (index, index);
    }

    /// Offset of the descriptor table, the available ring and the used ring.
    pub(crate) fn parts(&self) -> [u64; 3] {
        let first = RINGS + RING * u64::from(self.index);
        [first, first + PART, first + 2 * PART]
    }

    /// The body of `VHOST_USER_SET_VRING_ADDR`.
    pub(crate) fn address(&self) -> VringAddr {
        let [descriptor, available, used] = self.parts().map(|at| USER + GUEST + at);
        VringAddr {
            index: self.index.into(),
            flags: 0,
            descriptor,
            used,
            available,
            log: 0,
        }
    }

    /// Writes descriptors from `first` on.
    pub(crate) fn describe(&self, memory: &Memory, first: u16, chain: &[Desc]) -> Result<(), Stop> {
        let bytes: Vec<u8> = chain.iter().flat_map(|desc| desc.bytes()).collect();
        memory.write(self.parts()[0] + 16 * u64::from(first), &bytes)
    }

    /// Makes the chain with this head available; nobody is told.
    pub(crate) fn publish(&mut self, memory: &Memory, head: u16) -> Result<(), Stop> {
        let at = self.parts()[1];
        let entry = at + 4 + 2 * u64::from(self.available % SIZE);
        memory.write(entry, &head.to_le_bytes())?;
        self.available = self.available.wrapping_add(1);
        memory.write(at + 2, &self.available.to_le_bytes())
    }

    /// Writes the index of the available ring as it is given.
    pub(crate) fn set_index(&self, memory: &Memory, index: u16) -> Result<(), Stop> {
        memory.write(self.parts()[1] + 2, &index.to_le_bytes())
    }

    /// How many chains were used, as the ring says.
    pub(crate) fn used_index(&self, memory: &Memory) -> Result<u16, Stop> {
        memory.read_u16(self.parts()[2] + 2)
    }

    /// The next chain that was used, if there is one.
    pub(crate) fn pop(&mut self, memory: &Memory) -> Result<Option<Used>, Stop> {
        if self.used_index(memory)? == self.used {
            return Ok(None);
        }
        let entry = self.parts()[2] + 4 + 8 * u64::from(self.used % SIZE);
        let bytes = memory.read(entry, 8)?;
        self.used = self.used.wrapping_add(1);
        let word = |at: usize| {
            let bytes = bytes[at..at + 4].try_into().expect("4 bytes");
            u32::from_le_bytes(bytes)
        };
        Ok(Some(Used {
            id: word(0),
            len: word(4),
        }))
    }

    /// Kicks. The target can fill the counter and have writes wait: a full one is left alone.
    pub(crate) fn kick(&self) -> Result<(), Stop> {
        let now = Some(Instant::now());
        match wait_for(self.kick.as_fd(), Direction::Write, None, now)? {
            Wake::Ready => Ok(self.kick.signal()?),
            Wake::Cancelled | Wake::Deadline => Ok(()),
        }
    }

    /// Watches the ring for so long, or until something happens.
    pub(crate) fn watch(&mut self, memory: &Memory, within: Duration) -> Result<Watched, Stop> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(used) = self.pop(memory)? {
                return Ok(Watched::Used(used));
            }
            let now = Instant::now();
            // Not read: the target can have reads wait.
            if wait_for(self.err.as_fd(), Direction::Read, None, Some(now))? == Wake::Ready {
                return Ok(Watched::GaveUp);
            }
            if now >= deadline {
                return Ok(Watched::Nothing);
            }
            // Not every target notifies when it should: a rule of its own says so.
            let soon = deadline.min(now + Duration::from_millis(5));
            if wait_for(self.call.as_fd(), Direction::Read, None, Some(soon))? == Wake::Ready {
                self.call.drain()?;
            }
        }
    }
}
