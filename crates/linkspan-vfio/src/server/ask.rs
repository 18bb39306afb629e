//! What the device asks of the client: memory that was not shared by descriptor.

use alloc::vec::Vec;

use linkspan_mem::Iova;
use thiserror::Error;
use zerocopy::IntoBytes as _;

use super::{Effect, Server};
use crate::error::Cause;
use crate::framing::{Frame, message};
use crate::message::Command;
use crate::wire::{self, DATA_MAX, DmaAccess, Header};

/// Questions that wait for their answers at a time.
pub(super) const QUESTIONS_MAX: usize = 16;

/// A question that cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AskError {
    /// There is no session.
    #[error("no client is connected")]
    NotConnected,
    /// Bytes that the client did not share.
    #[error("{count} bytes at {address} are not shared{}", if *.write { " to be written" } else { "" })]
    Outside {
        /// The first.
        address: Iova,
        /// How many.
        count: u64,
        /// Whether they were to be written.
        write: bool,
    },
    /// More at once than the client takes.
    #[error("{count} bytes at once; the client takes {max}")]
    Transfer {
        /// How many.
        count: u64,
        /// The most.
        max: u64,
    },
    /// Too many wait.
    #[error("{QUESTIONS_MAX} questions wait for their answers")]
    Busy,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: u16,
    command: Command,
    access: DmaAccess,
}

/// The questions that wait.
#[derive(Debug, Default)]
pub(super) struct Questions {
    waiting: Vec<Waiting>,
    next: u16,
}

impl Questions {
    /// Whether any waits.
    pub(super) fn wait(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What the client's answer says. Answers may come in any order.
    pub(super) fn answered(&mut self, frame: &Frame) -> Result<Effect, Cause> {
        let Header { id, command, .. } = frame.header;
        let found = self.waiting.iter().position(|waiting| waiting.id == id);
        let found = found.filter(|at| self.waiting[*at].command.code() == command);
        let Some(at) = found else {
            return Err(Cause::Unasked { id });
        };
        let Waiting {
            command, access, ..
        } = self.waiting.swap_remove(at);
        if frame.header.flags & Header::ERROR != 0 {
            let number = match frame.header.error {
                0 => wire::errno::EIO,
                number => number,
            };
            let result = Err(number);
            return Ok(Effect::Told { id, result });
        }
        let (min, max) = match command {
            Command::DmaRead => {
                // Made from a `u32`.
                let count = usize::try_from(access.count).unwrap_or(DATA_MAX);
                (16 + count, 16 + count)
            }
            _ => (12, 16),
        };
        let got = frame.body.len();
        if !(min..=max).contains(&got) {
            return Err(Cause::BodySize { got, min, max });
        }
        let word = |at: usize| frame.body.get(at..).and_then(<[u8]>::first_chunk);
        let address = word(0).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let count = match word(8) {
            Some(bytes) => u64::from_ne_bytes(*bytes),
            None => {
                let half = frame.body.get(8..).and_then(<[u8]>::first_chunk);
                half.map_or(0, |bytes| u32::from_ne_bytes(*bytes).into())
            }
        };
        for (got, want) in [(address, access.address), (count, access.count)] {
            if got != want {
                return Err(Cause::WrongReply { got, want });
            }
        }
        let data = match command {
            Command::DmaRead => frame.body[16..].to_vec(),
            _ => Vec::new(),
        };
        let result = Ok(data);
        Ok(Effect::Told { id, result })
    }
}

impl Server {
    /// Asks for bytes of memory that came without a descriptor
    /// (`VFIO_USER_DMA_READ`): the answer is an [`Effect::Told`] with the number that
    /// this returns. The client may wait for the answer to its own message first.
    ///
    /// # Errors
    /// [`AskError`]: nothing is asked.
    pub fn ask_read(&mut self, address: Iova, count: u32) -> Result<u16, AskError> {
        self.ask(Command::DmaRead, address, count.into(), &[])
    }

    /// Writes bytes to such memory (`VFIO_USER_DMA_WRITE`).
    ///
    /// # Errors
    /// As [`ask_read`](Self::ask_read).
    pub fn ask_write(&mut self, address: Iova, data: &[u8]) -> Result<u16, AskError> {
        self.ask(Command::DmaWrite, address, data.len() as u64, data)
    }

    fn ask(
        &mut self,
        command: Command,
        address: Iova,
        count: u64,
        data: &[u8],
    ) -> Result<u16, AskError> {
        let agreed = self.agreed.filter(|_| !self.over);
        let agreed = agreed.ok_or(AskError::NotConnected)?;
        let max = agreed.capabilities.data_xfer_size.min(DATA_MAX as u64);
        if count > max {
            return Err(AskError::Transfer { count, max });
        }
        let write = command == Command::DmaWrite;
        if !self.is_shared(address, count, write) {
            return Err(AskError::Outside {
                address,
                count,
                write,
            });
        }
        let questions = &mut self.questions;
        if questions.waiting.len() >= QUESTIONS_MAX {
            return Err(AskError::Busy);
        }
        // Of those that wait there are few, so there is a number that none of them has.
        let mut id = questions.next;
        while questions.waiting.iter().any(|waiting| waiting.id == id) {
            id = id.wrapping_add(1);
        }
        questions.next = id.wrapping_add(1);
        let access = DmaAccess {
            address: address.0,
            count,
        };
        questions.waiting.push(Waiting {
            id,
            command,
            access,
        });
        let parts = [access.as_bytes(), data];
        let bytes = message(id, command.code(), Header::COMMAND, 0, &parts);
        self.outbox.push_back((bytes, Vec::new()));
        Ok(id)
    }

    /// Whether all of these bytes are in maps, one behind the other.
    fn is_shared(&self, address: Iova, count: u64, write: bool) -> bool {
        let Some(end) = address.0.checked_add(count).filter(|_| count > 0) else {
            return false;
        };
        let mut at = address.0;
        for map in self.maps.all() {
            if map.last().0 < at {
                continue;
            }
            let may = if write { map.writable } else { map.readable };
            if map.address.0 > at || !may {
                return false;
            }
            match map.last().0.checked_add(1) {
                Some(next) if next < end => at = next,
                _ => return true,
            }
        }
        false
    }
}
