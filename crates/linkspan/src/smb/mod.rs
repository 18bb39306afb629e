//! `linkspan smb`: files on an SMB share.

mod copy;
mod gateway;
mod list;
mod login;
mod mount;
mod serve;
mod url;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use linkspan_backends::smb::{Error, PORT, Settings, Share, Wanted};
use linkspan_backends::smbdirect::PORT_IWARP;
use linkspan_smb2::status;

use crate::exit::{Failure, Status};
use crate::plane::Used;
pub(crate) use url::Url;

/// Options of `linkspan smb`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The password comes from --credentials, from SMB_PASSWORD, or from a question on the \
        terminal; never from the command line. Without a user in the URL nobody logs on.\n\n\
        Example:\n\n  \
        linkspan smb ls smb://me@server/share/folder\n  \
        linkspan smb get --recursive smb://me@server/share/folder ./\n  \
        linkspan smb put --hash disk.img smb://me@server/share/images/\n  \
        linkspan smb mount smb://me@server/share /mnt\n  \
        linkspan smb gateway --listen 0.0.0.0 --to 127.0.0.1:445\n  \
        linkspan smb serve --share files=/srv/files --user me --listen-rdma 0.0.0.0"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists a folder
    Ls(list::LsArgs),
    /// Fetches a file, or a folder with all that is in it
    Get(copy::GetArgs),
    /// Sends a file, or a folder with all that is in it
    Put(copy::PutArgs),
    /// Removes a file, or a folder with all that is in it
    Rm(list::RmArgs),
    /// Shows what is known of a file or folder
    Stat(list::StatArgs),
    /// Mounts a share as a folder of this machine, by FUSE
    Mount(mount::Args),
    /// Puts SMB Direct in front of a server that speaks TCP
    Gateway(gateway::Args),
    /// Serves folders of this machine, over TCP and SMB Direct
    Serve(serve::Args),
}

impl Args {
    /// What a link takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.verb {
            Verb::Gateway(args) => args.uses(),
            Verb::Serve(args) => args.uses(),
            _ => Vec::new(),
        }
    }
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// SMB Direct if there is any, else TCP; TCP if the URL has a port
    Auto,
    /// SMB Direct
    Rdma,
    /// TCP
    Tcp,
}

/// What all verbs have in common.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    reach: Reach,

    /// Prints results on standard output as JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// How a share is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Reach {
    /// What carries the messages
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    transport: Transport,

    /// Who logs on: a file with username=, password= and domain=, as mount.cifs reads it
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,

    /// Refuses a session in which not everything is signed
    #[arg(long)]
    sign: bool,

    /// Refuses a session in which not everything is encrypted
    #[arg(long)]
    encrypt: bool,

    /// Goes on where the server takes a user for a guest, though nothing is protected then
    #[arg(long, conflicts_with_all = ["sign", "encrypt"])]
    guest: bool,

    /// Seconds for which the server may say nothing
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Ls(args) => list::ls(args),
        Verb::Get(args) => copy::get(args),
        Verb::Put(args) => copy::put(args),
        Verb::Rm(args) => list::rm(args),
        Verb::Stat(args) => list::stat(args),
        Verb::Mount(args) => mount::run(args),
        Verb::Gateway(args) => gateway::run(args),
        Verb::Serve(args) => serve::run(args),
    }
}

/// Connects to the share of a URL, and says how.
pub(crate) fn connect(url: &Url, reach: &Reach) -> Result<Share, Failure> {
    let login = login::find(url, reach.credentials.as_deref())?;
    let transport = match (reach.transport, url.port) {
        // Another service may be at the port of SMB Direct than the one that is meant.
        (Transport::Tcp, _) | (Transport::Auto, Some(_)) => Wanted::Tcp,
        (Transport::Auto, None) => Wanted::Auto,
        (Transport::Rdma, _) => Wanted::Rdma,
    };
    let port = url.port.unwrap_or(PORT);
    let settings = Settings {
        transport,
        rdma_port: url.port.unwrap_or(PORT_IWARP),
        require_signing: reach.sign,
        require_encryption: reach.encrypt,
        guest_allowed: reach.guest,
        patience: Duration::from_secs(reach.timeout.into()),
        ..Settings::default()
    };
    let share = Share::open(&url.host, port, &url.share, &login, &settings);
    let share = share.map_err(failure)?;
    let connection = share.connection();
    if let Some(why) = connection.instead() {
        eprintln!("linkspan: {}: not over SMB Direct: {why}", url.host);
    }
    let port = match connection.is_direct() {
        true => settings.rdma_port,
        false => port,
    };
    eprintln!(
        "linkspan: {}:{port}: {}, {}",
        url.host,
        connection.transport(),
        share.describe()
    );
    Ok(share)
}

/// With the status that fits.
pub(crate) fn failure(error: Error) -> Failure {
    let status = match &error {
        error if error.is_unreachable() => Status::PeerUnreachable,
        Error::Protocol(linkspan_smb2::Error::Guest) => Status::Missing,
        error if error.is_broken() => Status::PeerBroke,
        Error::LogOn { .. } | Error::KerberosOnly => Status::Missing,
        error if error.status() == Some(status::ACCESS_DENIED) => Status::Missing,
        _ => Status::Failed,
    };
    let guest = matches!(error, Error::Protocol(linkspan_smb2::Error::Guest));
    let failure = Failure::new(status, error);
    match status {
        Status::Missing if guest => {
            failure.hint("--guest, if it may see and change all that is sent")
        }
        Status::PeerUnreachable => {
            failure.hint("is it there, and does a firewall let you through?")
        }
        _ => failure,
    }
}
