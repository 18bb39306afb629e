//! Options of how an image is read and written.

use std::time::Duration;

use clap::ValueEnum;
use linkspan_backends::image::{Durability, Io, LOCK_WAIT, OpenOptions};

/// How an image is read and written.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct IoArgs {
    /// Who reads and writes what is not cached
    #[arg(long, value_name = "HOW", value_enum, default_value_t = IoArg::Auto)]
    io: IoArg,

    /// What is cached by this machine, and when a write is durable
    #[arg(long, value_name = "MODE", value_enum, default_value_t = CacheArg::Writeback)]
    cache: CacheArg,

    /// The same as --cache none
    #[arg(long, conflicts_with = "cache")]
    direct: bool,

    /// Read what is cached by system calls, and never through a mapping of the image
    #[arg(long)]
    no_map: bool,

    /// The guest may migrate to another host, where the same image is open, or come from
    /// there: the image is locked only while a guest's queues run. Nothing is cached, as
    /// with --direct
    #[arg(long, conflicts_with_all = ["cache", "vduse"])]
    migratable: bool,

    /// How long to wait for another process to let go of the image: one that was
    /// killed keeps it until its reads and writes have ended
    #[arg(long, value_name = "SECONDS", default_value_t = LOCK_WAIT.as_secs())]
    lock_wait: u64,
}

/// `--io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IoArg {
    /// The workers themselves if the image is in memory, else io_uring, or
    /// threads where that is refused
    Auto,
    /// io_uring, or fail where it is refused
    Uring,
    /// Threads
    Threads,
}

/// `--cache`, in QEMU's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CacheArg {
    /// Cached; a write is durable once the guest flushes
    Writeback,
    /// Cached; each write is durable when it is answered
    Writethrough,
    /// Not cached (O_DIRECT); a write is durable once the guest flushes
    None,
    /// Not cached (O_DIRECT); each write is durable when it is answered
    Directsync,
    /// Cached, and flushes do nothing: a crash of this machine may ruin the image
    Unsafe,
}

impl IoArgs {
    /// These, as an image is opened with them.
    pub(super) fn options(self, read_only: bool) -> OpenOptions {
        let cache = if self.direct || self.migratable {
            CacheArg::None
        } else {
            self.cache
        };
        OpenOptions {
            read_only,
            lock_wait: Duration::from_secs(self.lock_wait),
            io: match self.io {
                IoArg::Auto => Io::Auto,
                IoArg::Uring => Io::Uring,
                IoArg::Threads => Io::Threads,
            },
            direct: matches!(cache, CacheArg::None | CacheArg::Directsync),
            durability: match cache {
                CacheArg::Writeback | CacheArg::None => Durability::Flush,
                CacheArg::Writethrough | CacheArg::Directsync => Durability::EachWrite,
                CacheArg::Unsafe => Durability::Nothing,
            },
            mapped: !self.no_map,
            migratable: self.migratable,
        }
    }
}
