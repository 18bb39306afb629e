//! What is known of a file, as the kernel has it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use linkspan_smb2::create::attributes;

use super::super::share::{Kind, Meta};

/// From 1601 to 1970, in 100 ns.
const EPOCH: u64 = 116_444_736_000_000_000;

/// 100 ns in a second.
const TICKS: u64 = 10_000_000;

/// A time of a server; 1970 if it is none.
pub(super) fn time(ticks: u64) -> SystemTime {
    let span = |ticks: u64| {
        let nanos = u32::try_from(ticks % TICKS * 100).unwrap_or(0);
        Duration::new(ticks / TICKS, nanos)
    };
    let time = match ticks.checked_sub(EPOCH) {
        Some(after) => UNIX_EPOCH.checked_add(span(after)),
        None if ticks == 0 => None,
        None => UNIX_EPOCH.checked_sub(span(EPOCH - ticks)),
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// A time as servers have it; 0, which changes nothing, if they cannot.
pub(super) fn ticks(time: SystemTime) -> u64 {
    let span = |span: Duration| u64::try_from(span.as_nanos() / 100).ok();
    let ticks = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => span(after).and_then(|after| EPOCH.checked_add(after)),
        Err(before) => span(before.duration()).and_then(|before| EPOCH.checked_sub(before)),
    };
    // The two highest values mean something else (MS-FSCC 2.4.7).
    ticks
        .filter(|ticks| i64::try_from(*ticks).is_ok())
        .unwrap_or(0)
}

pub(super) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Folder => FileType::Directory,
        Kind::Link => FileType::Symlink,
    }
}

/// Of a node.
///
/// # Errors
/// The size is one that no file has.
pub(super) fn attr(number: u64, meta: &Meta, owner: (u32, u32)) -> Result<FileAttr, Errno> {
    if i64::try_from(meta.size).is_err() {
        tracing::warn!("the server says that a file has {} bytes", meta.size);
        return Err(Errno::EOVERFLOW);
    }
    let read_only = meta.attributes & attributes::READONLY != 0;
    let perm = match meta.kind {
        Kind::File if read_only => 0o555,
        Kind::Link => 0o777,
        _ => 0o755,
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size: meta.size,
        blocks: meta.allocated.div_ceil(512),
        atime: time(meta.accessed),
        mtime: time(meta.written),
        ctime: time(meta.changed),
        crtime: time(meta.created),
        kind: kind(meta.kind),
        perm,
        nlink: 1,
        uid: owner.0,
        gid: owner.1,
        rdev: 0,
        blksize: 1 << 20,
        flags: 0,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_that_cannot_be_are_none() {
        assert_eq!(time(0), UNIX_EPOCH);
        assert_eq!(time(EPOCH), UNIX_EPOCH);
        assert_eq!(
            time(EPOCH + 15_000_000),
            UNIX_EPOCH + Duration::from_millis(1500)
        );
        assert!(time(u64::MAX) > UNIX_EPOCH);
        assert_eq!(ticks(time(u64::MAX)), 0);
        assert_eq!(
            ticks(UNIX_EPOCH - Duration::from_secs(500 * 366 * 86_400)),
            0
        );
    }

    proptest! {
        #[test]
        fn times_come_back(now in 1..u64::MAX / 2) {
            prop_assert_eq!(ticks(time(now)), now);
        }
    }
}
