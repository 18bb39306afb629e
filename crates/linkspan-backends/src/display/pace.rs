//! How often a screen is looked at.

use std::time::{Duration, Instant};

/// From one look to the next while there is something to see: 60 a second.
const LOOK: Duration = Duration::from_micros(16_600);
/// The same when nothing has changed for a while.
const REST: Duration = Duration::from_millis(250);
/// For how long.
const CALM_AFTER: Duration = Duration::from_secs(2);

/// When the next look is due. A source that says when something has changed is looked at
/// then, and not more often than others; others are asked, less often when they are calm.
#[derive(Debug)]
pub(super) struct Pace {
    tells: bool,
    looked: Instant,
    changed: Instant,
    told: bool,
}

impl Pace {
    /// The first look is due now.
    pub(super) fn new(tells: bool, now: Instant) -> Self {
        Self {
            tells,
            looked: now.checked_sub(LOOK).unwrap_or(now),
            changed: now,
            told: true,
        }
    }

    /// The source says that something has changed.
    pub(super) fn tell(&mut self) {
        self.told = true;
    }

    /// Whether a change was told that was not looked at.
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// The source was looked at.
    pub(super) fn looked(&mut self, now: Instant, changed: bool) {
        self.looked = now;
        self.told = false;
        if changed {
            self.changed = now;
        }
    }

    /// When the next look is due; `None`: when the source says so.
    pub(super) fn due(&self) -> Option<Instant> {
        let pause = match (self.tells, self.told) {
            (true, false) => return None,
            (true, true) => LOOK,
            (false, _) if self.looked.duration_since(self.changed) > CALM_AFTER => REST,
            (false, _) => LOOK,
        };
        Some(self.looked + pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_tells_is_not_asked() {
        let start = Instant::now();
        let mut pace = Pace::new(true, start);
        assert!(pace.due().is_some_and(|due| due <= start));
        pace.looked(start, true);
        assert_eq!(pace.due(), None);
        pace.tell();
        assert_eq!(pace.due(), Some(start + LOOK));
    }

    #[test]
    fn who_is_calm_is_asked_seldom() {
        let start = Instant::now();
        let mut pace = Pace::new(false, start);
        pace.looked(start, true);
        assert_eq!(pace.due(), Some(start + LOOK));
        let later = start + Duration::from_secs(3);
        pace.looked(later, false);
        assert_eq!(pace.due(), Some(later + REST));
        pace.looked(later, true);
        assert_eq!(pace.due(), Some(later + LOOK));
    }
}
