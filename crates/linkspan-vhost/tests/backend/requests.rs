//! Requests of the back end, and the front end's end of their socket.

use linkspan_vhost::backend::{FramingError, Misuse, ReplyError, Requests};
use linkspan_vhost::frontend;
use linkspan_vhost::message::{BACKEND_REQUESTS, BackendRequest};
use linkspan_vhost::wire::{self, Header};
use linkspan_vhost::{Backend, ProtocolFeatures};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const ALL: ProtocolFeatures = Backend::PROTOCOL_FEATURES;
const CHANGE: u32 = BackendRequest::ConfigChangeMsg as u32;

/// Hands `bytes` over in pieces of at most `piece`.
fn feed<E>(
    mut bytes: &[u8],
    piece: usize,
    mut wanted: impl FnMut() -> usize,
    mut receive: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    while !bytes.is_empty() {
        let count = wanted().min(piece).min(bytes.len());
        assert!(count > 0);
        receive(&bytes[..count])?;
        bytes = &bytes[count..];
    }
    Ok(())
}

fn to_front(
    front: &mut frontend::Requests,
    bytes: &[u8],
    piece: usize,
) -> Result<(), frontend::RequestError> {
    let front = core::cell::RefCell::new(front);
    feed(
        bytes,
        piece,
        || front.borrow().wanted(),
        |bytes| front.borrow_mut().receive(bytes, 0),
    )
}

fn to_back(back: &mut Requests, bytes: &[u8], piece: usize) -> Result<(), ReplyError> {
    let back = core::cell::RefCell::new(back);
    feed(
        bytes,
        piece,
        || back.borrow().wanted(),
        |bytes| back.borrow_mut().receive(bytes, 0),
    )
}

#[test]
fn a_changed_config_reaches_the_front_end_and_is_acknowledged() {
    for piece in [usize::MAX, 1] {
        for features in [ALL, ALL.difference(ProtocolFeatures::REPLY_ACK)] {
            let (mut back, mut front) =
                (Requests::new(features), frontend::Requests::new(features));
            for _ in 0..3 {
                back.config_changed().expect("negotiated");
                let request = back.poll_send().expect("a request");
                to_front(&mut front, &request, piece).expect("a request");
                let event = front.poll_event();
                assert_eq!(event, Some(frontend::RequestEvent::ConfigChanged));
                match front.poll_event() {
                    Some(frontend::RequestEvent::Send { bytes }) => {
                        assert!(features.contains(ProtocolFeatures::REPLY_ACK));
                        to_back(&mut back, &bytes, piece).expect("an acknowledgement");
                    }
                    None => assert!(!features.contains(ProtocolFeatures::REPLY_ACK)),
                    Some(other) => panic!("{other:?}"),
                }
                assert_eq!(back.poll_send(), None);
                assert!(back.is_quiet() && front.is_quiet());
            }
        }
    }
}

/// A front end that does not answer costs one message, however much changes.
#[test]
fn changes_without_acknowledgement_become_one() {
    let mut back = Requests::new(ALL);
    for _ in 0..1000 {
        back.config_changed().expect("negotiated");
    }
    back.poll_send().expect("the first");
    for _ in 0..1000 {
        back.config_changed().expect("negotiated");
        assert_eq!(back.poll_send(), None);
    }
    let ack = wire::encode(CHANGE, Header::REPLY, 0u64.as_bytes());
    to_back(&mut back, &ack, 5).expect("an acknowledgement");
    back.poll_send().expect("the rest");
    assert_eq!(back.poll_send(), None);
    assert!(!back.is_quiet());
    let nack = wire::encode(CHANGE, Header::REPLY, 3u64.as_bytes());
    let error = to_back(&mut back, &nack, 5).expect_err("refused");
    assert_eq!(error, ReplyError::Refused { code: 3 });
    assert!(back.is_quiet());
    back.config_changed().expect("it goes on");
    back.poll_send().expect("a request");
}

#[test]
fn a_config_change_is_not_sent_without_config() {
    let mut back = Requests::new(ProtocolFeatures::BACKEND_REQ);
    let error = back.config_changed().expect_err("not negotiated");
    assert!(matches!(error, ReplyError::NotNegotiated { .. }));
    assert_eq!(back.poll_send(), None);
}

#[test]
fn replies_that_were_not_asked_for_close_the_socket() {
    let ack = wire::encode(CHANGE, Header::REPLY, 0u64.as_bytes());
    let mut back = Requests::new(ALL);
    let error = to_back(&mut back, &ack, usize::MAX).expect_err("nothing was asked");
    assert_eq!(error, ReplyError::Unasked { got: CHANGE });
    assert_eq!(back.wanted(), 0);
    assert_eq!(back.receive(&[0], 0), Err(ReplyError::Misuse(Misuse::Over)));
    for (reply, expected) in [
        (
            wire::encode(3, Header::REPLY, 0u64.as_bytes()),
            ReplyError::Unasked { got: 3 },
        ),
        (
            wire::encode(CHANGE, Header::REPLY, &[0; 4]),
            ReplyError::Size { bytes: 4, fds: 0 },
        ),
        (
            wire::encode(CHANGE, 0, &[]),
            ReplyError::Framing(FramingError::Request),
        ),
    ] {
        let mut back = Requests::new(ALL);
        back.config_changed().expect("negotiated");
        back.poll_send().expect("a request");
        assert_eq!(to_back(&mut back, &reply, usize::MAX), Err(expected));
    }
}

/// Whatever a back end asks for that was not negotiated is refused, with a
/// reply if that can be understood.
#[test]
fn every_request_but_a_config_change_is_refused() {
    for row in BACKEND_REQUESTS.iter().filter(|row| row.code != CHANGE) {
        for (features, asks) in [(ALL, true), (ALL, false), (ProtocolFeatures::CONFIG, true)] {
            let mut front = frontend::Requests::new(features);
            let flags = if asks { Header::NEED_REPLY } else { 0 };
            let message = wire::encode(row.code, flags, &vec![0; *row.payload.sizes().start()]);
            let error = to_front(&mut front, &message, usize::MAX).expect_err("refused");
            let reply = front.poll_event();
            assert_eq!(error.is_nacked(), reply.is_some(), "{}", row.name);
            if features == ALL && asks && row.name != "VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP" {
                assert!(error.is_nacked(), "{}", row.name);
            }
            if let Some(frontend::RequestEvent::Send { bytes }) = reply {
                let value = u64::read_from_bytes(&bytes[12..]).expect("8 bytes");
                assert_ne!(value, 0);
                assert_eq!(front.wanted(), 12, "it goes on");
            } else {
                assert_eq!(front.wanted(), 0, "it is over");
            }
        }
    }
}

#[test]
fn a_config_change_with_body_or_descriptors_is_refused() {
    let mut front = frontend::Requests::new(ALL);
    let message = wire::encode(CHANGE, 0, &[0]);
    let error = to_front(&mut front, &message, usize::MAX).expect_err("a body");
    assert!(matches!(
        error,
        frontend::RequestError::BodySize { got: 1, .. }
    ));
    let mut front = frontend::Requests::new(ALL);
    let error = front.receive(&wire::encode(CHANGE, 0, &[]), 1);
    let error = error.expect_err("a descriptor");
    assert!(matches!(
        error,
        frontend::RequestError::FdCount { got: 1, .. }
    ));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200), fds in vec(0usize..10, 0..20)) {
        let mut front = frontend::Requests::new(ALL);
        let mut back = Requests::new(ALL);
        back.config_changed().expect("negotiated");
        back.poll_send().expect("a request");
        let (mut rest, mut fds) = (bytes.as_slice(), fds.into_iter());
        while !rest.is_empty() {
            let count = front.wanted().min(back.wanted()).min(rest.len());
            let fds = fds.next().unwrap_or(0);
            let front = front.receive(&rest[..count], fds);
            let back = back.receive(&rest[..count], fds);
            if count == 0 || front.is_err() || back.is_err() {
                break;
            }
            rest = &rest[count..];
        }
    }
}
