//! `linkspan k8s`: links of a plane for pods and their virtual machines.

mod api;
pub(crate) mod devices;
pub(crate) mod grpc;
mod plugin;

use clap::Subcommand;

use crate::exit::Failure;

/// Options of `linkspan k8s`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: all links that are called disk-… are devices of one resource\n\n  \
    linkspan k8s device-plugin --resource 'linkspan.dev/disk=disk-*'"
)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Offers links of a plane that runs to the pods of this node, as devices
    DevicePlugin(plugin::Args),
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::DevicePlugin(args) => plugin::run(args),
    }
}

/// Takes a method, named by a number, and the body of a call for it, and tells what came of it.
/// For fuzzers.
pub(crate) fn take(method: u8, body: &[u8]) -> &'static str {
    plugin::take(method, body)
}
