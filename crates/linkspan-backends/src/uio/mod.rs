//! A device of VMBus as a guest's kernel shows it, to a program of this machine: a file
//! that behaves as /dev/uio0, and what sysfs says of it, in mounts that only that program
//! sees. So a guest's daemon runs here as it is, against a host of ours.
//!
//! The file is FUSE's: what is read and written comes to us, what is mapped is the memory
//! of the channel itself (passthrough). What differs from the real one: only map 0 exists;
//! the file is a regular one; a read that a signal ends says EINTR, whatever the signal's
//! flags; and `read` and `write` of several threads wait for each other, since files have a
//! position (`pread` and `pwrite` do not).

mod device;
mod serve;
mod tree;
mod wire;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use linkspan_sys::fuse::Fuse;
use linkspan_sys::{EventFd, mounts, thread};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

pub use device::{Device, Effect};
pub use serve::{Channel, Connect};
pub use tree::Offer;
pub use wire::Message;

/// Where the kernel shows devices and their files.
const BUS: &str = "/sys/bus";
const DEV: &str = "/dev";

/// How long the kernel may take for its first word. It says it with the mount.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a program cannot have the device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No FUSE.
    #[error("cannot open /dev/fuse")]
    NoFuse(#[source] io::Error),
    /// Mounts, or files behind files, are for others.
    #[error("cannot {0}: CAP_SYS_ADMIN is needed")]
    NotPermitted(&'static str),
    /// A kernel without passthrough.
    #[error("this kernel's FUSE cannot pass mmap through to memory")]
    NoPassthrough,
    /// The program cannot be started.
    #[error("cannot start the program")]
    Start(#[source] io::Error),
    /// What else the system refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What was answered.
        source: io::Error,
    },
}

impl Error {
    /// What to do about it where this machine lacks something.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoFuse(_) => Some("modprobe fuse; in a container, give it --device /dev/fuse"),
            Self::NotPermitted(_) => {
                Some("run as root; in a container, give it --cap-add SYS_ADMIN")
            }
            Self::NoPassthrough => {
                Some("use Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH, or a guest of ours")
            }
            _ => None,
        }
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => Error::NotPermitted(what),
        _ => Error::System { what, source },
    }
}

/// A program that has the device, and whatever it starts. Dropped, it is killed.
#[derive(Debug)]
pub struct Program {
    id: u32,
    pidfd: OwnedFd,
    keeper: Option<JoinHandle<io::Result<ExitStatus>>>,
}

impl Program {
    /// Starts `command` with the device. Its channel is had from `connect` each time that
    /// it opens the device.
    ///
    /// # Errors
    /// [`Error`], with nothing left.
    pub fn start(offer: Offer, connect: Connect, command: Command) -> Result<Self, Error> {
        let (send, started) = mpsc::sync_channel(1);
        let keeper = thread::spawn("uio program", move || {
            let mut running = match Running::start(&offer, connect, command) {
                Ok(running) => running,
                Err(error) => {
                    drop(send.send(Err(error)));
                    return Err(io::ErrorKind::Other.into());
                }
            };
            let watched = running.pidfd().map_err(system("watch the program"));
            if watched.is_err() {
                running.kill();
            }
            let id = running.child.id();
            drop(send.send(watched.map(|pidfd| (id, pidfd))));
            running.wait()
        });
        let keeper = keeper.map_err(system("start a thread"))?;
        match started.recv().expect("the thread says one word") {
            Ok((id, pidfd)) => Ok(Self {
                id,
                pidfd,
                keeper: Some(keeper),
            }),
            Err(error) => {
                drop(keeper.join());
                Err(error)
            }
        }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sends it a signal. One that has ended already takes none.
    ///
    /// # Errors
    /// `EPERM` for a program that has changed its user.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until it has ended. The device goes with it, whatever it has left running.
    ///
    /// # Errors
    /// What serving the device met with.
    ///
    /// # Panics
    /// When a thread of the device did.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.join().expect("it is joined once")
    }

    fn join(&mut self) -> Option<io::Result<ExitStatus>> {
        let keeper = self.keeper.take()?;
        Some(keeper.join().expect("the thread of the program"))
    }
}

/// Readable when the program has ended.
impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.keeper.is_some() {
            drop(self.signal(Signal::KILL));
            drop(self.join());
        }
    }
}

/// What the keeper's thread holds. The mounts are that thread's, so it starts the program.
struct Running {
    child: Child,
    server: Serving,
}

impl Running {
    fn start(offer: &Offer, connect: Connect, mut command: Command) -> Result<Self, Error> {
        let fuse = Fuse::open().map_err(Error::NoFuse)?;
        mounts::unshare_thread().map_err(system("make mounts of its own"))?;
        show(offer).map_err(system("show the device in sysfs"))?;
        let name = format!("uio{}", tree::NUMBER);
        let file = Path::new(DEV).join(&name);
        let place = || {
            mounts::shadow(Path::new(DEV), OsStr::new(&name))?;
            File::create(&file)?.set_permissions(Permissions::from_mode(0o600))?;
            fuse.mount(&file, 0o600)
        };
        place().map_err(system("mount the device's file"))?;
        let server = Serving::start(fuse, offer, connect)?;
        let child = command.spawn().map_err(Error::Start)?;
        Ok(Self { child, server })
    }

    fn pidfd(&self) -> io::Result<OwnedFd> {
        let id = i32::try_from(self.child.id()).ok();
        let pid = id.and_then(Pid::from_raw).expect("a child has a number");
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    /// For one that nobody could watch.
    fn kill(&mut self) {
        drop(self.child.kill());
    }

    fn wait(mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.server.stop()?;
        Ok(status)
    }
}

/// The device in sysfs, in the mounts of this thread.
fn show(offer: &Offer) -> io::Result<()> {
    let bus = Path::new(BUS);
    mounts::shadow(bus, OsStr::new("vmbus"))?;
    let vmbus = bus.join("vmbus");
    fs::create_dir(&vmbus)?;
    tree::write(&vmbus, offer)
}

/// The thread of the file, which ends with the value.
struct Serving {
    stop: EventFd,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Serving {
    fn start(fuse: Fuse, offer: &Offer, connect: Connect) -> Result<Self, Error> {
        let what = system("serve the device's file");
        let (send, ready): (_, Receiver<bool>) = mpsc::sync_channel(1);
        let stop = EventFd::new().map_err(&what)?;
        let owner = [
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ];
        let device = Device::new(0o600, owner).masking(offer.masks);
        let both = offer.ring * 2;
        let server = serve::Server::new(fuse, &stop, device, connect, both, send).map_err(&what)?;
        let thread = thread::spawn("uio file", move || server.run()).map_err(&what)?;
        let serving = Self {
            stop,
            thread: Some(thread),
        };
        match ready.recv_timeout(PATIENCE) {
            Ok(true) => Ok(serving),
            Ok(false) => Err(Error::NoPassthrough),
            Err(_) => Err(what(io::ErrorKind::TimedOut.into())),
        }
    }

    fn stop(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop.signal()?;
        thread.join().expect("the thread of the file")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!("the device's file: {error}");
        }
    }
}
