//! What carries the messages of a connection: TCP, or SMB Direct.

mod direct;
mod tcp;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use linkspan_mem::SharedSlice;
use linkspan_rdma::verbs::Access;
use linkspan_smb2::client::Client;
use linkspan_sys::EventFd;

use super::connection::Settings;
use super::error::Error;
use direct::Direct;
pub(super) use direct::Lent;
use tcp::Tcp;

/// What is to carry the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// SMB Direct if the server has it, else TCP.
    Auto,
    /// SMB Direct.
    Rdma,
    /// TCP.
    #[default]
    Tcp,
}

/// What carries the messages.
#[derive(Debug)]
pub(super) enum Transport {
    Tcp(Tcp),
    Direct(Box<Direct>),
}

/// How long a server may take to say that it has no SMB Direct, where TCP would do.
const TRIAL: Duration = Duration::from_secs(2);

/// The addresses of a server.
fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    let found = (host, port).to_socket_addrs();
    let found = found.map_err(|error| Error::Resolve {
        host: host.into(),
        error,
    })?;
    Ok(found.collect())
}

impl Transport {
    /// Connects. Says why it is TCP if SMB Direct was tried.
    pub(super) fn open(
        host: &str,
        port: u16,
        settings: &Settings,
    ) -> Result<(Self, Option<String>), Error> {
        let direct = |patience| -> Result<Self, Error> {
            let direct = Direct::open(host, settings.rdma_port, settings.max_io, patience)?;
            Ok(Self::Direct(Box::new(direct)))
        };
        let tcp = || Tcp::open(host, port, settings.patience).map(Self::Tcp);
        match settings.transport {
            Wanted::Tcp => Ok((tcp()?, None)),
            Wanted::Rdma => Ok((direct(settings.patience)?, None)),
            Wanted::Auto => match direct(settings.patience.min(TRIAL)) {
                Ok(direct) => Ok((direct, None)),
                // A machine that lacks something lacks it for TCP too.
                Err(error) if !(error.is_unreachable() || error.is_broken()) => Err(error),
                Err(error) => Ok((tcp()?, Some(error.to_string()))),
            },
        }
    }

    /// As people write it.
    pub(super) fn text(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "TCP",
            Self::Direct(_) => "SMB Direct",
        }
    }

    /// The longest message each way, out and in: `None` if there is no bound but SMB2's.
    pub(super) fn bounds(&self) -> Option<(u32, u32)> {
        match self {
            Self::Tcp(_) => None,
            Self::Direct(direct) => Some(direct.bounds()),
        }
    }

    /// Sends what can be sent now.
    pub(super) fn send(&mut self, client: &mut Client) -> Result<(), Error> {
        match self {
            Self::Tcp(tcp) => tcp.send(client),
            Self::Direct(direct) => direct.send(client),
        }
    }

    /// A message of at most `max` bytes, if there is one.
    pub(super) fn receive(&mut self, max: usize) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Tcp(tcp) => tcp.receive(max),
            Self::Direct(direct) => direct.receive(max),
        }
    }

    /// Bytes that went either way.
    pub(super) fn moved(&mut self) -> u64 {
        match self {
            Self::Tcp(tcp) => tcp.moved(),
            Self::Direct(direct) => direct.moved(),
        }
    }

    /// Has waits end when this is readable, too; once.
    pub(super) fn watch(&mut self, source: &EventFd) -> Result<(), Error> {
        match self {
            Self::Tcp(tcp) => tcp.watch(source),
            Self::Direct(direct) => direct.watch(source),
        }
    }

    /// Waits until something can be done again, for so long if that is said.
    pub(super) fn wait(&mut self, left: Option<Duration>) -> Result<(), Error> {
        match self {
            Self::Tcp(tcp) => tcp.wait(left),
            Self::Direct(direct) => direct.wait(left),
        }
    }

    /// Memory of a message that was sent, to be used again; of any length.
    pub(super) fn spare(&mut self) -> Vec<u8> {
        match self {
            Self::Tcp(tcp) => tcp.spare(),
            Self::Direct(_) => Vec::new(),
        }
    }

    /// Bytes that can be lent for one request, if any can.
    pub(super) fn loan_max(&self) -> u32 {
        match self {
            Self::Tcp(_) => u32::MAX,
            Self::Direct(direct) => direct.loan_max(),
        }
    }

    /// Memory of `len` bytes that the server may reach; `None` if there is no such thing, or none
    /// is free.
    pub(super) fn lend(&mut self, access: Access, len: u32) -> Result<Option<Lent>, Error> {
        match self {
            Self::Tcp(_) => Ok(None),
            Self::Direct(direct) => direct.lend(access, len),
        }
    }

    /// The bytes of what is lent, or was taken back.
    pub(super) fn place(&self, lent: &Lent) -> Option<SharedSlice<'_>> {
        match self {
            Self::Tcp(_) => None,
            Self::Direct(direct) => direct.place(lent),
        }
    }

    /// Ends what was lent: the server cannot reach it any more.
    pub(super) fn take_back(&mut self, lent: &Lent) -> Result<(), Error> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Direct(direct) => direct.take_back(lent),
        }
    }

    /// Nobody looks at what was taken back any more: others may have it.
    pub(super) fn put_back(&mut self, lent: &Lent) {
        if let Self::Direct(direct) = self {
            direct.put_back(lent);
        }
    }
}
