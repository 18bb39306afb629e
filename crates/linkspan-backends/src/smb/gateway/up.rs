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

/// Bytes of data that are fetched together: so much goes on as soon as it is there.
const PART: usize = 256 << 10;

/// Bytes of data that the server does not have yet before no other is fetched: what is on its
/// way without end is in no cache any more when it goes on.
const AHEAD: usize = 2 << 20;

/// A message to the server.
struct Message {
    /// Its length, and its bytes before `data`.
    head: Vec<u8>,
    data: Vec<Slice>,
    /// Bytes of the data that are there: all before those that are being fetched.
    fetched: usize,
    /// What is being fetched, in order, and whether it has come.
    fetching: VecDeque<(TransferId, usize, bool)>,
}

/// A WRITE of whose data not all is fetched or being fetched: its message is the last one, or
/// there was no room for one.
struct Fetch {
    head: Vec<u8>,
    from: Vec<Memory>,
    len: usize,
    /// Bytes that were asked for, once there was room.
    asked: Option<usize>,
}

#[derive(Default)]
pub(super) struct Up {
    messages: VecDeque<Message>,
    /// Bytes of their heads.
    waiting: usize,
    /// Bytes of the first one that are written.
    written: usize,
    fetch: Option<Fetch>,
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
                ToServer::Pass => self.push(framed(&message, 0)?, Vec::new()),
                ToServer::Read(bytes) => self.push(framed(&bytes, 0)?, Vec::new()),
                ToServer::Write { head, from, len } => {
                    self.fetch = Some(Fetch {
                        head: framed(&head, len)?,
                        from: memory(&from),
                        len: len as usize,
                        asked: None,
                    });
                }
            }
        }
    }

    fn push(&mut self, head: Vec<u8>, data: Vec<Slice>) {
        self.waiting += head.len();
        self.messages.push_back(Message {
            head,
            data,
            fetched: 0,
            fetching: VecDeque::new(),
        });
    }

    /// Reads data of a WRITE, or keeps what has to wait until there is room.
    fn fetch<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
        mut fetch: Fetch,
    ) -> Result<(), End> {
        let mut asked = match fetch.asked {
            Some(asked) => asked,
            None => {
                let room = match self.held.own() {
                    AHEAD.. => None,
                    _ => stock.take(endpoint, &mut self.held, fetch.len),
                };
                let Some(data) = room else {
                    self.stalled = self.held.own() < AHEAD;
                    self.fetch = Some(fetch);
                    return Ok(());
                };
                self.push(std::mem::take(&mut fetch.head), data);
                0
            }
        };
        let (Some(message), Some(mut session)) = (self.messages.back_mut(), endpoint.session(id))
        else {
            // Its end is what is heard of next.
            return Ok(());
        };
        while asked < fetch.len {
            let part = PART.min(fetch.len - asked);
            let data = cut(&message.data, asked, part);
            match session.read(&data, &fetch.from, asked as u64) {
                Ok(transfer) => message.fetching.push_back((transfer, part, false)),
                Err(Misuse::Full { .. }) => {
                    // One that is done makes room, and is heard of.
                    fetch.asked = Some(asked);
                    self.fetch = Some(fetch);
                    return Ok(());
                }
                Err(why) => return Err(End::Rdma(why.into())),
            }
            asked += part;
        }
        Ok(())
    }

    /// A transfer is over; whether it was one of these.
    pub(super) fn fetched(&mut self, id: TransferId) -> bool {
        for message in &mut self.messages {
            let mut fetching = message.fetching.iter_mut();
            let Some(part) = fetching.find(|part| part.0 == id) else {
                continue;
            };
            part.2 = true;
            while let Some((_, len, true)) = message.fetching.front() {
                message.fetched += len;
                message.fetching.pop_front();
            }
            return true;
        }
        false
    }

    /// Writes what is there, in order.
    pub(super) fn write<C: Host>(
        &mut self,
        endpoint: &Endpoint<C>,
        stock: &mut Stock,
        stream: &TcpStream,
        traffic: &mut Traffic,
    ) -> Result<(), End> {
        self.blocked = false;
        while let Some(message) = self.messages.front() {
            let data_len: usize = message.data.iter().map(|slice| slice.len as usize).sum();
            let left = message.head.get(self.written..).unwrap_or_default();
            let skipped = self.written.saturating_sub(message.head.len());
            let there = message.fetched - skipped;
            if there == 0 && skipped < data_len {
                return Ok(());
            }
            let data = cut(&message.data, skipped, there);
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
                    stock.give(&mut self.held, message.data);
                }
            }
        }
        Ok(())
    }

    pub(super) fn give_all(&mut self, stock: &mut Stock) {
        for message in self.messages.drain(..) {
            stock.give(&mut self.held, message.data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RDMA says nothing about the order in which others finish.
    #[test]
    fn data_goes_on_up_to_the_first_part_that_has_not_come() {
        let mut up = Up::default();
        let [first, second, third] = [1, 2, 3].map(TransferId);
        up.push(Vec::new(), Vec::new());
        up.push(Vec::new(), Vec::new());
        up.messages[1].fetching = [(first, 5, false), (second, 6, false), (third, 7, false)].into();
        let mut fetched = Vec::new();
        for id in [second, first, third] {
            assert!(up.fetched(id));
            fetched.push(up.messages[1].fetched);
        }
        assert_eq!(fetched, [0, 11, 18]);
        assert!(!up.fetched(first) && up.messages[0].fetched == 0);
    }
}
