//! The connections of a bench, what goes over them, and whether it arrived.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_backends::rdma::Host;
use linkspan_backends::smbdirect::{Happening, Hello, Id, Mode as Does, Peer};
use linkspan_mem::Region;
use linkspan_rdma::verbs::{MemoryId, Slice};
use linkspan_smbdirect::{Descriptor, Misuse, Refusal, State as Core};

use super::Kind;
use crate::exit::{Failure, Status};
use crate::smbdirect::meeting::{Initiator, failure, started};

/// Connections that are being made at a time: a listener has a limit for each address.
const CONNECTING: usize = 64;

/// When it is enough.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    Time(Duration),
    /// On each connection.
    Messages(u64),
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Greeting,
    /// It is used.
    Ready,
    /// All was sent; the peer says that it has arrived.
    Asking,
    Done,
}

struct Connection {
    id: Id,
    state: State,
    posted: u64,
    done: u64,
    /// Echoes that came back, and whether they were right.
    back: u64,
    memory: Vec<Descriptor>,
}

pub(super) struct Load<'a, C: Host> {
    initiator: &'a mut Initiator<C>,
    mode: Kind,
    size: u32,
    depth: u16,
    /// As many places as there are messages or transfers under way, each with bytes of its
    /// own, and one more to verify.
    memory: MemoryId,
    address: Option<SocketAddr>,
    connections: Vec<Connection>,
    does: Does,
    right: bool,
}

/// Whether a message or transfer was done; not if the connection ended, which is told next.
fn is_done(result: Result<(), Refusal>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(Refusal::Ended(_)) => Ok(false),
        Err(why) => Err(anyhow!(why).into()),
    }
}

/// Places at most: more would be out of any cache.
const PLACES: u64 = 64;

impl<'a, C: Host> Load<'a, C> {
    pub(super) fn new(
        initiator: &'a mut Initiator<C>,
        mode: Kind,
        size: u32,
        depth: u16,
    ) -> Result<Self, Failure> {
        let mut load = Self {
            memory: MemoryId(0),
            initiator,
            mode,
            size,
            depth,
            address: None,
            connections: Vec::new(),
            does: Does::Sink,
            right: true,
        };
        let bytes = (load.places() + 1) * u64::from(size);
        let region = usize::try_from(bytes).ok().map(Region::heap);
        let region = region.context("too much memory")?.context("memory")?;
        load.memory = load
            .initiator
            .endpoint
            .add_memory(region)
            .context("memory")?;
        for place in 0..load.places() {
            let bytes = load.pattern(place);
            let offset = place * u64::from(size);
            load.initiator.endpoint.fill(load.memory, offset, &bytes);
        }
        Ok(load)
    }

    fn places(&self) -> u64 {
        u64::from(self.depth).min(PLACES)
    }

    fn slice(&self, place: u64) -> Slice {
        Slice {
            memory: self.memory,
            len: self.size,
            offset: place * u64::from(self.size),
        }
    }

    /// The bytes of a place, other ones in each.
    fn pattern(&self, place: u64) -> Vec<u8> {
        let seed = place.to_le_bytes()[0];
        (0..self.size)
            .map(|at| (at ^ at >> 8).to_le_bytes()[0] ^ seed)
            .collect()
    }

    pub(super) fn system_calls(&self) -> u64 {
        self.initiator.endpoint.system_calls()
    }

    pub(super) fn messages(&self) -> u64 {
        self.connections
            .iter()
            .map(|connection| connection.done)
            .sum()
    }

    /// What the listener does with messages.
    pub(super) fn peer(&self) -> Does {
        self.does
    }

    /// Makes all connections, each with its memory.
    ///
    /// # Errors
    /// The peer cannot be reached, is none of ours, or has no memory.
    pub(super) fn connect(&mut self, addresses: &[SocketAddr], count: u16) -> Result<(), Failure> {
        let hello = match self.mode {
            Kind::Send => Hello::default(),
            Kind::Write | Kind::Read => Hello { memory: self.size },
        };
        let met = self
            .initiator
            .meet(addresses, hello, Duration::from_secs(5))?;
        self.address = Some(met.address);
        self.add(met.id, State::Greeting);
        self.welcome(0, met.peer)?;
        while self.connections.iter().any(|it| it.state != State::Ready)
            || self.connections.len() < usize::from(count)
        {
            let being_made = self
                .connections
                .iter()
                .filter(|it| it.state != State::Ready)
                .count();
            let room = CONNECTING.saturating_sub(being_made);
            for _ in 0..room.min(usize::from(count) - self.connections.len()) {
                let id = self.initiator.connect(met.address)?;
                self.add(id, State::Connecting);
            }
            self.initiator.wait(None)?;
            while let Some((id, happening)) = self.initiator.endpoint.poll() {
                let index = self.find(id)?;
                match happening {
                    Happening::Connected => {
                        self.initiator.greet(id, hello)?;
                        self.connections[index].state = State::Greeting;
                    }
                    Happening::Received if self.connections[index].state == State::Greeting => {
                        if let Some(answer) = self.initiator.take(id) {
                            self.welcome(index, Some(Peer::of(hello, &answer)))?;
                        }
                    }
                    Happening::Ended(gone) => return Err(failure(met.address, &gone)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, id: Id, state: State) {
        self.connections.push(Connection {
            id,
            state,
            posted: 0,
            done: 0,
            back: 0,
            memory: Vec::new(),
        });
    }

    /// Numbers of connections count from zero and none has ended.
    fn find(&self, id: Id) -> Result<usize, Failure> {
        let guess = id.place();
        let is = |index: usize| self.connections.get(index).is_some_and(|it| it.id == id);
        if is(guess) {
            return Ok(guess);
        }
        let found = (0..self.connections.len()).find(|index| is(*index));
        Ok(found.context("an unknown connection")?)
    }

    fn welcome(&mut self, index: usize, peer: Option<Peer>) -> Result<(), Failure> {
        let Some(Peer::Ours(welcome)) = peer else {
            let error = anyhow!("the peer is no `linkspan smbdirect listen`");
            return Err(Failure::new(Status::Failed, error).hint("linkspan smbdirect ping"));
        };
        let given: u64 = welcome.memory.iter().map(|it| u64::from(it.length)).sum();
        if self.mode != Kind::Send && given < u64::from(self.size) {
            let error = anyhow!("the listener has no memory for {} bytes", self.size);
            return Err(Failure::new(Status::Failed, error).hint("listen --memory"));
        }
        self.does = welcome.mode;
        let connection = &mut self.connections[index];
        connection.memory = welcome.memory;
        connection.state = State::Ready;
        Ok(())
    }

    /// Runs until it is enough and all has arrived; says how long that took.
    ///
    /// # Errors
    /// A connection ended.
    pub(super) fn run(&mut self, goal: Goal) -> Result<Duration, Failure> {
        if self.mode == Kind::Read {
            self.prepare()?;
        }
        let begin = Instant::now();
        for index in 0..self.connections.len() {
            self.fill(index, goal, begin)?;
        }
        while self.connections.iter().any(|it| it.state != State::Done) {
            self.initiator.wait(None)?;
            self.look(goal, begin)?;
        }
        Ok(begin.elapsed())
    }

    fn is_over(&self, index: usize, goal: Goal, begin: Instant) -> bool {
        let posted = self.connections[index].posted;
        match goal {
            // The clock is looked at now and then.
            Goal::Time(time) => posted.is_multiple_of(16) && begin.elapsed() >= time,
            Goal::Messages(count) => posted >= count,
        }
    }

    /// Posts what may be under way, or ends if it is enough.
    fn fill(&mut self, index: usize, goal: Goal, begin: Instant) -> Result<(), Failure> {
        let echoes = self.mode == Kind::Send && self.does == Does::Echo;
        while self.connections[index].state == State::Ready {
            let Connection {
                posted, done, back, ..
            } = self.connections[index];
            let done = if echoes { done.min(back) } else { done };
            if self.is_over(index, goal, begin) {
                if done < posted {
                    return Ok(());
                }
                return self.finish(index);
            }
            if posted - done >= u64::from(self.depth) || !self.post(index)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One message or transfer; whether it was taken.
    fn post(&mut self, index: usize) -> Result<bool, Failure> {
        let slice = self.slice(self.connections[index].posted % self.places());
        let connection = &mut self.connections[index];
        let session = self.initiator.endpoint.session(connection.id);
        let mut session = session.context("the connection is gone")?;
        let taken = match self.mode {
            Kind::Send => session.send(&[slice]).map(|_| ()),
            Kind::Write => session.write(&[slice], &connection.memory, 0).map(|_| ()),
            Kind::Read => session.read(&[slice], &connection.memory, 0).map(|_| ()),
        };
        match taken {
            Ok(()) => {
                connection.posted += 1;
                Ok(true)
            }
            // Its end is told next.
            Err(Misuse::Full { .. } | Misuse::NotConnected { .. }) => Ok(false),
            Err(error) => Err(Failure::new(Status::Usage, error)),
        }
    }

    /// All that was posted is done: a peer that counts says when it has arrived.
    fn finish(&mut self, index: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let counts = self.mode != Kind::Read && self.does == Does::Sink;
        let mut session = self.initiator.endpoint.session(connection.id);
        match &mut session {
            Some(session) if counts || self.mode == Kind::Write => {
                started(session.ask())?;
                connection.state = State::Asking;
            }
            _ => connection.state = State::Done,
        }
        Ok(())
    }

    fn look(&mut self, goal: Goal, begin: Instant) -> Result<(), Failure> {
        let mut last: Option<usize> = None;
        while let Some((id, happening)) = self.initiator.endpoint.poll() {
            let index = match last {
                Some(index) if self.connections[index].id == id => index,
                _ => self.find(id)?,
            };
            match happening {
                Happening::Sent(count, result) => {
                    let done = u64::from(is_done(result)?) * u64::from(count);
                    self.connections[index].done += done;
                }
                Happening::Transferred(_, result) => {
                    self.connections[index].done += u64::from(is_done(result)?);
                }
                Happening::Received => self.receive(index)?,
                Happening::Ended(gone) => {
                    let address = self.address.context("an address")?;
                    return Err(failure(address, &gone));
                }
                _ => {}
            }
            if let Some(last) = last.filter(|last| *last != index) {
                self.fill(last, goal, begin)?;
            }
            last = Some(index);
        }
        if let Some(last) = last {
            self.fill(last, goal, begin)?;
        }
        for index in 0..self.connections.len() {
            if self.connections[index].state == State::Asking {
                let session = self.initiator.endpoint.session(self.connections[index].id);
                let session = session.context("the connection is gone")?;
                let status = session.status();
                // The end of another one is told next.
                if status.state == Core::Connected && !status.awaits_sign_of_life {
                    self.connections[index].state = State::Done;
                }
            }
        }
        Ok(())
    }

    /// Echoes, in order.
    fn receive(&mut self, index: usize) -> Result<(), Failure> {
        let id = self.connections[index].id;
        loop {
            // The first one is compared whole, the others by their length.
            let first = self.connections[index].back == 0;
            let right = if first {
                let Some(answer) = self.initiator.take(id) else {
                    return Ok(());
                };
                answer == self.pattern(0)
            } else {
                let Some(len) = self.initiator.skip(id) else {
                    return Ok(());
                };
                len == self.size
            };
            self.right &= right;
            self.connections[index].back += 1;
        }
    }

    /// Something to be read.
    fn prepare(&mut self) -> Result<(), Failure> {
        let slice = self.slice(0);
        self.everywhere(|load, index| {
            let connection = &load.connections[index];
            let session = load.initiator.endpoint.session(connection.id);
            let mut session = session.context("the connection is gone")?;
            session
                .write(&[slice], &connection.memory, 0)
                .context("cannot write")?;
            Ok(())
        })
    }

    /// Whether all that was written is there, or what was read is what was there.
    ///
    /// # Errors
    /// A connection ended.
    pub(super) fn verify(&mut self) -> Result<bool, Failure> {
        match self.mode {
            Kind::Send => {}
            Kind::Read => {
                let wanted = self.pattern(0);
                let posted = self
                    .connections
                    .iter()
                    .map(|it| it.posted)
                    .max()
                    .unwrap_or(0);
                for place in 0..posted.min(self.places()) {
                    let found = self.initiator.endpoint.bytes(self.slice(place));
                    self.right &= found == wanted;
                }
            }
            Kind::Write => {
                let slice = self.slice(self.places());
                self.everywhere(|load, index| {
                    let connection = &load.connections[index];
                    let session = load.initiator.endpoint.session(connection.id);
                    let mut session = session.context("the connection is gone")?;
                    session
                        .read(&[slice], &connection.memory, 0)
                        .context("cannot read")?;
                    Ok(())
                })?;
                // The last connection's, which was read last.
                let last = self.connections.last().map_or(0, |it| it.posted);
                if last > 0 {
                    let wanted = self.pattern((last - 1) % self.places());
                    self.right &= self.initiator.endpoint.bytes(slice) == wanted;
                }
            }
        }
        Ok(self.right)
    }

    /// One transfer on each connection, one after the other.
    fn everywhere(
        &mut self,
        mut transfer: impl FnMut(&mut Self, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for index in 0..self.connections.len() {
            transfer(self, index)?;
            let mut done = false;
            while !done {
                self.initiator.wait(None)?;
                while let Some((_, happening)) = self.initiator.endpoint.poll() {
                    match happening {
                        Happening::Transferred(_, result) => {
                            done = is_done(result)?;
                        }
                        Happening::Ended(gone) => {
                            let address = self.address.context("an address")?;
                            return Err(failure(address, &gone));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}
