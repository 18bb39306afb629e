//! `linkspan vdpa serve`: a vDPA device as a vhost-user device, or as a PCI device
//! over vfio-user.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use linkspan_engine::vdpa::{BridgedDevice, PciDevice};
use linkspan_engine::{Server, vfio_user, vhost_user};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::Inherited;
use linkspan_vhost::vdpa::{device, device_type};

use super::{DeviceArgs, failure};
use crate::exit::Failure;
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving;
use crate::tether;
use crate::vm::{Offer, Plug};

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan vdpa serve /dev/vhost-vdpa-0 --socket-path /tmp/disk.sock &\n  \
    qemu-system-x86_64 -m 1G \\\n    \
      -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
      -chardev socket,id=c,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=c\n\n  \
    linkspan vdpa serve /dev/vhost-vdpa-0 --vfio-user /tmp/any.sock &\n  \
    qemu-system-x86_64 -m 1G \\\n    \
      -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
      -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/tmp/any.sock\"}}'\n\n\
    Over vhost-user requests go from the guest to the device without this program: it takes\n\
    no part once a driver runs. Over vfio-user, for devices that have no vhost-user front\n\
    end, it passes kicks on. A device passed on like this cannot be migrated.")]
#[command(group = clap::ArgGroup::new("how").args(["socket_path", "vfio_user"]).required(true))]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,

    /// Where vhost-user front ends connect
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Where vfio-user clients connect, to whom it is a virtio PCI device (QEMU 10.1 and newer)
    #[arg(long, value_name = "PATH")]
    vfio_user: Option<PathBuf>,

    /// The largest queue that a driver may choose; 0: the largest that the device has
    #[arg(long, value_name = "N", default_value_t = 0)]
    queue_size: u32,

    /// Give clients the device's own pages for kicks, where it has them, and with them its file
    #[arg(long, requires = "vfio_user")]
    share_doorbells: bool,

    /// Print what happens to the link on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let makes = |path: &PathBuf| Use::Socket(path.clone());
        let device = self.device.node.clone().map(Use::Writes);
        let socket = self.socket_path.as_ref().map(makes);
        let vfio_user = self.vfio_user.as_ref().map(makes);
        device
            .map(|used| ("device", used))
            .into_iter()
            .chain(socket.map(|used| ("socket-path", used)))
            .chain(vfio_user.map(|used| ("vfio-user", used)))
            .collect()
    }

    /// What it gives to virtual machines.
    pub(super) fn offers(&self) -> Vec<Offer> {
        let plug = Plug::VfioUser;
        let socket = self.vfio_user.clone();
        let offer = socket.map(|socket| Offer { plug, socket });
        offer.into_iter().collect()
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let (server, kind) = match (&args.socket_path, &args.vfio_user) {
        (Some(path), _) => bridge(args, path)?,
        (None, path) => function(args, path.as_deref().unwrap_or(Path::new("")))?,
    };
    let endpoint = Arc::clone(server.endpoint());
    tether::watch("device", endpoint.messages());
    tether::show(move || Some(tether::endpoint("device", kind, &endpoint)));
    wait_for(server.ended(), Direction::Read, Some(signals.as_fd()), None)
        .context("cannot wait for a signal")?;
    tracing::info!("ending: the device is brought to rest");
    server.stop()?;
    Ok(())
}

/// As a vhost-user device; the server, and the type of its device.
fn bridge(args: &Args, path: &Path) -> Result<(Server, u32), Failure> {
    let bridged = BridgedDevice::open(args.device.opener(), args.queue_size).map_err(failure)?;
    say(&bridged);
    let kind = bridged.facts().device_id;
    let report = serving::reporter(None, args.json);
    let socket = listen(path)?;
    sandbox::seal(Kind::Vdpa, &[])?;
    let server = vhost_user::bridge(socket, Arc::new(bridged), report);
    Ok((server.context("cannot start serving")?, kind))
}

/// As a PCI device; the server, and the type of its device.
fn function(args: &Args, path: &Path) -> Result<(Server, u32), Failure> {
    let mut device = PciDevice::open(args.device.opener(), args.queue_size).map_err(failure)?;
    let (facts, identity) = (device.facts(), device.identity());
    let most = device.queue_sizes().iter().max().copied().unwrap_or(0);
    tracing::info!(
        "a {} device with {} queues of at most {most} entries, 1af4:{:04x} on the bus",
        device_type(facts.device_id),
        facts.queues,
        identity.device,
    );
    if args.share_doorbells && !device.share_doorbells().map_err(failure)? {
        tracing::warn!(
            "the device has no page for each ring by which it is kicked: each kick is a message"
        );
    }
    let kind = device.facts().device_id;
    let report = serving::reporter(None, args.json);
    let socket = listen(path)?;
    sandbox::seal(Kind::Vdpa, &[])?;
    let server = vfio_user::serve(socket, device, report);
    Ok((server.context("cannot start serving")?, kind))
}

fn listen(path: &Path) -> Result<Inherited, Failure> {
    let listener = Listener::bind(path);
    let listener = listener.with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(Inherited::Listener(listener))
}

/// What the driver will and will not find.
fn say(bridged: &BridgedDevice) {
    let (facts, bridge) = (bridged.facts(), bridged.bridge());
    tracing::info!(
        "a {} device with {} queues of at most {} entries",
        device_type(facts.device_id),
        bridge.data_rings(),
        bridged.queue_size()
    );
    if facts.device_id == device::NET && facts.features & 1 << 17 != 0 && !bridge.drives_control() {
        tracing::warn!(
            "the control queue has no address space of its own, so it and VIRTIO_NET_F_MQ are \
             hidden: a driver has one queue pair and no commands"
        );
    }
    if !facts.can_suspend() {
        tracing::warn!(
            "the device cannot be suspended: when a driver stops, requests that it was not \
             answered are done again, and packed rings are hidden"
        );
    }
}
