//! What commands that offer a VDUSE device have in common.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use linkspan_engine::vduse::{self, Event, OpenError, Options, RecordError};
use linkspan_engine::{Device, Server, Workers};
use linkspan_sys::thread::spawn;
use linkspan_sys::vduse::{Error, Linux, Name};

use crate::exit::{Failure, Status};
use crate::sandbox::{self, Group, Kind};
use crate::serving::print;

/// Options of a VDUSE device.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "VDUSE devices")]
pub(crate) struct VduseArgs {
    /// How long the kernel waits for an answer before it marks the device broken;
    /// 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    vduse_timeout: u32,

    /// Where it is written down what is in flight, for the process that goes on
    /// after this one: a folder in memory
    #[arg(long, value_name = "DIR", default_value = "/run/linkspan")]
    vduse_state: PathBuf,

    /// Put the device on the vDPA bus, by the program vdpa
    #[arg(long)]
    vdpa_add: bool,
}

/// A name of a device.
pub(crate) fn name(text: &str) -> Result<Name, String> {
    text.parse::<Name>().map_err(|error| error.to_string())
}

impl VduseArgs {
    /// Enters the sandbox of a link whose device is in the kernel. Where a program puts the
    /// device on the bus, whenever it is made anew, there is none.
    pub(crate) fn seal(&self, kind: Kind) -> Result<(), Failure> {
        if self.vdpa_add {
            return Ok(());
        }
        sandbox::seal(kind, &[Group::Durable, Group::Remove, Group::Vduse])
    }

    /// Offers a device; `port` names it where there are several.
    pub(crate) fn serve(
        &self,
        name: &Name,
        device: Arc<dyn Device>,
        workers: Arc<Workers>,
        port: Option<String>,
        json: bool,
    ) -> Result<Server, Failure> {
        let options = Options {
            name: name.clone(),
            timeout_seconds: self.vduse_timeout,
            state: self.vduse_state.clone(),
            kernel: Arc::new(Linux),
        };
        let report = reporter(name.clone(), self.vdpa_add, port, json);
        vduse::serve(options, device, workers, report).map_err(not_offered)
    }
}

fn not_offered(error: OpenError) -> Failure {
    let hint = match &error {
        OpenError::Kernel(Error::NoVduse) => Some(
            "`modprobe -a vduse virtio-vdpa vhost-vdpa`; a kernel without these modules needs \
             CONFIG_VDPA, CONFIG_VDPA_USER, and CONFIG_VIRTIO_VDPA or CONFIG_VHOST_VDPA: Debian's \
             own kernels have them (package linux-image-amd64; not the cloud ones)"
                .to_owned(),
        ),
        OpenError::Kernel(Error::Permission { .. }) => {
            Some("run as root, or with access to /dev/vduse and CAP_NET_ADMIN".to_owned())
        }
        OpenError::CannotGoOn { name, .. } => Some(format!(
            "start it with the options that it was made with, or remove it with `vdpa dev del {name}`"
        )),
        OpenError::Record(RecordError::System { .. }) => {
            Some("--vduse-state with a folder on a tmpfs that you can write".to_owned())
        }
        _ => None,
    };
    let status = match &error {
        OpenError::Kernel(Error::NoVduse | Error::Permission { .. }) => Status::Missing,
        _ => Status::Failed,
    };
    let failure = Failure::new(
        status,
        anyhow::Error::new(error).context("cannot offer a VDUSE device"),
    );
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Says what happens to a device, to people or to programs, and puts it on the bus
/// if that is wanted.
fn reporter(
    name: Name,
    add: bool,
    port: Option<String>,
    json: bool,
) -> impl Fn(Event) + Send + 'static {
    move |event| {
        let port = port.as_deref();
        if json {
            let mut line = serde_json::json!({ "event": word(&event), "device": name.as_str() });
            if let Some(port) = port {
                line["port"] = port.into();
            }
            match &event {
                Event::Running { generation } | Event::Reset { generation } => {
                    line["generation"] = (*generation).into();
                }
                Event::Broken { reason } => line["reason"] = reason.as_str().into(),
                Event::Offered | Event::TakenOver => {}
            }
            print(&line);
        }
        match event {
            Event::Offered if add => {
                tracing::info!(port, "the kernel has the device {name}");
                put_on_bus(name.clone());
            }
            Event::Offered => tracing::info!(
                port,
                "the kernel has the device {name}: `vdpa dev add name {name} mgmtdev vduse` puts \
                 it on the vDPA bus"
            ),
            Event::TakenOver => {
                tracing::info!(
                    port,
                    "going on with the device {name}, which the kernel kept"
                );
            }
            Event::Running { generation } => {
                tracing::info!(port, generation, "a driver uses the device {name}");
            }
            Event::Reset { generation } => {
                tracing::info!(port, generation, "the driver gave the device {name} back");
            }
            Event::Broken { reason } => tracing::warn!(
                port,
                "{reason}: it is made anew once it is off the bus (`vdpa dev del {name}`)"
            ),
        }
    }
}

fn word(event: &Event) -> &'static str {
    match event {
        Event::Offered => "offered",
        Event::TakenOver => "taken-over",
        Event::Running { .. } => "running",
        Event::Reset { .. } => "reset",
        Event::Broken { .. } => "broken",
    }
}

/// Puts a device on the vDPA bus, beside everything else: the kernel asks the device
/// things before the program `vdpa` ends.
fn put_on_bus(name: Name) {
    let added = spawn("vdpa-add", move || {
        let mut command = Command::new("vdpa");
        command.args(["dev", "add", "name", name.as_str(), "mgmtdev", "vduse"]);
        match command.stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => {
                tracing::info!("the device {name} is on the vDPA bus");
            }
            Ok(output) => tracing::error!(
                "`vdpa dev add name {name} mgmtdev vduse` failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
            Err(error) => {
                tracing::error!("the program vdpa (package iproute2) does not run: {error}");
            }
        }
    });
    if let Err(error) = added {
        tracing::error!("the device is not put on the vDPA bus: {error}");
    }
}
