//! Whole conversations: bytes split everywhere, cut everywhere, and random ones.

use linkspan_vhost::backend::Failure;
use linkspan_vhost::frontend::{Command, Event, FdId};
use linkspan_vhost::{Frontend, Inflight, Log};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Pair, memory, offer, region, start, start_all, wish};

/// Commands that touch everything.
pub(crate) fn conversation() -> Vec<Command> {
    let inflight = Inflight::new(0x5000, 0x1000, 4, 256).expect("a region");
    let log = Log::new(0x1000, 0).expect("a log");
    vec![
        Command::SetBackendRequests(FdId(20)),
        Command::SetFeatures(crate::VERSION_1),
        Command::SetMemory(memory()),
        Command::CreateInflight {
            queues: 4,
            queue_size: 256,
        },
        Command::AdoptInflight {
            inflight,
            fd: FdId(21),
        },
        Command::WriteStatus(15),
        start_all(),
        Command::SetLog { log, fd: FdId(22) },
        Command::SetMemory(vec![memory()[0], (region(1 << 40, 1, 1 << 40), FdId(3))]),
        Command::ReadConfig { offset: 0, size: 7 },
        Command::StopRings(vec![1, 2]),
        Command::StartRings(vec![start(2), start(1)]),
        Command::EnableRing {
            ring: 1,
            enabled: false,
        },
        Command::StopRings(vec![0, 1, 2, 3]),
        Command::CheckState,
        Command::ResetDevice,
    ]
}

/// The events and messages of a whole conversation, in pieces of `piece` bytes.
fn talk(piece: usize) -> (Vec<Event>, Vec<crate::Sent>) {
    let mut pair = Pair::with(wish(), offer());
    pair.piece = piece;
    pair.run();
    let mut events = std::mem::take(&mut pair.events);
    for command in conversation() {
        events.extend(pair.give(command));
        assert_eq!(events.last(), Some(&Event::Done));
        pair.agree();
    }
    (events, pair.sent)
}

#[test]
fn any_split_of_the_bytes_has_the_same_outcome() {
    let whole = talk(usize::MAX);
    for piece in 1..=48 {
        assert_eq!(talk(piece), whole, "pieces of {piece} bytes");
    }
}

/// Wherever the connection is lost: the back end stops what it runs, and
/// another connection brings every ring back (QEMU a463215b08, 32: the
/// acknowledged features of all rings are kept).
#[test]
fn a_connection_lost_anywhere_comes_back_with_every_ring() {
    let mut cut = 0;
    loop {
        let mut pair = Pair::with(wish(), offer());
        pair.cut = Some(cut);
        pair.piece = 7;
        pair.run();
        let mut commands = conversation().into_iter();
        while pair.pieces <= cut {
            let Some(command) = commands.next() else {
                return assert!(cut > 500, "the conversation has {cut} pieces");
            };
            pair.front.command(command).expect("idle");
            pair.run();
        }
        let acknowledged = pair.front.features();
        pair.lose();
        let Some(saved) = pair.front.saved() else {
            assert_eq!(acknowledged, None);
            cut += 1;
            continue;
        };
        assert_eq!(saved.features, acknowledged);
        let mut next = Pair::of(
            Frontend::resume(wish(), saved.clone()).expect("a wish"),
            offer(),
        );
        next.run();
        next.negotiated();
        let features = saved.features.unwrap_or(crate::VERSION_1) & !crate::BIT_30;
        next.done(Command::SetFeatures(features));
        next.done(Command::SetMemory(memory()));
        next.done(start_all());
        assert!(
            next.back
                .rings()
                .iter()
                .all(|ring| ring.running && ring.enabled)
        );
        next.agree();
        cut += 1;
    }
}

/// Whatever the back end cannot do, the command ends and both ends agree.
#[test]
fn every_failure_of_the_back_end_ends_its_command() {
    let mut fails = 0;
    loop {
        let mut pair = Pair::with(wish(), offer());
        pair.fails = Some((fails, Failure::System));
        pair.run();
        if fails == 0 {
            // The first effect is to read the configuration space.
            let misfit = pair.error.expect("refused").misfit();
            assert!(misfit.is_some());
            fails += 1;
            continue;
        }
        pair.negotiated();
        for command in conversation() {
            // What follows from a failure is refused here, or fails there.
            if pair.front.command(command).is_err() {
                continue;
            }
            pair.run();
            if pair.error.is_some() || pair.front.awaited().is_some() {
                // A message that has no way to say that it failed.
                pair.lose();
                break;
            }
            let last = pair.events.pop();
            assert!(
                matches!(last, Some(Event::Done | Event::Refused { .. })),
                "{last:?}"
            );
            assert!(pair.front.is_idle());
            pair.agree();
        }
        if pair.effects < fails {
            return assert!(fails > 40, "the conversation has {fails} effects");
        }
        fails += 1;
    }
}

fn command() -> impl Strategy<Value = Command> {
    let ring = || 0u16..5;
    let fd = || proptest::option::of((0u64..9).prop_map(FdId));
    let place = (0u64..6, 1u64..3, 0u64..3)
        .prop_map(|(at, size, fd)| (region(at << 12, size << 12, at << 12), FdId(fd)));
    let begin = (ring(), fd(), any::<bool>(), 0u32..3).prop_map(|(ring, kick, enabled, base)| {
        linkspan_vhost::frontend::RingStart {
            ring,
            kick,
            enabled,
            base,
            ..start(0)
        }
    });
    prop_oneof![
        1 => Just(Command::SetFeatures(crate::VERSION_1)),
        1 => Just(Command::SetFeatures(
            crate::VERSION_1 | linkspan_vhost::VHOST_F_LOG_ALL
        )),
        3 => vec(place, 1..4).prop_map(Command::SetMemory),
        6 => vec(begin, 1..5).prop_map(Command::StartRings),
        4 => vec(ring(), 1..5).prop_map(Command::StopRings),
        2 => (ring(), any::<bool>())
            .prop_map(|(ring, enabled)| Command::EnableRing { ring, enabled }),
        2 => (ring(), fd()).prop_map(|(ring, kick)| Command::SetKick { ring, kick }),
        2 => (ring(), fd()).prop_map(|(ring, call)| Command::SetCall { ring, call }),
        1 => (0u32..2000, 0u32..300)
            .prop_map(|(offset, size)| Command::ReadConfig { offset, size }),
        1 => Just(Command::ResetDevice),
        1 => (0u16..6, 0u16..2).prop_map(|(queues, queue_size)| {
            Command::CreateInflight { queues, queue_size }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_always_know_the_same(
        commands in vec((command(), 1usize..50, proptest::bool::weighted(0.1)), 0..60)
    ) {
        let mut pair = Pair::new();
        for (command, piece, fails) in commands {
            let before = pair.front.snapshot().expect("idle");
            if pair.front.command(command).is_err() {
                prop_assert_eq!(pair.front.snapshot().expect("idle"), before);
                continue;
            }
            pair.piece = piece;
            let next = pair.effects;
            pair.fails = fails.then_some((next, Failure::Rejected));
            pair.run();
            if fails && pair.front.awaited().is_some() {
                pair.lose();
                return Ok(());
            }
            prop_assert_eq!(&pair.error, &None);
            let last = pair.events.pop();
            let refused = matches!(last, Some(Event::Refused { .. }));
            prop_assert!(refused || last == Some(Event::Done));
            // Nothing is refused there that was checked here.
            prop_assert!(!refused || fails || !pair.events.is_empty() || next == pair.effects);
            pair.events.clear();
            // A ring that did not stop is stopped all the same.
            pair.agree();
            let saved = pair.front.snapshot().expect("idle");
            pair.front = Frontend::restore(wish(), &saved).expect("a session");
            prop_assert_eq!(pair.front.snapshot().expect("idle"), saved);
        }
        pair.lose();
    }
}
