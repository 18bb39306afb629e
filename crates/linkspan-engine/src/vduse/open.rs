//! How a device comes to be served: made, or taken over from a process that is
//! gone.

use std::path::PathBuf;
use std::sync::Arc;

use linkspan_sys::vduse::{self, Control, DeviceConfig, Kernel, Name, VduseDevice};
use linkspan_vhost::vduse::{Offer, Vduse};
use linkspan_virtio::Features;

use super::error::OpenError;
use super::record::Record;
use crate::device::{Device, NETWORK_DEVICE};
use crate::inflight::InflightArea;

/// Virtio's own vendor.
const VENDOR: u32 = 0x1AF4;

/// What every device offers beside the bits of its type. Not the reset of one
/// ring, of which VDUSE has no message.
const TRANSPORT: Features = Features::PACKED_QUEUE.union(Features::VIRTIO_F_ACCESS_PLATFORM);

/// `VIRTIO_BLK_F_CONFIG_WCE`: the cache is switched by a write to configuration
/// space.
const BLOCK_MASKED: u64 = 1 << 11;

/// Virtio 1.3, 5.1.3: `VIRTIO_NET_F_CTRL_VQ`, which the kernel does not take, and
/// what is nothing without it.
const NET_MASKED: u64 = 1 << 17
    | 1 << 2
    | 1 << 18
    | 1 << 19
    | 1 << 20
    | 1 << 21
    | 1 << 22
    | 1 << 23
    | 1 << 52
    | 1 << 53
    | 1 << 57
    | 1 << 60;

/// Without `VIRTIO_NET_F_MQ` a network device has one pair.
const NET_QUEUES: u16 = 2;

/// How a device is offered.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the kernel is to call it.
    pub name: Name,
    /// How many seconds the kernel waits for an answer before it marks the device
    /// broken; 0: for ever.
    pub timeout_seconds: u32,
    /// Where what is in flight is written down: a folder in memory.
    pub state: PathBuf,
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
}

/// A device that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) control: Control,
    pub(super) link: VduseDevice,
    pub(super) core: Vduse,
    pub(super) record: Record,
    pub(super) inflight: InflightArea,
    /// Whether it was made for us.
    pub(super) anew: bool,
}

/// What is offered of a device, and what the kernel is told of it.
pub(super) fn offer(device: &dyn Device, name: &Name) -> Result<(Offer, DeviceConfig), OpenError> {
    let network = device.device_id() == NETWORK_DEVICE;
    let masked = if network { NET_MASKED } else { BLOCK_MASKED };
    let queues = if network {
        device.queues().min(NET_QUEUES)
    } else {
        device.queues()
    };
    let features = (device.features() | TRANSPORT).bits() & !masked;
    let offer = Offer {
        device_id: device.device_id(),
        features,
        queues,
        queue_size_max: device.queue_size_max(),
        config_size: device.config_size(),
    };
    let config = DeviceConfig {
        name: name.clone(),
        device_id: offer.device_id,
        vendor_id: VENDOR,
        features,
        queues,
        config: read_config(device)?,
    };
    Ok((offer, config))
}

/// All of a device's configuration space.
pub(super) fn read_config(device: &dyn Device) -> Result<Vec<u8>, OpenError> {
    let mut config = vec![0; device.config_size() as usize];
    device.read_config(0, &mut config)?;
    Ok(config)
}

/// Makes the device, or takes it over. A device that nobody uses is made anew.
pub(super) fn open(options: &Options, device: &dyn Device) -> Result<Opened, OpenError> {
    let name = &options.name;
    let (offer, config) = offer(device, name)?;
    let control = Control::open(Arc::clone(&options.kernel))?;
    let (record, inflight) = Record::open(&options.state, name, &offer)?;
    let created = match control.create(&config) {
        Err(vduse::Error::Exists(_)) => match control.destroy(name) {
            Ok(()) => control.create(&config).map(|()| true),
            Err(vduse::Error::Attached(_)) => Ok(false),
            Err(error) => Err(error),
        },
        created => created.map(|()| true),
    };
    let anew = match created {
        Ok(anew) => anew,
        Err(error) => {
            record.abandon();
            return Err(error.into());
        }
    };
    let opened = if anew {
        let opened = equip(options, &control, &offer, &record);
        opened.inspect_err(|_| {
            // Nothing uses it, so that nothing keeps it.
            if let Err(error) = control.destroy(name) {
                tracing::warn!("the device stays behind: {error}");
            }
        })
    } else {
        take_over(options, &control, &offer, &config, &record)
    };
    match opened {
        Ok((link, core)) => Ok(Opened {
            control,
            link,
            core,
            record,
            inflight,
            anew,
        }),
        Err(error) => {
            if anew {
                record.remove();
            } else {
                record.abandon();
            }
            Err(error)
        }
    }
}

/// Gives a new device what it needs before it can go on the vDPA bus.
fn equip(
    options: &Options,
    control: &Control,
    offer: &Offer,
    record: &Record,
) -> Result<(VduseDevice, Vduse), OpenError> {
    let link = control.device(&options.name)?;
    control.set_timeout(&options.name, options.timeout_seconds)?;
    for queue in 0..offer.queues {
        link.setup_queue(queue, offer.queue_size_max)?;
    }
    let core = Vduse::new(*offer);
    record.forget()?;
    record.write(&core.snapshot())?;
    Ok((link, core))
}

/// Goes on with a device that is on the vDPA bus for a process that is gone.
fn take_over(
    options: &Options,
    control: &Control,
    offer: &Offer,
    config: &DeviceConfig,
    record: &Record,
) -> Result<(VduseDevice, Vduse), OpenError> {
    let name = &options.name;
    let link = control.device(name)?;
    // Whether it is broken, before anything else.
    link.features()?;
    control.set_timeout(name, options.timeout_seconds)?;
    let core = Vduse::restore(*offer, &record.read()?).map_err(|reason| {
        let name = name.clone();
        OpenError::CannotGoOn { name, reason }
    })?;
    // It may have changed while nobody served it: a disk has grown.
    if !config.config.is_empty() {
        link.set_config(0, &config.config)?;
    }
    Ok((link, core))
}
