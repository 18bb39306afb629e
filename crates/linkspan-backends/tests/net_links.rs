//! Links that go down and come up, and ports whose guests make work for others: each
//! guest is one of a real vhost-user connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use linkspan_backends::port::{
    Count, DropCause, Fabric, Kind, Mode, NetDevice, PortCounts, PortOptions, Running,
};
use linkspan_devices::net::features::{
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};
use linkspan_devices::net::header::{Gso, GsoKind, Offload, PartialChecksum};
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{NetOptions, OFFLOADS, Speed};
use linkspan_engine::{Budget, Device, Neighbours, Progress, Task, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use linkspan_testkit::{Options, Served, SharedMemory};
use linkspan_vhost::message::Request;

/// A network of guests, of which each has so many queue pairs.
struct Net {
    fabric: Arc<Fabric>,
    _running: Running,
    guests: Vec<Served>,
    workers: Arc<Workers>,
}

impl Net {
    fn new(mode: Mode, pairs: &[u16], workers: usize) -> Self {
        let workers = Arc::new(Workers::new(workers).unwrap());
        let ports = pairs.iter().map(|pairs| PortOptions {
            name: "guest".into(),
            kind: Kind::Guest { pairs: *pairs },
            vlans: PortVlans::Unaware,
            mtu: 1500,
            limit: None,
        });
        let fabric = Fabric::new(mode, ports.collect(), workers.count()).unwrap();
        let running = fabric.run(&workers).unwrap();
        let guests = (0..).zip(pairs).map(|(port, pairs)| {
            let options = NetOptions {
                mac: station(u8::try_from(port + 1).unwrap()),
                mtu: 1500,
                pairs: *pairs,
                queue_size: 1024,
                speed: Speed::default(),
                to_device: OFFLOADS,
                to_driver: OFFLOADS,
                control_queue: false,
            };
            let device = NetDevice::new(&fabric, port, options, Count::Pairs).unwrap();
            let device: Arc<dyn Device> = Arc::new(device);
            Served::device(tempfile::tempdir().unwrap(), device, Arc::clone(&workers))
        });
        let guests = guests.collect();
        Self {
            fabric,
            _running: running,
            guests,
            workers,
        }
    }

    #[track_caller]
    fn card(&self, port: usize, options: &CardOptions) -> Card {
        Card::bring_up(&self.guests[port].socket(), options).expect("a card")
    }

    fn counts(&self, port: u16) -> PortCounts {
        self.fabric.counts(port).unwrap()
    }
}

/// Whether a driver sees that its link is up (virtio 1.3 5.1.4).
fn link_is_up(card: &Card) -> bool {
    let ask = [&6_u32.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 6]].concat();
    let reply = card.front.ask(Request::GetConfig, &ask, &[]).unwrap();
    reply[12] & 1 != 0
}

#[track_caller]
fn expect_link(card: &Card, up: bool) {
    assert!(settled(|| link_is_up(card) == up), "the link is not {up}");
}

#[test]
fn a_link_of_a_pair_is_up_while_somebody_is_at_the_other_end() {
    let net = Net::new(Mode::Pair, &[2, 1], 2);
    let two = CardOptions {
        pairs: 2,
        ..CardOptions::default()
    };
    let mut a = net.card(0, &two);
    let mut requests = a.front.listen_to_requests().unwrap();
    for round in 0..3 {
        expect_link(&a, false);
        let mut b = net.card(1, &CardOptions::default());
        // Each is told when the other has come.
        assert!(settled(|| requests.has_message()), "{round}");
        expect_link(&a, true);
        expect_link(&b, true);
        let sent = frame(station(1), station(2), round, 100);
        a.send(1, &sent);
        assert_eq!(b.expect().1, sent);
        // As long as any of its queues takes frames it is there.
        a.enable(1, false).unwrap();
        assert!(link_is_up(&b));
        a.enable(0, false).unwrap();
        expect_link(&b, false);
        a.enable(0, true).unwrap();
        a.enable(1, true).unwrap();
        expect_link(&b, true);
        // The other goes, and that is told as well.
        requests = a.front.listen_to_requests().unwrap();
        drop(b);
        assert!(settled(|| requests.has_message()), "{round}");
        expect_link(&a, false);
        requests = a.front.listen_to_requests().unwrap();
    }
}

/// A ring that its driver broke takes nothing any more.
#[test]
fn a_guest_that_breaks_its_ring_is_not_there() {
    let net = Net::new(Mode::Pair, &[1, 1], 1);
    let options = CardOptions::default();
    let (a, b) = (net.card(0, &options), net.card(1, &options));
    expect_link(&a, true);
    b.pairs[0].break_ring(1);
    b.pairs[0].expect_broken(1);
    assert!(link_is_up(&a), "its other ring goes on");
    drop(b);
    expect_link(&a, false);
}

#[test]
fn links_at_a_switch_do_not_hang_on_others() {
    let net = Net::new(Mode::Switch, &[1, 1], 1);
    let a = net.card(0, &CardOptions::default());
    assert!(link_is_up(&a));
    drop(net.card(1, &CardOptions::default()));
    assert!(link_is_up(&a));
}

#[test]
fn a_link_that_is_taken_down_carries_nothing_until_it_is_up_again() {
    for mode in [Mode::Switch, Mode::Pair] {
        let net = Net::new(mode, &[1, 1], 1);
        let options = CardOptions::default();
        let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
        let requests = a.front.listen_to_requests().unwrap();
        // The switch knows where they are.
        let (there, back) = (
            frame(station(1), station(2), 0, 100),
            frame(station(2), station(1), 0, 100),
        );
        a.send(0, &there);
        assert_eq!(b.expect().1, there);
        b.send(0, &back);
        assert_eq!(a.expect().1, back);
        net.fabric.set_link(0, false);
        net.fabric.set_link(0, false);
        net.fabric.set_link(9, false);
        assert!(settled(|| requests.has_message()), "the driver is told");
        assert!(!link_is_up(&a) && !net.fabric.link_is_up(0));
        assert_eq!(
            link_is_up(&b),
            mode == Mode::Switch,
            "the other end of a pair"
        );
        let down = |port| net.counts(port).dropped(DropCause::Down);
        a.send(0, &frame(station(1), station(2), 1, 100));
        assert!(settled(|| down(0) == 1), "{:?}", net.counts(0));
        b.send(0, &frame(station(2), station(1), 2, 100));
        assert!(settled(|| down(0) == 2), "{:?}", net.counts(0));
        // What a guest does to its queues meanwhile changes nothing.
        a.enable(0, false).unwrap();
        a.enable(0, true).unwrap();
        b.send(0, &frame(station(2), station(1), 3, 100));
        assert!(settled(|| down(0) == 3), "{:?}", net.counts(0));
        net.fabric.set_link(0, true);
        assert!(link_is_up(&a) && link_is_up(&b));
        let sent = frame(station(2), station(1), 4, 100);
        b.send(0, &sent);
        assert_eq!(a.expect().1, sent, "and nothing of before");
        a.send(0, &sent);
        assert!(settled(|| net.counts(0).frames_in == 2));
    }
}

#[test]
fn memory_that_changes_is_no_reason_for_a_link_to_go_down() {
    let net = Net::new(Mode::Pair, &[1, 1], 1);
    let slots = CardOptions {
        front: Options {
            mem_slots: true,
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let (a, b) = (net.card(0, &slots), net.card(1, &slots));
    let more = SharedMemory::new(1 << 20, Gpa(1 << 40), Sealing::Fixed);
    for _ in 0..10 {
        b.front.add(&more).unwrap();
        assert!(link_is_up(&a));
        b.front.remove(&more).unwrap();
        assert!(link_is_up(&a));
    }
}

/// Keeps its worker until it is let go.
struct Stall {
    stalls: Sender<()>,
    over: Receiver<()>,
}

impl Task for Stall {
    fn run(&mut self, _: Budget, _: &mut Neighbours<'_>) -> (bool, Progress) {
        // Later ones may be of no interest to anybody, and find the other end closed.
        let _ = self.stalls.send(());
        let _ = self.over.recv();
        (false, Progress::Idle)
    }
}

/// A worker that does not come round has as many frames waiting as there is room for;
/// what goes beyond is counted, and no other guest waits.
#[test]
fn frames_for_a_worker_that_does_not_come_round_are_counted_and_hold_up_nobody() {
    const ROOM: u64 = 256;
    const FRAMES: u64 = 300;
    let net = Net::new(Mode::Switch, &[2, 1, 2], 2);
    let two = CardOptions {
        pairs: 2,
        size: 512,
        ..CardOptions::default()
    };
    let many = CardOptions {
        size: 512,
        buffers: 512,
        ..CardOptions::default()
    };
    let (mut a, mut b, mut c) = (net.card(0, &two), net.card(1, &many), net.card(2, &two));
    // All are known, on both workers.
    for (from, card) in [(2, &mut b), (3, &mut c)] {
        card.send(0, &frame(station(from), station(1), 0, 100));
        a.expect();
    }
    // The station that they talked to was not.
    b.expect();
    c.expect();
    let before = net.counts(1).frames_out;
    let (stalls, stalled) = mpsc::channel();
    let (go, over) = mpsc::channel();
    let key = net
        .workers
        .add(0, Box::new(Stall { stalls, over }))
        .unwrap();
    stalled.recv().unwrap();
    for mark in 0..FRAMES {
        let mark = mark.to_le_bytes()[0];
        a.send(1, &frame(station(1), station(2), mark, 100));
    }
    assert!(
        settled(|| net.counts(0).frames_in == FRAMES),
        "{:?}",
        net.counts(0)
    );
    let busy = |port| net.counts(port).dropped(DropCause::Busy);
    assert_eq!((busy(1), net.counts(1).frames_out), (FRAMES - ROOM, before));
    // Who has a queue on the other worker hears what is said.
    let mut heard = None;
    a.send(1, &frame(station(1), station(3), 7, 100));
    assert!(settled(|| {
        heard = c.pairs[1].poll();
        heard.is_some()
    }));
    drop(go);
    for mark in 0..ROOM {
        let mark = mark.to_le_bytes()[0];
        assert_eq!(b.expect().1, frame(station(1), station(2), mark, 100));
    }
    net.workers.stop(key);
    assert_eq!(
        (busy(1), net.counts(1).frames_out - before),
        (FRAMES - ROOM, ROOM)
    );
}

/// Frames that were for a port, whether there was room for them or not.
fn were_for(counts: &PortCounts) -> u64 {
    counts.frames_out + counts.dropped_all()
}

/// Looks in each of its worker's rounds how many frames there were for a port in the last.
struct Rounds {
    fabric: Arc<Fabric>,
    before: u64,
    most: Arc<AtomicU64>,
}

impl Task for Rounds {
    fn run(&mut self, _: Budget, _: &mut Neighbours<'_>) -> (bool, Progress) {
        let now = were_for(&self.fabric.counts(1).unwrap());
        let got = now - std::mem::replace(&mut self.before, now);
        self.most.fetch_max(got, Ordering::Relaxed);
        (false, Progress::More)
    }
}

/// A guest that leaves it to us to cut a frame into thousands has no more of its worker
/// than others: a pass ends with the frame that is beyond its budget.
#[test]
fn frames_that_are_cut_into_many_count_as_many() {
    /// Bytes of each segment: as little as can be said.
    const SEGMENT: u16 = 1;
    const PAYLOAD: u16 = 1500;
    /// What handling each of them counts for at least.
    const COST: u64 = 512;
    let net = Net::new(Mode::Pair, &[1, 1], 1);
    let large = CardOptions {
        slot_bytes: 16384,
        ..CardOptions::default()
    };
    let without = VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6 | VIRTIO_NET_F_GUEST_ECN;
    let plain = CardOptions {
        front: Options {
            without: without.bits(),
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let (mut a, _b) = (net.card(0, &large), net.card(1, &plain));
    let most = Arc::new(AtomicU64::new(0));
    let rounds = Rounds {
        fabric: Arc::clone(&net.fabric),
        before: 0,
        most: Arc::clone(&most),
    };
    let frame = tcp(PAYLOAD);
    let offload = Offload::Segments(Gso {
        kind: GsoKind::Tcp4,
        ecn: false,
        size: SEGMENT.try_into().unwrap(),
        header_len: 54,
        checksum: PartialChecksum {
            start: 34,
            offset: 16,
        },
    });
    let rounds = net.workers.add(0, Box::new(rounds)).unwrap();
    // All of them are there before the worker looks.
    let (stalls, stalled) = mpsc::channel();
    let (go, over) = mpsc::channel();
    let stall = net
        .workers
        .add(0, Box::new(Stall { stalls, over }))
        .unwrap();
    stalled.recv().unwrap();
    for _ in 0..16 {
        a.pairs[0].send(&offload, &frame);
    }
    drop(go);
    let cut = u64::from(PAYLOAD / SEGMENT);
    let all = || were_for(&net.counts(1)) == 16 * cut;
    assert!(settled(all), "{:?}", net.counts(1));
    net.workers.stop(stall);
    net.workers.stop(rounds);
    let passes = Budget::default().bytes / (cut * COST);
    let (most, bound) = (most.load(Ordering::Relaxed), (passes + 1) * cut);
    assert!(most <= bound && bound < 16 * cut, "{most} in one pass");
}

/// TCP over IPv4 with so many bytes.
fn tcp(payload: u16) -> Vec<u8> {
    let len = 40 + payload;
    let mut frame = frame(station(1), station(2), 0, len.into());
    frame[12..14].copy_from_slice(&[8, 0]);
    let [high, low] = len.to_be_bytes();
    frame[14..26].copy_from_slice(&[0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[46..48].copy_from_slice(&[0x50, 0x10]);
    frame
}
