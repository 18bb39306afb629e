//! A vDPA device passed on as a vhost-user device: to any VMM, without a part in
//! the data path. Memory of the front end is mapped for the device, kicks and calls
//! go straight to and from the kernel, and only the control path comes here.

mod rings;
mod session;

use std::io;
use std::sync::Arc;

use linkspan_sys::EventFd;
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::backend::Offer;
use linkspan_vhost::vdpa::{Bridge, Facts, device};

use super::device::{Opener, VdpaDevice};
use super::error::VdpaError;
use super::kept::KeptDevice;
use crate::endpoint::Endpoint;
use session::BridgeSession;

/// Memory regions that a front end may have at once.
const MEMORY_SLOTS: u64 = 32;

/// Bytes of configuration space that front ends ask for at least: QEMU asks for
/// all that its version knows. What the device does not have is zero.
const NET_CONFIG: u32 = 24;
const BLOCK_CONFIG: u32 = 96;

/// A vDPA device to be passed on to one front end after the other. It stays this
/// process's own in between.
#[derive(Debug)]
pub struct BridgedDevice {
    kept: KeptDevice,
    bridge: Bridge,
    queue_size: u16,
}

impl BridgedDevice {
    /// Opens a device and decides how it is passed on. `queue_size` is the largest
    /// that a front end may choose; 0: the device's own maximum.
    ///
    /// # Errors
    /// When it cannot be opened, or cannot be passed on.
    pub fn open(open: Opener, queue_size: u32) -> Result<Self, VdpaError> {
        let device = VdpaDevice::new(open()?)?;
        let bridge = Bridge::new(device.facts(), queue_pairs(&device)?)?;
        let rings = bridge.data_rings();
        let queue_size = device.facts().queue_size(rings, queue_size)?;
        let sizes = vec![queue_size; rings.into()];
        Ok(Self {
            kept: KeptDevice::new(open, device, sizes),
            bridge,
            queue_size,
        })
    }

    /// What the device says of itself.
    pub fn facts(&self) -> &Facts {
        self.kept.facts()
    }

    /// How it is passed on.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// The largest queue that a front end may have.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    /// A session, of which all can be seen at `endpoint`.
    pub(crate) fn session(
        self: &Arc<Self>,
        changes: Arc<EventFd>,
        endpoint: Arc<Endpoint>,
    ) -> io::Result<BridgeSession> {
        self.kept.be_seen(endpoint.messages());
        let device = self.kept.lend().map_err(io::Error::other)?;
        let session = BridgeSession::new(Arc::clone(self), device, changes)?;
        Ok(session.shown_by(endpoint))
    }

    /// A front end is done with it.
    fn give_back(&self, device: VdpaDevice) {
        self.kept.give_back(device);
    }

    /// Rings that a front end may have: the control queue is behind the others, for
    /// those that want to have it themselves.
    fn rings(&self) -> u16 {
        self.bridge.data_rings() + u16::from(self.bridge.drives_control())
    }

    fn is_network(&self) -> bool {
        self.facts().device_id == device::NET
    }

    fn offer(&self) -> Offer {
        let mut protocol_features = ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS
            | ProtocolFeatures::BACKEND_REQ
            | ProtocolFeatures::RESET_DEVICE
            | ProtocolFeatures::STATUS;
        protocol_features.set(ProtocolFeatures::NET_MTU, self.is_network());
        let data = self.bridge.data_rings();
        let least = match self.facts().device_id {
            device::NET => NET_CONFIG,
            device::BLOCK => BLOCK_CONFIG,
            _ => 0,
        };
        Offer {
            features: self.bridge.offer(),
            protocol_features,
            // What messages with descriptors can name.
            queues: self.rings().min(linkspan_vhost::backend::MAX_RINGS),
            queue_num: if self.is_network() {
                self.bridge.pairs().into()
            } else {
                data.into()
            },
            queue_size_max: self.queue_size,
            config_size: self.facts().config_size.max(least),
            memory_slots: MEMORY_SLOTS,
        }
    }
}

/// What the configuration space of a network device says of queue pairs (virtio
/// 1.3, 5.1.4).
fn queue_pairs(device: &VdpaDevice) -> Result<u16, VdpaError> {
    if device.facts().device_id != device::NET {
        return Ok(0);
    }
    let config = device.config(10)?;
    Ok(u16::from_le_bytes([config[8], config[9]]))
}
