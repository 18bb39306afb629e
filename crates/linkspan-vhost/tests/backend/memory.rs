//! Memory tables, and regions one by one.

use linkspan_vhost::backend::{Backend, Effect, Failure};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::MemoryRegionDescription;
use linkspan_vhost::{Cause, Error, MemoryError, ProtocolFeatures};
use zerocopy::IntoBytes;

use crate::{BIT_30, Session, VERSION_1, region, single, table_of};

fn tables() -> Session {
    Session::ready_with(VERSION_1 | BIT_30, ProtocolFeatures::REPLY_ACK)
}

#[track_caller]
fn memory_error(error: &Error) -> MemoryError {
    match error.cause() {
        Cause::Memory(error) => *error,
        other => panic!("{other:?} is not about memory"),
    }
}

fn descriptions(session: &Session) -> Vec<MemoryRegionDescription> {
    session
        .backend
        .regions()
        .iter()
        .map(|region| region.description())
        .collect()
}

#[test]
fn a_table_replaces_the_one_before() {
    let mut session = tables();
    let regions: Vec<_> = (0..8)
        .map(|i| region(i << 20, 1 << 20, 0x1000_0000 + (i << 24)))
        .collect();
    let effects = session
        .send_fds(Request::SetMemTable, &table_of(&regions), 8)
        .ok();
    let [Effect::SetMemory(set)] = &effects[..] else {
        panic!("{effects:?}");
    };
    let set: Vec<_> = set.iter().map(|region| region.description()).collect();
    assert_eq!(set, regions, "in the order of their descriptors");
    assert_eq!(descriptions(&session), regions);
    // A running ring changes nothing here: the engine pauses it.
    session.run(0);
    session
        .send_fds(Request::SetMemTable, &table_of(&regions[..2]), 2)
        .ok();
    assert_eq!(descriptions(&session), regions[..2]);
}

#[test]
fn a_table_has_one_descriptor_a_region_and_nothing_behind() {
    let mut session = tables();
    let before = descriptions(&session);
    let two = table_of(&[region(0, 0x1000, 0), region(0x1000, 0x1000, 0x1000)]);
    for fds in [0, 1, 3] {
        let error = session.ask(Request::SetMemTable, &two, fds).nacked();
        assert_eq!(
            error.cause(),
            &Cause::FdCount {
                got: fds,
                min: 2,
                max: 2
            }
        );
    }
    let mut long = two.clone();
    long.extend([0; 32]);
    for body in [&long[..], &two[..two.len() - 1], &two[..40]] {
        let error = session.ask(Request::SetMemTable, body, 2).nacked();
        assert_eq!(
            error.cause(),
            &Cause::BodySize {
                got: body.len(),
                min: 72,
                max: 72
            }
        );
    }
    let mut many = vec![0; 8 + 8 * 32];
    for (count, claimed) in [(9, 9), (u32::MAX, u64::from(u32::MAX))] {
        many[..4].copy_from_slice(count.as_bytes());
        let error = session.ask(Request::SetMemTable, &many, 8).nacked();
        assert_eq!(
            memory_error(&error),
            MemoryError::TooMany {
                count: claimed,
                max: 8
            }
        );
    }
    assert_eq!(descriptions(&session), before);
}

#[test]
fn regions_are_not_empty_and_do_not_wrap() {
    let mut session = Session::ready();
    let error = session
        .ask(Request::AddMemReg, &single(region(1 << 30, 0, 0)), 1)
        .nacked();
    assert!(matches!(memory_error(&error), MemoryError::Empty { .. }));
    let file = MemoryRegionDescription {
        mmap_offset: u64::MAX,
        ..region(1 << 30, 0x1000, 0)
    };
    let wrapping = [
        (region(u64::MAX - 0xffe, 0x1000, 0), "guest address"),
        (region(1 << 30, 0x1000, u64::MAX), "front-end address"),
        (region(1, u64::MAX, 0), "guest address"),
        (file, "file offset"),
    ];
    for (region, expected) in wrapping {
        let error = session.ask(Request::AddMemReg, &single(region), 1).nacked();
        match memory_error(&error) {
            MemoryError::Wraps { space, .. } => assert_eq!(space, expected),
            other => panic!("{other}"),
        }
        let error = session
            .ask(Request::SetMemTable, &table_of(&[region]), 1)
            .nacked();
        assert!(matches!(memory_error(&error), MemoryError::Wraps { .. }));
    }
}

/// QEMU 316ee11144, 9f4e63491b: ADD and REM were not validated.
#[test]
fn regions_do_not_overlap_in_either_space() {
    let mut session = Session::ready();
    session
        .ask(
            Request::RemMemReg,
            &single(region(0, 0x10_0000, 0x7000_0000)),
            0,
        )
        .reply_u64(Request::RemMemReg);
    session
        .send_fds(
            Request::AddMemReg,
            &single(region(0x2000, 0x2000, 0x8000)),
            1,
        )
        .ok();
    let overlapping = [
        (region(0x3fff, 0x1000, 0x2_0000), "guest address"),
        (region(0x1000, 0x1001, 0x2_0000), "guest address"),
        (region(0, 0x10_0000, 0x2_0000), "guest address"),
        (region(0x2000, 0x2000, 0x2_0000), "guest address"),
        (region(0x10_0000, 0x1000, 0x9fff), "front-end address"),
        (region(0x10_0000, 0x10_0000, 0), "front-end address"),
    ];
    for (region, expected) in overlapping {
        let error = session.ask(Request::AddMemReg, &single(region), 1).nacked();
        match memory_error(&error) {
            MemoryError::Overlap { space, .. } => assert_eq!(space, expected),
            other => panic!("{other}"),
        }
    }
    for neighbour in [
        region(0x4000, 0x1000, 0xa000),
        region(0x1000, 0x1000, 0x7000),
    ] {
        session
            .send_fds(Request::AddMemReg, &single(neighbour), 1)
            .ok();
    }
    let both = [region(0, 0x1000, 0), region(0xfff, 0x1000, 0x1_0000)];
    let error = session
        .ask(Request::SetMemTable, &table_of(&both), 2)
        .nacked();
    assert!(matches!(memory_error(&error), MemoryError::Overlap { .. }));
}

/// QEMU 4fafedc9da: identical regions were kept twice and removed once.
#[test]
fn an_identical_region_is_refused() {
    let mut session = Session::ready();
    let same = MemoryRegionDescription {
        mmap_offset: 0x5000,
        ..region(0, 0x10_0000, 0x7000_0000)
    };
    let error = session.ask(Request::AddMemReg, &single(same), 1).nacked();
    assert!(matches!(memory_error(&error), MemoryError::Present { .. }));
    let error = session
        .ask(Request::SetMemTable, &table_of(&[same, same]), 2)
        .nacked();
    assert!(matches!(memory_error(&error), MemoryError::Present { .. }));
}

/// QEMU 7.2 adds and removes every region once for each queue pair of a network device.
#[test]
fn regions_of_a_network_device_are_added_and_removed_again_without_effect() {
    let mut session = Session::ready();
    let before = descriptions(&session);
    let more = region(1 << 32, 0x1000, 0x1000);
    for (request, fds, after) in [
        (Request::AddMemReg, 1, &[before[0], more][..]),
        (Request::RemMemReg, 0, &before[..]),
    ] {
        for effects in [1, 0] {
            let outcome = session.ask(request, &single(more), fds);
            assert_eq!(outcome.effects.len(), effects, "{request:?}");
            assert_eq!(outcome.reply_u64(request), 0);
            assert_eq!(descriptions(&session), after);
        }
    }
}

/// QEMU 6889eb2d43: the offset in the file does not identify a region.
#[test]
fn a_region_is_removed_by_its_addresses_and_size() {
    let other = Backend::PROTOCOL_FEATURES.difference(ProtocolFeatures::NET_MTU);
    let mut session = Session::ready_with(VERSION_1 | BIT_30, other);
    let offset = 0x3000;
    let there = MemoryRegionDescription {
        mmap_offset: offset,
        ..region(1 << 32, 0x1000, 0x1000)
    };
    session.send_fds(Request::AddMemReg, &single(there), 1).ok();
    for other in [
        MemoryRegionDescription {
            size: 0x2000,
            ..there
        },
        MemoryRegionDescription {
            guest_address: 0x1000,
            ..there
        },
        MemoryRegionDescription {
            user_address: 0x2000,
            ..there
        },
    ] {
        let error = session.ask(Request::RemMemReg, &single(other), 0).nacked();
        assert!(matches!(memory_error(&error), MemoryError::Absent { .. }));
    }
    let named = MemoryRegionDescription {
        mmap_offset: u64::MAX,
        ..there
    };
    let effects = session.send(Request::RemMemReg, &single(named)).ok();
    let [Effect::RemoveRegion(removed)] = effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(removed.description(), there);
    assert_eq!(descriptions(&session), [region(0, 0x10_0000, 0x7000_0000)]);
    let error = session.ask(Request::RemMemReg, &single(there), 0).nacked();
    assert!(matches!(memory_error(&error), MemoryError::Absent { .. }));
}

/// QEMU fa3d5483f0, a81d8d4a72: no effect names the descriptor, so it is closed.
#[test]
fn a_descriptor_with_rem_mem_reg_is_tolerated() {
    let mut session = Session::ready();
    let ram = single(region(0, 0x10_0000, 0x7000_0000));
    let removed = session.ask(Request::RemMemReg, &ram, 1);
    assert_eq!(removed.reply_u64(Request::RemMemReg), 0);
    let error = session.ask(Request::RemMemReg, &ram, 2).nacked();
    assert_eq!(
        error.cause(),
        &Cause::FdCount {
            got: 2,
            min: 0,
            max: 1
        }
    );
}

/// QEMU 4fdecf0543, 5093bee0fa: bounds of the slot table.
#[test]
fn exactly_the_slots_offered_can_be_filled() {
    let mut session = Session::ready();
    for i in 1..32u64 {
        let next = region(i << 24, 0x1000, i << 24);
        session.send_fds(Request::AddMemReg, &single(next), 1).ok();
    }
    let more = region(1 << 40, 0x1000, 1 << 40);
    let error = session.ask(Request::AddMemReg, &single(more), 1).nacked();
    assert_eq!(
        memory_error(&error),
        MemoryError::TooMany { count: 33, max: 32 }
    );
    let one = single(region(1 << 24, 0x1000, 1 << 24));
    session.send(Request::RemMemReg, &one).ok();
    session.send_fds(Request::AddMemReg, &single(more), 1).ok();
}

#[test]
fn slots_need_their_protocol_feature() {
    let mut session = tables();
    let ram = single(region(1 << 32, 0x1000, 0));
    for (request, fds) in [(Request::AddMemReg, 1), (Request::RemMemReg, 0)] {
        let error = session.ask(request, &ram, fds).nacked();
        assert!(matches!(error.cause(), Cause::NotNegotiated { .. }));
    }
    session.send(Request::GetMaxMemSlots, &[]).closed();
}

#[test]
fn memory_that_could_not_be_mapped_is_not_remembered() {
    let mut session = Session::ready();
    let before = descriptions(&session);
    let new = region(1 << 32, 0x1000, 0x1000);
    let changes = [
        (Request::AddMemReg, single(new), 1),
        (Request::SetMemTable, table_of(&[new]), 1),
        (Request::RemMemReg, single(before[0]), 0),
    ];
    for (request, body, fds) in changes {
        session.failure = Some(Failure::System);
        session.ask(request, &body, fds).nacked();
        assert_eq!(descriptions(&session), before);
    }
}
