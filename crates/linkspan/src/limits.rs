//! Limits on what a disk does in a second.

use std::time::Instant;

use linkspan_engine::{Rate, RateLimit};

use crate::driver::bytes;

/// Options of the limits of a disk, which hold for all its queues together.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests a second, of any kind
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iops: Option<u64>,

    /// Requests that may come at once after a pause [default: those of a tenth of a
    /// second]. Fewer than come in a millisecond or two hold the rate down
    #[arg(long, value_name = "N", requires = "iops", value_parser = clap::value_parser!(u64).range(1..))]
    iops_burst: Option<u64>,

    /// Bytes read and written in a second, such as 100M
    #[arg(long, value_name = "BYTES", value_parser = some_bytes)]
    bytes_per_second: Option<u64>,

    /// Bytes that may come at once after a pause [default: those of a tenth of a
    /// second]. A larger request passes all the same, and those after it wait longer
    #[arg(long, value_name = "BYTES", requires = "bytes_per_second", value_parser = some_bytes)]
    bytes_burst: Option<u64>,
}

fn some_bytes(text: &str) -> Result<u64, String> {
    match bytes(text).map_err(|error| error.to_string())? {
        0 => Err("at least 1".into()),
        number => Ok(number),
    }
}

impl LimitArgs {
    /// The limits from now on, if there are any.
    pub fn limit(&self) -> Option<RateLimit> {
        let iops = self.iops;
        let bytes = self.bytes_per_second;
        RateLimit::new(
            Instant::now(),
            iops.map(|iops| Rate::per_second(iops, self.iops_burst)),
            bytes.map(|bytes| Rate::per_second(bytes, self.bytes_burst)),
        )
    }
}
