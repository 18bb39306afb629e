//! One direction of a connection over TCP: bytes on their way, and where messages begin in them.

use std::io;

use linkspan_smb2::Header;
use linkspan_smb2::announce::{ANSWER_MAX, ASK_LEN, Announce};
use linkspan_smb2::frame::{self, MESSAGE_MAX, PREFIX_LEN};
use linkspan_smb2::gateway::Error;
use linkspan_sys::tcp::{Gather, TcpStream};

use super::super::End;

/// Bytes of a direction at most: the longest message that is seen whole has room.
pub(super) const ROOM: usize = 128 << 10;

/// How often that is filled before others have their turn.
const TURNS: usize = 32;

/// Bytes beside them for what an answer has more then.
const MORE: usize = 512;

const _: () = assert!(ROOM > PREFIX_LEN + ANSWER_MAX);

/// Who says what goes this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Client,
    Server,
}

impl Origin {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// Its socket failed.
    fn lost(self, error: io::Error) -> End {
        match self {
            Self::Client => End::Left(error),
            Self::Server => End::Lost(error),
        }
    }
}

pub(super) struct Flow {
    from: Origin,
    /// Memory of what was read, once there was something; `filled` bytes were, and
    /// `written` of them have gone.
    bytes: Vec<u8>,
    filled: usize,
    written: usize,
    /// So many bytes may go.
    passed: usize,
    /// Bytes of a message that go without being looked at.
    left: usize,
    /// Nobody says more.
    ended: bool,
    /// That was said.
    told: bool,
    /// Bytes that have gone.
    pub(super) total: u64,
}

impl Flow {
    pub(super) fn new(from: Origin) -> Self {
        Self {
            from,
            bytes: Vec::new(),
            filled: 0,
            written: 0,
            passed: 0,
            left: 0,
            ended: false,
            told: false,
            total: 0,
        }
    }

    /// Whether more is to be read.
    pub(super) fn wants(&self) -> bool {
        !self.ended && self.filled < ROOM
    }

    /// Whether something is to be written.
    pub(super) fn has(&self) -> bool {
        self.written < self.passed
    }

    /// Whether all was said, and has gone.
    pub(super) fn is_over(&self) -> bool {
        self.told
    }

    /// Reads as much as there is room for, looks at it, and writes as much as goes.
    /// How many answers were changed.
    pub(super) fn pump(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        announce: &mut Announce,
    ) -> Result<u64, End> {
        let mut changed = 0;
        // What is left is told again.
        for _ in 0..TURNS {
            let read = self.read(from)?;
            changed += self.look(announce)?;
            let written = self.write(to)?;
            if !read && !written {
                break;
            }
        }
        if self.ended && !self.has() && !self.told {
            self.told = true;
            let lost = |error| self.from.other().lost(error);
            to.shut_down().map_err(lost)?;
        }
        Ok(changed)
    }

    fn read(&mut self, from: &TcpStream) -> Result<bool, End> {
        if !self.wants() {
            return Ok(false);
        }
        self.bytes.resize(ROOM + MORE, 0);
        match from.read_bytes(&mut self.bytes[self.filled..ROOM]) {
            Ok(0) => {
                self.ended = true;
                Ok(false)
            }
            Ok(count) => {
                self.filled += count;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(self.from.lost(error)),
        }
    }

    /// Lets go what need not be seen. How many answers were changed.
    fn look(&mut self, announce: &mut Announce) -> Result<u64, End> {
        let mut changed = 0;
        loop {
            let pass = self.left.min(self.filled - self.passed);
            self.passed += pass;
            self.left -= pass;
            if self.left > 0 {
                return Ok(changed);
            }
            let rest = &self.bytes[self.passed..self.filled];
            let Some((prefix, message)) = rest.split_first_chunk::<PREFIX_LEN>() else {
                return self.tail(changed);
            };
            let len = frame::length(*prefix, MESSAGE_MAX).map_err(|error| match self.from {
                Origin::Client => Error::Client(error),
                Origin::Server => Error::Server(error),
            })?;
            let head_len = match self.from {
                Origin::Client => ASK_LEN,
                Origin::Server => Header::LEN,
            };
            let Some(head) = message.get(..head_len.min(len)) else {
                return self.tail(changed);
            };
            self.left = PREFIX_LEN + len;
            match self.from {
                Origin::Client => announce.from_client(head),
                Origin::Server if announce.wants(head, len) => {
                    let Some(whole) = message.get(..len) else {
                        self.left = 0;
                        return self.tail(changed);
                    };
                    let new = announce.from_server(whole);
                    changed += u64::from(new.is_some_and(|new| self.replace(&new)));
                }
                Origin::Server => {}
            }
        }
    }

    /// Puts another message in the place of the one that is next to go, if there is room.
    fn replace(&mut self, new: &[u8]) -> bool {
        let (Ok(prefix), filled) = (
            frame::prefix(new.len()),
            self.filled - self.left + PREFIX_LEN + new.len(),
        ) else {
            return false;
        };
        if filled > ROOM + MORE {
            return false;
        }
        let old = self.passed..self.passed + self.left;
        let bytes = prefix.iter().chain(new).copied();
        drop(self.bytes.splice(old, bytes));
        self.bytes.resize(ROOM + MORE, 0);
        self.filled = filled;
        self.left = PREFIX_LEN + new.len();
        true
    }

    /// A message that has only begun waits for more, or goes as far as it came.
    fn tail(&mut self, changed: u64) -> Result<u64, End> {
        if self.ended {
            self.passed = self.filled;
        }
        Ok(changed)
    }

    fn write(&mut self, to: &TcpStream) -> Result<bool, End> {
        let mut any = false;
        while self.has() {
            let mut gather = Gather::new();
            gather.push(&self.bytes[self.written..self.passed]);
            match to.write(&mut gather) {
                Ok(count) => {
                    self.written += count;
                    self.total += count as u64;
                    any = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(self.from.other().lost(error)),
            }
        }
        if self.written > 0 && !self.has() {
            // What has only begun, which is short, or one answer.
            self.bytes.copy_within(self.written..self.filled, 0);
            self.filled -= self.written;
            (self.written, self.passed) = (0, 0);
        }
        Ok(any)
    }
}
