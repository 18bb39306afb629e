//! The guest's first file system: a cpio archive written here, so that the demo
//! needs no cpio program and no root to make device nodes.
//!
//! Format "newc" as in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`:
//! a header of hexadecimal fields, the name, the data, each padded to 4 bytes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use super::kernel::Kernel;

const INIT: &str = include_str!("../../../../lab/guest/init.sh");
const LEASE: &str = include_str!("../../../../lab/guest/lease.sh");

/// Modules that a demo guest needs, in the order of first use: for its disk, its
/// network card, and the sockets by which it asks for a lease.
const WANTED_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "af_packet"];

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

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
    let (busybox_path, busybox) = find_busybox()?;
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "modules", "check"] {
        archive.dir(dir);
    }
    // Without /dev/console the first process has no standard output.
    archive.char_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("lease", 0o755, LEASE.as_bytes());
    let modules = kernel.modules_for(&WANTED_MODULES, &busybox_path)?;
    for (index, module) in modules.iter().enumerate() {
        let path = format!("modules/{index:02}-{}.ko", module.name);
        archive.file(&path, 0o644, &module.image);
    }
    for file in extra {
        archive.file(&file.path, 0o755, &file.data);
    }
    Ok(archive.finish())
}

/// The first static busybox of the usual places, and its bytes.
///
/// # Errors
/// [`Error::Busybox`] where there is none.
pub fn find_busybox() -> Result<(PathBuf, Vec<u8>), Error> {
    let mut found_dynamic = None;
    for path in ["/bin/busybox", "/usr/bin/busybox"] {
        let Ok(image) = fs::read(path) else { continue };
        if is_static_elf(&image) {
            return Ok((PathBuf::from(path), image));
        }
        found_dynamic = Some(PathBuf::from(path));
    }
    Err(Error::Busybox { found_dynamic })
}

/// Whether this is a 64-bit little-endian ELF program that asks for no loader
/// (it has no PT_INTERP segment): there are no libraries in the guest.
fn is_static_elf(image: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let table = || -> Option<bool> {
        if image.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let u16_at = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
        let start = u64::from_le_bytes(image.get(32..40)?.try_into().ok()?);
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        let start = usize::try_from(start).ok()?;
        for index in 0..count {
            let at = start.checked_add(index.checked_mul(size)?)?;
            let kind = u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?);
            if kind == PT_INTERP {
                return Some(false);
            }
        }
        Some(true)
    };
    table().unwrap_or(false)
}

/// A newc archive that grows in memory.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    dirs: BTreeSet<String>,
}

impl Archive {
    /// A folder, and those that it is in.
    fn dir(&mut self, path: &str) {
        if !self.dirs.contains(path) {
            self.parents(path);
            self.entry(path, S_IFDIR | 0o755, (0, 0), &[]);
            self.dirs.insert(path.to_owned());
        }
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent);
        }
    }

    fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.parents(path);
        self.entry(path, S_IFREG | mode, (0, 0), data);
    }

    fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, S_IFCHR | 0o600, (major, minor), &[]);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.entries += 1;
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        // Inode, mode, uid, gid, links, mtime, size, device of the archive's
        // file system (2), device of the node (2), length of the name, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            u32::try_from(data.len()).expect("a guest file is below 4 GiB"),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).expect("paths are short"),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Writes `archive` to `path` for QEMU's `-initrd`.
///
/// # Errors
/// [`Error::File`] where it cannot be written.
pub fn store(archive: &[u8], path: &Path) -> Result<(), Error> {
    fs::write(path, archive).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, device of the node, data.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back.
    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_bytes) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(bytes[110..110 + name_bytes - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_bytes - 1], 0, "the name ends in NUL");
            let data_at = (110 + name_bytes).next_multiple_of(4);
            let data = bytes[data_at..data_at + size].to_vec();
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, device, data));
            bytes = &bytes[(data_at + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn an_archive_reads_back_as_it_was_written() {
        let mut archive = Archive::default();
        archive.char_device("dev/console", 5, 1);
        for size in 0..9 {
            archive.file(&format!("usr/bin/{size}"), 0o755, &vec![0xa5; size]);
        }
        let read = entries(&archive.finish());
        assert_eq!(read[0], ("dev/console".into(), 0o020_600, (5, 1), vec![]));
        // The folders of a file come before it, and once.
        assert_eq!(read[1], ("usr".into(), 0o040_755, (0, 0), vec![]));
        assert_eq!(read[2], ("usr/bin".into(), 0o040_755, (0, 0), vec![]));
        for size in 0..9 {
            let name = format!("usr/bin/{size}");
            assert_eq!(read[3 + size], (name, 0o100_755, (0, 0), vec![0xa5; size]));
        }
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let this_test = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static_elf(&this_test));
    }

    #[test]
    fn what_is_no_elf_or_is_cut_off_is_not_static() {
        let whole = elf_with_segments(&[1, 1]);
        assert!(is_static_elf(&whole));
        assert!(!is_static_elf(&elf_with_segments(&[1, 3])));
        for end in 0..whole.len() - 53 {
            assert!(!is_static_elf(&whole[..end]), "cut at {end}");
        }
        assert!(!is_static_elf(b"#!/bin/sh\n"));
    }

    fn elf_with_segments(kinds: &[u32]) -> Vec<u8> {
        let mut image = vec![0; 64];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[32..40].copy_from_slice(&64u64.to_le_bytes());
        image[54..56].copy_from_slice(&56u16.to_le_bytes());
        image[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_le_bytes());
        for kind in kinds {
            let mut segment = [0; 56];
            segment[..4].copy_from_slice(&kind.to_le_bytes());
            image.extend_from_slice(&segment);
        }
        image
    }
}
