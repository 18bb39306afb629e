//! A vDPA kernel in this process: the rules of Linux 6.12's vhost-vdpa, a device
//! of ours behind them, and errors where a test wants them.

mod books;
mod devices;
mod model;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::MemoryImage;
use linkspan_engine::vdpa::{Opener, VdpaError};
use linkspan_engine::{Device, Workers};
use linkspan_mem::Iova;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::vdpa::{BackendFeatures, OpenError, Vdpa, page_size};

use books::Books;
pub use devices::{Card, Entropy};
use model::ModelVdpa;

/// The name of the file with the pages, as `/proc` shows it.
const PAGES: &str = "model-doorbells";

/// What is on a page that was not written: the number of no ring.
const NOT_KICKED: [u8; 2] = [0xff; 2];

/// What a device and its kernel are like.
#[derive(Clone, Debug)]
pub struct Quirks {
    /// What the vhost side can do.
    pub backend_features: BackendFeatures,
    /// Virtio features that the device has beside those of its type.
    pub features: u64,
    /// What it says of its number of queues, instead of how many it has.
    pub queues: Option<u32>,
    /// The largest size of its queues, instead of its own.
    pub queue_size_max: Option<u16>,
    /// The first and the last address that can be mapped.
    pub iova: (Iova, Iova),
    /// The group of each queue; those beyond the end are in group 0.
    pub groups: Vec<u32>,
    /// Address spaces.
    pub address_spaces: u32,
    /// Whether it does not set `FEATURES_OK`.
    pub refuses_features: bool,
    /// Whether it breaks as soon as it is to run.
    pub does_not_start: bool,
    /// Whether a queue that is enabled after `DRIVER_OK` never hears of it, as in VDUSE.
    pub deaf_to_late_enable: bool,
    /// Whether each ring has a page by which it is kicked.
    pub doorbells: bool,
}

impl Default for Quirks {
    /// Like vdpa_sim.
    fn default() -> Self {
        Self {
            backend_features: BackendFeatures::IOTLB_MSG_V2
                | BackendFeatures::IOTLB_BATCH
                | BackendFeatures::IOTLB_ASID
                | BackendFeatures::SUSPEND
                | BackendFeatures::RESUME
                | BackendFeatures::ENABLE_AFTER_DRIVER_OK
                | BackendFeatures::IOTLB_PERSIST,
            // VERSION_1, ACCESS_PLATFORM, which it requires, EVENT_IDX, INDIRECT_DESC.
            features: 1 << 32 | 1 << 33 | 1 << 29 | 1 << 28,
            queues: None,
            queue_size_max: None,
            iova: (Iova(0), Iova(u64::MAX)),
            groups: Vec::new(),
            address_spaces: 1,
            refuses_features: false,
            does_not_start: false,
            deaf_to_late_enable: false,
            doorbells: false,
        }
    }
}

/// A device of the kernel.
#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

struct Inner {
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    quirks: Quirks,
    /// Where rings are kicked, one page for each.
    pages: Option<File>,
    books: Mutex<Books>,
    log: Mutex<Log>,
}

/// What was called, and what is to fail.
#[derive(Default)]
struct Log {
    calls: Vec<String>,
    /// The call that fails, counted from 1, and how.
    fail: Option<(usize, i32)>,
    /// The next calls of this name fail.
    refuse: Option<(String, i32)>,
    count: usize,
}

impl Machine {
    /// A device behind a kernel with these quirks.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn new(device: Arc<dyn Device>, workers: Arc<Workers>, quirks: Quirks) -> Self {
        let pages = quirks.doorbells.then(|| {
            let len = u64::from(device.queues()) * page_size();
            let pages = memfd::create(PAGES, len, Sealing::Fixed).expect("memory");
            let pages = File::from(pages);
            for ring in 0..u64::from(device.queues()) {
                let written = pages.write_all_at(&NOT_KICKED, ring * page_size());
                written.expect("memory");
            }
            pages
        });
        Self {
            inner: Arc::new(Inner {
                device,
                workers,
                quirks,
                pages,
                books: Mutex::default(),
                log: Mutex::default(),
            }),
        }
    }

    /// A disk of `queues` queues in memory, of [`SECTORS`](crate::served::SECTORS)
    /// sectors of zeroes, on two workers.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn disk(queues: u16, quirks: Quirks) -> Self {
        let bytes = crate::served::SECTORS * crate::disk::SECTOR as u64;
        let image = MemoryImage::new(bytes, false).expect("memory");
        let device = BlockDevice::new(Arc::new(image), queues, 256).expect("a disk");
        let workers = Arc::new(Workers::new(2).expect("workers"));
        Self::new(Arc::new(device), workers, quirks)
    }

    /// Opens it, as `/dev/vhost-vdpa-N` is opened: one process at a time.
    ///
    /// # Errors
    /// When somebody has it.
    pub fn open(&self) -> Result<Box<dyn Vdpa>, VdpaError> {
        let mut books = self.books();
        if books.absent {
            return Err(OpenError::Absent("/dev/vhost-vdpa-model".into()).into());
        }
        if books.opened {
            return Err(OpenError::Busy("/dev/vhost-vdpa-model".into()).into());
        }
        *books = Books {
            opened: true,
            ..Books::default()
        };
        drop(books);
        Ok(Box::new(ModelVdpa::new(self.clone())))
    }

    /// The same for the transport, again and again.
    pub fn opener(&self) -> Opener {
        let machine = self.clone();
        Arc::new(move || machine.open())
    }

    /// The calls since this was last asked.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.log().calls)
    }

    /// The `nth` call from now on fails with this error number; 0: none does.
    pub fn fail_call(&self, nth: usize, errno: i32) {
        let mut log = self.log();
        log.count = 0;
        log.fail = (nth > 0).then_some((nth, errno));
    }

    /// Whether the call that is to fail was made.
    pub fn has_failed(&self) -> bool {
        let log = self.log();
        log.fail.is_some_and(|(nth, _)| log.count >= nth)
    }

    /// Calls whose names begin like this fail from now on.
    pub fn refuse(&self, call: &str, errno: i32) {
        self.log().refuse = Some((call.to_owned(), errno));
    }

    /// No call fails any more.
    pub fn allow(&self) {
        self.log().refuse = None;
    }

    /// The device breaks: it says that it needs a reset.
    pub fn break_device(&self) {
        let mut books = self.books();
        books.status |= 64;
        books.signal_config();
    }

    /// The device node goes, or comes back.
    pub fn set_absent(&self, absent: bool) {
        self.books().absent = absent;
    }

    /// Configuration space of the device changed.
    pub fn config_changed(&self) {
        self.books().signal_config();
    }

    /// Whether nothing of anybody is in it: not open, nothing mapped, no
    /// descriptor kept, no ring running.
    pub fn is_empty(&self) -> bool {
        let books = self.books();
        !books.opened && books.is_empty()
    }

    /// What is mapped: address space, address, length.
    pub fn mapped(&self) -> Vec<(u32, u64, u64)> {
        let books = self.books();
        let entry = |held: &books::Entry| (held.asid, held.iova, held.region.len() as u64);
        books.iotlb.iter().map(entry).collect()
    }

    /// Whether a ring was kicked on its page since this was last asked.
    ///
    /// # Panics
    /// When there is none.
    pub fn kicked(&self, ring: u16) -> bool {
        let pages = self.inner.pages.as_ref().expect("a device with doorbells");
        let mut bytes = [0; 2];
        let at = u64::from(ring) * page_size();
        pages.read_exact_at(&mut bytes, at).expect("memory");
        pages.write_all_at(&NOT_KICKED, at).expect("memory");
        bytes == ring.to_le_bytes()
    }

    /// How many of the pages are mapped in this process.
    ///
    /// # Panics
    /// When that cannot be read.
    pub fn doorbells() -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps of this process");
        maps.lines().filter(|line| line.contains(PAGES)).count()
    }

    /// The device takes note of a ring whose page was written.
    ///
    /// # Panics
    /// When it does not run.
    pub fn take_kick(&self, ring: u16) {
        let books = self.books();
        let kick = books.rings[usize::from(ring)].kick.as_ref();
        let kick = kick.expect("a ring that runs");
        let _ = kick.signal().expect("an eventfd");
    }

    /// Whether the device runs.
    pub fn is_live(&self) -> bool {
        self.books().status & 4 != 0
    }

    /// The features that its driver accepted.
    pub fn accepted(&self) -> u64 {
        self.books().features
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.inner
            .books
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.inner
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call; fails it if that is wanted.
    fn enter(&self, call: String) -> io::Result<()> {
        let mut log = self.log();
        log.count += 1;
        let nth = log.fail.filter(|(nth, _)| *nth == log.count);
        let named = log
            .refuse
            .as_ref()
            .filter(|(name, _)| call.starts_with(name));
        let errno = nth
            .map(|(_, errno)| errno)
            .or(named.map(|(_, errno)| *errno));
        log.calls.push(call);
        match errno {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}
