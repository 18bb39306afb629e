//! Questions to a server.

use alloc::vec::Vec;
use core::mem::size_of;

use linkspan_mem::Iova;
use zerocopy::IntoBytes as _;

use super::{Client, ClientError, WAITING_MAX, Waiting};
use crate::dma::DmaMap;
use crate::framing::message;
use crate::irq::{IrqAction, IrqData, SetIrqs};
use crate::message::{Command, Gate};
use crate::wire::{
    Access, DmaMapBody, DmaUnmapBody, Header, IRQ_ACTION_MASK, IRQ_ACTION_TRIGGER,
    IRQ_ACTION_UNMASK, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IrqSet, MultiWrite,
    PLANE_WORDS_MAX, PlaneInfo, UNMAP_ALL,
};

/// A question to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask<'a> {
    /// Here is memory; with its descriptor if it is shared.
    Map(DmaMap),
    /// This map is to go.
    Unmap {
        /// Its address.
        address: Iova,
        /// Its bytes.
        size: u64,
    },
    /// All maps are to go.
    UnmapAll,
    /// What is the device.
    Info,
    /// What is this region. With less room than the answer takes only its head comes.
    Region {
        /// Which.
        index: u32,
        /// Bytes that the answer may have.
        room: u32,
    },
    /// Which parts of a region are eventfds. With less room than the answer takes only
    /// its head comes.
    Doorbells {
        /// Which region.
        index: u32,
        /// Bytes that the answer may have.
        room: u32,
    },
    /// What is this kind of interrupts.
    Irq {
        /// Which.
        index: u32,
    },
    /// Interrupts are to be told so; with a descriptor for each if they are
    /// [`IrqData::Events`].
    SetIrqs(&'a SetIrqs),
    /// Read a region.
    Read {
        /// Which.
        region: u32,
        /// The first byte.
        offset: u64,
        /// How many.
        count: u32,
    },
    /// Write a region.
    Write {
        /// Which.
        region: u32,
        /// The first byte.
        offset: u64,
        /// They.
        bytes: &'a [u8],
    },
    /// Write several times, up to 8 bytes each: region, offset, bytes.
    WriteMulti(&'a [(u32, u64, &'a [u8])]),
    /// Reset the device.
    Reset,
    /// What does a plane show: flags and type count.
    QueryPlane {
        /// `VFIO_GFX_PLANE_TYPE_*`.
        flags: u32,
        /// `DRM_PLANE_TYPE_*`.
        kind: u32,
    },
    /// The memory of a plane.
    GetPlane {
        /// The id that an answer named.
        id: u32,
    },
}

impl Client {
    /// The message that asks, and the number of the answer. What belongs to it of
    /// descriptors goes with its first byte.
    ///
    /// # Errors
    /// [`ClientError`]: nothing is asked.
    pub fn ask(&mut self, ask: &Ask<'_>) -> Result<(u16, Vec<u8>), ClientError> {
        let command = ask.command();
        let code = command.code();
        if self.over {
            return Err(ClientError::Over);
        }
        let agreed = self
            .agreed
            .ok_or(ClientError::NotAgreed { command: code })?;
        let allowed = match command.message().gate {
            Gate::WriteMultiple => agreed.capabilities.write_multiple,
            Gate::Planes => agreed.capabilities.gfx_plane,
            _ => true,
        };
        if !allowed {
            return Err(ClientError::NotAgreed { command: code });
        }
        let max = agreed.capabilities.data_xfer_size;
        let count = match ask {
            Ask::Read { count, .. } => u64::from(*count),
            Ask::Write { bytes, .. } => bytes.len() as u64,
            _ => 0,
        };
        if count > max {
            return Err(ClientError::Transfer { count, max });
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(ClientError::Busy);
        }
        let mut id = self.next;
        while self.waiting.iter().any(|waiting| waiting.id == id) {
            id = id.wrapping_add(1);
        }
        self.next = id.wrapping_add(1);
        let (echo, body) = ask.body();
        let most = command.message().reply_max;
        let room = match ask {
            Ask::Region { room, .. } | Ask::Doorbells { room, .. } => {
                usize::try_from(*room).unwrap_or(most).min(most)
            }
            Ask::Read { count, .. } => (size_of::<Access>() + *count as usize).min(most),
            _ => most,
        };
        self.waiting.push(Waiting {
            id,
            command,
            echo,
            room,
        });
        Ok((id, message(id, code, Header::COMMAND, 0, &[&body])))
    }
}

impl Ask<'_> {
    fn command(&self) -> Command {
        match self {
            Self::Map(_) => Command::DmaMap,
            Self::Unmap { .. } | Self::UnmapAll => Command::DmaUnmap,
            Self::Info => Command::DeviceGetInfo,
            Self::Region { .. } => Command::DeviceGetRegionInfo,
            Self::Doorbells { .. } => Command::DeviceGetRegionIoFds,
            Self::Irq { .. } => Command::DeviceGetIrqInfo,
            Self::SetIrqs(_) => Command::DeviceSetIrqs,
            Self::Read { .. } => Command::RegionRead,
            Self::Write { .. } => Command::RegionWrite,
            Self::WriteMulti(_) => Command::RegionWriteMulti,
            Self::Reset => Command::DeviceReset,
            Self::QueryPlane { .. } => Command::QueryGfxPlane,
            Self::GetPlane { .. } => Command::GetGfxDmabuf,
        }
    }

    /// What the answer has to repeat, and the body of the question.
    fn body(&self) -> (Option<Access>, Vec<u8>) {
        match *self {
            Self::Map(map) => (None, map_body(&map)),
            Self::Unmap { address, size } => (None, unmap_body(0, address.0, size)),
            Self::UnmapAll => (None, unmap_body(UNMAP_ALL, 0, 0)),
            Self::Info => (None, words(&[16, 0, 0, 0])),
            Self::Region { index, room } => {
                let body = words(&[room, 0, index, 0, 0, 0, 0, 0]);
                (Some(echo(index)), body)
            }
            Self::Doorbells { index, room } => (Some(echo(index)), words(&[room, 0, index, 0])),
            Self::Irq { index } => (Some(echo(index)), words(&[16, 0, index, 0])),
            Self::SetIrqs(set) => (None, irqs(set)),
            Self::Read {
                region,
                offset,
                count,
            } => {
                let access = Access {
                    offset,
                    region,
                    count,
                };
                (Some(access), access.as_bytes().to_vec())
            }
            Self::Write {
                region,
                offset,
                bytes,
            } => {
                let access = Access {
                    offset,
                    region,
                    count: len(bytes.len()),
                };
                let mut body = access.as_bytes().to_vec();
                body.extend_from_slice(bytes);
                (Some(access), body)
            }
            Self::WriteMulti(list) => {
                let count = len(list.len());
                let access = Access { count, ..echo(0) };
                (Some(access), writes(list))
            }
            Self::Reset => (None, Vec::new()),
            Self::QueryPlane { flags, kind } => {
                let mut all = [0; 16];
                let room = PlaneInfo::BYTES + len(PLANE_WORDS_MAX);
                (all[0], all[1], all[2]) = (room, flags, kind);
                (Some(echo(kind)), words(&all))
            }
            Self::GetPlane { id } => (Some(echo(id)), words(&[id])),
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.as_bytes().to_vec()
}

fn len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// A number that an answer has to repeat.
const fn echo(region: u32) -> Access {
    Access {
        offset: 0,
        region,
        count: 0,
    }
}

fn map_body(map: &DmaMap) -> Vec<u8> {
    let body = DmaMapBody {
        argsz: 32,
        flags: map.flags(),
        offset: map.offset,
        address: map.address.0,
        size: map.size,
    };
    body.as_bytes().to_vec()
}

fn unmap_body(flags: u32, address: u64, size: u64) -> Vec<u8> {
    let body = DmaUnmapBody {
        argsz: 24,
        flags,
        address,
        size,
    };
    body.as_bytes().to_vec()
}

/// The body of several writes, of which the first 8 bytes of each count.
fn writes(list: &[(u32, u64, &[u8])]) -> Vec<u8> {
    let mut body = (list.len() as u64).as_bytes().to_vec();
    for (region, offset, bytes) in list {
        let mut data = [0; 8];
        let count = bytes.len().min(data.len());
        data[..count].copy_from_slice(&bytes[..count]);
        let access = Access {
            offset: *offset,
            region: *region,
            count: len(count),
        };
        body.extend_from_slice(MultiWrite { access, data }.as_bytes());
    }
    body
}

/// The body that sets interrupts.
fn irqs(set: &SetIrqs) -> Vec<u8> {
    let action = match set.action {
        IrqAction::Mask => IRQ_ACTION_MASK,
        IrqAction::Unmask => IRQ_ACTION_UNMASK,
        IrqAction::Trigger => IRQ_ACTION_TRIGGER,
    };
    let mut data = Vec::new();
    let kind = match &set.data {
        IrqData::None => IRQ_DATA_NONE,
        IrqData::Bool(meant) => {
            data.extend(meant.iter().map(|is| u8::from(*is)));
            IRQ_DATA_BOOL
        }
        IrqData::Events | IrqData::Unassign => IRQ_DATA_EVENTFD,
    };
    let head = IrqSet {
        argsz: u32::try_from(size_of::<IrqSet>() + data.len()).unwrap_or(u32::MAX),
        flags: action | kind,
        index: set.index,
        start: set.start,
        count: set.count,
    };
    let mut body = head.as_bytes().to_vec();
    body.append(&mut data);
    body
}
