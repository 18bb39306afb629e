//! A driver of a virtio disk over PCI whose vfio-user is the crate `vfio_user`'s client:
//! what a Cloud Hypervisor would ask on behalf of a guest.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::disk::{Done, room};
use linkspan_testkit::{DiskRing, Io, SharedMemory};
use linkspan_virtio::Features;
use vfio_user::{Client, Error};

/// The region of configuration space.
const CONFIG: u32 = 7;
/// The kind of interrupts.
const MSIX: u32 = 2;
/// Data are eventfds, and they are triggers.
const EVENTS: u32 = 0x24;
/// What the driver agrees to.
const FEATURES: u64 = Features::VIRTIO_F_VERSION_1.bits();
/// The entries of its ring.
const ENTRIES: u16 = 64;

/// A disk of one queue that runs.
pub struct VfioUserDisk {
    client: Client,
    common: (u32, u64),
    doorbell: (u32, u64),
    ring: DiskRing,
}

impl std::fmt::Debug for VfioUserDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VfioUserDisk").finish_non_exhaustive()
    }
}

impl VfioUserDisk {
    /// Connects to the socket at `path`, finds the function's parts, shares memory at
    /// 1 MiB and starts its first queue.
    ///
    /// # Errors
    /// The client's own.
    ///
    /// # Panics
    /// When it is no virtio disk, or does not start.
    #[track_caller]
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let mut client = Client::new(path)?;
        let mut space = [0; 256];
        client.region_read(CONFIG, 0, &mut space)?;
        assert_eq!(space[..4], [0xf4, 0x1a, 0x42, 0x10], "a modern virtio disk");
        let number = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().expect("four"));
        let (mut common, mut doorbell, mut msix) = ((0, 0), (0, 0), 0);
        let mut at = usize::from(space[0x34]);
        while at != 0 {
            let place = (u32::from(space[at + 4]), u64::from(number(at + 8)));
            match (space[at], space[at + 3]) {
                (0x11, _) => msix = at as u64,
                (9, 1) => common = place,
                (9, 2) => doorbell = place,
                _ => {}
            }
            at = space[at + 1].into();
        }
        // Memory and bus master, and MSI-X.
        client.region_write(CONFIG, 4, &[6, 0])?;
        client.region_write(CONFIG, msix + 2, &[0, 0x80])?;
        let memory = SharedMemory::new(room(1, ENTRIES), Gpa(0x10_0000), Sealing::Fixed);
        let (address, len) = (memory.guest(0).0, memory.len());
        client.dma_map(0, address, len, memory.as_fd().as_raw_fd())?;
        let ring = DiskRing::new(&memory, 0, ENTRIES, FEATURES);
        let mut disk = Self {
            client,
            common,
            doorbell,
            ring,
        };
        disk.start()?;
        Ok(disk)
    }

    fn get<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Error> {
        let (bar, offset) = self.common;
        let mut bytes = [0; N];
        self.client.region_read(bar, offset + at, &mut bytes)?;
        Ok(bytes)
    }

    fn set(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let (bar, offset) = self.common;
        self.client.region_write(bar, offset + at, bytes)
    }

    /// As virtio 1.3, 3.1.1 and 4.1.5.1 have it, by the registers of 4.1.4.3.
    fn start(&mut self) -> Result<(), Error> {
        self.set(20, &[0])?;
        while self.get::<1>(20)? != [0] {}
        self.set(20, &[3])?;
        for (select, half) in (0_u32..).zip(FEATURES.to_le_bytes().chunks(4)) {
            self.set(8, &select.to_le_bytes())?;
            self.set(12, half)?;
        }
        self.set(20, &[11])?;
        assert_eq!(self.get::<1>(20)?, [11], "the features");
        let call = self.ring.call.as_fd().as_raw_fd();
        self.client.set_irqs(MSIX, EVENTS, 1, 1, &[call])?;
        self.set(22, &[0, 0])?;
        self.set(24, &ENTRIES.to_le_bytes())?;
        self.set(26, &1_u16.to_le_bytes())?;
        for (address, at) in self.ring.guest_addresses().into_iter().zip([32, 40, 48]) {
            self.set(at, &address.to_le_bytes())?;
        }
        self.set(28, &[1, 0])?;
        self.set(20, &[15])?;
        assert_eq!(self.get::<1>(20)?, [15], "it runs");
        Ok(())
    }

    /// Makes one request, by a write to the doorbell, and waits for the interrupt.
    ///
    /// # Errors
    /// The client's own.
    #[track_caller]
    pub fn request(&mut self, io: Io<'_>) -> Result<Done, Error> {
        self.ring.add(io);
        let (bar, at) = self.doorbell;
        self.client.region_write(bar, at, &[0, 0])?;
        Ok(self.ring.wait())
    }

    /// Takes the memory back and leaves.
    ///
    /// # Errors
    /// The client's own.
    pub fn leave(mut self) -> Result<(), Error> {
        let memory = self.ring.memory();
        let (address, len) = (memory.guest(0).0, memory.len());
        self.client.dma_unmap(address, len)?;
        self.client.shutdown()
    }
}
