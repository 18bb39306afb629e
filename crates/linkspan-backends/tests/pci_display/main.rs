//! A display over vfio-user: registers that a client writes, pixels in memory that both
//! map, and viewers on three ways: the device's own socket for them, the private messages,
//! and the memory itself.

mod models;
mod planes;
mod refused;
mod rig;
mod scattered;
mod sprites;
mod standard;
