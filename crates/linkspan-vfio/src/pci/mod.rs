//! What a PCI function shows in configuration space, and the table of its MSI-X vectors:
//! what a virtual machine monitor reads of a device before any driver does.

mod config;
mod msix;

pub use config::{Bar, Changed, Config, ConfigError, Identity, Msix};
pub use msix::{ENTRY as MSIX_ENTRY, MsixTable};

/// Regions of a PCI device (`VFIO_PCI_NUM_REGIONS`): six by their base address, and those
/// below.
pub const REGIONS: usize = 9;
/// `VFIO_PCI_ROM_REGION_INDEX`.
pub const ROM: u32 = 6;
/// `VFIO_PCI_CONFIG_REGION_INDEX`.
pub const CONFIG: u32 = 7;
/// `VFIO_PCI_VGA_REGION_INDEX`.
pub const VGA: u32 = 8;

/// Kinds of interrupts of a PCI device (`VFIO_PCI_NUM_IRQS`).
pub const IRQS: usize = 5;
/// `VFIO_PCI_INTX_IRQ_INDEX`.
pub const INTX: u32 = 0;
/// `VFIO_PCI_MSI_IRQ_INDEX`.
pub const MSI: u32 = 1;
/// `VFIO_PCI_MSIX_IRQ_INDEX`.
pub const MSIX: u32 = 2;
/// `VFIO_PCI_ERR_IRQ_INDEX`.
pub const ERR: u32 = 3;
/// `VFIO_PCI_REQ_IRQ_INDEX`.
pub const REQ: u32 = 4;

/// Bytes of configuration space.
pub const CONFIG_BYTES: u64 = 256;
