//! Arrays of Buffer Descriptors V1 (MS-SMBD 2.2.3.1, 3.1.4.5, 3.1.4.6): what is in them,
//! and which part of them a transfer is about.

use linkspan_rdma::verbs::{Key, Remote};
use linkspan_smbdirect::descriptor::{
    DESCRIPTOR_LEN, DESCRIPTORS_MAX, DescriptorError, parse, part,
};
use linkspan_smbdirect::{Descriptor, Misuse, Output};
use proptest::prelude::*;

use super::peer::{Peer, initiator, slice};

fn descriptor(offset: u64, token: u32, length: u32) -> Descriptor {
    Descriptor {
        offset,
        token,
        length,
    }
}

fn bytes(all: &[Descriptor]) -> Vec<u8> {
    all.iter().flat_map(|one| one.to_bytes()).collect()
}

/// Fault 12 (c1d5116f5).
#[test]
fn an_array_that_cannot_be_is_named() {
    let one = descriptor(0, 1, 10);
    for len in (0..100).filter(|len| len % DESCRIPTOR_LEN != 0 || *len == 0) {
        assert_eq!(
            parse(&vec![1; len]),
            Err(DescriptorError::Count { bytes: len })
        );
    }
    let most = bytes(&vec![one; DESCRIPTORS_MAX]);
    assert_eq!(parse(&most).map(|all| all.len()), Ok(DESCRIPTORS_MAX));
    let more = bytes(&vec![one; DESCRIPTORS_MAX + 1]);
    let count = DescriptorError::Count { bytes: more.len() };
    assert_eq!(parse(&more), Err(count));
    let empty = [one, descriptor(5, 6, 0), one];
    assert_eq!(
        parse(&bytes(&empty)),
        Err(DescriptorError::Empty { index: 1 })
    );
    let wrap = DescriptorError::Wrap {
        index: 1,
        offset: u64::MAX - 9,
        length: 11,
    };
    let wraps = [one, descriptor(u64::MAX - 9, 1, 11)];
    assert_eq!(parse(&bytes(&wraps)), Err(wrap));
    // Up to the last address but one is possible.
    let last = [one, descriptor(u64::MAX - 10, 1, 10)];
    assert_eq!(parse(&bytes(&last)).as_deref(), Ok(&last[..]));
}

#[test]
fn a_transfer_outside_of_its_descriptors_is_refused_and_changes_nothing() {
    let Peer { mut core, .. } = initiator();
    let all = [descriptor(0, 1, 100), descriptor(0, 2, 50)];
    for (offset, len) in [(0, 151), (150, 1), (u64::MAX, 1), (101, 50), (1 << 40, 100)] {
        let total = 150;
        let outside = DescriptorError::Outside {
            offset,
            len: u64::from(len),
            total,
        };
        let before = core.status();
        let refused = Err(Misuse::Descriptors(outside));
        assert_eq!(core.write(&[slice(len)], &all, offset), refused);
        assert_eq!(core.read(&[slice(len)], &all, offset), refused);
        assert_eq!(core.status(), before);
    }
    assert_eq!(core.write(&[], &all, 0), Err(Misuse::Empty));
    assert!(matches!(
        core.write(&[slice(1)], &[], 0),
        Err(Misuse::Descriptors(DescriptorError::Count { bytes: 0 }))
    ));
    // 256 of the longest are more than 32 bits.
    let long = vec![descriptor(0, 1, u32::MAX); DESCRIPTORS_MAX];
    let offset = u64::from(u32::MAX) * 255;
    assert_eq!(part(&long, offset, 10).unwrap().count(), 1);
    core.write(&[slice(10)], &long, offset).unwrap();
}

#[test]
fn the_works_of_a_transfer_are_its_part_of_the_array() {
    let mut peer = initiator();
    let all = [
        descriptor(1000, 1, 100),
        descriptor(2000, 2, 1),
        descriptor(3000, 3, 300),
        descriptor(4000, 4, 50),
    ];
    peer.core
        .write(&[slice(220), slice(100)], &all, 90)
        .unwrap();
    peer.pump();
    let works = peer.events.iter().filter_map(|event| match event {
        Output::Write { local, remote, .. } => Some((*remote, local.len())),
        _ => None,
    });
    let place = |key, address| Remote {
        key: Key(key),
        address,
    };
    assert_eq!(
        works.collect::<Vec<_>>(),
        [
            (place(1, 1090), 10),
            (place(2, 2000), 1),
            (place(3, 3000), 300),
            (place(4, 4000), 9)
        ]
    );
}

/// Byte by byte: which one of the array each is.
fn model(all: &[Descriptor], offset: u64, len: u64) -> Vec<(u32, u64)> {
    let each = all
        .iter()
        .flat_map(|one| (0..u64::from(one.length)).map(|at| (one.token, one.offset + at)));
    let skip = usize::try_from(offset).unwrap();
    each.skip(skip)
        .take(usize::try_from(len).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn a_part_is_what_it_is_byte_by_byte(
        lengths in prop::collection::vec(1_u32..40, 1..40),
        offset in 0_u64..1000,
        len in 0_u64..1000,
    ) {
        let all: Vec<_> = (0..).zip(&lengths)
            .map(|(at, length)| descriptor(1000 * u64::from(at), at, *length))
            .collect();
        let total: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        match part(&all, offset, len) {
            Err(error) => {
                prop_assert!(offset + len > total);
                prop_assert_eq!(error, DescriptorError::Outside { offset, len, total });
            }
            Ok(parts) => {
                prop_assert!(offset + len <= total);
                let parts: Vec<_> = parts.collect();
                prop_assert!(parts.iter().all(|one| one.length > 0));
                prop_assert_eq!(model(&parts, 0, len), model(&all, offset, len));
            }
        }
    }
}
