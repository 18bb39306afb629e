//! The bodies of frames.

use alloc::string::String;
use alloc::vec::Vec;

use super::{
    Digest, Frame, Kind, LinkError, OLDEST, Outcome, Reason, Request, Role, SLICE_MAX, VERSION,
};
use crate::fcopy::Operation;
use crate::guid::Guid;
use crate::ic::{FILE_COPY, Status};
use crate::ring::Shape;

const OVERWRITE: u16 = 1;
const CREATE_PATH: u16 = 2;
const VERIFY: u16 = 4;
const FOLDER: u16 = 8;

pub(super) fn write(frame: &Frame) -> Vec<u8> {
    let mut body = Vec::new();
    let words = |body: &mut Vec<u8>, words: &[u32]| {
        for word in words {
            body.extend(word.to_le_bytes());
        }
    };
    match frame {
        Frame::Hello {
            oldest,
            newest,
            role,
            interface,
        } => {
            body.extend(oldest.to_le_bytes());
            body.extend(newest.to_le_bytes());
            words(&mut body, &[u32::from(*role == Role::Sender)]);
            // What hosts of version 1 know is said as it was.
            if *interface != FILE_COPY.interface {
                body.extend(interface.0);
            }
        }
        Frame::Channel {
            version,
            interface,
            instance,
            shape,
        } => {
            words(&mut body, &[u32::from(*version), 0]);
            body.extend(interface.0);
            body.extend(instance.0);
            for field in [shape.len, shape.second, shape.header] {
                body.extend(field.to_le_bytes());
            }
        }
        Frame::Refused(reason) => words(&mut body, &[*reason as u32]),
        Frame::Welcome { version } => words(&mut body, &[u32::from(*version)]),
        Frame::Send(request) => write_request(&mut body, request),
        Frame::Cancel => {}
        Frame::Progress { sent, checked } => {
            body.extend(sent.to_le_bytes());
            // Only who asked for it is told, and knows of it.
            if *checked > 0 {
                body.extend(checked.to_le_bytes());
            }
        }
        Frame::Done(outcome) => words(&mut body, &outcome_words(*outcome)),
        Frame::Verify { offset, len } => {
            body.extend(offset.to_le_bytes());
            words(&mut body, &[*len]);
        }
        Frame::Digest(digest) => {
            words(&mut body, &[digest.status.0, digest.len]);
            body.extend(digest.size.to_le_bytes());
            body.extend(digest.sha256);
        }
        Frame::Folder {
            file,
            path,
            create_path,
        } => {
            let flags = if *create_path { CREATE_PATH } else { 0 };
            write_names(&mut body, flags, file, path);
        }
        Frame::Made(status) => words(&mut body, &[status.0]),
    }
    body
}

fn write_request(body: &mut Vec<u8>, request: &Request) {
    let mut flags = 0;
    for (wanted, flag) in [
        (request.overwrite, OVERWRITE),
        (request.create_path, CREATE_PATH),
        (request.verify, VERIFY),
        (request.folder, FOLDER),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    body.extend(request.size.to_le_bytes());
    body.extend(request.patience.to_le_bytes());
    write_names(body, flags, &request.file, &request.path);
}

fn write_names(body: &mut Vec<u8>, flags: u16, file: &str, path: &str) {
    let len = |text: &str| u16::try_from(text.len()).unwrap_or(u16::MAX);
    for field in [flags, len(file), len(path), 0] {
        body.extend(field.to_le_bytes());
    }
    body.extend(file.as_bytes());
    body.extend(path.as_bytes());
}

fn outcome_words(outcome: Outcome) -> [u32; 3] {
    match outcome {
        Outcome::Done => [0, 0, 0],
        Outcome::Refused { operation, status } => [1, operation as u32, status.0],
        Outcome::Protocol => [2, 0, 0],
        Outcome::Silent => [3, 0, 0],
        Outcome::Stopped => [4, 0, 0],
        Outcome::Source => [5, 0, 0],
        Outcome::NoGuest => [6, 0, 0],
        Outcome::Lost => [7, 0, 0],
        Outcome::Name => [8, 0, 0],
        Outcome::Verified => [9, 0, 0],
        Outcome::Differs { offset } => {
            let [a, b, c, d, e, f, g, h] = offset.to_le_bytes();
            let word = u32::from_le_bytes;
            [10, word([a, b, c, d]), word([e, f, g, h])]
        }
        Outcome::Unread { status } => [11, status.0, 0],
        Outcome::NoFolders => [12, 0, 0],
    }
}

pub(super) fn field(kind: &Kind, field: &'static str) -> LinkError {
    LinkError::Field {
        frame: kind.name,
        field,
    }
}

pub(super) fn read(kind: &'static Kind, body: &[u8]) -> Result<Frame, LinkError> {
    let mut fields = Fields(body);
    let frame = read_fields(kind, &mut fields)?;
    // The length was checked, but that of some frames only roughly.
    frame.ok_or(LinkError::Length {
        frame: kind.name,
        len: body.len(),
    })
}

fn read_fields(kind: &'static Kind, fields: &mut Fields<'_>) -> Result<Option<Frame>, LinkError> {
    Ok(match kind.code {
        1 => read_hello(kind, fields)?,
        2 => read_channel(kind, fields)?,
        3 => Some(Frame::Refused(match fields.u32() {
            Some(0) => Reason::Version,
            Some(1) => Reason::Busy,
            Some(2) => Reason::Role,
            Some(3) => Reason::Interface,
            _ => return Err(field(kind, "reason")),
        })),
        4 => Some(Frame::Welcome {
            version: version(kind, fields)?,
        }),
        5 => read_request(kind, fields)?.map(Frame::Send),
        6 => Some(Frame::Cancel),
        7 => {
            let sent = fields.u64();
            let checked = if fields.0.is_empty() {
                Some(0)
            } else {
                fields.u64()
            };
            let both = sent.zip(checked).filter(|_| fields.0.is_empty());
            both.map(|(sent, checked)| Frame::Progress { sent, checked })
        }
        8 => Some(Frame::Done(read_outcome(kind, fields)?)),
        9 => {
            let (offset, len) = (fields.u64(), fields.u32());
            if len.is_some_and(|len| len > SLICE_MAX) {
                return Err(field(kind, "length"));
            }
            let both = offset.zip(len);
            both.map(|(offset, len)| Frame::Verify { offset, len })
        }
        10 => read_digest(kind, fields)?,
        11 => read_names(kind, CREATE_PATH, fields)?.map(|(flags, file, path)| Frame::Folder {
            file,
            path,
            create_path: flags & CREATE_PATH != 0,
        }),
        _ => fields.u32().map(|status| Frame::Made(Status(status))),
    })
}

fn read_hello(kind: &Kind, fields: &mut Fields<'_>) -> Result<Option<Frame>, LinkError> {
    let (oldest, newest, role) = (fields.u16(), fields.u16(), fields.u32());
    let role = match role {
        Some(0) => Role::Guest,
        Some(1) => Role::Sender,
        _ => return Err(field(kind, "role")),
    };
    let interface = if fields.0.is_empty() {
        Some(FILE_COPY.interface)
    } else {
        fields.array().map(Guid)
    };
    let (Some(oldest), Some(newest), Some(interface), []) = (oldest, newest, interface, fields.0)
    else {
        return Ok(None);
    };
    Ok(Some(Frame::Hello {
        oldest,
        newest,
        role,
        interface,
    }))
}

fn read_channel(kind: &Kind, fields: &mut Fields<'_>) -> Result<Option<Frame>, LinkError> {
    let version = version(kind, fields)?;
    let _ = fields.u32();
    let guids = (fields.array().map(Guid), fields.array().map(Guid));
    let shape = (fields.u64(), fields.u64(), fields.u64());
    let ((Some(interface), Some(instance)), (Some(len), Some(second), Some(header))) =
        (guids, shape)
    else {
        return Ok(None);
    };
    let shape = Shape {
        len,
        second,
        header,
    };
    shape.data().map_err(|_| field(kind, "shape"))?;
    Ok(Some(Frame::Channel {
        version,
        interface,
        instance,
        shape,
    }))
}

fn read_digest(kind: &Kind, fields: &mut Fields<'_>) -> Result<Option<Frame>, LinkError> {
    let (status, len, size) = (fields.u32(), fields.u32(), fields.u64());
    let (Some(status), Some(len), Some(size), Some(sha256)) = (status, len, size, fields.array())
    else {
        return Ok(None);
    };
    if len > SLICE_MAX {
        return Err(field(kind, "length"));
    }
    Ok(Some(Frame::Digest(Digest {
        status: Status(status),
        len,
        size,
        sha256,
    })))
}

fn version(kind: &Kind, fields: &mut Fields<'_>) -> Result<u16, LinkError> {
    let version = fields.u32().and_then(|version| u16::try_from(version).ok());
    let known = version.filter(|version| (OLDEST..=VERSION).contains(version));
    known.ok_or(field(kind, "version"))
}

fn read_request(kind: &Kind, fields: &mut Fields<'_>) -> Result<Option<Request>, LinkError> {
    let (size, patience) = (fields.u64(), fields.u32());
    let known = OVERWRITE | CREATE_PATH | VERIFY | FOLDER;
    let names = read_names(kind, known, fields)?;
    let (Some(size), Some(patience), Some((flags, file, path))) = (size, patience, names) else {
        return Ok(None);
    };
    Ok(Some(Request {
        file,
        path,
        overwrite: flags & OVERWRITE != 0,
        create_path: flags & CREATE_PATH != 0,
        size,
        patience,
        verify: flags & VERIFY != 0,
        folder: flags & FOLDER != 0,
    }))
}

/// Flags and two names, which end the body.
fn read_names(
    kind: &Kind,
    known: u16,
    fields: &mut Fields<'_>,
) -> Result<Option<(u16, String, String)>, LinkError> {
    let (flags, file, path) = (fields.u16(), fields.u16(), fields.u16());
    let _ = fields.u16();
    let (Some(flags), Some(file), Some(path)) = (flags, file, path) else {
        return Ok(None);
    };
    if flags & !known != 0 {
        return Err(field(kind, "flag"));
    }
    let mut name = |len: u16| {
        let bytes = fields.bytes(usize::from(len))?;
        Some(core::str::from_utf8(bytes).map(String::from))
    };
    let (Some(file), Some(path), []) = (name(file), name(path), fields.0) else {
        return Ok(None);
    };
    let wrong = field(kind, "name");
    Ok(Some((
        flags,
        file.map_err(|_| wrong)?,
        path.map_err(|_| wrong)?,
    )))
}

fn read_outcome(kind: &Kind, fields: &mut Fields<'_>) -> Result<Outcome, LinkError> {
    let (code, operation, status) = (fields.u32(), fields.u32(), fields.u32());
    Ok(match code {
        Some(0) => Outcome::Done,
        Some(1) => Outcome::Refused {
            operation: operation
                .and_then(Operation::of)
                .ok_or(field(kind, "operation"))?,
            status: Status(status.unwrap_or(0)),
        },
        Some(2) => Outcome::Protocol,
        Some(3) => Outcome::Silent,
        Some(4) => Outcome::Stopped,
        Some(5) => Outcome::Source,
        Some(6) => Outcome::NoGuest,
        Some(7) => Outcome::Lost,
        Some(8) => Outcome::Name,
        Some(9) => Outcome::Verified,
        Some(10) => Outcome::Differs {
            offset: u64::from(operation.unwrap_or(0)) | u64::from(status.unwrap_or(0)) << 32,
        },
        Some(11) => Outcome::Unread {
            status: Status(operation.unwrap_or(0)),
        },
        Some(12) => Outcome::NoFolders,
        _ => return Err(field(kind, "outcome")),
    })
}

/// What is left of a body.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(first)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
