//! Runs protocol cores and queues: session runner, workers, endpoints, counters.
//!
//! Knows no device and no protocol beyond the adapters that tie a core to its
//! resources. Threads live here and nowhere below.
#![forbid(unsafe_code)]

mod counters;
mod device;
mod dirty;
mod driver;
mod endpoint;
mod in_process;
mod limit;
mod rate;
pub mod session;
pub mod vhost_user;
pub mod vmbus;
mod worker;

pub use counters::{Counter, QueueCounters, WorkerCounters};
pub use device::{ActiveRing, Budget, ConfigRange, Device, OpenQueueError, Progress, QueueHandler};
pub use dirty::RingLog;
pub use driver::{
    DriverMemory, LinkEnded, QueueEvents, QueueHandle, QueueLink, Resumed, RingPlace, queue_link,
};
pub use endpoint::{Endpoint, Phase};
pub use in_process::InProcess;
pub use limit::LogLimit;
pub use rate::{Bucket, Rate, RateLimit};
pub use worker::{
    EventSink, Neighbours, Ring, RingEvent, RingFault, RingKey, Task, WorkerOptions, Workers,
};
