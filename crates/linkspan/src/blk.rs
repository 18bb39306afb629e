//! `linkspan blk`: serves a disk image over vhost-user, or to the kernel.

use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ArgGroup;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use linkspan_backends::block::{BlockDevice, DiskOptions};
use linkspan_backends::image::{self, Format, Image, ImageOptions, Spec, parse_size};
use linkspan_devices::block::ID_BYTES;
use linkspan_engine::vhost_user;
use linkspan_engine::{Device, Server};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::{Inherited, inherit};
use linkspan_sys::vduse::Name;

use crate::exit::{Failure, Status};
use crate::limits::LimitArgs;
use crate::serving;
use crate::vduse::{self, VduseArgs};
use crate::workers::WorkerArgs;

mod io;

/// Options of `linkspan blk`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a guest's disk from a file\n\n  \
        truncate -s 1G disk.img\n  \
        linkspan blk --socket-path /tmp/disk.sock --image disk.img &\n  \
        qemu-system-x86_64 -m 1G \\\n    \
          -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
          -chardev socket,id=c,path=/tmp/disk.sock \\\n    \
          -device vhost-user-blk-pci,chardev=c,num-queues=2 …\n\n\
        SIGINT or SIGTERM ends it once all requests in flight are done.\n\
        SIGHUP makes it look again how large a raw image is: after\n  \
        truncate -s 2G disk.img; kill -HUP PID\n\
        the guest has a larger disk. An image that got smaller is left as it was.\n\n\
        Other images:\n  \
        linkspan blk --socket-path S --image disk.qcow2 --format qcow2 --allow-backing /srv/base\n  \
        linkspan blk --socket-path S --image mem:4G\n  \
        linkspan blk --socket-path S --image null:1T\n\n\
        A disk of this machine's own kernel, with the module vduse:\n  \
        linkspan blk --vduse disk0 --image disk.img &\n  \
        vdpa dev add name disk0 mgmtdev vduse",
    group = ArgGroup::new("where").args(["socket_path", "fd", "vduse", "print_capabilities"]).required(true)
)]
pub struct Args {
    /// Where the virtual machine monitor connects: a Unix socket that is made here
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Use this inherited descriptor in place of a socket path: one that listens,
    /// or one that is connected already
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,

    /// Make it a vDPA device of this machine's kernel, with this name
    #[arg(long, value_name = "NAME", value_parser = vduse::name)]
    vduse: Option<Name>,

    /// The disk: a file or a block device by its path, or by file:PATH if the path
    /// has a colon; mem:SIZE for memory that is gone at the end; null:SIZE for
    /// nothing, whose reads leave buffers as they are, or null:SIZE,read-zeroes
    #[arg(
        long,
        visible_alias = "blk-file",
        value_name = "IMAGE",
        required_unless_present = "print_capabilities",
        value_parser = OsStringValueParser::new().try_map(|text| Spec::parse(&text))
    )]
    image: Option<Spec>,

    /// What the bytes of the file mean: raw or qcow2. Never guessed; raw if not given
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Allow a qcow2 image to stand on files below this folder: its backing images
    /// and its data file. May be given again
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,

    /// Bytes of a logical block, 512 to 32768; what the image likes best if not given
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    block_size: Option<u32>,

    /// The serial number that the guest sees, at most 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "linkspan", value_parser = serial)]
    serial: Serial,

    /// The most queues that a driver may use
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,

    /// The largest queue, in requests; a power of two
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = queue_size)]
    queue_size: u16,

    /// Refuse writes
    #[arg(long)]
    read_only: bool,

    #[command(flatten)]
    io: io::IoArgs,

    /// Print what this program can do, in the form that management software
    /// expects of a vhost-user program, and exit
    #[arg(long)]
    print_capabilities: bool,

    /// Print what happens to the link on standard output, one JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    workers: WorkerArgs,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    vduse_args: VduseArgs,
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size >= 2 && size.is_power_of_two() => Ok(size),
        _ => Err("a power of two from 2 to 32768".into()),
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    match parse_size(text).map(u32::try_from) {
        Ok(Ok(size)) if (512..=32768).contains(&size) && size.is_power_of_two() => Ok(size),
        _ => Err("a power of two from 512 to 32768".into()),
    }
}

type Serial = [u8; ID_BYTES];

fn serial(text: &str) -> Result<Serial, String> {
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if text.len() > ID_BYTES || !printable {
        return Err(format!("at most {ID_BYTES} characters of ASCII"));
    }
    let mut serial = [0; ID_BYTES];
    serial[..text.len()].copy_from_slice(text.as_bytes());
    Ok(serial)
}

/// Serves the disk until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.print_capabilities {
        return serving::print_capabilities("block", &["blk-file", "read-only"]);
    }
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate, Signal::Hangup])
        .context("cannot watch for signals")?;
    let workers = args.workers.start(args.queues)?;
    let image = open_image(args)?;
    let device = BlockDevice::with_options(Arc::clone(&image), &args.disk_options())
        .context("the image makes no block device")?;
    let device = Arc::new(match args.limits.limit() {
        Some(limit) => device.with_limit(limit),
        None => device,
    });
    let shared = Arc::clone(&device) as Arc<dyn Device>;
    let server = match &args.vduse {
        None => {
            let report = serving::reporter(None, args.json);
            let server = vhost_user::serve(listen(args)?, shared, workers, report);
            server.context("cannot start serving")?
        }
        Some(name) => {
            let vduse = &args.vduse_args;
            vduse.serve(name, shared, workers, None, args.json)?
        }
    };
    while let Wake::Cancelled =
        wait_for(server.ended(), Direction::Read, Some(signals.as_fd()), None)
            .context("cannot wait for a signal")?
    {
        let came = signals.take().context("cannot take a signal")?;
        if came.contains(&Signal::Hangup) {
            resize(&device, &server);
        }
        if came.iter().any(|signal| *signal != Signal::Hangup) {
            break;
        }
    }
    tracing::info!("ending: finishing what is in flight");
    server.stop()?;
    image
        .sync()
        .context("the image could not be made durable")?;
    Ok(())
}

/// Looks again how large the image is, and tells the driver.
fn resize(device: &BlockDevice, server: &Server) {
    match device.resize() {
        Ok(Some(bytes)) => {
            tracing::info!("the disk has {bytes} bytes now");
            server.config_changed();
        }
        Ok(None) => tracing::info!("the image has the size that it had"),
        Err(error) => tracing::warn!("the disk keeps its size: {error}"),
    }
}

impl Args {
    fn disk_options(&self) -> DiskOptions {
        DiskOptions {
            block_size: self.block_size,
            serial: self.serial,
            ..DiskOptions::new(self.queues, self.queue_size)
        }
    }

    fn image_options(&self) -> ImageOptions {
        ImageOptions {
            file: self.io.options(self.read_only),
            format: self.format,
            allow_backing: self.allow_backing.clone(),
        }
    }
}

fn open_image(args: &Args) -> Result<Arc<dyn Image>, Failure> {
    let Some(spec) = &args.image else {
        return Err(Failure::new(
            Status::Usage,
            anyhow::anyhow!("--image is missing"),
        ));
    };
    image::open(spec, &args.image_options()).map_err(|error| {
        let hint = if error.permission_denied().is_some() {
            Some("give yourself access to the image, or --read-only if reading is enough")
        } else if error.io_uring_refused() {
            Some("--io threads needs no io_uring")
        } else {
            None
        };
        let status = match hint {
            Some(_) => Status::Missing,
            None if error.is_usage() => Status::Usage,
            None => Status::Failed,
        };
        let error = anyhow::Error::new(error).context("cannot open the image");
        let failure = Failure::new(status, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn listen(args: &Args) -> Result<Inherited, Failure> {
    if let Some(fd) = args.fd {
        return inherit(fd).map_err(|error| Failure::new(Status::Usage, error));
    }
    let path = args.socket_path.as_deref().unwrap_or(Path::new(""));
    let listener =
        Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(Inherited::Listener(listener))
}
