//! Faults that front ends of others had.

use Request as R;
use linkspan_vhost::frontend::{Command, CommandError, Effect, Event, FdId, Misfit, WishError};
use linkspan_vhost::message::Request;
use linkspan_vhost::{Frontend, Offer, ProtocolFeatures, Wish};

use crate::{ALL, Pair, offer, region, start, start_all, wish};

/// QEMU ffe42cc14c merged regions that follow each other, though each was in a
/// file of its own.
#[test]
fn neighbouring_regions_of_different_files_stay_two() {
    for slots in [true, false] {
        let mut protocol_features = ALL;
        protocol_features.set(ProtocolFeatures::CONFIGURE_MEM_SLOTS, slots);
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
        let neighbours = vec![
            (region(0, 0x1000, 0x7000_0000), FdId(1)),
            (region(0x1000, 0x1000, 0x7000_1000), FdId(2)),
        ];
        pair.done(Command::SetMemory(neighbours));
        let fds: Vec<FdId> = pair.sent.iter().flat_map(|sent| sent.fds.clone()).collect();
        assert_eq!(fds, [FdId(1), FdId(2)]);
        assert_eq!(pair.back.regions().len(), 2);
        pair.agree();
    }
}

/// QEMU bc85aae420, 5a317017b8: a migration went on after the back end had died
/// while its rings were stopped.
#[test]
fn stopping_the_rings_of_a_dead_back_end_is_no_success() {
    // Nothing came through, or one base, or half of another.
    for pieces in [0, 30, 60, 90] {
        let mut pair = Pair::ready();
        pair.done(start_all());
        pair.piece = 1;
        pair.cut = Some(pair.pieces + pieces);
        let events = pair.give(Command::StopRings(vec![0, 1, 2, 3]));
        assert!(!events.contains(&Event::Done), "{pieces}: {events:?}");
        assert!(events.len() < 4);
        pair.lose();
        assert!(pair.front.is_over());
        let error = pair.front.command(Command::StopRings(vec![0]));
        assert_eq!(error, Err(CommandError::Over));
        // What is not known to have stopped goes on where it was started.
        let saved = pair.front.saved().expect("negotiated");
        let known = events.len();
        for (ring, state) in (0..).zip(&saved.rings).skip(known) {
            assert_eq!(state.base, start(ring).base, "{pieces}");
        }
    }
}

/// QEMU 07fde5901b: a forced shutdown waited for GET_VRING_BASE.
#[test]
fn a_forced_end_sends_nothing_and_waits_for_nothing() {
    let mut pair = Pair::ready();
    pair.done(start_all());
    pair.front
        .command(Command::StopRings(vec![0, 1]))
        .expect("rings that run");
    assert!(matches!(
        pair.front.poll_effect(),
        Some(Effect::Send { .. })
    ));
    assert_eq!(pair.front.awaited(), Some(R::GetVringBase));
    pair.front.disconnect();
    assert_eq!(pair.front.poll_effect(), None);
    assert_eq!((pair.front.awaited(), pair.front.wanted()), (None, 0));
}

/// QEMU 23bfaf77fa, 46228925ed: rings that never ran were stopped, and their
/// empty state was kept.
#[test]
fn rings_that_never_ran_are_neither_stopped_nor_forgotten() {
    let mut pair = Pair::ready();
    pair.done(Command::StartRings(vec![start(1)]));
    pair.sent.clear();
    let error = pair.front.command(Command::StopRings(vec![1, 2]));
    assert_eq!(error, Err(CommandError::NotRunning { ring: 2 }));
    assert_eq!(pair.requests(), []);
    let events = pair.done(Command::StopRings(vec![1]));
    assert!(matches!(events[..], [Event::RingStopped { ring: 1, .. }]));
    assert_eq!(pair.requests(), [R::GetVringBase]);
    let saved = pair.front.saved().expect("negotiated");
    assert!(saved.rings[2].size.is_none() && saved.rings[1].size.is_some());
}

/// 1 to 1024 queues of which 256 can be named: each number that a back end may
/// have, one less, and one more.
#[test]
fn every_number_of_queues_is_served_or_named() {
    for has in (1..=256).chain([257, 1023, 1024, u64::from(u16::MAX), u64::MAX]) {
        let rings = u16::try_from(has.min(256)).expect("256 at most");
        let offer = || Offer {
            queues: rings,
            queue_num: has,
            ..offer()
        };
        for wanted in [1, rings - rings.min(1), rings, rings + 1] {
            let front = Frontend::new(Wish {
                queues: wanted,
                ..wish()
            });
            if wanted == 0 || wanted > 256 {
                let (queues, max) = (wanted, 256);
                assert_eq!(front.err(), Some(WishError::Queues { queues, max }));
                continue;
            }
            let mut pair = Pair::of(front.expect("a wish"), offer());
            pair.run();
            if u64::from(wanted) > has {
                let misfit = pair.error.expect("too many").misfit();
                assert_eq!(misfit, Some(Misfit::Queues { wanted, max: has }));
                continue;
            }
            assert_eq!(pair.negotiated().queues_max, has);
            if wanted == rings && rings.is_power_of_two() {
                pair.make_ready();
                pair.done(Command::StartRings((0..wanted).map(start).collect()));
                let running = pair.back.rings().iter().filter(|ring| ring.enabled);
                assert_eq!(running.count(), usize::from(wanted));
            }
        }
    }
}
