//! A listener that returns messages or counts them, and gives initiators of ours memory to
//! reach by RDMA.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use linkspan_engine::{LogLimit, Messages};
use linkspan_mem::Region;
use linkspan_rdma::Pool;
use linkspan_rdma::verbs::{Access, MemoryId, Slice};
use linkspan_smbdirect::{Descriptor, Misuse, Status};

use super::hello::{HELLO_LEN, Hello, Mode, Welcome};
use super::{Classes, Endpoint, Gone, Happening, Id};
use crate::rdma::{Host, Provider};

/// Bytes of a buffer for messages that go back.
const BUFFER: u32 = 4096;

/// Bytes of a piece of memory that is exposed, as devices have limits for it.
const PIECE: u32 = 1 << 20;

/// As many of them as a welcome in one buffer names.
const PIECES_MAX: usize = 128;

/// How long until memory is asked for again that the machine refused.
const REST: Duration = Duration::from_millis(20);

/// Connections that have ended and are remembered.
const REMEMBERED: usize = 16;

/// A connection that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its number.
    pub number: u64,
    /// Who it was.
    pub peer: SocketAddr,
    /// Whether it had negotiated.
    pub connected: bool,
    /// Messages that came.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Why it ended.
    pub gone: Gone,
}

/// What has happened.
#[derive(Clone, Debug)]
pub enum Happened {
    /// A connection has negotiated.
    Connected {
        /// Its number.
        number: u64,
        /// Who it is.
        peer: SocketAddr,
    },
    /// A connection has ended.
    Ended {
        /// Which, and how.
        ended: Ended,
        /// How many others ended badly since this was told of one; `None`: this one is to
        /// be counted and not told.
        left_out: Option<u64>,
    },
}

/// How everything is.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Where it listens first.
    pub address: Option<SocketAddr>,
    /// What becomes of messages.
    pub mode: Mode,
    /// Connections, those that have not negotiated included.
    pub connections: usize,
    /// Those.
    pub half_open: usize,
    /// Connections that found no room.
    pub turned_away: u64,
    /// Connections that ended before they asked for anything.
    pub unasked: u64,
    /// Other connections that have ended.
    pub ended: u64,
    /// Bytes allocated for messages that arrive, and buffers in use.
    pub receive_bytes: usize,
    /// Buffers of them that are in use.
    pub receive_buffers: usize,
    /// Connections that wait since messages from their address have its share of them.
    pub short_of_share: usize,
    /// Bytes that peers may reach.
    pub memory_bytes: usize,
    /// What is logged.
    pub log: Classes,
}

/// How one connection is.
#[derive(Clone, Debug)]
pub struct ConnectionReport {
    /// Its number.
    pub number: u64,
    /// Who it is.
    pub peer: SocketAddr,
    /// Messages that came.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What the protocol says.
    pub status: Status,
}

/// What there is of a connection beside the protocol.
#[derive(Default)]
struct Served {
    id: Option<Id>,
    connected: bool,
    /// A message has come.
    begun: bool,
    messages: u64,
    bytes: u64,
    /// Messages on their way back: how many buffers each has, and the buffers in order.
    echoes: VecDeque<usize>,
    buffers: VecDeque<Slice>,
    /// It waits for buffers, and is in the queue of those that do, once.
    stalled: bool,
    memory: Option<(MemoryId, usize)>,
}

/// The listener.
pub struct Service<C: Host = Provider> {
    endpoint: Endpoint<C>,
    mode: Mode,
    address: Option<SocketAddr>,
    served: Vec<Served>,
    buffers: Pool,
    /// Bytes that may be exposed, and those that are.
    memory_max: usize,
    memory: usize,
    /// Those that wait for buffers, the first one first.
    stalled: VecDeque<Id>,
    happened: VecDeque<Happened>,
    limit: LogLimit,
    ended: VecDeque<Ended>,
    ended_count: u64,
    /// Kept, so that an echo allocates nothing.
    gather: Vec<Slice>,
}

impl<C: Host> Service<C> {
    /// A listener that does not listen yet, made of an endpoint. `memory` bytes are for what
    /// peers reach by RDMA, and as many for messages on their way back.
    #[must_use]
    pub fn new(mut endpoint: Endpoint<C>, mode: Mode, memory: usize, log: Classes) -> Self {
        endpoint.log(log);
        Self {
            endpoint,
            mode,
            address: None,
            served: Vec::new(),
            buffers: Pool::new(BUFFER, memory),
            memory_max: memory,
            memory: 0,
            stalled: VecDeque::new(),
            happened: VecDeque::new(),
            limit: LogLimit::default(),
            ended: VecDeque::new(),
            ended_count: 0,
            gather: Vec::new(),
        }
    }

    /// Listens, and says where; in more than one place if asked again.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let address = self.endpoint.listen(address)?;
        self.address.get_or_insert(address);
        Ok(address)
    }

    /// See [`Endpoint::capture`].
    ///
    /// # Errors
    /// What the system says of the file.
    pub fn capture(&mut self, file: File) -> io::Result<()> {
        self.endpoint.capture(file)
    }

    /// See [`Endpoint::watch`].
    ///
    /// # Errors
    /// What `epoll_ctl(2)` reports.
    pub fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()> {
        self.endpoint.watch(source, number)
    }

    /// A watched descriptor that became ready.
    pub fn watched(&mut self) -> Option<u32> {
        self.endpoint.watched()
    }

    /// Logs these classes from now on.
    pub fn log(&mut self, classes: Classes) {
        self.endpoint.log(classes);
    }

    /// Waits until something happens, and does what is to be done.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn turn(&mut self) -> io::Result<()> {
        self.turn_within(None)
    }

    /// The same, at most for `timeout`.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn turn_within(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // The machine refused memory, and nothing that is in use will come back.
        let refused = !self.stalled.is_empty() && self.buffers.used().1 == 0;
        let rest = refused.then_some(REST);
        self.endpoint
            .wait([timeout, rest].into_iter().flatten().min())?;
        while let Some((id, happening)) = self.endpoint.poll() {
            self.handle(id, happening);
        }
        if refused {
            self.retry();
        }
        Ok(())
    }

    /// Ends all connections in order, and listens no more.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn stop(&mut self) -> io::Result<()> {
        self.endpoint.begin_stop();
        while self.endpoint.stops() {
            self.turn_within(None)?;
        }
        Ok(())
    }

    /// What has happened, in order.
    pub fn happened(&mut self) -> Option<Happened> {
        self.happened.pop_front()
    }

    fn handle(&mut self, id: Id, happening: Happening) {
        if self.served.len() <= id.place() {
            self.served.resize_with(id.place() + 1, Served::default);
        }
        match happening {
            Happening::Connected => self.connected(id),
            Happening::Received => self.read(id),
            Happening::Sent(count, Ok(())) => self.sent(id, count),
            // What waited is told before what is under way, whose bytes may still be
            // written: all buffers come back with the end.
            Happening::Sent(_, Err(_)) => self.let_go(id),
            Happening::Transferred(..) | Happening::Deregistered(..) => {}
            Happening::Ended(gone) => self.gone(id, gone),
        }
    }

    fn connected(&mut self, id: Id) {
        let Some(mut session) = self.endpoint.session(id) else {
            return;
        };
        session.admit();
        let (number, peer) = (session.number(), session.peer());
        self.served[id.place()] = Served {
            id: Some(id),
            connected: true,
            ..Served::default()
        };
        self.happened
            .push_back(Happened::Connected { number, peer });
    }

    fn gone(&mut self, id: Id, gone: Gone) {
        let served = std::mem::take(&mut self.served[id.place()]);
        if served.stalled {
            self.stalled.retain(|stalled| *stalled != id);
        }
        for buffer in served.buffers {
            self.buffers.put(buffer);
        }
        if let Some((memory, bytes)) = served.memory {
            // Every registration has ended with the connection.
            self.endpoint.remove_memory(memory);
            self.memory -= bytes;
        }
        self.ended_count += 1;
        let ended = Ended {
            number: gone.number,
            peer: gone.peer,
            connected: served.connected,
            messages: served.messages,
            bytes: served.bytes,
            gone,
        };
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(ended.clone());
        let left_out = if ended.gone.is_broken() || !ended.connected {
            self.limit.allow()
        } else {
            Some(0)
        };
        self.happened.push_back(Happened::Ended { ended, left_out });
        self.retry();
    }

    /// So many messages have gone back.
    fn sent(&mut self, id: Id, messages: u32) {
        let served = &mut self.served[id.place()];
        for _ in 0..messages {
            let count = served.echoes.pop_front().unwrap_or(0);
            for buffer in served.buffers.drain(..count) {
                self.buffers.put(buffer);
            }
        }
        // Whoever waits for buffers has a turn of its own.
        if !served.stalled {
            self.read(id);
        }
        self.retry();
    }

    /// Whoever waits for buffers may find them now, the first one first. One that needs
    /// more than there are holds up nobody behind it.
    fn retry(&mut self) {
        for _ in 0..self.stalled.len() {
            // Where there is none at all, nobody is asked.
            let Some(buffer) = self.endpoint.buffer(&mut self.buffers) else {
                return;
            };
            self.buffers.put(buffer);
            let Some(id) = self.stalled.pop_front() else {
                return;
            };
            self.served[id.place()].stalled = false;
            self.read(id);
        }
    }

    /// Reads what has come.
    fn read(&mut self, id: Id) {
        while self.read_one(id) {}
    }

    /// Reads one message, or a part; whether there may be more.
    fn read_one(&mut self, id: Id) -> bool {
        let Some(mut session) = self.endpoint.session(id) else {
            return false;
        };
        let Some(message) = session.message() else {
            return false;
        };
        let served = &mut self.served[id.place()];
        let whole = message.is_whole();
        if !served.begun {
            let may_be_hello = message.len as usize == HELLO_LEN;
            if may_be_hello && !whole {
                return false;
            }
            served.begun = true;
            let mut bytes = [0; HELLO_LEN];
            let hello = may_be_hello && session.peek(&mut bytes) == HELLO_LEN;
            if let Some(hello) = Hello::parse(&bytes).filter(|_| hello) {
                session.consume(message.len);
                return self.welcome(id, hello);
            }
            return true;
        }
        match self.mode {
            Mode::Sink => {
                served.messages += u64::from(whole);
                served.bytes += u64::from(message.arrived);
                session.consume(message.arrived);
                whole
            }
            Mode::Echo if whole => self.echo(id, message.len),
            Mode::Echo => false,
        }
    }

    /// Sends a message back; whether that was possible.
    fn echo(&mut self, id: Id, len: u32) -> bool {
        if len.div_ceil(BUFFER) as usize > self.buffers.most() {
            // There will never be so many.
            self.let_go(id);
            return false;
        }
        let mut gather = std::mem::take(&mut self.gather);
        gather.clear();
        let mut left = len;
        while left > 0 {
            let Some(buffer) = self.endpoint.buffer(&mut self.buffers) else {
                break;
            };
            gather.push(buffer.part(0, left));
            left = left.saturating_sub(BUFFER);
        }
        let sent = left == 0 && self.send_message(id, &gather);
        if sent {
            let served = &mut self.served[id.place()];
            served.echoes.push_back(gather.len());
            served.buffers.extend(&gather);
            served.messages += 1;
            served.bytes += u64::from(len);
            if let Some(mut session) = self.endpoint.session(id) {
                session.consume(len);
            }
        } else {
            for buffer in &gather {
                self.buffers.put(*buffer);
            }
            if left > 0 {
                self.stall(id);
            }
        }
        self.gather = gather;
        sent
    }

    /// Copies the first message, and sends the copy.
    fn send_message(&mut self, id: Id, gather: &[Slice]) -> bool {
        if let Some(session) = self.endpoint.session(id) {
            session.copy_to(gather);
        }
        self.send(id, gather)
    }

    fn send(&mut self, id: Id, gather: &[Slice]) -> bool {
        let Some(mut session) = self.endpoint.session(id) else {
            return false;
        };
        let waits = !self.served[id.place()].echoes.is_empty();
        match session.send(gather) {
            Ok(_) => true,
            Err(Misuse::NotConnected { .. }) => false,
            // It goes on when one of its own has gone.
            Err(Misuse::Full { .. }) if waits => false,
            // Longer than the initiator takes back, or than ever fits.
            Err(_) => {
                session.disconnect();
                false
            }
        }
    }

    /// It goes on when buffers come back.
    fn stall(&mut self, id: Id) {
        let served = &mut self.served[id.place()];
        if !served.stalled {
            served.stalled = true;
            self.stalled.push_back(id);
        }
    }

    fn let_go(&mut self, id: Id) {
        if let Some(mut session) = self.endpoint.session(id) {
            session.disconnect();
        }
    }

    /// Answers an initiator of ours; whether there may be more to read.
    fn welcome(&mut self, id: Id, hello: Hello) -> bool {
        let memory = self.expose(id, hello.memory).unwrap_or_default();
        let welcome = Welcome {
            mode: self.mode,
            memory,
        };
        let bytes = welcome.to_bytes();
        let Some(buffer) = self.endpoint.buffer(&mut self.buffers) else {
            // It cannot be told.
            self.let_go(id);
            return false;
        };
        self.endpoint.fill(buffer.memory, buffer.offset, &bytes);
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        let part = buffer.part(0, len);
        if self.send(id, &[part]) {
            let served = &mut self.served[id.place()];
            served.echoes.push_back(1);
            served.buffers.push_back(buffer);
        } else {
            self.buffers.put(buffer);
        }
        true
    }

    /// Memory that an initiator may reach, if there is so much.
    fn expose(&mut self, id: Id, bytes: u32) -> Option<Vec<Descriptor>> {
        let all = bytes as usize;
        let within = all > 0 && all <= self.memory_max.saturating_sub(self.memory);
        let count = bytes.div_ceil(PIECE) as usize;
        let registrations = usize::from(self.endpoint.config().options.registrations);
        if !within || count > registrations.min(PIECES_MAX) {
            return None;
        }
        // A descriptor each, and all in one buffer.
        let region = Region::heap(all).ok()?;
        let memory = self.endpoint.add_memory(region).ok()?;
        // What is registered stays so until the connection ends, and the memory with it.
        self.served[id.place()].memory = Some((memory, all));
        self.memory += all;
        let mut session = self.endpoint.session(id)?;
        let both = Access {
            read: true,
            write: true,
        };
        let pieces = (0..bytes).step_by(PIECE as usize).map(|offset| Slice {
            memory,
            len: PIECE.min(bytes - offset),
            offset: u64::from(offset),
        });
        pieces
            .map(|piece| session.register(&[piece], both).ok().map(|(_, it)| it))
            .collect()
    }

    /// How everything is.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let (half_open, turned_away) = self.endpoint.guests();
        let (receive_bytes, receive_buffers) = self.endpoint.buffers();
        Summary {
            address: self.address,
            mode: self.mode,
            connections: self.endpoint.count(),
            half_open,
            turned_away,
            unasked: self.endpoint.unasked(),
            ended: self.ended_count,
            receive_bytes,
            receive_buffers,
            short_of_share: self.endpoint.short(),
            memory_bytes: self.memory,
            log: self.endpoint.classes(),
        }
    }

    /// See [`Endpoint::messages`].
    #[must_use]
    pub fn messages(&self) -> &Arc<Messages> {
        self.endpoint.messages()
    }

    /// How each connection is.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionReport> + '_ {
        self.endpoint.sessions().map(|(id, number, peer, status)| {
            let served = self.served.get(id.place());
            let served = served.filter(|served| served.id == Some(id));
            ConnectionReport {
                number,
                peer,
                messages: served.map_or(0, |served| served.messages),
                bytes: served.map_or(0, |served| served.bytes),
                status,
            }
        })
    }

    /// The last ones that have ended.
    pub fn ended(&self) -> impl Iterator<Item = &Ended> {
        self.ended.iter()
    }
}

impl Ended {
    /// Whether the peer did something wrong.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        self.gone.is_broken()
    }

    /// Why it ended.
    #[must_use]
    pub fn reason(&self) -> String {
        self.gone.to_string()
    }
}

#[cfg(test)]
mod tests;
