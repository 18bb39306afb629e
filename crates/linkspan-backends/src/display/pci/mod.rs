//! A display as a PCI device over vfio-user: video memory is a sealed memory file that the
//! virtual machine monitor maps, so that pixels cost no message. Viewers look through the
//! same hub as at a virtual GPU.

mod edid;
mod fixed;
mod intel;
mod pages;
mod plane;
mod standard;
mod video;

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_display::edid::{EdidError, Mode};
use linkspan_display::{Kind, Layout, Loss, Position, Reason, RefusedPlane};
use linkspan_engine::vfio_user::{Device, Guest, Mapped, PlaneFd, Refused};
use linkspan_vfio::pci::{self, Config, ConfigError};
use linkspan_vfio::server::PlaneState;
use linkspan_vfio::{DmaMap, Irq, Offer, Region};

use super::hub::{Hub, Layer};
use super::memory::{Backing, PictureMemory};
use edid::EdidRegion;
use fixed::Fixed;
pub use intel::{Script, ScriptError};

/// `VFIO_PCI_BAR0_REGION_INDEX`.
const BAR0: u32 = 0;
/// `VFIO_PCI_BAR2_REGION_INDEX`.
const BAR2: u32 = 2;
/// The region of the EDID: the first that the bus does not define.
const EDID: u32 = 9;
const _: () = assert!(EDID as usize == pci::REGIONS);
/// The one of an OpRegion, behind it.
const OPREGION: u32 = EDID + 1;

/// Maps of memory at once.
const DMA_MAPS: u64 = 512;

/// What kind of display it is.
#[derive(Clone, Debug)]
pub enum Model {
    /// QEMU's standard VGA without a VGA: a stock guest's bochs-drm drives it.
    Bochs,
    /// A picture that never changes its place, as the kernel's sample mdpy.
    Fixed,
    /// Registers of an Intel display engine, from a script.
    Intel(Box<Script>),
}

/// How a display is offered.
#[derive(Clone, Debug)]
pub struct DisplayOptions {
    /// What kind.
    pub model: Model,
    /// The size that the guest is told.
    pub mode: (u32, u32),
    /// Bytes of video memory: a power of two from 1 MiB to 1 GiB.
    pub memory: u64,
}

/// A display that cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisplayError {
    /// Such a size cannot be told.
    #[error(transparent)]
    Mode(#[from] EdidError),
    /// Memory that no base address is for.
    #[error("{memory} bytes of video memory; a power of two from 1 MiB to 1 GiB is possible")]
    Memory {
        /// Bytes.
        memory: u64,
    },
    /// The picture does not fit.
    #[error("a picture of {width}x{height} in {memory} bytes of video memory")]
    Picture {
        /// Pixels across.
        width: u32,
        /// Lines.
        height: u32,
        /// Bytes.
        memory: u64,
    },
    /// What it shows in configuration space cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system said no.
    #[error("no memory or descriptor for the display: {0}")]
    System(#[from] io::Error),
}

/// What differs from one model to the next.
trait Part: Send {
    /// Its regions, below [`EDID`].
    fn regions(&self, regions: &mut [Region]);

    /// Reads a region of its own.
    fn read(&mut self, region: u32, offset: u64, target: &mut [u8]) -> Result<(), Refused>;

    /// Writes one.
    fn write(&mut self, hub: &Hub, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Refused>;

    /// The client's memory is this from now on: nothing else of it is used once this returns.
    fn memory_is(&mut self, hub: &Hub, memory: &mut dyn Iterator<Item = &Mapped>) {
        let _ = (hub, memory);
    }

    /// The file of one that can be mapped.
    fn region_fd(&mut self, region: u32) -> io::Result<OwnedFd>;

    /// The screen says something else of itself, or is gone.
    fn screen(&mut self, edid: &[u8], up: bool) {
        let _ = (edid, up);
    }

    /// A read-only region behind the EDID's, if there is one, and its kind.
    fn opregion(&self) -> Option<(&[u8], (u32, u32))> {
        None
    }

    /// Shows what it has to show.
    fn show(&self, hub: &Hub);

    /// All is as it was at first, and shown.
    fn reset(&mut self, hub: &Hub);
}

/// Shows one picture in a device's own memory, or nothing, or says why not.
fn show_one(hub: &Hub, memory: &Arc<PictureMemory>, layout: Result<Option<Layout>, String>) {
    let (mut layers, mut refused) = (Vec::new(), Vec::new());
    let (head, kind) = (0, Kind::Primary);
    match layout {
        Ok(Some(layout)) => layers.push(Layer {
            head,
            kind,
            surface: *layout.surface(),
            backing: Backing::Whole(Arc::clone(memory)),
            position: Position::default(),
            hot_spot: None,
        }),
        Ok(None) => {}
        Err(why) => {
            let why = Reason::new(&why);
            refused.push(RefusedPlane { head, kind, why });
        }
    }
    hub.put(layers, refused);
}

/// A display as a PCI device.
pub struct PciDisplay {
    config: Config,
    initial: Config,
    hub: Arc<Hub>,
    edid: EdidRegion,
    part: Box<dyn Part>,
}

impl fmt::Debug for PciDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciDisplay")
            .field("hub", &self.hub)
            .finish_non_exhaustive()
    }
}

impl PciDisplay {
    /// A display of these options.
    ///
    /// # Errors
    /// [`DisplayError`].
    pub fn new(options: DisplayOptions) -> Result<Self, DisplayError> {
        let DisplayOptions {
            model,
            mode,
            memory,
        } = options;
        let timing = Mode::reduced(mode.0, mode.1, 60)?;
        if !memory.is_power_of_two() || !(1 << 20..=1 << 30).contains(&memory) {
            return Err(DisplayError::Memory { memory });
        }
        // Nobody reads the EDID of the others, and what they show has its size.
        let (heads, resizes) = match model {
            Model::Intel(_) => (3, false),
            Model::Bochs => (1, true),
            Model::Fixed => (1, false),
        };
        let hub = Hub::silent(heads, mode, resizes)?;
        let (config, mut part): (Config, Box<dyn Part>) = match model {
            Model::Bochs => standard::Standard::offer(memory)?,
            Model::Fixed => Fixed::offer(mode, memory)?,
            Model::Intel(script) => intel::Intel::offer(*script, memory)?,
        };
        let edid = EdidRegion::new(&timing);
        part.screen(edid.blob(), true);
        part.reset(&hub);
        hub.lose(Loss::Off);
        Ok(Self {
            initial: config.clone(),
            config,
            hub,
            edid,
            part,
        })
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Takes in that a viewer wants another size.
    fn hear_viewers(&mut self) {
        if matches!(self.hub.config_changes.drain(), Ok(1..)) {
            let (width, height) = self.hub.mode(0);
            if let Ok(mode) = Mode::reduced(width, height, 60) {
                self.edid.set_mode(&mode);
                self.tell_screen();
            }
        }
    }

    /// Tells the guest's side what the screen is now.
    fn tell_screen(&mut self) {
        self.part.screen(self.edid.blob(), self.edid.is_up());
    }
}

impl Device for PciDisplay {
    fn offer(&self) -> Offer {
        let mut regions = vec![Region::default(); pci::REGIONS];
        self.part.regions(&mut regions);
        regions[pci::CONFIG as usize] = Region::of(pci::CONFIG_BYTES);
        regions.push(self.edid.region());
        if let Some((bytes, kind)) = self.part.opregion() {
            regions.push(Region {
                writable: false,
                kind: Some(kind),
                ..Region::of(bytes.len() as u64)
            });
        }
        Offer {
            regions,
            // A screen interrupts nobody.
            irqs: vec![Irq::default(); pci::IRQS],
            reset: true,
            dma_maps: DMA_MAPS,
            planes: true,
        }
    }

    fn read(
        &mut self,
        _guest: &mut Guest,
        region: u32,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), Refused> {
        match region {
            pci::CONFIG => self.config.read(offset, target),
            EDID => self.edid.read(offset, target),
            OPREGION => {
                let bytes = self.part.opregion().map_or(&[][..], |(bytes, _)| bytes);
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let found = bytes.get(start..).and_then(|rest| rest.get(..target.len()));
                target.copy_from_slice(found.ok_or(Refused::invalid("behind the OpRegion"))?);
            }
            region => self.part.read(region, offset, target)?,
        }
        Ok(())
    }

    fn write(
        &mut self,
        _guest: &mut Guest,
        region: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        match region {
            pci::CONFIG => {
                self.config.write(offset, bytes);
            }
            EDID => {
                if self.edid.write(offset, bytes)? {
                    self.tell_screen();
                }
            }
            region => self.part.write(&self.hub, region, offset, bytes)?,
        }
        Ok(())
    }

    fn region_fd(&mut self, region: u32) -> io::Result<OwnedFd> {
        self.part.region_fd(region)
    }

    fn reset(&mut self, _guest: &mut Guest) -> Result<(), Refused> {
        self.config = self.initial.clone();
        self.hub.lose(Loss::Reset);
        self.part.reset(&self.hub);
        Ok(())
    }

    fn connected(&mut self) {
        self.hear_viewers();
        self.part.show(&self.hub);
    }

    fn mapped(&mut self, guest: &mut Guest, _map: &DmaMap) -> Result<(), Refused> {
        let mut maps = guest.memory.maps().iter();
        self.part.memory_is(&self.hub, &mut maps);
        Ok(())
    }

    fn unmapping(&mut self, guest: &mut Guest, map: &DmaMap) {
        let mut rest = guest.memory.maps().iter().filter(|it| it.map != *map);
        self.part.memory_is(&self.hub, &mut rest);
    }

    /// What it shows is that of a guest that is gone, until it comes back.
    fn disconnected(&mut self) {
        self.part.memory_is(&self.hub, &mut std::iter::empty());
        self.hub.lose(Loss::Off);
    }

    fn query_plane(&mut self, kind: u32) -> Result<PlaneState, Refused> {
        plane::query(&self.hub, kind)
    }

    fn plane(&mut self, id: u32) -> Result<PlaneFd, Refused> {
        plane::get(&self.hub, id)
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hub.config_changes.as_fd())
    }

    fn wake(&mut self, _guest: &mut Guest) {
        self.hear_viewers();
    }
}
