//! Simulation: one world, which a seed decides, in which both ends of every kind of link run in
//! one thread, one step after the other. The seed says who does the next step, in which pieces
//! bytes arrive, and what goes wrong; so a failure can be looked at again.
//!
//! A kind is a `Link`: the cores as they are delivered, with a model of what is around them,
//! and checks of what a user relies on. What can go wrong has the same names for all
//! (`Mishap`); what a link cannot have it leaves out. `cargo xtask sim` runs it.
#![forbid(unsafe_code)]

mod blk;
#[cfg(test)]
mod checks;
mod fcopy;
mod history;
mod rng;
pub mod seeds;
mod smb2;
pub mod smbdirect;
mod vfio;
mod world;

pub use rng::Rng;
pub use seeds::{Kind, Outcome};
pub use world::Counts;
pub(crate) use world::{Link, Mishap, Rest, Sim};

/// All kinds of links.
pub const KINDS: &[Kind] = &[
    Kind::of::<blk::Disk>(),
    Kind::of::<smbdirect::Local>(),
    Kind::of::<smbdirect::Iwarp>(),
    Kind::of::<fcopy::Vm>(),
    Kind::of::<smb2::Share>(),
    Kind::of::<vfio::Pci>(),
];
