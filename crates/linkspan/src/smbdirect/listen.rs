//! `linkspan smbdirect listen`: returns messages, or counts them.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::slice;

use anyhow::{Context, anyhow};
use linkspan_backends::rdma::Host;
use linkspan_backends::smbdirect::{Classes, Endpoint, EndpointError, Happened, Mode, Service};
use linkspan_smbdirect::Role;
use linkspan_sys::signals::{Signal, Signals};
use serde::Serialize;

use super::control::Question;
use super::parameters::{Parameters, Provider, Wire, config};
use super::status;
use crate::control::{Askers, Control};
use crate::driver::bytes;
use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving::print;
use crate::tether::{self, Desk};

/// Options of `listen`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: for the network, with a socket to ask how it is\n\n  \
        linkspan smbdirect listen --addr 0.0.0.0 --control /run/smbd.sock\n\n\
        Nobody proves who they are: whoever reaches the address may use it, within its caps."
)]
pub(super) struct Args {
    /// Where to listen: an address, and a port unless it is 5445; of devices other than
    /// iWARP, 445
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1", value_parser = address)]
    addr: At,

    /// Returns each message as one message [default]
    #[arg(long, conflicts_with = "sink")]
    echo: bool,

    /// Counts messages
    #[arg(long)]
    sink: bool,

    /// Where `status` connects
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Classes that are logged: event, send, receive, credit, keep-alive, memory, with
    /// commas between them, or all; `status --log` changes that
    #[arg(long, value_name = "CLASSES", default_value = "none")]
    log: Classes,

    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,

    /// Connections at a time from one address
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    per_address: u32,

    /// Bytes of --budget in which messages from one address may be, over TCP; others of it
    /// wait then [default: half of it]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    share: Option<u64>,

    /// Connections at a time that have not negotiated; others wait then. One address has
    /// a quarter of them at most
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    half_open: u32,

    /// Bytes of memory that peers are given to write and to read by RDMA, and bytes of
    /// messages that are on their way back, each
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes)]
    memory: u64,

    /// Writes what goes over connections to a file that Wireshark reads; replaces it
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    parameters: Parameters,

    #[command(flatten)]
    wire: Wire,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let addresses = self.addr.addresses(self.wire.provider).into_iter();
        let control = self.control.clone().map(Use::Socket);
        let pcap = self.pcap.clone().map(Use::Makes);
        addresses
            .map(|address| ("addr", Use::Listens(address)))
            .chain(control.map(|used| ("control", used)))
            .chain(pcap.map(|used| ("pcap", used)))
            .collect()
    }
}

/// An address, and a port if there was one.
#[derive(Clone, Copy, Debug)]
struct At(IpAddr, Option<u16>);

impl At {
    fn addresses(self, provider: Provider) -> Vec<SocketAddr> {
        let Self(address, port) = self;
        let ports = port.as_ref().map_or(provider.ports(), slice::from_ref);
        let ports = ports.iter();
        ports.map(|port| (address, *port).into()).collect()
    }
}

fn address(text: &str) -> Result<At, String> {
    let whole = text.parse::<SocketAddr>().ok();
    let whole = whole.map(|it| At(it.ip(), Some(it.port())));
    let alone = || Some(At(text.parse().ok()?, None));
    whole
        .or_else(alone)
        .ok_or_else(|| "an address such as 127.0.0.1, [::1]:5445".to_owned())
}

/// What happens, as a line of JSON.
#[derive(Serialize, Default)]
struct Line {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Others that ended badly and are not told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<u64>,
}

const SIGNALS: u32 = 0;
const CONTROL: u32 = 1;
const SEEN: u32 = 2;

/// Serves until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut config = config(Role::Listener, &args.parameters, &args.wire);
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    config.iwarp.connections = count(args.connections);
    config.iwarp.per_address = count(args.per_address);
    config.iwarp.half_open = count(args.half_open);
    config.iwarp.share = match args.share {
        Some(share) => usize::try_from(share).unwrap_or(usize::MAX),
        None => config.iwarp.budget / 2,
    };
    match args.wire.provider {
        Provider::Tcp => serve(args, Endpoint::new(config)),
        Provider::Verbs => serve(args, Endpoint::of_devices(config)),
    }
}

fn serve<C: Host>(
    args: &Args,
    endpoint: Result<Endpoint<C>, EndpointError>,
) -> Result<(), Failure> {
    // Before signals are kept for us: the other end of a pipe may never come.
    let pcap = super::create(args.pcap.as_deref())?;
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let mut service = service(args, endpoint.map_err(super::no_endpoint)?, pcap)?;
    let control = args.control.as_deref();
    let control = control
        .map(|path| Control::new(path, Askers::All))
        .transpose()?;
    let desk = Desk::new().context("cannot wait")?;
    tether::watch("smbdirect", service.messages());
    let watched = || -> io::Result<()> {
        service.watch(&signals, SIGNALS)?;
        service.watch(desk.event(), SEEN)?;
        control
            .as_ref()
            .map_or(Ok(()), |control| service.watch(control.event(), CONTROL))
    };
    watched().context("cannot wait")?;
    for address in listen(args, &mut service)? {
        tracing::info!("listening at {address}");
        if args.json {
            let event = "listening";
            let address = Some(address);
            print(&Line {
                event,
                address,
                ..Line::default()
            });
        }
    }
    // What a provider of devices does is its library's affair.
    if args.wire.provider == Provider::Tcp {
        sandbox::seal(Kind::SmbDirect, &[])?;
    }
    let mut past = status::Past::default();
    loop {
        service.turn().context("cannot wait")?;
        while let Some(happened) = service.happened() {
            report(&happened, args.json);
            past.take(&happened);
        }
        while let Some(number) = service.watched() {
            match (number, &control) {
                (CONTROL, Some(control)) => answer(control, &mut service),
                (SEEN, _) => desk.answer(|| status::seen(&service, &past)),
                _ => return end(&mut service, args.json),
            }
        }
    }
}

/// Listens at each port that the address has; where it can at one of them the others are
/// left out.
fn listen<C: Host>(args: &Args, service: &mut Service<C>) -> Result<Vec<SocketAddr>, Failure> {
    let mut found = Vec::new();
    let mut failure = None;
    for address in args.addr.addresses(args.wire.provider) {
        match service.listen(address) {
            Ok(address) => found.push(address),
            // Another port is the device's.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                failure.get_or_insert_with(|| no_listener(address, error));
            }
            Err(error) => failure = Some(no_listener(address, error)),
        }
    }
    match failure {
        Some(failure) if found.is_empty() => Err(failure),
        _ => Ok(found),
    }
}

fn service<C: Host>(
    args: &Args,
    endpoint: Endpoint<C>,
    pcap: Option<File>,
) -> Result<Service<C>, Failure> {
    let mode = if args.sink { Mode::Sink } else { Mode::Echo };
    let memory = usize::try_from(args.memory).unwrap_or(usize::MAX);
    let mut service = Service::new(endpoint, mode, memory, args.log);
    if let Some(file) = pcap {
        service.capture(file).context("cannot capture")?;
    }
    Ok(service)
}

fn no_listener(address: SocketAddr, error: io::Error) -> Failure {
    let status = match error.kind() {
        io::ErrorKind::PermissionDenied => Status::Missing,
        _ => Status::Failed,
    };
    let error = anyhow!(error).context(format!("cannot listen at {address}"));
    Failure::new(status, error)
}

fn answer<C: Host>(control: &Control<Question>, service: &mut Service<C>) {
    while let Some((question, answer)) = control.take() {
        if let Question::Log(classes) = question {
            service.log(classes);
        }
        // Whoever asked may have left.
        let _ = answer.send(status::lines(service));
    }
}

fn report(happened: &Happened, json: bool) {
    match happened {
        Happened::Connected { number, peer } => {
            tracing::debug!(connection = number, "{peer} is connected");
        }
        Happened::Ended { ended, left_out } => {
            let (reason, connection) = (ended.reason(), ended.number);
            if let Some(left_out) = left_out.filter(|_| ended.is_fault()) {
                tracing::warn!(
                    connection,
                    "{}: {reason} ({left_out} more like it)",
                    ended.peer
                );
            } else {
                tracing::debug!(connection, "{}: {reason}", ended.peer);
            }
        }
    }
    if let Some(line) = line(happened).filter(|_| json) {
        print(&line);
    }
}

/// What is told of it; nothing where peers that misbehave would have it told all the time.
fn line(happened: &Happened) -> Option<Line> {
    match happened {
        Happened::Connected { number, peer } => Some(Line {
            event: "connected",
            connection: Some(*number),
            peer: Some(*peer),
            ..Line::default()
        }),
        Happened::Ended { ended, left_out } => left_out.map(|left_out| Line {
            event: "ended",
            connection: Some(ended.number),
            peer: Some(ended.peer),
            messages: Some(ended.messages),
            bytes: Some(ended.bytes),
            reason: Some(ended.reason()),
            left_out: Some(left_out).filter(|count| *count > 0),
            ..Line::default()
        }),
    }
}

/// Ends all connections, and tells their peers.
fn end<C: Host>(service: &mut Service<C>, json: bool) -> Result<(), Failure> {
    service.stop().context("cannot wait")?;
    while let Some(happened) = service.happened() {
        report(&happened, json);
    }
    if json {
        print(&Line {
            event: "stopped",
            ..Line::default()
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_backends::smbdirect::{Ended, Gone};
    use linkspan_rdma::verbs::Failure;
    use linkspan_smbdirect::Error;

    /// Ours: peers that break the protocol filled whatever the lines went to.
    #[test]
    fn bad_ends_beyond_one_a_second_are_counted_and_not_told() {
        let peer = ([127, 0, 0, 1], 5445).into();
        let gone = Gone {
            number: 7,
            peer,
            error: Error::NoCredit,
            failure: Failure::Lost,
        };
        let ended = Ended {
            number: 7,
            peer,
            connected: true,
            messages: 1,
            bytes: 2,
            gone,
        };
        let told = |left_out| {
            let ended = ended.clone();
            line(&Happened::Ended { ended, left_out })
        };
        assert!(told(None).is_none());
        let first = told(Some(0)).unwrap();
        assert_eq!((first.connection, first.left_out), (Some(7), None));
        assert_eq!(told(Some(3)).unwrap().left_out, Some(3));
    }
}
