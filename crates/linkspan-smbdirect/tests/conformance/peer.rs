//! One connection under test, and what its peer says, byte by byte.

use linkspan_rdma::verbs::{Depth, Key, Limits, MemoryId, Slice};
use linkspan_smbdirect::wire::{DataTransfer, NegotiateRequest, NegotiateResponse};
use linkspan_smbdirect::{Arrival, Connection, Error, News, Options, Output, Role, State};
use zerocopy::{FromBytes, IntoBytes};

/// What a provider in software can do.
pub(crate) const DEVICE: Limits = Limits {
    works: 4096,
    receives: 4096,
    receive_size: 65536,
    gather: 6,
    read_into: 1,
    work_bytes: 1 << 20,
    exposures: 256,
    exposure_slices: 256,
    exposure_bytes: 1 << 20,
};

pub(crate) const DEPTH: Depth = Depth {
    inbound: 8,
    outbound: 8,
};

/// Sizes and credits of the examples.
pub(crate) fn small(role: Role) -> Options {
    Options {
        receive_credit_max: 10,
        send_credit_target: 10,
        max_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_receive_size: 131_072,
        max_read_write_size: 1 << 20,
        ..Options::of(role)
    }
}

pub(crate) fn slice(len: u32) -> Slice {
    Slice {
        memory: MemoryId(7),
        len,
        offset: 0,
    }
}

pub(crate) struct Peer {
    pub core: Connection,
    pub now: u64,
    /// Sends of the connection under test: header and bytes of data.
    pub sent: Vec<(Vec<u8>, u32)>,
    pub events: Vec<Output>,
    pub posted: u32,
    /// The most receives that can be posted at a time.
    pub receives: u32,
    buffers: u32,
    pub released: u32,
}

impl Peer {
    pub(crate) fn new(role: Role, options: &Options) -> Self {
        let core = Connection::new(role, options, &DEVICE, 0).unwrap();
        let mut peer = Self {
            core,
            now: 0,
            sent: Vec::new(),
            events: Vec::new(),
            posted: 0,
            receives: u32::MAX,
            buffers: 0,
            released: 0,
        };
        peer.pump();
        peer.core.established(0, DEPTH);
        peer.pump();
        peer
    }

    /// Carries out all outputs; every work is done at once.
    pub(crate) fn pump(&mut self) {
        while let Some(output) = self.core.poll_output(self.now) {
            match output {
                Output::PostReceives { count } => {
                    let status = self.core.status();
                    let posted = u32::from(status.receives_available + status.receives_granted);
                    let count = count.min(self.receives.saturating_sub(posted));
                    self.posted += count;
                    self.core.receives_posted(self.now, count);
                }
                Output::Send {
                    work, header, data, ..
                } => {
                    self.sent.push((header.bytes().to_vec(), data.len()));
                    self.core.completed(work, true);
                }
                Output::Release { .. } => self.released += 1,
                Output::Write { work, .. }
                | Output::Read { work, .. }
                | Output::Invalidate { work, .. } => {
                    self.events.push(output);
                    self.core.completed(work, true);
                }
                _ => self.events.push(output),
            }
        }
    }

    /// The peer sends these bytes.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.say_and_invalidate(bytes, None);
    }

    pub(crate) fn say_and_invalidate(&mut self, bytes: &[u8], invalidated: Option<Key>) {
        self.buffers += 1;
        let buffer = Slice {
            memory: MemoryId(1000 + self.buffers),
            len: u32::try_from(bytes.len()).unwrap(),
            offset: 0,
        };
        let arrival = Arrival {
            buffer,
            len: buffer.len,
            head: &bytes[..bytes.len().min(32)],
            invalidated,
        };
        self.core.received(self.now, arrival);
        self.pump();
    }

    /// A data transfer with so many bytes of data.
    pub(crate) fn data(&mut self, header: DataTransfer) {
        let mut bytes = header.as_bytes().to_vec();
        if header.data_length.get() > 0 {
            bytes.resize(24 + header.data_length.get() as usize, 0);
        }
        self.say(&bytes);
    }

    pub(crate) fn at(&mut self, now: u64) {
        self.now = now;
        self.core.handle_timeout(now);
        self.pump();
    }

    /// Reads all whole messages: their lengths.
    pub(crate) fn read(&mut self) -> Vec<u32> {
        let mut read = Vec::new();
        while let Some(message) = self.core.message().filter(|message| message.is_whole()) {
            let pieces: u32 = self.core.pieces().map(|piece| piece.len).sum();
            assert_eq!(pieces, message.len);
            read.push(message.len);
            self.core.consume(message.len);
        }
        self.pump();
        read
    }

    pub(crate) fn last(&self) -> DataTransfer {
        let (bytes, _) = self.sent.last().unwrap();
        DataTransfer::read_from_prefix(bytes).unwrap().0
    }

    pub(crate) fn response(&self) -> NegotiateResponse {
        NegotiateResponse::read_from_bytes(&self.sent.last().unwrap().0).unwrap()
    }

    /// The connection is being ended, once, and everything comes back.
    #[track_caller]
    pub(crate) fn assert_ends(&mut self) -> Error {
        assert_eq!(self.core.state(), State::Disconnecting);
        let count = |peer: &Self, what: fn(&Output) -> bool| {
            peer.events.iter().filter(|event| what(event)).count()
        };
        assert_eq!(count(self, |event| *event == Output::Disconnect), 1);
        let error = self.core.first_error().unwrap();
        self.core.ended();
        self.core.ended();
        self.pump();
        while let Some(message) = self.core.message() {
            self.core.consume(message.len);
        }
        self.pump();
        assert_eq!(
            count(self, |event| matches!(event, Output::Tell(News::Ended(_)))),
            1
        );
        assert_eq!(count(self, |event| *event == Output::Disconnect), 1);
        assert_eq!(self.core.state(), State::Disconnected);
        assert_eq!(self.released, self.buffers, "each buffer once");
        assert_eq!(self.core.first_error(), Some(error), "the first one stays");
        assert_eq!(self.core.next_timeout(), None);
        error
    }
}

pub(crate) fn request(credits: u16, send: u32, receive: u32, fragmented: u32) -> NegotiateRequest {
    NegotiateRequest {
        min_version: 0x100.into(),
        max_version: 0x100.into(),
        reserved: 0.into(),
        credits_requested: credits.into(),
        preferred_send_size: send.into(),
        max_receive_size: receive.into(),
        max_fragmented_size: fragmented.into(),
    }
}

pub(crate) fn response() -> NegotiateResponse {
    NegotiateResponse {
        negotiated_version: 0x100.into(),
        credits_requested: 10.into(),
        credits_granted: 10.into(),
        max_read_write_size: (1 << 20).into(),
        preferred_send_size: 1024.into(),
        max_receive_size: 1024.into(),
        max_fragmented_size: 131_072.into(),
        ..NegotiateResponse::refusal(0)
    }
}

pub(crate) fn transfer(credits: u16, granted: u16, data: u32, remaining: u32) -> DataTransfer {
    DataTransfer {
        credits_requested: credits.into(),
        credits_granted: granted.into(),
        flags: 0.into(),
        reserved: 0.into(),
        remaining_data_length: remaining.into(),
        data_offset: if data > 0 { 24 } else { 0 }.into(),
        data_length: data.into(),
    }
}

/// A listener that has agreed with a peer of these credits, which has granted ten.
pub(crate) fn listener(credits: u16) -> Peer {
    let mut peer = Peer::new(Role::Listener, &small(Role::Listener));
    peer.say(request(credits, 1024, 1024, 131_072).as_bytes());
    assert_eq!(peer.core.state(), State::Connected);
    peer
}

/// An initiator that has agreed.
pub(crate) fn initiator() -> Peer {
    initiator_of(10)
}

/// An initiator that has agreed with a peer of these credits, which has granted them.
pub(crate) fn initiator_of(credits: u16) -> Peer {
    let mut peer = Peer::new(Role::Initiator, &small(Role::Initiator));
    let answer = NegotiateResponse {
        credits_requested: credits.into(),
        credits_granted: credits.into(),
        ..response()
    };
    peer.say(answer.as_bytes());
    assert_eq!(peer.core.state(), State::Connected);
    peer
}
