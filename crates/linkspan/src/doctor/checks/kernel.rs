//! What the kernel grants every process, or withholds: features and limits.

use crate::doctor::Finding;
use crate::doctor::machine::{Capability, Limit, Machine};

/// The oldest kernel on which all features of a link can be: restrictions of io_uring.
const KERNEL_MIN: (u32, u32) = (5, 10);

/// Descriptors of a link with many queues: three for each ring, and memory regions.
const FILES_WANTED: u64 = 4096;

/// Bytes that a small guest has, whose memory a device pins as a whole.
const LOCKED_WANTED: u64 = 1 << 30;

pub(super) fn version(machine: &Machine) -> Finding {
    let mend = "a kernel of Linux 5.10 or later";
    match machine.kernel() {
        Some(version) if version >= KERNEL_MIN => {
            Finding::works(format!("Linux {}.{}", version.0, version.1))
        }
        Some((major, minor)) => Finding::lacks(format!("Linux {major}.{minor}"), mend),
        None => Finding::lacks("its version cannot be read", "mount -t proc proc /proc"),
    }
}

pub(super) fn proc(machine: &Machine) -> Finding {
    if machine.has("/proc/self/status") && machine.has("/proc/self/limits") {
        return Finding::works("mounted");
    }
    Finding::lacks("it is not mounted", "mount -t proc proc /proc")
}

pub(super) fn open_files(machine: &Machine) -> Finding {
    let mend = format!("ulimit -n {FILES_WANTED}, LimitNOFILE={FILES_WANTED} of systemd");
    match machine.limit("Max open files") {
        None => Finding::lacks("the limit cannot be read", mend),
        Some(limit) => enough(limit, FILES_WANTED, "files", mend),
    }
}

pub(super) fn locked_memory(machine: &Machine) -> Finding {
    if machine.is_capable(Capability::IpcLock) {
        return Finding::works("no limit for who has CAP_IPC_LOCK");
    }
    let mend = "ulimit -l unlimited, LimitMEMLOCK=infinity of systemd";
    match machine.limit("Max locked memory") {
        None => Finding::lacks("the limit cannot be read", mend),
        Some(limit) => enough(limit, LOCKED_WANTED, "bytes", mend.to_owned()),
    }
}

fn enough(limit: Limit, wanted: u64, unit: &str, mend: String) -> Finding {
    let Some(soft) = limit.soft else {
        return Finding::works("no limit");
    };
    let found = format!("{soft} {unit}");
    if soft >= wanted {
        return Finding::works(found);
    }
    let raise = limit.hard.is_some_and(|hard| hard < wanted);
    let mend = if raise {
        format!("{mend}; as root, since the hard limit is lower")
    } else {
        mend
    };
    Finding::lacks(found, mend)
}

pub(super) fn memory_files(machine: &Machine) -> Finding {
    match &machine.tried.memory_file {
        Ok(()) => Finding::works("memfd_create, with seals"),
        Err(why) => Finding::lacks(
            why,
            "a kernel with CONFIG_MEMFD_CREATE, and a filter of system calls that lets memfd_create pass",
        ),
    }
}

pub(super) fn landlock(machine: &Machine) -> Finding {
    match machine.tried.landlock {
        Some(version) => Finding::works(format!("version {version}")),
        None => Finding::lacks(
            "this kernel has none, or it is switched off",
            "lsm=landlock,… on the kernel's command line; a kernel with CONFIG_SECURITY_LANDLOCK",
        ),
    }
}

pub(super) fn io_uring(machine: &Machine) -> Finding {
    let Err(why) = &machine.tried.io_uring else {
        return Finding::works("restricted rings");
    };
    match machine.number("/proc/sys/kernel/io_uring_disabled") {
        Some(1..) => Finding::lacks(why, "sysctl kernel.io_uring_disabled=0"),
        Some(0) => Finding::lacks(
            why,
            "a filter of system calls that lets io_uring pass (of a container: its seccomp profile)",
        ),
        None => Finding::lacks(why, "a kernel with CONFIG_IO_URING"),
    }
}

pub(super) fn huge_pages(machine: &Machine) -> Finding {
    let text = machine.text("/proc/meminfo").unwrap_or_default();
    let value = |name: &str| {
        let mut lines = text.lines();
        let rest = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (Some(free), Some(kib)) = (value("HugePages_Free"), value("Hugepagesize")) else {
        return Finding::lacks("this kernel has none", "a kernel with CONFIG_HUGETLBFS");
    };
    let found = format!("{free} free, of {kib} KiB");
    if free == 0 {
        return Finding::lacks(found, "sysctl vm.nr_hugepages=512");
    }
    if !machine.has("/dev/hugepages") {
        let mend = "mkdir /dev/hugepages; mount -t hugetlbfs nodev /dev/hugepages";
        return Finding::lacks(format!("{found}, and no place where they are files"), mend);
    }
    Finding::works(found)
}
