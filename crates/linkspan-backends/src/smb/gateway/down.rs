//! From the server to the client.

use std::collections::VecDeque;
use std::io;

use linkspan_rdma::verbs::Slice;
use linkspan_smb2::frame::{self, PREFIX_LEN};
use linkspan_smb2::gateway::{ANSWER_LEN, Error, HEAD_MAX, ToClient, is_compound};
use linkspan_smbdirect::{Descriptor as Memory, Misuse, TransferId};
use linkspan_sys::tcp::{Scatter, TcpStream};

use super::seen::Seen;
use super::stock::{Held, Stock, cut};
use super::up::memory;
use super::{End, Traffic};
use crate::rdma::Host;
use crate::smbdirect::{Endpoint, Id};

/// Messages that wait for the client before nothing is read from the server.
const WAITING: usize = 64;

/// Bytes that one connection reads before others have their turn, and before what was read goes
/// on: so much is still in the processor's cache then.
const TURN: u64 = 256 << 10;

/// Bytes of one system call.
const READ_MAX: usize = 256 << 10;

/// Bytes of data that go on before all of it has come, at least.
const PART: usize = 128 << 10;

/// Bytes of messages that the client does not have yet before no other message is begun: what is
/// on its way without end is in no cache any more when it goes on.
const AHEAD: usize = 2 << 20;

/// A message of the server's, until it was sent.
struct Coming {
    buffers: Vec<Slice>,
    len: usize,
    got: usize,
    told: Option<Told>,
}

/// What becomes of a message of which enough has come to be seen.
struct Told {
    /// Data that goes another way, before what is sent.
    place: Option<Place>,
    send: Vec<Slice>,
    invalidate: Option<u32>,
    /// Data that is being written.
    transfers: Vec<TransferId>,
}

/// Data that is written into the client's memory, as it comes.
struct Place {
    /// Where in the message it is, and its bytes.
    at: usize,
    len: usize,
    to: Vec<Memory>,
    /// Bytes of it that are on their way.
    posted: usize,
}

/// A message that is being sent.
struct Sending {
    buffers: Vec<Slice>,
    /// Data of it that is being written.
    transfers: Vec<TransferId>,
    sent: bool,
}

impl Coming {
    fn is_whole(&self) -> bool {
        self.got == self.len
    }

    /// Data that has come, and may go on: where it is in all data, and its bytes.
    fn part(&self) -> Option<(usize, usize)> {
        let place = self.told.as_ref()?.place.as_ref()?;
        let came = self.got.saturating_sub(place.at).min(place.len);
        let part = came - place.posted;
        (part >= PART || (self.is_whole() && part > 0)).then_some((place.posted, part))
    }
}

pub(super) struct Down {
    prefix: [u8; PREFIX_LEN],
    /// Bytes of the prefix that are there.
    got: usize,
    coming: Option<Coming>,
    sending: VecDeque<Sending>,
    /// Bytes of a message that the client takes, and of one that may come.
    longest: usize,
    max: usize,
    held: Held,
    /// There was no memory.
    pub(super) stalled: bool,
    /// The server says no more.
    ended: bool,
}

impl Down {
    /// `longest`: bytes of a message that the client takes; `max`: of one that may come.
    pub(super) fn new(longest: usize, max: usize, held: Held) -> Self {
        Self {
            prefix: [0; PREFIX_LEN],
            got: 0,
            coming: None,
            sending: VecDeque::new(),
            longest,
            max,
            held,
            stalled: false,
            ended: false,
        }
    }

    /// Whether something is to be read.
    pub(super) fn wants(&self) -> bool {
        !self.ended && !self.stalled && !self.is_full()
    }

    /// A message has no room at the client, or there are enough on their way.
    fn is_full(&self) -> bool {
        match &self.coming {
            Some(coming) => coming.is_whole(),
            None => self.sending.len() >= WAITING || self.held.own() >= AHEAD,
        }
    }

    /// Whether the server says no more, and the client has all of it.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.coming.is_none() && self.sending.is_empty()
    }

    /// So many messages were sent.
    pub(super) fn sent(&mut self, stock: &mut Stock, count: u32) {
        let unsent = self.sending.iter_mut().filter(|sending| !sending.sent);
        for sending in unsent.take(count as usize) {
            sending.sent = true;
        }
        self.give_sent(stock);
    }

    /// Data was written.
    pub(super) fn placed(&mut self, stock: &mut Stock, id: TransferId) {
        let coming = self.coming.as_mut().and_then(|coming| coming.told.as_mut());
        let coming = coming.map(|told| &mut told.transfers);
        let sending = self.sending.iter_mut().map(|it| &mut it.transfers);
        for transfers in sending.chain(coming) {
            transfers.retain(|transfer| *transfer != id);
        }
        self.give_sent(stock);
    }

    /// Buffers that nobody reads from any more come back.
    fn give_sent(&mut self, stock: &mut Stock) {
        while let Some(first) = self.sending.front()
            && first.sent
            && first.transfers.is_empty()
        {
            if let Some(sending) = self.sending.pop_front() {
                stock.give(&mut self.held, sending.buffers);
            }
        }
    }

    /// Reads what the server says, as long as there is room.
    pub(super) fn read<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
        stream: &TcpStream,
        core: &mut Seen,
        traffic: &mut Traffic,
    ) -> Result<(), End> {
        self.stalled = false;
        let before = traffic.down_bytes;
        loop {
            if let Some(coming) = self.coming.take() {
                self.coming = self.pass_on(id, endpoint, core, traffic, coming)?;
            }
            if self.ended || self.is_full() || traffic.down_bytes - before >= TURN {
                return Ok(());
            }
            if self.got == PREFIX_LEN && self.coming.is_none() && !self.begin(endpoint, stock)? {
                return Ok(());
            }
            match self.read_once(endpoint, stream) {
                Ok(0) if self.got == 0 && self.coming.is_none() => self.ended = true,
                Ok(0) => return Err(End::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => traffic.down_bytes += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(End::Lost(error)),
            }
            traffic.down += u64::from(self.coming.as_ref().is_some_and(Coming::is_whole));
        }
    }

    /// The length of a message is there: room for it; whether there is some.
    fn begin<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
    ) -> Result<bool, End> {
        let len = frame::length(self.prefix, self.max).map_err(Error::Server)?;
        let Some(buffers) = stock.take(endpoint, &mut self.held, len) else {
            self.stalled = true;
            return Ok(false);
        };
        self.got = 0;
        self.coming = Some(Coming {
            buffers,
            len,
            got: 0,
            told: None,
        });
        Ok(true)
    }

    /// One system call: what is next of a message, and the length of the one behind its end.
    fn read_once<C: Host>(
        &mut self,
        endpoint: &Endpoint<C>,
        stream: &TcpStream,
    ) -> io::Result<usize> {
        let mut scatter = Scatter::new();
        let mut rest = 0;
        let mut is_rest = true;
        if let Some(coming) = &self.coming {
            // No more than goes on at once, while it is in the cache.
            rest = (coming.len - coming.got).min(READ_MAX);
            is_rest = coming.got + rest == coming.len;
            for slice in cut(&coming.buffers, coming.got, rest) {
                if let Some(slice) = endpoint.memories().slice(slice) {
                    scatter.push_shared(slice);
                }
            }
        }
        // There are fewer buffers than places, as a message has 16 MiB at most.
        if is_rest && scatter.len() == rest {
            scatter.push(&mut self.prefix[self.got..]);
        }
        let count = stream.read(&mut scatter)?;
        let came = count.min(rest);
        if let Some(coming) = &mut self.coming {
            coming.got += came;
        }
        self.got += count - came;
        Ok(count)
    }

    /// Passes on what has come of a message; gives back what has to wait.
    fn pass_on<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        core: &mut Seen,
        traffic: &mut Traffic,
        mut coming: Coming,
    ) -> Result<Option<Coming>, End> {
        if coming.told.is_none() {
            match self.tell(endpoint, core, &coming) {
                Ok(told) => coming.told = told,
                Err(end) => {
                    // Its buffers come back with all others.
                    self.coming = Some(coming);
                    return Err(end);
                }
            }
        }
        let passed = self.pass_told(id, endpoint, traffic, &mut coming);
        let Some(told) = coming.told.take_if(|_| matches!(passed, Ok(true))) else {
            return match passed {
                Err(why) if !matches!(why, Misuse::Full { .. }) => {
                    self.coming = Some(coming);
                    Err(End::Rdma(why.into()))
                }
                // One that is done makes room, and is heard of.
                _ => Ok(Some(coming)),
            };
        };
        self.sending.push_back(Sending {
            buffers: coming.buffers,
            transfers: told.transfers,
            sent: false,
        });
        Ok(None)
    }

    /// What becomes of a message, if enough of it has come.
    fn tell<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        core: &mut Seen,
        coming: &Coming,
    ) -> Result<Option<Told>, End> {
        let &Coming { len, got, .. } = coming;
        if got < len.min(HEAD_MAX) {
            return Ok(None);
        }
        let mut head = peek(endpoint, &coming.buffers, HEAD_MAX);
        if is_compound(&head) {
            if got < len {
                return Ok(None);
            }
            head = peek(endpoint, &coming.buffers, len);
        }
        let told = match core.server_says(&head, len)? {
            ToClient::Pass { invalidate } if len <= self.longest => Told {
                place: None,
                send: coming.buffers.clone(),
                invalidate,
                transfers: Vec::new(),
            },
            ToClient::Pass { .. } => {
                let max = self.longest;
                return Err(End::Long { len, max });
            }
            ToClient::Place {
                at,
                len,
                to,
                answer,
                invalidate,
            } => {
                // Data lies behind it, and the first buffer is longer.
                let first = coming.buffers[0];
                endpoint.fill(first.memory, first.offset, &answer);
                Told {
                    place: Some(Place {
                        at,
                        len: len as usize,
                        to: memory(&to),
                        posted: 0,
                    }),
                    send: cut(&coming.buffers, 0, ANSWER_LEN),
                    invalidate,
                    transfers: Vec::new(),
                }
            }
        };
        Ok(Some(told))
    }

    /// Writes data that has come, and sends a message behind all of its data; whether it did.
    fn pass_told<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        traffic: &mut Traffic,
        coming: &mut Coming,
    ) -> Result<bool, Misuse> {
        let part = coming.part();
        let is_whole = coming.is_whole();
        // Without a session its end is what is heard of next.
        let (Some(told), Some(mut session)) = (&mut coming.told, endpoint.session(id)) else {
            return Ok(false);
        };
        if let (Some(place), Some((from, len))) = (&mut told.place, part) {
            let data = cut(&coming.buffers, place.at + from, len);
            told.transfers
                .push(session.write(&data, &place.to, from as u64)?);
            place.posted += len;
            traffic.placed += len as u64;
        }
        if is_whole {
            session.send_ending(&told.send, told.invalidate)?;
        }
        Ok(is_whole)
    }

    pub(super) fn give_all(&mut self, stock: &mut Stock) {
        let coming = self.coming.take().map(|coming| coming.buffers);
        let sending = self.sending.drain(..).map(|sending| sending.buffers);
        for buffers in sending.chain(coming).collect::<Vec<_>>() {
            stock.give(&mut self.held, buffers);
        }
    }
}

/// A private copy of the first bytes of a message.
fn peek<C: Host>(endpoint: &Endpoint<C>, buffers: &[Slice], max: usize) -> Vec<u8> {
    let slices = cut(buffers, 0, max);
    slices
        .iter()
        .flat_map(|slice| endpoint.bytes(*slice))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_on_while_the_rest_of_it_comes() {
        let (at, len) = (80, 2 * PART + 7);
        let place = Place {
            at,
            len,
            to: Vec::new(),
            posted: 0,
        };
        let mut coming = Coming {
            buffers: Vec::new(),
            len: at + len + 20,
            got: 0,
            told: None,
        };
        assert_eq!(coming.part(), None);
        coming.told = Some(Told {
            place: Some(place),
            send: Vec::new(),
            invalidate: None,
            transfers: Vec::new(),
        });
        let mut parts = Vec::new();
        for came in [0, PART - 1, PART + 1, 2 * PART, 2 * PART + 1, len, len + 20] {
            coming.got = at + came;
            let part = coming.part();
            let place = coming.told.as_mut().unwrap().place.as_mut().unwrap();
            place.posted += part.map_or(0, |part| part.1);
            parts.extend(part);
        }
        assert_eq!(parts, [(0, PART + 1), (PART + 1, PART), (2 * PART + 1, 6)]);
        assert!(coming.is_whole());
    }
}
