//! What survives this process: what the device was made with and what its driver
//! said, and which requests are in flight, in a file in memory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linkspan_sys::kept::open_kept;
use linkspan_sys::vduse::Name;
use linkspan_vhost::vduse::{Offer, SNAPSHOT_BYTES};
use linkspan_virtio::QueueLayout;

use crate::inflight::{InflightArea, InflightAreaError};

/// Bytes before the part of the first ring.
const HEAD: u64 = 4096;

/// Zeroes that are written at a time.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Another process serves the device.
    #[error("another process serves the device: it has locked {}", .0.display())]
    Locked(PathBuf),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It cannot be mapped.
    #[error("{}: {error}", path.display())]
    Area {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: InflightAreaError,
    },
}

/// The file. It is locked until it is dropped.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    path: PathBuf,
    /// Bytes of the parts of all rings.
    area: u64,
    /// Whether an earlier process left it.
    was_there: bool,
}

impl Record {
    /// The file of a device in `folder`, and its part in which rings write down what
    /// is in flight.
    pub(super) fn open(
        folder: &Path,
        name: &Name,
        offer: &Offer,
    ) -> Result<(Self, InflightArea), RecordError> {
        let path = folder.join(format!("vduse-{name}"));
        // Packed rings need more.
        let each = QueueLayout::Packed.inflight_len(offer.queue_size_max);
        let area = each as u64 * u64::from(offer.queues);
        let (file, was_there) = match open_kept(&path, HEAD + area) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(RecordError::Locked(path));
            }
            Err(source) => return Err(RecordError::System { path, source }),
        };
        let inflight = file
            .try_clone()
            .map_err(InflightAreaError::System)
            .and_then(|file| {
                let (queues, size) = (offer.queues, offer.queue_size_max);
                InflightArea::of_file(file.into(), HEAD, area, queues, size)
            });
        match inflight {
            Ok(inflight) => {
                let record = Self {
                    file,
                    path,
                    area,
                    was_there,
                };
                Ok((record, inflight))
            }
            Err(error) => {
                if !was_there {
                    let _ = fs::remove_file(&path);
                }
                Err(RecordError::Area { path, error })
            }
        }
    }

    /// Goes with the attempt that it was opened for, unless an earlier process left it.
    pub(super) fn abandon(self) {
        if !self.was_there {
            self.remove();
        }
    }

    /// What was written down last.
    pub(super) fn read(&self) -> Result<[u8; SNAPSHOT_BYTES], RecordError> {
        let mut bytes = [0; SNAPSHOT_BYTES];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.map_err(|source| self.system(source))?;
        Ok(bytes)
    }

    /// Writes that down. One page of a file in memory, in one call: a process that
    /// dies has written all of it or nothing.
    pub(super) fn write(&self, bytes: &[u8; SNAPSHOT_BYTES]) -> Result<(), RecordError> {
        let written = self.file.write_all_at(bytes, 0);
        written.map_err(|source| self.system(source))
    }

    /// Nothing is in flight.
    pub(super) fn forget(&self) -> Result<(), RecordError> {
        let mut at = 0;
        while at < self.area {
            let len =
                usize::try_from(self.area - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            let written = self.file.write_all_at(&ZEROES[..len], HEAD + at);
            written.map_err(|source| self.system(source))?;
            at += len as u64;
        }
        Ok(())
    }

    /// The device is no more, and with it the file.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("{} stays behind: {error}", self.path.display());
        }
    }

    fn system(&self, source: io::Error) -> RecordError {
        let path = self.path.clone();
        RecordError::System { path, source }
    }
}
