//! Runs protocol cores and queues: session runner, workers, endpoints, counters.
//!
//! Knows no device and no protocol beyond the adapters that tie a core to its
//! resources. Threads live here and nowhere below.
#![forbid(unsafe_code)]

mod config_space;
mod connecting;
mod counters;
mod device;
mod dirty;
mod driver;
mod endpoint;
mod histogram;
mod in_process;
mod inflight;
mod limit;
mod link;
mod messages;
mod place;
mod queues;
mod rate;
mod rings;
mod serving;
pub mod session;
mod shared;
mod spin;
pub mod vdpa;
pub mod vduse;
pub mod vfio_user;
pub mod vhost_user;
pub mod vmbus;
mod worker;

pub use counters::{Counter, QueueCounters, WorkerCounters};
pub use device::{
    ActiveRing, BLOCK_DEVICE, Budget, ConfigRange, Device, GPU_DEVICE, NETWORK_DEVICE, NotLent,
    OpenQueueError, Progress, QueueHandler,
};
pub use dirty::{LoggedArea, RingLog};
pub use driver::{
    DriverMemory, LinkEnded, QueueEvents, QueueHandle, QueueLink, Resumed, RingPlace, queue_link,
};
pub use endpoint::{Endpoint, Phase, RingView, View};
pub use histogram::{Histogram, Latency};
pub use in_process::InProcess;
pub use inflight::InflightAreaError;
pub use limit::LogLimit;
pub use messages::{Messages, Passed, Sights};
pub use place::PlaceError;
pub use rate::{Bucket, Rate, RateLimit};
pub use rings::StartRingError;
pub use serving::{Server, StopError};
pub use shared::Shared;
pub use spin::Spin;
pub use worker::{
    EventSink, Neighbours, Notify, Ring, RingEvent, RingFault, RingKey, Task, WorkerOptions,
    Workers,
};
