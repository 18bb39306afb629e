//! The control queue: every command, what it needs, what it changes, and the
//! receive filter that comes of it; saved and restored on the way.

use linkspan_devices::net::control::{
    COMMAND_BYTES_MAX, CONTROL_SNAPSHOT_LEN, Change, Code, Command, Control, ControlError,
    ControlRestoreError, HashConfig, MacList, RssConfig,
};
use linkspan_devices::net::features::{
    Offloads, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_HASH_REPORT,
};
use linkspan_devices::net::{
    Duplex, Mac, Net, NetOptions, OFFLOADS, ReceiveModes, Rejected, Speed,
};
use linkspan_virtio::Features;
use proptest::prelude::*;

const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 9, 9, 9]);
const GROUP: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

fn net() -> Net {
    Net::new(NetOptions {
        mac: MAC,
        mtu: 1500,
        pairs: 4,
        queue_size: 64,
        speed: Speed {
            mbit: None,
            duplex: Duplex::Unknown,
        },
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: true,
    })
    .unwrap()
}

fn control() -> Control {
    Control::new(&net(), net().features())
}

/// Through bytes, as a driver's commands come; and the state survives being saved.
fn send(control: &mut Control, command: &Command<'_>) -> Result<Change, ControlError> {
    let bytes = command.to_bytes();
    let parsed = Command::parse(&bytes, bytes.len() as u64)?;
    assert_eq!(parsed, *command);
    let before = control.clone();
    let result = control.apply(&parsed);
    assert!(
        result.is_ok() || *control == before,
        "a refusal changes nothing"
    );
    let restored = Control::restore(&net(), net().features(), &control.snapshot());
    assert_eq!(restored.as_ref(), Ok(&*control));
    result
}

fn frame(destination: Mac, vlan: Option<u16>) -> Vec<u8> {
    let mut frame = [&destination.0[..], &OTHER.0].concat();
    if let Some(vlan) = vlan {
        frame.extend([0x81, 0x00]);
        frame.extend((0x6000 | vlan).to_be_bytes());
    }
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame
}

fn receives(control: &Control, destination: Mac) -> Result<(), Rejected> {
    control.filter().check(&frame(destination, None))
}

fn mode(mode: ReceiveModes, on: bool) -> Command<'static> {
    Command::Receive { mode, on }
}

#[test]
fn everything_is_received_until_the_driver_says_otherwise() {
    let mut control = control();
    for mac in [MAC, OTHER, GROUP, Mac::BROADCAST] {
        assert_eq!(receives(&control, mac), Ok(()));
    }
    let change = send(&mut control, &mode(ReceiveModes::PROMISC, false));
    assert_eq!(change, Ok(Change::Filter));
    assert_eq!(receives(&control, MAC), Ok(()));
    assert_eq!(receives(&control, Mac::BROADCAST), Ok(()));
    assert_eq!(receives(&control, OTHER), Err(Rejected::Unicast));
    assert_eq!(receives(&control, GROUP), Err(Rejected::Multicast));
}

#[test]
fn each_mode_does_what_it_says() {
    for (set, mac, on) in [
        (ReceiveModes::ALLMULTI, GROUP, Ok(())),
        (ReceiveModes::ALLUNI, OTHER, Ok(())),
        (ReceiveModes::NOUNI, MAC, Err(Rejected::Unicast)),
        (
            ReceiveModes::NOBCAST,
            Mac::BROADCAST,
            Err(Rejected::Broadcast),
        ),
    ] {
        let mut control = control();
        send(&mut control, &mode(ReceiveModes::PROMISC, false)).unwrap();
        let off = receives(&control, mac);
        assert_ne!(off, on);
        send(&mut control, &mode(set, true)).unwrap();
        assert_eq!(receives(&control, mac), on, "{set:?}");
        send(&mut control, &mode(set, false)).unwrap();
        assert_eq!(receives(&control, mac), off);
    }
    // What suppresses is stronger than what lets through (5.1.6.5.1).
    let mut control = control();
    send(&mut control, &mode(ReceiveModes::PROMISC, false)).unwrap();
    for set in [
        ReceiveModes::ALLMULTI,
        ReceiveModes::ALLUNI,
        ReceiveModes::NOMULTI,
        ReceiveModes::NOUNI,
    ] {
        send(&mut control, &mode(set, true)).unwrap();
    }
    assert_eq!(receives(&control, GROUP), Err(Rejected::Multicast));
    assert_eq!(receives(&control, MAC), Err(Rejected::Unicast));
    assert_eq!(receives(&control, Mac::BROADCAST), Ok(()));
}

#[test]
fn tables_of_addresses_let_their_members_through() {
    let mut control = control();
    send(&mut control, &mode(ReceiveModes::PROMISC, false)).unwrap();
    let (unicast, multicast) = ([OTHER.0], [GROUP.0, [1, 0, 0x5E, 0, 0, 1]]);
    let table = Command::MacTable {
        unicast: MacList::Listed(&unicast),
        multicast: MacList::Listed(&multicast),
    };
    assert_eq!(send(&mut control, &table), Ok(Change::Filter));
    assert_eq!(receives(&control, OTHER), Ok(()));
    assert_eq!(receives(&control, GROUP), Ok(()));
    assert_eq!(
        receives(&control, Mac([0x33, 0x33, 0, 0, 0, 2])),
        Err(Rejected::Multicast)
    );
    let none = Command::MacTable {
        unicast: MacList::Listed(&[]),
        multicast: MacList::Listed(&[]),
    };
    send(&mut control, &none).unwrap();
    assert_eq!(receives(&control, OTHER), Err(Rejected::Unicast));
}

/// As QEMU: 64 places for both kinds; a kind that does not fit is let through whole.
#[test]
fn a_table_that_is_too_long_lets_all_of_its_kind_through() {
    let mac = |i: usize| [2, 0, 0, 0, 1, i.to_le_bytes()[0]];
    for (unicast, multicast, all) in [
        (64, 0, (false, false)),
        (65, 0, (true, false)),
        (60, 4, (false, false)),
        (60, 5, (false, true)),
        (65, 64, (true, false)),
        (0, 5000, (false, true)),
        (5000, 1, (true, true)),
        (5000, 5000, (true, true)),
    ] {
        let mut control = control();
        send(&mut control, &mode(ReceiveModes::PROMISC, false)).unwrap();
        let unicasts: Vec<_> = (0..unicast).map(mac).collect();
        let multicasts = vec![GROUP.0; multicast];
        let command = Command::MacTable {
            unicast: MacList::Listed(&unicasts),
            multicast: MacList::Listed(&multicasts),
        };
        // A worker copies only so much of it.
        let bytes = command.to_bytes();
        let part = &bytes[..bytes.len().min(COMMAND_BYTES_MAX)];
        let command = Command::parse(part, bytes.len() as u64).unwrap();
        control.apply(&command).unwrap();
        let stranger = receives(&control, OTHER) == Ok(());
        let group = receives(&control, Mac([0x33, 0x33, 0, 0, 9, 9])) == Ok(());
        assert_eq!((stranger, group), all, "{unicast} {multicast}");
        let restored = Control::restore(&net(), net().features(), &control.snapshot());
        assert_eq!(restored, Ok(control));
    }
}

#[test]
fn vlans_are_filtered_once_that_was_negotiated() {
    let mut control = control();
    send(&mut control, &mode(ReceiveModes::PROMISC, false)).unwrap();
    let tagged = |control: &Control, vlan| control.filter().check(&frame(MAC, Some(vlan)));
    assert_eq!(tagged(&control, 5), Err(Rejected::Vlan));
    send(&mut control, &Command::VlanAdd(5)).unwrap();
    assert_eq!(tagged(&control, 5), Ok(()));
    assert_eq!(tagged(&control, 6), Err(Rejected::Vlan));
    assert_eq!(receives(&control, MAC), Ok(()), "untagged frames are free");
    send(&mut control, &Command::VlanDelete(5)).unwrap();
    assert_eq!(tagged(&control, 5), Err(Rejected::Vlan));
    for vlan in [4096, u16::MAX] {
        let error = ControlError::Vlan { vlan };
        assert_eq!(send(&mut control, &Command::VlanAdd(vlan)), Err(error));
    }
    let mut without = Control::new(&net(), net().features() - VIRTIO_NET_F_CTRL_VLAN);
    without.apply(&mode(ReceiveModes::PROMISC, false)).unwrap();
    assert_eq!(tagged(&without, 5), Ok(()));
}

#[test]
fn the_address_changes_in_configuration_too() {
    let mut control = control();
    send(&mut control, &mode(ReceiveModes::PROMISC, false)).unwrap();
    let change = send(&mut control, &Command::MacAddress(OTHER));
    assert_eq!(change, Ok(Change::Mac(OTHER)));
    assert_eq!(control.live(true).mac, OTHER);
    assert_eq!(receives(&control, OTHER), Ok(()));
    assert_eq!(receives(&control, MAC), Err(Rejected::Unicast));
    for mac in [GROUP, Mac::default()] {
        let error = ControlError::Mac { mac };
        assert_eq!(send(&mut control, &Command::MacAddress(mac)), Err(error));
    }
}

#[test]
fn an_announcement_is_asked_for_and_acknowledged() {
    let mut control = control();
    assert!(control.ask_to_announce());
    assert!(control.live(true).announce);
    assert_eq!(
        send(&mut control, &Command::AnnounceAck),
        Ok(Change::Announced)
    );
    assert!(!control.live(true).announce);
    let mut cannot = Control::new(&net(), Features::VIRTIO_F_VERSION_1);
    assert!(!cannot.ask_to_announce());
    assert!(control.live(true).link_up && !control.live(false).link_up);
}

#[test]
fn pairs_are_those_there_are() {
    let mut control = control();
    assert_eq!(control.pairs(), 1);
    assert_eq!(send(&mut control, &Command::Pairs(4)), Ok(Change::Steering));
    for pairs in [0, 5, u16::MAX] {
        let error = ControlError::Pairs { pairs, max: 4 };
        assert_eq!(send(&mut control, &Command::Pairs(pairs)), Err(error));
    }
    assert_eq!(control.pairs(), 4);
}

fn tcp_frame(port: u16) -> Vec<u8> {
    let mut frame = frame(MAC, None);
    frame.truncate(14);
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend([66, 9, 149, 187, 161, 142, 100, 80]);
    frame.extend(port.to_be_bytes());
    frame.extend(1766_u16.to_be_bytes());
    frame
}

/// Microsoft's key and vector: the hash of this frame is 0x51ccc178.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

const TABLE: [[u8; 2]; 4] = [[3, 0], [2, 0], [1, 0], [0, 0]];

fn rss() -> RssConfig<'static> {
    RssConfig {
        hash: HashConfig {
            types: 0x3F,
            key: &KEY,
        },
        mask: 3,
        unclassified: 2,
        table: &TABLE,
        max_tx_vq: 4,
    }
}

#[test]
fn receive_side_scaling_takes_the_queue_that_the_table_says() {
    let mut control = control();
    assert_eq!(
        send(&mut control, &Command::Rss(rss())),
        Ok(Change::Steering)
    );
    assert_eq!(control.pairs(), 4);
    let (pair, hash) = control.steer(&tcp_frame(2794));
    assert_eq!((pair, hash.unwrap().value), (3, 0x51cc_c178));
    assert_eq!(hash.unwrap().report, 2);
    // ARP has no hash.
    assert_eq!(control.steer(&frame(MAC, None)[..12]), (2, None));
    // Without HASH_REPORT it only steers.
    let mut silent = Control::new(&net(), net().features() - VIRTIO_NET_F_HASH_REPORT);
    silent.apply(&Command::Rss(rss())).unwrap();
    assert_eq!(silent.steer(&tcp_frame(2794)), (3, None));
    // The last command decides (5.1.6.5.5).
    send(&mut control, &Command::Pairs(1)).unwrap();
    assert_eq!(control.steer(&tcp_frame(2794)).0, 0);
    let hash = Command::Hash(rss().hash);
    assert_eq!(send(&mut control, &hash), Ok(Change::Steering));
    let (pair, hash) = control.steer(&tcp_frame(2794));
    assert_eq!((pair, hash.unwrap().value), (0, 0x51cc_c178));
}

#[test]
fn scaling_that_cannot_be_is_refused() {
    let hash = |types, key| HashConfig { types, key };
    let types = |types, key_len| ControlError::HashTypes { types, key_len };
    for (config, error) in [
        (
            RssConfig {
                max_tx_vq: 0,
                ..rss()
            },
            ControlError::Pairs { pairs: 0, max: 4 },
        ),
        (
            RssConfig {
                max_tx_vq: 5,
                ..rss()
            },
            ControlError::Pairs { pairs: 5, max: 4 },
        ),
        (
            RssConfig {
                unclassified: 4,
                ..rss()
            },
            ControlError::RssQueue { pair: 4, max: 4 },
        ),
        (
            RssConfig {
                table: &[[0, 0], [0, 0], [0, 0], [0, 1]],
                ..rss()
            },
            ControlError::RssQueue { pair: 256, max: 4 },
        ),
        (
            RssConfig {
                hash: hash(0x40, &KEY),
                ..rss()
            },
            types(0x40, 40),
        ),
        (
            RssConfig {
                hash: hash(1, &[]),
                ..rss()
            },
            types(1, 0),
        ),
    ] {
        let mut control = control();
        assert_eq!(send(&mut control, &Command::Rss(config)), Err(error));
    }
    // What the wire can say and a command cannot.
    for (mask, entries) in [(2_u16, 3), (255, 256), (u16::MAX, 65536)] {
        let mut bytes = Command::Rss(rss()).to_bytes();
        bytes[6..8].copy_from_slice(&mask.to_le_bytes());
        let error = ControlError::RssTable { entries };
        assert_eq!(Command::parse(&bytes, bytes.len() as u64), Err(error));
    }
    let mut bytes = Command::Hash(rss().hash).to_bytes();
    bytes[14] = 41;
    let error = ControlError::HashKey { len: 41 };
    assert_eq!(Command::parse(&bytes, bytes.len() as u64), Err(error));
}

#[test]
fn offloads_are_switched_within_what_was_negotiated() {
    let mut control = control();
    let all = Offloads::to_driver(net().features());
    assert_eq!(control.offloads(), all);
    let change = send(&mut control, &Command::GuestOffloads(0));
    assert_eq!(change, Ok(Change::Offloads(Offloads::empty())));
    // GUEST_CSUM and GUEST_TSO4.
    let some = Offloads::CHECKSUM | Offloads::VALIDATED | Offloads::TSO4;
    let change = send(&mut control, &Command::GuestOffloads(1 << 1 | 1 << 7));
    assert_eq!(change, Ok(Change::Offloads(some)));
    // GUEST_UFO was not offered; bit 0 is no such offload.
    for offloads in [1 << 10, 1] {
        let error = ControlError::Offloads { offloads };
        let command = Command::GuestOffloads(offloads);
        assert_eq!(send(&mut control, &command), Err(error));
    }
    assert_eq!(control.offloads(), some);
}

#[test]
fn a_command_needs_its_feature() {
    let empty: [[u8; 6]; 0] = [];
    let table = Command::MacTable {
        unicast: MacList::Listed(&empty),
        multicast: MacList::Listed(&empty),
    };
    let features = net().features();
    for (bit, command) in [
        (18, mode(ReceiveModes::PROMISC, true)),
        (20, mode(ReceiveModes::ALLUNI, true)),
        (18, table),
        (19, Command::VlanAdd(1)),
        (19, Command::VlanDelete(1)),
        (21, Command::AnnounceAck),
        (22, Command::Pairs(1)),
        (60, Command::Rss(rss())),
        (57, Command::Hash(rss().hash)),
        (2, Command::GuestOffloads(0)),
    ] {
        let without = features - Features::from_bits_retain(1 << bit);
        let mut control = Control::new(&net(), without);
        let code = command.code();
        assert_eq!(
            control.apply(&command),
            Err(ControlError::NotNegotiated { code })
        );
        assert!(Control::new(&net(), features).apply(&command).is_ok());
    }
    // Either of two features lets the address be set.
    let address = Command::MacAddress(OTHER);
    let only_rx = Features::VIRTIO_F_VERSION_1 | VIRTIO_NET_F_CTRL_RX;
    assert!(Control::new(&net(), only_rx).apply(&address).is_ok());
}

#[test]
fn a_command_that_is_cut_off_or_unknown_is_named() {
    for len in 0..2 {
        let error = ControlError::NoCode { len };
        assert_eq!(Command::parse(&[0, 0][..len], len as u64), Err(error));
    }
    for (class, command) in [
        (0, 6),
        (0, 200),
        (1, 2),
        (2, 2),
        (3, 1),
        (4, 3),
        (5, 1),
        (6, 0),
        (255, 255),
    ] {
        let error = ControlError::Unknown {
            code: Code { class, command },
        };
        let bytes = [class, command, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Command::parse(&bytes, 12), Err(error));
    }
    let macs = [OTHER.0; 3];
    let table = Command::MacTable {
        unicast: MacList::Listed(&macs),
        multicast: MacList::Listed(&macs),
    };
    for command in [
        mode(ReceiveModes::NOBCAST, true),
        table,
        Command::MacAddress(OTHER),
        Command::VlanAdd(9),
        Command::Pairs(2),
        Command::Rss(rss()),
        Command::Hash(rss().hash),
        Command::GuestOffloads(2),
    ] {
        let bytes = command.to_bytes();
        let error = ControlError::Short {
            code: command.code(),
        };
        for len in 2..bytes.len() {
            assert_eq!(
                Command::parse(&bytes[..len], len as u64),
                Err(error),
                "{len}"
            );
        }
        // As in QEMU, what lies behind it does not matter.
        let longer = [&bytes[..], &[7; 9]].concat();
        assert_eq!(Command::parse(&longer, longer.len() as u64), Ok(command));
    }
    // A table that claims more than the command has.
    let mut bytes = table.to_bytes();
    bytes[2..6].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Command::parse(&bytes, bytes.len() as u64).is_err());
}

#[test]
fn saved_bytes_that_make_no_state_are_refused() {
    let features = net().features();
    let saved = control().snapshot();
    let restore = |bytes: &[u8]| Control::restore(&net(), features, bytes).unwrap_err();
    let len = CONTROL_SNAPSHOT_LEN - 1;
    assert_eq!(restore(&saved[1..]), ControlRestoreError::Length { len });
    let with = |at: usize, byte| {
        let mut bytes = saved;
        bytes[at] = byte;
        restore(&bytes)
    };
    assert_eq!(with(0, 2), ControlRestoreError::Kind { kind: 0x4E02 });
    assert!(matches!(with(2, 0), ControlRestoreError::Features { .. }));
    let error = ControlRestoreError::Pairs { saved: 9, pairs: 4 };
    assert_eq!(with(10, 9), error);
    let fields = [
        (12, 0x53, "address"),
        (18, 0x40, "receive mode"),
        (19, 0x10, "switch"),
        (532, 65, "number of addresses"),
        (918, 0, "number of queue pairs"),
        (920, 1 << 4, "offload"),
        (921, 2, "way to steer"),
        (922, 0x40, "hash type"),
        (926, 41, "hash key"),
        (967, 2, "indirection table"),
        (969, 4, "indirection table"),
        (971, 4, "indirection table"),
    ];
    for (at, byte, field) in fields {
        assert_eq!(with(at, byte), ControlRestoreError::Field { field }, "{at}");
    }
}

proptest! {
    /// Any bytes at all: refused or done, and the state is one that can be saved.
    #[test]
    fn any_bytes_are_answered(
        commands in prop::collection::vec(
            (0_u8..7, 0_u8..4, prop::collection::vec(prop_oneof![0_u8..6, any::<u8>()], 0..80), 0_u64..10_000),
            0..20,
        ),
    ) {
        let mut control = control();
        for (class, command, data, more) in commands {
            let bytes = [&[class, command], &data[..]].concat();
            let parsed = Command::parse(&bytes, bytes.len() as u64 + more);
            if let Ok(command) = parsed {
                let _ = control.apply(&command);
            }
            prop_assert!((1..=4).contains(&control.pairs()));
            prop_assert!(control.steer(&tcp_frame(80)).0 < 4);
        }
        let restored = Control::restore(&net(), net().features(), &control.snapshot());
        prop_assert_eq!(restored.as_ref(), Ok(&control));
    }

    /// Bytes that pose as a saved state: refused, or a state like any other.
    #[test]
    fn any_saved_bytes_are_refused_or_make_a_state(
        changes in prop::collection::vec((12_usize..CONTROL_SNAPSHOT_LEN, any::<u8>()), 0..8),
    ) {
        let mut bytes = control().snapshot();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(control) = Control::restore(&net(), net().features(), &bytes) {
            prop_assert!(control.steer(&tcp_frame(80)).0 < 4);
            let again = Control::restore(&net(), net().features(), &control.snapshot());
            prop_assert_eq!(again.as_ref(), Ok(&control));
        }
    }
}
