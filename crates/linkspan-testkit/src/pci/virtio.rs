//! A driver of virtio over PCI (virtio 1.3, 4.1): it knows no place but configuration
//! space, and finds the rest there.

use std::path::Path;
use std::sync::Arc;

use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_vfio::pci::{CONFIG, CONFIG_BYTES, MSIX};
use linkspan_virtio::Features;

use super::{Client, Refused};
use crate::disk::{DiskRing, room};
use crate::memory::SharedMemory;

/// Where the parts of a function are: BAR and offset.
type Place = (u32, u64);

/// A function that was found.
#[derive(Debug)]
pub struct VirtioPci {
    /// Who it was found by.
    pub client: Client,
    common: Place,
    doorbells: Place,
    multiplier: u32,
    isr: Place,
    config: Place,
    msix: u64,
    features: u64,
    /// Features that are not taken.
    pub without: u64,
}

/// Registers of common configuration (virtio 1.3, 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const QUEUE_COUNT: u64 = 18;
const STATUS: u64 = 20;
const GENERATION: u64 = 21;
const SELECT: u64 = 22;
const SIZE: u64 = 24;
const VECTOR: u64 = 26;
const ENABLE: u64 = 28;
const NOTIFY_OFFSET: u64 = 30;
const AREAS: u64 = 32;
const RESET: u64 = 58;

impl VirtioPci {
    /// Connects to the socket at `path` and looks for the function there.
    ///
    /// # Errors
    /// When the device refuses something.
    ///
    /// # Panics
    /// When it is no virtio function.
    #[track_caller]
    pub fn connect(path: &Path) -> Result<Self, Refused> {
        let client = Client::connect(path)?;
        let len = usize::try_from(CONFIG_BYTES).expect("few");
        let space = client.read(CONFIG, 0, len)?;
        assert_eq!(space[..2], [0xf4, 0x1a], "the vendor");
        let number = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().expect("four"));
        let (mut parts, mut msix, mut multiplier) = ([(0, 0); 5], 0, 0);
        let mut at = usize::from(space[0x34]);
        while at != 0 {
            match space[at] {
                0x11 => msix = at as u64,
                9 => {
                    let kind = usize::from(space[at + 3]);
                    let bar = u32::from(space[at + 4]);
                    // As Linux: the window alone leads nowhere yet.
                    assert!(kind == 5 || number(at + 12) > 0, "bad capability len 0");
                    parts[kind - 1] = (bar, u64::from(number(at + 8)));
                    if kind == 2 {
                        multiplier = number(at + 16);
                    }
                }
                _ => {}
            }
            at = space[at + 1].into();
        }
        let [common, doorbells, isr, config, _] = parts;
        // Memory and bus master.
        client.write(CONFIG, 4, &[6, 0])?;
        Ok(Self {
            client,
            common,
            doorbells,
            multiplier,
            isr,
            config,
            msix,
            features: 0,
            without: 0,
        })
    }

    /// The features that were accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// A register of common configuration.
    ///
    /// # Panics
    /// When the device refuses.
    #[track_caller]
    pub fn get<const N: usize>(&self, at: u64) -> u64 {
        let (bar, offset) = self.common;
        let read = self.client.read(bar, offset + at, N).expect("a register");
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&read);
        u64::from_le_bytes(bytes)
    }

    /// Writes one.
    ///
    /// # Panics
    /// When the device refuses.
    #[track_caller]
    pub fn set<const N: usize>(&self, at: u64, value: u64) {
        let (bar, offset) = self.common;
        let bytes = &value.to_le_bytes()[..N];
        let written = self.client.write(bar, offset + at, bytes);
        written.expect("a register");
    }

    /// The device status.
    #[track_caller]
    pub fn status(&self) -> u8 {
        self.get::<1>(STATUS).to_le_bytes()[0]
    }

    /// Adds bits to it.
    #[track_caller]
    pub fn add_status(&self, bits: u8) {
        self.set::<1>(STATUS, (self.status() | bits).into());
    }

    /// Resets the device, and waits until it has been.
    #[track_caller]
    pub fn reset(&self) {
        self.set::<1>(STATUS, 0);
        while self.status() != 0 {}
    }

    /// The number that changes with configuration.
    #[track_caller]
    pub fn generation(&self) -> u64 {
        self.get::<1>(GENERATION)
    }

    /// How many queues there are.
    #[track_caller]
    pub fn queues(&self) -> u64 {
        self.get::<2>(QUEUE_COUNT)
    }

    /// The features that are offered.
    #[track_caller]
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.set::<4>(DEVICE_FEATURE_SELECT, select);
            self.get::<4>(DEVICE_FEATURE)
        };
        half(0) | half(1) << 32
    }

    /// Agrees on all features but those that are not taken and packed rings; whether the
    /// device did.
    #[track_caller]
    pub fn negotiate(&mut self) -> bool {
        self.reset();
        self.add_status(1);
        self.add_status(2);
        let packed = Features::VIRTIO_F_RING_PACKED.bits();
        let features = self.offered() & !self.without & !packed;
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set::<4>(DRIVER_FEATURE_SELECT, select);
            self.set::<4>(DRIVER_FEATURE, half);
        }
        self.add_status(8);
        self.features = features;
        self.status() & 8 != 0
    }

    /// Says where a ring is, and enables it.
    #[track_caller]
    pub fn enable(&self, ring: &DiskRing, vector: u16) {
        self.set::<2>(SELECT, ring.index().into());
        self.set::<2>(SIZE, ring.size().into());
        self.set::<2>(VECTOR, vector.into());
        for (address, at) in ring.guest_addresses().into_iter().zip((AREAS..).step_by(8)) {
            self.set::<4>(at, address & 0xffff_ffff);
            self.set::<4>(at + 4, address >> 32);
        }
        self.set::<2>(ENABLE, 1);
    }

    /// Which interrupt a queue has now.
    #[track_caller]
    pub fn vector(&self, queue: u16) -> u64 {
        self.set::<2>(SELECT, queue.into());
        self.get::<2>(VECTOR)
    }

    /// Another interrupt for a queue.
    #[track_caller]
    pub fn set_vector(&self, queue: u16, vector: u16) {
        self.set::<2>(SELECT, queue.into());
        self.set::<2>(VECTOR, vector.into());
    }

    /// The interrupt for changes of configuration.
    #[track_caller]
    pub fn set_config_vector(&self, vector: u16) {
        self.set::<2>(CONFIG_VECTOR, vector.into());
    }

    /// Resets one queue, and waits until it has been.
    #[track_caller]
    pub fn reset_queue(&self, queue: u16) {
        self.set::<2>(SELECT, queue.into());
        self.set::<2>(RESET, 1);
        while self.get::<2>(RESET) != 0 || self.get::<2>(ENABLE) != 0 {}
    }

    /// Lets the device run; whether it does.
    #[track_caller]
    pub fn start(&self) -> bool {
        self.add_status(4);
        self.status() & 64 == 0
    }

    /// Where a queue is kicked.
    #[track_caller]
    pub fn doorbell(&self, queue: u16) -> (u32, u64) {
        self.set::<2>(SELECT, queue.into());
        let number = self.get::<2>(NOTIFY_OFFSET);
        let (bar, offset) = self.doorbells;
        (bar, offset + number * u64::from(self.multiplier))
    }

    /// Kicks a queue.
    #[track_caller]
    pub fn kick(&self, queue: u16) {
        let (bar, at) = self.doorbell(queue);
        let kicked = self.client.write(bar, at, &queue.to_le_bytes());
        kicked.expect("a doorbell");
    }

    /// The ISR status, which is taken back by that.
    #[track_caller]
    pub fn isr(&self) -> u8 {
        let (bar, at) = self.isr;
        self.client.read(bar, at, 1).expect("a register")[0]
    }

    /// Bytes of device configuration.
    #[track_caller]
    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let (bar, at) = self.config;
        self.client.read(bar, at + offset, len).expect("readable")
    }

    /// Writes some.
    #[track_caller]
    pub fn write_config(&self, offset: u64, bytes: &[u8]) {
        let (bar, at) = self.config;
        let written = self.client.write(bar, at + offset, bytes);
        written.expect("writable");
    }

    /// Lets the function use memory, or does not (bus master). After a reset of the
    /// function it may not.
    #[track_caller]
    pub fn use_memory(&self, on: bool) {
        let command = [if on { 6 } else { 2 }, 0];
        let written = self.client.write(CONFIG, 4, &command);
        written.expect("writable");
    }

    /// Switches MSI-X on or off.
    #[track_caller]
    pub fn use_msix(&self, on: bool) {
        let control = [0, if on { 0x80 } else { 0 }];
        let written = self.client.write(CONFIG, self.msix + 2, &control);
        written.expect("writable");
    }

    /// A disk that runs: memory that is shared at 1 MiB, and so many rings of 64 entries, each
    /// with a vector of its own.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn bring_up(&mut self, queues: u16) -> Vec<DiskRing> {
        let memory = SharedMemory::new(room(queues, 64), Gpa(0x10_0000), Sealing::Fixed);
        self.client.map(&memory).expect("shared");
        let rings = self.start_on(&memory, queues);
        assert!(self.status() == 15, "{:#x}", self.status());
        rings
    }

    /// The same once more, for a driver that has lost its rings.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn bring_up_again(&mut self, rings: Vec<DiskRing>) -> Vec<DiskRing> {
        let queues = u16::try_from(rings.len()).expect("few");
        self.reset();
        self.client.unmap(rings[0].memory()).expect("it is shared");
        self.bring_up(queues)
    }

    /// The same in memory that is shared already, whatever becomes of it.
    #[track_caller]
    pub fn start_on(&mut self, memory: &Arc<SharedMemory>, queues: u16) -> Vec<DiskRing> {
        assert!(self.negotiate(), "features");
        self.use_msix(true);
        let rings: Vec<_> = (0..queues)
            .map(|ring| DiskRing::new(memory, ring, 64, self.features))
            .collect();
        for ring in &rings {
            let vector = ring.index() + 1;
            let told = self.client.set_events(MSIX, vector.into(), &[&ring.call]);
            told.expect("a vector");
            self.enable(ring, vector);
        }
        self.start();
        rings
    }
}
