//! The guest's first file system: what the demo puts into it.

use std::fs;
use std::path::{Path, PathBuf};

use linkspan_guest::{Archive, busybox};

use super::Error;
use super::kernel::{Kernel, Module};

const INIT: &str = include_str!("../../../../lab/guest/init.sh");
const LEASE: &str = include_str!("../../../../lab/guest/lease.sh");

/// Modules that a demo guest needs, in the order of first use: for its disk, its
/// network card, and the sockets by which it asks for a lease.
const WANTED_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "af_packet"];

/// The same for one with a screen, and a tablet that its viewers have.
pub const WITH_SCREEN: [&str; 7] = [
    "virtio_pci",
    "virtio_gpu",
    "virtio_input",
    "evdev",
    "virtio_blk",
    "virtio_net",
    "af_packet",
];

/// A file to put into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFile {
    /// Path from the root, without a leading slash.
    pub path: String,
    /// The content.
    pub data: Vec<u8>,
}

/// Makes the archive of a guest: busybox, init, the modules for its devices, and
/// `extra` files, which can be programs.
///
/// # Errors
/// [`Error::Busybox`] where there is no static busybox, [`Error::Module`] where
/// the kernel's module is missing, [`Error::Unpack`] where it cannot be unpacked.
pub fn build(kernel: &Kernel, extra: &[GuestFile]) -> Result<Vec<u8>, Error> {
    build_with(kernel, &WANTED_MODULES, extra)
}

/// The same with other modules.
///
/// # Errors
/// As [`build`].
pub fn build_with(
    kernel: &Kernel,
    modules: &[&str],
    extra: &[GuestFile],
) -> Result<Vec<u8>, Error> {
    let (busybox_path, busybox) = find_busybox()?;
    let modules = kernel.modules_for(modules, &busybox_path)?;
    let packed = pack(&busybox, &modules, extra);
    // Memory takes every byte, and nothing here is 4 GiB large.
    Ok(packed.expect("an archive in memory can be written"))
}

fn pack(busybox: &[u8], modules: &[Module], extra: &[GuestFile]) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for dir in ["bin", "dev", "proc", "sys", "tmp", "modules", "check"] {
        archive.dir(dir)?;
    }
    // Without /dev/console the first process has no standard output.
    archive.char_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.file("lease", 0o755, LEASE.as_bytes())?;
    for (index, module) in modules.iter().enumerate() {
        let path = format!("modules/{index:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.image)?;
    }
    for file in extra {
        archive.file(&file.path, 0o755, &file.data)?;
    }
    archive.finish()
}

/// The first static busybox of the usual places, and its bytes.
///
/// # Errors
/// [`Error::Busybox`] where there is none.
pub fn find_busybox() -> Result<(PathBuf, Vec<u8>), Error> {
    busybox::find().map_err(|found_dynamic| Error::Busybox { found_dynamic })
}

/// Writes `archive` to `path` for QEMU's `-initrd`.
///
/// # Errors
/// [`Error::File`] where it cannot be written.
pub fn store(archive: &[u8], path: &Path) -> Result<(), Error> {
    fs::write(path, archive).map_err(Error::file("write", path))
}
