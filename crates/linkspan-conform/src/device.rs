//! The honest way to a device that serves, and where a rule leaves it.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use linkspan_sys::memfd::Sealing;
use linkspan_sys::{EventFd, Stream};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{ConfigHeader, MemoryRegionDescription, VringAddr, VringState};
use linkspan_vhost::{ProtocolFeatures, VHOST_USER_F_PROTOCOL_FEATURES};
use linkspan_virtio::Features;
use virtio_bindings::virtio_blk as blk;
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::front_end::{FrontEnd, broken};
use crate::memory::{GUEST, LEN, Memory, table};
use crate::ring::{BUFFERS, Desc, NEXT, Ring, SIZE, Used, WRITE, Watched};
use crate::{Kind, Stop};

/// Guest addresses of the parts of an honest request.
pub(crate) const HEADER: u64 = GUEST + BUFFERS;
pub(crate) const DATA: u64 = HEADER + 0x1000;
pub(crate) const STATUS: u64 = HEADER + 0x2000;

/// Bytes of a sector.
pub(crate) const SECTOR: u32 = 512;

/// Bytes of a frame with the longest of its headers.
pub(crate) const FRAME: u32 = 72;

/// What is there before a device answers.
const NO_STATUS: u8 = 0xff;

/// Protocol features that are taken if they are offered, beside `REPLY_ACK`.
const TAKEN: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// The target, and how long it may take.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub socket: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// How long it may take for what it has to do.
    pub patience: Duration,
    /// How long it is watched for what it must not do.
    pub settle: Duration,
}

/// How a front end negotiates.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    /// Whether `VHOST_USER_F_PROTOCOL_FEATURES` is acknowledged: rings begin disabled.
    pub(crate) bit_30: bool,
    /// Whether `REPLY_ACK` is taken, if it is offered.
    pub(crate) acks: bool,
    /// Virtio features to take if they are offered.
    pub(crate) wanted: Features,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            bit_30: true,
            acks: true,
            wanted: Features::VIRTIO_F_VERSION_1 | Features::VIRTIO_F_INDIRECT_DESC,
        }
    }
}

impl Target {
    /// Connects. A target that has just started, or is busy with the front end
    /// before, gets its time.
    pub(crate) fn connect(&self) -> Result<FrontEnd, Stop> {
        let deadline = Instant::now() + self.patience;
        loop {
            match Stream::connect(&self.socket) {
                Ok(stream) => return Ok(FrontEnd::over(stream, self.patience)),
                Err(error) if Instant::now() >= deadline => {
                    return Err(Stop::Unreachable(format!(
                        "no connection to {}: {error}",
                        self.socket.display()
                    )));
                }
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Meets a target on a connection that is there already: how far an honest front end comes
    /// with it, in words.
    #[must_use]
    pub fn meet(&self, stream: Stream) -> String {
        let front = FrontEnd::over(stream, self.patience);
        match self.met(front) {
            Ok(seen) => seen,
            Err(stop) => stop.to_string(),
        }
    }

    fn met(&self, front: FrontEnd) -> Result<String, Stop> {
        let mut device = self.negotiated_on(front, Manner::default(), Sealing::Fixed)?;
        match device.config() {
            Err(Stop::NotApplicable(_)) => {}
            config => drop(config?),
        }
        let body = raw_state(u32::MAX, 0);
        let seen = device
            .front
            .try_it(Request::SetVringNum, &body, &[])?
            .seen()?;
        device.share(&[device.memory.description()])?;
        device.start()?;
        let base = device.stop()?;
        Ok(format!("{seen}; the ring stops at {base}"))
    }

    /// A device that was negotiated with and has the memory, without a ring.
    pub(crate) fn shared(&self) -> Result<Device, Stop> {
        let device = self.negotiated(Manner::default())?;
        device.share(&[device.memory.description()])?;
        Ok(device)
    }

    /// A device that serves.
    pub(crate) fn serving(&self) -> Result<Device, Stop> {
        let mut device = self.shared()?;
        device.start()?;
        device.serve()?;
        Ok(device)
    }

    /// A device that was negotiated with.
    pub(crate) fn negotiated(&self, manner: Manner) -> Result<Device, Stop> {
        self.negotiated_on(self.connect()?, manner, Sealing::Fixed)
    }

    /// The same on this connection, with memory that is sealed so.
    pub(crate) fn negotiated_on(
        &self,
        mut front: FrontEnd,
        manner: Manner,
        sealing: Sealing,
    ) -> Result<Device, Stop> {
        let offered = front.number(Request::GetFeatures)?;
        let mut protocol = ProtocolFeatures::empty();
        if offered & VHOST_USER_F_PROTOCOL_FEATURES != 0 {
            let of = front.number(Request::GetProtocolFeatures)?;
            protocol = ProtocolFeatures::from_bits_retain(of);
            // Others bring duties: a status to be set, notifications in band.
            let mut taken = protocol & TAKEN;
            if manner.acks {
                taken |= protocol & ProtocolFeatures::REPLY_ACK;
            }
            front.tell(Request::SetProtocolFeatures, taken.bits().as_bytes(), &[])?;
            front.acks = taken.contains(ProtocolFeatures::REPLY_ACK);
        }
        front.tell(Request::SetOwner, &[], &[])?;
        let mut wanted = manner.wanted.bits();
        if manner.bit_30 {
            wanted |= VHOST_USER_F_PROTOCOL_FEATURES;
        }
        let features = offered & wanted;
        front.tell(Request::SetFeatures, features.as_bytes(), &[])?;
        let rings = (0..self.kind.rings()).map(Ring::new);
        Ok(Device {
            front,
            kind: self.kind,
            offered,
            features,
            protocol,
            memory: Memory::new(sealing)?,
            rings: rings.collect::<Result<_, _>>()?,
            patience: self.patience,
            settle: self.settle,
        })
    }
}

/// A device, as a front end and its driver have it.
pub(crate) struct Device {
    pub(crate) front: FrontEnd,
    pub(crate) kind: Kind,
    /// Virtio features that were offered, and those that were taken.
    pub(crate) offered: u64,
    pub(crate) features: u64,
    /// Protocol features that were offered.
    pub(crate) protocol: ProtocolFeatures,
    pub(crate) memory: Memory,
    rings: Vec<Ring>,
    pub(crate) patience: Duration,
    pub(crate) settle: Duration,
}

impl Device {
    /// The ring on which requests are made.
    pub(crate) fn ring(&mut self) -> &mut Ring {
        self.rings.last_mut().expect("each kind has a ring")
    }

    /// Its number.
    pub(crate) fn index(&self) -> u16 {
        self.kind.rings() - 1
    }

    /// Not applicable unless this protocol feature is offered.
    pub(crate) fn needs(&self, feature: ProtocolFeatures, name: &str) -> Result<(), Stop> {
        match self.protocol.contains(feature) {
            true => Ok(()),
            false => Err(Stop::NotApplicable(format!("{name} is not offered"))),
        }
    }

    /// Not applicable unless this virtio feature was taken.
    pub(crate) fn needs_feature(&self, feature: Features, name: &str) -> Result<(), Stop> {
        match self.features & feature.bits() {
            0 => Err(Stop::NotApplicable(format!("{name} is not offered"))),
            _ => Ok(()),
        }
    }

    /// How configuration space begins: the capacity of a disk, or the address of a network
    /// device.
    pub(crate) fn config(&self) -> Result<Vec<u8>, Stop> {
        self.needs(ProtocolFeatures::CONFIG, "CONFIG")?;
        let header = ConfigHeader {
            offset: 0,
            size: if self.kind == Kind::Blk { 8 } else { 6 },
            flags: 0,
        };
        let len = usize::try_from(header.size).expect("8 or 6");
        let body = [header.as_bytes(), &vec![0; len]].concat();
        let found = self.front.ask(Request::GetConfig, &body, &[])?;
        match found.strip_prefix(header.as_bytes()) {
            Some(space) if space.len() == len => Ok(space.to_vec()),
            Some(space) => Err(broken(format!("{} bytes instead of {len}", space.len()))),
            None => Err(broken("configuration space of another place".into())),
        }
    }

    /// Shares these regions, all of them in the one file.
    pub(crate) fn share(&self, regions: &[MemoryRegionDescription]) -> Result<(), Stop> {
        let count = u32::try_from(regions.len()).expect("few");
        let fds = vec![self.memory.as_fd(); regions.len()];
        self.front
            .tell(Request::SetMemTable, &table(count, regions), &fds)
    }

    /// Starts all rings, as they are.
    pub(crate) fn start(&mut self) -> Result<(), Stop> {
        self.place()?;
        self.enable(1)
    }

    /// Starts all rings, which are disabled still if bit 30 was acknowledged.
    pub(crate) fn place(&mut self) -> Result<(), Stop> {
        for ring in &self.rings {
            let base = u32::from(ring.available);
            let (index, front) = (ring.index, &self.front);
            front.tell(Request::SetVringNum, &state(index, SIZE.into()), &[])?;
            front.tell(Request::SetVringBase, &state(index, base), &[])?;
            front.tell(Request::SetVringAddr, ring.address().as_bytes(), &[])?;
            self.event(Request::SetVringCall, index, &ring.call)?;
            self.event(Request::SetVringErr, index, &ring.err)?;
            self.event(Request::SetVringKick, index, &ring.kick)?;
        }
        Ok(())
    }

    /// Starts the ring of requests alone, with its parts there; it is disabled still.
    pub(crate) fn place_at(&self, address: &VringAddr) -> Result<(), Stop> {
        let ring = self.rings.last().expect("it has one");
        let (index, front) = (ring.index, &self.front);
        front.tell(Request::SetVringNum, &state(index, SIZE.into()), &[])?;
        front.tell(Request::SetVringBase, &state(index, 0), &[])?;
        front.tell(Request::SetVringAddr, address.as_bytes(), &[])?;
        self.event(Request::SetVringCall, index, &ring.call)?;
        self.event(Request::SetVringKick, index, &ring.kick)
    }

    /// Enables or disables all rings, if that is how it was negotiated.
    pub(crate) fn enable(&self, enabled: u32) -> Result<(), Stop> {
        if self.features & VHOST_USER_F_PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        for index in 0..self.kind.rings() {
            let body = state(index, enabled);
            self.front.tell(Request::SetVringEnable, &body, &[])?;
        }
        Ok(())
    }

    /// Gives a ring one of its eventfds.
    pub(crate) fn event(&self, what: Request, index: u16, event: &EventFd) -> Result<(), Stop> {
        let body = u64::from(index);
        self.front.tell(what, body.as_bytes(), &[event.as_fd()])
    }

    /// Stops the ring; where it would go on.
    pub(crate) fn stop(&self) -> Result<u32, Stop> {
        let index = self.index();
        let body = self
            .front
            .ask(Request::GetVringBase, &state(index, 0), &[])?;
        match VringState::read_from_bytes(&body) {
            Ok(reply) if reply.index == u32::from(index) => Ok(reply.num),
            other => Err(broken(format!("a base of ring {index} is {other:?}"))),
        }
    }

    /// An honest request, which changes nothing on the other side: sector 0 is read, or
    /// a frame is sent that nobody wants.
    pub(crate) fn request(&self) -> Result<Vec<Desc>, Stop> {
        match self.kind {
            Kind::Blk => self.block_request(blk::VIRTIO_BLK_T_IN, 0, SECTOR),
            Kind::Net => {
                let mut frame = vec![0; FRAME as usize];
                // To a station of its own, with the type of local experiments.
                frame[12..26].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
                self.memory.write(BUFFERS, &frame)?;
                Ok(vec![Desc(HEADER, FRAME, 0, 0)])
            }
        }
    }

    /// A request of a disk whose answer has `len` bytes.
    pub(crate) fn block_request(
        &self,
        kind: u32,
        sector: u64,
        len: u32,
    ) -> Result<Vec<Desc>, Stop> {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write(BUFFERS, &header)?;
        self.memory.write(STATUS - GUEST, &[NO_STATUS])?;
        Ok(vec![
            Desc(HEADER, 16, NEXT, 1),
            Desc(DATA, len, NEXT | WRITE, 2),
            Desc(STATUS, 1, WRITE, 0),
        ])
    }

    /// The status byte of the request before.
    pub(crate) fn status(&self) -> Result<u8, Stop> {
        Ok(self.memory.read(STATUS - GUEST, 1)?[0])
    }

    /// Makes a chain available from descriptor 0 on, and kicks.
    pub(crate) fn submit(&mut self, chain: &[Desc]) -> Result<(), Stop> {
        self.make_available(chain)?;
        self.ring().kick()
    }

    /// The same, and tells nobody.
    pub(crate) fn make_available(&mut self, chain: &[Desc]) -> Result<(), Stop> {
        let (memory, ring) = (&self.memory, self.rings.last_mut().expect("it has one"));
        ring.describe(memory, 0, chain)?;
        ring.publish(memory, 0)
    }

    /// Makes a chain available whose head is this, without descriptors, and tells nobody.
    pub(crate) fn publish(&mut self, head: u16) -> Result<(), Stop> {
        let (memory, ring) = (&self.memory, self.rings.last_mut().expect("it has one"));
        ring.publish(memory, head)
    }

    /// Waits until the chain before is used.
    pub(crate) fn used(&mut self) -> Result<Used, Stop> {
        match self.watch(self.patience)? {
            Watched::Used(used) if used.id == 0 => Ok(used),
            Watched::Used(used) => Err(broken(format!(
                "used chain {}, which was not made available",
                used.id
            ))),
            Watched::GaveUp => Err(broken("gives up a ring on which nothing is wrong".into())),
            Watched::Nothing => Err(broken("does not use a chain that is in order".into())),
        }
    }

    /// Watches the ring for so long.
    pub(crate) fn watch(&mut self, within: Duration) -> Result<Watched, Stop> {
        let (memory, ring) = (&self.memory, self.rings.last_mut().expect("it has one"));
        ring.watch(memory, within)
    }

    /// Makes an honest request, and has it answered.
    pub(crate) fn serve(&mut self) -> Result<(), Stop> {
        let chain = self.request()?;
        self.submit(&chain)?;
        let used = self.used()?;
        let room = writable(&chain);
        if u64::from(used.len) > room {
            let len = used.len;
            return Err(broken(format!("says it wrote {len} bytes of {room}")));
        }
        match self.kind {
            Kind::Blk if self.status()? != 0 => Err(broken(format!(
                "reads sector 0 with status {}",
                self.status()?
            ))),
            _ => Ok(()),
        }
    }

    /// All bytes of memory.
    pub(crate) fn picture(&self) -> Result<Vec<u8>, Stop> {
        self.memory.read(0, usize::try_from(LEN).expect("1 MiB"))
    }

    /// Whether nothing has changed since this picture, but what a device may write: used rings,
    /// and these guest addresses with their lengths.
    pub(crate) fn untouched(&self, picture: &[u8], allowed: &[(u64, u64)]) -> Result<(), Stop> {
        let rings = self
            .rings
            .iter()
            .map(|ring| (GUEST + ring.parts()[2], 0x1000));
        let allowed: Vec<_> = rings.chain(allowed.iter().copied()).collect();
        let now = self.picture()?;
        let changed = now
            .iter()
            .zip(picture)
            .zip(GUEST..)
            .find(|((new, old), at)| {
                let may = |(first, len): &(u64, u64)| *at >= *first && at - first < *len;
                new != old && !allowed.iter().any(may)
            });
        match changed {
            Some((_, at)) => Err(broken(format!(
                "wrote at {at:#x}, where nothing was given to it to write"
            ))),
            None => Ok(()),
        }
    }
}

/// Bytes that a device may write of a chain.
pub(crate) fn writable(chain: &[Desc]) -> u64 {
    let lens = chain.iter().filter(|desc| desc.2 & WRITE != 0);
    lens.map(|desc| u64::from(desc.1)).sum()
}

/// A ring and a number, as most messages about rings have them.
pub(crate) fn state(index: u16, num: u32) -> Vec<u8> {
    raw_state(index.into(), num)
}

/// The same with any index.
pub(crate) fn raw_state(index: u32, num: u32) -> Vec<u8> {
    VringState { index, num }.as_bytes().to_vec()
}
