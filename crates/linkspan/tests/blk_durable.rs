//! When `linkspan blk` says that something is durable: its calls, seen by strace, which
//! also lets one of them fail.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::settled;
use linkspan_testkit::{Disk, FrontEnd, Io, Options};
use rustix::process::{Pid, Signal, kill_process};

/// VIRTIO_BLK_F_FLUSH.
const FLUSH: u64 = 1 << 9;

const OK: u8 = 0;
const IOERR: u8 = 1;

/// The program under strace.
struct Traced {
    folder: tempfile::TempDir,
    strace: Child,
}

impl Traced {
    /// Serves a disk; `None` after saying that there is no strace.
    fn start(test: &str, how: &[&str], options: &[&str]) -> Option<Self> {
        if Command::new("strace").arg("-V").output().is_err() {
            use std::io::Write as _;
            // Not by `eprintln`, which the test harness captures.
            let line = format!("SKIP {test}: there is no strace");
            drop(writeln!(std::io::stderr().lock(), "{line}"));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("disk"), vec![7; 1 << 20]).unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "trace"]).args(how);
        strace.arg(env!("CARGO_BIN_EXE_linkspan"));
        strace.args(["blk", "--socket-path", "socket", "--image", "disk"]);
        strace.args(options).current_dir(folder.path());
        strace.stderr(Stdio::null()).stdin(Stdio::null());
        let strace = strace.spawn().unwrap();
        let traced = Self { folder, strace };
        assert!(settled(
            || UnixStream::connect(traced.path("socket")).is_ok()
        ));
        Some(traced)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self, without: u64) -> Disk {
        let options = Options {
            without,
            ..Options::default()
        };
        let front = FrontEnd::connect(&self.path("socket")).unwrap();
        Disk::bring_up(front, &options, 1, 64).unwrap()
    }

    /// Ends the program: whether it said that all went well, and what it called.
    fn end(mut self) -> (bool, String) {
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        // The program's number is the first word of what strace writes.
        let trace = self.path("trace");
        assert!(settled(|| text(&trace).contains('\n')));
        let id = text(&trace);
        let id = id.split_whitespace().next().unwrap().parse().unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        let status = self.strace.wait().unwrap();
        (status.success(), text(&trace))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

#[test]
fn without_flush_each_write_is_written_through() {
    let test = "without_flush_each_write_is_written_through";
    let calls = ["-e", "trace=execve,pwritev2"];
    for (without, through) in [(0, false), (FLUSH, true)] {
        let Some(traced) = Traced::start(test, &calls, &["--io", "threads"]) else {
            return;
        };
        let mut disk = traced.connect(without);
        disk.rings[0].write(8, &[9; 4096]);
        disk.shut_down();
        let image = fs::read(traced.path("disk")).unwrap();
        assert_eq!(image[4096..8192], [9; 4096]);
        let (ok, trace) = traced.end();
        assert!(ok, "{trace}");
        let writes = trace.lines().filter(|line| line.contains("pwritev2("));
        let writes: Vec<_> = writes.collect();
        assert!(!writes.is_empty(), "{trace}");
        for write in writes {
            assert_eq!(write.contains("RWF_DSYNC"), through, "{write}");
        }
    }
}

/// Linux forgets a page that it could not write, and the next sync says that all is well.
#[test]
fn a_sync_that_failed_stays_failed_for_the_driver() {
    let test = "a_sync_that_failed_stays_failed_for_the_driver";
    let inject = [
        "-e",
        "trace=execve,fsync,fdatasync",
        "-e",
        "inject=fsync,fdatasync:error=EIO:when=1",
    ];
    // A call that is injected has a number that no list of a sandbox has.
    let options = ["--io", "threads", "--sandbox", "off"];
    let Some(traced) = Traced::start(test, &inject, &options) else {
        return;
    };
    let mut disk = traced.connect(0);
    let ring = &mut disk.rings[0];
    ring.write(0, &[9; 512]);
    assert_eq!(ring.request(Io::Flush).status, IOERR);
    assert_eq!(ring.request(Io::Flush).status, IOERR);
    // What can be read is read.
    assert_eq!(ring.read(8, 512), [7; 512]);
    disk.shut_down();
    // Nor does the next driver hear that its data is safe.
    let mut disk = traced.connect(0);
    assert_eq!(disk.rings[0].request(Io::Flush).status, IOERR);
    disk.shut_down();
    let (ok, trace) = traced.end();
    assert!(!ok, "it ends as if all were well: {trace}");
    assert_eq!(trace.matches("(INJECTED)").count(), 1, "{trace}");
}

#[test]
fn a_flush_is_a_sync() {
    let calls = ["-e", "trace=execve,fsync,fdatasync"];
    let Some(traced) = Traced::start("a_flush_is_a_sync", &calls, &["--io", "threads"]) else {
        return;
    };
    let mut disk = traced.connect(0);
    disk.rings[0].write(0, &[9; 512]);
    assert_eq!(disk.rings[0].request(Io::Flush).status, OK);
    let trace = fs::read_to_string(traced.path("trace")).unwrap();
    assert!(trace.contains("sync("), "{trace}");
    disk.shut_down();
    assert!(traced.end().0);
}
