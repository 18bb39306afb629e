//! Opening a qcow2 image and what it stands on: backing images and a data file,
//! each only where the user allowed it.
//!
//! The names stand in the image, and who wrote the image may have been a guest or
//! a stranger: a name such as `/etc/shadow` would show that file to the guest. So
//! nothing is opened but below folders that the user named, with links resolved,
//! and no format is guessed.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};
use linkspan_mem::fault::{self, Site};
use rustix::fs::OFlags;

use super::header::{Header, HeaderError};
use crate::image::OpenError;
use crate::image::raw::lock_image;

/// Images in a chain at most: a chain may be a circle.
pub const CHAIN_MAX: usize = 32;

/// Why a qcow2 image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// A file of the chain cannot be opened or locked.
    #[error(transparent)]
    File(#[from] OpenError),
    /// Its header is not one that can be served.
    #[error("{path}: {source}", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: HeaderError,
    },
    /// Its tables cannot be read.
    #[error("{path}: the tables of the image cannot be read: {source}", path = path.display())]
    Tables {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It stands on a file that the user did not allow.
    #[error(
        "{image}: it stands on {path}, which is not below a folder that was allowed; if it is to be used, give --allow-backing {folder}",
        image = image.display(), path = path.display(), folder = folder.display()
    )]
    NotAllowed {
        /// The image that names it.
        image: PathBuf,
        /// The file, with links resolved where it exists.
        path: PathBuf,
        /// The folder that would have to be allowed.
        folder: PathBuf,
    },
    /// The image does not say what its backing file is.
    #[error(
        "{image}: it does not say which format its backing file {name} has, and formats are not guessed; `qemu-img rebase -u -b {name} -F raw|qcow2 {image}` says it",
        image = image.display()
    )]
    NoFormat {
        /// The image that names it.
        image: PathBuf,
        /// The name in the image.
        name: String,
    },
    /// A format that is not served.
    #[error("{image}: its backing file {name} has the format {format}; there are raw and qcow2", image = image.display())]
    Format {
        /// The image that names it.
        image: PathBuf,
        /// The name in the image.
        name: String,
        /// The format in the image.
        format: String,
    },
    /// The image keeps its data elsewhere and does not say where.
    #[error("{image}: its data is in another file, which it does not name", image = image.display())]
    NoDataFile {
        /// The image.
        image: PathBuf,
    },
    /// Too many images stand on each other.
    #[error("{image}: more than {CHAIN_MAX} images stand on each other, perhaps in a circle", image = image.display())]
    TooDeep {
        /// The image at the limit.
        image: PathBuf,
    },
    /// A thread or a descriptor was refused.
    #[error("the image cannot be served: {0}")]
    System(#[from] io::Error),
    /// The reader of the format failed in a way that it must not.
    #[error("{path}: the image is broken in a way that its reader does not bear: {what}", path = path.display())]
    Panicked {
        /// The image.
        path: PathBuf,
        /// What the reader said.
        what: String,
    },
}

/// How a chain is opened.
#[derive(Clone, Debug)]
pub(super) struct ChainOptions {
    /// Whether nothing is written.
    pub(super) read_only: bool,
    /// How long other users of the files are waited for.
    pub(super) lock_wait: Duration,
    /// Folders below which backing images and data files may be.
    pub(super) allowed: Vec<PathBuf>,
}

/// Opens the image at `path` with all that it stands on.
pub(super) fn open(
    path: &Path,
    options: &ChainOptions,
) -> Result<(FormatAccess<Storage>, Header), Qcow2Error> {
    let file = open_file(path, options.read_only, options.lock_wait)?;
    open_layer(path, file, options.read_only, options, CHAIN_MAX)
}

fn open_layer(
    path: &Path,
    file: File,
    read_only: bool,
    options: &ChainOptions,
    room: usize,
) -> Result<(FormatAccess<Storage>, Header), Qcow2Error> {
    let room = room.checked_sub(1).ok_or_else(|| Qcow2Error::TooDeep {
        image: path.to_owned(),
    })?;
    let checked = Header::read(&file).and_then(|header| {
        if !read_only {
            header.check_counts(&file)?;
        }
        Ok(header)
    });
    let header = checked.map_err(|source| Qcow2Error::Header {
        path: path.to_owned(),
        source,
    })?;
    let tables = |source| Qcow2Error::Tables {
        path: path.to_owned(),
        source,
    };
    let storage = storage(file, path, read_only).map_err(tables)?;
    let mut image: Qcow2<Storage> = Qcow2::open_image(storage, !read_only).map_err(tables)?;

    let data = if image.requires_external_data_file() {
        let name = image
            .implicit_external_data_file()
            .ok_or_else(|| Qcow2Error::NoDataFile {
                image: path.to_owned(),
            })?;
        let (at, file) = open_named(path, name, read_only, options)?;
        Some(self::storage(file, &at, read_only).map_err(tables)?)
    } else {
        None
    };
    image.set_data_file(data);

    let named = image.implicit_backing_file().cloned();
    let backing = match named.filter(|name| !name.is_empty()) {
        None => None,
        Some(name) => {
            let format = image.implicit_backing_format().cloned();
            Some(open_backing(path, name, format, options, room)?)
        }
    };
    image.set_backing(backing);
    Ok((FormatAccess::new(image), header))
}

/// Opens what the image at `path` calls its backing file.
fn open_backing(
    path: &Path,
    name: String,
    format: Option<String>,
    options: &ChainOptions,
    room: usize,
) -> Result<FormatAccess<Storage>, Qcow2Error> {
    let image = path.to_owned();
    let Some(format) = format else {
        return Err(Qcow2Error::NoFormat { image, name });
    };
    if !matches!(format.as_str(), "raw" | "qcow2") {
        return Err(Qcow2Error::Format {
            image,
            name,
            format,
        });
    }
    let (at, file) = open_named(path, &name, true, options)?;
    if format == "qcow2" {
        return Ok(open_layer(&at, file, true, options, room)?.0);
    }
    let raw = storage(file, &at, true).and_then(|storage| Raw::open_image(storage, false));
    match raw {
        Ok(raw) => Ok(FormatAccess::new(raw)),
        Err(source) => Err(Qcow2Error::Tables { path: at, source }),
    }
}

/// Opens a file by the name that the image at `image` has for it, if it is allowed.
fn open_named(
    image: &Path,
    name: &str,
    read_only: bool,
    options: &ChainOptions,
) -> Result<(PathBuf, File), Qcow2Error> {
    let folder = image.parent().unwrap_or(Path::new(""));
    // An absolute name takes the place of the folder.
    let named = folder.join(name);
    let refused = |path: PathBuf| {
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        Qcow2Error::NotAllowed {
            image: image.to_owned(),
            path,
            folder,
        }
    };
    let allowed: Vec<PathBuf> = options
        .allowed
        .iter()
        .filter_map(|folder| fs::canonicalize(folder).ok())
        .collect();
    let is_allowed = |path: &Path| allowed.iter().any(|folder| path.starts_with(folder));
    let path = match fs::canonicalize(&named) {
        Ok(path) => path,
        Err(_) if allowed.is_empty() => return Err(refused(named)),
        Err(source) => {
            let path = named;
            return Err(OpenError::System { path, source }.into());
        }
    };
    if !is_allowed(&path) {
        return Err(refused(path));
    }
    let file = open_file(&path, read_only, options.lock_wait)?;
    // Somebody may have put a link in its place since.
    let opened = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if !is_allowed(&opened) {
        return Err(refused(opened));
    }
    Ok((path, file))
}

/// Opens a file or a block device and locks it as QEMU does.
fn open_file(path: &Path, read_only: bool, lock_wait: Duration) -> Result<File, OpenError> {
    let system = |source| OpenError::System {
        path: path.to_owned(),
        source,
    };
    fault::point(Site::Fd)?;
    let file = File::options()
        .read(true)
        .write(!read_only)
        // A FIFO in place of an image must not hang the start.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(system)?;
    let metadata = file.metadata().map_err(system)?;
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(OpenError::Kind {
            path: path.to_owned(),
        });
    }
    lock_image(&file, path, read_only, lock_wait)?;
    Ok(file)
}

fn storage(file: File, path: &Path, read_only: bool) -> io::Result<Storage> {
    let options = StorageOpenOptions::new().filename(path).write(!read_only);
    Storage::from_open_file(file, options)
}
