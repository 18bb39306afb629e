//! What is asked of the server for the requests of a guest.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use linkspan_mem::fault::{self, Site};
use linkspan_smb2::status;

use super::super::again::to_usize;
use crate::image::handed::{Request, Work};

/// A request of a guest of which something is not done.
pub(super) struct Task {
    pub(super) request: Request,
    /// Pieces that are not done.
    pub(super) left: usize,
    /// The first of them that failed.
    pub(super) error: Option<io::Error>,
}

/// A part of a request, as long as one that the server takes.
#[derive(Debug)]
pub(super) struct Piece {
    /// Whose it is.
    pub(super) task: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) what: What,
}

/// What is to be done with the bytes of a piece.
#[derive(Debug)]
pub(super) enum What {
    /// They are read, to this place of the request's data.
    Read { at: u64 },
    /// They are written, from this place of the request's data; or of what was taken from there,
    /// so that it is the same if it has to be written again.
    Write { at: u64, data: Option<Arc<[u8]>> },
    /// They become zeroes, or anything if the server has no zeroes.
    Zero { or_anything: bool },
}

/// Who waits for a flush.
pub(super) enum Waiter {
    Task(u64),
    Sync(SyncSender<io::Result<()>>),
}

impl Piece {
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    pub(super) fn is_change(&self) -> bool {
        !matches!(self.what, What::Read { .. })
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }

    /// Cuts off what is behind its first bytes.
    pub(super) fn cut(&mut self, len: u64) -> Self {
        let what = match &self.what {
            What::Read { at } => What::Read { at: at + len },
            What::Write { at, data } => What::Write {
                at: at + len,
                data: data.as_ref().map(|data| Arc::from(&data[to_usize(len)..])),
            },
            What::Zero { or_anything } => What::Zero {
                or_anything: *or_anything,
            },
        };
        let rest = Self {
            task: self.task,
            offset: self.offset + len,
            len: self.len - len,
            what,
        };
        self.len = len;
        if let What::Write {
            data: Some(data), ..
        } = &mut self.what
        {
            *data = Arc::from(&data[..to_usize(len)]);
        }
        rest
    }

    /// Takes the data out of the guest's memory, if that was not done yet.
    pub(super) fn fetch(&mut self, task: &Task) -> io::Result<Arc<[u8]>> {
        let What::Write { at, data } = &mut self.what else {
            return Ok(Arc::from([]));
        };
        if let Some(data) = data {
            return Ok(Arc::clone(data));
        }
        fault::point(Site::Alloc).map_err(io::Error::other)?;
        let mut bytes = vec![0; to_usize(self.len)];
        let (spans, memory) = (&task.request.spans, &task.request.memory);
        memory
            .gather(spans, *at, &mut bytes)
            .map_err(io::Error::other)?;
        let bytes: Arc<[u8]> = bytes.into();
        *data = Some(Arc::clone(&bytes));
        Ok(bytes)
    }
}

/// The pieces of a request.
pub(super) fn pieces(task: u64, request: &Request) -> VecDeque<Piece> {
    let (offset, len, what) = match request.work {
        Work::Read { offset } => (offset, request.len(), What::Read { at: 0 }),
        Work::Write { offset, .. } => (offset, request.len(), What::Write { at: 0, data: None }),
        Work::Discard { offset, len } => (offset, len, What::Zero { or_anything: true }),
        Work::Zero { offset, len, .. } => (offset, len, What::Zero { or_anything: false }),
        Work::Flush => return VecDeque::new(),
    };
    let piece = Piece {
        task,
        offset,
        len,
        what,
    };
    match len {
        0 => VecDeque::new(),
        _ => VecDeque::from([piece]),
    }
}

/// Whether a request has to be durable when it is answered.
pub(super) fn is_durable(work: Work) -> bool {
    matches!(
        work,
        Work::Write { durable: true, .. } | Work::Zero { durable: true, .. } | Work::Flush
    )
}

/// What a guest's request ends with if the server says this.
pub(super) fn error(said: u32) -> io::Error {
    let kind = match said {
        status::DISK_FULL | status::QUOTA_EXCEEDED => io::ErrorKind::StorageFull,
        status::ACCESS_DENIED | status::MEDIA_WRITE_PROTECTED => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{} ({said:#010x})", status::text(said)))
}
