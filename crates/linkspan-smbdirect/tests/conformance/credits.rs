//! SmbdCreditMgmt.

use linkspan_smbdirect::{Error, State};

use super::peer::{listener, slice, transfer};

/// A peer with so many credits sends and receives a message in segments.
fn operates(credits: u16) {
    let mut peer = listener(credits);
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
    operates(1);
}

#[test]
fn SmbdCreditMgmt_OperationWithLimitedCredits() {
    operates(10);
}

#[test]
fn SmbdCreditMgmt_ConsumeAllSendCredits() {
    let mut peer = listener(10);
    peer.sent.clear();
    for left in (0..10).rev() {
        peer.data(transfer(10, 1, 100, left * 100));
    }
    assert!(!peer.sent.is_empty());
    for (bytes, len) in &peer.sent {
        assert_eq!((bytes.len(), *len), (20, 0), "grants come without data");
    }
    assert!(peer.last().credits_granted.get() > 0);
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

#[test]
fn SmbdCreditMgmt_ConsumeAllCreditServer_Timeout() {
    let mut peer = listener(10);
    peer.data(transfer(10, 10, 100, 0));
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
fn SmbdCreditMgmt_NegativeParameter_CreditRequested() {
    let mut peer = listener(10);
    peer.data(transfer(0, 0, 0, 0));
    assert!(matches!(peer.assert_ends(), Error::Field { .. }));
}
