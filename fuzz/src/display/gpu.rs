//! What a guest says to a virtual GPU (`gpu_commands`), what a front end answers it
//! (`gpu_front`), and what its viewers and it say to each other (`display_link`).

use std::cell::Cell;
use std::rc::Rc;

use linkspan_devices::gpu::{ANSWER_MAX, Answer, Code, Command, Event, Gpu, Outcome as Asked};
use linkspan_display::link::{BODY_MAX, HEADER, Message};
use linkspan_mem::{Gpa, GuestMemory, Region, UserVa};
use linkspan_vhost::gpu::{Answers, EDID_LEN, Question, Watcher};
use linkspan_virtio::{Buffer, Chain, DeviceQueue, DriverQueue, Features, QueueLayout};

use super::Outcome;
use crate::input::Input;

/// Commands by number, with their words after the header.
pub const COMMANDS: [(u32, usize); 12] = [
    (0x100, 0),
    (0x101, 4),
    (0x102, 2),
    (0x103, 6),
    (0x104, 6),
    (0x105, 8),
    (0x106, 6),
    (0x107, 2),
    (0x10A, 2),
    (0x300, 8),
    (0x301, 8),
    (0x10C, 2),
];
/// In place of a number: type and words are raw bytes, of which the next byte says how many.
pub const RAW: u8 = 0xFF;
/// Where the guest's memory is, in commands.
pub const GUEST: u32 = 0x1_0000;

const LEN: usize = 64 << 10;
/// Behind ring and commands.
const ANSWER: u64 = 0x4000;
const COMMAND: u64 = 0x2000;
/// Memory that resources may take.
const LIMIT: u64 = 1 << 20;

/// The target of a guest's commands.
pub fn commands_target(bytes: &[u8]) {
    commands(bytes);
}

struct Guest {
    region: Region,
    memory: GuestMemory,
    driver: DriverQueue<linkspan_mem::Window>,
    device: DeviceQueue<linkspan_mem::Window>,
    chain: Chain,
    /// What lists of guest memory take.
    purse: Rc<Cell<u64>>,
}

impl Guest {
    fn new() -> Self {
        let region = Region::heap(LEN).expect("memory of a test");
        let base = u64::from(GUEST);
        let memory = GuestMemory::new(vec![(region.clone(), Gpa(base), UserVa(base))]);
        let memory = memory.expect("one region");
        let layout = QueueLayout::Split;
        let lens = layout.part_lens(16);
        let part = |at: usize| {
            let place = [0, 0x400, 0x800][at];
            region.window(place, lens[at]).expect("it is inside")
        };
        let parts = || [part(0), part(1), part(2)];
        let features = Features::SPLIT_QUEUE;
        let start = layout.start();
        Self {
            driver: DriverQueue::new(parts(), 16, features, start).expect("a queue"),
            device: DeviceQueue::new(parts(), 16, features, start).expect("a queue"),
            chain: Chain::new(16).expect("a chain"),
            memory,
            region,
            purse: Rc::default(),
        }
    }

    /// Carries out a command; its answer's type.
    fn say(&mut self, gpu: &mut Gpu<u64, Share>, command: &[u8]) -> Option<u32> {
        let slice = self.region.slice(COMMAND, command.len() as u64);
        slice.expect("it is short").write(command);
        let buffer = |at: u64, len: usize| Buffer {
            address: Gpa(u64::from(GUEST) + at),
            len: u32::try_from(len).expect("it is short"),
        };
        let readable = [buffer(COMMAND, command.len())];
        let writable = [buffer(ANSWER, ANSWER_MAX)];
        self.driver.add(&readable, &writable, None).expect("room");
        self.driver.publish().expect("a queue");
        self.device.refresh().expect("a queue");
        let popped = self.device.pop(&self.memory.guest, &mut self.chain);
        assert!(popped.expect("a chain"));
        let table = self.memory.table();
        let mut answer = [0; ANSWER_MAX];
        let mut kind = None;
        let mut len = 0;
        if let Some(mut command) = Command::read(&mut self.chain, table) {
            let make = |bytes| {
                if bytes > LIMIT {
                    return Err(Code::OutOfMemory);
                }
                let len = usize::try_from(bytes).map_err(|_| Code::OutOfMemory)?;
                Ok((Region::heap(len)?, bytes))
            };
            let mut each = check;
            let charge = |bytes| Share::take(&self.purse, bytes);
            let guest = &self.memory.guest;
            let (outcome, _) = gpu.execute(&mut command, guest, make, charge, &mut each);
            let said = match outcome {
                Asked::Answer(answer) => answer,
                Asked::DisplayInfo => Answer::DisplayInfo([(640, 480); 16]),
                Asked::Edid { .. } => Answer::Edid(vec![7; 128]),
            };
            len = command.answer(&said, &mut answer);
            let (first, _) = answer.split_first_chunk().expect("it is long");
            kind = Some(u32::from_le_bytes(*first));
        }
        let written = u32::try_from(len).expect("it is short");
        self.device.push(&self.chain, written).expect("a queue");
        self.device.publish().expect("a queue");
        assert!(self.driver.arm().expect("a queue"));
        let used = self.driver.pop().expect("a queue").expect("it came back");
        assert_eq!(used.written, written);
        kind
    }
}

/// What lists of guest memory may take.
const LISTS_MAX: u64 = 4096;

/// What one takes, until it is gone.
struct Share {
    purse: Rc<Cell<u64>>,
    bytes: u64,
}

impl Share {
    fn take(purse: &Rc<Cell<u64>>, bytes: u64) -> Result<Self, Code> {
        let all = purse.get() + bytes;
        if all > LISTS_MAX {
            return Err(Code::OutOfMemory);
        }
        purse.set(all);
        let purse = Rc::clone(purse);
        Ok(Self { purse, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.purse.set(self.purse.get() - self.bytes);
    }
}

/// Whatever is shown lies in its memory.
fn check(event: Event<u64>) {
    let picture = match event {
        Event::Scanout {
            picture: Some(picture),
            ..
        } => picture,
        Event::Cursor {
            shape: Some((picture, _)),
            ..
        } => picture,
        _ => return,
    };
    let part = picture.part;
    assert!(part.width > 0 && part.height > 0);
    let line = (u64::from(part.x) + u64::from(part.width)) * 4;
    assert!(line <= u64::from(picture.stride));
    let lines = u64::from(part.y) + u64::from(part.height);
    assert!(lines * u64::from(picture.stride) <= picture.memory);
}

/// Runs a script of commands.
pub fn commands(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut outcome = Outcome::default();
    let mut guest = Guest::new();
    let mut gpu = Gpu::new(2);
    for _ in 0..256 {
        let Some(number) = input.u8() else {
            break;
        };
        let mut command = Vec::new();
        if number == RAW {
            let len = usize::from(input.u8().unwrap_or(0)).max(1);
            command.extend(input.bytes(len));
            command.resize(len, 0);
        } else {
            let (kind, words) = COMMANDS[usize::from(number) % COMMANDS.len()];
            let header = [kind, 1, 5, 0, 0, 0];
            let words = (0..words).map(|_| input.u32().unwrap_or(0));
            let words: Vec<u32> = header.into_iter().chain(words).collect();
            command.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }
        match guest.say(&mut gpu, &command) {
            Some(kind) if kind < 0x1200 => outcome.done += 1,
            kind => {
                outcome.refused += 1;
                outcome.error = kind.map(|kind| format!("{kind:#x}"));
            }
        }
        assert!(gpu.resources() <= 256);
    }
    gpu.reset();
    assert_eq!(guest.purse.get(), 0, "all of it comes back");
    outcome
}

/// The front end is asked: for its features, the sizes of screens, an EDID.
pub const ASK: [u8; 3] = [0, 1, 2];

/// The target of a front end's answers.
pub fn front_target(bytes: &[u8]) {
    front(bytes);
}

/// Runs a script: questions, and pieces of what is answered: an eighth of their length, and
/// the first 12 bytes.
pub fn front(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut outcome = Outcome::default();
    let mut answers = Answers::default();
    let mut watcher = Watcher::default();
    while let Some(step) = input.u8() {
        let question = match step {
            0 => Question::ProtocolFeatures,
            1 => Question::DisplayInfo,
            2 => Question::Edid { head: 0 },
            len => {
                // A header, and zeroes, so that long answers are short scripts.
                let mut piece = input.bytes(12).to_vec();
                piece.resize(usize::from(len) * 8, 0);
                let mut rest = &piece[..];
                while !rest.is_empty() {
                    let wanted = answers.wanted();
                    assert!(wanted > 0 && wanted <= 12 + EDID_LEN);
                    let (first, more) = rest.split_at(wanted.min(rest.len()));
                    rest = more;
                    watcher.take(first, |said| assert!(!said.text().is_empty()));
                    match answers.receive(first) {
                        Ok(Some(_)) => outcome.done += 1,
                        Ok(None) => {}
                        Err(error) => {
                            outcome.refused += 1;
                            outcome.error = Some(error.to_string());
                            return outcome;
                        }
                    }
                }
                continue;
            }
        };
        let waiting = answers.waiting();
        let asked = answers.ask(question).is_some();
        assert_eq!(answers.waiting(), waiting + usize::from(asked));
    }
    outcome
}

/// The target of the viewers' socket.
pub fn link_target(bytes: &[u8]) {
    link(bytes);
}

/// Reads messages one after the other.
pub fn link(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut outcome = Outcome::default();
    loop {
        let header: [u8; HEADER] = match input.bytes(HEADER).try_into() {
            Ok(header) => header,
            Err(_) => return outcome,
        };
        let parsed = Message::body_len(header).and_then(|len| {
            assert!(len <= BODY_MAX);
            let mut body = input.bytes(len).to_vec();
            body.resize(len, 0);
            Message::parse(header, &body)
        });
        match parsed {
            Ok(message) => {
                outcome.done += 1;
                // What is read can be said, and means the same.
                let again = message.to_bytes();
                let (header, body) = again.split_first_chunk().expect("it has a header");
                let again = Message::parse(*header, body).expect("what is said is read");
                assert_eq!(again, message);
            }
            Err(error) => {
                outcome.refused += 1;
                outcome.error = Some(error.to_string());
                return outcome;
            }
        }
    }
}
