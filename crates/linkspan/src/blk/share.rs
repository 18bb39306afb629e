//! A disk from a file on an SMB share.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use linkspan_backends::image::{Format, Image, ImageError, ImageOptions, OpenOptions, Spec};
use linkspan_backends::smb::{DiskOptions, SmbImage};
use linkspan_smb2::status;

use crate::exit::{Failure, Status};
use crate::smb::{Reach, Url, connect, failure};

/// Which image is meant.
#[derive(Clone, Debug)]
pub(super) enum Disk {
    /// One of this machine.
    Spec(Spec),
    /// A file on a share.
    Share(Url),
}

impl Disk {
    pub(super) fn parse(text: &OsStr) -> Result<Self, String> {
        match text.to_str() {
            Some(url) if url.starts_with("smb://") => {
                let url: Url = url.parse()?;
                match url.path.is_empty() {
                    true => Err("it names no file".into()),
                    false => Ok(Self::Share(url)),
                }
            }
            _ => Spec::parse(text)
                .map(Self::Spec)
                .map_err(|error| error.to_string()),
        }
    }
}

/// How a share is reached that an image is on.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Images on a share (smb://)")]
pub(super) struct ShareArgs {
    #[command(flatten)]
    reach: Reach,

    /// Seconds for which requests of the guest wait when the server is away, until they fail;
    /// 0 for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    time_limit: u32,
}

/// Opens the image.
pub(super) fn open(
    url: &Url,
    args: &ShareArgs,
    options: &ImageOptions,
) -> Result<Arc<dyn Image>, Failure> {
    let usage = |what: &str| Err(Failure::new(Status::Usage, anyhow!(what.to_string())));
    if options.format == Some(Format::Qcow2) || !options.allow_backing.is_empty() {
        return usage("an image on a share is raw");
    }
    let plain = OpenOptions {
        read_only: options.file.read_only,
        lock_wait: options.file.lock_wait,
        ..OpenOptions::default()
    };
    if options.file.migratable {
        return usage(&ImageError::NotMigratable.to_string());
    }
    if options.file != plain {
        return usage(
            "how I/O is done and what is cached can be chosen for raw files and devices only",
        );
    }
    let disk = DiskOptions {
        read_only: options.file.read_only,
        lock_wait: options.file.lock_wait,
        time_limit: (args.time_limit > 0).then(|| Duration::from_secs(args.time_limit.into())),
    };
    let share = connect(url, &args.reach)?;
    match SmbImage::open(share, &url.path, &disk) {
        Ok(image) => Ok(Arc::new(image)),
        Err(error) => {
            let taken = error.status() == Some(status::SHARING_VIOLATION);
            let failure = failure(error);
            Err(match taken {
                true => failure.hint("end who uses the image first"),
                false => failure,
            })
        }
    }
}
