//! A connection as bytes, and back, at a quiet point.

use linkspan_rdma::verbs::Depth;

use super::{Connection, KeepAlive, Phase, Role};
use crate::credits::Credits;
use crate::options::{Device, Options};
use crate::wire;
use alloc::vec::Vec;
use linkspan_mem::record::{Reader, RestoreError, Writer};
use thiserror::Error;

/// The state cannot be saved now: something is under way, or nothing is negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not quiet: {what}")]
pub struct NotQuiet {
    /// What is under way.
    pub what: &'static str,
}

const MAGIC: [u8; 8] = *b"LSsmbdc1";

impl Connection {
    /// The connection as bytes. It is quiet when it is connected, all outputs were
    /// taken, all works are done, all that arrived was read, nothing waits, and no memory is registered. What the
    /// transport has is saved by whoever has it.
    ///
    /// # Errors
    /// Something is under way.
    pub fn snapshot(&self, now_ms: u64) -> Result<Vec<u8>, NotQuiet> {
        let waits = self.outbox.len() + self.writes.len() + self.reads.len();
        let busy = [
            (self.phase != Phase::Ready, "nothing is negotiated"),
            (!self.tasks.is_empty() || self.news, "an output waits"),
            (self.credits.asked > 0, "receives are being posted"),
            (!self.flight.is_empty(), "work is under way"),
            (waits > 0, "something waits to be sent"),
            (self.immediate, "a message is due"),
            (self.inbox.messages() > 0, "a message is not read"),
            (!self.registrations.are_free(), "memory is registered"),
        ];
        if let Some((_, what)) = busy.into_iter().find(|(busy, _)| *busy) {
            return Err(NotQuiet { what });
        }
        let mut writer = Writer::new(MAGIC);
        writer.u8(u8::from(self.role == Role::Listener));
        let sizes = &self.sizes;
        for size in [
            sizes.send,
            sizes.receive,
            sizes.fragmented_send,
            sizes.read_write,
        ] {
            writer.u32(size);
        }
        let credits = &self.credits;
        for count in [
            self.depth.inbound,
            self.depth.outbound,
            credits.send,
            credits.peer_target,
            credits.available,
            credits.outstanding,
        ] {
            writer.u16(count);
        }
        writer.u8(u8::from(self.keepalive == KeepAlive::Sent));
        let idle = self.timers.idle.unwrap_or(now_ms);
        writer.u64(idle.saturating_sub(now_ms));
        Ok(writer.finish())
    }

    /// The connection that [`snapshot`](Self::snapshot) saved, with the same options and
    /// device.
    ///
    /// # Errors
    /// `bytes` are not that, or the options or the device are others.
    pub fn restore(
        options: &Options,
        device: &Device,
        now_ms: u64,
        bytes: &[u8],
    ) -> Result<Self, RestoreError> {
        let nonsense = |what| RestoreError::Nonsense { what };
        let mut reader = Reader::new("connection of SMB Direct", MAGIC, bytes)?;
        let role = match reader.u8()? {
            0 => Role::Initiator,
            1 => Role::Listener,
            _ => return Err(nonsense("a role")),
        };
        let mut this = Self::new(role, options, device, now_ms)
            .map_err(|_| nonsense("an option for this device"))?;
        this.tasks.clear();
        this.phase = Phase::Ready;
        let (most, sizes) = (this.sizes, &mut this.sizes);
        sizes.send = reader.u32()?;
        sizes.receive = reader.u32()?;
        sizes.fragmented_send = reader.u32()?;
        sizes.read_write = reader.u32()?;
        let least = wire::MAX_RECEIVE_SIZE_MIN;
        let fits = (least..=most.send).contains(&sizes.send)
            && (least..=most.receive.max(least)).contains(&sizes.receive)
            && sizes.fragmented_send >= wire::MAX_FRAGMENTED_SIZE_MIN
            && sizes.read_write <= most.read_write;
        if !fits {
            return Err(nonsense("a size"));
        }
        this.depth = Depth {
            inbound: reader.u16()?,
            outbound: reader.u16()?,
        };
        let credits = &mut this.credits;
        credits.send = reader.u16()?;
        credits.peer_target = reader.u16()?;
        credits.available = reader.u16()?;
        credits.outstanding = reader.u16()?;
        let most = Credits::capacity(this.options.receive_credit_max);
        let posted = credits.available.checked_add(credits.outstanding);
        if credits.peer_target == 0 || posted.is_none_or(|posted| posted > most) {
            return Err(nonsense("a number of credits"));
        }
        this.keepalive = match reader.u8()? {
            0 => KeepAlive::None,
            1 => KeepAlive::Sent,
            _ => return Err(nonsense("whether a sign of life is awaited")),
        };
        this.timers = super::Timers {
            idle: Some(now_ms.saturating_add(reader.u64()?)),
            ..super::Timers::default()
        };
        reader.end()?;
        Ok(this)
    }
}
