//! `linkspan vdpa`: vDPA devices of the kernel.

mod serve;
mod show;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use linkspan_engine::vdpa::{Opener, VdpaError};
use linkspan_sys::vdpa::{KernelVdpa, OpenError, Vdpa, devices};

use crate::exit::{Failure, Status};
use crate::plane::Used;
use crate::vm::Offer;

/// Options of `linkspan vdpa`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    vdpa dev add name blk0 mgmtdev vdpasim_blk     # a device, by the tool of iproute2\n  \
    linkspan vdpa list\n  \
    linkspan vdpa show /dev/vhost-vdpa-0 --json\n  \
    linkspan vdpa serve /dev/vhost-vdpa-0 --socket-path /tmp/disk.sock\n  \
    linkspan vdpa serve /dev/vhost-vdpa-0 --vfio-user /tmp/any.sock")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists all devices of the vDPA bus
    List(show::ListArgs),
    /// Says all that one device tells
    Show(show::ShowArgs),
    /// Passes a device on to a virtual machine, over vhost-user or as a PCI device
    Serve(serve::Args),
}

/// Which device.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("device").args(["node", "fd"]).required(true))]
struct DeviceArgs {
    /// The device, such as /dev/vhost-vdpa-0
    #[arg(value_name = "DEVICE")]
    node: Option<PathBuf>,

    /// A device that is open already as this descriptor
    #[arg(long, value_name = "N")]
    fd: Option<i32>,
}

impl DeviceArgs {
    fn opener(&self) -> Opener {
        match (&self.node, self.fd) {
            (Some(node), _) => at(node.clone()),
            (None, fd) => inherited(fd.unwrap_or(-1)),
        }
    }
}

impl Args {
    /// What a link takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        match &self.verb {
            Verb::Serve(args) => args.uses(),
            Verb::List(_) | Verb::Show(_) => Vec::new(),
        }
    }

    /// What a link gives to virtual machines.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        match &self.verb {
            Verb::Serve(args) => args.offers(),
            Verb::List(_) | Verb::Show(_) => Vec::new(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::List(verb) => show::list(verb),
        Verb::Show(verb) => show::show(verb),
        Verb::Serve(verb) => serve::run(verb),
    }
}

/// Opens the device at a path, whenever it is needed.
pub(crate) fn at(path: PathBuf) -> Opener {
    Arc::new(move || Ok(Box::new(KernelVdpa::open(&path)?) as Box<dyn Vdpa>))
}

/// Takes a device over that this process was started with, once.
pub(crate) fn inherited(number: RawFd) -> Opener {
    Arc::new(move || Ok(Box::new(KernelVdpa::inherit(number)?) as Box<dyn Vdpa>))
}

/// How a device comes to be, for those who have none.
const HOW: &str = "`modprobe -a vhost_vdpa vdpa_sim_blk` (a kernel without these modules needs \
    CONFIG_VHOST_VDPA and CONFIG_VDPA_SIM_BLOCK) and `vdpa dev add name blk0 mgmtdev vdpasim_blk` (the \
    tool is in iproute2), then, if another driver has it, bind it to vhost_vdpa; docs/vdpa.md shows \
    each step";

/// An error of a vDPA device as the end of the command.
pub(crate) fn failure(error: VdpaError) -> Failure {
    let status = match &error {
        VdpaError::Open(OpenError::Absent(path)) => return absent(path),
        VdpaError::Open(OpenError::Permission(_)) => Status::Missing,
        VdpaError::Open(OpenError::Busy(_)) => Status::PeerUnreachable,
        VdpaError::Open(OpenError::NotVdpa(_)) => Status::Usage,
        VdpaError::Identity(_) => Status::Usage,
        VdpaError::Missing { .. } | VdpaError::Queues { .. } | VdpaError::Refused { .. } => {
            Status::PeerBroke
        }
        _ => Status::Failed,
    };
    let hint = match &error {
        VdpaError::Open(OpenError::Permission(_)) => {
            Some("root, or a udev rule that gives the device to your group")
        }
        VdpaError::Open(OpenError::Busy(_)) => {
            Some("a vDPA device has one user at a time: `fuser -v` on it says which")
        }
        VdpaError::Queues { .. } => Some("fewer --queues"),
        error => error.hint(),
    };
    let failure = Failure::new(status, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// How a device that another driver has is taken from it.
pub(crate) fn binding(name: &str) -> String {
    format!(
        "`modprobe vhost_vdpa`, then for the device {name}: `cd /sys/bus/vdpa/devices/{name}; echo \
         vhost_vdpa > driver_override; echo {name} > driver/unbind; echo {name} > \
         /sys/bus/vdpa/drivers/vhost_vdpa/bind`"
    )
}

/// There is no such device: perhaps since the kernel has none at all.
fn absent(path: &Path) -> Failure {
    let listed = devices().ok().flatten();
    let nodes = listed.iter().flatten().filter_map(|it| it.node.as_deref());
    let nodes: Vec<_> = nodes.map(|node| node.display().to_string()).collect();
    let error = OpenError::Absent(path.to_owned());
    if nodes.is_empty() {
        let error = anyhow::Error::new(error).context("no vDPA device is bound to vhost_vdpa here");
        let unbound = listed.iter().flatten().next();
        let hint = unbound.map_or_else(|| HOW.to_owned(), |device| binding(&device.name));
        return Failure::new(Status::Missing, error).hint(hint);
    }
    let hint = format!("one of {}", nodes.join(", "));
    Failure::new(Status::PeerUnreachable, error).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_vhost::vdpa::FactsError;

    #[test]
    fn each_failure_has_its_status() {
        let path = PathBuf::from("/dev/vhost-vdpa-0");
        for (error, status) in [
            (OpenError::Permission(path.clone()).into(), Status::Missing),
            (OpenError::Busy(path).into(), Status::PeerUnreachable),
            (OpenError::NotVdpa("x".into()).into(), Status::Usage),
            (FactsError::Queues { queues: 0 }.into(), Status::Failed),
            (
                FactsError::TooLarge {
                    wanted: 512,
                    ring: 0,
                    max: 256,
                }
                .into(),
                Status::Failed,
            ),
            (VdpaError::Missing { missing: 1 }, Status::PeerBroke),
        ] {
            let text = format!("{error}");
            assert_eq!(failure(error).status, status, "{text}");
        }
    }
}
