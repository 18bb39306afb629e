//! `linkspan driver blk read` and `write`: between the disk and a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use linkspan_backends::disk::DiskQueue;
use linkspan_devices::block::SECTOR;
use linkspan_devices::block::Status as Answered;
use linkspan_devices::block::driver::Command;
use linkspan_mem::Span;

use super::bytes;
use super::disk::{Disk, next_answer};
use super::target::Target;
use crate::exit::{Failure, Status};

/// Requests at a time, and bytes of each: enough to keep any disk busy.
const DEPTH: u16 = 16;
const CHUNK: u32 = 256 << 10;

/// Options of `read`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "linkspan driver blk <--socket-path <PATH>|--vdpa <DEVICE>|--fd <N>>\n       \
        read [OPTIONS] --length <BYTES> --to <FILE>"
)]
pub(super) struct ReadArgs {
    /// First byte on the disk; a multiple of 512
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    offset: u64,
    /// How many bytes; a multiple of 512
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    length: u64,
    /// The file; it is replaced
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// Options of `write`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "linkspan driver blk <--socket-path <PATH>|--vdpa <DEVICE>|--fd <N>>\n       \
        write [OPTIONS] --from <FILE>"
)]
pub(super) struct WriteArgs {
    /// First byte on the disk; a multiple of 512
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    offset: u64,
    /// The file; all of it, a multiple of 512 bytes
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
}

/// Copies from the disk into a file.
pub(super) fn read(target: &Target, args: &ReadArgs) -> Result<(), Failure> {
    let mut disk = target.open(1, DEPTH, u64::from(DEPTH) * u64::from(CHUNK))?;
    check_range(&disk, args.offset, args.length)?;
    let mut file =
        File::create(&args.to).with_context(|| format!("cannot write {}", args.to.display()))?;
    let transfer = Transfer {
        target,
        offset: args.offset,
        length: args.length,
    };
    transfer.run(
        &mut disk.queues[0],
        |sector, data| Command::Read { sector, data },
        |_, _, _| Ok(()),
        |queue, at, span| {
            let mut chunk = vec![0; span.len() as usize];
            queue.memory().memory().table().slice(span).read(&mut chunk);
            // Answers come in any order.
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&chunk)
        },
    )?;
    file.sync_all()
        .with_context(|| format!("cannot write {}", args.to.display()))?;
    Ok(())
}

/// Copies a file onto the disk and makes it durable.
pub(super) fn write(target: &Target, args: &WriteArgs) -> Result<(), Failure> {
    let mut file =
        File::open(&args.from).with_context(|| format!("cannot read {}", args.from.display()))?;
    let length = file
        .metadata()
        .with_context(|| format!("cannot read {}", args.from.display()))?
        .len();
    let mut disk = target.open(1, DEPTH, u64::from(DEPTH) * u64::from(CHUNK))?;
    check_range(&disk, args.offset, length)?;
    if disk.info.read_only {
        return Err(anyhow!("the disk is read-only").into());
    }
    let transfer = Transfer {
        target,
        offset: args.offset,
        length,
    };
    transfer.run(
        &mut disk.queues[0],
        |sector, data| Command::Write { sector, data },
        |queue, at, span| {
            let mut chunk = vec![0; span.len() as usize];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut chunk)?;
            queue.memory().memory().table().slice(span).write(&chunk);
            Ok(())
        },
        |_, _, _| Ok(()),
    )?;
    if disk.info.flush {
        let (status, _) = super::disk::ask(target, &mut disk.queues[0], |_| Command::Flush, 0)?;
        if status != Answered::Ok {
            return Err(anyhow!("the disk could not make the data durable").into());
        }
    }
    Ok(())
}

fn check_range(disk: &Disk, offset: u64, length: u64) -> Result<(), Failure> {
    let usage = |error| Err(Failure::new(Status::Usage, error));
    if !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
        return usage(anyhow!(
            "offset {offset} and length {length} must be multiples of {SECTOR}"
        ));
    }
    let size = disk.info.size_bytes;
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => usage(anyhow!(
            "{length} bytes from {offset} on are not inside a disk of {size} bytes"
        )),
    }
}

struct Transfer<'a> {
    target: &'a Target,
    offset: u64,
    length: u64,
}

impl Transfer<'_> {
    /// Moves all chunks, [`DEPTH`] at a time. `before` and `after` a command get
    /// the distance of its chunk from the start and its place in memory.
    fn run(
        &self,
        queue: &mut DiskQueue,
        command: impl Fn(u64, linkspan_virtio::Buffer<linkspan_mem::Gpa>) -> Command<linkspan_mem::Gpa>,
        mut before: impl FnMut(&DiskQueue, u64, Span) -> std::io::Result<()>,
        mut after: impl FnMut(&DiskQueue, u64, Span) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let progress = progress(self.length);
        let mut free: Vec<u16> = (0..DEPTH).collect();
        // Where the chunk in each buffer begins.
        let mut chunks = [(0, Span::default()); DEPTH as usize];
        let mut next = 0;
        while next < self.length || free.len() < usize::from(DEPTH) {
            if self.target.is_stopped() {
                let done = progress.position();
                return Err(anyhow!("interrupted after {done} of {} bytes", self.length).into());
            }
            while next < self.length
                && let Some(slot) = free.pop()
            {
                let len = u32::try_from(self.length - next)
                    .unwrap_or(CHUNK)
                    .min(CHUNK);
                let (data, span) = queue
                    .buffer(u64::from(slot) * u64::from(CHUNK), len)
                    .expect("the queue was opened with these buffers");
                before(queue, next, span).context("the file")?;
                chunks[usize::from(slot)] = (next, span);
                let sector = (self.offset + next) / SECTOR;
                let taken = queue.submit(command(sector, data), u64::from(slot));
                assert!(
                    taken.map_err(|error| self.target.failure(error))?,
                    "as many slots as buffers"
                );
                next += u64::from(len);
            }
            let answer = queue.kick().and_then(|()| next_answer(queue));
            let answer = answer.map_err(|error| self.target.failure(error))?;
            let slot = u16::try_from(answer.token).expect("tokens are slots");
            let (at, span) = chunks[usize::from(slot)];
            if answer.status != Answered::Ok {
                let first = self.offset + at;
                return Err(anyhow!(
                    "the disk reports an error at byte {first}, {} bytes",
                    span.len()
                )
                .into());
            }
            after(queue, at, span).context("the file")?;
            progress.inc(u64::from(span.len()));
            free.push(slot);
        }
        progress.finish_and_clear();
        Ok(())
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
