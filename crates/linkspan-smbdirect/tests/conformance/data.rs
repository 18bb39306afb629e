//! SmbdDataTransfer.

use linkspan_smbdirect::wire::{DataTransfer, RESPONSE_REQUESTED};
use linkspan_smbdirect::{Error, State};
use zerocopy::IntoBytes;

use super::peer::{Peer, initiator, listener, slice, transfer};

/// Both roles, connected.
fn both() -> [Peer; 2] {
    [listener(10), initiator()]
}

#[track_caller]
fn ends(change: impl Fn(&mut DataTransfer)) -> Error {
    let errors = both().map(|mut peer| {
        let mut header = transfer(10, 1, 100, 0);
        change(&mut header);
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(124, 0);
        peer.say(&bytes);
        assert_eq!(peer.read(), []);
        peer.assert_ends()
    });
    assert_eq!(errors[0], errors[1]);
    errors[0]
}

/// A message in segments of these lengths; grants come back by messages without data.
#[track_caller]
fn arrives(peer: &mut Peer, lengths: &[u32]) {
    let total: u32 = lengths.iter().sum();
    let mut left = total;
    // A few, and then as many as are used.
    let mut grant = 10;
    for &len in lengths {
        left -= len;
        let sent = peer.sent.len();
        peer.data(transfer(255, grant, len, left));
        grant = u16::try_from(peer.sent.len() - sent).unwrap();
        assert_eq!(peer.core.state(), State::Connected);
        let status = peer.core.status();
        let can_go_on = status.receives_granted > 0 || left == 0;
        assert!(can_go_on, "{status:?}");
    }
    assert_eq!(peer.read(), [total]);
}

#[test]
fn BVT_SmbdDataTransfer_Basic_SendSmallBytesOfData() {
    for mut peer in both() {
        arrives(&mut peer, &[500]);
    }
}

#[test]
fn BVT_SmbdDataTransfer_Basic_SendModerateBytesData() {
    for mut peer in both() {
        let mut lengths = vec![1000; 65];
        lengths.push(536);
        arrives(&mut peer, &lengths);
    }
}

#[test]
fn SmbdDataTransfer_VariableLengthSegment() {
    for mut peer in both() {
        let mut lengths = vec![0];
        for _ in 0..7 {
            lengths.extend((0..=128).rev());
            lengths.extend(1..128);
        }
        // The last segment has the last byte.
        lengths.push(1);
        arrives(&mut peer, &lengths);
    }
}

/// Fault 4 (4a93d1ee2d02): all receive buffers wait for the rest of a message.
#[test]
fn SmbdDataTransfer_SmallLengthSegment() {
    for mut peer in both() {
        arrives(&mut peer, &vec![1; 131_072]);
        assert_eq!(peer.core.status().held_buffers, 0);
        assert!(peer.core.status().traffic.kept > 100_000);
    }
}

#[test]
fn SmbdDataTransfer_Redundancy() {
    for mut peer in both() {
        let mut bytes = transfer(255, 1, 500, 0).as_bytes().to_vec();
        bytes.resize(1024, 0);
        peer.say(&bytes);
        assert_eq!(peer.read(), [500]);
    }
}

#[test]
fn SmbdDataTransfer_ReceiveMaxReceiveSize() {
    let mut peer = listener(10);
    peer.data(transfer(10, 10, 100, 0));
    peer.sent.clear();
    peer.core.send(&[slice(1000)], None).unwrap();
    peer.pump();
    let (bytes, len) = &peer.sent[0];
    assert_eq!(bytes.len() + *len as usize, 1024);
    let header = peer.last();
    assert_eq!(header.remaining_data_length.get(), 0);
    assert_eq!(header.data_length.get(), 1000);
}

#[test]
fn SmbdDataTransfer_UncompletedMessage() {
    for len in 0..20 {
        for mut peer in both() {
            peer.say(&transfer(10, 1, 0, 0).as_bytes()[..len]);
            assert!(matches!(peer.assert_ends(), Error::Short { want: 20, .. }));
        }
    }
}

#[test]
fn SmbdDataTransfer_NegativeParameter_DataOffset_Against8ByteAligned() {
    for offset in [23, 25] {
        let error = ends(|header| header.data_offset = offset.into());
        assert_eq!(error, Error::DataOffset { offset });
    }
    for offset in [0, 8, 16] {
        let error = ends(|header| header.data_offset = offset.into());
        assert_eq!(error, Error::DataInHeader { offset });
    }
}

/// Fault 10 (CVE-2025-39943, CVE-2025-39933): data outside of what arrived.
#[test]
fn SmbdDataTransfer_NegativeParameter_DataOffset_AgainstMessageLength() {
    for offset in [32, u32::MAX - 7] {
        let error = ends(|header| header.data_offset = offset.into());
        assert!(matches!(error, Error::DataOutside { .. }));
    }
    ends(|header| header.data_offset = u32::MAX.into());
}

#[test]
fn SmbdDataTransfer_NegativeParameter_DataLength_AgainstMessageLength() {
    for length in [101, 1024, u32::MAX] {
        let error = ends(|header| header.data_length = length.into());
        assert!(matches!(error, Error::DataOutside { .. }));
    }
}

#[test]
fn SmbdDataTransfer_NegativeParameter_DataLength_AgainstMaxReceiveSize() {
    for mut peer in both() {
        peer.data(transfer(10, 1, 1000, 0));
        assert_eq!(peer.read(), [1000]);
        peer.data(transfer(10, 1, 1001, 0));
        let error = peer.assert_ends();
        assert_eq!(
            error,
            Error::TooLong {
                len: 1025,
                max: 1024
            }
        );
    }
}

#[test]
fn SmbdDataTransfer_NegativeParameter_AgainstMaxFragmentedSize() {
    for mut peer in both() {
        let mut lengths = vec![1000; 131];
        lengths.push(72);
        arrives(&mut peer, &lengths);
        peer.data(transfer(10, 1, 1000, 130_073));
        assert!(matches!(peer.assert_ends(), Error::MessageTooLong { .. }));
    }
}

/// Fault 11 (CVE-2025-39942): a remaining length without a bound.
#[test]
fn SmbdDataTransfer_NegativeParameter_RemainingDataLength_AgainstMaxFragmentedSize() {
    for remaining in [131_073, u32::MAX] {
        let error = ends(|header| header.remaining_data_length = remaining.into());
        assert!(matches!(error, Error::MessageTooLong { .. }));
    }
}

#[test]
fn SmbdDataTransfer_NegativeParameter_RemainingDataLength_Zero() {
    for mut peer in both() {
        peer.data(transfer(10, 1, 1000, 5000));
        peer.data(transfer(10, 1, 1000, 0));
        assert!(matches!(peer.assert_ends(), Error::Reassembly { .. }));
    }
}

#[test]
fn SmbdDataTransfer_NegativeParameter_RemainingDataLength_AgainstFragmentReassemblyRemaining() {
    for mut peer in both() {
        peer.data(transfer(10, 1, 1000, 5000));
        peer.data(transfer(10, 1, 1000, 4001));
        assert!(matches!(peer.assert_ends(), Error::Reassembly { .. }));
    }
}

/// Fault 6 (9183a8361): signs of life answered each other for ever.
#[test]
fn SmbdDataTransfer_IdleConnection_Client() {
    let mut peer = listener(10);
    peer.at(119_000);
    peer.sent.clear();
    let mut header = transfer(10, 1, 0, 0);
    header.flags = RESPONSE_REQUESTED.into();
    peer.data(header);
    let answer = peer.last();
    assert_eq!(peer.sent.len(), 1, "at once, and once");
    assert!(answer.credits_granted.get() > 0);
    assert_eq!(answer.flags.get(), 0, "it asks for no answer");
}

#[test]
fn SmbdDataTransfer_IdleConnection_Server() {
    let mut peer = listener(10);
    peer.data(transfer(10, 5, 0, 0));
    peer.sent.clear();
    peer.at(119_999);
    assert_eq!(peer.sent, []);
    peer.at(120_000);
    assert_eq!(peer.last().flags.get(), RESPONSE_REQUESTED);
    assert_eq!(peer.last().data_length.get(), 0);
    peer.now = 124_999;
    peer.data(transfer(10, 1, 0, 0));
    peer.at(125_000);
    assert_eq!(peer.core.state(), State::Connected);
    assert_eq!(peer.core.next_timeout(), Some(244_999));
}

/// Fault 27: a peer that is dead without a word.
#[test]
fn SmbdDataTransfer_IdleConnection_Server_Timeout() {
    for mut peer in both() {
        peer.data(transfer(10, 5, 0, 0));
        peer.at(120_000);
        peer.at(125_000);
        assert!(matches!(peer.assert_ends(), Error::KeepAlive { .. }));
    }
}

#[test]
fn a_sign_of_life_can_be_asked_for_at_any_time() {
    for mut peer in both() {
        peer.data(transfer(10, 5, 0, 0));
        peer.sent.clear();
        // Asking again while an answer is awaited asks nothing.
        for _ in 0..2 {
            peer.core.ask(peer.now).unwrap();
            peer.pump();
        }
        assert_eq!(peer.sent.len(), 1);
        assert_eq!(peer.last().flags.get(), RESPONSE_REQUESTED);
        assert!(peer.core.status().awaits_sign_of_life);
        peer.data(transfer(10, 1, 0, 0));
        assert!(!peer.core.status().awaits_sign_of_life);
        assert_eq!(peer.core.next_timeout(), Some(120_000));
        peer.core.ask(0).unwrap();
        peer.pump();
        peer.at(5000);
        assert!(matches!(peer.assert_ends(), Error::KeepAlive { .. }));
        assert!(peer.core.ask(5000).is_err());
    }
}
