//! How programs of ours meet over a Unix socket: a guest asks a host for its channel,
//! and a sender asks it to send files.
//!
//! A frame is a header of 8 bytes (its number, zero, the length of its body; little
//! endian) and a body. Descriptors come with a frame's first byte. The host takes its
//! channel back by closing the socket, and the guest gives it up in the same way.
//!
//! What Hyper-V's file copy has no words for is asked here, between programs that know
//! version 2: a file that the guest has is read back (VERIFY), and a folder is made in
//! which no file will be (FOLDER).

mod conversation;
mod saved;
mod wire;

use alloc::format;
use alloc::string::String;

use thiserror::Error;

use crate::fcopy::Operation;
use crate::guid::Guid;
use crate::ic::{FILE_COPY, Service, Status};
use crate::ring::Shape;

pub use conversation::Conversation;

/// The newest version of these frames, and the oldest that is spoken.
pub const VERSION: u16 = 2;
const OLDEST: u16 = 1;

/// From this version on a guest can be asked to read a file back, and to make a folder.
pub const ASKS: u16 = 2;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;

/// Bytes of a name in SEND at most: 259 UTF-16 units take no more in UTF-8.
pub const NAME_MAX: usize = 777;

/// Bytes that one VERIFY is about, at most: some milliseconds of a guest's time.
pub const SLICE_MAX: u32 = 4 << 20;

/// Bytes of a digest: SHA-256.
pub const DIGEST_LEN: usize = 32;

/// Who says a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever connected.
    Client,
    /// Whoever listens.
    Host,
}

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A guest, which wants the channel.
    Guest,
    /// A sender of files.
    Sender,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said.
    Fresh,
    /// The client has said what it is.
    Greeted(Role),
    /// The guest has the channel.
    Joined,
    /// The guest reads a file back.
    Verifying,
    /// The guest makes a folder.
    Making,
    /// The sender can send.
    Ready,
    /// A file is under way.
    Sending,
    /// The host refused the client.
    Over,
}

/// One kind of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Kind {
    /// Its number.
    pub code: u16,
    /// Its name.
    pub name: &'static str,
    /// Who says it.
    pub from: Side,
    /// The first version that has it.
    pub since: u16,
    /// When.
    pub phases: &'static [Phase],
    /// Bytes of its body, the least and the most.
    pub len: [usize; 2],
    /// Descriptors with it.
    pub fds: usize,
}

const fn kind(
    (code, since): (u16, u16),
    name: &'static str,
    from: Side,
    phases: &'static [Phase],
    len: [usize; 2],
    fds: usize,
) -> Kind {
    Kind {
        code,
        name,
        from,
        since,
        phases,
        len,
        fds,
    }
}

const FRESH: &[Phase] = &[Phase::Fresh];
const GUEST: &[Phase] = &[Phase::Greeted(Role::Guest)];
const SENDER: &[Phase] = &[Phase::Greeted(Role::Sender)];
const CLIENT: &[Phase] = &[Phase::Greeted(Role::Guest), Phase::Greeted(Role::Sender)];
const JOINED: &[Phase] = &[Phase::Joined];
const READY: &[Phase] = &[Phase::Ready];
const SENDING: &[Phase] = &[Phase::Sending];
/// CANCEL may cross a DONE.
const CANCELLED: &[Phase] = &[Phase::Sending, Phase::Ready];
const SEND_MIN: usize = 20;
const SEND_LEN: [usize; 2] = [SEND_MIN, SEND_MIN + 2 * NAME_MAX];
const FOLDER_LEN: [usize; 2] = [8, 8 + 2 * NAME_MAX];
/// With the interface of the device, or without: that of file copy is meant then.
const HELLO_LEN: [usize; 2] = [8, 24];
/// With what was read back, or without.
const PROGRESS_LEN: [usize; 2] = [8, 16];

/// All frames.
#[rustfmt::skip]
pub const FRAMES: [Kind; 12] = [
    kind((1, 1), "HELLO", Side::Client, FRESH, HELLO_LEN, 0),
    kind((2, 1), "CHANNEL", Side::Host, GUEST, [64, 64], 3),
    kind((3, 1), "REFUSED", Side::Host, CLIENT, [4, 4], 0),
    kind((4, 1), "WELCOME", Side::Host, SENDER, [4, 4], 0),
    kind((5, 1), "SEND", Side::Client, READY, SEND_LEN, 1),
    kind((6, 1), "CANCEL", Side::Client, CANCELLED, [0, 0], 0),
    kind((7, 1), "PROGRESS", Side::Host, SENDING, PROGRESS_LEN, 0),
    kind((8, 1), "DONE", Side::Host, SENDING, [12, 12], 0),
    kind((9, 2), "VERIFY", Side::Host, JOINED, [12, 12], 0),
    kind((10, 2), "DIGEST", Side::Client, &[Phase::Verifying], [48, 48], 0),
    kind((11, 2), "FOLDER", Side::Host, JOINED, FOLDER_LEN, 0),
    kind((12, 2), "MADE", Side::Client, &[Phase::Making], [4, 4], 0),
];

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Who is there, and the versions it speaks.
    Hello {
        /// The oldest one.
        oldest: u16,
        /// The newest one.
        newest: u16,
        /// What it is.
        role: Role,
        /// Of a guest: which device it wants.
        interface: Guid,
    },
    /// The channel. With it: its memory, the eventfd that signals the host, the
    /// eventfd that signals the guest.
    Channel {
        /// The version that is spoken.
        version: u16,
        /// What the channel is for.
        interface: Guid,
        /// Which of them.
        instance: Guid,
        /// Where the rings are in the memory.
        shape: Shape,
    },
    /// The host does not want the client.
    Refused(Reason),
    /// Files can be sent.
    Welcome {
        /// The version that is spoken.
        version: u16,
    },
    /// A file is to be sent, or a folder made. With it: the file, open for reading, or
    /// the folder.
    Send(Request),
    /// It is not to be sent any more.
    Cancel,
    /// How much of it was sent.
    Progress {
        /// Bytes.
        sent: u64,
        /// Bytes that the guest read back.
        checked: u64,
    },
    /// The end of a file.
    Done(Outcome),
    /// Bytes of the file that was completed last are to be read back.
    Verify {
        /// Where they begin.
        offset: u64,
        /// How many, at most [`SLICE_MAX`].
        len: u32,
    },
    /// What was read back.
    Digest(Digest),
    /// A folder is to be made, if it is not there.
    Folder {
        /// Its name.
        file: String,
        /// Where it goes.
        path: String,
        /// Whether folders that are missing above it are made.
        create_path: bool,
    },
    /// Whether the folder is there.
    Made(Status),
}

/// What a guest read back of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Whether it could.
    pub status: Status,
    /// Bytes that were read: fewer than asked for at the end of the file.
    pub len: u32,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the bytes that were read.
    pub sha256: [u8; DIGEST_LEN],
}

/// Why a client is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// No version in common.
    #[error("no version in common")]
    Version,
    /// Another guest has the channel, or there are too many clients.
    #[error("the host is busy")]
    Busy,
    /// This socket is for others.
    #[error("this socket is for others")]
    Role,
    /// It has no such device.
    #[error("the host does not offer this device")]
    Interface,
}

/// A file to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
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
    /// Milliseconds after which a guest that does not answer is given up.
    pub patience: u32,
    /// Whether the guest is to read it back, if it is one of ours.
    pub verify: bool,
    /// A folder, to be made although no file may be in it.
    pub folder: bool,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Outcome {
    /// The guest has it, as it says.
    #[error("the guest has it")]
    Done,
    /// The guest has it, and read back what was sent.
    #[error("the guest has it, and read back the same")]
    Verified,
    /// The guest has something else.
    #[error("what the guest has differs, within {SLICE_MAX} bytes from byte {offset} on")]
    Differs {
        /// The beginning of the slice that differs.
        offset: u64,
    },
    /// The guest has it, and could not read it back.
    #[error("the guest could not read it back: {status}")]
    Unread {
        /// Why.
        status: Status,
    },
    /// Only a guest of ours makes a folder without files.
    #[error("this guest cannot be told to make a folder without files")]
    NoFolders,
    /// The guest would not.
    #[error("the guest refused {}: {status}", .operation.name())]
    Refused {
        /// What it refused.
        operation: Operation,
        /// Why.
        status: Status,
    },
    /// The guest broke the protocol.
    #[error("the guest broke the protocol")]
    Protocol,
    /// The guest did not answer in time.
    #[error("the guest does not answer")]
    Silent,
    /// It was cancelled.
    #[error("stopped")]
    Stopped,
    /// The file could not be read, or changed its size.
    #[error("the file could not be read, or became shorter")]
    Source,
    /// No guest came in time.
    #[error("there is no guest")]
    NoGuest,
    /// The guest went away.
    #[error("the guest went away")]
    Lost,
    /// A name that cannot be sent.
    #[error("a name of more than 259 UTF-16 units, or with a zero in it, or empty")]
    Name,
}

/// A frame that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No frame has this number.
    #[error("there is no frame {code}")]
    Code {
        /// It.
        code: u16,
    },
    /// It comes from the wrong side or at the wrong time.
    #[error("{frame} does not come in phase {phase:?}")]
    Phase {
        /// Which.
        frame: &'static str,
        /// How far the connection is.
        phase: Phase,
    },
    /// Its body is too short or too long.
    #[error("{frame} with a body of {len} bytes")]
    Length {
        /// Which.
        frame: &'static str,
        /// Bytes of it.
        len: usize,
    },
    /// Too few or too many descriptors, or not with the first byte.
    #[error("{frame} with {got} descriptors where {want} belong")]
    Descriptors {
        /// Which.
        frame: &'static str,
        /// How many came.
        got: usize,
        /// How many belong to it.
        want: usize,
    },
    /// A field that makes no sense.
    #[error("{frame}: {field} makes no sense")]
    Field {
        /// Which frame.
        frame: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// The version to speak with a client that speaks these.
#[must_use]
pub fn choose(oldest: u16, newest: u16) -> Option<u16> {
    let version = newest.min(VERSION);
    (version >= oldest.max(OLDEST)).then_some(version)
}

impl Frame {
    /// What a client says first; a guest wants the device of file copy.
    #[must_use]
    pub fn hello(role: Role) -> Self {
        Self::hello_to(role, FILE_COPY.interface)
    }

    /// What the guest's end of a service says first.
    #[must_use]
    pub fn hello_of(service: &Service) -> Self {
        Self::hello_to(Role::Guest, service.interface)
    }

    /// What a guest says first that only passes the channel on, and answers nothing.
    #[must_use]
    pub fn hello_unasked() -> Self {
        Self::Hello {
            oldest: OLDEST,
            newest: ASKS - 1,
            role: Role::Guest,
            interface: FILE_COPY.interface,
        }
    }

    fn hello_to(role: Role, interface: Guid) -> Self {
        Self::Hello {
            oldest: OLDEST,
            newest: VERSION,
            role,
            interface,
        }
    }

    fn kind(&self) -> &'static Kind {
        let index = match self {
            Self::Hello { .. } => 0,
            Self::Channel { .. } => 1,
            Self::Refused(_) => 2,
            Self::Welcome { .. } => 3,
            Self::Send(_) => 4,
            Self::Cancel => 5,
            Self::Progress { .. } => 6,
            Self::Done(_) => 7,
            Self::Verify { .. } => 8,
            Self::Digest(_) => 9,
            Self::Folder { .. } => 10,
            Self::Made(_) => 11,
        };
        &FRAMES[index]
    }
}

/// The table as a page of the book has it.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "| number | frame | from | bytes of its body | descriptors | since |\n|---|---|---|---|---|---|\n",
    );
    for kind in FRAMES {
        let from = match kind.from {
            Side::Client => "client",
            Side::Host => "host",
        };
        let [least, most] = kind.len;
        let len = if least == most {
            format!("{least}")
        } else {
            format!("{least} to {most}")
        };
        let (code, name, fds, since) = (kind.code, kind.name, kind.fds, kind.since);
        page += &format!("| {code} | {name} | {from} | {len} | {fds} | {since} |\n");
    }
    page
}
