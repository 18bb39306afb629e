//! `linkspan vdpa serve`: a vDPA device as a vhost-user device.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use linkspan_engine::vdpa::BridgedDevice;
use linkspan_engine::vhost_user;
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::Inherited;
use linkspan_vhost::vdpa::{device, device_type};

use super::{DeviceArgs, failure};
use crate::exit::Failure;
use crate::serving;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    linkspan vdpa serve /dev/vhost-vdpa-0 --socket-path /tmp/disk.sock &\n  \
    qemu-system-x86_64 -m 1G \\\n    \
      -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
      -chardev socket,id=c,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=c\n\n\
    Requests go from the guest to the device without this program: it takes no part\n\
    once a driver runs. A device passed on like this cannot be migrated.")]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArgs,

    /// Where front ends connect
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// The largest queue that a driver may choose; 0: the largest that the device has
    #[arg(long, value_name = "N", default_value_t = 0)]
    queue_size: u32,

    /// Print what happens to the link on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let bridged = BridgedDevice::open(args.device.opener(), args.queue_size).map_err(failure)?;
    say(&bridged);
    let path = &args.socket_path;
    let listener =
        Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    let server = vhost_user::bridge(
        Inherited::Listener(listener),
        Arc::new(bridged),
        serving::reporter(None, args.json),
    )
    .context("cannot start serving")?;
    wait_for(server.ended(), Direction::Read, Some(signals.as_fd()), None)
        .context("cannot wait for a signal")?;
    tracing::info!("ending: the device is brought to rest");
    server.stop()?;
    Ok(())
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
