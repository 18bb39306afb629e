//! Why a VFIO device cannot be looked at, and what to do about it.

use std::io;
use std::path::PathBuf;

use linkspan_mem::fault::Injected;
use rustix::io::Errno;

use super::super::SourceError;

/// Why a VFIO device cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// There is no such device.
    #[error("there is no VFIO device {0}")]
    NoDevice(String),
    /// A group has none, or several.
    #[error("group {group} has {} devices: {}", .devices.len(), .devices.join(", "))]
    Group {
        /// Which.
        group: u32,
        /// Their names.
        devices: Vec<String>,
    },
    /// The kernel has no way to open it.
    #[error("device {name} has no VFIO driver: neither a group nor a node of its own")]
    NoDriver {
        /// Which.
        name: String,
    },
    /// A node is not there.
    #[error("there is no {}", .0.display())]
    NoNode(PathBuf),
    /// Not allowed.
    #[error("no permission to open {}", .0.display())]
    Permission(PathBuf),
    /// Somebody has it.
    #[error("{} is in use", .0.display())]
    Busy(PathBuf),
    /// A device of its group belongs to a driver of the kernel.
    #[error("group {group} is not viable: a driver of the kernel has a device of it")]
    NotViable {
        /// Which.
        group: u32,
    },
    /// GVT-g wants a virtual machine first.
    #[error("device {name} wants to belong to a virtual machine first")]
    NeedsMachine {
        /// Which.
        name: String,
    },
    /// A descriptor is of something else.
    #[error("descriptor {fd} is not of a VFIO device")]
    NotDevice {
        /// Which.
        fd: i32,
    },
    /// There is no such process.
    #[error("there is no process {pid}")]
    NoProcess {
        /// Its number.
        pid: u32,
    },
    /// It has no VFIO device.
    #[error("process {pid} has no VFIO device")]
    NoneHeld {
        /// Its number.
        pid: u32,
    },
    /// Its descriptors cannot be had.
    #[error("no permission to look at what process {pid} has")]
    Process {
        /// Its number.
        pid: u32,
    },
    /// To look would endanger who has the device, or the machine.
    #[error(
        "to look at a device of {driver} that another process may have is not safe: a second \
         dma-buf of one id can crash the kernel"
    )]
    NotSafe {
        /// The driver, or what is known of it.
        driver: String,
    },
    /// It shows nothing in any way that is known.
    #[error("device {name} has no display that can be read: {why}")]
    NoDisplay {
        /// Which.
        name: String,
        /// What was tried.
        why: String,
    },
    /// It is only looked at.
    #[error("the device belongs to another process: it is only looked at")]
    ReadOnly,
    /// Anything else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] Injected),
}

impl VfioError {
    /// What to try.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDevice(_) => "see what there is: linkspan display list".into(),
            Self::Group { .. } => "name one of its devices".into(),
            Self::NoDriver { name } => {
                format!("give it to a driver of VFIO: driverctl set-override {name} vfio-pci")
            }
            Self::NoNode(path) if path.ends_with("vfio/vfio") => {
                "load the modules: modprobe vfio vfio_iommu_type1".into()
            }
            Self::NoNode(_) => "load the device's module, and see: linkspan display list".into(),
            Self::Permission(_) => "run it as root, or give the node to your group".into(),
            Self::Busy(_) => {
                "look through who has it: linkspan display list names processes, pid:N is one"
                    .into()
            }
            Self::NotViable { .. } => "give all devices of the group to vfio-pci".into(),
            Self::NeedsMachine { .. } => "look through the machine that has it: pid:N".into(),
            Self::NotDevice { .. } | Self::NoneHeld { .. } | Self::NoProcess { .. } => {
                "see what there is: linkspan display list".into()
            }
            Self::Process { .. } => {
                "run it as root, or as the same user with kernel.yama.ptrace_scope=0".into()
            }
            Self::NotSafe { .. } => "with --force it is looked at all the same".into(),
            _ => return None,
        })
    }

    /// Whether something of this machine is missing: a permission, a module.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::NoDriver { .. }
                | Self::NoNode(_)
                | Self::Permission(_)
                | Self::Process { .. }
                | Self::NoDisplay { .. }
                | Self::NeedsMachine { .. }
        )
    }

    /// Whether there is nobody to look at.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::NoDevice(_) | Self::NoProcess { .. } | Self::NoneHeld { .. } | Self::Busy(_)
        )
    }
}

/// What opening a node failed with.
pub(super) fn opening(path: PathBuf, what: &'static str) -> impl FnOnce(io::Error) -> VfioError {
    move |source| match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NXIO | Errno::NODEV | Errno::NOTDIR) => VfioError::NoNode(path),
        Some(Errno::ACCESS | Errno::PERM) => VfioError::Permission(path),
        Some(Errno::BUSY) => VfioError::Busy(path),
        _ => VfioError::System { what, source },
    }
}

/// Anything else that failed.
pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> VfioError {
    move |source| VfioError::System { what, source }
}

/// The same of a source.
pub(super) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> SourceError {
    move |source| SourceError::System { what, source }
}
