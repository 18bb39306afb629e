//! Work of one connection: what it has the device do, and what the device has done.

use std::time::Duration;

use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{
    Access, Completion, Event, Failure, Key, Operation, Post, PostError, Received, Remote, Slice,
    Work,
};
use linkspan_sys::verbs::{self, Element, Registration, Rights};

use super::GATHER;
use super::link::{Link, NUDGES, Phase, Posted, Queue, REFUSED};

/// Completions that one connection takes before others have their turn.
const TURN: usize = 256;

/// Distinguishes receives from other work in the numbers that the device is given.
const RECEIVE: u64 = 1 << 63;

/// The same for a write of no bytes that pokes the peer.
const NUDGE: u64 = 1 << 62;

/// How long before the first poke; each next one takes twice as long.
const NUDGE_AFTER: Duration = Duration::from_millis(30);

/// How long a connection whose work was thrown out waits to hear why.
const WHY_WITHIN: Duration = Duration::from_millis(500);

impl Link {
    /// Whoever has spoken and hears nothing pokes the peer.
    pub(super) fn poke(&mut self, now: Duration) {
        self.nudge = None;
        let Queue::Whole(pair) = &mut self.queue else {
            return;
        };
        let nothing = verbs::Operation::Write { address: 0, key: 0 };
        // What cannot be posted is of no help.
        if pair.post(NUDGE, &[], nothing).is_ok() {
            self.nudges -= 1;
            let after = NUDGE_AFTER * (1 << (NUDGES - self.nudges));
            self.nudge = Some(now + after).filter(|_| self.nudges > 0);
        }
    }

    /// Takes what the device has done; says whether there may be more.
    pub(super) fn completions(&mut self, now: Duration) -> bool {
        let Queue::Whole(pair) = &mut self.queue else {
            return false;
        };
        if pair.listen().is_err() {
            self.end(Failure::Lost);
            return false;
        }
        let mut taken = 0;
        while self.phase == Phase::Running && self.take_completions() {
            taken += 1;
            if taken >= TURN / 16 {
                return true;
            }
        }
        if self.failure.is_some() && self.phase == Phase::Running && self.due.is_none() {
            self.due = Some(now + WHY_WITHIN);
        }
        false
    }

    pub(super) fn take_completions(&mut self) -> bool {
        let Queue::Whole(pair) = &mut self.queue else {
            return false;
        };
        let mut list = [None; 16];
        let mut count = 0;
        let result = pair.poll(&mut |completion| {
            list[count] = Some(completion);
            count += 1;
        });
        for completion in list.iter().flatten() {
            self.completed(completion);
        }
        if result.is_err() {
            self.end(Failure::Lost);
        }
        matches!(result, Ok(1..))
    }

    fn completed(&mut self, completion: &verbs::Completion) {
        let operation = if completion.id & NUDGE != 0 {
            Some(Operation::Write)
        } else if completion.id & RECEIVE == 0 {
            let at = completion.id.wrapping_sub(self.first);
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let Some(posted) = self.posted.get_mut(at) else {
                return;
            };
            posted.done = completion.failed.is_none();
            let operation = posted.operation;
            if posted.done {
                self.tell_done();
            }
            Some(operation)
        } else {
            let Some(buffer) = self.receives.pop_front() else {
                return;
            };
            match completion.failed {
                None => self.received(buffer, completion),
                Some(_) => self.pool.put(buffer),
            }
            None
        };
        let Some(status) = completion.failed else {
            return;
        };
        if completion.flushed {
            // Why, is told by whatever was first, or by the end of the connection.
            self.failure.get_or_insert(Failure::Lost);
        } else {
            self.end(Failure::Device { operation, status });
        }
    }

    fn received(&mut self, buffer: Slice, completion: &verbs::Completion) {
        (self.nudge, self.nudges) = (None, 0);
        let invalidated = completion.invalidated.map(Key);
        if let Some(key) = invalidated {
            // The device has ended it; now its memory is let go as well.
            self.hide(key);
        }
        self.events.push_back(Event::Received(Received {
            buffer: buffer.part(0, completion.len),
            invalidated,
            solicited: false,
        }));
    }

    /// Work that is done is told in order.
    fn tell_done(&mut self) {
        while let Some(posted) = self.posted.pop_front_if(|posted| posted.done) {
            self.first = self.first.wrapping_add(1);
            if let (Some(sink), Queue::Whole(pair)) = (posted.sink, &mut self.queue) {
                // One that stays ends with the connection.
                let _ = pair.deregister(sink);
            }
            if posted.signalled {
                self.events.push_back(Event::Completed(Completion {
                    id: posted.id,
                    operation: posted.operation,
                    done: true,
                }));
            }
        }
    }

    fn hide(&mut self, key: Key) -> bool {
        let Some((registration, _)) = self.exposed.remove(&key) else {
            return false;
        };
        match &mut self.queue {
            Queue::Whole(pair) => pair.deregister(registration).is_ok(),
            _ => true,
        }
    }

    pub(super) fn post_receives(
        &mut self,
        count: u32,
        memories: &mut Memories,
    ) -> Result<(), PostError> {
        if self.phase == Phase::Over {
            return Err(PostError::NotConnected);
        }
        let max = self.limits.receives as usize;
        if self.receives.len() + self.wanted as usize + count as usize > max {
            return Err(PostError::Full { max });
        }
        if matches!(self.queue, Queue::Bare(_)) {
            self.wanted += count;
            return Ok(());
        }
        self.receive(count, memories)
    }

    /// Posts them all, or as many as there are buffers for and says so.
    pub(super) fn receive(&mut self, count: u32, memories: &mut Memories) -> Result<(), PostError> {
        for _ in 0..count {
            let buffer = self.pool.take(memories).ok_or(REFUSED)?;
            let posted = self.element(buffer, memories).and_then(|element| {
                let Queue::Whole(pair) = &mut self.queue else {
                    return Err(PostError::NotConnected);
                };
                pair.post_receive(RECEIVE, element).map_err(|_| REFUSED)
            });
            if let Err(error) = posted {
                self.pool.put(buffer);
                return Err(error);
            }
            self.receives.push_back(buffer);
        }
        Ok(())
    }

    /// A slice as the device knows it.
    fn element(&mut self, slice: Slice, memories: &Memories) -> Result<Element, PostError> {
        let registration = match self.known.get(&slice.memory) {
            Some(registration) => *registration,
            None => {
                let region = memories.region(slice.memory);
                let region = region.ok_or(PostError::Memory { slice })?;
                let Queue::Whole(pair) = &mut self.queue else {
                    return Err(PostError::NotConnected);
                };
                let rights = Rights {
                    write: true,
                    ..Rights::default()
                };
                let len = region.len() as u64;
                let made = pair.register(region, 0, len, rights).map_err(|_| REFUSED)?;
                self.known.insert(slice.memory, made);
                made
            }
        };
        let address = registration.address + slice.offset;
        Ok(Element::new(address, slice.len, registration.local_key))
    }

    pub(super) fn post(
        &mut self,
        post: &Post<'_>,
        memories: &Memories,
        now: Duration,
    ) -> Result<(), PostError> {
        if self.phase != Phase::Running {
            return Err(PostError::NotConnected);
        }
        let max = self.limits.works;
        if self.posted.len() >= max {
            return Err(PostError::Full { max });
        }
        if let Work::Invalidate { key } = post.work {
            return self.invalidate(post, key);
        }
        let (slices, operation) = self.operation(&post.work)?;
        let is_read = matches!(operation, verbs::Operation::Read { .. });
        self.check_sizes(slices, is_read)?;
        memories.check(slices)?;
        let mut sink = None;
        let mut elements = [Element::default(); GATHER];
        for (element, slice) in elements.iter_mut().zip(slices) {
            *element = if is_read && self.reads_expose {
                let registration = self.sink(*slice, memories)?;
                sink = Some(registration);
                Element::new(registration.address, slice.len, registration.local_key)
            } else {
                self.element(*slice, memories)?
            };
        }
        let number = self.first.wrapping_add(self.posted.len() as u64) & !(RECEIVE | NUDGE);
        let Queue::Whole(pair) = &mut self.queue else {
            return Err(PostError::NotConnected);
        };
        if pair
            .post(number, &elements[..slices.len()], operation)
            .is_err()
        {
            if let Some(sink) = sink {
                // One that stays ends with the connection.
                let _ = pair.deregister(sink);
            }
            return Err(REFUSED);
        }
        if self.nudges > 0 && self.nudge.is_none() {
            self.nudge = Some(now + NUDGE_AFTER);
        }
        self.posted.push_back(Posted {
            id: post.id,
            operation: post.work.operation(),
            signalled: post.signalled,
            sink,
            done: false,
        });
        Ok(())
    }

    /// Work as the device knows it, without its bytes.
    fn operation<'a>(&self, work: &Work<'a>) -> Result<(&'a [Slice], verbs::Operation), PostError> {
        Ok(match *work {
            Work::Send {
                gather,
                invalidate,
                solicited,
            } => {
                // Memory of programs cannot be invalidated by the peer but over iWARP: there
                // it is told to, elsewhere it does so itself when it has the message.
                let invalidate = invalidate.filter(|_| self.reads_expose).map(|key| key.0);
                let operation = verbs::Operation::Send {
                    invalidate,
                    solicited,
                };
                (gather, operation)
            }
            Work::Write { gather, to } => {
                let (address, key) = (to.address, to.key.0);
                (gather, verbs::Operation::Write { address, key })
            }
            Work::Read { .. } if self.depth.outbound == 0 => return Err(PostError::NoReads),
            Work::Read { into, from } => {
                let (address, key) = (from.address, from.key.0);
                (into, verbs::Operation::Read { address, key })
            }
            Work::Invalidate { key } => return Err(PostError::Key { key }),
        })
    }

    fn check_sizes(&self, slices: &[Slice], is_read: bool) -> Result<(), PostError> {
        let limits = &self.limits;
        let max = if is_read {
            limits.read_into
        } else {
            limits.gather
        };
        if slices.len() > max {
            let got = slices.len();
            return Err(PostError::Elements { got, max });
        }
        let got = slices.iter().map(|slice| u64::from(slice.len)).sum();
        let max = limits.work_bytes;
        if got > max.into() {
            return Err(PostError::Bytes { got, max });
        }
        Ok(())
    }

    /// What a read goes into. Over iWARP the peer writes it as it writes any exposure, and is
    /// told its key: so it is the bytes of this read alone, for as long as it takes.
    fn sink(&mut self, slice: Slice, memories: &Memories) -> Result<Registration, PostError> {
        let rights = Rights {
            write: true,
            remote_write: true,
            ..Rights::default()
        };
        self.register(slice, memories, rights)
    }

    fn register(
        &mut self,
        slice: Slice,
        memories: &Memories,
        rights: Rights,
    ) -> Result<Registration, PostError> {
        let region = memories.region(slice.memory);
        let region = region.ok_or(PostError::Memory { slice })?;
        let Queue::Whole(pair) = &mut self.queue else {
            return Err(PostError::NotConnected);
        };
        let made = pair.register(region, slice.offset, slice.len.into(), rights);
        made.map_err(|_| REFUSED)
    }

    fn invalidate(&mut self, post: &Post<'_>, key: Key) -> Result<(), PostError> {
        if !self.exposed.contains_key(&key) {
            return Err(PostError::Key { key });
        }
        if !self.hide(key) {
            self.end(Failure::Memory);
            return Ok(());
        }
        self.posted.push_back(Posted {
            id: post.id,
            operation: Operation::Invalidate,
            signalled: post.signalled,
            sink: None,
            done: true,
        });
        self.tell_done();
        Ok(())
    }

    pub(super) fn expose(
        &mut self,
        slices: &[Slice],
        access: Access,
        memories: &Memories,
    ) -> Result<Remote, PostError> {
        if self.phase != Phase::Running {
            return Err(PostError::NotConnected);
        }
        let limits = self.limits;
        let &[slice] = slices else {
            let (got, max) = (slices.len(), limits.exposure_slices);
            return Err(PostError::Elements { got, max });
        };
        if slice.len == 0 || slice.len > limits.exposure_bytes {
            let (got, max) = (slice.len.into(), limits.exposure_bytes);
            return Err(PostError::Bytes { got, max });
        }
        memories.check(slices)?;
        if self.exposed.len() >= limits.exposures {
            let max = limits.exposures;
            return Err(PostError::Full { max });
        }
        let rights = Rights {
            write: false,
            remote_read: access.read,
            remote_write: access.write,
        };
        let registration = self.register(slice, memories, rights)?;
        let key = Key(registration.remote_key);
        self.exposed.insert(key, (registration, slice.memory));
        Ok(Remote {
            key,
            address: registration.address,
        })
    }
}
