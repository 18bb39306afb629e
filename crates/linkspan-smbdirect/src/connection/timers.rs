//! What is due when (MS-SMBD 3.1.2).

use super::{Connection, KeepAlive};
use crate::error::Error;

/// How long nothing is tried again that the provider refused, in milliseconds.
const RETRY_MS: u64 = 100;

/// When something is due, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timers {
    /// The transport is to be connected, or the negotiation over.
    pub(super) connect: Option<u64>,
    pub(super) negotiate: Option<u64>,
    pub(super) idle: Option<u64>,
    /// What was refused is tried again.
    pub(super) retry: Option<u64>,
}

impl Connection {
    pub(super) fn idle_from(&mut self, now_ms: u64, ms: u32) {
        self.timers.idle = Some(now_ms.saturating_add(u64::from(ms)));
    }

    pub(super) fn retry(&mut self, now_ms: u64) {
        self.timers.retry = Some(now_ms.saturating_add(RETRY_MS));
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        let Timers {
            connect,
            negotiate,
            idle,
            retry,
        } = self.timers;
        [connect, negotiate, idle, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// It is `now_ms`; does what is due by then, if anything is.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        let due = |timer: Option<u64>| timer.is_some_and(|at| at <= now_ms);
        if due(self.timers.connect) {
            let ms = u64::from(self.options.connect_timeout_ms);
            self.fail(Error::ConnectTimer { ms });
        }
        if due(self.timers.negotiate) {
            let ms = u64::from(self.options.negotiate_timeout_ms);
            self.fail(Error::NegotiationTimer { ms });
        }
        if due(self.timers.retry) {
            self.timers.retry = None;
        }
        if due(self.timers.idle) {
            self.idle(now_ms);
        }
    }

    /// The peer was silent (MS-SMBD 3.1.6.2).
    fn idle(&mut self, now_ms: u64) {
        // A peer without a credit cannot speak, and has none since nobody here reads. One
        // that has not granted what a message of ours needs was silent by its own will.
        let mute = self.credits.posted() == 0 && self.room() == 0 && self.outbox.len() == 0;
        if mute {
            self.idle_from(now_ms, self.options.keepalive_interval_ms);
        } else if self.keepalive == KeepAlive::None {
            self.keepalive = KeepAlive::Pending;
            self.immediate = true;
            self.idle_from(now_ms, self.options.keepalive_wait_ms);
        } else {
            self.fail(Error::KeepAlive {
                idle_ms: u64::from(self.options.keepalive_interval_ms),
                wait_ms: u64::from(self.options.keepalive_wait_ms),
            });
        }
    }
}
