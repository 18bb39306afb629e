//! Files and block devices as images of disks: reads and writes that go
//! directly to shared memory.

use linkspan_mem::{RegionTable, SharedSlice, Span};
use rustix::fs::{FileType, fdatasync, fstat, fsync, ioctl_blksszget};
use rustix::ioctl::{Getter, ioctl, opcode};
use std::ffi::c_int;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub use rustix::io::ReadWriteFlags;

/// The most slices that one call takes (`UIO_MAXIOV`); more than these are left
/// to the next call, as a short transfer.
const MAX_SLICES: usize = 1024;

/// `BLKGETSIZE64`: the size of a block device in bytes. The kernel declares it
/// with `size_t` and always writes 64 bits.
const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);

/// Some bytes of shared memory that the kernel reads or writes for us, without
/// a Rust reference to them: a peer changes them meanwhile.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoVec<'a>(libc::iovec, PhantomData<&'a ()>);

impl IoVec<'_> {
    /// `len` bytes from `start`.
    ///
    /// # Safety
    /// The bytes must be valid for reads and writes for `'a`, and no reference
    /// of Rust may cover any of them for as long.
    #[must_use]
    pub unsafe fn new(start: *mut u8, len: usize) -> Self {
        let iovec = libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        };
        Self(iovec, PhantomData)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether there is nothing to read or write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }
}

impl std::fmt::Debug for IoVec<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:p}+{:#x}", self.0.iov_base, self.0.iov_len)
    }
}

// SAFETY: an address and a length; whoever made it vouched for the bytes, and
// they belong to no thread.
unsafe impl Send for IoVec<'_> {}
// SAFETY: as above.
unsafe impl Sync for IoVec<'_> {}

/// Reads from byte `offset` of a file into `slices` and returns how many bytes
/// came; less than asked for at the end of the file.
///
/// # Errors
/// `WouldBlock` with [`ReadWriteFlags::NOWAIT`] if the bytes are not cached, and
/// `Unsupported` if the file system does not know that flag; `EFAULT` if a peer
/// took the memory away; what `preadv2(2)` reports.
pub fn read_vectored_at(
    fd: BorrowedFd<'_>,
    slices: &[IoVec<'_>],
    offset: u64,
    flags: ReadWriteFlags,
) -> io::Result<usize> {
    transfer(slices, offset, |first, count, offset| {
        // SAFETY: the slices vouch for their bytes; `IoVec` has the layout of
        // the kernel's structure, and `count` of them are there.
        unsafe {
            libc::preadv2(
                fd.as_raw_fd(),
                first,
                count,
                offset,
                flags.bits().cast_signed(),
            )
        }
    })
}

/// Writes `slices` to a file from byte `offset` on and returns how many bytes
/// were written.
///
/// # Errors
/// As [`read_vectored_at`], and `ENOSPC` or `EIO` where the file system fails.
pub fn write_vectored_at(
    fd: BorrowedFd<'_>,
    slices: &[IoVec<'_>],
    offset: u64,
    flags: ReadWriteFlags,
) -> io::Result<usize> {
    transfer(slices, offset, |first, count, offset| {
        // SAFETY: as in `read_vectored_at`.
        unsafe {
            libc::pwritev2(
                fd.as_raw_fd(),
                first,
                count,
                offset,
                flags.bits().cast_signed(),
            )
        }
    })
}

/// Fills `place` with what a file has from byte `offset` on.
///
/// # Errors
/// `UnexpectedEof` if the file ends before; as [`read_vectored_at`].
pub fn read_exact_at(fd: BorrowedFd<'_>, place: SharedSlice<'_>, offset: u64) -> io::Result<()> {
    let short = io::ErrorKind::UnexpectedEof;
    whole(place, offset, short, |slice, offset| {
        read_vectored_at(fd, &[slice], offset, ReadWriteFlags::empty())
    })
}

/// Writes all of `place` to a file, from byte `offset` on.
///
/// # Errors
/// `WriteZero` if the file takes no more; as [`write_vectored_at`].
pub fn write_all_at(fd: BorrowedFd<'_>, place: SharedSlice<'_>, offset: u64) -> io::Result<()> {
    let short = io::ErrorKind::WriteZero;
    whole(place, offset, short, |slice, offset| {
        write_vectored_at(fd, &[slice], offset, ReadWriteFlags::empty())
    })
}

fn whole(
    place: SharedSlice<'_>,
    offset: u64,
    short: io::ErrorKind,
    mut call: impl FnMut(IoVec<'_>, u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < place.len() {
        let rest = place.part(done, place.len());
        // SAFETY: the borrow keeps the bytes mapped, and nothing refers to shared memory.
        let slice = unsafe { IoVec::new(rest.as_ptr(), rest.len()) };
        match call(slice, offset.saturating_add(done as u64))? {
            0 => return Err(short.into()),
            moved => done += moved,
        }
    }
    Ok(())
}

/// Spans of shared memory, in order, and the bytes of a file that they stand for.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    /// What the spans point into.
    pub table: &'a RegionTable,
    /// Where the bytes are in memory.
    pub spans: &'a [Span],
    /// Where the first of them is in the file.
    pub offset: u64,
}

impl Transfer<'_> {
    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span.len())).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of the spans that are left when the first `done` are done, in
    /// slices for one call.
    pub(crate) fn rest(&self, done: u64) -> impl Iterator<Item = libc::iovec> {
        let (spans, skip) = behind(self.spans, done);
        spans.iter().enumerate().map(move |(index, span)| {
            let part = span.part(if index == 0 { skip } else { 0 }, span.len());
            let bytes = self.table.slice(part);
            libc::iovec {
                iov_base: bytes.as_ptr().cast(),
                iov_len: bytes.len(),
            }
        })
    }
}

/// Reads what is left of a transfer, of which `done` bytes are done, and counts
/// them there. Ends early only at the end of the file.
///
/// # Errors
/// As [`read_vectored_at`]; with [`ReadWriteFlags::NOWAIT`], `WouldBlock` also
/// when only some of the bytes were there.
pub fn read_spans(
    fd: BorrowedFd<'_>,
    transfer: &Transfer<'_>,
    done: &mut u64,
    flags: ReadWriteFlags,
) -> io::Result<()> {
    let nowait = flags.contains(ReadWriteFlags::NOWAIT);
    transfer_spans(transfer, done, nowait, |slices, offset| {
        read_vectored_at(fd, slices, offset, flags)
    })
}

/// Writes what is left of a transfer, of which `done` bytes are done, and counts
/// them there. Ends early only where the file takes no more.
///
/// # Errors
/// As [`write_vectored_at`].
pub fn write_spans(
    fd: BorrowedFd<'_>,
    transfer: &Transfer<'_>,
    done: &mut u64,
    flags: ReadWriteFlags,
) -> io::Result<()> {
    transfer_spans(transfer, done, false, |slices, offset| {
        write_vectored_at(fd, slices, offset, flags)
    })
}

/// Slices that are put together at a time: enough for almost every request, and
/// little enough to stand on the stack.
const SLICES_AT_ONCE: usize = 64;

fn transfer_spans(
    transfer: &Transfer<'_>,
    done: &mut u64,
    short_is_wait: bool,
    mut call: impl FnMut(&[IoVec<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    loop {
        // SAFETY: no bytes.
        let mut slices = [unsafe { IoVec::new(std::ptr::null_mut(), 0) }; SLICES_AT_ONCE];
        let mut count = 0;
        let mut wanted = 0;
        for (slice, bytes) in slices.iter_mut().zip(transfer.rest(*done)) {
            // SAFETY: the table keeps the bytes mapped for longer than this
            // function runs, and no reference to them exists anywhere.
            *slice = unsafe { IoVec::new(bytes.iov_base.cast(), bytes.iov_len) };
            wanted += bytes.iov_len;
            count += 1;
        }
        if wanted == 0 {
            return Ok(());
        }
        let offset = transfer.offset.saturating_add(*done);
        let moved = call(&slices[..count], offset)?;
        *done += moved as u64;
        if moved == 0 {
            return Ok(());
        }
        if moved < wanted && short_is_wait {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
}

/// The spans that are left when the first `done` bytes are done, and how many
/// bytes of the first of them are.
fn behind(mut spans: &[Span], done: u64) -> (&[Span], u32) {
    let mut left = done;
    while let [first, rest @ ..] = spans {
        let len = u64::from(first.len());
        if left < len {
            break;
        }
        left -= len;
        spans = rest;
    }
    // Below the length of the first span left, or zero without one.
    (spans, u32::try_from(left).unwrap_or(0))
}

/// Makes everything that was written durable, the file's attributes included.
///
/// # Errors
/// `EIO` above all: what was written may be lost, and a second call that
/// succeeds does not bring it back.
pub fn sync_all(fd: impl AsFd) -> io::Result<()> {
    Ok(fsync(fd)?)
}

/// Makes the data that was written durable, and what is needed to find it.
///
/// # Errors
/// As [`sync_all`].
pub fn sync_data(fd: impl AsFd) -> io::Result<()> {
    Ok(fdatasync(fd)?)
}

/// What a disk image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes of a logical block, if it is a block device.
    pub logical_block: Option<u32>,
}

/// The size of a regular file or a block device.
///
/// # Errors
/// `InvalidInput` for any other kind of file; what `fstat(2)` and the device report.
pub fn extent(fd: impl AsFd) -> io::Result<Extent> {
    let fd = fd.as_fd();
    let stat = fstat(fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Extent {
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            logical_block: None,
        }),
        FileType::BlockDevice => {
            // SAFETY: the kernel writes 64 bits, for which the getter has room.
            let bytes = unsafe { ioctl(fd, Getter::<BLKGETSIZE64, u64>::new())? };
            let logical_block = Some(ioctl_blksszget(fd)?);
            Ok(Extent {
                bytes,
                logical_block,
            })
        }
        other => {
            let text = format!("{other:?} cannot be a disk: give a regular file or a block device");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

fn transfer(
    slices: &[IoVec<'_>],
    offset: u64,
    call: impl Fn(*const libc::iovec, c_int, libc::off_t) -> isize,
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = c_int::try_from(slices.len().min(MAX_SLICES)).expect("1024 at most");
    loop {
        match usize::try_from(call(slices.as_ptr().cast(), count, offset)) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PeerMemory;
    use crate::memfd::{self, Sealing};
    use std::fs::File;
    use std::os::fd::OwnedFd;

    const NONE: ReadWriteFlags = ReadWriteFlags::empty();

    fn shared(len: u64) -> (OwnedFd, crate::Mapping) {
        let fd = memfd::create("test", len, Sealing::Open).unwrap();
        let mapping = PeerMemory::check(fd.try_clone().unwrap()).unwrap();
        (fd, mapping.map(0, len, None).unwrap())
    }

    fn slice(mapping: &crate::Mapping, at: usize, len: usize) -> IoVec<'_> {
        assert!(at + len <= mapping.len());
        // SAFETY: within the mapping, which is borrowed; nothing refers to it.
        unsafe { IoVec::new(mapping.base().add(at).as_ptr(), len) }
    }

    #[test]
    fn bytes_go_through_shared_memory_both_ways() {
        let (memory, mapping) = shared(8192);
        let file = tempfile::tempfile().unwrap();
        rustix::io::pwrite(&file, b"0123456789", 0).unwrap();
        let parts = [
            slice(&mapping, 100, 3),
            slice(&mapping, 0, 0),
            slice(&mapping, 5000, 4),
        ];
        assert_eq!(read_vectored_at(file.as_fd(), &parts, 2, NONE).unwrap(), 7);
        let mut seen = [0; 4];
        rustix::io::pread(&memory, &mut seen, 5000).unwrap();
        assert_eq!(&seen, b"5678");
        assert_eq!(read_vectored_at(file.as_fd(), &parts, 8, NONE).unwrap(), 2);
        assert_eq!(read_vectored_at(file.as_fd(), &parts, 10, NONE).unwrap(), 0);

        let back = [slice(&mapping, 5000, 4)];
        assert_eq!(
            write_vectored_at(file.as_fd(), &back, 1 << 20, NONE).unwrap(),
            4
        );
        rustix::io::pread(&file, &mut seen, 1 << 20).unwrap();
        assert_eq!(&seen, b"5678");
        sync_data(&file).unwrap();
        sync_all(&file).unwrap();
    }

    #[test]
    fn too_many_slices_are_a_short_transfer() {
        let (_memory, mapping) = shared(8192);
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let parts: Vec<IoVec<'_>> = (0..2000).map(|at| slice(&mapping, at, 1)).collect();
        assert_eq!(
            read_vectored_at(file.as_fd(), &parts, 0, NONE).unwrap(),
            MAX_SLICES
        );
    }

    #[test]
    fn offset_past_the_end_of_all_files_is_an_error() {
        let (_memory, mapping) = shared(4096);
        let file = tempfile::tempfile().unwrap();
        let parts = [slice(&mapping, 0, 1)];
        assert!(read_vectored_at(file.as_fd(), &parts, u64::MAX, NONE).is_err());
        assert!(write_vectored_at(file.as_fd(), &parts, i64::MAX.cast_unsigned(), NONE).is_err());
    }

    #[test]
    fn memory_that_a_peer_took_away_is_an_error() {
        let (memory, mapping) = shared(4096);
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        rustix::fs::ftruncate(&memory, 0).unwrap();
        let error = read_vectored_at(file.as_fd(), &[slice(&mapping, 0, 4096)], 0, NONE);
        assert_eq!(error.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn extent_tells_files_from_devices_and_the_rest() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(12345).unwrap();
        let expected = Extent {
            bytes: 12345,
            logical_block: None,
        };
        assert_eq!(extent(&file).unwrap(), expected);
        assert!(extent(File::open("/dev/zero").unwrap()).is_err());
        assert!(extent(File::open("/").unwrap()).is_err());
    }

    #[test]
    fn block_device_tells_its_size() {
        let Some((path, sectors)) = any_block_device() else {
            eprintln!("SKIP a block device: none can be opened here");
            return;
        };
        let found = extent(File::open(path).unwrap()).unwrap();
        assert_eq!(found.bytes, sectors * 512);
        assert!(found.logical_block.unwrap() >= 512);
    }

    /// A device that can be opened, and its size in the 512-byte sectors of sysfs.
    fn any_block_device() -> Option<(std::path::PathBuf, u64)> {
        std::fs::read_dir("/sys/block").ok()?.find_map(|entry| {
            let entry = entry.ok()?;
            let path = std::path::Path::new("/dev").join(entry.file_name());
            File::open(&path).ok()?;
            let size = std::fs::read_to_string(entry.path().join("size")).ok()?;
            let sectors = size.trim().parse().ok().filter(|&sectors| sectors > 0)?;
            Some((path, sectors))
        })
    }
}
