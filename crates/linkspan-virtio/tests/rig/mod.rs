//! A peer's memory with a ring in it, for both sides of a queue.

#![expect(dead_code, reason = "each test file uses a part of it")]

use linkspan_mem::{
    Descriptor, Gpa, GuestMemory, PackedDescriptor, PackedRing, Region, SplitRing, UserVa, Window,
};
use linkspan_virtio::split::{Buffer, IndirectTable, SplitDevice, SplitDriver};
use linkspan_virtio::{Chain, DeviceQueue, DriverQueue, Features, QueueLayout, QueueState};

/// First guest address of the memory.
pub(crate) const BASE: u64 = 0x1_0000;
/// Where the second of the two adjoining regions begins.
pub(crate) const BORDER: u64 = BASE + RING_BYTES as u64;
/// First guest address behind the memory.
pub(crate) const END: u64 = BORDER + 0x1_0000;
/// Rings lie at the start of the first region.
const RING_BYTES: usize = 0x2_0000;

pub(crate) const PLAIN: Features = Features::VIRTIO_F_VERSION_1;
pub(crate) const ALL: Features = Features::SPLIT_QUEUE;
pub(crate) const PACKED: Features = Features::PACKED_QUEUE;

pub(crate) struct Rig {
    pub(crate) memory: GuestMemory,
    size: u16,
}

impl Rig {
    /// `size` is at most 256.
    pub(crate) fn new(size: u16) -> Self {
        let memory = GuestMemory::new(vec![
            (Region::heap(RING_BYTES).unwrap(), Gpa(BASE), UserVa(BASE)),
            (Region::heap(0x1_0000).unwrap(), Gpa(BORDER), UserVa(BORDER)),
        ]);
        Self {
            memory: memory.unwrap(),
            size,
        }
    }

    /// The one ring of the rig; every call gives the same memory.
    pub(crate) fn ring(&self) -> SplitRing<Window> {
        let window = |at, len| self.memory.guest.window(Gpa(BASE + at), len).unwrap();
        let size = self.size;
        SplitRing::new(
            window(0, SplitRing::<Window>::descriptors_len(size)),
            window(0x2000, SplitRing::<Window>::available_len(size)),
            window(0x3000, SplitRing::<Window>::used_len(size)),
            size,
        )
        .unwrap()
    }

    /// The parts of the one queue of the rig, in the layout of these features.
    pub(crate) fn parts(&self, features: Features) -> [Window; 3] {
        let lens = QueueLayout::of(features).part_lens(self.size);
        let mut at = [0, 0x2000, 0x3000].into_iter();
        lens.map(|len| {
            let at = Gpa(BASE + at.next().unwrap());
            self.memory.guest.window(at, len).unwrap()
        })
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn packed(&self) -> PackedRing<Window> {
        let [descriptors, driver, device] = self.parts(PACKED);
        PackedRing::new(descriptors, driver, device, self.size).unwrap()
    }

    /// Both sides of a new queue, standing `start` entries behind its beginning
    /// (rounds of a packed ring included).
    pub(crate) fn queues(
        &self,
        features: Features,
        start: u16,
    ) -> (DriverQueue<Window>, DeviceQueue<Window>) {
        let (layout, size) = (QueueLayout::of(features), self.size);
        let at = match layout {
            QueueLayout::Split => {
                self.ring().publish_available_index(start);
                self.ring().publish_used_index(start);
                start
            }
            QueueLayout::Packed => {
                let wrap = (start / size).is_multiple_of(2);
                let ring = self.packed();
                // As the round before this one left the descriptors behind.
                for index in 0..size {
                    let used = wrap == (index < start % size);
                    let flags = if used { 0x8080 } else { 0 };
                    let before = PackedDescriptor {
                        flags,
                        ..PackedDescriptor::default()
                    };
                    ring.set_used(index, before);
                }
                (start % size) | u16::from(wrap) << 15
            }
        };
        let state = QueueState {
            next_available: at,
            next_used: at,
        };
        let driver = DriverQueue::new(self.parts(features), size, features, state).unwrap();
        let device = DeviceQueue::new(self.parts(features), size, features, state).unwrap();
        (driver, device)
    }

    /// Memory for an in-flight region, zeroed at first.
    pub(crate) fn region(&self, len: usize) -> Window {
        self.memory.guest.window(Gpa(BASE + 0x6000), len).unwrap()
    }

    pub(crate) fn device(&self, features: Features) -> SplitDevice<Window> {
        SplitDevice::new(self.ring(), features, QueueState::default()).unwrap()
    }

    pub(crate) fn driver(&self, features: Features) -> SplitDriver<Window> {
        SplitDriver::new(self.ring(), features, QueueState::default()).unwrap()
    }

    /// Both sides, both standing at `start` of either ring.
    pub(crate) fn pair(
        &self,
        features: Features,
        start: u16,
    ) -> (SplitDriver<Window>, SplitDevice<Window>) {
        let state = QueueState {
            next_available: start,
            next_used: start,
        };
        let ring = self.ring();
        ring.publish_available_index(start);
        ring.publish_used_index(start);
        let driver = SplitDriver::new(ring, features, state).unwrap();
        (
            driver,
            SplitDevice::new(self.ring(), features, state).unwrap(),
        )
    }

    /// Memory for an indirect table of `count` entries, for a driver.
    pub(crate) fn table(&self, offset: u64, count: usize) -> IndirectTable<'_, Gpa> {
        let region = &self.memory.table().regions()[0];
        let len = (Descriptor::SIZE * count) as u64;
        IndirectTable {
            address: Gpa(BASE + offset),
            bytes: region.slice(offset, len).unwrap(),
        }
    }

    /// Writes bytes at a guest address.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        let mut spans = Vec::new();
        let found = self
            .memory
            .guest
            .resolve(Gpa(address), len, |span| spans.push(span));
        found.unwrap();
        self.memory.table().scatter(&spans, 0, bytes).unwrap();
    }

    /// Writes an indirect table at a guest address.
    pub(crate) fn write_table(&self, address: u64, table: &[Descriptor]) {
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_bytes()).collect();
        self.write(address, &bytes);
    }
}

pub(crate) fn chain() -> Chain {
    Chain::new(64).unwrap()
}

pub(crate) fn buffer(address: u64, len: u32) -> Buffer<Gpa> {
    Buffer {
        address: Gpa(address),
        len,
    }
}

pub(crate) fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}
