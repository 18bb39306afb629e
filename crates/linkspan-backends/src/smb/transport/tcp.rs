//! Messages over TCP, each after its length.

use std::io::{self, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::time::Duration;

use linkspan_mem::fault::{self, Site};
use linkspan_smb2::client::Client;
use linkspan_smb2::frame::{self, Framer};
use linkspan_sys::EventFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::error::Error;

/// Memory of long messages that were sent, and that is kept for others: so many pieces of so many
/// bytes at least.
const SPARES: usize = 4;
const SPARE_MIN: usize = 64 << 10;

/// A socket, and what is on its way through it.
#[derive(Debug)]
pub(in super::super) struct Tcp {
    stream: TcpStream,
    framer: Framer,
    /// What is being sent, and how much of it is.
    sending: (Vec<u8>, usize),
    spares: Vec<Vec<u8>>,
    /// Bytes that went either way.
    moved: u64,
    /// What ends a wait, too.
    watched: Option<EventFd>,
}

impl Tcp {
    /// Tries all addresses of a server, one after the other.
    pub(super) fn open(host: &str, port: u16, patience: Duration) -> Result<Self, Error> {
        fault::point(Site::Fd)?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in super::addresses(host, port)? {
            match TcpStream::connect_timeout(&address, patience) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(Error::Lost)?;
                    stream.set_nonblocking(true).map_err(Error::Lost)?;
                    return Ok(Self {
                        stream,
                        framer: Framer::new(frame::MESSAGE_MAX),
                        sending: (Vec::new(), 0),
                        spares: Vec::new(),
                        moved: 0,
                        watched: None,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(Error::Connect {
            host: host.into(),
            port,
            error: last,
        })
    }

    pub(super) fn send(&mut self, client: &mut Client) -> Result<(), Error> {
        loop {
            if self.sending.1 == self.sending.0.len() {
                let Some(message) = client.poll_out() else {
                    return Ok(());
                };
                let (sent, _) = mem::replace(&mut self.sending, message.framed()?);
                if sent.len() >= SPARE_MIN && self.spares.len() < SPARES {
                    self.spares.push(sent);
                }
            }
            match self.stream.write(&self.sending.0[self.sending.1..]) {
                Ok(len) => {
                    self.sending.1 += len;
                    self.moved += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Lost(error)),
            }
        }
    }

    pub(super) fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    pub(super) fn receive(&mut self, max: usize) -> Result<Option<Vec<u8>>, Error> {
        self.framer.allow(max);
        loop {
            let len = match self.stream.read(self.framer.room()) {
                Ok(0) => return Err(Error::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Lost(error)),
            };
            self.moved += len as u64;
            if let Some(message) = self.framer.filled(len)? {
                return Ok(Some(message));
            }
        }
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    pub(super) fn watch(&mut self, source: &EventFd) -> Result<(), Error> {
        self.watched = Some(source.try_clone().map_err(Error::Here)?);
        Ok(())
    }

    pub(super) fn wait(&mut self, left: Option<Duration>) -> Result<(), Error> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, self.sending.1 < self.sending.0.len());
        let stream = PollFd::new(&self.stream, flags);
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let done = match &self.watched {
            Some(watched) => poll(
                &mut [stream, PollFd::new(watched, PollFlags::IN)],
                timeout.as_ref(),
            ),
            None => poll(&mut [stream], timeout.as_ref()),
        };
        match done {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Here(error.into())),
        }
    }
}
