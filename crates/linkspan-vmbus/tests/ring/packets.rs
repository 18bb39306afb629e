//! Kinds of packets, from their bytes.

use linkspan_vmbus::packet::{Contents, Header, PacketError, TransferRange, kind};

use crate::Rig;

/// Puts a packet with `head` between descriptor and payload into a ring, and hands
/// what is made of it to `look`.
fn with<T>(
    kind: u16,
    flags: u16,
    head: &[u8],
    payload: &[u8],
    look: impl Fn(Result<Contents<'_>, PacketError>) -> T,
) -> T {
    let mut rig = Rig::new(16 << 10);
    let header = Header {
        kind,
        flags,
        transaction_id: 5,
    };
    rig.outgoing.send(header, &[head, payload]).unwrap();
    rig.outgoing.publish().unwrap();
    // The payload begins behind the head.
    let offset8 = u16::try_from(2 + head.len() / 8).unwrap();
    rig.poke(2, &offset8.to_le_bytes());
    rig.incoming.refresh().unwrap();
    assert!(rig.incoming.receive(&mut rig.packet).unwrap());
    let seen = look(rig.packet.contents());
    // A packet that makes no sense does not break the ring.
    assert!(!rig.incoming.receive(&mut rig.packet).unwrap());
    seen
}

fn refused(kind: u16, flags: u16, head: &[u8]) -> PacketError {
    with(kind, flags, head, b"", |contents| contents.err().unwrap())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn pages(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

#[test]
fn every_kind_is_understood() {
    with(kind::VM_PKT_DATA_INBAND, 1, b"", b"12345678", |contents| {
        assert_eq!(
            contents,
            Ok(Contents::InBand {
                payload: b"12345678"
            })
        );
    });
    with(kind::VM_PKT_COMP, 0, b"", b"12345678", |contents| {
        assert_eq!(
            contents,
            Ok(Contents::Completion {
                payload: b"12345678"
            })
        );
    });
    let head = [
        &[0xCA, 0xFE, 1, 0, 2, 0, 0, 0][..],
        &words(&[100, 8, 200, 16]),
    ]
    .concat();
    with(
        kind::VM_PKT_DATA_USING_XFER_PAGES,
        1,
        &head,
        b"",
        |contents| {
            let Ok(Contents::TransferPages {
                set,
                sender_owns_set,
                ranges,
                ..
            }) = contents
            else {
                panic!("{contents:?}");
            };
            assert_eq!((set, sender_owns_set), (0xFECA, true));
            let want = [(100, 8), (200, 16)].map(|(len, offset)| TransferRange { len, offset });
            assert_eq!(ranges.iter().collect::<Vec<_>>(), want);
        },
    );
    with(
        kind::VM_PKT_DATA_USING_GPADL,
        0,
        &words(&[77, 0]),
        b"",
        |contents| {
            assert!(matches!(contents, Ok(Contents::Gpadl { gpadl: 77, .. })));
        },
    );
}

#[test]
fn every_kind_with_pages_is_understood() {
    let ranges = [
        words(&[8192, 100]),
        pages(&[1, 2, 3]),
        words(&[1, 0]),
        pages(&[9]),
    ]
    .concat();
    let check = |found: Vec<(u32, u32, Vec<u64>)>| {
        assert_eq!(found, [(8192, 100, vec![1, 2, 3]), (1, 0, vec![9])]);
    };
    let head = [words(&[0, 2]), ranges.clone()].concat();
    with(
        kind::VM_PKT_DATA_USING_GPA_DIRECT,
        1,
        &head,
        b"12345678",
        |contents| {
            let Ok(Contents::GpaDirect { ranges, payload }) = contents else {
                panic!("{contents:?}");
            };
            assert_eq!(payload, b"12345678");
            assert_eq!(ranges.page_count(), 4);
            check(
                ranges
                    .iter()
                    .map(|range| (range.len, range.offset, range.pages().collect()))
                    .collect(),
            );
        },
    );
    let body = [words(&[77, 2]), ranges].concat();
    for (head, payload) in [(&body[..], &b""[..]), (b"", &body)] {
        with(kind::VM_PKT_ESTABLISH_GPADL, 0, head, payload, |contents| {
            let Ok(Contents::EstablishGpadl { gpadl, ranges }) = contents else {
                panic!("{contents:?}");
            };
            assert_eq!(gpadl, 77);
            check(
                ranges
                    .iter()
                    .map(|range| (range.len, range.offset, range.pages().collect()))
                    .collect(),
            );
        });
    }
    with(
        kind::VM_PKT_TEARDOWN_GPADL,
        0,
        &words(&[77, 0]),
        b"",
        |contents| {
            assert_eq!(contents, Ok(Contents::TeardownGpadl { gpadl: 77 }));
        },
    );
}

#[test]
fn what_makes_no_sense_is_named() {
    for kind in [0, 1, 2, 3, 10, 12, 13, 14, 0xFFFF] {
        assert_eq!(refused(kind, 0, b""), PacketError::Kind { kind });
    }
    for flags in [2, 3, 0x8000, 0xFFFF] {
        assert_eq!(refused(6, flags, b""), PacketError::Flags { flags });
    }
    for kind in [
        kind::VM_PKT_DATA_USING_XFER_PAGES,
        kind::VM_PKT_DATA_USING_GPADL,
        kind::VM_PKT_DATA_USING_GPA_DIRECT,
        kind::VM_PKT_ESTABLISH_GPADL,
        kind::VM_PKT_TEARDOWN_GPADL,
    ] {
        assert_eq!(refused(kind, 0, b""), PacketError::Head { got: 0, need: 8 });
    }
    let count = |kind, count: u32| refused(kind, 0, &words(&[0, count]));
    assert_eq!(count(7, 1), PacketError::Head { got: 8, need: 16 });
    assert!(matches!(
        count(7, u32::MAX),
        PacketError::Head { got: 8, .. }
    ));
    assert_eq!(count(9, 1), PacketError::Head { got: 0, need: 8 });
    assert_eq!(count(9, u32::MAX), PacketError::Head { got: 0, need: 8 });
    let range = |len: u32, offset: u32, count: u64| {
        let numbers = pages(&(0..count).collect::<Vec<_>>());
        refused(9, 0, &[words(&[0, 1, len, offset]), numbers].concat())
    };
    assert_eq!(
        range(4096, 4096, 2),
        PacketError::Offset {
            range: 0,
            offset: 4096
        }
    );
    assert_eq!(
        range(8193, 0, 2),
        PacketError::Pages {
            range: 0,
            pages: 3,
            got: 16
        }
    );
    assert_eq!(
        range(u32::MAX, 4095, 2),
        PacketError::Pages {
            range: 0,
            pages: 0x10_0001,
            got: 16
        }
    );
}

/// Linux's copy of DPDK's macro rounds down, so a length that is no multiple of 8
/// becomes 4 GiB.
#[test]
fn payload_of_any_length_is_padded_up() {
    let mut rig = Rig::new(16 << 10);
    for len in 0..64 {
        rig.post(len as u64, &vec![0xEE; len]);
        rig.incoming.refresh().unwrap();
        let (_, payload) = rig.take().unwrap();
        assert_eq!(payload.len(), len.next_multiple_of(8));
        assert!(payload[len..].iter().all(|byte| *byte == 0), "no old bytes");
        rig.incoming.release().unwrap();
    }
}
