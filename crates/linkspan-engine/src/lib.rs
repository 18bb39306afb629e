//! Runs protocol cores and queues: session runner, workers, endpoints, counters.
#![forbid(unsafe_code)]
