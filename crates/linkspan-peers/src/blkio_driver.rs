//! Crate `blkio` (libblkio): its virtio-blk driver over vhost-user and over
//! vhost-vdpa. Split rings with event index, no indirect tables.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blkio::{Blkioq, Completion, MemoryRegion, ReqFlags};
use linkspan_testkit::PATIENCE;

use crate::driver::{CHUNK, DEPTH, Driver};

/// A disk driven by libblkio.
pub struct Blkio {
    // Before the device: queues use its memory.
    queues: Vec<Blkioq>,
    device: blkio::Blkio,
    region: MemoryRegion,
    /// The region's memory. What is in it is read and written as a file, since
    /// only that needs no pointer.
    memory: File,
}

impl Blkio {
    /// Connects to a vhost-user back end, with so many queues.
    ///
    /// # Panics
    /// When the back end cannot be used.
    pub fn connect(socket: &Path, queues: usize) -> Self {
        Self::open("virtio-blk-vhost-user", socket, queues)
    }

    /// Opens a character device of vhost-vdpa, with so many queues.
    ///
    /// # Panics
    /// When the device cannot be used.
    pub fn open_vdpa(node: &Path, queues: usize) -> Self {
        Self::open("virtio-blk-vhost-vdpa", node, queues)
    }

    fn open(driver: &str, path: &Path, queues: usize) -> Self {
        let mut device = blkio::Blkio::new(driver).expect("the driver");
        let socket = path.to_str().expect("a path in UTF-8");
        device.set_str("path", socket).expect("a property");
        device.connect().expect("a back end that libblkio can use");
        let count = i32::try_from(queues).expect("a few queues");
        device.set_i32("num-queues", count).expect("a property");
        let queues = device.start().expect("queues").queues;
        let bytes = queues.len() * DEPTH * CHUNK;
        let region = device.alloc_mem_region(bytes).expect("memory");
        device.map_mem_region(&region).expect("shared memory");
        let path = format!("/proc/self/fd/{}", region.fd);
        let memory = File::options().read(true).write(true).open(path);
        Self {
            queues,
            device,
            region,
            memory: memory.expect("the memory as a file"),
        }
    }

    /// What the disk says about itself under a name of libblkio.
    ///
    /// # Panics
    /// When there is no such property.
    pub fn property(&self, name: &str) -> i32 {
        self.device.get_i32(name).expect("a property of libblkio")
    }

    /// Distance of a buffer from the start of the memory.
    fn place(queue: usize, slot: usize) -> usize {
        (queue * DEPTH + slot) * CHUNK
    }

    /// Address of a buffer.
    fn buffer(&self, queue: usize, slot: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + Self::place(queue, slot))
    }

    /// Waits for all of `count` requests. Their results are in memory that only
    /// unsafe code may look at; whether they succeeded, the bytes show.
    fn finish(&mut self, queue: usize, count: usize) {
        let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
        let mut patience = PATIENCE;
        let done = self.queues[queue].do_io(&mut completions, count, Some(&mut patience), None);
        assert_eq!(done.expect("answers in time"), count);
    }
}

impl Driver for Blkio {
    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn capacity(&self) -> u64 {
        self.device.get_u64("capacity").expect("a capacity")
    }

    fn read(&mut self, queue: usize, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        for batch in into.chunks_mut(DEPTH * CHUNK) {
            let mut count = 0;
            for (slot, chunk) in batch.chunks(CHUNK).enumerate() {
                // What was there before must not look like an answer.
                let place = Self::place(queue, slot) as u64;
                self.memory
                    .write_all_at(&[0xA5; CHUNK], place)
                    .expect("memory");
                let buffer = self.buffer(queue, slot);
                self.queues[queue].read(at, buffer, chunk.len(), slot, ReqFlags::empty());
                at += chunk.len() as u64;
                count += 1;
            }
            self.finish(queue, count);
            let place = Self::place(queue, 0) as u64;
            self.memory.read_exact_at(batch, place).expect("memory");
        }
    }

    fn write(&mut self, queue: usize, offset: u64, data: &[u8]) {
        let mut at = offset;
        for batch in data.chunks(DEPTH * CHUNK) {
            let place = Self::place(queue, 0) as u64;
            self.memory.write_all_at(batch, place).expect("memory");
            let mut count = 0;
            for (slot, chunk) in batch.chunks(CHUNK).enumerate() {
                let buffer = self.buffer(queue, slot);
                self.queues[queue].write(at, buffer, chunk.len(), slot, ReqFlags::empty());
                at += chunk.len() as u64;
                count += 1;
            }
            self.finish(queue, count);
        }
    }

    fn flush(&mut self, queue: usize) {
        self.queues[queue].flush(0, ReqFlags::empty());
        self.finish(queue, 1);
    }
}
