//! What a kernel could ask of the device, request by request.

use super::*;

/// What a kernel would send.
fn request(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(wire::IN_HEADER + body.len()).unwrap();
    let mut bytes = Vec::new();
    bytes.extend(len.to_ne_bytes());
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.resize(wire::IN_HEADER, 0);
    bytes.extend(body);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn io(file: u64, len: u32, flags: OFlags, data: &[u8]) -> Vec<u8> {
    let mut body = file.to_ne_bytes().to_vec();
    body.extend(words(&[0, 0, len, 0, 0, 0, flags.bits(), 0]));
    body.extend(data);
    body
}

/// A device, and the effects of what it was told.
struct Told(Device, VecDeque<Effect>);

impl Told {
    fn new() -> Self {
        Self(Device::new(0o600, [0, 0]), VecDeque::new())
    }

    fn ask(&mut self, opcode: u32, unique: u64, body: &[u8]) -> Vec<Effect> {
        self.0.request(&request(opcode, unique, body), &mut self.1);
        self.effects()
    }

    fn effects(&mut self) -> Vec<Effect> {
        self.1.drain(..).collect()
    }

    /// Opens it and gives the file.
    fn open(&mut self) -> u64 {
        let effects = self.ask(opcode::OPEN, 7, &[0; 8]);
        let effects = if effects == [Effect::Connect { unique: 7 }] {
            self.0.connected(7, Ok(3), &mut self.1);
            self.effects()
        } else {
            effects
        };
        let [Effect::Send(message)] = effects[..] else {
            panic!("{effects:?}");
        };
        let bytes = message.bytes();
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[28..], 3_i32.to_ne_bytes());
        u64::from_ne_bytes(bytes[16..24].try_into().unwrap())
    }

    fn read(&mut self, unique: u64, file: u64) -> Vec<Effect> {
        self.ask(opcode::READ, unique, &io(file, 4, OFlags::empty(), &[]))
    }

    fn interrupt(&mut self) -> Vec<Effect> {
        self.0.interrupted(&mut self.1);
        self.effects()
    }

    fn rescind(&mut self) -> Vec<Effect> {
        self.0.rescinded(&mut self.1);
        self.effects()
    }
}

fn count(unique: u64, events: u32) -> Effect {
    Effect::Send(Message::answer(unique, 0).u32(events))
}

fn wrote(unique: u64) -> Effect {
    Effect::Send(Message::answer(unique, 0).u32(4).u32(0))
}

#[test]
fn the_kernels_first_word_says_whether_it_can() {
    for (minor, flags, flags2, can) in [
        (45, wire::INIT_EXT, wire::PASSTHROUGH, true),
        (40, wire::INIT_EXT, wire::PASSTHROUGH | 1, true),
        (40, wire::INIT_EXT, 0, false),
        (39, wire::INIT_EXT, wire::PASSTHROUGH, false),
        (40, 0, wire::PASSTHROUGH, false),
    ] {
        let effects = Told::new().ask(opcode::INIT, 1, &words(&[7, minor, 0, flags, flags2]));
        let [Effect::Send(message), Effect::Ready { passthrough }] = effects[..] else {
            panic!("{effects:?}");
        };
        assert_eq!((passthrough, message.bytes().len()), (can, 16 + 64));
    }
}

#[test]
fn reads_wait_for_an_interrupt_and_give_the_count() {
    let mut told = Told::new();
    let file = told.open();
    assert_eq!(told.read(1, file), []);
    assert_eq!(told.interrupt(), [count(1, 1)]);
    // What came while nobody waited is one read.
    assert_eq!(told.interrupt(), []);
    assert_eq!(told.interrupt(), []);
    assert_eq!(told.read(2, file), [count(2, 3)]);
    assert_eq!(told.read(3, file), []);
}

#[test]
fn each_file_counts_from_when_it_was_opened() {
    let mut told = Told::new();
    let first = told.open();
    told.interrupt();
    let second = told.open();
    assert_eq!(told.read(1, first), [count(1, 1)]);
    assert_eq!(told.read(2, second), []);
    assert_eq!(told.read(3, first), []);
    assert_eq!(told.interrupt(), [count(2, 2), count(3, 2)]);
}

#[test]
fn reads_and_writes_are_of_four_bytes() {
    let mut told = Told::new();
    let file = told.open();
    told.interrupt();
    for len in [0, 1, 3, 5, 8, 4096] {
        let body = io(file, len, OFlags::empty(), &[1; 4096][..len as usize]);
        for opcode in [opcode::READ, opcode::WRITE] {
            assert_eq!(told.ask(opcode, 5, &body), [failure(5, Errno::INVAL)]);
        }
    }
    // Nor is one that says four bytes and has less.
    let short = io(file, 4, OFlags::empty(), &[1; 3]);
    assert_eq!(
        told.ask(opcode::WRITE, 5, &short),
        [failure(5, Errno::INVAL)]
    );
}

#[test]
fn writes_let_the_host_interrupt_and_signal_it_or_quieten_it() {
    let mut told = Told::new();
    let file = told.open();
    for (word, on) in [(1_i32, true), (-1, true), (0, false)] {
        let body = io(file, 4, OFlags::empty(), &word.to_ne_bytes());
        assert_eq!(
            told.ask(opcode::WRITE, 5, &body),
            [Effect::Interrupts { on }, wrote(5)]
        );
    }
}

#[test]
fn a_read_that_may_not_wait_says_so() {
    let mut told = Told::new();
    let file = told.open();
    let body = io(file, 4, OFlags::NONBLOCK, &[]);
    assert_eq!(told.ask(opcode::READ, 1, &body), [failure(1, Errno::AGAIN)]);
    told.interrupt();
    assert_eq!(told.ask(opcode::READ, 2, &body), [count(2, 1)]);
}

#[test]
fn a_read_that_is_interrupted_ends_and_no_other() {
    let mut told = Told::new();
    let file = told.open();
    told.read(10, file);
    told.read(12, file);
    let effects = told.ask(opcode::INTERRUPT, 11, &10_u64.to_ne_bytes());
    assert_eq!(effects, [failure(10, Errno::INTR)]);
    assert_eq!(told.ask(opcode::INTERRUPT, 11, &10_u64.to_ne_bytes()), []);
    assert_eq!(told.interrupt(), [count(12, 1)]);
}

#[test]
fn polls_are_told_once_of_an_interrupt() {
    let mut told = Told::new();
    let file = told.open();
    let mut body = file.to_ne_bytes().to_vec();
    body.extend(99_u64.to_ne_bytes());
    body.extend(words(&[wire::POLL_SCHEDULE_NOTIFY, 0]));
    let ready = |bits: PollFlags| {
        let bits = u32::from(bits.bits());
        [Effect::Send(Message::answer(4, 0).u32(bits).u32(0))]
    };
    let told_99 = [Effect::Send(Message::notification(1).u64(99))];
    assert_eq!(told.ask(opcode::POLL, 4, &body), ready(PollFlags::empty()));
    assert_eq!(told.interrupt(), told_99);
    assert_eq!(told.interrupt(), []);
    let input = PollFlags::IN | PollFlags::RDNORM;
    assert_eq!(told.ask(opcode::POLL, 4, &body), ready(input));
    told.read(5, file);
    assert_eq!(told.ask(opcode::POLL, 4, &body), ready(PollFlags::empty()));
    assert_eq!(told.rescind(), told_99);
    let gone = input | PollFlags::ERR | PollFlags::HUP;
    assert_eq!(told.ask(opcode::POLL, 4, &body), ready(gone));
}

#[test]
fn a_rescinded_device_gives_errors_until_all_have_closed_it() {
    let mut told = Told::new();
    let file = told.open();
    told.read(1, file);
    assert_eq!(told.rescind(), [failure(1, Errno::IO)]);
    assert_eq!(told.rescind(), []);
    assert_eq!(told.read(2, file), [failure(2, Errno::IO)]);
    let body = io(file, 4, OFlags::empty(), &1_u32.to_ne_bytes());
    assert_eq!(told.ask(opcode::WRITE, 3, &body), [failure(3, Errno::IO)]);
    assert_eq!(
        told.ask(opcode::OPEN, 4, &[0; 8]),
        [failure(4, Errno::NODEV)]
    );
    let done = Effect::Send(Message::answer(5, 0));
    assert_eq!(
        told.ask(opcode::RELEASE, 5, &io(file, 0, OFlags::empty(), &[])),
        [Effect::Disconnect, done]
    );
    assert_eq!(
        told.ask(opcode::OPEN, 6, &[0; 8]),
        [Effect::Connect { unique: 6 }]
    );
}

#[test]
fn a_channel_that_cannot_be_had_fails_the_opening_alone() {
    let mut told = Told::new();
    assert_eq!(
        told.ask(opcode::OPEN, 7, &[0; 8]),
        [Effect::Connect { unique: 7 }]
    );
    told.0.connected(7, Err(Errno::BUSY), &mut told.1);
    assert_eq!(told.effects(), [failure(7, Errno::BUSY)]);
    told.open();
}

#[test]
fn files_and_waiting_reads_have_a_limit() {
    let mut told = Told::new();
    let file = told.open();
    for _ in 1..FILES_MAX {
        told.open();
    }
    assert_eq!(
        told.ask(opcode::OPEN, 1, &[0; 8]),
        [failure(1, Errno::NFILE)]
    );
    for unique in 0..WAITING_MAX as u64 {
        assert_eq!(told.read(unique, file), []);
    }
    assert_eq!(told.read(1, file), [failure(1, Errno::NOMEM)]);
}

#[test]
fn every_prefix_of_every_request_is_answered_or_dropped() {
    for opcode in 0..64 {
        let body = io(1, 4, OFlags::empty(), &1_u32.to_ne_bytes());
        for len in 0..=body.len() {
            let mut told = Told::new();
            told.open();
            let effects = told.ask(opcode, 9, &body[..len]);
            assert!(effects.len() <= 2, "{opcode} {len}: {effects:?}");
            // And one that is not what its header says, or has no header.
            let whole = request(opcode, 9, &body);
            told.0.request(&whole[..len], &mut told.1);
            assert_eq!(told.effects(), []);
        }
    }
}

#[test]
fn attributes_are_those_of_a_file_of_its_owner() {
    let mut told = Told::new();
    let effects = told.ask(opcode::GETATTR, 1, &[0; 16]);
    let [Effect::Send(message)] = effects[..] else {
        panic!("{effects:?}");
    };
    let bytes = message.bytes();
    assert_eq!(bytes.len(), 16 + 16 + 88);
    assert_eq!(bytes[16 + 16 + 60..][..4], 0o100_600_u32.to_ne_bytes());
    let modes = told.ask(opcode::SETATTR, 2, &words(&[1, 0]));
    assert_eq!(modes, [failure(2, Errno::PERM)]);
    assert_eq!(told.ask(opcode::SETATTR, 3, &words(&[8, 0])).len(), 1);
    assert_eq!(told.ask(22, 4, &[]), [failure(4, Errno::NOSYS)]);
}

/// Linux before b15b7d2a1b09 (known bug 7): the mask is set when the channel is opened
/// and with each interrupt, and stays so until the guest writes.
#[test]
fn an_old_kernel_masks_before_it_tells() {
    let masked = Effect::Interrupts { on: false };
    let mut told = Told(Device::new(0o600, [0, 0]).masking(true), VecDeque::new());
    assert_eq!(
        told.ask(opcode::OPEN, 7, &[0; 8]),
        [Effect::Connect { unique: 7 }]
    );
    told.0.connected(7, Ok(3), &mut told.1);
    let effects = told.effects();
    assert!(matches!(effects[..], [first, Effect::Send(_)] if first == masked));
    // Who opens it as well changes nothing.
    let second = told.ask(opcode::OPEN, 8, &[0; 8]);
    assert!(matches!(second[..], [Effect::Send(_)]));
    assert!(told.read(9, 1).is_empty());
    let effects = told.interrupt();
    assert!(matches!(effects[..], [first, Effect::Send(_)] if first == masked));
}
