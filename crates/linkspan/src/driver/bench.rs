//! `linkspan driver blk bench`: how fast a disk answers.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use linkspan_backends::disk::{DiskError, DiskQueue};
use linkspan_devices::block::SECTOR;
use linkspan_devices::block::Status as Answered;
use linkspan_devices::block::driver::{Answer, Command};
use serde::Serialize;

use super::bytes;
use super::figures::{Latency, check_seconds, cpu_seconds, new_histogram};
use super::target::Target;
use super::verify::Random;
use crate::exit::{Failure, Status};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    /// Reads at random places
    Randread,
    /// Writes at random places; destroys what is on the disk
    Randwrite,
    /// Reads from the start on, again and again
    Read,
    /// Writes from the start on; destroys what is on the disk
    Write,
}

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to do
    #[arg(long, value_enum, default_value_t = Operation::Randread)]
    op: Operation,
    /// Bytes of each request; a multiple of 512
    #[arg(long, value_name = "BYTES", default_value = "4K", value_parser = bytes)]
    block_size: u64,
    /// Requests at a time on each queue
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Queues, each driven by a thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Look for answers all the time and never sleep
    #[arg(long)]
    poll: bool,
    /// How long to look for answers, as long as that pays, before it sleeps; with 0 it
    /// sleeps at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, conflicts_with = "poll",
        value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    poll_us: u64,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    op: Operation,
    block_size: u64,
    depth: u16,
    queues: u16,
    poll: bool,
    /// Absent with `poll`.
    #[serde(skip_serializing_if = "Option::is_none")]
    poll_us: Option<u64>,
    seconds: f64,
    operations: u64,
    iops: f64,
    bytes_per_second: f64,
    latency_us: Latency,
    /// Processor time of this process, the driver's side alone.
    cpu_seconds_per_million: f64,
}

/// Measures and reports.
pub(super) fn run(target: &Target, args: &Args) -> Result<(), Failure> {
    let block_size = u32::try_from(args.block_size).unwrap_or(0);
    if block_size == 0 || !args.block_size.is_multiple_of(SECTOR) || block_size > 1 << 24 {
        let text = anyhow!(
            "--block-size {} is not a multiple of 512 up to 16M",
            args.block_size
        );
        return Err(Failure::new(Status::Usage, text));
    }
    check_seconds(args.seconds)?;
    let buffers = u64::from(args.depth) * u64::from(block_size);
    let disk = target.open(args.queues, args.depth, buffers)?;
    let blocks = disk.info.size_bytes / u64::from(block_size);
    if blocks == 0 {
        return Err(Failure::new(
            Status::Usage,
            anyhow!("the disk is smaller than a block"),
        ));
    }
    let cpu_before = cpu_seconds();
    let start = Instant::now();
    let length = Duration::from_secs_f64(args.seconds);
    let results: Vec<Result<Histogram<u64>, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(disk.queues)
            .map(|(number, queue)| {
                let load = Load {
                    op: args.op,
                    block_size,
                    blocks,
                    poll: args.poll,
                    end: start + length,
                };
                let mut runner = Runner::new(load, number, args, queue);
                scope.spawn(move || runner.run(target))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|_| Err(anyhow!("a thread panicked").into())))
            .collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu_before;
    let mut latency = new_histogram()?;
    for result in results {
        latency.add(result?).context("latencies")?;
    }
    report(args, &latency, seconds, cpu)
}

fn report(args: &Args, latency: &Histogram<u64>, seconds: f64, cpu: f64) -> Result<(), Failure> {
    let operations = latency.len();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let count = operations as f64;
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let block_size = args.block_size as f64;
    let report = Report {
        op: args.op,
        block_size: args.block_size,
        depth: args.depth,
        queues: args.queues,
        poll: args.poll,
        poll_us: (!args.poll).then_some(args.poll_us),
        seconds,
        operations,
        iops: count / seconds,
        bytes_per_second: count * block_size / seconds,
        latency_us: Latency::of(latency),
        cpu_seconds_per_million: cpu / (count / 1e6),
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!(
        "{:.0} operations a second, {:.1} MiB a second ({operations} in {seconds:.2} s)",
        report.iops,
        report.bytes_per_second / f64::from(1 << 20)
    );
    println!("{}", report.latency_us);
    println!(
        "{:.2} processor seconds per million operations on this side",
        report.cpu_seconds_per_million
    );
    Ok(())
}

#[derive(Clone, Copy)]
struct Load {
    op: Operation,
    block_size: u32,
    blocks: u64,
    poll: bool,
    end: Instant,
}

struct Runner {
    load: Load,
    queue: DiskQueue,
    random: Random,
    next: u64,
    started: Vec<Instant>,
    free: Vec<usize>,
}

impl Runner {
    fn new(load: Load, number: u64, args: &Args, mut queue: DiskQueue) -> Self {
        let depth = usize::from(args.depth);
        queue.look_for(Duration::from_micros(args.poll_us));
        Self {
            random: Random(0x9E37_79B9_7F4A_7C15 ^ (number + 1)),
            next: load.blocks / u64::from(args.queues) * number,
            started: vec![Instant::now(); depth],
            free: (0..depth).collect(),
            load,
            queue,
        }
    }

    fn run(&mut self, target: &Target) -> Result<Histogram<u64>, Failure> {
        let mut latency = new_histogram()?;
        let mut now = Instant::now();
        loop {
            let over = now >= self.load.end || target.is_stopped();
            if over && self.queue.outstanding() == 0 {
                return Ok(latency);
            }
            if !over {
                self.fill(now).map_err(|error| target.failure(error))?;
            }
            let answered = self.reap(&mut latency);
            match answered {
                Err(Ended::Queue(DiskError::Link(_))) if target.is_stopped() => return Ok(latency),
                Err(Ended::Queue(error)) => return Err(target.failure(error)),
                Err(Ended::Answer) => return Err(anyhow!("the disk reports an error").into()),
                // What comes next begins when the last answer was there.
                Ok(answered) => now = answered,
            }
        }
    }

    fn fill(&mut self, now: Instant) -> Result<(), DiskError> {
        if self.free.is_empty() {
            return Ok(());
        }
        while let Some(slot) = self.free.pop() {
            let at = slot as u64 * u64::from(self.load.block_size);
            let (data, _) = self
                .queue
                .buffer(at, self.load.block_size)
                .expect("a buffer for each slot");
            let block = match self.load.op {
                Operation::Randread | Operation::Randwrite => self.random.next() % self.load.blocks,
                Operation::Read | Operation::Write => {
                    self.next = (self.next + 1) % self.load.blocks;
                    self.next
                }
            };
            let sector = block * (u64::from(self.load.block_size) / SECTOR);
            let command = match self.load.op {
                Operation::Randread | Operation::Read => Command::Read { sector, data },
                Operation::Randwrite | Operation::Write => Command::Write { sector, data },
            };
            self.started[slot] = now;
            if !self.queue.submit(command, slot as u64)? {
                self.free.push(slot);
                break;
            }
        }
        self.queue.kick()
    }

    /// Takes all answers that are there, and says when that was; sleeps first if
    /// there is none.
    fn reap(&mut self, latency: &mut Histogram<u64>) -> Result<Instant, Ended> {
        let mut answer = self.queue.answer()?;
        while answer.is_none() {
            if self.load.poll {
                std::hint::spin_loop();
            } else {
                self.queue.wait(None)?;
            }
            answer = self.queue.answer()?;
        }
        let now = Instant::now();
        while let Some(Answer { token, status }) = answer {
            if status != Answered::Ok {
                return Err(Ended::Answer);
            }
            let slot = usize::try_from(token).expect("tokens are slots");
            let taken = now.duration_since(self.started[slot]).as_nanos();
            latency.saturating_record(u64::try_from(taken).unwrap_or(u64::MAX));
            self.free.push(slot);
            answer = self.queue.answer()?;
        }
        Ok(now)
    }
}

enum Ended {
    Queue(DiskError),
    Answer,
}

impl From<DiskError> for Ended {
    fn from(error: DiskError) -> Self {
        Self::Queue(error)
    }
}
