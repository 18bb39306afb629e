//! A guest's network card for tests: queue pairs in shared memory, driven over the
//! front end of this kit, with any ring layout.

mod control;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use linkspan_devices::net::driver::{ReceiveDriver, Slots, TransmitDriver};
use linkspan_devices::net::header::Offload;
use linkspan_devices::net::{Body, Frame, Mac};
use linkspan_mem::{Gpa, GuestMemory, Span, UserVa, Window};
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::VringAddr;
use linkspan_virtio::{DriverQueue, Features, QueueLayout};
use zerocopy::IntoBytes;

use crate::census::settled;
use crate::disk::expect_signal;
use crate::front_end::{FrontEnd, Options, Refused, state};
use crate::memory::SharedMemory;
use crate::vduse::ModelKernel;

pub use control::Control;

/// What a card is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardOptions {
    /// Queue pairs that are set up and enabled.
    pub pairs: u16,
    /// Entries of each queue.
    pub size: u16,
    /// Bytes of a buffer. Without mergeable buffers a frame has to fit one.
    pub slot_bytes: u32,
    /// Receive buffers that are made available, in each pair.
    pub buffers: u16,
    /// What is negotiated.
    pub front: Options,
}

impl Default for CardOptions {
    fn default() -> Self {
        Self {
            pairs: 1,
            size: 64,
            slot_bytes: 2048,
            buffers: 32,
            front: Options::default(),
        }
    }
}

/// One ring with its descriptors.
#[derive(Debug)]
struct Rig {
    index: u16,
    size: u16,
    parts: [u64; 3],
    kick: EventFd,
    call: EventFd,
    err: EventFd,
}

/// A queue pair, driven.
#[derive(Debug)]
pub struct Pair {
    memory: Arc<SharedMemory>,
    guest: GuestMemory,
    rings: [Rig; 2],
    /// The receive queue.
    pub receive: ReceiveDriver<Window, Gpa>,
    /// The transmit queue.
    pub transmit: TransmitDriver<Window, Gpa>,
}

/// A network card that runs over a connection.
#[derive(Debug)]
pub struct Card {
    /// The connection.
    pub front: FrontEnd,
    /// Its queue pairs.
    pub pairs: Vec<Pair>,
}

/// Bytes of memory of one pair.
const PAIR_BYTES: u64 = 8 << 20;

impl Rig {
    fn new(memory: &SharedMemory, index: u16, size: u16, layout: QueueLayout) -> Self {
        let event = || EventFd::new().expect("an eventfd");
        Self {
            index,
            size,
            parts: layout.part_lens(size).map(|len| memory.take(len as u64)),
            kick: event(),
            call: event(),
            err: event(),
        }
    }

    fn queue(&self, memory: &SharedMemory, features: Features) -> DriverQueue<Window> {
        let layout = QueueLayout::of(features);
        let lens = layout.part_lens(self.size);
        let parts = std::array::from_fn(|part| memory.window(self.parts[part], lens[part]));
        DriverQueue::new(parts, self.size, features, layout.start()).expect("a ring")
    }

    #[track_caller]
    fn start(&self, front: &FrontEnd, memory: &SharedMemory) -> Result<(), Refused> {
        let features = Features::from_bits_retain(front.features());
        let start = QueueLayout::of(features).start();
        let base = match QueueLayout::of(features) {
            QueueLayout::Split => u32::from(start.next_available),
            // Index 0 and wrap counter 1, twice.
            QueueLayout::Packed => 0x8000_8000,
        };
        self.start_at(front, memory, base)
    }

    /// The body of `VHOST_USER_SET_VRING_ADDR`.
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

    #[track_caller]
    fn start_at(&self, front: &FrontEnd, memory: &SharedMemory, base: u32) -> Result<(), Refused> {
        let address = self.address(memory, false);
        let index = self.index;
        front.tell(Request::SetVringNum, &state(index, self.size.into()), &[])?;
        front.tell(Request::SetVringBase, &state(index, base), &[])?;
        front.tell(Request::SetVringAddr, address.as_bytes(), &[])?;
        front.set_event(Request::SetVringCall, index, &self.call)?;
        front.set_event(Request::SetVringErr, index, &self.err)?;
        front.set_event(Request::SetVringKick, index, &self.kick)
    }
}

impl Card {
    /// Connects, negotiates, and brings all pairs up with buffers in them.
    ///
    /// # Errors
    /// When the back end refuses.
    ///
    /// # Panics
    /// When there is not enough memory.
    #[track_caller]
    pub fn bring_up(path: &Path, options: &CardOptions) -> Result<Self, Refused> {
        // A socket is there a moment before anybody listens on it.
        let mut front = None;
        settled(|| {
            let connected = FrontEnd::connect(path);
            let refused = matches!(&connected, Err(Refused::Connect(error))
                if error.kind() == ErrorKind::ConnectionRefused);
            front = Some(connected);
            !refused
        });
        Self::over(front.expect("it looked at least once")?, options)
    }

    /// The same over a connection that there is.
    ///
    /// # Errors
    /// When the back end refuses.
    ///
    /// # Panics
    /// When there is not enough memory.
    #[track_caller]
    pub fn over(mut front: FrontEnd, options: &CardOptions) -> Result<Self, Refused> {
        front.negotiate(&options.front)?;
        let features = Features::from_bits_retain(front.features());
        let mut memories = Vec::new();
        for pair in 0..options.pairs {
            let at = Gpa(u64::from(pair) * 2 * PAIR_BYTES);
            memories.push(SharedMemory::new(PAIR_BYTES, at, Sealing::Fixed));
        }
        front.share(&memories)?;
        let mut pairs = Vec::new();
        for (index, memory) in (0..).zip(memories) {
            let pair = Pair::new(memory, index, features, options);
            pair.start(&front)?;
            pairs.push(pair);
        }
        let mut card = Self { front, pairs };
        for pair in &mut card.pairs {
            pair.post();
        }
        Ok(card)
    }

    /// Sends a frame on a pair.
    ///
    /// # Panics
    /// When there is no room.
    #[track_caller]
    pub fn send(&mut self, pair: usize, frame: &[u8]) {
        self.pairs[pair].send(&Offload::NONE, frame);
    }

    /// The next frame of any pair, if there is one: the pair and its bytes.
    pub fn poll(&mut self) -> Option<(usize, Vec<u8>)> {
        let mut pairs = self.pairs.iter_mut().enumerate();
        pairs.find_map(|(at, pair)| Some((at, pair.poll()?.1)))
    }

    /// Waits for the next frame of any pair.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn expect(&mut self) -> (usize, Vec<u8>) {
        let mut got = None;
        let came = settled(|| {
            got = self.poll();
            got.is_some()
        });
        assert!(came, "no frame comes");
        got.expect("it came")
    }

    /// Enables or disables a pair.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn enable(&self, pair: u16, enabled: bool) -> Result<(), Refused> {
        self.front.enable(2 * pair, enabled)?;
        self.front.enable(2 * pair + 1, enabled)
    }
}

impl Pair {
    /// Starts and enables both rings.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn start(&self, front: &FrontEnd) -> Result<(), Refused> {
        for rig in &self.rings {
            rig.start(front, &self.memory)?;
            front.enable(rig.index, true)?;
        }
        Ok(())
    }

    /// The memory in which all of it is.
    pub fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// Has what is written of both rings logged, at their addresses in the guest.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn log(&self, front: &FrontEnd) -> Result<(), Refused> {
        self.rings.iter().try_for_each(|rig| {
            let address = rig.address(&self.memory, true);
            front.tell(Request::SetVringAddr, address.as_bytes(), &[])
        })
    }

    /// Gives both rings to a model of the kernel with VDUSE, before the first status of
    /// its driver.
    ///
    /// # Panics
    /// When there is no such device.
    pub fn ready(&self, kernel: &ModelKernel, name: &str) {
        for rig in &self.rings {
            let addresses = rig.parts.map(|part| self.memory.guest(part).0);
            let interrupt = Arc::new(rig.call.try_clone().expect("a descriptor"));
            kernel.ready_at(name, (rig.index, rig.size, 0), addresses, &interrupt);
        }
    }

    /// Stops one of the two rings (0: receive, 1: transmit) and starts it without a
    /// kick, as after a migration: where it stood, or where `base` says.
    ///
    /// # Panics
    /// When the layout is packed, or the back end refuses.
    #[track_caller]
    pub fn restart(&self, front: &FrontEnd, ring: usize, base: Option<u16>) {
        let rig = &self.rings[ring];
        let stood = front.stop(rig.index).expect("a base");
        let base = base.unwrap_or(stood).into();
        let started = rig.start_at(front, &self.memory, base);
        started.expect("it starts again");
    }

    /// Pair `index` in fresh memory, for a connection with these features.
    ///
    /// # Panics
    /// When there is not enough memory.
    pub fn new(
        memory: Arc<SharedMemory>,
        index: u16,
        features: Features,
        options: &CardOptions,
    ) -> Self {
        let layout = QueueLayout::of(features);
        let rings = [2 * index, 2 * index + 1];
        let rings = rings.map(|ring| Rig::new(&memory, ring, options.size, layout));
        let (start, user) = (memory.guest(0), memory.user(0));
        let guest = vec![(memory.region().clone(), start, UserVa(user.0))];
        let guest = GuestMemory::new(guest).expect("guest memory");
        let slots = |count: u16| {
            let len = u32::from(count) * options.slot_bytes;
            let address = memory.guest(memory.take(len.into()));
            let mut place = Span::default();
            let resolved = guest.guest.resolve(address, len, |span| place = span);
            resolved.expect("inside the memory");
            Slots {
                address,
                memory: place,
                count,
                bytes: options.slot_bytes,
            }
        };
        let [receive, transmit] = &rings;
        let receive = receive.queue(&memory, features);
        let transmit = transmit.queue(&memory, features);
        Self {
            receive: ReceiveDriver::new(receive, features, slots(options.buffers)).expect("slots"),
            transmit: TransmitDriver::new(transmit, features, slots(options.size)).expect("slots"),
            memory,
            guest,
            rings,
        }
    }

    /// Makes all free receive buffers available.
    ///
    /// # Panics
    /// When the device broke the queue.
    #[track_caller]
    pub fn post(&mut self) {
        self.receive.post().expect("a sane device");
        self.receive.queue().publish().expect("a sane device");
        if self.receive.queue().kick_wanted().expect("a sane device") {
            self.rings[0].kick.signal().expect("an eventfd");
        }
    }

    /// Sends a frame and kicks if the device wants to know.
    ///
    /// # Panics
    /// When there is no room.
    #[track_caller]
    pub fn send(&mut self, offload: &Offload, frame: &[u8]) {
        let table = self.guest.table();
        let frame = Frame {
            head: frame,
            body: Body::Private(&[]),
        };
        let transmit = &mut self.transmit;
        let room = settled(|| {
            transmit.reclaim(table).expect("a sane device");
            let sent = transmit.send(table, offload, &frame);
            sent.expect("a frame that fits")
        });
        assert!(room, "the device takes no frames");
        transmit.queue().publish().expect("a sane device");
        if transmit.queue().kick_wanted().expect("a sane device") {
            self.rings[1].kick.signal().expect("an eventfd");
        }
    }

    /// Whether the device has taken all that was sent.
    ///
    /// # Panics
    /// When the device broke the queue.
    #[track_caller]
    pub fn transmit_is_empty(&mut self) -> bool {
        let table = self.guest.table();
        self.transmit.reclaim(table).expect("a sane device");
        self.transmit.queue().outstanding() == 0
    }

    /// Says that more is available than a queue holds, on one of the two rings (0:
    /// receive, 1: transmit) of a split layout, and kicks.
    ///
    /// # Panics
    /// When there is no such ring.
    #[track_caller]
    pub fn break_ring(&self, ring: usize) {
        let rig = &self.rings[ring];
        // The index of the available ring is behind its flags.
        self.memory
            .write(rig.parts[1] + 2, &0x7FFF_u16.to_le_bytes());
        rig.kick.signal().expect("an eventfd");
    }

    /// Waits until the device says that it gave a ring up.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_broken(&self, ring: usize) {
        expect_signal(&self.rings[ring].err, "the ring is not given up");
    }

    /// The next frame, if there is one; its buffers are available again then.
    ///
    /// # Panics
    /// When the device broke the queue, or delivered what no device may.
    #[track_caller]
    pub fn poll(&mut self) -> Option<(Offload, Vec<u8>)> {
        let got = self.take()?;
        self.post();
        Some(got)
    }

    /// The next frame with its hash and what that is of; its buffers are kept.
    ///
    /// # Panics
    /// When the device broke the queue.
    #[track_caller]
    pub fn take_hashed(&mut self) -> Option<(u32, u16, Vec<u8>)> {
        let mut got = None;
        let batch = self.receive.receive(self.guest.table(), 1, |received| {
            let len = usize::try_from(received.frame.len()).expect("it fits");
            let mut bytes = vec![0; len];
            received.frame.read(&mut bytes).expect("it fits");
            let header = received.header;
            got = Some((header.hash_value, header.hash_report, bytes));
        });
        batch.expect("a sane device");
        got
    }

    /// The same, but its buffers are kept.
    ///
    /// # Panics
    /// As [`poll`](Self::poll).
    #[track_caller]
    pub fn take(&mut self) -> Option<(Offload, Vec<u8>)> {
        let mut got = None;
        let batch = self.receive.receive(self.guest.table(), 1, |received| {
            let len = usize::try_from(received.frame.len()).expect("it fits");
            let mut bytes = vec![0; len];
            received.frame.read(&mut bytes).expect("it fits");
            got = Some((received.offload, bytes));
        });
        let batch = batch.expect("a sane device");
        let bad = batch.short + batch.buffers + batch.headers;
        assert_eq!(bad, 0, "the device delivers what it must not: {batch:?}");
        got
    }
}

/// The address of station `number`.
pub fn station(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

/// A frame with as many bytes of payload, of which the first is `mark`.
pub fn frame(from: Mac, to: Mac, mark: u8, len: usize) -> Vec<u8> {
    let payload = (0..len).map(|at| (at * 7).to_le_bytes()[0].wrapping_add(mark));
    let start = [&to.0[..], &from.0, &[0x88, 0xB5]].concat();
    start.into_iter().chain(payload).collect()
}
