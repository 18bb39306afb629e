//! Figures that every bench has: latencies and processor time.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::exit::{Failure, Status};

/// Latencies in microseconds.
#[derive(Serialize)]
pub(crate) struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Latency {
    /// Of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let at = |quantile| microseconds(histogram.value_at_quantile(quantile));
        Self {
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: microseconds(histogram.max()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "latency in microseconds: mean {:.1}, 50% {:.1}, 99% {:.1}, 99.9% {:.1}, max {:.1}",
            self.mean, self.p50, self.p99, self.p999, self.max
        )
    }
}

/// Nanoseconds up to a minute, to three digits.
pub(crate) fn new_histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3).context("a histogram")?)
}

/// Processor time of this process so far.
pub(crate) fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).map_or(0.0, |time| time.as_secs_f64())
}

/// Whether a bench can last so long.
pub(crate) fn check_seconds(seconds: f64) -> Result<(), Failure> {
    if seconds.is_nan() || seconds <= 0.0 || seconds > 1e6 {
        let error = anyhow!("--seconds {seconds}: how long?");
        return Err(Failure::new(Status::Usage, error));
    }
    Ok(())
}
