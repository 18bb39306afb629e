//! Guests joined into a network: their cards are driven over real vhost-user
//! connections, by what is between them.

use std::sync::Arc;
use std::time::Instant;

use linkspan_backends::port::{
    Count, DropCause, Fabric, Kind, Mode, NetDevice, PortCounts, PortOptions, Running,
};
use linkspan_devices::net::features::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF,
};
use linkspan_devices::net::frame::Responder;
use linkspan_devices::net::header::{Checksum, Gso, GsoKind, Offload, PartialChecksum};
use linkspan_devices::net::offload::pseudo_header_sum;
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{Mac, NetOptions, OFFLOADS, Speed, Sum, VlanSet};
use linkspan_engine::{Device, Rate, RateLimit, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::settled;
use linkspan_testkit::front_end::state;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use linkspan_testkit::{Options, Refused, Served, SharedMemory};
use linkspan_vhost::message::Request;
use linkspan_virtio::Features;

/// A network with guests at its ports, on so many workers.
struct Net {
    fabric: Arc<Fabric>,
    _running: Running,
    guests: Vec<Served>,
    _workers: Arc<Workers>,
}

fn card_options(number: u16, pairs: u16) -> NetOptions {
    NetOptions {
        mac: station(u8::try_from(number).unwrap()),
        mtu: 1500,
        pairs,
        queue_size: 1024,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: false,
    }
}

impl Net {
    fn new(mode: Mode, ports: u16, pairs: u16, workers: usize) -> Self {
        Self::with(mode, ports, pairs, workers, |_| PortVlans::Unaware)
    }

    /// One guest with three pairs.
    fn counting(count: Count) -> Self {
        let (vlans, limit) = (|_| PortVlans::Unaware, || None);
        Self::of(Mode::Sink, (1, 3, 1), vlans, limit, count)
    }

    /// Two guests that may send only so much.
    fn limited(limit: impl Fn() -> Option<RateLimit>) -> Self {
        let vlans = |_| PortVlans::Unaware;
        Self::of(Mode::Pair, (2, 1, 1), vlans, limit, Count::Pairs)
    }

    fn with(
        mode: Mode,
        ports: u16,
        pairs: u16,
        workers: usize,
        vlans: impl Fn(u16) -> PortVlans,
    ) -> Self {
        Self::of(mode, (ports, pairs, workers), vlans, || None, Count::Pairs)
    }

    fn of(
        mode: Mode,
        (ports, pairs, workers): (u16, u16, usize),
        vlans: impl Fn(u16) -> PortVlans,
        limit: impl Fn() -> Option<RateLimit>,
        count: Count,
    ) -> Self {
        let workers = Arc::new(Workers::new(workers).unwrap());
        let options = (0..ports).map(|port| PortOptions {
            name: format!("guest{port}"),
            kind: Kind::Guest { pairs },
            vlans: vlans(port),
            mtu: 1500,
            limit: limit(),
        });
        let fabric = Fabric::new(mode, options.collect(), workers.count()).unwrap();
        let running = fabric.run(&workers).unwrap();
        let guests = (0..ports).map(|port| {
            let device = NetDevice::new(&fabric, port, card_options(port + 1, pairs), count);
            let device: Arc<dyn Device> = Arc::new(device.unwrap());
            Served::device(tempfile::tempdir().unwrap(), device, Arc::clone(&workers))
        });
        let guests = guests.collect();
        Self {
            fabric,
            _running: running,
            guests,
            _workers: workers,
        }
    }

    #[track_caller]
    fn card(&self, port: usize, options: &CardOptions) -> Card {
        Card::bring_up(&self.guests[port].socket(), options).expect("a card")
    }

    fn counts(&self, port: u16) -> PortCounts {
        self.fabric.counts(port).unwrap()
    }

    #[track_caller]
    fn expect_dropped(&self, port: u16, why: DropCause, count: u64) {
        let there = settled(|| self.counts(port).dropped(why) == count);
        assert!(there, "{:?} instead of {count} {why:?}", self.counts(port));
    }
}

/// Split and packed, in order or not, with mergeable buffers or without.
fn ways() -> Vec<Options> {
    let (order, merge) = (Features::VIRTIO_F_IN_ORDER, VIRTIO_NET_F_MRG_RXBUF);
    let ways = [Features::empty(), order, merge, order | merge];
    let ways = ways.into_iter().flat_map(|without| {
        [false, true].map(|packed| Options {
            without: without.bits(),
            packed,
            ..Options::default()
        })
    });
    ways.collect()
}

#[test]
fn frames_arrive_as_they_were_sent_over_every_kind_of_ring() {
    for front in ways() {
        let net = Net::new(Mode::Switch, 2, 1, 1);
        let options = CardOptions {
            front,
            ..CardOptions::default()
        };
        let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
        for round in 0..16 {
            for len in [46, 60, 100, 1000, 1500] {
                let there = frame(station(1), station(2), round, len);
                a.send(0, &there);
                assert_eq!(b.expect().1, there, "{front:?}");
                let back = frame(station(2), station(1), round, len);
                b.send(0, &back);
                assert_eq!(a.expect().1, back, "{front:?}");
            }
        }
        for port in 0..2 {
            let counts = net.counts(port);
            assert_eq!((counts.frames_in, counts.frames_out), (80, 80));
            assert_eq!(counts.dropped_all(), 0, "{counts:?}");
        }
        // Only the first was for somebody of whom nothing was known.
        assert_eq!(net.counts(0).flooded, 1);
        assert_eq!(net.counts(1).flooded, 0);
    }
}

const EVERYBODY: Mac = Mac::BROADCAST;

#[test]
fn frames_for_nobody_known_go_to_all_and_for_a_known_one_to_nobody_else() {
    let net = Net::new(Mode::Switch, 3, 1, 1);
    let mut cards = [0, 1, 2].map(|port| net.card(port, &CardOptions::default()));
    let hello = frame(station(1), station(2), 1, 100);
    cards[0].send(0, &hello);
    assert_eq!(cards[1].expect().1, hello);
    assert_eq!(cards[2].expect().1, hello);
    let answer = frame(station(2), station(1), 2, 100);
    cards[1].send(0, &answer);
    assert_eq!(cards[0].expect().1, answer);
    for mark in 3..30 {
        let known = frame(station(1), station(2), mark, 100);
        cards[0].send(0, &known);
        assert_eq!(cards[1].expect().1, known);
    }
    // What the third guest hears next is what is for everybody.
    let all = frame(station(1), EVERYBODY, 99, 100);
    cards[0].send(0, &all);
    assert_eq!(cards[2].expect().1, all);
    assert_eq!(cards[1].expect().1, all);
    // A station that moves is found where it is.
    let moved = frame(station(2), station(1), 100, 100);
    cards[2].send(0, &moved);
    assert_eq!(cards[0].expect().1, moved);
    let there = frame(station(1), station(2), 101, 100);
    cards[0].send(0, &there);
    assert_eq!(cards[2].expect().1, there);
    assert_eq!(cards[1].poll(), None);
    assert_eq!(net.counts(0).flooded, 2);
}

/// Taken out of their queue at once, since it rests until all of them are there.
#[test]
fn frames_of_one_batch_go_their_ways_in_order() {
    for front in ways() {
        let net = Net::new(Mode::Switch, 3, 1, 1);
        let options = CardOptions {
            front,
            ..CardOptions::default()
        };
        let mut cards = [0, 1, 2].map(|port| net.card(port, &options));
        for (port, number) in [(1, 2), (2, 3)] {
            let hello = frame(station(number), station(1), 0, 60);
            cards[port].send(0, &hello);
            assert_eq!(cards[0].expect().1, hello);
            assert_eq!(cards[3 - port].expect().1, hello);
        }
        cards[0].enable(0, false).unwrap();
        let batch: Vec<_> = (0..35)
            .map(|mark| {
                let to = [2, 3, 9, 2, 2][usize::from(mark) % 5];
                let len = [46, 1400, 94, 95, 300, 60, 61][usize::from(mark) % 7];
                (to, frame(station(1), station(to), mark, len))
            })
            .collect();
        for (_, frame) in &batch {
            cards[0].send(0, frame);
        }
        cards[0].enable(0, true).unwrap();
        for (port, number) in [(1, 2), (2, 3)] {
            for (_, frame) in batch.iter().filter(|(to, _)| [number, 9].contains(to)) {
                assert_eq!(&cards[port].expect().1, frame, "{front:?}");
            }
            assert_eq!(cards[port].poll(), None);
        }
        let counts = net.counts(0);
        assert_eq!((counts.frames_in, counts.flooded), (35, 7));
        assert_eq!(counts.dropped_all(), 0, "{counts:?}");
    }
}

#[test]
fn each_worker_has_its_pairs_and_all_know_where_stations_are() {
    let net = Net::new(Mode::Switch, 2, 2, 2);
    let options = CardOptions {
        pairs: 2,
        ..CardOptions::default()
    };
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    for mark in 0..20 {
        for pair in 0..2 {
            let there = frame(station(1), station(2), mark, 200);
            a.send(pair, &there);
            assert_eq!(b.expect(), (pair, there), "a frame stays on its worker");
            // The other worker has heard of the station.
            let back = frame(station(2), station(1), mark, 200);
            b.send(1 - pair, &back);
            assert_eq!(a.expect(), (1 - pair, back));
        }
    }
    assert_eq!(net.counts(0).flooded, 1, "the answers taught both workers");
    assert_eq!(net.counts(1).flooded, 0);
    assert_eq!(net.counts(0).dropped_all() + net.counts(1).dropped_all(), 0);
}

#[test]
fn a_pair_that_is_disabled_gets_nothing_and_another_gets_it_instead() {
    let net = Net::new(Mode::Pair, 2, 2, 2);
    let options = CardOptions {
        pairs: 2,
        ..CardOptions::default()
    };
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    let mut mark = 0;
    let mut arrives_on = |pair: usize, b: &mut Card| {
        mark += 1;
        let sent = frame(station(1), station(2), mark, 300);
        a.send(0, &sent);
        assert_eq!(b.expect(), (pair, sent));
    };
    for _ in 0..3 {
        arrives_on(0, &mut b);
        b.enable(0, false).unwrap();
        for _ in 0..20 {
            // Through the mailbox of the other worker.
            arrives_on(1, &mut b);
        }
        b.enable(0, true).unwrap();
    }
    b.enable(0, false).unwrap();
    b.enable(1, false).unwrap();
    for mark in 0..10 {
        a.send(0, &frame(station(1), station(2), mark, 300));
    }
    net.expect_dropped(1, DropCause::Down, 10);
    assert_eq!(b.poll(), None);
}

#[test]
fn a_guest_without_buffers_loses_frames_and_nobody_else_does() {
    for packed in [false, true] {
        let net = Net::new(Mode::Switch, 3, 1, 1);
        let front = Options {
            packed,
            ..Options::default()
        };
        let few = CardOptions {
            buffers: 4,
            front,
            ..CardOptions::default()
        };
        let options = CardOptions {
            front,
            ..CardOptions::default()
        };
        let mut a = net.card(0, &options);
        let mut poor = net.card(1, &few);
        let mut rich = net.card(2, &options);
        for mark in 0..10 {
            let all = frame(station(1), EVERYBODY, mark, 100);
            a.send(0, &all);
            assert_eq!(rich.expect().1, all);
        }
        net.expect_dropped(1, DropCause::NoBuffers, 6);
        for mark in 0..4 {
            assert_eq!(poor.expect().1, frame(station(1), EVERYBODY, mark, 100));
        }
        // It has buffers again, and gets frames again.
        let all = frame(station(1), EVERYBODY, 50, 100);
        a.send(0, &all);
        assert_eq!(poor.expect().1, all);
        assert_eq!(net.counts(2).dropped_all(), 0);
    }
}

#[test]
fn buffers_that_did_not_suffice_go_back_when_the_queue_stops() {
    let net = Net::new(Mode::Pair, 2, 1, 1);
    let small = CardOptions {
        buffers: 4,
        slot_bytes: 256,
        ..CardOptions::default()
    };
    let (mut a, mut b) = (net.card(0, &CardOptions::default()), net.card(1, &small));
    let long = frame(station(1), station(2), 1, 1400);
    a.send(0, &long);
    net.expect_dropped(1, DropCause::NoBuffers, 1);
    // All four were taken, and none is used.
    assert_eq!(b.front.stop(0).unwrap(), 0);
    assert_eq!(b.poll(), None);
    a.send(0, &long);
    net.expect_dropped(1, DropCause::Down, 1);
}

/// rust-vmm vhost #375: such a ring was not seen before its driver kicked, and the
/// driver of a receive queue has no reason to.
#[test]
fn a_receive_queue_that_starts_again_gets_frames_without_a_kick() {
    let net = Net::new(Mode::Pair, 2, 1, 1);
    let options = CardOptions::default();
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    for mark in 0..5 {
        let sent = frame(station(1), station(2), mark, 100);
        a.send(0, &sent);
        assert_eq!(b.expect().1, sent);
        b.pairs[0].restart(&b.front, 0, None);
    }
}

/// DPDK's virtio-user says 0 to a back end that takes the place of a lost one, and
/// its own `net_vhost` goes on behind what was used.
#[test]
fn a_ring_whose_driver_does_not_know_where_it_stands_goes_on() {
    let net = Net::new(Mode::Pair, 2, 1, 1);
    let options = CardOptions::default();
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    for mark in 0..200 {
        let sent = frame(station(1), station(2), mark, 100);
        a.send(0, &sent);
        assert_eq!(b.expect().1, sent);
        if mark % 50 == 49 {
            a.pairs[0].restart(&a.front, 1, Some(0));
            b.pairs[0].restart(&b.front, 0, Some(0));
        }
    }
    assert_eq!(net.counts(0).dropped_all() + net.counts(1).dropped_all(), 0);
}

/// Two pieces behind each other make a frame; what is behind the first bytes is taken
/// out as well.
#[test]
fn a_sink_looks_at_frames_of_any_length() {
    let net = Net::new(Mode::Sink, 1, 1, 1);
    let small = CardOptions {
        slot_bytes: 256,
        ..CardOptions::default()
    };
    let mut card = net.card(0, &small);
    for len in [46, 100, 1500] {
        card.send(0, &frame(station(1), station(2), 1, len));
        card.send(0, &frame(EVERYBODY, station(2), 1, len));
    }
    net.expect_dropped(0, DropCause::Source, 3);
    assert_eq!(net.counts(0).frames_in, 6);
    assert_eq!(net.counts(0).dropped_all(), 3);
}

#[test]
fn frames_that_cannot_be_are_counted_and_go_nowhere() {
    let net = Net::new(Mode::Switch, 2, 1, 1);
    let options = CardOptions::default();
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    let sound = frame(station(1), station(2), 1, 100);
    let outside = Offload::Whole(Checksum::Partial(PartialChecksum {
        start: 112,
        offset: 2,
    }));
    a.pairs[0].send(&outside, &sound);
    a.send(0, &sound[..13]);
    net.expect_dropped(0, DropCause::Header, 2);
    a.send(0, &frame(EVERYBODY, station(2), 1, 100));
    a.send(0, &frame(Mac::default(), station(2), 1, 100));
    net.expect_dropped(0, DropCause::Source, 2);
    a.send(0, &frame(station(1), Mac([1, 0x80, 0xC2, 0, 0, 2]), 1, 100));
    net.expect_dropped(0, DropCause::Reserved, 1);
    a.send(0, &frame(station(1), station(2), 1, 1501));
    net.expect_dropped(1, DropCause::TooLong, 1);
    a.send(0, &sound);
    assert_eq!(b.expect().1, sound, "nothing else came before it");
}

/// Each is counted at the port that it came from, but for what the receiver lacks.
#[test]
fn frames_that_go_nowhere_are_counted_where_they_came_from() {
    let net = Net::new(Mode::Switch, 2, 1, 1);
    let small = CardOptions {
        slot_bytes: 256,
        front: Options {
            without: VIRTIO_NET_F_MRG_RXBUF.bits(),
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let (mut a, mut b) = (net.card(0, &CardOptions::default()), net.card(1, &small));
    let causes = [DropCause::SamePort, DropCause::SmallBuffers];
    let mut expected = [[0; 2]; 2];
    let here = frame(station(1), EVERYBODY, 1, 100);
    a.send(0, &here);
    assert_eq!(b.expect().1, here);
    let there = frame(station(2), station(1), 1, 100);
    b.send(0, &there);
    assert_eq!(a.expect().1, there);
    for (frame, port, cause) in [
        // At home already, and to itself.
        (frame(station(3), station(1), 1, 100), 0, 0),
        (frame(station(1), station(1), 1, 100), 0, 0),
        (frame(station(1), station(2), 1, 400), 1, 1),
        (frame(station(3), EVERYBODY, 1, 400), 1, 1),
    ] {
        a.send(0, &frame);
        expected[port][cause] += 1;
        let now = || [0, 1].map(|port| causes.map(|cause| net.counts(port).dropped(cause)));
        assert!(
            settled(|| now() == expected),
            "{:?} is not {expected:?}",
            now()
        );
    }
    a.send(0, &frame(station(1), station(2), 2, 200));
    assert_eq!(
        b.expect().1,
        frame(station(1), station(2), 2, 200),
        "it goes on"
    );
}

#[test]
fn a_ring_that_is_broken_ends_and_all_others_go_on() {
    let net = Net::new(Mode::Switch, 3, 1, 1);
    let options = CardOptions::default();
    let mut cards = [0, 1, 2].map(|port| net.card(port, &options));
    cards[0].pairs[0].break_ring(1);
    cards[0].pairs[0].expect_broken(1);
    // A receive queue is looked at when there is something for it.
    cards[1].pairs[0].break_ring(0);
    let all = frame(station(3), EVERYBODY, 1, 100);
    cards[2].send(0, &all);
    cards[1].pairs[0].expect_broken(0);
    assert_eq!(cards[0].expect().1, all);
    let answer = frame(station(2), station(3), 2, 100);
    cards[1].send(0, &answer);
    assert_eq!(cards[2].expect().1, answer);
    let before = net.counts(1).dropped(DropCause::Down);
    cards[2].send(0, &frame(station(3), station(2), 3, 100));
    net.expect_dropped(1, DropCause::Down, before + 1);
    // A new connection has sound rings.
    let [a, broken, mut c] = cards;
    drop((a, broken));
    let mut b = net.card(1, &options);
    let again = frame(station(3), station(2), 4, 100);
    c.send(0, &again);
    assert_eq!(b.expect().1, again);
}

#[test]
fn a_guest_that_leaves_and_comes_back_is_found_again() {
    let net = Net::new(Mode::Switch, 2, 1, 1);
    let options = CardOptions::default();
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    for round in 0..3 {
        let there = frame(station(1), station(2), round, 100);
        let back = frame(station(2), station(1), round, 100);
        b.send(0, &back);
        assert_eq!(a.expect().1, back);
        a.send(0, &there);
        assert_eq!(b.expect().1, there);
        net.guests[1].forget_events();
        drop(b);
        assert!(!net.guests[1].next_end().1);
        a.send(0, &there);
        net.expect_dropped(1, DropCause::Down, u64::from(round) + 1);
        b = net.card(1, &options);
    }
}

#[test]
fn an_announcement_goes_to_all_others_and_is_learned() {
    let net = Net::new(Mode::Switch, 3, 1, 1);
    let options = CardOptions::default();
    let mut cards = [0, 1, 2].map(|port| net.card(port, &options));
    let arrival = station(77);
    let mut payload = [0; 8];
    payload[..6].copy_from_slice(&arrival.0);
    let front = &cards[0].front;
    front.tell(Request::SendRarp, &payload, &[]).unwrap();
    for card in &mut cards[1..] {
        let (_, rarp) = card.expect();
        assert_eq!(Mac::destination(&rarp), EVERYBODY);
        assert_eq!(Mac::source(&rarp), arrival);
        assert_eq!(rarp[12..14], [0x80, 0x35]);
    }
    let to_it = frame(station(2), arrival, 1, 100);
    cards[1].send(0, &to_it);
    assert_eq!(cards[0].expect().1, to_it);
    assert_eq!(cards[2].poll(), None);
    assert_eq!(net.counts(1).flooded, 0);
    // Nobody has the address of a group.
    let refused = cards[0].front.tell(Request::SendRarp, &[0xFF; 8], &[]);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
}

#[test]
fn the_mtu_that_a_front_end_sets_holds_for_its_guest() {
    let net = Net::new(Mode::Pair, 2, 1, 1);
    let options = CardOptions::default();
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    let mtu = |card: &Card| {
        // The field at offset 10.
        let ask = [&10_u32.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 6]].concat();
        let reply = card.front.ask(Request::GetConfig, &ask, &[]).unwrap();
        u16::from_le_bytes([reply[12], reply[13]])
    };
    assert_eq!(mtu(&b), 1500);
    let long = frame(station(1), station(2), 1, 1401);
    a.send(0, &long);
    assert_eq!(b.expect().1, long);
    let set = |mtu: u64| b.front.tell(Request::NetSetMtu, &mtu.to_le_bytes(), &[]);
    set(1400).unwrap();
    for wrong in [0, 67, 65536, u64::MAX] {
        let refused = set(wrong);
        assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
    }
    assert_eq!((mtu(&a), mtu(&b)), (1500, 1400));
    a.send(0, &long);
    net.expect_dropped(1, DropCause::TooLong, 1);
    let fits = frame(station(1), station(2), 2, 1400);
    a.send(0, &fits);
    assert_eq!(b.expect().1, fits);
}

#[test]
fn queues_are_counted_either_way_and_none_is_there_beyond_them() {
    for (count, answer) in [(Count::Pairs, 3_u64), (Count::Rings, 6)] {
        let net = Net::counting(count);
        let mut front = net.guests[0].connect();
        front.negotiate(&Options::default()).unwrap();
        let reply = front.ask(Request::GetQueueNum, &[], &[]).unwrap();
        assert_eq!(reply, answer.to_le_bytes());
        front
            .tell(Request::SetVringNum, &state(5, 64), &[])
            .unwrap();
        let refused = front.tell(Request::SetVringNum, &state(6, 64), &[]);
        assert!(refused.is_err(), "there is no seventh ring");
    }
}

#[test]
fn queues_beyond_the_first_pair_need_the_feature() {
    let net = Net::new(Mode::Pair, 2, 2, 1);
    let front = Options {
        without: VIRTIO_NET_F_MQ.bits(),
        ..Options::default()
    };
    let options = CardOptions {
        pairs: 2,
        front,
        ..CardOptions::default()
    };
    let refused = Card::bring_up(&net.guests[0].socket(), &options);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
}

#[test]
fn what_a_guest_does_not_do_itself_is_done_for_it() {
    for offloads in [true, false] {
        let net = Net::new(Mode::Pair, 2, 1, 1);
        let without = if offloads {
            Features::empty()
        } else {
            VIRTIO_NET_F_GUEST_CSUM
                | VIRTIO_NET_F_GUEST_TSO4
                | VIRTIO_NET_F_GUEST_TSO6
                | VIRTIO_NET_F_GUEST_ECN
                | VIRTIO_NET_F_GUEST_USO4
                | VIRTIO_NET_F_GUEST_USO6
        };
        let less = CardOptions {
            front: Options {
                without: without.bits(),
                ..Options::default()
            },
            ..CardOptions::default()
        };
        let (mut a, mut b) = (net.card(0, &CardOptions::default()), net.card(1, &less));
        // TCP over IPv4 with 3000 bytes, to be cut into segments of 1000.
        let (ip, tcp) = (14, 34);
        let mut large = frame(station(1), station(2), 0, 40 + 3000);
        large[12..14].copy_from_slice(&[8, 0]);
        large[ip..ip + 12].copy_from_slice(&[0x45, 0, 0x0B, 0xE0, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        large[ip + 12..ip + 20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        large[tcp + 12..tcp + 14].copy_from_slice(&[0x50, 0x10]);
        let pseudo = pseudo_header_sum(&[10, 0, 0, 1], &[10, 0, 0, 2], 6, 3020);
        large[tcp + 16..tcp + 18].copy_from_slice(&pseudo);
        let offload = Offload::Segments(Gso {
            kind: GsoKind::Tcp4,
            ecn: false,
            size: 1000.try_into().unwrap(),
            header_len: 54,
            checksum: PartialChecksum {
                start: 34,
                offset: 16,
            },
        });
        a.pairs[0].send(&offload, &large);
        let mut take = || {
            let mut got = None;
            let pair = &mut b.pairs[0];
            assert!(settled(|| {
                got = pair.poll();
                got.is_some()
            }));
            got.unwrap()
        };
        if offloads {
            assert_eq!(take(), (offload, large));
            continue;
        }
        for part in 0..3 {
            let (left, segment) = take();
            assert_eq!(left, Offload::NONE);
            assert_eq!(segment[54..], large[54 + part * 1000..][..1000]);
            let pseudo = pseudo_header_sum(&[10, 0, 0, 1], &[10, 0, 0, 2], 6, 1020);
            let sum = Sum::default().with(&pseudo).with(&segment[tcp..]);
            assert_eq!(sum.folded(), [0xFF, 0xFF], "the checksum is complete");
        }
    }
}

#[test]
fn guests_of_different_vlans_do_not_hear_each_other() {
    let vlan = |port| PortVlans::Access(if port == 2 { 8 } else { 7 });
    let net = Net::with(Mode::Switch, 3, 1, 1, vlan);
    let mut cards = [0, 1, 2].map(|port| net.card(port, &CardOptions::default()));
    for mark in 0..5 {
        let all = frame(station(1), EVERYBODY, mark, 100);
        cards[0].send(0, &all);
        assert_eq!(cards[1].expect().1, all);
    }
    let other = frame(station(3), EVERYBODY, 9, 100);
    cards[2].send(0, &other);
    assert!(settled(|| net.counts(2).frames_in == 1));
    // What the others hear next is what one of them says.
    let all = frame(station(1), EVERYBODY, 10, 100);
    cards[0].send(0, &all);
    assert_eq!(cards[1].expect().1, all);
    assert_eq!((cards[0].poll(), cards[2].poll()), (None, None));
}

/// Tags are put on and taken off on the way, by either kind of port.
#[test]
fn a_trunk_carries_the_tags_of_its_vlans() {
    let mut allowed = VlanSet::NONE;
    allowed.set(7, true);
    let vlans = |port| match port {
        0 => PortVlans::Access(7),
        1 => PortVlans::Access(8),
        _ => PortVlans::Trunk {
            native: Some(8),
            allowed: allowed.clone(),
        },
    };
    let net = Net::with(Mode::Switch, 3, 1, 1, vlans);
    let mut cards = [0, 1, 2].map(|port| net.card(port, &CardOptions::default()));
    let tagged = |mut frame: Vec<u8>, vlan: u8| {
        frame.splice(12..12, [0x81, 0, 0, vlan]);
        frame
    };
    for (mark, len) in [(1, 60), (2, 110), (3, 1500)] {
        let all = frame(station(1), EVERYBODY, mark, len);
        cards[0].send(0, &all);
        assert_eq!(cards[2].expect().1, tagged(all, 7));
        let back = frame(station(3), station(1), mark, len);
        cards[2].send(0, &tagged(back.clone(), 7));
        assert_eq!(cards[0].expect().1, back);
        // Its own VLAN goes without.
        let all = frame(station(2), EVERYBODY, mark, len);
        cards[1].send(0, &all);
        assert_eq!(cards[2].expect().1, all);
    }
    // One that it does not carry.
    cards[2].send(0, &tagged(frame(station(3), EVERYBODY, 1, 60), 9));
    net.expect_dropped(2, DropCause::Vlan, 1);
    assert_eq!((cards[0].poll(), cards[1].poll()), (None, None));
}

#[test]
fn frames_come_back_go_nowhere_or_come_by_themselves() {
    let options = CardOptions::default();
    let net = Net::new(Mode::Echo, 1, 1, 1);
    let mut card = net.card(0, &options);
    card.send(0, &frame(station(1), station(2), 5, 500));
    assert_eq!(card.expect().1, frame(station(2), station(1), 5, 500));

    let net = Net::new(Mode::Sink, 2, 1, 1);
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    for mark in 0..200 {
        a.send(0, &frame(station(1), EVERYBODY, mark, 500));
    }
    assert!(settled(|| net.counts(0).frames_in == 200));
    assert_eq!((a.poll(), b.poll()), (None, None));

    let net = Net::new(Mode::Source, 2, 2, 2);
    let options = CardOptions {
        pairs: 2,
        ..options
    };
    let mut cards = [0, 1].map(|port| net.card(port, &options));
    for card in &mut cards {
        let mut got = [0; 2];
        while got[0] < 100 || got[1] < 100 {
            let (pair, frame) = card.expect();
            assert_eq!(frame.len(), 64);
            got[pair] += 1;
        }
    }
}

#[test]
fn a_host_that_is_not_there_answers() {
    let workers = Arc::new(Workers::new(1).unwrap());
    let port = |name: &str, kind| PortOptions {
        name: name.into(),
        kind,
        vlans: PortVlans::Unaware,
        mtu: 1500,
        limit: None,
    };
    let host = Responder {
        mac: station(200),
        address: [10, 0, 2, 2],
        lease: None,
    };
    let ports = vec![
        port("guest", Kind::Guest { pairs: 1 }),
        port("host", Kind::Responder(host)),
        port("another", Kind::Responder(host)),
    ];
    let fabric = Fabric::new(Mode::Switch, ports, 1).unwrap();
    let _running = fabric.run(&workers).unwrap();
    let device = NetDevice::new(&fabric, 0, card_options(1, 1), Count::Pairs).unwrap();
    let wrong = NetDevice::new(&fabric, 1, card_options(1, 1), Count::Pairs);
    assert!(wrong.unwrap_err().to_string().contains("port 1 is not"));
    let guest = Served::device(tempfile::tempdir().unwrap(), Arc::new(device), workers);
    let mut card = Card::bring_up(&guest.socket(), &CardOptions::default()).unwrap();
    let mut request = frame(station(1), EVERYBODY, 0, 28);
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&station(1).0);
    request[28..32].copy_from_slice(&[10, 0, 2, 15]);
    request[38..42].copy_from_slice(&[10, 0, 2, 2]);
    card.send(0, &request);
    let (_, reply) = card.expect();
    assert_eq!(reply[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    assert_eq!(reply[22..28], station(200).0);
    assert_eq!(Mac::destination(&reply), station(1));
    // Nobody else is that host.
    card.send(0, &frame(station(200), EVERYBODY, 0, 28));
    card.send(0, &request);
    let (_, reply) = card.expect();
    assert_eq!(Mac::source(&reply), station(200));
    assert!(settled(|| fabric
        .counts(0)
        .unwrap()
        .dropped(DropCause::Spoofed)
        == 1));
}

#[test]
fn a_guest_at_its_limit_waits_and_loses_nothing() {
    let limit = || {
        let rate = Rate::per_second(50, Some(2));
        RateLimit::new(Instant::now(), Some(rate), None)
    };
    let net = Net::limited(limit);
    let options = CardOptions::default();
    let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
    for mark in 0..12 {
        a.send(0, &frame(station(1), station(2), mark, 100));
    }
    for mark in 0..12 {
        assert_eq!(b.expect().1, frame(station(1), station(2), mark, 100));
    }
    assert_eq!(net.counts(0).dropped_all(), 0);
}

#[test]
fn memory_may_change_while_frames_come() {
    let net = Net::new(Mode::Pair, 2, 1, 1);
    let slots = CardOptions {
        front: Options {
            mem_slots: true,
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let (mut a, mut b) = (net.card(0, &slots), net.card(1, &slots));
    let more = SharedMemory::new(1 << 20, Gpa(1 << 40), Sealing::Fixed);
    for mark in 0..20 {
        let sent = frame(station(1), station(2), mark, 1000);
        a.send(0, &sent);
        assert_eq!(b.expect().1, sent);
        if mark % 2 == 0 {
            b.front.add(&more).unwrap();
            a.front.add(&more).unwrap();
        } else {
            b.front.remove(&more).unwrap();
            a.front.remove(&more).unwrap();
        }
    }
}
