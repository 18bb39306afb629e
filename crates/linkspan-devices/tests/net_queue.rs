//! Frames through rings of both layouts: the driver of a queue pair against the
//! device's side of it, and either against a peer that lies.

use linkspan_devices::net::driver::{
    ReceiveBatch, ReceiveDriver, SLOT_BYTES_MIN, SendError, Slots, SlotsError, TransmitDriver,
    WANTED,
};
use linkspan_devices::net::features::{VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MRG_RXBUF};
use linkspan_devices::net::header::{Checksum, Header, HeaderLayout, Offload, PartialChecksum};
use linkspan_devices::net::{
    Body, Filled, Frame, FrameHead, HEAD_LEN, MERGE_MAX, ReceiveQueue, take_transmit,
};
use linkspan_mem::{AddressSpace, Gpa, GuestMemory, Region, Span, UserVa, Window};
use linkspan_virtio::{
    Buffer, Chain, DeviceQueue, DriverQueue, Features, QueueError, QueueLayout, UsedError,
};
use proptest::prelude::*;

const SIZE: u16 = 64;
const SLOTS: u64 = 0x4000;
const MEMORY: usize = 0x4_0000;

/// A queue with its driver's memory; slots lie behind the ring.
struct Rig {
    memory: GuestMemory,
    features: Features,
}

impl Rig {
    fn new(features: Features) -> Self {
        let region = Region::heap(MEMORY).unwrap();
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).unwrap();
        Self { memory, features }
    }

    fn parts(&self) -> [Window; 3] {
        let lens = QueueLayout::of(self.features).part_lens(SIZE);
        std::array::from_fn(|part| {
            let at = Gpa(0x1000 * part as u64);
            self.memory.guest.window(at, lens[part]).unwrap()
        })
    }

    fn driver(&self) -> DriverQueue<Window> {
        let start = QueueLayout::of(self.features).start();
        DriverQueue::new(self.parts(), SIZE, self.features, start).unwrap()
    }

    fn device(&self) -> DeviceQueue<Window> {
        let start = QueueLayout::of(self.features).start();
        DeviceQueue::new(self.parts(), SIZE, self.features, start).unwrap()
    }

    fn space(&self) -> &AddressSpace<Gpa> {
        &self.memory.guest
    }

    fn span(&self, at: u64, len: u32) -> Span {
        let mut found = None;
        self.memory
            .guest
            .resolve(Gpa(at), len, |span| found = Some(span))
            .unwrap();
        found.unwrap()
    }

    fn slots(&self, count: u16, bytes: u32) -> Slots<Gpa> {
        Slots {
            address: Gpa(SLOTS),
            memory: self.span(SLOTS, u32::from(count) * bytes),
            count,
            bytes,
        }
    }

    fn clear(&self) {
        let region = &self.memory.table().regions()[0];
        region.slice(0, SLOTS).unwrap().write(&[0; SLOTS as usize]);
    }
}

/// Split and packed, in order or not.
fn layouts() -> [Features; 4] {
    let in_order = Features::VIRTIO_F_IN_ORDER;
    [
        Features::SPLIT_QUEUE,
        Features::PACKED_QUEUE,
        Features::SPLIT_QUEUE | in_order,
        Features::PACKED_QUEUE | in_order,
    ]
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 + seed * 7 + 1).to_le_bytes()[0])
        .collect()
}

/// A frame with its first `cut` bytes apart from the rest.
fn apart(bytes: &[u8], cut: usize) -> Frame<'_> {
    let (head, rest) = bytes.split_at(cut.min(bytes.len()));
    Frame {
        head,
        body: Body::Private(rest),
    }
}

fn read(frame: &Frame<'_>) -> Vec<u8> {
    let mut target = vec![0; usize::try_from(frame.len()).unwrap()];
    assert_eq!(frame.read(&mut target).unwrap().len() as u64, frame.len());
    target
}

const PARTIAL: Offload = Offload::Whole(Checksum::Partial(PartialChecksum {
    start: 34,
    offset: 16,
}));

/// Takes every frame of a transmit queue.
fn take_all(rig: &Rig, device: &mut DeviceQueue<Window>) -> Vec<(Header, Vec<u8>)> {
    let (mut chain, mut head) = (Chain::new(64).unwrap(), FrameHead::default());
    let layout = HeaderLayout::of(rig.features);
    let table = rig.memory.table();
    let mut frames = Vec::new();
    device.refresh().unwrap();
    while device.pop(rig.space(), &mut chain).unwrap() {
        let taken = take_transmit(&mut chain, table, layout, &mut head).unwrap();
        let frame = Frame::transmitted(&head, &chain, table);
        assert_eq!(frame.len(), taken.len);
        assert_eq!(head.bytes().len() as u64, taken.len.min(HEAD_LEN as u64));
        frames.push((taken.header, read(&frame)));
        device.push(&chain, 0).unwrap();
    }
    device.publish().unwrap();
    frames
}

#[test]
fn frames_of_any_length_are_transmitted() {
    for (features, slot) in layouts().into_iter().zip([128, 256, 1000, 2048]) {
        for features in [features, features | VIRTIO_NET_F_HASH_REPORT] {
            let rig = Rig::new(features | WANTED);
            let slots = rig.slots(40, slot);
            let mut driver = TransmitDriver::new(rig.driver(), rig.features, slots).unwrap();
            let mut device = rig.device();
            for round in 0..30 {
                let lens = [60, 1, 108, 109, 127, 128, 129, 1514, 14 + round];
                let mut sent = Vec::new();
                for (seed, len) in lens.into_iter().enumerate() {
                    let bytes = bytes(len, seed);
                    let frame = apart(&bytes, round * 5);
                    if driver.send(rig.memory.table(), &PARTIAL, &frame).unwrap() {
                        sent.push(bytes);
                    }
                }
                driver.queue().publish().unwrap();
                let taken = take_all(&rig, &mut device);
                assert!(taken.len() >= 6);
                for ((header, bytes), sent) in taken.iter().zip(&sent) {
                    assert_eq!(*header, Header::of(&PARTIAL));
                    assert_eq!(bytes, sent);
                }
                assert_eq!(taken.len(), sent.len());
                assert_eq!(usize::from(driver.reclaim().unwrap()), sent.len());
            }
        }
    }
}

#[test]
fn a_full_transmit_queue_says_so_and_goes_on() {
    for features in layouts() {
        let rig = Rig::new(features | WANTED);
        let slots = rig.slots(10, 256);
        let mut driver = TransmitDriver::new(rig.driver(), rig.features, slots).unwrap();
        let mut device = rig.device();
        // Each takes three slots.
        let bytes = bytes(600, 1);
        for _ in 0..50 {
            let table = rig.memory.table();
            let mut send = || driver.send(table, &Offload::NONE, &Frame::private(&bytes));
            let sent = (0..5).take_while(|_| send().unwrap()).count();
            assert_eq!(sent, 3);
            driver.queue().publish().unwrap();
            assert_eq!(take_all(&rig, &mut device).len(), 3);
            assert_eq!(driver.reclaim().unwrap(), 3);
        }
        let long = vec![0; 2560];
        let error = driver
            .send(rig.memory.table(), &Offload::NONE, &Frame::private(&long))
            .unwrap_err();
        assert_eq!(error, SendError::TooLong { len: 2560, max: 10 });
    }
}

#[test]
fn slots_that_cannot_be_are_refused() {
    let rig = Rig::new(layouts()[0] | WANTED);
    let short = Slots {
        count: 3,
        ..rig.slots(2, SLOT_BYTES_MIN)
    };
    let new = |slots| TransmitDriver::new(rig.driver(), rig.features, slots).unwrap_err();
    let (len, bytes) = (2 * SLOT_BYTES_MIN, SLOT_BYTES_MIN);
    let error = SlotsError::TooSmall {
        len,
        count: 3,
        bytes,
    };
    assert_eq!(new(short), error);
    for (count, bytes) in [(0, 128), (1, 127)] {
        let slots = Slots {
            count,
            bytes,
            ..rig.slots(1, 128)
        };
        assert_eq!(new(slots), SlotsError::Slots { count, bytes });
        let receive = ReceiveDriver::new(rig.driver(), rig.features, slots);
        assert_eq!(receive.unwrap_err(), SlotsError::Slots { count, bytes });
    }
}

/// A chain without a whole header cannot be anything.
#[test]
fn a_chain_without_a_header_breaks_the_queue() {
    for len in [0, 11] {
        let rig = Rig::new(Features::SPLIT_QUEUE);
        let (mut driver, mut device) = (rig.driver(), rig.device());
        let buffer = Buffer {
            address: Gpa(SLOTS),
            len,
        };
        driver.add(&[buffer], &[buffer], None).unwrap();
        driver.publish().unwrap();
        let mut chain = Chain::new(8).unwrap();
        device.refresh().unwrap();
        assert_eq!(device.pop(rig.space(), &mut chain), Ok(true));
        let (layout, mut head) = (HeaderLayout::Buffers, FrameHead::default());
        let error = take_transmit(&mut chain, rig.memory.table(), layout, &mut head).unwrap_err();
        assert!(
            matches!(error, QueueError::NoRoom { need: 12, .. }),
            "{error}"
        );
        assert!(head.bytes().is_empty());
    }
}

/// Header and frame may be cut into descriptors at any place (virtio 1.3 2.7.4).
#[test]
fn a_frame_may_be_cut_anywhere() {
    let rig = Rig::new(Features::SPLIT_QUEUE);
    let (mut driver, mut device) = (rig.driver(), rig.device());
    let header = Header::of(&PARTIAL).to_bytes();
    let frame = bytes(300, 3);
    let all = [&header[..12], &frame].concat();
    let slice = rig.memory.table().regions()[0].slice(SLOTS, 512).unwrap();
    slice.write(&all);
    for cut in 0..all.len() {
        for second in [cut, cut + 1, all.len()] {
            let second = second.min(all.len());
            let buffers = [(0, cut), (cut, second), (second, all.len())].map(|(from, to)| Buffer {
                address: Gpa(SLOTS + from as u64),
                len: u32::try_from(to - from).unwrap(),
            });
            driver.add(&buffers, &[], None).unwrap();
            driver.publish().unwrap();
            let frames = take_all(&rig, &mut device);
            assert_eq!(frames, [(Header::of(&PARTIAL), frame.clone())], "{cut}");
            driver.refresh().unwrap();
            driver.pop().unwrap();
        }
    }
}

/// What was looked at is what is delivered, whatever the sender writes meanwhile.
#[test]
fn a_frame_keeps_the_head_that_was_looked_at() {
    let rig = Rig::new(Features::SPLIT_QUEUE);
    let (mut driver, mut device) = (rig.driver(), rig.device());
    let all = [&[0; 12][..], &bytes(200, 3)].concat();
    let slice = rig.memory.table().regions()[0].slice(SLOTS, 212).unwrap();
    slice.write(&all);
    let buffer = Buffer {
        address: Gpa(SLOTS),
        len: 212,
    };
    driver.add(&[buffer], &[], None).unwrap();
    driver.publish().unwrap();
    let (mut chain, mut head) = (Chain::new(8).unwrap(), FrameHead::default());
    device.refresh().unwrap();
    assert_eq!(device.pop(rig.space(), &mut chain), Ok(true));
    let table = rig.memory.table();
    take_transmit(&mut chain, table, HeaderLayout::Buffers, &mut head).unwrap();
    slice.write(&[0xEE; 212]);
    let found = read(&Frame::transmitted(&head, &chain, table));
    assert_eq!(found[..HEAD_LEN], all[12..12 + HEAD_LEN]);
    assert!(found[HEAD_LEN..].iter().all(|byte| *byte == 0xEE));
}

/// A receive queue with its driver and its device.
struct Receive {
    rig: Rig,
    driver: ReceiveDriver<Window, Gpa>,
    queue: DeviceQueue<Window>,
    device: ReceiveQueue,
}

impl Receive {
    fn new(features: Features, count: u16, bytes: u32) -> Self {
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

    fn post(&mut self, want: u16) {
        assert_eq!(self.driver.post().unwrap(), want);
        self.driver.queue().publish().unwrap();
    }

    fn fill(&mut self, header: &Header, frame: &Frame<'_>) -> Filled {
        let (queue, space) = (&mut self.queue, &self.rig.memory.guest);
        let filled = self.device.fill(queue, space, header, frame, |_| {});
        filled.unwrap()
    }

    fn publish(&mut self) {
        self.queue.publish().unwrap();
    }

    fn received(&mut self, budget: u32) -> (Vec<(Offload, Vec<u8>)>, ReceiveBatch) {
        let mut frames = Vec::new();
        let table = self.rig.memory.table();
        let batch = self.driver.receive(table, budget, |received| {
            frames.push((received.offload, read(&received.frame)));
        });
        (frames, batch.unwrap())
    }
}

#[test]
fn frames_are_received_in_one_buffer_or_several() {
    for features in layouts() {
        let (mergeable, not) = (
            features | WANTED,
            (features | WANTED) - VIRTIO_NET_F_MRG_RXBUF,
        );
        for (features, slot) in [
            (mergeable, 128),
            (mergeable, 200),
            (mergeable, 1600),
            (not, 1600),
        ] {
            let mut receive = Receive::new(features, 40, slot);
            for round in 0..30 {
                let mut sent = Vec::new();
                for (seed, len) in [60, 1514, 14, 116, 117, 20 + round].into_iter().enumerate() {
                    let bytes = bytes(len, seed);
                    let filled = receive.fill(&Header::of(&PARTIAL), &apart(&bytes, 100));
                    let need = (12 + len).div_ceil(slot as usize);
                    let buffers = u16::try_from(need).unwrap();
                    assert_eq!(filled, Filled::Delivered { buffers });
                    // A checksum outside of a frame is for the driver to drop.
                    if len >= 52 {
                        sent.push((PARTIAL, bytes));
                    }
                }
                assert!(receive.received(99).0.is_empty(), "not published yet");
                receive.publish();
                let (frames, batch) = receive.received(99);
                assert_eq!(frames, sent);
                assert_eq!(batch.frames as usize, sent.len());
                assert_eq!(batch.headers as usize, 6 - sent.len());
                let posted = receive.driver.post().unwrap();
                assert!(posted >= 6);
                receive.driver.queue().publish().unwrap();
            }
        }
    }
}

/// Nothing of a frame is to be seen before there is room for all of it.
#[test]
fn a_frame_without_room_is_not_half_delivered() {
    for features in layouts() {
        let mut receive = Receive::new(features | WANTED, 4, 256);
        let (long, short) = (bytes(1200, 1), bytes(100, 2));
        let header = Header::default();
        assert_eq!(
            receive.fill(&header, &Frame::private(&long)),
            Filled::NoBuffers
        );
        assert_eq!(receive.device.held(), 4);
        assert_eq!(
            receive.fill(&header, &Frame::private(&long)),
            Filled::NoBuffers
        );
        receive.publish();
        assert!(receive.received(9).0.is_empty());
        // The buffers are there for a frame that fits.
        let one = Filled::Delivered { buffers: 1 };
        assert_eq!(receive.fill(&header, &Frame::private(&short)), one);
        receive.publish();
        assert_eq!(receive.received(9).0, [(Offload::NONE, short.clone())]);
        // What is held goes back before the queue stops, and is found by the next.
        assert_eq!(receive.device.held(), 3);
        assert_eq!(receive.queue.in_flight(), 3);
        receive.device.give_back(&mut receive.queue).unwrap();
        assert_eq!((receive.device.held(), receive.queue.in_flight()), (0, 0));
        let saved = receive.queue.snapshot().unwrap();
        let layout = QueueLayout::of(features);
        receive.queue = DeviceQueue::restore(receive.rig.parts(), SIZE, layout, &saved).unwrap();
        for _ in 0..3 {
            assert_eq!(receive.fill(&header, &Frame::private(&short)), one);
        }
        assert_eq!(
            receive.fill(&header, &Frame::private(&short)),
            Filled::NoBuffers
        );
        receive.publish();
        assert_eq!(receive.received(9).0.len(), 3);
    }
}

#[test]
fn a_buffer_that_is_too_small_waits_for_a_frame_that_fits() {
    let features = (Features::SPLIT_QUEUE | WANTED) - VIRTIO_NET_F_MRG_RXBUF;
    let mut receive = Receive::new(features, 2, 256);
    let (long, short) = (bytes(245, 1), bytes(244, 2));
    let header = Header::default();
    assert_eq!(
        receive.fill(&header, &Frame::private(&long)),
        Filled::TooSmall
    );
    assert_eq!(
        receive.fill(&header, &Frame::private(&long)),
        Filled::TooSmall
    );
    let one = Filled::Delivered { buffers: 1 };
    assert_eq!(receive.fill(&header, &Frame::private(&short)), one);
    receive.publish();
    assert_eq!(receive.received(9).0, [(Offload::NONE, short)]);
}

/// Buffers of 12 bytes would have the device take thousands for one frame.
#[test]
fn a_frame_takes_no_more_than_so_many_buffers() {
    let rig = Rig::new(Features::SPLIT_QUEUE | WANTED);
    let mut driver = rig.driver();
    for at in 0..u64::from(SIZE) {
        let buffer = Buffer {
            address: Gpa(SLOTS + 12 * at),
            len: 12,
        };
        driver.add(&[], &[buffer], None).unwrap();
    }
    driver.publish().unwrap();
    let (mut queue, mut device) = (rig.device(), ReceiveQueue::new(rig.features, 8).unwrap());
    queue.refresh().unwrap();
    let mut fill = |len: usize| {
        let bytes = bytes(len, 1);
        device.fill(
            &mut queue,
            rig.space(),
            &Header::default(),
            &Frame::private(&bytes),
            |_| {},
        )
    };
    assert_eq!(fill(12 * MERGE_MAX), Ok(Filled::TooSmall));
    let buffers = u16::try_from(MERGE_MAX).unwrap();
    assert_eq!(
        fill(12 * (MERGE_MAX - 1)),
        Ok(Filled::Delivered { buffers })
    );
}

#[test]
fn a_buffer_without_room_for_a_header_breaks_the_queue() {
    for writable in [0, 11] {
        let rig = Rig::new(Features::SPLIT_QUEUE | WANTED);
        let mut driver = rig.driver();
        let buffer = |len| Buffer {
            address: Gpa(SLOTS),
            len,
        };
        driver.add(&[buffer(5)], &[buffer(writable)], None).unwrap();
        driver.publish().unwrap();
        let (mut queue, mut device) = (rig.device(), ReceiveQueue::new(rig.features, 8).unwrap());
        queue.refresh().unwrap();
        let bytes = bytes(60, 1);
        let error = device
            .fill(
                &mut queue,
                rig.space(),
                &Header::default(),
                &Frame::private(&bytes),
                |_| {},
            )
            .unwrap_err();
        assert!(
            matches!(error, QueueError::NoRoom { need: 12, .. }),
            "{error}"
        );
        assert_eq!(queue.retired(), Some(error));
    }
}

/// Whoever logs writes hears of exactly the bytes that were written.
#[test]
fn what_was_written_is_reported() {
    let mut receive = Receive::new(Features::SPLIT_QUEUE | WANTED, 8, 128);
    let bytes = bytes(300, 1);
    let mut places = Vec::new();
    let (queue, space) = (&mut receive.queue, &receive.rig.memory.guest);
    let frame = Frame::private(&bytes);
    let mut wrote = |span: Span| places.push((space.address(span).unwrap().0, span.len()));
    receive
        .device
        .fill(queue, space, &Header::default(), &frame, &mut wrote)
        .unwrap();
    assert_eq!(
        places,
        [(SLOTS, 128), (SLOTS + 128, 128), (SLOTS + 256, 56)]
    );
}

/// A device that lies about what it delivered.
#[test]
fn frames_that_cannot_be_are_dropped_and_counted() {
    // Used lengths and the numbers of buffers in the first bytes.
    for (buffers, written, expected) in [
        (
            1_u16,
            vec![11],
            ReceiveBatch {
                short: 1,
                ..ReceiveBatch::default()
            },
        ),
        (
            0,
            vec![100],
            ReceiveBatch {
                buffers: 1,
                ..ReceiveBatch::default()
            },
        ),
        (
            65,
            vec![100],
            ReceiveBatch {
                buffers: 1,
                ..ReceiveBatch::default()
            },
        ),
        (
            u16::MAX,
            vec![100],
            ReceiveBatch {
                buffers: 1,
                ..ReceiveBatch::default()
            },
        ),
        // Not as many as it says are there.
        (
            3,
            vec![100, 100],
            ReceiveBatch {
                buffers: 1,
                ..ReceiveBatch::default()
            },
        ),
        (
            2,
            vec![12, 13],
            ReceiveBatch {
                headers: 1,
                ..ReceiveBatch::default()
            },
        ),
        (
            2,
            vec![12, 14],
            ReceiveBatch {
                frames: 1,
                ..ReceiveBatch::default()
            },
        ),
        (
            2,
            vec![26, 0],
            ReceiveBatch {
                frames: 1,
                ..ReceiveBatch::default()
            },
        ),
    ] {
        let mut receive = Receive::new(Features::SPLIT_QUEUE | WANTED, 8, 256);
        receive.queue.refresh().unwrap();
        let (mut chain, space) = (Chain::new(8).unwrap(), &receive.rig.memory.guest);
        for (index, written) in written.iter().enumerate() {
            assert_eq!(receive.queue.pop(space, &mut chain), Ok(true));
            if index == 0 {
                let header = Header {
                    num_buffers: buffers,
                    ..Header::default()
                };
                let table = receive.rig.memory.table();
                table
                    .scatter(chain.writable(), 0, &header.to_bytes()[..12])
                    .unwrap();
            }
            receive.queue.push(&chain, *written).unwrap();
        }
        receive.publish();
        let (frames, batch) = receive.received(9);
        assert_eq!(batch, expected, "{buffers} {written:?}");
        assert_eq!(frames.len(), expected.frames as usize);
        // Every slot is free again.
        receive.post(u16::try_from(written.len()).unwrap());
    }
}

#[test]
fn a_device_that_breaks_the_ring_ends_the_queue() {
    let mut receive = Receive::new(Features::SPLIT_QUEUE | WANTED, 8, 256);
    let DeviceQueue::Split(queue) = &receive.queue else {
        panic!("a split ring");
    };
    queue.ring().publish_used_index(100);
    let error = receive
        .driver
        .receive(receive.rig.memory.table(), 9, |_| {});
    assert!(
        matches!(error, Err(UsedError::UsedJump { .. })),
        "{error:?}"
    );
}

#[test]
fn both_drivers_go_on_with_a_new_device() {
    for features in layouts() {
        let mut receive = Receive::new(features | WANTED, 8, 256);
        let bytes = bytes(700, 1);
        let frame = Frame::private(&bytes);
        let three = Filled::Delivered { buffers: 3 };
        assert_eq!(receive.fill(&Header::default(), &frame), three);
        receive.rig.clear();
        receive.driver.restart(receive.rig.driver());
        receive.queue = receive.rig.device();
        receive.device = ReceiveQueue::new(features | WANTED, 8).unwrap();
        receive.post(8);
        assert_eq!(receive.fill(&Header::default(), &frame), three);
        receive.publish();
        assert_eq!(receive.received(9).0.len(), 1);

        let rig = Rig::new(features | WANTED);
        let slots = rig.slots(7, 256);
        let mut driver = TransmitDriver::new(rig.driver(), rig.features, slots).unwrap();
        let table = rig.memory.table();
        for _ in 0..2 {
            // Lost frames leave no slot behind.
            for _ in 0..2 {
                assert!(driver.send(table, &Offload::NONE, &frame).unwrap());
            }
            assert!(!driver.send(table, &Offload::NONE, &frame).unwrap());
            rig.clear();
            driver.restart(rig.driver());
        }
        assert!(driver.send(table, &Offload::NONE, &frame).unwrap());
        driver.queue().publish().unwrap();
        assert_eq!(
            take_all(&rig, &mut rig.device()),
            [(Header::default(), bytes)]
        );
    }
}

proptest! {
    /// From one driver to another, through the memory of both, in any sizes.
    #[test]
    fn frames_go_from_one_guest_to_another(
        lens in prop::collection::vec(14_usize..4000, 1..40),
        transmit_slot in 128_u32..2000,
        receive_slot in 128_u32..2000,
        batch in 1_usize..8,
        layout in 0_usize..4,
        hash in any::<bool>(),
    ) {
        let mut features = layouts()[layout] | WANTED;
        features.set(VIRTIO_NET_F_HASH_REPORT, hash);
        let rig = Rig::new(features);
        let slots = rig.slots(60, transmit_slot);
        let mut sender = TransmitDriver::new(rig.driver(), features, slots).unwrap();
        let mut transmit = rig.device();
        let mut receive = Receive::new(features, 60, receive_slot);
        let (mut chain, mut head) = (Chain::new(64).unwrap(), FrameHead::default());
        for lens in lens.chunks(batch) {
            let (mut delivered, table) = (Vec::new(), rig.memory.table());
            for (seed, len) in lens.iter().enumerate() {
                let bytes = bytes(*len, seed);
                if sender.send(table, &Offload::NONE, &apart(&bytes, 40)).unwrap() {
                    delivered.push((Offload::NONE, bytes));
                }
            }
            sender.queue().publish().unwrap();
            transmit.refresh().unwrap();
            let mut index = 0;
            while transmit.pop(rig.space(), &mut chain).unwrap() {
                let layout = HeaderLayout::of(features);
                let taken = take_transmit(&mut chain, table, layout, &mut head).unwrap();
                prop_assert_eq!(taken.len as usize, delivered[index].1.len());
                let frame = Frame::transmitted(&head, &chain, table);
                match receive.fill(&taken.header, &frame) {
                    Filled::Delivered { .. } => index += 1,
                    _ => drop(delivered.remove(index)),
                }
                transmit.push(&chain, 0).unwrap();
            }
            transmit.publish().unwrap();
            sender.reclaim().unwrap();
            receive.publish();
            let (frames, batch) = receive.received(u32::MAX);
            prop_assert_eq!(batch.frames as usize, delivered.len());
            prop_assert_eq!(frames, delivered);
            receive.driver.post().unwrap();
            receive.driver.queue().publish().unwrap();
        }
        // Nothing has been lost of either.
        prop_assert_eq!(sender.queue().outstanding(), 0);
        receive.device.give_back(&mut receive.queue).unwrap();
        prop_assert_eq!(receive.queue.in_flight(), 0);
    }
}
