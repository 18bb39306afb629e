//! A network device from its driver's side: queue pairs, each owned by one thread,
//! which go on when the device is lost and comes back.
//!
//! A device that has a control queue is told how many pairs are used. Over vhost-user
//! most have none, and all pairs that are enabled are in use.

mod control;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_devices::net::control::Code;
use linkspan_devices::net::driver::{
    ReceiveBatch, ReceiveDriver, Received, SendError, Slots, SlotsError, TransmitDriver,
};
use linkspan_devices::net::features::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_SPEED_DUPLEX, VIRTIO_NET_F_STATUS,
};
use linkspan_devices::net::header::{HEADER_LEN_MAX, HeaderLayout, Offload};
use linkspan_devices::net::{CONFIG_LEN, Frame, NetInfo};
use linkspan_engine::vdpa::{Opener, VdpaOptions};
use linkspan_engine::vhost_user::{LinkOptions, Reach};
use linkspan_engine::{DriverMemory, LinkEnded, QueueHandle, QueueLink, Resumed, queue_link};
use linkspan_mem::{Gpa, Window};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::{Negotiated, QueueUnit};
use linkspan_virtio::{AddError, DriverQueue, Features, StartError, UsedError};

pub use control::{NicControl, Wanted, control_ring};

/// Receive buffers that are given to the device at a time: showing it each one would have
/// both sides wait for one cache line all the time.
const POST_BATCH: usize = 32;

/// Queue pairs that one link can have.
pub const PAIRS_MAX: u16 = 128;

/// How a network device is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicOptions {
    /// Queue pairs, 1 to [`PAIRS_MAX`].
    pub pairs: u16,
    /// What a back end counts when it says how many queues it has.
    pub count: QueueUnit,
    /// Packed rings; the device must have them.
    pub packed: bool,
    /// Buffers used in order (virtio 1.3 2.7.9); the device must do so.
    pub in_order: bool,
    /// Let a frame take several receive buffers if the device can do that.
    pub mergeable: bool,
    /// Use the control queue if there is one: see [`control_ring`].
    pub control: bool,
}

impl NicOptions {
    /// Features that are of no use without a control queue.
    pub const OF_CONTROL: Features = control::FEATURES;

    /// What is wanted of the back end. Checksums and segmentation are left to
    /// whoever makes the frames.
    pub fn link_options(&self, reach: Reach, connect_limit: Duration) -> LinkOptions {
        let mut required = Features::VIRTIO_F_VERSION_1;
        required.set(Features::VIRTIO_F_RING_PACKED, self.packed);
        required.set(Features::VIRTIO_F_IN_ORDER, self.in_order);
        let mut features = required
            | Features::SPLIT_QUEUE
            | VIRTIO_NET_F_MAC
            | VIRTIO_NET_F_MTU
            | VIRTIO_NET_F_STATUS
            | VIRTIO_NET_F_SPEED_DUPLEX;
        features.set(VIRTIO_NET_F_MRG_RXBUF, self.mergeable);
        if self.control {
            features |= control::FEATURES;
        }
        // DPDK serves the first pair alone without it.
        features.set(VIRTIO_NET_F_MQ, self.pairs > 1);
        LinkOptions {
            reach,
            connect_limit,
            queues: self.pairs.saturating_mul(2),
            queue_unit: self.count,
            features,
            required,
            // What is in flight when a device dies is lost, as frames may be, so
            // nothing is written down about it.
            protocol_features: ProtocolFeatures::CONFIG,
            required_protocol_features: ProtocolFeatures::empty(),
            config_size: u32::try_from(CONFIG_LEN).expect("24"),
        }
    }
}

impl NicOptions {
    /// The same of a vDPA device. Without the control queue it has one pair (virtio 1.3
    /// 5.1.3.1).
    pub fn vdpa_options(&self, open: Opener) -> VdpaOptions {
        let options = self.link_options(Reach::Connect(PathBuf::new()), Duration::ZERO);
        let mut features = options.features;
        if !self.control {
            features.remove(VIRTIO_NET_F_MQ);
        }
        VdpaOptions {
            open,
            queues: options.queues,
            features,
            required: options.required,
            config_size: options.config_size,
        }
    }
}

/// Queue pairs that a device has. Back ends do not agree on what they count, but where
/// several pairs are offered, configuration space says how many (virtio 1.3 5.1.4), unless
/// nobody has filled it in.
pub fn pairs_of(negotiated: &Negotiated) -> u64 {
    let answered = negotiated.queues_max / 2;
    let offered = Features::from_bits_retain(negotiated.offered);
    if !offered.contains(VIRTIO_NET_F_MQ) {
        return answered;
    }
    match NetInfo::pairs_in(&negotiated.config) {
        Some(pairs) => answered.min(pairs.into()),
        None => answered,
    }
}

/// How large the queues and buffers of a pair are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicLayout {
    /// Entries of each ring, a power of two.
    pub queue_size: u16,
    transmit_bytes: u32,
    receive_bytes: u32,
}

impl NicLayout {
    /// For frames of these lengths at most, without a header. Longer ones take
    /// several buffers.
    pub fn new(queue_size: u16, transmit: u16, receive: u16) -> Self {
        Self {
            queue_size,
            transmit_bytes: slot_bytes(transmit),
            receive_bytes: slot_bytes(receive),
        }
    }

    /// Bytes of the buffers of a pair.
    fn bytes(&self) -> u64 {
        self.receive_area() + self.transmit_area()
    }

    fn receive_area(&self) -> u64 {
        u64::from(LINE) + u64::from(self.queue_size) * u64::from(self.receive_bytes)
    }

    fn transmit_area(&self) -> u64 {
        u64::from(LINE) + u64::from(self.queue_size) * u64::from(self.transmit_bytes)
    }
}

/// Bytes of a cache line.
const LINE: u32 = 64;

/// Bytes of a buffer for a frame with its header: an odd number of cache lines, so
/// that the beginnings of buffers spread over all sets of a cache.
fn slot_bytes(frame: u16) -> u32 {
    let header = u32::try_from(HEADER_LEN_MAX).expect("20");
    let lines = (u32::from(frame) + header).div_ceil(LINE);
    (lines | 1).max(3) * LINE
}

/// Why a pair cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// The device broke a queue.
    #[error("the device broke a queue: {0}")]
    Device(#[from] UsedError),
    /// The frame was not possible.
    #[error(transparent)]
    Send(#[from] SendError),
    /// A buffer was not possible.
    #[error(transparent)]
    Post(#[from] AddError),
    /// The device is gone for good.
    #[error(transparent)]
    Link(#[from] LinkEnded),
    /// A ring could not be set up.
    #[error(transparent)]
    Ring(#[from] StartError),
    /// The buffers could not be set up.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// The device has fewer pairs.
    #[error("{pairs} queue pairs were wanted, the device has {max}")]
    Pairs {
        /// What was wanted.
        pairs: u16,
        /// What there is.
        max: u64,
    },
    /// The device does not do what it is asked for.
    #[error("the device refuses a control command, {}", control::name(code))]
    Refused {
        /// Which.
        code: Code,
    },
    /// The device does not answer on its control queue.
    #[error(
        "the device does not answer a control command, {}",
        control::name(code)
    )]
    Unanswered {
        /// Which.
        code: Code,
    },
    /// A descriptor or memory of ours cannot be had.
    #[error("a resource cannot be had: {0}")]
    System(#[from] io::Error),
}

impl NicError {
    /// Whether the device broke the protocol.
    pub fn is_peer(&self) -> bool {
        matches!(
            self,
            Self::Device(_)
                | Self::Pairs { .. }
                | Self::Refused { .. }
                | Self::Unanswered { .. }
                | Self::Send(SendError::Queue(AddError::Retired(_)))
                | Self::Post(AddError::Retired(_))
        )
    }
}

/// One of the queues of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the device.
    Receive,
    /// To the device.
    Transmit,
}

/// A queue pair of a network device.
#[derive(Debug)]
pub struct NicPair {
    transmit: TransmitDriver<Window, Gpa>,
    receive: ReceiveDriver<Window, Gpa>,
    features: Features,
    number: u16,
    memory: Arc<DriverMemory>,
    transmit_link: QueueLink,
    receive_link: QueueLink,
    /// Free receive buffers that are worth being given to the device.
    post_batch: usize,
    losses: u64,
}

/// All pairs of a network device, and what its link needs to start them.
#[derive(Debug)]
pub struct Nic {
    /// The pairs, each for a thread.
    pub pairs: Vec<NicPair>,
    /// The memory of all of them.
    pub memory: Arc<DriverMemory>,
    /// The link's ends of their queues, in the order of the rings.
    pub handles: Vec<QueueHandle>,
    /// The control queue, if it is used.
    pub control: Option<NicControl>,
}

impl Nic {
    /// So many pairs for a device with these negotiated features, and a control queue
    /// in this ring, behind all pairs that the device has.
    ///
    /// # Errors
    /// When memory or a descriptor cannot be had, or the device has fewer pairs.
    pub fn new(
        pairs: u16,
        layout: NicLayout,
        features: Features,
        control: Option<u16>,
    ) -> Result<Self, NicError> {
        let used = 2 * pairs;
        if let Some(ring) = control.filter(|ring| *ring < used) {
            let max = u64::from(ring / 2);
            return Err(NicError::Pairs { pairs, max });
        }
        let rings = control.map_or(used, |ring| ring.saturating_add(1));
        let rest = u64::from(pairs) * layout.bytes();
        let all = rest + u64::from(control::AREA);
        let memory = DriverMemory::new(rings, layout.queue_size, all)?;
        let mut nic = Self {
            pairs: Vec::new(),
            memory: Arc::new(memory),
            handles: Vec::new(),
            control: None,
        };
        for number in 0..pairs {
            let (receive_link, receive) = queue_link()?;
            let (transmit_link, transmit) = queue_link()?;
            let memory = Arc::clone(&nic.memory);
            let links = (receive_link, transmit_link);
            let pair = NicPair::new(memory, number, layout, features, links)?;
            nic.pairs.push(pair);
            nic.handles.extend([receive, transmit]);
        }
        let Some(ring) = control else {
            return Ok(nic);
        };
        // Those of pairs that are there and not used have a ring and nobody who drives it.
        for _ in used..ring {
            nic.handles.push(queue_link()?.1);
        }
        let (link, handle) = queue_link()?;
        nic.handles.push(handle);
        let memory = Arc::clone(&nic.memory);
        let place = memory.rest(rest, control::AREA);
        let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        nic.control = Some(NicControl::new(memory, link, features, (ring, place))?);
        Ok(nic)
    }
}

impl NicPair {
    fn new(
        memory: Arc<DriverMemory>,
        number: u16,
        layout: NicLayout,
        features: Features,
        (receive_link, transmit_link): (QueueLink, QueueLink),
    ) -> Result<Self, NicError> {
        let start = u64::from(number) * layout.bytes();
        // Headers end cache lines, so a frame has lines of its own. Most headers are alike,
        // and their lines stay with both sides as long as neither writes something else.
        let header = u32::try_from(HeaderLayout::of(features).len()).expect("at most 20");
        let before = LINE - header;
        let slots = |at: u64, area: u64, bytes| {
            let len = u32::try_from(area).map_err(|_| io::ErrorKind::InvalidInput)?;
            let place = memory.rest(at + u64::from(before), len - LINE);
            let place = place.ok_or(io::ErrorKind::InvalidInput)?;
            Ok::<_, io::Error>(Slots {
                address: place.0,
                memory: place.1,
                count: layout.queue_size,
                bytes,
            })
        };
        let receive_slots = slots(start, layout.receive_area(), layout.receive_bytes)?;
        let at = start + layout.receive_area();
        let transmit_slots = slots(at, layout.transmit_area(), layout.transmit_bytes)?;
        let queue = |side| memory.new_queue(ring(number, side), features);
        let transmit = TransmitDriver::new(queue(Side::Transmit)?, features, transmit_slots)?;
        let receive = ReceiveDriver::new(queue(Side::Receive)?, features, receive_slots)?;
        let mut pair = Self {
            transmit,
            receive,
            features,
            number,
            memory,
            transmit_link,
            receive_link,
            post_batch: usize::from(layout.queue_size / 4).clamp(1, POST_BATCH),
            losses: 0,
        };
        pair.begin()?;
        Ok(pair)
    }

    /// How often the device began anew, with all frames lost that were under way.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// Puts a frame onto the transmit queue; the device sees it after
    /// [`flush`](Self::flush). `false` when there is no room before
    /// [`reclaim`](Self::reclaim) found some.
    ///
    /// # Errors
    /// When the frame is too long or the pair cannot go on.
    #[inline]
    pub fn send(&mut self, frame: &Frame<'_>) -> Result<bool, NicError> {
        let table = self.memory.memory().table();
        Ok(self.transmit.send(table, &Offload::NONE, frame)?)
    }

    /// Shows the device all frames that were put onto the transmit queue, and wakes
    /// it if it sleeps.
    ///
    /// # Errors
    /// When the pair cannot go on.
    #[inline]
    pub fn flush(&mut self) -> Result<(), NicError> {
        show(self.transmit.queue(), &self.transmit_link)
    }

    /// Buffers for frames to be sent that are free. It pays to [`reclaim`](Self::reclaim)
    /// when they run short and no sooner: what the device used long ago lies in cache
    /// lines that it does not write any more.
    #[inline]
    pub fn room(&self) -> u16 {
        self.transmit.room()
    }

    /// Takes back what the device has transmitted; says how many frames.
    ///
    /// # Errors
    /// When the pair cannot go on.
    #[inline]
    pub fn reclaim(&mut self) -> Result<u16, NicError> {
        self.look_at_links()?;
        let table = self.memory.memory().table();
        Ok(self.transmit.reclaim(table)?)
    }

    /// See [`ReceiveDriver::fetch_ahead`].
    pub fn fetch_ahead(&mut self, bytes: usize) {
        self.receive.fetch_ahead(bytes);
    }

    /// Gives at most `budget` received frames to `each`, and their buffers back to
    /// the device, several at a time: a few may wait for others.
    ///
    /// # Errors
    /// When the pair cannot go on.
    #[inline]
    pub fn receive(
        &mut self,
        budget: u32,
        each: impl FnMut(Received<'_>),
    ) -> Result<ReceiveBatch, NicError> {
        self.look_at_links()?;
        let table = self.memory.memory().table();
        let batch = self.receive.receive(table, budget, each)?;
        if self.receive.free() >= self.post_batch {
            self.post()?;
        }
        Ok(batch)
    }

    fn post(&mut self) -> Result<(), NicError> {
        self.receive.post()?;
        show(self.receive.queue(), &self.receive_link)
    }

    /// Sleeps until there may be something to do for one side, at most until
    /// `deadline`; `false` when that passed.
    ///
    /// # Errors
    /// When the pair cannot go on.
    pub fn wait(&mut self, side: Side, deadline: Option<Instant>) -> Result<bool, NicError> {
        let news = self.has_news();
        if side == Side::Receive && self.receive.free() > 0 && !news {
            self.post()?;
        }
        let (queue, link) = match side {
            Side::Receive => (self.receive.queue(), &self.receive_link),
            Side::Transmit => (self.transmit.queue(), &self.transmit_link),
        };
        let call = &link.events.call;
        // Before looking: what comes from here on makes it readable again.
        call.drain()?;
        if queue.arm()? || news || link.has_news() {
            queue.disarm()?;
            return Ok(true);
        }
        let woken = wait_for(call.as_fd(), Direction::Read, None, deadline)?;
        queue.disarm()?;
        Ok(woken != Wake::Deadline)
    }

    #[inline]
    fn has_news(&self) -> bool {
        self.receive_link.has_news() || self.transmit_link.has_news()
    }

    #[inline]
    fn look_at_links(&mut self) -> Result<(), NicError> {
        if self.has_news() {
            self.hear_from_links()?;
        }
        Ok(())
    }

    /// Waits for a device again, first for one queue and then for the other: this
    /// thread touches neither ring meanwhile.
    #[cold]
    fn hear_from_links(&mut self) -> Result<(), NicError> {
        let received = self.receive_link.take_news()?;
        if received == Some(Resumed::Fresh) {
            let ring = ring(self.number, Side::Receive);
            self.receive
                .restart(self.memory.new_queue(ring, self.features)?);
            self.receive.queue().disarm()?;
            self.receive.post()?;
            self.receive.queue().publish()?;
        }
        let transmitted = self.transmit_link.take_news()?;
        if transmitted == Some(Resumed::Fresh) {
            let ring = ring(self.number, Side::Transmit);
            self.transmit
                .restart(self.memory.new_queue(ring, self.features)?);
            self.transmit.queue().disarm()?;
            self.losses += 1;
        }
        // The new device has not seen any kick.
        for (news, link) in [
            (received, &self.receive_link),
            (transmitted, &self.transmit_link),
        ] {
            if news.is_some() {
                link.kick()?;
            }
        }
        Ok(())
    }

    /// Gives the device its first buffers.
    fn begin(&mut self) -> Result<(), NicError> {
        self.transmit.queue().disarm()?;
        self.receive.queue().disarm()?;
        self.post()
    }
}

#[inline]
fn show(queue: &mut DriverQueue<Window>, link: &QueueLink) -> Result<(), NicError> {
    queue.publish()?;
    if queue.kick_wanted()? {
        link.kick()?;
    }
    Ok(())
}

/// The ring of one side of a pair (virtio 1.3 5.1.2).
fn ring(pair: u16, side: Side) -> u16 {
    match side {
        Side::Receive => 2 * pair,
        Side::Transmit => 2 * pair + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame has cache lines of its own then, and lines of headers stay with both sides.
    #[test]
    fn headers_end_cache_lines() {
        let layout = NicLayout::new(64, 1514, 1514);
        let features = Features::VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF;
        let nic = Nic::new(2, layout, features, None).unwrap();
        let mut buffers = Vec::new();
        for pair in 0..2 {
            let ring = nic.memory.ring(ring(pair, Side::Receive));
            for index in 0..64 {
                let descriptor = ring.descriptor(index).unwrap();
                assert_eq!((descriptor.address + 12) % 64, 0);
                buffers.push((descriptor.address, u64::from(descriptor.len)));
            }
        }
        buffers.sort_unstable();
        for pair in buffers.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
        }
        let (last, len) = buffers[buffers.len() - 1];
        assert!(last + len <= nic.memory.guest_base().0 + nic.memory.len());
    }
}
