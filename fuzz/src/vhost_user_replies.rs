//! A back end's bytes against the front end's session.
//!
//! The bytes are a script: commands of the session's owner, replies that are
//! right, late, doubled, cut short or invented, requests of the back end on its
//! own socket, when the session is saved and restored, and when the connection
//! ends and another one goes on. From a restore on, original and successor run
//! side by side and must agree.

mod commands;

use linkspan_vhost::frontend::{
    Effect, Error, Event, FdSlot, QueueUnit, RequestEvent, Requests, Saved,
};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{
    self, DEVICE_STATE_NOFD_MASK, HEADER_BYTES, Header, InflightDescription, MAX_BODY_BYTES,
    MAX_FDS, VringState,
};
use linkspan_vhost::{
    Frontend, ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES, Wish,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;

pub(crate) use commands::kind;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Length and descriptors, 8 bits each, and the bytes.
    pub(crate) const RAW: u8 = 0;
    /// Message, flags, descriptors, piece size, 8 bits each; body size, 16 bits; the body.
    pub(crate) const MESSAGE: u8 = 1;
    /// How, and piece size, 8 bits each: a reply to what is awaited.
    pub(crate) const REPLY: u8 = 2;
    /// Its kind, 8 bits, and what that needs: a command of the owner.
    pub(crate) const COMMAND: u8 = 3;
    /// Saves the session, and goes on with a restored one beside it.
    pub(crate) const SAVE: u8 = 4;
    /// Message, flags, descriptors, body size, 8 bits each; the body: a request
    /// on the back end's own socket.
    pub(crate) const REQUEST: u8 = 5;
    /// The connection ends, and another one goes on from what is left.
    pub(crate) const RESUME: u8 = 6;
    /// How many at most, and piece size, 8 bits each: right replies until
    /// nothing is under way.
    pub(crate) const REPLIES: u8 = 7;
    /// How many there are.
    pub(crate) const COUNT: u8 = 8;
}

/// What a reply is like; other numbers mean the right one.
pub(crate) mod how {
    /// The step failed, as far as its reply can say so.
    pub(crate) const REFUSES: u8 = 1;
    /// The same once more behind it.
    pub(crate) const TWICE: u8 = 2;
    /// Its body lacks the last byte.
    pub(crate) const SHORT: u8 = 3;
    /// One descriptor too many.
    pub(crate) const MORE_FDS: u8 = 4;
    /// Right, but there is no region, or the channel is the one that was given.
    pub(crate) const WITHOUT: u8 = 5;
    /// To the message behind it in the table.
    pub(crate) const OTHER: u8 = 6;
    /// As if of a back end that has nothing but what it must have.
    pub(crate) const PLAIN: u8 = 7;
}

const RINGS: u16 = 4;
const CONFIG_SIZE: u32 = 300;

/// Virtio features that the driver has: `VERSION_1` and `RING_PACKED`, which
/// decides about sizes and bases.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 34;

/// More effects than one message or command can have: each of 4 rings has 7
/// messages, a table 8 regions that go and 8 that come, and there is one report.
const EFFECTS_MAX: usize = 32;

/// More replies than one command, or the negotiation, can wait for.
const REPLIES_MAX: usize = 64;

/// More than a session is ever saved in: its configuration space, and some
/// hundred bytes for each ring and region.
const SAVED_MAX: usize = 8192;

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Commands that were begun.
    pub commands: usize,
    /// Those that were done.
    pub done: usize,
    /// Those that the back end refused.
    pub refused: usize,
    /// Changes of configuration space that the back end announced.
    pub changes: usize,
    /// How the session ended itself, if it did.
    pub error: Option<Error>,
    /// Times that it was saved and restored.
    pub restores: usize,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end.
pub fn run(data: &[u8]) -> Outcome {
    let mut script = Script::new(None, Outcome::default());
    let mut input = Input::new(data);
    script.work();
    while let Some(step) = input.u8() {
        if script.step(step % step::COUNT, &mut input).is_none() {
            break;
        }
    }
    script.end();
    script.outcome
}

fn wish() -> Wish {
    Wish {
        features: FEATURES,
        required_features: 0,
        protocol_features: Frontend::PROTOCOL_FEATURES,
        required_protocol_features: ProtocolFeatures::empty(),
        queues: RINGS,
        queue_unit: QueueUnit::Pairs,
        config_size: CONFIG_SIZE,
        memory_slots: 2,
    }
}

/// A command under way.
#[derive(Debug)]
struct Task {
    /// Which rings ran before it, and which it wants to run after it.
    before: [bool; RINGS as usize],
    wanted: [bool; RINGS as usize],
}

struct Script {
    frontend: Frontend,
    /// Restored from the other at some point, and in the same state ever since.
    twin: Option<Frontend>,
    requests: Requests,
    negotiated: bool,
    task: Option<Task>,
    /// The body of the message that was sent last.
    asked: Vec<u8>,
    /// Descriptors of the message that is being received.
    fds: usize,
    outcome: Outcome,
}

impl Script {
    fn new(saved: Option<Saved>, outcome: Outcome) -> Self {
        let frontend = match saved {
            None => Frontend::new(wish()),
            Some(saved) => Frontend::resume(wish(), saved),
        };
        Self {
            frontend: frontend.expect("a wish within limits"),
            twin: None,
            requests: Requests::new(Frontend::PROTOCOL_FEATURES),
            negotiated: false,
            task: None,
            asked: Vec::new(),
            fds: 0,
            outcome,
        }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        let closed = self.outcome.error.is_some();
        match step {
            step::RESUME => self.resume(),
            _ if closed => return None,
            step::RAW => {
                let (len, fds) = (input.u8()?, input.u8()?);
                self.send(input.bytes(len.into()), (fds % 10).into(), usize::MAX);
            }
            step::MESSAGE => {
                let (code, flags) = (input.u8()?, input.u8()?);
                let (fds, piece) = (input.u8()?, input.u8()?);
                let size = usize::from(input.u16()?) % (MAX_BODY_BYTES + 1);
                let message = wire::encode(code.into(), flags.into(), input.bytes(size));
                self.send(&message, (fds % 10).into(), pieces(piece));
            }
            step::REPLY => {
                let (how, piece) = (input.u8()?, input.u8()?);
                self.reply(how, pieces(piece));
            }
            step::REPLIES => {
                let (count, piece) = (input.u8()?, input.u8()?);
                for _ in 0..count {
                    self.reply(0, pieces(piece));
                }
            }
            step::COMMAND => self.command(input)?,
            step::SAVE => self.save(),
            _ => {
                let (code, flags) = (input.u8()?, input.u8()?);
                let (fds, size) = (input.u8()?, input.u8()?);
                let message = wire::encode(code.into(), flags.into(), input.bytes(size.into()));
                self.request(&message, (fds % 10).into());
            }
        }
        Some(())
    }

    /// Hands bytes over as a socket does, in pieces, descriptors with the first.
    fn send(&mut self, mut bytes: &[u8], mut fds: usize, piece: usize) {
        while !bytes.is_empty() && self.outcome.error.is_none() {
            let wanted = self.frontend.wanted();
            assert!(wanted > 0, "an open session without effects wants bytes");
            assert!(wanted <= HEADER_BYTES.max(MAX_BODY_BYTES));
            let (now, later) = bytes.split_at(bytes.len().min(wanted).min(piece));
            if !self.frontend.is_mid_message() {
                self.fds = fds;
            }
            let result = self.both(|frontend| frontend.receive(now, fds));
            (bytes, fds) = (later, 0);
            match result {
                Ok(()) => self.work(),
                Err(error) => self.check_over(error),
            }
        }
    }

    fn reply(&mut self, how: u8, piece: usize) {
        let Some(request) = self.frontend.awaited() else {
            return;
        };
        if self.frontend.is_mid_message() {
            return;
        }
        let (mut body, fds) = right_reply(request, &self.asked, how);
        if how == how::SHORT {
            body.pop();
        }
        let fds = fds + usize::from(how == how::MORE_FDS);
        let other = u32::from(how == how::OTHER);
        let bytes = wire::encode(request.code() + other, Header::REPLY, &body);
        self.send(&bytes, fds.min(MAX_FDS), piece);
        if how == how::TWICE {
            self.send(&bytes, fds, piece);
        }
    }

    fn command(&mut self, input: &mut Input<'_>) -> Option<()> {
        let command = commands::command(input)?;
        let before = self.running();
        let (idle, saved) = (self.frontend.is_idle(), self.frontend.snapshot());
        assert_eq!(saved.is_ok(), idle && !self.frontend.is_mid_message());
        let wanted = commands::rings_after(&command, before);
        match self.both(|frontend| frontend.command(command.clone())) {
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(self.frontend.snapshot(), saved, "nothing has changed");
            }
            Ok(()) => {
                assert!(idle && self.negotiated, "something else is under way");
                self.outcome.commands += 1;
                self.task = Some(Task { before, wanted });
                self.work();
            }
        }
        Some(())
    }

    /// Takes effects until none is left.
    fn work(&mut self) {
        for _ in 0..EFFECTS_MAX {
            let Some(effect) = self.both(Frontend::poll_effect) else {
                self.check();
                return;
            };
            match effect {
                Effect::Send { bytes, fds } => {
                    assert!(fds.len() <= MAX_FDS);
                    let (header, body) = Header::read_from_prefix(&bytes).expect("a header");
                    assert_eq!(header.size as usize, body.len());
                    assert_eq!(header.flags & !Header::NEED_REPLY, Header::VERSION);
                    self.asked = body.to_vec();
                }
                Effect::Report(event) => self.hear(event),
            }
        }
        panic!("one message has more than {EFFECTS_MAX} effects");
    }

    /// Events belong to a command; each command ends with one of two.
    fn hear(&mut self, event: Event) {
        if let Event::Negotiated(negotiated) = event {
            assert!(!std::mem::replace(&mut self.negotiated, true));
            assert!([0, CONFIG_SIZE as usize].contains(&negotiated.config.len()));
            assert!(negotiated.queues_max >= RINGS.into() && negotiated.memory_slots >= 2);
            assert_eq!(negotiated.features & !negotiated.offered, 0);
            return;
        }
        let task = self.task.take().expect("nobody asked for anything");
        match event {
            Event::Done => {
                self.outcome.done += 1;
                assert_eq!(self.running(), task.wanted, "it is done");
                return;
            }
            Event::Refused { code, .. } => {
                assert_ne!(code, 0);
                self.outcome.refused += 1;
                // All or none, and what was stopped by then is stopped.
                let after = self.running().into_iter().zip(task.before);
                assert!({ after }.all(|(runs, ran)| ran || !runs), "half a start");
                return;
            }
            Event::RingStopped { ring, .. } => assert!(!self.running()[usize::from(ring)]),
            Event::Config { bytes, .. } => assert!((1..=256).contains(&bytes.len())),
            Event::Inflight(Some((_, slot))) | Event::StateChannel(Some(slot)) => {
                assert!(slot == FdSlot(0) && self.fds == 1, "it came with the reply");
            }
            _ => {}
        }
        self.task = Some(task);
    }

    /// What the session says about itself, between messages.
    fn check(&self) {
        let frontend = &self.frontend;
        assert!(!frontend.is_over());
        assert_eq!(frontend.negotiated().is_some(), self.negotiated);
        // Whoever waits, waits for a reply; so the answers end every command.
        assert_ne!(frontend.is_idle(), frontend.awaited().is_some());
        let busy = self.task.is_some() || !self.negotiated;
        assert_eq!(frontend.is_idle(), !busy);
        assert!(frontend.wanted() > 0);
        let slots = frontend.negotiated().map_or(0, |known| known.memory_slots);
        assert!(frontend.regions().len() as u64 <= slots.max(8));
        for ring in frontend.rings().iter().filter(|ring| ring.running) {
            assert!(ring.size.is_some() && ring.addresses.is_some());
        }
    }

    /// An error has a name, and is the end.
    fn check_over(&mut self, error: Error) {
        assert!(!error.to_string().is_empty());
        assert!(self.frontend.is_over());
        assert_eq!(self.frontend.wanted(), 0);
        assert_eq!(self.both(Frontend::poll_effect), None);
        assert!(self.both(|frontend| frontend.receive(&[0], 0)).is_err());
        assert!(self.frontend.snapshot().is_err() && self.frontend.awaited().is_none());
        self.task = None;
        self.outcome.error = Some(error);
    }

    fn save(&mut self) {
        if self.requests.is_quiet() {
            self.requests = Requests::new(Frontend::PROTOCOL_FEATURES);
        }
        let Ok(saved) = self.both(|frontend| frontend.snapshot()) else {
            assert!(!self.frontend.is_idle() || self.frontend.is_mid_message());
            return;
        };
        assert!(saved.len() <= SAVED_MAX, "{} bytes", saved.len());
        let twin = Frontend::restore(wish(), &saved).expect("its own bytes");
        assert_eq!(twin.snapshot(), Ok(saved));
        assert_eq!(twin.rings(), self.frontend.rings());
        assert_eq!(twin.regions(), self.frontend.regions());
        assert_eq!(twin.features(), self.frontend.features());
        assert_eq!(twin.negotiated(), self.frontend.negotiated());
        assert_eq!(twin.saved(), self.frontend.saved());
        self.twin = Some(twin);
        self.outcome.restores += 1;
    }

    /// The back end's own socket: it ends with an error, and nothing else does.
    fn request(&mut self, mut bytes: &[u8], mut fds: usize) {
        while !bytes.is_empty() && self.requests.wanted() > 0 {
            let wanted = self.requests.wanted();
            assert!(wanted <= HEADER_BYTES.max(MAX_BODY_BYTES));
            let (now, later) = bytes.split_at(bytes.len().min(wanted));
            let result = self.requests.receive(now, fds);
            (bytes, fds) = (later, 0);
            let mut events = 0;
            while let Some(event) = self.requests.poll_event() {
                events += 1;
                match event {
                    RequestEvent::ConfigChanged => self.outcome.changes += 1,
                    RequestEvent::Send { bytes } => assert_eq!(bytes.len(), HEADER_BYTES + 8),
                    _ => {}
                }
            }
            assert!(events <= 2);
            if let Err(error) = result {
                assert!(!error.to_string().is_empty());
                assert_eq!(self.requests.wanted() > 0, error.is_nacked());
            }
        }
    }

    /// The connection is lost. What is left of it suffices for the next one.
    fn resume(&mut self) {
        let saved = self.lose();
        let outcome = std::mem::take(&mut self.outcome);
        *self = Self::new(
            saved,
            Outcome {
                error: None,
                ..outcome
            },
        );
        self.work();
    }

    fn lose(&mut self) -> Option<Saved> {
        self.both(Frontend::disconnect);
        assert_eq!(self.both(Frontend::poll_effect), None);
        assert!(self.frontend.is_over() && self.frontend.wanted() == 0);
        self.both(|frontend| frontend.saved())
    }

    /// A back end that answers everything from here on ends what is under way.
    fn end(&mut self) {
        let open = self.outcome.error.is_none() && !self.frontend.is_mid_message();
        for _ in 0..REPLIES_MAX {
            if !open || self.frontend.is_idle() {
                break;
            }
            self.reply(0, usize::MAX);
            if let Some(error) = &self.outcome.error {
                assert!(error.misfit().is_some(), "right answers: {error}");
                break;
            }
        }
        let over = self.outcome.error.is_some();
        assert!(!open || over || self.frontend.is_idle(), "it does not end");
        self.lose();
    }

    fn running(&self) -> [bool; RINGS as usize] {
        let mut running = [false; RINGS as usize];
        for (runs, ring) in running.iter_mut().zip(self.frontend.rings()) {
            *runs = ring.running;
        }
        running
    }

    /// Does something to the session and to its twin, which must agree.
    #[track_caller]
    fn both<T: PartialEq + std::fmt::Debug>(&mut self, act: impl Fn(&mut Frontend) -> T) -> T {
        let result = act(&mut self.frontend);
        if let Some(twin) = &mut self.twin {
            assert_eq!(act(twin), result, "a restored session is another one");
        }
        result
    }
}

fn pieces(piece: u8) -> usize {
    if piece == 0 { usize::MAX } else { piece.into() }
}

/// What a back end says to a message that it understands, and its descriptors.
/// `asked` is the body of that message.
fn right_reply(request: Request, asked: &[u8], how: u8) -> (Vec<u8>, usize) {
    let number = |value: u64| value.as_bytes().to_vec();
    let (refuses, without) = (how == how::REFUSES, how == how::WITHOUT);
    let body = match request {
        Request::GetFeatures if how == how::PLAIN => number(FEATURES),
        Request::GetFeatures => number(FEATURES | VHOST_F_LOG_ALL | VHOST_USER_F_PROTOCOL_FEATURES),
        Request::GetProtocolFeatures => {
            let all = Frontend::PROTOCOL_FEATURES;
            let plain = all.difference(ProtocolFeatures::REPLY_ACK);
            number(if how == how::PLAIN { plain } else { all }.bits())
        }
        Request::GetQueueNum => number(if refuses { 0 } else { 2 }),
        Request::GetMaxMemSlots => number(if refuses { 1 } else { 509 }),
        Request::GetStatus => number(15),
        Request::GetConfig if refuses => Vec::new(),
        Request::GetConfig => asked.to_vec(),
        Request::SetLogBase => Vec::new(),
        Request::GetVringBase => {
            let VringState { index, .. } = VringState::read_from_bytes(asked).expect("8 bytes");
            VringState { index, num: 3 }.as_bytes().to_vec()
        }
        Request::GetInflightFd => {
            let mut region = InflightDescription::read_from_bytes(asked).expect("24 bytes");
            region.mmap_size = if without { 0 } else { 0x3000 };
            return (region.as_bytes().to_vec(), usize::from(!without));
        }
        Request::SetDeviceStateFd if refuses => number(1 | DEVICE_STATE_NOFD_MASK),
        Request::SetDeviceStateFd if without => number(DEVICE_STATE_NOFD_MASK),
        Request::SetDeviceStateFd => return (number(0), 1),
        // An acknowledgement.
        _ => number(refuses.into()),
    };
    (body, 0)
}
