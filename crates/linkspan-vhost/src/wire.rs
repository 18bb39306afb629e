//! The bytes of vhost-user messages.
//!
//! Both ends run on one machine, so all numbers are in its own byte order
//! (vhost-user: Message Specification). Bytes arrive without alignment: read
//! the structures by copy, with `read_from_bytes`.

use alloc::vec::Vec;
use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = size_of::<Header>();

/// The largest body that is received, in bytes. Every message that this crate
/// acts on fits; a longer one ends the session before anything is allocated.
pub const MAX_BODY_BYTES: usize = 4096;

/// File descriptors that one message may carry (vhost-user: `VHOST_USER_SET_MEM_TABLE`
/// has the most).
pub const MAX_FDS: usize = 8;

/// Regions in one `VHOST_USER_SET_MEM_TABLE`.
pub const MAX_TABLE_REGIONS: usize = 8;

/// Bytes of configuration space in one `VHOST_USER_GET_CONFIG` or
/// `VHOST_USER_SET_CONFIG`.
pub const VHOST_USER_MAX_CONFIG_SIZE: usize = 256;

/// Bit of [`VringAddr::flags`]: writes to the used ring are logged.
pub const VHOST_VRING_F_LOG: u32 = 1 << 0;

/// Bits of the `u64` of `VHOST_USER_SET_VRING_KICK`, `_CALL` and `_ERR` that hold the ring.
pub const VHOST_USER_VRING_IDX_MASK: u64 = 0xff;

/// Bit of the same `u64`: no descriptor comes with the message.
pub const VHOST_USER_VRING_NOFD_MASK: u64 = 1 << 8;

/// What precedes every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Which message this is.
    pub request: u32,
    /// Version, [`REPLY`](Self::REPLY) and [`NEED_REPLY`](Self::NEED_REPLY).
    pub flags: u32,
    /// Bytes of the body.
    pub size: u32,
}

impl Header {
    /// The only version of the protocol, in the bits of [`VERSION_MASK`](Self::VERSION_MASK).
    pub const VERSION: u32 = 1;
    /// The bits of `flags` that hold the version.
    pub const VERSION_MASK: u32 = 0b11;
    /// Set in replies.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants an acknowledgement (with `REPLY_ACK` negotiated).
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// vhost-user: vring state description, and the payload of the ring base messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// The ring.
    pub index: u32,
    /// Size, base, or 0 and 1, by the message.
    pub num: u32,
}

/// vhost-user: vring address description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddr {
    /// The ring.
    pub index: u32,
    /// [`VHOST_VRING_F_LOG`] or nothing.
    pub flags: u32,
    /// Descriptor table, a front-end address.
    pub descriptor: u64,
    /// Used ring (device area), a front-end address.
    pub used: u64,
    /// Available ring (driver area), a front-end address.
    pub available: u64,
    /// Guest address under which writes to the used ring are logged.
    pub log: u64,
}

/// vhost-user: memory region description, without the fields of `XEN_MMAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegionDescription {
    /// First guest address.
    pub guest_address: u64,
    /// Bytes.
    pub size: u64,
    /// First address in the front end's process.
    pub user_address: u64,
    /// Where the region starts in the file, in bytes.
    pub mmap_offset: u64,
}

/// vhost-user: single memory region description. The padding is 64 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SingleMemoryRegion {
    /// Ignored.
    pub padding: u64,
    /// The region.
    pub region: MemoryRegionDescription,
}

/// vhost-user: multiple memory regions description, before the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryTableHeader {
    /// How many regions follow, one descriptor each.
    pub num_regions: u32,
    /// Ignored.
    pub padding: u32,
}

/// vhost-user: virtio device config space, before the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigHeader {
    /// First byte of the configuration space that is meant.
    pub offset: u32,
    /// Bytes that are meant; as many follow.
    pub size: u32,
    /// Who writes: 0 the guest, 1 live migration.
    pub flags: u32,
}

/// vhost-user: log description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LogDescription {
    /// Bytes of the log.
    pub mmap_size: u64,
    /// Where it starts in the file, in bytes.
    pub mmap_offset: u64,
}

/// vhost-user: inflight description, with the padding that most send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InflightDescription {
    /// Bytes of the region; 0 in the request for one, and if there is none.
    pub mmap_size: u64,
    /// Where it starts in the file, in bytes.
    pub mmap_offset: u64,
    /// Rings that it covers.
    pub num_queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Ignored, and left out by those who pack their structures.
    pub padding: u32,
}

impl InflightDescription {
    /// Bytes without the padding.
    pub const PACKED_BYTES: usize = 20;
}

/// vhost-user: device state transfer parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceStateParameters {
    /// 0: the back end saves its state; 1: it loads one.
    pub direction: u32,
    /// 0: the rings are stopped. There is no other phase.
    pub phase: u32,
}

/// Bits of the reply to `VHOST_USER_SET_DEVICE_STATE_FD` that say whether it failed.
pub const DEVICE_STATE_ERROR_MASK: u64 = 0xff;

/// Bit of the same reply: no descriptor comes with it.
pub const DEVICE_STATE_NOFD_MASK: u64 = 1 << 8;

const _: () = {
    assert!(size_of::<LogDescription>() == 16);
    assert!(size_of::<InflightDescription>() == 24);
    assert!(size_of::<DeviceStateParameters>() == 8);
    assert!(size_of::<Header>() == 12);
    assert!(size_of::<VringState>() == 8);
    assert!(size_of::<VringAddr>() == 40);
    assert!(size_of::<MemoryRegionDescription>() == 32);
    assert!(size_of::<SingleMemoryRegion>() == 40);
    assert!(size_of::<MemoryTableHeader>() == 8);
    assert!(size_of::<ConfigHeader>() == 12);
};

/// A whole message: a header for `body`, and `body`.
///
/// # Panics
/// If `body` is longer than [`MAX_BODY_BYTES`].
#[must_use]
pub fn encode(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    assert!(
        body.len() <= MAX_BODY_BYTES,
        "a body of {} bytes is never sent",
        body.len()
    );
    let size = u32::try_from(body.len()).expect("bounded above");
    let header = Header {
        request,
        flags: flags | Header::VERSION,
        size,
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Little-endian golden bytes; the crate's byte order is the machine's.
    #[cfg(target_endian = "little")]
    #[test]
    fn golden_bytes() {
        assert_eq!(
            encode(
                9,
                Header::NEED_REPLY,
                VringState {
                    index: 2,
                    num: 0x101
                }
                .as_bytes()
            ),
            [9, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 1, 1, 0, 0]
        );
        let addr = VringAddr {
            index: 1,
            flags: VHOST_VRING_F_LOG,
            descriptor: 0x1000,
            used: 0x3000,
            available: 0x2000,
            log: 0x4000,
        };
        // The used ring comes before the available ring.
        assert_eq!(
            addr.as_bytes(),
            [
                1, 0, 0, 0, 1, 0, 0, 0, // index, flags
                0, 0x10, 0, 0, 0, 0, 0, 0, // descriptor
                0, 0x30, 0, 0, 0, 0, 0, 0, // used
                0, 0x20, 0, 0, 0, 0, 0, 0, // available
                0, 0x40, 0, 0, 0, 0, 0, 0, // log
            ]
        );
    }

    /// QEMU 3009edff81: the padding of ADD_MEM_REG is 64 bits wide.
    #[cfg(target_endian = "little")]
    #[test]
    fn single_region_has_64_bits_of_padding() {
        let mut bytes = [0u8; 40];
        bytes[8] = 0x11;
        bytes[16] = 0x22;
        bytes[24] = 0x33;
        bytes[32] = 0x44;
        let single = SingleMemoryRegion::read_from_bytes(&bytes).expect("40 bytes");
        assert_eq!(
            single.region,
            MemoryRegionDescription {
                guest_address: 0x11,
                size: 0x22,
                user_address: 0x33,
                mmap_offset: 0x44,
            }
        );
    }
}
