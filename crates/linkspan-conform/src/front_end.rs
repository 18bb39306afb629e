//! A front end that can say anything: messages with any number, body and descriptors,
//! and what came of them. It gives up after a time and never trusts an answer.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use linkspan_sys::Stream;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, HEADER_BYTES, Header};
use zerocopy::FromBytes as _;

use crate::Stop;

/// A body that is longer than this is no answer to anything that is asked here.
const ANSWER_BYTES: usize = 64 << 10;

/// Answers to one message that are listened to: there should be one or none.
const ANSWERS: usize = 16;

/// What came next from the target.
pub(crate) enum Answer {
    /// A whole message.
    Message(Header, Vec<u8>),
    /// It closed the connection.
    Closed,
    /// Nothing, in the time that there was.
    Nothing,
}

/// What came of a message that nobody should send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Acknowledged with 0: done, it says.
    Acknowledged,
    /// Acknowledged with this error.
    Refused(u64),
    /// Answered with this body.
    Answered(Vec<u8>),
    /// Passed over: what was asked after it was answered.
    Ignored,
    /// The connection was closed.
    Closed,
    /// Neither an answer nor the end of the connection.
    Silent,
}

impl Reaction {
    /// The same for a report. Silence is a broken rule: whoever waits, waits for ever.
    pub(crate) fn seen(self) -> Result<String, Stop> {
        Ok(match self {
            Self::Acknowledged => "acknowledged".into(),
            Self::Refused(code) => format!("refused with {code:#x}"),
            Self::Answered(body) => format!("answered with {} bytes", body.len()),
            Self::Ignored => "ignored".into(),
            Self::Closed => "closed the connection".into(),
            Self::Silent => {
                return Err(Stop::Broken(
                    "neither answers nor closes the connection".into(),
                ));
            }
        })
    }
}

/// A connection to the target.
pub(crate) struct FrontEnd {
    stream: Stream,
    patience: Duration,
    /// Whether `REPLY_ACK` was negotiated.
    pub(crate) acks: bool,
}

impl FrontEnd {
    pub(crate) fn over(stream: Stream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            acks: false,
        }
    }

    /// The process that listens, if it can be seen.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.stream.peer_credentials().ok()?.pid
    }

    /// Sends bytes as they are; whether the target takes them.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let deadline = Instant::now() + self.patience;
        self.stream.send(bytes, fds, deadline).is_ok()
    }

    /// What comes next within this time.
    pub(crate) fn receive(&self, within: Duration) -> Result<Answer, Stop> {
        let deadline = Instant::now() + within;
        let head = match self.exactly(HEADER_BYTES, deadline)? {
            Ok(head) => head,
            Err(end) => return Ok(end),
        };
        let header = Header::read_from_bytes(&head).expect("the sizes are equal");
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if size > ANSWER_BYTES {
            return Err(broken(format!("a reply claims {size} bytes")));
        }
        Ok(match self.exactly(size, deadline)? {
            Ok(body) => Answer::Message(header, body),
            Err(end) => end,
        })
    }

    /// Asks for something that is always replied to; the body of the reply.
    pub(crate) fn ask(
        &self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Stop> {
        if !self.send(&wire::encode(request.code(), 0, body), fds) {
            return Err(Stop::Refused(format!(
                "closed the connection before {request:?}"
            )));
        }
        self.reply(request)
    }

    /// The next message, which has to be the reply to `request`.
    pub(crate) fn reply(&self, request: Request) -> Result<Vec<u8>, Stop> {
        match self.receive(self.patience)? {
            Answer::Message(header, body) => {
                is_reply(header, request)?;
                Ok(body)
            }
            Answer::Closed => Err(Stop::Refused(format!(
                "closed the connection upon {request:?}"
            ))),
            Answer::Nothing => Err(broken(format!("no reply to {request:?}"))),
        }
    }

    /// Asks for a number.
    pub(crate) fn number(&self, request: Request) -> Result<u64, Stop> {
        let body = self.ask(request, &[], &[])?;
        number(&body).ok_or_else(|| {
            let len = body.len();
            broken(format!("the reply to {request:?} has {len} bytes, not 8"))
        })
    }

    /// Says something that is allowed, and waits for the acknowledgement if that
    /// was negotiated.
    pub(crate) fn tell(
        &self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Stop> {
        let flags = if self.acks { Header::NEED_REPLY } else { 0 };
        if !self.send(&wire::encode(request.code(), flags, body), fds) {
            return Err(Stop::Refused(format!(
                "closed the connection before {request:?}"
            )));
        }
        if !self.acks {
            return Ok(());
        }
        match number(&self.reply(request)?) {
            Some(0) => Ok(()),
            code => Err(Stop::Refused(format!("refuses {request:?}: {code:?}"))),
        }
    }

    /// Says something that is not allowed, and a question after it: what came of it.
    pub(crate) fn try_it(
        &self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reaction, Stop> {
        let flags = if self.acks { Header::NEED_REPLY } else { 0 };
        self.react(
            request.code(),
            &wire::encode(request.code(), flags, body),
            fds,
        )
    }

    /// The same of bytes that are a whole message with this number.
    pub(crate) fn react(
        &self,
        code: u32,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reaction, Stop> {
        let last = wire::encode(Request::GetFeatures.code(), 0, &[]);
        // What it said before it closed can still be read.
        let _ = self.send(bytes, fds) && self.send(&last, &[]);
        let mut reaction = Reaction::Ignored;
        for _ in 0..ANSWERS {
            match self.receive(self.patience)? {
                Answer::Closed => return Ok(Reaction::Closed),
                Answer::Nothing => return Ok(Reaction::Silent),
                Answer::Message(header, _) if header.request == Request::GetFeatures.code() => {
                    return Ok(reaction);
                }
                Answer::Message(header, body) if header.request == code => {
                    reaction = match number(&body) {
                        Some(0) => Reaction::Acknowledged,
                        Some(code) => Reaction::Refused(code),
                        None => Reaction::Answered(body),
                    };
                }
                Answer::Message(header, _) => {
                    return Err(broken(format!(
                        "a reply to request {}, which nobody made",
                        header.request
                    )));
                }
            }
        }
        Err(broken(format!("answers request {code} without end")))
    }

    fn exactly(&self, len: usize, deadline: Instant) -> Result<Result<Vec<u8>, Answer>, Stop> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match wait_for(self.stream.as_fd(), Direction::Read, None, Some(deadline))? {
                Wake::Ready => {}
                Wake::Cancelled | Wake::Deadline => return Ok(Err(Answer::Nothing)),
            }
            match self.stream.receive(&mut bytes[done..], &mut Vec::new(), 0) {
                Ok(received) if received.bytes == 0 => return Ok(Err(Answer::Closed)),
                Ok(received) => done += received.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It closed with messages of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Err(Answer::Closed));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Ok(bytes))
    }
}

/// Whether this is how a reply begins (vhost-user: Header).
pub(crate) fn is_reply(header: Header, request: Request) -> Result<(), Stop> {
    if header.request != request.code() {
        return Err(broken(format!(
            "a reply to request {} instead of {request:?}",
            header.request
        )));
    }
    // Some leave the wish for an acknowledgement where it was.
    if header.flags & !Header::NEED_REPLY != Header::VERSION | Header::REPLY {
        let flags = header.flags;
        return Err(broken(format!(
            "the reply to {request:?} has flags {flags:#x}, not 0x5"
        )));
    }
    Ok(())
}

/// The number that a body of 8 bytes is.
pub(crate) fn number(body: &[u8]) -> Option<u64> {
    u64::read_from_bytes(body).ok()
}

pub(crate) fn broken(text: String) -> Stop {
    Stop::Broken(text)
}
