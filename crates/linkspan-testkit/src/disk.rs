//! A block driver for tests: rings in shared memory, requests by sector, and the
//! raw ring for what no driver would write.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use linkspan_mem::{Gpa, SplitRing, Window};
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_vhost::wire::VringAddr;
use linkspan_virtio::split::{Buffer, IndirectTable, SplitDriver};
use linkspan_virtio::{Features, QueueState};
use virtio_bindings::virtio_blk as bits;

use crate::PATIENCE;
use crate::census::settled;
use crate::front_end::{FrontEnd, Options, Refused};
use crate::memory::SharedMemory;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Bytes of data that one request carries at most.
pub const DATA_MAX: usize = 16 << 10;

/// Requests that a ring has under way at most.
const DEPTH_MAX: u16 = 16;

/// Where the parts of a request lie in its slot.
const STATUS_AT: u64 = 16;
const TABLE_AT: u64 = 64;
const DATA_AT: u64 = 128;
const SLOT_BYTES: u64 = DATA_AT + DATA_MAX as u64;

/// A request.
#[derive(Clone, Copy, Debug)]
pub enum Io<'a> {
    /// Reads `len` bytes from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: usize,
    },
    /// Writes from `sector` on.
    Write {
        /// First sector.
        sector: u64,
        /// What to write.
        data: &'a [u8],
    },
    /// Makes durable what was written.
    Flush,
    /// Asks for the serial number.
    GetId,
    /// Discards ranges: first sector, sectors, flags of each.
    Discard(&'a [(u64, u32, u32)]),
    /// Makes ranges zero, listed as for a discard.
    WriteZeroes(&'a [(u64, u32, u32)]),
}

/// What stands in a request's list for these ranges (virtio 1.3 5.2.6).
fn list(ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let entry = |(sector, count, flags): &(u64, u32, u32)| {
        let words = [count.to_le_bytes(), flags.to_le_bytes()].concat();
        [&sector.to_le_bytes()[..], &words].concat()
    };
    ranges.iter().flat_map(entry).collect()
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What [`DiskRing::submit`] called it.
    pub id: u16,
    /// The status byte.
    pub status: u8,
    /// Bytes that the device says it wrote.
    pub written: u32,
    /// What the device wrote into the data buffer.
    pub data: Vec<u8>,
}

/// One queue of a disk, driven.
#[derive(Debug)]
pub struct DiskRing {
    index: u16,
    memory: Arc<SharedMemory>,
    /// Where descriptor table, available ring and used ring are.
    parts: [u64; 3],
    driver: SplitDriver<Window>,
    features: Features,
    free: Vec<u64>,
    under_way: HashMap<u16, (u64, usize)>,
    /// What the driver kicks.
    pub kick: EventFd,
    /// What the device notifies.
    pub call: EventFd,
    /// What the device signals when it gives the ring up.
    pub err: EventFd,
}

impl DiskRing {
    /// Ring `index` of `size` entries in fresh memory, with these features.
    ///
    /// # Panics
    /// When there is not enough memory.
    #[track_caller]
    pub fn new(memory: &Arc<SharedMemory>, index: u16, size: u16, features: u64) -> Self {
        let parts = [
            SplitRing::<Window>::descriptors_len(size),
            SplitRing::<Window>::available_len(size),
            SplitRing::<Window>::used_len(size),
        ]
        .map(|len| memory.take(len as u64));
        let free = (0..size.min(DEPTH_MAX)).map(|_| memory.take(SLOT_BYTES));
        let features = Features::from_bits_retain(features);
        let start = QueueState::default();
        Self {
            index,
            parts,
            driver: driver(memory, parts, size, features, start),
            features,
            free: free.collect(),
            under_way: HashMap::new(),
            kick: EventFd::new().expect("an eventfd"),
            call: EventFd::new().expect("an eventfd"),
            err: EventFd::new().expect("an eventfd"),
            memory: Arc::clone(memory),
        }
    }

    /// Which ring it is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its entries.
    pub fn size(&self) -> u16 {
        self.driver.size()
    }

    /// The position of the first request that is not answered: where a device
    /// that answers in order stands.
    pub fn base(&self) -> u16 {
        let QueueState {
            next_available,
            next_used,
        } = self.driver.state();
        let answered = self.raw().used_index().wrapping_sub(next_used);
        next_available
            .wrapping_sub(self.outstanding())
            .wrapping_add(answered)
    }

    /// Requests under way.
    pub fn outstanding(&self) -> u16 {
        self.driver.outstanding()
    }

    /// The memory that it is in.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// The ring itself, to write what a driver must not.
    pub fn raw(&self) -> &SplitRing<Window> {
        self.driver.ring()
    }

    /// The body of `VHOST_USER_SET_VRING_ADDR`.
    pub fn address(&self) -> VringAddr {
        let [descriptor, available, used] = self.parts.map(|part| self.memory.user(part).0);
        VringAddr {
            index: self.index.into(),
            flags: 0,
            descriptor,
            used,
            available,
            log: 0,
        }
    }

    /// Guest addresses of descriptor table, available ring and used ring.
    pub fn guest_addresses(&self) -> [u64; 3] {
        self.parts.map(|part| self.memory.guest(part).0)
    }

    /// Goes on in other memory with the same content, which the device knows.
    pub fn move_to(&mut self, memory: &Arc<SharedMemory>) {
        assert_eq!(self.outstanding(), 0, "buffers would stay behind");
        self.memory = Arc::clone(memory);
        let state = self.driver.state();
        self.driver = driver(memory, self.parts, self.size(), self.features, state);
    }

    /// Forgets requests under way and goes on at `base`, as after the device
    /// gave the ring up.
    pub fn reset(&mut self, base: u16) {
        for (_, (slot, _)) in self.under_way.drain() {
            self.free.push(slot);
        }
        let state = QueueState {
            next_available: base,
            next_used: self.raw().used_index(),
        };
        self.raw().publish_available_index(base);
        self.driver = driver(&self.memory, self.parts, self.size(), self.features, state);
        for event in [&self.kick, &self.call, &self.err] {
            event.drain().expect("an eventfd");
        }
    }

    /// Makes a request available and kicks if the device wants to know; its name.
    ///
    /// # Panics
    /// When there is no room.
    #[track_caller]
    pub fn submit(&mut self, io: Io<'_>) -> u16 {
        let id = self.add(io);
        if self.driver.kick_wanted().expect("a sane device") {
            self.kick();
        }
        id
    }

    /// Makes a request available and tells nobody.
    ///
    /// # Panics
    /// When there is no room.
    #[track_caller]
    pub fn add(&mut self, io: Io<'_>) -> u16 {
        let slot = self.free.pop().expect("a free slot");
        let (kind, sector, len, write) = match io {
            Io::Read { sector, len } => (bits::VIRTIO_BLK_T_IN, sector, len, true),
            Io::Write { sector, data } => {
                self.memory.write(slot + DATA_AT, data);
                (bits::VIRTIO_BLK_T_OUT, sector, data.len(), false)
            }
            Io::Flush => (bits::VIRTIO_BLK_T_FLUSH, 0, 0, false),
            Io::GetId => (bits::VIRTIO_BLK_T_GET_ID, 0, 20, true),
            Io::Discard(ranges) | Io::WriteZeroes(ranges) => {
                let bytes = list(ranges);
                self.memory.write(slot + DATA_AT, &bytes);
                let kind = match io {
                    Io::Discard(_) => bits::VIRTIO_BLK_T_DISCARD,
                    _ => bits::VIRTIO_BLK_T_WRITE_ZEROES,
                };
                (kind, 0, bytes.len(), false)
            }
        };
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write(slot, &header);
        self.memory.write(slot + STATUS_AT, &[0xff]);
        let piece = |at, len: usize| Buffer {
            address: self.memory.guest(slot + at),
            len: u32::try_from(len).expect("small"),
        };
        let (header, data, status) = (piece(0, 16), piece(DATA_AT, len), piece(STATUS_AT, 1));
        let (mut readable, mut writable) = (vec![header], vec![]);
        if len > 0 {
            (if write { &mut writable } else { &mut readable }).push(data);
        }
        writable.push(status);
        // Small queues need one; large ones take the other way, so that both are tested.
        let indirect = self.features.contains(Features::VIRTIO_F_INDIRECT_DESC);
        let bytes = self.memory.region().slice(slot + TABLE_AT, 48);
        let table = (indirect && self.size() <= 8).then(|| IndirectTable {
            address: self.memory.guest(slot + TABLE_AT),
            bytes: bytes.expect("inside the memory"),
        });
        let id = self.driver.add(&readable, &writable, table).expect("room");
        self.driver.publish().expect("a sane device");
        self.under_way
            .insert(id, (slot, if write { len } else { 0 }));
        id
    }

    /// Kicks, whether or not the device asked for it.
    pub fn kick(&self) {
        self.kick.signal().expect("an eventfd");
    }

    /// The next answer, if there is one.
    ///
    /// # Panics
    /// When the device broke the ring.
    #[track_caller]
    pub fn poll(&mut self) -> Option<Done> {
        self.driver.refresh().expect("a sane device");
        let used = self.driver.pop().expect("a sane device")?;
        let (slot, len) = self.under_way.remove(&used.id).expect("it was under way");
        self.free.push(slot);
        let [status] = self.memory.read(slot + STATUS_AT, 1)[..] else {
            unreachable!("one byte was read");
        };
        Some(Done {
            id: used.id,
            status,
            written: used.written,
            data: self.memory.read(slot + DATA_AT, len),
        })
    }

    /// Waits for the next answer, asleep until the device notifies.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn wait(&mut self) -> Done {
        loop {
            if let Some(done) = self.poll() {
                return done;
            }
            if !self.driver.arm().expect("a sane device") {
                expect_signal(&self.call, "the device does not answer");
            }
        }
    }

    /// Waits for the next answer without notifications.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn wait_polling(&mut self) -> Done {
        let mut done = None;
        let answered = settled(|| {
            done = self.poll();
            done.is_some()
        });
        assert!(answered, "the device does not answer");
        done.expect("it was answered")
    }

    /// Does one request and nothing else.
    #[track_caller]
    pub fn request(&mut self, io: Io<'_>) -> Done {
        assert_eq!(self.outstanding(), 0, "one at a time");
        let id = self.submit(io);
        let done = self.wait();
        assert_eq!(done.id, id, "the answer is to the only request");
        done
    }

    /// Reads `len` bytes from `sector` on.
    ///
    /// # Panics
    /// When the device does not say that it worked.
    #[track_caller]
    pub fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let done = self.request(Io::Read { sector, len });
        let whole = u32::try_from(len + 1).expect("small");
        assert_eq!(
            (done.status, done.written),
            (0, whole),
            "a read of {sector}"
        );
        done.data
    }

    /// Writes from `sector` on.
    ///
    /// # Panics
    /// When the device does not say that it worked.
    #[track_caller]
    pub fn write(&mut self, sector: u64, data: &[u8]) {
        let done = self.request(Io::Write { sector, data });
        assert_eq!((done.status, done.written), (0, 1), "a write of {sector}");
    }

    /// Makes durable what was written.
    ///
    /// # Panics
    /// When the device does not say that it worked.
    #[track_caller]
    pub fn flush(&mut self) {
        let done = self.request(Io::Flush);
        assert_eq!((done.status, done.written), (0, 1), "a flush");
    }

    /// The serial number with its padding.
    ///
    /// # Panics
    /// When the device does not say that it worked.
    #[track_caller]
    pub fn id(&mut self) -> Vec<u8> {
        let done = self.request(Io::GetId);
        assert_eq!((done.status, done.written), (0, 21), "the serial number");
        done.data
    }

    /// Waits until the device says that it gave the ring up.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_broken(&self) {
        expect_signal(&self.err, "the ring is not reported as broken");
    }
}

fn driver(
    memory: &SharedMemory,
    parts: [u64; 3],
    size: u16,
    features: Features,
    state: QueueState,
) -> SplitDriver<Window> {
    let [descriptors, available, used] = parts;
    let ring = SplitRing::new(
        memory.window(descriptors, SplitRing::<Window>::descriptors_len(size)),
        memory.window(available, SplitRing::<Window>::available_len(size)),
        memory.window(used, SplitRing::<Window>::used_len(size)),
        size,
    );
    SplitDriver::new(ring.expect("a possible size"), features, state).expect("memory")
}

/// Waits for an eventfd and takes it back to zero.
///
/// # Panics
/// With `or` when nobody signals it.
#[track_caller]
pub fn expect_signal(event: &EventFd, or: &str) {
    let deadline = Some(Instant::now() + PATIENCE);
    match wait_for(event.as_fd(), Direction::Read, None, deadline) {
        Ok(Wake::Ready) => event.drain().expect("an eventfd"),
        other => panic!("{or}: {other:?}"),
    };
}

/// A disk that is driven: the connection, its memory and its rings.
#[derive(Debug)]
pub struct Disk {
    /// The connection.
    pub front: FrontEnd,
    /// What it shares.
    pub memory: Arc<SharedMemory>,
    /// Its rings, started and enabled.
    pub rings: Vec<DiskRing>,
}

impl Disk {
    /// Brings up `rings` rings of `size` entries in one region of sealed memory.
    ///
    /// # Errors
    /// When the back end refuses a step.
    #[track_caller]
    pub fn bring_up(
        front: FrontEnd,
        options: &Options,
        rings: u16,
        size: u16,
    ) -> Result<Self, Refused> {
        let memory = SharedMemory::new(room(rings, size), Gpa(0x10_0000), Sealing::Fixed);
        Self::bring_up_in(front, options, &memory, rings, size)
    }

    /// The same in memory that is there already.
    ///
    /// # Errors
    /// When the back end refuses a step.
    #[track_caller]
    pub fn bring_up_in(
        mut front: FrontEnd,
        options: &Options,
        memory: &Arc<SharedMemory>,
        rings: u16,
        size: u16,
    ) -> Result<Self, Refused> {
        front.negotiate(options)?;
        front.share(std::slice::from_ref(memory))?;
        let features = front.features();
        let rings: Vec<_> = (0..rings)
            .map(|index| DiskRing::new(memory, index, size, features))
            .collect();
        for ring in &rings {
            front.start(ring)?;
            if options.ack_bit_30 {
                front.enable(ring.index(), true)?;
            }
        }
        Ok(Self {
            front,
            memory: Arc::clone(memory),
            rings,
        })
    }

    /// Stops all rings in order, checks where each stands, and disconnects.
    ///
    /// # Panics
    /// When the device stands elsewhere than its driver.
    #[track_caller]
    pub fn shut_down(self) {
        for ring in &self.rings {
            let base = self.front.stop(ring.index()).expect("a base");
            assert_eq!(base, ring.base(), "ring {}", ring.index());
        }
    }
}

/// Bytes of memory that so many rings and their buffers need, and 64 KiB to spare.
pub fn room(rings: u16, size: u16) -> u64 {
    let ring = 26 * u64::from(size) + 256 + u64::from(size.min(DEPTH_MAX)) * (SLOT_BYTES + 64);
    (u64::from(rings) * ring).next_multiple_of(1 << 16) + (1 << 16)
}
