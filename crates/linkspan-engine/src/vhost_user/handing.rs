//! The words of a hand-over, between the process that has a link and the one that takes it
//! over: one table, and one way to send and to receive.
//!
//! | message | from | descriptors | what it says |
//! |---|---|---|---|
//! | hello | successor | | which words and which saved form it knows |
//! | lent | old | those of the device | what the successor opens its device with |
//! | prepared | successor | | its device is open; the guest has not noticed anything yet |
//! | shared | old | | what several links share, where they do; all rings are at rest |
//! | fds | old | 1 to 128 | descriptors of a link; its rings are at rest |
//! | saved | old | | the link as bytes, with what each descriptor is; the next link follows |
//! | ready | successor | | everything is mapped and in its place |
//! | go | old | | the links are free to be taken |
//! | taken | successor | | it is taken: only now does the old process let go |
//! | refused | either | | why not; the old process goes on |
//!
//! *Taken* is the one moment that counts. A successor that dies before it has sent that has
//! touched no ring, and the old process goes on; one that dies later dies as any process does
//! whose front end then connects to the next. An old process that has waited long enough shuts
//! the socket, after which *taken* can no longer be sent, and looks whether it was.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{Stream, reaper};
use linkspan_vhost::backend::RestoreError;
use std::os::fd::AsFd as _;

use super::saved::{HandedFd, SAVED_MAX, SavedError, VERSION};

/// The version of the words.
pub(super) const WORDS: u32 = 1;

/// Descriptors of one message at most.
pub(super) const FDS_EACH: usize = 128;

/// Bytes of what links share at most.
const SHARED_MAX: usize = 8 << 20;

/// Bytes of a refusal at most.
const REFUSAL_MAX: usize = 512;

/// How long a successor may take to start and to open its device; the link runs meanwhile.
pub(super) const PREPARE_LIMIT: Duration = Duration::from_secs(60);

/// How long what is on its way between links may take to arrive, before the first of them
/// comes to rest.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(1);

/// How long requests in flight may take to end, and then the successor to map and place
/// everything. The guest waits for both.
pub(super) const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Hello,
    Lent,
    Prepared,
    Fds,
    Saved,
    Ready,
    Go,
    Taken,
    Refused,
    Shared,
}

/// A row of the table: number, bytes of the body at most, descriptors at most.
const TABLE: [(Word, u16, usize, usize); 10] = [
    (Word::Hello, 1, 8, 0),
    (Word::Lent, 2, 0, FDS_EACH),
    (Word::Prepared, 3, 0, 0),
    (Word::Fds, 4, 0, FDS_EACH),
    (Word::Saved, 5, SAVED_MAX, 0),
    (Word::Ready, 6, 0, 0),
    (Word::Go, 7, 0, 0),
    (Word::Taken, 8, 0, 0),
    (Word::Refused, 9, REFUSAL_MAX, 0),
    (Word::Shared, 10, SHARED_MAX, 0),
];

/// Bytes before each body: number, nothing, bytes of the body.
const HEADER: usize = 8;

/// Why a link was not handed over: its process goes on with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandOverError {
    /// The socket between the two processes failed.
    #[error("the socket between the two processes: {0}")]
    Socket(#[from] io::Error),
    /// The other process is gone.
    #[error("the other process closed the connection before {what}")]
    Gone {
        /// What was waited for.
        what: &'static str,
    },
    /// The other process took too long.
    #[error("the other process took too long: no {what} came")]
    Late {
        /// What was waited for.
        what: &'static str,
    },
    /// The other process refused.
    #[error("{0}")]
    Refused(String),
    /// The other process said what it cannot say now.
    #[error("the other process sent message {got} of {len} bytes instead of {want}")]
    Unexpected {
        /// The number of the message.
        got: u16,
        /// The bytes that it announces.
        len: u32,
        /// What was waited for.
        want: &'static str,
    },
    /// The other process is of a later release.
    #[error(
        "the other process speaks version {got} of the hand-over, and this one version {known}"
    )]
    Words {
        /// Its version.
        got: u32,
        /// Ours.
        known: u32,
    },
    /// The other process cannot read what this one writes.
    #[error("the other process reads saved links up to format {got}, and this one writes {known}")]
    Form {
        /// The newest that it reads.
        got: u32,
        /// What is written here.
        known: u32,
    },
    /// The bytes are no link.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The bytes are no session that this device could have.
    #[error("the session: {0}")]
    Session(#[from] RestoreError),
    /// A descriptor is missing, or is one too many.
    #[error("{count} descriptors came where {want} were announced")]
    Count {
        /// How many came.
        count: usize,
        /// How many were announced.
        want: usize,
    },
    /// A descriptor is missing.
    #[error("no descriptor came for {fd:?}")]
    Missing {
        /// Which.
        fd: HandedFd,
    },
    /// What came belongs to another kind of device.
    #[error("a device of type {got} cannot be taken over by one of type {own}")]
    Device {
        /// Its type.
        got: u32,
        /// Ours.
        own: u32,
    },
    /// Memory, a ring or a descriptor cannot be used here.
    #[error("{what}: {why}")]
    Part {
        /// What.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// The rings did not come to rest, or the front end is in the middle of something.
    #[error("{why} within {} ms", limit.as_millis())]
    NotQuiet {
        /// What did not happen.
        why: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The device cannot be handed over.
    #[error(transparent)]
    NotLent(#[from] crate::NotLent),
    /// More has to be lent than goes with one message.
    #[error("{count} descriptors are to be lent, and {want} can be")]
    Lent {
        /// How many.
        count: usize,
        /// How many can be.
        want: usize,
    },
    /// The link ended meanwhile.
    #[error("the link ended before it was handed over")]
    Ended,
    /// Somebody else takes it over already.
    #[error("another process is taking the link over already")]
    Busy,
}

/// A message with its descriptors.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// The socket between the two processes.
#[derive(Debug)]
pub(super) struct Wire(pub(super) Stream);

impl Word {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Lent => "lent",
            Self::Prepared => "prepared",
            Self::Fds => "fds",
            Self::Saved => "saved",
            Self::Ready => "ready",
            Self::Go => "go",
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::Shared => "shared",
        }
    }

    fn row(self) -> (u16, usize, usize) {
        let row = TABLE.iter().find(|row| row.0 == self);
        let (_, number, body, fds) = row.expect("each has a row");
        (*number, *body, *fds)
    }
}

impl Wire {
    /// Says something; the limit is for room in the socket.
    pub(super) fn send(
        &self,
        word: Word,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        until: Instant,
    ) -> io::Result<()> {
        let mut bytes = word.row().0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 2]);
        let len = u32::try_from(body.len()).map_err(io::Error::other)?;
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(body);
        self.0.send(&bytes, fds, until)
    }

    /// Says why not, if anybody still listens.
    pub(super) fn refuse(&self, why: &impl ToString) {
        let why = why.to_string();
        let mut end = why.len().min(REFUSAL_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let soon = Instant::now() + Duration::from_secs(1);
        let _ = self.send(Word::Refused, &why.as_bytes()[..end], &[], soon);
    }

    /// Takes the next message, which is one of `wants`: which one.
    pub(super) fn receive(
        &self,
        wants: &[Word],
        until: Instant,
    ) -> Result<(Word, Message), HandOverError> {
        let want = wants[0].name();
        let (mut head, mut message) = ([0; HEADER], Message::default());
        self.fill(&mut head, &mut message.fds, want, until)?;
        let [n0, n1, _, _, len @ ..] = head;
        let (got, len) = (u16::from_le_bytes([n0, n1]), u32::from_le_bytes(len));
        let row = TABLE.iter().find(|row| row.1 == got);
        let legal = row.filter(|row| row.0 == Word::Refused || wants.contains(&row.0));
        let legal = legal.filter(|row| row.2 >= len as usize && row.3 >= message.fds.len());
        let Some((word, ..)) = legal.copied() else {
            message.fds.drain(..).for_each(reaper::dispose);
            return Err(HandOverError::Unexpected { got, len, want });
        };
        message.body.resize(len as usize, 0);
        let (body, fds) = (&mut message.body, &mut message.fds);
        if let Err(error) = self.fill(body, fds, want, until) {
            message.fds.drain(..).for_each(reaper::dispose);
            return Err(error);
        }
        if word == Word::Refused {
            let why = String::from_utf8_lossy(&message.body);
            let why = why.replace(char::is_control, "\u{fffd}");
            return Err(HandOverError::Refused(why));
        }
        Ok((word, message))
    }

    /// Receives just this many bytes, with the descriptors that come with the first of them.
    fn fill(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        what: &'static str,
        until: Instant,
    ) -> Result<(), HandOverError> {
        let mut done = 0;
        while done < bytes.len() {
            match self.0.receive(&mut bytes[done..], fds, FDS_EACH) {
                Ok(received) if received.bytes == 0 => return Err(HandOverError::Gone { what }),
                Ok(received) => done += received.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let wake = wait_for(self.0.as_fd(), Direction::Read, None, Some(until))?;
                    if wake == Wake::Deadline {
                        return Err(HandOverError::Late { what });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(HandOverError::Gone { what });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Says that the link is free to be taken, and whether it was. After `false` it cannot be
    /// any more.
    pub(super) fn let_go(&self, until: Instant) -> Result<(), HandOverError> {
        self.send(Word::Go, &[], &[], until)?;
        let Err(first) = self.receive(&[Word::Taken], until) else {
            return Ok(());
        };
        // From here on it cannot be said any more; it may have been until now.
        self.0.shut()?;
        match self.receive(&[Word::Taken], Instant::now()) {
            Ok(_) => Ok(()),
            Err(_) => Err(first),
        }
    }
}

/// Tells the process at the other end, which wants to take a link over, why it cannot.
pub fn refuse(stream: Stream, why: &str) {
    Wire(stream).refuse(&why);
}

/// What a hello says.
pub(super) fn hello() -> [u8; 8] {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&WORDS.to_le_bytes());
    body[4..].copy_from_slice(&VERSION.to_le_bytes());
    body
}

/// Whether a successor that says this can take over what is written here.
pub(super) fn check_hello(body: &[u8]) -> Result<(), HandOverError> {
    let number = |at: usize| {
        let bytes = body.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (words, form) = (number(0).unwrap_or(0), number(4).unwrap_or(0));
    if words != WORDS {
        let (got, known) = (words, WORDS);
        return Err(HandOverError::Words { got, known });
    }
    if form < VERSION {
        let (got, known) = (form, VERSION);
        return Err(HandOverError::Form { got, known });
    }
    Ok(())
}
