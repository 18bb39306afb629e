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

/// Bytes that one connection reads before others have their turn.
const TURN: usize = 4 << 20;

/// A message of the server's, as far as it has come.
struct Coming {
    buffers: Vec<Slice>,
    len: usize,
    got: usize,
}

/// A message for the client, and what goes before it.
struct Going {
    /// Data, where it goes, and what it is written to, until it is.
    write: Option<(Vec<Slice>, Vec<Memory>)>,
    /// What is sent.
    send: Vec<Slice>,
    /// The message's, which come back when all was sent.
    buffers: Vec<Slice>,
    invalidate: Option<u32>,
    /// Its data is being written.
    transfer: Option<TransferId>,
}

/// A message that is being sent.
struct Sending {
    buffers: Vec<Slice>,
    /// Its data is being written.
    transfer: Option<TransferId>,
    sent: bool,
}

pub(super) struct Down {
    prefix: [u8; PREFIX_LEN],
    /// Bytes of the prefix that are there.
    got: usize,
    coming: Option<Coming>,
    /// One for which there was no room at the client.
    going: Option<Going>,
    sending: VecDeque<Sending>,
    /// Bytes of a message that the client takes, and of one that may come.
    longest: usize,
    max: usize,
    /// Bytes of buffers, of all connections of the address.
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
            going: None,
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

    fn is_full(&self) -> bool {
        self.going.is_some() || self.sending.len() >= WAITING
    }

    /// Whether the server says no more, and the client has all of it.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.going.is_none() && self.sending.is_empty()
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
        if let Some(going) = self
            .going
            .as_mut()
            .filter(|going| going.transfer == Some(id))
        {
            going.transfer = None;
        }
        for sending in &mut self.sending {
            if sending.transfer == Some(id) {
                sending.transfer = None;
            }
        }
        self.give_sent(stock);
    }

    /// Buffers that nobody reads from any more come back.
    fn give_sent(&mut self, stock: &mut Stock) {
        while let Some(first) = self.sending.front()
            && first.sent
            && first.transfer.is_none()
        {
            if let Some(sending) = self.sending.pop_front() {
                stock.give(&self.held, sending.buffers);
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
            if let Some(going) = self.going.take() {
                self.send(id, endpoint, going)?;
            }
            if self.ended || self.is_full() || traffic.down_bytes - before >= TURN as u64 {
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
            if let Some(coming) = self.coming.take_if(|coming| coming.got == coming.len) {
                traffic.down += 1;
                self.arrived(endpoint, stock, core, traffic, coming)?;
            }
        }
    }

    /// The length of a message is there: room for it; whether there is some.
    fn begin<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
    ) -> Result<bool, End> {
        let len = frame::length(self.prefix, self.max).map_err(Error::Server)?;
        let Some(buffers) = stock.take(endpoint, &self.held, len) else {
            self.stalled = true;
            return Ok(false);
        };
        self.got = 0;
        self.coming = Some(Coming {
            buffers,
            len,
            got: 0,
        });
        Ok(true)
    }

    /// One system call: the rest of a message, and the length of the next one.
    fn read_once<C: Host>(
        &mut self,
        endpoint: &Endpoint<C>,
        stream: &TcpStream,
    ) -> io::Result<usize> {
        let mut scatter = Scatter::new();
        let mut rest = 0;
        if let Some(coming) = &self.coming {
            for slice in cut(&coming.buffers, coming.got, coming.len - coming.got) {
                if let Some(slice) = endpoint.memories().slice(slice) {
                    scatter.push_shared(slice);
                }
            }
            rest = coming.len - coming.got;
        }
        // There are fewer buffers than places, as a message has 16 MiB at most.
        if scatter.len() == rest {
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

    /// A message is there.
    fn arrived<C: Host>(
        &mut self,
        endpoint: &mut Endpoint<C>,
        stock: &mut Stock,
        core: &mut Seen,
        traffic: &mut Traffic,
        coming: Coming,
    ) -> Result<(), End> {
        let Coming { buffers, len, .. } = coming;
        let mut head = peek(endpoint, &buffers, HEAD_MAX);
        if is_compound(&head) {
            head = peek(endpoint, &buffers, len);
        }
        let told = core.server_says(&head, len);
        let going = match told {
            Ok(ToClient::Pass { invalidate }) if len <= self.longest => Going {
                write: None,
                send: buffers.clone(),
                buffers,
                invalidate,
                transfer: None,
            },
            Ok(ToClient::Pass { .. }) => {
                stock.give(&self.held, buffers);
                let max = self.longest;
                return Err(End::Long { len, max });
            }
            Ok(ToClient::Place {
                at,
                len,
                to,
                answer,
                invalidate,
            }) => {
                // Data lies behind it, and the first buffer is longer.
                endpoint.fill(buffers[0].memory, buffers[0].offset, &answer);
                traffic.placed += u64::from(len);
                let data = cut(&buffers, at, len as usize);
                Going {
                    write: (len > 0).then(|| (data, memory(&to))),
                    send: cut(&buffers, 0, ANSWER_LEN),
                    buffers,
                    invalidate,
                    transfer: None,
                }
            }
            Err(error) => {
                stock.give(&self.held, buffers);
                return Err(error.into());
            }
        };
        self.going = Some(going);
        Ok(())
    }

    /// Sends a message, behind its data; or keeps it until there is room.
    fn send<C: Host>(
        &mut self,
        id: Id,
        endpoint: &mut Endpoint<C>,
        mut going: Going,
    ) -> Result<(), End> {
        let Some(mut session) = endpoint.session(id) else {
            // Its end is what is heard of next.
            self.going = Some(going);
            return Ok(());
        };
        if let Some((data, to)) = &going.write {
            match session.write(data, to, 0) {
                Ok(transfer) => {
                    going.transfer = Some(transfer);
                    going.write = None;
                }
                Err(why) => return self.not_now(going, why),
            }
        }
        match session.send_ending(&going.send, going.invalidate) {
            Ok(_) => {
                self.sending.push_back(Sending {
                    buffers: going.buffers,
                    transfer: going.transfer,
                    sent: false,
                });
                Ok(())
            }
            Err(why) => self.not_now(going, why),
        }
    }

    fn not_now(&mut self, going: Going, why: Misuse) -> Result<(), End> {
        self.going = Some(going);
        match why {
            // One that is done makes room, and is heard of.
            Misuse::Full { .. } => Ok(()),
            why => Err(End::Rdma(why.into())),
        }
    }

    pub(super) fn give_all(&mut self, stock: &mut Stock) {
        let coming = self.coming.take().map(|coming| coming.buffers);
        let going = self.going.take().map(|going| going.buffers);
        let sending = self.sending.drain(..).map(|sending| sending.buffers);
        let all = sending.chain(going).chain(coming);
        for buffers in all.collect::<Vec<_>>() {
            stock.give(&self.held, buffers);
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
