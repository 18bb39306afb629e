//! Commands of virtio-gpu (virtio 1.3 5.7.6) as they are written, and answers.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{EDID_MAX, HEADS_MAX};

/// Bytes of the header that each command and answer begins with.
pub const HEADER_LEN: usize = size_of::<Header>();
/// Bytes of the longest answer.
pub const ANSWER_MAX: usize = HEADER_LEN + 8 + EDID_MAX;

pub(super) const GET_DISPLAY_INFO: u32 = 0x100;
pub(super) const RESOURCE_CREATE_2D: u32 = 0x101;
pub(super) const RESOURCE_UNREF: u32 = 0x102;
pub(super) const SET_SCANOUT: u32 = 0x103;
pub(super) const RESOURCE_FLUSH: u32 = 0x104;
pub(super) const TRANSFER_TO_HOST_2D: u32 = 0x105;
pub(super) const RESOURCE_ATTACH_BACKING: u32 = 0x106;
pub(super) const RESOURCE_DETACH_BACKING: u32 = 0x107;
pub(super) const GET_EDID: u32 = 0x10A;
pub(super) const UPDATE_CURSOR: u32 = 0x300;
pub(super) const MOVE_CURSOR: u32 = 0x301;

const OK_NODATA: u32 = 0x1100;
const OK_DISPLAY_INFO: u32 = 0x1101;
const OK_EDID: u32 = 0x1104;

const FLAG_FENCE: u32 = 1;

/// What a command fails with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
pub enum Code {
    /// It is not known, or not now.
    #[error("VIRTIO_GPU_RESP_ERR_UNSPEC")]
    Unspecified = 0x1200,
    /// There is no memory for it.
    #[error("VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY")]
    OutOfMemory = 0x1201,
    /// There is no such screen.
    #[error("VIRTIO_GPU_RESP_ERR_INVALID_SCANOUT_ID")]
    ScanoutId = 0x1202,
    /// There is no such resource, or one already.
    #[error("VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID")]
    ResourceId = 0x1203,
    /// A number makes no sense.
    #[error("VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER")]
    Parameter = 0x1205,
}

/// struct virtio_gpu_ctrl_hdr.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) kind: U32,
    pub(super) flags: U32,
    pub(super) fence_id: U64,
    pub(super) ctx_id: U32,
    pub(super) ring_idx: u8,
    pub(super) padding: [u8; 3],
}

/// struct virtio_gpu_rect.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Rect {
    pub(super) x: U32,
    pub(super) y: U32,
    pub(super) width: U32,
    pub(super) height: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Create2d {
    pub(super) resource: U32,
    pub(super) format: U32,
    pub(super) width: U32,
    pub(super) height: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Named {
    pub(super) resource: U32,
    pub(super) padding: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SetScanout {
    pub(super) rect: Rect,
    pub(super) scanout: U32,
    pub(super) resource: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Flush {
    pub(super) rect: Rect,
    pub(super) resource: U32,
    pub(super) padding: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Transfer {
    pub(super) rect: Rect,
    pub(super) offset: U64,
    pub(super) resource: U32,
    pub(super) padding: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct AttachBacking {
    pub(super) resource: U32,
    pub(super) entries: U32,
}

/// struct virtio_gpu_mem_entry.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct MemEntry {
    pub(super) address: U64,
    pub(super) len: U32,
    pub(super) padding: U32,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct UpdateCursor {
    pub(super) scanout: U32,
    pub(super) x: U32,
    pub(super) y: U32,
    pub(super) padding: U32,
    pub(super) resource: U32,
    pub(super) hot_x: U32,
    pub(super) hot_y: U32,
    pub(super) padding2: U32,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// The sizes of the screens; 0 by 0 for one that is off.
    DisplayInfo([(u32, u32); HEADS_MAX]),
    /// What a screen says of itself, at most 1024 bytes.
    Edid(alloc::vec::Vec<u8>),
    /// A whole answer that somebody else made, but for its fence.
    Whole(alloc::vec::Vec<u8>),
    /// It failed.
    Failed(Code),
}

impl Answer {
    /// Writes the answer to a command with this header, at most [`ANSWER_MAX`] bytes, and
    /// says how many.
    pub(super) fn write(&self, command: &Header, target: &mut [u8; ANSWER_MAX]) -> usize {
        let kind = match self {
            Self::Done => OK_NODATA,
            Self::DisplayInfo(_) => OK_DISPLAY_INFO,
            Self::Edid(_) => OK_EDID,
            Self::Whole(bytes) => match bytes.first_chunk::<4>() {
                Some(kind) => u32::from_le_bytes(*kind),
                None => Code::Unspecified as u32,
            },
            Self::Failed(code) => *code as u32,
        };
        // Virtio 1.3 5.7.6.7: what has a fence is answered with it.
        let fenced = command.flags.get() & FLAG_FENCE != 0;
        let header = Header {
            kind: U32::new(kind),
            flags: U32::new(u32::from(fenced) * FLAG_FENCE),
            fence_id: if fenced { command.fence_id } else { U64::ZERO },
            ctx_id: if fenced { command.ctx_id } else { U32::ZERO },
            ring_idx: 0,
            padding: [0; 3],
        };
        let (head, body) = target.split_at_mut(HEADER_LEN);
        head.copy_from_slice(header.as_bytes());
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            let room = body.len() - len;
            let part = &bytes[..bytes.len().min(room)];
            body[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        };
        match self {
            Self::Done | Self::Failed(_) => {}
            Self::DisplayInfo(sizes) => {
                for &(width, height) in sizes {
                    let enabled = u32::from(width > 0 && height > 0);
                    let words = [0, 0, width, height, enabled, 0].map(U32::new);
                    put(words.as_bytes());
                }
            }
            Self::Edid(edid) => {
                let size = u32::try_from(edid.len().min(EDID_MAX)).unwrap_or(0);
                put([size, 0].map(U32::new).as_bytes());
                put(edid);
                put(&[0; EDID_MAX]);
            }
            Self::Whole(bytes) => put(bytes.get(HEADER_LEN..).unwrap_or_default()),
        }
        HEADER_LEN + len
    }
}
