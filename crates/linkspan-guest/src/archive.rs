//! A cpio archive for the kernel's first file system, written here, so that
//! nobody needs a cpio program, or root to make device nodes.
//!
//! Format "newc" as in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`:
//! a header of hexadecimal fields, the name, the data, each padded to 4 bytes.

use std::collections::HashSet;
use std::io::{self, Write};

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Padding of what is no multiple of 4.
const ZEROES: [u8; 3] = [0; 3];

/// An archive that is written as it grows.
///
/// Paths go from the root, without a leading slash. The folders above an entry
/// are made where they are missing.
#[derive(Debug)]
pub struct Archive<W> {
    to: W,
    bytes: u64,
    entries: u32,
    dirs: HashSet<String>,
}

impl<W: Write> Archive<W> {
    /// An archive that is written to `to`.
    pub fn new(to: W) -> Self {
        Self {
            to,
            bytes: 0,
            entries: 0,
            dirs: HashSet::new(),
        }
    }

    /// A folder.
    ///
    /// # Errors
    /// Those of writing.
    pub fn dir(&mut self, path: &str) -> io::Result<()> {
        if !self.dirs.insert(path.to_owned()) {
            return Ok(());
        }
        self.entry(path, S_IFDIR | 0o755, (0, 0), &[])
    }

    /// A file with these permissions.
    ///
    /// # Errors
    /// Those of writing; one of 4 GiB and more is refused.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | permissions, (0, 0), data)
    }

    /// A link to another path.
    ///
    /// # Errors
    /// Those of writing.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    ///
    /// # Errors
    /// Those of writing.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, S_IFCHR | 0o600, (major, minor), &[])
    }

    /// Ends the archive and gives back what it was written to.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent)?;
        }
        self.entries += 1;
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "4 GiB or more");
        // Inode, mode, uid, gid, links, mtime, size, device of the archive's
        // file system (2), device of the node (2), length of the name, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            u32::try_from(data.len()).map_err(too_long)?,
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).map_err(too_long)?,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(path);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(data)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.to.write_all(&ZEROES[..padding])?;
        self.bytes += (bytes.len() + padding) as u64;
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
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
        let mut archive = Archive::new(Vec::new());
        archive.dir("bin").unwrap();
        archive.char_device("dev/console", 5, 1).unwrap();
        archive.symlink("bin/a", "b").unwrap();
        for size in 0..9 {
            let path = format!("bin/{size}");
            archive.file(&path, 0o755, &vec![0xa5; size]).unwrap();
        }
        let bytes = archive.bytes();
        let written = archive.finish().unwrap();
        let read = entries(&written);
        assert_eq!(
            bytes + 124,
            written.len() as u64,
            "the trailer is 124 bytes"
        );
        let want: [Entry; 4] = [
            ("bin".into(), 0o040_755, (0, 0), vec![]),
            ("dev".into(), 0o040_755, (0, 0), vec![]),
            ("dev/console".into(), 0o020_600, (5, 1), vec![]),
            ("bin/a".into(), 0o120_777, (0, 0), b"b".to_vec()),
        ];
        assert_eq!(read[..4], want);
        for size in 0..9 {
            let want = (format!("bin/{size}"), 0o100_755, (0, 0), vec![0xa5; size]);
            assert_eq!(read[4 + size], want);
        }
    }

    #[test]
    fn missing_folders_are_made_once_and_from_the_top() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b/c", 0o644, b"1").unwrap();
        archive.file("a/b/d", 0o644, b"2").unwrap();
        archive.dir("a/b").unwrap();
        let names: Vec<String> = entries(&archive.finish().unwrap())
            .into_iter()
            .map(|entry| entry.0)
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d"]);
    }
}
