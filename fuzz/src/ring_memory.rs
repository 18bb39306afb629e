//! A peer's memory against either side of a queue, split or packed.
//!
//! The bytes are a script. The first two choose side, layout, features and size;
//! the rest are steps, among them writes of the peer that happen between any two
//! loads of ours.

mod device;
mod driver;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use linkspan_mem::{
    Address, Gpa, GuestMemory, PackedRing, Raced, Region, SplitRing, UserVa, Window,
};
use linkspan_virtio::{Features, QueueLayout};

use crate::input::Input;
use device::Device;
use driver::Driver;

pub(crate) use device::step;
pub(crate) use driver::step as driver_step;

/// Bits of the first byte.
pub(crate) mod option {
    pub(crate) const INDIRECT: u8 = 1;
    pub(crate) const EVENT_IDX: u8 = 2;
    pub(crate) const PACKED: u8 = 4;
    pub(crate) const IN_ORDER: u8 = 8;
    /// The driver's side is ours, the device's is the peer's.
    pub(crate) const DRIVER: u8 = 16;
    /// The device writes down what it has in flight.
    pub(crate) const TRACKED: u8 = 32;
}

/// Guest addresses of three regions: the first two are neighbours.
pub(crate) const REGIONS: [(Gpa, usize); 3] = [
    (Gpa(0x1000), 0x1000),
    (Gpa(0x2000), 0x2000),
    (Gpa(u64::MAX - 0xFFF), 0x800),
];

/// Where writes find the in-flight region, behind the others, and its bytes.
pub(crate) const INFLIGHT_AT: usize = 0x3800;
const INFLIGHT_BYTES: usize = 0x900;

/// Where a ring of 64 entries has its parts in the first region.
pub(crate) const PARTS: [u64; 3] = [0, 0x400, 0x500];

/// Entries of a queue at most.
const SIZE_MAX: u16 = 64;

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests that were answered, or chains that came back.
    pub answers: usize,
    /// How the queue was retired, or why it did not start again, if so.
    pub error: Option<String>,
    /// Times that it was saved and restored.
    pub restores: usize,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end.
pub fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let (Some(bits), Some(size)) = (input.u8(), input.u8()) else {
        return Outcome::default();
    };
    let mut features = Features::VIRTIO_F_VERSION_1;
    for (bit, feature) in [
        (option::INDIRECT, Features::VIRTIO_F_INDIRECT_DESC),
        (option::EVENT_IDX, Features::VIRTIO_F_EVENT_IDX),
        (option::PACKED, Features::VIRTIO_F_RING_PACKED),
        (option::IN_ORDER, Features::VIRTIO_F_IN_ORDER),
    ] {
        features.set(feature, bits & bit != 0);
    }
    let size = match QueueLayout::of(features) {
        QueueLayout::Split => 1 << (size % 7),
        QueueLayout::Packed => 1 + u16::from(size) % SIZE_MAX,
    };
    let memory = Memory::new(features, size);
    if bits & option::DRIVER != 0 {
        Driver::new(memory).play(&mut input)
    } else {
        Device::new(memory, bits & option::TRACKED != 0).play(&mut input)
    }
}

type RacedWindow = Raced<Window>;

/// The ring as the peer writes it.
enum PeerRing {
    Split(SplitRing<Window>),
    Packed(PackedRing<Window>),
}

/// The memory that both sides have, and what the peer is about to do to it.
struct Memory {
    guest: GuestMemory,
    features: Features,
    size: u16,
    peer: PeerRing,
    race: Arc<Race>,
}

/// Writes of the peer, each after so many loads more of ours.
struct Race {
    /// All of guest memory, then the in-flight region.
    regions: Vec<Region>,
    writes: Mutex<VecDeque<(u8, usize, Vec<u8>)>>,
}

impl Memory {
    fn new(features: Features, size: u16) -> Self {
        let regions = REGIONS.map(|(guest, len)| {
            let region = Region::heap(len).expect("memory");
            (region, guest, user(guest))
        });
        let mut all: Vec<Region> = regions.iter().map(|(region, ..)| region.clone()).collect();
        all.push(Region::heap(INFLIGHT_BYTES).expect("memory"));
        let guest = GuestMemory::new(regions.into()).expect("three regions");
        let [descriptors, driver, device] = windows(&guest, features, size);
        let peer = match QueueLayout::of(features) {
            QueueLayout::Split => {
                let ring = SplitRing::new(descriptors, driver, device, size);
                PeerRing::Split(ring.expect("a possible size"))
            }
            QueueLayout::Packed => {
                let ring = PackedRing::new(descriptors, driver, device, size);
                PeerRing::Packed(ring.expect("a possible size"))
            }
        };
        let race = Race {
            regions: all,
            writes: Mutex::default(),
        };
        Self {
            guest,
            features,
            size,
            peer,
            race: Arc::new(race),
        }
    }

    fn is(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }

    fn layout(&self) -> QueueLayout {
        QueueLayout::of(self.features)
    }

    /// The parts of the ring as our side has them.
    fn parts(&self) -> [RacedWindow; 3] {
        windows(&self.guest, self.features, self.size).map(|window| self.raced(window))
    }

    fn inflight(&self) -> RacedWindow {
        let region = self.race.regions.last().expect("four regions");
        let len = self.layout().inflight_len(self.size);
        self.raced(region.window(0, len).expect("room for 64 entries"))
    }

    fn raced(&self, window: Window) -> RacedWindow {
        let race = Arc::clone(&self.race);
        Raced::new(window, Arc::new(move || race.load()))
    }

    /// A step of either side: place, 16 bits; length, 8 bits; the bytes.
    fn write(&self, input: &mut Input<'_>) -> Option<()> {
        let (at, len) = (input.u16()?, input.u8()?);
        self.race.write(at.into(), input.bytes(len.into()));
        Some(())
    }

    /// The same, after so many loads of ours, 8 bits.
    fn write_later(&self, input: &mut Input<'_>) -> Option<()> {
        let (loads, at, len) = (input.u8()?, input.u16()?, input.u8()?);
        let write = (loads, at.into(), input.bytes(len.into()).to_vec());
        self.race.writes.lock().expect("no panic").push_back(write);
        Some(())
    }

    /// Whether nothing changes while we look.
    fn is_calm(&self) -> bool {
        self.race.writes.lock().expect("no panic").is_empty()
    }

    /// All bytes of the rings and of the in-flight region.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x800 + INFLIGHT_BYTES];
        let (ring, inflight) = bytes.split_at_mut(0x800);
        for (region, target) in [(0, ring), (3, inflight)] {
            let slice = self.race.regions[region].slice(0, target.len() as u64);
            slice.expect("inside the region").read(target);
        }
        bytes
    }
}

impl Race {
    /// One load of ours.
    fn load(&self) {
        let mut writes = self.writes.lock().expect("no panic");
        match writes.front_mut() {
            Some((0, ..)) => {}
            Some((loads, ..)) => {
                *loads -= 1;
                return;
            }
            None => return,
        }
        if let Some((_, at, bytes)) = writes.pop_front() {
            self.write(at, &bytes);
        }
    }

    fn write(&self, at: usize, mut bytes: &[u8]) {
        let mut at = at % (INFLIGHT_AT + INFLIGHT_BYTES);
        for region in &self.regions {
            let len = region.len();
            if at < len {
                let part = bytes.len().min(len - at);
                let slice = region.slice(at as u64, part as u64);
                slice.expect("inside the region").write(&bytes[..part]);
                bytes = &bytes[part..];
                at = len;
            }
            at -= len;
        }
    }
}

fn windows(memory: &GuestMemory, features: Features, size: u16) -> [Window; 3] {
    let lens = QueueLayout::of(features).part_lens(size);
    let mut at = PARTS.into_iter();
    lens.map(|len| {
        let at = user(Gpa(REGIONS[0].0.0 + at.next().expect("three parts")));
        memory.front_end.window(at, len).expect("room for a ring")
    })
}

/// Where the front end has what the guest has at `guest`.
fn user(guest: Gpa) -> UserVa {
    UserVa(guest.0 ^ 1 << 40)
}

/// Small numbers name the lower regions, large ones the end of the space.
fn address(short: u32) -> u64 {
    Gpa::from_raw(i64::from(short.cast_signed()).cast_unsigned()).raw()
}
