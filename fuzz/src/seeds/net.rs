//! Seeds of `net`: commands of each class, frames with each offload, and what a
//! switch decides about them.

use linkspan_devices::net::control::{Command, HashConfig, MacList, RssConfig};
use linkspan_devices::net::offload::pseudo_header_sum;
use linkspan_devices::net::{Mac, ReceiveModes, Sum};

use super::{Expected, Seed};
use crate::net::{HOST, HOST_ADDRESS, step};

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 2]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const ADDRESS: [u8; 4] = [10, 0, 2, 15];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Every feature is accepted, or all but those that the control queue carries, by
/// their places among those that are offered.
const ALL: u32 = 0;
const WITHOUT_CONTROL: u32 = 1 << 2 | 0b111_1111 << 15 | 0b11 << 26;

pub(super) fn seeds() -> Vec<Seed> {
    let control = |name: &str, done, refused, steps: Vec<Vec<u8>>| {
        seed(name, (done, refused, 0, 0, 0), steps)
    };
    let frames = |name: &str, delivered, dropped, steps: Vec<Vec<u8>>| {
        seed(name, (0, 0, delivered, dropped, 0), steps)
    };
    let mut unable = control("commands_without_features", 0, 10, every_command());
    unable.bytes[..4].copy_from_slice(&WITHOUT_CONTROL.to_le_bytes());
    let mut seeds = vec![
        unable,
        control("every_command", 10, 0, every_command()),
        control("commands_cut_off", 0, 10, cut_off()),
        control("a_table_without_end", 1, 0, vec![long_table()]),
        frames("learned_and_found", 3, 1, learned()),
        frames("station_elsewhere", 1, 1, spoofed()),
        frames("vlans", 1, 1, vlans()),
        frames("flooded_too_much", 20, 5, flooded()),
        frames("checksum_goes_on", 1, 0, vec![partial()]),
        frames("large_frame_goes_on", 1, 0, vec![large(4, TCP, 1)]),
        frames("header_outside_the_frame", 0, 2, outside()),
        frames("too_long_for_the_receiver", 0, 1, too_long()),
    ];
    // Offloads are switched off first.
    let software = |name: &str, delivered, dropped, step: Vec<u8>| {
        let off = command(&Command::GuestOffloads(0));
        seed(name, (1, 0, delivered, dropped, 0), vec![off, step])
    };
    seeds.extend([
        software("checksum_in_software", 1, 0, partial()),
        software("tcp4_in_software", 3, 0, large(4, TCP, 1)),
        software("tcp6_in_software", 3, 0, large(6, TCP, 4)),
        software("tcp4_with_congestion", 3, 0, large(4, TCP, 0x81)),
        software("udp4_in_software", 3, 0, large(4, UDP, 5)),
        software("udp6_in_software", 3, 0, large(6, UDP, 5)),
        software("fragments_are_dropped", 0, 1, large(4, UDP, 3)),
        software("other_protocol_than_said", 0, 1, large(6, TCP, 1)),
    ]);
    let filtered = |name: &str, done, delivered, dropped, steps: Vec<Vec<u8>>| {
        seed(name, (done, 0, delivered, dropped, 0), steps)
    };
    seeds.extend([
        filtered(
            "not_for_this_driver",
            1,
            0,
            1,
            vec![promisc_off(), plain(1, OTHER, GUEST)],
        ),
        filtered(
            "steered_by_a_table",
            1,
            1,
            0,
            vec![command(&rss()), partial()],
        ),
    ]);
    seeds.extend([
        seed("arp_is_answered", (0, 0, 1, 0, 1), vec![arp()]),
        seed("echo_is_answered", (0, 0, 1, 0, 1), vec![echo()]),
        seed("dhcp_is_answered", (0, 0, 1, 0, 1), vec![dhcp()]),
    ]);
    seeds
}

fn seed(name: &str, counts: (usize, usize, usize, usize, usize), steps: Vec<Vec<u8>>) -> Seed {
    let (done, refused, delivered, dropped, answered) = counts;
    Seed {
        target: "net",
        name: name.into(),
        bytes: [&ALL.to_le_bytes()[..], &steps.concat()].concat(),
        expected: Expected::Net {
            done,
            refused,
            delivered,
            dropped,
            answered,
        },
    }
}

fn raw_command(bytes: &[u8], more: u16) -> Vec<u8> {
    let mut step = vec![step::COMMAND, u8::try_from(bytes.len()).expect("short")];
    step.extend(more.to_le_bytes());
    step.extend(bytes);
    step
}

fn command(command: &Command<'_>) -> Vec<u8> {
    raw_command(&command.to_bytes(), 0)
}

const KEY: [u8; 40] = [0x6D; 40];
const TABLE: [[u8; 2]; 4] = [[3, 0], [2, 0], [1, 0], [0, 0]];

fn rss() -> Command<'static> {
    Command::Rss(RssConfig {
        hash: HashConfig {
            types: 0x3F,
            key: &KEY,
        },
        mask: 3,
        unclassified: 1,
        table: &TABLE,
        max_tx_vq: 4,
    })
}

fn commands() -> [Command<'static>; 10] {
    [
        Command::Receive {
            mode: ReceiveModes::PROMISC,
            on: false,
        },
        Command::MacTable {
            unicast: MacList::Listed(&[OTHER.0]),
            multicast: MacList::Listed(&[[1, 0, 0x5E, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]]),
        },
        Command::MacAddress(OTHER),
        Command::VlanAdd(5),
        Command::VlanDelete(5),
        Command::Pairs(4),
        rss(),
        Command::Hash(HashConfig {
            types: 3,
            key: &KEY,
        }),
        Command::GuestOffloads(1 << 1 | 1 << 7),
        Command::AnnounceAck,
    ]
}

fn every_command() -> Vec<Vec<u8>> {
    commands().iter().map(command).collect()
}

fn cut_off() -> Vec<Vec<u8>> {
    let cut = |command: &Command<'_>| {
        let bytes = command.to_bytes();
        raw_command(&bytes[..bytes.len() - 1], 0)
    };
    commands().iter().map(cut).collect()
}

/// 5000 addresses, of which the device sees the first few.
fn long_table() -> Vec<u8> {
    let mut bytes = vec![1, 0];
    bytes.extend(5000_u32.to_le_bytes());
    bytes.extend([OTHER.0; 20].concat());
    raw_command(&bytes, 30_000)
}

fn promisc_off() -> Vec<u8> {
    command(&commands()[0])
}

/// Flags, type, bytes of a segment, start and offset of the checksum.
type Fields = (u8, u8, u16, u16, u16);

fn frame_step(port: u8, fields: Fields, len: usize, bytes: &[u8]) -> Vec<u8> {
    let (flags, gso_type, gso_size, start, offset) = fields;
    let mut step = vec![step::FRAME, port, flags, gso_type, 0, 0];
    for field in [gso_size, start, offset] {
        step.extend(field.to_le_bytes());
    }
    step.extend([0; 10]);
    step.extend(u16::try_from(len).expect("short").to_le_bytes());
    step.extend(u16::try_from(bytes.len()).expect("short").to_le_bytes());
    step.extend(bytes);
    step
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

fn plain(port: u8, to: Mac, from: Mac) -> Vec<u8> {
    frame_step(port, (0, 0, 0, 0, 0), 60, &ethernet(to, from, 0x88B5))
}

fn ipv4(protocol: u8, len: usize, to: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(20 + len).expect("short").to_be_bytes());
    header.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(ADDRESS);
    header.extend(to);
    let checksum = Sum::default().with(&header).checksum();
    header[10..12].copy_from_slice(&checksum);
    header
}

/// A frame of 3000 bytes of payload, in segments of 1000.
fn large(version: u8, protocol: u8, gso_type: u8) -> Vec<u8> {
    let transport = if protocol == TCP { 20 } else { 8 };
    let length = transport + 3000;
    let mut frame = ethernet(OTHER, GUEST, if version == 4 { 0x0800 } else { 0x86DD });
    if version == 4 {
        frame.extend(ipv4(protocol, length, HOST_ADDRESS));
    } else {
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(u16::try_from(length).expect("short").to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0x20; 32]);
    }
    let start = frame.len();
    let addresses = &frame[start - if version == 4 { 8 } else { 32 }..];
    let pseudo = pseudo_header_sum(
        addresses,
        &[],
        protocol,
        u16::try_from(length).expect("short"),
    );
    let mut header = vec![0; transport];
    header[..4].copy_from_slice(&[0x30, 0x39, 0, 80]);
    let offset = if protocol == TCP {
        header[12..14].copy_from_slice(&[0x50, 0x99]);
        16
    } else {
        header[4..6].copy_from_slice(&u16::try_from(length).expect("short").to_be_bytes());
        6
    };
    header[offset..offset + 2].copy_from_slice(&pseudo);
    frame.extend(header);
    let (start16, offset) = (
        u16::try_from(start).expect("short"),
        u16::try_from(offset).expect("short"),
    );
    frame_step(
        0,
        (1, gso_type, 1000, start16, offset),
        start + length,
        &frame,
    )
}

/// A datagram whose checksum is not complete.
fn partial() -> Vec<u8> {
    let mut frame = ethernet(OTHER, GUEST, 0x0800);
    frame.extend(ipv4(UDP, 40, HOST_ADDRESS));
    frame.extend([0x30, 0x39, 0, 53, 0, 40, 0, 0]);
    frame_step(0, (1, 0, 0, 34, 6), 74, &frame)
}

fn outside() -> Vec<Vec<u8>> {
    let frame = ethernet(OTHER, GUEST, 0x0800);
    vec![
        frame_step(0, (1, 0, 0, 59, 0), 60, &frame),
        frame_step(0, (1, 1, 0, 34, 16), 60, &frame),
    ]
}

fn too_long() -> Vec<Vec<u8>> {
    let mtu = [&[step::MTU][..], &600_u16.to_le_bytes()].concat();
    let frame = ethernet(OTHER, GUEST, 0x88B5);
    vec![mtu, frame_step(0, (0, 0, 0, 0, 0), 700, &frame)]
}

fn learned() -> Vec<Vec<u8>> {
    let wait = [&[step::WAIT][..], &5000_u16.to_le_bytes()].concat();
    vec![
        plain(0, OTHER, GUEST),
        plain(1, GUEST, OTHER),
        // At the same port.
        plain(0, GUEST, GUEST),
        wait.clone(),
        wait.clone(),
        wait,
        vec![step::FORGET, 1],
        plain(0, OTHER, GUEST),
    ]
}

fn spoofed() -> Vec<Vec<u8>> {
    let fix = [&[step::STATION, 2, 0, 0][..], &GUEST.0].concat();
    vec![fix, plain(0, OTHER, GUEST), plain(2, OTHER, GUEST)]
}

fn vlans() -> Vec<Vec<u8>> {
    let set = |port, vlan: u16| [&[step::VLAN, port][..], &vlan.to_le_bytes()].concat();
    let tagged = |port| {
        let mut frame = ethernet(OTHER, GUEST, 0x8100);
        frame.extend([0, 5, 0x88, 0xB5]);
        frame_step(port, (0, 0, 0, 0, 0), 64, &frame)
    };
    // A port without tags, and one with.
    vec![set(0, 0x4005), set(1, 0xC000), tagged(0), tagged(1)]
}

fn flooded() -> Vec<Vec<u8>> {
    (0..25).map(|_| plain(0, Mac::BROADCAST, GUEST)).collect()
}

fn arp() -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, GUEST, 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST.0);
    frame.extend(ADDRESS);
    frame.extend([0; 6]);
    frame.extend(HOST_ADDRESS);
    frame_step(0, (0, 0, 0, 0, 0), frame.len(), &frame)
}

fn echo() -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1, b'p', b'i', b'n', b'g'];
    let checksum = Sum::default().with(&message).checksum();
    message[2..4].copy_from_slice(&checksum);
    let mut frame = ethernet(HOST, GUEST, 0x0800);
    frame.extend(ipv4(1, message.len(), HOST_ADDRESS));
    frame.extend(message);
    frame_step(0, (0, 0, 0, 0, 0), frame.len(), &frame)
}

fn dhcp() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(GUEST.0);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    let mut datagram = vec![0, 68, 0, 67, 0, 0, 0, 0];
    datagram.extend(message);
    let mut frame = ethernet(Mac::BROADCAST, GUEST, 0x0800);
    frame.extend(ipv4(UDP, datagram.len(), [255; 4]));
    frame.extend(datagram);
    frame_step(0, (0, 0, 0, 0, 0), frame.len(), &frame)
}
