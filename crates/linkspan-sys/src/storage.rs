//! What the file system or device behind an image can do, and giving back or
//! zeroing a part of it.

use rustix::fs::{AtFlags, FallocateFlags, FileType, StatxFlags, fallocate, fstat, fstatfs, statx};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;

/// File systems whose files are memory (`statfs(2)`): tmpfs, ramfs, hugetlbfs.
const IN_MEMORY: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// Whether reads and writes of this file never wait for a device, because the
/// file is memory.
///
/// # Errors
/// What `fstatfs(2)` reports.
pub fn in_memory(file: impl AsFd) -> io::Result<bool> {
    let mode = fstat(&file)?.st_mode;
    let kind = fstatfs(&file)?.f_type.cast_unsigned();
    // The name of a device is in memory, the device is not.
    Ok(FileType::from_raw_mode(mode) == FileType::RegularFile && IN_MEMORY.contains(&kind))
}

/// Whether the file system knows how to read only what is cached
/// ([`ReadWriteFlags::NOWAIT`]).
///
/// # Errors
/// What reading a byte reports for another reason.
pub fn reads_without_wait(file: impl AsFd) -> io::Result<bool> {
    let mut byte = [0];
    loop {
        let target = &mut [IoSliceMut::new(&mut byte)];
        return match preadv2(&file, target, 0, ReadWriteFlags::NOWAIT) {
            Ok(_) | Err(Errno::AGAIN) => Ok(true),
            // With O_DIRECT one byte is not aligned.
            Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

/// What reads and writes past the page cache (`O_DIRECT`) must be multiples of,
/// in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Addresses of memory.
    pub memory: u32,
    /// Offsets in the file, and sizes of each piece of memory.
    pub offset: u32,
}

/// The alignment that a file opened with `O_DIRECT` asks for; `None` where the
/// kernel or the file system does not say (`STATX_DIOALIGN`, Linux 6.1).
///
/// # Errors
/// `Unsupported` if the file cannot be read past the cache at all.
pub fn direct_alignment(file: impl AsFd) -> io::Result<Option<Alignment>> {
    let found = match statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(found) => found,
        Err(Errno::NOSYS) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(None);
    }
    let alignment = Alignment {
        memory: found.stx_dio_mem_align,
        offset: found.stx_dio_offset_align,
    };
    if !alignment.memory.is_power_of_two() || !alignment.offset.is_power_of_two() {
        let text = "this file cannot be read or written past the page cache";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(Some(alignment))
}

/// What becomes of the bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// They read as zeroes and take no room.
    Hole,
    /// They read as zeroes and keep their room.
    Zeroes,
}

/// Changes a range of a file or of a block device without writing it; `false`
/// where that cannot be done there.
///
/// # Errors
/// What `fallocate(2)` reports: `EIO`, `ENOSPC`, and `EINVAL` for a range of a
/// block device that is not aligned to its blocks.
pub fn change_range(file: impl AsFd, change: Range, offset: u64, len: u64) -> io::Result<bool> {
    let mode = match change {
        Range::Hole => FallocateFlags::PUNCH_HOLE,
        Range::Zeroes => FallocateFlags::ZERO_RANGE,
    };
    loop {
        return match fallocate(&file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memfd::{self, Sealing};
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn memory_files_are_told_from_others() {
        let memory = memfd::create("test", 4096, Sealing::Open).unwrap();
        assert!(in_memory(&memory).unwrap());
        // Behind names in memory, but elsewhere themselves.
        for other in ["/proc/self/maps", "/dev/zero"] {
            assert!(!in_memory(File::open(other).unwrap()).unwrap(), "{other}");
        }
        // Where they do not know the flag, reads are plain.
        assert!(reads_without_wait(&memory).is_ok());
    }

    #[test]
    fn a_range_becomes_zeroes_and_the_rest_and_the_size_stay() {
        for change in [Range::Hole, Range::Zeroes] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 65536]).unwrap();
            let before = file.metadata().unwrap().blocks();
            if !change_range(&file, change, 4096, 1 << 20).unwrap() {
                println!("SKIP {change:?}: the file system here has no such thing");
                continue;
            }
            let mut bytes = vec![1; 65536];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 65536);
            assert!(bytes[..4096].iter().all(|byte| *byte == 7));
            assert!(bytes[4096..].iter().all(|byte| *byte == 0));
            if change == Range::Hole {
                assert!(file.metadata().unwrap().blocks() < before);
            }
        }
    }

    #[test]
    fn alignment_is_what_reads_then_need() {
        let file = tempfile::tempfile().unwrap();
        match direct_alignment(&file) {
            Ok(Some(alignment)) => assert!(alignment.offset >= 512 && alignment.memory >= 1),
            Ok(None) => println!("SKIP: the file system here does not say"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
    }
}
