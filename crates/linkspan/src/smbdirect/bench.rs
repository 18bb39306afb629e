//! `linkspan smbdirect bench`: sends, RDMA writes or RDMA reads, one after the other over
//! many connections, and what they cost this end.

mod load;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use linkspan_backends::rdma::Host;
use linkspan_backends::smbdirect::{Endpoint, EndpointError};
use linkspan_smbdirect::{Options, Role, wire};
use serde::Serialize;

use super::meeting::{Initiator, resolve};
use super::parameters::{Parameters, Provider, Wire, config};
use crate::driver::bytes;
use crate::driver::figures::{check_seconds, cpu_seconds};
use crate::exit::{Failure, Status};
use load::{Goal, Load};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Messages, which the listener counts or returns
    Send,
    /// RDMA writes into memory that the listener registered
    Write,
    /// RDMA reads out of it
    Read,
    /// As an upper layer would: writes from --rdma-threshold bytes on, or else messages
    Auto,
}

impl Mode {
    fn default_size(self, options: &Options) -> u32 {
        match self {
            Self::Send => options.max_send_size - wire::DATA_OFFSET,
            Self::Write | Self::Read | Self::Auto => options.max_read_write_size.min(1 << 20),
        }
    }

    fn kind(self, size: u64, options: &Options) -> Kind {
        match self {
            Self::Write => Kind::Write,
            Self::Read => Kind::Read,
            Self::Auto if options.by_rdma(size, false) => Kind::Write,
            Self::Send | Self::Auto => Kind::Send,
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Send,
    Write,
    Read,
}

/// Options of `bench`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The listener is one of ours: it hands over the memory that writes and reads go to.\n\
        Nothing here is RDMA hardware; figures of one machine compare with TCP on it.\n\n\
        Example:\n\n  \
        linkspan smbdirect listen --sink &\n  \
        sleep 1\n  \
        linkspan smbdirect bench 127.0.0.1 --mode write --size 1M --seconds 2"
)]
pub(super) struct Args {
    /// Who: a name or an address, and a port unless it is 5445, or 445 of devices other than iWARP
    #[arg(value_name = "HOST[:PORT]", default_value = "127.0.0.1")]
    host: String,

    /// What to do
    #[arg(long, value_enum, default_value = "send")]
    mode: Mode,

    /// Bytes of a message [default: what one send holds], or of an RDMA transfer
    /// [default: 1M]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    size: Option<u64>,

    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,

    /// Messages or transfers under way on each connection [default: 255 messages, 4
    /// transfers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: Option<u16>,

    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,

    /// So many messages or transfers over each connection, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    messages: Option<u64>,

    /// Where `status` connects
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Writes what goes over the connections to a file that Wireshark reads; replaces it
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

#[derive(Serialize)]
struct Report {
    mode: Kind,
    /// What the listener does with messages.
    peer: &'static str,
    size: u32,
    connections: u16,
    depth: u16,
    seconds: f64,
    messages: u64,
    messages_per_second: f64,
    bytes_per_second: f64,
    /// Of this process, one of two ends.
    cpu_seconds: f64,
    cpu_ns_per_byte: f64,
    /// Of this process, for data and to wait for it.
    system_calls: u64,
    system_calls_per_mib: f64,
    /// What was written was read back, what was read is what was there, and messages came
    /// back as they were sent, as far as they do.
    verified: bool,
}

/// Measures and reports.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    check_seconds(args.seconds)?;
    let mut config = config(Role::Initiator, &args.parameters, &args.wire);
    config.iwarp.connections = usize::from(args.connections);
    let what = what(args, &config.options)?;
    match args.wire.provider {
        Provider::Tcp => measure(args, what, Endpoint::new(config)),
        Provider::Verbs => measure(args, what, Endpoint::of_devices(config)),
    }
}

/// What is done on each connection.
#[derive(Clone, Copy, Debug)]
struct What {
    mode: Kind,
    size: u32,
    depth: u16,
}

/// What is asked for, within what the options allow.
fn what(args: &Args, options: &Options) -> Result<What, Failure> {
    let default = args.mode.default_size(options);
    let size = args.size.unwrap_or(default.into());
    let mode = args.mode.kind(size, options);
    let max = match mode {
        Kind::Send => 16 << 20,
        Kind::Write | Kind::Read => options.max_read_write_size,
    };
    let fits = u32::try_from(size).ok();
    let fits = fits.filter(|size| (1..=max).contains(size));
    let size = fits.ok_or_else(|| {
        let error = anyhow!("--size {size}: 1 to {max} bytes are possible");
        Failure::new(Status::Usage, error)
    })?;
    let depth = args.depth.unwrap_or(match mode {
        Kind::Send => 255.min(options.queue),
        Kind::Write | Kind::Read => 4.min(options.queue / 4),
    });
    Ok(What { mode, size, depth })
}

fn measure<C: Host>(
    args: &Args,
    what: What,
    endpoint: Result<Endpoint<C>, EndpointError>,
) -> Result<(), Failure> {
    let What { mode, size, depth } = what;
    let pcap = super::create(args.pcap.as_deref())?;
    let addresses = resolve(&args.host, args.wire.provider)?;
    let goal = match args.messages {
        Some(messages) => Goal::Messages(messages),
        None => Goal::Time(Duration::from_secs_f64(args.seconds)),
    };
    let mut initiator = Initiator::new(
        endpoint.map_err(super::no_endpoint)?,
        args.control.as_deref(),
    )?;
    if let Some(file) = pcap {
        initiator.endpoint.capture(file).context("cannot capture")?;
    }
    let mut load = Load::new(&mut initiator, mode, size, depth)?;
    load.connect(&addresses, args.connections)?;
    let (calls, cpu) = (load.system_calls(), cpu_seconds());
    let seconds = load.run(goal)?.as_secs_f64();
    let (calls, cpu) = (load.system_calls() - calls, cpu_seconds() - cpu);
    let verified = load.verify()?;
    let (messages, peer) = (load.messages(), load.peer());
    initiator.end();
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (count, bytes) = (messages as f64, (messages * u64::from(size)) as f64);
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let system_calls_per_mib = calls as f64 / (bytes / f64::from(1 << 20));
    let report = Report {
        mode,
        peer: peer.name(),
        size,
        connections: args.connections,
        depth,
        seconds,
        messages,
        messages_per_second: count / seconds,
        bytes_per_second: bytes / seconds,
        cpu_seconds: cpu,
        cpu_ns_per_byte: cpu * 1e9 / bytes,
        system_calls: calls,
        system_calls_per_mib,
        verified,
    };
    say(&report, args.json)?;
    if !verified {
        let error = anyhow!("what arrived is not what was sent");
        return Err(Failure::new(Status::PeerBroke, error));
    }
    Ok(())
}

fn say(report: &Report, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    println!(
        "{:.1} MB a second, {:.0} a second ({} of {} bytes in {:.2} s)",
        report.bytes_per_second / 1e6,
        report.messages_per_second,
        report.messages,
        report.size,
        report.seconds,
    );
    println!(
        "{:.3} ns of processor a byte and {:.1} system calls a MiB at this end",
        report.cpu_ns_per_byte, report.system_calls_per_mib,
    );
    Ok(())
}
