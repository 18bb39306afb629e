#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bands;
mod cursor;
mod damage;
pub mod decode;
pub mod edid;
mod exports;
mod format;
mod fourcc;
mod frame;
mod held;
mod layout;
pub mod link;
mod plane;
pub mod region;
pub mod rfb;
mod tiling;

pub use bands::{BAND_MAX, Band};
pub use cursor::{Cursor, Scene, Sprite};
pub use damage::{RECTANGLES_MAX, Rectangle, TILE, Tiles};
pub use exports::{BufferId, ExportError, Exports, NoNumbers};
pub use format::{FORMATS, Format, markdown};
pub use fourcc::{FourCc, Modifier};
pub use frame::{Frame, to_bgrx, to_rgba};
pub use held::{Held, Needed};
pub use layout::{HEIGHT_MAX, Layout, PIXELS_MAX, Refusal, Surface, WIDTH_MAX};
pub use linkspan_mem::record::RestoreError;
pub use plane::{HotSpot, Kind, Loss, Plane, Position, Reason, RefusedPlane, SPRITES_MAX};
pub use tiling::{TILE_BYTES, Tiling, untile};
