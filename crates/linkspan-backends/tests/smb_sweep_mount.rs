//! Each acquisition of a mount fails in turn: it is not there, or what is asked of it is an error
//! or done, and nothing is left. One test, since a sweep is the process's.

mod smb_files;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use linkspan_backends::smb::{Mount, MountOptions, Settings};
use linkspan_mem::fault;
use linkspan_testkit::census::settled;
use linkspan_testkit::samba::Samba;
use smb_files::{bytes, open};

/// A share that is mounted and used.
fn used(samba: &Samba, at: &Path, data: &[u8]) -> io::Result<()> {
    let share = open(samba, &Settings::default()).map_err(io::Error::other)?;
    let options = MountOptions {
        time_limit: Some(Duration::from_secs(60)),
        ..MountOptions::default()
    };
    let mount = Mount::start(share, "", at, &options, |_| ()).map_err(io::Error::other)?;
    let file = at.join("file");
    fs::write(&file, data)?;
    assert!(fs::read(&file)? == data);
    fs::remove_file(&file)?;
    mount.unmount()?;
    mount.join()
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_step_of_a_mount_fails_in_turn_and_leaves_nothing() {
    let fuse = File::options().read(true).write(true).open("/dev/fuse");
    if fuse.is_err() || !rustix::process::geteuid().is_root() {
        let why = "SKIP a mount by FUSE: it takes root and /dev/fuse";
        return drop(writeln!(io::stderr(), "{why} ({fuse:?})"));
    }
    drop(fuse);
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let data = bytes(100_000);
    let at = tempfile::tempdir().unwrap();
    let before = descriptors();
    let (mut failed, mut fired) = (0, true);
    let mut nth = 0;
    while fired {
        nth += 1;
        let sweep = fault::arm(nth);
        let result = used(&samba, at.path(), &data);
        fired = sweep.fired();
        drop(sweep);
        // The thread that reads from the kernel ends by itself.
        let mut same = || descriptors() == before;
        let same = (0..3).any(|_| settled(&mut same));
        assert!(same, "step {nth}: {result:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(at.path().to_str().unwrap()), "{mounts}");
        failed += usize::from(result.is_err());
        assert!(fired || result.is_ok(), "step {nth}: {result:?}");
    }
    assert!(failed > 0, "no step failed");
}
