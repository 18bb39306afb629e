//! Files that outlive the process that writes them, and belong to one at a time.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use linkspan_mem::fault::Site;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, open};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::acquire;

/// Opens the file at `path` for this process alone and gives it `len` bytes at least;
/// it is made, with its folder, if it is not there, and whether it was is the second
/// value. The bytes of before stay, and new ones are zero.
///
/// # Errors
/// `WouldBlock` when another process has it, `InvalidInput` when it is no file of
/// ours, or what the system reports.
pub fn open_kept(path: &Path, len: u64) -> io::Result<(File, bool)> {
    acquire(Site::Fd)?;
    acquire(Site::Alloc)?;
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = open(path, flags | OFlags::NONBLOCK, Mode::RUSR | Mode::WUSR)?;
    let stat = fstat(&file)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !regular || stat.st_uid != geteuid().as_raw() || stat.st_nlink > 1 {
        let text = format!("{} is no file of our own", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => return Err(error.into()),
    }
    let before = u64::try_from(stat.st_size).unwrap_or(0);
    if before < len
        && let Err(error) = ftruncate(&file, len)
    {
        if before == 0 {
            // Nobody else has it, since it is locked.
            std::fs::remove_file(path)?;
        }
        return Err(error.into());
    }
    Ok((file.into(), before > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn content_stays_and_a_second_process_is_kept_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/state");
        let (file, was_there) = open_kept(&path, 4096).unwrap();
        assert!(!was_there);
        file.write_all_at(b"kept", 100).unwrap();
        let busy = open_kept(&path, 4096).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
        drop(file);
        let (file, was_there) = open_kept(&path, 8192).unwrap();
        assert!(was_there);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 100).unwrap();
        assert_eq!(&bytes, b"kept");
        assert_eq!(file.metadata().unwrap().len(), 8192);
        drop(file);
        let (file, _) = open_kept(&path, 10).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
    }

    #[test]
    fn what_others_could_put_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, b"x").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(open_kept(&link, 4096).is_err());
        let second = folder.path().join("second");
        std::fs::hard_link(&target, &second).unwrap();
        let error = open_kept(&second, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(open_kept(folder.path(), 4096).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"x");
    }
}
