//! A virtual GPU that needs no GPU: virtio-gpu in two dimensions. Its queues keep what the
//! guest draws in memory files; the hub tells those who look.

mod front;
mod queue;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_devices::gpu::{CONFIG_LEN, Gpu, HEADS_MAX, VIRTIO_GPU_F_EDID};
use linkspan_display::Loss;
use linkspan_display::edid::{EdidError, Mode};
use linkspan_engine::{ConfigRange, Device, GPU_DEVICE, Messages, OpenQueueError, QueueHandler};
use linkspan_sys::{EventFd, Stream};
use linkspan_virtio::Features;

use front::Front;
use queue::CommandQueue;

use super::hub::Hub;
use super::memory::{PictureMemory, Purse, Share};

/// Commands, and pointers.
const QUEUES: u16 = 2;
/// Entries of a queue at most; QEMU has 256 and 16.
const QUEUE_SIZE_MAX: u16 = 1024;

/// How a GPU is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    /// Screens, 1 to 16.
    pub heads: u8,
    /// The size that the guest is told for each, if its front end does not tell it.
    pub mode: (u32, u32),
    /// Bytes that all that the guest draws may take, and its lists of where it does.
    pub memory: u64,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            heads: 1,
            mode: (1280, 800),
            memory: 256 << 20,
        }
    }
}

/// A GPU that cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// So many screens cannot be.
    #[error("{heads} screens; 1 to {HEADS_MAX} can be")]
    Heads {
        /// How many.
        heads: u8,
    },
    /// Such a size cannot be told.
    #[error(transparent)]
    Mode(#[from] EdidError),
    /// The system said no.
    #[error("no descriptor for the GPU: {0}")]
    System(#[from] io::Error),
}

/// A virtual GPU.
pub struct GpuDevice {
    gpu: Arc<Mutex<Gpu<Arc<PictureMemory>, Share>>>,
    hub: Arc<Hub>,
    purse: Arc<Purse>,
    front: Arc<Mutex<Option<Front>>>,
    messages: Arc<Messages>,
}

impl fmt::Debug for GpuDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuDevice")
            .field("purse", &self.purse)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GpuDevice {
    /// A GPU of these options.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn new(options: &GpuOptions) -> Result<Self, GpuError> {
        let GpuOptions {
            heads,
            mode,
            memory,
        } = *options;
        if !(1..=HEADS_MAX).contains(&heads.into()) {
            return Err(GpuError::Heads { heads });
        }
        Mode::reduced(mode.0, mode.1, 60)?;
        Ok(Self {
            gpu: Arc::new(Mutex::new(Gpu::new(heads.into()))),
            hub: Hub::new(heads, mode)?,
            purse: Purse::new(memory),
            front: Arc::default(),
            messages: Arc::default(),
        })
    }

    /// What goes over the front end's display socket.
    #[must_use]
    pub fn messages(&self) -> &Arc<Messages> {
        &self.messages
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Says that the front end is gone, and with it the guest's screens.
    pub fn front_end_is_gone(&self) {
        lock(&self.front).take();
        self.hub.lose(Loss::Unused);
    }
}

impl Device for GpuDevice {
    fn name(&self) -> &'static str {
        "gpu"
    }

    fn device_id(&self) -> u32 {
        GPU_DEVICE
    }

    fn features(&self) -> Features {
        Features::from_bits_retain(VIRTIO_GPU_F_EDID)
    }

    fn queues(&self) -> u16 {
        QUEUES
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    /// Both queues speak of the same resources.
    fn lane(&self, _index: u16) -> u16 {
        0
    }

    fn set_gpu_socket(&self, socket: Stream) -> io::Result<()> {
        let front = Front::start(socket, &self.hub, &self.messages)?;
        *lock(&self.front) = Some(front);
        Ok(())
    }

    fn reset(&self) {
        lock(&self.gpu).reset();
        self.hub.lose(Loss::Reset);
    }

    fn config_changes(&self) -> Option<Arc<EventFd>> {
        Some(Arc::clone(&self.hub.config_changes))
    }

    fn config_size(&self) -> u32 {
        u32::try_from(CONFIG_LEN).expect("less than 256")
    }

    fn read_config(&self, offset: u32, target: &mut [u8]) -> Result<(), ConfigRange> {
        let len = target.len();
        let read = self
            .hub
            .config(|config| config.read(offset as usize, target));
        let size = self.config_size();
        read.then_some(()).ok_or(ConfigRange { offset, len, size })
    }

    fn write_config(&self, offset: u32, bytes: &[u8]) -> Result<(), ConfigRange> {
        let (len, size) = (bytes.len(), self.config_size());
        let written = self
            .hub
            .config(|config| config.write(offset as usize, bytes));
        written
            .then_some(())
            .ok_or(ConfigRange { offset, len, size })
    }

    fn open_queue(
        &self,
        _index: u16,
        _features: Features,
    ) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        let queue = CommandQueue::new(self)?;
        Ok(Box::new(queue))
    }
}
