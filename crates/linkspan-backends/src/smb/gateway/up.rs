//! From the client to the server.

use std::collections::VecDeque;
use std::io;

use linkspan_rdma::verbs::Slice;
use linkspan_smb2::frame;
use linkspan_smb2::gateway::{Error, ToServer};
use linkspan_smb2::io::Descriptor;
use linkspan_smbdirect::{Descriptor as Memory, Misuse, TransferId};
use linkspan_sys::tcp::{Gather, TcpStream};

use super::seen::Seen;
use super::stock::{Held, Stock, cut};
use super::{End, Traffic};
use crate::rdma::Host;
use crate::smbdirect::{Endpoint, Id};

/// Bytes of messages that wait for the server before no more are taken.
const WAITING: usize = 1 << 20;

/// A message to the server.
struct Message {
    /// Its length, and its bytes before `data`.
    head: Vec<u8>,
    data: Vec<Slice>,
    /// The data is not there yet.
    fetching: Option<TransferId>,
}

/// A WRITE for whose data there was no room.
struct Fetch {
    head: Vec<u8>,
    from: Vec<Memory>,
    len: u32,
}

#[derive(Default)]
pub(super) struct Up {
    messages: VecDeque<Message>,
    /// Bytes of their heads.
    waiting: usize,
    /// Bytes of the first one that are written.
    written: usize,
    fetch: Option<Fetch>,
    /// Bytes of buffers, of all connections of the address.
    held: Held,
    /// There was no memory.
    pub(super) stalled: bool,
    /// The socket takes no more.
    pub(super) blocked: bool,
}

/// A message's bytes behind its length.
fn framed(bytes: &[u8], more: u32) -> Result<Vec<u8>, Error> {
    let prefix = frame::prefix(bytes.len() + more as usize).map_err(Error::Client)?;
    Ok([&prefix[..], bytes].concat())
}

/// Memory as SMB Direct has it.
pub(super) fn memory(descriptors: &[Descriptor]) -> Vec<Memory> {
    let memory = |descriptor: &Descriptor| Memory {
        offset: descriptor.offset.get(),
        token: descriptor.token.get(),
        length: descriptor.length.get(),
    };
    descriptors.iter().map(memory).collect()
}

impl Up {
    pub(super) fn new(held: Held) -> Self {
        Self {
            held,
            ..Self::default()
        }
    }

    /// Takes what has come from the client, as long as there is room.
    pub(super) fn take<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
        core: &mut Seen,
        traffic: &mut Traffic,
    ) -> Result<(), End> {
        self.stalled = false;
        loop {
            if let Some(fetch) = self.fetch.take() {
                self.fetch(id, endpoint, stock, fetch)?;
            }
            if self.fetch.is_some() || self.waiting >= WAITING {
                return Ok(());
            }
            let Some(message) = endpoint.session(id).and_then(|mut session| session.take()) else {
                return Ok(());
            };
            traffic.up += 1;
            match core.client_says(&message)? {
                ToServer::Pass => self.push(framed(&message, 0)?, Vec::new(), None),
                ToServer::Read(bytes) => self.push(framed(&bytes, 0)?, Vec::new(), None),
                ToServer::Write { head, from, len } => {
                    self.fetch = Some(Fetch {
                        head: framed(&head, len)?,
                        from: memory(&from),
                        len,
                    });
                }
            }
        }
    }

    fn push(&mut self, head: Vec<u8>, data: Vec<Slice>, fetching: Option<TransferId>) {
        self.waiting += head.len();
        self.messages.push_back(Message {
            head,
            data,
            fetching,
        });
    }

    /// Begins to read data of a WRITE, or keeps it until there is room.
    fn fetch<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
        fetch: Fetch,
    ) -> Result<(), End> {
        let len = fetch.len as usize;
        let Some(data) = stock.take(endpoint, &self.held, len) else {
            self.stalled = true;
            self.fetch = Some(fetch);
            return Ok(());
        };
        let session = endpoint.session(id);
        let begun = session.map(|mut session| session.read(&data, &fetch.from, 0));
        match begun {
            Some(Ok(transfer)) => {
                self.push(fetch.head, data, Some(transfer));
                Ok(())
            }
            Some(Err(Misuse::Full { .. })) => {
                // One that is done makes room, and is heard of.
                stock.give(&self.held, data);
                self.fetch = Some(fetch);
                Ok(())
            }
            Some(Err(why)) => {
                stock.give(&self.held, data);
                Err(End::Rdma(why.into()))
            }
            // Its end is what is heard of next.
            None => {
                stock.give(&self.held, data);
                Ok(())
            }
        }
    }

    /// A transfer is over; whether it was one of these.
    pub(super) fn fetched(&mut self, id: TransferId) -> bool {
        let mut messages = self.messages.iter_mut();
        let message = messages.find(|message| message.fetching == Some(id));
        message.map(|message| message.fetching = None).is_some()
    }

    /// Writes what is complete, in order.
    pub(super) fn write<C: Host>(
        &mut self,
        endpoint: &Endpoint<C>,
        stock: &mut Stock,
        stream: &TcpStream,
        traffic: &mut Traffic,
    ) -> Result<(), End> {
        self.blocked = false;
        while let Some(message) = self.messages.front() {
            if message.fetching.is_some() {
                return Ok(());
            }
            let data_len: usize = message.data.iter().map(|slice| slice.len as usize).sum();
            let left = message.head.get(self.written..).unwrap_or_default();
            let skipped = self.written.saturating_sub(message.head.len());
            let data = cut(&message.data, skipped, data_len - skipped);
            let mut gather = Gather::new();
            if !left.is_empty() {
                gather.push(left);
            }
            for slice in data {
                // What is not pushed now is written next time.
                if let Some(slice) = endpoint.memories().slice(slice)
                    && !gather.push_shared(slice)
                {
                    break;
                }
            }
            match stream.write(&mut gather) {
                Ok(count) => {
                    self.written += count;
                    traffic.up_bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) => return Err(End::Lost(error)),
            }
            if self.written == message.head.len() + data_len {
                self.written = 0;
                self.waiting -= message.head.len();
                traffic.fetched += data_len as u64;
                if let Some(message) = self.messages.pop_front() {
                    stock.give(&self.held, message.data);
                }
            }
        }
        Ok(())
    }

    pub(super) fn give_all(&mut self, stock: &mut Stock) {
        for message in self.messages.drain(..) {
            stock.give(&self.held, message.data);
        }
    }
}
