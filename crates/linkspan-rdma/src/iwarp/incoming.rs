//! Frames as they come: every check, and where their bytes go.
//!
//! A header is checked before its payload is placed, and the checksum when all of the
//! frame is there, as siw and adapters do: what a broken frame has placed lies where its
//! sender could have written, and the connection ends.

mod whole;

use alloc::vec::Vec;

use linkspan_mem::crc32c;

use super::WireError;
use super::connection::{Connection, Phase, Wanted};
use super::mpa::Ready;
use super::outgoing::Response;
use super::tags::{Found, parts};
use super::wire::{
    CRC, Control, HEADER_MAX, Opcode, PREFIX, QUEUE_READ, QUEUE_SEND, QUEUE_TERMINATE, ReadRequest,
    TERMINATE_MAX, TRAILER_MAX, Tagged, UNTAGGED, Untagged, padding, u16_at,
};
use crate::verbs::{Event, Failure, Key, Operation, Received, Refusal, Slice};

/// What is on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    /// A request or reply, as far as it is there.
    pub(super) setup: Vec<u8>,
    /// What the first frame has to be.
    pub(super) first: Option<Ready>,
    step: Step,
    header: [u8; HEADER_MAX],
    trailer: [u8; TRAILER_MAX],
    /// Bytes of header or trailer that are there, and that there have to be.
    have: usize,
    need: usize,
    opcode: Opcode,
    last: bool,
    crc: u32,
    /// Bytes of payload, and those not placed.
    payload: u32,
    left: u32,
    target: Target,
    next_send: u32,
    next_read: u32,
    message: Option<Message>,
    write: Option<Write>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Header,
    Buffer,
    Payload,
    Trailer,
}

/// Where the payload of a frame goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    Nowhere,
    Message,
    Exposure(Found, u32, Key),
    Sink,
}

/// A message of which a part is there.
#[derive(Debug)]
struct Message {
    opcode: Opcode,
    buffer: Option<Slice>,
    got: u32,
}

/// A write of which a part is there.
#[derive(Debug)]
struct Write {
    key: u32,
    next: u64,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            setup: Vec::new(),
            first: None,
            step: Step::Header,
            header: [0; HEADER_MAX],
            trailer: [0; TRAILER_MAX],
            have: 0,
            need: PREFIX,
            opcode: Opcode::Send,
            last: false,
            crc: 0,
            payload: 0,
            left: 0,
            target: Target::Nowhere,
            next_send: 1,
            next_read: 1,
            message: None,
            write: None,
        }
    }

    /// The buffer of a message that will not be complete.
    pub(super) fn abandon(&mut self) -> Option<Slice> {
        self.message.take()?.buffer
    }

    /// The numbers that the next message and the next read have.
    pub(super) fn numbers(&self) -> [u32; 2] {
        [self.next_send, self.next_read]
    }

    pub(super) fn number_from(&mut self, [send, read]: [u32; 2]) {
        (self.next_send, self.next_read) = (send, read);
    }

    fn begin_trailer(&mut self) {
        let len = usize::from(u16_at(&self.header, 0)) + 2;
        self.step = Step::Trailer;
        self.have = 0;
        self.need = padding(len) + CRC;
    }
}

impl Connection {
    /// What the stream has to bring next.
    pub fn wanted(&mut self) -> Wanted {
        match self.phase {
            Phase::Over => return Wanted::Nothing,
            // Read, so that the stream ends in order, and thrown away.
            Phase::Closing { .. } | Phase::Draining { .. } => return Wanted::Bytes(1),
            Phase::Running => {}
            _ => return Wanted::Bytes(self.setup_missing()),
        }
        match self.rx.step {
            Step::Header | Step::Trailer => Wanted::Bytes(self.rx.need - self.rx.have),
            Step::Buffer => Wanted::Buffer {
                size: self.options.limits.receive_size,
            },
            Step::Payload => {
                if let Target::Exposure(found, _, key) = self.rx.target
                    && !self.tags.is_valid(found)
                {
                    // It ended while the bytes were coming.
                    self.fail(Failure::Refused {
                        operation: Operation::Write,
                        why: Refusal::Key { key },
                    });
                    return Wanted::Bytes(1);
                }
                Wanted::Place {
                    len: self.rx.left,
                    crc: self.crc.then_some(self.rx.crc),
                }
            }
        }
    }

    /// Takes bytes of the stream, up to where they have to be placed; says how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            let taken = match self.phase {
                Phase::Running => match self.rx.step {
                    Step::Header | Step::Trailer => self.receive_frame(rest),
                    Step::Buffer | Step::Payload => break,
                },
                Phase::Closing { .. } | Phase::Draining { .. } | Phase::Over => return bytes.len(),
                _ => self.receive_setup(rest),
            };
            match taken {
                Ok(count) => used += count,
                Err(failure) => self.fail(failure),
            }
        }
        used
    }

    /// The places of the next `len` bytes at most, in order.
    pub fn places(&self, len: u32, mut each: impl FnMut(Slice)) {
        let len = len.min(self.rx.left);
        match self.rx.target {
            Target::Nowhere => {}
            Target::Message => {
                if let Some(message) = &self.rx.message
                    && let Some(buffer) = message.buffer
                {
                    each(buffer.part(message.got, len));
                }
            }
            Target::Exposure(found, offset, _) => {
                self.tags.places(found, offset, len, &mut each);
            }
            Target::Sink => parts(self.sinks.iter(), 0, len, &mut each),
        }
    }

    /// So many bytes were placed; `crc` is the checksum, extended by them, where there
    /// is one.
    pub fn placed(&mut self, count: u32, crc: u32) {
        assert!(
            self.rx.step == Step::Payload && count <= self.rx.left,
            "more was placed than was wanted"
        );
        self.rx.left -= count;
        self.rx.crc = crc;
        match &mut self.rx.target {
            Target::Nowhere => {}
            Target::Message => {
                if let Some(message) = &mut self.rx.message {
                    message.got += count;
                }
            }
            Target::Exposure(_, offset, _) => *offset += count,
            Target::Sink => self.fill_sinks(count),
        }
        if self.rx.left == 0 {
            self.rx.begin_trailer();
        }
    }

    fn fill_sinks(&mut self, count: u32) {
        if let Some(read) = self.reads.front_mut() {
            read.got += count;
        }
        let mut left = count;
        while let Some(front) = self.sinks.front_mut().filter(|_| left > 0) {
            let part = left.min(front.len);
            left -= part;
            if part == front.len {
                self.sinks.pop_front();
            } else {
                *front = front.part(part, front.len);
            }
        }
    }

    /// Gives the buffer that is wanted.
    pub fn give(&mut self, buffer: Slice) {
        assert!(
            self.rx.step == Step::Buffer && buffer.len >= self.options.limits.receive_size,
            "no buffer of {} bytes is wanted",
            buffer.len
        );
        if let Some(message) = &mut self.rx.message {
            message.buffer = Some(buffer);
        }
        self.begin_payload();
    }

    /// Whether no message of the peer, and no response, is there in part.
    pub(super) fn is_between_messages(&self) -> bool {
        self.rx.step == Step::Header
            && self.rx.have == 0
            && self.rx.message.is_none()
            && self.rx.write.is_none()
            && self.reads.front().is_none_or(|read| read.got == 0)
    }

    fn begin_payload(&mut self) {
        if self.rx.left > 0 {
            self.rx.step = Step::Payload;
        } else {
            self.rx.begin_trailer();
        }
    }

    fn receive_frame(&mut self, bytes: &[u8]) -> Result<usize, Failure> {
        if let Some(count) = self.receive_whole(bytes)? {
            return Ok(count);
        }
        let rx = &mut self.rx;
        let part = (rx.need - rx.have).min(bytes.len());
        let is_header = rx.step == Step::Header;
        let place: &mut [u8] = if is_header {
            &mut rx.header
        } else {
            &mut rx.trailer
        };
        place[rx.have..rx.have + part].copy_from_slice(&bytes[..part]);
        rx.have += part;
        if rx.have < rx.need {
            return Ok(part);
        }
        match (is_header, rx.need) {
            (true, PREFIX) => self.prefix()?,
            (true, _) => self.header()?,
            (false, _) => self.frame_is_there()?,
        }
        Ok(part)
    }

    /// Length and control word: which frame it is.
    fn prefix(&mut self) -> Result<(), WireError> {
        let len = u16_at(&self.rx.header, 0);
        let control = Control(u16_at(&self.rx.header, 2));
        let number = control.opcode_number();
        let (got, tagged) = (control.ddp_version(), control.is_tagged());
        if got != 1 {
            return Err(WireError::DdpVersion { got, tagged });
        }
        let got = control.rdmap_version();
        if got != 1 {
            return Err(WireError::RdmapVersion { got });
        }
        let opcode = control.opcode().ok_or(WireError::Opcode { got: number })?;
        if tagged != opcode.is_tagged() {
            return Err(WireError::Unexpected { opcode });
        }
        let all = usize::from(len) + 2;
        let min = opcode.header_len();
        let max = match opcode {
            Opcode::ReadRequest => min,
            Opcode::Terminate => TERMINATE_MAX,
            _ => usize::from(u16::MAX) + 2,
        };
        if !(min..=max).contains(&all) {
            // The length field does not count itself.
            let counted = |len: usize| u16::try_from(len - 2).unwrap_or(u16::MAX);
            return Err(WireError::FrameLength {
                got: len,
                min: counted(min),
                max: counted(max),
            });
        }
        self.rx.need = if opcode == Opcode::Terminate {
            all
        } else {
            min
        };
        self.rx.payload = u32::try_from(all - self.rx.need).unwrap_or(0);
        self.rx.left = self.rx.payload;
        self.rx.opcode = opcode;
        self.rx.last = control.is_last();
        Ok(())
    }

    /// All of the header: whether the frame may be, and where its payload goes.
    fn header(&mut self) -> Result<(), Failure> {
        if self.crc {
            self.rx.crc = crc32c(0, &self.rx.header[..self.rx.need]);
        }
        self.rx.target = Target::Nowhere;
        if let Some(first) = self.rx.first {
            self.first_header(first)?;
        }
        match self.rx.opcode {
            Opcode::Write => self.write_header()?,
            Opcode::ReadResponse => self.response_header()?,
            Opcode::ReadRequest => self.read_header()?,
            Opcode::Terminate => self.untagged(QUEUE_TERMINATE, 1, 0).map(|_| ())?,
            _ => {
                self.message_header()?;
                if matches!(&self.rx.message, Some(message) if message.buffer.is_none()) {
                    self.rx.step = Step::Buffer;
                    return Ok(());
                }
            }
        }
        self.begin_payload();
        Ok(())
    }

    /// What the initiator begins with was agreed upon, and has no bytes (RFC 6581, 9.2).
    fn first_header(&self, first: Ready) -> Result<(), WireError> {
        let expected = match first {
            Ready { write: true, .. } => Opcode::Write,
            Ready { read: true, .. } => Opcode::ReadRequest,
            _ => Opcode::Send,
        };
        let got = self.rx.opcode;
        let is_empty = self.rx.payload == 0 && self.rx.last;
        if got != expected || !is_empty {
            return Err(WireError::First { got, expected });
        }
        Ok(())
    }

    fn untagged(&self, queue: u32, number: u32, offset: u32) -> Result<Untagged, WireError> {
        let fields = Untagged::read(&self.rx.header);
        let opcode = self.rx.opcode;
        if fields.queue != queue {
            let got = fields.queue;
            return Err(WireError::Queue { opcode, got });
        }
        if fields.number != number {
            return Err(WireError::Number {
                queue,
                got: fields.number,
                expected: number,
            });
        }
        if fields.offset != offset {
            return Err(WireError::Offset {
                got: fields.offset,
                expected: offset,
            });
        }
        Ok(fields)
    }

    fn write_header(&mut self) -> Result<(), Failure> {
        let opcode = self.rx.opcode;
        if self.reads.front().is_some_and(|read| read.got > 0) {
            // Two tagged messages do not interleave.
            return Err(WireError::Unexpected { opcode }.into());
        }
        let Tagged { key, address } = Tagged::read(&self.rx.header);
        if let Some(write) = &self.rx.write {
            if write.key != key {
                return Err(WireError::OtherKey {
                    got: key,
                    expected: write.key,
                }
                .into());
            }
            if write.next != address {
                return Err(WireError::OtherAddress {
                    got: address,
                    expected: write.next,
                }
                .into());
            }
        }
        let payload = self.rx.payload;
        if payload > 0 {
            let place = self.tags.check(key, address, payload, true);
            let (found, offset) = place.map_err(|why| Failure::Refused {
                operation: Operation::Write,
                why,
            })?;
            self.rx.target = Target::Exposure(found, offset, Key(key));
        }
        self.rx.write = (!self.rx.last).then_some(Write {
            key,
            // It was checked that this does not wrap, if there are bytes.
            next: address.wrapping_add(payload.into()),
        });
        Ok(())
    }

    fn response_header(&mut self) -> Result<(), WireError> {
        let opcode = self.rx.opcode;
        if self.rx.write.is_some() {
            return Err(WireError::Unexpected { opcode });
        }
        let read = self.awaited()?;
        let Tagged { key, address } = Tagged::read(&self.rx.header);
        let (len, left) = (self.rx.payload, read.len - read.got);
        if key != read.sink || address != u64::from(read.got) || len > left {
            return Err(WireError::Response { key, address, len });
        }
        if self.rx.last != (len == left) {
            return Err(WireError::ResponseEnd { left: left - len });
        }
        self.rx.target = Target::Sink;
        Ok(())
    }

    fn read_header(&mut self) -> Result<(), Failure> {
        self.untagged(QUEUE_READ, self.rx.next_read, 0)?;
        let opcode = self.rx.opcode;
        if !self.rx.last {
            return Err(WireError::Segmented { opcode }.into());
        }
        let refused = |why| Failure::Refused {
            operation: Operation::Read,
            why,
        };
        // The first frame that was agreed upon is no read of anybody.
        let max = self.depth.inbound.max(self.rx.first.is_some().into());
        if self.responses.len() >= usize::from(max) {
            return Err(refused(Refusal::TooManyReads { max }));
        }
        let request = ReadRequest::read(&self.rx.header);
        if request.len > 0 {
            let Tagged { key, address } = request.source;
            let checked = self.tags.check(key, address, request.len, false);
            checked.map(|_| ()).map_err(refused)?;
        }
        Ok(())
    }

    fn message_header(&mut self) -> Result<(), Failure> {
        let got = self.rx.message.as_ref().map_or(0, |message| message.got);
        self.untagged(QUEUE_SEND, self.rx.next_send, got)?;
        let refused = |why| Failure::Refused {
            operation: Operation::Send,
            why,
        };
        let opcode = self.rx.opcode;
        match &self.rx.message {
            Some(message) if message.opcode != opcode => {
                return Err(WireError::Unexpected { opcode }.into());
            }
            Some(_) => {}
            // The first frame that was agreed upon is no message of anybody.
            None if self.rx.first.is_some() => return Ok(()),
            None if self.receives == 0 => return Err(refused(Refusal::NoReceive)),
            None => {}
        }
        let max = self.options.limits.receive_size;
        let all = u64::from(got) + u64::from(self.rx.payload);
        if all > max.into() {
            return Err(refused(Refusal::TooLong { got: all, max }));
        }
        if self.rx.message.is_none() {
            self.receives -= 1;
            self.rx.message = Some(Message {
                opcode,
                buffer: None,
                got: 0,
            });
        }
        self.rx.target = Target::Message;
        Ok(())
    }

    /// All of the frame: the checksum, and what comes of it.
    fn frame_is_there(&mut self) -> Result<(), Failure> {
        if self.crc {
            let (padding, sum) = self.rx.trailer[..self.rx.need].split_at(self.rx.need - CRC);
            let expected = crc32c(self.rx.crc, padding);
            let got = u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
            if got != expected {
                return Err(WireError::Crc { got, expected }.into());
            }
        }
        self.rx.step = Step::Header;
        self.rx.have = 0;
        self.rx.need = PREFIX;
        // The initiator understands frames (RFC 5044, 7.1.2), or the responder hears us.
        self.tx.allowed = true;
        self.tx.nudge.stop();
        let first = self.rx.first.take();
        match self.rx.opcode {
            Opcode::Write => Ok(()),
            Opcode::ReadResponse => {
                if self.rx.last {
                    self.read_is_done();
                }
                Ok(())
            }
            Opcode::ReadRequest => self.read_is_there(),
            Opcode::Terminate => {
                let [layer_and_kind, code] =
                    [self.rx.header[UNTAGGED], self.rx.header[UNTAGGED + 1]];
                let terminate = super::Terminate {
                    layer_and_kind,
                    code,
                };
                Err(WireError::Terminated(terminate).into())
            }
            _ if self.rx.last => self.message_is_there(first.is_some()),
            _ => Ok(()),
        }
    }

    fn read_is_there(&mut self) -> Result<(), Failure> {
        self.rx.next_read = self.rx.next_read.wrapping_add(1);
        let request = ReadRequest::read(&self.rx.header);
        let Tagged { key, address } = request.source;
        let mut source = None;
        if request.len > 0 {
            // It may have ended since its header came.
            let checked = self.tags.check(key, address, request.len, false);
            source = Some(checked.map_err(|why| Failure::Refused {
                operation: Operation::Read,
                why,
            })?);
        }
        self.responses.push_back(Response {
            sink: request.sink,
            key,
            source,
            len: request.len,
            framed: 0,
        });
        Ok(())
    }

    fn message_is_there(&mut self, is_first: bool) -> Result<(), Failure> {
        self.rx.next_send = self.rx.next_send.wrapping_add(1);
        let Some(message) = self.rx.message.take() else {
            assert!(is_first, "a message that is there has begun");
            return Ok(());
        };
        let buffer = message.buffer.unwrap_or_default();
        let mut invalidated = None;
        if message.opcode.invalidates() {
            let key = Untagged::read(&self.rx.header).invalidate;
            if let Err(error) = self.invalidate(key) {
                self.rx.message = Some(message);
                return Err(error.into());
            }
            invalidated = Some(Key(key));
        }
        self.events.push_back(Event::Received(Received {
            buffer: buffer.part(0, message.got),
            invalidated,
            solicited: message.opcode.solicits(),
        }));
        Ok(())
    }
}
