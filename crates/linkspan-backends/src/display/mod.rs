//! A guest's screen, from whoever has it ([`Source`]) to whoever looks ([`Screen`]).

mod card;
mod gpu;
mod pace;
mod screen;
mod socket;
mod source;
mod vnc;

pub use gpu::{DisplayServer, GpuDevice, GpuOptions};
pub use screen::{NoSignal, Screen, Update};
pub use socket::GpuSource;
pub use source::{Change, Memory, Shown, Source, SourceError};
pub use vnc::{ServeError, VncServer};
