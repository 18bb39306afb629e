//! The device's side of VDUSE against a kernel made of bytes.

use linkspan_mem::UserVa;
use linkspan_vhost::backend::{Failure, RingSetup};
use linkspan_vhost::vduse::{
    Answer, Effect, MESSAGE_BYTES, Offer, Refusal, RestoreError, RingInfo, State, Vduse,
};

const VERSION_1: u64 = 1 << 32;
const PLATFORM: u64 = 1 << 33;
const PACKED: u64 = 1 << 34;
const NEEDED: u64 = VERSION_1 | PLATFORM;

const RING_STATE: u32 = 0;
const STATUS: u32 = 1;
const MEMORY: u32 = 2;

/// What drivers of the kernel write, in their order.
const STEPS: [u8; 4] = [1, 3, 11, 15];

fn offer() -> Offer {
    Offer {
        device_id: 2,
        features: NEEDED | PACKED | 0x244,
        queues: 3,
        queue_size_max: 256,
        config_size: 60,
    }
}

fn request(kind: u32, id: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; MESSAGE_BYTES];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..8].copy_from_slice(&id.to_ne_bytes());
    bytes[24..24 + body.len()].copy_from_slice(body);
    bytes
}

/// A kernel with a driver, and whoever runs the device.
struct Rig {
    device: Vduse,
    features: u64,
    rings: [RingInfo; 3],
    remembered: Vec<u8>,
    /// The answer to the effect of this number from now on.
    fail: Option<usize>,
    next_id: u32,
}

fn info(ready: bool) -> RingInfo {
    RingInfo {
        size: 64,
        descriptor: 0x1000,
        driver: 0x2000,
        device: 0x3000,
        state: State::Split { available: 5 },
        ready,
    }
}

/// What became of a request.
struct Came {
    effects: Vec<Effect>,
    /// Whether the kernel was told that it is done, once.
    done: Option<bool>,
    bytes: [u8; MESSAGE_BYTES],
    refusals: Vec<Refusal>,
}

impl Rig {
    fn new() -> Self {
        Self {
            device: Vduse::new(offer()),
            features: NEEDED,
            rings: [info(true), info(false), info(true)],
            remembered: Vec::new(),
            fail: None,
            next_id: 7,
        }
    }

    fn send(&mut self, kind: u32, body: &[u8]) -> Came {
        let id = self.next_id;
        self.next_id += 1;
        let received = self.device.receive(&request(kind, id, body));
        let mut came = self.work();
        came.refusals.extend(received.err());
        assert!(self.device.is_idle());
        if came.done.is_some() {
            assert_eq!(came.bytes[..4], id.to_ne_bytes());
        }
        came
    }

    fn status(&mut self, status: u8) -> Came {
        self.send(STATUS, &[status])
    }

    /// Carries out effects until there are no more.
    fn work(&mut self) -> Came {
        let mut came = Came {
            effects: Vec::new(),
            done: None,
            bytes: [0; MESSAGE_BYTES],
            refusals: Vec::new(),
        };
        while let Some(effect) = self.device.poll_effect() {
            came.effects.push(effect);
            if let Effect::Send(bytes) = effect {
                assert_eq!(came.done, None, "one answer to one request");
                assert_eq!(bytes[8..24], [0; 16], "the kernel refuses others");
                came.done = Some(bytes[4..8] == [0; 4]);
                came.bytes = bytes;
            }
            if !effect.needs_answer() {
                continue;
            }
            assert_eq!(self.device.poll_effect(), None, "one at a time");
            let answer = match effect {
                Effect::ReadFeatures => Answer::Features(self.features),
                Effect::ReadRing { ring } => Answer::Ring(self.rings[usize::from(ring)]),
                Effect::StopRing { .. } => Answer::RingStopped { base: 9 },
                Effect::Remember(bytes) => {
                    self.remembered = bytes.to_vec();
                    Answer::Done
                }
                _ => Answer::Done,
            };
            let fails = self.fail == Some(came.effects.len() - 1);
            let answer = if fails {
                Err(Failure::System)
            } else {
                Ok(answer)
            };
            came.refusals.extend(self.device.answer(answer).err());
        }
        came
    }

    fn bring_up(&mut self) -> Came {
        STEPS[..3].iter().for_each(|status| {
            assert_eq!(self.status(*status).done, Some(true));
        });
        self.status(15)
    }

    fn running(&self) -> Vec<u16> {
        let rings = 0..offer().queues;
        rings
            .filter(|ring| self.device.running(*ring).is_some())
            .collect()
    }
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Remember(_) => "Remember".into(),
        Effect::Send(_) => "Send".into(),
        Effect::StartRing { ring, .. } => format!("Start {ring}"),
        Effect::StopRing { ring } => format!("Stop {ring}"),
        Effect::ReadRing { ring } => format!("Read {ring}"),
        other => format!("{other:?}"),
    }
}

fn names(came: &Came) -> Vec<String> {
    came.effects.iter().map(name).collect()
}

#[test]
fn a_driver_brings_up_the_rings_that_are_ready() {
    let mut rig = Rig::new();
    let came = rig.bring_up();
    // What is in flight is forgotten before, and the status is written down before
    // the first ring takes anything: a successor forgets nothing then.
    let order = [
        "ReadFeatures",
        "UpdateMemory",
        "ForgetInflight",
        "Read 0",
        "Read 1",
        "Read 2",
        "Remember",
        "Start 0",
        "Start 2",
        "Send",
        "ProveInterrupts",
    ];
    assert_eq!(names(&came), order);
    assert_eq!(came.done, Some(true));
    assert_eq!(rig.running(), [0, 2]);
    let setup = RingSetup {
        size: 64,
        descriptor: UserVa(0x1000),
        driver: UserVa(0x2000),
        device: UserVa(0x3000),
        base: 5,
        log: None,
        enabled: true,
        features: NEEDED,
    };
    assert_eq!(rig.device.running(0), Some(setup));
    assert!(rig.device.is_live());

    let came = rig.status(0);
    let order = ["Stop 0", "Stop 2", "DropMemory", "Remember", "Send"];
    assert_eq!(names(&came), order);
    assert_eq!((came.done, rig.device.status()), (Some(true), 0));
    assert_eq!(rig.bring_up().done, Some(true), "and again");
}

/// libblkio knows no `VIRTIO_F_ACCESS_PLATFORM`.
#[test]
fn a_driver_without_access_platform_is_served() {
    let mut rig = Rig::new();
    rig.features = VERSION_1;
    assert_eq!(rig.bring_up().done, Some(true));
    assert_eq!(rig.device.features(), VERSION_1);
}

/// cloud-hypervisor vdpa.rs writes all status bits at once.
#[test]
fn all_status_bits_at_once_are_accepted() {
    let mut rig = Rig::new();
    assert_eq!(rig.status(15).done, Some(true));
    assert_eq!(rig.running(), [0, 2]);
    assert_eq!(rig.device.features(), NEEDED);
}

#[test]
fn features_are_a_part_of_the_offer_and_enough() {
    for (features, unknown, missing) in [
        (NEEDED | 1 << 35, 1 << 35, 0),
        (PLATFORM, 0, VERSION_1),
        (0, 0, VERSION_1),
    ] {
        for step in [11, 15] {
            let mut rig = Rig::new();
            rig.features = features;
            rig.status(3);
            let came = rig.status(step);
            assert_eq!(came.done, Some(false), "{features:#x}");
            let refusal = Refusal::Features {
                accepted: features,
                offered: offer().features,
                unknown,
                missing,
            };
            assert_eq!(came.refusals, [refusal]);
            assert_eq!((rig.device.status(), rig.device.features()), (3, 0));
            rig.features = NEEDED;
            assert_eq!(rig.status(15).done, Some(true), "nothing stays of it");
        }
    }
}

#[test]
fn features_do_not_change_after_they_were_accepted() {
    let mut rig = Rig::new();
    rig.status(11);
    rig.features = NEEDED | 4;
    let came = rig.status(15);
    let (old, new) = (NEEDED, NEEDED | 4);
    assert_eq!(came.refusals, [Refusal::FeaturesChanged { old, new }]);
    assert_eq!((came.done, rig.device.status()), (Some(false), 11));
}

#[test]
fn a_status_only_grows_until_a_reset() {
    let mut rig = Rig::new();
    rig.bring_up();
    let came = rig.status(11);
    let (old, new) = (15, 11);
    assert_eq!(came.refusals, [Refusal::StatusBack { old, new }]);
    assert_eq!((came.done, rig.running()), (Some(false), vec![0, 2]));
    // FAILED is for people to see.
    assert_eq!(rig.status(15 | 128).done, Some(true));
    assert_eq!(rig.running(), [0, 2]);
    let mut rig = Rig::new();
    let came = rig.status(7);
    assert_eq!(came.refusals, [Refusal::NoFeatures { status: 7 }]);
    assert_eq!(came.done, Some(false));
}

#[test]
fn what_is_asked_twice_is_answered_twice() {
    let mut rig = Rig::new();
    rig.bring_up();
    // The process that answered first died before it wrote its answer.
    let came = rig.status(15);
    assert_eq!(names(&came), ["Send"]);
    assert_eq!(came.done, Some(true));
    rig.status(0);
    assert_eq!(rig.status(0).done, Some(true));
}

#[test]
fn a_ready_ring_without_addresses_was_never_set_up() {
    for size in [0, 64] {
        let mut rig = Rig::new();
        rig.rings[2] = RingInfo {
            size,
            descriptor: 0,
            driver: 0,
            device: 0,
            ..info(true)
        };
        assert_eq!(rig.bring_up().done, Some(true));
        assert_eq!(rig.running(), [0]);
        assert_eq!(rig.status(0).done, Some(true));
    }
}

#[test]
fn rings_that_cannot_be_are_refused_by_name() {
    let wrong = [
        (
            RingInfo {
                size: 0,
                ..info(true)
            },
            "no size",
        ),
        (
            RingInfo {
                size: 512,
                ..info(true)
            },
            "1 to 256",
        ),
        (
            RingInfo {
                size: 48,
                ..info(true)
            },
            "power of two",
        ),
        (
            RingInfo {
                size: 1 << 16,
                ..info(true)
            },
            "1 to 256",
        ),
    ];
    for (ring, why) in wrong {
        let mut rig = Rig::new();
        rig.rings[2] = ring;
        let came = rig.bring_up();
        assert_eq!(came.done, Some(false));
        let said = came.refusals[0].to_string();
        assert!(said.starts_with("ring 2: ") && said.contains(why), "{said}");
        assert_eq!((rig.running(), rig.device.status()), (vec![], 11));
        assert!(names(&came).contains(&"DropMemory".to_owned()));
    }
    // A packed ring may have any size.
    let mut rig = Rig::new();
    rig.features |= PACKED;
    rig.rings[2].size = 48;
    rig.rings[2].state = State::from_words([1, 3, 0, 2], true);
    assert_eq!(rig.bring_up().done, Some(true));
    assert_eq!(rig.device.running(2).unwrap().base, 0x0002_8003);
    // One that is not ready is not looked at.
    let mut rig = Rig::new();
    rig.rings[1].size = 0;
    assert_eq!(rig.bring_up().done, Some(true));
}

#[test]
fn where_a_ring_stands_is_told_and_it_goes_on() {
    let mut rig = Rig::new();
    rig.bring_up();
    let came = rig.send(RING_STATE, &2_u32.to_ne_bytes());
    assert_eq!(names(&came), ["Stop 2", "Start 2", "Send"]);
    assert_eq!(came.done, Some(true));
    let word = |at: usize| u16::from_ne_bytes([came.bytes[at], came.bytes[at + 1]]);
    assert_eq!((came.bytes[24], word(28)), (2, 9));
    assert_eq!(rig.device.running(2).unwrap().base, 9);
    // One that does not run stands where the kernel says.
    let came = rig.send(RING_STATE, &1_u32.to_ne_bytes());
    assert_eq!(names(&came), ["Read 1", "Send"]);
    assert_eq!((came.bytes[24], came.bytes[28]), (1, 5));
    let came = rig.send(RING_STATE, &3_u32.to_ne_bytes());
    assert_eq!(came.refusals, [Refusal::NoRing { ring: 3, queues: 3 }]);
    assert_eq!(came.done, Some(false));
}

#[test]
fn a_packed_ring_stands_at_two_places() {
    let mut rig = Rig::new();
    rig.features |= PACKED;
    rig.bring_up();
    rig.device.receive(&request(RING_STATE, 1, &[0])).unwrap();
    let base = 0x8011_0022;
    assert_eq!(rig.device.poll_effect(), Some(Effect::StopRing { ring: 0 }));
    rig.device.answer(Ok(Answer::RingStopped { base })).unwrap();
    let came = rig.work();
    let word = |at: usize| u16::from_ne_bytes([came.bytes[at], came.bytes[at + 1]]);
    assert_eq!([28, 30, 32, 34].map(word), [0, 0x22, 1, 0x11]);
    assert_eq!(State::of(base, true).base(), base);
}

#[test]
fn memory_is_looked_up_only_while_rings_may_use_it() {
    let mut rig = Rig::new();
    let range = [0; 16];
    assert_eq!(names(&rig.send(MEMORY, &range)), ["Send"]);
    rig.bring_up();
    assert_eq!(names(&rig.send(MEMORY, &range)), ["UpdateMemory", "Send"]);
    rig.fail = Some(0);
    let came = rig.send(MEMORY, &range);
    assert_eq!((came.done, rig.running()), (Some(false), vec![0, 2]));
}

#[test]
fn bytes_that_are_no_request_change_nothing() {
    let mut rig = Rig::new();
    for len in [0, 151, 153] {
        let refused = rig.device.receive(&vec![0; len]);
        assert_eq!(refused, Err(Refusal::Length { got: len }));
        assert!(rig.device.is_idle());
    }
    let came = rig.send(3, &[]);
    assert_eq!(came.refusals, [Refusal::Unknown { kind: 3 }]);
    assert_eq!(came.done, Some(false));
}

/// Each step of a bring-up fails in turn: the kernel is told, no ring runs, no memory
/// is held, and the next attempt works.
#[test]
fn each_step_of_a_bring_up_fails_in_turn() {
    let mut rig = Rig::new();
    let steps = rig.bring_up().effects.len();
    for fail in 0..steps {
        let mut rig = Rig::new();
        STEPS[..3]
            .iter()
            .for_each(|status| drop(rig.status(*status)));
        rig.fail = Some(fail);
        let came = rig.status(15);
        rig.fail = None;
        if !came.effects[fail].needs_answer() {
            assert_eq!(came.done, Some(true));
            continue;
        }
        assert_eq!(came.done, Some(false), "step {fail}");
        assert_eq!((rig.running(), rig.device.status()), (vec![], 11));
        let undone = names(&came);
        assert!(undone.contains(&"DropMemory".to_owned()), "{undone:?}");
        let successor = Vduse::restore(offer(), &rig.remembered).unwrap();
        assert!(!successor.is_live());
        assert_eq!(rig.status(15).done, Some(true), "step {fail}");
    }
}

/// A ring that cannot be stopped does not hold up a reset.
#[test]
fn each_step_of_a_reset_fails_in_turn() {
    let mut rig = Rig::new();
    rig.bring_up();
    let steps = rig.status(0).effects.len();
    for fail in 0..steps {
        let mut rig = Rig::new();
        rig.bring_up();
        rig.fail = Some(fail);
        let came = rig.status(0);
        rig.fail = None;
        assert_eq!(came.done, Some(true), "step {fail}");
        assert_eq!((rig.running(), rig.device.status()), (vec![], 0));
        assert_eq!(rig.bring_up().done, Some(true));
    }
}

#[test]
fn a_successor_brings_the_rings_back_and_forgets_nothing() {
    let mut rig = Rig::new();
    rig.bring_up();
    assert_eq!(rig.device.snapshot().to_vec(), rig.remembered);
    rig.device = Vduse::restore(offer(), &rig.remembered).unwrap();
    assert!(rig.running().is_empty() && !rig.device.is_idle());
    let came = rig.work();
    let order = [
        "ReadFeatures",
        "UpdateMemory",
        "Read 0",
        "Read 1",
        "Read 2",
        "Start 0",
        "Start 2",
        "ProveInterrupts",
    ];
    assert_eq!(names(&came), order);
    assert_eq!(rig.running(), [0, 2]);
    assert!(rig.device.is_idle());
    // The request that killed its predecessor comes again.
    assert_eq!(rig.status(15).done, Some(true));
}

/// The driver gave up waiting for the answer to its reset: the kernel went on without.
#[test]
fn a_successor_notices_a_reset_that_nobody_saw() {
    let mut rig = Rig::new();
    rig.bring_up();
    rig.device = Vduse::restore(offer(), &rig.remembered).unwrap();
    rig.features = 0;
    let came = rig.work();
    assert_eq!(names(&came), ["ReadFeatures", "DropMemory", "Remember"]);
    assert_eq!((rig.device.status(), rig.running()), (0, vec![]));
    rig.features = NEEDED;
    assert_eq!(rig.bring_up().done, Some(true));
}

#[test]
fn a_ring_that_does_not_come_back_leaves_the_others() {
    let mut rig = Rig::new();
    rig.bring_up();
    rig.device = Vduse::restore(offer(), &rig.remembered).unwrap();
    rig.fail = Some(5);
    let came = rig.work();
    assert_eq!(name(&came.effects[5]), "Start 0");
    assert_eq!(came.refusals, [Refusal::Failed(Failure::System)]);
    assert_eq!(rig.running(), [2]);
    assert!(rig.device.is_idle());
}

#[test]
fn bytes_of_another_device_are_no_device() {
    let mut rig = Rig::new();
    rig.bring_up();
    let saved = rig.remembered.clone();
    for at in 0..saved.len() {
        let mut bytes = saved.clone();
        bytes[at] ^= 1;
        assert_eq!(
            Vduse::restore(offer(), &bytes),
            Err(RestoreError::Nothing),
            "byte {at}"
        );
    }
    assert_eq!(
        Vduse::restore(offer(), &[0; 48]),
        Err(RestoreError::Nothing)
    );
    let other = Offer {
        queues: 2,
        ..offer()
    };
    assert_eq!(
        Vduse::restore(other, &saved),
        Err(RestoreError::Offer(offer()))
    );
}
