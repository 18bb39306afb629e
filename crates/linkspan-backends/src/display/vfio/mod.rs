//! A device of the kernel's VFIO as a source: planes by `VFIO_DEVICE_QUERY_GFX_PLANE`, their
//! memory as a region or a dma-buf, or read from the registers of a device that is known.
//!
//! Drivers differ, and some bring the kernel down. So an id is asked for once for as long as
//! it is held, and it is held here, however often viewers ask; what is asked with is cleared
//! before; a failed query is repeated once and then means that there is nothing new.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linkspan_display::{Held, Kind, Loss, Needed};
use linkspan_sys::vfio::{Kernel, PLANE_DMABUF, PLANE_REGION, Process};
use rustix::io::Errno;

use super::source::{Memory, Shown, Source, SourceError};

mod device;
mod edid;
mod error;
mod open;
mod plane;
mod registers;
mod sysfs;

pub use device::Region;
use device::{Device, Which};
pub use edid::Screen as EdidScreen;
pub use error::VfioError;
use error::{failed, system};
use open::Opened;
pub use open::VfioSpec;
use plane::{Kept, Query, dma_buf_memory, region_memory, shown};
pub use sysfs::{Listed, Owner, Sysfs, gpus, owners};

/// Queries in a row that may fail while the last picture is still shown.
const FAILURES_MAX: u32 = 60;

/// Drivers that make a new dma-buf of an id each time, so that two processes may ask: GVT-g,
/// by the name of its mediated driver.
const FRESH_DMABUFS: [&str; 1] = ["intel_vgpu_mdev"];

/// A way to the pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A region of the device is mapped.
    Region,
    /// A dma-buf is mapped.
    DmaBuf,
    /// A dma-buf is mapped by the driver of Intel's GPU, which de-tiles it.
    Aperture,
    /// A dma-buf is drawn by a GPU and read back.
    Gpu,
    /// The device's registers say where the picture is in a region that is mapped.
    Registers,
}

impl Way {
    /// All, in the order in which they are tried.
    pub const ALL: [Self; 5] = [
        Self::Region,
        Self::DmaBuf,
        Self::Aperture,
        Self::Gpu,
        Self::Registers,
    ];

    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::DmaBuf => "dma-buf",
            Self::Aperture => "aperture",
            Self::Gpu => "gpu",
            Self::Registers => "registers",
        }
    }
}

/// What is known of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This one is used.
    Used,
    /// It was not needed.
    NotTried,
    /// It does not work, and why.
    No(String),
}

/// How a device is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VfioOptions {
    /// Look at what belongs to another process whatever its driver is, and write to it.
    pub force: bool,
    /// This way and no other.
    pub way: Option<Way>,
}

/// A device of VFIO with a display.
#[derive(Debug)]
pub struct VfioSource {
    name: String,
    driver: Option<String>,
    /// Gone when all is lost.
    device: Option<Device>,
    place: Option<PathBuf>,
    process: Option<Process>,
    /// Whether another process may have it open too, and ask for the same ids.
    shared: bool,
    options: VfioOptions,
    way: Way,
    verdicts: [Verdict; Way::ALL.len()],
    held: [Held<Kept>; 2],
    /// The planes of the last query that worked.
    last: Vec<Shown>,
    failures: u32,
    loss: Option<Loss>,
    registers: Option<registers::Bochs>,
}

impl VfioSource {
    /// Opens a device.
    ///
    /// # Errors
    /// [`VfioError`]; nothing is left open.
    pub fn open(
        kernel: &Arc<dyn Kernel>,
        sysfs: &Sysfs,
        spec: &VfioSpec,
        options: VfioOptions,
    ) -> Result<Self, VfioError> {
        Self::new(open::open(kernel, sysfs, spec)?, options)
    }

    /// Takes a device that somebody opened and passed: the descriptor is of the same open
    /// file, so it may also be that of another process.
    ///
    /// # Errors
    /// [`VfioError`]; the descriptor is closed.
    pub fn passed(
        kernel: &Arc<dyn Kernel>,
        fd: OwnedFd,
        options: VfioOptions,
    ) -> Result<Self, VfioError> {
        Self::new(open::passed(kernel, fd)?, options)
    }

    fn new(opened: Opened, options: VfioOptions) -> Result<Self, VfioError> {
        let Opened {
            device,
            name,
            driver,
            place,
            process,
            shared,
        } = opened;
        let mut source = Self {
            name,
            driver,
            device: Some(device),
            place,
            process,
            shared,
            options,
            way: Way::Registers,
            verdicts: Way::ALL.map(|_| Verdict::NotTried),
            held: [Held::new(), Held::new()],
            last: Vec::new(),
            failures: 0,
            loss: None,
            registers: None,
        };
        source.choose()?;
        tracing::info!("{} is looked at by its {}", source.name, source.way.name());
        Ok(source)
    }

    /// The first way that this device has.
    fn choose(&mut self) -> Result<(), VfioError> {
        let wanted = self.options.way;
        for (way, flag) in [(Way::Region, PLANE_REGION), (Way::DmaBuf, PLANE_DMABUF)] {
            if wanted.is_some_and(|wanted| wanted != way) {
                continue;
            }
            let device = self.device.as_ref().ok_or_else(gone)?;
            match device.probe(flag) {
                Ok(()) => {
                    if way == Way::DmaBuf {
                        self.check_safe()?;
                    }
                    self.way = way;
                    self.set(way, Verdict::Used);
                    self.refuse_gpus();
                    return Ok(());
                }
                Err(error) => {
                    let why = match Errno::from_io_error(&error) {
                        Some(Errno::INVAL | Errno::NOTTY) => "the driver has no such planes".into(),
                        _ => error.to_string(),
                    };
                    self.set(way, Verdict::No(why));
                }
            }
        }
        self.refuse_gpus();
        if wanted.is_some_and(|wanted| wanted != Way::Registers) || !self.find_registers() {
            let name = self.name.clone();
            let why = self.reasons();
            return Err(VfioError::NoDisplay { name, why });
        }
        Ok(())
    }

    /// Whether ids may be asked for although another process may ask for them too.
    fn check_safe(&self) -> Result<(), VfioError> {
        let driver = self.driver.as_deref();
        let fresh = driver.is_some_and(|driver| FRESH_DMABUFS.contains(&driver));
        if !self.shared || fresh || self.options.force {
            return Ok(());
        }
        Err(VfioError::NotSafe {
            driver: driver.unwrap_or("an unknown driver").into(),
        })
    }

    fn refuse_gpus(&mut self) {
        let why = "not supported: it needs Intel's GPU and its node, and reads uncached memory";
        self.set(Way::Aperture, Verdict::No(why.into()));
        let why = "not supported: it needs a GPU with OpenGL ES, and Linkspan uses none";
        self.set(Way::Gpu, Verdict::No(why.into()));
    }

    fn set(&mut self, way: Way, verdict: Verdict) {
        let mut ways = Way::ALL.iter().zip(&mut self.verdicts);
        if let Some((_, place)) = ways.find(|(it, _)| **it == way) {
            *place = verdict;
        }
    }

    /// Looks for registers that are known; another process's device is not read that way,
    /// since reading a register may change it.
    fn find_registers(&mut self) -> bool {
        let found = match (&self.device, &self.process) {
            (Some(_), Some(_)) if !self.options.force => {
                Err("the device belongs to another process".to_owned())
            }
            (Some(device), _) => registers::Bochs::find(device),
            (None, _) => Err("the device is gone".to_owned()),
        };
        match found {
            Ok(registers) => {
                self.registers = Some(registers);
                self.way = Way::Registers;
                self.set(Way::Registers, Verdict::Used);
                true
            }
            Err(why) => {
                self.set(Way::Registers, Verdict::No(why));
                false
            }
        }
    }

    fn reasons(&self) -> String {
        let mut reasons = Vec::new();
        for (way, verdict) in self.ways() {
            if let Verdict::No(why) = verdict {
                reasons.push(format!("{}: {why}", way.name()));
            }
        }
        reasons.join("; ")
    }

    /// All ways to the pixels, and what is known of them.
    pub fn ways(&self) -> impl Iterator<Item = (Way, &Verdict)> {
        Way::ALL.into_iter().zip(&self.verdicts)
    }

    /// The driver of the device, if that is known.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    /// The regions of the device.
    ///
    /// # Errors
    /// The device is gone, or does not say.
    pub fn regions(&self) -> Result<Vec<Region>, VfioError> {
        let device = self.device.as_ref().ok_or_else(gone)?;
        let regions = device.regions();
        regions.map_err(system("VFIO_DEVICE_GET_INFO"))
    }

    /// What the OpRegion says, where Intel's driver shows one: nothing where it does not.
    ///
    /// # Errors
    /// In words: it cannot be read, or is none.
    pub fn opregion(&self) -> Option<Result<linkspan_display::decode::intel::OpRegion, String>> {
        let device = self.device.as_ref()?;
        registers::opregion(device)
    }

    /// What the device says of the screen that the guest is told of; nothing if it has no
    /// region for that.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn edid(&self) -> Result<Option<EdidScreen>, VfioError> {
        let device = self.device.as_ref().ok_or_else(gone)?;
        let read = edid::read(device);
        read.map_err(system("cannot read the EDID region"))
    }

    /// Resets the device. All ids are void, and whoever asks for planes is told once.
    ///
    /// # Errors
    /// [`VfioError::ReadOnly`] for the device of another process; what the kernel reports.
    pub fn reset(&mut self) -> Result<(), VfioError> {
        if self.process.is_some() && !self.options.force {
            return Err(VfioError::ReadOnly);
        }
        let device = self.device.as_ref().ok_or_else(gone)?;
        device.reset().map_err(system("VFIO_DEVICE_RESET"))?;
        self.forget(Loss::Reset);
        Ok(())
    }

    /// All ids are void.
    fn forget(&mut self, loss: Loss) {
        for held in &mut self.held {
            held.lose(loss);
        }
        self.last.clear();
        self.failures = 0;
        self.loss = Some(loss);
        tracing::info!("{}: {loss}", self.name);
    }

    /// Whether it is still there. One that is not is let go at once: the kernel waits for
    /// everybody who has it open before it removes it.
    fn check_there(&mut self) -> Result<(), SourceError> {
        self.let_go();
        match self.loss {
            // It is told once, and the device is still there.
            Some(Loss::Reset) => {
                self.loss = None;
                Err(SourceError::Lost(Loss::Reset))
            }
            Some(loss) => Err(SourceError::Lost(loss)),
            None => Ok(()),
        }
    }

    /// Lets go of a device that is not there any more.
    fn let_go(&mut self) {
        if self.device.is_some() {
            let ended = self.process.as_ref().is_some_and(Process::has_ended);
            let removed = self.place.as_deref().is_some_and(is_missing);
            match (ended, removed) {
                (false, false) => {}
                (true, _) => self.leave(Loss::Ended),
                (_, true) => self.leave(Loss::Removed),
            }
        }
    }

    fn leave(&mut self, loss: Loss) {
        self.forget(loss);
        self.device = None;
        self.registers = None;
    }

    /// A plane by the kernel's query, with its memory.
    fn queried(&mut self, kind: Kind, which: Which) -> Result<Option<Shown>, Query> {
        let device = self.device.as_ref().ok_or(Query::Gone)?;
        let flag = match self.way {
            Way::Region => PLANE_REGION,
            _ => PLANE_DMABUF,
        };
        let info = device.query(flag, which).map_err(Query::from)?;
        let Some(info) = info else {
            return Ok(None);
        };
        let shown = shown(kind, &info);
        let held = &mut self.held[usize::from(kind == Kind::Cursor)];
        if let Needed::Memory = held.shown(shown.id, &shown.plane) {
            let kept = match self.way {
                Way::Region => region_memory(device, &info),
                _ => dma_buf_memory(device, &info),
            }?;
            held.keep(shown.id, &shown.plane, kept);
        }
        match held.shown(shown.id, &shown.plane) {
            Needed::Nothing(Kept::Not { why, .. }) => Err(Query::Unmapped(why.clone())),
            _ => Ok(Some(shown)),
        }
    }

    /// The planes that the kernel tells.
    fn kernel_planes(&mut self) -> Result<Vec<Shown>, Query> {
        let primary = self.queried(Kind::Primary, Which::Primary)?;
        let mut planes: Vec<Shown> = primary.into_iter().collect();
        // A driver with regions may answer with the picture whatever was asked.
        if self.way == Way::DmaBuf
            && let Ok(Some(pointer)) = self.queried(Kind::Cursor, Which::Cursor)
        {
            planes.push(pointer);
        }
        Ok(planes)
    }

    /// Nothing new was told. What was shown before still is, for a while.
    fn nothing_new(&mut self, error: io::Error) -> Result<Vec<Shown>, SourceError> {
        self.failures += 1;
        if self.failures == 1 {
            tracing::warn!("{}: the picture cannot be asked about: {error}", self.name);
        }
        if self.last.is_empty() || self.failures > FAILURES_MAX {
            return Err(failed("VFIO_DEVICE_QUERY_GFX_PLANE")(error));
        }
        Ok(self.last.clone())
    }

    /// The memory of the device's dma-bufs cannot be mapped: the next ways.
    fn descend(&mut self, why: String) -> Result<Vec<Shown>, SourceError> {
        self.set(Way::DmaBuf, Verdict::No(why.clone()));
        let may = self.options.way.is_none();
        if may && self.find_registers() {
            tracing::info!("{}: {why}; its registers are read", self.name);
            return self.register_planes();
        }
        Err(SourceError::Unsupported(self.reasons()))
    }

    fn register_planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        let (Some(device), Some(registers)) = (&self.device, &self.registers) else {
            return Err(SourceError::Lost(Loss::Removed));
        };
        match registers.plane(device) {
            Ok(registers::Seen::Shown(shown)) => Ok(vec![shown]),
            Ok(registers::Seen::Off) => Ok(Vec::new()),
            Ok(registers::Seen::Changing) => Ok(self.last.clone()),
            Err(error) => Err(error),
        }
    }
}

/// Whether a path is not there, as far as can be told.
fn is_missing(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn gone() -> VfioError {
    system("the device is gone")(Errno::NODEV.into())
}

impl Source for VfioSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        self.check_there()?;
        let planes = match self.way {
            Way::Registers => self.register_planes()?,
            _ => match self.kernel_planes() {
                Ok(planes) => planes,
                Err(Query::Later(error)) => return self.nothing_new(error),
                Err(Query::Unmapped(why)) => self.descend(why)?,
                Err(Query::Source(error)) => return Err(error),
                Err(Query::Gone) => {
                    self.leave(Loss::Removed);
                    return Err(SourceError::Lost(Loss::Removed));
                }
            },
        };
        self.failures = 0;
        self.last.clone_from(&planes);
        Ok(planes)
    }

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        let retired = SourceError::Retired { id: shown.id };
        if let Some(registers) = &self.registers {
            let device = self.device.as_ref().ok_or(retired)?;
            return registers.memory(device);
        }
        let held = &mut self.held[usize::from(shown.kind == Kind::Cursor)];
        match held.shown(shown.id, &shown.plane) {
            Needed::Nothing(Kept::Mapped(memory)) => Ok(memory.clone()),
            Needed::Nothing(Kept::Not { why, .. }) => Err(SourceError::Unsupported(why.clone())),
            Needed::Memory => Err(retired),
        }
    }

    fn needs_checks(&self) -> bool {
        self.device.is_some()
    }

    fn check(&mut self) -> Result<(), SourceError> {
        self.let_go();
        match self.loss {
            Some(loss) if self.device.is_none() => Err(SourceError::Lost(loss)),
            _ => Ok(()),
        }
    }

    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError> {
        if head != 0 {
            let why = format!("the device has one screen, and not number {head}");
            return Err(SourceError::Unsupported(why));
        }
        if self.process.is_some() && !self.options.force {
            return Err(SourceError::Unsupported(VfioError::ReadOnly.to_string()));
        }
        let device = self.device.as_ref();
        let device = device.ok_or(SourceError::Lost(Loss::Removed))?;
        edid::tell(device, width, height)
    }
}
