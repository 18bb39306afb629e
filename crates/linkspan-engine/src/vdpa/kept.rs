//! A vDPA device that is lent to one VMM after the other, and stays this process's own
//! in between.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use linkspan_vhost::vdpa::{Facts, FactsError};

use super::device::{Opener, VdpaDevice};
use super::error::VdpaError;
use crate::limit::chain;
use crate::messages::Messages;

/// A device and how it is opened again.
pub(super) struct KeptDevice {
    open: Opener,
    /// The device while nobody has it.
    idle: Mutex<Option<VdpaDevice>>,
    facts: Facts,
    /// The largest size that each queue has been promised with.
    sizes: Vec<u16>,
    /// Each call of the device is said there.
    messages: OnceLock<Arc<Messages>>,
}

impl std::fmt::Debug for KeptDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeptDevice")
            .field("facts", &self.facts)
            .field("sizes", &self.sizes)
            .finish_non_exhaustive()
    }
}

impl KeptDevice {
    /// A device that was opened, whose first queues have these sizes at most.
    pub(super) fn new(open: Opener, device: VdpaDevice, sizes: Vec<u16>) -> Self {
        Self {
            open,
            facts: device.facts().clone(),
            idle: Mutex::new(Some(device)),
            sizes,
            messages: OnceLock::new(),
        }
    }

    /// Each call of the device can be seen there from the next time on that it is lent.
    pub(super) fn be_seen(&self, messages: &Arc<Messages>) {
        self.messages.get_or_init(|| Arc::clone(messages));
    }

    /// What the device says of itself.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The largest size of each queue that users have.
    pub(super) fn sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// The device, opened anew if it was lost. It has to be what it was.
    pub(super) fn lend(&self) -> Result<VdpaDevice, VdpaError> {
        let idle = self.lock().take();
        let mut device = match idle {
            Some(device) => device,
            None => self.open_again()?,
        };
        if let Some(messages) = self.messages.get() {
            device.be_seen(Arc::clone(messages));
        }
        Ok(device)
    }

    fn open_again(&self) -> Result<VdpaDevice, VdpaError> {
        let device = VdpaDevice::new((self.open)()?)?;
        let missing = self.facts.features & !device.facts().features;
        if missing != 0 {
            return Err(VdpaError::Missing { missing });
        }
        let (wanted, max) = (self.facts.queues, device.facts().queues);
        if max < wanted {
            return Err(VdpaError::Queues { wanted, max });
        }
        let sizes = (0..).zip(self.sizes.iter().zip(&device.facts().queue_sizes));
        for (ring, (wanted, max)) in sizes {
            let (wanted, max) = (u32::from(*wanted), *max);
            if wanted > max.into() {
                return Err(FactsError::TooLarge { wanted, ring, max }.into());
            }
        }
        Ok(device)
    }

    /// A user is done with it: it comes to rest, and the user's memory is not in it any
    /// more. One that broke is closed, and opened again when it is needed.
    pub(super) fn give_back(&self, mut device: VdpaDevice) {
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
}
