//! Every vfio-user message in one table.
//!
//! What a session checks before it looks into a message, what the fuzz target
//! builds messages from and what the documentation prints are these rows.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;
use core::mem::size_of;

use crate::wire::{
    self, Access, BODY_MAX, DeviceInfo, DmaAccess, DmaMapBody, DmaUnmapBody, FDS_MAX, IoEvent,
    IoFds, IrqInfo, IrqSet, PlaneInfo, RegionInfo, Version,
};

/// The longest version data, in bytes.
pub const VERSION_DATA_MAX: usize = 4096;

/// Who sends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The virtual machine monitor.
    Client,
    /// The device.
    Server,
}

/// What allows a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It is the first one, and comes once.
    First,
    /// The version is agreed upon.
    Open,
    /// `write_multiple` is agreed upon.
    WriteMultiple,
    /// `gfx_plane` is agreed upon.
    Planes,
    /// Nothing: it is refused.
    Refused,
}

/// One kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The message.
    pub command: Command,
    /// Its number on the wire.
    pub code: u16,
    /// Its name in the specification.
    pub name: &'static str,
    /// Who sends it.
    pub sender: Sender,
    /// What allows it.
    pub gate: Gate,
    /// Fewest bytes of its body.
    pub body_min: usize,
    /// Most bytes of its body.
    pub body_max: usize,
    /// Most descriptors that come with it.
    pub fds_max: usize,
    /// Fewest bytes of the body of its reply.
    pub reply_min: usize,
    /// Most bytes of the body of its reply.
    pub reply_max: usize,
    /// Most descriptors that come with its reply.
    pub reply_fds: usize,
}

/// The messages, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the specification describes each under the name in the table"
)]
#[repr(u16)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetRegionIoFds = 6,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    DeviceReset = 13,
    DirtyPages = 14,
    RegionWriteMulti = 15,
    DeviceFeature = 16,
    MigDataRead = 17,
    MigDataWrite = 18,
    /// Ours: docs/vfio-user.md.
    QueryGfxPlane = 0x8000,
    /// Ours: docs/vfio-user.md.
    GetGfxDmabuf = 0x8001,
}

impl Command {
    /// Its number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The row of a number.
    #[must_use]
    pub fn row(code: u16) -> Option<&'static Message> {
        MESSAGES.iter().find(|row| row.code == code)
    }

    /// Its row.
    ///
    /// # Panics
    /// Never: every command has one.
    #[must_use]
    pub fn message(self) -> &'static Message {
        Self::row(self.code()).expect("every command has a row")
    }
}

const fn row(command: Command, name: &'static str, body: (usize, usize)) -> Message {
    Message {
        command,
        code: command.code(),
        name,
        sender: Sender::Client,
        gate: Gate::Open,
        body_min: body.0,
        body_max: body.1,
        fds_max: 0,
        reply_min: 0,
        reply_max: 0,
        reply_fds: 0,
    }
}

impl Message {
    const fn fds(mut self, max: usize) -> Self {
        self.fds_max = max;
        self
    }

    const fn replies(mut self, min: usize, max: usize) -> Self {
        (self.reply_min, self.reply_max) = (min, max);
        self
    }

    const fn reply_fds(mut self, max: usize) -> Self {
        self.reply_fds = max;
        self
    }

    const fn gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    const fn of_server(mut self) -> Self {
        self.sender = Sender::Server;
        self
    }
}

/// A body of one length.
const fn exact<T>() -> (usize, usize) {
    (size_of::<T>(), size_of::<T>())
}

/// A body that goes on behind a structure.
const fn from<T>(more: usize) -> (usize, usize) {
    (size_of::<T>(), size_of::<T>() + more)
}

/// The longest answer about a region: its capabilities are few.
const REGION_REPLY_MAX: usize = 64 << 10;
/// What is refused without a look at its body.
const ANY: (usize, usize) = (0, BODY_MAX);
const DATA: usize = wire::DATA_MAX;

/// All messages (vfio-user: Commands).
#[rustfmt::skip]
pub static MESSAGES: [Message; 20] = {
    use Command as C;
    [
        row(C::Version, "VFIO_USER_VERSION", from::<Version>(VERSION_DATA_MAX)).gate(Gate::First).replies(4, 4 + VERSION_DATA_MAX),
        row(C::DmaMap, "VFIO_USER_DMA_MAP", exact::<DmaMapBody>()).fds(1),
        // SPDK's client sends the descriptor of the map with it.
        row(C::DmaUnmap, "VFIO_USER_DMA_UNMAP", exact::<DmaUnmapBody>()).fds(1).replies(24, 24),
        row(C::DeviceGetInfo, "VFIO_USER_DEVICE_GET_INFO", exact::<DeviceInfo>()).replies(16, 16),
        // libvfio-user's client and SPDK's send as many bytes as they have room for.
        row(C::DeviceGetRegionInfo, "VFIO_USER_DEVICE_GET_REGION_INFO", from::<RegionInfo>(REGION_REPLY_MAX - 32)).replies(32, REGION_REPLY_MAX).reply_fds(FDS_MAX),
        row(C::DeviceGetRegionIoFds, "VFIO_USER_DEVICE_GET_REGION_IO_FDS", from::<IoFds>(REGION_REPLY_MAX - 16)).replies(16, 16 + FDS_MAX * size_of::<IoEvent>()).reply_fds(FDS_MAX),
        row(C::DeviceGetIrqInfo, "VFIO_USER_DEVICE_GET_IRQ_INFO", exact::<IrqInfo>()).replies(16, 16),
        row(C::DeviceSetIrqs, "VFIO_USER_DEVICE_SET_IRQS", from::<IrqSet>(1 << 16)).fds(FDS_MAX),
        row(C::RegionRead, "VFIO_USER_REGION_READ", exact::<Access>()).replies(16, 16 + DATA),
        row(C::RegionWrite, "VFIO_USER_REGION_WRITE", from::<Access>(DATA)).replies(16, 16),
        row(C::DmaRead, "VFIO_USER_DMA_READ", exact::<DmaAccess>()).of_server().replies(16, 16 + DATA),
        // The specification gives the count of the reply 4 bytes, everybody sends 8.
        row(C::DmaWrite, "VFIO_USER_DMA_WRITE", from::<DmaAccess>(DATA)).of_server().replies(12, 16),
        row(C::DeviceReset, "VFIO_USER_DEVICE_RESET", (0, 0)),
        row(C::DirtyPages, "VFIO_USER_DIRTY_PAGES", ANY).gate(Gate::Refused),
        row(C::RegionWriteMulti, "VFIO_USER_REGION_WRITE_MULTI", (8, 8 + wire::WRITES_MAX * 24)).gate(Gate::WriteMultiple).replies(8, 8),
        row(C::DeviceFeature, "VFIO_USER_DEVICE_FEATURE", ANY).gate(Gate::Refused),
        row(C::MigDataRead, "VFIO_USER_MIG_DATA_READ", ANY).gate(Gate::Refused),
        row(C::MigDataWrite, "VFIO_USER_MIG_DATA_WRITE", ANY).gate(Gate::Refused),
        row(C::QueryGfxPlane, "LINKSPAN_QUERY_GFX_PLANE", exact::<PlaneInfo>()).gate(Gate::Planes).replies(64, 64 + wire::PLANE_WORDS_MAX),
        row(C::GetGfxDmabuf, "LINKSPAN_GET_GFX_DMABUF", (4, 4)).gate(Gate::Planes).replies(24, 24).reply_fds(1),
    ]
};

/// The table as a Markdown table, for the documentation.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(
        "| number | message | sent by | body | descriptors | reply | allowed |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let range = |min: usize, max: usize| match (min, max) {
        (min, max) if min == max => format!("{min}"),
        (0, BODY_MAX) => "any".into(),
        (min, max) => format!("{min} to {max}"),
    };
    for row in &MESSAGES {
        let sender = match row.sender {
            Sender::Client => "client",
            Sender::Server => "server",
        };
        let gate = match row.gate {
            Gate::First => "first, once",
            Gate::Open => "after it",
            Gate::WriteMultiple => "`write_multiple`",
            Gate::Planes => "`gfx_plane`",
            Gate::Refused => "never",
        };
        let number = match row.code {
            code @ 0x8000.. => format!("{code:#x}"),
            code => format!("{code}"),
        };
        let _ = writeln!(
            text,
            "| {number} | `{}` | {sender} | {} | {} | {} | {gate} |",
            row.name,
            range(row.body_min, row.body_max),
            range(0, row.fds_max),
            range(row.reply_min, row.reply_max),
        );
    }
    text
}
