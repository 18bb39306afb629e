//! rust-vmm as back end: a small disk on `vhost-user-backend`, with the rings of
//! `virtio-queue`. The disk itself is ours; messages, memory and rings are theirs.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{DescriptorChain, Error as QueueError, QueueOwnedT as _};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// Bytes of configuration space.
const CONFIG_LEN: usize = 60;

/// What a back end does that others do otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Queues that it has.
    pub queues: u16,
    /// Whether it has configuration space (`VHOST_USER_PROTOCOL_F_CONFIG`).
    pub config: bool,
    /// Whether used lengths are what was written. Else they are 0, which some
    /// devices say for requests that give nothing back.
    pub lengths: bool,
    /// Whether the event index and indirect tables are offered.
    pub ring_features: bool,
}

impl Manner {
    /// What most of them do.
    pub const USUAL: Self = Self {
        queues: 4,
        config: true,
        lengths: true,
        ring_features: true,
    };
}

/// A back end that serves one front end after the other on threads of this
/// process until it is dropped.
pub struct RustVmmBackEnd {
    socket: PathBuf,
    sessions: Arc<AtomicU64>,
    stop: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl RustVmmBackEnd {
    /// Serves an image on a socket that is made there.
    ///
    /// # Panics
    /// When a socket or a thread cannot be had.
    pub fn start(socket: &Path, image: &Path, manner: Manner) -> Self {
        let image = File::options().read(true).write(true).open(image);
        Self::serve(socket, Storage::File(image.expect("the image")), manner)
    }

    /// Serves a disk of so many bytes that takes no time: nothing is read or written
    /// but requests and their answers.
    ///
    /// # Panics
    /// As for [`start`](Self::start).
    pub fn null(socket: &Path, bytes: u64, manner: Manner) -> Self {
        Self::serve(socket, Storage::Null(bytes), manner)
    }

    fn serve(socket: &Path, storage: Storage, manner: Manner) -> Self {
        let storage = Arc::new(storage);
        let mut listener = Listener::new(socket, true).expect("a socket");
        let (sessions, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let serve = {
            let (sessions, stop) = (Arc::clone(&sessions), Arc::clone(&stop));
            move || {
                while stop.load(Ordering::Relaxed) == 0 {
                    // The same daemon refuses a second front end: "already claimed".
                    let memory = Memory::new(GuestMemoryMmap::new());
                    let disk = Arc::new(Disk::new(&storage, manner, memory.clone()));
                    let daemon = VhostUserDaemon::new("rust-vmm".into(), disk, memory);
                    let mut daemon = daemon.expect("a daemon");
                    daemon.start(&mut listener).expect("a front end");
                    // How it ends, the front end's exit status shows.
                    let _ = daemon.wait();
                    sessions.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        Self {
            socket: socket.to_owned(),
            sessions,
            stop,
            thread: Some(std::thread::spawn(serve)),
        }
    }

    /// Front ends that have come and gone.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }
}

impl Drop for RustVmmBackEnd {
    fn drop(&mut self) {
        self.stop.store(1, Ordering::Relaxed);
        // It waits for a front end, so it gets one.
        drop(std::os::unix::net::UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the back end's thread panicked");
        }
    }
}

enum Storage {
    File(File),
    /// So many bytes.
    Null(u64),
}

impl Storage {
    fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Null(bytes) => Ok(*bytes),
        }
    }
}

struct Disk {
    storage: Arc<Storage>,
    manner: Manner,
    memory: Memory,
    exit: (EventConsumer, EventNotifier),
}

impl Disk {
    fn new(storage: &Arc<Storage>, manner: Manner, memory: Memory) -> Self {
        let flags = EventFlag::CLOEXEC | EventFlag::NONBLOCK;
        Self {
            storage: Arc::clone(storage),
            manner,
            memory,
            exit: new_event_consumer_and_notifier(flags).expect("an eventfd"),
        }
    }

    fn config(&self) -> io::Result<[u8; CONFIG_LEN]> {
        let mut config = [0; CONFIG_LEN];
        let sectors = self.storage.bytes()? / 512;
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[20..24].copy_from_slice(&512_u32.to_le_bytes());
        config[34..36].copy_from_slice(&self.manner.queues.to_le_bytes());
        Ok(config)
    }

    /// Does a request: the bytes that it wrote into the chain.
    fn request(
        &self,
        chain: DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap<()>>>,
    ) -> io::Result<u32> {
        let memory = self.memory.memory();
        let mut reader = chain.clone().reader(&memory).map_err(io::Error::other)?;
        let mut writer = chain.writer(&memory).map_err(io::Error::other)?;
        let mut header = [0; 16];
        reader.read_exact(&mut header)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let at = u64::from_le_bytes(sector).saturating_mul(512);
        let room = writer.available_bytes();
        let mut status = writer
            .split_at(room.checked_sub(1).ok_or(io::ErrorKind::InvalidInput)?)
            .map_err(io::Error::other)?;
        let done = match (kind, &*self.storage) {
            (blk::VIRTIO_BLK_T_IN, Storage::File(image)) => {
                let mut data = vec![0; writer.available_bytes()];
                let read = image.read_exact_at(&mut data, at);
                read.and_then(|()| writer.write_all(&data))
            }
            (blk::VIRTIO_BLK_T_OUT, Storage::File(image)) => {
                let mut data = vec![0; reader.available_bytes()];
                let read = reader.read_exact(&mut data);
                read.and_then(|()| image.write_all_at(&data, at))
            }
            (blk::VIRTIO_BLK_T_FLUSH, Storage::File(image)) => image.sync_data(),
            (blk::VIRTIO_BLK_T_IN, Storage::Null(_)) => {
                status.write_all(&[0])?;
                return Ok(u32::try_from(room).unwrap_or(u32::MAX));
            }
            (blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_FLUSH, Storage::Null(_)) => Ok(()),
            (blk::VIRTIO_BLK_T_GET_ID, _) => writer.write_all(b"rust-vmm"),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let byte = if done.is_ok() {
            blk::VIRTIO_BLK_S_OK
        } else {
            blk::VIRTIO_BLK_S_IOERR
        };
        status.write_all(&[u8::try_from(byte).unwrap_or(1)])?;
        let written = writer.bytes_written() + 1;
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    fn serve(&self, ring: &VringRwLock) -> io::Result<()> {
        loop {
            ring.disable_notification().map_err(io::Error::other)?;
            // One lock for all of a batch.
            let mut state = ring.get_mut();
            let memory = self.memory.memory();
            loop {
                // `pop_descriptor_chain` does not tell an error from an empty ring, and after an
                // error there is always more to come: this would have no end.
                let chain = match state.get_queue_mut().iter(memory.clone()) {
                    Ok(mut chains) => chains.next(),
                    Err(QueueError::QueueNotReady) => return Ok(()),
                    Err(error) => return Err(io::Error::other(error)),
                };
                let Some(chain) = chain else { break };
                let head = chain.head_index();
                let written = self.request(chain)?;
                let len = if self.manner.lengths { written } else { 0 };
                state.add_used(head, len).map_err(io::Error::other)?;
            }
            drop(state);
            if ring.needs_notification().map_err(io::Error::other)? {
                ring.signal_used_queue()?;
            }
            if !ring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

impl VhostUserBackend for Disk {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.manner.queues.into()
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_F_VERSION_1
            | 1 << blk::VIRTIO_BLK_F_FLUSH
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_MQ
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if self.manner.ring_features {
            features |= 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        }
        features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        features.set(VhostUserProtocolFeatures::CONFIG, self.manner.config);
        features
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The ring has it from the crate.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.config().unwrap_or([0; CONFIG_LEN]);
        let start = offset as usize;
        let part = config.get(start..start.saturating_add(size as usize));
        part.map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // It is the one that we have.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.manner.queues).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = &self.exit;
        Some((consumer.try_clone().ok()?, notifier.try_clone().ok()?))
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        rings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let ring = rings.get(usize::from(event));
        self.serve(ring.ok_or(io::ErrorKind::InvalidInput)?)
    }
}
