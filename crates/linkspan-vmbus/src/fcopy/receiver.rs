//! The guest's end: from messages to what is to be done with a file.

use alloc::string::String;
use core::ops::Range;

use thiserror::Error;
use zerocopy::FromBytes;

use super::name::{self, NameError};
use super::parts::{PARTS_MAX, Parts, TooManyParts};
use super::place::{Place, Roots};
use super::wire::{
    FRAGMENT_MAX, HEAD_LEN, Head, Operation, START_LEN, Start, WRITE_HEAD_LEN, Write, copy_flags,
};
use crate::ic::{
    FILE_COPY, GuestService, HEADER_BYTES, Handled, Loader, Saver, Service, Status, Version,
};
use linkspan_mem::record::RestoreError;

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Where files may go.
    pub roots: Roots,
    /// Bytes of a file at most.
    pub max_size: u64,
}

/// What is to be done, one thing at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make a file beside this place, so that nobody sees it there before it is
    /// whole. If it cannot be, nothing may be left.
    Open(Place),
    /// Write bytes into it.
    Write {
        /// Where in the file.
        offset: u64,
        /// Where the bytes are in the payload that was received: private memory, to
        /// be written from as it is.
        data: Range<usize>,
    },
    /// All has come: put it in its place.
    Finish,
    /// Remove it; nothing may be left.
    Discard,
}

/// Why a request was refused. A host can cause these as often as it likes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It ends early.
    #[error("a message of {got} bytes where {need} are needed")]
    Short {
        /// Bytes there are.
        got: usize,
        /// Bytes needed.
        need: usize,
    },
    /// There is no such request.
    #[error("there is no request {code}")]
    Operation {
        /// Its number.
        code: u32,
    },
    /// A name, or a place, that cannot be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A size that no file has.
    #[error("a file of {size} bytes")]
    Size {
        /// Bytes.
        size: u64,
    },
    /// A file larger than is allowed.
    #[error("a file of {size} bytes where {max} are allowed")]
    TooLarge {
        /// Bytes.
        size: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// More bytes than came, or than a fragment has.
    #[error("{size} bytes of data in a message with room for {room}")]
    Fragment {
        /// Bytes that it says.
        size: u32,
        /// Bytes that it can have.
        room: usize,
    },
    /// Bytes behind the end of the file.
    #[error("{size} bytes at {offset} of a file of {file}")]
    Beyond {
        /// Where they go.
        offset: u64,
        /// How many.
        size: u32,
        /// Bytes of the file.
        file: u64,
    },
    /// Bytes in too many places.
    #[error(transparent)]
    Parts(#[from] TooManyParts),
    /// Nothing was begun.
    #[error("{} of no file", .operation.name())]
    NoFile {
        /// What was asked.
        operation: Operation,
    },
    /// The end of a file of which bytes are missing.
    #[error("COMPLETE after {got} of {size} bytes")]
    Incomplete {
        /// Bytes that came.
        got: u64,
        /// Bytes of the file.
        size: u64,
    },
}

impl Refusal {
    /// What the host is told.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Operation { .. } => Status::NOT_SUPPORTED,
            Self::TooLarge { .. } => Status::DISK_FULL,
            Self::NoFile { .. } | Self::Incomplete { .. } => Status::FAIL,
            _ => Status::INVALID_ARGUMENT,
        }
    }
}

/// The guest's end of file copy.
#[derive(Debug)]
pub struct Receiver {
    policy: Policy,
    state: State,
    refusal: Option<Refusal>,
}

/// A file that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Copy {
    size: u64,
    parts: Parts,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Open(Copy),
    /// An effect is under way.
    Opening(Copy),
    Writing(Copy, u64, u64),
    Finishing,
    Discarding(After),
}

/// What comes after the file is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum After {
    Answer(Status),
    Open(Place),
}

type Done = Result<Handled<Effect>, Refusal>;

impl Receiver {
    /// Nothing has come yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Idle,
            refusal: None,
        }
    }

    /// Why the last request was refused, if it was, once: for a log whose rate has a
    /// limit.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// Whether a file has begun.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state != State::Idle
    }

    /// The place of a folder that is to be made. The protocol has no request for that;
    /// hosts of ours ask for it otherwise.
    ///
    /// # Errors
    /// A name, or a place, that cannot be.
    pub fn folder(&self, name: &str, path: &str, create_path: bool) -> Result<Place, Refusal> {
        let (root, folder, target) = self.policy.roots.place(name.into(), path)?;
        Ok(Place {
            root,
            folder,
            target,
            overwrite: false,
            create_path,
            size: 0,
        })
    }

    fn handle(&mut self, body: &[u8]) -> Done {
        let head = Head::read_from_prefix(body);
        let (head, _) = head.map_err(|_| short(body, HEAD_LEN))?;
        let code = head.operation.get();
        match Operation::of(code).ok_or(Refusal::Operation { code })? {
            Operation::Start => self.start(body),
            Operation::Write => self.write(body),
            Operation::Complete => self.complete(),
            Operation::Cancel => Ok(self.cancel()),
        }
    }

    fn start(&mut self, body: &[u8]) -> Done {
        let start = Start::read_from_prefix(body);
        let (start, _) = start.map_err(|_| short(body, START_LEN))?;
        let place = self.place(&start)?;
        // Whoever begins anew has given the one before up.
        if matches!(self.state, State::Open(_)) {
            self.state = State::Discarding(After::Open(place));
            return Ok(Handled::Do(Effect::Discard));
        }
        Ok(self.open(place))
    }

    fn place(&self, start: &Start) -> Result<Place, Refusal> {
        let (size, max) = (start.size.get(), self.policy.max_size);
        if i64::try_from(size).is_err() {
            return Err(Refusal::Size { size });
        }
        let file = name::decode(&start.file)?;
        let path: String = name::decode(&start.path)?;
        let (root, folder, target) = self.policy.roots.place(file, &path)?;
        if size > max {
            return Err(Refusal::TooLarge { size, max });
        }
        let flags = start.flags.get();
        Ok(Place {
            root,
            folder,
            target,
            overwrite: flags & copy_flags::OVER_WRITE != 0,
            create_path: flags & copy_flags::CREATE_PATH != 0,
            size,
        })
    }

    fn open(&mut self, place: Place) -> Handled<Effect> {
        self.state = State::Opening(Copy {
            size: place.size,
            parts: Parts::default(),
        });
        Handled::Do(Effect::Open(place))
    }

    fn write(&mut self, body: &[u8]) -> Done {
        let State::Open(copy) = &self.state else {
            return Err(Refusal::NoFile {
                operation: Operation::Write,
            });
        };
        let write = Write::read_from_prefix(body);
        let (write, data) = write.map_err(|_| short(body, WRITE_HEAD_LEN))?;
        let (offset, size) = (write.offset.get(), write.size.get());
        let room = data.len().min(FRAGMENT_MAX);
        let len = usize::try_from(size).ok().filter(|len| *len <= room);
        let len = len.ok_or(Refusal::Fragment { size, room })?;
        let file = copy.size;
        let end = offset.checked_add(u64::from(size));
        let end = end
            .filter(|end| *end <= file)
            .ok_or(Refusal::Beyond { offset, size, file })?;
        if len == 0 {
            return Ok(Handled::Answer(Status::OK));
        }
        copy.parts.room_for(offset, end)?;
        let begin = HEADER_BYTES + WRITE_HEAD_LEN;
        self.state = match core::mem::replace(&mut self.state, State::Idle) {
            State::Open(copy) => State::Writing(copy, offset, end),
            other => other,
        };
        Ok(Handled::Do(Effect::Write {
            offset,
            data: begin..begin + len,
        }))
    }

    fn complete(&mut self) -> Done {
        match core::mem::replace(&mut self.state, State::Idle) {
            State::Open(copy) if copy.parts.is_whole(copy.size) => {
                self.state = State::Finishing;
                Ok(Handled::Do(Effect::Finish))
            }
            State::Open(copy) => {
                let refusal = Refusal::Incomplete {
                    got: copy.parts.total(),
                    size: copy.size,
                };
                self.state = State::Discarding(After::Answer(refusal.status()));
                self.refusal = Some(refusal);
                Ok(Handled::Do(Effect::Discard))
            }
            state => {
                self.state = state;
                Err(Refusal::NoFile {
                    operation: Operation::Complete,
                })
            }
        }
    }

    /// Without a file there is nothing left to do, so it is done.
    fn cancel(&mut self) -> Handled<Effect> {
        if matches!(self.state, State::Open(_)) {
            self.state = State::Discarding(After::Answer(Status::OK));
            return Handled::Do(Effect::Discard);
        }
        Handled::Answer(Status::OK)
    }
}

fn short(body: &[u8], need: usize) -> Refusal {
    Refusal::Short {
        got: body.len(),
        need,
    }
}

impl GuestService for Receiver {
    const SERVICE: &'static Service = &FILE_COPY;
    type Effect = Effect;

    fn request(&mut self, _version: Version, body: &mut [u8]) -> Handled<Effect> {
        self.refusal = None;
        self.handle(body).unwrap_or_else(|refusal| {
            let status = refusal.status();
            self.refusal = Some(refusal);
            Handled::Answer(status)
        })
    }

    fn done(&mut self, status: Status) -> Handled<Effect> {
        let ok = status.is_ok();
        match core::mem::replace(&mut self.state, State::Idle) {
            State::Opening(copy) if ok => self.state = State::Open(copy),
            State::Writing(mut copy, start, end) => {
                if ok {
                    // There was room for it before it was written.
                    let added = copy.parts.add(start, end);
                    debug_assert_eq!(added, Ok(()));
                }
                self.state = State::Open(copy);
            }
            State::Finishing if !ok => {
                self.state = State::Discarding(After::Answer(status));
                return Handled::Do(Effect::Discard);
            }
            State::Discarding(After::Open(place)) => return self.open(place),
            State::Discarding(After::Answer(answer)) => return Handled::Answer(answer),
            State::Idle | State::Open(_) | State::Opening(_) | State::Finishing => {}
        }
        Handled::Answer(status)
    }

    fn reset(&mut self) -> Option<Effect> {
        self.refusal = None;
        if self.state == State::Idle {
            return None;
        }
        self.state = State::Discarding(After::Answer(Status::OK));
        Some(Effect::Discard)
    }

    fn save(&self, to: Saver<'_>) {
        let State::Open(copy) = &self.state else {
            return to.0.u8(0);
        };
        to.0.u8(1);
        to.0.u64(copy.size);
        to.0.count(copy.parts.runs().len());
        for (start, end) in copy.parts.runs() {
            to.0.u64(*start);
            to.0.u64(*end);
        }
    }

    fn load(&mut self, from: Loader<'_, '_>) -> Result<(), RestoreError> {
        if !from.0.flag("whether a file has begun")? {
            return Ok(());
        }
        let nonsense = RestoreError::Nonsense {
            what: "which bytes of a file have come",
        };
        let mut copy = Copy {
            size: from.0.u64()?,
            parts: Parts::default(),
        };
        for _ in 0..from.0.count("the number of runs", 16, PARTS_MAX)? {
            let (start, end) = (from.0.u64()?, from.0.u64()?);
            if start >= end || end > copy.size || copy.parts.add(start, end).is_err() {
                return Err(nonsense);
            }
        }
        if copy.size > self.policy.max_size {
            return Err(nonsense);
        }
        self.state = State::Open(copy);
        Ok(())
    }
}
