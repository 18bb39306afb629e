//! A share as a folder of this machine, by FUSE.
//!
//! One thread takes what the kernel asks, one owns the connection and all that is open. Reads,
//! writes and flushes are in flight together; other questions are asked one after another
//! meanwhile. When the connection is lost another one is made: what was open is opened again,
//! what was not answered is asked again, and what was written and not flushed is written again
//! first, as the server may have lost it with its memory. Nothing fails for that before the time
//! limit. Closing a file that was written flushes it.
//!
//! What the server says of names, sizes and times is believed as far as it can be; what cannot be
//! is an error of that question, and the mount goes on.

mod ask;
mod asked;
mod attr;
mod data;
mod errno;
mod list;
mod meta;
mod names;
mod nodes;
mod serve;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{MountOption, Session, SessionACL};
use linkspan_mem::fault::{self, Injected, Site};
use linkspan_sys::{EventFd, fuse, thread};
use rustix::io::Errno;
use thiserror::Error as ThisError;

use super::connection::random as random_bytes;
use super::error::Error;
use super::share::{Kind, Share};
use ask::Kernel;
use asked::Asked;
use serve::Server;

/// How long the kernel may believe what it was told of a file or a name.
const LIFE: Duration = Duration::from_secs(1);

/// Attempts to unmount what is in use, and the pause between them.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// How a share is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether other users of this machine may use it.
    pub allow_other: bool,
    /// How long requests wait for a new connection until they fail; for ever without it.
    pub time_limit: Option<Duration>,
}

/// What has happened to a mount.
#[derive(Debug)]
pub enum Happened<'a> {
    /// The connection is lost; another one is being made.
    Lost {
        /// Why.
        why: &'a Error,
    },
    /// An attempt did not work, for another reason than the one before.
    NotConnected {
        /// Why.
        why: &'a Error,
    },
    /// There is a new connection.
    Connected {
        /// How long there was none.
        after: Duration,
        /// The share on it.
        connection: &'a Share,
    },
}

/// Hears what happens.
type Report = Box<dyn Fn(Happened<'_>) + Send>;

/// Why a share is not mounted.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum MountError {
    /// The place is no folder, or cannot be read.
    #[error("cannot mount at {}: {error}", at.display())]
    Place {
        /// Where.
        at: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something is in the folder.
    #[error("cannot mount at {}: something is in it", at.display())]
    NotEmpty {
        /// Where.
        at: PathBuf,
    },
    /// The path of the share is no folder.
    #[error("{path} is no folder of the share")]
    NoFolder {
        /// Which.
        path: String,
    },
    /// There is no FUSE, or this user may not use it.
    #[error("cannot use /dev/fuse: {0}")]
    NoFuse(io::Error),
    /// The mount itself was refused.
    #[error("cannot mount at {}: {error}", at.display())]
    Refused {
        /// Where.
        at: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What the server says.
    #[error("{0}")]
    Share(#[from] Error),
    /// Something at this end.
    #[error("{0}")]
    Here(#[from] io::Error),
    /// Something could not be had at this end.
    #[error("{0}")]
    Injected(#[from] Injected),
}

/// How an attempt to unmount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is done, or was.
    Done,
    /// Somebody uses it: it has no name any more, and ends when nobody does.
    InUse,
}

/// A share that is mounted.
pub struct Mount {
    at: PathBuf,
    asked: Arc<Asked>,
    /// Is readable when it has ended.
    ended: Arc<EventFd>,
    kernel: Option<JoinHandle<io::Result<()>>>,
    server: Option<JoinHandle<()>>,
}

/// Says that a thread ended, however it did.
struct Ending(Arc<EventFd>, Arc<Asked>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.1.deafen();
        // It is ours, and cannot be full.
        let _ = self.0.signal();
    }
}

fn random() -> Result<u64, Error> {
    random_bytes().map(u64::from_ne_bytes)
}

/// The folder at which something is to be mounted.
fn place(at: &Path) -> Result<PathBuf, MountError> {
    let wrong = |error| MountError::Place {
        at: at.into(),
        error,
    };
    let place = at.canonicalize().map_err(wrong)?;
    let mut entries = fs::read_dir(&place).map_err(wrong)?;
    match entries.next() {
        None => Ok(place),
        Some(_) => Err(MountError::NotEmpty { at: at.into() }),
    }
}

impl Mount {
    /// Mounts the folder at a path of a share at an empty folder of this machine.
    ///
    /// # Errors
    /// It is no folder at either end, or not empty at this one; there is no FUSE; the server or
    /// the system refuses. Nothing is mounted then.
    pub fn start(
        mut share: Share,
        path: &str,
        at: &Path,
        options: &MountOptions,
        report: impl Fn(Happened<'_>) + Send + 'static,
    ) -> Result<Self, MountError> {
        let place = place(at)?;
        // To say why, before anything is begun.
        drop(fuse::Fuse::open().map_err(MountError::NoFuse)?);
        if share.stat(path)?.kind != Kind::Folder {
            return Err(MountError::NoFolder { path: path.into() });
        }
        let owner = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        let asked = Arc::new(Asked::new()?);
        let ended = Arc::new(EventFd::new()?);
        let server = Server::new(share, path, &asked, options, owner, Box::new(report))?;
        fault::point(Site::Fd)?;
        let kernel = Kernel {
            asked: Arc::clone(&asked),
            owner,
        };
        let session = Session::new(kernel, &place, &config(options)).map_err(|error| {
            MountError::Refused {
                at: place.clone(),
                error,
            }
        })?;
        let mut mount = Self {
            at: place,
            asked: Arc::clone(&asked),
            ended,
            kernel: None,
            server: None,
        };
        let ending = Ending(Arc::clone(&mount.ended), asked);
        let served = thread::spawn("share", move || {
            let _ending = ending;
            server.run();
        });
        // Without this thread the kernel is told that all is over when the session is dropped.
        mount.server = Some(served?);
        mount.kernel = Some(thread::spawn("fuse", move || session.run())?);
        Ok(mount)
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.at
    }

    /// Is readable when it has ended, because somebody has unmounted it, for one.
    #[must_use]
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Unmounts it. What is used goes on until it is not.
    ///
    /// # Errors
    /// The system refuses.
    pub fn unmount(&self) -> io::Result<Unmounted> {
        for _ in 0..TRIES {
            match unmount(&self.at, false) {
                // Descriptors of programs that are just being started, and whoever looks around.
                Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
                    std::thread::sleep(PAUSE);
                }
                // Somebody else has, or it is done.
                Err(error) if error.raw_os_error() != Some(Errno::INVAL.raw_os_error()) => break,
                _ => {
                    // It may go on in other name spaces, and nothing is open in this one.
                    self.asked.end();
                    return Ok(Unmounted::Done);
                }
            }
        }
        unmount(&self.at, true).map(|()| Unmounted::InUse)
    }

    /// Waits for the end: all files are closed then.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn join(mut self) -> io::Result<()> {
        self.joined()
    }

    fn joined(&mut self) -> io::Result<()> {
        // The thread that reads from the kernel ends when no name space has the mount any more.
        drop(self.kernel.take());
        let over = |_| io::Error::other("a thread of the mount panicked");
        let server = self.server.take().map(|thread| thread.join().map_err(over));
        server.transpose().map(drop)
    }
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mount({})", self.at.display())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.kernel.is_some() {
            // Whoever wanted to know has asked.
            let _ = self.unmount();
            self.asked.end();
        }
        let _ = self.joined();
    }
}

fn config(options: &MountOptions) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName("linkspan".into()),
        MountOption::Subtype("smb".into()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        match options.read_only {
            true => MountOption::RO,
            false => MountOption::RW,
        },
    ];
    config.acl = match options.allow_other {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    config
}

/// Unmounts; where only root may, by the program that has the right.
fn unmount(at: &Path, lazily: bool) -> io::Result<()> {
    match fuse::unmount(at, lazily) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        result => return result,
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(at).output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            Err(io::Error::other(said))
        }
    }
}
