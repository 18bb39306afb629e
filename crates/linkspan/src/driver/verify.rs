//! `linkspan driver blk verify`: several writers that remember what was
//! acknowledged, and find it again, whatever happens to the back end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use linkspan_backends::disk::{DiskError, DiskQueue};
use linkspan_devices::block::SECTOR;
use linkspan_devices::block::Status as Answered;
use linkspan_devices::block::driver::{Answer, Command};
use serde::Serialize;

use super::bytes;
use super::disk::next_answer;
use super::target::Target;
use crate::exit::{Failure, Status};

/// Bytes of a block: each is written and read whole.
const BLOCK: u32 = 4096;

/// Options of `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Yes, overwrite what is on the disk
    #[arg(long)]
    overwrite: bool,
    /// Writers; each has a queue and a part of the disk of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    queues: u16,
    /// Requests at a time of each writer
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Seconds of load; then everything is read once more
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    seconds: u64,
    /// How much of the disk, from its start [default: all, at most 64M a writer]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    length: Option<u64>,
    /// Where random choices begin; the same number makes the same choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Blocks of a writer at most: what it remembers of each is in memory.
const BLOCKS_MAX: u64 = (64 << 20) / BLOCK as u64;

#[derive(Debug, Default, Serialize)]
struct Counts {
    writes: u64,
    reads: u64,
    blocks: u64,
}

/// Runs the load and reports.
pub(super) fn run(target: &Target, args: &Args) -> Result<(), Failure> {
    if !args.overwrite {
        return Err(Failure::new(
            Status::Usage,
            anyhow!("verify writes to the disk and destroys what is on it"),
        )
        .hint("--overwrite, if that is meant"));
    }
    let buffers = u64::from(args.depth) * u64::from(BLOCK);
    let disk = target.open(args.queues, args.depth, buffers)?;
    let length = args
        .length
        .unwrap_or(disk.info.size_bytes)
        .min(disk.info.size_bytes);
    let blocks = (length / u64::from(BLOCK) / u64::from(args.queues)).min(BLOCKS_MAX);
    if blocks < u64::from(args.depth) * 2 {
        let need = u64::from(args.depth) * 2 * u64::from(args.queues) * u64::from(BLOCK);
        return Err(Failure::new(
            Status::Usage,
            anyhow!("{length} bytes are too few: at least {need}"),
        ));
    }
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    let results: Vec<Result<Counts, Failure>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..)
            .zip(disk.queues)
            .map(|(number, queue)| {
                let mut writer = Writer::new(number, blocks, args.depth, args.seed, queue);
                scope.spawn(move || writer.run(target, deadline))
            })
            .collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|_| Err(anyhow!("a writer panicked").into())))
            .collect()
    });
    let mut total = Counts::default();
    for result in results {
        let counts = result?;
        total.writes += counts.writes;
        total.reads += counts.reads;
        total.blocks += counts.blocks;
    }
    if args.json {
        println!("{}", serde_json::to_string(&total)?);
    } else {
        println!(
            "{} writes and {} reads of {BLOCK} bytes; all {} blocks hold what was acknowledged last",
            total.writes, total.reads, total.blocks
        );
    }
    Ok(())
}

struct Writer {
    number: u64,
    queue: DiskQueue,
    random: Random,
    /// The version of each block that was acknowledged last; 0: never written.
    acknowledged: Vec<u32>,
    /// What each slot is doing.
    doing: HashMap<u64, Doing>,
    /// Whether something is under way for a block.
    busy: Vec<bool>,
    free: Vec<u64>,
    counts: Counts,
    /// The next block of the last reading of everything.
    sweep: Option<usize>,
}

#[derive(Clone, Copy)]
struct Doing {
    block: usize,
    /// The version that is being written; a read expects the acknowledged one.
    write: Option<u32>,
}

impl Writer {
    fn new(number: u64, blocks: u64, depth: u16, seed: u64, queue: DiskQueue) -> Self {
        let blocks = usize::try_from(blocks).expect("a bounded number of blocks");
        Self {
            number,
            queue,
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (number + 1)),
            acknowledged: vec![0; blocks],
            doing: HashMap::new(),
            busy: vec![false; blocks],
            free: (0..u64::from(depth)).collect(),
            counts: Counts::default(),
            sweep: None,
        }
    }

    fn run(&mut self, target: &Target, deadline: Instant) -> Result<Counts, Failure> {
        loop {
            if self.sweep.is_none() && (Instant::now() >= deadline || target.is_stopped()) {
                self.sweep = Some(0);
            }
            if !self.fill().map_err(|error| target.failure(error))? && self.doing.is_empty() {
                self.counts.blocks = self.acknowledged.len() as u64;
                return Ok(std::mem::take(&mut self.counts));
            }
            let answer = self
                .queue
                .kick()
                .and_then(|()| next_answer(&mut self.queue));
            self.judge(answer.map_err(|error| target.failure(error))?)?;
        }
    }

    /// Submits as much as there are free slots; whether there was something to do.
    fn fill(&mut self) -> Result<bool, DiskError> {
        while let Some(slot) = self.free.pop() {
            let Some(doing) = self.choose() else {
                self.free.push(slot);
                return Ok(false);
            };
            let at = slot * u64::from(BLOCK);
            let (data, span) = self
                .queue
                .buffer(at, BLOCK)
                .expect("a buffer for each slot");
            let first = self.number * self.acknowledged.len() as u64 + doing.block as u64;
            let sector = first * (u64::from(BLOCK) / SECTOR);
            let table = self.queue.memory().memory().table();
            let command = match doing.write {
                Some(version) => {
                    table.slice(span).write(&self.content(doing.block, version));
                    Command::Write { sector, data }
                }
                None => {
                    table.slice(span).write(&[0xA5; BLOCK as usize]);
                    Command::Read { sector, data }
                }
            };
            if !self.queue.submit(command, slot)? {
                self.free.push(slot);
                return Ok(true);
            }
            self.busy[doing.block] = true;
            self.doing.insert(slot, doing);
        }
        Ok(true)
    }

    /// The next thing to do: a write or a read of a block with nothing under way,
    /// or at the end each block in turn.
    fn choose(&mut self) -> Option<Doing> {
        if let Some(block) = self.sweep {
            if block == self.acknowledged.len() || self.busy[block] {
                return None;
            }
            self.sweep = Some(block + 1);
            return Some(Doing { block, write: None });
        }
        loop {
            let block = self.random.below(self.acknowledged.len());
            if !self.busy[block] {
                let write = self.random.below(2) == 0 || self.acknowledged[block] == 0;
                let write = write.then_some(self.acknowledged[block] + 1);
                return Some(Doing { block, write });
            }
        }
    }

    fn judge(&mut self, answer: Answer) -> Result<(), Failure> {
        let doing = self
            .doing
            .remove(&answer.token)
            .expect("an answer to what was asked");
        let Doing { block, write } = doing;
        let number = self.number;
        if answer.status != Answered::Ok {
            return Err(
                anyhow!("writer {number}: the disk reports an error for block {block}").into(),
            );
        }
        match write {
            Some(version) => {
                self.acknowledged[block] = version;
                self.counts.writes += 1;
            }
            None => {
                self.counts.reads += 1;
                self.compare(answer.token, block)?;
            }
        }
        self.busy[block] = false;
        self.free.push(answer.token);
        Ok(())
    }

    fn compare(&self, slot: u64, block: usize) -> Result<(), Failure> {
        let version = self.acknowledged[block];
        if version == 0 {
            return Ok(());
        }
        let (_, span) = self
            .queue
            .buffer(slot * u64::from(BLOCK), BLOCK)
            .expect("as before");
        let mut found = [0; BLOCK as usize];
        self.queue
            .memory()
            .memory()
            .table()
            .slice(span)
            .read(&mut found);
        if found == self.content(block, version) {
            return Ok(());
        }
        let older = (1..version)
            .rev()
            .find(|old| found == self.content(block, *old));
        let what = match older {
            Some(old) => format!("version {old}"),
            None => "something else".to_owned(),
        };
        let number = self.number;
        Err(anyhow!(
            "writer {number}, block {block}: version {version} was acknowledged, the disk has {what}"
        )
        .into())
    }

    /// What a version of a block consists of: no two have a word in common.
    fn content(&self, block: usize, version: u32) -> [u8; BLOCK as usize] {
        let seed = (self.number << 48) ^ ((block as u64) << 24) ^ u64::from(version);
        let mut random = Random(seed.wrapping_mul(0xD134_2543_DE82_EF95) | 1);
        let mut bytes = [0; BLOCK as usize];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        bytes
    }
}

/// Choices that can be repeated (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is small against 2^64.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }
}
