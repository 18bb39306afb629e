//! Every vhost-user message in one table.
//!
//! What a session checks before it looks into a message, what the fuzz target
//! builds messages from and what the documentation prints are these rows.

use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};
use core::ops::RangeInclusive;

use crate::features::{ProtocolFeatures, VHOST_F_LOG_ALL, VIRTIO_F_ACCESS_PLATFORM};
use crate::wire::{MAX_BODY_BYTES, VHOST_USER_MAX_CONFIG_SIZE};

/// One kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message<R: 'static> {
    /// The message.
    pub request: R,
    /// Its number on the wire.
    pub code: u32,
    /// Its name in the specification.
    pub name: &'static str,
    /// What its body holds.
    pub payload: Payload,
    /// Fewest descriptors that come with it.
    pub min_fds: usize,
    /// Most descriptors that come with it.
    pub max_fds: usize,
    /// What allows it.
    pub gate: Gate,
    /// Whom it concerns. A front end with several devices on one connection
    /// sends a message about the device once.
    pub scope: Scope,
    /// In which state of the ring it is legal.
    pub when: When,
    /// What is sent back.
    pub reply: Reply,
    /// Most descriptors that come with what is sent back.
    pub reply_fds: usize,
}

/// What a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// Nothing.
    None,
    /// A number.
    U64,
    /// A ring and a number: [`VringState`](crate::wire::VringState).
    VringState,
    /// [`VringAddr`](crate::wire::VringAddr).
    VringAddr,
    /// A `u64` of ring and `NOFD` bit; one descriptor unless that bit is set.
    VringFd,
    /// [`MemoryTableHeader`](crate::wire::MemoryTableHeader) and up to 8 regions.
    MemoryTable,
    /// [`SingleMemoryRegion`](crate::wire::SingleMemoryRegion).
    MemoryRegion,
    /// [`ConfigHeader`](crate::wire::ConfigHeader) and up to 256 bytes.
    Config,
    /// Size and offset of the dirty log.
    Log,
    /// Nothing, a `u64` or the log again: the specification does not say
    /// what is in the reply, and each of them is sent by somebody.
    LogReply,
    /// `struct vhost_iotlb_msg`.
    Iotlb,
    /// Parameters of a crypto session; their length depends on the algorithm.
    CryptoSession,
    /// Inflight description; its 20 bytes are sent as 24 by those who let a
    /// compiler lay it out.
    Inflight,
    /// A UUID.
    SharedObject,
    /// Direction and phase of a state transfer.
    DeviceState,
    /// Vring area description.
    VringArea,
    /// MMAP request.
    Mmap,
    /// Sizes of 256 shared memory regions.
    ShmemConfig,
}

/// What makes a message legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// Nothing is needed.
    Open,
    /// `VHOST_USER_F_PROTOCOL_FEATURES` is *offered*. Acknowledged it need not
    /// be: QEMU before 7.2 never does so.
    ProtocolFeatures,
    /// These protocol features are offered.
    Offered(ProtocolFeatures),
    /// These protocol features are negotiated.
    Negotiated(ProtocolFeatures),
    /// These virtio features are offered.
    Feature(u64),
    /// The device is of this kind.
    Device(&'static str),
}

/// Whom a message concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole device.
    Device,
    /// The ring whose index the body starts with.
    Ring,
}

/// In which state of the ring, or of all rings, a message is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In every state.
    Any,
    /// Before the ring is started, and after it is stopped.
    Stopped,
    /// On a running ring it may change what is logged, and nothing else.
    StoppedOrLog,
    /// It starts a ring that has features, size and addresses.
    SetUp,
}

/// What is sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A `u64`, 0 for success, if `REPLY_ACK` is negotiated and the header asks.
    Ack,
    /// This, always; `NEED_REPLY` changes nothing.
    Always(Payload),
    /// This, always; an empty body says that it failed.
    OrEmpty(Payload),
    /// A `u64`, always; a low byte that is not 0 says that it failed.
    Code,
}

/// What a front end sends, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the specification describes each under the name in the table"
)]
#[repr(u32)]
pub enum Request {
    GetFeatures = 1,
    SetFeatures,
    SetOwner,
    ResetOwner,
    SetMemTable,
    SetLogBase,
    SetLogFd,
    SetVringNum,
    SetVringAddr,
    SetVringBase,
    GetVringBase,
    SetVringKick,
    SetVringCall,
    SetVringErr,
    GetProtocolFeatures,
    SetProtocolFeatures,
    GetQueueNum,
    SetVringEnable,
    SendRarp,
    NetSetMtu,
    SetBackendReqFd,
    IotlbMsg,
    SetVringEndian,
    GetConfig,
    SetConfig,
    CreateCryptoSession,
    CloseCryptoSession,
    PostcopyAdvise,
    PostcopyListen,
    PostcopyEnd,
    GetInflightFd,
    SetInflightFd,
    GpuSetSocket,
    ResetDevice,
    VringKick,
    GetMaxMemSlots,
    AddMemReg,
    RemMemReg,
    SetStatus,
    GetStatus,
    GetSharedObject,
    SetDeviceStateFd,
    CheckDeviceState,
    GetShmemConfig,
}

/// What a back end sends on its own socket, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the specification describes each under the name in the table"
)]
#[repr(u32)]
pub enum BackendRequest {
    IotlbMsg = 1,
    ConfigChangeMsg,
    VringHostNotifierMsg,
    VringCall,
    VringErr,
    SharedObjectAdd,
    SharedObjectRemove,
    SharedObjectLookup,
    ShmemMap,
    ShmemUnmap,
}

impl Request {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The row of this message.
    #[must_use]
    pub fn message(self) -> &'static Message<Self> {
        find(&FRONTEND_REQUESTS, self.code()).expect("every request has its row")
    }
}

impl BackendRequest {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The row of this message.
    #[must_use]
    pub fn message(self) -> &'static Message<Self> {
        find(&BACKEND_REQUESTS, self.code()).expect("every request has its row")
    }
}

impl Payload {
    /// The lengths that a body of this kind can have, in bytes.
    #[must_use]
    pub const fn sizes(self) -> RangeInclusive<usize> {
        match self {
            Self::None => 0..=0,
            Self::U64 | Self::VringFd | Self::VringState | Self::DeviceState => 8..=8,
            Self::VringAddr | Self::MemoryRegion | Self::Mmap => 40..=40,
            Self::MemoryTable => 8..=8 + 8 * 32,
            Self::Config => 12..=12 + VHOST_USER_MAX_CONFIG_SIZE,
            Self::Log | Self::SharedObject => 16..=16,
            Self::LogReply => 0..=16,
            Self::Iotlb => 32..=32,
            Self::CryptoSession => 8..=MAX_BODY_BYTES,
            Self::Inflight => 20..=24,
            Self::VringArea => 24..=24,
            Self::ShmemConfig => 2056..=2056,
        }
    }
}

/// The row of the message with this number.
#[must_use]
pub fn find<R>(table: &'static [Message<R>], code: u32) -> Option<&'static Message<R>> {
    let at = usize::try_from(code.checked_sub(1)?).ok()?;
    table.get(at).filter(|row| row.code == code)
}

impl<R: Copy> Message<R> {
    const fn new(request: R, code: u32, name: &'static str, payload: Payload) -> Self {
        let scope = match payload {
            Payload::VringState | Payload::VringAddr | Payload::VringFd => Scope::Ring,
            _ => Scope::Device,
        };
        Self {
            request,
            code,
            name,
            payload,
            min_fds: 0,
            max_fds: 0,
            gate: Gate::Open,
            scope,
            when: When::Any,
            reply: Reply::Ack,
            reply_fds: 0,
        }
    }

    const fn fds(mut self, min: usize, max: usize) -> Self {
        self.min_fds = min;
        self.max_fds = max;
        self
    }

    const fn gate(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    const fn with(self, features: ProtocolFeatures) -> Self {
        self.gate(Gate::Negotiated(features))
    }

    const fn when(mut self, when: When) -> Self {
        self.when = when;
        self
    }

    const fn replies(mut self, payload: Payload) -> Self {
        self.reply = Reply::Always(payload);
        self
    }

    const fn replies_code(mut self) -> Self {
        self.reply = Reply::Code;
        self
    }

    const fn reply_fds(mut self, max: usize) -> Self {
        self.reply_fds = max;
        self
    }

    const fn replies_or_empty(mut self, payload: Payload) -> Self {
        self.reply = Reply::OrEmpty(payload);
        self
    }
}

type P = Payload;
type F = ProtocolFeatures;

const fn front(request: Request, name: &'static str, payload: Payload) -> Message<Request> {
    Message::new(request, request.code(), name, payload)
}

const fn back(
    request: BackendRequest,
    name: &'static str,
    payload: Payload,
) -> Message<BackendRequest> {
    Message::new(request, request.code(), name, payload)
}

/// What a front end may send (vhost-user: Front-end message types). Row `i` is message `i + 1`.
#[rustfmt::skip]
pub static FRONTEND_REQUESTS: [Message<Request>; 44] = {
    use Request as R;
    [
        front(R::GetFeatures, "VHOST_USER_GET_FEATURES", P::None).replies(P::U64),
        front(R::SetFeatures, "VHOST_USER_SET_FEATURES", P::U64).when(When::StoppedOrLog),
        front(R::SetOwner, "VHOST_USER_SET_OWNER", P::None),
        front(R::ResetOwner, "VHOST_USER_RESET_OWNER", P::None),
        front(R::SetMemTable, "VHOST_USER_SET_MEM_TABLE", P::MemoryTable).fds(0, 8),
        front(R::SetLogBase, "VHOST_USER_SET_LOG_BASE", P::Log).fds(1, 1).with(F::LOG_SHMFD).replies(P::LogReply),
        front(R::SetLogFd, "VHOST_USER_SET_LOG_FD", P::None).fds(1, 1).gate(Gate::Feature(VHOST_F_LOG_ALL)),
        front(R::SetVringNum, "VHOST_USER_SET_VRING_NUM", P::VringState).when(When::Stopped),
        front(R::SetVringAddr, "VHOST_USER_SET_VRING_ADDR", P::VringAddr).when(When::StoppedOrLog),
        front(R::SetVringBase, "VHOST_USER_SET_VRING_BASE", P::VringState).when(When::Stopped),
        front(R::GetVringBase, "VHOST_USER_GET_VRING_BASE", P::VringState).replies(P::VringState),
        front(R::SetVringKick, "VHOST_USER_SET_VRING_KICK", P::VringFd).fds(0, 1).when(When::SetUp),
        front(R::SetVringCall, "VHOST_USER_SET_VRING_CALL", P::VringFd).fds(0, 1),
        front(R::SetVringErr, "VHOST_USER_SET_VRING_ERR", P::VringFd).fds(0, 1),
        front(R::GetProtocolFeatures, "VHOST_USER_GET_PROTOCOL_FEATURES", P::None).gate(Gate::ProtocolFeatures).replies(P::U64),
        front(R::SetProtocolFeatures, "VHOST_USER_SET_PROTOCOL_FEATURES", P::U64).gate(Gate::ProtocolFeatures),
        front(R::GetQueueNum, "VHOST_USER_GET_QUEUE_NUM", P::None).gate(Gate::Offered(F::MQ)).replies(P::U64),
        front(R::SetVringEnable, "VHOST_USER_SET_VRING_ENABLE", P::VringState).gate(Gate::ProtocolFeatures),
        front(R::SendRarp, "VHOST_USER_SEND_RARP", P::U64).with(F::RARP),
        front(R::NetSetMtu, "VHOST_USER_NET_SET_MTU", P::U64).with(F::NET_MTU),
        front(R::SetBackendReqFd, "VHOST_USER_SET_BACKEND_REQ_FD", P::None).fds(1, 1).with(F::BACKEND_REQ),
        front(R::IotlbMsg, "VHOST_USER_IOTLB_MSG", P::Iotlb).gate(Gate::Feature(VIRTIO_F_ACCESS_PLATFORM)),
        front(R::SetVringEndian, "VHOST_USER_SET_VRING_ENDIAN", P::VringState).with(F::CROSS_ENDIAN).when(When::Stopped),
        front(R::GetConfig, "VHOST_USER_GET_CONFIG", P::Config).with(F::CONFIG).replies_or_empty(P::Config),
        front(R::SetConfig, "VHOST_USER_SET_CONFIG", P::Config).with(F::CONFIG),
        front(R::CreateCryptoSession, "VHOST_USER_CREATE_CRYPTO_SESSION", P::CryptoSession).with(F::CRYPTO_SESSION).replies(P::CryptoSession),
        front(R::CloseCryptoSession, "VHOST_USER_CLOSE_CRYPTO_SESSION", P::U64).with(F::CRYPTO_SESSION),
        front(R::PostcopyAdvise, "VHOST_USER_POSTCOPY_ADVISE", P::None).with(F::PAGEFAULT).replies(P::None).reply_fds(1),
        front(R::PostcopyListen, "VHOST_USER_POSTCOPY_LISTEN", P::None).with(F::PAGEFAULT),
        front(R::PostcopyEnd, "VHOST_USER_POSTCOPY_END", P::None).with(F::PAGEFAULT).replies(P::U64),
        front(R::GetInflightFd, "VHOST_USER_GET_INFLIGHT_FD", P::Inflight).with(F::INFLIGHT_SHMFD).replies(P::Inflight).reply_fds(1),
        front(R::SetInflightFd, "VHOST_USER_SET_INFLIGHT_FD", P::Inflight).fds(1, 1).with(F::INFLIGHT_SHMFD),
        front(R::GpuSetSocket, "VHOST_USER_GPU_SET_SOCKET", P::None).fds(1, 1).gate(Gate::Device("gpu")),
        front(R::ResetDevice, "VHOST_USER_RESET_DEVICE", P::None).with(F::RESET_DEVICE),
        front(R::VringKick, "VHOST_USER_VRING_KICK", P::VringState).with(F::INBAND_NOTIFICATIONS),
        front(R::GetMaxMemSlots, "VHOST_USER_GET_MAX_MEM_SLOTS", P::None).with(F::CONFIGURE_MEM_SLOTS).replies(P::U64),
        front(R::AddMemReg, "VHOST_USER_ADD_MEM_REG", P::MemoryRegion).fds(1, 1).with(F::CONFIGURE_MEM_SLOTS),
        // Old front ends attach a descriptor, which is to be closed unused.
        front(R::RemMemReg, "VHOST_USER_REM_MEM_REG", P::MemoryRegion).fds(0, 1).with(F::CONFIGURE_MEM_SLOTS),
        front(R::SetStatus, "VHOST_USER_SET_STATUS", P::U64).with(F::STATUS),
        front(R::GetStatus, "VHOST_USER_GET_STATUS", P::None).with(F::STATUS).replies(P::U64),
        front(R::GetSharedObject, "VHOST_USER_GET_SHARED_OBJECT", P::SharedObject).with(F::SHARED_OBJECT).replies(P::None).reply_fds(1),
        front(R::SetDeviceStateFd, "VHOST_USER_SET_DEVICE_STATE_FD", P::DeviceState).fds(1, 1).with(F::DEVICE_STATE).replies_code().reply_fds(1),
        front(R::CheckDeviceState, "VHOST_USER_CHECK_DEVICE_STATE", P::None).with(F::DEVICE_STATE).replies_code(),
        front(R::GetShmemConfig, "VHOST_USER_GET_SHMEM_CONFIG", P::None).with(F::SHMEM).replies(P::ShmemConfig),
    ]
};

/// What a back end may send on its own socket (vhost-user: Back-end message types).
#[rustfmt::skip]
pub static BACKEND_REQUESTS: [Message<BackendRequest>; 10] = {
    use BackendRequest as R;
    [
        back(R::IotlbMsg, "VHOST_USER_BACKEND_IOTLB_MSG", P::Iotlb).gate(Gate::Feature(VIRTIO_F_ACCESS_PLATFORM)),
        back(R::ConfigChangeMsg, "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG", P::None).with(F::CONFIG),
        back(R::VringHostNotifierMsg, "VHOST_USER_BACKEND_VRING_HOST_NOTIFIER_MSG", P::VringArea).fds(0, 1).with(F::HOST_NOTIFIER),
        back(R::VringCall, "VHOST_USER_BACKEND_VRING_CALL", P::VringState).with(F::INBAND_NOTIFICATIONS),
        back(R::VringErr, "VHOST_USER_BACKEND_VRING_ERR", P::VringState).with(F::INBAND_NOTIFICATIONS),
        back(R::SharedObjectAdd, "VHOST_USER_BACKEND_SHARED_OBJECT_ADD", P::SharedObject).with(F::SHARED_OBJECT),
        back(R::SharedObjectRemove, "VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE", P::SharedObject).with(F::SHARED_OBJECT),
        back(R::SharedObjectLookup, "VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP", P::SharedObject).with(F::SHARED_OBJECT).replies(P::U64),
        back(R::ShmemMap, "VHOST_USER_BACKEND_SHMEM_MAP", P::Mmap).fds(1, 1).with(F::SHMEM),
        back(R::ShmemUnmap, "VHOST_USER_BACKEND_SHMEM_UNMAP", P::Mmap).with(F::SHMEM),
    ]
};

/// The table as a Markdown table, for the documentation.
#[must_use]
pub fn markdown<R>(table: &[Message<R>]) -> String {
    let mut text = String::from(
        "| number | message | body, bytes | fds | needs | about | when | reply |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for row in table {
        let fds = range(row.min_fds, row.max_fds);
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            row.code, row.name, row.payload, fds, row.gate, row.scope, row.when, row.reply
        )
        .expect("a String takes every text");
    }
    text
}

fn range(min: usize, max: usize) -> String {
    if min == max {
        format!("{min}")
    } else {
        format!("{min} to {max}")
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::None => return f.write_str("none"),
            Self::U64 => "u64",
            Self::VringState => "ring state",
            Self::VringAddr => "ring addresses",
            Self::VringFd => "ring and NOFD",
            Self::MemoryTable => "memory regions",
            Self::MemoryRegion => "memory region",
            Self::Config => "config space",
            Self::Log => "log",
            Self::LogReply => "ignored",
            Self::Iotlb => "IOTLB",
            Self::CryptoSession => "crypto session",
            Self::Inflight => "inflight",
            Self::SharedObject => "UUID",
            Self::DeviceState => "transfer",
            Self::VringArea => "ring area",
            Self::Mmap => "mapping",
            Self::ShmemConfig => "shared memory sizes",
        };
        let sizes = self.sizes();
        write!(f, "{what}, {}", range(*sizes.start(), *sizes.end()))
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("nothing"),
            Self::ProtocolFeatures => f.write_str("VHOST_USER_F_PROTOCOL_FEATURES offered"),
            Self::Offered(features) => {
                bitflags::parser::to_writer(features, &mut *f)?;
                f.write_str(" offered")
            }
            Self::Negotiated(features) => bitflags::parser::to_writer(features, f),
            Self::Feature(bits) => write!(f, "virtio feature bit {}", bits.trailing_zeros()),
            Self::Device(kind) => write!(f, "a {kind} device"),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Ring => "ring",
        })
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any time",
            Self::Stopped => "ring stopped",
            Self::StoppedOrLog => "ring stopped; running: logging only",
            Self::SetUp => "ring set up",
        })
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack => f.write_str("if asked"),
            Self::Always(payload) => write!(f, "always: {payload}"),
            Self::Code => write!(f, "always: {}, not 0 on failure", Payload::U64),
            Self::OrEmpty(payload) => write!(f, "always: {payload}; empty on failure"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_at_their_numbers() {
        for (at, row) in FRONTEND_REQUESTS.iter().enumerate() {
            assert_eq!(row.code as usize, at + 1, "{}", row.name);
            assert_eq!(row.request.code(), row.code);
            assert_eq!(find(&FRONTEND_REQUESTS, row.code), Some(row));
        }
        for (at, row) in BACKEND_REQUESTS.iter().enumerate() {
            assert_eq!(row.code as usize, at + 1, "{}", row.name);
            assert_eq!(row.request.code(), row.code);
        }
        for code in [0, 45, u32::MAX] {
            assert_eq!(find(&FRONTEND_REQUESTS, code), None);
        }
    }

    /// Numbers that sessions of others are known by.
    #[test]
    fn known_numbers() {
        let known = [
            (5, "VHOST_USER_SET_MEM_TABLE"),
            (11, "VHOST_USER_GET_VRING_BASE"),
            (18, "VHOST_USER_SET_VRING_ENABLE"),
            (24, "VHOST_USER_GET_CONFIG"),
            (31, "VHOST_USER_GET_INFLIGHT_FD"),
            (36, "VHOST_USER_GET_MAX_MEM_SLOTS"),
            (39, "VHOST_USER_SET_STATUS"),
            (44, "VHOST_USER_GET_SHMEM_CONFIG"),
        ];
        for (code, name) in known {
            assert_eq!(
                find(&FRONTEND_REQUESTS, code).map(|row| row.name),
                Some(name)
            );
        }
    }

    #[test]
    fn rows_fit_the_limits() {
        for row in &FRONTEND_REQUESTS {
            assert!(row.min_fds <= row.max_fds && row.max_fds <= crate::wire::MAX_FDS);
            assert!(*row.payload.sizes().end() <= MAX_BODY_BYTES, "{}", row.name);
        }
    }

    #[test]
    fn prints_as_markdown() {
        let text = markdown(&FRONTEND_REQUESTS);
        assert_eq!(text.lines().count(), 46);
        assert!(text.contains(
            "| 37 | VHOST_USER_ADD_MEM_REG | memory region, 40 | 1 | CONFIGURE_MEM_SLOTS | \
             device | any time | if asked |"
        ));
        assert!(text.contains("| 17 | VHOST_USER_GET_QUEUE_NUM | none | 0 | MQ offered | "));
        assert_eq!(markdown(&BACKEND_REQUESTS).lines().count(), 12);
    }
}
