//! Logs that a peer can cause are limited, and what was left out is counted.

use std::time::{Duration, Instant};

/// How often a peer may cause one kind of log line.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one log line through in a second.
#[derive(Debug, Default)]
pub struct LogLimit {
    last: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// Whether to log now; if so, how many lines were left out since the last one.
    pub fn allow(&mut self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.duration_since(last) < INTERVAL)
        {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
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
}
