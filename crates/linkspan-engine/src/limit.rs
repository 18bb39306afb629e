//! Logs that a peer can cause are limited, and what was left out is counted.

use std::time::{Duration, Instant};

/// How often a peer may cause one kind of log line.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one log line through in a second, or some at once and then one in a second.
#[derive(Debug)]
pub struct LogLimit {
    /// The most at once.
    most: u32,
    /// Those that may come now.
    lines: u32,
    /// When there were more of them last.
    last: Option<Instant>,
    left_out: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::burst(1)
    }
}

impl LogLimit {
    /// Lets so many through at once.
    #[must_use]
    pub const fn burst(most: u32) -> Self {
        Self {
            most,
            lines: most,
            last: None,
            left_out: 0,
        }
    }

    /// Whether to log now; if so, how many lines were left out since the last one.
    pub fn allow(&mut self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> Option<u64> {
        let last = *self.last.get_or_insert(now);
        let more = now.duration_since(last).as_secs() / INTERVAL.as_secs();
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.lines = self.lines.saturating_add(more).min(self.most);
            self.last = Some(now);
        }
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

/// An error with its causes, as a log says it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_second_and_the_rest_counted() {
        let start = Instant::now();
        let mut limit = LogLimit::default();
        assert_eq!(limit.allow_at(start), Some(0));
        assert_eq!(limit.allow_at(start + INTERVAL / 2), None);
        assert_eq!(limit.allow_at(start + INTERVAL / 2), None);
        assert_eq!(limit.allow_at(start + INTERVAL), Some(2));
    }

    #[test]
    fn some_lines_at_once_and_one_in_each_second_after_them() {
        let start = Instant::now();
        let mut limit = LogLimit::burst(3);
        let mut allowed = |seconds: u32, tries: usize| {
            let now = start + INTERVAL * seconds;
            let tries = (0..tries).filter_map(|_| limit.allow_at(now));
            tries.collect::<Vec<_>>()
        };
        assert_eq!(allowed(0, 5), [0, 0, 0]);
        assert_eq!(allowed(1, 4), [2]);
        assert_eq!(allowed(2, 1), [3]);
        // No more than at first, however long nothing happened.
        assert_eq!(allowed(1000, 5), [0, 0, 0]);
    }
}
