//! What one end of a connection is told when it is made.

use core::time::Duration;

use thiserror::Error;

use super::mpa::{REVISION_MAX, Ready};
use super::wire::{CRC, TAGGED, UNTAGGED};
use crate::verbs::{Depth, Limits};

/// The most bytes of payload in a frame: its length takes 16 bits, and copies are
/// fastest between places that are aligned.
const PAYLOAD_MAX: u32 = 65_472;

/// How large the frames are that we send. Those that we receive may have any size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// Up to 64 KiB: for siw and for ourselves, which take the stream as it comes.
    Max,
    /// No larger than a segment of TCP, in bytes, as RFC 5044 wants it and hardware
    /// needs it.
    Segment(u16),
}

/// How a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Reads at a time that we would like, each way; the peer may want others.
    pub depth: Depth,
    /// Reads of the peer that we answer at a time, if it insists.
    pub inbound_max: u16,
    /// Whether to ask for checksums. If the peer asks they are there in any case.
    pub crc: bool,
    /// The revision of MPA that an initiator begins with: 1 or 2.
    pub revision: u8,
    /// Whether an initiator offers to begin with a frame of its own (revision 2).
    pub ready: Option<Ready>,
    /// How large the frames are that we send.
    pub frame: FrameSize,
    /// How many of everything.
    pub limits: Limits,
    /// How often an initiator that hears nothing pokes its peer: siw overlooks a first
    /// frame that follows its reply at once, until more bytes come.
    pub nudges: u8,
    /// How long before the first of them; each next one takes twice as long.
    pub nudge_after: Duration,
    /// How long an initiator awaits the reply.
    pub reply_within: Duration,
    /// How long a listener awaits the request.
    pub request_within: Duration,
    /// How long the last bytes may take, each way.
    pub linger: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            depth: Depth {
                inbound: 32,
                outbound: 32,
            },
            inbound_max: 128,
            crc: false,
            revision: REVISION_MAX,
            ready: None,
            frame: FrameSize::Max,
            limits: Limits {
                works: 1024,
                receives: 65_535,
                receive_size: 8192,
                gather: 256,
                read_into: 256,
                work_bytes: 1 << 30,
                exposures: 1023,
                exposure_slices: 4096,
                exposure_bytes: 1 << 30,
            },
            nudges: 3,
            nudge_after: Duration::from_millis(30),
            reply_within: Duration::from_secs(10),
            request_within: Duration::from_secs(5),
            linger: Duration::from_secs(2),
        }
    }
}

/// Options that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what} is {got}, where {min} to {max} are possible")]
pub struct OptionError {
    /// Which one.
    pub what: &'static str,
    /// What was asked for.
    pub got: u64,
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
}

/// Depths have 14 bits, one of whose values means that they are open.
pub(super) const DEPTH_MAX: u64 = 0x3FFE;
/// Below it nothing fits behind a header.
const SEGMENT_MIN: u16 = 128;
const EXPOSURES_MAX: u64 = 1 << 20;
/// A day: far below what no sum of times has room for.
const TIME_MAX_MS: u64 = 86_400_000;
/// The pause doubles with each.
const NUDGES_MAX: u64 = 16;

impl Options {
    /// Whether they can be.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), OptionError> {
        let limits = &self.limits;
        let segment = match self.frame {
            FrameSize::Max => SEGMENT_MIN,
            FrameSize::Segment(size) => size,
        };
        let rows = [
            ("inbound depth", self.depth.inbound.into(), 0, DEPTH_MAX),
            ("outbound depth", self.depth.outbound.into(), 0, DEPTH_MAX),
            (
                "largest inbound depth",
                self.inbound_max.into(),
                self.depth.inbound.into(),
                DEPTH_MAX,
            ),
            ("revision", self.revision.into(), 1, REVISION_MAX.into()),
            (
                "size of a segment",
                segment.into(),
                SEGMENT_MIN.into(),
                u16::MAX.into(),
            ),
            ("number of works", limits.works as u64, 1, 1 << 20),
            ("number of receives", limits.receives.into(), 1, 1 << 20),
            ("size of a receive", limits.receive_size.into(), 1, 1 << 30),
            ("elements of a list", limits.gather as u64, 1, 1 << 16),
            ("elements to read into", limits.read_into as u64, 1, 1 << 16),
            ("bytes of a work", limits.work_bytes.into(), 1, 1 << 31),
            ("exposures", limits.exposures as u64, 1, EXPOSURES_MAX - 1),
            (
                "elements of an exposure",
                limits.exposure_slices as u64,
                1,
                1 << 20,
            ),
            (
                "bytes of an exposure",
                limits.exposure_bytes.into(),
                1,
                1 << 31,
            ),
        ];
        let times = [
            ("time before a nudge, in ms,", self.nudge_after),
            ("time for a reply, in ms,", self.reply_within),
            ("time for a request, in ms,", self.request_within),
            ("time for the last bytes, in ms,", self.linger),
        ];
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let times = times.map(|(what, time)| (what, millis(time), 0, TIME_MAX_MS));
        let nudges = ("nudges", self.nudges.into(), 0, NUDGES_MAX);
        for (what, got, min, max) in rows.into_iter().chain(times).chain([nudges]) {
            if !(min..=max).contains(&got) {
                return Err(OptionError {
                    what,
                    got,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }

    /// Bytes of payload behind a header of so many bytes.
    pub(super) fn payload(&self, header: usize) -> u32 {
        match self.frame {
            FrameSize::Max => PAYLOAD_MAX,
            FrameSize::Segment(size) => {
                let left = usize::from(size) - header - CRC;
                u32::try_from(left & !7)
                    .unwrap_or(PAYLOAD_MAX)
                    .min(PAYLOAD_MAX)
            }
        }
    }
}

const _: () = assert!(PAYLOAD_MAX as usize + UNTAGGED - 2 <= u16::MAX as usize);
const _: () = assert!(SEGMENT_MIN as usize > UNTAGGED + CRC + 8 && TAGGED < UNTAGGED);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named() {
        let good = Options::default();
        assert_eq!(good.check(), Ok(()));
        let revision = Options {
            revision: 3,
            ..good
        };
        let error = OptionError {
            what: "revision",
            got: 3,
            min: 1,
            max: 2,
        };
        assert_eq!(revision.check(), Err(error));
        let segment = Options {
            frame: FrameSize::Segment(100),
            ..good
        };
        assert_eq!(segment.check().unwrap_err().what, "size of a segment");
        let nudges = Options {
            nudges: 255,
            ..good
        };
        assert_eq!(nudges.check().unwrap_err().what, "nudges");
        let forever = Options {
            linger: Duration::MAX,
            ..good
        };
        assert_eq!(forever.check().unwrap_err().got, u64::MAX);
        let mut limits = good;
        limits.limits.receive_size = 0;
        assert_eq!(limits.check().unwrap_err().what, "size of a receive");
    }

    #[test]
    fn frames_fit_into_segments() {
        for size in [128_u16, 536, 1448, 1460, 9000, u16::MAX] {
            let options = Options {
                frame: FrameSize::Segment(size),
                ..Options::default()
            };
            for header in [TAGGED, UNTAGGED] {
                let payload = options.payload(header) as usize;
                assert!(payload.is_multiple_of(8) && payload > 0);
                assert!(header + payload + CRC <= usize::from(size));
            }
        }
    }
}
