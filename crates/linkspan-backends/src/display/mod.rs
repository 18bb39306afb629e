//! A guest's screen, from whoever has it ([`Source`]) to whoever looks ([`Screen`]).

mod card;
mod gpu;
mod pace;
mod screen;
mod socket;
mod source;
mod vfio;
mod vnc;

pub use gpu::{DisplayServer, GpuDevice, GpuOptions};
pub use screen::{NoSignal, Screen, Update};
pub use socket::GpuSource;
pub use source::{Change, Memory, Reading, Shown, Source, SourceError};
pub use vfio::{
    EdidScreen, GuestFile, Listed, Owner, PagesError, Region, Sysfs, Verdict, VfioError,
    VfioOptions, VfioSource, VfioSpec, Way, export_pages, gpus, owners,
};
pub use vnc::{ServeError, VncServer};
