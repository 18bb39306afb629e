//! A guest's screen, from whoever has it ([`Source`]) to whoever looks ([`Screen`]).

mod card;
mod gpu;
mod hub;
mod input;
mod memory;
mod no_signal;
mod pace;
mod pci;
mod picture;
mod screen;
mod serve;
mod socket;
mod source;
mod vfio;
mod vfio_user;
mod vnc;
mod watch;

pub use gpu::{GpuDevice, GpuOptions};
pub use input::{Input, QmpError, Replies, Reply, Seat};
pub use no_signal::NoSignal;
pub use pci::{DisplayError, DisplayOptions, Model, PciDisplay, Script, ScriptError};
pub use picture::png;
pub use screen::{Screen, Update};
pub use serve::DisplayServer;
pub use socket::GpuSource;
pub use source::{Change, Memory, Reading, Shown, Source, SourceError};
pub use vfio::{
    EdidScreen, Listed, Owner, Region, Sysfs, Verdict, VfioError, VfioOptions, VfioSource,
    VfioSpec, Way, gpus, owners,
};
pub use vfio_user::VfioUserSource;
pub use vnc::{ServeError, VncServer};
pub use watch::{Entrance, SCREEN_SCRIPT, SCREEN_STYLE, Said, Usher, WatchServer};
