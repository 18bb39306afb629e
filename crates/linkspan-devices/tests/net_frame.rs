//! The host that is not there: what a guest asks before it can talk to anybody.

use linkspan_devices::net::frame::{Lease, RESPONSE_MAX, Responder};
use linkspan_devices::net::{Mac, Sum};
use proptest::prelude::*;

const HOST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GUEST: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
const ADDRESS: [u8; 4] = [10, 0, 2, 2];
const CLIENT: [u8; 4] = [10, 0, 2, 15];

fn responder() -> Responder {
    Responder {
        mac: HOST,
        address: ADDRESS,
        lease: Some(Lease {
            client: CLIENT,
            prefix_len: 24,
            router: Some(ADDRESS),
            dns: Some([10, 0, 2, 3]),
            seconds: 86400,
            mtu: 1500,
        }),
    }
}

fn respond(frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0xEE; RESPONSE_MAX];
    let len = responder().respond(frame, &mut out)?;
    out.truncate(len);
    Some(out)
}

fn ethernet(to: Mac, kind: u16) -> Vec<u8> {
    let mut frame = [to.0, GUEST.0].concat();
    frame.extend(kind.to_be_bytes());
    frame
}

fn arp(target: [u8; 4]) -> Vec<u8> {
    let mut frame = ethernet(Mac::BROADCAST, 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST.0);
    frame.extend(CLIENT);
    frame.extend([0; 6]);
    frame.extend(target);
    // As a driver pads it.
    frame.resize(60, 0);
    frame
}

fn ipv4(mac: Mac, to: [u8; 4], from: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    let checksum = Sum::default().with(&header).checksum();
    header[10..12].copy_from_slice(&checksum);
    [&ethernet(mac, 0x0800)[..], &header, payload].concat()
}

fn echo(to: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7];
    message.extend(data);
    let checksum = Sum::default().with(&message).checksum();
    message[2..4].copy_from_slice(&checksum);
    ipv4(HOST, to, CLIENT, 1, &message)
}

fn all_ones(bytes: &[u8]) {
    assert_eq!(Sum::default().with(bytes).folded(), [0xFF, 0xFF]);
}

#[test]
fn who_has_our_address_is_answered() {
    let reply = respond(&arp(ADDRESS)).unwrap();
    assert_eq!(
        reply[..14],
        [GUEST.0.to_vec(), HOST.0.to_vec(), vec![8, 6]].concat()
    );
    assert_eq!(reply[14..22], [0, 1, 8, 0, 6, 4, 0, 2]);
    assert_eq!(reply[22..28], HOST.0);
    assert_eq!(reply[28..32], ADDRESS);
    assert_eq!(reply[32..38], GUEST.0);
    assert_eq!(reply[38..42], CLIENT);
    assert_eq!(reply.len(), 42);
    assert_eq!(respond(&arp([10, 0, 2, 9])), None);
    // A reply is no question.
    let mut answer = arp(ADDRESS);
    answer[21] = 2;
    assert_eq!(respond(&answer), None);
    assert_eq!(respond(&arp(ADDRESS)[..41]), None);
}

#[test]
fn an_echo_comes_back() {
    for len in [0, 1, 56, 57, 1472] {
        let data: Vec<u8> = (0..len).map(|i: usize| i.to_le_bytes()[0]).collect();
        let request = echo(ADDRESS, &data);
        let reply = respond(&request).unwrap();
        assert_eq!(reply.len(), request.len());
        assert_eq!(reply[..12], [GUEST.0, HOST.0].concat());
        all_ones(&reply[14..34]);
        all_ones(&reply[34..]);
        assert_eq!(reply[26..34], [ADDRESS, CLIENT].concat());
        assert_eq!(reply[34..36], [0, 0]);
        assert_eq!(reply[38..], request[38..]);
    }
}

#[test]
fn what_is_no_echo_for_us_is_not_answered() {
    assert_eq!(respond(&echo([10, 0, 2, 9], b"x")), None);
    let change = |at: usize, byte: u8| {
        let mut frame = echo(ADDRESS, b"data");
        frame[at] = byte;
        respond(&frame)
    };
    assert!(change(18, 0).is_some(), "an identification");
    // Destination, version, protocol, fragment, kind of message, checksum, length.
    for (at, byte) in [
        (0, 4),
        (14, 0x65),
        (23, 2),
        (20, 0x20),
        (34, 13),
        (36, 1),
        (17, 200),
    ] {
        assert_eq!(change(at, byte), None, "{at}");
    }
    let mut grouped = echo(ADDRESS, b"data");
    grouped[6] |= 1;
    assert_eq!(respond(&grouped), None);
    let mut out = [0; 40];
    assert_eq!(responder().respond(&echo(ADDRESS, b"data"), &mut out), None);
}

/// A message of a client, with these options.
fn dhcp(flags: u16, options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 0xDE, 0xAD, 0xBE, 0xEF, 0, 3];
    message.extend(flags.to_be_bytes());
    message.extend([0; 16]);
    message.extend(GUEST.0);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend(options);
    let mut datagram = vec![0, 68, 0, 67];
    datagram.extend(u16::try_from(8 + message.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(message);
    ipv4(Mac::BROADCAST, [255; 4], [0; 4], 17, &datagram)
}

fn option(reply: &[u8], code: u8) -> Option<Vec<u8>> {
    let mut options = &reply[14 + 20 + 8 + 240..];
    while let [found, len, rest @ ..] = options {
        if *found == 255 {
            return None;
        }
        let (value, rest) = rest.split_at(usize::from(*len));
        if *found == code {
            return Some(value.to_vec());
        }
        options = rest;
    }
    None
}

/// Headers that fit, a checksum that is right, and the client's transaction.
fn check_reply(reply: &[u8], mac: Mac, to: [u8; 4]) {
    assert_eq!(reply[..12], [mac.0, HOST.0].concat());
    all_ones(&reply[14..34]);
    assert_eq!(reply[26..34], [ADDRESS, to].concat());
    assert_eq!(reply[34..38], [0, 67, 0, 68]);
    let length = u16::from_be_bytes([reply[38], reply[39]]);
    assert_eq!(usize::from(length), reply.len() - 34);
    let pseudo = [&reply[26..34], &[0, 17], &reply[38..40]].concat();
    all_ones(&[&pseudo, &reply[34..]].concat());
    assert_eq!(reply[42..46], [2, 1, 6, 0]);
    assert_eq!(reply[46..50], [0xDE, 0xAD, 0xBE, 0xEF]);
    assert_eq!(reply[70..76], GUEST.0);
    assert_eq!(option(reply, 54), Some(ADDRESS.to_vec()));
}

#[test]
fn a_client_discovers_and_requests_its_address() {
    let offer = respond(&dhcp(0, &[53, 1, 1, 255])).unwrap();
    check_reply(&offer, GUEST, CLIENT);
    assert_eq!(offer[58..62], CLIENT);
    assert_eq!(option(&offer, 53), Some(vec![2]));
    assert_eq!(option(&offer, 1), Some(vec![255, 255, 255, 0]));
    assert_eq!(option(&offer, 3), Some(ADDRESS.to_vec()));
    assert_eq!(option(&offer, 6), Some(vec![10, 0, 2, 3]));
    assert_eq!(option(&offer, 26), Some(vec![5, 0xDC]));
    assert_eq!(option(&offer, 51), Some(vec![0, 1, 0x51, 0x80]));

    let mut options = vec![0, 53, 1, 3, 54, 4];
    options.extend(ADDRESS);
    options.extend([50, 4]);
    options.extend(CLIENT);
    options.push(255);
    let ack = respond(&dhcp(0, &options)).unwrap();
    check_reply(&ack, GUEST, CLIENT);
    assert_eq!(option(&ack, 53), Some(vec![5]));
    // A client that cannot take unicast yet says so.
    let ack = respond(&dhcp(0x8000, &options)).unwrap();
    check_reply(&ack, Mac::BROADCAST, [255; 4]);
    // Some other server was chosen.
    options[6..10].copy_from_slice(&[10, 0, 2, 77]);
    assert_eq!(respond(&dhcp(0, &options)), None);
}

#[test]
fn another_address_is_refused() {
    let nak = respond(&dhcp(0, &[53, 1, 3, 50, 4, 192, 168, 0, 9, 255])).unwrap();
    check_reply(&nak, Mac::BROADCAST, [255; 4]);
    assert_eq!(option(&nak, 53), Some(vec![6]));
    assert_eq!(option(&nak, 1), None);
    assert_eq!(nak[58..62], [0; 4]);
    // A client that renews says its address in another place.
    let mut renewing = dhcp(0, &[53, 1, 3, 255]);
    renewing[54..58].copy_from_slice(&CLIENT);
    let ack = respond(&renewing).unwrap();
    assert_eq!(option(&ack, 53), Some(vec![5]));
}

#[test]
fn what_is_no_request_is_not_answered() {
    let discover = [53, 1, 1, 255];
    assert_eq!(respond(&dhcp(0, &[53, 1, 8, 255])), None, "inform");
    assert_eq!(respond(&dhcp(0, &[255])), None);
    assert_eq!(respond(&dhcp(0, &[53, 9, 1])), None, "cut off");
    // Port, kind of message, length of addresses, cookie.
    for (at, byte) in [(37, 66), (42, 2), (44, 8), (278, 0)] {
        let mut frame = dhcp(0, &discover);
        frame[at] = byte;
        assert_eq!(respond(&frame), None, "{at}");
    }
    let mut out = [0; 300];
    assert_eq!(responder().respond(&dhcp(0, &discover), &mut out), None);
    let silent = Responder {
        lease: None,
        ..responder()
    };
    let mut out = [0; RESPONSE_MAX];
    assert_eq!(silent.respond(&dhcp(0, &discover), &mut out), None);
}

#[test]
fn masks_are_those_of_their_lengths() {
    for (prefix_len, mask) in [
        (0, [0, 0, 0, 0]),
        (1, [128, 0, 0, 0]),
        (30, [255, 255, 255, 252]),
        (32, [255; 4]),
        (200, [255; 4]),
    ] {
        let mut responder = responder();
        let lease = responder.lease.as_mut().unwrap();
        (lease.prefix_len, lease.dns, lease.router) = (prefix_len, None, None);
        let mut out = [0; RESPONSE_MAX];
        let len = responder
            .respond(&dhcp(0, &[53, 1, 1, 255]), &mut out)
            .unwrap();
        assert_eq!(option(&out[..len], 1), Some(mask.to_vec()));
        assert_eq!(option(&out[..len], 3), None);
    }
}

proptest! {
    /// Any neighbour of a good frame: answered or not, without a panic.
    #[test]
    fn broken_frames_do_no_harm(
        which in 0..3,
        changes in prop::collection::vec((0_usize..320, any::<u8>()), 0..6),
        cut in prop::option::of(0_usize..320),
        room in 0_usize..RESPONSE_MAX,
    ) {
        let mut frame = match which {
            0 => arp(ADDRESS),
            1 => echo(ADDRESS, &[7; 100]),
            _ => dhcp(0, &[53, 1, 3, 50, 4, 10, 0, 2, 15, 255]),
        };
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        let mut out = vec![0; room];
        if let Some(len) = responder().respond(&frame, &mut out) {
            prop_assert!(len <= room);
        }
    }
}
