//! What is counted of the frames of a port: by each worker for itself, so that no
//! two write the same count.

use std::sync::Arc;
use std::time::Instant;

use linkspan_devices::net::Frame;
use linkspan_devices::net::control::ControlError;
use linkspan_devices::net::pcapng::Way;
use linkspan_devices::net::switch::DropReason;
use linkspan_engine::Counter;

use super::capture::Capture;

/// Why a frame was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DropCause {
    /// Its header does not fit it, or asks for what was not negotiated.
    Header,
    /// Not even an Ethernet header.
    Malformed,
    /// Its source is a group, or nobody.
    Source,
    /// Its source is configured for another port.
    Spoofed,
    /// For bridges, which do not pass it on.
    Reserved,
    /// The port has no part in the VLAN.
    Vlan,
    /// Its destination is at the port that it came from.
    SamePort,
    /// The port has flooded too much.
    Flood,
    /// The port has sent more than its limit.
    Limit,
    /// The receiver takes nothing now: it is not connected, or has no queue enabled.
    Down,
    /// The receiver has no buffers.
    NoBuffers,
    /// The receiver's buffers are too small.
    SmallBuffers,
    /// It is too long for the receiver, or cannot be cut for it.
    TooLong,
    /// The worker that has the receiver's queue has too many waiting.
    Busy,
    /// The receiver's queue is broken, or the system does not take the frame.
    Broken,
    /// The receiver's driver does not want it, as it said through its control queue.
    Filtered,
}

impl DropCause {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Header,
        Self::Malformed,
        Self::Source,
        Self::Spoofed,
        Self::Reserved,
        Self::Vlan,
        Self::SamePort,
        Self::Flood,
        Self::Limit,
        Self::Down,
        Self::NoBuffers,
        Self::SmallBuffers,
        Self::TooLong,
        Self::Busy,
        Self::Broken,
        Self::Filtered,
    ];

    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Malformed => "malformed",
            Self::Source => "source",
            Self::Spoofed => "spoofed",
            Self::Reserved => "reserved",
            Self::Vlan => "vlan",
            Self::SamePort => "same_port",
            Self::Flood => "flood",
            Self::Limit => "limit",
            Self::Down => "down",
            Self::NoBuffers => "no_buffers",
            Self::SmallBuffers => "small_buffers",
            Self::TooLong => "too_long",
            Self::Busy => "busy",
            Self::Broken => "broken",
            Self::Filtered => "filtered",
        }
    }
}

impl From<DropReason> for DropCause {
    fn from(reason: DropReason) -> Self {
        match reason {
            DropReason::Malformed => Self::Malformed,
            DropReason::Source => Self::Source,
            DropReason::Spoofed => Self::Spoofed,
            DropReason::Reserved => Self::Reserved,
            DropReason::Vlan => Self::Vlan,
            DropReason::SamePort => Self::SamePort,
            DropReason::FloodLimit => Self::Flood,
        }
    }
}

/// What one worker counts of one port.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counts {
    frames_in: Counter,
    bytes_in: Counter,
    frames_out: Counter,
    bytes_out: Counter,
    flooded: Counter,
    drops: [Counter; DropCause::ALL.len()],
}

impl Counts {
    /// A frame from the port went to all others.
    #[inline]
    pub(super) fn flooded(&self) {
        self.flooded.add(1);
    }

    #[inline]
    pub(super) fn dropped(&self, why: DropCause) {
        self.drops[why as usize].add(1);
    }
}

/// The books of a port, as a worker keeps them during a pass.
#[derive(Clone, Copy)]
pub(super) struct Books<'f> {
    pub(super) counts: &'f Counts,
    /// Who wants copies, of frames of which port, and when the pass began.
    pub(super) capture: Option<&'f Capture>,
    pub(super) port: u16,
    pub(super) now: Instant,
}

impl Books<'_> {
    /// A frame came out of the port.
    #[inline]
    pub(super) fn came(&self, frame: &Frame<'_>) {
        self.capture(Way::In, frame);
        self.came_all(1, frame.len());
    }

    /// The same of so many with so many bytes in all, which were [captured](Self::capture)
    /// one by one.
    #[inline]
    pub(super) fn came_all(&self, frames: u64, bytes: u64) {
        self.counts.frames_in.add(frames);
        self.counts.bytes_in.add(bytes);
    }

    /// Gives a copy of a frame to who wants one.
    #[inline]
    pub(super) fn capture(&self, way: Way, frame: &Frame<'_>) {
        if let Some(capture) = self.capture {
            capture.take(self.port, way, self.now, frame);
        }
    }

    /// A frame went into the port, which is no guest's.
    #[inline]
    pub(super) fn went(&self, frame: &Frame<'_>) {
        self.counts.frames_out.add(1);
        self.counts.bytes_out.add(frame.len());
        self.capture(Way::Out, frame);
    }

    /// A frame went into a receive queue of the guest there.
    #[inline]
    pub(super) fn went_to(&self, pair: &OfPair, frame: &Frame<'_>) {
        pair.went(frame.len());
        self.capture(Way::Out, frame);
    }

    #[inline]
    pub(super) fn dropped(&self, why: DropCause) {
        self.counts.dropped(why);
    }
}

/// What is counted of the control queue of a guest, by the one worker that has it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct ControlCounts {
    done: Counter,
    refused: [Counter; ControlError::NAMES.len()],
}

impl ControlCounts {
    pub(super) fn count(&self, outcome: Result<(), &ControlError>) {
        match outcome {
            Ok(()) => self.done.add(1),
            Err(error) => self.refused[error.kind()].add(1),
        }
    }
}

/// What the worker of a guest's queue pair counts of it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct OfPair {
    /// Frames out of the transmit queue, added once for each pass.
    pub(super) sent: Counter,
    /// Frames into the receive queue.
    received: Counter,
    received_bytes: Counter,
}

impl OfPair {
    /// A frame went into the receive queue.
    #[inline]
    fn went(&self, bytes: u64) {
        self.received.add(1);
        self.received_bytes.add(bytes);
    }
}

/// What was counted of a queue pair of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairCounts {
    /// Frames that came from its transmit queue.
    pub frames_in: u64,
    /// Frames that went to its receive queue.
    pub frames_out: u64,
}

/// What was counted of a port since its fabric was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Frames that came from the port.
    pub frames_in: u64,
    /// Bytes of them.
    pub bytes_in: u64,
    /// Frames that went to the port. One that was cut counts as many.
    pub frames_out: u64,
    /// Bytes of them.
    pub bytes_out: u64,
    /// Frames from the port that went to all others.
    pub flooded: u64,
    /// Frames that were dropped, by [`DropCause::ALL`].
    pub drops: [u64; DropCause::ALL.len()],
    /// Commands of the control queue that were done.
    pub commands: u64,
    /// Commands that were refused, by [`ControlError::NAMES`].
    pub refused: [u64; ControlError::NAMES.len()],
    /// By queue pair, where a guest is behind the port.
    pub pairs: Vec<PairCounts>,
}

impl PortCounts {
    pub(super) fn sum(counts: &[Counts], pairs: &[Arc<OfPair>], control: &ControlCounts) -> Self {
        let mut sum = Self {
            commands: control.done.value(),
            refused: control.refused.each_ref().map(Counter::value),
            ..Self::default()
        };
        for pair in pairs {
            let frames_out = pair.received.value();
            sum.frames_out += frames_out;
            sum.bytes_out += pair.received_bytes.value();
            sum.pairs.push(PairCounts {
                frames_in: pair.sent.value(),
                frames_out,
            });
        }
        for counts in counts {
            sum.frames_in += counts.frames_in.value();
            sum.bytes_in += counts.bytes_in.value();
            sum.frames_out += counts.frames_out.value();
            sum.bytes_out += counts.bytes_out.value();
            sum.flooded += counts.flooded.value();
            for (sum, count) in sum.drops.iter_mut().zip(&counts.drops) {
                *sum += count.value();
            }
        }
        sum
    }

    /// Adds what was counted in another life of the same port.
    pub(super) fn add(&mut self, before: &Self) {
        let Self {
            frames_in,
            bytes_in,
            frames_out,
            bytes_out,
            flooded,
            drops,
            commands,
            refused,
            pairs,
        } = before;
        self.frames_in += frames_in;
        self.bytes_in += bytes_in;
        self.frames_out += frames_out;
        self.bytes_out += bytes_out;
        self.flooded += flooded;
        self.commands += commands;
        let more = drops.iter().chain(refused);
        let all = self.drops.iter_mut().chain(&mut self.refused);
        all.zip(more).for_each(|(sum, more)| *sum += more);
        for (pair, before) in self.pairs.iter_mut().zip(pairs) {
            pair.frames_in += before.frames_in;
            pair.frames_out += before.frames_out;
        }
    }

    /// Frames that were dropped for this reason: of frames from the port, or for a
    /// reason of the receiver of frames to it.
    pub fn dropped(&self, why: DropCause) -> u64 {
        self.drops[why as usize]
    }

    /// Frames that were dropped for any reason.
    pub fn dropped_all(&self) -> u64 {
        self.drops.iter().sum()
    }
}
