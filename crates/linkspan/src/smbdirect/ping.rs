//! `linkspan smbdirect ping`: who is there, what was negotiated, and how long a round trip
//! takes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use hdrhistogram::Histogram;
use linkspan_backends::rdma::Host;
use linkspan_backends::smbdirect::{
    Endpoint, EndpointError, Happening, Hello, Mode, Peer, Welcome,
};
use linkspan_mem::Region;
use linkspan_rdma::verbs::Slice;
use linkspan_smbdirect::{Role, State};
use serde::Serialize;
use serde_json::Value;

use super::meeting::{Initiator, Met, failure, resolve, started};
use super::parameters::{Parameters, Provider, Wire, config};
use super::status;
use crate::driver::bytes;
use crate::driver::figures::new_histogram;
use crate::exit::{Failure, Status};

/// How long a peer may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a round trip may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Options of `ping`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An echo returns messages; of other peers, SMB servers among them, signs of life are timed.\n\n\
        Example:\n\n  \
        linkspan smbdirect ping fileserver --count 100 --json"
)]
pub(super) struct Args {
    /// Who: a name or an address, and a port unless it is 5445, or 445 of devices other than iWARP
    #[arg(value_name = "HOST[:PORT]")]
    host: String,

    /// Round trips
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    count: u32,

    /// Bytes of a message to an echo
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = bytes)]
    size: u64,

    /// Where `status` connects
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Writes what goes over the connection to a file that Wireshark reads; replaces it
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// As one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    parameters: Parameters,

    #[command(flatten)]
    wire: Wire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Echo,
    KeepAlive,
}

#[derive(Serialize)]
struct Report<'a> {
    address: String,
    peer: &'a str,
    negotiation_ms: f64,
    negotiated: Value,
    kind: Kind,
    size: u64,
    round_trips: u64,
    rtt_us: Times,
}

/// Of round trips, in microseconds.
#[derive(Serialize)]
struct Times {
    min: f64,
    median: f64,
    p99: f64,
    max: f64,
}

/// Connects, asks, and reports.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let config = config(Role::Initiator, &args.parameters, &args.wire);
    match args.wire.provider {
        Provider::Tcp => ping(args, Endpoint::new(config)),
        Provider::Verbs => ping(args, Endpoint::of_devices(config)),
    }
}

fn ping<C: Host>(args: &Args, endpoint: Result<Endpoint<C>, EndpointError>) -> Result<(), Failure> {
    let pcap = super::create(args.pcap.as_deref())?;
    let addresses = resolve(&args.host, args.wire.provider)?;
    let mut initiator = Initiator::new(
        endpoint.map_err(super::no_endpoint)?,
        args.control.as_deref(),
    )?;
    if let Some(file) = pcap {
        initiator.endpoint.capture(file).context("cannot capture")?;
    }
    let met = initiator.meet(&addresses, Hello::default(), PATIENCE)?;
    let kind = match &met.peer {
        Some(
            Peer::Echo
            | Peer::Ours(Welcome {
                mode: Mode::Echo, ..
            }),
        ) => Kind::Echo,
        _ => Kind::KeepAlive,
    };
    let peer = name(met.peer.as_ref());
    if !args.json {
        introduce(&met, &peer);
    }
    let times = trips(args, kind, &met, &mut initiator)?;
    initiator.end();
    report(args, kind, &met, &peer, &times)
}

fn name(peer: Option<&Peer>) -> String {
    match peer {
        Some(Peer::Ours(welcome)) => format!("linkspan, {}", welcome.mode.name()),
        Some(Peer::Smb { dialect: 0, status }) => format!("an SMB server, status {status:#010x}"),
        Some(Peer::Smb { dialect, .. }) => {
            format!("an SMB server such as ksmbd, dialect {dialect:#06x}")
        }
        Some(Peer::Echo) => "an echo".to_owned(),
        Some(Peer::Other) => "unknown: it answers with something else".to_owned(),
        None => "unknown: it does not answer messages".to_owned(),
    }
}

fn introduce(met: &Met, peer: &str) {
    let core = &met.core;
    println!(
        "{}: {peer}; negotiated in {:.2} ms",
        met.address,
        met.negotiation.as_secs_f64() * 1e3
    );
    println!(
        "sizes: send {}, receive {}, message {} out and {} in, RDMA {}",
        core.max_send_size,
        core.max_receive_size,
        core.max_fragmented_send_size,
        core.max_fragmented_receive_size,
        core.max_read_write_size,
    );
    println!(
        "credits: {} granted of {} wanted; the peer wants {}; {} reads at a time",
        core.send_credits, core.send_credit_target, core.receive_credit_target, core.outbound_reads,
    );
}

fn report(
    args: &Args,
    kind: Kind,
    met: &Met,
    peer: &str,
    times: &Histogram<u64>,
) -> Result<(), Failure> {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let rtt_us = Times {
        min: microseconds(times.min()),
        median: microseconds(times.value_at_quantile(0.5)),
        p99: microseconds(times.value_at_quantile(0.99)),
        max: microseconds(times.max()),
    };
    if !args.json {
        let what = match kind {
            Kind::Echo => format!("{} bytes", args.size),
            Kind::KeepAlive => "signs of life".to_owned(),
        };
        println!(
            "{} round trips, {what}: min {:.1} µs, median {:.1} µs, 99 % {:.1} µs, max {:.1} µs",
            times.len(),
            rtt_us.min,
            rtt_us.median,
            rtt_us.p99,
            rtt_us.max,
        );
        return Ok(());
    }
    let report = Report {
        address: met.address.to_string(),
        peer,
        negotiation_ms: met.negotiation.as_secs_f64() * 1e3,
        negotiated: status::core(&met.core),
        kind,
        size: args.size,
        round_trips: times.len(),
        rtt_us,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Times round trips; a signal ends them early.
fn trips<C: Host>(
    args: &Args,
    kind: Kind,
    met: &Met,
    initiator: &mut Initiator<C>,
) -> Result<Histogram<u64>, Failure> {
    let mut times = new_histogram()?;
    let message = match kind {
        Kind::Echo => Some(message(args, met, initiator)?),
        Kind::KeepAlive => None,
    };
    for number in 0..args.count {
        let begin = Instant::now();
        if !trip(number, message, met, initiator)? {
            break;
        }
        let taken = begin.elapsed().as_nanos();
        times.saturating_record(u64::try_from(taken).unwrap_or(u64::MAX));
    }
    Ok(times)
}

/// The message that is sent.
fn message<C: Host>(
    args: &Args,
    met: &Met,
    initiator: &mut Initiator<C>,
) -> Result<Slice, Failure> {
    let max = met.core.max_fragmented_send_size;
    let own = met.core.max_fragmented_receive_size;
    let len = u32::try_from(args.size)
        .ok()
        .filter(|len| (1..=max.min(own)).contains(len));
    let len = len.ok_or_else(|| {
        let error = anyhow!(
            "--size {}: messages have 1 to {} bytes here",
            args.size,
            max.min(own)
        );
        Failure::new(Status::Usage, error)
    })?;
    let region = Region::heap(len as usize).context("memory")?;
    let memory = initiator.endpoint.add_memory(region).context("memory")?;
    Ok(Slice {
        memory,
        len,
        offset: 0,
    })
}

/// The bytes of a message: each is another one.
fn pattern(number: u32, len: u32) -> Vec<u8> {
    (0..len)
        .map(|at| (at ^ at >> 8 ^ number).to_le_bytes()[0])
        .collect()
}

/// One round trip; whether it came to its end.
fn trip<C: Host>(
    number: u32,
    message: Option<Slice>,
    met: &Met,
    initiator: &mut Initiator<C>,
) -> Result<bool, Failure> {
    let gone = "the connection is gone";
    let bytes = message.map(|slice| {
        let bytes = pattern(number, slice.len);
        initiator.endpoint.fill(slice.memory, 0, &bytes);
        bytes
    });
    let mut session = initiator.endpoint.session(met.id).context(gone)?;
    match message {
        Some(slice) => started(session.send(&[slice]))?,
        None => started(session.ask())?,
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let error = anyhow!("no answer within {} s", LIMIT.as_secs());
            let error = error.context(met.address.to_string());
            return Err(Failure::new(Status::PeerUnreachable, error));
        }
        initiator.endpoint.wait(Some(left)).context("cannot wait")?;
        if initiator.is_stopped() {
            return Ok(false);
        }
        let mut answer = None;
        while let Some((_, happening)) = initiator.endpoint.poll() {
            match happening {
                Happening::Received => answer = initiator.take(met.id).or(answer),
                Happening::Ended(gone) => return Err(failure(met.address, &gone)),
                _ => {}
            }
        }
        match (&bytes, answer) {
            (Some(sent), Some(answer)) if *sent == answer => return Ok(true),
            (Some(sent), Some(answer)) => {
                let error = anyhow!(
                    "a message of {} bytes came back as {} other ones",
                    sent.len(),
                    answer.len()
                );
                return Err(Failure::new(Status::PeerBroke, error));
            }
            (None, _) => {
                let session = initiator.endpoint.session(met.id).context(gone)?;
                let status = session.status();
                if status.state == State::Connected && !status.awaits_sign_of_life {
                    return Ok(true);
                }
            }
            (Some(_), None) => {}
        }
    }
}
