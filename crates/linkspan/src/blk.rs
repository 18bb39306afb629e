//! `linkspan blk`: serves a disk image over vhost-user, or to the kernel.

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ArgGroup;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use linkspan_backends::block::{BlockDevice, DiskOptions};
use linkspan_backends::image::{self, Format, Image, ImageOptions, Spec, parse_size};
use linkspan_devices::block::ID_BYTES;
use linkspan_engine::vhost_user;
use linkspan_engine::{BLOCK_DEVICE, Device, Histogram, Server};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::{Inherited, inherit};
use linkspan_sys::vduse::Name;
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::limits::LimitArgs;
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving;
use crate::tether;
use crate::upgrade;
use crate::vduse::{self, VduseArgs};
use crate::vm::{Offer, Plug};
use crate::workers::WorkerArgs;
use share::Disk;

mod io;
mod share;

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
        linkspan blk --socket-path S --image null:1T\n  \
        linkspan blk --socket-path S --image smb://me@server/share/disk.img\n\n\
        A disk whose guest may move to another host that has the same file:\n  \
        linkspan blk --socket-path S --image /srv/shared/disk.img --migratable\n\n\
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
    /// has a colon; smb://[[domain;]user@]host[:port]/share/path for a file on a share;
    /// mem:SIZE for memory that is gone at the end; null:SIZE for
    /// nothing, whose reads leave buffers as they are, or null:SIZE,read-zeroes
    #[arg(
        long,
        visible_alias = "blk-file",
        value_name = "IMAGE",
        required_unless_present = "print_capabilities",
        value_parser = OsStringValueParser::new().try_map(|text| Disk::parse(&text))
    )]
    image: Option<Disk>,

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

    /// Time each request: `linkspan inspect` and the metrics show how long they take. It
    /// costs some percent of what a disk that is in memory does in a second
    #[arg(long)]
    latency: bool,

    // What has a heading of its own comes last, as the heading stays.
    #[command(flatten)]
    share: share::ShareArgs,

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
    let (successor, lent) = upgrade::begin()?.unzip();
    if successor.is_some() && args.vduse.is_some() {
        let error = anyhow::anyhow!("a disk of this machine's kernel cannot be taken over");
        return Err(Failure::new(Status::Failed, error).hint("`linkspan link restart`"));
    }
    let image = open_image(args, lent)?;
    let device = BlockDevice::with_options(Arc::clone(&image), &args.disk_options())
        .context("the image makes no block device")?;
    let device = match args.limits.limit() {
        Some(limit) => device.with_limit(limit),
        None => device,
    };
    let device = Arc::new(if args.latency {
        device.with_latency()
    } else {
        device
    });
    let shared = Arc::clone(&device) as Arc<dyn Device>;
    let prepared = image.prepare(args.queues, args.queue_size);
    prepared.context("cannot prepare the image for its queues")?;
    let kind = match args.is_local() {
        true => Kind::Block,
        false => Kind::BlockOnShare,
    };
    let server = match (&args.vduse, successor) {
        (None, Some(successor)) => {
            let report = serving::reporter(None, args.json);
            let path = args.socket_path.as_deref();
            sandbox::seal(kind, &[])?;
            vhost_user::take_over(successor, shared, workers, path, report)?
        }
        (None, None) => {
            let report = serving::reporter(None, args.json);
            let socket = listen(args)?;
            sandbox::seal(kind, &[])?;
            let server = vhost_user::serve(socket, shared, workers, report);
            server.context("cannot start serving")?
        }
        (Some(name), _) => {
            let vduse = &args.vduse_args;
            vduse.seal(kind)?;
            vduse.serve(name, shared, workers, None, args.json)?
        }
    };
    show(&device, &server);
    upgrade::offer(server.giver());
    while let Wake::Cancelled =
        wait_for(server.ended(), Direction::Read, Some(signals.as_fd()), None)
            .context("cannot wait for a signal")?
    {
        let came = signals.take().context("cannot take a signal")?;
        if came.contains(&Signal::Hangup) {
            resize(&device, &server);
            counts(&device, args.json);
        }
        if came.iter().any(|signal| *signal != Signal::Hangup) {
            break;
        }
    }
    if server.is_away() {
        // Another process has the disk, and what is to be made durable. The supervisor looks at
        // this end only if that process died before it said so: then there has to be a new one.
        counts(&device, args.json);
        server.stop()?;
        let error = anyhow::anyhow!("another process has the disk now");
        return Err(Failure::new(Status::Failed, error));
    }
    tracing::info!("ending: finishing what is in flight");
    image.hurry();
    server.stop()?;
    counts(&device, args.json);
    image
        .sync()
        .context("the image could not be made durable")?;
    Ok(())
}

/// What was counted of all queues until now.
#[derive(Default, Serialize)]
struct Counts {
    event: &'static str,
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
    discards: u64,
    write_zeroes: u64,
    /// Requests that were answered with an error.
    errors: u64,
}

/// All that was counted until now.
fn counted(device: &BlockDevice) -> Counts {
    let mut sum = Counts {
        event: "counts",
        ..Counts::default()
    };
    for queue in device.counters() {
        sum.reads += queue.reads.value();
        sum.read_bytes += queue.read_bytes.value();
        sum.writes += queue.writes.value();
        sum.written_bytes += queue.written_bytes.value();
        sum.flushes += queue.flushes.value();
        sum.discards += queue.discards.value();
        sum.write_zeroes += queue.write_zeroes.value();
        sum.errors += queue.errors.value();
    }
    sum
}

/// Says what was counted until now.
fn counts(device: &BlockDevice, json: bool) {
    let sum = counted(device);
    if json {
        serving::print(&sum);
    }
    tracing::info!(
        "{} reads of {} bytes, {} writes of {}, {} flushes, {} discards, {} times zeroes, {} errors",
        sum.reads,
        sum.read_bytes,
        sum.writes,
        sum.written_bytes,
        sum.flushes,
        sum.discards,
        sum.write_zeroes,
        sum.errors,
    );
}

/// What there is to see of the disk while it is served.
fn show(device: &Arc<BlockDevice>, server: &Server) {
    let (device, endpoint) = (Arc::downgrade(device), Arc::clone(server.endpoint()));
    tether::watch("disk", endpoint.messages());
    tether::show(move || {
        let device = device.upgrade()?;
        let seen = tether::endpoint("disk", BLOCK_DEVICE, &endpoint);
        let counts = serde_json::to_value(counted(&device)).ok()?;
        let latencies = device.latencies().iter();
        let queues: Vec<_> = latencies.map(|it| tether::latency(&it.latency())).collect();
        let all = Histogram::of(device.latencies().iter().map(|it| &**it));
        let timed = !queues.is_empty();
        Some(tether::with(
            seen,
            serde_json::json!({
                "requests": counts,
                "latency": timed.then(|| tether::latency(&all)),
                "latency_of_queues": timed.then_some(queues),
            }),
        ))
    });
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
    /// What it takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        let socket = self.socket_path.clone();
        let device = self.vduse.as_ref().map(|name| name.as_str().to_owned());
        let image = match &self.image {
            Some(Disk::Spec(Spec::File(path))) if self.read_only => Some(Use::Reads(path.clone())),
            Some(Disk::Spec(Spec::File(path))) => Some(Use::Writes(path.clone())),
            _ => None,
        };
        let backing = self.allow_backing.iter().cloned().map(Use::Folder);
        socket
            .map(|path| ("socket-path", Use::Socket(path)))
            .into_iter()
            .chain(device.map(|name| ("vduse", Use::Vduse(name))))
            .chain(image.map(|image| ("image", image)))
            .chain(backing.map(|folder| ("allow-backing", folder)))
            .collect()
    }

    /// Whether its bytes are on this machine.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.image, Some(Disk::Spec(_)))
    }

    /// What it gives to virtual machines.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let queues = self.queues;
        let socket = self.socket_path.clone();
        let offer = socket.map(|socket| Offer {
            plug: Plug::Disk { queues },
            socket,
        });
        offer.into_iter().collect()
    }

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

/// Opens the image, with what another process has lent that serves it.
fn open_image(args: &Args, lent: Option<Vec<OwnedFd>>) -> Result<Arc<dyn Image>, Failure> {
    let spec = match &args.image {
        Some(Disk::Spec(spec)) => spec,
        Some(Disk::Share(_)) if lent.is_some() => return Err(image::ImageError::NotLent.into()),
        Some(Disk::Share(url)) => return share::open(url, &args.share, &args.image_options()),
        None => {
            let error = anyhow::anyhow!("--image is missing");
            return Err(Failure::new(Status::Usage, error));
        }
    };
    let options = args.image_options();
    let image = match lent {
        None => image::open(spec, &options),
        Some(lent) => image::take_over(spec, &options, lent),
    };
    image.map_err(|error| {
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
