//! One connection over TCP, and that to the server behind it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use linkspan_smb2::announce::Announce;
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, ReadyEvent};
use linkspan_sys::tcp::TcpStream;

use super::super::End;
use super::flow::{Flow, Origin};

/// Which socket of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// A socket, and what it is watched for.
struct Watched {
    stream: TcpStream,
    token: u64,
    /// Nothing if it is not watched.
    interest: Option<Interest>,
    /// Both halves of it are over; what has come may still be read.
    closed: bool,
}

impl Watched {
    fn new(tcp: &Epoll, stream: TcpStream, token: u64, interest: Interest) -> io::Result<Self> {
        tcp.add(&stream, token, interest)?;
        Ok(Self {
            stream,
            token,
            interest: Some(interest),
            closed: false,
        })
    }

    fn watch(&mut self, tcp: &Epoll, reads: bool, writes: bool) -> io::Result<()> {
        let wanted = match (reads, writes) {
            (true, true) => Some(Interest::READ_WRITE),
            (true, false) => Some(Interest::READ),
            (false, true) => Some(Interest::WRITE),
            // It would be told again and again while nobody reads.
            (false, false) if self.closed => None,
            (false, false) => Some(Interest::NONE),
        };
        match (self.interest, wanted) {
            (was, wanted) if was == wanted => {}
            (Some(_), Some(wanted)) => tcp.modify(&self.stream, self.token, wanted)?,
            (None, Some(wanted)) => tcp.add(&self.stream, self.token, wanted)?,
            (_, None) => tcp.delete(&self.stream)?,
        }
        self.interest = wanted;
        Ok(())
    }

    /// Ends the watch; it is closed right after.
    fn unwatch(&mut self, tcp: &Epoll) {
        if self.interest.take().is_some() {
            let _ = tcp.delete(&self.stream);
        }
    }
}

pub(super) struct Relay {
    pub(super) peer: SocketAddr,
    client: Watched,
    server: Option<Watched>,
    /// When the server has to have answered, until it has.
    due: Option<Instant>,
    /// Addresses of the server that were not asked, the next one last.
    servers: Vec<SocketAddr>,
    last: Option<SocketAddr>,
    connect_within: Duration,
    tokens: [u64; 2],
    announce: Announce,
    up: Flow,
    down: Flow,
    /// Answers that were changed.
    pub(super) told: u64,
}

impl Relay {
    /// Connects a client to the first of these servers that answers.
    pub(super) fn new(
        tcp: &Epoll,
        client: TcpStream,
        tokens: [u64; 2],
        rdma: IpAddr,
        (servers, connect_within): (&[SocketAddr], Duration),
    ) -> Result<Self, End> {
        let peer = client.peer().map_err(End::Left)?;
        // Who asks is told of the address that was reached, if SMB Direct is at all of them.
        let address = match rdma.is_unspecified() {
            true => client.address().map_err(End::Left)?.ip(),
            false => rdma,
        };
        let client = Watched::new(tcp, client, tokens[0], Interest::NONE).map_err(End::Left)?;
        let mut relay = Self {
            peer,
            client,
            server: None,
            due: None,
            servers: servers.iter().rev().copied().collect(),
            last: None,
            connect_within,
            tokens,
            announce: Announce::new(address.to_canonical()),
            up: Flow::new(Origin::Client),
            down: Flow::new(Origin::Server),
            told: 0,
        };
        relay.next_server(tcp, io::ErrorKind::AddrNotAvailable.into())?;
        Ok(relay)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Bytes that have gone to the server, and to the client.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.up.total, self.down.total]
    }

    /// One address did not answer, or none was asked yet: the next one.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn next_server(&mut self, tcp: &Epoll, mut error: io::Error) -> Result<(), End> {
        self.close_server(tcp);
        while let Some(address) = self.servers.pop() {
            self.last = Some(address);
            let connecting = TcpStream::connect(address)
                .and_then(|stream| Watched::new(tcp, stream, self.tokens[1], Interest::WRITE));
            match connecting {
                Ok(watched) => {
                    self.server = Some(watched);
                    self.due = Some(Instant::now() + self.connect_within);
                    return Ok(());
                }
                Err(other) => error = other,
            }
        }
        let address = self.last.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        Err(End::Connect { address, error })
    }

    /// A socket is ready.
    ///
    /// # Errors
    /// The connection is over.
    pub(super) fn ready(&mut self, tcp: &Epoll, side: Side, event: ReadyEvent) -> Result<(), End> {
        if self.due.is_some() {
            return match side {
                Side::Server => self.answered(tcp, event),
                // It is gone before anybody has answered.
                Side::Client if event.closed => {
                    Err(End::Left(io::ErrorKind::ConnectionReset.into()))
                }
                Side::Client => Ok(()),
            };
        }
        match side {
            Side::Client => self.client.closed |= event.closed,
            Side::Server => {
                if let Some(server) = &mut self.server {
                    server.closed |= event.closed;
                }
            }
        }
        self.pump(tcp)
    }

    fn answered(&mut self, tcp: &Epoll, event: ReadyEvent) -> Result<(), End> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        if !event.writable && !event.closed {
            return Ok(());
        }
        if let Err(error) = server.stream.check() {
            return self.next_server(tcp, error);
        }
        self.due = None;
        self.pump(tcp)
    }

    /// Does what can be done both ways.
    fn pump(&mut self, tcp: &Epoll) -> Result<(), End> {
        let Some(server) = &mut self.server else {
            return Ok(());
        };
        let (client, announce) = (&mut self.client, &mut self.announce);
        self.up.pump(&client.stream, &server.stream, announce)?;
        self.told += self.down.pump(&server.stream, &client.stream, announce)?;
        // Who is gone hears nothing, but what it has said still arrives.
        let over = [
            self.up.is_over() && (client.closed || self.down.is_over()),
            self.down.is_over() && (server.closed || self.up.is_over()),
        ];
        if over.contains(&true) {
            return Err(End::Over);
        }
        let watched = client.watch(tcp, self.up.wants(), self.down.has());
        watched.map_err(End::Left)?;
        let watched = server.watch(tcp, self.down.wants(), self.up.has());
        watched.map_err(End::Lost)
    }

    fn close_server(&mut self, tcp: &Epoll) {
        self.due = None;
        if let Some(mut server) = self.server.take() {
            server.unwatch(tcp);
        }
    }

    /// Closes both connections.
    pub(super) fn close(mut self, tcp: &Epoll) {
        self.close_server(tcp);
        self.client.unwatch(tcp);
    }
}
