//! `linkspan smbdirect`: SMB Direct without an RDMA card, both ends.

mod bench;
mod control;
mod listen;
mod meeting;
mod parameters;
mod ping;
pub(crate) mod status;

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::Context;
use clap::Subcommand;
use linkspan_backends::rdma::ProviderError;
use linkspan_backends::smbdirect::EndpointError;

use crate::exit::{Failure, Status};
use crate::plane::Used;

/// No such device.
const ENODEV: i32 = 19;

/// Options of `linkspan smbdirect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: both ends on one machine, and what goes between them for Wireshark\n\n  \
        linkspan smbdirect listen --pcap /tmp/smbd.pcap &\n  \
        sleep 1\n  \
        linkspan smbdirect ping 127.0.0.1\n  \
        tshark -o tcp.try_heuristic_first:TRUE -r /tmp/smbd.pcap"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Takes connections, and returns messages or counts them
    Listen(listen::Args),
    /// Connects, says what was negotiated and who answered, and times round trips
    Ping(ping::Args),
    /// Measures sends, RDMA writes or RDMA reads against a listener of ours
    Bench(bench::Args),
    /// Shows the connections of a listener that runs, and says what it logs
    Status(status::Args),
}

impl Args {
    /// What a link takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.verb {
            Verb::Listen(args) => args.uses(),
            Verb::Ping(_) | Verb::Bench(_) | Verb::Status(_) => Vec::new(),
        }
    }
}

/// A file for what goes over connections, if there is to be one.
fn create(path: Option<&Path>) -> Result<Option<File>, Failure> {
    let cannot = |path: &Path| format!("cannot capture to {}", path.display());
    let file = path.map(|path| File::create(path).with_context(|| cannot(path)));
    Ok(file.transpose()?)
}

/// There is no end to run.
fn no_endpoint(error: EndpointError) -> Failure {
    let status = match &error {
        EndpointError::Options(_) | EndpointError::Provider(ProviderError::Options(_)) => {
            Status::Usage
        }
        EndpointError::Provider(ProviderError::Library(_)) => Status::Missing,
        // The kernel has no RDMA, or nobody may use it.
        EndpointError::Provider(ProviderError::System(error)) if lacks(error) => Status::Missing,
        _ => Status::Failed,
    };
    Failure::new(status, error)
}

fn lacks(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied) || error.raw_os_error() == Some(ENODEV)
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Listen(args) => listen::run(args),
        Verb::Ping(args) => ping::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Status(args) => status::run(args),
    }
}
