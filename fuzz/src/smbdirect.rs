//! SMB Direct of both roles, over the end in memory: what a peer says and does, and what
//! the end's own upper layer does meanwhile.
//!
//! The first byte says which end is under test and with how many credits. Then come
//! operations. Of the peer's, tokens 1 to 4 stand for what is registered.

use std::collections::BTreeSet;

use linkspan_mem::Region;
use linkspan_rdma::local::{End, Packet};
use linkspan_rdma::verbs::{
    Access, Depth, Greeting, Key, Limits, MemoryId, Remote, Slice, Verbs as _,
};
use linkspan_smbdirect::descriptor::parse;
use linkspan_smbdirect::wire::{DataTransfer, NegotiateRequest, NegotiateResponse, VERSION};
use linkspan_smbdirect::{
    Connection, Driver, MessageId, News, Options, Refusal, RegistrationId, Role, State, TransferId,
    private_data,
};
use zerocopy::IntoBytes;

use crate::input::Input;

/// What came of a script.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of messages that were read, and messages, works and registrations that are done.
    pub done: usize,
    /// What was refused, or given back.
    pub refused: usize,
    /// Why the connection ended, if that was before the script did.
    pub error: Option<String>,
}

/// Bits of the first byte.
pub const INITIATOR: u8 = 1;
/// Sizes and credits were negotiated.
pub const CONNECTED: u8 = 2;
/// One credit, each way.
pub const MEAGRE: u8 = 4;

const LIMITS: Limits = Limits {
    works: 32,
    receives: 64,
    receive_size: 512,
    gather: 4,
    read_into: 2,
    work_bytes: 8192,
    exposures: 8,
    exposure_slices: 4,
    exposure_bytes: 1 << 16,
};

const DEPTH: Depth = Depth {
    inbound: 2,
    outbound: 2,
};

/// Bytes of memory; what is sent, read into and let to the peer are in quarters of it.
const ARENA: u32 = 1 << 14;
const QUARTER: u32 = ARENA / 4;

/// The target `smbdirect`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// Runs a script.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let kind = input.u8().unwrap_or(0);
    let mut world = World::new(kind);
    world.greet();
    if kind & CONNECTED != 0 {
        world.negotiate();
    }
    while let Some(operation) = input.u8() {
        if world.step(operation, &mut input).is_none() {
            break;
        }
        world.turn();
    }
    world.finish()
}

struct World {
    role: Role,
    options: Options,
    driver: Driver,
    end: End,
    arena: MemoryId,
    now: u64,
    sent: BTreeSet<MessageId>,
    transfers: BTreeSet<TransferId>,
    registered: Vec<(RegistrationId, Remote)>,
    /// Bytes that the peer was asked to read.
    wanted: Vec<u32>,
    ended: bool,
    outcome: Outcome,
}

impl World {
    fn new(kind: u8) -> Self {
        let role = if kind & INITIATOR == 0 {
            Role::Listener
        } else {
            Role::Initiator
        };
        let credits = if kind & MEAGRE == 0 { 6 } else { 1 };
        let options = Options {
            receive_credit_max: credits,
            send_credit_target: credits,
            max_send_size: 256,
            max_receive_size: 256,
            max_fragmented_receive_size: 131_072,
            send_depth: 8,
            transfer_depth: 4,
            queue: 16,
            registrations: 4,
            ..Options::of(role)
        };
        let mut end = match role {
            Role::Initiator => End::initiator(LIMITS, DEPTH, [7; 32], &private_data(&options)),
            Role::Listener => End::responder(LIMITS, DEPTH, [7; 32]),
        };
        let mut add = |len: u32| {
            let region = Region::heap(len as usize).expect("little");
            end.add_memory(region).expect("few")
        };
        let len = Driver::header_bytes(&options);
        let headers = Slice {
            memory: add(len),
            len,
            offset: 0,
        };
        let arena = add(ARENA);
        let core = Connection::new(role, &options, &LIMITS, 0).expect("good options");
        let mut driver = Driver::new(core, headers);
        driver.watch(true);
        Self {
            role,
            options,
            driver,
            end,
            arena,
            now: 0,
            sent: BTreeSet::new(),
            transfers: BTreeSet::new(),
            registered: Vec::new(),
            wanted: Vec::new(),
            ended: false,
            outcome: Outcome::default(),
        }
    }

    /// The transport is connected.
    fn greet(&mut self) {
        self.turn();
        let greeting = Greeting {
            private_data: Vec::new(),
            depth: DEPTH,
        };
        self.end.deliver(match self.role {
            Role::Initiator => Packet::Accept(greeting),
            Role::Listener => Packet::Request(greeting),
        });
        self.turn();
    }

    fn negotiate(&mut self) {
        let request = NegotiateRequest {
            min_version: VERSION.into(),
            max_version: VERSION.into(),
            reserved: 0.into(),
            credits_requested: 6.into(),
            preferred_send_size: 256.into(),
            max_receive_size: 256.into(),
            max_fragmented_size: 131_072.into(),
        };
        let response = NegotiateResponse {
            negotiated_version: VERSION.into(),
            credits_requested: 6.into(),
            credits_granted: 6.into(),
            max_read_write_size: (1 << 20).into(),
            preferred_send_size: 256.into(),
            max_receive_size: 256.into(),
            max_fragmented_size: 131_072.into(),
            ..NegotiateResponse::refusal(0)
        };
        match self.role {
            Role::Initiator => self.say(response.as_bytes(), None),
            Role::Listener => self.say(request.as_bytes(), None),
        }
        self.turn();
    }

    fn slice(&self, quarter: u32, offset: u32, len: u32) -> Slice {
        let whole = Slice {
            memory: self.arena,
            len: QUARTER,
            offset: u64::from(quarter * QUARTER),
        };
        whole.part(offset, len)
    }

    fn say(&mut self, bytes: &[u8], invalidate: Option<Key>) {
        self.end.deliver(Packet::Send {
            bytes: bytes.to_vec(),
            invalidate,
            solicited: false,
        });
    }

    /// What a token of the script stands for.
    fn remote(&self, token: u8) -> Remote {
        let one = usize::from(token).checked_sub(1);
        let known = one.and_then(|at| self.registered.get(at));
        known.map_or(
            Remote {
                key: Key(token.into()),
                address: 0,
            },
            |(_, remote)| *remote,
        )
    }

    fn step(&mut self, operation: u8, input: &mut Input<'_>) -> Option<()> {
        match operation % 16 {
            0 => {
                let len = input.u8()?.into();
                self.say(input.bytes(len), None);
            }
            1 => {
                let header = DataTransfer {
                    credits_requested: u16::from(input.u8()?).into(),
                    credits_granted: u16::from(input.u8()?).into(),
                    flags: u16::from(input.u8()?).into(),
                    reserved: 0.into(),
                    remaining_data_length: u32::from(input.u16()?).into(),
                    data_offset: u32::from(input.u8()?).into(),
                    data_length: u32::from(input.u8()?).into(),
                };
                let token = input.u8()?;
                let mut bytes = header.as_bytes().to_vec();
                let end = header.data_offset.get() + header.data_length.get();
                bytes.resize(20.max(end as usize), 0xAB);
                let key = (token > 0).then(|| self.remote(token).key);
                self.say(&bytes, key);
            }
            2 => {
                let [len, parts] = [u32::from(input.u16()?), u32::from(input.u8()?)];
                let size = len / (parts + 1) + 1;
                let slices: Vec<_> = (0..=parts)
                    .map(|at| self.slice(0, at * size, size))
                    .collect();
                let token = (parts == 3).then_some(Key(9));
                match self.driver.core_mut().send(&slices, token) {
                    Ok(id) => assert!(self.sent.insert(id)),
                    Err(_) => self.outcome.refused += 1,
                }
            }
            kind @ (3 | 4) => {
                let [len, offset] = [u32::from(input.u16()?), u32::from(input.u16()?)];
                let count = usize::from(input.u8()?);
                let described = parse(input.bytes(count));
                let local = [
                    self.slice(1, 0, len / 2),
                    self.slice(1, len / 2, len - len / 2),
                ];
                let core = self.driver.core_mut();
                let started = described.map(|remote| match kind {
                    3 => core.write(&local, &remote, offset.into()),
                    _ => core.read(&local, &remote, offset.into()),
                });
                match started {
                    Ok(Ok(id)) => assert!(self.transfers.insert(id)),
                    _ => self.outcome.refused += 1,
                }
            }
            5 => {
                let len = u32::from(input.u8()?);
                let both = Access {
                    read: len & 1 == 0,
                    write: len & 2 == 0,
                };
                let list = [self.slice(2, 0, len), self.slice(2, 1000, len)];
                match self.driver.register(&mut self.end, &list, both) {
                    Ok((id, place)) => self.registered.push((
                        id,
                        Remote {
                            key: Key(place.token),
                            address: place.offset,
                        },
                    )),
                    Err(_) => self.outcome.refused += 1,
                }
            }
            6 => {
                let at = usize::from(input.u8()?);
                if let Some((id, _)) = self.registered.get(at).copied()
                    && self.driver.core_mut().deregister(id).is_err()
                {
                    self.outcome.refused += 1;
                }
            }
            7 => self.hear(),
            8 => {
                let len = input.u8()?;
                let right = self.wanted.pop().filter(|_| len == 255);
                let len = right.unwrap_or(len.into());
                self.end.deliver(Packet::Response(vec![0xCD; len as usize]));
            }
            9 => {
                let mut bytes = vec![0; usize::from(input.u8()?) * 16];
                let read = self.driver.read(self.end.memories(), &mut bytes);
                self.outcome.done += read;
            }
            10 => {
                self.now += u64::from(input.u8()?) * 1000;
                self.driver.core_mut().handle_timeout(self.now);
            }
            11 => self.driver.core_mut().disconnect(),
            12 => self.end.lose(),
            13 => {
                let (token, offset, len) = (input.u8()?, input.u8()?, input.u8()?);
                let mut place = self.remote(token);
                place.address = place.address.wrapping_add(offset.into());
                self.end.deliver(if token & 0x80 == 0 {
                    Packet::Write {
                        bytes: vec![0xEF; len.into()],
                        to: place,
                    }
                } else {
                    let from = Remote {
                        key: self.remote(token & 0x7F).key,
                        ..place
                    };
                    Packet::Read {
                        from,
                        len: len.into(),
                    }
                });
            }
            14 => self.restore(),
            _ => {
                let due = self.driver.core().next_timeout();
                self.now = due.unwrap_or(self.now).max(self.now);
                self.driver.core_mut().handle_timeout(self.now);
            }
        }
        Some(())
    }

    /// What the end says; the peer keeps in mind what it is to answer.
    fn hear(&mut self) {
        while let Some(packet) = self.end.take() {
            match packet {
                Packet::Read { len, .. } => self.wanted.push(len),
                Packet::Send { bytes, .. } => assert!(bytes.len() <= 256, "too much for the peer"),
                _ => {}
            }
        }
    }

    fn turn(&mut self) {
        self.carry_out();
        // What is carried out may have an end at once.
        while let Some(event) = self.end.poll() {
            assert!(!self.ended, "{event:?} after the end");
            self.driver.happened(self.now, self.end.memories(), event);
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        while let Some(news) = self.driver.poll(self.now, &mut self.end) {
            assert!(!self.ended, "{news:?} after the end");
            let result = match news {
                News::Connected | News::Received => continue,
                News::Sent { message, result } => {
                    assert!(self.sent.remove(&message), "{message:?} twice");
                    result
                }
                News::Transferred {
                    transfer, result, ..
                } => {
                    assert!(self.transfers.remove(&transfer), "{transfer:?} twice");
                    result
                }
                News::Deregistered { id, result } => {
                    let before = self.registered.len();
                    if !matches!(result, Err(Refusal::Post(_))) {
                        self.registered.retain(|(name, _)| *name != id);
                        assert_eq!(self.registered.len(), before - 1, "{id:?} twice");
                    }
                    result
                }
                News::Ended(error) => {
                    self.ended = true;
                    self.outcome.error = Some(error.to_string());
                    continue;
                }
            };
            self.outcome.done += usize::from(result.is_ok());
            self.outcome.refused += usize::from(result.is_err());
        }
        // Whatever goes by can be put into words.
        for passing in self.driver.passing() {
            assert!(!passing.text().is_empty());
        }
    }

    /// Saved and restored, if it is quiet.
    fn restore(&mut self) {
        let Ok(bytes) = self.driver.core().snapshot(self.now) else {
            return;
        };
        let core = Connection::restore(&self.options, &LIMITS, self.now, &bytes);
        let core = core.expect("it was saved");
        assert_eq!(core.snapshot(self.now).as_ref(), Ok(&bytes));
        self.driver = Driver::new(core, self.driver.headers());
        self.driver.watch(true);
        self.outcome.done += 1;
    }

    fn finish(mut self) -> Outcome {
        let status = self.driver.core().status();
        let posted = status.receives_available + status.receives_granted;
        if status.state == State::Connected {
            assert_eq!(self.end.receives(), u32::from(posted), "{status:?}");
            assert_eq!(self.end.lent(), status.held_buffers, "{status:?}");
        }
        let error = self.outcome.error.take();
        self.end.lose();
        self.turn();
        assert!(self.ended, "it does not end");
        let left = [self.sent.len(), self.transfers.len(), self.registered.len()];
        assert_eq!(left, [0; 3], "somebody waits for ever");
        while let Some(message) = self.driver.core().message() {
            self.driver.core_mut().consume(message.len);
        }
        self.turn();
        assert_eq!(self.end.lent(), 0, "a buffer is lost");
        assert_eq!(self.driver.core().next_timeout(), None);
        self.outcome.error = error;
        self.outcome
    }
}
