//! `linkspan driver net bench`: how many frames a network device takes and gives.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use linkspan_backends::nic::{NicError, NicLayout, NicOptions, NicPair, Side, Wanted};
use linkspan_devices::net::Frame;
use linkspan_sys::EventFd;
use linkspan_virtio::Features;
use serde::Serialize;

use super::figures::{Latency, check_seconds, cpu_seconds, new_histogram};
use super::net::{failure, open};
use super::stamped::Stamped;
use super::target::Target;
use crate::exit::{Failure, Status};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Frames to the device
    Tx,
    /// Frames from the device
    Rx,
    /// Frames to a device that sends them back
    Loop,
}

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to do
    #[arg(long, value_enum, default_value_t = Mode::Tx)]
    mode: Mode,
    /// Bytes of each frame that is sent, without checksum
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u16).range(60..=9216))]
    size: u16,
    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// Frames at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: u16,
    /// Entries of each ring; a power of two
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(64..=32768))]
    ring: u16,
    /// Frames on the way of each pair with --mode loop, half a ring unless this
    /// says something else
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32768))]
    window: Option<u16>,
    /// Look at the rings all the time and never sleep
    #[arg(long)]
    poll: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    mode: Mode,
    size: u16,
    queues: u16,
    batch: u16,
    ring: u16,
    poll: bool,
    packed: bool,
    in_order: bool,
    mergeable: bool,
    seconds: f64,
    /// Frames that were given to the device.
    sent: u64,
    /// Frames that it gave to us.
    received: u64,
    /// Bytes of those.
    received_bytes: u64,
    /// The frames of each queue pair.
    pairs: Vec<PairReport>,
    /// With `tx` frames that it did not take, with `loop` those that did not come back.
    lost: u64,
    /// Frames that came and were not as they were sent.
    damaged: u64,
    /// Frames that came behind later ones.
    disordered: u64,
    /// With `tx`, the share of passes in which the ring had no room for a whole batch:
    /// 1 when the driver waited for the device all the time.
    full: f64,
    /// How often a device took the place of a lost one.
    reconnects: u64,
    /// Whether its control queue was used.
    control_queue: bool,
    /// How often the device asked for an announcement.
    announcements: u64,
    mpps: f64,
    gbit_per_second: f64,
    /// From the batch that a frame was sent with to the one that it came back with.
    latency_us: Option<Latency>,
    /// Processor time of this process, the driver's side alone.
    cpu_seconds_per_million: f64,
}

#[derive(Serialize)]
struct PairReport {
    sent: u64,
    received: u64,
}

/// How long to wait for frames that are still on the way.
const DRAIN: Duration = Duration::from_secs(5);

/// A loop in which nothing has moved for so long has lost its frames.
const STALL: Duration = Duration::from_millis(200);

/// Passes without a look at the clock, where nothing else needs it.
const PASSES: u32 = 64;

/// Bytes of the longest frame that others send unasked.
const FOREIGN: u16 = 1522;

pub(super) fn run(
    target: &Target,
    (options, wanted): (NicOptions, Wanted),
    args: &Args,
) -> Result<(), Failure> {
    check_seconds(args.seconds)?;
    if !args.ring.is_power_of_two() {
        let error = anyhow!("--ring {} is not a power of two", args.ring);
        return Err(Failure::new(Status::Usage, error));
    }
    let layout = NicLayout::new(args.ring, args.size, args.size.max(FOREIGN));
    let mut device = open(target, (options, wanted), layout)?;
    let stop = EventFd::new().context("no descriptor can be had")?;
    let control_queue = device.control.is_some();
    let announced = AtomicU64::new(0);
    let cpu_before = cpu_seconds();
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let results: Vec<Result<Tally, Failure>> = std::thread::scope(|scope| {
        let keeper = device.control.take().map(|mut control| {
            let (link, stop, announced) = (&device.link, stop.as_fd(), &announced);
            scope.spawn(move || {
                // Its own frames say where it is.
                let announce = || {
                    announced.fetch_add(1, Ordering::Relaxed);
                };
                control.keep(link, stop, announce)
            })
        });
        let threads: Vec<_> = (0..)
            .zip(device.pairs)
            .map(|(number, pair)| {
                let work = Work {
                    target,
                    args,
                    number,
                    end,
                };
                scope.spawn(move || work.run(pair))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        let panicked = || anyhow!("a thread panicked").into();
        let mut results: Vec<_> = joined
            .map(|result| result.unwrap_or_else(|_| Err(panicked())))
            .collect();
        // It fails only when the counter is full, and then it is readable.
        let _ = stop.signal();
        match keeper.map(|keeper| keeper.join()) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(NicError::Link(_)))) if target.is_stopped() => {}
            Some(Ok(Err(error))) => results.push(Err(failure(target, error))),
            Some(Err(_)) => results.push(Err(panicked())),
        }
        results
    });
    let cpu = cpu_seconds() - cpu_before;
    drop(device.link);
    let mut total = Tally::new()?;
    let mut pairs = Vec::new();
    for result in results {
        let tally = result?;
        total.add(&tally)?;
        let (sent, received) = (tally.sent, tally.received);
        pairs.push(PairReport { sent, received });
    }
    let control = control_queue.then(|| announced.into_inner());
    report(
        args,
        options,
        device.features,
        (&total, pairs, control),
        cpu,
    )
}

fn report(
    args: &Args,
    options: NicOptions,
    features: Features,
    (total, pairs, announced): (&Tally, Vec<PairReport>, Option<u64>),
    cpu: f64,
) -> Result<(), Failure> {
    let (frames, bytes, lost) = match args.mode {
        Mode::Tx => (
            total.taken,
            total.taken * u64::from(args.size),
            total.sent.saturating_sub(total.taken),
        ),
        Mode::Rx => (total.received, total.bytes, 0),
        Mode::Loop => (
            total.received,
            total.bytes,
            total.sent.saturating_sub(total.received),
        ),
    };
    let seconds = total.length.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (million, bits, full) = (
        frames as f64 / 1e6,
        bytes as f64 * 8.0,
        total.full as f64 / total.passes.max(1) as f64,
    );
    let report = Report {
        mode: args.mode,
        size: args.size,
        queues: options.pairs,
        batch: args.batch,
        ring: args.ring,
        poll: args.poll,
        packed: features.contains(Features::VIRTIO_F_RING_PACKED),
        in_order: features.contains(Features::VIRTIO_F_IN_ORDER),
        mergeable: features.contains(linkspan_devices::net::features::VIRTIO_NET_F_MRG_RXBUF),
        seconds,
        sent: total.sent,
        received: total.received,
        received_bytes: total.bytes,
        pairs,
        lost,
        damaged: total.damaged,
        disordered: total.disordered,
        full,
        reconnects: total.losses,
        control_queue: announced.is_some(),
        announcements: announced.unwrap_or(0),
        mpps: million / seconds,
        gbit_per_second: bits / seconds / 1e9,
        latency_us: (args.mode == Mode::Loop).then(|| Latency::of(&total.latency)),
        cpu_seconds_per_million: cpu / million,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!(
        "{:.3} million frames a second, {:.3} Gbit/s ({frames} in {seconds:.2} s)",
        report.mpps, report.gbit_per_second
    );
    println!(
        "sent {}, received {}, lost {lost}, damaged {}, out of order {}, reconnects {}",
        total.sent, total.received, total.damaged, total.disordered, total.losses
    );
    if let Some(latency) = &report.latency_us {
        println!("{latency}");
    }
    println!(
        "{:.3} processor seconds per million frames on this side",
        report.cpu_seconds_per_million
    );
    Ok(())
}

/// What a pair did.
struct Tally {
    sent: u64,
    taken: u64,
    received: u64,
    bytes: u64,
    damaged: u64,
    disordered: u64,
    /// Times that a batch was to be sent, and that it was not sent whole.
    passes: u64,
    full: u64,
    losses: u64,
    length: Duration,
    latency: Histogram<u64>,
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            sent: 0,
            taken: 0,
            received: 0,
            bytes: 0,
            damaged: 0,
            disordered: 0,
            passes: 0,
            full: 0,
            losses: 0,
            length: Duration::ZERO,
            latency: new_histogram()?,
        })
    }

    fn add(&mut self, other: &Self) -> Result<(), Failure> {
        self.sent += other.sent;
        self.taken += other.taken;
        self.received += other.received;
        self.bytes += other.bytes;
        self.damaged += other.damaged;
        self.disordered += other.disordered;
        self.passes += other.passes;
        self.full += other.full;
        // Each pair sees each of them.
        self.losses = self.losses.max(other.losses);
        self.length = self.length.max(other.length);
        self.latency.add(&other.latency).context("latencies")?;
        Ok(())
    }
}

/// What one thread is to do with its pair.
struct Work<'a> {
    target: &'a Target,
    args: &'a Args,
    number: u16,
    end: Instant,
}

impl Work<'_> {
    fn run(&self, mut pair: NicPair) -> Result<Tally, Failure> {
        let mut tally = Tally::new()?;
        let start = Instant::now();
        let done = match self.args.mode {
            Mode::Tx => self.transmit(&mut pair, &mut tally),
            Mode::Rx => self.receive(&mut pair, &mut tally),
            Mode::Loop => self.go_round(&mut pair, &mut tally),
        };
        tally.length = Instant::now().min(self.end.max(start)) - start;
        tally.losses = pair.losses();
        match done {
            Err(NicError::Link(_)) if self.target.is_stopped() => Ok(tally),
            Err(error) => Err(failure(self.target, error)),
            Ok(()) => Ok(tally),
        }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.end || self.target.is_stopped()
    }

    /// Sends as fast as the device takes frames.
    fn transmit(&self, pair: &mut NicPair, tally: &mut Tally) -> Result<(), NicError> {
        let mut stamped = Stamped::new(self.args.size, self.number, self.args.batch);
        'all: loop {
            for _ in 0..PASSES {
                if pair.room() < self.args.batch {
                    tally.taken += u64::from(pair.reclaim()?);
                }
                let sent = send(pair, &mut stamped, (self.args.batch, 0), tally)?;
                tally.passes += 1;
                tally.full += u64::from(sent < self.args.batch);
                pair.flush()?;
                if sent == 0 {
                    if self.args.poll {
                        std::hint::spin_loop();
                    } else if !pair.wait(Side::Transmit, Some(self.end))? {
                        break 'all;
                    }
                }
            }
            if self.is_over() {
                break;
            }
        }
        let mut progress = Instant::now();
        while tally.taken < tally.sent && pair.losses() == 0 && progress.elapsed() < DRAIN {
            match pair.reclaim()? {
                0 => std::thread::yield_now(),
                some => {
                    tally.taken += u64::from(some);
                    progress = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// Takes whatever comes, and looks at none of it.
    fn receive(&self, pair: &mut NicPair, tally: &mut Tally) -> Result<(), NicError> {
        pair.fetch_ahead(0);
        loop {
            for _ in 0..PASSES {
                let (mut frames, mut bytes) = (0, 0);
                let batch = pair.receive(self.args.batch.into(), |received| {
                    frames += 1;
                    bytes += received.frame.len();
                })?;
                tally.received += frames;
                tally.bytes += bytes;
                tally.damaged += u64::from(batch.short + batch.buffers + batch.headers);
                if frames > 0 {
                    continue;
                }
                if self.args.poll {
                    std::hint::spin_loop();
                } else if !pair.wait(Side::Receive, Some(self.end))? {
                    return Ok(());
                }
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    /// Keeps a window of frames on the way and looks at each that comes back.
    fn go_round(&self, pair: &mut NicPair, tally: &mut Tally) -> Result<(), NicError> {
        let start = Instant::now();
        let mut round = Round {
            stamped: Stamped::new(self.args.size, self.number, self.args.batch),
            gone: 0,
            written_off: 0,
            next: 0,
            scratch: vec![0; usize::from(self.args.size)],
        };
        let window = u64::from(self.args.window.unwrap_or(self.args.ring / 2));
        let (mut progress, mut losses) = (start, 0);
        loop {
            let now = Instant::now();
            let over = now >= self.end || self.target.is_stopped();
            let elapsed = nanoseconds(now - start);
            if pair.room() < self.args.batch {
                pair.reclaim()?;
            }
            let came = round.take(pair, tally, self.args.batch, elapsed)?;
            if came {
                progress = now;
            }
            if pair.losses() != losses {
                losses = pair.losses();
                round.gone = tally.sent.saturating_sub(tally.received);
                round.written_off = round.gone;
            }
            let mut on_the_way = round.on_the_way(tally);
            let all_came = tally.received + round.gone >= tally.sent;
            if over && (all_came || now - progress >= DRAIN) {
                tally.taken = tally.sent;
                return Ok(());
            }
            if !over && now - progress >= STALL {
                round.written_off += on_the_way;
                (on_the_way, progress) = (0, now);
            }
            let mut room = window.saturating_sub(on_the_way);
            room = if over {
                0
            } else {
                room.min(self.args.batch.into())
            };
            // At most a batch.
            let room = u16::try_from(room).unwrap_or(self.args.batch);
            let sent = send(pair, &mut round.stamped, (room, elapsed), tally)?;
            if sent > 0 {
                pair.flush()?;
            } else if !came && !self.args.poll {
                pair.wait(Side::Receive, Some(now + STALL / 4))?;
            }
        }
    }
}

/// Sends as many frames as the device takes, but no more than so many; how many.
#[inline]
fn send(
    pair: &mut NicPair,
    stamped: &mut Stamped,
    (most, now): (u16, u64),
    tally: &mut Tally,
) -> Result<u16, NicError> {
    stamped.stamp(most, tally.sent, now);
    for sent in 0..most {
        if !pair.send(&Frame::private(stamped.frame(sent)))? {
            return Ok(sent);
        }
        tally.sent += 1;
    }
    Ok(most)
}

/// Where a loop stands.
struct Round {
    stamped: Stamped,
    /// Frames that went with their device.
    gone: u64,
    /// Frames that are not waited for any more. Some may come nevertheless.
    written_off: u64,
    /// Number of the frame that comes next, if none is lost.
    next: u64,
    scratch: Vec<u8>,
}

impl Round {
    fn on_the_way(&mut self, tally: &Tally) -> u64 {
        let open = tally.sent.saturating_sub(tally.received);
        self.written_off = self.written_off.min(open);
        open - self.written_off
    }

    /// Takes a batch of frames and looks at them; false when none came.
    fn take(
        &mut self,
        pair: &mut NicPair,
        tally: &mut Tally,
        budget: u16,
        now: u64,
    ) -> Result<bool, NicError> {
        let Self {
            stamped,
            next,
            scratch,
            ..
        } = self;
        // Frames of one batch that were sent with one batch have one latency.
        let (mut frames, mut sent_at, mut alike) = (0_u64, 0, 0);
        let batch = pair.receive(budget.into(), |received| {
            frames += 1;
            tally.bytes += received.frame.len();
            match stamped.read(&received, scratch) {
                Some((number, _)) if number >= tally.sent => tally.damaged += 1,
                Some((number, at)) => {
                    if number < *next {
                        tally.disordered += 1;
                    }
                    *next = number + 1;
                    if at != sent_at {
                        record(&mut tally.latency, now, sent_at, alike);
                        (sent_at, alike) = (at, 0);
                    }
                    alike += 1;
                }
                None => tally.damaged += 1,
            }
        })?;
        record(&mut tally.latency, now, sent_at, alike);
        tally.received += frames;
        let dropped = u64::from(batch.short + batch.buffers + batch.headers);
        tally.damaged += dropped;
        Ok(frames + dropped > 0)
    }
}

fn record(latency: &mut Histogram<u64>, now: u64, at: u64, count: u64) {
    if count > 0 {
        // Longer than a minute counts as a minute.
        latency.saturating_record_n(now.saturating_sub(at).max(1), count);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
