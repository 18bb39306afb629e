//! One connection of SMB Direct and the connection of TCP behind it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_engine::Sights;
use linkspan_smb2::gateway::Gateway as Core;
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, ReadyEvent};
use linkspan_sys::tcp::TcpStream;

use super::down::Down;
use super::seen::Seen;
use super::stock::{Held, Stocks};
use super::up::Up;
use super::{Config, End, Traffic};
use crate::rdma::Host;
use crate::smbdirect::{Endpoint, Happening, Id};

/// How far the connection to the server is.
enum Server {
    /// Nobody was asked; these are to be.
    Fresh,
    /// Somebody was asked, and may take so long to answer.
    Connecting { stream: TcpStream, due: Instant },
    /// It is there.
    Open(TcpStream),
    /// It is over.
    Closed,
}

/// Both connections.
pub(super) struct Pair {
    pub(super) id: Id,
    pub(super) number: u64,
    pub(super) peer: SocketAddr,
    pub(super) traffic: Traffic,
    /// Why it is over, if it is.
    pub(super) end: Option<End>,
    core: Seen,
    servers: Vec<SocketAddr>,
    /// How many of them were asked.
    asked: usize,
    connect_within: Duration,
    server: Server,
    /// What the socket is watched for; nothing if it is not.
    interest: Option<Interest>,
    up: Up,
    down: Down,
}

impl Pair {
    /// One that is not connected to the server. `longest`: bytes of a message that the
    /// client takes; `held`: what its address has of the memory.
    pub(super) fn new(
        id: Id,
        (number, peer): (u64, SocketAddr),
        longest: u32,
        [up, down]: [Held; 2],
        config: &Config,
        sights: &Arc<Sights>,
    ) -> Self {
        Self {
            id,
            number,
            peer,
            traffic: Traffic::default(),
            end: None,
            core: Seen::new(Core::new(config.max_io), number, Arc::clone(sights)),
            servers: config.servers.clone(),
            asked: 0,
            connect_within: config.connect_within,
            server: Server::Fresh,
            interest: None,
            up: Up::new(up),
            down: Down::new(longest as usize, config.longest(), down),
        }
    }

    /// When the server has to have answered.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.server {
            Server::Connecting { due, .. } => Some(due),
            _ => None,
        }
    }

    /// Whether it waits for memory.
    pub(super) fn stalled(&self) -> bool {
        self.up.stalled || self.down.stalled
    }

    /// Takes note of what happened over SMB Direct.
    pub(super) fn happened(
        &mut self,
        stocks: &mut Stocks,
        happening: Happening,
    ) -> Result<(), End> {
        match happening {
            Happening::Sent(count, Ok(())) => self.down.sent(&mut stocks.down, count),
            Happening::Transferred(id, Ok(())) => {
                let fetched = self.up.fetched(id);
                if !fetched {
                    self.down.placed(&mut stocks.down, id);
                }
            }
            // Others that began earlier may be under way: all buffers come back with the end.
            Happening::Sent(_, Err(why)) | Happening::Transferred(_, Err(why)) => {
                return Err(End::Rdma(why));
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes note of what happened on the socket.
    pub(super) fn ready(&mut self, tcp: &Epoll, event: ReadyEvent) {
        if event.closed && self.interest == Some(Interest::NONE) {
            // It would be told again and again while nobody reads.
            self.unwatch(tcp);
        }
        let Server::Connecting { stream, .. } = &self.server else {
            return;
        };
        if !event.writable && !event.closed {
            return;
        }
        match stream.check() {
            Ok(()) => {
                let connected = std::mem::replace(&mut self.server, Server::Closed);
                if let Server::Connecting { stream, .. } = connected {
                    self.server = Server::Open(stream);
                }
            }
            Err(error) => self.next_server(tcp, error),
        }
    }

    /// One address did not answer, or none was asked yet: the next one.
    pub(super) fn next_server(&mut self, tcp: &Epoll, mut error: io::Error) {
        self.close(tcp);
        while let Some(&address) = self.servers.get(self.asked) {
            self.asked += 1;
            let connecting = TcpStream::connect(address).and_then(|stream| {
                tcp.add(&stream, self.id.place() as u64, Interest::WRITE)?;
                Ok(stream)
            });
            match connecting {
                Ok(stream) => {
                    self.interest = Some(Interest::WRITE);
                    let due = Instant::now() + self.connect_within;
                    self.server = Server::Connecting { stream, due };
                    return;
                }
                Err(other) => error = other,
            }
        }
        let address = self.servers.last().copied();
        let address = address.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        self.end.get_or_insert(End::Connect { address, error });
    }

    /// Does what can be done.
    pub(super) fn pump<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        stocks: &mut Stocks,
        tcp: &Epoll,
    ) -> Result<(), End> {
        if matches!(self.server, Server::Fresh) {
            self.next_server(tcp, io::ErrorKind::AddrNotAvailable.into());
        }
        let (id, traffic) = (self.id, &mut self.traffic);
        self.up
            .take(id, endpoint, &mut stocks.up, &mut self.core, traffic)?;
        let Server::Open(stream) = &self.server else {
            return Ok(());
        };
        self.up.write(endpoint, &mut stocks.up, stream, traffic)?;
        // What was written made room.
        self.up
            .take(id, endpoint, &mut stocks.up, &mut self.core, traffic)?;
        self.down.read(
            id,
            endpoint,
            &mut stocks.down,
            stream,
            &mut self.core,
            traffic,
        )?;
        if self.down.is_over() {
            return Err(End::Closed);
        }
        self.watch(tcp).map_err(End::Lost)
    }

    /// Watches the socket for what can be done with it.
    fn watch(&mut self, tcp: &Epoll) -> io::Result<()> {
        let Server::Open(stream) = &self.server else {
            return Ok(());
        };
        let wanted = match (self.down.wants(), self.up.blocked) {
            (true, true) => Interest::READ_WRITE,
            (true, false) => Interest::READ,
            (false, true) => Interest::WRITE,
            (false, false) => Interest::NONE,
        };
        match self.interest {
            Some(interest) if interest == wanted => return Ok(()),
            Some(_) => tcp.modify(stream, self.id.place() as u64, wanted)?,
            None if wanted == Interest::NONE => return Ok(()),
            None => tcp.add(stream, self.id.place() as u64, wanted)?,
        }
        self.interest = Some(wanted);
        Ok(())
    }

    fn unwatch(&mut self, tcp: &Epoll) {
        if let Server::Connecting { stream, .. } | Server::Open(stream) = &self.server
            && self.interest.take().is_some()
        {
            // It is watched, or closed right after.
            let _ = tcp.delete(stream);
        }
    }

    /// Closes the connection to the server.
    pub(super) fn close(&mut self, tcp: &Epoll) {
        self.unwatch(tcp);
        self.server = Server::Closed;
    }

    /// Gives all buffers back; nobody else has any.
    pub(super) fn give_all(&mut self, stocks: &mut Stocks) {
        self.up.give_all(&mut stocks.up);
        self.down.give_all(&mut stocks.down);
    }
}
