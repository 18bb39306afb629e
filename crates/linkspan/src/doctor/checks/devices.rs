//! Devices and modules of the kernel, and who may use them.

use linkspan_backends::display::Sysfs;
use linkspan_sys::uio;
use linkspan_vmbus::ic::{FILE_COPY, HEARTBEAT, Service};

use super::{denied, device, lacks_capability, load};
use crate::doctor::Finding;
use crate::doctor::machine::{Capability, Machine, Right};

/// The first kernel that passes mappings of a FUSE file on (CONFIG_FUSE_PASSTHROUGH).
const PASSTHROUGH: (u32, u32) = (6, 9);

pub(super) fn tap(machine: &Machine) -> Finding {
    let found = device(machine, "/dev/net/tun", || {
        load(machine, "tun", "CONFIG_TUN")
    });
    if found.is_good() && lacks_capability(machine, Capability::NetAdmin) {
        return Finding::lacks(
            "without CAP_NET_ADMIN only interfaces that were made for this user",
            "ip tuntap add NAME mode tap user $USER multi_queue vnet_hdr, as root; or run it as root",
        );
    }
    found
}

pub(super) fn kvm(machine: &Machine) -> Finding {
    match machine.right("/dev/kvm") {
        Right::Has => Finding::works("/dev/kvm opens; `linkspan demo` tries whether a guest runs"),
        Right::Denied => Finding::lacks(
            "/dev/kvm is for others",
            "usermod -aG kvm $USER, as root, and a new session",
        ),
        Right::Absent => Finding::lacks(
            "there is no /dev/kvm",
            format!(
                "{} (or kvm_amd); in a guest, a host that nests",
                load(machine, "kvm_intel", "CONFIG_KVM")
            ),
        ),
    }
}

pub(super) fn udmabuf(machine: &Machine) -> Finding {
    device(machine, "/dev/udmabuf", || {
        load(machine, "udmabuf", "CONFIG_UDMABUF")
    })
}

pub(super) fn vfio(machine: &Machine) -> Finding {
    let devices = Sysfs::at(machine.place("/sys")).devices();
    if devices.is_empty() {
        return Finding::lacks(
            "no device is bound to a driver of VFIO",
            format!(
                "{}; docs/display.md shows how a device is bound",
                load(machine, "vfio_pci", "CONFIG_VFIO_PCI")
            ),
        );
    }
    let nodes = devices.iter().flat_map(|device| {
        let group = device.group.map(|group| format!("/dev/vfio/{group}"));
        let name = device.node.as_ref().and_then(|node| node.file_name());
        let own = name.map(|name| format!("/dev/vfio/devices/{}", name.to_string_lossy()));
        group.into_iter().chain(own)
    });
    let nodes: Vec<String> = nodes.collect();
    let has = |right| nodes.iter().find(|node| machine.right(node) == right);
    if let Some(node) = has(Right::Has) {
        return Finding::works(format!("{} devices, {node} opens", devices.len()));
    }
    if let Some(node) = has(Right::Denied) {
        return denied(node);
    }
    Finding::lacks(
        format!("devices are there, but not {}", nodes.join(", ")),
        load(machine, "vfio", "CONFIG_VFIO"),
    )
}

pub(super) fn vdpa_bus(machine: &Machine) -> Finding {
    if machine.has("/sys/bus/vdpa") {
        return Finding::works("/sys/bus/vdpa");
    }
    let mend = load(machine, "vdpa", "CONFIG_VDPA");
    Finding::lacks("this kernel has none", mend)
}

pub(super) fn vhost_vdpa(machine: &Machine) -> Finding {
    if machine.has("/sys/bus/vdpa/drivers/vhost_vdpa") {
        return Finding::works("the driver is there");
    }
    let mend = load(machine, "vhost_vdpa", "CONFIG_VHOST_VDPA");
    Finding::lacks("the driver is not there", mend)
}

pub(super) fn vdpa_devices(machine: &Machine) -> Finding {
    let nodes = machine.names("/dev").into_iter();
    let mut nodes = nodes
        .filter(|name| name.starts_with("vhost-vdpa-"))
        .map(|name| format!("/dev/{name}"));
    let Some(first) = nodes.next() else {
        return no_vdpa_device(machine);
    };
    let mut all = std::iter::once(first.clone()).chain(nodes);
    match all.find(|node| machine.right(node) == Right::Has) {
        Some(node) => Finding::works(node),
        None => denied(first),
    }
}

fn no_vdpa_device(machine: &Machine) -> Finding {
    match machine.names("/sys/bus/vdpa/devices").first() {
        Some(name) => Finding::lacks(
            format!("{name} is not bound to vhost_vdpa"),
            crate::vdpa::binding(name),
        ),
        None => Finding::lacks(
            "there is none",
            "modprobe vdpa_sim_blk; vdpa dev add name blk0 mgmtdev vdpasim_blk (a simulated disk)",
        ),
    }
}

pub(super) fn vduse(machine: &Machine) -> Finding {
    let found = device(machine, "/dev/vduse/control", || {
        load(machine, "vduse", "CONFIG_VDPA_USER")
    });
    if found.is_good() && lacks_capability(machine, Capability::NetAdmin) {
        let why = "without CAP_NET_ADMIN devices are not put on the bus";
        return Finding::lacks(why, "run it as root");
    }
    found
}

pub(super) fn vduse_state(machine: &Machine) -> Finding {
    // The folder is made when it is wanted.
    let place = ["/run/linkspan", "/run"].into_iter();
    let found = place.map(|path| (path, machine.right(path)));
    match found.into_iter().find(|(_, right)| *right != Right::Absent) {
        Some((path, Right::Has)) => Finding::works(format!("{path} can be written")),
        Some((_, _)) => Finding::lacks(
            "it is for others",
            "install -d -o $USER /run/linkspan, as root; or --vduse-state",
        ),
        None => Finding::lacks(
            "there is no /run",
            "mount -t tmpfs tmpfs /run; or --vduse-state",
        ),
    }
}

pub(super) fn rdma(machine: &Machine) -> Finding {
    let devices = machine.names("/sys/class/infiniband");
    if devices.is_empty() {
        let mend = format!(
            "{}; rdma link add siw0 type siw netdev eth0 (by software)",
            load(machine, "siw", "CONFIG_RDMA_SIW")
        );
        return Finding::lacks("there is none", mend);
    }
    let manager = device(machine, "/dev/infiniband/rdma_cm", || {
        load(machine, "rdma_ucm", "CONFIG_INFINIBAND_USER_ACCESS")
    });
    if !manager.is_good() {
        return manager;
    }
    let verbs = machine.names("/dev/infiniband").into_iter();
    let verbs: Vec<String> = verbs
        .filter(|name| name.starts_with("uverbs"))
        .map(|name| format!("/dev/infiniband/{name}"))
        .collect();
    match verbs.first() {
        None => Finding::lacks(
            "there is no /dev/infiniband/uverbs0",
            load(machine, "ib_uverbs", "CONFIG_INFINIBAND_USER_ACCESS"),
        ),
        Some(first) if verbs.iter().all(|node| machine.right(node) != Right::Has) => denied(first),
        Some(_) => Finding::works(devices.join(", ")),
    }
}

pub(super) fn hyperv_fcopy(machine: &Machine) -> Finding {
    hyperv(machine, &FILE_COPY)
}

pub(super) fn hyperv_heartbeat(machine: &Machine) -> Finding {
    hyperv(machine, &HEARTBEAT)
}

/// The device of an integration service.
fn hyperv(machine: &Machine, service: &Service) -> Finding {
    let class = service.interface.to_string();
    let instance = service.instance.map(|instance| instance.to_string());
    let found = match uio::find(&machine.roots(), &class, instance.as_deref()) {
        Ok(found) => found,
        Err(error) => return Finding::lacks(error.to_string(), error.remedy()),
    };
    let name = found.file.file_name().unwrap_or_default();
    let path = format!("/dev/{}", name.to_string_lossy());
    device(machine, &path, || {
        "udevadm trigger, so that it is made".to_owned()
    })
}

pub(super) fn uio_for_others(machine: &Machine) -> Finding {
    let found = device(machine, "/dev/fuse", || {
        load(machine, "fuse", "CONFIG_FUSE_FS")
    });
    if !found.is_good() {
        return found;
    }
    if machine.kernel().is_none_or(|version| version < PASSTHROUGH) {
        let mend = "Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH";
        return Finding::lacks("this kernel does not pass mappings of FUSE on", mend);
    }
    if lacks_capability(machine, Capability::SysAdmin) {
        return Finding::lacks("it needs CAP_SYS_ADMIN", "run it as root");
    }
    found
}
