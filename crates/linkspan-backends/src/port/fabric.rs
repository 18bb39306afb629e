//! Ports joined on a set of workers: what all of them share. What a frame meets on
//! its way is in `lane`.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use linkspan_devices::net::frame::Responder;
use linkspan_devices::net::header::{FRAME_LEN_MAX, Offload};
use linkspan_devices::net::switch::{FloodLimit, PortVlans, Switch, SwitchError, SwitchOptions};
use linkspan_devices::net::{Frame, Mac, VLAN_LEN};
use linkspan_engine::{RateLimit, RingKey, Workers};
use linkspan_sys::EventFd;
use linkspan_sys::tap::TapQueue;

use super::capture::Capture;
use super::counters::{ControlCounts, Counts, OfPair, PortCounts};
use super::lane::Lane;
use super::link::Pairs;
use super::mailbox::{Address, Mailbox};
use super::saved::Before;
use super::tap::TapTask;
use super::task::LaneTask;

/// Bytes of the longest frame here: one may get a tag.
pub(super) const BYTES_MAX: usize = FRAME_LEN_MAX as usize + VLAN_LEN;

/// Queue pairs of a port at most: a vhost-user link has 256 rings at most, perhaps
/// with a control queue.
pub const PAIRS_MAX: u16 = 127;

/// Ports at most.
pub const PORTS_MAX: usize = 1024;

/// What becomes of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A learning switch.
    Switch,
    /// Two ports, each of which gets what the other sends.
    Pair,
    /// Each frame is copied out of its sender's memory, looked at, and dropped.
    Sink,
    /// Each guest gets as many frames as it takes; what it sends is dropped.
    Source,
    /// Each port gets back what it sends, with the two addresses swapped.
    Echo,
}

impl Mode {
    /// Whether frames from one port go to a port.
    #[inline]
    pub(super) fn passes_on(self) -> bool {
        matches!(self, Self::Switch | Self::Pair | Self::Echo)
    }
}

/// What is behind a port.
#[derive(Debug)]
pub enum Kind {
    /// A guest with so many queue pairs, offered by
    /// [`NetDevice`](super::NetDevice).
    Guest {
        /// How many.
        pairs: u16,
    },
    /// An interface of this machine.
    Tap(Vec<TapQueue>),
    /// Nobody: what a guest needs before it talks to anybody is answered here.
    Responder(Responder),
}

/// A port that is to be.
#[derive(Debug)]
pub struct PortOptions {
    /// What people call it.
    pub name: String,
    /// What is behind it.
    pub kind: Kind,
    /// Which VLANs it has to do with.
    pub vlans: PortVlans,
    /// Bytes of a packet to it at most, without Ethernet header.
    pub mtu: u16,
    /// What may come from it. A guest's frames wait in its queues, those of an
    /// interface are dropped.
    pub limit: Option<RateLimit>,
}

/// A port.
pub(super) struct Port {
    pub(super) name: String,
    pub(super) kind: Side,
    pub(super) vlans: PortVlans,
    pub(super) mtu: AtomicU16,
    pub(super) limit: Option<RateLimit>,
    /// By worker.
    pub(super) counts: Vec<Counts>,
    pub(super) control: ControlCounts,
    /// Nothing comes or goes, as somebody wants it so.
    pub(super) shut: AtomicBool,
    /// Whether somebody was there when the fabric was held.
    pub(super) was_there: AtomicBool,
}

/// What is behind a port.
pub(super) enum Side {
    Guest(Pairs),
    /// Its queues, and whether the interface is up.
    Tap(Vec<Arc<TapQueue>>, AtomicBool),
    Responder(Responder),
}

/// Ports joined on a set of workers.
pub struct Fabric {
    pub(super) mode: Mode,
    pub(super) ports: Vec<Port>,
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) capture: Option<Arc<Capture>>,
    ageing_s: u32,
    flood: Option<FloodLimit>,
    /// Pairs of the port that has most.
    stride: u32,
    start: Instant,
    /// Signalled when the carrier of an interface is to change.
    pub(super) carriers: EventFd,
    /// Nothing is taken from any port: another process takes it over, or it is to go on.
    pub(super) held: AtomicBool,
    /// What another process had before.
    pub(super) before: OnceLock<Before>,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric")
            .field("mode", &self.mode)
            .field("ports", &self.ports.len())
            .finish_non_exhaustive()
    }
}

/// How ports are joined.
#[derive(Debug)]
pub struct FabricOptions {
    /// What becomes of frames.
    pub mode: Mode,
    /// What is joined.
    pub ports: Vec<PortOptions>,
    /// The workers that [`Fabric::run`] begins on.
    pub workers: usize,
    /// Who gets copies of all frames.
    pub capture: Option<Arc<Capture>>,
    /// Seconds after which a station that sends nothing is forgotten.
    pub ageing_s: u32,
    /// How much a port may flood, on each worker by itself, if that is limited.
    pub flood: Option<FloodLimit>,
    /// Nothing is taken from any port before it is released: it is to go on from what
    /// another process has ([`SharedFabric`](super::SharedFabric)).
    pub held: bool,
}

impl FabricOptions {
    /// For [`ageing_s`](Self::ageing_s): what bridges have (IEEE 802.1Q 8.8.3).
    pub const AGEING_S: u32 = 300;
    /// For [`flood`](Self::flood).
    pub const FLOOD_PER_S: u32 = 100_000;

    /// So many frames a second, and a tenth of them at once.
    pub const fn flood_per_second(frames_per_s: u32) -> FloodLimit {
        FloodLimit {
            frames_per_s,
            // At least one can pass.
            burst: if frames_per_s < 10 {
                1
            } else {
                frames_per_s / 10
            },
        }
    }

    /// With nobody who gets copies, and the usual limits.
    pub fn new(mode: Mode, ports: Vec<PortOptions>, workers: usize) -> Self {
        Self {
            mode,
            ports,
            workers,
            capture: None,
            ageing_s: Self::AGEING_S,
            flood: Some(Self::flood_per_second(Self::FLOOD_PER_S)),
            held: false,
        }
    }
}

/// Why ports cannot be joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FabricError {
    /// None, or too many.
    #[error("{ports} ports are not 1 to {PORTS_MAX}")]
    Ports {
        /// How many.
        ports: usize,
    },
    /// A pair that is none.
    #[error("{ports} ports are no pair")]
    Pair {
        /// How many.
        ports: usize,
    },
    /// None, or too many.
    #[error("{pairs} queue pairs are not 1 to {PAIRS_MAX}")]
    Pairs {
        /// How many.
        pairs: usize,
    },
    /// A VLAN that there is not.
    #[error("port {port} cannot have these VLANs: there are 1 to 4094")]
    Vlans {
        /// Which.
        port: String,
    },
    /// The switch.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// A descriptor or memory could not be had.
    #[error("joining ports: {0}")]
    System(#[from] io::Error),
}

/// Where others of its worker find what a [`Lane`] is in.
pub(super) const LANE: u32 = 0;

impl Fabric {
    /// Joins ports on so many workers, which [`run`](Self::run) then begins.
    ///
    /// # Errors
    /// When the options make none, or memory or a descriptor cannot be had.
    pub fn new(
        mode: Mode,
        ports: Vec<PortOptions>,
        workers: usize,
    ) -> Result<Arc<Self>, FabricError> {
        Self::with(FabricOptions::new(mode, ports, workers))
    }

    /// The same with all options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with(options: FabricOptions) -> Result<Arc<Self>, FabricError> {
        let FabricOptions {
            mode,
            ports,
            workers,
            capture,
            ageing_s,
            flood,
            held,
        } = options;
        let count = ports.len();
        if count == 0 || count > PORTS_MAX {
            return Err(FabricError::Ports { ports: count });
        }
        if mode == Mode::Pair && count != 2 {
            return Err(FabricError::Pair { ports: count });
        }
        let mut stride = 1;
        for port in &ports {
            let pairs = match &port.kind {
                Kind::Guest { pairs } => usize::from(*pairs),
                Kind::Tap(queues) => queues.len(),
                Kind::Responder(_) => 1,
            };
            if pairs == 0 || pairs > usize::from(PAIRS_MAX) {
                return Err(FabricError::Pairs { pairs });
            }
            stride = stride.max(u32::try_from(pairs).unwrap_or(u32::MAX));
        }
        let ports = ports.into_iter().map(|port| Port::new(port, workers));
        let mailboxes = (0..workers).map(|_| Mailbox::new(workers == 1));
        let fabric = Self {
            mode,
            ports: ports.collect::<io::Result<_>>()?,
            mailboxes: mailboxes.collect::<io::Result<_>>()?,
            capture,
            ageing_s,
            flood,
            stride,
            start: Instant::now(),
            carriers: EventFd::new()?,
            held: AtomicBool::new(held),
            before: OnceLock::new(),
        };
        Ok(Arc::new(fabric))
    }

    /// Has the workers, as many as the fabric was made for, do what is to be done
    /// beside the queues of guests, until the result is dropped. Guests are to be
    /// served on the same workers.
    ///
    /// # Errors
    /// When memory or a descriptor cannot be had; nothing is left behind then.
    pub fn run(self: &Arc<Self>, workers: &Arc<Workers>) -> Result<Running, FabricError> {
        let mut lanes = Vec::new();
        let count = self.mailboxes.len();
        for number in 0..count {
            let lane = Lane::new((number, count), self.ports.len(), self.switch()?);
            let lane = lane.map_err(io::Error::other)?;
            lanes.push(LaneTask::new(self, lane));
        }
        let mut running = Running {
            workers: Arc::clone(workers),
            keys: Vec::new(),
        };
        for (lane, task) in (0..).zip(lanes) {
            running.keys.push(workers.add(lane, Box::new(task))?);
        }
        for (number, port) in (0..).zip(&self.ports) {
            let Side::Tap(queues, _) = &port.kind else {
                continue;
            };
            for (lane, queue) in (0..).zip(queues) {
                let task = TapTask::new(self, number, Arc::clone(queue));
                running.keys.push(workers.add(lane, Box::new(task))?);
            }
        }
        Ok(running)
    }

    /// A table of stations, of those that another process knew.
    fn switch(&self) -> Result<Switch, FabricError> {
        let ports = u16::try_from(self.ports.len()).unwrap_or(u16::MAX);
        let mut switch = Switch::new(SwitchOptions {
            ports,
            stations: 16384,
            stations_per_port: 4096,
            ageing_s: self.ageing_s,
            flood: self.flood,
            seed: u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        })?;
        for (number, port) in (0..).zip(&self.ports) {
            if !switch.set_vlans(number, port.vlans.clone()) {
                let port = port.name.clone();
                return Err(FabricError::Vlans { port });
            }
            if let Side::Responder(responder) = &port.kind {
                let vlan = match port.vlans {
                    PortVlans::Access(vlan) => vlan,
                    PortVlans::Unaware | PortVlans::Trunk { .. } => 0,
                };
                // Guests rely on it, and who says to be it is not believed. An address that
                // cannot be a station's is nobody's.
                switch.add_static(number, vlan, responder.mac);
            }
        }
        for it in self.before.get().iter().flat_map(|before| &before.stations) {
            switch.note(it.port, it.vlan, it.mac, u64::from(it.seen_s) * 1000);
        }
        Ok(switch)
    }

    /// What becomes of frames.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What people call a port.
    pub fn name(&self, port: u16) -> &str {
        let port = self.ports.get(usize::from(port));
        port.map_or("", |port| &port.name)
    }

    /// How many ports there are.
    pub fn ports(&self) -> u16 {
        u16::try_from(self.ports.len()).unwrap_or(u16::MAX)
    }

    /// Frames of a port that were captured, and those that found no room for that.
    pub fn captures(&self, port: u16) -> Option<(u64, u64)> {
        Some(self.capture.as_ref()?.counts(port))
    }

    /// What was counted of a port since the fabric was made, in whichever process; `None` when
    /// there is no such port.
    pub fn counts(&self, port: u16) -> Option<PortCounts> {
        let number = usize::from(port);
        let port = self.ports.get(number)?;
        let pairs = match &port.kind {
            Side::Guest(pairs) => &pairs.counts[..],
            Side::Tap(..) | Side::Responder(_) => &[],
        };
        let mut counts = PortCounts::sum(&port.counts, pairs, &port.control);
        if let Some(before) = self.before.get() {
            counts.add(&before.counts[number]);
        }
        Some(counts)
    }

    /// Whether nothing is taken from any port now.
    #[inline]
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// What is counted of a queue pair of a guest.
    pub(super) fn pair_counts(&self, port: u16, pair: u16) -> Option<Arc<OfPair>> {
        match &self.ports.get(usize::from(port))?.kind {
            Side::Guest(pairs) => pairs.counts.get(usize::from(pair)).cloned(),
            Side::Tap(..) | Side::Responder(_) => None,
        }
    }

    /// Packets to a port have at most so many bytes from now on, without Ethernet
    /// header.
    pub(super) fn set_mtu(&self, port: u16, mtu: u16) {
        self.ports[usize::from(port)]
            .mtu
            .store(mtu, Ordering::Relaxed);
    }

    pub(super) fn mtu(&self, port: u16) -> u16 {
        self.ports[usize::from(port)].mtu.load(Ordering::Relaxed)
    }

    /// Says to all others that this station is at this port, as a reverse ARP request
    /// (RFC 903) for itself: what hypervisors send for a guest that has come.
    /// `false` when nobody has such an address.
    pub fn announce(&self, port: u16, mac: Mac) -> bool {
        if mac.is_multicast() || mac.is_zero() {
            return false;
        }
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&Mac::BROADCAST.0);
        frame[6..12].copy_from_slice(&mac.0);
        // Reverse ARP, Ethernet and IPv4, addresses of 6 and 4 bytes, a request.
        frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        frame[22..28].copy_from_slice(&mac.0);
        frame[32..38].copy_from_slice(&mac.0);
        let from = Address::From(port);
        if !self.mailboxes[0].send(from, &Offload::NONE, &Frame::private(&frame)) {
            tracing::warn!("port {}: an announcement was lost", self.name(port));
        }
        true
    }

    /// The address of a receive queue on its worker.
    #[inline]
    pub(super) fn address(&self, port: u16, pair: u16) -> u32 {
        LANE + 1 + u32::from(port) * self.stride + u32::from(pair)
    }

    /// Milliseconds since the fabric was made, in whichever process.
    pub(super) fn millis(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_millis();
        let before = self.before.get().map_or(0, |before| before.millis);
        u64::try_from(passed)
            .unwrap_or(u64::MAX)
            .saturating_add(before)
    }
}

impl Port {
    fn new(options: PortOptions, workers: usize) -> io::Result<Self> {
        Ok(Self {
            name: options.name,
            kind: match options.kind {
                Kind::Guest { pairs } => Side::Guest(Pairs::new(pairs)?),
                Kind::Tap(queues) => {
                    let queues = queues.into_iter().map(Arc::new).collect();
                    Side::Tap(queues, AtomicBool::new(true))
                }
                Kind::Responder(responder) => Side::Responder(responder),
            },
            vlans: options.vlans,
            mtu: AtomicU16::new(options.mtu),
            limit: options.limit,
            counts: (0..workers).map(|_| Counts::default()).collect(),
            control: ControlCounts::default(),
            shut: AtomicBool::new(false),
            was_there: AtomicBool::new(false),
        })
    }
}

/// A fabric at work; it rests when this is dropped.
#[derive(Debug)]
pub struct Running {
    workers: Arc<Workers>,
    keys: Vec<RingKey>,
}

impl Drop for Running {
    fn drop(&mut self) {
        for key in &self.keys {
            self.workers.stop(*key);
        }
    }
}
