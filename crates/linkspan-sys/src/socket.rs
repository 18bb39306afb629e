//! Unix stream sockets that carry descriptors: listening, connecting, and
//! taking over one that we were started with.
//!
//! All sockets are used without blocking: who finds nothing to read or no
//! connection to accept gets `WouldBlock` and waits where it waits for the rest
//! ([`crate::poll`]).

mod inherited;
mod stream;

pub(crate) use inherited::inherit_any;
pub use inherited::{Inherited, inherit};
pub use stream::{ControlTruncated, PeerCredentials, Received, Stream};

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::fs::{
    CWD, FileType, Mode, OFlags, RenameFlags, Stat, link, lstat, open, renameat_with, unlink,
};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 16;

/// The longest path of a socket, in bytes.
const ADDRESS_MAX: usize = 107;

/// How many first names of sockets are tried, and how long one is at most, with a slash
/// before it.
const NAMES: u32 = 999;
const NAME_MAX: usize = "/.socket.4294967295.999".len();

/// A socket that peers connect to. One that we bound removes its path when it
/// is dropped, unless somebody else has put something there since.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: Option<BoundPath>,
}

impl Listener {
    /// Listens at `path`. Whoever finds a socket there can connect to it: it is bound
    /// under another name first, and gets this one once it listens. The kernel's list
    /// of sockets goes on to show the first name.
    ///
    /// A socket that is there already and that nobody listens on is what a
    /// killed process left behind: it is replaced. Of two processes that start at
    /// the same path one gets it.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens at `path` or if it is not a socket;
    /// `InvalidInput` if it is longer than 107 bytes; what `bind(2)`, `listen(2)` and
    /// `link(2)` report.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = new_socket()?;
        // Its end takes the first name away, whether the socket has another by then or not.
        let first = bind_beside(&socket, path)?;
        net::listen(&socket, BACKLOG)?;
        match link(&first.path, path) {
            Err(Errno::EXIST) => {
                remove_abandoned(path, &address)?;
                link(&first.path, path).map_err(|errno| match errno {
                    Errno::EXIST => in_use(path, "has just got a listener"),
                    errno => errno.into(),
                })?;
            }
            done => done?,
        }
        let path = Some(BoundPath {
            path: path.to_owned(),
            inode: first.inode,
        });
        Ok(Self { socket, path })
    }

    /// Takes the next connection.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; what `accept4(2)` reports.
    pub fn accept(&self) -> io::Result<Stream> {
        acquire(Site::Fd)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match net::accept_with(&self.socket, flags) {
                Ok(socket) => return Ok(Stream::of(socket)),
                // The peer gave up before we looked: as if it had never come.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// A socket that another process listened on, and gave to this one. No path goes away
    /// with it until it is [owned](Self::own).
    ///
    /// # Errors
    /// `InvalidInput` if it is no Unix stream socket that listens; the descriptor is then
    /// closed by the [`reaper`](crate::reaper).
    pub fn handed(fd: OwnedFd) -> io::Result<Self> {
        let listens = socket_type(&fd) == Ok(SocketType::STREAM)
            && socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && socket_acceptconn(&fd) == Ok(true);
        if !listens {
            crate::reaper::dispose(fd);
            let text = "the descriptor is not a Unix stream socket that listens";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self {
            socket: fd,
            path: None,
        })
    }

    /// From now on this path goes away with the listener if it is still the socket that it
    /// was, which `inode` tells: what [`inode`](Self::inode) said in the process before.
    pub fn own(&mut self, path: &Path, inode: (u64, u64)) {
        self.path = Some(BoundPath {
            path: path.to_owned(),
            inode,
        });
    }

    /// Leaves the path where it is: another process has this socket now.
    pub fn leave(mut self) {
        if let Some(path) = &mut self.path {
            // No file has it, so that nothing is removed.
            path.inode = (0, 0);
        }
    }

    /// The device and the number of what goes away with this listener, if anything does.
    #[must_use]
    pub fn inode(&self) -> Option<(u64, u64)> {
        self.path.as_ref().map(|bound| bound.inode)
    }

    /// The path that goes away with this listener; `None` if it was inherited.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_ref().map(|bound| bound.path.as_path())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Stream {
    /// Connects to the socket at `path`, without waiting.
    ///
    /// # Errors
    /// `ConnectionRefused` or `NotFound` if nobody listens there, `WouldBlock`
    /// if the listener has too many connections waiting: try again later.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = new_socket()?;
        net::connect(&socket, &address)?;
        Ok(Self::of(socket))
    }

    /// Two ends of one connection. Either may be given to a peer, which finds it
    /// as most expect a socket: blocking, though no use of ours ever waits.
    ///
    /// # Errors
    /// What `socketpair(2)` reports, `EMFILE` above all.
    pub fn pair() -> io::Result<(Self, Self)> {
        acquire(Site::Fd)?;
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self::of(one), Self::of(other)))
    }
}

/// A path that we bound, told from a later one of the same name by its inode.
#[derive(Debug)]
struct BoundPath {
    path: PathBuf,
    inode: (u64, u64),
}

impl BoundPath {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: inode(&lstat(path)?),
        })
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if lstat(&self.path).is_ok_and(|now| inode(&now) == self.inode) {
            // Nothing better can be done here if it fails, and the next
            // listener replaces an abandoned socket anyway.
            let _ = unlink(&self.path);
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    acquire(Site::Fd)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Binds a socket to a name in the folder of `path` that no other has.
fn bind_beside(socket: &OwnedFd, path: &Path) -> io::Result<BoundPath> {
    let mut folder = path.parent().unwrap_or(path);
    if folder.as_os_str().is_empty() {
        folder = Path::new(".");
    }
    // The folder's path may leave no room for another name, but its descriptor does.
    let held;
    let mut near = folder.to_owned();
    if folder.as_os_str().len() + NAME_MAX > ADDRESS_MAX {
        acquire(Site::Fd)?;
        held = open(
            folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        near = format!("/proc/self/fd/{}", held.as_raw_fd()).into();
    }
    let mut number = 0;
    loop {
        // A process that was killed may have left one, under the same number of a process
        // if it was in another container.
        let name = format!(".socket.{}.{number}", std::process::id());
        match net::bind(socket, &SocketAddrUnix::new(near.join(&name))?) {
            Err(Errno::ADDRINUSE) if number < NAMES => number += 1,
            done => {
                done?;
                return BoundPath::new(&folder.join(&name));
            }
        }
    }
}

/// Removes the socket at `path` if nobody listens on it.
fn remove_abandoned(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let found = match lstat(path) {
        // Its owner removed it meanwhile.
        Err(Errno::NOENT) => return Ok(()),
        found => found?,
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(in_use(path, "is there already and is not a socket"));
    }
    match net::connect(new_socket()?, address) {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Ok(()) | Err(Errno::AGAIN) => return Err(in_use(path, "has a listener already")),
        Err(errno) => return Err(errno.into()),
    }
    // Another process may have replaced it since we looked. Moving it aside
    // before judging it means that a living socket is put back, not removed.
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    match renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE) {
        Err(Errno::NOENT) => return Ok(()),
        done => done?,
    }
    if inode(&lstat(&aside)?) == inode(&found) {
        return Ok(unlink(&aside)?);
    }
    renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE)?;
    Err(in_use(path, "has just got a listener"))
}

fn in_use(path: &Path, why: &str) -> io::Error {
    let text = format!("{} {why}: choose another path", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

fn inode(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixListener;
    use tempfile::tempdir;

    #[test]
    fn abandoned_socket_is_replaced_and_ours_is_removed() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        // The standard library leaves the path behind, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(listener.path(), Some(path.as_path()));
        Stream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn living_listener_keeps_its_socket() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Listener::bind(&path).unwrap();
        let refused = Listener::bind(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        Stream::connect(&path).unwrap();
        // The probe of the second one was a connection too.
        first.accept().unwrap();
        first.accept().unwrap();
        let empty = first.accept().unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    }

    /// The path goes with the last process that has the socket, and no sooner.
    #[test]
    fn a_socket_that_is_handed_on_takes_its_path_along() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Listener::bind(&path).unwrap();
        let fd = first.as_fd().try_clone_to_owned().unwrap();
        let inode = first.inode().unwrap();
        let mut second = Listener::handed(fd).unwrap();
        // One that was not taken in the end.
        let again = first.as_fd().try_clone_to_owned().unwrap();
        drop(Listener::handed(again).unwrap());
        assert!(path.exists());
        second.own(&path, inode);
        first.leave();
        let client = Stream::connect(&path).unwrap();
        second.accept().unwrap();
        drop(second);
        assert!(!path.exists());
        let refused = Listener::handed(client.into()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    /// Scripts wait for the file and connect then.
    #[test]
    fn a_socket_that_is_there_can_be_connected_to() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        for _ in 0..200 {
            let listener = std::thread::scope(|scope| {
                let connecting = scope.spawn(|| {
                    loop {
                        match Stream::connect(&path) {
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                                std::thread::yield_now();
                            }
                            connected => return connected,
                        }
                    }
                });
                let listener = Listener::bind(&path).unwrap();
                connecting.join().unwrap().unwrap();
                listener
            });
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            drop(listener);
        }
    }

    #[test]
    fn names_that_others_left_are_passed_over() {
        let folder = tempdir().unwrap();
        for number in 0..3 {
            let left = format!(".socket.{}.{number}", std::process::id());
            drop(UnixListener::bind(folder.path().join(left)).unwrap());
        }
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        Stream::connect(&path).unwrap();
        drop(listener);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn the_longest_path_there_can_be_is_listened_at() {
        let folder = tempdir().unwrap();
        let mut path = folder.path().to_owned();
        let room = ADDRESS_MAX - path.as_os_str().len() - "/".len() - "/s".len();
        path.push("x".repeat(room));
        fs::create_dir(&path).unwrap();
        let path = path.join("s");
        assert_eq!(path.as_os_str().len(), ADDRESS_MAX);
        let listener = Listener::bind(&path).unwrap();
        Stream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(listener);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn listener_with_a_full_queue_is_alive() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = Listener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match Stream::connect(&path) {
                Ok(stream) => waiting.push(stream),
                Err(full) => break full,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let refused = Listener::bind(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn file_that_is_no_socket_is_kept() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        let refused = Listener::bind(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn path_that_another_took_over_is_kept() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        Stream::connect(&path).unwrap();
        second.accept().unwrap();
    }

    #[test]
    fn missing_listener_and_long_path_have_their_errors() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("s");
        let missing = Stream::connect(&path).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        let refused = Stream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(Listener::bind(&folder.path().join("x".repeat(108))).is_err());
    }
}
