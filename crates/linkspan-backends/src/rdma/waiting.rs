//! How a provider waits, and until when.

use std::io;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Interest, Ready};

use super::{LISTENER, Provider, REST};

/// For how long at most to look for something to do before sleeping.
pub(super) const LOOK: Duration = Duration::from_micros(50);

impl Provider {
    /// Looks for something to do for a while, as long as that pays, and then sleeps.
    pub(super) fn sleep(&mut self, ready: &mut Ready, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.calls += 1;
        if timeout == Some(Duration::ZERO) {
            return self.epoll.wait(ready, timeout);
        }
        let begin = Instant::now();
        let window = self.spin.window();
        while !window.is_zero() && begin.elapsed() < window.min(timeout.unwrap_or(window)) {
            self.epoll.wait(ready, Some(Duration::ZERO))?;
            if ready.iter().next().is_some() {
                self.spin.came_after(begin.elapsed());
                return Ok(());
            }
            self.shared.calls += 1;
        }
        let left = timeout.map(|timeout| timeout.saturating_sub(begin.elapsed()));
        self.epoll.wait(ready, left)?;
        self.spin.came_after(begin.elapsed());
        Ok(())
    }

    /// Until when to wait at most.
    pub(super) fn timeout(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.links.tells() {
            return Some(Duration::ZERO);
        }
        let mut timeout = timeout;
        let mut at_most = |left: Duration| {
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        };
        if let Some(due) = self.links.first_due() {
            let left = due.saturating_sub(self.begin.elapsed());
            // Rounded up, so that it is due when we wake up.
            at_most(left + Duration::from_millis(1));
        }
        if self.listener_rests.is_some() || !self.starved.is_empty() {
            at_most(REST);
        }
        timeout
    }

    /// What failed for want of memory or descriptors is tried again.
    pub(super) fn ask_again(&mut self) -> io::Result<()> {
        if self
            .listener_rests
            .is_some_and(|due| self.shared.now >= due)
        {
            self.listener_rests = None;
            if let Some(listener) = &self.listener {
                self.epoll.modify(listener, LISTENER, Interest::READ)?;
            }
        }
        if !self.starved.is_empty() {
            self.feed_starved();
        }
        Ok(())
    }
}
