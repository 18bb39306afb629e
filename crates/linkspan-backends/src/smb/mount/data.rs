//! Reads, writes and flushes of a mount: many in flight.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use linkspan_smb2::client::Response;
use linkspan_smb2::io::{ReadRequest, WriteRequest, WriteResponse};
use linkspan_smb2::status;
use linkspan_smb2::wire::Body as _;

use super::super::again::is_over;
use super::super::error::Error;
use super::super::kept::Content;
use super::super::share::{flush_request, refused};
use super::super::transfer::CREDIT;
use super::ask::Job;
use super::errno;
use super::serve::{Handle, Server};

/// Reads and writes in flight.
const WINDOW: usize = 32;

/// Bytes that may have been written and not be durable. What is beyond waits for flushes, which
/// begin at half of it.
const KEPT_MAX: u64 = 64 << 20;

/// A read or write of which something is not done.
#[derive(Debug)]
pub(super) struct Data {
    reply: Ending,
    /// Pieces that are not done.
    left: usize,
    /// The first error.
    error: Option<Errno>,
    /// What was read.
    bytes: Vec<u8>,
    /// Where the file ends in it.
    end: usize,
    /// Since when the server is away for it.
    pub(super) away: Option<Instant>,
}

#[derive(Debug)]
enum Ending {
    Read(ReplyData),
    Write(ReplyWrite, u32),
}

/// A part of a read or write, as long as one that the server takes.
#[derive(Debug)]
pub(super) struct Piece {
    data: u64,
    node: u64,
    file: u64,
    range: Range<u64>,
    /// Where it begins in its read or write.
    at: usize,
    /// What is written.
    bytes: Option<Arc<[u8]>>,
}

/// Who waits for a flush.
#[derive(Debug)]
pub(super) struct Waiter {
    node: u64,
    pub(super) reply: ReplyEmpty,
    pub(super) away: Option<Instant>,
}

/// A flush that is under way.
#[derive(Debug)]
pub(super) struct Flush {
    node: u64,
    /// The last change that it makes durable, and the number of sizes.
    last: u64,
    cuts: u64,
    waiters: Vec<Waiter>,
}

impl Piece {
    fn len(&self) -> u32 {
        u32::try_from(self.range.end - self.range.start).unwrap_or(u32::MAX)
    }

    /// Cuts off what is behind its first bytes.
    fn cut(&mut self, len: u32) -> Self {
        let middle = self.range.start + u64::from(len);
        let rest = Self {
            range: middle..self.range.end,
            at: self.at + len as usize,
            bytes: self.bytes.clone(),
            ..*self
        };
        self.range.end = middle;
        rest
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.node == other.node
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

impl Server {
    /// Takes a read, write or flush.
    pub(super) fn add_data(&mut self, job: Job, away: Option<Instant>) {
        let (file, offset, len, bytes, reply) = match job {
            Job::Read {
                file,
                offset,
                len,
                reply,
            } => (file, offset, len, None, Ending::Read(reply)),
            Job::Write {
                file,
                offset,
                data,
                reply,
            } => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                (file, offset, len, Some(data), Ending::Write(reply, len))
            }
            Job::Flush { node, reply } => {
                return self.waiting.push(Waiter { node, reply, away });
            }
            other => return other.fail(Errno::EIO),
        };
        let node = match self.handles.get(&file) {
            Some(Handle::File(file)) => match file.dead {
                None => Ok(file.node),
                Some(errno) => Err(errno),
            },
            _ => Err(Errno::EBADF),
        };
        let is_read = matches!(reply, Ending::Read(_));
        let data = Data {
            reply,
            left: 1,
            error: node.err(),
            bytes: if is_read {
                vec![0; len as usize]
            } else {
                Vec::new()
            },
            end: if is_read { len as usize } else { 0 },
            away,
        };
        let number = self.next_data;
        self.next_data += 1;
        self.data.insert(number, data);
        match node {
            Ok(node) if len > 0 => self.todo.push_back(Piece {
                data: number,
                node,
                file,
                range: offset..offset.saturating_add(len.into()),
                at: 0,
                bytes,
            }),
            _ => self.done(number),
        }
    }

    /// Asks for what can be asked for now.
    pub(super) fn ask_data(&mut self) -> Result<(), Error> {
        self.ask_flushes()?;
        while self.flying.len() < WINDOW {
            let Some(mut piece) = self.todo.pop_front() else {
                break;
            };
            let Some(len) = self.may_have(&piece) else {
                self.todo.push_front(piece);
                break;
            };
            if len < piece.len() {
                let rest = piece.cut(len);
                if let Some(data) = self.data.get_mut(&piece.data) {
                    data.left += 1;
                }
                self.todo.push_front(rest);
            }
            self.ask_piece(piece)?;
        }
        Ok(())
    }

    /// How many bytes of a piece may be asked for now; none if it has to wait.
    fn may_have(&self, piece: &Piece) -> Option<u32> {
        let writes = piece.bytes.is_some();
        if writes {
            // Two changes of one byte are never under way together.
            let mut flying = self.flying.values().filter(|other| other.bytes.is_some());
            let full = || self.nodes.cost() >= KEPT_MAX && !self.flushes.is_empty();
            if flying.any(|other| other.overlaps(piece)) || full() {
                return None;
            }
        }
        let connection = &self.share.connection;
        let (read, write) = connection.io_max();
        let len = piece.len().min(if writes { write } else { read });
        let affordable = connection.affordable();
        if len <= affordable {
            return Some(len);
        }
        // Answers bring credits; where none is to come, a shorter piece has to do.
        let alone = connection.in_flight() == 0;
        alone.then_some(len.min(affordable.max(CREDIT)))
    }

    fn ask_piece(&mut self, piece: Piece) -> Result<(), Error> {
        let open = match self.handles.get(&piece.file) {
            Some(Handle::File(file)) if file.dead.is_none() => file.open.file,
            _ => {
                self.failed(piece.data, Errno::ESTALE);
                return Ok(());
            }
        };
        let (len, offset) = (piece.len(), piece.range.start.into());
        let connection = &mut self.share.connection;
        let asked = match &piece.bytes {
            None => {
                let request = ReadRequest {
                    length: len.into(),
                    offset,
                    file: open,
                    ..ReadRequest::new()
                };
                connection.read(request, len)
            }
            Some(bytes) => {
                let request = WriteRequest {
                    offset,
                    file: open,
                    ..WriteRequest::new()
                };
                let from = &bytes[piece.at..piece.at + len as usize];
                connection.write(request, len, |to| {
                    to.copy_from(from);
                    Ok(())
                })
            }
        };
        match asked {
            Ok(id) => {
                self.flying.insert(id, piece);
                Ok(())
            }
            Err(error) => {
                self.todo.push_front(piece);
                Err(error)
            }
        }
    }

    /// Asks for the flushes that somebody waits for, or that are due.
    fn ask_flushes(&mut self) -> Result<(), Error> {
        let mut wanted: Vec<u64> = self.waiting.iter().map(|waiter| waiter.node).collect();
        if self.nodes.cost() >= KEPT_MAX / 2 {
            let dirty = self.nodes.all().filter(|(_, node)| !node.kept.is_empty());
            wanted.extend(dirty.map(|(number, _)| number));
        }
        wanted.sort_unstable();
        wanted.dedup();
        for number in wanted {
            // One at a time: the next one is about what came meanwhile.
            if self.flushes.values().any(|flush| flush.node == number) {
                continue;
            }
            self.ask_flush(number)?;
        }
        Ok(())
    }

    fn ask_flush(&mut self, number: u64) -> Result<(), Error> {
        let open = self.writer(number).map(|file| file.open.clone());
        let Ok(node) = self.nodes.get(number) else {
            self.tell(number, Some(Errno::ESTALE));
            return Ok(());
        };
        // Somebody has to hear of it.
        let is_awaited = self.waiting.iter().any(|waiter| waiter.node == number);
        if let Some(errno) = node.failed.take_if(|_| is_awaited) {
            self.tell(number, Some(errno));
            return Ok(());
        }
        let (Some(open), true) = (open, node.is_dirty()) else {
            self.tell(number, None);
            return Ok(());
        };
        let (last, cuts) = (node.kept.last(), node.cuts);
        let connection = &mut self.share.connection;
        if connection.affordable() == 0 && connection.in_flight() > 0 {
            return Ok(());
        }
        let id = connection.submit(flush_request(&open))?;
        let all = std::mem::take(&mut self.waiting);
        let (waiters, others) = all.into_iter().partition(|waiter| waiter.node == number);
        self.waiting = others;
        self.flushes.insert(
            id,
            Flush {
                node: number,
                last,
                cuts,
                waiters,
            },
        );
        Ok(())
    }

    /// Tells those who wait for a flush of what is durable: that takes no server, which is away.
    pub(super) fn tell_clean(&mut self) {
        for waiter in std::mem::take(&mut self.waiting) {
            let node = self.nodes.get(waiter.node);
            match node.is_ok_and(|node| !node.is_dirty() && node.failed.is_none()) {
                true => waiter.reply.ok(),
                false => self.waiting.push(waiter),
            }
        }
    }

    /// Tells those who wait for a flush of a node that is not needed, or not possible.
    fn tell(&mut self, number: u64, error: Option<Errno>) {
        for waiter in std::mem::take(&mut self.waiting) {
            match error {
                _ if waiter.node != number => self.waiting.push(waiter),
                None => waiter.reply.ok(),
                Some(errno) => waiter.reply.error(errno),
            }
        }
    }

    pub(super) fn answered(&mut self, response: &Response) -> Result<(), Error> {
        let said = response.status();
        if is_over(said) {
            // What was asked for stays, and is asked for again.
            return Err(refused("", said));
        }
        if let Some(flush) = self.flushes.remove(&response.id) {
            self.flush_answered(flush, said);
            return Ok(());
        }
        let Some(mut piece) = self.flying.remove(&response.id) else {
            return Ok(());
        };
        match self.outcome(&piece, response) {
            Ok(Ok(len)) if len < piece.len() => {
                let rest = piece.cut(len);
                self.todo.push_front(rest);
            }
            Ok(Ok(_)) => self.done(piece.data),
            Ok(Err(said)) => self.failed(piece.data, errno::of_status(said)),
            Err(error) => {
                self.flying.insert(response.id, piece);
                return Err(error);
            }
        }
        Ok(())
    }

    /// How many bytes of a piece were done, or what the server says.
    fn outcome(&mut self, piece: &Piece, response: &Response) -> Result<Result<u32, u32>, Error> {
        let (said, whole) = (response.status(), piece.len());
        let size = self.nodes.get(piece.node).map_or(0, |node| node.size);
        if piece.bytes.is_some() {
            if said != status::SUCCESS {
                return Ok(Err(said));
            }
            let count = WriteResponse::read(response.message())?.count.get();
            if count == 0 {
                return Ok(Err(status::DISK_FULL));
            }
            if let (Ok(node), Some(bytes)) = (self.nodes.get(piece.node), &piece.bytes) {
                let content = Content::Data(Arc::clone(bytes), piece.at);
                node.wrote(piece.range.start, count.into(), content);
            }
            return Ok(Ok(count));
        }
        let Some(data) = self.data.get_mut(&piece.data) else {
            return Ok(Ok(whole));
        };
        match said {
            status::SUCCESS => {}
            status::END_OF_FILE => {
                data.end = data.end.min(piece.at);
                return Ok(Ok(whole));
            }
            said => return Ok(Err(said)),
        }
        // The protocol's end has checked that it is not more than was asked for.
        let came = self.share.connection.data(response, |bytes| {
            bytes.copy_to(&mut data.bytes[piece.at..piece.at + bytes.len()]);
            bytes.len()
        })?;
        let got = u32::try_from(came).unwrap_or(whole);
        let is_end = piece.range.start + u64::from(got) >= size;
        if got == 0 || (got < whole && is_end) {
            data.end = data.end.min(piece.at + came);
            return Ok(Ok(whole));
        }
        Ok(Ok(got))
    }

    fn flush_answered(&mut self, flush: Flush, said: u32) {
        let errno = (said != status::SUCCESS).then(|| errno::of_status(said));
        if let Ok(node) = self.nodes.get(flush.node) {
            // What could not be made durable is not tried again: who wrote it hears of it once.
            node.durable(flush.last, flush.cuts);
            if flush.waiters.is_empty() {
                node.failed = errno.or(node.failed);
            }
        }
        for waiter in flush.waiters {
            match errno {
                None => waiter.reply.ok(),
                Some(errno) => waiter.reply.error(errno),
            }
        }
    }

    /// A piece is done.
    fn done(&mut self, number: u64) {
        let Some(data) = self.data.get_mut(&number) else {
            return;
        };
        data.left -= 1;
        if data.left > 0 {
            return;
        }
        let Some(data) = self.data.remove(&number) else {
            return;
        };
        match (data.reply, data.error) {
            (Ending::Read(reply), Some(errno)) => reply.error(errno),
            (Ending::Read(reply), None) => reply.data(&data.bytes[..data.end]),
            (Ending::Write(reply, _), Some(errno)) => reply.error(errno),
            (Ending::Write(reply, len), None) => reply.written(len),
        }
    }

    fn failed(&mut self, number: u64, errno: Errno) {
        if let Some(data) = self.data.get_mut(&number) {
            data.error.get_or_insert(errno);
        }
        self.done(number);
    }

    /// A read or write fails as it is; nothing of it is asked for.
    pub(super) fn fail_data(&mut self, number: u64, errno: Errno) {
        self.todo.retain(|piece| piece.data != number);
        if let Some(data) = self.data.get_mut(&number) {
            data.left = 1;
            data.error.get_or_insert(errno);
        }
        self.done(number);
    }

    /// What was asked for is to be asked for, in its order.
    pub(super) fn put_back(&mut self) {
        for piece in std::mem::take(&mut self.flying).into_values().rev() {
            self.todo.push_front(piece);
        }
        for flush in std::mem::take(&mut self.flushes).into_values() {
            self.waiting.extend(flush.waiters);
        }
    }

    /// What was asked for fails.
    pub(super) fn fail_flying(&mut self) {
        for piece in std::mem::take(&mut self.flying).into_values() {
            self.fail_data(piece.data, Errno::EIO);
        }
        for flush in std::mem::take(&mut self.flushes).into_values() {
            for waiter in flush.waiters {
                waiter.reply.error(Errno::EIO);
            }
        }
    }

    /// Waits until nothing of a node is under way.
    pub(super) fn settle(&mut self, number: u64) -> Result<(), Error> {
        loop {
            let mut flying = self.flying.values().map(|piece| piece.node);
            let flushes = self.flushes.values().map(|flush| flush.node);
            let mut all = flying.by_ref().chain(flushes);
            if !all.any(|node| node == number) {
                return Ok(());
            }
            drop(all);
            self.share.connection.turn()?;
            self.hear()?;
        }
    }
}
