//! A guest's network device as a port: its transmit queues pass frames on, its
//! receive queues are filled by whoever has a frame for them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use linkspan_devices::net::features::{Offloads, VIRTIO_NET_F_CTRL_VQ, settle};
use linkspan_devices::net::header::{FRAME_LEN_MIN, Header, Offload};
use linkspan_devices::net::offload::{Plan, Receiver, complete_checksum, plan};
use linkspan_devices::net::{
    CONFIG_LEN, Filled, Frame, Mac, Net, NetOptions, OptionsError, QueueRole, ReceiveQueue,
};
use linkspan_engine::{
    ActiveRing, Budget, ConfigRange, Device, NETWORK_DEVICE, NotLent, OpenQueueError, Progress,
    QueueHandler,
};
use linkspan_sys::EventFd;
use linkspan_virtio::{Chain, Features, QueueError};

use super::control::{Asked, ControlQueue, Terms};
use super::counters::{Books, DropCause, OfPair};
use super::fabric::{Fabric, Side};
use super::lane::{Came, FRAME_COST};
use super::transmit::Transmit;

/// Pieces of memory in a chain at most: Linux sends up to 17 pages with a frame, or
/// 45 where it is built so, in descriptors of their own.
pub(super) const SEGMENTS: usize = 64;

/// Frames of a source between two looks for more buffers.
const STUFF_AHEAD: u32 = 16;

/// How queues are counted for a front end that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// As QEMU and DPDK do for network devices.
    Pairs,
    /// As rust-vmm and Cloud Hypervisor do.
    Rings,
}

/// A network device whose frames go into a [`Fabric`].
pub struct NetDevice {
    net: Net,
    count: Count,
    fabric: Arc<Fabric>,
    port: u16,
    /// Signalled when configuration space changes.
    changes: Arc<EventFd>,
}

impl fmt::Debug for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetDevice")
            .field("net", &self.net)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Why a guest cannot be at a port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetDeviceError {
    /// There is no such port, or something else is behind it, or it has another
    /// number of queue pairs.
    #[error("port {port} is not one of a guest with {pairs} queue pairs")]
    Port {
        /// Which.
        port: u16,
        /// Pairs of the device.
        pairs: u16,
    },
    /// The options make no network device.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

impl NetDevice {
    /// The device at a port.
    ///
    /// # Errors
    /// When the port is for something else, or the options make no device.
    pub fn new(
        fabric: &Arc<Fabric>,
        port: u16,
        options: NetOptions,
        count: Count,
    ) -> Result<Self, NetDeviceError> {
        let pairs = options.pairs;
        let changes = match fabric.ports.get(usize::from(port)).map(|port| &port.kind) {
            Some(Side::Guest(own)) if own.count == pairs => Arc::clone(&own.changes),
            _ => return Err(NetDeviceError::Port { port, pairs }),
        };
        let net = Net::new(options)?;
        fabric.set_mtu(port, options.mtu);
        Ok(Self {
            net,
            count,
            fabric: Arc::clone(fabric),
            port,
            changes,
        })
    }

    /// What its driver has asked for.
    fn asked(&self) -> Option<&Asked> {
        match &self.fabric.ports[usize::from(self.port)].kind {
            Side::Guest(pairs) => Some(&pairs.asked),
            _ => None,
        }
    }
}

impl Device for NetDevice {
    fn name(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> Features {
        self.net.features()
    }

    fn queues(&self) -> u16 {
        u16::try_from(self.net.queues()).unwrap_or(u16::MAX)
    }

    fn queue_size_max(&self) -> u16 {
        self.net.options().queue_size
    }

    fn queue_num(&self) -> u64 {
        match self.count {
            Count::Pairs => self.net.options().pairs.into(),
            Count::Rings => self.net.queues().into(),
        }
    }

    fn device_id(&self) -> u32 {
        NETWORK_DEVICE
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        self.fabric.set_mtu(self.port, mtu);
        true
    }

    fn announce(&self, mac: [u8; 6]) -> bool {
        // It knows more of itself than one address, and may take its time.
        if self.asked().is_some_and(Asked::ask_to_announce)
            && let Err(error) = self.changes.signal()
        {
            panic!("our own eventfd cannot be signalled: {error}");
        }
        self.fabric.announce(self.port, Mac(mac))
    }

    fn reset(&self) {
        if let Some(asked) = self.asked() {
            asked.forget();
        }
    }

    fn config_changes(&self) -> Option<Arc<EventFd>> {
        Some(Arc::clone(&self.changes))
    }

    fn lane(&self, index: u16) -> u16 {
        index / 2
    }

    fn config_size(&self) -> u32 {
        u32::try_from(CONFIG_LEN).expect("less than 256")
    }

    fn read_config(&self, offset: u32, target: &mut [u8]) -> Result<(), ConfigRange> {
        let mtu = self.fabric.mtu(self.port);
        let net = Net::new(NetOptions {
            mtu,
            ..*self.net.options()
        });
        let net = net.unwrap_or(self.net);
        let link_up = self.fabric.link_is_up(self.port);
        let live = self.asked().and_then(|asked| asked.live(link_up));
        let live = live.unwrap_or_else(|| net.live(link_up));
        if net.read_config(&live, offset as usize, target) {
            return Ok(());
        }
        Err(ConfigRange {
            offset,
            len: target.len(),
            size: self.config_size(),
        })
    }

    /// All that only one may have is shared: it goes with the [fabric](super::SharedFabric).
    fn lend(&self) -> Result<Vec<OwnedFd>, NotLent> {
        Ok(Vec::new())
    }

    fn save(&self) -> Result<Vec<u8>, NotLent> {
        Ok(self.asked().map_or_else(Vec::new, Asked::save))
    }

    fn load(&self, saved: &[u8]) -> Result<(), NotLent> {
        let asked = self.asked().ok_or_else(|| NotLent::of(self.name()))?;
        let loaded = asked.load(&self.net, saved);
        loaded.map_err(|error| NotLent(format!("the control queue: {error}")))
    }

    fn open_queue(
        &self,
        index: u16,
        features: Features,
    ) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        let refused = OpenQueueError::Features {
            index,
            features: features.bits(),
        };
        // A front end that keeps the control queue to itself accepts what needs it.
        let control_queue = features.contains(VIRTIO_NET_F_CTRL_VQ);
        let Ok(features) = settle(features, control_queue) else {
            return Err(refused);
        };
        let (fabric, port) = (Arc::clone(&self.fabric), self.port);
        if let Some(asked) = self.asked() {
            asked.expect(features);
        }
        let role = self.net.role(index.into(), features);
        if role == Some(QueueRole::Control) {
            return Ok(Box::new(ControlQueue::new(
                (fabric, port),
                (&self.net, features),
                Chain::new(SEGMENTS)?,
                Arc::clone(&self.changes),
            )));
        }
        let counts = self.fabric.pair_counts(port, index / 2);
        let (Some(role), Some(counts)) = (role, counts) else {
            return Err(refused);
        };
        match role {
            QueueRole::Receive(pair) => Ok(Box::new(Receive {
                address: fabric.address(port, pair),
                fabric,
                port,
                pair,
                queue: ReceiveQueue::new(features, SEGMENTS)?,
                offloads: Offloads::to_driver(features),
                counts,
            })),
            QueueRole::Transmit(pair) => {
                let transmit = Transmit::new((fabric, port, pair), features, counts)?;
                Ok(Box::new(transmit))
            }
            QueueRole::Control => Err(refused),
        }
    }
}

/// A receive queue: filled by those that have frames for the guest.
pub(super) struct Receive {
    fabric: Arc<Fabric>,
    port: u16,
    pair: u16,
    address: u32,
    queue: ReceiveQueue,
    offloads: Offloads,
    counts: Arc<OfPair>,
}

impl Receive {
    /// Takes buffers for so many frames ahead.
    #[inline]
    pub(super) fn expect(&mut self, ring: &mut ActiveRing, frames: usize) {
        // Who breaks the ring hears of it when the worker publishes it.
        let _ = self
            .queue
            .expect(&mut ring.queue, &ring.memory.guest, frames);
    }

    /// The ring has all frames that were delivered.
    #[inline]
    pub(super) fn finish(&mut self, ring: &mut ActiveRing) {
        // As in `expect`.
        let _ = self.queue.finish(&mut ring.queue);
    }

    /// Delivers a frame, or as many as it has to be cut into, and counts it. What
    /// that cost beside the frame itself. The ring has it when the batch is
    /// [finished](Self::finish).
    #[inline]
    pub(super) fn deliver(
        &mut self,
        ring: &mut ActiveRing,
        (came, terms): (&Came<'_>, &Terms),
        mtu: u16,
        whole: &mut [u8],
        books: &Books<'_>,
    ) -> u64 {
        let frame = &came.frame;
        // Most frames leave nothing to be done.
        if matches!(*came.offload, Offload::NONE)
            && terms.hash.is_none()
            && frame.len() <= u64::from(mtu) + u64::from(FRAME_LEN_MIN)
        {
            self.count(ring, None, frame, books);
            return 0;
        }
        self.deliver_as_planned(ring, (came, terms), mtu, whole, books)
    }

    fn deliver_as_planned(
        &mut self,
        ring: &mut ActiveRing,
        (came, terms): (&Came<'_>, &Terms),
        mtu: u16,
        whole: &mut [u8],
        books: &Books<'_>,
    ) -> u64 {
        let frame = &came.frame;
        let receiver = Receiver {
            offloads: terms.offloads.unwrap_or(self.offloads),
            mtu,
        };
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        match plan(came.offload, frame.head, len, &receiver) {
            Plan::Forward(offload) => {
                self.count(ring, Some(&header(&offload, terms)), frame, books);
                0
            }
            Plan::Checksum(partial) => {
                let Some(bytes) = frame.read(whole) else {
                    books.dropped(DropCause::TooLong);
                    return 0;
                };
                complete_checksum(bytes, partial);
                let header = header(&Offload::NONE, terms);
                self.count(ring, Some(&header), &Frame::private(bytes), books);
                frame.len()
            }
            Plan::Segment(how) => {
                let Some(bytes) = frame.read(whole) else {
                    books.dropped(DropCause::TooLong);
                    return 0;
                };
                let header = header(&Offload::NONE, terms);
                let mut segments = how.cut(bytes);
                let mut cost = 0;
                while let Some(segment) = segments.next() {
                    let frame = Frame::segment(segment);
                    cost += FRAME_COST + frame.len();
                    self.count(ring, Some(&header), &frame, books);
                }
                cost
            }
            Plan::Drop(_) => {
                books.dropped(DropCause::TooLong);
                0
            }
        }
    }

    #[inline]
    fn count(
        &mut self,
        ring: &mut ActiveRing,
        header: Option<&Header>,
        frame: &Frame<'_>,
        books: &Books<'_>,
    ) {
        match self.fill(ring, header, frame) {
            Ok(Filled::Delivered { .. }) => books.went_to(&self.counts, frame),
            Ok(Filled::NoBuffers) => books.dropped(DropCause::NoBuffers),
            Ok(Filled::TooSmall) => books.dropped(DropCause::SmallBuffers),
            // The worker retires the ring when it publishes it.
            Err(_) => books.dropped(DropCause::Broken),
        }
    }

    #[inline]
    fn fill(
        &mut self,
        ring: &mut ActiveRing,
        header: Option<&Header>,
        frame: &Frame<'_>,
    ) -> Result<Filled, QueueError> {
        let ActiveRing { queue, memory, log } = ring;
        let log = log.as_ref().filter(|log| log.buffers);
        self.queue
            .fill(queue, &memory.guest, header, frame, |span| {
                if let Some(log) = log {
                    log.buffer(memory, span);
                }
            })
    }

    /// Fills buffers with frames that mean nothing, at most so many; how many.
    pub(super) fn stuff(&mut self, ring: &mut ActiveRing, most: u32, books: &Books<'_>) -> u32 {
        let mut bytes = [0; 64];
        bytes[..6].copy_from_slice(&Mac::BROADCAST.0);
        // A locally administered address; an Ethertype for experiments.
        bytes[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xB5]);
        let frame = Frame::private(&bytes);
        for made in 0..most {
            if made % STUFF_AHEAD == 0 {
                // Those behind the next ones, so that their memory is here in time.
                self.expect(ring, 2 * STUFF_AHEAD as usize);
            }
            match self.fill(ring, None, &frame) {
                Ok(Filled::Delivered { .. }) => books.went_to(&self.counts, &frame),
                _ => {
                    self.finish(ring);
                    return made;
                }
            }
        }
        self.finish(ring);
        most
    }
}

/// The header before a frame, with its hash where the driver wants it.
#[inline]
fn header(offload: &Offload, terms: &Terms) -> Header {
    let mut header = Header::of(offload);
    if let Some(hash) = terms.hash {
        (header.hash_value, header.hash_report) = (hash.value, hash.report);
    }
    header
}

impl QueueHandler for Receive {
    fn run(&mut self, _: &mut ActiveRing, _: Budget) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }

    fn address(&self) -> Option<u32> {
        Some(self.address)
    }

    fn takes(&mut self, ring: &mut ActiveRing, takes: bool) {
        if let Side::Guest(pairs) = &self.fabric.ports[usize::from(self.port)].kind {
            pairs.set(self.pair, takes, || self.fabric.came_or_went(self.port));
        }
        if !takes {
            // One that is broken takes nothing back.
            let _ = self.queue.give_back(&mut ring.queue);
        }
    }
}
