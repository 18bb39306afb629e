//! A connection as bytes, and back, at a quiet point.

use alloc::vec::Vec;
use core::time::Duration;

use linkspan_mem::record::{Reader, RestoreError, Writer};
use thiserror::Error;

use super::connection::{Connection, Phase};
use super::options::{DEPTH_MAX, Options};
use super::tags::Tags;
use crate::verbs::Depth;

/// The state cannot be saved now: something is under way, or nothing is agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not quiet: {what}")]
pub struct NotQuiet {
    /// What is under way.
    pub what: &'static str,
}

const MAGIC: [u8; 8] = *b"LSiwarp1";

impl Connection {
    /// The connection as bytes. It is quiet when both ends have met and spoken, all events were
    /// taken, all works are done, all frames are written, nothing has come in part, and no
    /// memory is exposed. Receives that are posted stay so, and no tag that ever was comes back.
    /// Bytes of the stream that were read and not [taken](Self::receive) belong to whoever has
    /// the stream.
    ///
    /// # Errors
    /// Something is under way.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        let running = matches!(self.phase, Phase::Running);
        let reads = !self.reads.is_empty() || !self.responses.is_empty();
        let busy = [
            (!running, "nothing is agreed upon"),
            (!self.events.is_empty(), "an event waits"),
            (!self.tx.has_met(), "the ends have not spoken"),
            (self.works() > 0, "work is under way"),
            (reads, "a read is under way"),
            (!self.tx.is_idle(), "a frame is not written"),
            (!self.is_between_messages(), "a message is there in part"),
            (self.tags.live() > 0, "memory is exposed"),
        ];
        if let Some((_, what)) = busy.into_iter().find(|(busy, _)| *busy) {
            return Err(NotQuiet { what });
        }
        let mut writer = Writer::new(MAGIC);
        writer.u8(u8::from(self.crc));
        writer.u16(self.depth.inbound);
        writer.u16(self.depth.outbound);
        writer.u32(self.receives);
        for number in self.rx.numbers().into_iter().chain(self.tx.numbers()) {
            writer.u32(number);
        }
        self.tags.save(&mut writer);
        Ok(writer.finish())
    }

    /// The connection that [`snapshot`](Self::snapshot) saved, with the same options.
    ///
    /// # Errors
    /// `bytes` are not that, or the options are others.
    pub fn restore(options: Options, now: Duration, bytes: &[u8]) -> Result<Self, RestoreError> {
        let nonsense = |what| RestoreError::Nonsense { what };
        let mut reader = Reader::new("connection of iWARP", MAGIC, bytes)?;
        let crc = reader.flag("whether there are checksums")?;
        let depth = Depth {
            inbound: reader.u16()?,
            outbound: reader.u16()?,
        };
        let receives = reader.u32()?;
        let numbers = [(); 4].map(|()| reader.u32());
        let [next_send, next_read, sent, asked] = numbers;
        let (received, sent) = ([next_send?, next_read?], [sent?, asked?]);
        let tags = Tags::restore(options.limits.exposures, &mut reader)?;
        reader.end()?;
        let outbound = u64::from(depth.outbound);
        if depth.inbound > options.inbound_max || outbound > DEPTH_MAX {
            return Err(nonsense("a number of reads"));
        }
        if receives > options.limits.receives {
            return Err(nonsense("a number of receives"));
        }
        let mut this = Self::running(options, now, tags).map_err(|_| nonsense("an option"))?;
        this.crc = crc;
        this.depth = depth;
        this.receives = receives;
        this.rx.number_from(received);
        this.tx.go_on(sent);
        Ok(this)
    }
}
