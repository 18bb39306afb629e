//! The messages of FUSE that the file of a UIO device gets: what a hostile program asks of
//! the file, as a kernel passes it on, and what no kernel would say.
//!
//! A script is a row of steps, each a byte and what belongs to it: 0, a length of 16 bits
//! and bytes that are given as they are; 1, an opcode, a length of 8 bits and the body of
//! a request; 2, an interrupt; 3, the host takes the channel back; 4, a number of 8 bits:
//! the request with that number is interrupted. A channel that is to be opened is there if
//! the next byte is even.

use std::collections::{BTreeSet, VecDeque};

use linkspan_backends::uio::{Device, Effect};
use rustix::io::Errno;

use crate::input::Input;

/// Bytes of a request before its body.
const HEADER: usize = 40;

/// The opcode that interrupts a request.
const INTERRUPT: u32 = 36;

/// Calls that may wait at once.
const WAITING_MAX: usize = 1024;

/// What came of a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were answered with success.
    pub done: usize,
    /// Requests that were answered with an error.
    pub refused: usize,
    /// Channels that were opened, or tried to be.
    pub connects: usize,
    /// Channels that were closed.
    pub disconnects: usize,
    /// Whoever waits for an event and was told of one.
    pub told: usize,
    /// Signals to the host, and masks of interrupts.
    pub interrupts: usize,
}

/// The target.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

struct Play<'a> {
    input: Input<'a>,
    device: Device,
    effects: VecDeque<Effect>,
    outcome: Outcome,
    /// Requests of ours without an answer.
    open: BTreeSet<u64>,
    next: u64,
    /// Bytes that are no request of ours were given: their numbers may be any.
    raw: bool,
}

/// Runs a script.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut play = Play {
        input: Input::new(bytes),
        device: Device::new(0o600, [0, 0]),
        effects: VecDeque::new(),
        outcome: Outcome::default(),
        open: BTreeSet::new(),
        next: 1,
        raw: false,
    };
    while play.step().is_some() {
        play.carry_out();
    }
    play.outcome
}

impl Play<'_> {
    fn step(&mut self) -> Option<()> {
        match self.input.u8()? % 5 {
            0 => {
                let len = self.input.u16()?;
                self.raw = true;
                let bytes = self.input.bytes(len.into());
                self.device.request(bytes, &mut self.effects);
            }
            1 => {
                let (opcode, len) = (self.input.u8()?, self.input.u8()?);
                let body = self.input.bytes(len.into()).to_vec();
                self.request(opcode.into(), &body);
            }
            2 => self.device.interrupted(&mut self.effects),
            3 => self.device.rescinded(&mut self.effects),
            _ => {
                let target = u64::from(self.input.u8()?);
                self.request(INTERRUPT, &target.to_ne_bytes());
            }
        }
        Some(())
    }

    fn request(&mut self, opcode: u32, body: &[u8]) {
        let unique = self.next;
        self.next += 1;
        self.open.insert(unique);
        let len = u32::try_from(HEADER + body.len()).expect("short");
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(unique.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        self.device.request(&bytes, &mut self.effects);
        // What nobody answers does not wait: the kernel wants no answer to these.
        if matches!(opcode, 2 | INTERRUPT | 38 | 42) && self.effects.is_empty() {
            self.open.remove(&unique);
        }
    }

    fn carry_out(&mut self) {
        assert!(self.effects.len() <= 2 * WAITING_MAX + 4);
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Send(message) => self.sent(message.bytes()),
                Effect::Ready { .. } => {}
                Effect::Interrupts { .. } => self.outcome.interrupts += 1,
                Effect::Disconnect => self.outcome.disconnects += 1,
                Effect::Connect { unique } => {
                    self.outcome.connects += 1;
                    let backing = match self.input.u8() {
                        Some(number) if number % 2 == 0 => Ok(i32::from(number)),
                        _ => Err(Errno::IO),
                    };
                    self.device.connected(unique, backing, &mut self.effects);
                }
            }
        }
        let waiting = self.open.len();
        assert!(waiting <= WAITING_MAX, "{waiting} requests without answer");
    }

    /// The kernel takes a whole message, an answer to what it asked and not twice.
    fn sent(&mut self, bytes: &[u8]) {
        let (head, body) = bytes.split_first_chunk::<16>().expect("a header");
        let word = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
        assert_eq!(u32::from_ne_bytes(word(0)) as usize, bytes.len());
        let error = i32::from_ne_bytes(word(4));
        let [.., a, b, c, d, e, f, g, h] = *head;
        let unique = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        if unique == 0 && !self.raw {
            assert!(error > 0, "a notification has a code");
            self.outcome.told += 1;
            return;
        }
        assert!(self.open.remove(&unique) || self.raw, "no request {unique}");
        if error == 0 {
            self.outcome.done += 1;
        } else {
            assert!(self.raw || (-4095..0).contains(&error));
            assert!(body.is_empty() || self.raw);
            self.outcome.refused += 1;
        }
    }
}
