//! Bytes of a file, read back.

use std::os::fd::{AsFd, BorrowedFd};

use linkspan_vmbus::link::DIGEST_LEN;
use rustix::io::{Errno, pread};
use sha2::{Digest as _, Sha256};

/// Bytes that are read at a time: they stay in the processor's cache.
const STEP: usize = 64 << 10;

/// What was read of a slice of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Bytes: fewer than asked for at the end of the file.
    pub(super) len: u32,
    /// Of these.
    pub(super) sha256: [u8; DIGEST_LEN],
}

/// Reads `len` bytes from `offset` on, or what there is of them.
pub(super) fn read(file: BorrowedFd<'_>, offset: u64, len: u32) -> Result<Slice, Errno> {
    let mut buffer = vec![0; STEP.min(len as usize)];
    let mut hash = Sha256::new();
    let mut done = 0;
    while done < len {
        let wanted = buffer.len().min((len - done) as usize);
        match pread(
            file.as_fd(),
            &mut buffer[..wanted],
            offset + u64::from(done),
        ) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                done += u32::try_from(count).expect("no more than was asked for");
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(Slice {
        len: done,
        sha256: hash.finalize().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_what_is_there_of_it() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        rustix::io::pwrite(&file, &bytes, 0).unwrap();
        for (offset, len) in [(0, 0), (0, 1), (3, 150_000), (199_999, 7), (200_000, 1)] {
            let begin = usize::try_from(offset).unwrap();
            let end = bytes.len().min(begin + len as usize);
            let want = Slice {
                len: u32::try_from(end - begin).unwrap(),
                sha256: Sha256::digest(&bytes[begin..end]).into(),
            };
            assert_eq!(read(file.as_fd(), offset, len), Ok(want));
        }
        // An offset that no file has.
        assert_eq!(read(file.as_fd(), u64::MAX - 8, 8), Err(Errno::INVAL));
    }
}
