//! A disk from its driver's side: a queue that one thread owns, over any
//! transport, which goes on when the device is lost and comes back.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_devices::block::driver::{
    Answer, BlockDriver, Command, DriverError, SLOT_BYTES, WANTED,
};
use linkspan_engine::vdpa::{Opener, VdpaOptions};
use linkspan_engine::vhost_user::{LinkOptions, Reach};
use linkspan_engine::{DriverMemory, LinkEnded, QueueLink, Resumed, Spin, WorkerOptions};
use linkspan_mem::{Gpa, Span, Window};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::QueueUnit;
use linkspan_virtio::{AddError, Buffer, Features, StartError, UsedError};

/// A queue of a disk.
#[derive(Debug)]
pub struct DiskQueue {
    driver: BlockDriver<Window, Gpa>,
    features: Features,
    index: u16,
    memory: Arc<DriverMemory>,
    link: QueueLink,
    spin: Spin,
    /// First byte of the buffers behind the rings, and how many bytes there are.
    buffers: (u64, u64),
}

/// What is wanted of the back end of a disk with `queues` queues like these
/// ([`Features::SPLIT_QUEUE`] or [`Features::PACKED_QUEUE`]).
pub fn link_options(
    reach: Reach,
    connect_limit: Duration,
    queues: u16,
    queue_features: Features,
) -> LinkOptions {
    LinkOptions {
        reach,
        connect_limit,
        queues,
        queue_unit: QueueUnit::Rings,
        features: WANTED | queue_features,
        required: queue_features & (Features::VIRTIO_F_VERSION_1 | Features::VIRTIO_F_RING_PACKED),
        protocol_features: ProtocolFeatures::CONFIG.union(ProtocolFeatures::INFLIGHT_SHMFD),
        // Without it the disk would be of no size.
        required_protocol_features: ProtocolFeatures::CONFIG,
        config_size: 60,
    }
}

/// The same of a vDPA device.
pub fn vdpa_options(open: Opener, queues: u16, queue_features: Features) -> VdpaOptions {
    let reach = Reach::Connect(PathBuf::new());
    let options = link_options(reach, Duration::ZERO, queues, queue_features);
    VdpaOptions {
        open,
        queues,
        features: options.features,
        required: options.required,
        config_size: options.config_size,
    }
}

/// Why a queue cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The device broke the queue.
    #[error("the device broke the queue: {0}")]
    Device(#[from] UsedError),
    /// The request was not possible.
    #[error(transparent)]
    Request(#[from] AddError),
    /// The device is gone for good.
    #[error(transparent)]
    Link(#[from] LinkEnded),
    /// The ring could not be set up.
    #[error(transparent)]
    Ring(#[from] StartError),
    /// The queue could not be set up.
    #[error(transparent)]
    Setup(#[from] DriverError),
    /// A descriptor of ours failed.
    #[error("cannot wait for the device: {0}")]
    Wait(#[from] io::Error),
}

/// How a queue is laid out behind the rings of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskQueueLayout {
    /// Requests at a time.
    pub depth: u16,
    /// Bytes for data.
    pub buffer_bytes: u64,
}

impl DiskQueueLayout {
    /// Bytes of the whole queue behind the rings.
    pub fn bytes(&self) -> u64 {
        self.slots().next_multiple_of(4096) + self.buffer_bytes.next_multiple_of(4096)
    }

    fn slots(&self) -> u64 {
        u64::from(self.depth) * u64::from(SLOT_BYTES)
    }
}

impl DiskQueue {
    /// Queue `index` of a disk whose queues all have this layout.
    ///
    /// # Errors
    /// When private memory cannot be had.
    ///
    /// # Panics
    /// When `memory` was not made for that many queues of this layout.
    pub fn new(
        memory: Arc<DriverMemory>,
        index: u16,
        layout: DiskQueueLayout,
        features: Features,
        link: QueueLink,
    ) -> Result<Self, DiskError> {
        let start = u64::from(index) * layout.bytes();
        let slots = u32::try_from(layout.slots()).expect("a queue has at most 32768 entries");
        let (address, place) = memory
            .rest(start, slots)
            .expect("the memory was made for it");
        let queue = memory.new_queue(index, features)?;
        let mut driver = BlockDriver::new(queue, features, layout.depth, address, place)?;
        // Interrupts are for who sleeps.
        driver.queue().disarm()?;
        let first = start + layout.slots().next_multiple_of(4096);
        Ok(Self {
            driver,
            features,
            index,
            memory,
            link,
            spin: Spin::new(WorkerOptions::POLL),
            buffers: (first, layout.buffer_bytes),
        })
    }

    /// Says how long [`wait`](Self::wait) looks for answers at most before it sleeps; not
    /// at all for zero.
    pub fn look_for(&mut self, time: Duration) {
        self.spin = Spin::new(time);
    }

    /// `len` bytes of the queue's buffers at distance `at`: for a command, and
    /// for the thread that drives the queue. `None` when they are not there.
    pub fn buffer(&self, at: u64, len: u32) -> Option<(Buffer<Gpa>, Span)> {
        let (first, bytes) = self.buffers;
        if at.checked_add(u64::from(len))? > bytes {
            return None;
        }
        let (address, span) = self.memory.rest(first + at, len)?;
        Some((Buffer { address, len }, span))
    }

    /// The memory that buffers lie in.
    pub fn memory(&self) -> &Arc<DriverMemory> {
        &self.memory
    }

    /// Commands that were submitted and not yet answered.
    pub fn outstanding(&self) -> usize {
        self.driver.outstanding()
    }

    /// Submits a command; the device sees it after [`kick`](Self::kick). `false`
    /// when there is no room until something is answered.
    ///
    /// # Errors
    /// When the queue cannot go on.
    #[inline]
    pub fn submit(&mut self, command: Command<Gpa>, token: u64) -> Result<bool, DiskError> {
        self.look_at_link()?;
        let table = self.memory.memory().table();
        Ok(self.driver.submit(table, command, token)?)
    }

    /// Shows the device what was submitted, and wakes it if it sleeps.
    ///
    /// # Errors
    /// When the queue cannot go on.
    #[inline]
    pub fn kick(&mut self) -> Result<(), DiskError> {
        let queue = self.driver.queue();
        queue.publish()?;
        if queue.kick_wanted()? {
            self.link.kick()?;
        }
        Ok(())
    }

    /// The next answer that is there.
    ///
    /// # Errors
    /// When the queue cannot go on.
    #[inline]
    pub fn answer(&mut self) -> Result<Option<Answer>, DiskError> {
        self.look_at_link()?;
        let table = self.memory.memory().table();
        if let Some(answer) = self.driver.answer(table)? {
            return Ok(Some(answer));
        }
        self.driver.queue().refresh()?;
        Ok(self.driver.answer(table)?)
    }

    /// Waits until an answer is there or the link has news, at most until `deadline`;
    /// `false` when that passed. It looks for answers while that pays, and sleeps then.
    ///
    /// # Errors
    /// When the queue cannot go on.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool, DiskError> {
        let start = Instant::now();
        let until = start + self.spin.window();
        let mut now = start;
        while now < until && deadline.is_none_or(|deadline| now < deadline) {
            if self.driver.queue().refresh()? != 0 || self.link.has_news() {
                self.spin.came_after(now - start);
                return Ok(true);
            }
            std::hint::spin_loop();
            now = Instant::now();
        }
        let there = self.sleep(deadline)?;
        self.driver.queue().disarm()?;
        if there {
            self.spin.came_after(start.elapsed());
        }
        Ok(there)
    }

    /// Asks for an interrupt and sleeps until there is a reason to go on.
    fn sleep(&mut self, deadline: Option<Instant>) -> Result<bool, DiskError> {
        let call = &self.link.events.call;
        while !(self.driver.queue().arm()? || self.link.has_news()) {
            match wait_for(call.as_fd(), Direction::Read, None, deadline)? {
                Wake::Deadline => return Ok(false),
                // Before the next look: what comes from here on makes it readable again.
                _ => call.drain()?,
            };
        }
        Ok(true)
    }

    #[inline]
    fn look_at_link(&mut self) -> Result<(), DiskError> {
        if self.link.has_news() {
            self.hear_from_link()?;
        }
        Ok(())
    }

    #[cold]
    fn hear_from_link(&mut self) -> Result<(), DiskError> {
        match self.link.take_news()? {
            None => return Ok(()),
            Some(Resumed::Continued) => {}
            Some(Resumed::Fresh) => {
                let mut queue = self.memory.new_queue(self.index, self.features)?;
                queue.disarm()?;
                let table = self.memory.memory().table();
                self.driver.resubmit(table, queue)?;
                self.driver.queue().publish()?;
            }
        }
        // The new device has not seen any kick.
        Ok(self.link.kick()?)
    }
}

#[cfg(test)]
mod tests {
    use linkspan_devices::block::Status;
    use linkspan_engine::{Device, InProcess, QueueEvents, QueueHandle, Workers, queue_link};

    use super::*;
    use crate::block::BlockDevice;
    use crate::image::{OpenOptions, RawImage};

    const LAYOUT: DiskQueueLayout = DiskQueueLayout {
        depth: 8,
        buffer_bytes: 1 << 16,
    };

    struct Rig {
        _file: tempfile::NamedTempFile,
        device: BlockDevice,
        features: Features,
        memory: Arc<DriverMemory>,
        workers: Arc<Workers>,
    }

    fn rig() -> Rig {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..1 << 16)
            .map(|i: usize| (i / 512).to_le_bytes()[0])
            .collect();
        std::fs::write(file.path(), content).unwrap();
        let image = RawImage::open(file.path(), &OpenOptions::default()).unwrap();
        let device = BlockDevice::new(Arc::new(image), 2, 64).unwrap();
        Rig {
            features: device.features() | Features::SPLIT_QUEUE,
            memory: Arc::new(DriverMemory::new(2, 64, 2 * LAYOUT.bytes()).unwrap()),
            workers: Arc::new(Workers::new(1).unwrap()),
            device,
            _file: file,
        }
    }

    impl Rig {
        fn queue(&self, index: u16) -> (DiskQueue, QueueHandle) {
            let (link, handle) = queue_link().unwrap();
            let memory = Arc::clone(&self.memory);
            let queue = DiskQueue::new(memory, index, LAYOUT, self.features, link).unwrap();
            (queue, handle)
        }

        fn start(&self, events: &[QueueEvents]) -> InProcess {
            let workers = Arc::clone(&self.workers);
            InProcess::start(&self.device, workers, &self.memory, events, self.features).unwrap()
        }
    }

    fn next(queue: &mut DiskQueue) -> Answer {
        loop {
            if let Some(answer) = queue.answer().unwrap() {
                return answer;
            }
            queue.wait(None).unwrap();
        }
    }

    #[test]
    fn two_queues_read_and_write_in_one_process() {
        let rig = rig();
        let (mut queues, handles): (Vec<_>, Vec<_>) = (0..2).map(|index| rig.queue(index)).unzip();
        let events: Vec<_> = handles.iter().map(|handle| handle.events.clone()).collect();
        let _device = rig.start(&events);
        for (sector, queue) in [3, 9].into_iter().zip(&mut queues) {
            let (data, span) = queue.buffer(512, 512).unwrap();
            assert!(
                queue
                    .submit(Command::Read { sector, data }, sector)
                    .unwrap()
            );
            queue.kick().unwrap();
            let answer = Answer {
                token: sector,
                status: Status::Ok,
            };
            assert_eq!(next(queue), answer);
            let mut bytes = [0; 512];
            queue.memory().memory().table().slice(span).read(&mut bytes);
            assert!(bytes.iter().all(|byte| u64::from(*byte) == sector));
        }
        assert!(queues[0].buffer(LAYOUT.buffer_bytes, 1).is_none());
    }

    #[test]
    fn a_lost_device_that_comes_back_fresh_answers_everything() {
        let rig = rig();
        let (mut queue, handle) = rig.queue(0);
        // Nobody serves yet: these are under way when the device is lost.
        for token in 0..5 {
            let (data, _) = queue.buffer(token * 512, 512).unwrap();
            assert!(
                queue
                    .submit(
                        Command::Read {
                            sector: token,
                            data
                        },
                        token
                    )
                    .unwrap()
            );
        }
        queue.kick().unwrap();
        let (device, mut tokens) = std::thread::scope(|scope| {
            let driving = scope.spawn(move || {
                let tokens: Vec<u64> = (0..5).map(|_| next(&mut queue).token).collect();
                assert_eq!(queue.outstanding(), 0);
                tokens
            });
            handle.lost();
            assert!(handle.wait_parked());
            rig.memory.clear_ring(0);
            let device = rig.start(std::slice::from_ref(&handle.events));
            handle.resumed(Resumed::Fresh);
            (device, driving.join().unwrap())
        });
        drop(device);
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2, 3, 4]);
    }

    /// Each one would be a call of the device's to a thread that is awake.
    #[test]
    fn interrupts_are_asked_for_by_who_sleeps_and_by_nobody_else() {
        let mut rig = rig();
        rig.features.remove(Features::VIRTIO_F_EVENT_IDX);
        let (mut queue, handle) = rig.queue(0);
        let _device = rig.start(std::slice::from_ref(&handle.events));
        let asked = || rig.memory.ring(0).available_flags() == 0;
        assert!(!asked());
        let (data, _) = queue.buffer(0, 512).unwrap();
        assert!(queue.submit(Command::Read { sector: 1, data }, 1).unwrap());
        queue.kick().unwrap();
        assert_eq!(next(&mut queue).token, 1);
        assert!(!asked());
        let past = Some(Instant::now());
        assert!(!queue.wait(past).unwrap());
        assert!(!asked());
    }

    /// Interrupts may come late: after the answer was seen.
    #[test]
    fn an_interrupt_of_before_ends_no_wait() {
        let rig = rig();
        let (mut queue, handle) = rig.queue(0);
        handle.events.call.signal().unwrap();
        assert!(!queue.wait(Some(Instant::now())).unwrap());
        assert_eq!(handle.events.call.drain().unwrap(), 0);
    }

    #[test]
    fn a_link_that_ends_ends_its_queue() {
        let rig = rig();
        let (mut queue, handle) = rig.queue(0);
        handle.lost();
        handle.ended(&"test".into());
        let error = queue.answer().unwrap_err();
        assert!(matches!(error, DiskError::Link(_)), "{error}");
    }
}
