//! Devices whose registers are known: where the picture is in a region that can be mapped,
//! when the driver's dma-bufs cannot.

use std::sync::{Arc, OnceLock};

use linkspan_display::decode::bochs::{self, BochsError, REGISTERS};
use linkspan_display::decode::intel::{self, OPREGION_SUBTYPE, OPREGION_TYPE, OpRegion};
use linkspan_display::{Kind, Plane, Position};
use linkspan_sys::View;

use super::super::source::{Memory, Shown, SourceError};
use super::device::{Device, Region};
use super::error::failed;

/// `VFIO_PCI_BAR0_REGION_INDEX`, `_BAR2_` and `_CONFIG_`.
const BAR0: u32 = 0;
const BAR2: u32 = 2;
const CONFIG: u32 = 7;

/// Vendor and device of QEMU's standard VGA, which mbochs says too.
const BOCHS: [u8; 4] = [0x34, 0x12, 0x11, 0x11];

/// The most bytes of an OpRegion that are read.
const OPREGION_MAX: u64 = 1 << 20;

/// A Bochs display: its registers, and its video memory.
#[derive(Debug)]
pub(super) struct Bochs {
    registers: Region,
    memory: Region,
    mapped: OnceLock<Memory>,
}

/// What the registers say.
#[derive(Debug)]
pub(super) enum Seen {
    Shown(Shown),
    Off,
    /// Somebody is writing to them.
    Changing,
}

impl Bochs {
    /// Looks whether a device is one; if not, why.
    pub(super) fn find(device: &Device) -> Result<Self, String> {
        let region = |index| {
            let region = device.region(index);
            region.map_err(|error| format!("region {index}: {error}"))
        };
        let mut id = [0; 4];
        let config = region(CONFIG)?;
        if config.size < 64 {
            return Err("the device has no configuration space".into());
        }
        let read = device.read(&config, 0, &mut id);
        read.map_err(|error| format!("configuration space: {error}"))?;
        if id != BOCHS {
            let [vendor, kind] = [[id[0], id[1]], [id[2], id[3]]].map(u16::from_le_bytes);
            return Err(format!(
                "no registers are known of PCI device {vendor:04x}:{kind:04x}"
            ));
        }
        let (registers, memory) = (region(BAR2)?, region(BAR0)?);
        if registers.size < bochs::OFFSET + 2 * REGISTERS as u64 {
            return Err(format!("its registers have {} bytes", registers.size));
        }
        if !memory.maps(memory.size) || memory.size == 0 {
            return Err("its video memory cannot be mapped".into());
        }
        let mapped = OnceLock::new();
        Ok(Self {
            registers,
            memory,
            mapped,
        })
    }

    fn read(&self, device: &Device) -> std::io::Result<[u16; REGISTERS]> {
        let mut registers = [0; REGISTERS];
        for (register, at) in registers.iter_mut().zip((bochs::OFFSET..).step_by(2)) {
            let mut bytes = [0; 2];
            device.read(&self.registers, at, &mut bytes)?;
            *register = u16::from_le_bytes(bytes);
        }
        Ok(registers)
    }

    /// The picture. A guest writes register by register, so it counts what is read twice.
    pub(super) fn plane(&self, device: &Device) -> Result<Seen, SourceError> {
        let what = "the registers of the device";
        let registers = self.read(device).map_err(failed(what))?;
        if self.read(device).map_err(failed(what))? != registers {
            return Ok(Seen::Changing);
        }
        let layout = match bochs::decode(&registers, self.memory.size) {
            Ok(Some(layout)) => layout,
            Ok(None) => return Ok(Seen::Off),
            Err(BochsError::Refused(refusal)) => {
                return Err(SourceError::Unsupported(refusal.to_string()));
            }
            Err(error) => return Err(SourceError::Unsupported(error.to_string())),
        };
        let plane = Plane {
            surface: *layout.surface(),
            size: self.memory.size,
            position: Position::default(),
            hot_spot: None,
        };
        Ok(Seen::Shown(Shown {
            head: 0,
            kind: Kind::Primary,
            id: BAR0,
            plane,
            content: 0,
        }))
    }

    /// All of the video memory, mapped once.
    pub(super) fn memory(&self, device: &Device) -> Result<Memory, SourceError> {
        if let Some(memory) = self.mapped.get() {
            return Ok(memory.clone());
        }
        let view = View::map(device.fd(), self.memory.offset, self.memory.size)?;
        let memory = Memory::View(Arc::new(view));
        Ok(self.mapped.get_or_init(|| memory).clone())
    }
}

/// Reads and checks the OpRegion, if the device shows one.
pub(super) fn opregion(device: &Device) -> Option<Result<OpRegion, String>> {
    let regions = device.regions().ok()?;
    let kind = (OPREGION_TYPE, OPREGION_SUBTYPE);
    let region = regions.iter().find(|region| region.kind() == Some(kind))?;
    let len = usize::try_from(region.size.min(OPREGION_MAX)).unwrap_or(0);
    let mut bytes = match linkspan_mem::fault::try_with_capacity(len) {
        Ok(bytes) => bytes,
        Err(error) => return Some(Err(error.to_string())),
    };
    bytes.resize(len, 0);
    if let Err(error) = device.read(region, 0, &mut bytes) {
        return Some(Err(format!("cannot read the OpRegion: {error}")));
    }
    let checked = intel::opregion(kind.0, kind.1, &bytes);
    Some(checked.map_err(|error| error.to_string()))
}
