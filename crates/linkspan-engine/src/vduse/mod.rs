//! VDUSE as a transport: a device that the kernel takes for a vDPA device, with
//! drivers in the kernel (`virtio_vdpa`) or behind `/dev/vhost-vdpa-N`.

mod error;
mod iova;
mod open;
mod record;
mod server;
mod session;

pub use error::{OpenError, Reason};
pub use iova::MapError;
pub use open::Options;
pub use record::RecordError;
pub use server::{Event, serve};
