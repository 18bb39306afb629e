//! The driver's side of a queue: all that the device may write is the peer's.

use std::collections::VecDeque;

use linkspan_mem::{Gpa, PackedDescriptor, UsedElement};
use linkspan_virtio::{AddError, Buffer, DriverQueue, Features, IndirectTable, Used, UsedError};

use super::{Memory, Outcome, PeerRing, RacedWindow};
use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Place, 16 bits; length, 8 bits; the bytes.
    pub(crate) const WRITE: u8 = 0;
    /// Readable and writable buffers, 8 bits each, bit 7 of the first for an
    /// indirect table; bytes of each buffer, 16 bits.
    pub(crate) const ADD: u8 = 1;
    /// What was added is shown.
    pub(crate) const PUBLISH: u8 = 2;
    /// How many used chains are taken at most, 8 bits.
    pub(crate) const TAKE: u8 = 3;
    /// Which of those that the device has, 8 bits, and bytes written, 16 bits: the
    /// device uses it as it should.
    pub(crate) const USE: u8 = 4;
    /// The queue is saved and restored.
    pub(crate) const SAVE: u8 = 5;
    /// The used index, 16 bits, whatever is there. Split only.
    pub(crate) const INDEX: u8 = 6;
    /// Loads, 8 bits, and a write that happens after so many.
    pub(crate) const LATER: u8 = 7;
    /// How many there are.
    pub(crate) const COUNT: u8 = 8;
}

/// Where indirect tables are, in the second region.
const TABLE: u64 = 0x100;

/// A chain that the device has, as the driver's user knows it.
#[derive(Clone, Copy)]
struct Given {
    id: u16,
    descriptors: u16,
    writable: u32,
    published: bool,
    /// By a device that keeps to the rules.
    used: bool,
}

pub(super) struct Driver {
    memory: Memory,
    queue: DriverQueue<RacedWindow>,
    /// What was added and did not come back, the oldest first.
    given: VecDeque<Given>,
    /// Where a device that keeps to the rules stands: the used index, or the
    /// position in a packed ring and its wrap counter.
    used: u16,
    wrap: bool,
    outcome: Outcome,
}

impl Driver {
    pub(super) fn new(memory: Memory) -> Self {
        let (size, features) = (memory.size, memory.features);
        let state = memory.layout().start();
        let queue = DriverQueue::new(memory.parts(), size, features, state);
        Self {
            queue: queue.expect("a new ring"),
            memory,
            given: VecDeque::new(),
            used: 0,
            wrap: true,
            outcome: Outcome::default(),
        }
    }

    pub(super) fn play(mut self, input: &mut Input<'_>) -> Outcome {
        while let Some(step) = input.u8() {
            match self.step(step % step::COUNT, input) {
                Some(Ok(())) => self.check(),
                Some(Err(error)) => {
                    self.check_retired(error);
                    self.outcome.error = Some(error.to_string());
                    break;
                }
                None => break,
            }
        }
        self.outcome
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<Result<(), UsedError>> {
        match step {
            step::WRITE => self.memory.write(input)?,
            step::LATER => self.memory.write_later(input)?,
            step::ADD => {
                let (readable, writable) = (input.u8()?, input.u8()?);
                self.add(readable, writable, input.u16()?);
            }
            step::PUBLISH => return Some(self.publish()),
            step::TAKE => return Some(self.take(input.u8()?)),
            step::USE => {
                let (which, written) = (input.u8()?, input.u16()?);
                self.use_chain(which, written);
            }
            step::SAVE => self.save(),
            _ => {
                let index = input.u16()?;
                if let PeerRing::Split(ring) = &self.memory.peer {
                    ring.publish_used_index(index);
                }
            }
        }
        Some(Ok(()))
    }

    fn add(&mut self, readable: u8, writable: u8, len: u16) {
        let indirect = readable & 0x80 != 0;
        let buffer = Buffer {
            address: Gpa(0x2000),
            len: len.into(),
        };
        let counts = [readable % 5, writable % 5].map(usize::from);
        let buffers = [buffer; 4];
        let region = &self.memory.guest.table().regions()[1];
        let table = indirect.then(|| IndirectTable {
            address: Gpa(0x2000 + TABLE),
            bytes: region.slice(TABLE, 8 * 16).expect("inside the region"),
        });
        let (count, free) = (counts[0] + counts[1], self.queue.free());
        let need = if indirect { 1 } else { count };
        let added = self
            .queue
            .add(&buffers[..counts[0]], &buffers[..counts[1]], table);
        match added {
            Ok(id) => {
                assert!(count > 0 && need <= usize::from(free));
                assert!(self.given.iter().all(|given| given.id != id), "{id} twice");
                self.given.push_back(Given {
                    id,
                    descriptors: u16::try_from(need).expect("8 at most"),
                    writable: u32::from(len) * u32::from(writable % 5),
                    published: false,
                    used: false,
                });
            }
            Err(AddError::Full { .. }) => assert!(need > usize::from(free)),
            Err(AddError::Buffers { .. }) => assert_eq!(count, 0),
            Err(AddError::IndirectNotNegotiated) => {
                assert!(!self.memory.is(Features::VIRTIO_F_INDIRECT_DESC));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn publish(&mut self) -> Result<(), UsedError> {
        self.queue.publish()?;
        for given in &mut self.given {
            given.published = true;
        }
        self.queue.kick_wanted().map(|_| ())
    }

    fn take(&mut self, most: u8) -> Result<(), UsedError> {
        self.queue.disarm()?;
        let published = self.given.iter().filter(|given| given.published).count();
        assert!(usize::from(self.queue.refresh()?) <= published.max(1));
        for taken in 0..most {
            let mut used = None;
            if taken.is_multiple_of(2) {
                used = self.queue.pop()?;
            } else {
                self.queue.pop_each(1, |one| used = Some(one))?;
            }
            match used {
                Some(used) => self.check_used(used),
                None => break,
            }
        }
        self.queue.arm().map(|_| ())
    }

    /// What comes back was given, is seen by the device, and comes back once.
    fn check_used(&mut self, used: Used) {
        let at = self.given.iter().position(|given| given.id == used.id);
        let at = at.expect("a chain that the device does not have");
        let in_order = self.memory.is(Features::VIRTIO_F_IN_ORDER);
        assert!(!in_order || at == 0, "not in order");
        let given = self.given.remove(at).expect("it was found");
        assert!(given.published, "the device did not know of it");
        assert!(used.written <= given.writable, "more than it has room for");
        self.outcome.answers += 1;
    }

    /// As a device does it that keeps to the rules.
    fn use_chain(&mut self, which: u8, written: u16) {
        let known = |given: &&mut Given| given.published && !given.used;
        let count = self.given.iter_mut().filter(known).count();
        let Some(at) = usize::from(which).checked_rem(count) else {
            return;
        };
        let given = self.given.iter_mut().filter(known).nth(at);
        let given = given.expect("below the count");
        given.used = true;
        let Given {
            id, descriptors, ..
        } = *given;
        let len = u32::from(written);
        match &self.memory.peer {
            PeerRing::Split(ring) => {
                ring.set_used_element(self.used, UsedElement { id: id.into(), len });
                self.used = self.used.wrapping_add(1);
                ring.publish_used_index(self.used);
            }
            PeerRing::Packed(ring) => {
                let used = PackedDescriptor {
                    address: 0,
                    len,
                    id,
                    flags: if self.wrap { 0x8082 } else { 2 },
                };
                ring.publish_used(self.used, used);
                self.used += descriptors;
                if self.used >= ring.size() {
                    self.used -= ring.size();
                    self.wrap = !self.wrap;
                }
            }
        }
    }

    fn save(&mut self) {
        let Ok(saved) = self.queue.snapshot() else {
            assert!(!self.given.is_empty());
            return;
        };
        let (parts, size) = (self.memory.parts(), self.queue.size());
        let restored = DriverQueue::restore(parts, size, self.memory.layout(), &saved);
        let restored = restored.expect("its own bytes");
        assert_eq!(restored.snapshot(), Ok(saved));
        assert_eq!(restored.state(), self.queue.state());
        self.queue = restored;
        self.outcome.restores += 1;
    }

    /// What the queue says of itself is what its user knows.
    fn check(&self) {
        assert_eq!(usize::from(self.queue.outstanding()), self.given.len());
        let taken: u16 = self.given.iter().map(|given| given.descriptors).sum();
        assert_eq!(self.queue.free(), self.queue.size() - taken);
    }

    /// A queue that is retired says why, always the same, and leaves the ring alone.
    fn check_retired(&mut self, error: UsedError) {
        assert!(!error.to_string().is_empty());
        let before = self.memory.bytes();
        assert_eq!(self.queue.retired(), Some(error));
        assert_eq!(self.queue.refresh(), Err(error));
        assert_eq!(self.queue.pop(), Err(error));
        assert_eq!(self.queue.publish(), Err(error));
        assert_eq!(self.queue.kick_wanted(), Err(error));
        assert_eq!(self.queue.arm(), Err(error));
        assert_eq!(self.queue.disarm(), Err(error));
        let buffers = [Buffer {
            address: Gpa(0x2000),
            len: 1,
        }];
        let added = self.queue.add(&buffers, &[], None);
        assert_eq!(added, Err(AddError::Retired(error)));
        assert!(self.queue.snapshot().is_err());
        assert_eq!(self.memory.bytes(), before);
    }
}
