//! The transmit queues of a guest: its frames go into the fabric, a batch at a time.

use std::ops::Range;
use std::sync::Arc;

use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::header::{HeaderLayout, Offload};
use linkspan_devices::net::pcapng::Way as Capture;
use linkspan_devices::net::{Frame, FrameHead, Transmitted, take_plain, take_transmit};
use linkspan_engine::{ActiveRing, Budget, Neighbours, Progress, QueueHandler, RateLimit};
use linkspan_mem::RegionTable;
use linkspan_mem::fault::{self, Injected};
use linkspan_virtio::{Chain, Features, QueueError};

use super::control::Terms;
use super::counters::{Books, DropCause, OfPair};
use super::fabric::{Fabric, Mode, Port};
use super::guest::SEGMENTS;
use super::handing::HELD_LOOK;
use super::lane::{Came, FRAME_COST, Lane, Way};
use super::task::{give_lane_back, take_lane};

/// A transmit queue: the guest's frames go into the fabric.
pub(super) struct Transmit {
    fabric: Arc<Fabric>,
    port: u16,
    pair: u16,
    counts: Arc<OfPair>,
    /// Frames of this pass.
    sent: u64,
    layout: HeaderLayout,
    offloads: Offloads,
    /// As many as are taken at a time.
    chains: Vec<Chain>,
    /// What was taken out of each.
    frames: Vec<Taken>,
}

/// A frame that was taken out of a chain.
#[derive(Default)]
struct Taken {
    head: FrameHead,
    len: u64,
    checked: Checked,
}

/// What its header says. Little is written for most frames.
#[derive(Default)]
enum Checked {
    /// Nothing is left to be done.
    #[default]
    Plain,
    Offload(Offload),
    /// What cannot be.
    Wrong,
}

impl Checked {
    #[inline]
    fn new(taken: &Transmitted, offloads: Offloads) -> Self {
        match taken.header.check(taken.len, offloads) {
            Ok(Offload::NONE) => Self::Plain,
            Ok(offload) => Self::Offload(offload),
            Err(_) => Self::Wrong,
        }
    }
}

/// Frames that are taken out of a queue at a time. Each step is done for all of them
/// before the next one: their memory is on its way to the processor before the first is
/// looked at, and nothing is read right after it was written.
const AHEAD: usize = 32;

/// The same of frames that go to another driver: it begins with the first while the
/// others are still under way. With 8 or 32 frames went round more slowly.
const AHEAD_PASSED_ON: usize = 16;

fn some<T>(make: impl Fn() -> Result<T, Injected>) -> Result<Vec<T>, Injected> {
    let mut all = fault::try_with_capacity(AHEAD)?;
    for _ in 0..AHEAD {
        all.push(make()?);
    }
    Ok(all)
}

impl Transmit {
    /// The queue of this pair of a port, for a driver with these features.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(super) fn new(
        (fabric, port, pair): (Arc<Fabric>, u16, u16),
        features: Features,
        counts: Arc<OfPair>,
    ) -> Result<Self, Injected> {
        Ok(Self {
            fabric,
            port,
            pair,
            counts,
            sent: 0,
            layout: HeaderLayout::of(features),
            offloads: Offloads::to_device(features),
            chains: some(|| Chain::new(SEGMENTS))?,
            frames: some(|| Ok(Taken::default()))?,
        })
    }

    fn pass(
        &mut self,
        ring: &mut ActiveRing,
        budget: Budget,
        lane: &mut Lane,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, QueueError> {
        let mut left = budget.chains as usize;
        let passes_on = self.fabric.mode.passes_on();
        let most = if passes_on { AHEAD_PASSED_ON } else { AHEAD };
        while left > 0 {
            let want = left.min(most);
            let taken = self.take(ring, want)?;
            let (read, broken) = self.read(ring, taken);
            let (sent, stop) = if passes_on {
                self.send(ring, read, budget, lane, neighbours)
            } else {
                self.consume(ring, read, budget, lane)
            };
            let done = self.chains[..sent].iter().map(|chain| (chain, 0));
            ring.queue.push_many(done)?;
            self.sent += sent as u64;
            if let Some(stop) = stop {
                for chain in self.chains[sent..taken].iter().rev() {
                    ring.queue.put_back(chain)?;
                }
                return Ok(stop);
            }
            if let Some(error) = broken {
                return Err(ring.queue.retire(error));
            }
            if taken < want {
                return Ok(Progress::Idle);
            }
            left -= taken;
            if passes_on {
                // Whoever gets these begins with them while the next are taken.
                return Ok(Progress::More);
            }
        }
        Ok(Progress::More)
    }

    /// Takes chains, as many as there are, but no more than `most`, for which there is room.
    #[inline]
    fn take(&mut self, ring: &mut ActiveRing, most: usize) -> Result<usize, QueueError> {
        let space = &ring.memory.guest;
        ring.queue.prefetch(u16::try_from(most).unwrap_or(u16::MAX));
        let most = most.min(self.chains.len());
        let taken = ring.queue.pop_many(space, &mut self.chains[..most])?;
        for chain in &self.chains[..taken] {
            chain.prefetch(space.table());
        }
        Ok(taken)
    }

    /// Copies the headers and first bytes of frames out of the chains that were taken; how
    /// many, and what is wrong with the next.
    #[inline]
    fn read(&mut self, ring: &ActiveRing, taken: usize) -> (usize, Option<QueueError>) {
        let table = ring.memory.table();
        let chains = self.chains[..taken].iter_mut();
        for (at, (chain, frame)) in chains.zip(&mut self.frames).enumerate() {
            if let Some(len) = take_plain(chain, table, self.layout, &mut frame.head) {
                (frame.len, frame.checked) = (len.into(), Checked::Plain);
                continue;
            }
            match take_transmit(chain, table, self.layout, &mut frame.head) {
                Ok(taken) => {
                    frame.len = taken.len;
                    frame.checked = Checked::new(&taken, self.offloads);
                }
                Err(error) => return (at, Some(error)),
            }
        }
        (taken, None)
    }

    /// Has the first `count` frames that were read end here, as the mode of the fabric has
    /// it; how many before something holds them up.
    #[inline(never)]
    fn consume(
        &self,
        ring: &ActiveRing,
        count: usize,
        budget: Budget,
        lane: &mut Lane,
    ) -> (usize, Option<Progress>) {
        let (table, fabric) = (ring.memory.table(), &*self.fabric);
        let port = &fabric.ports[usize::from(self.port)];
        let limit = port.limit.as_ref();
        let mut entry = Entry::new(lane.books(fabric, self.port), port);
        for at in 0..count {
            if let Some(stop) = holds(limit, lane, (budget, 0)) {
                return (at, Some(stop));
            }
            let (taken, frame) = (&self.frames[at], || self.came(table, at).frame);
            if entry.admits(taken, lane, frame) {
                lane.consume(fabric, self.port, (taken.head.bytes(), taken.len), frame);
            }
        }
        (count, None)
    }

    /// Passes on the first `count` frames that were read; how many before something
    /// holds them up. Those in a row that go to the same queue go there together.
    #[inline(never)]
    fn send(
        &mut self,
        ring: &ActiveRing,
        count: usize,
        budget: Budget,
        lane: &mut Lane,
        neighbours: &mut Neighbours<'_>,
    ) -> (usize, Option<Progress>) {
        let table = ring.memory.table();
        let fabric = &*self.fabric;
        let port = &fabric.ports[usize::from(self.port)];
        let limit = port.limit.as_ref();
        let mut entry = Entry::new(lane.books(fabric, self.port), port);
        let mut run = Run::default();
        let (mut sent, mut stop) = (count, None);
        for at in 0..count {
            stop = holds(limit, lane, (budget, run.cost));
            if stop.is_some() {
                sent = at;
                break;
            }
            let taken = &self.frames[at];
            if !entry.admits(taken, lane, || self.came(table, at).frame) {
                continue;
            }
            let len = taken.len;
            let way = lane.way_of(fabric, self.port, (taken.head.bytes(), len));
            if fabric.mode == Mode::Echo {
                self.frames[at].head.swap_addresses();
            }
            match way {
                Way::Queue(to, pair) => {
                    if !run.takes(at, (to, pair)) {
                        run.end(self, table, lane, neighbours);
                    }
                    run.add(at, (to, pair), FRAME_COST + len);
                    if matches!(
                        self.frames[at].checked,
                        Checked::Offload(Offload::Segments(_))
                    ) {
                        // What it costs to cut it is known afterwards.
                        run.end(self, table, lane, neighbours);
                    }
                }
                Way::Nowhere => {}
                way => {
                    run.end(self, table, lane, neighbours);
                    lane.go(fabric, way, &self.came(table, at), neighbours);
                }
            }
        }
        run.end(self, table, lane, neighbours);
        (sent, stop)
    }

    /// The frame that was taken out of a chain, as others see it.
    #[inline]
    fn came<'a>(&'a self, table: &'a RegionTable, at: usize) -> Came<'a> {
        let Taken { head, checked, .. } = &self.frames[at];
        let offload = match checked {
            Checked::Offload(offload) => offload,
            _ => &Offload::NONE,
        };
        Came {
            port: self.port,
            offload,
            frame: Frame::transmitted(head, &self.chains[at], table),
        }
    }
}

/// What every frame of a batch goes through first. It is entered in the books at the end.
struct Entry<'f> {
    books: Books<'f>,
    limit: Option<&'f RateLimit>,
    shut: bool,
    frames: u64,
    bytes: u64,
}

impl<'f> Entry<'f> {
    fn new(books: Books<'f>, port: &'f Port) -> Self {
        Self {
            books,
            limit: port.limit.as_ref(),
            shut: port.is_shut(),
            frames: 0,
            bytes: 0,
        }
    }

    /// Whether a frame goes on. One with a header that cannot be does not.
    #[inline(always)]
    fn admits<'a>(
        &mut self,
        taken: &Taken,
        lane: &Lane,
        frame: impl FnOnce() -> Frame<'a>,
    ) -> bool {
        if let Some(limit) = self.limit {
            limit.charge(taken.len, lane.now());
        }
        if matches!(taken.checked, Checked::Wrong) {
            self.books.dropped(DropCause::Header);
            return false;
        }
        if self.shut {
            self.books.dropped(DropCause::Down);
            return false;
        }
        if self.books.capture.is_some() {
            self.books.capture(Capture::In, &frame());
        }
        self.frames += 1;
        self.bytes += taken.len;
        true
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.books.came_all(self.frames, self.bytes);
    }
}

/// Why no further frame is passed on in this pass, if so. `waiting` is what those will
/// cost whose way was decided.
#[inline(always)]
fn holds(
    limit: Option<&RateLimit>,
    lane: &Lane,
    (budget, waiting): (Budget, u64),
) -> Option<Progress> {
    if lane.cost + waiting >= budget.bytes {
        return Some(Progress::More);
    }
    limit?.admit(lane.now()).err().map(Progress::Until)
}

/// Frames in a row that go to the same queue.
#[derive(Default)]
struct Run {
    /// Port and pair.
    target: Option<(u16, u16)>,
    frames: Range<usize>,
    cost: u64,
}

impl Run {
    /// Whether the frame at `at` goes on with this one.
    #[inline]
    fn takes(&self, at: usize, target: (u16, u16)) -> bool {
        self.frames.end == at && self.target == Some(target)
    }

    #[inline]
    fn add(&mut self, at: usize, target: (u16, u16), cost: u64) {
        if self.target.is_none() {
            (self.target, self.frames) = (Some(target), at..at);
        }
        self.frames.end = at + 1;
        self.cost += cost;
    }

    /// They go there.
    #[inline]
    fn end(
        &mut self,
        transmit: &Transmit,
        table: &RegionTable,
        lane: &mut Lane,
        neighbours: &mut Neighbours<'_>,
    ) {
        let Self { target, frames, .. } = std::mem::take(self);
        let Some(target) = target else {
            return;
        };
        let frames = frames.map(|at| transmit.came(table, at));
        let terms = Terms::default();
        lane.fill(&transmit.fabric, target, &terms, frames, neighbours);
    }
}

impl QueueHandler for Transmit {
    fn run(&mut self, _: &mut ActiveRing, _: Budget) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }

    fn run_among(
        &mut self,
        ring: &mut ActiveRing,
        budget: Budget,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, QueueError> {
        if budget.chains == 0 {
            return Ok(Progress::Idle);
        }
        if self.fabric.is_held() {
            return Ok(Progress::Until(neighbours.now() + HELD_LOOK));
        }
        let Some(mut lane) = take_lane(&self.fabric, neighbours) else {
            // The fabric rests, and so does the queue.
            return Ok(Progress::Idle);
        };
        lane.pair = self.pair;
        let done = self.pass(ring, budget, &mut lane, neighbours);
        give_lane_back(lane, neighbours);
        self.counts.sent.add(std::mem::take(&mut self.sent));
        done
    }
}
