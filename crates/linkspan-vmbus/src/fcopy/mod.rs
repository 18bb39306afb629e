//! Hyper-V's file copy (Linux: `struct hv_fcopy_hdr` and what follows it): the guest's
//! end, [`Receiver`], and the host's, [`Sender`].

mod name;
mod parts;
mod place;
mod receiver;
mod sender;
pub(crate) mod wire;

pub use name::NameError;
pub use parts::{PARTS_MAX, Parts, TooManyParts};
pub use place::{Place, RootError, Roots, Target};
pub use receiver::{Effect, Policy, Receiver, Refusal};
pub use sender::{Failure, Job, Misuse, Options, Output, Sender};
pub use wire::{
    FRAGMENT_MAX, NAME_UNITS, Operation, START_LEN, WRITE_HEAD_LEN, WRITE_LEN, copy_flags,
};

/// The guest's end of a file-copy channel.
pub type Guest = crate::ic::Guest<Receiver>;
