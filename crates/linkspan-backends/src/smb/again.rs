//! What who keeps something open over a lost connection has in common: when to connect again,
//! and how what the server may have lost is written again.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use linkspan_smb2::client::Request as Asked;
use linkspan_smb2::ioctl::{IoctlRequest, ZeroData, code};
use linkspan_smb2::{Command, status};

use super::data::Room;
use super::error::Error;
use super::kept::{Content, Kept};
use super::share::{Open, Share, accepted};

/// The first pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What ends sooner was no connection: the pauses go on.
const LASTING: Duration = Duration::from_secs(1);

/// The pause after a log-on that was refused: servers count those, and lock accounts.
const PAUSE_REFUSED: Duration = Duration::from_secs(30);

/// How long such log-ons are tried without a time limit.
const REFUSED_MAX: Duration = Duration::from_secs(600);

/// When to connect.
pub(super) struct Pace {
    /// The last connection.
    connected: Instant,
    /// The next pause.
    pause: Duration,
    /// Since when the server refuses the log-on.
    refused: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            connected: Instant::now(),
            pause: PAUSE,
            refused: None,
        }
    }

    /// What is to pass before a connection that was lost is made again.
    pub(super) fn lost(&mut self) -> Duration {
        if self.connected.elapsed() < LASTING {
            return self.failed();
        }
        self.pause = PAUSE;
        Duration::ZERO
    }

    /// There is a connection.
    pub(super) fn connected(&mut self) {
        self.connected = Instant::now();
        self.refused = None;
    }

    /// What is to pass before the next attempt; `None` if the server has refused the log-on for
    /// so long that another one makes no sense.
    pub(super) fn after(&mut self, error: &Error, limit: Option<Duration>) -> Option<Duration> {
        if !matches!(error, Error::LogOn { .. }) {
            self.refused = None;
            return Some(self.failed());
        }
        let refused = *self.refused.get_or_insert_with(Instant::now);
        let left = limit
            .unwrap_or(REFUSED_MAX)
            .checked_sub(refused.elapsed())?;
        // The last attempt is at the end of the limit.
        Some(PAUSE_REFUSED.min(left)).filter(|pause| !pause.is_zero())
    }

    /// The same for one that could not be made.
    fn failed(&mut self) -> Duration {
        let next = (self.pause * 2).min(PAUSE_MAX);
        std::mem::replace(&mut self.pause, next)
    }
}

/// A length that was checked to be one in memory.
pub(super) fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Zeroes, or a hole (MS-FSCC 2.3.85).
pub(super) fn zeroes(open: &Open, range: &Range<u64>) -> Asked {
    let fixed = IoctlRequest {
        code: code::SET_ZERO_DATA.into(),
        file: open.file,
        ..IoctlRequest::new()
    };
    Asked::new(Command::Ioctl, fixed.body(&ZeroData::of(range.clone())), 0)
}

/// Whether a server that says this does not know how to do something.
pub(super) fn is_unknown(said: u32) -> bool {
    matches!(
        said,
        status::NOT_SUPPORTED
            | status::INVALID_DEVICE_REQUEST
            | status::INVALID_PARAMETER
            | status::FS_DRIVER_REQUIRED
    )
}

/// Whether a server that says this has lost what the connection stood on: another one may do.
pub(super) fn is_over(said: u32) -> bool {
    matches!(
        said,
        status::USER_SESSION_DELETED
            | status::NETWORK_SESSION_EXPIRED
            | status::NETWORK_NAME_DELETED
            | status::FILE_CLOSED
            | status::INVALID_HANDLE
            | status::FILE_NOT_AVAILABLE
            | status::CANCELLED
    )
}

/// Writes what is kept.
pub(super) fn write_again(share: &mut Share, open: &Open, kept: &Kept) -> Result<(), Error> {
    for (range, content) in kept.runs() {
        let (data, skip) = match content {
            Content::Data(data, skip) => (&data[*skip..], range.start),
            Content::Zeroes => {
                let response = share.connection.call(zeroes(open, &range))?;
                if response.status() == status::SUCCESS {
                    continue;
                }
                if !is_unknown(response.status()) {
                    accepted(&open.path, response)?;
                }
                (&[][..], range.start)
            }
        };
        let source = |at: u64, piece: Room<'_>| {
            match data {
                [] => piece.clear(),
                data => {
                    let from = to_usize(at - skip);
                    let part = data.get(from..from + piece.len());
                    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
                    piece.copy_from(part.ok_or_else(short)?);
                }
            }
            Ok(())
        };
        share.write(open, range.start, range.end, source, |_| ())?;
    }
    Ok(())
}
