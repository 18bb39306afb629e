//! File copy: both ends.

mod names;
mod pair;
mod receiver;
mod sender;

use linkspan_vmbus::fcopy::{
    Effect, FRAGMENT_MAX, Guest, NAME_UNITS, Policy, Receiver, Refusal, Roots, START_LEN, WRITE_LEN,
};
use linkspan_vmbus::ic::{Echo, Reaction, Status};

fn policy() -> Policy {
    Policy {
        roots: Roots::new(&["/srv/in", "/tmp"]).unwrap(),
        max_size: 1 << 40,
    }
}

/// A message of the host with this body, padded as a ring pads it.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend((u32::from(size) + 20).to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend(kind.to_le_bytes());
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 9, 3, 0, 0]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn head(operation: u32) -> Vec<u8> {
    let mut body = operation.to_le_bytes().to_vec();
    body.resize(36, 0);
    body
}

fn units(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

fn raw_start(file: &[u16], path: &[u16], flags: u32, size: u64) -> Vec<u8> {
    let mut body = head(0);
    for name in [file, path] {
        let mut name = name.to_vec();
        name.resize(NAME_UNITS, 0);
        body.extend(name.iter().flat_map(|unit| unit.to_le_bytes()));
    }
    body.extend(flags.to_le_bytes());
    body.extend(size.to_le_bytes());
    assert_eq!(body.len(), START_LEN);
    body
}

fn start(file: &str, path: &str, flags: u32, size: u64) -> Vec<u8> {
    raw_start(&units(file), &units(path), flags, size)
}

fn write(offset: u64, data: &[u8]) -> Vec<u8> {
    let mut body = head(1);
    body.extend([0; 4]);
    body.extend(offset.to_le_bytes());
    body.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    body.extend(data);
    body.resize(WRITE_LEN, 0);
    body
}

const COMPLETE: u32 = 2;
const CANCEL: u32 = 3;

/// A guest that has negotiated, and what it did since.
struct Rig {
    guest: Guest,
    effects: Vec<Effect>,
    /// The bytes of all writes, one behind the other.
    written: Vec<u8>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            guest: Guest::new(Receiver::new(policy()), Echo::Full),
            effects: Vec::new(),
            written: Vec::new(),
        };
        assert_eq!(rig.negotiate(), Status::OK);
        rig
    }

    fn negotiate(&mut self) -> Status {
        let body = [1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0];
        self.give(message(0, &body), &[])
    }

    /// Hands over a request; effects are answered with these, then with success.
    fn give(&mut self, mut payload: Vec<u8>, answers: &[Status]) -> Status {
        let (len, mut answers) = (payload.len(), answers.iter());
        let mut reaction = self.guest.receive(&mut payload).unwrap();
        loop {
            match reaction {
                Reaction::Reply(sent) => {
                    assert_eq!(sent, len, "a reply is as long as its request");
                    let status = payload[20..24].try_into().unwrap();
                    return Status(u32::from_le_bytes(status));
                }
                Reaction::Do(effect) => {
                    if let Effect::Write { data, .. } = &effect {
                        self.written.extend(&payload[data.clone()]);
                    }
                    self.effects.push(effect);
                    let answer = *answers.next().unwrap_or(&Status::OK);
                    reaction = self.guest.answer(answer, &mut payload);
                }
            }
        }
    }

    fn ask(&mut self, body: &[u8]) -> Status {
        self.give(message(7, body), &[])
    }

    fn ask_with(&mut self, body: &[u8], answers: &[Status]) -> Status {
        self.give(message(7, body), answers)
    }

    fn refusal(&mut self) -> Refusal {
        self.guest.service_mut().take_refusal().expect("a refusal")
    }

    /// With a file of this size begun.
    fn begun(size: u64) -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.ask(&start("file", "/tmp/", 0, size)), Status::OK);
        rig.effects.clear();
        rig
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 % 251).to_le_bytes()[0]).collect()
}

const _: () = assert!(FRAGMENT_MAX == 6144 && WRITE_LEN == 6196);
