//! Both ends of vfio-user, tied together and alone.

mod hostile;
mod others;
mod pair;
mod rig;
