//! The block device (virtio 1.3 5.2): what it offers, and what it makes of a
//! chain. The bytes of the disk are the caller's.

mod config;
mod request;

use linkspan_virtio::{Device, DeviceId, Features, RestoreError};
use virtio_bindings::virtio_blk as bits;

use config::Config;
pub use config::{CONFIG_LEN, SEG_MAX_LIMIT};
pub use request::{Geometry, Operation, Request, Status};

/// The unit of positions and sizes on the wire in bytes, whatever the block
/// size (virtio 1.3 5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of a device's serial number (virtio 1.3 5.2.6).
pub const ID_BYTES: usize = bits::VIRTIO_BLK_ID_BYTES as usize;

/// What a block device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// Size of the disk in bytes; what does not fill a sector is not shown.
    pub size_bytes: u64,
    /// Smallest size in bytes that the image reads and writes well: a power of
    /// two from 512 to 32768. A hint to the driver, no limit.
    pub block_size: u32,
    /// How many queues, at least one.
    pub queues: u16,
    /// Entries of each queue at most, at least one.
    pub queue_size: u16,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Serial number, padded with NUL.
    pub serial: [u8; ID_BYTES],
}

/// Options that make no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Linux takes powers of two from 512 on only.
    #[error("a block size of {block_size} bytes is not a power of two from 512 to 32768")]
    BlockSize {
        /// What was asked for, in bytes.
        block_size: u32,
    },
    /// A device without queues cannot be driven.
    #[error("a block device needs at least one queue")]
    NoQueue,
    /// A queue without entries holds nothing.
    #[error("a queue needs at least one entry")]
    EmptyQueue,
}

/// A block device, apart from its queues and its image.
#[derive(Debug)]
pub struct Block {
    options: BlockOptions,
    accepted: Features,
}

impl Block {
    /// A device with which nothing was negotiated yet.
    ///
    /// # Errors
    /// When the options make none.
    pub fn new(options: BlockOptions) -> Result<Self, OptionsError> {
        let block_size = options.block_size;
        if !block_size.is_power_of_two() || !(512..=32768).contains(&block_size) {
            return Err(OptionsError::BlockSize { block_size });
        }
        if options.queues == 0 {
            return Err(OptionsError::NoQueue);
        }
        if options.queue_size == 0 {
            return Err(OptionsError::EmptyQueue);
        }
        Ok(Self {
            options,
            accepted: Features::empty(),
        })
    }

    /// What a worker needs to understand requests; to be taken anew when
    /// features were negotiated.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            capacity_sectors: self.options.size_bytes / SECTOR,
            read_only: self.options.read_only,
            // Without FLUSH the driver cannot ask for durability, so each write
            // must be durable by itself (virtio 1.3 5.2.6.2).
            write_through: !self.accepted.contains(feature(bits::VIRTIO_BLK_F_FLUSH)),
            serial: self.options.serial,
        }
    }

    /// Segments that a [`Chain`](linkspan_virtio::Chain) must have room for: data,
    /// header and status, each perhaps across two regions.
    pub fn chain_segments(&self) -> usize {
        2 * (Config::seg_max(self.options.queue_size) as usize + 2)
    }

    /// Saves what was negotiated; see [`restore`](Self::restore).
    pub fn snapshot(&self) -> [u8; SNAPSHOT_LEN] {
        let mut bytes = [0; SNAPSHOT_LEN];
        bytes[..2].copy_from_slice(&SNAPSHOT_KIND.to_le_bytes());
        bytes[2..].copy_from_slice(&self.accepted.bits().to_le_bytes());
        bytes
    }

    /// Takes over what was negotiated when a device like this was saved.
    ///
    /// # Errors
    /// When the bytes are not those of a block device, or name features that
    /// this one does not offer; nothing is changed then.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (len, want) = (bytes.len(), SNAPSHOT_LEN);
        let Ok([k0, k1, features @ ..]) = <[u8; SNAPSHOT_LEN]>::try_from(bytes) else {
            return Err(RestoreError::Length { len, want });
        };
        let (kind, want) = (u16::from_le_bytes([k0, k1]), SNAPSHOT_KIND);
        if kind != want {
            return Err(RestoreError::Kind { kind, want });
        }
        let accepted = Features::from_bits_retain(u64::from_le_bytes(features));
        let alien = accepted & (DEVICE_BITS - self.features());
        if !alien.is_empty() {
            return Err(RestoreError::Features {
                features: alien.bits(),
            });
        }
        self.accepted = accepted;
        Ok(())
    }
}

/// Bytes of a saved block device: kind and version, accepted features.
pub const SNAPSHOT_LEN: usize = 10;

/// Block device, version 1 of the form.
const SNAPSHOT_KIND: u16 = 0x4201;

/// The bits that the device type gives a meaning to (virtio 1.3 6).
const DEVICE_BITS: Features = Features::from_bits_retain((1 << 24) - 1);

const fn feature(bit: u32) -> Features {
    Features::from_bits_retain(1 << bit)
}

/// What every block device here offers (virtio 1.3 5.2.3).
const OFFERED: Features = feature(bits::VIRTIO_BLK_F_SEG_MAX)
    .union(feature(bits::VIRTIO_BLK_F_BLK_SIZE))
    .union(feature(bits::VIRTIO_BLK_F_FLUSH))
    .union(feature(bits::VIRTIO_BLK_F_MQ));

impl Device for Block {
    fn id(&self) -> DeviceId {
        DeviceId::BLOCK
    }

    fn features(&self) -> Features {
        if self.options.read_only {
            OFFERED | feature(bits::VIRTIO_BLK_F_RO)
        } else {
            OFFERED
        }
    }

    fn set_features(&mut self, accepted: Features) {
        self.accepted = accepted;
    }

    fn queues(&self) -> u16 {
        self.options.queues
    }

    fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    fn read_config(&self, offset: usize, target: &mut [u8]) -> bool {
        Config::new(&self.options).read(offset, target)
    }

    /// Nothing is writable: the cache mode, which alone would be, is not offered.
    fn write_config(&mut self, _offset: usize, _source: &[u8]) -> bool {
        false
    }
}
