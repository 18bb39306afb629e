//! `linkspan display list`: what can be looked at.

use std::path::PathBuf;

use linkspan_backends::display::{Listed, Owner, Sysfs, gpus, owners};
use linkspan_sys::vfio::Held;
use serde::Serialize;

use crate::exit::Failure;

/// Options of `linkspan display list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  linkspan display list\n\n\
    Processes of others are seen by root alone. Whether a device has a display is known \
    when it is opened: linkspan display show SOURCE.")]
pub(super) struct Args {
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Everything {
    devices: Vec<Device>,
    processes: Vec<Holder>,
    gpus: Vec<Gpu>,
}

#[derive(Serialize)]
struct Device {
    source: String,
    driver: Option<String>,
    mdev_type: Option<String>,
    group: Option<u32>,
    node: Option<PathBuf>,
    folder: PathBuf,
}

#[derive(Serialize)]
struct Holder {
    source: String,
    name: String,
    devices: Vec<i32>,
    groups: Vec<u32>,
}

#[derive(Serialize)]
struct Gpu {
    source: PathBuf,
    pid: u32,
}

impl From<Listed> for Device {
    fn from(listed: Listed) -> Self {
        Self {
            source: listed.name,
            driver: listed.driver,
            mdev_type: listed.mdev_type,
            group: listed.group,
            node: listed.node,
            folder: listed.folder,
        }
    }
}

impl From<Owner> for Holder {
    fn from(owner: Owner) -> Self {
        let (mut devices, mut groups) = (Vec::new(), Vec::new());
        for held in owner.held {
            match held {
                Held::Device { fd, .. } => devices.push(fd),
                Held::Group(group) => groups.push(group),
            }
        }
        Self {
            source: format!("pid:{}", owner.pid),
            name: owner.name,
            devices,
            groups,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let everything = Everything {
        devices: Sysfs::default()
            .devices()
            .into_iter()
            .map(Into::into)
            .collect(),
        processes: owners().into_iter().map(Into::into).collect(),
        gpus: gpus()
            .into_iter()
            .map(|(pid, source)| Gpu { source, pid })
            .collect(),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&everything)?);
        return Ok(());
    }
    let Everything {
        devices,
        processes,
        gpus,
    } = &everything;
    for device in devices {
        let mut words = vec![device.source.clone()];
        words.extend(
            device
                .driver
                .iter()
                .map(|driver| format!("driver {driver}")),
        );
        words.extend(device.mdev_type.iter().map(|name| format!("type {name}")));
        words.extend(
            device
                .group
                .iter()
                .map(|group| format!("/dev/vfio/{group}")),
        );
        words.extend(device.node.iter().map(|node| node.display().to_string()));
        println!("{}", words.join("  "));
    }
    for holder in processes {
        let devices: Vec<String> = holder.devices.iter().map(ToString::to_string).collect();
        let groups: Vec<String> = holder.groups.iter().map(ToString::to_string).collect();
        println!(
            "{}  {}  devices {}  groups {}",
            holder.source,
            holder.name,
            words(&devices),
            words(&groups)
        );
    }
    for gpu in gpus {
        println!(
            "{}  linkspan gpu, process {}",
            gpu.source.display(),
            gpu.pid
        );
    }
    if devices.is_empty() && processes.is_empty() && gpus.is_empty() {
        println!("nothing that can be looked at");
    }
    Ok(())
}

fn words(words: &[String]) -> String {
    match words {
        [] => "none".into(),
        words => words.join(","),
    }
}
