//! One end of a connection: whose turn it is, and frames out of bytes.

use alloc::vec::Vec;

use super::wire::{Fields, field, read, write};
use super::{FRAMES, Frame, HEADER_LEN, Kind, LinkError, OLDEST, Phase, Side};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    pub(super) us: Side,
    pub(super) phase: Phase,
    /// The version that was agreed upon, or the oldest.
    pub(super) version: u16,
    pub(super) bytes: Vec<u8>,
    /// The frame whose body is awaited, and its length.
    pub(super) body: Option<(&'static Kind, usize)>,
    pub(super) fds: usize,
}

impl Conversation {
    /// A connection that was just made.
    #[must_use]
    pub fn new(us: Side) -> Self {
        Self {
            us,
            phase: Phase::Fresh,
            version: OLDEST,
            bytes: Vec::new(),
            body: None,
            fds: 0,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The version that is spoken, once that is known.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Bytes that belong to the frame that comes, at least one.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.body.map_or(HEADER_LEN, |(_, len)| len) - self.bytes.len()
    }

    /// Takes bytes, no more than are wanted, and how many descriptors came with
    /// them; gives the frame if it is whole. Its descriptors are the ones that came
    /// since the last.
    ///
    /// # Errors
    /// It is none. The connection is to be closed.
    pub fn receive(&mut self, bytes: &[u8], fds: usize) -> Result<Option<Frame>, LinkError> {
        debug_assert!(bytes.len() <= self.wanted());
        // Descriptors in the middle of a frame belong to none.
        let begins = self.body.is_none() && self.bytes.is_empty();
        self.fds = if begins || fds == 0 {
            self.fds + fds
        } else {
            usize::MAX
        };
        self.bytes.extend_from_slice(bytes);
        if self.wanted() > 0 {
            return Ok(None);
        }
        if self.body.is_none() {
            let (kind, len) = self.header()?;
            self.body = Some((kind, len));
            self.bytes.clear();
            if len > 0 {
                return Ok(None);
            }
        }
        let Some((kind, _)) = self.body.take() else {
            return Ok(None);
        };
        let body = core::mem::take(&mut self.bytes);
        let (got, want) = (core::mem::take(&mut self.fds), kind.fds);
        if got != want {
            let frame = kind.name;
            return Err(LinkError::Descriptors { frame, got, want });
        }
        let frame = read(kind, &body)?;
        self.passed(&frame);
        Ok(Some(frame))
    }

    fn header(&self) -> Result<(&'static Kind, usize), LinkError> {
        let mut fields = Fields(&self.bytes);
        let (code, zero, len) = (fields.u16(), fields.u16(), fields.u32());
        let code = code.unwrap_or(0);
        let kind = FRAMES.iter().find(|kind| kind.code == code);
        let kind = kind.ok_or(LinkError::Code { code })?;
        if kind.from == self.us || !self.is_turn_of(kind) {
            return Err(LinkError::Phase {
                frame: kind.name,
                phase: self.phase,
            });
        }
        if zero != Some(0) {
            return Err(field(kind, "reserved field"));
        }
        let len = len.and_then(|len| usize::try_from(len).ok());
        let len = len.unwrap_or(usize::MAX);
        if !(kind.len[0]..=kind.len[1]).contains(&len) {
            let frame = kind.name;
            return Err(LinkError::Length { frame, len });
        }
        Ok((kind, len))
    }

    /// The bytes of a frame of ours.
    ///
    /// # Panics
    /// When it is not our turn to say it, or it has longer names than [`NAME_MAX`].
    pub fn say(&mut self, frame: &Frame) -> Vec<u8> {
        let kind = frame.kind();
        assert!(
            kind.from == self.us && self.is_turn_of(kind),
            "{} in {:?} of version {}",
            kind.name,
            self.phase,
            self.version
        );
        let body = write(frame);
        assert!((kind.len[0]..=kind.len[1]).contains(&body.len()));
        self.passed(frame);
        let mut bytes = kind.code.to_le_bytes().to_vec();
        bytes.extend([0; 2]);
        bytes.extend(u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    pub(super) fn is_turn_of(&self, kind: &Kind) -> bool {
        kind.phases.contains(&self.phase) && kind.since <= self.version
    }

    /// A frame was said by either side.
    fn passed(&mut self, frame: &Frame) {
        if let Frame::Channel { version, .. } | Frame::Welcome { version } = frame {
            self.version = *version;
        }
        self.phase = match frame {
            Frame::Hello { role, .. } => Phase::Greeted(*role),
            Frame::Channel { .. } | Frame::Digest(_) | Frame::Made(_) => Phase::Joined,
            Frame::Verify { .. } => Phase::Verifying,
            Frame::Folder { .. } => Phase::Making,
            Frame::Refused(_) => Phase::Over,
            Frame::Welcome { .. } | Frame::Done(_) => Phase::Ready,
            Frame::Send(_) => Phase::Sending,
            Frame::Cancel | Frame::Progress { .. } => self.phase,
        };
    }
}
