//! What a transport needs to know of a device, and what a device needs of a
//! worker: the two sides of the queue seam.

use std::any::Any;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use linkspan_mem::fault::Injected;
use linkspan_mem::{GuestMemory, Span, Window};
use linkspan_sys::{EventFd, Stream};
use linkspan_virtio::{DeviceQueue, Features, QueueError};

use crate::dirty::RingLog;
use crate::worker::Neighbours;

/// Virtio 1.3, 5.1.
pub const NETWORK_DEVICE: u32 = 1;
/// Virtio 1.3, 5.2.
pub const BLOCK_DEVICE: u32 = 2;
/// Virtio 1.3, 5.7.
pub const GPU_DEVICE: u32 = 16;

/// A device as any queue transport offers it. Shared by the session thread and
/// whoever looks at it; what a queue needs alone is in its [`QueueHandler`].
pub trait Device: Send + Sync + 'static {
    /// What log lines and inspection call it.
    fn name(&self) -> &str;

    /// What is offered: the bits of the device type. The transport adds those of
    /// its queues and its own.
    fn features(&self) -> Features;

    /// Number of queues.
    fn queues(&self) -> u16;

    /// The largest size that a queue may have.
    fn queue_size_max(&self) -> u16;

    /// The answer to a front end that asks how many queues there are
    /// (`VHOST_USER_GET_QUEUE_NUM`): devices whose queues come in pairs mostly
    /// count those.
    fn queue_num(&self) -> u64 {
        self.queues().into()
    }

    /// Its type (virtio 1.3, 5). To a [`NETWORK_DEVICE`] [`set_mtu`](Self::set_mtu) and
    /// [`announce`](Self::announce) mean something.
    fn device_id(&self) -> u32;

    /// The guest is to send no longer packets than this many bytes, without the
    /// Ethernet header (`VHOST_USER_NET_SET_MTU`); `false` when that cannot be.
    fn set_mtu(&self, mtu: u16) -> bool {
        let _ = mtu;
        false
    }

    /// Says to its network that a guest with this address is here from now on
    /// (`VHOST_USER_SEND_RARP`); `false` when nobody has such an address.
    fn announce(&self, mac: [u8; 6]) -> bool {
        let _ = mac;
        false
    }

    /// The front end wants the screen shown over this socket from now on
    /// (`VHOST_USER_GPU_SET_SOCKET`). Asked of a [`GPU_DEVICE`] only; must not wait.
    ///
    /// # Errors
    /// When a descriptor or thread cannot be had; the socket is closed then.
    fn set_gpu_socket(&self, socket: Stream) -> io::Result<()> {
        drop(socket);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The driver begins anew, or another one comes: what this one has asked for
    /// through a queue of the device is forgotten. No ring runs then.
    fn reset(&self) {}

    /// Signalled whenever the configuration space has changed by itself, if it ever
    /// does; whoever reads it is the transport.
    fn config_changes(&self) -> Option<Arc<EventFd>> {
        None
    }

    /// Which worker is to have queue `index`, modulo their number: those that pass
    /// something on to each other need the same one.
    fn lane(&self, index: u16) -> u16 {
        index
    }

    /// Size of the configuration space in bytes.
    fn config_size(&self) -> u32 {
        0
    }

    /// Copies configuration space from `offset` on.
    ///
    /// # Errors
    /// When the range is not all inside the configuration space.
    fn read_config(&self, offset: u32, target: &mut [u8]) -> Result<(), ConfigRange> {
        Err(ConfigRange {
            offset,
            len: target.len(),
            size: self.config_size(),
        })
    }

    /// Writes configuration space from `offset` on.
    ///
    /// # Errors
    /// When any byte of the range is outside or cannot be written; nothing is
    /// written then.
    fn write_config(&self, offset: u32, bytes: &[u8]) -> Result<(), ConfigRange> {
        Err(ConfigRange {
            offset,
            len: bytes.len(),
            size: self.config_size(),
        })
    }

    /// What another process opens this device with while this one still serves it, so that it
    /// can take it over: descriptors that stand for what only one may have.
    ///
    /// # Errors
    /// It cannot be taken over.
    fn lend(&self) -> Result<Vec<OwnedFd>, NotLent> {
        Err(NotLent::of(self.name()))
    }

    /// What the process that takes the device over has to know beside what was agreed upon.
    /// No ring runs then.
    ///
    /// # Errors
    /// It cannot be taken over now.
    fn save(&self) -> Result<Vec<u8>, NotLent> {
        Err(NotLent::of(self.name()))
    }

    /// Goes on from what [`save`](Self::save) said in another process, in place of
    /// [`reset`](Self::reset). The bytes are checked.
    ///
    /// # Errors
    /// They make no sense for this device, which is to be dropped then.
    fn load(&self, saved: &[u8]) -> Result<(), NotLent> {
        let _ = saved;
        Err(NotLent::of(self.name()))
    }

    /// What serves queue `index` from now on, with these features acknowledged.
    /// Called once per start, on a session thread; must not wait.
    ///
    /// # Errors
    /// When a resource cannot be had; nothing is left behind then.
    fn open_queue(
        &self,
        index: u16,
        features: Features,
    ) -> Result<Box<dyn QueueHandler>, OpenQueueError>;
}

/// Why a device cannot be taken over by another process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotLent(pub String);

impl NotLent {
    /// None of this kind can.
    #[must_use]
    pub fn of(kind: &str) -> Self {
        Self(format!(
            "a {kind} device cannot be taken over while it runs; restart its link instead"
        ))
    }
}

/// A range outside a device's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bytes {offset} to {offset}+{len} are outside a configuration space of {size} bytes, or cannot be written"
)]
pub struct ConfigRange {
    /// First byte of the range.
    pub offset: u32,
    /// Bytes in the range.
    pub len: usize,
    /// Bytes in the configuration space.
    pub size: u32,
}

/// Why a queue could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenQueueError {
    /// Memory, a descriptor or a thread was refused.
    #[error(transparent)]
    Refused(#[from] Injected),
    /// The driver accepted features that do not go together, or starts a queue
    /// that there is not with those it accepted.
    #[error("queue {index} cannot be with the features {features:#x} of the driver")]
    Features {
        /// The queue.
        index: u16,
        /// What the driver accepted.
        features: u64,
    },
    /// The system said no.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// What serves one queue, on the one worker that owns it.
pub trait QueueHandler: Any + Send {
    /// One pass: takes chains from `ring`, moves work forward, pushes what is
    /// done. The worker has refreshed the ring, and publishes and notifies
    /// afterwards. While [`ActiveRing::logs_writes`] every write to guest memory
    /// is logged before its chain is pushed. Returns whether work was left, and why; with a
    /// budget of no chains, whether what is in flight moves on without a new event.
    ///
    /// # Errors
    /// When the peer broke the ring; the worker retires it.
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError>;

    /// The same for who passes on what it takes to others on its worker.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    fn run_among(
        &mut self,
        ring: &mut ActiveRing,
        budget: Budget,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, QueueError> {
        let _ = neighbours;
        self.run(ring, budget)
    }

    /// How others on its worker reach this ring: a small number of its own. They
    /// fill a ring that has one ([`Neighbours::ring`]); it never has a pass, and its
    /// driver is not asked for kicks.
    fn address(&self) -> Option<u32> {
        None
    }

    /// Said to a handler with an [`address`](Self::address) whenever it may have
    /// changed: whether others may fill the ring. When not, since it was stopped,
    /// disabled or is broken, it gives back what it holds of the ring.
    fn takes(&mut self, ring: &mut ActiveRing, takes: bool) {
        let _ = (ring, takes);
    }

    /// Requests taken and not yet pushed. A pass with a budget of no chains only
    /// moves these on; a ring is stopped once there are none.
    fn in_flight(&self) -> usize {
        0
    }

    /// A descriptor that becomes readable when work in flight has finished.
    /// The worker watches it, level-triggered, for as long as the queue runs.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether work in flight has finished, as far as that can be seen without a
    /// system call. Asked often while a worker looks for work instead of sleeping;
    /// what it does not say, [`completion_fd`](Self::completion_fd) says later.
    fn has_completions(&self) -> bool {
        false
    }
}

/// Whether a pass left work behind that needs no new event to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything that was available has been taken.
    Idle,
    /// The budget ran out first.
    More,
    /// Nothing more is taken before that moment: a [limit](crate::RateLimit) was
    /// reached. The driver is not asked for kicks until then, and a ring that is
    /// to stop stops all the same.
    Until(Instant),
}

/// What one pass over one queue may take at most, so that queues share a worker
/// fairly and none starves another (hostile-peer rule 4).
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Chains taken.
    pub chains: u32,
    /// Bytes moved; a request that goes over is the last of its pass.
    pub bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            chains: 128,
            bytes: 4 << 20,
        }
    }
}

/// A queue that runs: its ring and the memory that its chains point into.
#[derive(Debug)]
pub struct ActiveRing {
    /// The device's side of the ring.
    pub queue: DeviceQueue<Window>,
    /// The generation of guest memory that the ring was resolved in.
    pub memory: Arc<GuestMemory>,
    /// Where writes to that memory are logged, if they are.
    pub log: Option<RingLog>,
}

impl ActiveRing {
    /// Whether writes to buffers are to be [`log`](Self::log_write)ged.
    #[inline]
    pub fn logs_writes(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.buffers)
    }

    /// Shows the driver what was pushed so far, in the middle of a pass, so that a driver
    /// that looks can go on meanwhile; one that sleeps hears of it at the end of the
    /// pass, once. Where writes are logged or memory was lost it waits for that, too.
    /// What is wrong with the queue is said at the end of the pass.
    #[inline]
    pub fn show(&mut self) {
        if self.log.is_none() && !self.memory.table().poisoned() {
            let _ = self.queue.publish();
        }
    }

    /// Logs that the device wrote these bytes of the guest, or may have. To be
    /// called after the write, and before the chain is pushed.
    pub fn log_write(&self, span: Span) {
        if let Some(log) = &self.log {
            log.buffer(&self.memory, span);
        }
    }
}
