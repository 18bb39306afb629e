//! A kernel and the driver behind it against the device's side of VDUSE.
//!
//! The bytes are a script: requests, what the kernel says of features and rings, how
//! effects are answered, when the process is replaced by one that restores what was
//! written down. Whatever comes, every request has one answer, rings are started and
//! stopped in turns, and a driver that behaves is served at the end.

use linkspan_vhost::backend::Failure;
use linkspan_vhost::vduse::{
    Answer, Effect, MESSAGE_BYTES, Offer, RingInfo, State, Vduse, describe, describe_answer,
};

use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Kind of request, 8 bits; length of the body, 8 bits; the body.
    pub(crate) const REQUEST: u8 = 0;
    /// What the driver accepted: 64 bits.
    pub(crate) const FEATURES: u8 = 1;
    /// A ring: index, readiness, 8 bits each; size 32 bits; where it starts, 4 times
    /// 16 bits.
    pub(crate) const RING: u8 = 2;
    /// How the next effects are answered, 8 bits: one bit for each.
    pub(crate) const FAIL: u8 = 3;
    /// The process is replaced.
    pub(crate) const REPLACE: u8 = 4;
    /// Length, 8 bits, and bytes that are a request or not.
    pub(crate) const RAW: u8 = 5;
    /// Bytes that were written down change: place and difference, 8 bits each.
    pub(crate) const SPOIL: u8 = 6;
    /// How many there are.
    pub(crate) const COUNT: u8 = 7;
}

/// Rings of the device.
const RINGS: u16 = 4;
const VERSION_1: u64 = 1 << 32;
const SIZE_MAX: u16 = 128;

/// More effects than one request can have.
const EFFECTS_MAX: usize = 3 * RINGS as usize + 8;

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were answered with a success.
    pub done: usize,
    /// Requests that were answered with a failure.
    pub refused: usize,
    /// Rings that were started, again and again perhaps.
    pub starts: usize,
    /// Times that a process was replaced by one that went on.
    pub restores: usize,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

fn offer() -> Offer {
    Offer {
        device_id: 2,
        features: VERSION_1 | 1 << 33 | 1 << 34 | 1 << 29,
        queues: RINGS,
        queue_size_max: SIZE_MAX,
        config_size: 60,
    }
}

/// Runs a script to the end, and then a driver that behaves.
pub fn run(data: &[u8]) -> Outcome {
    let mut script = Script {
        device: Vduse::new(offer()),
        features: VERSION_1,
        rings: [sound(); RINGS as usize],
        running: [false; RINGS as usize],
        remembered: Vduse::new(offer()).snapshot().to_vec(),
        fail: 0,
        outcome: Outcome::default(),
    };
    script.play(&mut Input::new(data));
    script.behave();
    script.outcome
}

fn sound() -> RingInfo {
    RingInfo {
        size: 64,
        descriptor: 0x1000,
        driver: 0x2000,
        device: 0x3000,
        state: State::Split { available: 0 },
        ready: true,
    }
}

struct Script {
    device: Vduse,
    features: u64,
    rings: [RingInfo; RINGS as usize],
    running: [bool; RINGS as usize],
    remembered: Vec<u8>,
    /// One bit for each effect to come.
    fail: u8,
    outcome: Outcome,
}

impl Script {
    fn play(&mut self, input: &mut Input<'_>) {
        while let Some(step) = input.u8() {
            let done = match step % step::COUNT {
                step::REQUEST => self.request(input),
                step::FEATURES => self.features(input),
                step::RING => self.ring(input),
                step::FAIL => input.u8().map(|bits| self.fail = bits),
                step::REPLACE => {
                    self.replace();
                    Some(())
                }
                step::SPOIL => self.spoil(input),
                _ => self.raw(input),
            };
            if done.is_none() {
                return;
            }
        }
    }

    fn features(&mut self, input: &mut Input<'_>) -> Option<()> {
        self.features = u64::from(input.u32()?) | u64::from(input.u32()?) << 32;
        Some(())
    }

    fn ring(&mut self, input: &mut Input<'_>) -> Option<()> {
        let ring = usize::from(input.u8()? % 4);
        let ready = input.u8()? & 1 != 0;
        let size = input.u32()?;
        let words = [input.u16()?, input.u16()?, input.u16()?, input.u16()?];
        let packed = self.features & 1 << 34 != 0;
        self.rings[ring] = RingInfo {
            size,
            state: State::from_words(words, packed),
            ready,
            ..sound()
        };
        Some(())
    }

    fn request(&mut self, input: &mut Input<'_>) -> Option<()> {
        let (kind, len) = (input.u8()?, input.u8()?);
        let body = input.bytes(usize::from(len).min(MESSAGE_BYTES - 24));
        self.ask(kind.into(), body);
        Some(())
    }

    fn raw(&mut self, input: &mut Input<'_>) -> Option<()> {
        let len = input.u8()?;
        let bytes = input.bytes(len.into());
        assert!(!describe(bytes).is_empty());
        if bytes.len() != MESSAGE_BYTES {
            let _ = self.device.receive(bytes).unwrap_err();
            assert!(self.device.is_idle());
            return Some(());
        }
        let _ = self.device.receive(bytes);
        self.work(true);
        Some(())
    }

    fn ask(&mut self, kind: u32, body: &[u8]) -> bool {
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        bytes[24..24 + body.len()].copy_from_slice(body);
        assert!(!describe(&bytes).is_empty());
        if let Err(refusal) = self.device.receive(&bytes) {
            assert!(!refusal.to_string().is_empty());
        }
        self.work(true)
    }

    /// Carries out effects until none is left; whether the request was done.
    fn work(&mut self, answers: bool) -> bool {
        let mut answer = None;
        for _ in 0..EFFECTS_MAX {
            let Some(effect) = self.device.poll_effect() else {
                assert!(self.device.is_idle());
                assert_eq!(answer.is_some(), answers, "one answer to each request");
                self.check();
                let done = answer == Some(true);
                if answers {
                    self.outcome.done += usize::from(done);
                    self.outcome.refused += usize::from(!done);
                }
                return done;
            };
            if let Effect::Send(bytes) = effect {
                assert_eq!(bytes[8..24], [0; 16]);
                assert!(!describe_answer(&bytes).is_empty());
                assert_eq!(answer, None, "one answer to each request");
                answer = Some(bytes[4..8] == [0; 4]);
            }
            if effect.needs_answer() {
                self.carry_out(effect);
            }
        }
        panic!("one request has more than {EFFECTS_MAX} effects");
    }

    fn carry_out(&mut self, effect: Effect) {
        assert_eq!(self.device.poll_effect(), None, "nothing before the answer");
        let fails = self.fail & 1 != 0;
        self.fail >>= 1;
        let right = match effect {
            Effect::ReadFeatures => Answer::Features(self.features),
            Effect::ReadRing { ring } => Answer::Ring(self.rings[usize::from(ring)]),
            Effect::StopRing { ring } => {
                let running = &mut self.running[usize::from(ring)];
                assert!(std::mem::take(running), "ring {ring} does not run");
                Answer::RingStopped { base: 3 }
            }
            Effect::StartRing { ring, setup } => {
                assert!((1..=SIZE_MAX).contains(&setup.size));
                assert_eq!(setup.features & !offer().features, 0);
                let running = &mut self.running[usize::from(ring)];
                assert!(!*running, "ring {ring} runs already");
                if !fails {
                    *running = true;
                    self.outcome.starts += 1;
                }
                Answer::Done
            }
            Effect::Remember(bytes) => {
                if !fails {
                    self.remembered = bytes.to_vec();
                }
                Answer::Done
            }
            Effect::DropMemory | Effect::ForgetInflight => {
                assert_eq!(self.running, [false; RINGS as usize], "{effect:?}");
                Answer::Done
            }
            _ => Answer::Done,
        };
        let done = if fails {
            Err(Failure::System)
        } else {
            Ok(right)
        };
        let _ = self.device.answer(done);
    }

    /// What the device says about itself, between requests.
    fn check(&self) {
        for ring in 0..RINGS {
            let runs = self.running[usize::from(ring)];
            assert_eq!(self.device.running(ring).is_some(), runs, "ring {ring}");
            assert!(!runs || self.device.is_live());
        }
        assert_eq!(self.device.features() & !offer().features, 0);
    }

    fn spoil(&mut self, input: &mut Input<'_>) -> Option<()> {
        let (at, difference) = (input.u8()?, input.u8()?);
        let at = usize::from(at) % self.remembered.len();
        self.remembered[at] ^= difference;
        Some(())
    }

    /// The process is gone, and another goes on with what was written down.
    fn replace(&mut self) {
        self.running = [false; RINGS as usize];
        match Vduse::restore(offer(), &self.remembered) {
            Ok(device) => {
                self.device = device;
                self.work(false);
                self.outcome.restores += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                self.device = Vduse::new(offer());
                self.remembered = self.device.snapshot().to_vec();
            }
        }
    }

    /// A driver that behaves is served, whatever was before.
    fn behave(&mut self) {
        self.fail = 0;
        self.features = VERSION_1;
        self.rings = [sound(); RINGS as usize];
        assert!(self.ask(1, &[0]));
        assert_eq!(self.running, [false; RINGS as usize]);
        for status in [1, 3, 11, 15] {
            assert!(self.ask(1, &[status]), "status {status}");
        }
        assert_eq!(self.running, [true; RINGS as usize]);
        assert!(self.ask(2, &[]));
        assert!(self.ask(0, &[1]));
        assert!(self.ask(1, &[0]));
        assert_eq!(self.running, [false; RINGS as usize]);
    }
}
