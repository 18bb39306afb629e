//! What several tests need: a child process for those whose subject is the
//! whole process, and a file that a hostile peer would send.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::ptr::null;

const MARK: &str = "LINKSPAN_SYS_TEST_CHILD";

/// How the child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    output: String,
}

impl Ended {
    pub(crate) fn assert_success(&self) {
        assert!(self.status.success(), "{}\n{}", self.status, self.output);
    }

    pub(crate) fn assert_signal(&self, signal: i32) {
        assert_eq!(
            self.status.signal(),
            Some(signal),
            "{}\n{}",
            self.status,
            self.output
        );
    }
}

/// Runs `body` in a child process. `test` is the path of the calling test,
/// which the child runs in turn: there `body` is called and the process ends.
pub(crate) fn in_child(test: &str, body: impl FnOnce()) -> Ended {
    if std::env::var_os(MARK).is_some() {
        // It is ignored by whoever was started by `nohup`.
        // SAFETY: the default is no function.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        body();
        std::process::exit(0);
    }
    let program = std::env::current_exe().expect("a test program has a path");
    // What a child leaves behind, as one does that may not remove it, goes with this.
    let folder = tempfile::tempdir().expect("room for a folder");
    let output = Command::new(program)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the test program can be started again");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output_text = text(&output.stdout) + &text(&output.stderr);
    assert!(
        !output_text.contains("running 0 tests"),
        "no test is called {test}"
    );
    for line in output_text.lines().filter(|line| line.starts_with("SKIP")) {
        eprintln!("{line}");
    }
    Ended {
        status: output.status,
        output: output_text,
    }
}

/// As [`in_child`], in a process that has one thread alone; the test harness has two.
pub(crate) fn in_child_alone(test: &str, body: impl FnOnce()) -> Ended {
    in_child(test, || alone(body))
}

/// Runs `body` in a process that has one thread alone. Only for [`in_child`].
pub(crate) fn alone(body: impl FnOnce()) {
    // SAFETY: the other thread of the test harness waits for this one and holds no lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        std::process::exit(i32::from(done.is_err()));
    }
    let mut status = -1;
    // SAFETY: the status is ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
}

/// A file whose server has answered its opening and answers nothing else: what
/// a hostile peer can send us.
pub(crate) struct DeadFile {
    // A program that does nothing but hold the server's end for a minute. If
    // this process held it, a test that hangs could not even be killed: a dying
    // process closes files in order, and would wait for itself.
    keeper: Child,
    pub(crate) file: OwnedFd,
}

impl DeadFile {
    /// Whether the file system is still there, so that calls on it do block.
    pub(crate) fn still_dead(&mut self) -> bool {
        matches!(self.keeper.try_wait(), Ok(None))
    }
}

impl Drop for DeadFile {
    fn drop(&mut self) {
        // Ends the file system and wakes all who wait for it.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A file on a FUSE file system that is seen by no other process. `None`, with
/// a word on why, where that cannot be had.
///
/// Only for [`in_child`]: a process that holds such a file cannot start others,
/// because their copy of it is closed, which waits for the server.
pub(crate) fn dead_fuse_file() -> Option<DeadFile> {
    // A thread of its own, since it leaves our view of the file system.
    std::thread::spawn(make_dead_file)
        .join()
        .expect("the thread does not panic")
        .inspect_err(|error| eprintln!("SKIP a dead file server: cannot mount FUSE: {error}"))
        .ok()
}

fn make_dead_file() -> io::Result<DeadFile> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let point = tempfile::NamedTempFile::new()?;
    mount_privately(&device, point.path())?;
    let keeper = Command::new("sleep")
        .arg("60")
        .stdin(device.try_clone()?)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || serve_opening(&device));
        let file = File::options().read(true).write(true).open(point.path());
        server.join().expect("the server does not panic")?;
        unmount(point.path())?;
        Ok(DeadFile {
            keeper,
            file: file?.into(),
        })
    })
}

fn mount_privately(device: &File, point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    let number = device.as_fd().as_raw_fd();
    let options = format!("fd={number},rootmode=100600,user_id=0,group_id=0");
    let options = CString::new(options)?;
    // SAFETY: only this thread leaves the common view; all strings end with a
    // zero byte and live through the calls.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(null(), c"/".as_ptr(), null(), private, null()))?;
        let (kind, data) = (c"fuse".as_ptr(), options.as_ptr().cast());
        check(libc::mount(kind, point.as_ptr(), kind, 0, data))
    }
}

/// Takes the file system out of the tree; the open file keeps it alive.
fn unmount(point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: the string ends with a zero byte and lives through the call.
    check(unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) })
}

/// Answers FUSE_INIT and the first FUSE_OPEN.
fn serve_opening(mut device: &File) -> io::Result<()> {
    const FUSE_OPEN: u32 = 14;
    const FUSE_INIT: u32 = 26;
    let mut request = vec![0; 1 << 16];
    loop {
        let len = device.read(&mut request)?;
        assert!(len >= 16, "a request of {len} bytes");
        let opcode = u32::from_ne_bytes(request[4..8].try_into().expect("4 bytes"));
        let mut reply = Vec::from([0; 8]);
        reply.extend_from_slice(&request[8..16]);
        match opcode {
            // Version 7.31, write size 4096, and zero for everything else.
            FUSE_INIT => {
                let mut body = [0_u32; 16];
                (body[0], body[1], body[5]) = (7, 31, 4096);
                reply.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
            }
            FUSE_OPEN => reply.extend([0; 16]),
            _ => continue,
        }
        let len = u32::try_from(reply.len()).expect("a short reply");
        reply[..4].copy_from_slice(&len.to_ne_bytes());
        device.write_all(&reply)?;
        if opcode == FUSE_OPEN {
            return Ok(());
        }
    }
}

fn check(status: i32) -> io::Result<()> {
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
