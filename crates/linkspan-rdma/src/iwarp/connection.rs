//! One end of a connection: its life, and what its driver and its upper layer see of it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::batch::Batch;
use super::error::refused;
use super::incoming::Incoming;
use super::mpa::{Frame, PRIVATE_DATA_MAX};
use super::options::{OptionError, Options};
use super::outgoing::{Outgoing, Read, Response};
use super::tags::{ENTROPY, Tags};
use super::{Terminate, WireError};
use crate::memory::Memories;
use crate::verbs::{
    Access, Completion, Depth, Event, Failure, Limits, Operation, Post, PostError, Remote, Slice,
    Work,
};

/// What a connection wants from its stream next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Bytes for [`Connection::receive`]: so many are missing; more are welcome.
    Bytes(usize),
    /// The next `len` bytes go to the places that [`Connection::places`] tells, and
    /// then [`Connection::placed`] is said; in one piece or several.
    Place {
        /// Bytes missing.
        len: u32,
        /// The checksum that they extend, if there is one.
        crc: Option<u32>,
    },
    /// A buffer for a message, of so many bytes: [`Connection::give`]. Until there is
    /// one, nothing is read.
    Buffer {
        /// Its size at least.
        size: u32,
    },
    /// Nothing any more.
    Nothing,
}

/// What a driver does about the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is no end in sight.
    Open,
    /// Nothing will be written any more: end that half of the stream, and go on reading.
    ShutDown,
    /// Close the stream, drop the batch.
    Over,
}

/// How far it is.
#[derive(Debug)]
pub(super) enum Phase {
    /// We asked, and await the reply.
    Asking { deadline: Duration },
    /// We await a request.
    Listening { deadline: Duration },
    /// A request is there, and nobody has decided.
    Requested(Frame),
    /// Frames go to and fro.
    Running,
    /// The last frames go out.
    Closing {
        failure: Failure,
        terminate: Option<Terminate>,
        deadline: Duration,
    },
    /// All is told; the peer may still have something to say that nobody hears.
    Draining { deadline: Duration },
    /// Nothing is left.
    Over,
}

/// One end of a connection.
///
/// Whoever drives it says what time it is ([`tick`](Self::tick)), reads the stream as
/// [`wanted`](Self::wanted) tells, and writes what [`fill`](Self::fill) puts into a
/// batch, after each of these and after work was posted. Time counts from any begin.
#[derive(Debug)]
pub struct Connection {
    pub(super) options: Options,
    pub(super) now: Duration,
    pub(super) phase: Phase,
    /// Whether checksums are sent and checked.
    pub(super) crc: bool,
    pub(super) depth: Depth,
    pub(super) events: VecDeque<Event>,
    pub(super) tags: Tags,
    /// Receives that are posted and not taken.
    pub(super) receives: u32,
    pub(super) rx: Incoming,
    pub(super) tx: Outgoing,
    /// Our reads that the peer has not answered, and where their bytes go.
    pub(super) reads: VecDeque<Read>,
    pub(super) sinks: VecDeque<Slice>,
    /// Reads of the peer that we have not answered.
    pub(super) responses: VecDeque<Response>,
    /// A buffer that a message did not fill before the end.
    pub(super) abandoned: Option<Slice>,
}

impl Connection {
    /// The end that connects, on a stream that is connected.
    ///
    /// # Errors
    /// Options that cannot be, too much private data among them.
    pub fn initiator(
        options: Options,
        entropy: [u8; ENTROPY],
        private_data: &[u8],
        now: Duration,
    ) -> Result<Self, OptionError> {
        let got = private_data.len() as u64;
        if private_data.len() > PRIVATE_DATA_MAX {
            return Err(OptionError {
                what: "size of private data",
                got,
                min: 0,
                max: PRIVATE_DATA_MAX as u64,
            });
        }
        let deadline = now + options.reply_within;
        let mut connection = Self::new(options, entropy, now, Phase::Asking { deadline })?;
        connection.ask(private_data);
        Ok(connection)
    }

    /// The end that was connected to.
    ///
    /// # Errors
    /// Options that cannot be.
    pub fn responder(
        options: Options,
        entropy: [u8; ENTROPY],
        now: Duration,
    ) -> Result<Self, OptionError> {
        let deadline = now + options.request_within;
        Self::new(options, entropy, now, Phase::Listening { deadline })
    }

    fn new(
        options: Options,
        entropy: [u8; ENTROPY],
        now: Duration,
        phase: Phase,
    ) -> Result<Self, OptionError> {
        let tags = Tags::new(options.limits.exposures, entropy);
        Self::with_tags(options, tags, now, phase)
    }

    /// One that goes on where another was.
    pub(super) fn running(
        options: Options,
        now: Duration,
        tags: Tags,
    ) -> Result<Self, OptionError> {
        Self::with_tags(options, tags, now, Phase::Running)
    }

    fn with_tags(
        options: Options,
        tags: Tags,
        now: Duration,
        phase: Phase,
    ) -> Result<Self, OptionError> {
        options.check()?;
        Ok(Self {
            tags,
            depth: options.depth,
            crc: options.crc,
            options,
            now,
            phase,
            events: VecDeque::new(),
            receives: 0,
            rx: Incoming::new(),
            tx: Outgoing::new(),
            reads: VecDeque::new(),
            sinks: VecDeque::new(),
            responses: VecDeque::new(),
            abandoned: None,
        })
    }

    /// What is possible.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.options.limits
    }

    /// The reads at a time that were agreed upon.
    #[must_use]
    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// Whether checksums are sent and checked.
    #[must_use]
    pub fn has_crc(&self) -> bool {
        self.crc
    }

    /// What has happened.
    #[inline]
    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Connection::poll`] has something to tell.
    #[must_use]
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// How its driver goes on.
    #[must_use]
    #[inline]
    pub fn life(&self) -> Life {
        match self.phase {
            Phase::Draining { .. } => Life::ShutDown,
            Phase::Over => Life::Over,
            _ => Life::Open,
        }
    }

    /// A buffer that was given for a message that will not be complete.
    pub fn take_abandoned(&mut self) -> Option<Slice> {
        self.abandoned.take()
    }

    /// Exposures, works, and messages to be received, at this moment.
    #[must_use]
    pub fn posted(&self) -> (usize, usize, u32) {
        (self.tags.live(), self.works(), self.receives)
    }

    pub(super) fn works(&self) -> usize {
        self.tx.works() + self.reads.iter().filter(|read| read.work.is_some()).count()
    }

    // Time.

    /// Says what time it is.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        match self.phase {
            Phase::Asking { deadline } | Phase::Listening { deadline } if now >= deadline => {
                self.end(Failure::TimedOut);
            }
            Phase::Closing {
                failure, deadline, ..
            } if now >= deadline => self.end(failure),
            Phase::Draining { deadline } if now >= deadline => self.phase = Phase::Over,
            Phase::Running => self.tx.nudge.tick(now),
            _ => {}
        }
    }

    /// When [`Connection::tick`] is due.
    #[must_use]
    #[inline]
    pub fn next_timeout(&self) -> Option<Duration> {
        match self.phase {
            Phase::Asking { deadline }
            | Phase::Listening { deadline }
            | Phase::Closing { deadline, .. }
            | Phase::Draining { deadline } => Some(deadline),
            Phase::Running => self.tx.nudge.due(),
            Phase::Requested(_) | Phase::Over => None,
        }
    }

    // Upper layer.

    /// Posts receives; see [`Verbs`](crate::verbs::Verbs).
    ///
    /// # Errors
    /// Too many, or the connection is over.
    pub fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        if matches!(
            self.phase,
            Phase::Closing { .. } | Phase::Draining { .. } | Phase::Over
        ) {
            return Err(PostError::NotConnected);
        }
        let max = self.options.limits.receives;
        let all = self.receives.checked_add(count).filter(|all| *all <= max);
        self.receives = all.ok_or(PostError::Full { max: max as usize })?;
        Ok(())
    }

    /// Posts work on memory that the driver has found to be there.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        if !matches!(self.phase, Phase::Running) {
            return Err(PostError::NotConnected);
        }
        let limits = self.options.limits;
        if self.works() >= limits.works {
            return Err(PostError::Full { max: limits.works });
        }
        let (slices, max): (&[Slice], usize) = match post.work {
            Work::Send { gather, .. } | Work::Write { gather, .. } => (gather, limits.gather),
            Work::Read { into, .. } => (into, limits.read_into),
            Work::Invalidate { key } if !self.tags.is_live(key) => {
                return Err(PostError::Key { key });
            }
            Work::Invalidate { .. } => (&[], 0),
        };
        if matches!(post.work, Work::Read { .. }) && self.depth.outbound == 0 {
            return Err(PostError::NoReads);
        }
        let len = sum(slices, max, limits.work_bytes)?;
        self.tx.push(post, slices, len);
        Ok(())
    }

    /// Exposes memory that the driver has found to be there.
    ///
    /// # Errors
    /// Not possible.
    pub fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        if !matches!(self.phase, Phase::Running) {
            return Err(PostError::NotConnected);
        }
        let limits = self.options.limits;
        let len = sum(slices, limits.exposure_slices, limits.exposure_bytes)?;
        self.tags.expose(slices, len, access)
    }

    /// Ends the connection from here.
    pub fn disconnect(&mut self) {
        self.fail(Failure::Disconnected);
    }

    // The stream.

    /// The stream has ended.
    pub fn receive_end(&mut self) {
        match self.phase {
            Phase::Running if self.is_between_messages() => self.end(Failure::Closed),
            Phase::Running => self.end(WireError::Truncated.into()),
            Phase::Closing { failure, .. } => self.end(failure),
            Phase::Draining { .. } => self.phase = Phase::Over,
            Phase::Over => {}
            _ => self.end(Failure::Lost),
        }
    }

    /// The stream broke.
    pub fn lost(&mut self) {
        match self.phase {
            Phase::Closing { failure, .. } => self.end(failure),
            Phase::Draining { .. } => self.phase = Phase::Over,
            Phase::Over => {}
            _ => self.end(Failure::Lost),
        }
    }

    /// Memory that is named here is not there any more.
    pub fn memory_lost(&mut self) {
        self.fail(Failure::Memory);
    }

    /// Puts into `batch` what is to be written. Memory that is named and not known is
    /// found out by whoever writes.
    pub fn fill(&mut self, batch: &mut Batch, memories: &Memories) {
        if !self.tx.raw.is_empty() {
            batch.push_raw(&core::mem::take(&mut self.tx.raw));
        }
        if matches!(self.phase, Phase::Running)
            && let Err(failure) = self.frames(batch, memories)
        {
            self.fail(failure);
        }
        if let Phase::Closing { terminate, .. } = &mut self.phase {
            let terminate = terminate.take();
            if !self.tx.cut {
                self.tx.cut = true;
                self.tx.framed -= batch.cut();
                self.tx.valid = self.tx.framed;
                if let Some(terminate) = terminate {
                    self.frame_terminate(batch, terminate, memories);
                }
            }
            self.finish(batch);
        }
    }

    /// So many bytes of `batch` were written.
    pub fn written(&mut self, batch: &mut Batch, bytes: usize) {
        let frames = batch.advance(bytes);
        self.tx.written += frames;
        self.settle();
        if frames > 0 {
            self.tx.nudge.begin(self.now);
        }
        self.finish(batch);
    }

    // The end.

    /// The connection cannot go on: the peer is told, if it can be.
    pub(super) fn fail(&mut self, failure: Failure) {
        let told = match &self.phase {
            Phase::Closing { .. } | Phase::Draining { .. } | Phase::Over => return,
            // Whoever has sent no request, or none that makes sense, understands nothing.
            Phase::Listening { .. } | Phase::Requested(_) => None,
            Phase::Asking { .. } | Phase::Running => match failure {
                Failure::Wire(WireError::Terminated(_)) => return self.end(failure),
                Failure::Wire(error) => error.terminate(),
                Failure::Refused { operation, why } => Some(refused(operation, &why)),
                _ => None,
            },
        };
        self.phase = Phase::Closing {
            failure,
            terminate: told,
            deadline: self.now + self.options.linger,
        };
    }

    /// The last frames are out.
    fn finish(&mut self, batch: &Batch) {
        if let Phase::Closing { failure, .. } = self.phase
            && self.tx.cut
            && batch.is_empty()
        {
            self.end(failure);
            self.phase = Phase::Draining {
                deadline: self.now + self.options.linger,
            };
        }
    }

    /// Nothing goes out any more: all that was posted comes back, once.
    fn end(&mut self, failure: Failure) {
        self.phase = Phase::Over;
        let reads = self.reads.drain(..).filter_map(|read| read.work);
        let works: Vec<(u64, Operation)> = self
            .tx
            .drain()
            .chain(reads.map(|(id, _)| (id, Operation::Read)))
            .collect();
        for (id, operation) in works {
            self.events.push_back(Event::Completed(Completion {
                id,
                operation,
                done: false,
            }));
        }
        self.sinks.clear();
        self.responses.clear();
        self.tags.clear();
        self.receives = 0;
        self.abandoned = self.rx.abandon();
        self.events.push_back(Event::Ended(failure));
    }
}

/// Bytes of a list that is within its limits.
pub(crate) fn sum(slices: &[Slice], elements: usize, bytes: u32) -> Result<u32, PostError> {
    if slices.len() > elements {
        return Err(PostError::Elements {
            got: slices.len(),
            max: elements,
        });
    }
    let got = slices.iter().map(|slice| u64::from(slice.len)).sum();
    match u32::try_from(got) {
        Ok(len) if len <= bytes => Ok(len),
        _ => Err(PostError::Bytes { got, max: bytes }),
    }
}
