//! A front end saved and restored.

use linkspan_vhost::frontend::{Command, NotQuiet, RestoreError, WishError};
use linkspan_vhost::{Backend, Frontend, MemoryError, Wish};

use crate::pair::conversation;
use crate::{EVENT_IDX, Pair, VERSION_1, offer, start_all, wish};

#[test]
fn a_session_goes_on_after_every_step_with_both_ends_saved() {
    let (mut original, mut successor) = (Pair::new(), Pair::new());
    for command in conversation() {
        let expected = original.give(command.clone());
        assert_eq!(successor.give(command), expected);
        let front = successor.front.snapshot().expect("idle");
        assert_eq!(front, original.front.snapshot().expect("idle"));
        successor.front = Frontend::restore(wish(), &front).expect("a session");
        let back = successor.back.snapshot().expect("quiet");
        successor.back = Backend::restore(offer(), &back).expect("a session");
        assert_eq!(successor.front.negotiated(), original.front.negotiated());
        assert_eq!(successor.front.saved(), original.front.saved());
        successor.agree();
    }
    assert_eq!(successor.sent, original.sent);
}

#[test]
fn only_an_idle_session_is_saved() {
    let mut pair = Pair::with(wish(), offer());
    assert_eq!(pair.front.snapshot(), Err(NotQuiet::Working), "negotiating");
    pair.run();
    pair.negotiated();
    pair.front.command(Command::ReadStatus).expect("idle");
    assert_eq!(pair.front.snapshot(), Err(NotQuiet::Working), "not taken");
    pair.front.poll_effect().expect("a message");
    assert_eq!(
        pair.front.snapshot(),
        Err(NotQuiet::Working),
        "not answered"
    );
    pair.front.receive(&[40], 0).expect("a byte");
    assert_eq!(pair.front.snapshot(), Err(NotQuiet::Receiving));
    pair.front.disconnect();
    assert_eq!(pair.front.snapshot(), Err(NotQuiet::Over));
}

fn saved() -> Vec<u8> {
    let mut pair = Pair::ready();
    pair.done(start_all());
    pair.front.snapshot().expect("idle")
}

#[test]
fn every_shorter_and_longer_form_is_refused() {
    let saved = saved();
    for len in 0..saved.len() {
        let error = Frontend::restore(wish(), &saved[..len]).expect_err("cut");
        assert!(matches!(error, RestoreError::Length { .. }), "{error}");
    }
    let mut long = saved;
    long.push(0);
    Frontend::restore(wish(), &long).expect_err("longer");
}

#[test]
fn changed_bytes_are_refused_or_still_a_session() {
    let saved = saved();
    for at in 0..saved.len() {
        for bit in 0..8 {
            let mut changed = saved.clone();
            changed[at] ^= 1 << bit;
            let Ok(mut front) = Frontend::restore(wish(), &changed) else {
                continue;
            };
            assert!(front.is_idle());
            assert_eq!(front.snapshot().expect("idle").len(), saved.len());
            // It takes commands without a panic.
            let _ = front.command(Command::StopRings(vec![0, 3]));
            while front.poll_effect().is_some() {}
        }
    }
}

#[test]
fn other_bytes_and_wishes_are_named() {
    let saved = saved();
    let mut other = saved.clone();
    other[0] = b'x';
    let error = Frontend::restore(wish(), &other).expect_err("magic");
    assert_eq!(error, RestoreError::Magic);
    let mut other = saved.clone();
    other[8] = 9;
    let error = Frontend::restore(wish(), &other).expect_err("version");
    assert_eq!(error, RestoreError::Version { got: 9 });
    let queues = 3;
    let error = Frontend::restore(Wish { queues, ..wish() }, &saved);
    let expected = RestoreError::Rings { got: 4, want: 3 };
    assert_eq!(error.expect_err("rings"), expected);
    let features = VERSION_1;
    let error = Frontend::restore(Wish { features, ..wish() }, &saved);
    let expected = RestoreError::Features { unknown: EVENT_IDX };
    assert_eq!(error.expect_err("features"), expected);
    let queues = 0;
    let error = Frontend::restore(Wish { queues, ..wish() }, &saved);
    let expected = RestoreError::Wish(WishError::Queues { queues, max: 256 });
    assert_eq!(error.expect_err("no rings"), expected);
    // A back end's session is no front end's.
    let mut pair = Pair::ready();
    pair.done(start_all());
    let back = pair.back.snapshot().expect("quiet");
    let error = Frontend::restore(wish(), &back).expect_err("the other end");
    assert_eq!(error, RestoreError::Magic);
    // Four billion regions are refused before room is made for them.
    let mut many = saved;
    let at = many.len() - 60 - 2 * 40 - 4 * 40 - 8;
    many[at..at + 4].copy_from_slice(&[0xff; 4]);
    let error = Frontend::restore(wish(), &many).expect_err("regions");
    assert!(
        matches!(error, RestoreError::Memory(MemoryError::TooMany { .. })),
        "{error}"
    );
}

/// A back end that took all memory away and refused the new leaves rings
/// without memory; that too can be saved.
#[test]
fn rings_that_lost_their_memory_are_saved() {
    let mut pair = Pair::ready();
    pair.done(start_all());
    let (removals, failure) = (2, linkspan_vhost::backend::Failure::System);
    pair.fails = Some((pair.effects + removals, failure));
    let other = crate::region(1 << 40, 1, 1 << 40);
    let other = vec![(other, linkspan_vhost::FdId(9))];
    pair.refused(Command::SetMemory(other));
    assert_eq!(pair.front.regions(), []);
    let saved = pair.front.snapshot().expect("idle");
    pair.front = Frontend::restore(wish(), &saved).expect("a session");
    pair.agree();
}
