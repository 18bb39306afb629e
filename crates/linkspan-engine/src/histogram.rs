//! How long things take, counted without a lock.

use std::time::Duration;

use crate::counters::Counter;

/// Buckets of each power of two: a figure is at most a sixteenth too high.
const STEPS: u32 = 16;

/// Powers of two, in nanoseconds: the last bucket is for all beyond half an hour.
const POWERS: u32 = 37;

const BUCKETS: usize = ((POWERS + 1) * STEPS) as usize;

/// A log-linear histogram of durations. Its writer is one thread, so a figure costs two loads
/// and two stores for each count.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Counter]>,
    count: Counter,
    sum: Counter,
    longest: Counter,
}

/// What a histogram, or several, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many things were timed.
    pub count: u64,
    /// Nanoseconds of all.
    pub sum: u64,
    /// Half of them took no longer, in nanoseconds.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// 999 of 1000 took no longer.
    pub p999: u64,
    /// The one that took longest.
    pub longest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Counter::default()).collect(),
            count: Counter::default(),
            sum: Counter::default(),
            longest: Counter::default(),
        }
    }
}

impl Histogram {
    /// Something took so long. Call only from the thread that owns it.
    #[inline]
    pub fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)].add(1);
        self.count.add(1);
        self.sum.add(nanoseconds);
        if nanoseconds > self.longest.value() {
            self.longest.set(nanoseconds);
        }
    }

    /// What it says.
    pub fn latency(&self) -> Latency {
        Self::of([self])
    }

    /// What several say together.
    pub fn of<'a>(all: impl IntoIterator<Item = &'a Self>) -> Latency {
        let mut buckets = [0_u64; BUCKETS];
        let mut latency = Latency::default();
        for one in all {
            for (sum, bucket) in buckets.iter_mut().zip(&one.buckets) {
                *sum += bucket.value();
            }
            latency.sum = latency.sum.wrapping_add(one.sum.value());
            latency.longest = latency.longest.max(one.longest.value());
        }
        // The owners go on: the buckets are what is counted.
        latency.count = buckets.iter().sum();
        let within = |parts: u64, of: u64| {
            let rank = latency.count.saturating_mul(parts).div_ceil(of).max(1);
            let mut seen = 0;
            let found = buckets.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            found.map_or(0, |at| end(at).min(latency.longest))
        };
        latency.p50 = within(50, 100);
        latency.p99 = within(99, 100);
        latency.p999 = within(999, 1000);
        latency
    }
}

/// Which bucket a duration belongs to.
#[inline]
fn bucket(nanoseconds: u64) -> usize {
    let at = if nanoseconds < u64::from(STEPS) {
        nanoseconds
    } else {
        let power = nanoseconds.ilog2();
        let step = nanoseconds >> (power - STEPS.ilog2()) & u64::from(STEPS - 1);
        u64::from((power - STEPS.ilog2() + 1) * STEPS) + step
    };
    usize::try_from(at).map_or(BUCKETS - 1, |at| at.min(BUCKETS - 1))
}

/// The longest duration of a bucket.
fn end(bucket: usize) -> u64 {
    let (power, step) = (
        bucket as u64 / u64::from(STEPS),
        bucket as u64 % u64::from(STEPS),
    );
    match power {
        0 => step,
        _ => ((u64::from(STEPS) + step + 1) << (power - 1)) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_a_row_and_narrow() {
        let mut before = 0;
        for at in 0..BUCKETS - 1 {
            let end = end(at);
            assert_eq!((bucket(end), bucket(end + 1)), (at, at + 1), "{end}");
            assert!(end - before <= 1.max(before / u64::from(STEPS) + 1));
            before = end;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let (one, other) = (Histogram::default(), Histogram::default());
        assert_eq!(one.latency(), Latency::default());
        for micros in 1..=1000 {
            let histogram = if micros % 2 == 0 { &one } else { &other };
            histogram.record(Duration::from_micros(micros));
        }
        let latency = Histogram::of([&one, &other]);
        assert_eq!((latency.count, latency.longest), (1000, 1_000_000));
        assert_eq!(latency.sum, 500_500_000);
        for (got, exact) in [
            (latency.p50, 500_000),
            (latency.p99, 990_000),
            (latency.p999, 999_000),
        ] {
            assert!((exact..=exact + exact / 16).contains(&got), "{latency:?}");
        }
        one.record(Duration::from_secs(1 << 20));
        assert_eq!(one.latency().longest, 1_000_000_000 << 20);
    }
}
