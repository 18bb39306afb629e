//! An operation that takes longer than its submission.

use std::io;
use std::sync::Arc;

use linkspan_mem::{RegionTable, Span};
use linkspan_sys::file::Transfer;

use super::bounce::Bounce;
use super::file_io::RawFile;
use crate::image::Operation;

/// What is to be done, apart from the memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Read { offset: u64 },
    Write { offset: u64, durable: bool },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes(Zeroes),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Zeroes {
    offset: u64,
    len: u64,
    unmap: bool,
    durable: bool,
}

/// An operation under way. It holds the memory that its spans point into. Jobs
/// are used again, so that a queue at work allocates nothing.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) token: u32,
    pub(super) work: Work,
    spans: Vec<Span>,
    memory: Option<Arc<RegionTable>>,
    /// Bytes that are done already.
    pub(super) done: u64,
    pub(super) result: io::Result<()>,
}

impl Work {
    /// What an operation comes to on this file, and the memory that it uses.
    pub(super) fn of<'a>(operation: Operation<'a>, file: &RawFile) -> (Self, &'a [Span]) {
        match operation {
            Operation::Read { offset, data } => (Self::Read { offset }, data),
            Operation::Write {
                offset,
                data,
                durable,
            } => {
                let durable = file.is_durable(durable);
                (Self::Write { offset, durable }, data)
            }
            Operation::Flush => (Self::Flush, &[]),
            Operation::Discard { offset, len } => (Self::Discard { offset, len }, &[]),
            Operation::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => {
                let durable = file.is_durable(durable);
                let zeroes = Zeroes {
                    offset,
                    len,
                    unmap,
                    durable,
                };
                (Self::WriteZeroes(zeroes), &[])
            }
        }
    }

    pub(super) fn changes_image(self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Flush)
    }

    /// Where the data is in the file, if there is any.
    pub(super) fn offset(self) -> Option<u64> {
        match self {
            Self::Read { offset } | Self::Write { offset, .. } => Some(offset),
            _ => None,
        }
    }

    /// Does it, and waits for it.
    pub(super) fn carry_out(
        self,
        transfer: &Transfer<'_>,
        done: &mut u64,
        file: &RawFile,
        bounce: &mut Bounce,
    ) -> io::Result<()> {
        match self {
            Self::Read { .. } => file.read(transfer, done, bounce),
            Self::Write { durable, .. } => file.write(transfer, done, durable, bounce),
            Self::Flush => file.sync(),
            Self::Discard { offset, len } => file.discard(offset, len),
            Self::WriteZeroes(zeroes) => {
                let Zeroes {
                    offset,
                    len,
                    unmap,
                    durable,
                } = zeroes;
                file.write_zeroes(offset, len, unmap, durable, bounce)
            }
        }
    }
}

impl Job {
    pub(super) fn new() -> Self {
        Self {
            token: 0,
            work: Work::Flush,
            spans: Vec::new(),
            memory: None,
            done: 0,
            result: Ok(()),
        }
    }

    /// Takes over an operation of which `done` bytes are done; `false` when there
    /// is no memory for that.
    pub(super) fn take_over(
        &mut self,
        token: u32,
        work: Work,
        spans: &[Span],
        memory: &Arc<RegionTable>,
        done: u64,
    ) -> bool {
        self.spans.clear();
        if self.spans.try_reserve(spans.len()).is_err() {
            return false;
        }
        self.spans.extend_from_slice(spans);
        self.memory = Some(Arc::clone(memory));
        (self.token, self.work, self.done) = (token, work, done);
        self.result = Ok(());
        true
    }

    /// The data, and the memory in which it is; none for a job at rest.
    pub(super) fn data(&self) -> Option<(&Arc<RegionTable>, Transfer<'_>)> {
        let memory = self.memory.as_ref()?;
        let transfer = Transfer {
            table: memory,
            spans: &self.spans,
            offset: self.work.offset().unwrap_or(0),
        };
        Some((memory, transfer))
    }

    /// Does what is left of it, and waits for it.
    pub(super) fn carry_out(&mut self, file: &RawFile, bounce: &mut Bounce) {
        let mut done = self.done;
        if let Some((_, transfer)) = self.data() {
            self.result = self.work.carry_out(&transfer, &mut done, file, bounce);
        }
        self.done = done;
    }

    /// Lets go of the memory and gives the result.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.memory = None;
        std::mem::replace(&mut self.result, Ok(()))
    }
}
