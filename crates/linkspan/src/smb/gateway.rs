//! `linkspan smb gateway`: SMB Direct in front of any SMB server that speaks TCP.

use std::net::{SocketAddr, ToSocketAddrs as _};

use anyhow::{Context, anyhow};
use linkspan_backends::smb::PORT;
use linkspan_backends::smb::gateway::{Config, FrontConfig, Gateway, Happened};
use linkspan_backends::smbdirect::{self, Endpoint, PORT_IWARP};
use linkspan_smbdirect::{Options, Role};
use linkspan_sys::signals::{Signal, Signals};
use serde::Serialize;
use serde_json::Value;

use crate::driver::bytes;
use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving::print;
use crate::smbdirect::status::each;
use crate::tether::{self, Desk};

/// Options of `gateway`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: SMB Direct for the network, in front of a Samba on this machine\n\n  \
        linkspan smb gateway --listen 0.0.0.0 --to 127.0.0.1:445\n\n\
        Data goes by RDMA for sessions that are neither signed nor encrypted; others are passed \
        on as they are. Log-on and access are the server's business."
)]
pub(super) struct Args {
    /// Where to listen: an address, and a port unless it is 5445
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1", value_parser = address)]
    listen: SocketAddr,

    /// The server: a host, and a port unless it is 445
    #[arg(long, value_name = "HOST[:PORT]")]
    to: String,

    /// Listens for TCP as well: an address, and a port unless it is 445. Clients that ask over it
    /// for the server's interfaces are told of SMB Direct
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = tcp_address)]
    listen_tcp: Option<SocketAddr>,

    #[command(flatten)]
    limits: Limits,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let tcp = self.listen_tcp.map(Use::Listens);
        let rdma = ("listen", Use::Listens(self.listen));
        [rdma]
            .into_iter()
            .chain(tcp.map(|used| ("listen-tcp", used)))
            .collect()
    }
}

/// What clients may have of it.
#[derive(Debug, clap::Args)]
pub(super) struct Limits {
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections: u32,

    /// Connections at a time from one address
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    per_address: u32,

    /// Bytes of data that is on its way in one direction, of all connections; others wait then.
    /// At least 8448K, for the longest READ and WRITE
    #[arg(long, value_name = "BYTES", default_value = "128M", value_parser = bytes)]
    memory: u64,

    /// Bytes of --memory for all connections from one address
    #[arg(long = "share", value_name = "BYTES", default_value = "32M", value_parser = bytes)]
    address_memory: u64,
}

impl Limits {
    /// What is usual, with so many connections, all of which may be from one address.
    pub(super) fn of(connections: u32) -> Self {
        Self {
            connections,
            per_address: connections,
            memory: 128 << 20,
            address_memory: 32 << 20,
        }
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let alone = || Some((text.parse::<std::net::IpAddr>().ok()?, PORT_IWARP).into());
    text.parse()
        .ok()
        .or_else(alone)
        .ok_or_else(|| "an address such as 127.0.0.1, [::1]:5445".to_owned())
}

pub(super) fn tcp_address(text: &str) -> Result<SocketAddr, String> {
    let alone = || Some((text.parse::<std::net::IpAddr>().ok()?, PORT).into());
    text.parse()
        .ok()
        .or_else(alone)
        .ok_or_else(|| "an address such as 127.0.0.1, [::1]:445".to_owned())
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// The addresses of a server.
fn servers(text: &str) -> Result<Vec<SocketAddr>, Failure> {
    let found = match text.to_socket_addrs() {
        Ok(found) => Ok(found.collect()),
        // There is no port.
        Err(_) => {
            let host = text.trim_start_matches('[').trim_end_matches(']');
            (host, PORT).to_socket_addrs().map(Iterator::collect)
        }
    };
    found.map_err(|error| {
        let error = anyhow!(error).context(format!("cannot find {text}"));
        Failure::new(Status::PeerUnreachable, error)
    })
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
    /// Messages and bytes from the client and from the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<[u64; 2]>,
    /// Bytes that were read from and written to the client's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// How often a client over TCP was told of SMB Direct.
    #[serde(skip_serializing_if = "Option::is_none")]
    told: Option<u64>,
    /// Others that ended badly and are not told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<u64>,
}

/// Prints that something listens there.
pub(super) fn listens(event: &'static str, address: SocketAddr) {
    print(&Line {
        event,
        address: Some(address),
        ..Line::default()
    });
}

/// The number of what ends it.
const END: u32 = 0;
const SEEN: u32 = 1;

/// Serves until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let servers = servers(&args.to)?;
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let mut gateway = start(args.listen, servers, &args.limits, args.json)?;
    if let Some(listen) = args.listen_tcp {
        front(&mut gateway, args, listen)?;
    }
    gateway.watch(&signals, END).context("cannot wait")?;
    sandbox::seal(Kind::SmbGateway, &[])?;
    serve(&mut gateway, args.json)
}

/// Has a gateway hear clients over TCP too, and says where.
fn front(gateway: &mut Gateway, args: &Args, listen: SocketAddr) -> Result<(), Failure> {
    let config = FrontConfig {
        listen,
        rdma: args.listen.ip(),
        connections: count(args.limits.connections),
        per_address: count(args.limits.per_address),
    };
    let address = gateway
        .listen_tcp(config)
        .with_context(|| format!("cannot listen at {listen}"))?;
    if args.listen.port() != PORT_IWARP {
        tracing::warn!("clients that are told of SMB Direct look for it at port {PORT_IWARP}");
    }
    tracing::info!("listening at {address} for TCP");
    if args.json {
        listens("serving", address);
    }
    Ok(())
}

/// A gateway that listens, and says where.
///
/// # Errors
/// What this machine refuses.
pub(super) fn start(
    listen: SocketAddr,
    servers: Vec<SocketAddr>,
    limits: &Limits,
    json: bool,
) -> Result<Gateway, Failure> {
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let to = servers.first().map(ToString::to_string);
    let mut config = Config::new(servers);
    config.memory = size(limits.memory);
    config.share = size(limits.address_memory);
    let least = config.least_memory();
    if config.memory < least {
        let error = anyhow!("--memory {} is less than {least}", limits.memory);
        let hint = format!(
            "--memory {}K or more: the longest message has to fit",
            least >> 10
        );
        return Err(Failure::new(Status::Usage, error).hint(hint));
    }
    let mut direct = smbdirect::Config::new(Role::Listener, Options::of(Role::Listener));
    direct.iwarp.connections = count(limits.connections);
    direct.iwarp.per_address = count(limits.per_address);
    let endpoint = Endpoint::new(direct).map_err(|error| Failure::new(Status::Failed, error))?;
    let mut gateway = Gateway::new(endpoint, config).context("cannot wait")?;
    let address = gateway
        .listen(listen)
        .with_context(|| format!("cannot listen at {listen}"))?;
    tracing::info!("listening at {address} for {}", to.unwrap_or_default());
    if json {
        listens("listening", address);
    }
    Ok(gateway)
}

/// Serves until something that is watched is readable.
///
/// # Errors
/// What waiting says.
pub(super) fn serve(gateway: &mut Gateway, json: bool) -> Result<(), Failure> {
    let desk = Desk::new().context("cannot wait")?;
    gateway.watch(desk.event(), SEEN).context("cannot wait")?;
    tether::watch("smb", &gateway.sights().messages);
    tether::watch("smbdirect", gateway.messages());
    let mut last_error = None;
    let mut running = true;
    while running {
        gateway.turn(None).context("cannot wait")?;
        while let Some(number) = gateway.watched() {
            match number {
                SEEN => desk.answer(|| seen(gateway, last_error.as_deref())),
                _ => running = false,
            }
        }
        report(gateway, json, &mut last_error);
    }
    gateway.stop().context("cannot wait")?;
    report(gateway, json, &mut last_error);
    if json {
        print(&Line {
            event: "stopped",
            ..Line::default()
        });
    }
    Ok(())
}

/// What there is to see of it.
fn seen(gateway: &Gateway, last_error: Option<&str>) -> Value {
    let (summary, traffic) = (gateway.summary(), gateway.traffic());
    serde_json::json!({
        "endpoint": "gateway",
        "address": gateway.address(),
        "last_error": last_error,
        "traffic": {
            "messages": traffic.up + traffic.down,
            "bytes": traffic.up_bytes + traffic.down_bytes,
            "fetched_bytes": traffic.fetched,
            "placed_bytes": traffic.placed,
        },
        "latency": tether::latency(&gateway.sights().latency.latency()),
        "peers": summary.connections,
        "pairs": summary.pairs,
        "stalled": summary.stalled,
        "buffers": summary.buffers,
        "connections": each(gateway.connections()),
    })
}

fn report(gateway: &mut Gateway, json: bool, last_error: &mut Option<String>) {
    while let Some(happened) = gateway.happened() {
        log(&happened);
        if let Happened::Ended { peer, end, .. } | Happened::Relayed { peer, end, .. } = &happened
            && end.is_bad()
        {
            *last_error = Some(format!("{peer}: {end}"));
        }
        if let Some(line) = line(&happened).filter(|_| json) {
            print(&line);
        }
    }
}

fn log(happened: &Happened) {
    match happened {
        Happened::Connected { number, peer } => {
            tracing::debug!(connection = number, "{peer} is connected");
        }
        Happened::Ended {
            number,
            peer,
            end,
            left_out: Some(left_out),
            ..
        } if end.is_bad() => {
            tracing::warn!(
                connection = number,
                "{peer}: {end} ({left_out} more like it)"
            );
        }
        Happened::Ended {
            number, peer, end, ..
        } => tracing::debug!(connection = number, "{peer}: {end}"),
        Happened::Relayed {
            peer,
            end,
            left_out: Some(left_out),
            ..
        } if end.is_bad() => {
            tracing::warn!("{peer} over TCP: {end} ({left_out} more like it)");
        }
        Happened::Relayed { peer, end, .. } => tracing::debug!("{peer} over TCP: {end}"),
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
        Happened::Ended {
            number,
            peer,
            traffic,
            end,
            left_out,
        } => left_out.map(|left_out| Line {
            event: "ended",
            connection: Some(*number),
            peer: Some(*peer),
            messages: Some([traffic.up, traffic.down]),
            bytes: Some([traffic.up_bytes, traffic.down_bytes]),
            rdma: Some([traffic.fetched, traffic.placed]),
            reason: Some(end.to_string()),
            left_out: Some(left_out).filter(|count| *count > 0),
            ..Line::default()
        }),
        Happened::Relayed {
            peer,
            bytes,
            told,
            end,
            left_out,
        } => left_out.map(|left_out| Line {
            event: "relayed",
            peer: Some(*peer),
            bytes: Some(*bytes),
            told: Some(*told),
            reason: Some(end.to_string()),
            left_out: Some(left_out).filter(|count| *count > 0),
            ..Line::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port_or_the_port() {
        for (text, want) in [
            ("127.0.0.1", "127.0.0.1:5445"),
            ("0.0.0.0:7", "0.0.0.0:7"),
            ("::1", "[::1]:5445"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(address(text).unwrap(), want.parse().unwrap(), "{text}");
        }
        assert!(address("here").is_err());
        for (text, want) in [
            ("127.0.0.1", "127.0.0.1:445"),
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("[::1]", "[::1]:445"),
            ("[::1]:7", "[::1]:7"),
        ] {
            let found = servers(text).unwrap();
            assert_eq!(found, [want.parse().unwrap()], "{text}");
        }
    }
}
