//! A conversation as bytes, whatever has come of the next frame.

use alloc::vec::Vec;

use super::{Conversation, FRAMES, HEADER_LEN, OLDEST, Phase, Role, Side, VERSION};
use linkspan_mem::record::{Reader, RestoreError, Writer};

const MAGIC: [u8; 8] = *b"LSvlink1";

/// All phases; their places here are their numbers.
const PHASES: [Phase; 9] = [
    Phase::Fresh,
    Phase::Greeted(Role::Guest),
    Phase::Greeted(Role::Sender),
    Phase::Joined,
    Phase::Verifying,
    Phase::Making,
    Phase::Ready,
    Phase::Sending,
    Phase::Over,
];

/// More descriptors than any frame has; they came at the wrong place.
const TOO_MANY: u16 = u16::MAX;

impl Conversation {
    /// The conversation as bytes. Descriptors that have come are kept by whoever has
    /// them, and go with it.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC);
        writer.u8(u8::from(self.us == Side::Host));
        let phase = PHASES.iter().position(|phase| *phase == self.phase);
        writer.u8(phase.and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        writer.u16(self.version);
        writer.u16(u16::try_from(self.fds).unwrap_or(TOO_MANY));
        let (code, len) = self.body.map_or((0, 0), |(kind, len)| (kind.code, len));
        writer.u16(code);
        writer.count(len);
        writer.count(self.bytes.len());
        writer.bytes(&self.bytes);
        writer.finish()
    }

    /// The conversation that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let nonsense = |what| RestoreError::Nonsense { what };
        let mut reader = Reader::new("conversation of a socket", MAGIC, bytes)?;
        let us = if reader.flag("which end it is")? {
            Side::Host
        } else {
            Side::Client
        };
        let mut conversation = Self::new(us);
        let phase = PHASES.get(usize::from(reader.u8()?));
        conversation.phase = *phase.ok_or(nonsense("how far it is"))?;
        conversation.version = reader.u16()?;
        if !(OLDEST..=VERSION).contains(&conversation.version) {
            return Err(nonsense("its version"));
        }
        conversation.fds = match reader.u16()? {
            TOO_MANY => usize::MAX,
            few => few.into(),
        };
        let code = reader.u16()?;
        let longest = FRAMES.iter().map(|kind| kind.len[1]).max().unwrap_or(0);
        let len = reader.count("the length of a frame", 0, longest)?;
        if code != 0 {
            let kind = FRAMES.iter().find(|kind| kind.code == code);
            let kind = kind.filter(|kind| {
                let awaited = kind.from != us && conversation.is_turn_of(kind);
                awaited && len > 0 && (kind.len[0]..=kind.len[1]).contains(&len)
            });
            conversation.body = Some((kind.ok_or(nonsense("the frame that comes"))?, len));
        } else if len > 0 {
            return Err(nonsense("the length of no frame"));
        }
        let all = conversation.body.map_or(HEADER_LEN, |(_, len)| len);
        let have = reader.count("what has come of a frame", 1, all - 1)?;
        conversation.bytes.extend(reader.bytes(have)?);
        reader.end()?;
        Ok(conversation)
    }
}
