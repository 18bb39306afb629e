//! A session saved and restored.

use linkspan_vhost::backend::{NotQuiet, RestoreError, RingError};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, HEADER_BYTES};
use linkspan_vhost::{Backend, MemoryError, Offer, VHOST_F_LOG_ALL};
use zerocopy::IntoBytes;

use crate::{
    BIT_30, PACKED, Session, VERSION_1, addr, inflight, offer, region, single, state, table_of,
};

/// A conversation that touches everything that is saved.
fn conversation() -> Vec<(Vec<u8>, usize)> {
    let need = 8;
    let mut logged = addr(2);
    logged.flags = 1;
    logged.log = 0x9000;
    vec![
        (wire::encode(1, 0, &[]), 0),
        (
            wire::encode(16, need, Backend::PROTOCOL_FEATURES.bits().as_bytes()),
            0,
        ),
        (wire::encode(13, need, 2u64.as_bytes()), 1),
        (wire::encode(14, need, (2u64 | 1 << 8).as_bytes()), 0),
        (
            wire::encode(
                2,
                need,
                (VERSION_1 | PACKED | VHOST_F_LOG_ALL | BIT_30).as_bytes(),
            ),
            0,
        ),
        (
            wire::encode(5, need, &table_of(&[region(0, 0x10_0000, 0x7000_0000)])),
            1,
        ),
        (
            wire::encode(37, need, &single(region(1 << 32, 0x1000, 1 << 32))),
            1,
        ),
        (wire::encode(8, need, &state(2, 100)), 0),
        (wire::encode(10, need, &state(2, 0x8001_8002)), 0),
        (wire::encode(9, need, logged.as_bytes()), 0),
        (wire::encode(12, need, 2u64.as_bytes()), 1),
        (wire::encode(18, need, &state(2, 1)), 0),
        (wire::encode(18, need, &state(0, 1)), 0),
        (wire::encode(8, need, &state(2, 8)), 0),
        (wire::encode(11, need, &state(2, 0)), 0),
        (
            wire::encode(38, need, &single(region(1 << 32, 0x1000, 1 << 32))),
            0,
        ),
        (wire::encode(6, need, [0x1000u64, 0x2000].as_bytes()), 1),
        (wire::encode(7, need, &[]), 1),
        (wire::encode(21, need, &[]), 1),
        (wire::encode(31, need, &inflight(0, 4)), 0),
        (wire::encode(32, need, &inflight(0x4000, 2)), 1),
        (wire::encode(39, need, 7u64.as_bytes()), 0),
        (wire::encode(34, need, &[]), 0),
        (wire::encode(39, need, 0u64.as_bytes()), 0),
    ]
}

#[test]
fn a_session_goes_on_after_every_step() {
    let mut original = Session::new(offer());
    let mut successor = Session::new(offer());
    for (message, fds) in conversation() {
        let expected = original.raw(&message, fds);
        assert_eq!(successor.raw(&message, fds), expected);
        let saved = successor.backend.snapshot().expect("quiet");
        assert_eq!(saved, original.backend.snapshot().expect("quiet"));
        successor.backend = Backend::restore(offer(), &saved).expect("a session");
        assert_eq!(successor.backend.rings(), original.backend.rings());
        assert_eq!(successor.backend.regions(), original.backend.regions());
        assert_eq!(successor.backend.features(), original.backend.features());
        assert_eq!(
            successor.backend.protocol_features(),
            original.backend.protocol_features()
        );
        for ring in 0..4 {
            let expected = original.backend.running_setup(ring);
            assert_eq!(successor.backend.running_setup(ring), expected);
        }
    }
}

#[test]
fn only_a_quiet_session_is_saved() {
    let mut session = Session::ready();
    let call = wire::encode(13, 8, 0u64.as_bytes());
    session.backend.receive(&call[..1], 1).expect("a byte");
    assert_eq!(session.backend.snapshot(), Err(NotQuiet::Receiving));
    session
        .backend
        .receive(&call[1..HEADER_BYTES], 0)
        .expect("a header");
    session
        .backend
        .receive(&call[HEADER_BYTES..], 0)
        .expect("a body");
    assert_eq!(
        session.backend.snapshot(),
        Err(NotQuiet::Working),
        "not taken"
    );
    session.backend.poll_effect().expect("SetCall");
    assert_eq!(
        session.backend.snapshot(),
        Err(NotQuiet::Working),
        "not answered"
    );
    session
        .backend
        .answer(Ok(linkspan_vhost::backend::Answer::Done))
        .expect("an answer");
    assert_eq!(
        session.backend.snapshot(),
        Err(NotQuiet::Working),
        "not sent"
    );
    session.backend.poll_effect().expect("Send");
    session.backend.snapshot().expect("quiet");
    session.backend.disconnect();
    assert_eq!(session.backend.snapshot(), Err(NotQuiet::Over));
}

fn saved() -> Vec<u8> {
    let mut session = Session::ready();
    session.run(1);
    session.backend.snapshot().expect("quiet")
}

#[test]
fn every_shorter_and_longer_form_is_refused() {
    let saved = saved();
    for len in 0..saved.len() {
        let error = Backend::restore(offer(), &saved[..len]).expect_err("cut");
        assert!(
            matches!(error, RestoreError::Length { got, .. } if got == len),
            "{error}"
        );
    }
    let mut long = saved;
    long.push(0);
    let error = Backend::restore(offer(), &long).expect_err("longer");
    assert!(matches!(error, RestoreError::Length { .. }));
}

/// A session of the first form, which had no log, in-flight region, status and socket for
/// requests: 40 bytes of head, and the rest as now.
const FIRST: &[u8] = include_bytes!("session-1.bin");

#[test]
fn the_first_form_is_read() {
    let now = saved();
    let first = Backend::restore(offer(), FIRST).expect("the first form");
    assert_eq!(first.snapshot().expect("quiet"), now);
    for len in 0..FIRST.len() {
        Backend::restore(offer(), &FIRST[..len]).expect_err("cut");
    }
    let mut later = FIRST.to_vec();
    // It had no log.
    later[12] |= 2;
    let error = Backend::restore(offer(), &later).expect_err("flags");
    assert!(matches!(error, RestoreError::Flags { .. }), "{error}");
}

/// Whatever the bytes say, what is restored could have been reached by messages.
#[test]
fn changed_bytes_are_refused_or_still_a_session() {
    let saved = saved();
    for at in 0..saved.len() {
        for bit in 0..8 {
            let mut changed = saved.clone();
            changed[at] ^= 1 << bit;
            let Ok(backend) = Backend::restore(offer(), &changed) else {
                continue;
            };
            assert_eq!(backend.snapshot().expect("quiet").len(), saved.len());
            for (index, ring) in backend.rings().iter().enumerate() {
                let index = u16::try_from(index).expect("few");
                assert_eq!(ring.running, backend.running_setup(index).is_some());
            }
        }
    }
}

#[test]
fn what_is_not_offered_any_more_is_not_restored() {
    let saved = saved();
    let restore = |offer: Offer| Backend::restore(offer, &saved).expect_err("too little");
    let error = restore(Offer {
        features: 0,
        ..offer()
    });
    assert_eq!(error, RestoreError::Features { unknown: VERSION_1 });
    let less = Offer {
        protocol_features: linkspan_vhost::ProtocolFeatures::MQ,
        ..offer()
    };
    assert!(matches!(
        restore(less),
        RestoreError::ProtocolFeatures { .. }
    ));
    let error = restore(Offer {
        queues: 2,
        ..offer()
    });
    assert_eq!(error, RestoreError::Rings { got: 4, want: 2 });
    let error = restore(Offer {
        queue_size_max: 128,
        ..offer()
    });
    let size = RingError::Size {
        size: 256,
        max: 128,
    };
    assert_eq!(
        error,
        RestoreError::Ring {
            ring: 1,
            error: size
        }
    );
}

#[test]
fn other_bytes_are_named() {
    let saved = saved();
    let mut other = saved.clone();
    other[0] = b'x';
    assert_eq!(
        Backend::restore(offer(), &other).expect_err("magic"),
        RestoreError::Magic
    );
    let mut other = saved.clone();
    other[8] = 3;
    let error = Backend::restore(offer(), &other).expect_err("version");
    assert_eq!(error, RestoreError::Version { got: 3 });
    // Four billion regions are refused before room is made for them.
    let mut other = saved;
    other[32..36].copy_from_slice(&[0xff; 4]);
    let error = Backend::restore(offer(), &other).expect_err("regions");
    let many = MemoryError::TooMany {
        count: u32::MAX.into(),
        max: 32,
    };
    assert_eq!(error, RestoreError::Memory(many));
}

#[test]
fn a_restored_ring_can_be_stopped() {
    let mut session = Session::ready();
    session.backend = Backend::restore(offer(), &saved()).expect("a session");
    let base = session.send(Request::GetVringBase, &state(1, 0));
    assert_eq!(
        base.reply(Request::GetVringBase),
        state(1, crate::STOPPED_AT)
    );
}

/// The last two bytes of ring 1, which runs.
fn ring_flags(saved: &mut [u8]) -> &mut [u8] {
    let rings = saved.len() - 4 * 40;
    &mut saved[rings + 40 + 38..][..2]
}

#[test]
fn a_ring_runs_if_and_only_if_it_was_kicked() {
    let (running, kick) = (1 << 3, 0b11 << 4);
    for clear in [running, kick] {
        let mut saved = saved();
        let flags = ring_flags(&mut saved);
        assert!(flags[0] & running != 0 && flags[0] & kick != 0);
        flags[0] &= !clear;
        let error = Backend::restore(offer(), &saved).expect_err("half running");
        assert!(matches!(error, RestoreError::Flags { .. }), "{error}");
    }
}

#[test]
fn a_ring_logs_only_if_that_is_offered() {
    let mut saved = saved();
    ring_flags(&mut saved)[0] |= 1 << 1;
    Backend::restore(offer(), &saved).expect("logging is offered");
    let mut offer = offer();
    offer.features &= !VHOST_F_LOG_ALL;
    let error = Backend::restore(offer, &saved).expect_err("logging is not offered");
    assert_eq!(
        error,
        RestoreError::Ring {
            ring: 1,
            error: RingError::NoLog
        }
    );
}
