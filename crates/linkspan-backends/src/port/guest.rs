//! A guest's network device as a port: its transmit queues pass frames on, its
//! receive queues are filled by whoever has a frame for them.

use std::fmt;
use std::sync::Arc;

use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::header::{Header, HeaderLayout, Offload};
use linkspan_devices::net::offload::{Plan, Receiver, complete_checksum, plan};
use linkspan_devices::net::{
    CONFIG_LEN, Filled, Frame, FrameHead, Mac, Net, NetOptions, OptionsError, QueueRole,
    ReceiveQueue, take_transmit,
};
use linkspan_engine::{
    ActiveRing, Budget, ConfigRange, Device, Neighbours, OpenQueueError, Progress, QueueHandler,
};
use linkspan_virtio::{Chain, Features, QueueError};

use super::counters::{Counts, DropCause, OfPair};
use super::fabric::{Fabric, Side};
use super::lane::{Came, Lane, with_lane};

/// Pieces of memory in a chain at most: Linux sends up to 17 pages with a frame, or
/// 45 where it is built so, in descriptors of their own.
const SEGMENTS: usize = 64;

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
        match fabric.ports.get(usize::from(port)).map(|port| &port.kind) {
            Some(Side::Guest(own)) if own.count == pairs => {}
            _ => return Err(NetDeviceError::Port { port, pairs }),
        }
        let net = Net::new(options)?;
        fabric.set_mtu(port, options.mtu);
        Ok(Self {
            net,
            count,
            fabric: Arc::clone(fabric),
            port,
        })
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

    fn is_network(&self) -> bool {
        true
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        self.fabric.set_mtu(self.port, mtu);
        true
    }

    fn announce(&self, mac: [u8; 6]) -> bool {
        self.fabric.announce(self.port, Mac(mac))
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
        if net.read_config(&net.live(), offset as usize, target) {
            return Ok(());
        }
        Err(ConfigRange {
            offset,
            len: target.len(),
            size: self.config_size(),
        })
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
        let Ok(features) = self.net.settle(features) else {
            return Err(refused);
        };
        let (fabric, port) = (Arc::clone(&self.fabric), self.port);
        let counts = self.fabric.pair_counts(port, index / 2);
        let (Some(role), Some(counts)) = (self.net.role(index.into(), features), counts) else {
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
            QueueRole::Transmit(_) => Ok(Box::new(Transmit {
                fabric,
                port,
                counts,
                sent: 0,
                layout: HeaderLayout::of(features),
                offloads: Offloads::to_device(features),
                chain: Chain::new(SEGMENTS)?,
                head: FrameHead::default(),
            })),
            QueueRole::Control => Err(refused),
        }
    }
}

/// A transmit queue: the guest's frames go into the fabric.
struct Transmit {
    fabric: Arc<Fabric>,
    port: u16,
    counts: Arc<OfPair>,
    /// Frames of this pass.
    sent: u64,
    layout: HeaderLayout,
    offloads: Offloads,
    chain: Chain,
    head: FrameHead,
}

impl Transmit {
    fn pass(
        &mut self,
        ring: &mut ActiveRing,
        budget: Budget,
        lane: &mut Lane,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, QueueError> {
        let fabric = &*self.fabric;
        let limit = fabric.ports[usize::from(self.port)].limit.as_ref();
        for _ in 0..budget.chains {
            if lane.cost >= budget.bytes {
                return Ok(Progress::More);
            }
            if let Some(limit) = limit
                && let Err(until) = limit.admit(lane.now())
            {
                return Ok(Progress::Until(until));
            }
            if !ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            let table = ring.memory.table();
            let taken = take_transmit(&mut self.chain, table, self.layout, &mut self.head)
                .map_err(|error| ring.queue.retire(error))?;
            self.sent += 1;
            if let Some(limit) = limit {
                limit.charge(taken.len, lane.now());
            }
            match taken.header.check(taken.len, self.offloads) {
                Ok(offload) => {
                    let came = Came {
                        port: self.port,
                        offload,
                        frame: Frame::transmitted(&self.head, &self.chain, table),
                    };
                    lane.forward(fabric, &came, neighbours);
                }
                Err(_) => lane.counts(fabric, self.port).dropped(DropCause::Header),
            }
            ring.queue.push(&self.chain, 0)?;
        }
        Ok(Progress::More)
    }
}

impl QueueHandler for Transmit {
    fn run(&mut self, _: &mut ActiveRing, _: Budget) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }

    fn run_among(
        &mut self,
        ring: &mut ActiveRing,
        budget: Budget,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, QueueError> {
        if budget.chains == 0 {
            return Ok(Progress::Idle);
        }
        let fabric = Arc::clone(&self.fabric);
        let done = with_lane(&fabric, neighbours, |lane, neighbours| {
            self.pass(ring, budget, lane, neighbours)
        });
        self.counts.sent.add(std::mem::take(&mut self.sent));
        // Without a lane the fabric rests, and so does the queue.
        done.unwrap_or(Ok(Progress::Idle))
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
    /// Delivers a frame, or as many as it has to be cut into, and counts it. What
    /// that cost beside the frame itself.
    #[inline]
    pub(super) fn deliver(
        &mut self,
        ring: &mut ActiveRing,
        came: &Came<'_>,
        mtu: u16,
        whole: &mut [u8],
        counts: &Counts,
    ) -> u64 {
        let frame = &came.frame;
        let receiver = Receiver {
            offloads: self.offloads,
            mtu,
        };
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        match plan(&came.offload, frame.head, len, &receiver) {
            Plan::Forward(offload) => {
                self.count(ring, &Header::of(&offload), frame, counts);
                frame.len()
            }
            Plan::Checksum(partial) => {
                let Some(bytes) = frame.read(whole) else {
                    counts.dropped(DropCause::TooLong);
                    return 0;
                };
                complete_checksum(bytes, partial);
                let header = Header::of(&Offload::NONE);
                self.count(ring, &header, &Frame::private(bytes), counts);
                2 * frame.len()
            }
            Plan::Segment(how) => {
                let Some(bytes) = frame.read(whole) else {
                    counts.dropped(DropCause::TooLong);
                    return 0;
                };
                let header = Header::of(&Offload::NONE);
                let mut segments = how.cut(bytes);
                let mut cost = frame.len();
                while let Some(segment) = segments.next() {
                    let frame = Frame::segment(segment);
                    cost += 512 + frame.len();
                    self.count(ring, &header, &frame, counts);
                }
                cost
            }
            Plan::Drop(_) => {
                counts.dropped(DropCause::TooLong);
                0
            }
        }
    }

    #[inline]
    fn count(
        &mut self,
        ring: &mut ActiveRing,
        header: &Header,
        frame: &Frame<'_>,
        counts: &Counts,
    ) {
        match self.fill(ring, header, frame) {
            Ok(Filled::Delivered { .. }) => self.counts.went(frame.len()),
            Ok(Filled::NoBuffers) => counts.dropped(DropCause::NoBuffers),
            Ok(Filled::TooSmall) => counts.dropped(DropCause::SmallBuffers),
            // The worker retires the ring when it publishes it.
            Err(_) => counts.dropped(DropCause::Broken),
        }
    }

    #[inline]
    fn fill(
        &mut self,
        ring: &mut ActiveRing,
        header: &Header,
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
    pub(super) fn stuff(&mut self, ring: &mut ActiveRing, most: u32) -> u32 {
        let mut bytes = [0; 60];
        bytes[..6].copy_from_slice(&Mac::BROADCAST.0);
        // A locally administered address; an Ethertype for experiments.
        bytes[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xB5]);
        let (header, frame) = (Header::of(&Offload::NONE), Frame::private(&bytes));
        for made in 0..most {
            match self.fill(ring, &header, &frame) {
                Ok(Filled::Delivered { .. }) => self.counts.went(frame.len()),
                _ => return made,
            }
        }
        most
    }
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
            pairs.set(self.pair, takes);
        }
        if !takes {
            // One that is broken takes nothing back.
            let _ = self.queue.give_back(&mut ring.queue);
        }
    }
}
