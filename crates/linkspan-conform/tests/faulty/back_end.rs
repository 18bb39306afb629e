//! A small back end whose every check is a panic, so that it dies of whatever is wrong; and
//! which can be given one fault that an honest front end would notice.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use linkspan_mem::{Gpa, GuestMemory, Region, SplitRing, UserVa, Window};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{Listener, PeerEventFd, PeerMemory, Stream};
use linkspan_vhost::wire::{
    Header, InflightDescription, LogDescription, MemoryRegionDescription, VringAddr, VringState,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    ReplyFlags,
    NoVersion1,
    LateProtocolFeatures,
    RefusesAll,
    AcknowledgesUnasked,
    RepliesTwice,
    NoQueues,
    NoSlots,
    WholeMessages,
    OneMessageAtATime,
    ConfigShort,
    OneConnection,
    UsedLong,
    WritesBeyond,
    StopsAtWrap,
    NoCall,
    LosesKick,
    WaitsForKick,
    DisabledWithoutBit30,
    ServesStopped,
    BaseZero,
    KeepsDescriptors,
    ReadsNothing,
    ThreeDescriptors,
    NoLastSector,
    NoBounds,
    NoStatus,
    WritesReadable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Disk,
    Card,
}

const SECTORS: u64 = 64;
const SLOTS: u64 = 32;
const BIT_30: u64 = 1 << 30;
const FEATURES: u64 = 1 << 32 | BIT_30 | 1 << 28 | 1 << 26;
/// MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 0x9 | 0x2 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 15;
const WRITE: u16 = 2;

/// Serves at `path` until it dies.
pub(crate) fn start(path: &Path, device: Device, fault: Fault) {
    let listener = Listener::bind(path).expect("a socket");
    thread::spawn(move || {
        loop {
            wait_for(listener.as_fd(), Direction::Read, None, None).expect("a socket");
            let Ok(stream) = listener.accept() else {
                continue;
            };
            Session::new(stream, device, fault).serve();
            if fault == Fault::OneConnection {
                return;
            }
        }
    });
}

#[derive(Default)]
struct Ring {
    size: Option<u16>,
    base: u16,
    used: u16,
    parts: Option<SplitRing<Window>>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
}

struct Session {
    stream: Stream,
    device: Device,
    fault: Fault,
    memory: Option<GuestMemory>,
    slots: Vec<(Region, Gpa, UserVa)>,
    rings: Vec<Ring>,
    bit_30: bool,
}

impl Session {
    fn new(stream: Stream, device: Device, fault: Fault) -> Self {
        let rings = if device == Device::Disk { 1 } else { 2 };
        Self {
            stream,
            device,
            fault,
            memory: None,
            slots: Vec::new(),
            rings: (0..rings).map(|_| Ring::default()).collect(),
            bit_30: false,
        }
    }

    fn serve(mut self) {
        loop {
            let ring = self.rings.last().expect("it has one");
            let kick = ring.kick.as_ref().map(OwnedFd::as_fd);
            match wait_for(self.stream.as_fd(), Direction::Read, kick, None) {
                Ok(Wake::Cancelled) => self.kicked(),
                Ok(_) => {
                    if !self.message() {
                        return;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads so many bytes; fewer are there only at the end.
    fn bytes(&self, len: usize, fds: &mut Vec<OwnedFd>) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            wait_for(self.stream.as_fd(), Direction::Read, None, None).expect("a socket");
            let received = self.stream.receive(&mut bytes[done..], fds, 253);
            match received.map_or(0, |received| received.bytes) {
                0 => break,
                more => done += more,
            }
            assert!(self.fault != Fault::WholeMessages || done == len);
        }
        bytes.truncate(done);
        bytes
    }

    /// Takes one message; whether there was one.
    fn message(&mut self) -> bool {
        let mut fds = Vec::new();
        let head = self.bytes(12, &mut fds);
        if head.is_empty() {
            return false;
        }
        let header = Header::read_from_bytes(&head).expect("a whole header");
        let (version, reply) = (header.flags & 3, header.flags & Header::REPLY);
        assert_eq!((version, reply), (Header::VERSION, 0));
        let size = usize::try_from(header.size).expect("it fits");
        assert!(size <= 4096, "too long");
        let body = self.bytes(size, &mut fds);
        assert_eq!(body.len(), size, "a whole body");
        if self.fault == Fault::OneMessageAtATime {
            let _ = self.stream.receive(&mut [0; 4096], &mut Vec::new(), 0);
        }
        if self.fault == Fault::KeepsDescriptors {
            for fd in fds.drain(fds.len().min(1)..) {
                std::mem::forget(fd);
            }
        }
        let needs = header.flags & Header::NEED_REPLY != 0;
        let answer = self.request(header.request, &body, fds);
        let always = answer.is_some();
        let unasked = self.fault == Fault::AcknowledgesUnasked && header.request == 8;
        if let Some(body) = answer {
            self.reply(header.request, &body);
        }
        if (needs && (!always || self.fault == Fault::RepliesTwice)) || (unasked && !needs) {
            let code = u64::from(self.fault == Fault::RefusesAll);
            self.reply(header.request, code.as_bytes());
        }
        true
    }

    fn reply(&self, request: u32, body: &[u8]) {
        let odd = if self.fault == Fault::ReplyFlags {
            0x10
        } else {
            0
        };
        let header = Header {
            request,
            flags: Header::VERSION | Header::REPLY | odd,
            size: u32::try_from(body.len()).expect("short"),
        };
        let bytes = [header.as_bytes(), body].concat();
        // The front end may be gone.
        let _ = self.stream.send_now(&bytes);
    }

    fn request(&mut self, request: u32, body: &[u8], mut fds: Vec<OwnedFd>) -> Option<Vec<u8>> {
        let number = |value: u64| Some(value.as_bytes().to_vec());
        let takes = matches!(request, 5 | 6 | 12..=14 | 21 | 32 | 37);
        if self.fault != Fault::KeepsDescriptors {
            assert!(takes || fds.is_empty(), "descriptors without need");
            assert!(!takes || request == 5 || fds.len() == 1, "one descriptor");
        }
        match request {
            1 if self.fault == Fault::NoVersion1 => number(FEATURES & !(1 << 32)),
            1 => number(FEATURES),
            2 => {
                let features = u64::read_from_bytes(body).expect("8 bytes");
                assert_eq!(features & !FEATURES, 0, "features that were not offered");
                self.bit_30 = features & BIT_30 != 0;
                None
            }
            3 => {
                assert!(body.is_empty());
                None
            }
            5 => {
                self.table(body, fds);
                None
            }
            6 => {
                let log = LogDescription::read_from_bytes(body).expect("16 bytes");
                assert!(log.mmap_size * 8 * 4096 >= 0x20_0000, "too small a log");
                map(fds.remove(0), log.mmap_offset, log.mmap_size);
                number(0)
            }
            8 => {
                let (ring, size) = self.state(body);
                let size = u16::try_from(size).expect("a size");
                assert!(ring.parts.is_none() || ring.kick.is_none(), "it runs");
                assert!(size.is_power_of_two());
                ring.size = Some(size);
                None
            }
            9 => {
                self.address(body);
                None
            }
            10 => {
                let (ring, base) = self.state(body);
                assert!(ring.kick.is_none(), "it runs");
                ring.base = u16::try_from(base).expect("a base");
                ring.used = ring.base;
                None
            }
            11 => Some(self.stop(body)),
            12..=14 => {
                self.event(request, body, fds.remove(0));
                None
            }
            15 if self.fault == Fault::LateProtocolFeatures && !self.bit_30 => Some(Vec::new()),
            15 => number(PROTOCOL),
            16 => {
                let taken = u64::read_from_bytes(body).expect("8 bytes");
                assert_eq!(taken & !PROTOCOL, 0);
                None
            }
            17 => number(u64::from(self.fault != Fault::NoQueues)),
            18 => {
                let (ring, enabled) = self.state(body);
                ring.enabled = enabled != 0;
                if !matches!(self.fault, Fault::LosesKick | Fault::WaitsForKick) {
                    self.process();
                }
                None
            }
            21 => {
                Stream::check(fds.remove(0)).expect("a socket");
                None
            }
            24 => Some(self.config(body)),
            32 => {
                let region = InflightDescription::read_from_bytes(body).expect("24 bytes");
                let map = map(fds.remove(0), region.mmap_offset, region.mmap_size);
                let mut bytes = [0; 8];
                map.slice(0, 8).expect("8 bytes").read(&mut bytes);
                assert_eq!(bytes, [0; 8], "features of the region");
                None
            }
            36 => number(if self.fault == Fault::NoSlots {
                0
            } else {
                SLOTS
            }),
            37 => {
                let region = MemoryRegionDescription::read_from_bytes(&body[8..]).expect("40");
                self.add(region, fds.remove(0));
                assert!(self.slots.len() as u64 <= SLOTS, "no slot is left");
                self.remember();
                None
            }
            38 => {
                let region = MemoryRegionDescription::read_from_bytes(&body[8..]).expect("40");
                assert!(self.rings.iter().all(|ring| ring.kick.is_none()), "it runs");
                let of = |slot: &(Region, Gpa, UserVa)| slot.1.0 == region.guest_address;
                let at = self.slots.iter().position(of).expect("it was added");
                self.slots.remove(at);
                None
            }
            other => panic!("unknown request {other}"),
        }
    }

    fn state(&mut self, body: &[u8]) -> (&mut Ring, u32) {
        let state = VringState::read_from_bytes(body).expect("8 bytes");
        let index = usize::try_from(state.index).expect("it fits");
        (&mut self.rings[index], state.num)
    }

    fn table(&mut self, body: &[u8], mut fds: Vec<OwnedFd>) {
        assert!(self.rings.iter().all(|ring| ring.kick.is_none()), "it runs");
        let (head, regions) = body.split_at(8);
        let count = u32::read_from_bytes(&head[..4]).expect("4 bytes") as usize;
        assert!((1..=8).contains(&count), "{count} regions");
        assert_eq!((regions.len(), fds.len()), (32 * count, count));
        self.slots.clear();
        for region in regions.chunks(32) {
            let region = MemoryRegionDescription::read_from_bytes(region).expect("32 bytes");
            self.add(region, fds.remove(0));
        }
        self.remember();
    }

    fn add(&mut self, of: MemoryRegionDescription, fd: OwnedFd) {
        let region = map(fd, of.mmap_offset, of.size);
        let places = (Gpa(of.guest_address), UserVa(of.user_address));
        self.slots.push((region, places.0, places.1));
    }

    fn remember(&mut self) {
        let memory = GuestMemory::new(self.slots.clone());
        self.memory = Some(memory.expect("regions that do not overlap"));
    }

    fn address(&mut self, body: &[u8]) {
        let address = VringAddr::read_from_bytes(body).expect("40 bytes");
        let index = usize::try_from(address.index).expect("it fits");
        let memory = &self.memory.as_ref().expect("memory").front_end;
        let ring = &mut self.rings[index];
        assert!(ring.kick.is_none(), "it runs");
        let size = ring.size.expect("a size");
        let window = |at, len| memory.window(UserVa(at), len).expect("in memory");
        let parts = SplitRing::new(
            window(
                address.descriptor,
                SplitRing::<Window>::descriptors_len(size),
            ),
            window(address.available, SplitRing::<Window>::available_len(size)),
            window(address.used, SplitRing::<Window>::used_len(size)),
            size,
        );
        ring.parts = Some(parts.expect("a ring"));
    }

    fn event(&mut self, request: u32, body: &[u8], fd: OwnedFd) {
        let index = u64::read_from_bytes(body).expect("8 bytes");
        let waits = matches!(self.fault, Fault::WaitsForKick | Fault::LosesKick);
        let (bit_30, fault) = (self.bit_30, self.fault);
        let ring = &mut self.rings[usize::try_from(index).expect("it fits")];
        let copy = fd.try_clone().expect("a descriptor");
        PeerEventFd::check(copy).expect("an eventfd");
        match request {
            12 => {
                ring.parts.as_ref().expect("addresses");
                ring.kick = Some(fd);
                ring.enabled |= !bit_30 && fault != Fault::DisabledWithoutBit30;
                if !waits {
                    self.process();
                }
            }
            13 => ring.call = Some(fd),
            _ => {}
        }
    }

    fn stop(&mut self, body: &[u8]) -> Vec<u8> {
        let fault = self.fault;
        let (ring, _) = self.state(body);
        if fault != Fault::ServesStopped {
            ring.kick = None;
        }
        let base = if fault == Fault::BaseZero {
            0
        } else {
            ring.base
        };
        let state = VringState::read_from_bytes(body).expect("8 bytes");
        let num = base.into();
        VringState { num, ..state }.as_bytes().to_vec()
    }

    fn config(&self, body: &[u8]) -> Vec<u8> {
        let word = |at: usize| u32::read_from_bytes(&body[at..at + 4]).expect("4 bytes") as usize;
        let (offset, size) = (word(0), word(4));
        let mut space = [0; 60];
        space[..8].copy_from_slice(&SECTORS.to_le_bytes());
        let part = &space[offset..offset + size];
        let short = usize::from(self.fault == Fault::ConfigShort);
        [&body[..12], &part[short..]].concat()
    }

    fn kicked(&mut self) {
        let ring = self.rings.last().expect("it has one");
        let kick = ring.kick.as_ref().expect("it was kicked");
        rustix::io::read(kick, &mut [0; 8]).expect("an eventfd");
        if self.fault == Fault::LosesKick && !ring.enabled {
            return;
        }
        self.process();
    }

    fn process(&mut self) {
        let Some(memory) = &self.memory else { return };
        let (fault, device) = (self.fault, self.device);
        let ring = self.rings.last_mut().expect("it has one");
        let (Some(parts), true, Some(_)) = (&ring.parts, ring.enabled, &ring.kick) else {
            return;
        };
        let ahead = parts.available_index().wrapping_sub(ring.base);
        assert!(ahead <= parts.size(), "the index is ahead by {ahead}");
        for _ in 0..ahead {
            let head = parts.available_entry(ring.base);
            let len = chain(memory, parts, head, device, fault);
            let element = linkspan_mem::UsedElement {
                id: head.into(),
                len: len + if fault == Fault::UsedLong { 4096 } else { 0 },
            };
            parts.set_used_element(ring.used, element);
            ring.base = ring.base.wrapping_add(1);
            ring.used = ring.used.wrapping_add(1);
            assert!(fault != Fault::StopsAtWrap || ring.used != 0);
            parts.publish_used_index(ring.used);
        }
        if let Some(call) = &ring.call
            && fault != Fault::NoCall
            && ahead > 0
        {
            rustix::io::write(call, &1_u64.to_ne_bytes()).expect("an eventfd");
        }
        let regions = memory.table().regions();
        assert!(regions.iter().all(|region| !region.poisoned()), "lost");
    }
}

fn map(fd: OwnedFd, offset: u64, len: u64) -> Region {
    let memory = PeerMemory::check(fd).expect("a memory file");
    let mapping = memory.map(offset, len, None).expect("a mapping");
    Region::new(Arc::new(mapping))
}

/// Where it is, how long, whether it can be written.
type Buffer = (u64, u32, bool);

fn chain(
    memory: &GuestMemory,
    ring: &SplitRing<Window>,
    head: u16,
    device: Device,
    fault: Fault,
) -> u32 {
    let first = ring.descriptor(head).expect("a head");
    let indirect = first.flags & 4 != 0;
    assert!(!indirect || (first.flags == 4 && first.len.is_multiple_of(16) && first.len > 0));
    let table = indirect.then(|| {
        let mut bytes = vec![0; usize::try_from(first.len).expect("it fits").min(1 << 20)];
        copy(memory, (first.address, first.len, false), &mut bytes);
        bytes
    });
    let entry = |at: u16| match &table {
        Some(bytes) => {
            let at = usize::from(at) * 16;
            let bytes = bytes[at..at + 16].try_into().expect("16 bytes");
            linkspan_mem::Descriptor::from_bytes(bytes)
        }
        None => ring.descriptor(at).expect("a descriptor"),
    };
    let (mut at, mut buffers) = (if indirect { 0 } else { head }, Vec::<Buffer>::new());
    loop {
        let found = entry(at);
        assert!(found.flags & 4 == 0 && found.len > 0);
        let write = found.flags & WRITE != 0;
        let after = buffers.last().is_some_and(|last| last.2);
        assert!(write || !after, "to read after to write");
        buffers.push((found.address, found.len, write));
        assert!(buffers.len() <= ring.size().into(), "a loop");
        if found.flags & 1 == 0 {
            break;
        }
        at = found.next;
    }
    if fault == Fault::ThreeDescriptors {
        assert_eq!(buffers.len(), if device == Device::Card { 1 } else { 3 });
    }
    let written = match device {
        Device::Disk => disk(memory, &buffers, fault),
        Device::Card => card(memory, &buffers, fault),
    };
    // What comes of looking twice.
    assert_eq!(entry(at).len, buffers.last().expect("one").1);
    written
}

fn disk(memory: &GuestMemory, buffers: &[Buffer], fault: Fault) -> u32 {
    let (data, status) = match buffers {
        [rest @ .., status] => (rest, *status),
        [] => unreachable!("a chain has a buffer"),
    };
    let mut head = Vec::new();
    for buffer in data.iter().filter(|buffer| !buffer.2) {
        let mut bytes = vec![0; usize::try_from(buffer.1).expect("it fits").min(1 << 20)];
        copy(memory, *buffer, &mut bytes);
        head.append(&mut bytes);
    }
    assert!(status.2 && status.1 == 1, "a status");
    assert!(head.len() >= 16, "a header");
    let kind = u32::from_le_bytes(head[..4].try_into().expect("4 bytes"));
    let sector = u64::from_le_bytes(head[8..16].try_into().expect("8 bytes"));
    let into: Vec<_> = data.iter().filter(|buffer| buffer.2).collect();
    let len: u64 = into.iter().map(|buffer| u64::from(buffer.1)).sum();
    if fault == Fault::WritesReadable && into.is_empty() {
        put(memory, data[1].0, [0xa5]);
        return 1;
    }
    assert!(head.len() == 16 && len > 0, "a header and data");
    assert!(len.is_multiple_of(512) || kind == 8, "whole sectors");
    let last = SECTORS - u64::from(fault == Fault::NoLastSector);
    let inside = sector < last || fault == Fault::NoBounds;
    let code = match kind {
        0 if inside => 0,
        0 => 1,
        8 if fault != Fault::NoStatus => 0,
        8 => return 0,
        _ if fault == Fault::NoBounds => 0,
        _ => 2,
    };
    if code == 0 && fault != Fault::ReadsNothing {
        for buffer in into {
            fill(memory, *buffer);
        }
    }
    if fault == Fault::WritesBeyond {
        fill(memory, (status.0 + 64, 1, true));
    }
    put(memory, status.0, [code]);
    u32::try_from(len).expect("checked") + 1
}

fn card(memory: &GuestMemory, buffers: &[Buffer], fault: Fault) -> u32 {
    let mut frame = Vec::new();
    for buffer in buffers {
        if fault == Fault::WritesReadable && buffer.2 {
            fill(memory, *buffer);
        }
        assert!(!buffer.2 || fault == Fault::WritesReadable, "to read");
        let mut bytes = vec![0; usize::try_from(buffer.1).expect("it fits").min(1 << 20)];
        copy(memory, *buffer, &mut bytes);
        frame.append(&mut bytes);
    }
    assert!((12 + 14..12 + 1514).contains(&frame.len()), "a frame");
    assert!(frame[..10] == [0; 10], "no offloads");
    assert!(buffers.len() < 17, "crumbs");
    0
}

fn copy(memory: &GuestMemory, buffer: Buffer, bytes: &mut [u8]) {
    let mut spans = Vec::new();
    let done = memory
        .guest
        .resolve(Gpa(buffer.0), buffer.1, |span| spans.push(span));
    done.expect("in memory");
    memory.table().gather(&spans, 0, bytes).expect("all of it");
}

fn fill(memory: &GuestMemory, buffer: Buffer) {
    let len = usize::try_from(buffer.1).expect("it fits");
    let mut spans = Vec::new();
    let done = memory
        .guest
        .resolve(Gpa(buffer.0), buffer.1, |span| spans.push(span));
    done.expect("in memory");
    memory
        .table()
        .scatter(&spans, 0, &vec![0x5a; len])
        .expect("all of it");
}

fn put(memory: &GuestMemory, at: u64, bytes: [u8; 1]) {
    let mut spans = Vec::new();
    let done = memory.guest.resolve(Gpa(at), 1, |span| spans.push(span));
    done.expect("in memory");
    memory
        .table()
        .scatter(&spans, 0, &bytes)
        .expect("all of it");
}
