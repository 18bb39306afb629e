//! What is there as a whole, as most is: taken at one go, with the same checks.

use linkspan_mem::crc32c;

use super::Step;
use crate::iwarp::connection::{Connection, Phase};
use crate::iwarp::wire::{CRC, Control, Opcode, QUEUE_SEND, UNTAGGED, Untagged, padding, u16_at};
use crate::memory::{Memories, Pool};
use crate::verbs::{Event, Failure, Received};

impl Connection {
    /// Takes a message in one frame that is there as a whole, as most are, at one go. Says
    /// how many bytes that are; nothing has happened if it is none, or not right.
    pub(in crate::iwarp) fn receive_message(
        &mut self,
        bytes: &[u8],
        memories: &mut Memories,
        pool: &mut Pool,
    ) -> Option<usize> {
        let rx = &self.rx;
        let between = rx.step == Step::Header && rx.have == 0 && rx.message.is_none();
        if !between || rx.first.is_some() || self.receives == 0 {
            return None;
        }
        let header: &[u8; UNTAGGED] = bytes.first_chunk()?;
        let fields = Untagged::read(header);
        let is_next = u16_at(header, 2) == Control::new(Opcode::Send, true).0
            && fields.queue == QUEUE_SEND
            && fields.number == rx.next_send
            && fields.offset == 0;
        let all = usize::from(u16_at(header, 0)) + 2;
        let end = all + padding(all) + CRC;
        let payload = bytes.get(UNTAGGED..all)?;
        // Within 16 bits.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let fits = bytes.len() >= end && len <= self.options.limits.receive_size;
        if !is_next || !fits || !matches!(self.phase, Phase::Running) {
            return None;
        }
        if self.crc {
            let (frame, sum) = bytes[..end].split_at(end - CRC);
            if crc32c(0, frame).to_le_bytes() != sum {
                return None;
            }
        }
        let buffer = pool.take(memories)?;
        let place = buffer.part(0, len);
        let placed = memories.slice(place).map(|place| place.write(payload));
        if placed != Some(payload.len()) {
            pool.put(buffer);
            return None;
        }
        self.receives -= 1;
        self.rx.next_send = self.rx.next_send.wrapping_add(1);
        self.tx.allowed = true;
        self.tx.nudge.stop();
        self.events.push_back(Event::Received(Received {
            buffer: place,
            invalidated: None,
            solicited: false,
        }));
        Some(end)
    }

    /// Takes a header, or what is behind a payload, that is there as a whole, as it mostly
    /// is; nothing if it is not.
    pub(super) fn receive_whole(&mut self, bytes: &[u8]) -> Result<Option<usize>, Failure> {
        let rx = &mut self.rx;
        if rx.have > 0 {
            return Ok(None);
        }
        if rx.step == Step::Trailer {
            let need = rx.need;
            if bytes.len() < need {
                return Ok(None);
            }
            if self.crc {
                rx.trailer[..need].copy_from_slice(&bytes[..need]);
            }
            self.frame_is_there()?;
            return Ok(Some(need));
        }
        let Some(first) = bytes.first_chunk::<UNTAGGED>() else {
            return Ok(None);
        };
        rx.header[..UNTAGGED].copy_from_slice(first);
        self.prefix()?;
        self.rx.have = UNTAGGED.min(self.rx.need);
        let have = self.rx.have;
        if have == self.rx.need {
            self.header()?;
        }
        Ok(Some(have))
    }
}
