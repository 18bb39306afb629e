//! The host's end on one channel: what a guest is sent, and how long it has to answer.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_engine::Sights;
use linkspan_engine::vmbus::{Channel, ChannelError, FlushError};
use linkspan_mem::fault;
use linkspan_vmbus::fcopy::{
    FRAGMENT_MAX, Failure, Job, Misuse, Options, Output, Sender, WRITE_LEN,
};
use linkspan_vmbus::ic::HEADER_BYTES;
use linkspan_vmbus::link::{Outcome, Request};
use linkspan_vmbus::packet::{Contents, Header};
use linkspan_vmbus::{Outgoing, Packet, RingError, SendError};
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};

use super::guest::pass;

/// Passes at a time before others have their turn.
const PASSES: usize = 64;

/// How long a guest may take when nobody said.
const PATIENCE: Duration = Duration::from_secs(30);

/// WRITEs whose bytes are read of the file at once, where the guest may have several.
const AHEAD: usize = 16;

/// Messages that are shown to the guest together: it works on them while the next ones
/// are made.
const GROUP: usize = 8;

/// What a message ends with, and what it has where the file could not be read.
const ZEROES: [u8; WRITE_LEN] = [0; WRITE_LEN];

/// Messages that are timed at a time; a guest that never answers is given up.
const ASKED_MAX: usize = 1024;

/// Bytes after which a sender hears how far its file is.
const STEP: u64 = 4 << 20;

/// Why a guest is not served any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum GuestFault {
    #[error("the guest broke a ring: {0}")]
    Ring(#[from] RingError),
    #[error("the channel cannot be used: {0}")]
    Channel(#[from] ChannelError),
    #[error("the ring has no room for a message: {0}")]
    Send(SendError),
    #[error("{0}")]
    Failed(Failure),
    #[error(transparent)]
    Flush(FlushError),
}

impl From<FlushError> for GuestFault {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Ring(error) => Self::Ring(error),
            other => Self::Flush(other),
        }
    }
}

/// What came of a turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// A file ended so.
    pub(super) outcome: Option<Outcome>,
    /// That file.
    pub(super) source: Option<OwnedFd>,
    /// So many bytes of it were sent, and its sender is to hear of that.
    pub(super) progress: Option<u64>,
    /// There is more to do at once.
    pub(super) more: bool,
}

/// A guest with the file that it is sent.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) channel: Channel,
    packet: Packet,
    sender: Sender,
    ready: bool,
    source: Option<OwnedFd>,
    /// What was read of it, and where that begins.
    ahead: Vec<u8>,
    ahead_at: u64,
    told: u64,
    answered: u64,
    patience: Duration,
    /// When the guest has to have answered.
    deadline: Option<Instant>,
    /// That time is over.
    expired: bool,
    sights: Arc<Sights>,
    /// When what is not answered was sent: it is answered in order.
    asked: VecDeque<Instant>,
}

impl Active {
    pub(super) fn new(
        channel: Channel,
        outstanding: usize,
        sights: &Arc<Sights>,
    ) -> Result<Self, ChannelError> {
        let options = Options { outstanding };
        // For one, the bytes of the next are read in the time that the guest takes.
        let writes = if outstanding == 1 { 1 } else { AHEAD };
        Ok(Self {
            packet: channel.packet()?,
            channel,
            sender: Sender::new(options).expect("a number that is possible"),
            ready: false,
            source: None,
            ahead: fault::try_with_capacity(writes * FRAGMENT_MAX)?,
            ahead_at: 0,
            told: 0,
            answered: 0,
            patience: PATIENCE,
            deadline: None,
            expired: false,
            sights: Arc::clone(sights),
            asked: VecDeque::new(),
        })
    }

    /// Whether a file can be sent.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Begins a file.
    pub(super) fn begin(&mut self, request: Request, source: OwnedFd) -> Result<(), Outcome> {
        let job = Job {
            file: request.file,
            path: request.path,
            overwrite: request.overwrite,
            create_path: request.create_path,
            size: request.size,
        };
        self.sender.send(&job).map_err(|misuse| match misuse {
            Misuse::Name => Outcome::Name,
            _ => Outcome::Lost,
        })?;
        self.ready = false;
        self.source = Some(source);
        self.ahead.clear();
        self.told = 0;
        self.patience = Duration::from_millis(u64::from(request.patience));
        Ok(())
    }

    /// The file is not wanted any more.
    pub(super) fn cancel(&mut self) {
        self.sender.cancel(Failure::Stopped);
    }

    /// When a turn is due at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes what has come and sends what there is room for.
    pub(super) fn turn(&mut self) -> Result<Turn, GuestFault> {
        let mut turn = Turn::default();
        for _ in 0..PASSES {
            self.hear()?;
            let full = self.say(&mut turn);
            self.channel.flush()?;
            let full = full?;
            self.foresee();
            // Anew each time: the source may be slow.
            self.wind(Instant::now());
            let room = full && self.channel.outgoing.wait_for(room())?;
            if turn.outcome.is_none() && (room || self.looks()?) {
                continue;
            }
            if turn.outcome.is_some() || !self.channel.arm()? {
                self.note_progress(&mut turn);
                return Ok(turn);
            }
        }
        self.note_progress(&mut turn);
        turn.more = true;
        Ok(turn)
    }

    /// Whether an answer came while it was looked for.
    fn looks(&mut self) -> Result<bool, GuestFault> {
        if self.sender.awaiting() {
            return Ok(self.channel.look()?);
        }
        self.channel.rests();
        Ok(false)
    }

    /// The guest's time is over, if it is.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        // What came while nobody looked counts: this program may have been stopped. A ring
        // that is broken says so again in the next turn.
        let heard = self.hear().is_ok();
        if heard && (!self.sender.awaiting() || self.sender.answered() != self.answered) {
            return;
        }
        self.sender.expired();
        self.expired = true;
    }

    /// Each answer gives the guest its time anew; what else it says does not.
    fn wind(&mut self, now: Instant) {
        let answered = self.sender.answered();
        if !self.sender.awaiting() {
            self.deadline = None;
        } else if self.deadline.is_none() || answered != self.answered {
            self.deadline = now.checked_add(self.patience);
        }
        self.answered = answered;
    }

    fn hear(&mut self) -> Result<(), GuestFault> {
        if self.channel.incoming.refresh()? != 0 {
            self.channel.came();
        }
        while self.channel.incoming.receive(&mut self.packet)? {
            // What is no message is no answer, and the guest's time goes on.
            if let Ok(Contents::InBand { payload }) = self.packet.contents() {
                pass(&self.sights.messages, true, payload);
                if let Some(asked) = self.asked.pop_front() {
                    self.sights.latency.record(asked.elapsed());
                }
                self.sender.receive(payload);
            }
        }
        Ok(())
    }

    /// Sends until there is nothing to send, or no room: whether that was it.
    fn say(&mut self, turn: &mut Turn) -> Result<bool, GuestFault> {
        self.channel.outgoing.stop_waiting();
        let mut sent: usize = 0;
        // A guest that is given up may have left the ring full.
        while self.expired || has_room(&mut self.channel.outgoing)? {
            let Some(output) = self.sender.poll_output() else {
                return Ok(false);
            };
            let header = Header::in_band(1);
            match output {
                Output::Send(message) => {
                    pass(&self.sights.messages, false, &message);
                    self.channel.outgoing.send(header, &[&message])
                }
                Output::Write {
                    head,
                    offset,
                    len,
                    padding,
                } => {
                    pass(&self.sights.messages, false, &head);
                    let found = self.found(offset, len);
                    if found.is_none() {
                        // What was begun is sent, and then taken back.
                        self.sender.cancel(Failure::Source);
                    }
                    let data = found.map_or(&ZEROES[..len], |found| &self.ahead[found]);
                    let parts = [&head[..], data, &ZEROES[..padding]];
                    self.channel.outgoing.send(header, &parts)
                }
                Output::Ready => {
                    self.ready = true;
                    continue;
                }
                Output::Done => {
                    self.end(turn, Outcome::Done);
                    return Ok(false);
                }
                Output::Failed(failure) => {
                    self.end(turn, outcome(failure));
                    if matches!(failure, Failure::Protocol(_) | Failure::Silent) {
                        self.ready = false;
                        return Err(GuestFault::Failed(failure));
                    }
                    return Ok(false);
                }
            }
            .map_err(GuestFault::Send)?;
            if self.asked.len() < ASKED_MAX {
                self.asked.push_back(Instant::now());
            }
            sent += 1;
            if sent.is_multiple_of(GROUP) {
                self.channel.flush()?;
            }
        }
        Ok(true)
    }

    fn end(&mut self, turn: &mut Turn, outcome: Outcome) {
        turn.source = self.source.take();
        self.ready = true;
        turn.outcome = Some(outcome);
    }

    fn note_progress(&mut self, turn: &mut Turn) {
        let sent = self.sender.sent();
        if self.source.is_some() && sent >= self.told + STEP {
            self.told = sent;
            turn.progress = Some(sent);
        }
    }

    /// Reads what will be sent next, while the guest works. Whatever comes of that is seen
    /// when it is sent.
    fn foresee(&mut self) {
        if self.sender.awaiting()
            && let Some((offset, len)) = self.sender.next_write()
        {
            self.found(offset, len);
        }
    }

    /// Where these bytes of the file are in what was read of it, if they could be read.
    fn found(&mut self, offset: u64, len: usize) -> Option<Range<usize>> {
        let found = self.in_ahead(offset, len);
        if found.is_some() || !self.read_ahead(offset, len) {
            return found;
        }
        self.in_ahead(offset, len)
    }

    fn in_ahead(&self, offset: u64, len: usize) -> Option<Range<usize>> {
        let at = usize::try_from(offset.checked_sub(self.ahead_at)?).ok()?;
        let found = at..at.checked_add(len)?;
        (found.end <= self.ahead.len()).then_some(found)
    }

    /// Reads from here on, at least `least` bytes: whether there are so many.
    fn read_ahead(&mut self, offset: u64, least: usize) -> bool {
        let Some(source) = &self.source else {
            return false;
        };
        self.ahead.clear();
        self.ahead_at = offset;
        while self.ahead.len() < least {
            let at = offset + self.ahead.len() as u64;
            match pread(source, spare_capacity(&mut self.ahead), at) {
                Ok(0) => return false,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// Bytes in the ring that are enough for any message.
pub(super) fn room() -> u32 {
    let room = Outgoing::<linkspan_mem::Window>::room_of(HEADER_BYTES + WRITE_LEN);
    u32::try_from(room).expect("6248 bytes")
}

fn has_room(outgoing: &mut Outgoing<linkspan_mem::Window>) -> Result<bool, RingError> {
    Ok(outgoing.refresh()? >= room())
}

pub(super) fn outcome(failure: Failure) -> Outcome {
    match failure {
        Failure::Refused { operation, status } => Outcome::Refused { operation, status },
        Failure::Silent => Outcome::Silent,
        Failure::Stopped => Outcome::Stopped,
        Failure::Source => Outcome::Source,
        _ => Outcome::Protocol,
    }
}
