//! A peer's memory against both sides of a channel's rings, and its packets against
//! the parser.
//!
//! The bytes are a script. The peer owns all of the memory; it may write at once, or
//! before a load of ours. The first error of a ring has to be its last one, whatever a
//! packet says has to lie inside of it, and nobody sleeps over what is there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use linkspan_mem::{ChannelRing, Raced, Region, Window};
use linkspan_vmbus::packet::{COMPLETION_REQUESTED, Contents, Header};
use linkspan_vmbus::{Incoming, Outgoing, Packet, RingError, SendError};

use super::Outcome;
use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// The peer writes: place, 16 bits; how many bytes, 8 bits; those.
    pub(crate) const POKE: u8 = 0;
    /// The same with 4 bytes, before a load of ours: how many loads later, 8 bits; place,
    /// 16 bits; the bytes.
    pub(crate) const RACE: u8 = 1;
    /// Bytes of payload, 16 bits; kind, 8 bits.
    pub(crate) const SEND: u8 = 2;
    /// What was sent is published.
    pub(crate) const PUBLISH: u8 = 3;
    /// The receiver looks and takes packets, so many at most, 8 bits.
    pub(crate) const RECEIVE: u8 = 4;
    /// The receiver gives room back.
    pub(crate) const RELEASE: u8 = 5;
    /// The receiver is about to sleep.
    pub(crate) const ARM: u8 = 6;
    /// The sender waits for room: bytes, 16 bits.
    pub(crate) const WAIT: u8 = 7;
    /// Both sides go on in a next life.
    pub(crate) const RESUME: u8 = 8;
    /// How many there are.
    pub(crate) const COUNT: u8 = 9;
}

/// Bytes of data of a ring; its header is before it.
pub(crate) const DATA: u16 = 512;
pub(crate) const HEADER: u16 = 72;

/// A packet is at most this long here, so that some are too long.
const PACKET_MAX: usize = 400;

/// Where the peer writes, and what.
type Writes = Arc<Mutex<VecDeque<(u8, u16, [u8; 4])>>>;

struct Run {
    region: Region,
    writes: Writes,
    outgoing: Outgoing<Raced<Window>>,
    incoming: Incoming<Raced<Window>>,
    packet: Packet,
    /// The receiver's first error, and the sender's.
    retired: [Option<RingError>; 2],
    outcome: Outcome,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end.
pub fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let mut run = Run::new();
    while let Some(step) = input.u8() {
        if run.step(step % step::COUNT, &mut input).is_none() {
            break;
        }
    }
    run.outcome
}

fn join(region: &Region, writes: &Writes) -> ChannelRing<Raced<Window>> {
    let (memory, writes) = (region.clone(), Arc::clone(writes));
    let peer = Arc::new(move || {
        let mut writes = writes.lock().expect("one thread");
        let Some((left, at, bytes)) = writes.front_mut() else {
            return;
        };
        if *left > 0 {
            *left -= 1;
            return;
        }
        let place = u64::from(*at % (HEADER + DATA));
        memory
            .slice(place, 4.min(memory.len() as u64 - place))
            .expect("inside")
            .write(bytes);
        writes.pop_front();
    });
    let header = region.window(0, HEADER.into()).expect("inside");
    let data = region.window(HEADER.into(), DATA.into()).expect("inside");
    let ring = ChannelRing::new(Raced::new(header, peer.clone()), Raced::new(data, peer));
    ring.expect("a ring")
}

impl Run {
    fn new() -> Self {
        let region = Region::heap(usize::from(HEADER + DATA)).expect("memory");
        let writes = Writes::default();
        let outgoing = Outgoing::new(join(&region, &writes)).expect("a new ring");
        let incoming = Incoming::new(join(&region, &writes)).expect("a new ring");
        Self {
            region,
            writes,
            outgoing,
            incoming,
            packet: Packet::new(PACKET_MAX).expect("memory"),
            retired: [None; 2],
            outcome: Outcome::default(),
        }
    }

    /// An error stays, and is told once.
    fn checked<T>(&mut self, side: usize, result: Result<T, RingError>) -> Option<T> {
        match (result, self.retired[side]) {
            (Ok(value), before) => {
                assert_eq!(before, None, "a broken ring stays so");
                Some(value)
            }
            (Err(error), Some(before)) => {
                assert_eq!(error, before);
                None
            }
            (Err(error), None) => {
                self.retired[side] = Some(error);
                self.outcome.count(Err(error))
            }
        }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        match step {
            step::POKE => {
                let (at, len) = (input.u16()?, input.u8()?);
                let bytes = input.bytes(len.into());
                let size = self.region.len() as u64;
                let at = u64::from(at) % size;
                self.region.slice(at, size - at).ok()?.write(bytes);
            }
            step::RACE => {
                let (later, at) = (input.u8()?, input.u16()?);
                let bytes = *input.bytes(4).first_chunk()?;
                let mut writes = self.writes.lock().expect("one thread");
                writes.push_back((later, at, bytes));
            }
            step::SEND => {
                let (len, kind) = (input.u16()?, input.u8()?);
                self.send(len % 600, kind);
            }
            step::PUBLISH => {
                let published = self.outgoing.publish();
                self.checked(1, published);
            }
            step::RECEIVE => {
                let most = input.u8()?;
                self.receive(most);
            }
            step::RELEASE => self.release(),
            step::ARM => {
                self.release();
                if self.retired[0].is_none() {
                    let armed = self.incoming.arm();
                    self.checked(0, armed);
                }
            }
            step::WAIT => {
                let bytes = input.u16()?;
                let published = self.outgoing.publish();
                if self.checked(1, published).is_some() {
                    let room = self.outgoing.wait_for(bytes.into());
                    self.checked(1, room);
                }
            }
            _ => self.resume(),
        }
        Some(())
    }

    fn send(&mut self, len: u16, kind: u8) {
        let header = Header {
            kind: kind.into(),
            flags: COMPLETION_REQUESTED,
            transaction_id: len.into(),
        };
        let bytes = vec![kind; len.into()];
        match self.outgoing.send(header, &[&bytes]) {
            Err(SendError::Ring(error)) => {
                self.checked::<()>(1, Err(error));
            }
            Err(SendError::Full { need, free }) => assert!(need >= free),
            _ => {}
        }
    }

    fn receive(&mut self, most: u8) {
        let waiting = self.incoming.refresh();
        let Some(waiting) = self.checked(0, waiting) else {
            return;
        };
        assert!(waiting < DATA.into() && waiting.is_multiple_of(8));
        for _ in 0..most {
            let received = self.incoming.receive(&mut self.packet);
            if self.checked(0, received) != Some(true) {
                return;
            }
            let (descriptor, payload) = (self.packet.descriptor(), self.packet.payload());
            assert!(descriptor.len() <= PACKET_MAX);
            assert_eq!(payload.len(), descriptor.len() - descriptor.payload_at());
            let contents = self
                .packet
                .contents()
                .map(|contents| check(contents, descriptor.len()));
            self.outcome.count(contents);
        }
    }

    fn release(&mut self) {
        let released = self.incoming.release();
        self.checked(0, released);
    }

    fn resume(&mut self) {
        let (sent, received) = (self.outgoing.position(), self.incoming.position());
        let incoming = Incoming::resume(join(&self.region, &self.writes), received);
        let outgoing = Outgoing::resume(join(&self.region, &self.writes), sent);
        if let (Ok(incoming), Ok(outgoing)) = (incoming, outgoing) {
            (self.incoming, self.outgoing) = (incoming, outgoing);
            self.retired = [None; 2];
        }
    }
}

/// All that a packet names lies in it.
fn check(contents: Contents<'_>, len: usize) {
    match contents {
        Contents::TransferPages { ranges, .. } => assert!(ranges.iter().count() * 8 <= len),
        Contents::GpaDirect { ranges, .. } | Contents::EstablishGpadl { ranges, .. } => {
            let mut pages = 0;
            for range in ranges.iter() {
                assert!(range.offset < 4096);
                pages += range.pages().len();
            }
            assert_eq!(pages, ranges.page_count());
            assert!(pages * 8 <= len);
        }
        _ => {}
    }
}
