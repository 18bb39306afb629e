//! A channel: two rings, and what signals either end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_mem::fault::{self, Injected, Site};
use linkspan_mem::{Region, Window};
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::uio::Device;
use linkspan_sys::{EventFd, PeerEventFd, PeerMemory, eventfd, mapping, reaper};
use linkspan_vmbus::ring::VMBUS_PAGE;
use linkspan_vmbus::{Incoming, Outgoing, Packet, RingError, Shape, StartError};

use crate::spin::Spin;

/// How long an end looks for packets before it sleeps, while that pays.
const LOOK: Duration = Duration::from_micros(50);

/// Looks at the ring between two looks at the clock: less than a microsecond.
const LOOKS: u32 = 16;

/// Bytes of both rings at most, of a host of ours.
const RINGS_MAX: u64 = 1 << 28;

/// Which end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest's: it sends on the first ring.
    Guest,
    /// The host's.
    Host,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The memory cannot be used.
    #[error(transparent)]
    Memory(#[from] mapping::Error),
    /// What signals cannot be used.
    #[error(transparent)]
    Event(#[from] eventfd::Error),
    /// The rings cannot be joined.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A size that no host of ours gives.
    #[error("a ring of {size} bytes: it is a multiple of 4096 from 8192 on, and at most 128 MiB")]
    Size {
        /// Bytes.
        size: u64,
    },
    /// A host that gives other descriptors than a channel has.
    #[error("{got} descriptors for a channel, which has 3")]
    Descriptors {
        /// How many came.
        got: usize,
    },
    /// There is no room for a packet.
    #[error(transparent)]
    Refused(#[from] Injected),
    /// The system refused something.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A channel that a host offers: it has the memory and both signals. A guest in
/// another process gets descriptors of them ([`Offer::descriptors`]); whoever plays a
/// device maps the memory and passes signals on.
#[derive(Debug)]
pub struct Offer {
    /// Two rings in a memfd that keeps its size: guest to host first.
    pub memory: OwnedFd,
    /// Where they are in it.
    pub shape: Shape,
    /// Signals the host.
    pub kick: EventFd,
    /// Signals the guest.
    pub call: EventFd,
}

impl Offer {
    /// Two empty rings of `ring` bytes each, a header of 4096 included.
    ///
    /// # Errors
    /// The size cannot be, or the system refused; nothing stays.
    pub fn new(ring: u64) -> Result<Self, ChannelError> {
        let wrong = ChannelError::Size { size: ring };
        let shape = match ring.checked_mul(2) {
            Some(len) if len <= RINGS_MAX => Shape::halves(len, VMBUS_PAGE),
            _ => return Err(wrong),
        };
        if shape.data().is_err() {
            return Err(wrong);
        }
        Ok(Self {
            memory: memfd::create("linkspan vmbus", shape.len, Sealing::Fixed)?,
            shape,
            kick: EventFd::new()?,
            call: EventFd::new()?,
        })
    }

    /// What a guest in another process needs, in the order of CHANNEL.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.memory.as_fd(), self.kick.as_fd(), self.call.as_fd()]
    }

    /// The host's end.
    ///
    /// # Errors
    /// The system refused.
    pub fn host(&self) -> Result<Channel, ChannelError> {
        fault::point(Site::Fd)?;
        let memory = PeerMemory::check(self.memory.try_clone()?)?;
        let region = Region::new(Arc::new(memory.map(0, self.shape.len, None)?));
        // The guest has the same open files, so that they are as much its as ours.
        let wait = PeerEventFd::check(self.kick.try_clone()?.into())?;
        let ring = PeerEventFd::check(self.call.try_clone()?.into())?;
        Channel::new(&region, self.shape, End::Host, Line::Events { wait, ring })
    }
}

/// What waits and what signals.
#[derive(Debug)]
enum Line {
    Events {
        wait: PeerEventFd,
        ring: PeerEventFd,
    },
    Device(Device),
}

/// One end of a channel.
#[derive(Debug)]
pub struct Channel {
    /// The ring from here.
    pub outgoing: Outgoing<Window>,
    /// The ring to here.
    pub incoming: Incoming<Window>,
    region: Region,
    line: Line,
    spin: Spin,
    /// Since when nothing has come although something was awaited.
    since: Option<Instant>,
    /// The other end was told not to signal.
    quiet: bool,
}

impl Channel {
    fn new(region: &Region, shape: Shape, end: End, line: Line) -> Result<Self, ChannelError> {
        let [to_host, to_guest] = shape.rings(region, 0)?;
        let (outgoing, incoming) = match end {
            End::Guest => (to_host, to_guest),
            End::Host => (to_guest, to_host),
        };
        Ok(Self {
            outgoing: Outgoing::new(outgoing)?,
            incoming: Incoming::new(incoming)?,
            region: region.clone(),
            line,
            spin: Spin::new(LOOK),
            since: None,
            quiet: false,
        })
    }

    /// Packets have come.
    pub fn came(&mut self) {
        if let Some(since) = self.since.take() {
            self.spin.came_after(since.elapsed());
        }
    }

    /// Nothing is awaited, so that a pause says nothing.
    pub fn rests(&mut self) {
        self.since = None;
    }

    /// Looks for packets for a while, if that has paid of late: whether there are some.
    /// Meanwhile the other end signals nothing, which costs both of them most. After it
    /// comes [`arm`](Self::arm), before sleep.
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn look(&mut self) -> Result<bool, RingError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let window = self.spin.window();
        if window.is_zero() {
            return Ok(false);
        }
        if !std::mem::replace(&mut self.quiet, true) {
            self.incoming.disarm();
        }
        loop {
            for _ in 0..LOOKS {
                if self.incoming.refresh()? != 0 {
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            if since.elapsed() >= window {
                return Ok(false);
            }
            // What is waited for may wait for this processor: the other end, or who
            // passes its signals on.
            std::thread::yield_now();
        }
    }

    /// Asks to be signalled and looks once more, as [`Incoming::arm`].
    ///
    /// # Errors
    /// When the ring is broken.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.quiet = false;
        self.incoming.arm()
    }

    /// The guest's end of what a host gave: memory, the host's signal, ours.
    ///
    /// # Errors
    /// They are something else; all are closed.
    pub fn guest(shape: Shape, fds: Vec<OwnedFd>) -> Result<Self, ChannelError> {
        let got = fds.len();
        let [memory, kick, call] = match <[OwnedFd; 3]>::try_from(fds) {
            Ok(three) => three,
            Err(others) => {
                others.into_iter().for_each(reaper::dispose);
                return Err(ChannelError::Descriptors { got });
            }
        };
        // Each is checked or disposed of before an error can drop it.
        let (memory, kick, call) = (
            PeerMemory::check(memory),
            PeerEventFd::check(kick),
            PeerEventFd::check(call),
        );
        let (memory, ring, wait) = (memory?, kick?, call?);
        let region = Region::new(Arc::new(memory.map(0, shape.len, None)?));
        Self::new(&region, shape, End::Guest, Line::Events { wait, ring })
    }

    /// The guest's end of a device of the kernel.
    ///
    /// # Errors
    /// What is in the rings cannot be.
    pub fn device(device: Device) -> Result<Self, ChannelError> {
        let region = Region::new(device.rings());
        let page = device.page();
        let shape = Shape::halves(region.len() as u64, page);
        Self::new(&region, shape, End::Guest, Line::Device(device))
    }

    /// Room for any packet of this channel.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn packet(&self) -> Result<Packet, ChannelError> {
        Ok(Packet::new(self.incoming.packet_max())?)
    }

    /// Whether the descriptor to wait for tells of changes once; of the kernel's
    /// device it tells until [`woken`](Self::woken).
    #[must_use]
    pub fn is_edge(&self) -> bool {
        matches!(self.line, Line::Events { .. })
    }

    /// Takes in what woke us. An eventfd is the peer's as well, and never read.
    ///
    /// # Errors
    /// The host took its device back.
    pub fn woken(&self) -> io::Result<()> {
        match &self.line {
            Line::Events { .. } => Ok(()),
            Line::Device(device) => device.take().map(drop),
        }
    }

    /// Ends a pass: gives room back, shows what was sent, and signals the other end
    /// if it is to be.
    ///
    /// # Errors
    /// A ring is broken, or the device is gone.
    pub fn flush(&mut self) -> Result<(), FlushError> {
        let room = self.incoming.release()?;
        let packets = self.outgoing.publish()?;
        if self.region.poisoned() {
            return Err(FlushError::Poisoned);
        }
        if room || packets {
            match &self.line {
                // A counter that is full is signalled.
                Line::Events { ring, .. } => ring.signal().map(drop)?,
                Line::Device(device) => device.signal()?,
            }
        }
        Ok(())
    }
}

/// Why a channel ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// A ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The memory was taken away.
    #[error("the host took memory of the channel away")]
    Poisoned,
    /// The other end cannot be signalled.
    #[error("the other end cannot be signalled")]
    Signal(#[from] io::Error),
}

/// What to wait for; see [`Channel::is_edge`].
impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.line {
            Line::Events { wait, .. } => wait.as_fd(),
            Line::Device(device) => device.as_fd(),
        }
    }
}
