//! `linkspan smb serve`: folders of this machine as shares, by the crate `smb-server`, with a
//! gateway for SMB Direct before it in the same process.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use smb_server::{Access, LocalFsBackend, Share, SmbServer};
use tokio::runtime::{Builder, Runtime};

use super::gateway::{self, Limits};
use super::login;
use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The password comes from --credentials, from SMB_PASSWORD, or from a question on the \
        terminal; never from the command line.\n\n\
        Example:\n\n  \
        linkspan smb serve --share files=/srv/files --share iso=/srv/iso:ro --user me \\\n    \
          --listen-tcp 0.0.0.0 --listen-rdma 0.0.0.0",
    override_usage = "linkspan smb serve [OPTIONS] --share <NAME=DIR[:ro]>\n       \
        <--listen-tcp <ADDRESS[:PORT]>|--listen-rdma <ADDRESS[:PORT]>>\n       \
        <--user <NAME>|--credentials <FILE>|--public>",
    group = clap::ArgGroup::new("where").args(["listen_tcp", "listen_rdma"]).required(true).multiple(true),
    group = clap::ArgGroup::new("who").args(["user", "credentials", "public"]).required(true).multiple(true)
)]
pub(super) struct Args {
    /// A folder, and its name as a share; with :ro nobody may change it. May be given again
    #[arg(long = "share", value_name = "NAME=DIR[:ro]", required = true)]
    shares: Vec<Folder>,

    /// Who may log on. May be given again; then passwords come from --credentials
    #[arg(long, value_name = "NAME")]
    user: Vec<String>,

    /// Who may log on: a file with username= and password=, as mount.cifs reads it. May be
    /// given again
    #[arg(long, value_name = "FILE")]
    credentials: Vec<PathBuf>,

    /// Anybody may use the shares without a log-on
    #[arg(long, conflicts_with_all = ["sign", "encrypt", "user", "credentials"])]
    public: bool,

    /// Where to listen for TCP: an address, and a port unless it is 445
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = gateway::tcp_address)]
    listen_tcp: Option<SocketAddr>,

    /// Where to listen for SMB Direct: an address, and a port unless it is 5445
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = gateway::address)]
    listen_rdma: Option<SocketAddr>,

    /// Takes no session in which not everything is signed
    #[arg(long)]
    sign: bool,

    /// Takes no session in which not everything is encrypted
    #[arg(long)]
    encrypt: bool,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,

    /// Connections of SMB Direct at a time
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections: u32,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let listens = |address: &SocketAddr| Use::Listens(*address);
        let tcp = self.listen_tcp.as_ref().map(listens);
        let rdma = self.listen_rdma.as_ref().map(listens);
        let shares = self.shares.iter();
        let shares = shares.map(|folder| match folder.read_only {
            true => ("share", Use::Folder(folder.path.clone())),
            false => ("share", Use::Fills(folder.path.clone())),
        });
        let credentials = self.credentials.iter().cloned().map(Use::Reads);
        tcp.map(|used| ("listen-tcp", used))
            .into_iter()
            .chain(rdma.map(|used| ("listen-rdma", used)))
            .chain(shares)
            .chain(credentials.map(|used| ("credentials", used)))
            .collect()
    }
}

/// A folder that is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Folder {
    name: String,
    path: PathBuf,
    read_only: bool,
}

impl FromStr for Folder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("NAME=DIR, or NAME=DIR:ro")?;
        let (path, read_only) = match path.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (path, false),
        };
        if name.is_empty() || path.is_empty() {
            return Err("NAME=DIR, or NAME=DIR:ro".into());
        }
        Ok(Self {
            name: name.into(),
            path: path.into(),
            read_only,
        })
    }
}

/// Connections of TCP that others than the gateway may have.
const TCP_CONNECTIONS: usize = 1024;

/// Who may log on, with which password.
fn users(args: &Args) -> Result<Vec<(String, String)>, Failure> {
    let mut users = Vec::new();
    for path in &args.credentials {
        let (login, password) = login::read(path)?;
        let lacks = |what| {
            let error = anyhow!("{} has no {what}=", path.display());
            Failure::new(Status::Usage, error)
        };
        if login.user.is_empty() {
            return Err(lacks("username"));
        }
        users.push((login.user, password.ok_or_else(|| lacks("password"))?));
    }
    if args.user.len() > 1 {
        let error = anyhow!("several users have several passwords");
        return Err(Failure::new(Status::Usage, error).hint("--credentials FILE for each"));
    }
    for user in &args.user {
        users.push((user.clone(), login::elsewhere(user, "this server")?));
    }
    Ok(users)
}

/// The server that speaks TCP.
fn server(args: &Args, listen: SocketAddr) -> Result<SmbServer, Failure> {
    let users = users(args)?;
    // Each connection of SMB Direct has one of TCP behind it.
    let direct = usize::try_from(args.connections).unwrap_or(usize::MAX);
    let mut builder = SmbServer::builder()
        .listen(listen)
        .max_connections(direct.saturating_add(TCP_CONNECTIONS))
        .require_signing(args.sign)
        .encrypt_data(args.encrypt)
        .reject_unencrypted_access(args.encrypt);
    for (user, password) in &users {
        builder = builder.user(user, password);
    }
    for folder in &args.shares {
        let files = LocalFsBackend::new(&folder.path)
            .with_context(|| format!("cannot share {}", folder.path.display()))?;
        let (files, access) = match folder.read_only {
            true => (files.read_only(), Access::Read),
            false => (files, Access::ReadWrite),
        };
        let mut share = Share::new(&folder.name, files);
        if args.public {
            share = match folder.read_only {
                true => share.public_read_only(),
                false => share.public(),
            };
        }
        for (user, _) in &users {
            share = share.user(user, access);
        }
        builder = builder.share(share);
    }
    builder
        .build()
        .map_err(|error| Failure::new(Status::Usage, error))
}

/// Where to reach what listens there from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

const SIGNALS: u32 = 0;
const ENDED: u32 = 1;

/// Serves until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Before there are threads, which would take them otherwise.
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let inside = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listen = args.listen_tcp.unwrap_or(inside);
    let server = server(args, listen)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let bound = runtime
        .block_on(server.bind())
        .with_context(|| format!("cannot listen at {listen}"))?;
    if args.listen_tcp.is_some() {
        tracing::info!("listening at {bound}");
        if args.json {
            gateway::listens("serving", bound);
        }
    }
    let ended = Arc::new(EventFd::new().context("cannot wait")?);
    let handle = server.shutdown_handle();
    let told = Arc::clone(&ended);
    let task = runtime.spawn(async move {
        let result = server.serve().await;
        // It is ours, and cannot be full.
        let _ = told.signal();
        result
    });
    let result = wait(args, &signals, &ended, reachable(bound));
    handle.shutdown();
    let served = finish(&runtime, task);
    result.and(served)
}

/// Waits for a signal, or the end of the server; serves SMB Direct meanwhile if that is wanted.
fn wait(
    args: &Args,
    signals: &Signals,
    ended: &EventFd,
    server: SocketAddr,
) -> Result<(), Failure> {
    let Some(listen) = args.listen_rdma else {
        sandbox::seal(Kind::SmbServe, &[])?;
        let cancel = Some(signals.as_fd());
        wait_for(ended.as_fd(), Direction::Read, cancel, None).context("cannot wait")?;
        return Ok(());
    };
    let limits = Limits::of(args.connections);
    let mut gateway = gateway::start(listen, vec![server], &limits, args.json)?;
    gateway.watch(signals, SIGNALS).context("cannot wait")?;
    gateway.watch(ended, ENDED).context("cannot wait")?;
    sandbox::seal(Kind::SmbServe, &[])?;
    gateway::serve(&mut gateway, args.json)
}

/// The end of the server.
fn finish(
    runtime: &Runtime,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
) -> Result<(), Failure> {
    let result = runtime.block_on(task).context("the server failed")?;
    Ok(result.context("the server ended")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_a_name_and_a_folder() {
        let folder = |text: &str| text.parse::<Folder>();
        let share = folder("a=/b=c:ro").unwrap();
        assert_eq!((share.name.as_str(), share.read_only), ("a", true));
        assert_eq!(share.path, PathBuf::from("/b=c"));
        assert!(!folder("a=b").unwrap().read_only);
        for text in ["a", "=b", "a=", "a=:ro"] {
            assert!(folder(text).is_err(), "{text}");
        }
        assert_eq!(
            gateway::tcp_address("::1").unwrap(),
            "[::1]:445".parse().unwrap()
        );
        let all = "0.0.0.0:7".parse().unwrap();
        assert_eq!(reachable(all), "127.0.0.1:7".parse().unwrap());
    }
}
