//! What a process gives up before it talks to its peer: new privileges, and all files
//! but those that it names (Landlock, where the kernel has it).
//!
//! A program opens what it needs, then [`enter`]s. What is open stays usable. Threads
//! that exist already would stay outside, so there may be none.

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::null;

/// What may still be done with a file, or with everything below a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Files are read, folders are listed.
    Read,
    /// The same, and files that exist are written to: devices.
    ReadWrite,
    /// Files and folders are made, written, given another name in their folder, and
    /// removed. No file is read.
    Fill,
    /// Files are read and written, and devices controlled (ioctl).
    Device,
    /// Files and sockets are made beside each other, read, written, and removed. Folders
    /// stay as they are.
    Beside,
    /// Everything that is no device and no program.
    All,
}

/// Something that may still be done; all else is refused with `EACCES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A file or a folder that exists.
    pub path: PathBuf,
    /// What is allowed there.
    pub access: Access,
}

impl Rule {
    /// This access to this path.
    pub fn new(path: impl Into<PathBuf>, access: Access) -> Self {
        let path = path.into();
        Self { path, access }
    }
}

/// How far the kernel went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Files are restricted, by this version of Landlock.
    Landlock(i32),
    /// The kernel has no Landlock, or it is switched off: new privileges alone are gone.
    PrivilegesOnly,
}

/// Why the process is not restricted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Other threads would stay outside.
    #[error("{0} threads run already, and all but one would stay outside of the sandbox")]
    Threads(usize),
    /// A path cannot be named.
    #[error("cannot allow {}: {source}", .path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system says of it.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it answered.
        source: io::Error,
    },
}

// include/uapi/linux/landlock.h
const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

/// Rights that a file has which is no folder.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;

/// Each version's own rights on files, from version 1 on: the first 13, moving between
/// folders, truncating, nothing, ioctls on devices.
const FS: [u64; 5] = [(1 << 13) - 1, 1 << 13, TRUNCATE, 0, IOCTL_DEV];

/// From version 4 on: listening and connecting by TCP.
const NET: u64 = 0b11;

/// From version 6 on: abstract Unix sockets and signals of others.
const SCOPES: u64 = 0b11;

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;

/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: u32 = 1;

/// `struct landlock_ruleset_attr`. Kernels that know less of it want the rest zero.
#[repr(C)]
struct Handled {
    fs: u64,
    net: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

impl Handled {
    /// All that a kernel with this version can refuse.
    fn of(version: i32, network: Network) -> Self {
        let known = usize::try_from(version).unwrap_or(0).min(FS.len());
        let without = version >= 4 && network == Network::Without;
        Self {
            fs: FS[..known].iter().fold(0, |all, rights| all | rights),
            net: if without { NET } else { 0 },
            scopes: if version >= 6 { SCOPES } else { 0 },
        }
    }
}

impl Access {
    const fn rights(self) -> u64 {
        match self {
            Self::Read => READ_FILE | READ_DIR,
            Self::ReadWrite => READ_FILE | READ_DIR | WRITE_FILE,
            Self::Fill => WRITE_FILE | READ_DIR | MAKE_DIR | MAKE_REG | REMOVE_DIR | REMOVE_FILE,
            Self::Device => Self::ReadWrite.rights() | TRUNCATE | IOCTL_DEV,
            Self::Beside => {
                let made = MAKE_REG | MAKE_SOCK | REMOVE_FILE;
                Self::ReadWrite.rights() | TRUNCATE | made
            }
            Self::All => {
                let made = MAKE_FIFO | MAKE_SYM | MAKE_DIR | REMOVE_DIR;
                Self::Beside.rights() | made | REFER
            }
        }
    }
}

/// Whether new connections of TCP are still made and taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// They are.
    With,
    /// They are not.
    Without,
}

/// Gives up new privileges, and every file but `rules`; executing programs, the network if
/// that is said, and signals to others as well where the kernel can do that. For good, and
/// for all threads and programs that this process starts from now on.
///
/// # Errors
/// [`Error`]. New privileges may be gone then, and nothing else.
pub fn enter(rules: &[Rule], network: Network) -> Result<Sandbox, Error> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Error::Threads(threads));
    }
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| system("give up new privileges")(errno.into()))?;
    let Some(version) = landlock().map_err(system("ask for Landlock"))? else {
        return Ok(Sandbox::PrivilegesOnly);
    };
    let handled = Handled::of(version, network);
    let set = create(&handled).map_err(system("make a set of rules"))?;
    for rule in rules {
        let rights = rule.access.rights() & handled.fs;
        allow(&set, &rule.path, rights).map_err(|source| Error::Path {
            path: rule.path.clone(),
            source,
        })?;
    }
    restrict(&set).map_err(system("restrict this process"))?;
    Ok(Sandbox::Landlock(version))
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// The version of Landlock; `None` where the kernel has none, or it is switched off.
///
/// # Errors
/// What else the kernel answers.
pub fn landlock() -> io::Result<Option<i32>> {
    let none: *const Handled = null();
    // SAFETY: the version is asked for without a structure.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    match positive(version) {
        Ok(version) => Ok(Some(version)),
        Err(error) => match Errno::from_io_error(&error) {
            // Not built, switched off, or hidden by a filter.
            Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
            _ => Err(error),
        },
    }
}

fn create(handled: &Handled) -> io::Result<OwnedFd> {
    acquire(Site::Fd)?;
    let size = size_of::<Handled>();
    let handled: *const Handled = handled;
    // SAFETY: the kernel reads the structure, of which it has the size.
    let set = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, handled, size, 0) };
    let set = positive(set)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(set) })
}

fn allow(set: &OwnedFd, path: &Path, rights: u64) -> io::Result<()> {
    acquire(Site::Fd)?;
    let parent = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let folder = FileType::from_raw_mode(fstat(&parent)?.st_mode) == FileType::Directory;
    let beneath = PathBeneath {
        allowed: if folder { rights } else { rights & OF_FILES },
        parent: parent.as_raw_fd(),
    };
    let (set, rule) = (set.as_raw_fd(), &raw const beneath);
    // SAFETY: the kernel reads the structure, which the number of the rule says what it is.
    let done = unsafe { libc::syscall(libc::SYS_landlock_add_rule, set, PATH_BENEATH, rule, 0) };
    positive(done).map(drop)
}

fn restrict(set: &OwnedFd) -> io::Result<()> {
    // SAFETY: numbers alone.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, set.as_raw_fd(), 0) };
    positive(done).map(drop)
}

fn positive(result: libc::c_long) -> io::Result<i32> {
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, in_child, in_child_alone};
    use std::fs::File;
    use std::net::TcpListener;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;

    fn denied<T>(done: io::Result<T>) {
        let error = done.err().expect("it is refused");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }

    fn landlocked(rules: &[Rule]) -> bool {
        match enter(rules, Network::Without).unwrap() {
            Sandbox::Landlock(version) => {
                assert!(version > 0);
                true
            }
            Sandbox::PrivilegesOnly => {
                println!("SKIP: no Landlock here");
                false
            }
        }
    }

    #[test]
    fn what_is_not_named_is_refused() {
        in_child_alone("sandbox::tests::what_is_not_named_is_refused", || {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for name in ["read", "device", "fill", "other"] {
                fs::create_dir(path(name)).unwrap();
                fs::write(path(name).join("file"), name).unwrap();
            }
            let open = File::options().append(true).open(path("other/file"));
            let rules = [
                Rule::new(path("read"), Access::Read),
                Rule::new(path("device"), Access::ReadWrite),
                Rule::new(path("fill"), Access::Fill),
            ];
            if !landlocked(&rules) {
                return;
            }
            let written = |name: &str| File::options().write(true).open(path(name));
            assert_eq!(fs::read(path("read/file")).unwrap(), b"read");
            denied(written("read/file"));
            written("device/file").unwrap();
            denied(fs::write(path("device/new"), ""));
            fs::create_dir(path("fill/new")).unwrap();
            denied(fs::write(path("fill/file"), "what was there is cut off"));
            fs::write(path("fill/new/another"), "").unwrap();
            fs::rename(path("fill/new/another"), path("fill/new/name")).unwrap();
            fs::remove_file(path("fill/new/name")).unwrap();
            fs::remove_dir(path("fill/new")).unwrap();
            denied(File::open(path("fill/file")));
            denied(fs::read(path("other/file")));
            denied(fs::write(path("other/new"), ""));
            denied(Command::new("/bin/true").spawn());
            // What was open stays so.
            io::Write::write_all(&mut open.unwrap(), b"more").unwrap();
        })
        .assert_success();
    }

    #[test]
    fn sockets_are_made_and_taken_away_where_that_is_said() {
        let test = "sandbox::tests::sockets_are_made_and_taken_away_where_that_is_said";
        in_child_alone(test, || {
            let dir = tempfile::tempdir().unwrap();
            let path = |name: &str| dir.path().join(name);
            for name in ["beside", "all", "other"] {
                fs::create_dir(path(name)).unwrap();
            }
            fs::write(path("disk"), "disk").unwrap();
            let rules = [
                Rule::new(path("beside"), Access::Beside),
                Rule::new(path("all"), Access::All),
                Rule::new(path("disk"), Access::Device),
                Rule::new("/dev/null", Access::Device),
            ];
            let Sandbox::Landlock(_) = enter(&rules, Network::With).unwrap() else {
                println!("SKIP: no Landlock here");
                return;
            };
            UnixListener::bind(path("beside/socket")).unwrap();
            UnixStream::connect(path("beside/socket")).unwrap_err();
            fs::remove_file(path("beside/socket")).unwrap();
            fs::write(path("beside/log"), "").unwrap();
            denied(fs::create_dir(path("beside/folder")));
            fs::create_dir(path("all/folder")).unwrap();
            fs::write(path("all/file"), "").unwrap();
            symlink("file", path("all/folder/link")).unwrap();
            // From one folder to another.
            match fs::rename(path("all/file"), path("all/folder/file")) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
                renamed => renamed.unwrap(),
            }
            fs::write(path("disk"), "cut off and written").unwrap();
            fs::write("/dev/null", "").unwrap();
            denied(UnixListener::bind(path("other/socket")));
            denied(fs::read("/etc/passwd"));
            TcpListener::bind("127.0.0.1:0").unwrap();
        })
        .assert_success();
    }

    #[test]
    fn connections_of_tcp_are_refused_where_that_is_said() {
        let test = "sandbox::tests::connections_of_tcp_are_refused_where_that_is_said";
        in_child_alone(test, || match enter(&[], Network::Without).unwrap() {
            Sandbox::Landlock(4..) => denied(TcpListener::bind("127.0.0.1:0")),
            _ => println!("SKIP: no Landlock for networks here"),
        })
        .assert_success();
    }

    #[test]
    fn new_privileges_are_gone_for_good() {
        in_child_alone("sandbox::tests::new_privileges_are_gone_for_good", || {
            let status = || fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status().contains("NoNewPrivs:\t0"));
            let everything = [Rule::new("/", Access::Read)];
            landlocked(&everything);
            assert!(status().contains("NoNewPrivs:\t1"));
            // A second time restricts further.
            if landlocked(&[]) {
                denied(File::open("/proc/self/status"));
            }
        })
        .assert_success();
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        in_child_alone(
            "sandbox::tests::a_path_that_is_not_there_is_named",
            || match enter(
                &[Rule::new("/nonexistent/path", Access::Read)],
                Network::With,
            ) {
                Err(Error::Path { path, .. }) => {
                    assert_eq!(path, Path::new("/nonexistent/path"));
                }
                Ok(Sandbox::PrivilegesOnly) => {}
                other => panic!("{other:?}"),
            },
        )
        .assert_success();
    }

    #[test]
    fn threads_that_would_stay_outside_are_told() {
        let name = "sandbox::tests::threads_that_would_stay_outside_are_told";
        in_child(name, || {
            let (send, wait) = std::sync::mpsc::channel::<()>();
            let other = std::thread::spawn(move || wait.recv().is_err());
            assert!(matches!(
                enter(&[], Network::With),
                Err(Error::Threads(2..))
            ));
            drop(send);
            assert!(other.join().unwrap());
        })
        .assert_success();
    }

    #[test]
    fn each_step_fails_in_turn_and_restricts_nothing() {
        let name = "sandbox::tests::each_step_fails_in_turn_and_restricts_nothing";
        in_child(name, || {
            if landlock().unwrap().is_none() {
                println!("SKIP: no Landlock here");
                return;
            }
            let rules = ["/proc", "/tmp"].map(|path| Rule::new(path, Access::Read));
            // The set of rules, and each rule's path.
            for nth in 1..=4 {
                alone(|| {
                    let sweep = linkspan_mem::fault::arm(nth);
                    let entered = enter(&rules, Network::With);
                    assert_eq!(entered.is_err(), sweep.fired());
                    assert_eq!(sweep.fired(), nth < 4);
                    let passwd = File::open("/etc/passwd");
                    assert_eq!(passwd.is_ok(), sweep.fired());
                });
            }
        })
        .assert_success();
    }

    #[test]
    fn each_version_has_its_own_rights() {
        let all = |version| {
            let handled = Handled::of(version, Network::Without);
            (handled.fs, handled.net, handled.scopes)
        };
        assert_eq!(all(1), (0x1fff, 0, 0));
        assert_eq!(all(3), (0x7fff, 0, 0));
        assert_eq!(all(4), (0x7fff, 3, 0));
        assert_eq!(all(5), (0xffff, 3, 0));
        assert_eq!(all(6), (0xffff, 3, 3));
        assert_eq!(all(99), (0xffff, 3, 3));
    }
}
