//! The control queue of a guest at a port, from the wire on: our own driver asks,
//! and what it asked for holds for the frames that others send.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use linkspan_backends::nic::{
    Nic, NicControl, NicError, NicLayout, NicOptions, NicPair, Wanted, control_ring,
};
use linkspan_backends::port::{
    Count, DropCause, Fabric, Kind, Mode, NetDevice, PortCounts, PortOptions, Running,
};
use linkspan_devices::net::control::{Command, ControlError, HashConfig, MacList, RssConfig};
use linkspan_devices::net::features::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS,
};
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{Mac, NetInfo, NetOptions, OFFLOADS, ReceiveModes, Speed, Toeplitz};
use linkspan_engine::vhost_user::{self, Connection, Link, Reach};
use linkspan_engine::{Device, Workers};
use linkspan_sys::EventFd;
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, Control, frame, station};
use linkspan_testkit::{Options, Refused, Served};
use linkspan_vhost::frontend::QueueUnit;
use linkspan_vhost::message::Request;
use linkspan_virtio::Features;

/// Two ports that get what the other sends; the first has a control queue.
struct Net {
    fabric: Arc<Fabric>,
    _running: Running,
    guests: Vec<Served>,
    _workers: Arc<Workers>,
}

const PAIRS: u16 = 3;

impl Net {
    fn new(count: Count) -> Self {
        let workers = Arc::new(Workers::new(2).unwrap());
        let port = |name: &str| PortOptions {
            name: name.into(),
            kind: Kind::Guest { pairs: PAIRS },
            vlans: PortVlans::Unaware,
            mtu: 1500,
            limit: None,
        };
        let ports = vec![port("with"), port("without")];
        let fabric = Fabric::new(Mode::Pair, ports, 2).unwrap();
        let running = fabric.run(&workers).unwrap();
        let guests = [true, false]
            .into_iter()
            .enumerate()
            .map(|(port, control)| {
                let options = NetOptions {
                    mac: station(u8::try_from(port).unwrap() + 1),
                    mtu: 1500,
                    pairs: PAIRS,
                    queue_size: 256,
                    speed: Speed::default(),
                    to_device: OFFLOADS,
                    to_driver: OFFLOADS,
                    control_queue: control,
                };
                let port = u16::try_from(port).unwrap();
                let device = NetDevice::new(&fabric, port, options, count).unwrap();
                let device: Arc<dyn Device> = Arc::new(device);
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

    fn socket(&self) -> PathBuf {
        self.guests[0].socket()
    }

    fn counts(&self) -> PortCounts {
        self.fabric.counts(0).unwrap()
    }

    fn refused(&self, name: &str) -> u64 {
        let at = ControlError::NAMES.iter().position(|known| *known == name);
        self.counts().refused[at.unwrap()]
    }

    #[track_caller]
    fn sender(&self) -> Card {
        let options = CardOptions {
            pairs: PAIRS,
            ..CardOptions::default()
        };
        Card::bring_up(&self.guests[1].socket(), &options).unwrap()
    }

    /// A card with its control queue running.
    #[track_caller]
    fn receiver(&self, packed: bool) -> (Card, Control) {
        let options = CardOptions {
            pairs: PAIRS,
            front: Options {
                packed,
                ..Options::default()
            },
            ..CardOptions::default()
        };
        let mut card = Card::bring_up(&self.socket(), &options).unwrap();
        let control = Control::start(&mut card, 2 * PAIRS).unwrap();
        (card, control)
    }

    #[track_caller]
    fn expect_filtered(&self, count: u64) {
        let there = settled(|| self.counts().dropped(DropCause::Filtered) == count);
        assert!(there, "{:?}", self.counts());
    }
}

fn mode(mode: ReceiveModes, on: bool) -> Command<'static> {
    Command::Receive { mode, on }
}

#[test]
fn a_driver_says_which_frames_it_wants() {
    for packed in [false, true] {
        let net = Net::new(Count::Pairs);
        let (mut card, mut control) = net.receiver(packed);
        let mut sender = net.sender();
        let mut filtered = 0;
        let mut gets = |to: Mac, card: &mut Card, wanted: bool| {
            let sent = frame(station(2), to, 7, 100);
            sender.send(0, &sent);
            if wanted {
                assert_eq!(card.expect().1, sent);
            } else {
                filtered += 1;
                net.expect_filtered(filtered);
            }
        };
        let group = Mac([1, 0, 0x5E, 0, 0, 9]);
        for to in [station(1), station(9), group, Mac::BROADCAST] {
            gets(to, &mut card, true);
        }
        assert!(control.ask(&mode(ReceiveModes::PROMISC, false)));
        for (to, wanted) in [
            (station(1), true),
            (station(9), false),
            (group, false),
            (Mac::BROADCAST, true),
        ] {
            gets(to, &mut card, wanted);
        }
        let (unicast, multicast) = ([station(9).0], [group.0]);
        assert!(control.ask(&Command::MacTable {
            unicast: MacList::Listed(&unicast),
            multicast: MacList::Listed(&multicast),
        }));
        gets(station(9), &mut card, true);
        gets(group, &mut card, true);
        assert!(control.ask(&mode(ReceiveModes::NOBCAST, true)));
        gets(Mac::BROADCAST, &mut card, false);
        // Another address: configuration space has it, and frames for it come.
        assert!(control.ask(&Command::MacAddress(station(5))));
        gets(station(5), &mut card, true);
        gets(station(1), &mut card, false);
        let mut mac = [0; 6];
        mac.copy_from_slice(&config(&card)[..6]);
        assert_eq!(Mac(mac), station(5));
        // VLANs.
        let mut tagged = frame(station(2), station(5), 7, 100);
        tagged.splice(12..12, [0x81, 0, 0, 7]);
        sender.send(0, &tagged);
        filtered += 1;
        net.expect_filtered(filtered);
        assert!(control.ask(&Command::VlanAdd(7)));
        sender.send(0, &tagged);
        assert_eq!(card.expect().1, tagged);
        assert!(control.ask(&Command::VlanDelete(7)));
        sender.send(0, &tagged);
        net.expect_filtered(filtered + 1);
        assert_eq!(net.counts().commands, 6);
    }
}

/// The whole configuration space.
fn config(card: &Card) -> Vec<u8> {
    let ask = [&0_u32.to_le_bytes()[..], &24_u32.to_le_bytes(), &[0; 28]].concat();
    card.front.ask(Request::GetConfig, &ask, &[]).unwrap()[12..].to_vec()
}

/// A frame of a flow of its own.
fn flow(port: u16) -> Vec<u8> {
    let mut udp = frame(station(2), station(1), 0, 20 + 8 + 20);
    udp[12..26].copy_from_slice(&[8, 0, 0x45, 0, 0, 48, 0, 1, 0, 0, 64, 17, 0, 0]);
    udp[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    udp[34..36].copy_from_slice(&port.to_be_bytes());
    udp
}

#[test]
fn a_driver_says_how_many_pairs_it_uses_and_each_flow_keeps_its_own() {
    let net = Net::new(Count::Pairs);
    let (mut card, mut control) = net.receiver(false);
    let mut sender = net.sender();
    // What the specification begins with: one pair, though all are enabled.
    for port in 0..20 {
        sender.send(usize::from(port % PAIRS), &flow(port));
        assert_eq!(card.expect(), (0, flow(port)));
    }
    assert!(control.ask(&Command::Pairs(PAIRS)));
    let mut homes = vec![None; 40];
    for _ in 0..3 {
        for (port, home) in (0..).zip(&mut homes) {
            sender.send(0, &flow(port));
            let (pair, got) = card.expect();
            assert_eq!(got, flow(port));
            assert_eq!(*home.get_or_insert(pair), pair, "a flow keeps its pair");
        }
    }
    // The sender's worker has two of the three.
    assert!(homes.contains(&Some(0)) && homes.contains(&Some(2)));
    for wrong in [0, PAIRS + 1] {
        assert!(!control.ask(&Command::Pairs(wrong)));
    }
    assert_eq!(net.refused("pairs"), 2);
    assert!(control.ask(&Command::Pairs(1)));
    for port in 0..20 {
        sender.send(2, &flow(port));
        assert_eq!(card.expect(), (0, flow(port)));
    }
}

#[test]
fn a_driver_spreads_flows_by_its_own_table_and_hears_their_hash() {
    let net = Net::new(Count::Pairs);
    let (mut card, mut control) = net.receiver(false);
    let mut sender = net.sender();
    let key: Vec<u8> = (1..=40).collect();
    let table: Vec<[u8; 2]> = [0_u16, 1, 2, 1].map(u16::to_le_bytes).to_vec();
    assert!(control.ask(&Command::Rss(RssConfig {
        hash: HashConfig {
            types: 0b100,
            key: &key,
        },
        mask: 3,
        unclassified: 2,
        table: &table,
        max_tx_vq: PAIRS,
    })));
    let toeplitz = Toeplitz::new(&key);
    for port in 0..30 {
        let sent = flow(port);
        // On whatever worker it comes.
        sender.send(usize::from(port % PAIRS), &sent);
        let hash = toeplitz.hash(&[&sent[26..34], &sent[34..38]].concat());
        let pair = [0, 1, 2, 1][(hash & 3) as usize];
        let mut got = None;
        assert!(settled(|| {
            got = card.pairs[pair].take_hashed();
            got.is_some()
        }));
        card.pairs[pair].post();
        // 2 of IPv4, behind TCP: UDP is the third report.
        assert_eq!(got, Some((hash, 3, sent)));
    }
    let other = frame(station(2), station(1), 1, 60);
    sender.send(0, &other);
    assert_eq!(card.expect(), (2, other), "it has no hash");
    // A table with a pair that there is not.
    let wrong: Vec<[u8; 2]> = [0_u16, PAIRS].map(u16::to_le_bytes).to_vec();
    assert!(!control.ask(&Command::Rss(RssConfig {
        hash: HashConfig { types: 0, key: &[] },
        mask: 1,
        unclassified: 0,
        table: &wrong,
        max_tx_vq: 1,
    })));
    assert_eq!(net.refused("rss_queue"), 1);
}

#[test]
fn malformed_commands_are_answered_and_counted_by_name() {
    let net = Net::new(Count::Pairs);
    let (_card, mut control) = net.receiver(false);
    let cases: [(&[u8], &str); 7] = [
        (&[0], "no_code"),
        (&[0, 0], "short"),
        (&[77, 0, 1], "unknown"),
        (&[1, 1, 1, 0, 0, 0, 0, 1], "mac"),
        (&[2, 0, 0xFF, 0xFF], "vlan"),
        (&[4, 0, 0, 0], "pairs"),
        (&[5, 0, 1, 0, 0, 0, 0, 0, 0, 0], "offloads"),
    ];
    for (bytes, name) in cases {
        assert!(!control.ask_bytes(bytes), "{name}");
        assert_eq!(net.refused(name), 1, "{:?}", net.counts());
    }
    assert_eq!(net.counts().refused.iter().sum::<u64>(), 7);
    assert!(control.ask(&mode(ReceiveModes::ALLUNI, true)), "it goes on");
}

/// A command without a byte for its answer.
#[test]
fn a_control_queue_that_is_broken_ends_and_frames_go_on() {
    let net = Net::new(Count::Pairs);
    let (mut card, mut control) = net.receiver(false);
    let mut sender = net.sender();
    control.ask_without_answer(&[0, 0, 0]);
    control.expect_broken();
    sender.send(0, &frame(station(2), station(1), 1, 100));
    assert_eq!(card.expect().1, frame(station(2), station(1), 1, 100));
}

#[test]
fn a_guest_that_arrives_is_asked_to_announce_itself() {
    let net = Net::new(Count::Pairs);
    let (card, mut control) = net.receiver(false);
    let mut sender = net.sender();
    let requests = card.front.listen_to_requests().unwrap();
    let announces = || config(&card)[6] & 2 != 0;
    assert!(!announces());
    let payload = [&station(1).0[..], &[0; 2]].concat();
    card.front.tell(Request::SendRarp, &payload, &[]).unwrap();
    assert!(announces());
    // The others hear of it at once, and it is told.
    assert_eq!(Mac::source(&sender.expect().1), station(1));
    assert!(settled(|| requests.has_message()));
    assert!(control.ask(&Command::AnnounceAck));
    assert!(!announces());
}

#[test]
fn what_a_driver_asked_for_ends_with_it_and_not_with_a_pause() {
    let net = Net::new(Count::Pairs);
    let (card, mut control) = net.receiver(false);
    let mut sender = net.sender();
    assert!(control.ask(&Command::Pairs(2)));
    assert!(control.ask(&mode(ReceiveModes::PROMISC, false)));
    let foreign = frame(station(2), station(9), 1, 100);
    // A machine that is paused stops its rings, and starts them as they were.
    control.pause(&card);
    sender.send(0, &foreign);
    net.expect_filtered(1);
    card.front.tell(Request::ResetDevice, &[], &[]).unwrap();
    drop((card, control));
    let (mut card, _control) = net.receiver(false);
    sender.send(1, &foreign);
    assert_eq!(
        card.expect(),
        (0, foreign.clone()),
        "one pair, and everything"
    );
    drop(card);
    // A driver without a control queue.
    let options = CardOptions {
        pairs: PAIRS,
        front: Options {
            without: (VIRTIO_NET_F_CTRL_VQ | VIRTIO_NET_F_RSS).bits(),
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let mut card = Card::bring_up(&net.socket(), &options).unwrap();
    sender.send(1, &foreign);
    assert_eq!(card.expect(), (1, foreign), "all pairs that are enabled");
}

/// QEMU accepts what needs the control queue and keeps that to itself: 14c81b2191 is
/// about its indices.
#[test]
fn a_front_end_that_keeps_the_control_queue_enables_rings() {
    let net = Net::new(Count::Pairs);
    let options = CardOptions {
        pairs: PAIRS,
        front: Options {
            without: VIRTIO_NET_F_CTRL_VQ.bits(),
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let mut card = Card::bring_up(&net.socket(), &options).unwrap();
    let mut sender = net.sender();
    card.enable(0, false).unwrap();
    let sent = frame(station(2), station(1), 1, 100);
    for _ in 0..10 {
        sender.send(1, &sent);
        assert_eq!(card.expect(), (1, sent.clone()));
    }
    // The ring behind the pairs is none of its.
    assert!(matches!(
        Control::start(&mut card, 2 * PAIRS),
        Err(Refused::Nack { .. })
    ));
}

#[test]
fn queues_are_counted_with_the_control_queue_or_in_pairs() {
    for (count, answer) in [(Count::Pairs, 3_u64), (Count::Rings, 7)] {
        let net = Net::new(count);
        let mut front = net.guests[0].connect();
        front.negotiate(&Options::default()).unwrap();
        let reply = front.ask(Request::GetQueueNum, &[], &[]).unwrap();
        assert_eq!(reply, answer.to_le_bytes());
    }
}

/// Without several pairs the control queue is right behind the first.
#[test]
fn the_control_queue_is_behind_the_pairs_that_there_are() {
    let net = Net::new(Count::Pairs);
    let options = CardOptions {
        front: Options {
            without: (VIRTIO_NET_F_MQ | VIRTIO_NET_F_RSS | VIRTIO_NET_F_HASH_REPORT).bits(),
            ..Options::default()
        },
        ..CardOptions::default()
    };
    let mut card = Card::bring_up(&net.socket(), &options).unwrap();
    let mut control = Control::start(&mut card, 2).unwrap();
    assert!(control.ask(&mode(ReceiveModes::ALLMULTI, true)));
    assert!(!control.ask(&Command::Pairs(1)));
    assert_eq!(net.refused("not_negotiated"), 1);
}

/// Our own driver on a device.
struct Driver {
    pairs: Vec<NicPair>,
    control: NicControl,
    link: Link,
}

fn drive(socket: PathBuf, pairs: u16) -> Driver {
    let options = NicOptions {
        pairs,
        count: QueueUnit::Pairs,
        packed: false,
        in_order: false,
        mergeable: true,
        control: true,
    };
    let wanted = options.link_options(Reach::Connect(socket), Duration::from_secs(30));
    let cancel = Arc::new(EventFd::new().unwrap());
    let mut connection = Connection::open(wanted, cancel).unwrap();
    let negotiated = connection.negotiated();
    let features = Features::from_bits_retain(negotiated.features);
    let ring = control_ring(features, &negotiated.config).expect("it has a control queue");
    connection.revise(ring + 1, Features::empty()).unwrap();
    let layout = NicLayout::new(64, 1514, 1514);
    let nic = Nic::new(pairs, layout, features, Some(ring)).unwrap();
    let link = connection.start(nic.memory, nic.handles).unwrap();
    Driver {
        pairs: nic.pairs,
        control: nic.control.unwrap(),
        link,
    }
}

#[test]
fn a_driver_says_what_it_wants_to_each_device_that_comes() {
    let workers = Arc::new(Workers::new(1).unwrap());
    let port = |name: &str| PortOptions {
        name: name.into(),
        kind: Kind::Guest { pairs: PAIRS },
        vlans: PortVlans::Unaware,
        mtu: 1500,
        limit: None,
    };
    let fabric = Fabric::new(Mode::Pair, vec![port("a"), port("b")], 1).unwrap();
    let _running = fabric.run(&workers).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a");
    let serve = || {
        let options = NetOptions {
            mac: station(1),
            mtu: 1500,
            pairs: PAIRS,
            queue_size: 256,
            speed: Speed::default(),
            to_device: OFFLOADS,
            to_driver: OFFLOADS,
            control_queue: true,
        };
        let device = NetDevice::new(&fabric, 0, options, Count::Pairs).unwrap();
        let listener = linkspan_sys::Listener::bind(&socket).unwrap();
        let source = linkspan_sys::socket::Inherited::Listener(listener);
        vhost_user::serve(source, Arc::new(device), Arc::clone(&workers), |_| {}).unwrap()
    };
    let mut server = Some(serve());
    // Two of the three pairs, with the control queue behind all of them.
    let Driver {
        mut pairs,
        mut control,
        link,
    } = drive(socket.clone(), 2);
    let wanted = Wanted {
        pairs: 2,
        mac: Some(station(7)),
        promiscuous: Some(false),
    };
    control.want(wanted).unwrap();
    let commands = || fabric.counts(0).unwrap().commands;
    assert_eq!(commands(), 3);
    let shows = || NetInfo::from_config(&link.config(), Features::all()).mac;
    assert!(settled(|| shows() == Some(station(7))));
    let stop = EventFd::new().unwrap();
    let announced = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let keeper = scope.spawn(|| {
            control.keep(&link, stop.as_fd(), || {
                announced.fetch_add(1, Ordering::Relaxed);
            })
        });
        for round in 1..4 {
            if let Some(server) = server.take() {
                server.stop().unwrap();
            }
            server = Some(serve());
            // The threads that drive the pairs look now and then.
            let mut back = || {
                for pair in &mut pairs {
                    pair.reclaim().unwrap();
                }
                commands() == 3 + 3 * round
            };
            assert!(settled(&mut back), "{} commands", commands());
        }
        stop.signal().unwrap();
        keeper.join().unwrap().unwrap();
    });
    assert_eq!(announced.into_inner(), 0);
    // What it does not have.
    assert!(server.is_some());
    let none = Wanted {
        pairs: PAIRS + 1,
        ..wanted
    };
    assert!(matches!(control.want(none), Err(NicError::Refused { .. })));
}
