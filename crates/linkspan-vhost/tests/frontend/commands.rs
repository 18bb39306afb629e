//! What the owner of a session can ask for.

use Request as R;
use linkspan_mem::Gpa;
use linkspan_vhost::backend::{ConfigWriter, Failure};
use linkspan_vhost::frontend::{Command, CommandError, Event, FdId, FdSlot, RingStart};
use linkspan_vhost::message::Request;
use linkspan_vhost::{
    AreaError, Direction, Inflight, Log, MemoryError, Offer, ProtocolFeatures, VHOST_F_LOG_ALL,
    Wish,
};

use crate::{
    ALL, BIT_30, Pair, STOPPED_AT, VERSION_1, config, memory, offer, region, start, start_all, wish,
};

#[track_caller]
fn unfit(pair: &mut Pair, command: Command) -> CommandError {
    let before = pair.front.snapshot().expect("idle");
    let error = pair.front.command(command).expect_err("refused");
    assert_eq!(pair.front.poll_effect(), None);
    assert_eq!(pair.front.snapshot().expect("idle"), before);
    error
}

#[test]
fn all_rings_are_set_up_before_the_first_is_kicked_and_kicked_before_one_is_enabled() {
    let mut pair = Pair::ready();
    pair.done(start_all());
    pair.agree();
    assert!(
        pair.back
            .rings()
            .iter()
            .all(|ring| ring.running && ring.enabled)
    );
    let each = [
        R::SetVringNum,
        R::SetVringBase,
        R::SetVringAddr,
        R::SetVringErr,
        R::SetVringCall,
    ];
    let expected = [
        each.repeat(4),
        vec![R::SetVringKick; 4],
        vec![R::SetVringEnable; 4],
    ]
    .concat();
    let fds: Vec<_> = pair.sent[18..20]
        .iter()
        .map(|sent| sent.fds.clone())
        .collect();
    assert_eq!(fds, [[FdId(33)], [FdId(32)]], "err and call of ring 3");
    assert_eq!(pair.requests(), expected);
    for ring in 0..4 {
        let setup = pair.back.running_setup(ring).expect("it runs");
        let wanted = start(ring);
        assert_eq!((setup.size, setup.base), (wanted.size, wanted.base));
        assert_eq!(setup.device, wanted.device);
        assert_eq!(setup.features, VERSION_1 | crate::EVENT_IDX | BIT_30);
    }
}

/// All rings come up or none (QEMU 6f3910b5ee: the unwinding of ring i), and
/// what was refused can be tried again.
#[test]
fn a_start_that_fails_anywhere_leaves_no_ring_running() {
    let mut clean = Pair::ready();
    let first = clean.effects;
    clean.done(start_all());
    let last = clean.effects;
    assert!(last - first >= 12);
    for failure in [Failure::System, Failure::Rejected, Failure::Unsupported] {
        for at in first..last {
            let mut pair = Pair::ready();
            pair.fails = Some((at, failure));
            let (_, events) = pair.refused(start_all());
            assert!(pair.back.rings().iter().all(|ring| !ring.running), "{at}");
            assert!(pair.front.rings().iter().all(|ring| !ring.running), "{at}");
            let stopped = events
                .iter()
                .filter(|event| matches!(event, Event::RingStopped { .. }));
            assert_eq!(stopped.count(), events.len());
            pair.agree();
            pair.done(start_all());
            assert!(pair.back.rings().iter().all(|ring| ring.running));
            pair.agree();
        }
    }
}

#[test]
fn rings_stop_with_their_bases_and_go_on_there() {
    let mut pair = Pair::ready();
    pair.done(start_all());
    let events = pair.done(Command::StopRings(vec![3, 1]));
    let stopped = |ring: u16| Event::RingStopped {
        ring,
        base: STOPPED_AT + u32::from(ring),
    };
    assert_eq!(events, [stopped(3), stopped(1)]);
    pair.agree();
    let running: Vec<bool> = pair.back.rings().iter().map(|ring| ring.running).collect();
    assert_eq!(running, [true, false, true, false]);
    let base = pair.front.rings()[3].base;
    pair.done(Command::StartRings(vec![RingStart { base, ..start(3) }]));
    assert_eq!(
        pair.back.running_setup(3).expect("it runs").base,
        STOPPED_AT + 3
    );
}

#[test]
fn a_ring_is_started_disabled_polled_and_changed_while_it_runs() {
    let mut pair = Pair::ready();
    pair.done(Command::StartRings(vec![RingStart {
        kick: None,
        call: None,
        err: None,
        enabled: false,
        ..start(2)
    }]));
    pair.agree();
    assert!(pair.back.rings()[2].running && !pair.back.rings()[2].enabled);
    for enabled in [true, false, true] {
        pair.done(Command::EnableRing { ring: 2, enabled });
        assert_eq!(pair.back.rings()[2].enabled, enabled);
        pair.agree();
    }
    let (ring, fd) = (2, Some(FdId(9)));
    pair.done(Command::SetKick { ring, kick: fd });
    pair.done(Command::SetCall { ring, call: fd });
    pair.done(Command::SetErr { ring, err: fd });
    pair.agree();
}

#[test]
fn memory_is_changed_by_what_is_new_and_gone() {
    let mut pair = Pair::new();
    pair.done(Command::SetMemory(memory()));
    assert!(pair.requests().ends_with(&[R::AddMemReg, R::AddMemReg]));
    pair.agree();
    let third = (region(1 << 33, 0x1000, 0x9000_0000), FdId(3));
    pair.done(Command::SetMemory(vec![memory()[1], third]));
    assert_eq!(pair.requests(), [R::RemMemReg, R::AddMemReg]);
    pair.agree();
    // The same memory again is no message, and another file under the same
    // addresses is another region.
    pair.done(Command::SetMemory(vec![memory()[1], third]));
    assert_eq!(pair.requests(), []);
    pair.done(Command::SetMemory(vec![memory()[1], (third.0, FdId(4))]));
    assert_eq!(pair.requests(), [R::RemMemReg, R::AddMemReg]);
    pair.agree();
}

/// QEMU 552b25229c, 9f749129e2: the accounting of slots after a failure.
#[test]
fn memory_that_was_refused_half_way_can_be_set_again() {
    for fails in 0..2 {
        let mut pair = Pair::new();
        pair.fails = Some((pair.effects + fails, Failure::System));
        let (request, _) = pair.refused(Command::SetMemory(memory()));
        assert_eq!(request, R::AddMemReg);
        assert_eq!(pair.front.regions().len(), fails);
        pair.agree();
        pair.done(Command::SetMemory(memory()));
        pair.agree();
        assert_eq!(pair.front.regions().len(), 2);
    }
}

#[test]
fn without_slots_the_whole_table_is_sent_with_at_most_8_regions() {
    let protocol_features = ALL.difference(ProtocolFeatures::CONFIGURE_MEM_SLOTS);
    let mut pair = Pair::with(
        Wish {
            protocol_features,
            ..wish()
        },
        offer(),
    );
    pair.run();
    pair.negotiated();
    pair.sent.clear();
    let many = |count: u64| {
        let region = |at: u64| (region(at << 20, 1 << 20, at << 21), FdId(at));
        Command::SetMemory((0..count).map(region).collect())
    };
    for count in [1, 8, 2] {
        pair.done(many(count));
        let sent = pair.sent.pop().expect("a table");
        assert_eq!(sent.request, R::SetMemTable);
        let expected: Vec<FdId> = (0..count).map(FdId).collect();
        assert_eq!(sent.fds, expected);
        pair.agree();
    }
    let error = unfit(&mut pair, many(9));
    let expected = MemoryError::TooMany { count: 9, max: 8 };
    assert_eq!(error, CommandError::Memory(expected));
}

/// QEMU 5093bee0fa: the bounds of the table of slots.
#[test]
fn memory_is_checked_before_anything_is_sent() {
    let mut pair = Pair::new();
    let slots = |count: u64| {
        let region = |at: u64| (region(at << 20, 1 << 20, at << 20), FdId(at));
        Command::SetMemory((0..count).map(region).collect())
    };
    pair.done(slots(32));
    pair.agree();
    let error = unfit(&mut pair, slots(33));
    let expected = MemoryError::TooMany { count: 33, max: 32 };
    assert_eq!(error, CommandError::Memory(expected));
    let twice = vec![memory()[0], memory()[0]];
    let error = unfit(&mut pair, Command::SetMemory(twice));
    assert!(matches!(
        error,
        CommandError::Memory(MemoryError::Present { .. })
    ));
    let none = unfit(&mut pair, Command::SetMemory(vec![]));
    assert_eq!(none, CommandError::Nothing);
}

#[test]
fn rings_that_cannot_be_are_refused_before_anything_is_sent() {
    let mut pair = Pair::new();
    let error = unfit(&mut pair, start_all());
    assert_eq!(error, CommandError::NoMemory);
    pair.done(Command::SetMemory(memory()));
    let error = unfit(&mut pair, start_all());
    assert!(error.to_string().contains("no features"), "{error}");
    pair.make_ready();
    let mut with = |change: &dyn Fn(&mut RingStart)| {
        let mut start = start(1);
        change(&mut start);
        unfit(&mut pair, Command::StartRings(vec![crate::start(0), start]))
    };
    let ring = |error: CommandError| matches!(error, CommandError::Ring { ring: 1, .. });
    assert!(ring(with(&|start| start.size = 0)));
    assert!(ring(with(&|start| start.size = 100)), "a split ring");
    assert!(ring(with(&|start| start.size = 32769)));
    assert!(ring(with(&|start| start.base = 1 << 16)));
    let twice = with(&|start| start.ring = 0);
    assert_eq!(twice, CommandError::Twice { ring: 0 });
    let beyond = with(&|start| start.ring = 4);
    assert_eq!(beyond, CommandError::RingIndex { ring: 4, rings: 4 });
    let none = unfit(&mut pair, Command::StartRings(vec![]));
    assert_eq!(none, CommandError::Nothing);
    for command in [
        Command::StopRings(vec![0]),
        Command::SetKick {
            ring: 0,
            kick: None,
        },
        Command::SetRingLog { ring: 0, log: None },
    ] {
        let error = unfit(&mut pair, command);
        assert_eq!(error, CommandError::NotRunning { ring: 0 });
    }
    pair.done(Command::StartRings(vec![start(0)]));
    let error = unfit(&mut pair, start_all());
    assert_eq!(error, CommandError::Running { ring: 0 });
}

#[test]
fn one_command_at_a_time() {
    let mut pair = Pair::with(wish(), offer());
    let features = || Command::SetFeatures(VERSION_1);
    assert_eq!(pair.front.command(features()), Err(CommandError::Busy));
    pair.run();
    pair.negotiated();
    pair.front.command(features()).expect("idle");
    assert_eq!(pair.front.command(features()), Err(CommandError::Busy));
    pair.run();
    assert_eq!(pair.events, [Event::Done]);
    pair.front.disconnect();
    assert_eq!(pair.front.command(features()), Err(CommandError::Over));
}

#[test]
fn features_are_some_of_those_negotiated_and_stay_under_running_rings() {
    let mut pair = Pair::new();
    let error = unfit(&mut pair, Command::SetFeatures(VERSION_1 | crate::PACKED));
    let unknown = crate::PACKED;
    assert_eq!(error, CommandError::Features { unknown });
    pair.done(Command::SetFeatures(VERSION_1));
    // QEMU 4daa5054c5: bit 30 is acknowledged, so rings are enabled one by one.
    assert_eq!(pair.back.features(), Some(VERSION_1 | BIT_30));
    pair.done(Command::SetMemory(memory()));
    pair.done(start_all());
    let more = VERSION_1 | crate::EVENT_IDX;
    let error = unfit(&mut pair, Command::SetFeatures(more));
    let (changed, ring) = (crate::EVENT_IDX, 0);
    assert_eq!(error, CommandError::FeaturesWhileRunning { changed, ring });
    pair.done(Command::SetFeatures(VERSION_1 | VHOST_F_LOG_ALL));
    pair.agree();
}

#[test]
fn configuration_space_is_read_and_written() {
    let mut pair = Pair::ready();
    let events = pair.done(Command::ReadConfig {
        offset: 8,
        size: 256,
    });
    let bytes = config(8, 256);
    assert_eq!(events, [Event::Config { offset: 8, bytes }]);
    pair.done(Command::WriteConfig {
        offset: 3,
        bytes: vec![1, 2],
        writer: ConfigWriter::Migration,
    });
    let (request, _) = pair.refused(Command::ReadConfig {
        offset: 999,
        size: 2,
    });
    assert_eq!(request, R::GetConfig);
    pair.fails = Some((pair.effects, Failure::Rejected));
    let (request, _) = pair.refused(Command::WriteConfig {
        offset: 3,
        bytes: vec![1],
        writer: ConfigWriter::Driver,
    });
    assert_eq!(request, R::SetConfig);
    for (offset, size) in [(0, 0), (0, 257), (u32::MAX, 1)] {
        let error = unfit(&mut pair, Command::ReadConfig { offset, size });
        assert!(matches!(error, CommandError::Config { .. }), "{error}");
    }
}

#[test]
fn a_reset_leaves_memory_and_nothing_else() {
    let mut pair = Pair::ready();
    pair.done(start_all());
    pair.done(Command::WriteStatus(15));
    pair.done(Command::ResetDevice);
    assert_eq!(pair.front.features(), None);
    assert_eq!(pair.front.regions().len(), 2);
    pair.agree();
    assert_eq!(pair.done(Command::ReadStatus), [Event::Status(0)]);
    pair.make_ready();
    pair.done(start_all());
    pair.agree();
}

#[test]
fn the_status_is_written_and_read() {
    let mut pair = Pair::ready();
    pair.done(Command::WriteStatus(11));
    assert_eq!(pair.done(Command::ReadStatus), [Event::Status(11)]);
    pair.back.set_needs_reset();
    assert_eq!(pair.done(Command::ReadStatus), [Event::Status(11 | 64)]);
}

#[test]
fn an_inflight_region_is_made_and_given_to_a_successor() {
    let mut pair = Pair::ready();
    let events = pair.done(Command::CreateInflight {
        queues: 4,
        queue_size: 256,
    });
    let inflight = Inflight::new(0x5000, 0x1000, 4, 256).expect("a region");
    assert_eq!(events, [Event::Inflight(Some((inflight, FdSlot(0))))]);
    assert_eq!(pair.front.saved().expect("saved").inflight, Some(inflight));
    let mut next = Pair::ready();
    let fd = FdId(8);
    next.done(Command::AdoptInflight { inflight, fd });
    assert_eq!(next.back.inflight(), Some(inflight));
    assert_eq!(next.sent[0].fds, [fd]);
    next.done(start_all());
    for command in [
        Command::AdoptInflight { inflight, fd },
        Command::CreateInflight {
            queues: 4,
            queue_size: 256,
        },
    ] {
        let error = unfit(&mut next, command);
        assert_eq!(error, CommandError::Running { ring: 0 });
    }
    let mut pair = Pair::ready();
    let error = unfit(
        &mut pair,
        Command::CreateInflight {
            queues: 5,
            queue_size: 1,
        },
    );
    let expected = AreaError::Queues { queues: 5, max: 4 };
    assert_eq!(error, CommandError::Area(expected));
}

/// libvhost-user ebdede644b.
#[test]
fn a_back_end_that_cannot_make_an_inflight_region_goes_on_without() {
    let mut pair = Pair::ready();
    pair.fails = Some((pair.effects, Failure::System));
    let events = pair.done(Command::CreateInflight {
        queues: 4,
        queue_size: 256,
    });
    assert_eq!(events, [Event::Inflight(None)]);
    pair.done(start_all());
}

#[test]
fn writes_are_logged_from_one_command_to_another() {
    let mut pair = Pair::ready();
    pair.done(start_all());
    let log = Log::new(0x1000, 0).expect("a log");
    pair.done(Command::SetLog { log, fd: FdId(5) });
    pair.done(Command::SetLogFd(FdId(6)));
    assert_eq!(pair.back.log(), Some(log));
    let on = VERSION_1 | crate::EVENT_IDX | VHOST_F_LOG_ALL;
    pair.done(Command::SetFeatures(on));
    for log in [Some(Gpa(0x9000)), None] {
        pair.done(Command::SetRingLog { ring: 1, log });
        assert_eq!(pair.back.rings()[1].addresses.expect("set").log, log);
        pair.agree();
    }
    // c1997099dc, d63c388dad: what fails here does not end the session.
    pair.fails = Some((pair.effects, Failure::System));
    let (request, _) = pair.refused(Command::SetRingLog {
        ring: 1,
        log: Some(Gpa(0)),
    });
    assert_eq!(request, R::SetVringAddr);
    pair.agree();
}

#[test]
fn the_state_of_a_stopped_device_is_moved() {
    let mut pair = Pair::ready();
    let fd = FdId(4);
    for direction in [Direction::Save, Direction::Load] {
        let events = pair.done(Command::MoveState { direction, fd });
        assert_eq!(events, [Event::StateChannel(None)]);
        pair.done(Command::CheckState);
    }
    let direction = Direction::Save;
    pair.fails = Some((pair.effects, Failure::System));
    let (request, _) = pair.refused(Command::MoveState { direction, fd });
    assert_eq!(request, R::SetDeviceStateFd);
    pair.fails = Some((pair.effects, Failure::System));
    let (request, _) = pair.refused(Command::CheckState);
    assert_eq!(request, R::CheckDeviceState);
    pair.done(start_all());
    let error = unfit(&mut pair, Command::MoveState { direction, fd });
    assert_eq!(error, CommandError::Running { ring: 0 });
}

#[test]
fn a_socket_for_requests_is_given() {
    let mut pair = Pair::ready();
    pair.done(Command::SetBackendRequests(FdId(3)));
    assert!(pair.back.has_request_socket());
    assert_eq!(pair.sent[0].fds, [FdId(3)]);
}

#[test]
fn what_was_not_negotiated_is_not_sent() {
    let few = Offer {
        protocol_features: ProtocolFeatures::MQ | ProtocolFeatures::CONFIG,
        features: VERSION_1,
        ..offer()
    };
    let mut pair = Pair::with(wish(), few);
    pair.run();
    pair.negotiated();
    let log = Log::new(1, 0).expect("a log");
    let (inflight, fd) = (Inflight::new(1, 0, 1, 1).expect("a region"), FdId(0));
    let direction = Direction::Load;
    for command in [
        Command::ResetDevice,
        Command::ReadStatus,
        Command::WriteStatus(0),
        Command::CreateInflight {
            queues: 1,
            queue_size: 1,
        },
        Command::AdoptInflight { inflight, fd },
        Command::SetLog { log, fd },
        Command::SetLogFd(fd),
        Command::SetBackendRequests(fd),
        Command::MoveState { direction, fd },
        Command::CheckState,
    ] {
        let error = unfit(&mut pair, command.clone());
        let named = matches!(error, CommandError::NotNegotiated { .. });
        assert!(named, "{command:?}: {error}");
    }
}
