//! Reads and writes of a peer's buffers: the cases of Microsoft's MS-SMBD test suite that
//! are about them, by their names.

use linkspan_rdma::verbs::{Access, Failure};
use linkspan_smbdirect::{Descriptor, RegistrationId, State};

use super::ends::Pair;

const BOTH: Access = Access {
    read: true,
    write: true,
};

#[test]
fn ReadWriteMultipleBufferDescriptorList() {
    let mut pair = Pair::connected();
    let lens = [3000, 1, 5000];
    let (mut places, mut all) = (Vec::new(), Vec::new());
    for (at, len) in (0..).zip(lens) {
        let place = pair.sides[0].slice(at * 8192, len);
        let (_, descriptor) = pair.sides[0].register(&[place], BOTH).unwrap();
        places.push(place);
        all.push(descriptor);
    }
    let pattern: Vec<u8> = (0..=250).cycle().take(8001).collect();
    let [from, into] = [0, 100_000].map(|offset| pair.sides[1].slice(offset, 8001));
    pair.sides[1].write(from, &pattern);
    let core = pair.sides[1].driver.core_mut();
    core.write(&[from], &all, 0).unwrap();
    pair.settle();
    let written: Vec<u8> = places
        .iter()
        .flat_map(|place| pair.sides[0].bytes(*place))
        .collect();
    assert_eq!(written, pattern);
    let core = pair.sides[1].driver.core_mut();
    core.read(&[into], &all, 0).unwrap();
    pair.settle();
    assert_eq!(pair.sides[1].bytes(into), pattern);
}

/// A descriptor that is not what was registered: whoever uses it reaches nothing, and its
/// connection ends.
#[track_caller]
fn reaches_nothing(change: impl Fn(&mut Pair, RegistrationId, &mut Descriptor)) {
    for writes in [true, false] {
        let mut pair = Pair::connected();
        // What is around it belongs to nobody else.
        let around = pair.sides[0].slice(0, 3000);
        let there = pair.sides[0].slice(1000, 1000);
        pair.sides[0].write(around, &[5; 3000]);
        let (id, mut descriptor) = pair.sides[0].register(&[there], BOTH).unwrap();
        change(&mut pair, id, &mut descriptor);
        let local = pair.sides[1].slice(0, descriptor.length);
        let core = pair.sides[1].driver.core_mut();
        if writes {
            core.write(&[local], &[descriptor], 0).unwrap();
        } else {
            core.read(&[local], &[descriptor], 0).unwrap();
        }
        pair.settle();
        let failure = pair.sides[0].driver.failure();
        assert!(
            matches!(failure, Some(Failure::Refused { .. })),
            "{failure:?}"
        );
        assert_eq!(pair.sides[0].bytes(around), [5; 3000]);
        assert!(pair.sides[1].bytes(local).iter().all(|byte| *byte == 0));
        for side in &pair.sides {
            assert_eq!(side.driver.core().state(), State::Disconnected);
        }
    }
}

#[test]
fn InvalidBufferDescriptor_Offset() {
    reaches_nothing(|_, _, descriptor| descriptor.offset += 1);
    reaches_nothing(|_, _, descriptor| descriptor.offset = u64::MAX - 2000);
}

#[test]
fn InvalidBufferDescriptor_Length() {
    reaches_nothing(|_, _, descriptor| descriptor.length += 1);
    reaches_nothing(|_, _, descriptor| descriptor.length += 100_000);
}

#[test]
fn InvalidBufferDescriptor_Token() {
    reaches_nothing(|_, _, descriptor| descriptor.token = descriptor.token.wrapping_add(1));
    reaches_nothing(|_, _, descriptor| descriptor.token = !descriptor.token);
}

#[test]
fn InvalidBufferDescriptor_DeregisteredBuffer() {
    reaches_nothing(|pair, id, _| {
        let core = pair.sides[0].driver.core_mut();
        core.deregister(id).unwrap();
        pair.settle();
    });
}
