//! Whether a worker that has nothing to do looks for work before it sleeps.
//!
//! Looking finds work sooner than a wake-up brings it, and saves the driver its
//! kick. It is worth while only if work comes soon, so a worker keeps a balance of
//! the gaps between one piece of work and the next: short ones, which looking
//! bridges, against long ones, in which it is in vain.

use std::time::Duration;

/// What a long gap takes from the balance; a short one adds one. So a worker
/// looks if about four of five gaps were short of late.
const LONG: i32 = 4;

/// The most that short gaps save up: what is looked in vain when work ends is
/// this over [`LONG`] times the limit.
const MOST: i32 = 8;

/// A gap that was long although the worker slept says only this much.
const LEAST_ASLEEP: i32 = -MOST;

/// The least that looking in vain, again and again, brings the balance to.
const LEAST: i32 = -256;

/// The balance. Time is an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spin {
    limit: Duration,
    balance: i32,
    /// Long gaps that were spent looking since one was short enough.
    in_vain: u32,
}

impl Spin {
    /// Looks for at most `limit` at a time; zero: never.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            balance: 0,
            in_vain: 0,
        }
    }

    /// How long to look for work from when there is none until to sleep.
    #[inline]
    pub(crate) fn window(&self) -> Duration {
        if self.balance > 0 {
            self.limit
        } else {
            Duration::ZERO
        }
    }

    /// Work came `gap` after there was none; until then the worker looked for
    /// [`window`](Self::window) and slept for the rest.
    #[inline]
    pub(crate) fn came_after(&mut self, gap: Duration) {
        let looked = self.balance > 0;
        if gap < self.limit {
            self.balance = (self.balance + 1).min(MOST);
            if looked {
                self.in_vain = 0;
            }
        } else if looked {
            // Looking may be the very reason: it takes the processor from the
            // driver. Then all is short as soon as one sleeps, and each attempt
            // has to cost more than the last.
            self.balance = (self.balance - (LONG << self.in_vain)).max(LEAST);
            self.in_vain = (self.in_vain + 1).min(6);
        } else {
            self.balance = (self.balance - LONG).max(LEAST_ASLEEP.min(self.balance));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(10);
    const LONG_GAP: Duration = Duration::from_millis(1);

    /// Time that was spent looking, and gaps that looking bridged.
    fn play(spin: &mut Spin, gaps: impl IntoIterator<Item = Duration>) -> (Duration, u32) {
        let (mut looked, mut bridged) = (Duration::ZERO, 0);
        for gap in gaps {
            let window = spin.window();
            looked += window.min(gap);
            bridged += u32::from(gap < window);
            spin.came_after(gap);
        }
        (looked, bridged)
    }

    #[test]
    fn steady_work_is_looked_for_from_the_second_gap_on() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(spin.window(), Duration::ZERO);
        assert_eq!(play(&mut spin, [SHORT; 100]).1, 99);
    }

    #[test]
    fn rare_work_is_never_looked_for() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(play(&mut spin, [LONG_GAP; 100]), (Duration::ZERO, 0));
        // After a pause of any length steady work is seen for what it is.
        assert!(play(&mut spin, [SHORT; 100]).1 >= 90);
    }

    #[test]
    fn end_of_work_costs_two_looks() {
        let mut spin = Spin::new(LIMIT);
        play(&mut spin, [SHORT; 100]);
        assert!(play(&mut spin, [LONG_GAP; 100]).0 <= 2 * LIMIT);
        assert_eq!(spin.window(), Duration::ZERO);
    }

    #[test]
    fn some_long_gaps_among_short_ones_change_nothing() {
        let mut spin = Spin::new(LIMIT);
        let gaps = (0..1000).map(|i| if i % 20 == 0 { LONG_GAP } else { SHORT });
        assert!(play(&mut spin, gaps).1 >= 940);
    }

    #[test]
    fn pairs_of_requests_now_and_then_are_not_worth_it() {
        let mut spin = Spin::new(LIMIT);
        let gaps = (0..1000).map(|i| if i % 2 == 0 { SHORT } else { LONG_GAP });
        assert!(play(&mut spin, gaps).0 <= 2 * LIMIT);
    }

    /// Driver and worker share a processor: as long as one looks, nothing comes.
    #[test]
    fn looking_that_keeps_work_from_coming_ends() {
        let mut spin = Spin::new(LIMIT);
        let mut in_vain = 0;
        for _ in 0..10_000 {
            let window = spin.window();
            in_vain += u32::from(!window.is_zero());
            spin.came_after(window + SHORT);
        }
        assert!(in_vain <= 10_000 / 200 + 8, "{in_vain}");
    }

    #[test]
    fn limit_of_zero_never_looks() {
        let mut spin = Spin::new(Duration::ZERO);
        let gaps = [Duration::ZERO, SHORT, LONG_GAP].into_iter().cycle();
        assert_eq!(play(&mut spin, gaps.take(1000)), (Duration::ZERO, 0));
    }

    proptest! {
        /// What is looked in vain is bounded by what was bridged, whatever comes.
        #[test]
        fn waste_is_bounded_by_use(gaps in prop::collection::vec(0u64..200, 0..500)) {
            let mut spin = Spin::new(LIMIT);
            let (mut wasted, mut short) = (0, 0);
            for gap in gaps.into_iter().map(Duration::from_micros) {
                let looked = !spin.window().is_zero();
                prop_assert!(spin.window() <= LIMIT);
                wasted += i32::from(looked && gap >= LIMIT);
                short += i32::from(gap < LIMIT);
                spin.came_after(gap);
                prop_assert!(wasted * LONG <= short + LONG);
                prop_assert!((LEAST..=MOST).contains(&spin.balance));
            }
        }
    }
}
