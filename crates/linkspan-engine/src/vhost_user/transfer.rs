//! The state of a device on its way from one back end to the next (vhost-user:
//! Migrating back-end state).
//!
//! What a device of ours has beside its rings is nothing so far, so the state
//! says only whose it is. The front end's descriptor can be anything, a file
//! whose server never answers above all: only a thread that nobody waits for
//! touches it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::thread::spawn;
use linkspan_sys::{EventFd, reaper};
use linkspan_vhost::Direction as Way;

use crate::worker::signal;

/// What every state begins with.
const MAGIC: [u8; 8] = *b"LINKSPAN";

/// The form of what follows.
const VERSION: u16 = 1;

/// Bytes of a state at most: more than a name and nothing takes.
const STATE_MAX: usize = 512;

/// Transfers of this process at a time. A peer that gives descriptors that block
/// gets no more threads than these.
const TRANSFERS_MAX: usize = 16;

static TRANSFERS: AtomicUsize = AtomicUsize::new(0);

/// A transfer that was begun.
#[derive(Debug)]
pub(super) struct Transfer {
    end: Arc<Mutex<Option<Result<(), TransferError>>>>,
    cancel: Arc<EventFd>,
}

/// Why a state was not moved whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The descriptor failed.
    #[error("the device's state cannot be moved: {0}")]
    Channel(#[source] io::Error),
    /// The session or another transfer came before its end.
    #[error("the transfer of the device's state was given up")]
    Cancelled,
    /// More than any state has.
    #[error("a state of more than {max} bytes")]
    TooLong {
        /// Bytes that a state has at most.
        max: usize,
    },
    /// Not what a device like this one saved.
    #[error("these {len} bytes are not the state of a {device} device in version {VERSION}")]
    Foreign {
        /// How many came.
        len: usize,
        /// Which device should have saved them.
        device: String,
    },
    /// No state was moved at all.
    #[error("there was no transfer of the device's state")]
    None,
    /// Too many are under way.
    #[error("{max} transfers are under way in this process")]
    TooMany {
        /// How many there can be.
        max: usize,
    },
    /// No thread, or no descriptor for it.
    #[error("the device's state cannot be moved: {0}")]
    System(#[source] io::Error),
}

impl Transfer {
    /// Begins to move the state of `device`; `wake` is signalled at the end.
    pub(super) fn begin(
        way: Way,
        fd: OwnedFd,
        device: &str,
        wake: &Arc<EventFd>,
    ) -> Result<Self, TransferError> {
        // Where it is found again if no thread takes it: unchecked, it must not
        // be closed here.
        let fd = Arc::new(Mutex::new(Some(fd)));
        let begun = Self::spawn(way, &fd, device, wake);
        if begun.is_err()
            && let Some(fd) = lock(&fd).take()
        {
            reaper::dispose(fd);
        }
        begun
    }

    fn spawn(
        way: Way,
        fd: &Arc<Mutex<Option<OwnedFd>>>,
        device: &str,
        wake: &Arc<EventFd>,
    ) -> Result<Self, TransferError> {
        let permit = Permit::new()?;
        let cancel = Arc::new(EventFd::new().map_err(TransferError::System)?);
        let end = Arc::new(Mutex::new(None));
        let transfer = Self {
            end: Arc::clone(&end),
            cancel: Arc::clone(&cancel),
        };
        let (fd, wake, device) = (Arc::clone(fd), Arc::clone(wake), device.to_owned());
        let thread = spawn("state", move || {
            let taken = lock(&fd).take();
            if let Some(fd) = taken {
                // The descriptor is closed when this returns: the end of file.
                let result = carry(way, File::from(fd), &device, &cancel);
                *lock(&end) = Some(result);
            }
            drop(permit);
            signal(&wake);
        });
        // Nobody joins it.
        thread.map(drop).map_err(TransferError::System)?;
        Ok(transfer)
    }

    /// How it ended, once it has; said once.
    pub(super) fn end(&self) -> Option<Result<(), TransferError>> {
        lock(&self.end).take()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        signal(&self.cancel);
    }
}

/// The right to have a thread.
struct Permit;

impl Permit {
    fn new() -> Result<Self, TransferError> {
        let before = TRANSFERS.fetch_add(1, Ordering::Relaxed);
        let permit = Self;
        if before < TRANSFERS_MAX {
            return Ok(permit);
        }
        let max = TRANSFERS_MAX;
        Err(TransferError::TooMany { max })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        TRANSFERS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn carry(way: Way, mut file: File, device: &str, cancel: &EventFd) -> Result<(), TransferError> {
    // The wrong end of a pipe would never be ready; a call for no bytes says so.
    let open = match way {
        Way::Save => file.write(&[]),
        Way::Load => file.read(&mut []),
    };
    open.map_err(TransferError::Channel)?;
    match way {
        Way::Save => send(&mut file, &saved(device), cancel),
        Way::Load => {
            let bytes = receive(&mut file, cancel)?;
            if bytes == saved(device) {
                return Ok(());
            }
            let (len, device) = (bytes.len(), device.to_owned());
            Err(TransferError::Foreign { len, device })
        }
    }
}

/// The state of a device that has none: magic, version, length and bytes of its
/// name, length of what follows.
fn saved(device: &str) -> Vec<u8> {
    let name = &device.as_bytes()[..device.len().min(STATE_MAX / 2)];
    let len = u16::try_from(name.len()).expect("less than a state");
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(name);
    bytes.extend(0_u32.to_le_bytes());
    bytes
}

fn send(file: &mut File, mut bytes: &[u8], cancel: &EventFd) -> Result<(), TransferError> {
    while !bytes.is_empty() {
        let sent = again(file, Direction::Write, cancel, |file| file.write(bytes))?;
        if sent == 0 {
            return Err(TransferError::Channel(io::ErrorKind::WriteZero.into()));
        }
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Everything up to the end of file.
fn receive(file: &mut File, cancel: &EventFd) -> Result<Vec<u8>, TransferError> {
    let mut bytes = vec![0; STATE_MAX + 1];
    let mut len = 0;
    while len < bytes.len() {
        let target = &mut bytes[len..];
        let got = again(file, Direction::Read, cancel, |file| file.read(target))?;
        if got == 0 {
            bytes.truncate(len);
            return Ok(bytes);
        }
        len += got;
    }
    Err(TransferError::TooLong { max: STATE_MAX })
}

/// Waits for the descriptor, then calls, until something came of it.
fn again(
    file: &mut File,
    direction: Direction,
    cancel: &EventFd,
    mut call: impl FnMut(&mut File) -> io::Result<usize>,
) -> Result<usize, TransferError> {
    loop {
        match wait_for(file.as_fd(), direction, Some(cancel.as_fd()), None) {
            Ok(Wake::Cancelled) => return Err(TransferError::Cancelled),
            Ok(_) => {}
            Err(error) => return Err(TransferError::Channel(error)),
        }
        match call(file) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            done => return done.map_err(TransferError::Channel),
        }
    }
}
