//! What is due when (MS-SMBD 3.1.2).

use super::{Connection, KeepAlive};
use crate::error::Error;

/// How long nothing is tried again that the provider refused, in milliseconds.
const RETRY_MS: u64 = 100;

/// How long a message may take from its first segment to its last while nobody reads of it,
/// in milliseconds: until then it keeps buffers from others.
const MESSAGE_MS: u64 = 120_000;

/// When something is due, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timers {
    /// The transport is to be connected, or the negotiation over.
    pub(super) connect: Option<u64>,
    pub(super) negotiate: Option<u64>,
    pub(super) idle: Option<u64>,
    /// The message that is arriving is to be whole.
    pub(super) message: Option<u64>,
    /// A message without data that was refused is tried again.
    pub(super) retry: Option<u64>,
    /// Receives that were refused are asked for again.
    pub(super) supply: Option<u64>,
}

impl Connection {
    pub(super) fn idle_from(&mut self, now_ms: u64, ms: u32) {
        self.timers.idle = Some(now_ms.saturating_add(u64::from(ms)));
    }

    pub(super) fn retry(&mut self, now_ms: u64) {
        self.timers.retry = Some(now_ms.saturating_add(RETRY_MS));
    }

    pub(super) fn retry_receives(&mut self, now_ms: u64) {
        self.timers.supply = Some(now_ms.saturating_add(RETRY_MS));
    }

    /// A segment arrived: the first of a message, another one, or the last.
    pub(super) fn message_from(&mut self, now_ms: u64) {
        let due = now_ms.saturating_add(MESSAGE_MS);
        let arriving = self.inbox.missing() > 0;
        self.timers.message = arriving.then(|| self.timers.message.unwrap_or(due));
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn next_timeout(&self) -> Option<u64> {
        let Timers {
            connect,
            negotiate,
            idle,
            message,
            retry,
            supply,
        } = self.timers;
        [connect, negotiate, idle, message, retry, supply]
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
        if due(self.timers.supply) {
            self.timers.supply = None;
            // No second one comes: a peer that has none goes on with what there is.
            self.immediate |= self.credits.outstanding == 0 && self.credits.available > 0;
        }
        if due(self.timers.idle) {
            self.idle(now_ms);
        }
        if self.timers.message.is_some_and(|at| at <= now_ms) {
            self.unfinished(now_ms);
        }
    }

    /// A peer without a credit cannot speak, and has none since nobody here reads. One that
    /// has not granted what a message of ours needs is silent by its own will.
    fn is_peer_mute(&self) -> bool {
        self.credits.is_peer_without(self.room()) && self.outbox.len() == 0
    }

    /// A message is not whole in time.
    fn unfinished(&mut self, now_ms: u64) {
        // What is read while it arrives keeps nothing, and takes the time of its reader.
        if self.keepalive != KeepAlive::None {
            // Whether it is there at all is found out first.
            self.timers.message = self.timers.idle;
        } else if self.is_peer_mute() || self.inbox.is_being_read() {
            self.timers.message = Some(now_ms.saturating_add(MESSAGE_MS));
        } else {
            self.fail(Error::Unfinished {
                missing: self.inbox.missing(),
                ms: MESSAGE_MS,
            });
        }
    }

    /// The peer was silent (MS-SMBD 3.1.6.2).
    fn idle(&mut self, now_ms: u64) {
        if self.is_peer_mute() {
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
