//! SMB Direct in front of a server that speaks TCP.
//!
//! Each connection of SMB Direct has a connection of TCP of its own, and what is a message at
//! one end is one at the other. `linkspan_smb2::gateway` says what has to be changed: data
//! of READ and WRITE with channel information, which is read from and written to the client's memory here.
//!
//! One thread serves all connections. A pair of them takes no message from its client
//! while as much waits for the server, and reads nothing from the server while it has no
//! memory for it, or the client does not take what there is: so each end sets the pace of
//! the other. Either end's end is the other's, when what was on its way has arrived.

mod down;
mod front;
mod pair;
mod seen;
mod stock;
mod up;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_engine::{LogLimit, Messages, Sights};
use linkspan_mem::fault::Injected;
use linkspan_smb2::{frame, gateway as core};
use linkspan_smbdirect::{Refusal, Status};
use linkspan_sys::Epoll;
use linkspan_sys::poll::Ready;
use thiserror::Error as ThisError;

use crate::rdma::{Host, Provider};
use crate::smbdirect::{Endpoint, Gone, Happening, Id};
pub use front::FrontConfig;
use front::{Front, Left};
use pair::Pair;
use stock::Stocks;

/// What the endpoint calls the descriptor that stands for all of TCP.
const TCP: u32 = u32::MAX - 1;

/// How long until memory is asked for again that the machine refused.
const REST: Duration = Duration::from_millis(20);

/// What of a message with data is not data, at most.
const AROUND: usize = 65_536;

/// Connections that are looked at after one wait.
const READY: usize = 64;

/// What a gateway is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the server is: the first address that answers.
    pub servers: Vec<SocketAddr>,
    /// Bytes of one READ or WRITE with channel information at most: what the server may agree to.
    pub max_io: u32,
    /// Bytes of messages and data that are on their way in one direction, of all connections: at
    /// least [`Config::least_memory`], or whoever wants more than there is waits for ever.
    pub memory: usize,
    /// Bytes of that for all connections of one address.
    pub share: usize,
    /// How long the server may take to answer a connection.
    pub connect_within: Duration,
}

impl Config {
    /// The defaults, for these addresses of a server.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            max_io: 8 << 20,
            memory: 128 << 20,
            share: 32 << 20,
            connect_within: Duration::from_secs(5),
        }
    }

    /// Bytes of the longest message of the server.
    fn longest(&self) -> usize {
        let max_io = usize::try_from(self.max_io).unwrap_or(usize::MAX);
        max_io.saturating_add(AROUND).min(frame::MESSAGE_MAX)
    }

    /// Bytes of memory with which any message goes through.
    #[must_use]
    pub fn least_memory(&self) -> usize {
        stock::least_memory(self.longest())
    }
}

/// Why a connection through the gateway is over.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum End {
    /// The client ended it, or is gone, or broke SMB Direct.
    #[error("client: {0}")]
    Client(Gone),
    /// The server cannot be reached.
    #[error("cannot connect to the server at {address}: {error}")]
    Connect {
        /// The last address that was tried.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The server has closed it.
    #[error("the server has closed the connection")]
    Closed,
    /// The connection to the server is lost.
    #[error("the connection to the server is lost: {0}")]
    Lost(io::Error),
    /// The connection to a client over TCP is lost.
    #[error("the connection to the client is lost: {0}")]
    Left(io::Error),
    /// Both ends of a connection over TCP have closed it.
    #[error("both ends have closed the connection")]
    Over,
    /// A message cannot go through a gateway.
    #[error("{0}")]
    Message(#[from] core::Error),
    /// A message of the server is longer than the client takes.
    #[error("the server's message of {len} bytes is longer than the {max} that the client takes")]
    Long {
        /// Its bytes.
        len: usize,
        /// What the client takes.
        max: usize,
    },
    /// SMB Direct did not do what it was asked for.
    #[error("SMB Direct: {0}")]
    Rdma(Refusal),
    /// The gateway ends.
    #[error("the gateway ends")]
    Stopped,
    /// The machine refused memory.
    #[error("{0}")]
    Machine(#[from] Injected),
}

impl End {
    /// Whether an end broke a protocol or cannot be served, which a person should hear of.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        match self {
            Self::Client(gone) => gone.is_broken(),
            Self::Closed | Self::Left(_) | Self::Over | Self::Stopped => false,
            _ => true,
        }
    }
}

/// What went through a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages from the client.
    pub up: u64,
    /// Messages from the server.
    pub down: u64,
    /// Bytes to the server, with their lengths.
    pub up_bytes: u64,
    /// Bytes from the server, with their lengths.
    pub down_bytes: u64,
    /// Bytes of them that were read from the client's memory.
    pub fetched: u64,
    /// Bytes of them that were written to the client's memory.
    pub placed: u64,
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.up += other.up;
        self.down += other.down;
        self.up_bytes += other.up_bytes;
        self.down_bytes += other.down_bytes;
        self.fetched += other.fetched;
        self.placed += other.placed;
    }
}

/// What has happened.
#[derive(Debug)]
pub enum Happened {
    /// A client has come, and is to be connected to the server.
    Connected {
        /// Its number.
        number: u64,
        /// Who it is.
        peer: SocketAddr,
    },
    /// A connection is over.
    Ended {
        /// Its number.
        number: u64,
        /// Who it was.
        peer: SocketAddr,
        /// What went through it.
        traffic: Traffic,
        /// Why it is over.
        end: End,
        /// How many others ended badly since one was told; `None`: this one is to be counted
        /// and not told.
        left_out: Option<u64>,
    },
    /// A connection over TCP is over.
    Relayed {
        /// Who it was.
        peer: SocketAddr,
        /// Bytes to the server and from it.
        bytes: [u64; 2],
        /// How often it was told of SMB Direct.
        told: u64,
        /// Why it is over.
        end: End,
        /// As above.
        left_out: Option<u64>,
    },
}

/// How everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Connections of SMB Direct, those that have not negotiated included.
    pub connections: usize,
    /// Those with a connection to the server, or on the way to it.
    pub pairs: usize,
    /// Buffers of messages and data that are in use.
    pub buffers: usize,
    /// Connections that wait for memory.
    pub stalled: usize,
    /// Connections over TCP.
    pub relays: usize,
}

/// A gateway.
pub struct Gateway<C: Host = Provider> {
    endpoint: Endpoint<C>,
    config: Config,
    tcp: Epoll,
    ready: Ready,
    pairs: Vec<Option<Box<Pair>>>,
    /// Clients over TCP, if they are heard.
    front: Option<Front>,
    stocks: Stocks,
    /// Those that wait for memory, the first one first.
    stalled: VecDeque<Id>,
    /// Descriptors of others that are ready.
    watched: VecDeque<u32>,
    happened: VecDeque<Happened>,
    limit: LogLimit,
    sights: Arc<Sights>,
    /// What went through connections that are over.
    past: Traffic,
    address: Option<SocketAddr>,
}

impl<C: Host> Gateway<C> {
    /// A gateway that does not listen yet, made of an endpoint.
    ///
    /// # Errors
    /// What `epoll_create1(2)` and `epoll_ctl(2)` report.
    pub fn new(endpoint: Endpoint<C>, config: Config) -> io::Result<Self> {
        let tcp = Epoll::new()?;
        endpoint.watch(&tcp, TCP)?;
        Ok(Self {
            endpoint,
            stocks: Stocks::new(config.memory, config.share),
            config,
            tcp,
            ready: Ready::with_capacity(READY),
            pairs: Vec::new(),
            front: None,
            stalled: VecDeque::new(),
            watched: VecDeque::new(),
            happened: VecDeque::new(),
            limit: LogLimit::default(),
            sights: Arc::default(),
            past: Traffic::default(),
            address: None,
        })
    }

    /// The messages that go through, with the numbers of their connections, and how long the
    /// server takes for its answers; of what is encrypted nothing is known.
    #[must_use]
    pub fn sights(&self) -> &Arc<Sights> {
        &self.sights
    }

    /// What goes over the connections of SMB Direct below them.
    #[must_use]
    pub fn messages(&self) -> &Arc<Messages> {
        self.endpoint.messages()
    }

    /// Where it listens first.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What went through all connections.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let mut sum = self.past;
        for pair in self.pairs.iter().flatten() {
            sum.add(&pair.traffic);
        }
        sum
    }

    /// Each connection of SMB Direct: its number, who it is, and how it is.
    pub fn connections(&self) -> impl Iterator<Item = (u64, SocketAddr, Status)> + '_ {
        let sessions = self.endpoint.sessions();
        sessions.map(|(_, number, peer, status)| (number, peer, status))
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

    /// Hears clients over TCP too, and says where.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn listen_tcp(&mut self, config: FrontConfig) -> io::Result<SocketAddr> {
        let within = self.config.connect_within;
        let front = Front::new(&self.tcp, config, &self.config.servers, within)?;
        let address = front.address()?;
        self.front = Some(front);
        Ok(address)
    }

    /// See [`Endpoint::watch`]; the number is below 2^31.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` reports.
    pub fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()> {
        self.endpoint.watch(source, number)
    }

    /// A watched descriptor that became ready.
    pub fn watched(&mut self) -> Option<u32> {
        self.watched.pop_front()
    }

    /// What has happened, in order.
    pub fn happened(&mut self) -> Option<Happened> {
        self.happened.pop_front()
    }

    /// How everything is.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            connections: self.endpoint.count(),
            pairs: self.pairs.iter().flatten().count(),
            buffers: self.stocks.lent(),
            stalled: self.stalled.len(),
            relays: self.front.as_ref().map_or(0, Front::count),
        }
    }

    /// Waits until something happens, at most for `timeout`, and does what is to be done.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let due = self.pairs.iter().flatten().filter_map(|pair| pair.due());
        let left = due
            .chain(self.front.as_ref().and_then(Front::due))
            .min()
            .map(|due| due.saturating_duration_since(Instant::now()));
        // The machine refused memory, and nothing that is in use may come back.
        let mut refused = !self.stalled.is_empty() && self.stocks.is_unused();
        let rest = refused.then_some(REST);
        self.endpoint
            .wait([timeout, left, rest].into_iter().flatten().min())?;
        while let Some((id, happening)) = self.endpoint.poll() {
            self.handle(id, happening);
        }
        let mut tcp = false;
        while let Some(number) = self.endpoint.watched() {
            match number {
                TCP => tcp = true,
                other => self.watched.push_back(other),
            }
        }
        if tcp {
            self.sockets()?;
        }
        if left.is_some() {
            self.overdue();
        }
        // Whoever is tried gives some back, too.
        while self.stocks.came_back() || std::mem::take(&mut refused) {
            self.retry();
        }
        Ok(())
    }

    /// Ends all connections in order, and listens no more.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn stop(&mut self) -> io::Result<()> {
        for pair in self.pairs.iter_mut().flatten() {
            pair.end.get_or_insert(End::Stopped);
        }
        if let Some(front) = self.front.take() {
            let left = front.stop(&self.tcp);
            self.relayed(left);
        }
        self.endpoint.begin_stop();
        while self.endpoint.stops() {
            self.turn(None)?;
        }
        Ok(())
    }

    fn handle(&mut self, id: Id, happening: Happening) {
        match happening {
            Happening::Connected => self.connected(id),
            Happening::Ended(gone) => self.gone(id, gone),
            other => {
                let stocks = &mut self.stocks;
                let Some(pair) = find(&mut self.pairs, id) else {
                    return;
                };
                if let Err(end) = pair.happened(stocks, other) {
                    pair.end.get_or_insert(end);
                }
                self.pump(id);
            }
        }
    }

    fn connected(&mut self, id: Id) {
        let Some(mut session) = self.endpoint.session(id) else {
            return;
        };
        session.admit();
        let (number, peer) = (session.number(), session.peer());
        let longest = session.status().max_fragmented_send_size;
        let held = self.stocks.of(peer.ip());
        let (config, sights) = (&self.config, &self.sights);
        let pair = Pair::new(id, (number, peer), longest, held, config, sights);
        if self.pairs.len() <= id.place() {
            self.pairs.resize_with(id.place() + 1, || None);
        }
        self.pairs[id.place()] = Some(Box::new(pair));
        self.happened
            .push_back(Happened::Connected { number, peer });
        self.pump(id);
    }

    /// The connection of SMB Direct is over, so nobody but us has its buffers.
    fn gone(&mut self, id: Id, gone: Gone) {
        self.stalled.retain(|stalled| *stalled != id);
        if find(&mut self.pairs, id).is_none() {
            return;
        }
        let Some(mut pair) = self.pairs[id.place()].take() else {
            return;
        };
        pair.close(&self.tcp);
        pair.give_all(&mut self.stocks);
        self.past.add(&pair.traffic);
        let end = pair.end.take().unwrap_or(End::Client(gone));
        let left_out = self.allow(&end);
        self.happened.push_back(Happened::Ended {
            number: pair.number,
            peer: pair.peer,
            traffic: pair.traffic,
            end,
            left_out,
        });
    }

    /// Sockets that are ready.
    fn sockets(&mut self) -> io::Result<()> {
        self.tcp.wait(&mut self.ready, Some(Duration::ZERO))?;
        let mut ready = [None; READY];
        for (place, event) in ready.iter_mut().zip(self.ready.iter()) {
            *place = Some(event);
        }
        for event in ready.into_iter().flatten() {
            if let Some(front) = self.front.as_mut().filter(|_| Front::has(event.token)) {
                front.ready(&self.tcp, event);
                continue;
            }
            let place = usize::try_from(event.token).unwrap_or(usize::MAX);
            let Some(pair) = self.pairs.get_mut(place).and_then(Option::as_deref_mut) else {
                continue;
            };
            pair.ready(&self.tcp, event);
            let id = pair.id;
            self.pump(id);
        }
        if let Some(front) = &mut self.front {
            front.accept(&self.tcp);
            let left = front.left();
            self.relayed(left);
        }
        Ok(())
    }

    /// Connections over TCP that are over.
    fn relayed(&mut self, left: Vec<Left>) {
        for Left {
            peer,
            bytes,
            told,
            end,
        } in left
        {
            let left_out = self.allow(&end);
            self.happened.push_back(Happened::Relayed {
                peer,
                bytes,
                told,
                end,
                left_out,
            });
        }
    }

    /// Whether an end is to be told.
    fn allow(&mut self, end: &End) -> Option<u64> {
        match end.is_bad() {
            true => self.limit.allow(),
            false => Some(0),
        }
    }

    /// Servers that take too long to answer.
    fn overdue(&mut self) {
        if let Some(front) = &mut self.front {
            front.overdue(&self.tcp);
            let left = front.left();
            self.relayed(left);
        }
        let now = Instant::now();
        let late = self.pairs.iter().flatten();
        let late = late.filter(|pair| pair.due().is_some_and(|due| due <= now));
        let late: Vec<Id> = late.map(|pair| pair.id).collect();
        for id in late {
            if let Some(pair) = find(&mut self.pairs, id) {
                pair.next_server(&self.tcp, io::ErrorKind::TimedOut.into());
                self.pump(id);
            }
        }
    }

    /// Whoever waits for memory may find it now. One that needs more than there is holds up
    /// nobody behind it.
    fn retry(&mut self) {
        for _ in 0..self.stalled.len() {
            let Some(id) = self.stalled.pop_front() else {
                return;
            };
            self.pump(id);
        }
    }

    /// Does what can be done on a connection.
    fn pump(&mut self, id: Id) {
        let Some(pair) = find(&mut self.pairs, id) else {
            return;
        };
        let result = match pair.end {
            Some(_) => Ok(()),
            None => pair.pump(&mut self.endpoint, &mut self.stocks, &self.tcp),
        };
        if let Err(end) = result {
            pair.end.get_or_insert(end);
        }
        if pair.end.is_some() {
            // Its buffers come back when the other connection is over too.
            pair.close(&self.tcp);
            if let Some(mut session) = self.endpoint.session(id) {
                session.disconnect();
            }
            return;
        }
        if pair.stalled() && !self.stalled.contains(&id) {
            self.stalled.push_back(id);
        }
    }
}

/// The pair of a connection; nothing if it is over, or another one has its place.
fn find(pairs: &mut [Option<Box<Pair>>], id: Id) -> Option<&mut Pair> {
    let pair = pairs.get_mut(id.place())?.as_deref_mut()?;
    (pair.id == id).then_some(pair)
}
