//! From registers to pictures.

mod bochs;
mod edid;
mod fixed;
mod gtt;
mod intel;
mod opregion;
mod region;
