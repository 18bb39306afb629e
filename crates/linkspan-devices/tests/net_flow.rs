//! Hashes of flows: Microsoft's test vectors, a naive model, and both directions.

use linkspan_devices::net::{HashReport, HashTypes, Network, Packet, Toeplitz, flow_hash, steer};
use proptest::prelude::*;

/// The key of Microsoft's "Verifying the RSS hash calculation".
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

const TCP: u8 = 6;
const UDP: u8 = 17;

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, fragment: u16) -> Vec<u8> {
    let mut frame = ethernet(0x0800);
    let mut header = [0; 20];
    header[0] = 0x45;
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[9] = protocol;
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    frame.extend(header);
    frame
}

fn ipv6(source: [u8; 16], destination: [u8; 16], protocol: u8) -> Vec<u8> {
    let mut frame = ethernet(0x86DD);
    frame.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]);
    frame.extend(source);
    frame.extend(destination);
    frame
}

fn with_ports(mut frame: Vec<u8>, source: u16, destination: u16) -> Vec<u8> {
    frame.extend(source.to_be_bytes());
    frame.extend(destination.to_be_bytes());
    frame
}

/// Destination, source, hash of the addresses, hash with TCP ports.
type Vector<A> = ((A, u16), (A, u16), u32, u32);

const IPV4: [Vector<[u8; 4]>; 5] = [
    (
        ([161, 142, 100, 80], 1766),
        ([66, 9, 149, 187], 2794),
        0x323e_8fc2,
        0x51cc_c178,
    ),
    (
        ([65, 69, 140, 83], 4739),
        ([199, 92, 111, 2], 14230),
        0xd718_262a,
        0xc626_b0ea,
    ),
    (
        ([12, 22, 207, 184], 38024),
        ([24, 19, 198, 95], 12898),
        0xd2d0_a5de,
        0x5c2b_394a,
    ),
    (
        ([209, 142, 163, 6], 2217),
        ([38, 27, 205, 30], 48228),
        0x8298_9176,
        0xafc7_327f,
    ),
    (
        ([202, 188, 127, 2], 1303),
        ([153, 39, 163, 191], 44251),
        0x5d18_09c5,
        0x10e8_28a2,
    ),
];

fn v6(address: &str) -> [u8; 16] {
    address.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

#[test]
fn microsofts_vectors_for_ipv4() {
    let toeplitz = Toeplitz::new(&KEY);
    for (destination, source, addresses, ports) in IPV4 {
        let frame = ipv4(source.0, destination.0, TCP, 0);
        let frame = with_ports(frame, source.1, destination.1);
        let hash = |types| toeplitz.hash_frame(&frame, types);
        let report = |value, report| Some(HashReport { value, report });
        assert_eq!(hash(HashTypes::IPV4), report(addresses, 1));
        assert_eq!(hash(HashTypes::all()), report(ports, 2));
        assert_eq!(hash(HashTypes::UDPV4), None);
        // The same bytes as UDP.
        let mut frame = frame;
        frame[23] = UDP;
        let hash = |types| toeplitz.hash_frame(&frame, types);
        assert_eq!(hash(HashTypes::all()), report(ports, 3));
        assert_eq!(
            hash(HashTypes::TCPV4 | HashTypes::IPV4),
            report(addresses, 1)
        );
    }
}

#[test]
fn microsofts_vectors_for_ipv6() {
    let toeplitz = Toeplitz::new(&KEY);
    for (destination, source, addresses, ports) in [
        (
            ("3ffe:2501:200:3::1", 1766),
            ("3ffe:2501:200:1fff::7", 2794),
            0x2cc1_8cd5,
            0x4020_7d3d,
        ),
        (
            ("ff02::1", 4739),
            ("3ffe:501:8::260:97ff:fe40:efab", 14230),
            0x0f0c_461c,
            0xdde5_1bbf,
        ),
        (
            ("fe80::200:f8ff:fe21:67cf", 38024),
            ("3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251),
            0x4b61_e985,
            0x02d1_feef,
        ),
    ] {
        let frame = ipv6(v6(source.0), v6(destination.0), TCP);
        let frame = with_ports(frame, source.1, destination.1);
        let hash = |types| toeplitz.hash_frame(&frame, types);
        let report = |value, report| Some(HashReport { value, report });
        assert_eq!(hash(HashTypes::IPV6), report(addresses, 4));
        assert_eq!(hash(HashTypes::all()), report(ports, 5));
        assert_eq!(hash(HashTypes::IPV4 | HashTypes::TCPV4), None);
    }
}

#[test]
fn fragments_have_no_ports() {
    let [(destination, source, addresses, _), ..] = IPV4;
    // The first one, a later one, and a packet that must not be fragmented.
    for (bits, fragment) in [(0x2000, true), (0x00B9, true), (0x4000, false)] {
        let frame = ipv4(source.0, destination.0, TCP, bits);
        let frame = with_ports(frame, source.1, destination.1);
        assert_eq!(Packet::parse(&frame).fragment, fragment);
        let hash = Toeplitz::new(&KEY)
            .hash_frame(&frame, HashTypes::all())
            .unwrap();
        assert_eq!(hash.value == addresses, fragment);
        // So that all fragments of a packet take the same way.
        let mut other = frame.clone();
        other[34..38].fill(0xAA);
        assert_eq!(flow_hash(&frame) == flow_hash(&other), fragment);
    }
}

#[test]
fn extension_headers_are_skipped_up_to_a_bound() {
    let (source, destination) = (v6("2001:db8::1"), v6("2001:db8::2"));
    let plain = with_ports(ipv6(source, destination, UDP), 53, 5353);
    let extended = |headers: &[(u8, usize)]| {
        let mut frame = ipv6(
            source,
            destination,
            headers.first().map_or(UDP, |row| row.0),
        );
        for (index, (kind, len)) in headers.iter().enumerate() {
            let mut bytes = vec![0; *len];
            bytes[0] = headers.get(index + 1).map_or(UDP, |row| row.0);
            bytes[1] = match kind {
                44 => 0,
                51 => len / 4 - 2,
                _ => len / 8 - 1,
            }
            .to_le_bytes()[0];
            frame.extend(bytes);
        }
        with_ports(frame, 53, 5353)
    };
    assert_eq!(Packet::parse(&plain).transport_at, 54);
    for headers in [
        &[(0, 8)][..],
        &[(0, 16), (43, 24), (60, 8)],
        &[(51, 24)],
        &[(44, 8)],
        &[(60, 8); 8],
    ] {
        let frame = extended(headers);
        let packet = Packet::parse(&frame);
        assert_eq!(packet.protocol, Some(UDP), "{headers:?}");
        assert_eq!(packet.transport_at, frame.len() - 4);
        assert_eq!(flow_hash(&frame), flow_hash(&plain));
        let hash = |frame: &[u8]| Toeplitz::new(&KEY).hash_frame(frame, HashTypes::all());
        assert_eq!(hash(&frame), hash(&plain));
    }
    // Nine are one too many: known as IPv6, not as UDP.
    let packet = Packet::parse(&extended(&[(60, 8); 9]));
    assert_eq!((packet.network, packet.protocol), (Network::Ipv6, None));
    // Cut off in an extension header.
    let frame = extended(&[(0, 64)]);
    assert_eq!(Packet::parse(&frame[..100]).protocol, None);
}

#[test]
fn tags_do_not_change_a_flow() {
    let plain = with_ports(ipv4([10, 0, 0, 1], [10, 0, 0, 2], UDP, 0), 1, 2);
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0x00, 0x20, 0x05]);
    let mut twice = tagged.clone();
    twice.splice(12..12, [0x88, 0xA8, 0x00, 0x07]);
    assert_eq!(flow_hash(&tagged), flow_hash(&plain));
    assert_eq!(flow_hash(&twice), flow_hash(&plain));
    assert_eq!(Packet::parse(&twice).network_at, 22);
}

#[test]
fn flows_are_spread_evenly() {
    let mut pairs = [0_u32; 5];
    for port in 0..5000 {
        let frame = with_ports(
            ipv4([10, 0, 0, 1], [10, 0, 0, 2], TCP, 0),
            40000 + port % 1000,
            port,
        );
        pairs[usize::from(steer(flow_hash(&frame), 5))] += 1;
    }
    assert!(
        pairs.iter().all(|count| (900..1100).contains(count)),
        "{pairs:?}"
    );
    assert_eq!(steer(u32::MAX, 1), 0);
    assert_eq!(steer(u32::MAX, 0x8000), 0x7FFF);
}

/// Bit by bit, as Microsoft describes it.
fn naive_toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |at: usize| {
        key.get(at / 8)
            .is_some_and(|byte| byte & (0x80 >> (at % 8)) != 0)
    };
    let mut hash = 0;
    for at in (0..input.len() * 8).filter(|at| input[at / 8] & (0x80 >> (at % 8)) != 0) {
        hash ^= (at..at + 32).fold(0, |window, at| window << 1 | u32::from(bit(at)));
    }
    hash
}

proptest! {
    #[test]
    fn tables_agree_with_the_definition(
        key in prop::collection::vec(any::<u8>(), 0..=40),
        input in prop::collection::vec(any::<u8>(), 0..=36),
    ) {
        prop_assert_eq!(Toeplitz::new(&key).hash(&input), naive_toeplitz(&key, &input));
    }

    #[test]
    fn both_directions_have_one_hash(
        source in any::<[u8; 16]>(),
        destination in any::<[u8; 16]>(),
        ports in any::<(u16, u16)>(),
        protocol in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
    ) {
        let short = |address: [u8; 16]| *address.first_chunk().unwrap();
        let four = |from, to, ports: (u16, u16)| {
            with_ports(ipv4(short(from), short(to), protocol, 0), ports.0, ports.1)
        };
        let back = (ports.1, ports.0);
        prop_assert_eq!(
            flow_hash(&four(source, destination, ports)),
            flow_hash(&four(destination, source, back))
        );
        if !matches!(protocol, 0 | 43 | 44 | 51 | 60) {
            let six = |from, to, ports: (u16, u16)| with_ports(ipv6(from, to, protocol), ports.0, ports.1);
            prop_assert_eq!(
                flow_hash(&six(source, destination, ports)),
                flow_hash(&six(destination, source, back))
            );
        }
    }

    /// Any bytes at all: nothing panics, and every place is inside.
    #[test]
    fn places_are_inside(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4) {
        let mut bytes = bytes;
        if bytes.len() > 14 {
            let ethertype = [[8, 0], [0x86, 0xDD], [0x81, 0], [0, 0]][usize::try_from(kind).unwrap()];
            bytes[12..14].copy_from_slice(&ethertype);
            bytes[14] = [0x45, 0x60, 0, 0][usize::try_from(kind).unwrap()];
        }
        let packet = Packet::parse(&bytes);
        prop_assert!(packet.network_at <= bytes.len());
        prop_assert!(packet.transport_at <= bytes.len());
        flow_hash(&bytes);
        Toeplitz::new(&KEY).hash_frame(&bytes, HashTypes::all());
    }
}
