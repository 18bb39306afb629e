//! What a frame of 64 bytes costs at each station of its way, in nanoseconds, on
//! one thread: `cargo bench -p linkspan-devices`.

use std::hint::black_box;
use std::time::Instant;

use linkspan_devices::net::control::{Command, Control, MacList};
use linkspan_devices::net::driver::{ReceiveDriver, Received, Slots, TransmitDriver, WANTED};
use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::header::{HEADER_LEN_MAX, Header, HeaderLayout, Offload};
use linkspan_devices::net::offload::{Receiver, plan};
use linkspan_devices::net::switch::{Forward, Switch, SwitchOptions};
use linkspan_devices::net::{
    Filled, Frame, FrameHead, HEAD_LEN, HashTypes, Mac, Net, NetOptions, OFFLOADS, ReceiveModes,
    ReceiveQueue, Speed, Toeplitz, flow_hash, steer, take_transmit,
};
use linkspan_mem::{Gpa, GuestMemory, Region, Span, UserVa, Window};
use linkspan_virtio::{Chain, DeviceQueue, DriverQueue, Features, QueueLayout};

const SIZE: u16 = 256;
const BATCH: u16 = 32;
const BATCHES: u32 = 4_000;
const CALLS: u32 = 400_000;
const ROUNDS: u32 = 50;
const STATIONS: u16 = 1024;

fn main() {
    stations();
    println!();
    println!(
        "{:28} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "64 bytes through rings", "send", "take", "decide", "fill", "receive", "all"
    );
    let in_order = Features::VIRTIO_F_IN_ORDER;
    for (name, features) in [
        ("split", Features::VIRTIO_F_VERSION_1),
        ("split, event index", Features::SPLIT_QUEUE),
        ("split, in order", Features::SPLIT_QUEUE | in_order),
        (
            "packed",
            Features::VIRTIO_F_VERSION_1 | Features::VIRTIO_F_RING_PACKED,
        ),
        ("packed, in order", Features::PACKED_QUEUE | in_order),
    ] {
        let way = Way::new(features | WANTED);
        let mut times = [f64::MAX; 5];
        for _ in 0..ROUNDS {
            for (best, time) in times.iter_mut().zip(way.run()) {
                *best = best.min(time);
            }
        }
        let all: f64 = times.iter().sum();
        let [send, take, decide, fill, receive] = times;
        println!(
            "{name:28} {send:>8.1} {take:>8.1} {decide:>8.1} {fill:>8.1} {receive:>8.1} {all:>8.1}"
        );
    }
}

fn mac(station: u16) -> Mac {
    let [a, b] = station.to_be_bytes();
    Mac([2, 0, 0, 0, a, b])
}

/// A UDP frame of 64 bytes (60 without the checksum of the wire, and 4 more).
fn frame(from: u16, to: u16) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&mac(to).0);
    frame[6..12].copy_from_slice(&mac(from).0);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[
        0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame[34..36].copy_from_slice(&from.to_be_bytes());
    frame[36..38].copy_from_slice(&to.to_be_bytes());
    frame
}

/// Nanoseconds for each call, of the quickest of many rounds: others share the
/// machine.
fn time(mut call: impl FnMut(usize)) -> f64 {
    let mut best = u128::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for index in 0..CALLS {
            call(index as usize);
        }
        best = best.min(start.elapsed().as_nanos());
    }
    per(best, CALLS)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per(nanoseconds: u128, calls: u32) -> f64 {
    nanoseconds as f64 / f64::from(calls)
}

fn switch() -> Switch {
    let mut switch = Switch::new(SwitchOptions {
        ports: 8,
        stations: 8192,
        stations_per_port: 1024,
        ageing_s: 300,
        flood: None,
        seed: 0x5DEE_CE66_D123_4567,
    })
    .expect("a switch");
    for station in 0..STATIONS {
        switch.forward(station % 8, &frame(station, 0xFFFF), 0);
    }
    switch
}

fn filter() -> Control {
    let net = Net::new(NetOptions {
        mac: mac(1),
        mtu: 1500,
        pairs: 4,
        queue_size: SIZE,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: true,
    })
    .expect("a device");
    let mut control = Control::new(&net, net.features());
    let macs: Vec<[u8; 6]> = (0..32).map(|station| mac(station * 7).0).collect();
    for command in [
        Command::Receive {
            mode: ReceiveModes::PROMISC,
            on: false,
        },
        Command::MacTable {
            unicast: MacList::Listed(&macs),
            multicast: MacList::Listed(&[]),
        },
    ] {
        control.apply(&command).expect("a command");
    }
    control
}

/// Each station by itself, over frames of many flows.
fn stations() {
    let frames: Vec<[u8; 64]> = (0..STATIONS)
        .map(|station| frame(station, station.wrapping_mul(37) % STATIONS))
        .collect();
    let at = |index: usize| &frames[index % frames.len()][..];
    let line = |name: &str, time: f64| println!("{name:28} {time:>8.1}");
    line(
        "nothing",
        time(|index| {
            black_box(at(index));
        }),
    );
    let header = Header::default().to_bytes();
    line(
        "header, checked",
        time(|_| {
            let bytes: &[u8; HEADER_LEN_MAX] = black_box(&header);
            let header = Header::read(HeaderLayout::Buffers, bytes);
            black_box(header.check(64, Offloads::all())).expect("no offload");
        }),
    );
    let receiver = Receiver {
        offloads: Offloads::empty(),
        mtu: 1500,
    };
    line(
        "plan",
        time(|index| {
            black_box(plan(black_box(&Offload::NONE), at(index), 64, &receiver));
        }),
    );
    line(
        "flow hash, steer",
        time(|index| {
            black_box(steer(flow_hash(at(index)), 4));
        }),
    );
    let toeplitz = Toeplitz::new(&[0x6D; 40]);
    line(
        "Toeplitz hash",
        time(|index| {
            black_box(toeplitz.hash_frame(at(index), HashTypes::all()));
        }),
    );
    let control = filter();
    line(
        "filter, 32 addresses",
        time(|index| {
            let _ = black_box(control.filter().check(at(index)));
        }),
    );
    let mut switch = switch();
    line(
        "switch, 1024 stations",
        time(|index| {
            let port = u16::try_from(index % 8).unwrap_or(0);
            black_box(switch.forward(port, at(index), 0));
        }),
    );
}

/// One guest's transmit queue, a switch, and another guest's receive queue.
struct Way {
    features: Features,
    transmit: Side,
    receive: Side,
}

/// A guest's memory with one queue.
struct Side {
    memory: GuestMemory,
}

impl Side {
    fn new() -> Self {
        let region = Region::heap(1 << 20).expect("memory");
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0))]).expect("memory");
        Self { memory }
    }

    fn parts(&self, features: Features) -> [Window; 3] {
        let lens = QueueLayout::of(features).part_lens(SIZE);
        std::array::from_fn(|part| {
            let at = Gpa(0x2000 * part as u64);
            self.memory.guest.window(at, lens[part]).expect("inside")
        })
    }

    fn driver(&self, features: Features) -> DriverQueue<Window> {
        let start = QueueLayout::of(features).start();
        DriverQueue::new(self.parts(features), SIZE, features, start).expect("a driver")
    }

    fn device(&self, features: Features) -> DeviceQueue<Window> {
        let start = QueueLayout::of(features).start();
        DeviceQueue::new(self.parts(features), SIZE, features, start).expect("a device")
    }

    fn slots(&self) -> Slots<Gpa> {
        let mut memory = Span::default();
        let (at, bytes, count) = (Gpa(0x8000), 2048, SIZE);
        let len = u32::from(count) * bytes;
        self.memory
            .guest
            .resolve(at, len, |span| memory = span)
            .expect("inside");
        Slots {
            address: at,
            memory,
            count,
            bytes,
        }
    }
}

impl Way {
    fn new(features: Features) -> Self {
        Self {
            features,
            transmit: Side::new(),
            receive: Side::new(),
        }
    }

    /// Nanoseconds a frame for each of the five steps.
    fn run(&self) -> [f64; 5] {
        let features = self.features;
        let (from, to) = (&self.transmit, &self.receive);
        for side in [from, to] {
            let rings = side.memory.table().regions()[0].slice(0, 0x8000);
            rings.expect("inside").write(&[0; 0x8000]);
        }
        let mut sender =
            TransmitDriver::new(from.driver(features), features, from.slots()).expect("a driver");
        let mut receiver =
            ReceiveDriver::new(to.driver(features), features, to.slots()).expect("a driver");
        receiver.post().expect("posted");
        receiver.queue().publish().expect("published");
        let (mut source, mut target) = (from.device(features), to.device(features));
        let mut delivery = ReceiveQueue::new(features, 8).expect("memory");
        let mut switch = switch();
        let mut taken: Vec<Taken> = (0..BATCH).map(|_| Taken::new()).collect();
        let frames: Vec<[u8; 64]> = (100..100 + BATCH)
            .map(|station| frame(station, 7))
            .collect();
        let mut times = [0_u128; 5];
        for _ in 0..BATCHES {
            let start = Instant::now();
            for frame in &frames {
                let frame = Frame::private(frame);
                let sent = sender.send(from.memory.table(), &Offload::NONE, &frame);
                assert!(sent.expect("sent"));
            }
            sender.queue().publish().expect("published");
            let sent = Instant::now();
            self.take(&mut source, &mut taken);
            let took = Instant::now();
            self.decide(&mut switch, &taken);
            let decided = Instant::now();
            self.fill(&mut target, &mut delivery, &taken);
            for taken in &taken {
                source.push(&taken.chain, 0).expect("pushed");
            }
            source.publish().expect("published");
            let filled = Instant::now();
            let mut bytes = [0; HEAD_LEN];
            let look = |received: Received<'_>| {
                black_box(received.frame.read_front(&mut bytes));
            };
            let batch = receiver.receive(to.memory.table(), u32::MAX, look);
            assert_eq!(batch.expect("a sound ring").frames, u32::from(BATCH));
            receiver.post().expect("posted");
            receiver.queue().publish().expect("published");
            sender.reclaim(from.memory.table()).expect("a sound ring");
            let received = Instant::now();
            let ends = [start, sent, took, decided, filled, received];
            for (total, ends) in times.iter_mut().zip(ends.windows(2)) {
                *total += ends[1].duration_since(ends[0]).as_nanos();
            }
        }
        times.map(|time| per(time, BATCHES * u32::from(BATCH)))
    }

    fn take(&self, source: &mut DeviceQueue<Window>, taken: &mut [Taken]) {
        let layout = HeaderLayout::of(self.features);
        let offloads = Offloads::to_device(self.features);
        let memory = &self.transmit.memory;
        source.refresh().expect("a sound ring");
        for Taken {
            chain,
            head,
            offload,
        } in taken
        {
            assert!(source.pop(&memory.guest, chain).expect("a sound chain"));
            let frame = take_transmit(chain, memory.table(), layout, head).expect("a header");
            *offload = frame
                .header
                .check(frame.len, offloads)
                .expect("a sound header");
        }
    }

    fn decide(&self, switch: &mut Switch, taken: &[Taken]) {
        let receiver = Receiver {
            offloads: Offloads::to_driver(self.features),
            mtu: 1500,
        };
        for taken in taken {
            let head = taken.head.bytes();
            let forward = switch.forward(1, head, 0);
            assert!(matches!(forward, Forward::One { port: 7, .. }));
            let len = u32::try_from(taken.chain.readable_len()).unwrap_or(u32::MAX);
            black_box(plan(&taken.offload, head, len, &receiver));
        }
    }

    fn fill(&self, target: &mut DeviceQueue<Window>, delivery: &mut ReceiveQueue, taken: &[Taken]) {
        let (table, space) = (self.transmit.memory.table(), &self.receive.memory.guest);
        target.refresh().expect("a sound ring");
        for taken in taken {
            let header = Header::of(&taken.offload);
            let frame = Frame::transmitted(&taken.head, &taken.chain, table);
            let filled = delivery.fill(target, space, Some(&header), &frame, |_| {});
            let one = Filled::Delivered { buffers: 1 };
            assert_eq!(filled.expect("a sound ring"), one);
        }
        delivery.finish(target).expect("a sound ring");
        target.publish().expect("published");
    }
}

/// A frame that was taken out of its queue.
struct Taken {
    chain: Chain,
    head: FrameHead,
    offload: Offload,
}

impl Taken {
    fn new() -> Self {
        Self {
            chain: Chain::new(8).expect("a chain"),
            head: FrameHead::default(),
            offload: Offload::NONE,
        }
    }
}
