//! Rings: set up, start, change, stop.

use linkspan_mem::{Gpa, UserVa};
use linkspan_vhost::backend::{Answer, Effect, Failure, FdSlot, Misuse, Notifier, RingError};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, HEADER_BYTES, VHOST_USER_VRING_NOFD_MASK, VringAddr};
use linkspan_vhost::{Backend, Cause, Error, VHOST_F_LOG_ALL};
use zerocopy::IntoBytes;

use crate::{BIT_30, PACKED, STOPPED_AT, Session, VERSION_1, addr, offer, state};

#[track_caller]
fn ring_error(error: &Error, ring: u16) -> RingError {
    match error.cause() {
        Cause::Ring { ring: at, error } if *at == ring => *error,
        other => panic!("{other:?} is not about ring {ring}"),
    }
}

#[test]
fn a_kick_descriptor_starts_a_ring_that_is_set_up() {
    let mut session = Session::ready();
    session.set_up(2);
    let effects = session.kick(2).ok();
    let [
        Effect::StartRing {
            ring: 2,
            setup,
            kick: Some(FdSlot(0)),
        },
    ] = effects[..]
    else {
        panic!("{effects:?}");
    };
    assert_eq!(setup.size, 256);
    assert_eq!(setup.descriptor, UserVa(0x7002_0000));
    assert_eq!(setup.driver, UserVa(0x7002_4000), "the available ring");
    assert_eq!(setup.device, UserVa(0x7002_8000), "the used ring");
    assert_eq!((setup.base, setup.log, setup.enabled), (5, None, false));
    assert_eq!(setup.features, VERSION_1 | BIT_30);
    assert_eq!(session.backend.running_setup(2), Some(setup));
    assert_eq!(session.backend.running_setup(1), None);
}

#[test]
fn a_ring_starts_only_with_features_size_and_addresses() {
    let mut session = Session::new(offer());
    session.set_up(0);
    assert_eq!(
        ring_error(&session.kick(0).closed(), 0),
        RingError::NoFeatures
    );

    let mut session = Session::ready();
    session
        .send(Request::SetVringAddr, addr(0).as_bytes())
        .quiet();
    assert_eq!(ring_error(&session.kick(0).closed(), 0), RingError::NoSize);

    let mut session = Session::ready();
    session.send(Request::SetVringNum, &state(0, 8)).quiet();
    let refused = session.ask(Request::SetVringKick, 0u64.as_bytes(), 1);
    assert_eq!(refused.effects, []);
    assert_eq!(ring_error(&refused.nacked(), 0), RingError::NoAddresses);
    assert!(!session.backend.rings()[0].running);
}

#[test]
fn a_ring_that_failed_to_start_can_be_started_again() {
    let mut session = Session::ready();
    session.set_up(0);
    session.failure = Some(Failure::Rejected);
    session
        .ask(Request::SetVringKick, 0u64.as_bytes(), 1)
        .nacked();
    assert!(!session.backend.rings()[0].running);
    assert_eq!(session.backend.rings()[0].kick, Notifier::Unset);
    assert_eq!(session.kick(0).ok().len(), 1);
    assert!(session.backend.rings()[0].running);
}

/// vhost #247, #343, #374, #375: a kick before the ring was enabled was lost.
/// The engine looks at the ring on each of these effects.
#[test]
fn enable_may_come_before_or_after_kick() {
    let mut session = Session::ready();
    session.set_up(0);
    session.send(Request::SetVringEnable, &state(0, 1)).quiet();
    let effects = session.kick(0).ok();
    assert!(matches!(effects[..], [Effect::StartRing { setup, .. }] if setup.enabled));

    session.set_up(1);
    let effects = session.kick(1).ok();
    assert!(matches!(effects[..], [Effect::StartRing { setup, .. }] if !setup.enabled));
    assert_eq!(
        session.send(Request::SetVringEnable, &state(1, 1)).ok(),
        [Effect::EnableRing {
            ring: 1,
            enabled: true
        }]
    );
    session.send(Request::SetVringEnable, &state(1, 1)).quiet();
    assert_eq!(
        session.send(Request::SetVringEnable, &state(1, 0)).ok(),
        [Effect::EnableRing {
            ring: 1,
            enabled: false
        }]
    );
}

/// A network front end of QEMU enables before it sets features.
#[test]
fn enable_may_come_before_features() {
    let mut session = Session::new(offer());
    session.send(Request::SetVringEnable, &state(1, 1)).quiet();
    session
        .send(Request::SetFeatures, (VERSION_1 | BIT_30).as_bytes())
        .ok();
    let enabled: Vec<_> = session
        .backend
        .rings()
        .iter()
        .map(|ring| ring.enabled)
        .collect();
    assert_eq!(enabled, [false, true, false, false]);
}

#[test]
fn enable_is_0_or_1() {
    let mut session = Session::ready();
    let error = session
        .ask(Request::SetVringEnable, &state(0, 2), 0)
        .nacked();
    assert_eq!(ring_error(&error, 0), RingError::Enable { num: 2 });
}

/// rust-vmm's back end drops the old kick of a running ring and never polls the new one.
#[test]
fn a_running_ring_takes_another_kick_and_goes_on() {
    let mut session = Session::ready();
    session.run(0);
    assert_eq!(
        session.kick(0).ok(),
        [Effect::SetKick {
            ring: 0,
            kick: Some(FdSlot(0))
        }]
    );
    let polled = VHOST_USER_VRING_NOFD_MASK;
    assert_eq!(
        session.send(Request::SetVringKick, polled.as_bytes()).ok(),
        [Effect::SetKick {
            ring: 0,
            kick: None
        }]
    );
    assert!(session.backend.rings()[0].running);
    assert_eq!(session.backend.rings()[0].kick, Notifier::NoFd);
}

#[test]
fn call_and_err_are_taken_in_every_state_of_the_ring() {
    let mut session = Session::new(offer());
    for _ in 0..2 {
        assert_eq!(
            session
                .send_fds(Request::SetVringCall, 3u64.as_bytes(), 1)
                .ok(),
            [Effect::SetCall {
                ring: 3,
                call: Some(FdSlot(0))
            }]
        );
        let none = 3 | VHOST_USER_VRING_NOFD_MASK;
        assert_eq!(
            session.send(Request::SetVringCall, none.as_bytes()).ok(),
            [Effect::SetCall {
                ring: 3,
                call: None
            }]
        );
        assert_eq!(
            session
                .send_fds(Request::SetVringErr, 3u64.as_bytes(), 1)
                .ok(),
            [Effect::SetErr {
                ring: 3,
                err: Some(FdSlot(0))
            }]
        );
        if session.backend.features().is_none() {
            session
                .send(Request::SetFeatures, (VERSION_1 | BIT_30).as_bytes())
                .ok();
            session.run(3);
        }
    }
    assert!(session.backend.rings()[3].running);
    assert_eq!(session.backend.rings()[3].call, Notifier::NoFd);
    assert_eq!(session.backend.rings()[3].err, Notifier::Fd);
}

/// rust-vmm starts a ring only if a descriptor came, so that nobody can poll.
#[test]
fn a_polled_ring_starts_without_a_descriptor() {
    let mut session = Session::ready();
    session.set_up(1);
    let polled = 1 | VHOST_USER_VRING_NOFD_MASK;
    session.failure = Some(Failure::Unsupported);
    session
        .ask(Request::SetVringKick, polled.as_bytes(), 0)
        .nacked();
    let effects = session.send(Request::SetVringKick, polled.as_bytes()).ok();
    assert!(matches!(
        effects[..],
        [Effect::StartRing {
            ring: 1,
            kick: None,
            ..
        }]
    ));
}

#[test]
fn the_nofd_bit_and_the_descriptor_agree() {
    for request in [
        Request::SetVringKick,
        Request::SetVringCall,
        Request::SetVringErr,
    ] {
        let mut session = Session::ready();
        session.set_up(0);
        let nofd = VHOST_USER_VRING_NOFD_MASK;
        let error = session.ask(request, nofd.as_bytes(), 1).nacked();
        assert_eq!(
            error.cause(),
            &Cause::FdCount {
                got: 1,
                min: 0,
                max: 0
            }
        );
        let error = session.ask(request, 0u64.as_bytes(), 0).nacked();
        assert_eq!(
            error.cause(),
            &Cause::FdCount {
                got: 0,
                min: 1,
                max: 1
            }
        );
        // Ring 256 does not exist in these messages: bit 8 is NOFD.
        let value = 1u64 << 9;
        let error = session.ask(request, value.as_bytes(), 1).nacked();
        assert_eq!(ring_error(&error, 0), RingError::NotifierBits { value });
    }
}

#[test]
fn sizes_of_rings() {
    let mut session = Session::ready();
    for size in [1, 2, 1024] {
        session.send(Request::SetVringNum, &state(0, size)).quiet();
    }
    for size in [0, 1025, 2048, 0x1_0000, 0x1_0100, u32::MAX] {
        let error = session
            .ask(Request::SetVringNum, &state(0, size), 0)
            .nacked();
        assert_eq!(ring_error(&error, 0), RingError::Size { size, max: 1024 });
    }
    let error = session
        .ask(Request::SetVringNum, &state(0, 1000), 0)
        .nacked();
    assert_eq!(ring_error(&error, 0), RingError::SplitSize { size: 1000 });
    assert_eq!(session.backend.rings()[0].size, Some(1024));
}

#[test]
fn a_packed_ring_has_any_size_and_a_base_of_32_bits() {
    let features = VERSION_1 | PACKED | BIT_30;
    let mut session = Session::ready_with(features, Backend::PROTOCOL_FEATURES);
    session.set_up(0);
    session.send(Request::SetVringNum, &state(0, 1000)).quiet();
    session
        .send(Request::SetVringBase, &state(0, 0x8003_8001))
        .quiet();
    let effects = session.kick(0).ok();
    assert!(matches!(
        effects[..],
        [Effect::StartRing { setup, .. }] if setup.size == 1000 && setup.base == 0x8003_8001
    ));
}

/// Messages may come before the features that decide the layout.
#[test]
fn a_split_ring_is_checked_again_when_it_starts() {
    let mut session = Session::new(offer());
    session
        .send(Request::SetProtocolFeatures, 8u64.as_bytes())
        .quiet();
    session.set_up(0);
    session.send(Request::SetVringNum, &state(0, 1000)).quiet();
    session
        .send(Request::SetFeatures, VERSION_1.as_bytes())
        .ok();
    let error = session
        .ask(Request::SetVringKick, 0u64.as_bytes(), 1)
        .nacked();
    assert_eq!(ring_error(&error, 0), RingError::SplitSize { size: 1000 });
    session.send(Request::SetVringNum, &state(0, 512)).quiet();
    let error = session
        .ask(Request::SetVringBase, &state(0, 0x1_0000), 0)
        .nacked();
    assert_eq!(
        ring_error(&error, 0),
        RingError::SplitBase { base: 0x1_0000 }
    );
    session.kick(0).ok();

    let mut session = Session::new(offer());
    session.set_up(0);
    session
        .send(Request::SetVringBase, &state(0, 0x1_0000))
        .quiet();
    session
        .send(Request::SetFeatures, VERSION_1.as_bytes())
        .ok();
    let error = session.kick(0).closed();
    assert_eq!(
        ring_error(&error, 0),
        RingError::SplitBase { base: 0x1_0000 }
    );
}

/// DPDK 37f7c1b609: what a running ring stands on does not change under it.
#[test]
fn a_running_ring_keeps_size_base_and_place() {
    let mut session = Session::ready();
    session.run(1);
    let before = session.backend.rings()[1].clone();
    let moved = VringAddr {
        used: 0x7001_9000,
        ..addr(1)
    };
    let messages = [
        (Request::SetVringNum, state(1, 128)),
        (Request::SetVringBase, state(1, 0)),
        (Request::SetVringAddr, moved.as_bytes().to_vec()),
    ];
    for (request, body) in messages {
        let error = session.ask(request, &body, 0).nacked();
        assert_eq!(ring_error(&error, 1), RingError::Running);
    }
    assert_eq!(session.backend.rings()[1], before);
    session.send(Request::SetVringNum, &state(0, 128)).quiet();
}

/// QEMU switches the log of running rings with SET_VRING_ADDR at the begin and
/// end of migration.
#[test]
fn a_running_ring_starts_and_ends_to_log() {
    let mut session = Session::ready();
    session.run(1);
    session
        .send(Request::SetVringAddr, addr(1).as_bytes())
        .quiet();
    let logged = VringAddr {
        flags: 1,
        log: 0x5000,
        ..addr(1)
    };
    assert_eq!(
        session.send(Request::SetVringAddr, logged.as_bytes()).ok(),
        [Effect::SetRingLog {
            ring: 1,
            log: Some(Gpa(0x5000))
        }]
    );
    let setup = session.backend.running_setup(1).expect("it runs");
    assert_eq!(setup.log, Some(Gpa(0x5000)));
    assert_eq!(
        session.send(Request::SetVringAddr, addr(1).as_bytes()).ok(),
        [Effect::SetRingLog { ring: 1, log: None }]
    );
}

#[test]
fn address_flags_are_known_and_a_log_is_offered() {
    let mut session = Session::ready();
    let wrong = VringAddr {
        flags: 2,
        ..addr(0)
    };
    let error = session
        .ask(Request::SetVringAddr, wrong.as_bytes(), 0)
        .nacked();
    assert_eq!(ring_error(&error, 0), RingError::AddressFlags { flags: 2 });

    let mut offer = offer();
    offer.features &= !VHOST_F_LOG_ALL;
    let mut session = Session::new(offer);
    let logged = VringAddr {
        flags: 1,
        ..addr(0)
    };
    let error = session
        .send(Request::SetVringAddr, logged.as_bytes())
        .closed();
    assert_eq!(ring_error(&error, 0), RingError::NoLog);
}

/// passt 7c33b12, QEMU 520d8b40e8: the reply leaves when the ring is quiet, and
/// nothing of the ring is used afterwards.
#[test]
fn the_base_is_answered_when_the_ring_has_stopped() {
    let mut session = Session::ready();
    session
        .send_fds(Request::SetVringCall, 0u64.as_bytes(), 1)
        .ok();
    session
        .send_fds(Request::SetVringErr, 0u64.as_bytes(), 1)
        .ok();
    session.run(0);
    let message = wire::encode(11, 0, &state(0, 0));
    session
        .backend
        .receive(&message[..HEADER_BYTES], 0)
        .expect("a header");
    session
        .backend
        .receive(&message[HEADER_BYTES..], 0)
        .expect("a body");
    assert_eq!(
        session.backend.poll_effect(),
        Some(Effect::StopRing { ring: 0 })
    );
    assert_eq!(
        session.backend.poll_effect(),
        None,
        "no reply while the ring drains"
    );
    assert!(session.backend.rings()[0].running);
    session
        .backend
        .answer(Ok(Answer::RingStopped { base: 77 }))
        .expect("stopped");
    let reply = wire::encode(11, 4, &state(0, 77));
    assert_eq!(
        session.backend.poll_effect(),
        Some(Effect::Send {
            bytes: reply,
            fds: Vec::new()
        })
    );

    let ring = &session.backend.rings()[0];
    assert!(!ring.running && ring.enabled);
    assert_eq!(
        (ring.size, ring.base, ring.addresses),
        (Some(256), 77, None)
    );
    assert_eq!((ring.kick, ring.call), (Notifier::Unset, Notifier::Unset));
    assert_eq!(ring.err, Notifier::Fd);
    assert_eq!(
        ring_error(&session.kick(0).closed(), 0),
        RingError::NoAddresses
    );
}

#[test]
fn a_stopped_ring_starts_again_where_it_stopped() {
    let mut session = Session::ready();
    session.run(0);
    session
        .send(Request::GetVringBase, &state(0, 0))
        .reply(Request::GetVringBase);
    session
        .send(Request::SetVringAddr, addr(0).as_bytes())
        .quiet();
    let effects = session.kick(0).ok();
    assert!(matches!(
        effects[..],
        [Effect::StartRing { setup, .. }] if setup.base == STOPPED_AT && setup.enabled
    ));
}

#[test]
fn a_ring_that_does_not_run_answers_the_base_it_knows() {
    let mut session = Session::ready();
    let reply = session.send(Request::GetVringBase, &state(3, 0));
    assert_eq!(reply.effects, []);
    assert_eq!(reply.reply(Request::GetVringBase), state(3, 0));
    session.set_up(3);
    let reply = session.send(Request::GetVringBase, &state(3, 0));
    assert_eq!(reply.reply(Request::GetVringBase), state(3, 5));
    // Nothing was stopped, so nothing was forgotten.
    session.kick(3).ok();
}

#[test]
fn a_ring_that_does_not_stop_ends_the_session_and_is_not_stopped_twice() {
    for answer in [
        Err(Failure::System),
        Ok(Answer::Done),
        Ok(Answer::RingStopped { base: 1 << 16 }),
    ] {
        let wrong = answer.is_ok();
        let mut session = Session::ready();
        session.run(0);
        let message = wire::encode(11, 0, &state(0, 0));
        session
            .backend
            .receive(&message[..HEADER_BYTES], 0)
            .expect("a header");
        session
            .backend
            .receive(&message[HEADER_BYTES..], 0)
            .expect("a body");
        session.backend.poll_effect().expect("StopRing");
        let error = session
            .backend
            .answer(answer)
            .expect_err("a reply without a base");
        let cause = match wrong {
            true => Cause::Misuse(Misuse::WrongAnswer),
            false => Cause::Failed(Failure::System),
        };
        assert_eq!(error.cause(), &cause);
        assert_eq!(session.disconnect(), []);
    }
}

#[test]
fn ring_indices_are_explicit_and_checked() {
    let messages = [
        (Request::SetVringNum, state(4, 8), 0),
        (Request::SetVringAddr, addr(4).as_bytes().to_vec(), 0),
        (Request::SetVringBase, state(4, 8), 0),
        (Request::SetVringEnable, state(4, 1), 0),
        (Request::SetVringKick, 4u64.as_bytes().to_vec(), 1),
        (Request::SetVringCall, 4u64.as_bytes().to_vec(), 1),
        (Request::SetVringErr, 4u64.as_bytes().to_vec(), 1),
    ];
    let mut session = Session::ready();
    for (request, body, fds) in messages {
        let error = session.ask(request, &body, fds).nacked();
        assert_eq!(error.cause(), &Cause::RingIndex { index: 4, rings: 4 });
    }
    let far = [u32::MAX, 8];
    let error = session
        .ask(Request::SetVringNum, far.as_bytes(), 0)
        .nacked();
    assert_eq!(
        error.cause(),
        &Cause::RingIndex {
            index: u32::MAX,
            rings: 4
        }
    );
}

#[test]
fn all_256_rings_can_be_started() {
    let mut wide = offer();
    wide.queues = 256;
    let mut session = Session::new(wide);
    session
        .send(Request::SetFeatures, (VERSION_1 | BIT_30).as_bytes())
        .ok();
    for ring in 0..256 {
        session.run(ring);
    }
    assert!(
        session
            .backend
            .rings()
            .iter()
            .all(|ring| ring.running && ring.enabled)
    );
    assert_eq!(session.disconnect().len(), 256);
}
