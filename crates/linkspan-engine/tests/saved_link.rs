//! A link as bytes: what the release before wrote is read, and nothing else is believed.

use linkspan_engine::vhost_user::{HandedFd, SavedError, SavedLink, SavedRing, SavedSession};
use linkspan_virtio::QueueState;
use proptest::prelude::*;

/// What the first release that could hand a link over wrote.
const FIRST: &[u8] = include_bytes!("saved/link-1.bin");

fn link() -> SavedLink {
    let ring = |index, next_available| SavedRing {
        index,
        retired: index == 3,
        state: QueueState {
            next_available,
            next_used: next_available,
        },
    };
    SavedLink {
        device_id: 2,
        generation: 7,
        paused_at: 123_456_789,
        socket: Some((42, 4711)),
        session: Some(SavedSession {
            core: vec![1, 2, 3, 4, 5],
            device: 4096_u64.to_le_bytes().to_vec(),
            rings: vec![ring(0, 17), ring(3, 65535)],
            changed: true,
        }),
        fds: vec![
            HandedFd::Listener,
            HandedFd::Connection,
            HandedFd::Region(0),
            HandedFd::Region(1),
            HandedFd::Kick(0),
            HandedFd::Call(0),
            HandedFd::Err(3),
            HandedFd::Inflight,
            HandedFd::Log,
            HandedFd::LogTold,
            HandedFd::Requests,
        ],
    }
}

#[test]
fn what_the_first_form_has_is_read() {
    assert_eq!(SavedLink::parse(FIRST).unwrap(), link());
    let idle = SavedLink {
        session: None,
        ..link()
    };
    assert_eq!(SavedLink::parse(&idle.bytes()).unwrap(), idle);
}

#[test]
fn a_newer_form_is_refused_by_name() {
    let mut newer = FIRST.to_vec();
    newer[8] = 2;
    let error = SavedLink::parse(&newer).unwrap_err();
    assert_eq!(error, SavedError::Version { got: 2 });
    assert!(error.to_string().contains("newer than this program"));
}

#[test]
fn every_shorter_and_longer_form_is_refused() {
    for len in 0..FIRST.len() {
        assert!(SavedLink::parse(&FIRST[..len]).is_err(), "{len}");
    }
    let mut longer = FIRST.to_vec();
    longer.push(0);
    let error = SavedLink::parse(&longer).unwrap_err();
    assert!(matches!(error, SavedError::Length { .. }), "{error}");
}

#[test]
fn what_is_there_twice_is_named() {
    let mut twice = link();
    twice.fds.push(HandedFd::Kick(0));
    let error = SavedLink::parse(&twice.bytes()).unwrap_err();
    let fd = HandedFd::Kick(0);
    assert_eq!(error, SavedError::FdTwice { fd });
    let mut twice = link();
    let rings = &mut twice.session.as_mut().unwrap().rings;
    rings.swap(0, 1);
    let error = SavedLink::parse(&twice.bytes()).unwrap_err();
    assert_eq!(error, SavedError::Rings { ring: 0 });
}

proptest! {
    /// Whatever the bytes are, they are refused, or say the same once more.
    #[test]
    fn bytes_are_refused_or_mean_something(
        at in 0..FIRST.len(),
        byte: u8,
    ) {
        let mut bytes = FIRST.to_vec();
        bytes[at] = byte;
        if let Ok(link) = SavedLink::parse(&bytes) {
            prop_assert_eq!(SavedLink::parse(&link.bytes()), Ok(link));
        }
    }
}
