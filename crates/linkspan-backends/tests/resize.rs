//! A disk whose image is enlarged while a driver uses it: configuration space,
//! requests, and how the front end is told (vhost-user: `BACKEND_REQ`).

use std::os::fd::{AsFd, OwnedFd};

use linkspan_backends::image::ResizeError;
use linkspan_sys::EventFd;
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::{SECTORS, content};
use linkspan_testkit::{Disk, FrontEnd, Io, Options, Refused, Served};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::message::{BackendRequest, Request};
use linkspan_vhost::wire::{self, Header};

const BYTES: u64 = SECTORS * SECTOR as u64;

fn capacity(front: &FrontEnd) -> u64 {
    let body = [[0, 8, 0].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
    let reply = front.ask(Request::GetConfig, &body, &[]).unwrap();
    u64::from_le_bytes(reply[12..].try_into().unwrap())
}

/// The request that says that configuration space changed; whether it wants an answer.
#[track_caller]
fn expect_change(requests: &FrontEnd) -> bool {
    let (header, body) = requests.receive().expect("the socket is open");
    assert_eq!(header.request, BackendRequest::ConfigChangeMsg.code());
    assert!(body.is_empty());
    header.flags & Header::NEED_REPLY != 0
}

fn answer(requests: &FrontEnd, code: u64) -> bool {
    let request = BackendRequest::ConfigChangeMsg.code();
    requests.send_raw(
        &wire::encode(request, Header::REPLY, &code.to_ne_bytes()),
        &[],
    )
}

#[test]
fn larger_image_is_announced_seen_and_used() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    let requests = disk.front.listen_to_requests().unwrap();
    assert_eq!(capacity(&disk.front), SECTORS);
    let last = Io::Read {
        sector: 2 * SECTORS - 1,
        len: SECTOR,
    };
    assert_eq!(disk.rings[0].request(last).status, 1, "outside so far");
    for times in 2..5 {
        let bytes = times * BYTES;
        assert_eq!(served.resize(bytes).unwrap(), Some(bytes));
        assert!(expect_change(&requests), "REPLY_ACK is negotiated");
        answer(&requests, 0);
        assert_eq!(capacity(&disk.front), times * SECTORS);
        for ring in &mut disk.rings {
            let sector = times * SECTORS - 1;
            ring.write(sector, &content(sector));
            assert_eq!(ring.read(sector, SECTOR), content(sector));
        }
    }
    disk.shut_down();
}

#[test]
fn smaller_image_is_refused_and_the_disk_keeps_its_size() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let requests = disk.front.listen_to_requests().unwrap();
    let refused = served.resize(BYTES / 2);
    assert!(
        matches!(refused, Err(ResizeError::Smaller { from: BYTES, to }) if to == BYTES / 2),
        "{refused:?}"
    );
    assert_eq!(capacity(&disk.front), SECTORS);
    // Only what is gone fails, and the ring goes on.
    assert_eq!(disk.rings[0].read(0, SECTOR), content(0));
    let gone = Io::Read {
        sector: SECTORS - 1,
        len: SECTOR,
    };
    assert_eq!(disk.rings[0].request(gone).status, 1);
    assert!(!requests.has_message(), "nothing changed for the driver");
    // The same size again is no change.
    assert_eq!(served.resize(BYTES).unwrap(), None);
    disk.shut_down();
}

/// A front end that does not answer gets one request, and one more after that.
#[test]
fn changes_in_quick_succession_are_one_request() {
    let served = Served::disk(1);
    let disk = served.drive(1);
    let requests = disk.front.listen_to_requests().unwrap();
    served.resize(2 * BYTES).unwrap();
    assert!(expect_change(&requests));
    for times in 3..20 {
        served.resize(times * BYTES).unwrap();
        disk.front.sync().unwrap();
        assert!(!requests.has_message(), "one is not answered yet");
    }
    // Refused or not, the front end heard of it.
    answer(&requests, 1);
    assert!(expect_change(&requests));
    answer(&requests, 0);
    disk.front.sync().unwrap();
    assert_eq!(capacity(&disk.front), 19 * SECTORS);
    assert!(!requests.has_message());
    disk.shut_down();
}

/// Without acknowledgements there may be any number of them, and a front end
/// that reads none holds nobody.
#[test]
fn front_end_that_never_reads_requests_is_served() {
    let served = Served::disk(1);
    let options = Options {
        reply_ack: false,
        ..Options::default()
    };
    let mut disk = Disk::bring_up(served.connect(), &options, 1, 64).unwrap();
    let requests = disk.front.listen_to_requests().unwrap();
    for round in 0..2000 {
        served.server().config_changed();
        disk.front.sync().unwrap();
        if round % 100 == 0 {
            assert_eq!(disk.rings[0].read(round, SECTOR), content(round));
        }
    }
    assert!(!expect_change(&requests), "no answer is asked for");
    disk.shut_down();
}

#[test]
fn change_before_there_is_a_socket_is_announced_on_it() {
    let served = Served::disk(1);
    let disk = served.drive(1);
    assert_eq!(capacity(&disk.front), SECTORS);
    served.resize(2 * BYTES).unwrap();
    let first = disk.front.listen_to_requests().unwrap();
    assert!(expect_change(&first));
    // A new socket replaces the one of before, which is closed.
    let second = disk.front.listen_to_requests().unwrap();
    first.expect_closed();
    served.resize(3 * BYTES).unwrap();
    assert!(expect_change(&second));
    // A closed one is given up, and the session goes on.
    drop(second);
    served.resize(4 * BYTES).unwrap();
    assert_eq!(capacity(&disk.front), 4 * SECTORS);
    let third = disk.front.listen_to_requests().unwrap();
    served.resize(5 * BYTES).unwrap();
    assert!(expect_change(&third));
    disk.shut_down();
    third.expect_closed();
}

#[test]
fn answers_that_make_no_sense_close_that_socket_only() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let change = BackendRequest::ConfigChangeMsg.code();
    let event: OwnedFd = EventFd::new().unwrap().into();
    let wrong = [
        // Nobody asked, or for something else, or it is no reply at all.
        (wire::encode(change, Header::REPLY, &[0; 8]), false, false),
        (wire::encode(7, Header::REPLY, &[0; 8]), true, false),
        (wire::encode(change, 0, &[0; 8]), true, false),
        (wire::encode(change, Header::REPLY, &[0; 4]), true, false),
        (wire::encode(change, Header::REPLY, &[0; 8]), true, true),
        (vec![0xff; 64], true, false),
    ];
    for (bytes, asked, with_fd) in wrong {
        let requests = disk.front.listen_to_requests().unwrap();
        if asked {
            served.server().config_changed();
            expect_change(&requests);
        }
        let fds = if with_fd { vec![event.as_fd()] } else { vec![] };
        requests.send_raw(&bytes, &fds);
        requests.expect_closed();
        assert_eq!(disk.rings[0].read(1, SECTOR), content(1));
    }
    disk.shut_down();
}

#[test]
fn who_did_not_negotiate_is_not_told() {
    let served = Served::disk(1);
    let mut front = served.connect();
    front.decline(ProtocolFeatures::BACKEND_REQ);
    front.negotiate(&Options::default()).unwrap();
    let refused = front.listen_to_requests();
    assert!(matches!(refused, Err(Refused::Nack { .. })));

    drop(front);
    let mut front = served.connect();
    front.decline(ProtocolFeatures::CONFIG);
    front.negotiate(&Options::default()).unwrap();
    let requests = front.listen_to_requests().unwrap();
    served.server().config_changed();
    front.sync().unwrap();
    front.sync().unwrap();
    assert!(!requests.has_message());
    drop(front);
    assert!(settled(|| requests.has_message()), "it is closed");
    assert!(requests.receive().is_none());
}

#[test]
fn descriptor_that_is_no_socket_is_refused() {
    let served = Served::disk(1);
    let mut front = served.connect();
    front.negotiate(&Options::default()).unwrap();
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let refused = front.tell(Request::SetBackendReqFd, &[], &[pipe.as_fd()]);
    assert!(matches!(refused, Err(Refused::Nack { .. })));
    front.sync().unwrap();
}
