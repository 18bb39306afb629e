//! `linkspan vdpa list` and `show`: what devices say of themselves.

use std::path::Path;

use anyhow::Context;
use linkspan_devices::block::driver::DiskInfo;
use linkspan_devices::net::NetInfo;
use linkspan_engine::vdpa::{VdpaError, survey};
use linkspan_sys::vdpa::{BackendFeatures, Listed, Vdpa, devices, find};
use linkspan_vhost::vdpa::{Raw, device, device_type, feature_name};
use linkspan_virtio::Features;
use serde::Serialize;

use super::{DeviceArgs, HOW, at, failure};
use crate::exit::{Failure, Status};

/// Options of `list`.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Options of `show`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  linkspan vdpa show /dev/vhost-vdpa-0\n\n\
    The device is opened for this, so nobody else may have it, and it is reset.")]
pub(super) struct ShowArgs {
    #[command(flatten)]
    device: DeviceArgs,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// A device of the bus.
#[derive(Serialize)]
struct Entry {
    name: String,
    management: Option<String>,
    driver: Option<String>,
    node: Option<String>,
    /// What it says of itself, if it can be opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Told>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What a device says of itself.
#[derive(Serialize)]
struct Told {
    device_id: u32,
    device_type: &'static str,
    queues: Option<u32>,
    queue_size_max: u16,
    queue_sizes: Vec<Option<u32>>,
    groups: u32,
    address_spaces: u32,
    queue_groups: Vec<Option<u32>>,
    iova_first: String,
    iova_last: String,
    features: String,
    feature_names: Vec<String>,
    backend_features: String,
    backend_feature_names: Vec<String>,
    config_bytes: u32,
    config: Config,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    management: Option<String>,
    status: u8,
}

/// Configuration space, decoded where the type is known.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Config {
    Network {
        mac: Option<String>,
        link_up: bool,
        queue_pairs: u16,
        mtu: Option<u16>,
    },
    Block {
        size_bytes: u64,
        block_size: u32,
        queues: u16,
        read_only: bool,
        flush: bool,
        discard: bool,
        write_zeroes: bool,
    },
    /// Those that have none.
    None,
    /// Of other types: the bytes.
    Bytes(String),
}

pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let listed = devices().context("the vDPA bus cannot be read")?;
    let Some(listed) = listed else {
        let error = anyhow::anyhow!("this kernel has no vDPA bus (/sys/bus/vdpa)");
        return Err(Failure::new(Status::Missing, error).hint(HOW));
    };
    let entries: Vec<_> = listed.into_iter().map(entry).collect();
    if args.json {
        println!("{}", serde_json::to_string(&entries)?);
        return Ok(());
    }
    if entries.is_empty() {
        eprintln!("no device is on the vDPA bus");
    }
    for entry in &entries {
        let none = || "-".to_owned();
        let what = match (&entry.device, &entry.reason) {
            (Some(told), _) => {
                let queues = told.queues.map_or_else(none, |queues| queues.to_string());
                format!(
                    "{}, {queues} queues of {}",
                    told.device_type, told.queue_size_max
                )
            }
            (None, Some(reason)) => reason.clone(),
            (None, None) => String::new(),
        };
        println!(
            "{:<16} {:<14} {:<12} {:<20} {what}",
            entry.name,
            entry.management.clone().unwrap_or_else(none),
            entry.driver.clone().unwrap_or_else(none),
            entry.node.clone().unwrap_or_else(none),
        );
    }
    Ok(())
}

fn entry(listed: Listed) -> Entry {
    let told = listed.node.as_deref().map(|node| {
        let kernel = at(node.to_owned())()?;
        Told::by(&*kernel, None)
    });
    let (device, reason) = match told {
        Some(Ok(told)) => (Some(told), None),
        Some(Err(error)) => (None, Some(error.to_string())),
        None => (
            None,
            Some("no character device; bind it to vhost_vdpa".into()),
        ),
    };
    Entry {
        name: listed.name,
        management: listed.management,
        driver: listed.driver,
        node: listed.node.map(|node| node.display().to_string()),
        device,
        reason,
    }
}

pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    let kernel = args.device.opener()().map_err(failure)?;
    let listed = args.device.node.as_deref().and_then(find_any);
    let told = Told::by(&*kernel, listed).map_err(failure)?;
    if args.json {
        println!("{}", serde_json::to_string(&told)?);
    } else {
        told.print();
    }
    Ok(())
}

/// The device on the bus, also if its node has another name or is a link.
fn find_any(node: &Path) -> Option<Listed> {
    find(node).or_else(|| find(&std::fs::canonicalize(node).ok()?))
}

impl Told {
    fn by(kernel: &dyn Vdpa, listed: Option<Listed>) -> Result<Self, VdpaError> {
        let raw = survey(kernel)?;
        let len = raw.config_size.min(256);
        let mut bytes = vec![0; len as usize];
        if len > 0 {
            let read = kernel.read_config(0, &mut bytes);
            read.map_err(|source| VdpaError::Probe {
                what: "its configuration space",
                source,
            })?;
        }
        let status = kernel.status().unwrap_or(0);
        let (name, management) = match listed {
            Some(listed) => (Some(listed.name), listed.management),
            None => (None, None),
        };
        Ok(Self {
            device_id: raw.device_id,
            device_type: device_type(raw.device_id),
            queues: raw.queues,
            queue_size_max: raw.queue_size_max,
            groups: raw.groups,
            address_spaces: raw.address_spaces,
            iova_first: format!("{:#x}", raw.iova.0.0),
            iova_last: format!("{:#x}", raw.iova.1.0),
            features: format!("{:#x}", raw.features),
            feature_names: names(&raw),
            backend_features: format!("{:#x}", raw.backend_features),
            backend_feature_names: backend_names(raw.backend_features),
            config_bytes: raw.config_size,
            config: Config::of(&raw, &bytes),
            queue_sizes: raw.queue_sizes,
            queue_groups: raw.ring_groups,
            name,
            management,
            status,
        })
    }

    fn print(&self) {
        let unknown = || "not said".to_owned();
        if let Some(name) = &self.name {
            println!("name          {name}");
        }
        if let Some(management) = &self.management {
            println!("management    {management}");
        }
        println!("type          {} ({})", self.device_type, self.device_id);
        let queues = self
            .queues
            .map_or_else(unknown, |queues| queues.to_string());
        println!(
            "queues        {queues}, of at most {} entries",
            self.queue_size_max
        );
        println!("queue sizes   {}", each(&self.queue_sizes));
        println!(
            "groups        {} in {} address spaces; of each queue: {}",
            self.groups,
            self.address_spaces,
            each(&self.queue_groups)
        );
        println!("addresses     {} to {}", self.iova_first, self.iova_last);
        println!("features      {}", self.features);
        println!("              {}", self.feature_names.join(" "));
        println!("vhost side    {}", self.backend_features);
        println!("              {}", self.backend_feature_names.join(" "));
        println!("configuration {} bytes", self.config_bytes);
        self.config.print();
        println!("status        {:#x}", self.status);
    }
}

impl Config {
    fn of(raw: &Raw, bytes: &[u8]) -> Self {
        let features = Features::from_bits_retain(raw.features);
        match raw.device_id {
            device::NET => {
                let info = NetInfo::from_config(bytes, features);
                Self::Network {
                    mac: info.mac.map(|mac| mac.to_string()),
                    link_up: info.link_up,
                    queue_pairs: info.pairs,
                    mtu: info.mtu,
                }
            }
            device::BLOCK => {
                let info = DiskInfo::from_config(bytes, features);
                Self::Block {
                    size_bytes: info.size_bytes,
                    block_size: info.block_size,
                    queues: info.queues,
                    read_only: info.read_only,
                    flush: info.flush,
                    discard: info.discard.is_some(),
                    write_zeroes: info.write_zeroes.is_some(),
                }
            }
            _ if bytes.is_empty() => Self::None,
            _ => Self::Bytes(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }

    fn print(&self) {
        match self {
            Self::Network {
                mac,
                link_up,
                queue_pairs,
                mtu,
            } => {
                println!("  address     {}", mac.as_deref().unwrap_or("not given"));
                println!("  link        {}", if *link_up { "up" } else { "down" });
                println!("  queue pairs {queue_pairs}");
                if let Some(mtu) = mtu {
                    println!("  MTU         {mtu} bytes");
                }
            }
            Self::Block {
                size_bytes,
                block_size,
                queues,
                read_only,
                flush,
                ..
            } => {
                println!("  size        {size_bytes} bytes in blocks of {block_size}");
                println!("  queues      {queues}");
                println!("  read only   {read_only}");
                println!("  flush       {flush}");
            }
            Self::None => {}
            Self::Bytes(bytes) => println!("  bytes       {bytes}"),
        }
    }
}

fn names(raw: &Raw) -> Vec<String> {
    let set = (0..64_u8).filter(|bit| raw.features & 1 << bit != 0);
    let name = |bit| {
        let known = feature_name(raw.device_id, bit);
        known.map_or_else(|| format!("bit{bit}"), str::to_owned)
    };
    set.map(name).collect()
}

fn backend_names(bits: u64) -> Vec<String> {
    let known = BackendFeatures::from_bits_retain(bits);
    known
        .iter_names()
        .map(|(name, _)| name.to_owned())
        .collect()
}

fn each(numbers: &[Option<u32>]) -> String {
    if numbers.iter().all(Option::is_none) {
        return "not said".into();
    }
    let text = numbers.iter().map(|number| match number {
        Some(number) => number.to_string(),
        None => "-".into(),
    });
    text.collect::<Vec<_>>().join(" ")
}
