#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod connection;
mod credits;
mod describe;
pub mod descriptor;
mod driver;
mod error;
mod gather;
mod inbox;
mod options;
mod outbox;
mod registrations;
mod transfers;
pub mod wire;

pub use connection::{
    Arrival, Connection, Header, MessageId, News, NotQuiet, Output, RegistrationId, Role, State,
    Status, Traffic, TransferId, WorkId,
};
pub use describe::Passing;
pub use descriptor::Descriptor;
pub use driver::{Driver, HEADER_LEN, private_data};
pub use error::{Blame, Error, Misuse, Refusal};
pub use gather::{GATHER_MAX, Gather};
pub use inbox::{Message, Piece, Place};
pub use linkspan_mem::record::RestoreError;
pub use options::{Device, OPTIONS, Options, OptionsError, Parameter, markdown};
pub use registrations::RegistrationState;
