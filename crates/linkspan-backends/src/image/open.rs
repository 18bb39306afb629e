//! Opening an image by what a person wrote for it: the one place that knows all
//! kinds.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linkspan_sys::uring;

use super::qcow2::{self, Qcow2Error, Qcow2Image};
use super::spec::{Format, Spec};
use super::{Image, MemoryImage, NullImage, OpenError, OpenOptions, RawImage};

/// How an image is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// How a file is opened. Who does the I/O, and what is cached, can be chosen
    /// for a raw one.
    pub file: OpenOptions,
    /// What the bytes of a file mean; raw if nobody said so.
    pub format: Option<Format>,
    /// Folders below which what an image stands on may be; see
    /// [`Qcow2Image::open`].
    pub allow_backing: Vec<PathBuf>,
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The file is no qcow2 image that can be served.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
    /// There is no room for a disk in memory.
    #[error("no address space for a disk of {bytes} bytes in memory: {source}")]
    Memory {
        /// Size in bytes.
        bytes: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A format for what is no file.
    #[error("a format is for files; mem: and null: have none")]
    NoFile,
    /// Folders for an image that stands on nothing.
    #[error("a raw image stands on no other; folders for backing images are for qcow2")]
    NoBacking,
    /// Another process has the image, and this is not it.
    #[error(
        "the image is not the one that the other process has, or of a kind that two processes \
         cannot have open at once"
    )]
    NotLent,
    /// A guest cannot take it along.
    #[error(
        "a guest migrates with a raw file or device only: no other image can be open at two places at once"
    )]
    NotMigratable,
    /// A way of I/O for what has only one.
    #[error("how I/O is done and what is cached can be chosen for raw files and devices only")]
    NoIo,
}

impl ImageError {
    /// Whether the options contradict each other.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoFile | Self::NoBacking | Self::NoIo | Self::NotMigratable
        )
    }

    /// Whether `io_uring` was asked for, and is refused here.
    pub fn io_uring_refused(&self) -> bool {
        let Self::File(OpenError::Uring(error)) = self else {
            return false;
        };
        matches!(error, uring::Error::Refused { .. })
    }

    /// The file that the system did not let us open, if that was it.
    pub fn permission_denied(&self) -> Option<&Path> {
        match self {
            Self::File(error) | Self::Qcow2(Qcow2Error::File(error)) => match error {
                OpenError::System { path, source }
                    if source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    Some(path)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Opens the image that is meant.
///
/// # Errors
/// [`ImageError`]; nothing stays open then.
pub fn open(spec: &Spec, options: &ImageOptions) -> Result<Arc<dyn Image>, ImageError> {
    open_with(spec, options, None)
}

/// Opens the image that another process has, which goes on with it until it hands it over;
/// `lent` is what [`Image::lend`] gave there.
///
/// # Errors
/// As [`open`]; or it is not the other one's image, or of a kind that only one process at a
/// time can have open.
pub fn take_over(
    spec: &Spec,
    options: &ImageOptions,
    lent: Vec<OwnedFd>,
) -> Result<Arc<dyn Image>, ImageError> {
    let raw = options.format.unwrap_or_default() == Format::Raw;
    match spec {
        Spec::File(_) if raw => {
            let [lock] = <[OwnedFd; 1]>::try_from(lent).map_err(|_| ImageError::NotLent)?;
            open_with(spec, options, Some(lock))
        }
        Spec::Null { .. } if lent.is_empty() => open_with(spec, options, None),
        _ => Err(ImageError::NotLent),
    }
}

fn open_with(
    spec: &Spec,
    options: &ImageOptions,
    lock: Option<OwnedFd>,
) -> Result<Arc<dyn Image>, ImageError> {
    let OpenOptions {
        read_only,
        lock_wait,
        ..
    } = options.file;
    let format = options.format.unwrap_or_default();
    if !options.allow_backing.is_empty() && format != Format::Qcow2 {
        return Err(ImageError::NoBacking);
    }
    let plain = OpenOptions {
        read_only,
        lock_wait,
        ..OpenOptions::default()
    };
    let raw = format == Format::Raw && matches!(spec, Spec::File(_));
    if !raw && options.file.migratable {
        return Err(ImageError::NotMigratable);
    }
    if !raw && options.file != plain {
        return Err(ImageError::NoIo);
    }
    match spec {
        Spec::File(path) => match format {
            Format::Raw => {
                let image = match lock {
                    None => RawImage::open(path, &options.file)?,
                    Some(lock) => RawImage::take_over(path, &options.file, lock)?,
                };
                if options.format.is_none() && begins_as_qcow2(path) {
                    tracing::warn!(
                        "{path}: it begins as a qcow2 image does, and is served raw, since formats are \
                         not guessed; if it is one, give --format qcow2, else --format raw",
                        path = path.display()
                    );
                }
                Ok(Arc::new(image))
            }
            Format::Qcow2 => {
                let allowed = &options.allow_backing;
                let image = Qcow2Image::open(path, read_only, lock_wait, allowed)?;
                Ok(Arc::new(image))
            }
        },
        Spec::Memory { .. } | Spec::Null { .. } if options.format.is_some() => {
            Err(ImageError::NoFile)
        }
        Spec::Memory { bytes } => match MemoryImage::new(*bytes, read_only) {
            Ok(image) => Ok(Arc::new(image)),
            Err(source) => Err(ImageError::Memory {
                bytes: *bytes,
                source,
            }),
        },
        Spec::Null { bytes, read_zeroes } => {
            Ok(Arc::new(NullImage::new(*bytes, read_only, *read_zeroes)))
        }
    }
}

fn begins_as_qcow2(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut start, 0))
        .is_ok()
        && start == qcow2::MAGIC
}
