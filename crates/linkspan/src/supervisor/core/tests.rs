//! Links that end, are ended, change and come back, in every order.

use std::collections::BTreeSet;

use super::*;

const DRAIN: Duration = Duration::from_secs(10);

fn wanted(name: &str, restart: Restart) -> Wanted {
    Wanted {
        name: name.to_owned(),
        arguments: vec!["blk".into(), name.into()],
        restart,
        start: true,
        first: false,
        watchdog: None,
    }
}

fn with(restart: Restart) -> (Core, Instant) {
    let (mut core, now) = (Core::new(DRAIN), Instant::now());
    core.reload(DRAIN, vec![wanted("a", restart)], now);
    assert!(matches!(core.effect(), Some(Effect::Start { name, .. }) if name == "a"));
    assert_eq!(core.effect(), None);
    (core, now)
}

fn state(core: &Core, name: &str) -> Option<State> {
    core.links().find(|it| it.name == name).map(|it| it.state)
}

#[track_caller]
fn starts(core: &mut Core) {
    assert!(matches!(core.effect(), Some(Effect::Start { .. })));
    assert_eq!(core.effect(), None);
}

#[test]
fn the_policy_decides_who_comes_back() {
    for (restart, end, back) in [
        (Restart::Always, End::Status(0), true),
        (Restart::Always, End::Signal(9), true),
        (Restart::Always, End::Status(2), false),
        (Restart::OnFailure, End::Status(0), false),
        (Restart::OnFailure, End::Status(1), true),
        (Restart::OnFailure, End::Status(2), false),
        (Restart::OnFailure, End::Signal(11), true),
        (Restart::OnFailure, End::NotStarted, true),
        (Restart::Never, End::Status(1), false),
        (Restart::Never, End::Signal(9), false),
    ] {
        let (mut core, now) = with(restart);
        core.ended("a", end, now);
        let expected = if back { State::Pausing } else { State::Stopped };
        assert_eq!(state(&core, "a"), Some(expected), "{restart:?} {end:?}");
        assert_eq!(core.due().is_some(), back);
        core.tick(now + PAUSE_MIN);
        assert_eq!(core.effect().is_some(), back);
    }
}

/// Pauses grow while it does not stay, to a limit; there is no last attempt.
#[test]
fn pauses_grow_and_begin_anew_once_it_stays() {
    let (mut core, mut now) = with(Restart::OnFailure);
    let mut pauses = Vec::new();
    for _ in 0..40 {
        core.ended("a", End::Signal(9), now);
        let due = core.due().unwrap();
        pauses.push(due - now);
        core.tick(due - Duration::from_millis(1));
        assert_eq!(core.effect(), None);
        now = due;
        core.tick(now);
        starts(&mut core);
    }
    assert_eq!(pauses[..3], [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4]);
    assert_eq!(pauses[39], PAUSE_MAX);
    now += STAYED;
    core.ended("a", End::Signal(9), now);
    assert_eq!(core.due(), Some(now + PAUSE_MIN));
    // Who asks does not wait.
    core.start("a", now).unwrap();
    starts(&mut core);
    assert_eq!(core.links().next().unwrap().starts, 42);
}

#[test]
fn who_does_not_end_in_time_is_killed_once() {
    let (mut core, now) = with(Restart::Always);
    core.stop("a", now).unwrap();
    assert_eq!(core.effect(), Some(Effect::Terminate("a".into())));
    // Asked again, it gets no more time.
    core.stop("a", now + Duration::from_secs(5)).unwrap();
    assert_eq!((core.effect(), core.due()), (None, Some(now + DRAIN)));
    core.tick(now + DRAIN);
    assert_eq!(core.effect(), Some(Effect::Kill("a".into())));
    assert_eq!((core.effect(), core.due()), (None, None));
    core.ended("a", End::Signal(9), now + DRAIN);
    assert_eq!(state(&core, "a"), Some(State::Stopped));
    core.start("a", now + DRAIN).unwrap();
    starts(&mut core);
}

#[test]
fn who_drains_has_all_the_time_until_all_ends() {
    let (mut core, now) = with(Restart::Always);
    core.drain("a", now).unwrap();
    assert_eq!(core.effect(), Some(Effect::Terminate("a".into())));
    assert_eq!((core.effect(), core.due()), (None, None));
    // Stopped after all, or with everything else, it has no longer than the others.
    let later = now + DRAIN * 100;
    core.end(later);
    assert_eq!(core.due(), Some(later + DRAIN));
    core.tick(later + DRAIN);
    assert_eq!(core.effect(), Some(Effect::Kill("a".into())));
    assert!(core.drain("b", now).is_err());
}

#[test]
fn who_is_wanted_again_while_it_ends_comes_back_after_it() {
    let (mut core, now) = with(Restart::Never);
    core.stop("a", now).unwrap();
    assert!(core.effect().is_some());
    core.start("a", now).unwrap();
    // Never two processes.
    assert_eq!(core.effect(), None);
    core.ended("a", End::Status(0), now);
    starts(&mut core);
}

#[test]
fn a_restart_is_an_end_and_a_start_whatever_the_policy() {
    let (mut core, now) = with(Restart::Never);
    core.restart("a", now).unwrap();
    assert_eq!(core.effect(), Some(Effect::Terminate("a".into())));
    // Asked twice, it is started once.
    core.restart("a", now).unwrap();
    assert_eq!((core.effect(), core.due()), (None, Some(now + DRAIN)));
    core.ended("a", End::Status(0), now);
    starts(&mut core);
    // Who has no process gets one, also out of a pause.
    core.stop("a", now).unwrap();
    assert!(core.effect().is_some());
    core.ended("a", End::Status(0), now);
    core.restart("a", now).unwrap();
    starts(&mut core);
    assert!(core.restart("b", now).is_err());
}

#[test]
fn a_reload_changes_only_what_changed() {
    let (mut core, now) = (Core::new(DRAIN), Instant::now());
    let all = |names: &[&str]| -> Vec<Wanted> {
        let wanted = |name: &&str| wanted(name, Restart::Always);
        names.iter().map(wanted).collect()
    };
    core.reload(DRAIN, all(&["a", "b", "c"]), now);
    while core.effect().is_some() {}
    let mut next = all(&["a", "b", "d"]);
    next[1].arguments.push("--queues=2".into());
    next[0].restart = Restart::Never;
    let changes = core.reload(DRAIN, next.clone(), now);
    assert_eq!(changes.added, ["d"]);
    assert_eq!(changes.removed, ["c"]);
    assert_eq!(changes.changed, ["b"]);
    let mut effects: Vec<_> = std::iter::from_fn(|| core.effect()).collect();
    effects.sort_by_key(|effect| format!("{effect:?}"));
    assert_eq!(effects.len(), 3, "{effects:?}");
    assert_eq!(
        effects[1..],
        [Effect::Terminate("b".into()), Effect::Terminate("c".into())]
    );
    // The one that changed comes back with what is new, the one that is gone does not.
    core.ended("b", End::Status(0), now);
    core.ended("c", End::Status(0), now);
    let Some(Effect::Start { name, arguments }) = core.effect() else {
        panic!("b does not come back");
    };
    assert_eq!((name.as_str(), arguments.len()), ("b", 3));
    assert_eq!(core.effect(), None);
    assert_eq!(core.start("c", now), Err(Unknown("c".into())));
    assert_eq!(core.reload(DRAIN, next, now), Changes::default());
    assert_eq!(core.effect(), None);
    // The new policy holds for the process that was there before.
    core.ended("a", End::Signal(9), now);
    assert_eq!(state(&core, "a"), Some(State::Stopped));
}

/// A link that leaves and returns before its process has ended.
#[test]
fn a_link_that_returns_waits_for_its_old_process() {
    let (mut core, now) = with(Restart::Always);
    assert_eq!(core.reload(DRAIN, Vec::new(), now).removed, ["a"]);
    assert_eq!(core.effect(), Some(Effect::Terminate("a".into())));
    assert!(core.start("a", now).is_err());
    assert_eq!(core.reload(DRAIN, Vec::new(), now), Changes::default());
    let changes = core.reload(DRAIN, vec![wanted("a", Restart::Always)], now);
    assert_eq!(changes.added, ["a"]);
    assert_eq!(core.effect(), None);
    core.ended("a", End::Status(0), now);
    starts(&mut core);
}

#[test]
fn the_end_is_over_when_the_last_process_is() {
    let (mut core, now) = (Core::new(DRAIN), Instant::now());
    let mut links = vec![wanted("a", Restart::Always), wanted("b", Restart::Always)];
    links.push(Wanted {
        start: false,
        ..wanted("c", Restart::Always)
    });
    core.reload(DRAIN, links.clone(), now);
    while core.effect().is_some() {}
    core.ended("b", End::Signal(9), now);
    core.end(now);
    assert!(!core.is_over());
    assert_eq!(core.effect(), Some(Effect::Terminate("a".into())));
    assert_eq!(core.effect(), None);
    // Nothing begins any more.
    core.reload(DRAIN, links, now);
    assert!(core.start("b", now).is_err());
    core.tick(now + PAUSE_MAX);
    assert_eq!(core.effect(), Some(Effect::Kill("a".into())));
    core.ended("a", End::Signal(9), now);
    assert!(core.is_over());
    assert_eq!((core.effect(), core.due()), (None, None));
}

/// A process that hangs has no other end.
#[test]
fn who_does_not_say_that_it_lives_is_killed_once() {
    let limit = Duration::from_secs(60);
    let link = Wanted {
        watchdog: Some(limit),
        ..wanted("a", Restart::OnFailure)
    };
    let (mut core, mut now) = (Core::new(DRAIN), Instant::now());
    core.reload(DRAIN, vec![link.clone()], now);
    starts(&mut core);
    for _ in 0..3 {
        now = core.due().unwrap();
        core.tick(now);
        assert_eq!(core.effect(), Some(Effect::Beat("a".into())));
        core.heard("a", now);
        // Twice is once.
        core.heard("a", now);
        assert_eq!((core.effect(), core.due()), (None, Some(now + limit / 2)));
    }
    // One that does not change the watchdog does not wind it up.
    core.reload(DRAIN, vec![link.clone()], now + limit / 4);
    assert_eq!(core.due(), Some(now + limit / 2));
    now += limit / 2;
    core.tick(now);
    assert_eq!(core.effect(), Some(Effect::Beat("a".into())));
    core.tick(core.due().unwrap());
    assert_eq!((core.effect(), core.due()), (None, Some(now + limit)));
    core.tick(now + limit - Duration::from_millis(1));
    assert_eq!(core.effect(), None);
    core.tick(now + limit);
    assert_eq!(core.effect(), Some(Effect::Kill("a".into())));
    assert_eq!((core.effect(), core.due()), (None, None));
    // Too late.
    core.heard("a", now + limit);
    assert_eq!(core.due(), None);
    core.ended("a", End::Signal(9), now + limit);
    core.tick(now + limit + PAUSE_MIN);
    starts(&mut core);
    // Without a watchdog nobody asks, and one that is to end has its deadline.
    let calm = Wanted {
        watchdog: None,
        ..link
    };
    core.reload(DRAIN, vec![calm], now);
    assert_eq!(core.due(), None);
}

/// Ours: a machine was halted, or its clock jumped, while an answer was under way, and each
/// link that had been asked was killed before anybody looked for its answer.
#[test]
fn a_machine_that_was_halted_kills_no_link_that_lives() {
    let limit = Duration::from_secs(60);
    let link = Wanted {
        watchdog: Some(limit),
        ..wanted("a", Restart::OnFailure)
    };
    let (mut core, mut now) = (Core::new(DRAIN), Instant::now());
    core.reload(DRAIN, vec![link], now);
    starts(&mut core);
    for halted in [limit, limit * 100] {
        now = core.due().unwrap();
        core.tick(now);
        assert_eq!(core.effect(), Some(Effect::Beat("a".into())));
        now += halted;
        core.tick(now);
        assert_eq!((core.effect(), core.due()), (None, Some(now + limit / 4)));
        core.heard("a", now);
        assert_eq!(core.due(), Some(now + limit / 2));
    }
    // One that does not live has no more time than is left then.
    now = core.due().unwrap();
    core.tick(now);
    assert!(core.effect().is_some());
    now += limit * 2;
    core.tick(now);
    core.tick(now + limit / 4);
    assert_eq!(core.effect(), Some(Effect::Kill("a".into())));
}

/// Ours: a link that had ended since it made no sense stayed as it was when its plane was put
/// right, and one that somebody had just ended was started when its line changed.
#[test]
fn a_change_starts_who_failed_and_not_who_was_ended() {
    let now = Instant::now();
    let other = || Wanted {
        arguments: vec!["blk".into(), "other".into()],
        ..wanted("a", Restart::OnFailure)
    };
    // It made no sense, or is in a pause.
    for end in [End::Status(2), End::Status(1)] {
        let (mut core, _) = with(Restart::OnFailure);
        core.ended("a", end, now);
        assert_eq!(core.reload(DRAIN, vec![other()], now).changed, ["a"]);
        starts(&mut core);
        core.ended("a", end, now);
        // The same once more changes nothing.
        core.reload(DRAIN, vec![other()], now);
        assert_eq!(core.effect(), None);
        // One that is not to start by itself does not.
        if end == End::Status(2) {
            let quiet = Wanted {
                start: false,
                ..wanted("a", Restart::OnFailure)
            };
            core.reload(DRAIN, vec![quiet], now);
            assert_eq!(
                (core.effect(), state(&core, "a")),
                (None, Some(State::Stopped))
            );
        }
    }
    // Somebody ended it, or has it finish.
    let (mut core, _) = with(Restart::Always);
    core.drain("a", now).unwrap();
    assert!(core.effect().is_some());
    core.reload(DRAIN, vec![other()], now);
    assert_eq!((core.effect(), core.due()), (None, None));
    core.ended("a", End::Status(0), now);
    core.reload(DRAIN, vec![wanted("a", Restart::Always)], now);
    assert_eq!(
        (core.effect(), state(&core, "a")),
        (None, Some(State::Stopped))
    );
    // Asked for, it has what is new.
    core.start("a", now).unwrap();
    let effect = core.effect();
    assert!(matches!(effect, Some(Effect::Start { arguments, .. }) if arguments[1] == "a"));
}

/// A machine that goes off still writes to its disk, also if that has to come back first.
#[test]
fn what_a_machine_uses_ends_after_it() {
    let (mut core, now) = (Core::new(DRAIN), Instant::now());
    let machine = Wanted {
        first: true,
        ..wanted("vm", Restart::Always)
    };
    let disk = wanted("disk", Restart::Always);
    core.reload(DRAIN, vec![disk, machine], now);
    while core.effect().is_some() {}
    core.end(now);
    assert_eq!(core.effect(), Some(Effect::Terminate("vm".into())));
    assert_eq!(core.effect(), None);
    core.ended("disk", End::Signal(9), now);
    core.tick(now + PAUSE_MIN);
    starts(&mut core);
    let later = now + DRAIN;
    core.tick(later);
    assert_eq!(core.effect(), Some(Effect::Kill("vm".into())));
    core.ended("vm", End::Signal(9), later);
    assert_eq!(core.effect(), Some(Effect::Terminate("disk".into())));
    assert_eq!(core.due(), Some(later + DRAIN));
    core.ended("disk", End::Status(0), later);
    assert!(core.is_over() && core.effect().is_none());
}

/// Whatever happens in whatever order: a link has one process at most, effects are about
/// processes that there are, and all ends.
#[test]
fn any_order_of_events_keeps_the_books() {
    for seed in 0..2000_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let (mut core, mut now) = (Core::new(DRAIN), Instant::now());
        let mut alive: BTreeSet<String> = BTreeSet::new();
        for step in 0..60 {
            let name = ["a", "b", "c"][usize::try_from(below(3)).unwrap()];
            match below(8) {
                0 => {
                    let restart = [Restart::Always, Restart::OnFailure, Restart::Never];
                    let mut links: Vec<Wanted> = Vec::new();
                    for name in ["a", "b", "c"] {
                        if below(3) == 0 {
                            continue;
                        }
                        let restart = restart[usize::try_from(below(3)).unwrap()];
                        let mut link = wanted(name, restart);
                        link.start = below(2) == 0;
                        link.watchdog = (below(2) == 0).then_some(DRAIN);
                        link.first = name == "c" && below(2) == 0;
                        link.arguments.push(below(2).to_string().into());
                        links.push(link);
                    }
                    core.reload(DRAIN, links, now);
                }
                1 => drop(core.start(name, now)),
                2 => drop(core.stop(name, now)),
                3 => {
                    if alive.remove(name) {
                        core.ended(name, End::Signal(9), now);
                    }
                }
                4 if step > 50 => core.end(now),
                7 => core.heard(name, now),
                _ => {
                    now = core.due().unwrap_or(now).max(now);
                    core.tick(now);
                }
            }
            carry_out(&mut core, &mut alive, seed);
        }
        core.end(now);
        // Those that end first, and then the others.
        for _ in 0..2 {
            carry_out(&mut core, &mut alive, seed);
            now += DRAIN;
            core.tick(now);
            carry_out(&mut core, &mut alive, seed);
            for name in std::mem::take(&mut alive) {
                core.ended(&name, End::Signal(9), now);
            }
        }
        assert!(core.is_over() && core.effect().is_none(), "seed {seed}");
    }
}

#[track_caller]
fn carry_out(core: &mut Core, alive: &mut BTreeSet<String>, seed: u64) {
    while let Some(effect) = core.effect() {
        match effect {
            Effect::Start { name, .. } => {
                assert!(alive.insert(name), "seed {seed}: two processes");
            }
            Effect::Terminate(name) | Effect::Kill(name) | Effect::Beat(name) => {
                assert!(alive.contains(&name), "seed {seed}: no process");
            }
        }
    }
    let seen: BTreeSet<String> = core
        .links()
        .filter(|it| matches!(it.state, State::Running | State::Ending))
        .map(|it| it.name)
        .collect();
    assert_eq!(seen, *alive, "seed {seed}");
}

/// Ours: a plane that was read again with `start = true` in place of false started nothing.
#[test]
fn a_reload_starts_who_is_now_to_start() {
    let (mut core, now) = (Core::new(DRAIN), Instant::now());
    let asked = |start| Wanted {
        start,
        ..wanted("a", Restart::OnFailure)
    };
    core.reload(DRAIN, vec![asked(false)], now);
    assert_eq!(
        (core.effect(), state(&core, "a")),
        (None, Some(State::Stopped))
    );
    let changes = core.reload(DRAIN, vec![asked(true)], now);
    assert_eq!(changes.changed, ["a"]);
    starts(&mut core);
    // The same again is no change, and one that somebody ended stays where it is.
    core.stop("a", now).unwrap();
    assert_eq!(core.effect(), Some(Effect::Terminate("a".into())));
    core.ended("a", End::Status(0), now);
    assert_eq!(
        core.reload(DRAIN, vec![asked(true)], now),
        Changes::default()
    );
    assert_eq!(
        (core.effect(), state(&core, "a")),
        (None, Some(State::Stopped))
    );
    // One that is no longer to start by itself goes on.
    core.start("a", now).unwrap();
    starts(&mut core);
    assert_eq!(
        core.reload(DRAIN, vec![asked(false)], now),
        Changes::default()
    );
    assert_eq!(
        (core.effect(), state(&core, "a")),
        (None, Some(State::Running))
    );
    // While it ends: it is back after that.
    core.stop("a", now).unwrap();
    assert!(core.effect().is_some());
    core.reload(DRAIN, vec![asked(true)], now);
    assert_eq!(core.effect(), None);
    core.ended("a", End::Status(0), now);
    starts(&mut core);
}
