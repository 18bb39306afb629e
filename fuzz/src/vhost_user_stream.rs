//! A front end's stream against the back end's session.
//!
//! The bytes are a script: messages and raw bytes with descriptors, how they are
//! split, how effects are answered, when the session is saved and restored.
//! From a restore on, original and successor run side by side and must agree.

use linkspan_vhost::backend::{Answer, Effect, Failure, FdSlot};
use linkspan_vhost::describe::Watcher;
use linkspan_vhost::wire::{self, HEADER_BYTES, Header, MAX_BODY_BYTES};
use linkspan_vhost::{Backend, Disposition, Error, FdId, Offer, VHOST_F_LOG_ALL};
use zerocopy::FromBytes;

use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Length and descriptors, 8 bits each, and the bytes.
    pub(crate) const RAW: u8 = 0;
    /// Message, flags, descriptors, piece size, 8 bits each; body size, 16 bits; the body.
    pub(crate) const MESSAGE: u8 = 1;
    /// How the next effect is answered, 8 bits.
    pub(crate) const ANSWER: u8 = 2;
    /// Saves the session, and goes on with a restored one beside it.
    pub(crate) const SAVE: u8 = 3;
    /// The connection ends.
    pub(crate) const DISCONNECT: u8 = 4;
    /// How many there are.
    pub(crate) const COUNT: u8 = 5;
}

/// Ways to answer an effect; other numbers mean the right answer.
pub(crate) mod answer {
    pub(crate) const UNSUPPORTED: u8 = 1;
    pub(crate) const REJECTED: u8 = 2;
    pub(crate) const SYSTEM: u8 = 3;
    pub(crate) const WRONG: u8 = 4;
    /// Right, but a transfer of state is to use another channel.
    pub(crate) const OTHER_CHANNEL: u8 = 5;
}

/// The one descriptor that goes to the peer.
const OURS: FdId = FdId(7);

/// Rings of the device.
const RINGS: u16 = 4;
const MEMORY_SLOTS: u64 = 12;
const CONFIG_SIZE: u32 = 96;

/// More effects than one message can have: each ring enabled, and a reply.
const EFFECTS_MAX: usize = 2 * RINGS as usize + 4;

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Replies that the peer got.
    pub replies: usize,
    /// Rings that were started, again and again perhaps.
    pub starts: usize,
    /// Messages that were refused while the session went on.
    pub refusals: usize,
    /// Whether the session ended itself.
    pub closed: bool,
    /// Times that it was saved and restored.
    pub restores: usize,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end.
pub fn run(data: &[u8]) -> Outcome {
    let mut script = Script {
        backend: Backend::new(offer()).expect("an offer within limits"),
        twin: None,
        fds: 0,
        next_answer: 0,
        ours: false,
        running: [false; RINGS as usize],
        watchers: Default::default(),
        outcome: Outcome::default(),
    };
    script.play(&mut Input::new(data));
    script.end();
    script.outcome
}

fn offer() -> Offer {
    Offer {
        // VERSION_1 and RING_PACKED, which decides about sizes and bases.
        features: 1 << 32 | 1 << 34 | VHOST_F_LOG_ALL,
        protocol_features: Backend::PROTOCOL_FEATURES,
        queues: RINGS,
        queue_num: RINGS.into(),
        queue_size_max: 1024,
        config_size: CONFIG_SIZE,
        memory_slots: MEMORY_SLOTS,
    }
}

struct Script {
    backend: Backend,
    /// Restored from the other at some point, and in the same state ever since.
    twin: Option<Backend>,
    /// Descriptors of the message that is being received.
    fds: usize,
    next_answer: u8,
    /// Whether the last answer named a descriptor for the peer.
    ours: bool,
    running: [bool; RINGS as usize],
    /// Of what the front end says, and of what it is told.
    watchers: [Watcher; 2],
    outcome: Outcome,
}

impl Script {
    fn play(&mut self, input: &mut Input<'_>) {
        while let Some(step) = input.u8() {
            let done = match step % step::COUNT {
                step::RAW => self.raw(input),
                step::MESSAGE => self.message(input),
                step::ANSWER => input.u8().map(|answer| self.next_answer = answer),
                step::SAVE => {
                    self.save();
                    Some(())
                }
                _ => None,
            };
            if done.is_none() || self.outcome.closed {
                return;
            }
        }
    }

    fn raw(&mut self, input: &mut Input<'_>) -> Option<()> {
        let (len, fds) = (input.u8()?, input.u8()?);
        self.send(input.bytes(len.into()), (fds % 10).into(), usize::MAX);
        Some(())
    }

    fn message(&mut self, input: &mut Input<'_>) -> Option<()> {
        let (code, flags) = (input.u8()?, input.u8()?);
        let (fds, piece) = (input.u8()?, input.u8()?);
        let size = usize::from(input.u16()?) % (MAX_BODY_BYTES + 1);
        let body = input.bytes(size);
        let message = wire::encode(code.into(), flags.into(), body);
        let piece = if piece == 0 { usize::MAX } else { piece.into() };
        self.send(&message, (fds % 10).into(), piece);
        Some(())
    }

    /// Hands bytes over as a socket does, in pieces, descriptors with the first.
    fn send(&mut self, mut bytes: &[u8], mut fds: usize, piece: usize) {
        while !bytes.is_empty() && !self.outcome.closed {
            let wanted = self.backend.wanted();
            assert!(wanted > 0, "an open session without effects wants bytes");
            assert!(wanted <= HEADER_BYTES.max(MAX_BODY_BYTES));
            let (now, later) = bytes.split_at(bytes.len().min(wanted).min(piece));
            if !self.backend.is_mid_message() {
                self.fds = fds;
            }
            self.watchers[0].take(now, fds, |text| assert!(!text.is_empty()));
            let result = self.both(|backend| backend.receive(now, fds));
            self.judge(result);
            (bytes, fds) = (later, 0);
            self.work();
        }
    }

    /// Carries out effects until none is left.
    fn work(&mut self) {
        for _ in 0..EFFECTS_MAX {
            let Some(effect) = self.both(Backend::poll_effect) else {
                self.check();
                return;
            };
            if let Effect::Send { bytes, fds } = &effect {
                assert!(!effect.needs_answer());
                assert!(fds.is_empty() || *fds == [OURS] && std::mem::take(&mut self.ours));
                self.watchers[1].take(bytes, fds.len(), |text| assert!(!text.is_empty()));
                self.outcome.replies += 1;
                reply(bytes);
                continue;
            }
            assert_eq!(self.backend.wanted(), 0, "nothing is wanted meanwhile");
            self.check_effect(&effect);
            let how = std::mem::take(&mut self.next_answer);
            let answer = answer_to(&effect, how, self.backend.features());
            let done = answer.is_ok() && how != answer::WRONG;
            self.ours = matches!(
                answer,
                Ok(Answer::Inflight { .. } | Answer::StateChannel { .. })
            );
            let result = self.both(|backend| backend.answer(answer.clone()));
            match effect {
                Effect::StartRing { ring, .. } if done => {
                    self.outcome.starts += 1;
                    self.running[usize::from(ring)] = true;
                }
                // Whatever comes of it, nobody asks for it again.
                Effect::StopRing { ring } => self.running[usize::from(ring)] = false,
                _ => {}
            }
            self.judge(result);
        }
        panic!("one message has more than {EFFECTS_MAX} effects");
    }

    fn judge(&mut self, result: Result<(), Error>) {
        let Err(error) = result else { return };
        assert!(!error.to_string().is_empty());
        match error.disposition() {
            Disposition::Nack => self.outcome.refusals += 1,
            Disposition::CloseLink => {
                assert_eq!(self.backend.wanted(), 0, "it is over");
                self.outcome.closed = true;
            }
        }
    }

    /// What an effect names exists.
    fn check_effect(&self, effect: &Effect) {
        let named = |slot: &Option<FdSlot>| slot.map_or(0, |slot| slot.0 + 1);
        let (fds, ring, runs) = match effect {
            Effect::StartRing { ring, kick, setup } => {
                assert!((1..=1024).contains(&setup.size));
                (named(kick), *ring, Some(false))
            }
            Effect::SetKick { ring, kick } => (named(kick), *ring, Some(true)),
            Effect::SetCall { ring, call } => (named(call), *ring, None),
            Effect::SetErr { ring, err } => (named(err), *ring, None),
            Effect::EnableRing { ring, .. }
            | Effect::SetRingLog { ring, .. }
            | Effect::StopRing { ring } => (0, *ring, Some(true)),
            Effect::SetMemory(regions) => (regions.len(), 0, None),
            Effect::AddRegion(_) => (1, 0, None),
            Effect::ReadConfig { offset, size } => {
                assert!(u64::from(*offset) + u64::from(*size) <= CONFIG_SIZE.into());
                (0, 0, None)
            }
            Effect::WriteConfig { offset, bytes, .. } => {
                assert!(u64::from(*offset) + bytes.len() as u64 <= CONFIG_SIZE.into());
                (0, 0, None)
            }
            Effect::SetLog { fd, .. }
            | Effect::SetLogFd { fd }
            | Effect::AdoptInflight { fd, .. }
            | Effect::SetGpuSocket { fd }
            | Effect::SetRequestSocket { fd }
            | Effect::MoveState { fd, .. } => (fd.0 + 1, 0, None),
            // Only a device at rest is brought back into its first state.
            Effect::ResetDevice | Effect::SetStatus(0) => {
                assert_eq!(self.running, [false; RINGS as usize]);
                (0, 0, None)
            }
            Effect::CreateInflight { queues, .. } => {
                assert!((1..=RINGS).contains(queues));
                (0, 0, None)
            }
            Effect::Send { .. }
            | Effect::SetFeatures(_)
            | Effect::RemoveRegion(_)
            | Effect::SetStatus(_)
            | Effect::SendRarp { .. }
            | Effect::SetMtu { .. }
            | Effect::CheckState => (0, 0, None),
        };
        assert!(fds <= self.fds, "{effect:?} with {} descriptors", self.fds);
        assert!(ring < RINGS);
        if let Some(runs) = runs {
            assert_eq!(self.running[usize::from(ring)], runs, "{effect:?}");
        }
    }

    /// What the session says about itself, between messages.
    fn check(&self) {
        let regions = self.backend.regions();
        assert!(regions.len() as u64 <= MEMORY_SLOTS);
        for (at, one) in regions.iter().enumerate() {
            for other in &regions[at + 1..] {
                let apart = |a: u64, b: u64| a >= b + other.size || b >= a + one.size;
                assert!(apart(one.guest_address.0, other.guest_address.0));
                assert!(apart(one.user_address.0, other.user_address.0));
            }
        }
        for (index, ring) in (0..).zip(self.backend.rings()) {
            assert_eq!(ring.running, self.running[usize::from(index)]);
            assert_eq!(self.backend.running_setup(index).is_some(), ring.running);
        }
    }

    fn save(&mut self) {
        let Ok(saved) = self.both(|backend| backend.snapshot()) else {
            assert!(self.backend.is_mid_message(), "it is quiet");
            return;
        };
        let twin = Backend::restore(offer(), &saved).expect("its own bytes");
        assert_eq!(twin.snapshot(), Ok(saved));
        assert_eq!(twin.rings(), self.backend.rings());
        assert_eq!(twin.regions(), self.backend.regions());
        assert_eq!(twin.features(), self.backend.features());
        assert_eq!(twin.protocol_features(), self.backend.protocol_features());
        self.twin = Some(twin);
        self.outcome.restores += 1;
    }

    /// The peer is gone: each running ring is stopped, once.
    fn end(&mut self) {
        self.both(Backend::disconnect);
        for _ in 0..=RINGS {
            let Some(effect) = self.both(Backend::poll_effect) else {
                break;
            };
            let Effect::StopRing { ring } = effect else {
                panic!("{effect:?} after the end");
            };
            let running = &mut self.running[usize::from(ring)];
            assert!(std::mem::take(running), "ring {ring} does not run");
            // One that cannot be stopped holds up nothing.
            let how = std::mem::take(&mut self.next_answer) % answer::WRONG;
            let answer = answer_to(&effect, how, self.backend.features());
            self.both(|backend| backend.answer(answer.clone()))
                .expect("nobody is left to refuse");
        }
        assert!(self.backend.is_over());
        assert_eq!(
            self.running, [false; RINGS as usize],
            "some ring still runs"
        );
        assert_eq!(self.both(Backend::poll_effect), None);
        assert_eq!(self.backend.wanted(), 0);
    }

    /// Does something to the session and to its twin, which must agree.
    #[track_caller]
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, act: impl Fn(&mut Backend) -> T) -> T {
        let result = act(&mut self.backend);
        if let Some(twin) = &mut self.twin {
            assert_eq!(act(twin), result, "a restored session is another one");
        }
        result
    }
}

/// A message of ours is whole and marked as a reply.
fn reply(bytes: &[u8]) {
    let (header, body) = Header::read_from_prefix(bytes).expect("a header");
    assert_eq!(header.flags, Header::VERSION | Header::REPLY);
    assert_eq!(header.size as usize, body.len());
    assert!((1..=44).contains(&header.request) || body.len() == 8);
}

fn answer_to(effect: &Effect, how: u8, features: Option<u64>) -> Result<Answer, Failure> {
    let right = match effect {
        Effect::StopRing { .. } => {
            let packed = features.is_some_and(|bits| bits & 1 << 34 != 0);
            let base = if packed { 0x8003_8003 } else { 3 };
            Answer::RingStopped { base }
        }
        Effect::ReadConfig { size, .. } => Answer::Config(vec![7; *size as usize]),
        Effect::CreateInflight { .. } => Answer::Inflight {
            size: 0x3000,
            offset: 0,
            fd: OURS,
        },
        Effect::MoveState { .. } if how == answer::OTHER_CHANNEL => {
            Answer::StateChannel { fd: OURS }
        }
        _ => Answer::Done,
    };
    match (how, right) {
        (answer::UNSUPPORTED, _) => Err(Failure::Unsupported),
        (answer::REJECTED, _) => Err(Failure::Rejected),
        (answer::SYSTEM, _) => Err(Failure::System),
        (answer::WRONG, Answer::Done) => Ok(Answer::Config(Vec::new())),
        (answer::WRONG, _) => Ok(Answer::Done),
        (_, right) => Ok(right),
    }
}
