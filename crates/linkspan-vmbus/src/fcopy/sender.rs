//! The host's end: sends one file after the other.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::IntoBytes;

use super::name;
use super::wire::{
    FRAGMENT_MAX, Head, Operation, Start, WRITE_HEAD_LEN, WRITE_LEN, Write, copy_flags,
};
use crate::NotQuiet;
use crate::ic::{FILE_COPY, HEADER_BYTES, Host, HostError, HostEvent, Status};
use linkspan_mem::record::{Reader, RestoreError, Writer};

/// How the guest is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// WRITEs that may wait for their answer at once, 1 to [`Options::OUTSTANDING_MAX`].
    /// The guests of others are promised 1.
    pub outstanding: usize,
}

impl Options {
    /// The most WRITEs at once.
    pub const OUTSTANDING_MAX: usize = 32;
}

/// A file to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The last part of its path here.
    pub file: String,
    /// Where it goes in the guest.
    pub path: String,
    /// Whether a file that is there is replaced.
    pub overwrite: bool,
    /// Whether folders that are missing are made.
    pub create_path: bool,
    /// Its bytes.
    pub size: u64,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this payload.
    Send(Vec<u8>),
    /// Send a payload of these parts: `head`, `len` bytes of the file from `offset` on,
    /// and so many zeroes. If the file cannot be read, any bytes, and [`Sender::cancel`].
    Write {
        /// The headers.
        head: [u8; HEADER_BYTES + WRITE_HEAD_LEN],
        /// Where in the file.
        offset: u64,
        /// Bytes of the file.
        len: usize,
        /// Zeroes behind them.
        padding: usize,
    },
    /// A file can be sent.
    Ready,
    /// The guest has the file.
    Done,
    /// The guest does not have it.
    Failed(Failure),
}

/// Why a file was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The guest would not.
    #[error("the guest refused {}: {status}", .operation.name())]
    Refused {
        /// What it refused.
        operation: Operation,
        /// Why.
        status: Status,
    },
    /// The guest broke the protocol, or has no version of ours. Nothing can be sent
    /// any more.
    #[error(transparent)]
    Protocol(#[from] HostError),
    /// The guest did not answer in time. Nothing can be sent any more.
    #[error("the guest does not answer")]
    Silent,
    /// Somebody here stopped it.
    #[error("stopped")]
    Stopped,
    /// The file could not be read, or has another size now.
    #[error("the file could not be read")]
    Source,
}

/// Something that cannot be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A file is being sent, or nothing is negotiated, or all is over.
    #[error("no file can be sent now")]
    NotReady,
    /// A name that no message has room for.
    #[error("a name of more than 259 UTF-16 units, or with a zero in it, or empty")]
    Name,
    /// WRITEs at once.
    #[error(
        "{outstanding} outstanding, where 1 to {} are possible",
        Options::OUTSTANDING_MAX
    )]
    Outstanding {
        /// What was asked for.
        outstanding: usize,
    },
}

/// The host's end of file copy.
#[derive(Debug)]
pub struct Sender {
    host: Host,
    options: Options,
    phase: Phase,
    answered: u64,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Negotiating,
    Ready,
    /// START, COMPLETE or CANCEL waits for its answer.
    Asked(Operation, Course),
    Sending(Course),
    Over,
}

/// How far the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Course {
    size: u64,
    /// Bytes sent.
    next: u64,
    /// What makes it end early.
    failure: Option<Failure>,
}

impl Course {
    fn next_write(&self) -> Option<(u64, usize)> {
        let left = self.size - self.next;
        if left == 0 || self.failure.is_some() {
            return None;
        }
        let len = usize::try_from(left).map_or(FRAGMENT_MAX, |left| left.min(FRAGMENT_MAX));
        Some((self.next, len))
    }
}

const MAGIC: [u8; 8] = *b"LSfcsnd1";

impl Sender {
    /// A channel that was just opened; negotiates at once.
    ///
    /// # Errors
    /// The options cannot be.
    pub fn new(options: Options) -> Result<Self, Misuse> {
        let outstanding = options.outstanding;
        if !(1..=Options::OUTSTANDING_MAX).contains(&outstanding) {
            return Err(Misuse::Outstanding { outstanding });
        }
        let mut host = Host::new(&FILE_COPY);
        let outputs = VecDeque::from([Output::Send(host.negotiate())]);
        Ok(Self {
            host,
            options,
            phase: Phase::Negotiating,
            answered: 0,
            outputs,
        })
    }

    /// Begins a file.
    ///
    /// # Errors
    /// Not now, or not with these names.
    pub fn send(&mut self, job: &Job) -> Result<(), Misuse> {
        if self.phase != Phase::Ready {
            return Err(Misuse::NotReady);
        }
        let named = |text: &str| name::encode(text).filter(|_| !text.is_empty());
        let names = named(&job.file).zip(named(&job.path));
        let (file, path) = names.ok_or(Misuse::Name)?;
        let mut flags = 0;
        for (wanted, flag) in [
            (job.overwrite, copy_flags::OVER_WRITE),
            (job.create_path, copy_flags::CREATE_PATH),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        let start = Start {
            head: Head::new(Operation::Start),
            file,
            path,
            flags: flags.into(),
            size: job.size.into(),
        };
        let course = Course {
            size: job.size,
            next: 0,
            failure: None,
        };
        self.ask(Operation::Start, course, start.as_bytes());
        Ok(())
    }

    /// The file is not to be sent any more; does nothing if none is. What is
    /// outstanding is awaited, and then the guest is told.
    pub fn cancel(&mut self, why: Failure) {
        match &mut self.phase {
            Phase::Sending(course) | Phase::Asked(Operation::Start, course) => {
                course.failure.get_or_insert(why);
            }
            _ => {}
        }
        self.proceed();
    }

    /// The guest has not answered for too long: it is given up.
    pub fn expired(&mut self) {
        if self.awaiting() {
            self.fail(Failure::Silent);
        }
    }

    /// Whether an answer of the guest is due, for whoever has a clock.
    #[must_use]
    pub fn awaiting(&self) -> bool {
        match self.phase {
            Phase::Negotiating => true,
            Phase::Over => false,
            _ => self.host.outstanding() > 0,
        }
    }

    /// Requests that were answered in this life, for whoever has a clock: a guest that
    /// says other things is silent all the same.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Bytes that were sent of the file.
    #[must_use]
    pub fn sent(&self) -> u64 {
        match self.phase {
            Phase::Asked(_, course) | Phase::Sending(course) => course.next,
            _ => 0,
        }
    }

    /// Where the bytes of the next WRITE begin in the file, and how many they are, for
    /// whoever reads them while answers are awaited.
    #[must_use]
    pub fn next_write(&self) -> Option<(u64, usize)> {
        match self.phase {
            Phase::Sending(course) => course.next_write(),
            _ => None,
        }
    }

    /// What is to be done next. Take it when the ring has room for it: 6248 bytes
    /// are enough for anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let Phase::Sending(course) = &mut self.phase else {
            return None;
        };
        if self.host.outstanding() >= self.options.outstanding {
            return None;
        }
        let (offset, len) = course.next_write()?;
        let write = Write {
            head: Head::new(Operation::Write),
            padding: 0.into(),
            offset: offset.into(),
            size: u32::try_from(len).expect("a fragment").into(),
        };
        course.next += len as u64;
        let header = match self.host.request(WRITE_LEN) {
            Ok((_, header)) => header,
            Err(error) => {
                self.fail(error.into());
                return self.outputs.pop_front();
            }
        };
        let mut head = [0; HEADER_BYTES + WRITE_HEAD_LEN];
        head[..HEADER_BYTES].copy_from_slice(&header);
        head[HEADER_BYTES..].copy_from_slice(write.as_bytes());
        Some(Output::Write {
            head,
            offset,
            len,
            padding: FRAGMENT_MAX - len,
        })
    }

    /// Takes a message of the guest.
    pub fn receive(&mut self, payload: &[u8]) {
        if self.phase == Phase::Over {
            return;
        }
        match self.host.receive(payload) {
            Ok(HostEvent::Negotiated(_)) => {
                self.phase = Phase::Ready;
                self.outputs.push_back(Output::Ready);
            }
            Ok(HostEvent::Reply { status, .. }) => {
                self.answered += 1;
                self.replied(status);
            }
            Ok(HostEvent::Stale { .. }) => {}
            Err(error) => self.fail(error.into()),
        }
    }

    fn replied(&mut self, status: Status) {
        let refused = |operation| Failure::Refused { operation, status };
        match self.phase {
            Phase::Sending(mut course) => {
                if !status.is_ok() {
                    course.failure.get_or_insert(refused(Operation::Write));
                }
                self.phase = Phase::Sending(course);
            }
            Phase::Asked(Operation::Start, course) if status.is_ok() => {
                self.phase = Phase::Sending(course);
            }
            Phase::Asked(Operation::Cancel, course) => {
                // The guests of others refuse it; there is nothing more to do.
                self.end(course.failure.map_or(Output::Done, Output::Failed));
            }
            Phase::Asked(operation, _) => self.end(if status.is_ok() {
                Output::Done
            } else {
                Output::Failed(refused(operation))
            }),
            Phase::Negotiating | Phase::Ready | Phase::Over => {}
        }
        self.proceed();
    }

    /// The next step, once all that was sent is answered.
    fn proceed(&mut self) {
        let Phase::Sending(course) = self.phase else {
            return;
        };
        if self.host.outstanding() > 0 {
            return;
        }
        let operation = match course.failure {
            Some(_) => Operation::Cancel,
            None if course.next == course.size => Operation::Complete,
            None => return,
        };
        self.ask(operation, course, Head::new(operation).as_bytes());
    }

    fn ask(&mut self, operation: Operation, course: Course, body: &[u8]) {
        match self.host.request(body.len()) {
            Ok((_, header)) => {
                self.phase = Phase::Asked(operation, course);
                let mut message = header.to_vec();
                message.extend_from_slice(body);
                self.outputs.push_back(Output::Send(message));
            }
            Err(error) => self.fail(error.into()),
        }
    }

    fn end(&mut self, output: Output) {
        self.phase = Phase::Ready;
        self.outputs.push_back(output);
    }

    fn fail(&mut self, failure: Failure) {
        self.phase = Phase::Over;
        // What became of the files before stays true.
        self.outputs
            .retain(|output| matches!(output, Output::Done | Output::Failed(_)));
        self.outputs.push_back(Output::Failed(failure));
    }

    /// The conversation as bytes, between two outputs.
    ///
    /// # Errors
    /// An output was not taken, or all is over.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        let (kind, course) = match self.phase {
            _ if !self.outputs.is_empty() => return Err(NotQuiet),
            Phase::Over => return Err(NotQuiet),
            Phase::Negotiating => (0, None),
            Phase::Ready => (1, None),
            Phase::Sending(course) => (2, Some(course)),
            Phase::Asked(Operation::Start, course) => (3, Some(course)),
            Phase::Asked(Operation::Complete, course) => (4, Some(course)),
            Phase::Asked(_, course) => (5, Some(course)),
        };
        let mut writer = Writer::new(MAGIC);
        self.host.save(&mut writer);
        writer.u8(kind);
        if let Some(course) = course {
            writer.u64(course.size);
            writer.u64(course.next);
            save_failure(&mut writer, course.failure);
        }
        Ok(writer.finish())
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(options: Options, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new("sender of files", MAGIC, bytes)?;
        let nonsense = |what| RestoreError::Nonsense { what };
        let mut sender = Self::new(options).map_err(|_| nonsense("how many are outstanding"))?;
        sender.outputs.clear();
        sender.host = Host::load(&FILE_COPY, &mut reader)?;
        let kind = reader.u8()?;
        let course = match kind {
            0 | 1 => None,
            _ => Some(load_course(&mut reader)?),
        };
        sender.phase = match (kind, course) {
            (0, _) => Phase::Negotiating,
            (1, _) => Phase::Ready,
            (2, Some(course)) => Phase::Sending(course),
            (3, Some(course)) => Phase::Asked(Operation::Start, course),
            (4, Some(course)) => Phase::Asked(Operation::Complete, course),
            (5, Some(course)) => Phase::Asked(Operation::Cancel, course),
            _ => return Err(nonsense("the step of a file")),
        };
        reader.end()?;
        if (sender.phase == Phase::Negotiating) == sender.host.agreed().is_some() {
            return Err(nonsense("a file before the negotiation"));
        }
        Ok(sender)
    }
}

fn load_course(reader: &mut Reader<'_>) -> Result<Course, RestoreError> {
    let course = Course {
        size: reader.u64()?,
        next: reader.u64()?,
        failure: load_failure(reader)?,
    };
    if course.next > course.size {
        return Err(RestoreError::Nonsense {
            what: "how much of a file was sent",
        });
    }
    Ok(course)
}

/// Only what a course can have: a protocol that was broken ended all.
fn save_failure(writer: &mut Writer, failure: Option<Failure>) {
    let (kind, status) = match failure {
        None => (0, 0),
        Some(Failure::Refused { status, .. }) => (1, status.0),
        Some(Failure::Source) => (2, 0),
        Some(_) => (3, 0),
    };
    writer.u8(kind);
    writer.u32(status);
}

fn load_failure(reader: &mut Reader<'_>) -> Result<Option<Failure>, RestoreError> {
    let (kind, status) = (reader.u8()?, Status(reader.u32()?));
    match kind {
        0 => Ok(None),
        1 => Ok(Some(Failure::Refused {
            operation: Operation::Write,
            status,
        })),
        2 => Ok(Some(Failure::Source)),
        3 => Ok(Some(Failure::Stopped)),
        _ => Err(RestoreError::Nonsense {
            what: "why a file was not sent",
        }),
    }
}
