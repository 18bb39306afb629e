//! What a relay tells of SMB Direct, and what it leaves alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use linkspan_smb2::announce::{ANSWER_MAX, ASK_LEN, Announce};
use linkspan_smb2::header::flags;
use linkspan_smb2::ioctl::{self, Interface, IoctlRequest, IoctlResponse, RDMA_CAPABLE, code};
use linkspan_smb2::{Command, Header, status};
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));

fn message(id: u64, flags: u32, status: u32, body: &[u8]) -> Vec<u8> {
    let mut header = Header::request(Command::Ioctl);
    header.message_id = id.into();
    header.flags = flags.into();
    header.status = status.into();
    [header.as_bytes(), body].concat()
}

fn asked(id: u64, code: u32, max: u32) -> Vec<u8> {
    let request = IoctlRequest {
        code: code.into(),
        max_output: max.into(),
        ..IoctlRequest::new()
    };
    message(id, 0, 0, &request.body(&[]))
}

/// An interface of the server.
fn interface(address: IpAddr, index: u32, speed: u64) -> Interface {
    Interface {
        capability: 1.into(),
        index: index.into(),
        link_speed: speed.into(),
        ..Interface::at(address)
    }
}

/// They as a chain of 152 bytes each.
fn chain(interfaces: &[Interface]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, interface) in interfaces.iter().enumerate() {
        let is_last = number + 1 == interfaces.len();
        let next = if is_last { 0_u32 } else { 152 };
        let entry = Interface {
            next: next.into(),
            ..*interface
        };
        bytes.extend_from_slice(entry.as_bytes());
        bytes.resize((number + 1) * 152, 0);
    }
    bytes
}

fn answer(id: u64, flags: u32, output: &[u8]) -> Vec<u8> {
    let response = IoctlResponse {
        code: code::QUERY_NETWORK_INTERFACE_INFO.into(),
        ..IoctlResponse::new()
    };
    message(id, flags::RESPONSE | flags, 0, &response.body(output))
}

/// What becomes of an answer to a question of this client.
fn told(max: u32, flags: u32, output: &[u8]) -> Option<Vec<Interface>> {
    let mut announce = Announce::new(HERE);
    let ask = asked(3, code::QUERY_NETWORK_INTERFACE_INFO, max);
    announce.from_client(&ask[..ASK_LEN]);
    let answer = answer(3, flags, output);
    if !announce.wants(&answer[..Header::LEN], answer.len()) {
        return None;
    }
    let changed = announce.from_server(&answer);
    assert_eq!(announce.asked(), 0);
    let changed = changed?;
    assert_eq!(changed[..Header::LEN], answer[..Header::LEN]);
    use linkspan_smb2::wire::Body as _;
    let output = IoctlResponse::read(&changed).unwrap();
    Some(ioctl::interfaces(output.output(&changed).unwrap()).unwrap())
}

#[test]
fn the_address_is_one_more_behind_those_of_the_server() {
    let own = [
        interface(THERE, 2, 5),
        interface(Ipv6Addr::LOCALHOST.into(), 7, 9),
    ];
    let told = told(4096, 0, &chain(&own)).unwrap();
    assert_eq!(told.len(), 3);
    assert_eq!(told[0].ip(), Some(THERE));
    assert_eq!(
        (told[2].ip(), told[2].capability.get()),
        (Some(HERE), RDMA_CAPABLE)
    );
    assert_eq!((told[2].index.get(), told[2].link_speed.get()), (8, 9));
}

#[test]
fn a_server_at_the_same_address_has_rdma_there() {
    let own = [interface(THERE, 2, 5), interface(HERE, 3, 5)];
    let told = told(4096, 0, &chain(&own)).unwrap();
    assert_eq!(told.len(), 2);
    assert_eq!(
        (told[0].capability.get(), told[1].capability.get()),
        (1, 1 | RDMA_CAPABLE)
    );
}

#[test]
fn a_server_that_names_none_has_one() {
    let told = told(152, 0, &[]).unwrap();
    assert_eq!((told.len(), told[0].ip()), (1, Some(HERE)));
}

#[test]
fn what_cannot_or_need_not_be_changed_goes_on_as_it_is() {
    let own = chain(&[interface(THERE, 2, 5)]);
    // Signed; more than the client takes; known already; no list.
    assert_eq!(told(4096, flags::SIGNED, &own), None);
    assert_eq!(told(303, 0, &own), None);
    assert!(told(304, 0, &own).is_some());
    assert_eq!(told(4096, 0, &chain(&[Interface::at(HERE)])), None);
    assert_eq!(told(4096, 0, &own[..100]), None);
    // Not asked for; asked for something else; refused; not answered yet; too long.
    let mut announce = Announce::new(HERE);
    let said = answer(3, 0, &own);
    assert!(!announce.wants(&said[..Header::LEN], said.len()));
    announce.from_client(&asked(3, code::SET_SPARSE, 4096));
    announce.from_client(&message(
        3,
        flags::SIGNED,
        0,
        &asked(3, code::QUERY_NETWORK_INTERFACE_INFO, 9)[64..],
    ));
    assert_eq!(announce.asked(), 0);
    let ask = asked(3, code::QUERY_NETWORK_INTERFACE_INFO, 4096);
    announce.from_client(&ask);
    let interim = message(3, flags::RESPONSE | flags::ASYNC, status::PENDING, &[9, 0]);
    assert!(!announce.wants(&interim, interim.len()));
    assert_eq!(announce.asked(), 1);
    assert!(!announce.wants(&said[..Header::LEN], ANSWER_MAX + 1));
    assert_eq!(announce.asked(), 0);
    announce.from_client(&ask);
    let refused = message(3, flags::RESPONSE, status::ACCESS_DENIED, &[9, 0]);
    assert!(!announce.wants(&refused, refused.len()));
    assert_eq!(announce.asked(), 0);
}

#[test]
fn questions_that_are_not_answered_are_bounded() {
    let mut announce = Announce::new(HERE);
    for id in 0..1000 {
        announce.from_client(&asked(id, code::QUERY_NETWORK_INTERFACE_INFO, 4096));
    }
    assert_eq!(announce.asked(), 16);
}

proptest! {
    #[test]
    fn whatever_is_said_is_taken(ask in any::<Vec<u8>>(), said in any::<Vec<u8>>(), output in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut announce = Announce::new(HERE);
        announce.from_client(&ask);
        announce.wants(&said, said.len());
        announce.from_server(&said);
        announce.from_client(&asked(3, code::QUERY_NETWORK_INTERFACE_INFO, u32::MAX));
        let said = answer(3, 0, &output);
        if announce.wants(&said, said.len()) {
            announce.from_server(&said);
        }
    }
}
