//! Guest memory with a ring in it, the drivers of a queue pair and its device.

#![expect(dead_code, reason = "each test file uses a part of it")]

use linkspan_devices::net::driver::{ReceiveBatch, ReceiveDriver, Slots};
use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::header::{Checksum, Header, HeaderLayout, Offload, PartialChecksum};
use linkspan_devices::net::{
    Body, Filled, Frame, FrameHead, HEAD_LEN, ReceiveQueue, take_plain, take_transmit,
};
use linkspan_mem::{AddressSpace, Gpa, GuestMemory, Region, Span, UserVa, Window};
use linkspan_virtio::{Chain, DeviceQueue, DriverQueue, Features, QueueLayout};

pub(crate) const SIZE: u16 = 64;
pub(crate) const SLOTS: u64 = 0x4000;
pub(crate) const MEMORY: usize = 0x4_0000;

/// A queue with its driver's memory; slots lie behind the ring.
pub(crate) struct Rig {
    pub(crate) memory: GuestMemory,
    pub(crate) features: Features,
}

impl Rig {
    pub(crate) fn new(features: Features) -> Self {
        let region = Region::heap(MEMORY).unwrap();
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).unwrap();
        Self { memory, features }
    }

    pub(crate) fn parts(&self) -> [Window; 3] {
        let lens = QueueLayout::of(self.features).part_lens(SIZE);
        std::array::from_fn(|part| {
            let at = Gpa(0x1000 * part as u64);
            self.memory.guest.window(at, lens[part]).unwrap()
        })
    }

    pub(crate) fn driver(&self) -> DriverQueue<Window> {
        let start = QueueLayout::of(self.features).start();
        DriverQueue::new(self.parts(), SIZE, self.features, start).unwrap()
    }

    pub(crate) fn device(&self) -> DeviceQueue<Window> {
        let start = QueueLayout::of(self.features).start();
        DeviceQueue::new(self.parts(), SIZE, self.features, start).unwrap()
    }

    pub(crate) fn space(&self) -> &AddressSpace<Gpa> {
        &self.memory.guest
    }

    pub(crate) fn span(&self, at: u64, len: u32) -> Span {
        let mut found = None;
        self.memory
            .guest
            .resolve(Gpa(at), len, |span| found = Some(span))
            .unwrap();
        found.unwrap()
    }

    pub(crate) fn slots(&self, count: u16, bytes: u32) -> Slots<Gpa> {
        Slots {
            address: Gpa(SLOTS),
            memory: self.span(SLOTS, u32::from(count) * bytes),
            count,
            bytes,
        }
    }

    pub(crate) fn clear(&self) {
        let region = &self.memory.table().regions()[0];
        region.slice(0, SLOTS).unwrap().write(&[0; 0x4000]);
    }
}

/// Split and packed, in order or not.
pub(crate) fn layouts() -> [Features; 4] {
    let in_order = Features::VIRTIO_F_IN_ORDER;
    [
        Features::SPLIT_QUEUE,
        Features::PACKED_QUEUE,
        Features::SPLIT_QUEUE | in_order,
        Features::PACKED_QUEUE | in_order,
    ]
}

pub(crate) fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 + seed * 7 + 1).to_le_bytes()[0])
        .collect()
}

/// A frame with its first `cut` bytes apart from the rest.
pub(crate) fn apart(bytes: &[u8], cut: usize) -> Frame<'_> {
    let (head, rest) = bytes.split_at(cut.min(bytes.len()));
    Frame {
        head,
        body: Body::Private(rest),
    }
}

pub(crate) fn read(frame: &Frame<'_>) -> Vec<u8> {
    let mut target = vec![0; usize::try_from(frame.len()).unwrap()];
    assert_eq!(frame.read(&mut target).unwrap().len() as u64, frame.len());
    target
}

pub(crate) const PARTIAL: Offload = Offload::Whole(Checksum::Partial(PartialChecksum {
    start: 34,
    offset: 16,
}));

/// Takes every frame of a transmit queue.
pub(crate) fn take_all(rig: &Rig, device: &mut DeviceQueue<Window>) -> Vec<(Header, Vec<u8>)> {
    let (mut chain, mut head) = (Chain::new(64).unwrap(), FrameHead::default());
    let layout = HeaderLayout::of(rig.features);
    let table = rig.memory.table();
    let mut frames = Vec::new();
    device.refresh().unwrap();
    while device.pop(rig.space(), &mut chain).unwrap() {
        let mut short = FrameHead::default();
        let plain = take_plain(&chain, table, layout, &mut short);
        let taken = take_transmit(&mut chain, table, layout, &mut head).unwrap();
        if let Some(len) = plain {
            // The short way finds the same.
            assert_eq!((u64::from(len), short.bytes()), (taken.len, head.bytes()));
            let nothing = taken.header.check(taken.len, Offloads::empty());
            assert_eq!(nothing, Ok(Offload::NONE));
        }
        let frame = Frame::transmitted(&head, &chain, table);
        assert_eq!(frame.len(), taken.len);
        assert_eq!(head.bytes().len() as u64, taken.len.min(HEAD_LEN as u64));
        frames.push((taken.header, read(&frame)));
        device.push(&chain, 0).unwrap();
    }
    device.publish().unwrap();
    frames
}
/// A receive queue with its driver and its device.
pub(crate) struct Receive {
    pub(crate) rig: Rig,
    pub(crate) driver: ReceiveDriver<Window, Gpa>,
    pub(crate) queue: DeviceQueue<Window>,
    pub(crate) device: ReceiveQueue,
}

impl Receive {
    pub(crate) fn new(features: Features, count: u16, bytes: u32) -> Self {
        let rig = Rig::new(features);
        let slots = rig.slots(count, bytes);
        let mut receive = Self {
            driver: ReceiveDriver::new(rig.driver(), features, slots).unwrap(),
            queue: rig.device(),
            device: ReceiveQueue::new(features, 8).unwrap(),
            rig,
        };
        receive.post(count);
        receive
    }

    pub(crate) fn post(&mut self, want: u16) {
        assert_eq!(self.driver.post().unwrap(), want);
        self.driver.queue().publish().unwrap();
    }

    pub(crate) fn fill(&mut self, header: &Header, frame: &Frame<'_>) -> Filled {
        let (queue, space) = (&mut self.queue, &self.rig.memory.guest);
        let header = Some(header).filter(|header| **header != Header::default());
        let filled = self.device.fill(queue, space, header, frame, |_| {});
        filled.unwrap()
    }

    pub(crate) fn publish(&mut self) {
        self.device.finish(&mut self.queue).unwrap();
        self.queue.publish().unwrap();
    }

    pub(crate) fn received(&mut self, budget: u32) -> (Vec<(Offload, Vec<u8>)>, ReceiveBatch) {
        let mut frames = Vec::new();
        let table = self.rig.memory.table();
        let batch = self.driver.receive(table, budget, |received| {
            frames.push((received.offload, read(&received.frame)));
        });
        (frames, batch.unwrap())
    }
}
