//! What the kernel knows of one device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use linkspan_engine::{RingEvent, RingKey};
use linkspan_mem::Region;
use linkspan_sys::vdpa::RingAddress;
use linkspan_sys::{EventFd, PeerEventFd};

/// A mapping.
pub(super) struct Entry {
    pub(super) asid: u32,
    pub(super) iova: u64,
    pub(super) region: Region,
}

/// What the kernel knows of one ring.
#[derive(Default)]
pub(super) struct ModelRing {
    pub(super) size: u16,
    pub(super) base: u32,
    pub(super) address: Option<RingAddress>,
    pub(super) enabled: bool,
    pub(super) kick: Option<Arc<PeerEventFd>>,
    pub(super) call: Option<Arc<PeerEventFd>>,
    pub(super) err: Option<Arc<PeerEventFd>>,
    pub(super) running: Option<Running>,
}

/// A ring that a worker has.
pub(super) struct Running {
    pub(super) key: RingKey,
    pub(super) events: Receiver<RingEvent>,
    pub(super) wake: Arc<EventFd>,
}

#[derive(Default)]
pub(super) struct Books {
    pub(super) absent: bool,
    pub(super) opened: bool,
    pub(super) owned: bool,
    pub(super) backend_features: u64,
    pub(super) status: u8,
    pub(super) features: u64,
    pub(super) suspended: bool,
    pub(super) batch: Option<u32>,
    pub(super) iotlb: Vec<Entry>,
    pub(super) rings: Vec<ModelRing>,
    /// The address space of each group.
    pub(super) spaces: Vec<u32>,
    pub(super) config_call: Option<PeerEventFd>,
}

impl Books {
    pub(super) fn signal_config(&self) {
        if let Some(call) = &self.config_call {
            let _ = call.signal().expect("an eventfd");
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        let quiet = |ring: &ModelRing| {
            ring.running.is_none()
                && ring.kick.is_none()
                && ring.call.is_none()
                && ring.err.is_none()
        };
        self.status == 0
            && self.iotlb.is_empty()
            && self.config_call.is_none()
            && self.batch.is_none()
            && self.rings.iter().all(quiet)
    }
}

/// A descriptor as the kernel takes it: only an eventfd.
pub(super) fn event(fd: Option<BorrowedFd<'_>>) -> io::Result<Option<PeerEventFd>> {
    let fd = fd.map(|fd| fd.as_fd().try_clone_to_owned()).transpose()?;
    let event = fd.map(PeerEventFd::check).transpose();
    event.map_err(|_| io::Error::from_raw_os_error(22))
}
