//! Limits on how much a device does in a time: token buckets that all its queues
//! share.
//!
//! A bucket counts what was taken, ever, and compares it with what has come in,
//! which follows from the time alone. So nothing is lost to rounding, one atomic
//! word is all its state, and nobody waits for anybody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much may be taken in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come in `per`. Not zero.
    pub tokens: u64,
    /// Not zero.
    pub per: Duration,
    /// The most tokens that are there after a pause. Not zero.
    pub burst: u64,
}

impl Rate {
    /// So many tokens a second. After a pause there is what comes in a tenth of
    /// a second, unless `burst` says otherwise: enough that requests which come
    /// in batches are not taken one at a time.
    pub fn per_second(tokens: u64, burst: Option<u64>) -> Self {
        Self {
            tokens,
            per: Duration::from_secs(1),
            burst: burst.unwrap_or(tokens / 10).max(1),
        }
    }
}

/// A token bucket. Time is an input: what passed since some moment that is the
/// same for all calls.
///
/// Whoever finds one token may take as many as it needs: more than there are is a
/// debt, and the next waits until it is paid. So a request of any size passes.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Tokens taken, or come in while the bucket was full.
    gone: AtomicU64,
}

impl Bucket {
    /// A full bucket.
    ///
    /// # Panics
    /// When a number of `rate` is zero.
    pub fn new(rate: Rate) -> Self {
        assert!(
            rate.tokens > 0 && !rate.per.is_zero() && rate.burst > 0,
            "a rate of nothing: {rate:?}"
        );
        Self {
            rate,
            gone: AtomicU64::new(0),
        }
    }

    /// When there is a token: `now` or before, or later.
    #[inline]
    pub fn ready(&self, now: Duration) -> Duration {
        let gone = self.gone.load(Ordering::Relaxed);
        let ever = self.come(now).saturating_add(self.rate.burst);
        // What cannot be counted any more is no limit.
        if gone < ever || ever == u64::MAX {
            return now;
        }
        self.time_of(gone - self.rate.burst + 1)
    }

    /// Takes tokens, whether they are there or not.
    #[inline]
    pub fn take(&self, tokens: u64, now: Duration) {
        let come = self.come(now);
        let _ = self
            .gone
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |gone| {
                Some(gone.max(come).saturating_add(tokens))
            });
    }

    /// Tokens that came in until `now`, beside those that were there at first.
    #[inline]
    fn come(&self, now: Duration) -> u64 {
        let parts = now.as_nanos().saturating_mul(u128::from(self.rate.tokens));
        let come = parts / self.rate.per.as_nanos();
        u64::try_from(come).unwrap_or(u64::MAX)
    }

    /// When so many tokens will have come in.
    #[cold]
    fn time_of(&self, tokens: u64) -> Duration {
        let per = self.rate.per.as_nanos();
        let parts = u128::from(tokens).saturating_mul(per);
        let nanos = parts.div_ceil(u128::from(self.rate.tokens));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What the queues of a device may do together: operations, or packets, and bytes.
#[derive(Debug)]
pub struct RateLimit {
    start: Instant,
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl RateLimit {
    /// The limits that are given; time begins at `start`. `None` when there are none.
    pub fn new(start: Instant, operations: Option<Rate>, bytes: Option<Rate>) -> Option<Self> {
        if operations.is_none() && bytes.is_none() {
            return None;
        }
        Some(Self {
            start,
            operations: operations.map(Bucket::new),
            bytes: bytes.map(Bucket::new),
        })
    }

    /// Whether the next operation may begin at `now`; if not, when to ask again.
    ///
    /// # Errors
    /// That moment.
    #[inline]
    pub fn admit(&self, now: Instant) -> Result<(), Instant> {
        let at = now.saturating_duration_since(self.start);
        let ready = [&self.operations, &self.bytes]
            .into_iter()
            .flatten()
            .fold(at, |ready, bucket| ready.max(bucket.ready(at)));
        if ready <= at {
            return Ok(());
        }
        // A moment beyond the clock's end is one that nobody sees.
        let never = now + Duration::from_secs(1 << 30);
        Err(self.start.checked_add(ready).unwrap_or(never))
    }

    /// An operation of so many bytes began at `now`.
    #[inline]
    pub fn charge(&self, bytes: u64, now: Instant) {
        let at = now.saturating_duration_since(self.start);
        if let Some(bucket) = &self.operations {
            bucket.take(1, at);
        }
        if let Some(bucket) = &self.bytes {
            bucket.take(bytes, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The bucket as one would draw it: a level that rises with time, in parts of a
    /// token so small that nothing is rounded.
    struct Naive {
        rate: Rate,
        level: i128,
        last: Duration,
    }

    impl Naive {
        fn new(rate: Rate) -> Self {
            let part = i128::try_from(rate.per.as_nanos()).unwrap();
            let level = i128::from(rate.burst) * part;
            Self {
                rate,
                level,
                last: Duration::ZERO,
            }
        }

        fn part(&self) -> i128 {
            i128::try_from(self.rate.per.as_nanos()).unwrap()
        }

        fn at(&mut self, now: Duration) -> i128 {
            let passed = i128::try_from((now - self.last).as_nanos()).unwrap();
            self.last = now;
            let full = i128::from(self.rate.burst) * self.part();
            self.level = (self.level + passed * i128::from(self.rate.tokens)).min(full);
            self.level
        }
    }

    fn rates() -> impl Strategy<Value = Rate> {
        let tokens = prop_oneof![1..50u64, 1..5_000_000_000u64];
        let burst = prop_oneof![1..50u64, 1..5_000_000_000u64];
        let per = prop_oneof![1..3000u64, Just(1_000_000_000)];
        (tokens, per, burst).prop_map(|(tokens, nanos, burst)| Rate {
            tokens,
            per: Duration::from_nanos(nanos),
            burst,
        })
    }

    proptest! {
        /// It is the naive bucket to within a token: it knows whole ones only.
        #[test]
        fn it_is_the_naive_bucket(
            rate in rates(),
            steps in prop::collection::vec((0..3_000_000_000u64, 1..100u64, any::<bool>()), 1..100),
        ) {
            let (bucket, mut naive) = (Bucket::new(rate), Naive::new(rate));
            let mut now = Duration::ZERO;
            for (pause, tokens, wait) in steps {
                now += Duration::from_nanos(pause);
                let ready = bucket.ready(now);
                if wait {
                    // It says the first moment at which there is one.
                    now = ready;
                    prop_assert_eq!(bucket.ready(now), now);
                } else if ready > now {
                    prop_assert!(naive.at(now) < 2 * naive.part());
                    continue;
                }
                prop_assert!(naive.at(now) >= 0);
                bucket.take(tokens, now);
                naive.at(now);
                naive.level -= i128::from(tokens) * naive.part();
            }
        }

        /// What is let through in any time is what comes in it, and no more than
        /// the burst and one request besides.
        #[test]
        fn it_is_exact_over_time(rate in rates(), sizes in prop::collection::vec(1..1000u64, 1..300)) {
            // What comes in the least time that is told apart has to fit.
            let least = rate.tokens / u64::try_from(rate.per.as_nanos()).unwrap() + 1;
            let rate = Rate { burst: rate.burst.max(least), ..rate };
            let bucket = Bucket::new(rate);
            let (mut now, mut total, mut waited) = (Duration::ZERO, 0u128, false);
            for size in &sizes {
                let ready = bucket.ready(now);
                waited = ready > now;
                now = ready;
                bucket.take(*size, now);
                total += u128::from(*size);
            }
            // Asked as soon as it says, no time is lost: all but the last request
            // used up exactly what had come in until then.
            let come = now.as_nanos() * u128::from(rate.tokens) / rate.per.as_nanos();
            let before = total - u128::from(*sizes.last().unwrap());
            prop_assert!(before < come + u128::from(rate.burst));
            if waited {
                let earlier = now - Duration::from_nanos(1);
                let come = earlier.as_nanos() * u128::from(rate.tokens) / rate.per.as_nanos();
                prop_assert!(before >= come + u128::from(rate.burst));
            }
        }
    }

    #[test]
    fn thousand_a_second_is_a_thousand_a_second() {
        let bucket = Bucket::new(Rate::per_second(1000, Some(1)));
        let mut now = Duration::ZERO;
        for _ in 0..=10_000 {
            now = bucket.ready(now);
            bucket.take(1, now);
        }
        assert_eq!(now, 10 * SECOND);
    }

    #[test]
    fn request_larger_than_the_burst_passes_and_is_paid_for() {
        let bucket = Bucket::new(Rate::per_second(1000, Some(10)));
        assert_eq!(bucket.ready(Duration::ZERO), Duration::ZERO);
        bucket.take(5000, Duration::ZERO);
        // 4990 are owed, and one has to be there.
        assert_eq!(bucket.ready(SECOND), Duration::from_millis(4991));
    }

    #[test]
    fn pause_saves_up_the_burst_and_no_more() {
        let bucket = Bucket::new(Rate::per_second(1000, None));
        let later = 3600 * SECOND;
        let mut count = 0;
        while bucket.ready(later) == later {
            bucket.take(1, later);
            count += 1;
        }
        assert_eq!(count, 100);
    }

    #[test]
    fn numbers_beyond_all_bounds_let_through() {
        let bucket = Bucket::new(Rate::per_second(u64::MAX, Some(u64::MAX)));
        let end = Duration::from_secs(u64::MAX);
        for now in [Duration::ZERO, SECOND, end] {
            assert_eq!(bucket.ready(now), now);
            bucket.take(u64::MAX / 2, now);
        }
        let slow = Bucket::new(Rate {
            tokens: 1,
            per: end,
            burst: 1,
        });
        slow.take(u64::MAX, Duration::ZERO);
        assert!(slow.ready(SECOND) > 1000 * SECOND);
    }

    #[test]
    fn queues_that_take_at_once_lose_nothing() {
        let bucket = Bucket::new(Rate::per_second(1, Some(400_000)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100_000).for_each(|_| bucket.take(1, Duration::ZERO)));
            }
        });
        assert_eq!(bucket.ready(Duration::ZERO), SECOND);
    }

    #[test]
    fn both_limits_hold_and_the_later_one_says_when() {
        let start = Instant::now();
        let limit = RateLimit::new(
            start,
            Some(Rate::per_second(10, Some(2))),
            Some(Rate::per_second(1000, Some(1000))),
        );
        let limit = limit.unwrap();
        assert_eq!(limit.admit(start), Ok(()));
        limit.charge(0, start);
        assert_eq!(limit.admit(start), Ok(()));
        limit.charge(0, start);
        assert_eq!(limit.admit(start), Err(start + SECOND / 10));
        let now = start + SECOND;
        assert_eq!(limit.admit(now), Ok(()));
        limit.charge(3000, now);
        assert_eq!(limit.admit(now), Err(now + Duration::from_millis(2001)));
        assert!(RateLimit::new(start, None, None).is_none());
    }
}
