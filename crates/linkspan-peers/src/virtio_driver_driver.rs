//! Crate `virtio-driver` with its own vhost-user transport: the driver below
//! libblkio, which can do packed rings too.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_testkit::PATIENCE;
use virtio_driver::virtqueue::VirtqueueLayout;
use virtio_driver::{
    VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags, VirtioTransport,
};

use crate::driver::{CHUNK, DEPTH, Driver};

/// Entries of a queue: each of [`DEPTH`] requests takes three.
const QUEUE_SIZE: u16 = 128;

/// Memory for data that can be shared, as a slice. The crate takes slices, and
/// the only ones in shared memory that safe code can have are the crate's own
/// rings; so this is a second connection whose rings are used for data.
pub struct SharedBytes {
    transport: VhostUser<VirtioBlkConfig, VirtioBlkReqBuf>,
}

impl SharedBytes {
    /// Has a connection of its own to some disk.
    ///
    /// # Panics
    /// When the back end cannot be used.
    pub fn new(socket: &Path) -> Self {
        let socket = socket.to_str().expect("a path in UTF-8");
        let features = VirtioFeatureFlags::VERSION_1.bits();
        let transport = VhostUser::new(socket, features).expect("a back end");
        Self { transport }
    }

    /// The bytes, and the file that they are in.
    fn share(&mut self, bytes: usize) -> (&mut [u8], File) {
        let layout = VirtqueueLayout {
            num_queues: 1,
            driver_area_offset: 0,
            device_area_offset: 0,
            req_offset: 0,
            end_offset: bytes,
        };
        let memory = self.transport.alloc_queue_mem(&layout).expect("memory");
        let file = file_mapped_at(memory.as_ptr().addr());
        (memory, file)
    }
}

/// Opens the file of this process that is mapped at an address.
fn file_mapped_at(address: usize) -> File {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let start = format!("{address:x}-");
    let inode = maps.lines().find_map(|line| {
        // Addresses, rights, offset, device, inode, name.
        line.starts_with(&start)
            .then(|| line.split_whitespace().nth(4)?.parse::<u64>().ok())?
    });
    let inode = inode.expect("a mapping that begins there");
    let entries = fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    let path = entries.flatten().map(|entry| entry.path()).find(|path| {
        let memory =
            fs::read_link(path).is_ok_and(|name| name.starts_with("/memfd:virtio-ring (deleted)"));
        memory && fs::metadata(path).is_ok_and(|meta| meta.ino() == inode)
    });
    let file = path.map(|path| File::options().read(true).write(true).open(path));
    file.expect("its descriptor").expect("the file")
}

/// A disk driven by crate `virtio-driver`.
pub struct VirtioDriver<'memory> {
    // Before the transport: they use its memory.
    queues: Vec<VirtioBlkQueue<'memory, usize>>,
    transport: Box<VirtioBlkTransport>,
    memory: &'memory mut [u8],
}

impl<'memory> VirtioDriver<'memory> {
    /// Connects with so many queues, with these features beside those of a disk.
    ///
    /// # Panics
    /// When the back end cannot be used, or has not all of these features.
    pub fn connect(
        socket: &Path,
        shared: &'memory mut SharedBytes,
        queues: usize,
        features: VirtioFeatureFlags,
    ) -> Self {
        let disk = VirtioBlkFeatureFlags::BLK_SIZE
            | VirtioBlkFeatureFlags::FLUSH
            | VirtioBlkFeatureFlags::MQ;
        let wanted = disk.bits() | features.bits();
        let socket = socket.to_str().expect("a path in UTF-8");
        let transport = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(socket, wanted);
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport.expect("a back end"));
        assert_eq!(transport.get_features() & wanted, wanted, "features");
        let mut queues = VirtioBlkQueue::setup_queues(&mut *transport, queues, QUEUE_SIZE)
            .expect("queues that run");
        let (memory, file) = shared.share(queues.len() * DEPTH * CHUNK);
        let (address, len) = (memory.as_ptr().addr(), memory.len());
        transport
            .map_mem_region(address, len, file.as_raw_fd(), 0)
            .expect("shared memory");
        for queue in &mut queues {
            queue.set_used_notif_enabled(true);
        }
        Self {
            queues,
            transport,
            memory,
        }
    }

    /// Wakes the device and waits for `count` answers: the result of each.
    fn results(&mut self, queue: usize, count: usize) -> Vec<i32> {
        if self.queues[queue].avail_notif_needed() {
            let notifier = self.transport.get_submission_notifier(queue);
            notifier.notify().expect("a kick");
        }
        let event = self.transport.get_completion_fd(queue);
        let deadline = Some(Instant::now() + PATIENCE);
        let mut results = vec![None; count];
        while results.contains(&None) {
            let Some(completion) = self.queues[queue].completions().next() else {
                let woken = wait_for(event.as_fd(), Direction::Read, None, deadline);
                assert_eq!(woken.expect("a poll"), Wake::Ready, "no answer in time");
                event.read().expect("an event");
                continue;
            };
            let was = results[completion.context].replace(completion.ret);
            assert_eq!(was, None, "request {} has two answers", completion.context);
        }
        let more = self.queues[queue].completions().has_next();
        assert!(!more, "an answer to nothing");
        results.into_iter().flatten().collect()
    }

    fn finish(&mut self, queue: usize, count: usize) {
        assert_eq!(self.results(queue, count), vec![0; count], "no errors");
    }

    /// Reads behind the end of the disk and gives the result: 0, or a negative
    /// `errno`.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn read_beyond_the_end(&mut self) -> i32 {
        let at = self.capacity();
        let added = self.queues[0].read(at, &mut self.memory[..CHUNK], 0);
        added.expect("room in the ring");
        self.results(0, 1)[0]
    }
}

impl Driver for VirtioDriver<'_> {
    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn capacity(&self) -> u64 {
        let config = self.transport.get_config().expect("configuration space");
        512 * config.capacity.to_native()
    }

    fn read(&mut self, queue: usize, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let first = queue * DEPTH * CHUNK;
        for batch in into.chunks_mut(DEPTH * CHUNK) {
            let memory = &mut self.memory[first..][..batch.len()];
            memory.fill(0xA5);
            let mut count = 0;
            for (slot, chunk) in memory.chunks_mut(CHUNK).enumerate() {
                let added = self.queues[queue].read(at, chunk, slot);
                added.expect("room in the ring");
                at += chunk.len() as u64;
                count += 1;
            }
            self.finish(queue, count);
            batch.copy_from_slice(&self.memory[first..][..batch.len()]);
        }
    }

    fn write(&mut self, queue: usize, offset: u64, data: &[u8]) {
        let mut at = offset;
        let first = queue * DEPTH * CHUNK;
        for batch in data.chunks(DEPTH * CHUNK) {
            let memory = &mut self.memory[first..][..batch.len()];
            memory.copy_from_slice(batch);
            let mut count = 0;
            for (slot, chunk) in memory.chunks(CHUNK).enumerate() {
                let added = self.queues[queue].write(at, chunk, slot);
                added.expect("room in the ring");
                at += chunk.len() as u64;
                count += 1;
            }
            self.finish(queue, count);
        }
    }

    fn flush(&mut self, queue: usize) {
        self.queues[queue].flush(0).expect("room in the ring");
        self.finish(queue, 1);
    }
}
