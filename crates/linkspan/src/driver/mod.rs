//! `linkspan driver`: drives a device from this process, without a guest.

mod bench;
mod disk;
pub(crate) mod figures;
mod net;
mod net_bench;
mod stamped;
mod target;
mod transfer;
mod verify;

use std::path::PathBuf;

use clap::Subcommand;
pub(crate) use linkspan_backends::image::parse_size as bytes;
use linkspan_engine::vhost_user::Reach;

use crate::exit::Failure;
use crate::vdpa;
use target::{Place, Target};

/// Options of `linkspan driver`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan driver blk --socket-path /tmp/disk.sock info\n  \
    linkspan driver net --socket-path /tmp/net.sock info")]
pub struct Args {
    #[command(subcommand)]
    device: DeviceKind,
}

#[derive(Debug, Subcommand)]
enum DeviceKind {
    /// Drives a disk
    Blk(BlkArgs),
    /// Drives a network device
    Net(net::Args),
}

/// Where the device is.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("where").args(["socket_path", "vdpa", "fd"]).required(true))]
struct ReachArgs {
    /// Where the back end listens
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// A vDPA device of the kernel, such as /dev/vhost-vdpa-0
    #[arg(long, value_name = "DEVICE")]
    vdpa: Option<PathBuf>,

    /// A vDPA device that is open already as this descriptor
    #[arg(long, value_name = "N")]
    fd: Option<i32>,

    /// Entries of each queue of a vDPA device; 0: as many as it has [default: what
    /// the command needs]
    #[arg(long, value_name = "N", conflicts_with = "socket_path")]
    queue_size: Option<u32>,

    /// Listen there ourselves, for a back end that connects
    #[arg(long, requires = "socket_path")]
    server: bool,

    /// Seconds that the back end may take to appear
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    connect_limit: u64,
}

impl ReachArgs {
    fn target(&self, packed: bool) -> Result<Target, Failure> {
        let queue_size = self.queue_size;
        let place = match (&self.socket_path, &self.vdpa, self.fd) {
            (Some(path), _, _) if self.server => Place::Socket(Reach::Listen(path.clone())),
            (Some(path), _, _) => Place::Socket(Reach::Connect(path.clone())),
            (None, Some(path), _) => Place::Vdpa {
                open: vdpa::at(path.clone()),
                queue_size,
            },
            (None, None, fd) => Place::Vdpa {
                open: vdpa::inherited(fd.unwrap_or(-1)),
                queue_size,
            },
        };
        Target::new(place, self.connect_limit, packed)
    }
}

/// Options of `linkspan driver blk`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan driver blk --socket-path /tmp/disk.sock info\n  \
    linkspan driver blk --socket-path /tmp/disk.sock read --length 1M --to start.bin\n  \
    linkspan driver blk --socket-path /tmp/disk.sock write --from start.bin\n  \
    linkspan driver blk --socket-path /tmp/disk.sock bench --op randread --depth 32 --seconds 5\n  \
    linkspan driver blk --vdpa /dev/vhost-vdpa-0 info\n\n\
    A back end that dies while a command runs is waited for: the command goes on with\n\
    the next one. Sizes take the suffixes K, M, G and T, powers of 1024.")]
struct BlkArgs {
    #[command(flatten)]
    reach: ReachArgs,

    /// Use packed rings; the back end must have them
    #[arg(long)]
    packed: bool,

    #[command(subcommand)]
    verb: BlkVerb,
}

#[derive(Debug, Subcommand)]
enum BlkVerb {
    /// Says what the disk is
    Info(disk::InfoArgs),
    /// Copies from the disk into a file
    Read(transfer::ReadArgs),
    /// Copies a file onto the disk
    Write(transfer::WriteArgs),
    /// Writes, reads back and compares under load; destroys what is on the disk
    Verify(verify::Args),
    /// Measures the disk
    Bench(bench::Args),
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let args = match &args.device {
        DeviceKind::Net(args) => return net::run(args),
        DeviceKind::Blk(args) => args,
    };
    let target = args.reach.target(args.packed)?;
    match &args.verb {
        BlkVerb::Info(verb) => disk::info(&target, verb),
        BlkVerb::Read(verb) => transfer::read(&target, verb),
        BlkVerb::Write(verb) => transfer::write(&target, verb),
        BlkVerb::Verify(verb) => verify::run(&target, verb),
        BlkVerb::Bench(verb) => bench::run(&target, verb),
    }
}
