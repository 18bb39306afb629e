//! A machine made of files, for tests.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::machine::{Machine, Tried};

pub(super) struct Files(TempDir);

impl Files {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A machine on which each kind of link works, with nothing lost.
    pub(super) fn with_everything() -> Self {
        let files = Self::new();
        for (path, text) in EVERYTHING {
            files.write(path, text);
        }
        files.mode("usr/bin/vdpa", 0o755);
        files.mode(&format!("usr/bin/{}", Machine::qemu()), 0o755);
        for (link, to) in LINKS {
            symlink(to, files.0.path().join(link)).unwrap();
        }
        files
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn mode(&self, path: &str, mode: u32) {
        let path = self.0.path().join(path);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// Takes a file or a folder away.
    #[track_caller]
    pub(super) fn remove(&self, path: &str) {
        let path = self.0.path().join(path);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.unwrap();
    }

    /// The machine, on which all that is tried works.
    pub(super) fn machine(&self) -> Machine {
        Machine::at(self.0.path(), tried())
    }

    pub(super) fn machine_with(&self, tried: Tried) -> Machine {
        Machine::at(self.0.path(), tried)
    }
}

pub(super) fn tried() -> Tried {
    Tried {
        memory_file: Ok(()),
        io_uring: Ok(()),
        landlock: Some(6),
        rdma_core: Ok(()),
        qemu: Some("QEMU emulator version 11.1.3 (Debian)".to_owned()),
    }
}

const EVERYTHING: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n"),
    ("proc/sys/kernel/io_uring_disabled", "0\n"),
    (
        "proc/self/limits",
        "Max open files            65536                1048576              files     \n\
         Max locked memory         unlimited            unlimited            bytes     \n",
    ),
    ("proc/self/status", "CapEff:\t000001ffffffffff\n"),
    ("proc/self/net/tcp", ""),
    (
        "proc/meminfo",
        "HugePages_Free:      512\nHugepagesize:       2048 kB\n",
    ),
    ("dev/hugepages/x", ""),
    ("dev/net/tun", ""),
    ("dev/kvm", ""),
    ("dev/udmabuf", ""),
    ("dev/fuse", ""),
    ("dev/vfio/12", ""),
    ("dev/vduse/control", ""),
    ("dev/vhost-vdpa-0", ""),
    ("dev/infiniband/rdma_cm", ""),
    ("dev/infiniband/uverbs0", ""),
    ("dev/uio0", ""),
    ("dev/uio1", ""),
    ("run/linkspan/x", ""),
    ("usr/bin/vdpa", ""),
    ("usr/bin/qemu-system-x86_64", ""),
    ("usr/bin/qemu-system-aarch64", ""),
    ("sys/bus/vdpa/drivers/vhost_vdpa/x", ""),
    ("sys/bus/vdpa/devices/blk0/x", ""),
    (
        "sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/x",
        "",
    ),
    ("sys/kernel/iommu_groups/12/x", ""),
    ("sys/class/infiniband/siw0/x", ""),
    (
        "sys/bus/vmbus/devices/a/class_id",
        "{34d14be3-dee4-41c8-9ae7-6b174977c192}\n",
    ),
    (
        "sys/bus/vmbus/devices/a/device_id",
        "{eb765408-105f-49b6-b4aa-c123b64d17d4}\n",
    ),
    (
        "sys/bus/vmbus/devices/a/uio/uio0/maps/map0/size",
        "0xa000\n",
    ),
    (
        "sys/bus/vmbus/devices/b/class_id",
        "{57164f39-9115-4e78-ab55-382f3bd5422d}\n",
    ),
    (
        "sys/bus/vmbus/devices/b/device_id",
        "{fd149e91-82e0-4a7d-afa6-2a4166cbd7c0}\n",
    ),
    (
        "sys/bus/vmbus/devices/b/uio/uio1/maps/map0/size",
        "0xa000\n",
    ),
];

const LINKS: &[(&str, &str)] = &[(
    "sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/iommu_group",
    "../../../../kernel/iommu_groups/12",
)];
