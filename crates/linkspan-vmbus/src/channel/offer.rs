//! What a channel is offered as.

use super::message::OfferBody;
use crate::guid::Guid;
use crate::ic::Service;

/// `VMBUS_CHANNEL_NAMED_PIPE_MODE`: messages with a header of a pipe.
const NAMED_PIPE_MODE: u16 = 0x10;

/// `VMBUS_PIPE_TYPE_MESSAGE`, in the first word of what is user-defined.
pub const PIPE_MODE_MESSAGE: u32 = 4;

/// A channel that is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// What it is for.
    pub interface: Guid,
    /// Which one.
    pub instance: Guid,
    /// `VMBUS_CHANNEL_*`.
    pub flags: u16,
    /// Megabytes of address space that it wants.
    pub mmio_megabytes: u16,
    /// What its kind defines; with a pipe, the mode in the first four bytes.
    pub user_defined: [u8; 120],
    /// Which of several channels of one device.
    pub sub_channel: u16,
    /// Its bit in the monitor pages, if it has one.
    pub monitor: Option<u8>,
    /// What its guest signals.
    pub connection_id: u32,
}

impl Offer {
    /// The channel of an integration service: a pipe of messages.
    #[must_use]
    pub fn service(service: &Service, instance: Guid, connection_id: u32) -> Self {
        let mut user_defined = [0; 120];
        user_defined[..4].copy_from_slice(&PIPE_MODE_MESSAGE.to_le_bytes());
        Self {
            interface: service.interface,
            instance: service.instance.unwrap_or(instance),
            flags: NAMED_PIPE_MODE,
            mmio_megabytes: 0,
            user_defined,
            sub_channel: 0,
            monitor: None,
            connection_id,
        }
    }

    pub(super) fn body(&self, relid: u32) -> OfferBody {
        OfferBody {
            interface: self.interface.0,
            instance: self.instance.0,
            reserved: [0; 16],
            flags: self.flags.into(),
            mmio_megabytes: self.mmio_megabytes.into(),
            user_defined: self.user_defined,
            sub_channel: self.sub_channel.into(),
            reserved3: [0; 2],
            relid: relid.into(),
            monitor: self.monitor.unwrap_or(0xFF),
            monitor_allocated: self.monitor.is_some().into(),
            dedicated_interrupt: 1.into(),
            connection_id: self.connection_id.into(),
        }
    }

    pub(super) fn of(body: &OfferBody) -> Self {
        Self {
            interface: Guid(body.interface),
            instance: Guid(body.instance),
            flags: body.flags.get(),
            mmio_megabytes: body.mmio_megabytes.get(),
            user_defined: body.user_defined,
            sub_channel: body.sub_channel.get(),
            monitor: (body.monitor_allocated & 1 != 0).then_some(body.monitor),
            connection_id: body.connection_id.get(),
        }
    }
}
