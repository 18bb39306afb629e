//! Programs and libraries of others that links need, or meet.

use crate::doctor::Finding;
use crate::doctor::machine::Machine;

/// What brings the libraries of rdma-core, for a program that can load them.
const RDMA_CORE: &str = match cfg!(target_feature = "crt-static") {
    true => "the program of the Debian package, or of `cargo install`, which is not static",
    false => "apt-get install libibverbs1 librdmacm1",
};

/// The first version of QEMU with the device vfio-user-pci.
const VFIO_USER: (u32, u32) = (10, 1);

/// The Debian package of QEMU for guests with this machine's processor.
const QEMU_PACKAGE: &str = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" => "qemu-system-x86",
    b"aarch64" => "qemu-system-arm",
    _ => "qemu-system",
};

pub(super) fn qemu(machine: &Machine) -> Finding {
    let name = Machine::qemu();
    let install = || format!("apt-get install {QEMU_PACKAGE}");
    match (machine.program(&name), &machine.tried.qemu) {
        (Some(_), Some(said)) => Finding::works(said),
        (Some(file), None) => Finding::lacks(format!("{} does not run", file.display()), install()),
        (None, _) => Finding::lacks(format!("{name} is not in PATH"), install()),
    }
}

pub(super) fn vfio_user(machine: &Machine) -> Finding {
    let mend =
        "QEMU 10.1 or later (Debian: from trixie-backports); other monitors have clients too";
    let Some(said) = &machine.tried.qemu else {
        return Finding::lacks("there is no QEMU", mend);
    };
    match version(said) {
        Some(version) if version >= VFIO_USER => Finding::works(said),
        _ => Finding::lacks(said, mend),
    }
}

/// The first two numbers of the version.
fn version(said: &str) -> Option<(u32, u32)> {
    let (_, rest) = said.split_once("version ")?;
    let mut numbers = rest.split(|it: char| !it.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn vdpa_tool(machine: &Machine) -> Finding {
    match machine.program("vdpa") {
        Some(file) => Finding::works(file.display().to_string()),
        None => Finding::lacks("it is not in PATH", "apt-get install iproute2"),
    }
}

pub(super) fn rdma_core(machine: &Machine) -> Finding {
    match &machine.tried.rdma_core {
        Ok(()) => Finding::works("libibverbs and librdmacm"),
        Err(why) => Finding::lacks(why, RDMA_CORE),
    }
}

pub(super) fn network(machine: &Machine) -> Finding {
    if machine.has("/proc/self/net/tcp") {
        return Finding::works("TCP");
    }
    Finding::lacks("there is no TCP", "a kernel with CONFIG_INET")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_is_said() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(version(debian), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 11.1.3"), Some((11, 1)));
        assert_eq!(version("QEMU emulator version 11"), None);
        assert_eq!(version("version "), None);
    }
}
