//! What a vDPA device and its kernel answer: facts of any kind, and steps that fail
//! anywhere or say anything.
//!
//! Whatever fails, what the command held before is undone; a close leaves nothing.

use std::collections::BTreeSet;

use linkspan_mem::Iova;
use linkspan_vhost::vdpa::{
    Bridge, Command, Consumer, Facts, Failure, Mapping, Plan, Raw, Reply, RingPlan, Step, Wire,
};

use crate::input::Input;

/// No command has so many steps, however often it is undone.
const STEPS_MAX: usize = 1000;

/// What a step fails with.
const ERRNO: i32 = 5;

/// What came of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the facts can be used.
    pub usable: bool,
    /// Commands done.
    pub done: usize,
    /// Commands that failed.
    pub failed: usize,
    /// Commands that made no sense.
    pub senseless: usize,
}

/// What the device has of us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    mapped: BTreeSet<(u32, u64)>,
    wires: BTreeSet<(u16, u8)>,
    config_call: bool,
    batch: bool,
    status: u8,
    /// Once a step of the way down or back failed nobody knows what is left.
    lost: bool,
}

/// Feeds any bytes.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// The same, and what came of it.
///
/// # Panics
/// Upon a fault of ours.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut outcome = Outcome::default();
    script(&mut Input::new(bytes), &mut outcome);
    outcome
}

fn script(input: &mut Input<'_>, outcome: &mut Outcome) -> Option<()> {
    let backend_features = u64::from(input.u8()?) << 1;
    let facts = Facts::check(Raw {
        device_id: input.u8()?.into(),
        queues: Some(input.u32()?),
        queue_size_max: input.u16()?,
        features: u64::from(input.u32()?) | u64::from(input.u32()?) << 32,
        groups: 2,
        address_spaces: input.u8()?.into(),
        ring_groups: vec![Some(0), Some(0), Some(input.u8()?.into())],
        iova: (Iova(0), Iova(input.u32()?.into())),
        backend_features,
        ..Raw::default()
    });
    if let Ok(facts) = &facts {
        outcome.usable = true;
        check_facts(facts);
    }
    let mut core = Consumer::new(backend_features);
    let mut held = Held::default();
    while let Some(code) = input.u8() {
        let Some(command) = command(code, input) else {
            break;
        };
        let (fail, lie) = (input.u8().unwrap_or(0), input.u8().unwrap_or(0));
        let before = held.clone();
        if core.begin(command.clone()).is_err() {
            outcome.senseless += 1;
            continue;
        }
        let hit = carry_out(&mut core, &mut held, fail.into(), lie);
        let result = core.outcome().expect("it has ended");
        let down = matches!(command, Command::Stop | Command::Close);
        let on_the_way = matches!(&result, Err(error) if error.failure == Failure::Errno(ERRNO));
        held.lost |= hit && (down || !on_the_way);
        match result {
            Ok(_) => outcome.done += 1,
            Err(error) => {
                outcome.failed += 1;
                assert!(!error.to_string().is_empty());
                assert!(held.lost || held == before, "{error}: {held:?} {before:?}");
            }
        }
        let known: BTreeSet<_> = core
            .mapped()
            .iter()
            .map(|it| (it.asid, it.iova.0))
            .collect();
        assert!(held.lost || known == held.mapped);
    }
    if core.begin(Command::Close).is_ok() {
        carry_out(&mut core, &mut held, 0, 0);
    }
    assert!(held.lost || held == Held::default(), "{held:?}");
    Some(())
}

fn check_facts(facts: &Facts) {
    let size = facts
        .queue_size(facts.queues, 0)
        .expect("there is a largest");
    assert!(size.is_power_of_two());
    assert!(facts.queue_size(facts.queues, u32::from(size) * 2).is_err());
    if let Ok(bridge) = Bridge::new(facts, facts.queues) {
        let offer = bridge.offer();
        assert_eq!(offer & !facts.features, 0, "what the device does not have");
        assert!(bridge.data_rings() <= facts.queues);
        let device = bridge.accept(offer).expect("what was offered");
        assert_eq!(device & !facts.features, 0);
        if let Some(ring) = bridge.control_ring(device) {
            assert!(ring < facts.queues && ring >= bridge.data_rings());
        }
    }
}

fn command(code: u8, input: &mut Input<'_>) -> Option<Command> {
    Some(match code % 9 {
        0 => Command::Open,
        1 => {
            let mask = input.u8()?;
            let set = (0..8_u32).filter(|bit| mask & 1 << bit != 0);
            Command::SetMemory(
                set.map(|bit| Mapping {
                    asid: bit >> 2,
                    iova: Iova(u64::from(bit & 3) << 12),
                    len: 4096,
                    id: 0,
                })
                .collect(),
            )
        }
        2 => Command::TryFeatures(1 << 32),
        3 => Command::Start(plan(input.u8()?)),
        4 => Command::Enable(vec![0, 1]),
        5 => Command::Pause,
        6 => Command::Resume,
        7 => Command::Stop,
        _ => Command::Close,
    })
}

fn plan(kind: u8) -> Plan {
    let ring = |ring| RingPlan {
        ring,
        size: 64,
        base: 0,
        address: [Iova(0); 3],
        wires: vec![Wire::Kick, Wire::Call],
        enabled: kind & 0x80 == 0,
    };
    Plan {
        features: 1 << 32,
        groups: vec![(1, 1)],
        rings: (0..u16::from(kind % 5)).map(ring).collect(),
        config_call: kind & 0x40 != 0,
    }
}

/// Answers all steps of a command; whether one was failed.
fn carry_out(core: &mut Consumer, held: &mut Held, fail: usize, lie: u8) -> bool {
    let mut hit = false;
    for count in 1.. {
        assert!(count < STEPS_MAX, "it does not end");
        let Some(step) = core.next_step() else {
            return hit;
        };
        let answer = if fail == count {
            hit = true;
            Err(ERRNO)
        } else {
            Ok(answer(&step, held, lie))
        };
        // One that does not fit is refused, and the step still waits.
        let misfit = match answer {
            Ok(Reply::Done) => Reply::Base(0),
            _ => Reply::Done,
        };
        if answer.is_ok() {
            assert!(core.answer(Ok(misfit)).is_err());
        }
        core.answer(answer).expect("it fits");
    }
    hit
}

fn answer(step: &Step, held: &mut Held, lie: u8) -> Reply {
    match step {
        Step::SetStatus(status) => held.status = *status,
        Step::CheckStatus(_) => return Reply::Status(held.status ^ lie),
        Step::ReadBase { .. } => return Reply::Base(u32::from(lie) << 12),
        Step::Map(mapping) => {
            let new = held.mapped.insert((mapping.asid, mapping.iova.0));
            assert!(new || held.lost, "EEXIST");
        }
        Step::Unmap(mapping) => {
            held.mapped.remove(&(mapping.asid, mapping.iova.0));
        }
        Step::Batch { begin, .. } => held.batch = *begin,
        Step::Wire { ring, wire, bind } => {
            let key = (*ring, *wire as u8);
            if *bind {
                held.wires.insert(key);
            } else {
                held.wires.remove(&key);
            }
        }
        Step::ConfigCall { bind } => held.config_call = *bind,
        _ => {}
    }
    Reply::Done
}
