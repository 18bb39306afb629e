//! The table of checks: what each kind of link wants of a machine, and what goes without it.

use std::path::Path;

use super::machine::{Capability, Machine, Module, Right};
use super::{Finding, Link};

mod devices;
mod kernel;
mod peers;

/// One thing that a machine has or lacks.
pub(super) struct Check {
    /// What it is called.
    pub(super) name: &'static str,
    /// Who wants it.
    pub(super) links: &'static [Link],
    /// What is lost without it; `None`: the link does not work.
    pub(super) without: Option<&'static str>,
    /// Looks.
    pub(super) look: fn(&Machine) -> Finding,
}

use Link::{Blk, Display, Fcopy, Gpu, Ic, Net, Smb, Smbdirect, Vdpa, Vduse, Vm};

/// Those whose peers share memory with us.
const SHARING: &[Link] = &[Blk, Net, Gpu, Display, Vdpa, Vduse, Fcopy, Ic, Vm];

/// All of them, what everybody wants first.
pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "kernel",
        links: Link::ALL,
        without: Some("no kernel as old as this was tried"),
        look: kernel::version,
    },
    Check {
        name: "/proc",
        links: Link::ALL,
        without: None,
        look: kernel::proc,
    },
    Check {
        name: "open files",
        links: Link::ALL,
        without: Some("fewer queues, ports and connections than there could be"),
        look: kernel::open_files,
    },
    Check {
        name: "memory files",
        links: SHARING,
        without: None,
        look: kernel::memory_files,
    },
    Check {
        name: "Landlock",
        links: &[Fcopy, Ic],
        without: Some("a guest's end is not kept from files that it does not need"),
        look: kernel::landlock,
    },
    Check {
        name: "io_uring",
        links: &[Blk, Vduse],
        without: Some("threads read and write what is not cached"),
        look: kernel::io_uring,
    },
    Check {
        name: "tap interfaces",
        links: &[Net],
        without: Some("no ports tap:NAME"),
        look: devices::tap,
    },
    Check {
        name: "huge pages",
        links: &[Net],
        without: Some("DPDK's programs do not start, as peers"),
        look: kernel::huge_pages,
    },
    Check {
        name: "QEMU",
        links: &[Vm],
        without: None,
        look: peers::qemu,
    },
    Check {
        name: "KVM",
        links: &[Vm],
        without: Some("guests are emulated, and slow"),
        look: devices::kvm,
    },
    Check {
        name: "QEMU's vfio-user-pci",
        links: &[Display, Vdpa],
        without: Some("no peer here for --vfio-user and `display serve`"),
        look: peers::vfio_user,
    },
    Check {
        name: "udmabuf",
        links: &[Gpu, Display],
        without: Some("programs get no dma-bufs of pictures"),
        look: devices::udmabuf,
    },
    Check {
        name: "VFIO devices",
        links: &[Display],
        without: Some("no screens of devices of the kernel"),
        look: devices::vfio,
    },
    Check {
        name: "vDPA bus",
        links: &[Vdpa, Vduse],
        without: None,
        look: devices::vdpa_bus,
    },
    Check {
        name: "vhost_vdpa",
        links: &[Vdpa],
        without: None,
        look: devices::vhost_vdpa,
    },
    Check {
        name: "vDPA devices",
        links: &[Vdpa],
        without: None,
        look: devices::vdpa_devices,
    },
    Check {
        name: "VDUSE",
        links: &[Vduse],
        without: None,
        look: devices::vduse,
    },
    Check {
        name: "/run/linkspan",
        links: &[Vduse],
        without: Some("--vduse-state has to name another folder in memory"),
        look: devices::vduse_state,
    },
    Check {
        name: "program vdpa",
        links: &[Vdpa, Vduse],
        without: Some("devices are put on the bus by other means"),
        look: peers::vdpa_tool,
    },
    Check {
        name: "locked memory",
        links: &[Vdpa, Smbdirect],
        without: Some("devices cannot pin as much memory as guests and transfers have"),
        look: kernel::locked_memory,
    },
    Check {
        name: "rdma-core",
        links: &[Smbdirect],
        without: Some("iWARP over TCP alone, no RDMA devices"),
        look: peers::rdma_core,
    },
    Check {
        name: "RDMA devices",
        links: &[Smbdirect],
        without: Some("iWARP over TCP alone, no RDMA devices"),
        look: devices::rdma,
    },
    Check {
        name: "Hyper-V's file copy",
        links: &[Fcopy],
        without: Some("hosts of ours alone (--connect)"),
        look: devices::hyperv_fcopy,
    },
    Check {
        name: "Hyper-V's heartbeat",
        links: &[Ic],
        without: Some("hosts of ours alone (--connect)"),
        look: devices::hyperv_heartbeat,
    },
    Check {
        name: "a device for others",
        links: &[Fcopy],
        without: Some("`fcopy host -- COMMAND` does not run"),
        look: devices::uio_for_others,
    },
    Check {
        name: "SMB over TCP",
        links: &[Smb],
        without: None,
        look: peers::network,
    },
];

/// A device file that this process reads and writes; `make` is what brings it about.
fn device(machine: &Machine, path: &str, make: impl FnOnce() -> String) -> Finding {
    match machine.right(path) {
        Right::Has => Finding::works(path),
        Right::Denied => denied(path),
        Right::Absent => Finding::lacks(format!("there is no {path}"), make()),
    }
}

fn denied(path: impl AsRef<Path>) -> Finding {
    let path = path.as_ref().display();
    Finding::lacks(
        format!("{path} is for others"),
        format!("setfacl -m u:$USER:rw {path}, as root; or run it as root"),
    )
}

/// How a module comes to be there, or to work.
fn load(machine: &Machine, module: &str, config: &str) -> String {
    match machine.module(module) {
        Module::Running | Module::Loadable => format!("modprobe {module}"),
        Module::Unknown => format!(
            "modprobe {module}, with a kernel that has {config} (Debian: apt-get install linux-image-amd64)"
        ),
    }
}

fn lacks_capability(machine: &Machine, capability: Capability) -> bool {
    !machine.is_capable(capability)
}
