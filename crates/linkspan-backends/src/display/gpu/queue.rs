//! A queue of a GPU. Commands are done in order, one at a time: what is asked of the front
//! end holds up those behind it until it is answered.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex};

use linkspan_devices::gpu::{ANSWER_MAX, Answer, Command, Gpu, Outcome};
use linkspan_display::edid::{self, Mode};
use linkspan_engine::{ActiveRing, Budget, OpenQueueError, Progress, QueueHandler};
use linkspan_sys::EventFd;
use linkspan_vhost::gpu::Question;
use linkspan_virtio::{Chain, QueueError};

use super::super::hub::Hub;
use super::super::memory::{PictureMemory, Purse, Share};
use super::front::{Front, Waiting};
use super::{GpuDevice, lock};

/// Pieces of memory of a command: the longest has a list of 512 KiB, which a driver may
/// have in pages.
const SEGMENTS: usize = 512;

/// A command that waits for the front end.
struct Pending {
    command: Command,
    outcome: Outcome,
    waiting: Arc<Waiting>,
}

/// One queue.
pub(super) struct CommandQueue {
    gpu: Arc<Mutex<Gpu<Arc<PictureMemory>, Share>>>,
    hub: Arc<Hub>,
    purse: Arc<Purse>,
    front: Arc<Mutex<Option<Front>>>,
    chain: Chain,
    pending: Option<Pending>,
    answered: Arc<EventFd>,
}

impl CommandQueue {
    pub(super) fn new(device: &GpuDevice) -> Result<Self, OpenQueueError> {
        let answered = EventFd::new().map_err(|source| OpenQueueError::System {
            what: "no descriptor for a queue of the GPU",
            source,
        })?;
        Ok(Self {
            gpu: Arc::clone(&device.gpu),
            hub: Arc::clone(&device.hub),
            purse: Arc::clone(&device.purse),
            front: Arc::clone(&device.front),
            chain: Chain::new(SEGMENTS)?,
            pending: None,
            answered: Arc::new(answered),
        })
    }

    /// Answers what waits, if it can be now; whether nothing waits any more. Who is in a
    /// hurry gets our own answer.
    fn settle(&mut self, ring: &mut ActiveRing, hurry: bool) -> bool {
        let Some(pending) = &self.pending else {
            return true;
        };
        let answer = match pending.waiting.take() {
            Some(Some(bytes)) => Answer::Whole(bytes),
            Some(None) => self.own_answer(&pending.outcome),
            None if hurry => self.own_answer(&pending.outcome),
            None => return false,
        };
        if let Some(Pending { command, .. }) = self.pending.take() {
            self.finish(ring, &command, &answer);
        }
        true
    }

    /// Carries out the command in the chain; how many bytes it moved.
    fn carry_out(&mut self, ring: &mut ActiveRing) -> u64 {
        let Some(mut command) = Command::read(&mut self.chain, ring.memory.table()) else {
            // Nobody knows what it was, so there is nothing to answer.
            let _ = ring.queue.push(&self.chain, 0);
            return 0;
        };
        let (purse, hub) = (&self.purse, &self.hub);
        let make = |bytes| PictureMemory::new(bytes, purse);
        let charge = |bytes| purse.share(bytes);
        let mut each = |event| hub.event(event);
        let mut gpu = lock(&self.gpu);
        let guest = &ring.memory.guest;
        let (outcome, moved) = gpu.execute(&mut command, guest, make, charge, &mut each);
        drop(gpu);
        let question = match outcome {
            Outcome::Answer(answer) => {
                self.finish(ring, &command, &answer);
                return moved;
            }
            Outcome::DisplayInfo => Question::DisplayInfo,
            Outcome::Edid { head } => Question::Edid { head: head.into() },
        };
        let front = lock(&self.front);
        let asked = front
            .as_ref()
            .and_then(|front| front.ask(question, &self.answered));
        drop(front);
        match asked {
            Some(waiting) => {
                self.pending = Some(Pending {
                    command,
                    outcome,
                    waiting,
                });
            }
            None => {
                let answer = self.own_answer(&outcome);
                self.finish(ring, &command, &answer);
            }
        }
        moved
    }

    /// What is said without a front end.
    fn own_answer(&self, outcome: &Outcome) -> Answer {
        match outcome {
            Outcome::Answer(answer) => answer.clone(),
            Outcome::DisplayInfo => Answer::DisplayInfo(self.hub.modes()),
            Outcome::Edid { head } => {
                let (width, height) = self.hub.mode(*head);
                let mode = Mode::reduced(width, height, 60);
                let edid = mode.map(|mode| edid::make(&mode, "Linkspan", u32::from(*head) + 1));
                Answer::Edid(edid.map(Vec::from).unwrap_or_default())
            }
        }
    }

    fn finish(&mut self, ring: &mut ActiveRing, command: &Command, answer: &Answer) {
        if let Answer::Failed(code) = answer {
            tracing::debug!("a command of the guest failed: {code}");
        }
        let mut bytes = [0; ANSWER_MAX];
        let len = command.answer(answer, &mut bytes);
        let room = usize::try_from(self.chain.writable_len()).unwrap_or(usize::MAX);
        // Commands for the pointer mostly have no room for an answer.
        let bytes = &bytes[..len.min(room)];
        let table = ring.memory.table();
        let written = table.scatter(self.chain.writable(), 0, bytes);
        debug_assert!(written.is_ok(), "there is room");
        if ring.logs_writes() {
            let mut left = u32::try_from(bytes.len()).unwrap_or(0);
            for span in self.chain.writable() {
                let part = span.len().min(left);
                if part > 0 {
                    ring.log_write(span.part(0, part));
                }
                left -= part;
            }
        }
        // A ring that was retired meanwhile takes no answers; the worker hears why.
        let _ = ring
            .queue
            .push(&self.chain, u32::try_from(bytes.len()).unwrap_or(0));
    }
}

impl QueueHandler for CommandQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        // Only ours is there to be drained.
        let _ = self.answered.drain();
        let (mut chains, mut bytes) = (0, 0);
        loop {
            if !self.settle(ring, budget.chains == 0) {
                return Ok(Progress::Idle);
            }
            if budget.chains == 0 {
                return Ok(Progress::Idle);
            }
            if chains >= budget.chains || bytes >= budget.bytes {
                return Ok(Progress::More);
            }
            if !ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            chains += 1;
            bytes += self.carry_out(ring);
        }
    }

    fn in_flight(&self) -> usize {
        usize::from(self.pending.is_some())
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.answered.as_fd())
    }
}
