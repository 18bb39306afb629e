//! Files on an SMB share, over TCP or SMB Direct.
//!
//! A [`Share`] is one connection with one session and one share, for one thread: the
//! protocol is `linkspan_smb2::client`, which has no I/O, and here are what carries it, its time
//! limit and what a user of files asks for. Whoever finds a connection lost opens another.

mod again;
mod connection;
mod data;
mod disk;
mod error;
pub mod gateway;
mod kept;
mod mount;
mod share;
mod transfer;
mod transport;

pub use connection::{Connection, Login, PORT, Settings};
pub use data::{Data, Room};
pub use disk::{DiskOptions, SmbImage};
pub use error::Error;
pub use mount::{Happened, Mount, MountError, MountOptions, Unmounted};
pub use share::{Kind, Meta, Open, Share, There};
pub use transfer::{WINDOW, Way};
pub use transport::Wanted;
