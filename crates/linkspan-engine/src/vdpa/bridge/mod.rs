//! A vDPA device passed on as a vhost-user device: to any VMM, without a part in
//! the data path. Memory of the front end is mapped for the device, kicks and calls
//! go straight to and from the kernel, and only the control path comes here.

mod rings;
mod session;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_sys::EventFd;
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::backend::Offer;
use linkspan_vhost::vdpa::{Bridge, Facts, device};

use super::device::{Opener, VdpaDevice};
use super::error::VdpaError;
use crate::limit::chain;
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
    open: Hidden,
    /// The device while no front end has it.
    idle: Mutex<Option<VdpaDevice>>,
    facts: Facts,
    bridge: Bridge,
    queue_size: u16,
}

/// Not shown.
struct Hidden(Opener);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl BridgedDevice {
    /// Opens a device and decides how it is passed on. `queue_size` is the largest
    /// that a front end may choose; 0: the device's own maximum.
    ///
    /// # Errors
    /// When it cannot be opened, or cannot be passed on.
    pub fn open(open: Opener, queue_size: u32) -> Result<Self, VdpaError> {
        let device = VdpaDevice::new(open()?)?;
        let facts = device.facts().clone();
        let bridge = Bridge::new(&facts, queue_pairs(&device)?)?;
        let queue_size = facts.queue_size(bridge.data_rings(), queue_size)?;
        Ok(Self {
            open: Hidden(open),
            idle: Mutex::new(Some(device)),
            facts,
            bridge,
            queue_size,
        })
    }

    /// What the device says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// How it is passed on.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// The largest queue that a front end may have.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }

    pub(crate) fn session(self: &Arc<Self>, changes: Arc<EventFd>) -> io::Result<BridgeSession> {
        let device = match self.lock().take() {
            Some(device) => device,
            None => self.reopen().map_err(io::Error::other)?,
        };
        BridgeSession::new(Arc::clone(self), device, changes)
    }

    /// The device after it was lost; it has to be what it was.
    fn reopen(&self) -> Result<VdpaDevice, VdpaError> {
        let device = VdpaDevice::new((self.open.0)()?)?;
        let missing = self.facts.features & !device.facts().features;
        if missing != 0 {
            return Err(VdpaError::Missing { missing });
        }
        let (wanted, max) = (self.facts.queues, device.facts().queues);
        if max < wanted {
            return Err(VdpaError::Queues { wanted, max });
        }
        device.facts().queue_size(wanted, self.queue_size.into())?;
        Ok(device)
    }

    /// A front end is done with it: it comes to rest, and the front end's memory is
    /// not in it any more. One that broke is closed, and opened again when it is needed.
    fn give_back(&self, mut device: VdpaDevice) {
        device.stop();
        let clean = device.set_memory(Vec::new());
        let status = device.status();
        match (clean, status) {
            (Ok(()), Ok(0)) => *self.lock() = Some(device),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!("the vDPA device is closed: {}", chain(&error));
            }
            (_, Ok(status)) => {
                tracing::warn!("the vDPA device is closed: its status stays at {status:#x}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<VdpaDevice>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings that a front end may have: the control queue is behind the others, for
    /// those that want to have it themselves.
    fn rings(&self) -> u16 {
        self.bridge.data_rings() + u16::from(self.bridge.drives_control())
    }

    fn is_network(&self) -> bool {
        self.facts.device_id == device::NET
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
        let least = match self.facts.device_id {
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
            config_size: self.facts.config_size.max(least),
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
