//! A connection over a provider: its outputs become work, and the provider's events
//! what has happened. The one place where SMB Direct meets the seam.
//!
//! Nothing is allocated and nothing is looked up for a message. The memory of headers is
//! registered by whoever has the provider, for many connections at a time
//! ([`linkspan_rdma::Pool::take_by`]); the area of reassembly is private, and there while a
//! message that a peer cut into very many pieces is.

use alloc::vec::Vec;

use linkspan_mem::{Region, SharedSlice};
use linkspan_rdma::verbs::{
    Access, Depth, Event, Failure, Greeting, Post, PostError, Received, Remote, Slice, Verbs, Work,
};
use linkspan_rdma::{Memories, depth};

use crate::connection::{
    Arrival, Connection, News, RegistrationId, Role, Staged, State, Task, WorkId,
};
use crate::describe::{PASSING_MAX, Passing};
use crate::descriptor::Descriptor;
use crate::error::Refusal;
use crate::inbox::{Piece, Place};
use crate::options::Options;
use crate::wire;

/// Bytes that a header takes in the memory of headers.
pub const HEADER_LEN: u32 = 32;

const _: () = assert!(HEADER_LEN as usize == wire::HEAD_LEN);

/// What an initiator says in its private data, for peers that know no better: its depths
/// ([MS-SMBD] appendix A).
#[must_use]
pub fn private_data(options: &Options) -> [u8; depth::HEADER] {
    depth::write(own_depth(options))
}

fn own_depth(options: &Options) -> Depth {
    Depth {
        inbound: options.inbound_reads,
        outbound: options.outbound_reads,
    }
}

/// A connection with what carries it out.
#[derive(Debug)]
pub struct Driver {
    core: Connection,
    headers: Slice,
    area: Option<Region>,
    /// A peer that wants to connect; it is answered when its first message has a receive.
    request: Option<Greeting>,
    failure: Option<Failure>,
    /// Whether the negotiation may go on still.
    negotiates: bool,
    /// Whether somebody wants to see all messages.
    watched: bool,
    passing: Vec<Passing>,
}

impl Driver {
    /// Drives `core`, with the headers of its sends in `headers`: memory that the
    /// provider knows, of [`Driver::header_bytes`].
    #[must_use]
    pub fn new(core: Connection, headers: Slice) -> Self {
        debug_assert!(headers.len >= Self::header_bytes(core.options()));
        Self {
            core,
            headers,
            area: None,
            request: None,
            failure: None,
            negotiates: true,
            watched: false,
            passing: Vec::new(),
        }
    }

    /// Whether somebody wants to see each message from now on. Those of the negotiation are
    /// always to be seen.
    pub fn watch(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// Messages that went by since, which are to be taken now and then: more than 1024 are
    /// not kept.
    pub fn passing(&mut self) -> Vec<Passing> {
        core::mem::take(&mut self.passing)
    }

    fn pass(&mut self, passing: impl FnOnce() -> Passing) {
        if self.watched && self.passing.len() < PASSING_MAX {
            self.passing.push(passing());
        }
    }

    /// A message of the negotiation.
    fn negotiates(&mut self, by_peer: bool, head: &[u8]) {
        let own = self.core.role();
        let sender = match (own, by_peer) {
            (Role::Initiator, false) | (Role::Listener, true) => Role::Initiator,
            _ => Role::Listener,
        };
        if self.passing.len() < PASSING_MAX {
            let passing = Passing::negotiation(by_peer, sender, head);
            self.passing.push(passing);
        }
    }

    /// Whether the next message is one of the negotiation.
    fn is_negotiating(&mut self) -> bool {
        let over = [State::Connected, State::Disconnecting, State::Disconnected];
        self.negotiates = self.negotiates && !over.contains(&self.core.state());
        self.negotiates
    }

    /// Bytes of memory for the headers of one connection, whatever the device takes off.
    #[must_use]
    pub fn header_bytes(options: &Options) -> u32 {
        u32::from(options.send_depth) * HEADER_LEN
    }

    /// The memory of headers; free when [`News::Ended`] was told.
    #[must_use]
    pub fn headers(&self) -> Slice {
        self.headers
    }

    /// The connection, to ask.
    #[must_use]
    pub fn core(&self) -> &Connection {
        &self.core
    }

    /// The connection, to send, transfer, consume, disconnect and tell the time. What comes
    /// of it is carried out by the next [`poll`](Self::poll).
    pub fn core_mut(&mut self) -> &mut Connection {
        &mut self.core
    }

    /// Bytes of the area of reassembly, if there is one now.
    #[must_use]
    pub fn area_len(&self) -> usize {
        self.area.as_ref().map_or(0, Region::len)
    }

    /// Why the provider ended the connection.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Takes what happened on the connection.
    pub fn happened(&mut self, now_ms: u64, memories: &Memories, event: Event) {
        match event {
            Event::Received(received) => self.received(now_ms, memories, &received),
            Event::Completed(completion) => {
                self.core.completed(WorkId(completion.id), completion.done);
            }
            Event::Requested(greeting) => self.request = Some(greeting),
            Event::Established(greeting) => {
                let agreed = self.agreed(&greeting);
                self.core.established(now_ms, agreed);
            }
            // The end follows.
            Event::Rejected { .. } => {}
            Event::Ended(failure) => {
                self.failure.get_or_insert(failure);
                self.core.ended();
            }
        }
    }

    fn received(&mut self, now_ms: u64, memories: &Memories, received: &Received) {
        let buffer = received.buffer;
        let mut head = [0; wire::HEAD_LEN];
        let first = memories.slice(buffer.part(0, HEADER_LEN));
        let len = first.map_or(0, |bytes| bytes.read(&mut head));
        if self.is_negotiating() {
            self.negotiates(true, &head[..len]);
        } else {
            self.pass(|| Passing::received(&head[..len]));
        }
        let arrival = Arrival {
            buffer,
            len: buffer.len,
            head: &head[..len],
            invalidated: received.invalidated,
        };
        self.core.received(now_ms, arrival);
    }

    /// Depths that hold, on an established connection.
    fn agreed(&self, greeting: &Greeting) -> Depth {
        let mut agreed = greeting.depth;
        if self.core.role() == Role::Initiator
            && let Some(said) = depth::read(&greeting.private_data)
        {
            // An acceptor answers in the terms of who asked.
            agreed.outbound = agreed.outbound.min(said.outbound);
        }
        agreed
    }

    /// Carries out what is to be done, up to what the upper layer has to hear; `None` when
    /// all is done. To be called until then after anything has happened.
    pub fn poll(&mut self, now_ms: u64, verbs: &mut impl Verbs) -> Option<News> {
        loop {
            while let Some(task) = self.next_task(now_ms) {
                if let Task::Tell(news) = task {
                    return Some(news);
                }
                self.carry_out(now_ms, verbs, task);
            }
            if self.area.is_some() && !self.core.keeps() {
                self.area = None;
            }
            let greeting = self.request.take()?;
            if self.core.state() == State::Connecting {
                self.answer(verbs, &greeting);
            }
        }
    }

    /// How many messages were sent, if that is what [`poll`](Self::poll) would tell next, one by
    /// one: for upper layers that count them.
    pub fn poll_sent(&mut self) -> Option<u32> {
        self.core.sent_in_a_row()
    }

    fn next_task(&mut self, now_ms: u64) -> Option<Task> {
        let negotiates = self.is_negotiating();
        let task = self.core.next_task(now_ms)?;
        match task {
            Task::Send { .. } if negotiates => {
                let header = self.core.staged().header;
                self.negotiates(false, header.bytes());
            }
            Task::Send { .. } if self.watched => {
                let header = self.core.staged().header;
                self.pass(|| Passing::sent(&header));
            }
            Task::Write { remote, .. } if self.watched => {
                let bytes = self.core.staged().data.len();
                self.pass(|| Passing::write(remote, bytes));
            }
            Task::Read { remote, .. } if self.watched => {
                let bytes = self.core.staged().data.len();
                self.pass(|| Passing::read(remote, bytes));
            }
            _ => {}
        }
        Some(task)
    }

    fn carry_out(&mut self, now_ms: u64, verbs: &mut impl Verbs, task: Task) {
        match task {
            Task::Release { buffer } => verbs.release(buffer),
            Task::Send {
                work,
                signalled,
                invalidate,
            } => {
                let staged = self.core.staged();
                let place = put(verbs.memories(), self.headers, staged);
                let send = Work::Send {
                    gather: staged.data.behind(place),
                    invalidate,
                    solicited: false,
                };
                let posted = post(verbs, work, signalled, send);
                self.posted(now_ms, work, posted);
            }
            Task::Write {
                work,
                remote,
                signalled,
            } => {
                let write = Work::Write {
                    gather: self.core.staged().data.slices(),
                    to: remote,
                };
                let posted = post(verbs, work, signalled, write);
                self.posted(now_ms, work, posted);
            }
            Task::Read { work, remote } => {
                let read = Work::Read {
                    into: self.core.staged().data.slices(),
                    from: remote,
                };
                let posted = post(verbs, work, true, read);
                self.posted(now_ms, work, posted);
            }
            Task::Invalidate { work, key } => {
                let posted = post(verbs, work, true, Work::Invalidate { key });
                self.posted(now_ms, work, posted);
            }
            Task::PostReceives { count } => {
                let posted = verbs.post_receives(count).map_or(0, |()| count);
                self.core.receives_posted(now_ms, posted);
            }
            Task::Keep { from, to } => {
                if self.keep(verbs.memories(), from, to).is_none() {
                    self.core.not_kept();
                }
            }
            Task::Disconnect => verbs.disconnect(),
            Task::Sent { .. } | Task::Tell(_) => {}
        }
    }

    fn posted(&mut self, now_ms: u64, work: WorkId, posted: Result<(), PostError>) {
        if let Err(why) = posted {
            self.core.refused(now_ms, work, why);
        }
    }

    /// Copies a piece into the area.
    fn keep(&mut self, memories: &Memories, from: Slice, to: u32) -> Option<()> {
        if self.area.is_none() {
            let len = self.core.options().max_fragmented_receive_size;
            self.area = Region::heap(usize::try_from(len).ok()?).ok();
        }
        let area = self.area.as_ref()?;
        let target = area.slice(to.into(), from.len.into()).ok()?;
        let copied = memories.slice(from)?.copy_to(target);
        (copied == target.len()).then_some(())
    }

    /// Answers a peer that wants to connect (MS-SMBD appendix A): its depths are in its
    /// private data as well, and where that is all it knows of them it is answered there.
    fn answer(&mut self, verbs: &mut impl Verbs, greeting: &Greeting) {
        let own = own_depth(self.core.options());
        let offered = Depth {
            inbound: greeting.depth.outbound,
            outbound: greeting.depth.inbound,
        };
        let legacy = depth::read(&greeting.private_data).filter(|said| *said != offered);
        let answered = match legacy {
            None => verbs.accept(&[], own),
            Some(said) => match depth::answer(own, said) {
                Some((agreed, header)) => verbs.accept(&header, agreed),
                None => verbs.reject(&[]),
            },
        };
        if answered.is_err() {
            self.core.disconnect();
        }
    }

    /// Lets the peer reach memory: what it has to be told comes back with its name.
    ///
    /// # Errors
    /// Not connected, none is free, or what the provider says; nothing has happened.
    pub fn register(
        &mut self,
        verbs: &mut impl Verbs,
        slices: &[Slice],
        access: Access,
    ) -> Result<(RegistrationId, Descriptor), Refusal> {
        let bytes: u64 = slices.iter().map(|slice| u64::from(slice.len)).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let expose = || -> Result<Remote, PostError> { verbs.expose(slices, access) };
        let (id, descriptor) = self.core.register(bytes, expose)?;
        self.pass(|| Passing::exposure(descriptor.token, bytes));
        Ok((id, descriptor))
    }

    /// What has arrived of the first message, in order and where it lies; what was used
    /// of it is to be [consumed](Connection::consume).
    pub fn parts<'a>(
        &'a self,
        memories: &'a Memories,
    ) -> impl Iterator<Item = SharedSlice<'a>> + 'a {
        let place = move |piece: Piece| match piece.place {
            Place::Buffer(buffer) => memories.slice(buffer.part(piece.offset, piece.len)),
            Place::Area => {
                let area = self.area.as_ref()?;
                area.slice(piece.offset.into(), piece.len.into()).ok()
            }
        };
        self.core.pieces().map_while(place)
    }

    /// So many bytes of the first message were read, as [`Connection::consume`]; buffers
    /// that are not needed any more go back at once.
    pub fn consume(&mut self, verbs: &mut impl Verbs, bytes: u32) {
        self.core.consume_to(bytes, |buffer| verbs.release(buffer));
    }

    /// Copies what has arrived of the first message, as much as fits, and consumes it;
    /// how many bytes that are. What is behind the end of the message stays.
    pub fn read(&mut self, memories: &Memories, target: &mut [u8]) -> usize {
        let mut at = 0;
        for part in self.parts(memories) {
            at += part.read(&mut target[at..]);
            if at == target.len() {
                break;
            }
        }
        // No more than a message, whose length has 32 bits.
        self.core.consume(u32::try_from(at).unwrap_or(u32::MAX));
        at
    }
}

fn post(
    verbs: &mut impl Verbs,
    id: WorkId,
    signalled: bool,
    work: Work<'_>,
) -> Result<(), PostError> {
    verbs.post(&Post {
        id: id.0,
        signalled,
        work,
    })
}

/// Puts a header where the provider finds it, in the memory of headers; says where.
fn put(memories: &Memories, headers: Slice, staged: &Staged) -> Slice {
    let bytes = staged.header.bytes();
    // A slot is below the number of them, a header at most 32 bytes.
    let len = u32::try_from(bytes.len()).unwrap_or(HEADER_LEN);
    let place = headers.part(u32::from(staged.header.slot()) * HEADER_LEN, len);
    if let Some(memory) = memories.slice(place) {
        memory.write(bytes);
    }
    place
}
