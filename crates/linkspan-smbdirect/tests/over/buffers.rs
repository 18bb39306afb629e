//! Reads and writes of a peer's buffers: the cases of Microsoft's MS-SMBD test suite that
//! are about them, by their names.

use linkspan_rdma::verbs::{Access, Failure, Key};
use linkspan_smbdirect::{Descriptor, RegistrationId, RegistrationState, State};

use linkspan_sim::smbdirect::ends::Pair;

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

/// A write of a file as the suite does it, as far as the transport goes: whoever serves it
/// reads what the other lets it, in order, and then answers.
fn serves_writes(lens: &[u32], invalidates: bool) {
    let mut pair = Pair::connected();
    let total: u32 = lens.iter().sum();
    let pattern: Vec<u8> = (0..=250).cycle().take(total as usize).collect();
    let all = pair.sides[0].slice(0, total);
    pair.sides[0].write(all, &pattern);
    let (mut at, mut buffers) = (0, Vec::new());
    for len in lens {
        let place = all.part(at, *len);
        let (id, descriptor) = pair.sides[0].register(&[place], Access::READ).unwrap();
        let into = pair.sides[1].slice(at.into(), *len);
        let core = pair.sides[1].driver.core_mut();
        core.read(&[into], &[descriptor], 0).unwrap();
        buffers.push((id, Key(descriptor.token)));
        at += len;
    }
    pair.settle();
    let into = pair.sides[1].slice(0, total);
    assert!(pair.sides[1].bytes(into) == pattern, "other bytes");
    answered(pair, &buffers, invalidates);
}

/// A read alike: whoever serves it writes.
fn serves_reads(lens: &[u32], invalidates: bool) {
    let mut pair = Pair::connected();
    let total: u32 = lens.iter().sum();
    let pattern: Vec<u8> = (0..=250).cycle().take(total as usize).collect();
    let all = pair.sides[1].slice(0, total);
    pair.sides[1].write(all, &pattern);
    let (mut at, mut buffers) = (0, Vec::new());
    for len in lens {
        let place = pair.sides[0].slice(at.into(), *len);
        let (id, descriptor) = pair.sides[0].register(&[place], Access::WRITE).unwrap();
        let core = pair.sides[1].driver.core_mut();
        core.write(&[all.part(at, *len)], &[descriptor], 0).unwrap();
        buffers.push((id, Key(descriptor.token)));
        at += len;
    }
    // The answer may follow at once: it arrives behind what was written.
    let there = pair.sides[0].slice(0, total);
    let pair = answered(pair, &buffers, invalidates);
    assert!(pair.sides[0].bytes(there) == pattern, "other bytes");
}

/// Each operation has its answer, which ends the use of its buffer if it is to.
fn answered(mut pair: Pair, buffers: &[(RegistrationId, Key)], invalidates: bool) -> Pair {
    for (_, key) in buffers {
        let answer = pair.sides[1].slice(700_000, 80);
        let core = pair.sides[1].driver.core_mut();
        core.send(&[answer], invalidates.then_some(*key)).unwrap();
        pair.settle();
        let message = pair.sides[0].driver.core().message().unwrap();
        assert_eq!(message.invalidated, invalidates.then_some(*key));
        assert_eq!(pair.sides[0].read().len(), 80);
    }
    for (id, _) in buffers {
        let state = if invalidates {
            RegistrationState::Invalidated
        } else {
            RegistrationState::Registered
        };
        let core = pair.sides[0].driver.core_mut();
        assert_eq!(core.registration(*id), Some(state));
        core.deregister(*id).unwrap();
        pair.settle();
        let state = pair.sides[0].driver.core().registration(*id);
        assert_eq!(state, Some(RegistrationState::Ready));
    }
    let status = pair.sides[0].driver.core().status();
    assert_eq!(status.registrations[1..], [0; 4]);
    pair
}

#[test]
fn BVT_Smb2OverRdmaChannel_WriteLargeFile() {
    serves_writes(&[600_000], false);
}

#[test]
fn BVT_Smb2OverRdmaChannel_ReadLargeFile() {
    serves_reads(&[600_000], false);
}

#[test]
fn WriteMultipleOperation() {
    serves_writes(&[65_536, 1, 4096, 100_000, 7], false);
}

#[test]
fn ReadMultipleOperation() {
    serves_reads(&[65_536, 1, 4096, 100_000, 7], false);
}

#[test]
fn BVT_Smb2OverRdma_Smb302_Write_INVALIDATE() {
    serves_writes(&[100_000, 5], true);
}

#[test]
fn BVT_Smb2OverRdma_Smb302_Read_INVALIDATE() {
    serves_reads(&[100_000, 5], true);
}
