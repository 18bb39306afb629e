//! The provider and the connections on it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_engine::Messages;
use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::iwarp::WireError;
use linkspan_rdma::verbs::{Event, Failure, MemoryId, Slice, Verbs as _};
use linkspan_rdma::{Memories, Pool};
use linkspan_smbdirect::{
    Blame, Connection, Driver, Error, News, OptionsError, Refusal, RegistrationId, Status,
    TransferId, private_data,
};
use thiserror::Error as ThisError;

use super::{Classes, Config, Session, log};
use crate::rdma::{ConnectionId, DeviceProvider, Host, Provider, ProviderError};

/// A connection of an endpoint. The number never comes back.
pub type Id = ConnectionId;

/// An address that is none.
pub(super) const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// Why there is no endpoint, or no connection.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum EndpointError {
    /// Parameters that cannot be.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The provider.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The machine refused memory.
    #[error(transparent)]
    Machine(#[from] Injected),
}

/// A connection that is over.
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    /// Its number.
    pub number: u64,
    /// Who was at the other end.
    pub peer: SocketAddr,
    /// What SMB Direct says.
    pub error: Error,
    /// What iWARP says.
    pub failure: Failure,
}

impl Gone {
    /// Whether somebody broke a protocol: the peer, or we, as it says.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        match self.error.blame() {
            Blame::Peer | Blame::Unsupported => true,
            Blame::Lost | Blame::Local => {
                match self.failure {
                    // Who dies does not choose where.
                    Failure::Wire(error) => error != WireError::Truncated,
                    Failure::Refused { .. } => true,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            // The transport knows more.
            Error::Lost | Error::Work { .. } => write!(f, "{}", self.failure),
            error => write!(f, "{error}"),
        }
    }
}

/// What happens on a connection.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    /// Sizes and credits are agreed upon.
    Connected,
    /// There is something to be read. Told once for all that came.
    Received,
    /// So many messages were sent, in order; or one was not. One that was not may be told
    /// before others that were sent earlier and are still under way: what they were made of
    /// is needed until they are told, or until [`Ended`](Self::Ended).
    Sent(u32, Result<(), Refusal>),
    /// A read or write is done, or not.
    Transferred(TransferId, Result<(), Refusal>),
    /// A registration has ended, and its memory is its owner's; or it could not be ended while
    /// there is a connection, with which it ends in any case.
    Deregistered(RegistrationId, Result<(), Refusal>),
    /// All is over.
    Ended(Gone),
}

/// A connection, and what its endpoint knows of it.
pub(super) struct Entry {
    pub(super) id: Id,
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    pub(super) driver: Driver,
    /// When it is looked at next: no later than it needs.
    timer: Option<u64>,
    /// It is in the queue of those that have something to do.
    touched: bool,
    /// Writes that were refused and that nobody took notice of yet, and why the last one was.
    pub(super) unheard: (usize, Option<Refusal>),
    /// What was logged last.
    logged: Status,
}

impl Entry {
    /// It has something to do.
    pub(super) fn touch(&mut self, queue: &mut VecDeque<Id>) {
        if !self.touched {
            self.touched = true;
            queue.push_back(self.id);
        }
    }

    /// Puts what went by into words.
    fn pass(&mut self, messages: &Messages) {
        let number = self.number;
        for passing in self.driver.passing() {
            let text = || format!("{number}: {}", passing.text());
            if passing.is_negotiation() {
                messages.pass(passing.by_peer, text());
            } else {
                messages.pass_watched(passing.by_peer, text);
            }
        }
    }

    /// What an upper layer makes of news.
    fn told(&mut self, news: News) -> Option<Told> {
        let mut refuses = false;
        let happening = match news {
            News::Connected => Happening::Connected,
            News::Received => Happening::Received,
            News::Sent { result, .. } => Happening::Sent(1, result),
            News::Transferred {
                transfer,
                write,
                result,
            } => {
                if let Some(why) = result.err().filter(|_| write) {
                    self.unheard = (self.unheard.0 + 1, Some(why));
                    refuses = true;
                }
                Happening::Transferred(transfer, result)
            }
            News::Deregistered { id, result } => Happening::Deregistered(id, result),
            News::Ended(error) => Happening::Ended(self.gone(error)),
        };
        Some(Told {
            id: self.id,
            happening,
            refuses,
        })
    }

    fn gone(&self, error: Error) -> Gone {
        Gone {
            number: self.number,
            peer: self.peer,
            error,
            failure: self.driver.failure().unwrap_or(Failure::Lost),
        }
    }
}

/// SMB Direct over iWARP, or over what else makes connections.
pub struct Endpoint<C: Host = Provider> {
    provider: C,
    config: Config,
    begin: Instant,
    now_ms: u64,
    entries: Vec<Option<Box<Entry>>>,
    next_number: u64,
    /// The headers of all connections.
    headers: Pool,
    touched: VecDeque<Id>,
    timers: BTreeSet<(u64, Id)>,
    happenings: VecDeque<Told>,
    classes: Classes,
    /// Connections that ended before they asked for anything.
    unasked: u64,
    /// Until when the last ones may take to go.
    stopping: Option<Instant>,
    messages: Arc<Messages>,
}

/// What nobody took notice of yet.
struct Told {
    id: Id,
    happening: Happening,
    /// A write was refused.
    refuses: bool,
}

/// How long connections may take to end.
const STOP: Duration = Duration::from_secs(3);

impl Endpoint {
    /// An endpoint over TCP, without connections.
    ///
    /// # Errors
    /// Parameters that cannot be; what the system refuses.
    pub fn new(config: Config) -> Result<Self, EndpointError> {
        config.options.fit(&config.iwarp.options.limits)?;
        Ok(Self::over(config, Provider::new(config.iwarp)?))
    }
}

impl Endpoint<DeviceProvider> {
    /// An endpoint over devices, without connections.
    ///
    /// # Errors
    /// Parameters that cannot be; there is no rdma-core, or no RDMA; what the system refuses.
    pub fn of_devices(config: Config) -> Result<Self, EndpointError> {
        let device = config.device();
        config.options.fit(&device.limits)?;
        Ok(Self::over(config, DeviceProvider::new(device)?))
    }
}

impl<C: Host> Endpoint<C> {
    fn over(config: Config, provider: C) -> Self {
        let header_bytes = Driver::header_bytes(&config.options);
        let connections = config.iwarp.connections;
        Self {
            provider,
            headers: Pool::new(
                header_bytes,
                connections.saturating_mul(header_bytes as usize * 2),
            ),
            config,
            begin: Instant::now(),
            now_ms: 0,
            entries: Vec::new(),
            next_number: 1,
            touched: VecDeque::new(),
            timers: BTreeSet::new(),
            happenings: VecDeque::new(),
            classes: Classes::NONE,
            unasked: 0,
            stopping: None,
            messages: Arc::default(),
        }
    }

    /// What goes over its connections: what they are agreed upon, and all while somebody watches.
    #[must_use]
    pub fn messages(&self) -> &Arc<Messages> {
        &self.messages
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes connections from now on. Says where.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        self.provider.listen(address)
    }

    /// Begins to connect.
    ///
    /// # Errors
    /// What the system refuses at once.
    pub fn connect(&mut self, address: SocketAddr) -> Result<Id, EndpointError> {
        self.tell_time();
        let said = private_data(&self.config.options);
        let id = self.provider.connect(address, &said)?;
        if let Err(error) = self.add(id, address) {
            self.provider.verbs(id).disconnect();
            return Err(error);
        }
        Ok(id)
    }

    fn add(&mut self, id: Id, peer: SocketAddr) -> Result<(), EndpointError> {
        let Config { role, options, .. } = self.config;
        // A device that is not found yet has what was asked for.
        let limits = self.provider.verbs(id).limits();
        let core = Connection::new(role, &options, &limits, self.now_ms)?;
        let refused = Injected {
            site: linkspan_mem::fault::Site::Alloc,
        };
        let headers = self.provider.buffer(&mut self.headers).ok_or(refused)?;
        let driver = Driver::new(core, headers);
        let entry = Entry {
            id,
            number: self.next_number,
            peer,
            logged: driver.core().status(),
            driver,
            timer: None,
            touched: false,
            unheard: (0, None),
        };
        self.next_number += 1;
        // One that is over, and was not asked for.
        if let Some(old) = self.entries.get(id.place()).and_then(Option::as_ref) {
            self.remove(old.id);
        }
        if self.entries.len() <= id.place() {
            self.entries.resize_with(id.place() + 1, || None);
        }
        let entry = self.entries[id.place()].insert(Box::new(entry));
        // Its first receive is to be posted.
        entry.touch(&mut self.touched);
        Ok(())
    }

    /// Makes memory known to all connections.
    ///
    /// # Errors
    /// When there is no room for its number.
    pub fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        self.provider.add_memory(region)
    }

    /// Forgets memory; work that names it ends its connection.
    pub fn remove_memory(&mut self, memory: MemoryId) -> Option<Region> {
        self.provider.remove_memory(memory)
    }

    /// The memory that is known here.
    #[must_use]
    pub fn memories(&self) -> &Memories {
        self.provider.memories()
    }

    /// A buffer of a pool whose memory is known here.
    pub fn buffer(&mut self, pool: &mut Pool) -> Option<Slice> {
        self.provider.buffer(pool)
    }

    /// Writes bytes into memory; how many fit.
    pub fn fill(&mut self, memory: MemoryId, offset: u64, bytes: &[u8]) -> usize {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let slice = Slice {
            memory,
            len,
            offset,
        };
        let place = self.provider.memories().slice(slice);
        place.map_or(0, |place| place.write(bytes))
    }

    /// The bytes of a slice; none if it is not there.
    #[must_use]
    pub fn bytes(&self, slice: Slice) -> Vec<u8> {
        let mut bytes = vec![0; slice.len as usize];
        let place = self.provider.memories().slice(slice);
        let len = place.map_or(0, |place| place.read(&mut bytes));
        bytes.truncate(len);
        bytes
    }

    /// Writes what goes over connections to a file; see [`Host::capture`].
    ///
    /// # Errors
    /// What the system says of the file.
    pub fn capture(&mut self, file: File) -> io::Result<()> {
        self.provider.capture(file)
    }

    /// Watches another descriptor; see [`Host::watch`].
    ///
    /// # Errors
    /// What `epoll_ctl(2)` reports.
    pub fn watch(&self, source: impl AsFd, number: u32) -> io::Result<()> {
        self.provider.watch(source, number)
    }

    /// A watched descriptor that the last wait found ready.
    pub fn watched(&mut self) -> Option<u32> {
        self.provider.watched()
    }

    /// Logs these classes from now on.
    pub fn log(&mut self, classes: Classes) {
        self.classes = classes;
        // What was before is not told.
        for entry in self.entries.iter_mut().flatten() {
            entry.logged = entry.driver.core().status();
        }
    }

    /// What is logged.
    #[must_use]
    pub fn classes(&self) -> Classes {
        self.classes
    }

    /// Connections, those that have not negotiated or that end included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.provider.count()
    }

    /// See [`Host::guests`].
    #[must_use]
    pub fn guests(&self) -> (usize, u64) {
        self.provider.guests()
    }

    /// Connections that ended before they asked for anything of SMB Direct.
    #[must_use]
    pub fn unasked(&self) -> u64 {
        self.unasked
    }

    /// See [`Host::buffers`].
    #[must_use]
    pub fn buffers(&self) -> (usize, usize) {
        self.provider.buffers()
    }

    /// See [`Host::short`].
    #[must_use]
    pub fn short(&self) -> usize {
        self.provider.short()
    }

    /// See [`Host::system_calls`].
    #[must_use]
    pub fn system_calls(&self) -> u64 {
        self.provider.system_calls()
    }

    /// Each connection: its number, who it is, and how it is.
    pub fn sessions(&self) -> impl Iterator<Item = (Id, u64, SocketAddr, Status)> + '_ {
        let entries = self.entries.iter().flatten();
        entries.map(|entry| {
            (
                entry.id,
                entry.number,
                entry.peer,
                entry.driver.core().status(),
            )
        })
    }

    /// The connection of that number; `None` when it is over.
    pub fn session(&mut self, id: Id) -> Option<Session<'_, C>> {
        let entry = find(&mut self.entries, id)?;
        Some(Session {
            entry,
            provider: &mut self.provider,
            touched: &mut self.touched,
            now_ms: self.now_ms,
        })
    }

    /// What has happened, in order. To be asked until there is nothing after each
    /// [`wait`](Self::wait).
    pub fn poll(&mut self) -> Option<(Id, Happening)> {
        let Told {
            id,
            happening,
            refuses,
        } = self.happenings.pop_front()?;
        if refuses && let Some(entry) = find(&mut self.entries, id) {
            entry.unheard.0 -= 1;
        }
        if let Happening::Ended(_) = happening {
            self.remove(id);
        }
        Some((id, happening))
    }

    /// Does what is to be done, and waits until something has happened, at most for
    /// `timeout`.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.tell_time();
        self.pump();
        let timeout = if self.happenings.is_empty() {
            self.timeout(timeout)
        } else {
            Some(Duration::ZERO)
        };
        self.provider.wait(timeout)?;
        self.tell_time();
        while let Some((id, event)) = self.provider.poll() {
            self.event(id, event);
        }
        self.tick();
        self.pump();
        self.provider.flush();
        Ok(())
    }

    fn timeout(&self, timeout: Option<Duration>) -> Option<Duration> {
        let stop = self
            .stopping
            .map(|until| until.saturating_duration_since(Instant::now()));
        let timer = self.timers.first().map(|(due, _)| {
            let due = Duration::from_millis(*due);
            due.saturating_sub(self.begin.elapsed()) + Duration::from_millis(1)
        });
        [timeout, stop, timer].into_iter().flatten().min()
    }

    fn tell_time(&mut self) {
        self.now_ms = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    }

    fn event(&mut self, id: Id, event: Event) {
        if matches!(event, Event::Requested(_)) {
            let peer = self.provider.peer(id).unwrap_or(NOBODY);
            if self.stopping.is_some() || self.add(id, peer).is_err() {
                // Whoever finds no room is told so.
                let _ = self.provider.verbs(id).reject(&[]);
                return;
            }
        }
        let Some(entry) = find(&mut self.entries, id) else {
            self.unasked += u64::from(matches!(event, Event::Ended(_)));
            return;
        };
        let memories = self.provider.memories();
        entry.driver.watch(self.messages.are_watched());
        entry.driver.happened(self.now_ms, memories, event);
        entry.touch(&mut self.touched);
    }

    fn tick(&mut self) {
        while let Some(&(due, id)) = self.timers.first().filter(|(due, _)| *due <= self.now_ms) {
            self.timers.remove(&(due, id));
            if let Some(entry) = find(&mut self.entries, id) {
                entry.timer = None;
                entry.driver.core_mut().handle_timeout(self.now_ms);
                entry.touch(&mut self.touched);
            }
        }
    }

    /// Carries out what the connections want.
    fn pump(&mut self) {
        while let Some(id) = self.touched.pop_front() {
            let Some(entry) = find(&mut self.entries, id) else {
                continue;
            };
            entry.touched = false;
            let mut verbs = self.provider.verbs(id);
            entry.driver.watch(self.messages.are_watched());
            loop {
                if let Some(count) = entry.driver.poll_sent() {
                    let happening = Happening::Sent(count, Ok(()));
                    self.happenings.push_back(Told {
                        id,
                        happening,
                        refuses: false,
                    });
                }
                let Some(news) = entry.driver.poll(self.now_ms, &mut verbs) else {
                    break;
                };
                self.happenings.extend(entry.told(news));
            }
            entry.pass(&self.messages);
            let due = entry.driver.core().next_timeout();
            if let Some(due) = due.filter(|due| entry.timer.is_none_or(|timer| *due < timer)) {
                if let Some(timer) = entry.timer.replace(due) {
                    self.timers.remove(&(timer, id));
                }
                self.timers.insert((due, id));
            }
            if self.classes != Classes::NONE {
                let status = entry.driver.core().status();
                log::changes(self.classes, entry.number, &entry.logged, &status);
                entry.logged = status;
            }
        }
    }

    /// Forgets a connection that is over; all that it holds goes back.
    fn remove(&mut self, id: Id) {
        if find(&mut self.entries, id).is_none() {
            return;
        }
        let Some(mut entry) = self.entries[id.place()].take() else {
            return;
        };
        while let Some(message) = entry.driver.core().message() {
            entry.driver.core_mut().consume(message.arrived);
        }
        let mut verbs = self.provider.verbs(id);
        while entry.driver.poll(self.now_ms, &mut verbs).is_some() {}
        self.headers.put(entry.driver.headers());
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, id));
        }
    }

    /// Begins to end all connections, and listens no more.
    pub fn begin_stop(&mut self) {
        self.provider.listen_no_more();
        self.stopping = Some(Instant::now() + STOP);
        for entry in self.entries.iter_mut().flatten() {
            entry.driver.core_mut().disconnect();
            entry.touch(&mut self.touched);
        }
    }

    /// Whether that is not done yet, and not given up.
    #[must_use]
    pub fn stops(&self) -> bool {
        let in_time = self.stopping.is_some_and(|until| Instant::now() < until);
        let left = self.provider.count() > 0 || !self.happenings.is_empty();
        in_time && left
    }

    /// Ends all connections, whatever happens on them meanwhile.
    ///
    /// # Errors
    /// What `epoll_wait(2)` reports.
    pub fn stop(&mut self) -> io::Result<()> {
        self.begin_stop();
        while self.stops() {
            self.wait(None)?;
            while self.poll().is_some() {}
        }
        Ok(())
    }
}

/// The connection of that number.
fn find(entries: &mut [Option<Box<Entry>>], id: Id) -> Option<&mut Entry> {
    let entry = entries.get_mut(id.place())?.as_deref_mut()?;
    (entry.id == id).then_some(entry)
}
