//! Numbers and structures of linux/vhost.h and linux/vhost_types.h.

use rustix::ioctl::{Opcode, opcode};

use crate::seccomp::requests;

/// `VHOST_VIRTIO`: the type of all these calls.
const TYPE: u8 = 0xaf;

/// `struct vhost_vring_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct VringState {
    pub(super) index: u32,
    pub(super) num: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct VringFile {
    pub(super) index: u32,
    pub(super) fd: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct VringAddr {
    pub(super) index: u32,
    pub(super) flags: u32,
    pub(super) descriptor: u64,
    pub(super) used: u64,
    pub(super) available: u64,
    pub(super) log: u64,
}

/// `struct vhost_vdpa_iova_range`; `last` is inside.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IovaRange {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// `struct vhost_vdpa_config` without the bytes that follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfigHead {
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// `struct vhost_msg_v2` with the IOTLB message in it, padding included.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct MsgV2 {
    pub(super) kind: u32,
    pub(super) asid: u32,
    pub(super) iova: u64,
    pub(super) size: u64,
    pub(super) address: u64,
    pub(super) access: u8,
    pub(super) what: u8,
    pub(super) padding: [u8; 38],
}

/// `VHOST_IOTLB_MSG_V2`.
pub(super) const IOTLB_MSG_V2: u32 = 2;
/// `VHOST_IOTLB_UPDATE`.
pub(super) const UPDATE: u8 = 2;
/// `VHOST_IOTLB_INVALIDATE`.
pub(super) const INVALIDATE: u8 = 3;
/// `VHOST_IOTLB_BATCH_BEGIN`.
pub(super) const BATCH_BEGIN: u8 = 5;
/// `VHOST_IOTLB_BATCH_END`.
pub(super) const BATCH_END: u8 = 6;
/// `VHOST_ACCESS_RW`.
pub(super) const ACCESS_RW: u8 = 3;

pub(super) const GET_FEATURES: Opcode = opcode::read::<u64>(TYPE, 0x00);
pub(super) const SET_FEATURES: Opcode = opcode::write::<u64>(TYPE, 0x00);
pub(super) const SET_OWNER: Opcode = opcode::none(TYPE, 0x01);
pub(super) const SET_VRING_NUM: Opcode = opcode::write::<VringState>(TYPE, 0x10);
pub(super) const SET_VRING_ADDR: Opcode = opcode::write::<VringAddr>(TYPE, 0x11);
pub(super) const SET_VRING_BASE: Opcode = opcode::write::<VringState>(TYPE, 0x12);
pub(super) const GET_VRING_BASE: Opcode = opcode::read_write::<VringState>(TYPE, 0x12);
pub(super) const SET_VRING_KICK: Opcode = opcode::write::<VringFile>(TYPE, 0x20);
pub(super) const SET_VRING_CALL: Opcode = opcode::write::<VringFile>(TYPE, 0x21);
pub(super) const SET_VRING_ERR: Opcode = opcode::write::<VringFile>(TYPE, 0x22);
pub(super) const SET_BACKEND_FEATURES: Opcode = opcode::write::<u64>(TYPE, 0x25);
pub(super) const GET_BACKEND_FEATURES: Opcode = opcode::read::<u64>(TYPE, 0x26);
pub(super) const GET_DEVICE_ID: Opcode = opcode::read::<u32>(TYPE, 0x70);
pub(super) const GET_STATUS: Opcode = opcode::read::<u8>(TYPE, 0x71);
pub(super) const SET_STATUS: Opcode = opcode::write::<u8>(TYPE, 0x72);
pub(super) const GET_CONFIG: Opcode = opcode::read::<ConfigHead>(TYPE, 0x73);
pub(super) const SET_CONFIG: Opcode = opcode::write::<ConfigHead>(TYPE, 0x74);
pub(super) const SET_VRING_ENABLE: Opcode = opcode::write::<VringState>(TYPE, 0x75);
/// 16 bits, not 32 as QEMU reads it.
pub(super) const GET_VRING_NUM: Opcode = opcode::read::<u16>(TYPE, 0x76);
pub(super) const SET_CONFIG_CALL: Opcode = opcode::write::<i32>(TYPE, 0x77);
pub(super) const GET_IOVA_RANGE: Opcode = opcode::read::<IovaRange>(TYPE, 0x78);
pub(super) const GET_CONFIG_SIZE: Opcode = opcode::read::<u32>(TYPE, 0x79);
pub(super) const GET_AS_NUM: Opcode = opcode::read::<u32>(TYPE, 0x7a);
pub(super) const GET_VRING_GROUP: Opcode = opcode::read_write::<VringState>(TYPE, 0x7b);
/// Not 0x7b, which rust-vmm's vhost 0.18 sends.
pub(super) const SET_GROUP_ASID: Opcode = opcode::write::<VringState>(TYPE, 0x7c);
pub(super) const SUSPEND: Opcode = opcode::none(TYPE, 0x7d);
pub(super) const RESUME: Opcode = opcode::none(TYPE, 0x7e);
pub(super) const GET_VQS_COUNT: Opcode = opcode::read::<u32>(TYPE, 0x80);
pub(super) const GET_GROUP_NUM: Opcode = opcode::read::<u32>(TYPE, 0x81);
pub(super) const GET_VRING_SIZE: Opcode = opcode::read_write::<VringState>(TYPE, 0x82);

/// All of them, for a filter of calls.
pub(crate) const CALLS: &[u32] = requests![
    GET_FEATURES,
    SET_FEATURES,
    SET_OWNER,
    SET_VRING_NUM,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    GET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_BACKEND_FEATURES,
    GET_BACKEND_FEATURES,
    GET_DEVICE_ID,
    GET_STATUS,
    SET_STATUS,
    GET_CONFIG,
    SET_CONFIG,
    SET_VRING_ENABLE,
    GET_VRING_NUM,
    SET_CONFIG_CALL,
    GET_IOVA_RANGE,
    GET_CONFIG_SIZE,
    GET_AS_NUM,
    GET_VRING_GROUP,
    SET_GROUP_ASID,
    SUSPEND,
    RESUME,
    GET_VQS_COUNT,
    GET_GROUP_NUM,
    GET_VRING_SIZE
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from linux/vhost.h: direction, size, type, number.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_are_those_of_the_kernel() {
        for (ours, theirs) in [
            (GET_FEATURES, 0x8008_af00),
            (SET_FEATURES, 0x4008_af00),
            (SET_OWNER, 0x0000_af01),
            (SET_VRING_NUM, 0x4008_af10),
            (SET_VRING_ADDR, 0x4028_af11),
            (SET_VRING_BASE, 0x4008_af12),
            (GET_VRING_BASE, 0xc008_af12),
            (SET_VRING_KICK, 0x4008_af20),
            (SET_VRING_CALL, 0x4008_af21),
            (SET_VRING_ERR, 0x4008_af22),
            (SET_BACKEND_FEATURES, 0x4008_af25),
            (GET_BACKEND_FEATURES, 0x8008_af26),
            (GET_DEVICE_ID, 0x8004_af70),
            (GET_STATUS, 0x8001_af71),
            (SET_STATUS, 0x4001_af72),
            (GET_CONFIG, 0x8008_af73),
            (SET_CONFIG, 0x4008_af74),
            (SET_VRING_ENABLE, 0x4008_af75),
            (SET_CONFIG_CALL, 0x4004_af77),
            (GET_IOVA_RANGE, 0x8010_af78),
            (GET_CONFIG_SIZE, 0x8004_af79),
            (GET_AS_NUM, 0x8004_af7a),
            (GET_VRING_GROUP, 0xc008_af7b),
            (SUSPEND, 0x0000_af7d),
            (RESUME, 0x0000_af7e),
            (GET_VQS_COUNT, 0x8004_af80),
            (GET_GROUP_NUM, 0x8004_af81),
            (GET_VRING_SIZE, 0xc008_af82),
        ] {
            assert_eq!(ours, theirs, "{ours:#x} {theirs:#x}");
        }
    }

    /// vhost 0.18 of rust-vmm sends `GET_VRING_GROUP` (0x7b) in its place.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn set_group_asid_is_not_get_vring_group() {
        assert_eq!(SET_GROUP_ASID, 0x4008_af7c);
    }

    /// QEMU's vdpa-dev reads it into 32 bits that it preset.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_largest_queue_size_has_16_bits() {
        assert_eq!(GET_VRING_NUM, 0x8002_af76);
    }

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<MsgV2>(), 72);
        assert_eq!(std::mem::offset_of!(MsgV2, iova), 8);
        assert_eq!(std::mem::offset_of!(MsgV2, access), 32);
        assert_eq!(std::mem::offset_of!(MsgV2, what), 33);
        assert_eq!(size_of::<VringAddr>(), 40);
        assert_eq!(std::mem::offset_of!(VringAddr, used), 16);
        assert_eq!(std::mem::offset_of!(VringAddr, available), 24);
    }
}
