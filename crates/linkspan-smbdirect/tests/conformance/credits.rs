//! SmbdCreditMgmt, and the mirror cases against our initiator, which has credits from the
//! response on.

use linkspan_smbdirect::{Error, State};

use super::peer::{Peer, initiator_of, listener, slice, transfer};

/// A peer with so many credits sends and receives a message in segments.
fn operates(mut peer: Peer, credits: u16) {
    peer.data(transfer(credits, credits, 100, 0));
    assert_eq!(peer.read(), [100]);
    let mut left = 60_000;
    while left > 0 {
        left -= 1000;
        let granted = peer.core.status().receives_granted;
        assert!(granted > 0, "the peer may send");
        peer.data(transfer(credits, 1, 1000, left));
    }
    assert_eq!(peer.read(), [60_000]);
    peer.sent.clear();
    peer.core.send(&[slice(60_000)], None).unwrap();
    peer.pump();
    for _ in 0..1000 {
        if peer.core.status().waiting == 0 {
            break;
        }
        peer.data(transfer(credits, 1, 0, 0));
    }
    let data: u32 = peer.sent.iter().map(|(_, len)| len).sum();
    assert_eq!(data, 60_000);
}

#[test]
fn BVT_SmbdCreditMgmt_OperationWithMinimumCredits() {
    operates(listener(1), 1);
}

#[test]
fn SmbdCreditMgmt_OperationWithLimitedCredits() {
    operates(listener(10), 10);
}

/// The peer uses all credits that it has, and gets others.
fn grants_in_time(mut peer: Peer) {
    peer.sent.clear();
    for left in (0..10).rev() {
        peer.data(transfer(10, 1, 100, left * 100));
    }
    assert_eq!(peer.read(), [1000]);
    assert!(!peer.sent.is_empty());
    for (bytes, len) in &peer.sent {
        assert_eq!((bytes.len(), *len), (20, 0), "grants come without data");
    }
    assert!(peer.last().credits_granted.get() > 0);
}

/// Fault 5 (d951b4761, b6c1f8045): a peer short of credits, and nothing to send.
#[test]
fn SmbdCreditMgmt_ConsumeAllSendCredits() {
    grants_in_time(listener(10));
}

#[test]
fn SmbdCreditMgmt_ConsumeAllReceiveCredits() {
    let mut peer = listener(10);
    peer.data(transfer(10, 10, 100, 0));
    assert_eq!(peer.read(), [100]);
    peer.sent.clear();
    peer.core.send(&[slice(60_000)], None).unwrap();
    peer.pump();
    assert_eq!(
        peer.core.status().send_credits,
        0,
        "its last one granted one"
    );
    assert_eq!(peer.sent.len(), 10);
    peer.data(transfer(10, 10, 0, 0));
    assert_eq!(peer.sent.len(), 20);
}

/// A peer that has granted credits and grants no others.
fn gives_up(mut peer: Peer) {
    peer.core.send(&[slice(60_000)], None).unwrap();
    peer.pump();
    let sent = peer.sent.len();
    peer.at(120_000);
    assert_eq!(peer.sent.len(), sent, "there is no credit");
    assert_eq!(peer.core.state(), State::Connected);
    peer.at(125_000);
    assert!(matches!(peer.assert_ends(), Error::KeepAlive { .. }));
}

#[test]
fn SmbdCreditMgmt_ConsumeAllCreditServer_Timeout() {
    let mut peer = listener(10);
    peer.data(transfer(10, 10, 100, 0));
    gives_up(peer);
}

#[test]
fn SmbdCreditMgmt_NegativeParameter_CreditRequested() {
    let mut peer = listener(10);
    peer.data(transfer(0, 0, 0, 0));
    assert!(matches!(peer.assert_ends(), Error::Field { .. }));
}

#[test]
fn mirror_operation_with_minimum_credits() {
    operates(initiator_of(1), 1);
}

#[test]
fn mirror_operation_with_limited_credits() {
    operates(initiator_of(10), 10);
}

#[test]
fn mirror_consume_all_send_credits() {
    grants_in_time(initiator_of(10));
}

#[test]
fn mirror_consume_all_receive_credits() {
    let mut peer = initiator_of(10);
    peer.core.send(&[slice(60_000)], None).unwrap();
    peer.pump();
    assert_eq!(peer.core.status().send_credits, 0);
    assert_eq!(peer.sent.len(), 1 + 10, "the request costs none");
    assert!(peer.last().credits_granted.get() > 0);
    peer.data(transfer(10, 10, 0, 0));
    assert_eq!(peer.sent.len(), 1 + 20);
}

#[test]
fn mirror_consume_all_credits_timeout() {
    gives_up(initiator_of(10));
}

#[test]
fn mirror_negative_parameter_credit_requested() {
    let mut peer = initiator_of(10);
    peer.data(transfer(0, 0, 0, 0));
    assert!(matches!(peer.assert_ends(), Error::Field { .. }));
}
