//! What is to be done next, and what became of it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use linkspan_mem::fault::{Injected, try_with_capacity};
use linkspan_rdma::verbs::{Key, Operation, PostError, Remote};
use zerocopy::transmute_ref;

use super::{
    Connection, Header, KeepAlive, MessageId, News, Output, Phase, RegistrationId, Staged, Task,
    TransferId, WorkId,
};
use crate::error::{Error, Refusal};
use crate::gather;
use crate::registrations::RegistrationState;
use crate::wire::{DATA_HEADER_LEN, DATA_OFFSET, DataTransfer, RESPONSE_REQUESTED};

/// Works of which only the last one tells its end.
const BATCH: usize = 16;

/// A send that is under way.
#[derive(Clone, Copy, Debug)]
struct Send {
    /// A negotiate message; it costs no credit.
    negotiates: bool,
    grant: u16,
    /// It asks for a sign of life.
    asks: bool,
    data: bool,
    begins: Option<MessageId>,
    ends: Option<MessageId>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Send(Send),
    Write(TransferId),
}

/// Work that the provider has.
#[derive(Debug)]
pub(super) struct Flight {
    /// Sends and writes, which are done in order.
    queue: VecDeque<(WorkId, Kind)>,
    reads: Vec<(WorkId, TransferId)>,
    invalidations: Vec<(WorkId, RegistrationId)>,
    next: u64,
    /// Sends in the queue, and the place for the header of the next one.
    pub(super) sends: usize,
    slot: u16,
    slots: u16,
    /// Works at the end of the queue whose end is not told; and so many there were before
    /// the last one was queued.
    silent: usize,
    silent_before: usize,
}

/// Work that was not posted, or is over.
#[derive(Clone, Copy, Debug)]
enum Back {
    Queued(Kind),
    Read(TransferId),
    Invalidation(RegistrationId),
}

impl Flight {
    pub(super) fn new(
        sends: u16,
        transfers: usize,
        registrations: usize,
    ) -> Result<Self, Injected> {
        Ok(Self {
            queue: try_with_capacity(usize::from(sends) + transfers)?.into(),
            reads: try_with_capacity(transfers)?,
            invalidations: try_with_capacity(registrations)?,
            next: 0,
            sends: 0,
            slot: 0,
            slots: sends,
            silent: 0,
            silent_before: 0,
        })
    }

    fn name(&mut self) -> WorkId {
        let id = WorkId(self.next);
        self.next += 1;
        id
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.reads.is_empty() && self.invalidations.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len() + self.reads.len() + self.invalidations.len()
    }

    fn writes(&self) -> usize {
        self.queue.len() - self.sends
    }

    pub(super) fn invalidate(&mut self, id: RegistrationId) -> WorkId {
        let work = self.name();
        self.invalidations.push((work, id));
        work
    }

    /// An invalidation was not even given to the provider.
    pub(super) fn not_posted(&mut self, work: WorkId) {
        self.invalidations.retain(|(name, _)| *name != work);
    }

    /// Removes work that is not part of the queue.
    fn take_other(&mut self, work: WorkId) -> Option<Back> {
        if let Some(at) = self.reads.iter().position(|(name, _)| *name == work) {
            return Some(Back::Read(self.reads.swap_remove(at).1));
        }
        let mut invalidations = self.invalidations.iter();
        let at = invalidations.position(|(name, _)| *name == work)?;
        Some(Back::Invalidation(self.invalidations.swap_remove(at).1))
    }

    fn pop(&mut self) -> Option<(WorkId, Kind)> {
        let (work, kind) = gather::pop(&mut self.queue)?;
        self.sends -= usize::from(matches!(kind, Kind::Send(_)));
        self.silent = self.silent.min(self.queue.len());
        Some((work, kind))
    }

    /// Removes what was refused: the last one that was posted.
    fn take_back(&mut self, work: WorkId) -> Option<Back> {
        let Some((_, kind)) = self.queue.pop_back_if(|(name, _)| *name == work) else {
            return self.take_other(work);
        };
        if matches!(kind, Kind::Send(_)) {
            self.sends -= 1;
            self.slot = self.slot.checked_sub(1).unwrap_or(self.slots - 1);
        }
        self.silent = self.silent_before.min(self.queue.len());
        Some(Back::Queued(kind))
    }

    /// Nothing is under way any more: a message whose end was.
    pub(super) fn end(&mut self) -> Option<MessageId> {
        self.reads.clear();
        self.invalidations.clear();
        while let Some((_, kind)) = self.pop() {
            if let Kind::Send(Send { ends: Some(id), .. }) = kind {
                return Some(id);
            }
        }
        None
    }

    /// The last send that is under way ends this message, too; if there is one.
    fn attach(&mut self, message: MessageId) -> bool {
        let sends = self.queue.iter_mut().rev();
        let mut sends = sends.filter_map(|(_, kind)| match kind {
            Kind::Send(send) => Some(send),
            Kind::Write(_) => None,
        });
        match sends.next() {
            Some(Send {
                ends: ends @ None, ..
            }) => {
                *ends = Some(message);
                true
            }
            _ => false,
        }
    }
}

/// What may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Data,
    Empty,
}

impl Connection {
    /// What is to be done next; `None` when there is nothing until something happens.
    /// What comes out is carried out in order, and what a provider would not take is
    /// [`refused`](Self::refused) before the next one is taken.
    pub fn poll_output(&mut self, now_ms: u64) -> Option<Output> {
        let task = self.next_task(now_ms)?;
        Some(self.staged.output(task))
    }

    /// The same without what a send, write or read consists of, which is [staged](Staged).
    pub(crate) fn next_task(&mut self, now_ms: u64) -> Option<Task> {
        if !self.tasks.is_empty() {
            return self.waiting_task();
        }
        let next = match self.phase {
            Phase::Ready => self.ready_task(now_ms),
            Phase::Request => Some(self.send_request()),
            Phase::Response => Some(self.send_response(now_ms)),
            Phase::Refuse(status) => Some(self.send_refusal(status)),
            _ => None,
        };
        if next.is_none() && self.has_news() {
            return Some(Task::Tell(News::Received));
        }
        next
    }

    /// The first of what waits to be carried out, or to be told.
    fn waiting_task(&mut self) -> Option<Task> {
        if let Some(Task::Sent { first, count }) = self.tasks.front_mut() {
            let (message, result) = (*first, Ok(()));
            (*first, *count) = (MessageId(message.0 + 1), *count - 1);
            if *count == 0 {
                gather::pop(&mut self.tasks);
            }
            return Some(Task::Tell(News::Sent { message, result }));
        }
        let task = gather::pop(&mut self.tasks)?;
        match task {
            Task::Tell(News::Ended(_)) if self.has_news() => {
                self.tasks.push_front(task);
                return Some(Task::Tell(News::Received));
            }
            // They are told in order.
            Task::Tell(News::Transferred { transfer, .. }) => {
                self.unheard = self.unheard.filter(|(last, _)| *last != transfer);
            }
            _ => {}
        }
        Some(task)
    }

    /// How many messages were sent, if that is what is told next: all of it at once.
    pub(crate) fn sent_in_a_row(&mut self) -> Option<u32> {
        let Some(Task::Sent { count, .. }) = self.tasks.front() else {
            return None;
        };
        let count = *count;
        gather::pop(&mut self.tasks);
        Some(count)
    }

    /// What the send, write or read consists of that was taken last.
    pub(crate) fn staged(&mut self) -> &mut Staged {
        &mut self.staged
    }

    /// Something came that was not told of, and was not read either.
    fn has_news(&mut self) -> bool {
        core::mem::take(&mut self.news) && self.inbox.message().is_some()
    }

    fn ready_task(&mut self, now_ms: u64) -> Option<Task> {
        if let Some(keep) = self.inbox.keep() {
            let buffer = keep.buffer;
            self.tasks.push_back(Task::Release { buffer });
            self.traffic.kept += 1;
            return Some(Task::Keep {
                from: buffer.part(keep.offset, keep.len),
                to: keep.to,
            });
        }
        if self.timers.supply.is_none() {
            let sending = self.outbox.len() > 0 || self.immediate;
            let count = self.credits.to_post(self.room(), sending);
            if count > 0 {
                self.credits.asked = count;
                let count = u32::from(count);
                return Some(Task::PostReceives { count });
            }
        }
        let sent = match self.next_send() {
            Some(Next::Data) => self.send_data(now_ms),
            Some(Next::Empty) => Some(self.send_empty(now_ms)),
            None => None,
        };
        if sent.is_some() {
            return sent;
        }
        self.next_write().or_else(|| self.next_read())
    }

    /// The rules of MS-SMBD 3.1.5.1: credits, and the last one only with a grant.
    fn next_send(&self) -> Option<Next> {
        if self.flight.sends >= usize::from(self.options.send_depth) || !self.credits.may_send() {
            return None;
        }
        if self.outbox.ready(self.writes.posted()) {
            return Some(Next::Data);
        }
        let due = self.immediate || self.credits.worth_a_message();
        (due && self.timers.retry.is_none()).then_some(Next::Empty)
    }

    pub(super) fn send_negotiate<const N: usize>(&mut self, message: &[u8; N]) -> Task {
        let send = Send {
            negotiates: true,
            grant: 0,
            asks: false,
            data: false,
            begins: None,
            ends: None,
        };
        self.staged.data.clear();
        self.post(message, 0, None, send)
    }

    fn send_empty(&mut self, now_ms: u64) -> Task {
        self.traffic.empty_sends += 1;
        let (header, send) = self.header(now_ms);
        self.staged.data.clear();
        self.post::<DATA_HEADER_LEN>(transmute_ref!(&header), 0, None, send)
    }

    fn send_data(&mut self, now_ms: u64) -> Option<Task> {
        let slices = usize::from(self.options.send_gather - 1);
        let bytes = self.sizes.send - DATA_OFFSET;
        let data = &mut self.staged.data;
        let segment = self.outbox.segment(bytes, slices, data)?;
        let len = segment.len;
        self.traffic.bytes_sent += u64::from(len);
        let (header, send) = self.header(now_ms);
        let header = DataTransfer {
            remaining_data_length: segment.remaining.into(),
            data_offset: DATA_OFFSET.into(),
            data_length: len.into(),
            ..header
        };
        let send = Send {
            data: true,
            begins: segment.begins,
            ends: segment.ends,
            ..send
        };
        // Of constants.
        let padding = DATA_OFFSET as usize - DATA_HEADER_LEN;
        let bytes: &[u8; DATA_HEADER_LEN] = transmute_ref!(&header);
        Some(self.post(bytes, padding, segment.invalidate, send))
    }

    /// Takes a credit, and says what every Data Transfer says.
    fn header(&mut self, now_ms: u64) -> (DataTransfer, Send) {
        let grant = self.credits.take();
        let asks = self.keepalive == KeepAlive::Pending;
        if asks {
            self.keepalive = KeepAlive::Sent;
            self.traffic.keepalives += 1;
            self.idle_from(now_ms, self.options.keepalive_wait_ms);
        }
        self.immediate = false;
        self.traffic.sends += 1;
        let flags = if asks { RESPONSE_REQUESTED } else { 0 };
        let header = DataTransfer {
            credits_requested: self.credits.send_target.into(),
            credits_granted: grant.into(),
            flags: flags.into(),
            reserved: 0.into(),
            remaining_data_length: 0.into(),
            data_offset: 0.into(),
            data_length: 0.into(),
        };
        let send = Send {
            negotiates: false,
            grant,
            asks,
            data: false,
            begins: None,
            ends: None,
        };
        (header, send)
    }

    /// A send of this message and the data that is staged.
    fn post<const N: usize>(
        &mut self,
        message: &[u8; N],
        padding: usize,
        invalidate: Option<Key>,
        send: Send,
    ) -> Task {
        let work = self.flight.name();
        let slot = self.flight.slot;
        self.staged.header = Header::new(message, padding, slot);
        self.flight.queue.push_back((work, Kind::Send(send)));
        self.flight.sends += 1;
        self.flight.slot = if slot + 1 == self.flight.slots {
            0
        } else {
            slot + 1
        };
        let more = self.phase == Phase::Ready && self.next_send().is_some();
        Task::Send {
            work,
            signalled: self.signalled(!more),
            invalidate,
        }
    }

    /// Whether the end of what was just queued is told: of the last one, and of one in a
    /// batch.
    fn signalled(&mut self, last: bool) -> bool {
        let signalled = last || self.flight.silent + 1 >= BATCH;
        self.flight.silent_before = self.flight.silent;
        self.flight.silent = if signalled { 0 } else { self.flight.silent + 1 };
        signalled
    }

    fn may_transfer(&self) -> bool {
        let depth = usize::from(self.options.transfer_depth);
        self.flight.writes() + self.reads.outstanding() < depth
    }

    fn next_write(&mut self) -> Option<Task> {
        if !self.may_transfer() {
            return None;
        }
        let slices = self.device.gather;
        let part = self
            .writes
            .part(self.device.work_bytes, slices, &mut self.staged.data)?;
        self.traffic.writes += 1;
        let work = self.flight.name();
        self.flight.queue.push_back((work, Kind::Write(part.id)));
        let more = !part.last && self.may_transfer();
        Some(Task::Write {
            work,
            remote: remote(&part.remote),
            signalled: self.signalled(!more),
        })
    }

    fn next_read(&mut self) -> Option<Task> {
        let depth = usize::from(self.depth.outbound.min(self.options.outbound_reads));
        if !self.may_transfer() || self.reads.outstanding() >= depth {
            return None;
        }
        let slices = self.device.read_into;
        let part = self
            .reads
            .part(self.device.work_bytes, slices, &mut self.staged.data)?;
        self.traffic.reads += 1;
        let work = self.flight.name();
        self.flight.reads.push((work, part.id));
        Some(Task::Read {
            work,
            remote: remote(&part.remote),
        })
    }

    /// Work is done, and with it all sends and writes before it; or it will not be
    /// (`done` is false), and the connection is at its end.
    pub fn completed(&mut self, work: WorkId, done: bool) {
        // Names only grow.
        let queued = self
            .flight
            .queue
            .binary_search_by_key(&work, |(name, _)| *name);
        if queued.is_ok() {
            while let Some((name, kind)) = self.flight.pop() {
                self.over(Back::Queued(kind), name != work || done);
                if name == work {
                    break;
                }
            }
        } else if let Some(back) = self.flight.take_other(work) {
            self.over(back, done);
        }
        if self.phase == Phase::Refusing(work) {
            self.fail(Error::NoReceives);
        }
    }

    fn over(&mut self, back: Back, done: bool) {
        if !done {
            let operation = match back {
                Back::Queued(Kind::Send(_)) => Operation::Send,
                Back::Queued(Kind::Write(_)) => Operation::Write,
                Back::Read(_) => Operation::Read,
                Back::Invalidation(_) => Operation::Invalidate,
            };
            self.fail(Error::Work { operation });
        }
        let error = self.first_error.unwrap_or(Error::Lost);
        let refused = (!done).then_some(Refusal::Ended(error));
        let result = refused.map_or(Ok(()), Err);
        match back {
            Back::Queued(Kind::Send(Send { ends, .. })) => match ends {
                Some(message) if done => self.tell_sent(message),
                Some(message) => self.tell(News::Sent { message, result }),
                None => {}
            },
            Back::Queued(Kind::Write(id)) => {
                self.writes.done(id, refused);
                self.tell_transfers();
            }
            Back::Read(id) => {
                self.reads.done(id, refused);
                self.tell_transfers();
            }
            Back::Invalidation(id) if done => {
                self.registrations.ended(id, RegistrationState::Ready);
                self.tell(News::Deregistered { id, result });
            }
            // Told when the connection is over: until then the peer may reach it.
            Back::Invalidation(id) => self.registrations.ended(id, RegistrationState::Error),
        }
    }

    /// The provider did not take the last work that it was given, and nothing has
    /// happened.
    pub fn refused(&mut self, now_ms: u64, work: WorkId, why: PostError) {
        let Some(back) = self.flight.take_back(work) else {
            return;
        };
        self.traffic.refused += 1;
        let refusal = Refusal::Post(why);
        match back {
            Back::Queued(Kind::Send(send)) => self.send_refused(now_ms, send, refusal),
            Back::Queued(Kind::Write(id)) => self.write_refused(id, refusal),
            Back::Read(id) => self.reads.done(id, Some(refusal)),
            Back::Invalidation(id) => {
                let (state, result) = match self.registrations.state(id) {
                    // The peer did it meanwhile.
                    Some(RegistrationState::Invalidated) => (RegistrationState::Ready, Ok(())),
                    _ => (RegistrationState::Registered, Err(refusal)),
                };
                self.registrations.ended(id, state);
                self.tell(News::Deregistered { id, result });
            }
        }
        self.tell_transfers();
        // The end of those before it was to be told by this one.
        self.immediate |= self.flight.silent > 0 && self.phase == Phase::Ready;
    }

    /// Whatever was to say that it is there is not said.
    fn write_refused(&mut self, id: TransferId, why: Refusal) {
        self.writes.done(id, Some(why));
        while let Some(message) = self.outbox.drop_behind(self.writes.posted()) {
            let result = Err(why);
            self.tell(News::Sent { message, result });
        }
    }

    fn send_refused(&mut self, now_ms: u64, send: Send, why: Refusal) {
        if send.negotiates {
            return self.fail(Error::Post);
        }
        self.credits.give_back(send.grant);
        if send.asks {
            self.keepalive = KeepAlive::Pending;
        }
        let result = Err(why);
        match (send.begins, send.ends) {
            _ if !send.data => {
                self.immediate = true;
                self.retry(now_ms);
            }
            // Nothing of it was sent: it is as if it had never been there.
            (Some(message), _) => {
                self.outbox.drop_begun();
                self.tell(News::Sent { message, result });
            }
            // A part is on its way, and nothing can follow but its rest.
            (None, ends) => {
                self.fail(Error::Post);
                let result = Err(Refusal::Ended(self.first_error.unwrap_or(Error::Post)));
                if let Some(message) = ends.filter(|&id| !self.flight.attach(id)) {
                    self.tell(News::Sent { message, result });
                }
            }
        }
    }
}

fn remote(descriptor: &crate::descriptor::Descriptor) -> Remote {
    Remote {
        key: Key(descriptor.token),
        address: descriptor.offset,
    }
}
