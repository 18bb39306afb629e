//! Drivers and back ends that others wrote, for tests: the other side
//! of Linkspan's two ends of vhost-user is then code that cannot share our
//! mistakes. Versions and findings are in docs/peers.md.
//!
//! Everything here fails by panicking with what was expected, and no wait is
//! longer than [`PATIENCE`](linkspan_testkit::PATIENCE).
#![forbid(unsafe_code)]

pub mod blkio_driver;
pub mod driver;
pub mod packed_bases;
pub mod rust_vmm_back_end;
pub mod rust_vmm_driver;
pub mod smb_client;
pub mod storage_daemon;
pub mod testpmd;
pub mod vfio_user_driver;
pub mod virtio_driver_driver;

pub use blkio_driver::Blkio;
pub use driver::{CHUNK, DEPTH, Driver};
pub use packed_bases::PackedBases;
pub use rust_vmm_back_end::{Manner, RustVmmBackEnd};
pub use rust_vmm_driver::RustVmm;
pub use smb_client::SmbClient;
pub use storage_daemon::StorageDaemon;
pub use testpmd::Testpmd;
pub use vfio_user_driver::VfioUserDisk;
pub use virtio_driver_driver::{SharedBytes, VirtioDriver};
