//! SmbdNegotiate, and the mirror cases against our initiator.

use linkspan_smbdirect::wire::{NegotiateRequest, NegotiateResponse};
use linkspan_smbdirect::{Error, Role, State};
use zerocopy::IntoBytes;

use super::peer::{Peer, initiator, request, response, small};

fn fresh() -> Peer {
    Peer::new(Role::Listener, &small(Role::Listener))
}

/// It is agreed upon, and what the suite looks at is right.
#[track_caller]
fn agrees(request: NegotiateRequest) -> NegotiateResponse {
    let mut peer = fresh();
    peer.say(request.as_bytes());
    assert_eq!(peer.core.state(), State::Connected);
    let answer = peer.response();
    assert_eq!(answer.status.get(), 0);
    assert_eq!(answer.negotiated_version.get(), 0x100);
    let granted = answer.credits_granted.get();
    assert!((1..=request.credits_requested.get()).contains(&granted));
    assert!(answer.credits_requested.get() > 0);
    assert!((128..=request.max_receive_size.get()).contains(&answer.preferred_send_size.get()));
    assert!(answer.max_fragmented_size.get() >= 131_072);
    assert!(answer.max_read_write_size.get() >= 1 << 20);
    answer
}

#[track_caller]
fn drops(bytes: &[u8]) -> Error {
    let mut peer = fresh();
    peer.say(bytes);
    assert_eq!(peer.sent, [], "nothing is answered");
    peer.assert_ends()
}

#[track_caller]
fn versions(min: u16, max: u16, supported: bool) {
    let mut asked = request(10, 1024, 1024, 131_072);
    (asked.min_version, asked.max_version) = (min.into(), max.into());
    if supported {
        agrees(asked);
        return;
    }
    let mut peer = fresh();
    peer.say(asked.as_bytes());
    assert_eq!(peer.response(), NegotiateResponse::refusal(0xC000_00BB));
    assert_eq!(peer.assert_ends(), Error::VersionRange { min, max });
}

#[test]
fn BVT_SmbdNegotiate_Basic() {
    let answer = agrees(request(10, 1024, 1024, 131_072));
    assert_eq!(answer.credits_granted.get(), 10);
}

#[test]
fn SmbdNegotiate_PreferredSendSizeWithZero() {
    let answer = agrees(request(10, 0, 1024, 131_072));
    assert_eq!(answer.max_receive_size.get(), 128);
}

#[test]
fn SmbdNegotiate_PreferredSendSizeLessThan128() {
    for size in [127, 128] {
        let answer = agrees(request(10, size, 1024, 131_072));
        assert_eq!(answer.max_receive_size.get(), 128);
    }
}

#[test]
fn SmbdNegotiate_PreferredSendSizeMaxValue() {
    for size in [8136, u32::MAX] {
        let answer = agrees(request(10, size, 1024, 131_072));
        assert_eq!(answer.max_receive_size.get(), 1024);
    }
}

#[test]
fn SmbdNegotiate_Redundancy() {
    let mut peer = fresh();
    let mut bytes = request(10, 1024, 1024, 131_072).as_bytes().to_vec();
    bytes.resize(512, 0);
    peer.say(&bytes);
    assert_eq!(peer.response().status.get(), 0);
}

#[test]
fn SmbdNegotiate_DisconnectAfterNegotiate() {
    let mut peer = fresh();
    peer.say(request(10, 1024, 1024, 131_072).as_bytes());
    peer.core.ended();
    peer.pump();
    assert_eq!(peer.core.state(), State::Disconnected);
    assert_eq!(peer.core.first_error(), Some(Error::Lost));
    agrees(request(10, 1024, 1024, 131_072));
}

#[test]
fn SmbdNegotiate_UncompletedMessage() {
    let bytes = request(10, 1024, 1024, 131_072);
    let error = drops(&bytes.as_bytes()[..19]);
    assert!(matches!(
        error,
        Error::Short {
            got: 19,
            want: 20,
            ..
        }
    ));
    for len in 0..19 {
        drops(&bytes.as_bytes()[..len]);
    }
}

#[test]
fn SmbdNegotiate_VersionRangeNotCover0x0100_LessThanMinVersion() {
    versions(0x101, u16::MAX, false);
}

#[test]
fn SmbdNegotiate_VersionRangeNotCover0x0100_LargerThanMaxVersion() {
    versions(0, 0xFF, false);
}

#[test]
fn SmbdNegotiate_VersionRangeCover0x0100_EqualMinVersion() {
    versions(0x100, u16::MAX, true);
}

#[test]
fn SmbdNegotiate_VersionRangeCover0x0100_EqualMaxVersion() {
    versions(0, 0x100, true);
}

#[test]
fn SmbdNegotiate_VersionRangeCover0x0100_InMiddle() {
    versions(0xFF, 0x101, true);
}

#[test]
fn SmbdNegotiate_VersionRangeCover0x0100_EqualMinVersionAndMaxVersion() {
    versions(0x100, 0x100, true);
}

#[test]
fn SmbdNegotiate_NegativeParameter_CreditsRequested() {
    drops(request(0, 1024, 1024, 131_072).as_bytes());
    agrees(request(1, 1024, 1024, 131_072));
    agrees(request(u16::MAX, 1024, 1024, 131_072));
}

#[test]
fn SmbdNegotiate_NegativeParameter_MaxReceiveSize() {
    drops(request(10, 1024, 127, 131_072).as_bytes());
    agrees(request(10, 1024, 128, 131_072));
    agrees(request(10, 1024, u32::MAX, 131_072));
}

#[test]
fn SmbdNegotiate_NegativeParameter_MaxFragmentedSize() {
    drops(request(10, 1024, 1024, 131_071).as_bytes());
    agrees(request(10, 1024, 1024, 131_072));
    agrees(request(10, 1024, 1024, u32::MAX));
}

#[test]
fn SmbdNegotiate_NegotiationTimer() {
    let mut peer = fresh();
    assert_eq!(peer.core.next_timeout(), Some(5000));
    peer.at(4999);
    peer.say(request(10, 1024, 1024, 131_072).as_bytes());
    assert_eq!(peer.core.state(), State::Connected);
}

/// Fault 26 (3d747366d): a peer that connects and does not negotiate.
#[test]
fn SmbdNegotiate_NegotiationTimer_Timeout() {
    let mut peer = fresh();
    peer.at(5000);
    assert_eq!(peer.assert_ends(), Error::NegotiationTimer { ms: 5000 });
}

/// What our initiator does with a response.
#[track_caller]
fn refuses(change: impl FnOnce(&mut NegotiateResponse)) -> Error {
    let mut peer = Peer::new(Role::Initiator, &small(Role::Initiator));
    let mut answer = response();
    change(&mut answer);
    peer.say(answer.as_bytes());
    peer.assert_ends()
}

#[test]
fn mirror_every_field_of_a_response_is_checked() {
    refuses(|answer| answer.negotiated_version = 0x101.into());
    refuses(|answer| answer.max_receive_size = 127.into());
    refuses(|answer| answer.max_fragmented_size = 131_071.into());
    refuses(|answer| answer.credits_granted = 0.into());
    refuses(|answer| answer.credits_requested = 0.into());
    let error = refuses(|answer| answer.preferred_send_size = 1025.into());
    let size = Error::PreferredSendSize {
        size: 1025,
        max: 1024,
    };
    assert_eq!(error, size);
    let status = 0xC000_00BB;
    let error = refuses(|answer| *answer = NegotiateResponse::refusal(status));
    assert_eq!(error, Error::Refused { status });
    for len in 0..32 {
        let mut peer = Peer::new(Role::Initiator, &small(Role::Initiator));
        peer.say(&response().as_bytes()[..len]);
        assert!(matches!(peer.assert_ends(), Error::Short { want: 32, .. }));
    }
    initiator();
}

#[test]
fn mirror_negotiation_timer_of_an_initiator() {
    let mut peer = Peer::new(Role::Initiator, &small(Role::Initiator));
    assert_eq!(peer.core.next_timeout(), Some(120_000));
    peer.at(119_999);
    assert_eq!(peer.core.state(), State::NegotiateRunning);
    peer.at(120_000);
    assert_eq!(peer.assert_ends(), Error::NegotiationTimer { ms: 120_000 });
}
