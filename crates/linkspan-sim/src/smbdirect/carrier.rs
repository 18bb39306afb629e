//! What carries both ends in tests: the pair in memory, and iWARP over any stream.

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::Rng;
use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::iwarp::{FrameSize, Ready};
use linkspan_rdma::local::{End, Packet};
use linkspan_rdma::verbs::{Limits, MemoryId, Verbs};
use linkspan_smbdirect::{Options, Role};

use super::ends::local;
use super::luck::Luck;
use super::plan::Fault;
use super::stream::{Bytes, Stream, Way};

/// One end of what carries a connection, and what whoever holds both sees of it.
pub(crate) trait Carrier: Verbs + Sized {
    /// The name of the link over it.
    const NAME: &'static str;

    /// What one end says to the other.
    type Packet: Clone + Debug;
    /// What is decided about a connection, and how large the pieces are in which it goes.
    type Way: Clone + Debug;

    /// What a seed decides.
    fn way(rng: &mut Rng) -> Self::Way;

    fn make(role: Role, options: &Options, limits: Limits, way: &Self::Way, now: u64) -> Self;

    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected>;

    /// What it says next.
    fn take(&mut self, rng: &mut Rng, way: &Self::Way) -> Option<Self::Packet>;

    /// Takes what the other said, or a part of it; the rest comes back.
    fn deliver(
        &mut self,
        packet: Self::Packet,
        rng: &mut Rng,
        way: &Self::Way,
    ) -> Option<Self::Packet>;

    /// Puts what was said behind the rest, with the faults of the model.
    fn carry(packet: Self::Packet, to: &mut VecDeque<Self::Packet>, luck: &mut Luck);

    /// The connection is gone.
    fn lose(&mut self);

    /// Buffers that were lent and not given back.
    fn lent(&self) -> usize;

    /// Receives that are posted and not taken.
    fn receives(&self) -> u32;

    /// Says what time it is, and when that is due.
    fn tick(&mut self, _now: u64) {}

    fn next_timeout(&self) -> Option<u64> {
        None
    }

    /// Saves it and restores it, if it can be; says whether.
    fn restore(&mut self, _now: u64) -> bool {
        false
    }
}

impl Carrier for End {
    const NAME: &'static str = "smbdirect";

    type Packet = Packet;
    type Way = ();

    fn way(_: &mut Rng) -> Self::Way {}

    fn make(role: Role, options: &Options, limits: Limits, (): &(), _: u64) -> Self {
        local(role, options, limits)
    }

    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        Self::add_memory(self, region)
    }

    fn take(&mut self, _: &mut Rng, (): &()) -> Option<Packet> {
        Self::take(self)
    }

    fn deliver(&mut self, packet: Packet, _: &mut Rng, (): &()) -> Option<Packet> {
        Self::deliver(self, packet);
        None
    }

    fn carry(mut packet: Packet, to: &mut VecDeque<Packet>, luck: &mut Luck) {
        if let Packet::Send {
            bytes, invalidate, ..
        } = &mut packet
        {
            if luck.strikes(Fault::LosesMessage) {
                return;
            }
            if bytes.len() > 24 && luck.strikes(Fault::ChangesByte) {
                bytes[24] ^= 1;
            }
            if bytes.len() >= 20 && bytes[0..2] != [0, 1] && luck.strikes(Fault::LosesGrant) {
                bytes[2..4].fill(0);
            }
            if luck.strikes(Fault::ForgetsToken) {
                *invalidate = None;
            }
            if luck.strikes(Fault::RepeatsMessage) {
                to.push_back(packet.clone());
            }
            if luck.fault == Fault::Overtakes
                && let Some(written) = to.pop_back_if(|it| matches!(it, Packet::Write { .. }))
            {
                to.push_back(packet);
                packet = written;
            }
        }
        to.push_back(packet);
    }

    fn lose(&mut self) {
        Self::lose(self);
    }

    fn lent(&self) -> usize {
        Self::lent(self)
    }

    fn receives(&self) -> u32 {
        Self::receives(self)
    }
}

impl Carrier for Stream {
    const NAME: &'static str = "iwarp";

    type Packet = Bytes;
    type Way = (Way, [usize; 2]);

    fn way(rng: &mut Rng) -> Self::Way {
        let ready = [false; 3].map(|_| rng.percent(50));
        let [write, read, send] = ready;
        let revision = 1 + u8::from(rng.percent(75));
        let way = Way {
            frame: match rng.below(4) {
                0 => FrameSize::Max,
                1 => FrameSize::Segment(1448),
                _ => FrameSize::Segment(rng.short(128, 2000)),
            },
            crc: rng.percent(50),
            revision,
            ready: (revision == 2 && rng.percent(30)).then_some(Ready { write, read, send }),
            nudges: if rng.percent(50) { 3 } else { 0 },
        };
        // Of a few bytes, of some, and as the system does it.
        let grain = |rng: &mut Rng| match rng.below(8) {
            0 => 32 + rng.index(32),
            1..4 => 64 + rng.index(4096),
            _ => 1 << 18,
        };
        (way, [grain(rng), grain(rng)])
    }

    fn make(role: Role, options: &Options, limits: Limits, way: &Self::Way, now: u64) -> Self {
        Self::new(role, options, limits, &way.0, now)
    }

    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        Self::add_memory(self, region)
    }

    fn take(&mut self, rng: &mut Rng, (_, [grain, _]): &Self::Way) -> Option<Bytes> {
        self.write(1 + rng.index(*grain))
    }

    fn deliver(
        &mut self,
        bytes: Bytes,
        rng: &mut Rng,
        (_, [_, grain]): &Self::Way,
    ) -> Option<Bytes> {
        self.read(bytes, 1 + rng.index(*grain))
    }

    fn carry(mut bytes: Bytes, to: &mut VecDeque<Bytes>, luck: &mut Luck) {
        if let Bytes::Some(bytes) = &mut bytes {
            if luck.strikes(Fault::LosesMessage) {
                return;
            }
            if luck.strikes(Fault::ChangesByte) {
                let at = luck.rng.index(bytes.len());
                bytes[at] ^= 1;
            }
            if luck.strikes(Fault::RepeatsMessage) {
                to.push_back(Bytes::Some(bytes.clone()));
            }
        }
        to.push_back(bytes);
    }

    fn lose(&mut self) {
        Self::lose(self);
    }

    fn lent(&self) -> usize {
        Self::lent(self)
    }

    fn receives(&self) -> u32 {
        Self::receives(self)
    }

    fn tick(&mut self, now: u64) {
        Self::tick(self, now);
    }

    fn next_timeout(&self) -> Option<u64> {
        Self::next_timeout(self)
    }

    fn restore(&mut self, now: u64) -> bool {
        Self::restore(self, now)
    }
}
