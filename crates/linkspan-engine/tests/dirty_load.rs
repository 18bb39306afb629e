//! The dirty log while the device works, as a migration uses it: a copy of the guest's
//! memory that is brought up to date from nothing but the log is right when the rings
//! have stopped. Both layouts of rings, on two workers; completions that come late; a log
//! that is replaced, and switched off and on, meanwhile.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use linkspan_backends::image::{Io, OpenOptions, RawImage};
use linkspan_mem::{DirtyLog, Gpa};
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::front_end::state;
use linkspan_testkit::served::{SECTORS, write_image};
use linkspan_testkit::{FrontEnd, Options, PATIENCE, Served, SharedMemory};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{VringAddr, VringState};
use linkspan_virtio::{Buffer, DriverQueue, Features, QueueLayout};
use tempfile::TempDir;
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = 4096;

/// Bytes of the guest's memory, from this address on.
const MEMORY: u64 = 4 << 20;
const START: Gpa = Gpa(0x10_0000);

/// Entries of a ring, with three for each request: one page of packed descriptors.
const SIZE: u16 = 256;
const REQUESTS: u64 = 80;

/// Bytes of a request's data. Its header and its status byte lie behind it.
const DATA: usize = 12 << 10;
const SLOT: u64 = DATA as u64 + 64;

struct Log {
    file: Arc<SharedMemory>,
    bits: DirtyLog,
}

impl Log {
    fn new() -> Self {
        let bytes = DirtyLog::len_for(Gpa(START.0 + MEMORY - 1));
        let file = SharedMemory::new(bytes, Gpa(0), Sealing::Open);
        let bits = DirtyLog::new(file.region().clone());
        Self { file, bits }
    }
}

/// One queue of a disk, of either layout.
struct Ring {
    index: u16,
    parts: [u64; 3],
    queue: DriverQueue<linkspan_mem::Window>,
    /// Where it goes on.
    base: u32,
    slots: Vec<u64>,
    events: [EventFd; 3],
}

impl Ring {
    fn new(memory: &SharedMemory, index: u16, features: Features) -> Self {
        let layout = QueueLayout::of(features);
        let lens = layout.part_lens(SIZE);
        let parts = lens.map(|len| memory.take(len as u64));
        let [a, b, c] = [0, 1, 2].map(|part| memory.window(parts[part], lens[part]));
        let queue = DriverQueue::new([a, b, c], SIZE, features, layout.start()).unwrap();
        Self {
            index,
            parts,
            base: layout.base(layout.start()),
            queue,
            slots: (0..REQUESTS).map(|_| memory.take(SLOT)).collect(),
            events: std::array::from_fn(|_| EventFd::new().unwrap()),
        }
    }

    fn address(&self, memory: &SharedMemory, logged: bool) -> VringAddr {
        let [descriptor, available, used] = self.parts.map(|part| memory.user(part).0);
        VringAddr {
            index: self.index.into(),
            flags: logged.into(),
            descriptor,
            used,
            available,
            log: memory.guest(self.parts[2]).0,
        }
    }

    /// Makes a read available for each slot, of sectors that it did not read before.
    fn fill(&mut self, memory: &SharedMemory, round: u64) {
        for (number, slot) in (0..).zip(&self.slots) {
            let sector = (round * 97 + number * 31 + u64::from(self.index) * 7) % (SECTORS - 32);
            // A read (virtio 1.3 5.2.6: `VIRTIO_BLK_T_IN` is 0).
            let header = [[0; 8], sector.to_le_bytes()].concat();
            let (header_at, status_at) = (slot + DATA as u64, slot + DATA as u64 + 16);
            memory.write(header_at, &header);
            memory.write(status_at, &[0xff]);
            let piece = |at, len| Buffer {
                address: memory.guest(at),
                len,
            };
            let len = 512 * (1 + u32::try_from((number + round) % 24).unwrap());
            let writable = [piece(*slot, len), piece(status_at, 1)];
            let added = self.queue.add(&[piece(header_at, 16)], &writable, None);
            added.unwrap();
        }
        self.queue.publish().unwrap();
    }

    /// Takes what was answered; whether that was all. Writes nothing.
    fn is_done(&mut self) -> bool {
        self.queue.refresh().unwrap();
        while self.queue.pop().unwrap().is_some() {}
        self.queue.outstanding() == 0
    }
}

struct Guest {
    _served: Served,
    _folder: TempDir,
    front: FrontEnd,
    memory: Arc<SharedMemory>,
    rings: [Ring; 2],
    log: Log,
    /// What a destination would have.
    copy: Vec<u8>,
    synced: u64,
}

impl Guest {
    fn new(packed: bool, without: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        write_image(&path);
        File::open(&path).unwrap().sync_all().unwrap();
        // Completions come when they come, and not within the pass that asks.
        let image = [Io::Uring, Io::Threads].into_iter().find_map(|io| {
            let options = OpenOptions {
                io,
                direct: true,
                ..OpenOptions::default()
            };
            RawImage::open(&path, &options).ok()
        });
        let served = Served::image_of(Arc::new(image.unwrap()), 2);
        let mut front = served.connect();
        let options = Options {
            packed,
            without,
            ..Options::default()
        };
        front.negotiate(&options).unwrap();
        let memory = SharedMemory::new(MEMORY, START, Sealing::Fixed);
        front.share(&[Arc::clone(&memory)]).unwrap();
        let features = Features::from_bits_retain(front.features());
        assert_eq!(features.contains(Features::VIRTIO_F_RING_PACKED), packed);
        // Parts of rings do not begin where pages do.
        memory.take(64 * 7);
        let rings = [0, 1].map(|index| Ring::new(&memory, index, features));
        Self {
            _served: served,
            _folder: folder,
            front,
            copy: memory.read(0, usize::try_from(MEMORY).unwrap()),
            memory,
            rings,
            log: Log::new(),
            synced: 0,
        }
    }

    fn start(&self, ring: usize, logged: bool) {
        let Ring {
            index,
            base,
            events: [kick, call, err],
            ..
        } = &self.rings[ring];
        let (front, index) = (&self.front, *index);
        let tell = |request, number| front.tell(request, &state(index, number), &[]).unwrap();
        tell(Request::SetVringNum, SIZE.into());
        tell(Request::SetVringBase, *base);
        let address = self.rings[ring].address(&self.memory, logged);
        front
            .tell(Request::SetVringAddr, address.as_bytes(), &[])
            .unwrap();
        front.set_event(Request::SetVringCall, index, call).unwrap();
        front.set_event(Request::SetVringErr, index, err).unwrap();
        front.set_event(Request::SetVringKick, index, kick).unwrap();
        front.enable(index, true).unwrap();
        kick.signal().unwrap();
    }

    fn stop(&mut self, ring: usize) {
        let asked = state(self.rings[ring].index, 0);
        let reply = self.front.ask(Request::GetVringBase, &asked, &[]).unwrap();
        self.rings[ring].base = VringState::read_from_bytes(&reply).unwrap().num;
    }

    fn log_rings(&self, on: bool) {
        for ring in &self.rings {
            let address = ring.address(&self.memory, on);
            self.front
                .tell(Request::SetVringAddr, address.as_bytes(), &[])
                .unwrap();
        }
    }

    fn give_log(&self) {
        let file = &self.log.file;
        self.front.set_log(file.as_fd(), file.len(), 0).unwrap();
    }

    /// Logging begins, and then everything is copied once.
    fn begin(&mut self) {
        self.give_log();
        self.front.log_all(true).unwrap();
        self.log_rings(true);
        self.copy = self.memory.read(0, self.copy.len());
    }

    /// Logging ends, as when a migration is cancelled.
    fn cancel(&self) {
        self.front.log_all(false).unwrap();
        self.log_rings(false);
    }

    /// Copies the pages that are marked.
    fn sync(&mut self, log: &DirtyLog) {
        let first = START.0 / DirtyLog::PAGE;
        log.take(|page| {
            let at = usize::try_from(page - first).unwrap() * PAGE;
            let now = self.memory.read(at as u64, PAGE);
            self.copy[at..at + PAGE].copy_from_slice(&now);
            self.synced += 1;
        });
    }

    fn sync_own(&mut self) {
        let log = std::mem::replace(&mut self.log, Log::new());
        self.sync(&log.bits);
        self.log = log;
    }

    /// Another log takes the place of the one that is used, whose last marks count.
    fn replace_log(&mut self) {
        let old = std::mem::replace(&mut self.log, Log::new());
        self.give_log();
        self.sync(&old.bits);
    }

    /// Work of both rings under a log that is read all the time; `disturb` happens to it in
    /// every fourth look.
    fn round(&mut self, round: u64, disturb: fn(&mut Self)) {
        for ring in &mut self.rings {
            ring.fill(&self.memory, round);
        }
        // What the driver writes is the monitor's to know.
        self.begin();
        (0..2).for_each(|ring| self.start(ring, true));
        let deadline = Instant::now() + PATIENCE;
        for look in 0.. {
            assert!(Instant::now() < deadline, "the device does not answer");
            match look % 4 {
                1 => disturb(self),
                _ => self.sync_own(),
            }
            let done = self.rings.each_mut().map(Ring::is_done);
            if done == [true; 2] {
                break;
            }
        }
        (0..2).for_each(|ring| self.stop(ring));
        self.sync_own();
        let now = self.memory.read(0, self.copy.len());
        let pages = now.chunks(PAGE).zip(self.copy.chunks(PAGE));
        let missed: Vec<_> = (0..)
            .zip(pages)
            .filter(|(_, (now, copy))| now != copy)
            .map(|(page, _)| START.0 + page * DirtyLog::PAGE)
            .collect();
        assert!(missed.is_empty(), "changed and not marked: {missed:#x?}");
    }
}

/// With and without event indices, whose places in the rings differ.
#[track_caller]
fn copies_are_right(disturb: fn(&mut Guest)) {
    for (packed, without) in [(false, 0), (false, 1 << 29), (true, 0), (true, 1 << 29)] {
        let mut guest = Guest::new(packed, without);
        for round in 0..8 {
            guest.round(round, disturb);
        }
        // Otherwise nothing was seen while it happened.
        assert!(guest.synced > 0);
    }
}

#[test]
fn a_copy_made_from_the_log_is_right() {
    copies_are_right(Guest::sync_own);
}

#[test]
fn a_copy_is_right_when_the_log_is_replaced_under_load() {
    copies_are_right(Guest::replace_log);
}

#[test]
fn a_copy_is_right_when_logging_ends_and_begins_again_under_load() {
    copies_are_right(|guest| {
        guest.cancel();
        guest.begin();
    });
}
