//! The order of the calls to a vDPA device, against a ledger that has the kernel's
//! rules: each call is legal when it comes, and whichever fails, all before it is
//! undone.

mod ledger;

use ledger::Ledger;
use linkspan_mem::Iova;
use linkspan_vhost::vdpa::{
    Command, Consumer, Failure, Mapping, Misuse, Outcome, Plan, Reply, RingPlan, Step, StepError,
    Wire, status,
};
use proptest::prelude::*;

const SUSPEND: u64 = 1 << 4;
const RESUME: u64 = 1 << 5;
const BATCH: u64 = 1 << 2;
const PERSIST: u64 = 1 << 8;
/// What every test's vhost side is like in turn.
const KINDS: [u64; 4] = [
    0,
    BATCH,
    SUSPEND | RESUME | BATCH | PERSIST,
    PERSIST | SUSPEND,
];

/// Carries a command out; the `fail`th step fails.
fn run(
    core: &mut Consumer,
    ledger: &mut Ledger,
    command: Command,
    fail: Option<usize>,
) -> Result<Outcome, StepError> {
    core.begin(command).expect("it makes sense");
    let mut count = 0;
    while let Some(step) = core.next_step() {
        assert_eq!(
            core.next_step(),
            Some(step.clone()),
            "it waits for its answer"
        );
        assert!(core.outcome().is_none());
        let answer = if fail == Some(count) {
            Err(5)
        } else {
            Ok(ledger.carry_out(&step))
        };
        core.answer(answer).expect("it fits");
        count += 1;
        assert!(count < 1000, "it does not end");
    }
    core.outcome().expect("it has ended")
}

fn mapping(asid: u32, page: u64) -> Mapping {
    Mapping {
        asid,
        iova: Iova(page << 12),
        len: 4096,
        id: 0,
    }
}

fn plan(rings: u16) -> Plan {
    let ring = |ring: u16| RingPlan {
        ring,
        size: 128,
        base: u32::from(ring) * 3,
        address: [Iova(0x1000), Iova(0x2000), Iova(0x3000)],
        wires: vec![Wire::Call, Wire::Err, Wire::Kick],
        enabled: true,
    };
    Plan {
        features: 1 << 32 | 1 << 33,
        groups: vec![(1, 1)],
        rings: (0..rings).map(ring).collect(),
        config_call: true,
    }
}

fn opened(kind: u64) -> (Consumer, Ledger) {
    let (mut core, mut ledger) = (Consumer::new(kind), Ledger::new(kind));
    run(&mut core, &mut ledger, Command::Open, None).unwrap();
    (core, ledger)
}

fn memory() -> Vec<Mapping> {
    vec![mapping(0, 1), mapping(0, 2), mapping(1, 1)]
}

#[test]
fn a_device_comes_up_and_goes_down_and_nothing_is_left() {
    for kind in KINDS {
        let (mut core, mut ledger) = opened(kind);
        let empty = ledger.clone();
        run(&mut core, &mut ledger, Command::SetMemory(memory()), None).unwrap();
        let set_up = ledger.clone();
        for _ in 0..3 {
            run(&mut core, &mut ledger, Command::Start(plan(3)), None).unwrap();
            assert!(core.is_live() && ledger.is_live());
            assert_eq!(ledger.mapped.len(), 3);
            let outcome = run(&mut core, &mut ledger, Command::Stop, None).unwrap();
            let base = |ring: u16| (ring, (kind & SUSPEND != 0).then(|| u32::from(ring) * 3 + 7));
            assert_eq!(outcome.bases, (0..3).map(base).collect::<Vec<_>>());
            assert!(outcome.troubles.is_empty());
            assert_eq!(ledger, set_up, "kind {kind:#x}");
        }
        run(&mut core, &mut ledger, Command::Close, None).unwrap();
        assert_eq!(ledger, empty);
    }
}

/// QEMU b430a2bd23 and its review: an error left what had been done before it.
#[test]
fn each_step_fails_in_turn_and_all_before_it_is_undone() {
    for kind in KINDS {
        let (mut core, mut ledger) = opened(kind);
        for command in [
            Command::SetMemory(memory()),
            Command::TryFeatures(1 << 32),
            Command::Start(plan(3)),
            Command::Enable(vec![0, 1]),
        ] {
            let before = ledger.clone();
            let live = core.is_live();
            for fail in 0.. {
                let done = run(&mut core, &mut ledger, command.clone(), Some(fail));
                let Err(error) = done else {
                    assert!(fail > 0 || kind & PERSIST == 0);
                    break;
                };
                assert_eq!(error.failure, Failure::Errno(5), "{error}");
                assert_eq!(ledger.comparable(), before.comparable(), "{error}");
                assert_eq!(core.is_live(), live);
                assert_eq!(core.mapped().len(), before.mapped.len());
            }
        }
        run(&mut core, &mut ledger, Command::Close, None).unwrap();
        assert!(ledger.is_empty());
    }
}

/// QEMU 421f45d03f's sibling 7dab70bec3: a failed map was kept, or never there.
#[test]
fn a_failed_map_leaves_the_mappings_of_before() {
    let (mut core, mut ledger) = opened(PERSIST | BATCH);
    run(&mut core, &mut ledger, Command::SetMemory(memory()), None).unwrap();
    let before = ledger.clone();
    let other = vec![mapping(0, 2), mapping(0, 7), mapping(0, 8)];
    for fail in 0.. {
        let set = Command::SetMemory(other.clone());
        let done = run(&mut core, &mut ledger, set, Some(fail));
        if done.is_ok() {
            break;
        }
        assert_eq!(ledger.comparable(), before.comparable());
        assert_eq!(core.mapped().len(), 3);
    }
    assert_eq!(ledger.mapped.len(), 3);
    assert!(ledger.mapped.contains(&mapping(0, 7)));
}

/// QEMU 75a8ce64f6: the wrong mapping was deleted.
#[test]
fn only_what_is_gone_is_unmapped() {
    let (mut core, mut ledger) = opened(PERSIST);
    run(&mut core, &mut ledger, Command::SetMemory(memory()), None).unwrap();
    ledger.log.clear();
    let rest = vec![mapping(0, 1), mapping(1, 1)];
    run(&mut core, &mut ledger, Command::SetMemory(rest), None).unwrap();
    assert_eq!(ledger.log, [Step::Unmap(mapping(0, 2))]);
}

/// QEMU c3716f260b reset the device before it read the bases; fd3a2c601a suspended
/// it once for each queue; bc865bfe2d wrote bits of the status again.
#[test]
fn a_stop_suspends_once_reads_all_bases_and_resets_once_in_this_order() {
    let (mut core, mut ledger) = opened(SUSPEND | PERSIST);
    run(&mut core, &mut ledger, Command::Start(plan(2)), None).unwrap();
    ledger.log.clear();
    run(&mut core, &mut ledger, Command::Stop, None).unwrap();
    let first: Vec<_> = ledger.log.iter().take(4).cloned().collect();
    let base = |ring| Step::ReadBase { ring };
    assert_eq!(first, [Step::Suspend, base(0), base(1), Step::SetStatus(0)]);
    let resets = ledger.log.iter().filter(|it| **it == Step::SetStatus(0));
    assert_eq!(resets.count(), 1);
}

/// QEMU 2c66de61f8 and 66232095a1: VDUSE is never told after `DRIVER_OK`.
#[test]
fn rings_are_enabled_before_driver_ok() {
    let (mut core, mut ledger) = opened(0);
    ledger.log.clear();
    run(&mut core, &mut ledger, Command::Start(plan(4)), None).unwrap();
    let at = |step: &Step| ledger.log.iter().position(|it| it == step).unwrap();
    let running = at(&Step::SetStatus(15));
    for ring in 0..4 {
        assert!(at(&Step::Enable { ring }) < running);
    }
    assert_eq!(ledger.log.last(), Some(&Step::CheckStatus(15)));
}

/// Cloud Hypervisor never reads FEATURES_OK back, and QEMU printed a failed start
/// and went on (bc85aae420).
#[test]
fn a_device_that_does_not_agree_or_start_is_a_failure_by_name() {
    for kind in KINDS {
        let (mut core, mut ledger) = opened(kind);
        run(&mut core, &mut ledger, Command::SetMemory(memory()), None).unwrap();
        let before = ledger.clone();
        ledger.refuses = status::FEATURES_OK;
        let error = run(&mut core, &mut ledger, Command::Start(plan(1)), None).unwrap_err();
        assert_eq!(error.failure, Failure::Features { status: 3 });
        let tried = Command::TryFeatures(1 << 32);
        let error = run(&mut core, &mut ledger, tried, None).unwrap_err();
        assert_eq!(error.failure, Failure::Features { status: 3 });
        ledger.refuses = status::DRIVER_OK;
        let error = run(&mut core, &mut ledger, Command::Start(plan(1)), None).unwrap_err();
        assert_eq!(error.failure, Failure::NotStarted { status: 11 });
        ledger.refuses = 0;
        ledger.breaks = true;
        let error = run(&mut core, &mut ledger, Command::Start(plan(1)), None).unwrap_err();
        assert!(matches!(error.failure, Failure::NotStarted { status } if status & 64 != 0));
        ledger.breaks = false;
        assert_eq!(ledger, before);
        run(&mut core, &mut ledger, Command::Start(plan(1)), None).unwrap();
    }
}

/// A device that cannot be suspended says nothing true of where it is.
#[test]
fn bases_without_suspend_are_unknown() {
    let (mut core, mut ledger) = opened(0);
    run(&mut core, &mut ledger, Command::Start(plan(2)), None).unwrap();
    let outcome = run(&mut core, &mut ledger, Command::Stop, None).unwrap();
    assert_eq!(outcome.bases, [(0, None), (1, None)]);
    let (mut core, mut ledger) = opened(SUSPEND);
    run(&mut core, &mut ledger, Command::Start(plan(2)), None).unwrap();
    // The first step of the stop fails: EOPNOTSUPP in spite of what was offered.
    let outcome = run(&mut core, &mut ledger, Command::Stop, Some(0)).unwrap();
    assert_eq!(outcome.bases, [(0, None), (1, None)]);
    assert_eq!(outcome.troubles.len(), 1);
    assert!(!ledger.is_live());
}

#[test]
fn a_device_is_paused_its_memory_changed_and_resumed() {
    let (mut core, mut ledger) = opened(SUSPEND | RESUME | PERSIST);
    run(&mut core, &mut ledger, Command::SetMemory(memory()), None).unwrap();
    run(&mut core, &mut ledger, Command::Start(plan(2)), None).unwrap();
    let outcome = run(&mut core, &mut ledger, Command::Pause, None).unwrap();
    assert_eq!(outcome.bases, [(0, Some(7)), (1, Some(10))]);
    let other = vec![mapping(0, 9)];
    run(&mut core, &mut ledger, Command::SetMemory(other), None).unwrap();
    run(&mut core, &mut ledger, Command::Resume, None).unwrap();
    assert!(ledger.is_live());
    run(&mut core, &mut ledger, Command::Close, None).unwrap();
    assert!(ledger.is_empty());
}

/// A VMM that restarts has other memory at the same addresses.
#[test]
fn other_memory_at_the_same_addresses_is_mapped_anew() {
    let (mut core, mut ledger) = opened(PERSIST);
    run(&mut core, &mut ledger, Command::SetMemory(memory()), None).unwrap();
    ledger.log.clear();
    let mut other = memory();
    other[1].id = 1;
    let (old, new) = (memory()[1], other[1]);
    run(&mut core, &mut ledger, Command::SetMemory(other), None).unwrap();
    assert_eq!(ledger.log, [Step::Unmap(old), Step::Map(new)]);
}

#[test]
fn commands_that_mean_nothing_now_change_nothing() {
    let mut core = Consumer::new(0);
    for command in [
        Command::Start(plan(1)),
        Command::Stop,
        Command::SetMemory(vec![]),
        Command::TryFeatures(0),
        Command::Pause,
        Command::Resume,
        Command::Enable(vec![0]),
    ] {
        assert_eq!(core.begin(command), Err(Misuse::State));
    }
    assert_eq!(core.answer(Ok(Reply::Done)), Err(Misuse::Answer));
    assert!(core.outcome().is_none() && core.next_step().is_none());
    core.begin(Command::Open).unwrap();
    assert_eq!(core.begin(Command::Open), Err(Misuse::Busy));
    core.next_step().unwrap();
    assert_eq!(core.answer(Ok(Reply::Base(1))), Err(Misuse::Answer));
}

fn any_command() -> impl Strategy<Value = Command> {
    let mapping = (0..2_u32, 1..5_u64).prop_map(|(asid, page)| mapping(asid, page));
    prop_oneof![
        Just(Command::Open),
        proptest::collection::btree_set(mapping.prop_map(|it| (it.asid, it.iova.0)), 0..5)
            .prop_map(|set| Command::SetMemory(
                set.into_iter()
                    .map(|(asid, iova)| Mapping {
                        asid,
                        iova: Iova(iova),
                        len: 4096,
                        id: 0
                    })
                    .collect()
            )),
        Just(Command::TryFeatures(1 << 32)),
        (1..4_u16).prop_map(|rings| Command::Start(plan(rings))),
        Just(Command::Enable(vec![0])),
        Just(Command::Pause),
        Just(Command::Resume),
        Just(Command::Stop),
        Just(Command::Close),
    ]
}

proptest! {
    /// Any commands, any of whose steps fail: each call is legal when it comes, the
    /// core knows what there is, and a close leaves nothing.
    #[test]
    fn whatever_fails_whenever_nothing_is_left(
        kind in 0..4_usize,
        commands in proptest::collection::vec((any_command(), proptest::option::of(0..30_usize)), 0..25),
    ) {
        let kind = KINDS[kind];
        let (mut core, mut ledger) = (Consumer::new(kind), Ledger::new(kind));
        for (command, fail) in commands {
            // A step of the way down that fails leaves what the ledger cannot know.
            let down = matches!(command, Command::Stop | Command::Close);
            if core.begin(command).is_err() {
                continue;
            }
            let (mut count, mut failed) = (0, false);
            while let Some(step) = core.next_step() {
                let fails = !down && fail == Some(count) && !failed;
                failed |= fails;
                let answer = if fails { Err(12) } else { Ok(ledger.carry_out(&step)) };
                core.answer(answer).unwrap();
                count += 1;
                prop_assert!(count < 1000);
            }
            prop_assert_eq!(core.outcome().unwrap().is_err(), failed);
            prop_assert_eq!(core.is_live(), ledger.is_live());
            let mut known: Vec<_> = core.mapped().iter().map(|it| (it.asid, it.iova)).collect();
            known.sort_unstable();
            let mut real: Vec<_> = ledger.mapped.iter().map(|it| (it.asid, it.iova)).collect();
            real.sort_unstable();
            prop_assert_eq!(known, real);
        }
        if core.begin(Command::Close).is_ok() {
            while let Some(step) = core.next_step() {
                core.answer(Ok(ledger.carry_out(&step))).unwrap();
            }
        }
        prop_assert!(ledger.is_empty());
    }
}
