//! The bodies of frames.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Frame, Kind, LinkError, OLDEST, Outcome, Reason, Request, Role, VERSION};
use crate::fcopy::Operation;
use crate::guid::Guid;
use crate::ic::Status;
use crate::ring::Shape;

const OVERWRITE: u16 = 1;
const CREATE_PATH: u16 = 2;

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
        } => {
            body.extend(oldest.to_le_bytes());
            body.extend(newest.to_le_bytes());
            words(&mut body, &[u32::from(*role == Role::Sender)]);
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
        Frame::Progress { sent } => body.extend(sent.to_le_bytes()),
        Frame::Done(outcome) => words(&mut body, &outcome_words(*outcome)),
    }
    body
}

fn write_request(body: &mut Vec<u8>, request: &Request) {
    let mut flags = 0;
    flags |= if request.overwrite { OVERWRITE } else { 0 };
    flags |= if request.create_path { CREATE_PATH } else { 0 };
    body.extend(request.size.to_le_bytes());
    body.extend(request.patience.to_le_bytes());
    let len = |text: &str| u16::try_from(text.len()).unwrap_or(u16::MAX);
    for field in [flags, len(&request.file), len(&request.path), 0] {
        body.extend(field.to_le_bytes());
    }
    body.extend(request.file.as_bytes());
    body.extend(request.path.as_bytes());
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
    // The length was checked; only SEND has more than one.
    frame.ok_or(LinkError::Length {
        frame: kind.name,
        len: body.len(),
    })
}

fn read_fields(kind: &'static Kind, fields: &mut Fields<'_>) -> Result<Option<Frame>, LinkError> {
    Ok(match kind.code {
        1 => {
            let (oldest, newest, role) = (fields.u16(), fields.u16(), fields.u32());
            let role = match role {
                Some(0) => Role::Guest,
                Some(1) => Role::Sender,
                _ => return Err(field(kind, "role")),
            };
            oldest.zip(newest).map(|(oldest, newest)| Frame::Hello {
                oldest,
                newest,
                role,
            })
        }
        2 => {
            let version = version(kind, fields)?;
            let _ = fields.u32();
            let guids = (fields.array().map(Guid), fields.array().map(Guid));
            let shape = (fields.u64(), fields.u64(), fields.u64());
            match (guids, shape) {
                ((Some(interface), Some(instance)), (Some(len), Some(second), Some(header))) => {
                    let shape = Shape {
                        len,
                        second,
                        header,
                    };
                    shape.data().map_err(|_| field(kind, "shape"))?;
                    Some(Frame::Channel {
                        version,
                        interface,
                        instance,
                        shape,
                    })
                }
                _ => None,
            }
        }
        3 => Some(Frame::Refused(match fields.u32() {
            Some(0) => Reason::Version,
            Some(1) => Reason::Busy,
            Some(2) => Reason::Role,
            _ => return Err(field(kind, "reason")),
        })),
        4 => Some(Frame::Welcome {
            version: version(kind, fields)?,
        }),
        5 => read_request(kind, fields)?.map(Frame::Send),
        6 => Some(Frame::Cancel),
        7 => fields.u64().map(|sent| Frame::Progress { sent }),
        _ => Some(Frame::Done(read_outcome(kind, fields)?)),
    })
}

fn version(kind: &Kind, fields: &mut Fields<'_>) -> Result<u16, LinkError> {
    let version = fields.u32().and_then(|version| u16::try_from(version).ok());
    let known = version.filter(|version| (OLDEST..=VERSION).contains(version));
    known.ok_or(field(kind, "version"))
}

fn read_request(kind: &Kind, fields: &mut Fields<'_>) -> Result<Option<Request>, LinkError> {
    let (size, patience) = (fields.u64(), fields.u32());
    let (flags, file, path) = (fields.u16(), fields.u16(), fields.u16());
    let _ = fields.u16();
    let (Some(size), Some(patience), Some(flags), Some(file), Some(path)) =
        (size, patience, flags, file, path)
    else {
        return Ok(None);
    };
    if flags & !(OVERWRITE | CREATE_PATH) != 0 {
        return Err(field(kind, "flag"));
    }
    let mut name = |len: u16| {
        let bytes = fields.bytes(usize::from(len))?;
        Some(core::str::from_utf8(bytes).map(String::from))
    };
    let (Some(file), Some(path)) = (name(file), name(path)) else {
        return Ok(None);
    };
    if !fields.0.is_empty() {
        return Ok(None);
    }
    let name = field(kind, "name");
    Ok(Some(Request {
        file: file.map_err(|_| name)?,
        path: path.map_err(|_| name)?,
        overwrite: flags & OVERWRITE != 0,
        create_path: flags & CREATE_PATH != 0,
        size,
        patience,
    }))
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
