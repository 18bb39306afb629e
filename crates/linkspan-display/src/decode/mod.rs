//! From a device's registers to the picture that it shows. Each number is given or read
//! once; what is not understood is refused by name.

pub mod bochs;
pub mod fixed;
pub mod intel;
