//! A port as it stands on the command line: what is behind it, and how it is to be.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use linkspan_backends::port::{Count, PAIRS_MAX};
use linkspan_devices::net::{Mac, VlanSet};
use linkspan_sys::vduse::Name;

use crate::driver::bytes;

/// A port that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortSpec {
    /// What people call it: the text before the first comma.
    pub(super) name: String,
    pub(super) behind: Behind,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: u16,
    pub(super) vlan: Option<u16>,
    /// The VLANs whose frames carry their tag.
    pub(super) trunk: Option<VlanSet>,
    pub(super) count: Count,
    pub(super) control_queue: bool,
    pub(super) packets_per_second: Option<u64>,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) address: Ipv4Addr,
    pub(super) prefix_len: u8,
    pub(super) lease: Option<Ipv4Addr>,
}

/// What is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// A guest's front end connects here.
    Listen(PathBuf),
    /// A guest's front end listens here.
    Connect(PathBuf),
    /// A socket that we were started with.
    GuestFd(RawFd),
    /// The kernel's vDPA bus, where it has this name.
    Vduse(Name),
    /// An interface by its name.
    Tap(String),
    /// A queue of an interface that we were started with.
    TapFd(RawFd),
    /// Nobody.
    Responder,
}

/// The options of each kind, for messages.
const GUEST: &[&str] = &[
    "queues",
    "queue-size",
    "mac",
    "mtu",
    "vlan",
    "trunk",
    "count",
    "control-queue",
    "client",
    "packets-per-second",
    "bytes-per-second",
];
/// A device of the kernel has one pair: more of them need a control queue, which
/// VDUSE does not take.
const VDUSE: &[&str] = &[
    "queue-size",
    "mac",
    "mtu",
    "vlan",
    "trunk",
    "packets-per-second",
    "bytes-per-second",
];
const TAP: &[&str] = &[
    "queues",
    "vlan",
    "trunk",
    "packets-per-second",
    "bytes-per-second",
];
const TAP_FD: &[&str] = &["vlan", "trunk", "packets-per-second", "bytes-per-second"];
const RESPONDER: &[&str] = &["mac", "vlan", "address", "lease"];

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or("").to_owned();
        let (kind, value) = name.split_once(':').unwrap_or((&name, ""));
        let number = || {
            value
                .parse()
                .map_err(|_| format!("{value:?} is no descriptor"))
        };
        let (behind, known) = match (kind, value) {
            ("responder", "") => (Behind::Responder, RESPONDER),
            ("vhost-user" | "tap" | "vduse", "") => {
                return Err(format!("{kind}: what is behind it?"));
            }
            ("vhost-user", path) => (Behind::Listen(path.into()), GUEST),
            ("vhost-user-fd", _) => (Behind::GuestFd(number()?), GUEST),
            ("vduse", name) => {
                let name = name.parse::<Name>().map_err(|error| error.to_string())?;
                (Behind::Vduse(name), VDUSE)
            }
            ("tap", name) => (Behind::Tap(name.to_owned()), TAP),
            ("tap-fd", _) => (Behind::TapFd(number()?), TAP_FD),
            _ => {
                return Err(format!(
                    "{name:?} is none of vhost-user:PATH, vhost-user-fd:N, vduse:NAME, tap:NAME, \
                     tap-fd:N, responder"
                ));
            }
        };
        let mut spec = Self {
            name: name.clone(),
            behind,
            queues: 1,
            queue_size: 1024,
            mac: None,
            mtu: 1500,
            vlan: None,
            trunk: None,
            count: Count::Pairs,
            control_queue: false,
            packets_per_second: None,
            bytes_per_second: None,
            address: Ipv4Addr::new(10, 0, 2, 2),
            prefix_len: 24,
            lease: None,
        };
        for option in parts {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            if !known.contains(&key) {
                let known = known.join(", ");
                return Err(format!("{kind} has no option {key:?}; it has {known}"));
            }
            spec.set(key, value)
                .map_err(|why| format!("{key}={value}: {why}"))?;
        }
        Ok(spec)
    }
}

impl PortSpec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "queues" => self.queues = number(value, 1, PAIRS_MAX)?,
            "queue-size" => {
                self.queue_size = number(value, 2, 32768)?;
                if !self.queue_size.is_power_of_two() {
                    return Err("no power of two".into());
                }
            }
            "mac" => self.mac = Some(mac(value)?),
            "mtu" => self.mtu = number(value, 68, u16::MAX)?,
            "vlan" => self.vlan = Some(number(value, 1, 4094)?),
            "trunk" => self.trunk = Some(vlans(value)?),
            "count" => {
                self.count = match value {
                    "pairs" => Count::Pairs,
                    "rings" => Count::Rings,
                    _ => return Err("pairs or rings".into()),
                }
            }
            "control-queue" if value.is_empty() => self.control_queue = true,
            "control-queue" => return Err("it takes no value".into()),
            "packets-per-second" => self.packets_per_second = Some(some(value)?),
            "bytes-per-second" => self.bytes_per_second = Some(some(value)?),
            "address" => {
                let (address, bits) = value.split_once('/').unwrap_or((value, "24"));
                self.address = ipv4(address)?;
                self.prefix_len = number(bits, 1, 30)?.try_into().unwrap_or(24);
            }
            "lease" => self.lease = Some(ipv4(value)?),
            _ => match std::mem::replace(&mut self.behind, Behind::Responder) {
                Behind::Listen(path) if value.is_empty() => self.behind = Behind::Connect(path),
                _ => return Err("only a path can be connected to, and it takes no value".into()),
            },
        }
        Ok(())
    }
}

fn number(text: &str, least: u16, most: u16) -> Result<u16, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("a number from {least} to {most}"))
}

/// VLANs such as 5+7-9, or all.
fn vlans(text: &str) -> Result<VlanSet, String> {
    if text == "all" {
        return Ok(VlanSet::ALL);
    }
    let mut set = VlanSet::NONE;
    for part in text.split('+') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first, 1, 4094)?, number(last, 1, 4094)?);
        if first > last {
            return Err(format!("{part} runs backwards"));
        }
        for vlan in first..=last {
            set.set(vlan, true);
        }
    }
    Ok(set)
}

fn some(text: &str) -> Result<u64, String> {
    match bytes(text).map_err(|error| error.to_string())? {
        0 => Err("at least 1".into()),
        number => Ok(number),
    }
}

fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| "an IPv4 address".into())
}

/// An address of one station.
pub(crate) fn mac(text: &str) -> Result<Mac, String> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2);
        let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte = value.ok_or("six bytes such as 52:54:00:12:34:56")?;
    }
    let mac = Mac(bytes);
    match parts.next() {
        None if !mac.is_multicast() && !mac.is_zero() => Ok(mac),
        _ => Err("no address of one station".into()),
    }
}

/// A locally administered address that goes with a name.
pub(crate) fn mac_of(name: &str) -> Mac {
    let start = 0xCBF2_9CE4_8422_2325_u64;
    let hash = name.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    Mac([2, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> PortSpec {
        text.parse().unwrap()
    }

    #[test]
    fn ports_have_a_kind_and_options() {
        let port =
            spec("vhost-user:/tmp/a,queues=4,mac=52:54:00:12:34:56,mtu=9000,vlan=7,count=rings");
        assert_eq!(port.behind, Behind::Listen("/tmp/a".into()));
        assert_eq!((port.queues, port.mtu, port.vlan), (4, 9000, Some(7)));
        assert_eq!(port.mac, Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])));
        assert_eq!(port.count, Count::Rings);
        assert_eq!(port.name, "vhost-user:/tmp/a");
        assert!(!port.control_queue && spec("vhost-user:s,control-queue").control_queue);
        let trunk = spec("tap:x,trunk=5+7-9,vlan=3").trunk.unwrap();
        let members = (0..5000).filter(|vlan| trunk.contains(*vlan));
        assert_eq!(members.collect::<Vec<_>>(), [5, 7, 8, 9]);
        assert_eq!(spec("tap-fd:3,trunk=all").trunk, Some(VlanSet::ALL));
        let port = spec("vhost-user:s,client,packets-per-second=1000,bytes-per-second=1M");
        assert_eq!(port.behind, Behind::Connect("s".into()));
        assert_eq!(port.packets_per_second, Some(1000));
        assert_eq!(port.bytes_per_second, Some(1 << 20));
        assert_eq!(spec("tap:tap0,queues=2").behind, Behind::Tap("tap0".into()));
        let port = spec("vduse:net0,mtu=9000");
        assert_eq!(port.behind, Behind::Vduse("net0".parse().unwrap()));
        assert_eq!((port.queues, port.mtu), (1, 9000));
        assert_eq!(spec("tap-fd:7").behind, Behind::TapFd(7));
        let port = spec("responder,address=192.168.1.1/16,lease=192.168.1.9");
        assert_eq!((port.behind, port.prefix_len), (Behind::Responder, 16));
        assert_eq!(port.lease, Some(Ipv4Addr::new(192, 168, 1, 9)));
    }

    #[test]
    fn what_makes_no_port_is_said() {
        for (text, why) in [
            ("", "none of vhost-user:PATH"),
            ("vhost-user", "what is behind it"),
            ("vhost-user:", "what is behind it"),
            ("vhost-user:a,queues=0", "from 1 to 127"),
            ("vhost-user:a,queues=128", "from 1 to 127"),
            ("vhost-user:a,queue-size=100", "no power of two"),
            (
                "vhost-user:a,mac=01:00:5e:00:00:01",
                "no address of one station",
            ),
            ("vhost-user:a,mac=1:2:3:4:5:6", "six bytes"),
            ("vhost-user:a,mtu=67", "from 68 to 65535"),
            ("vhost-user:a,vlan=4095", "from 1 to 4094"),
            ("vhost-user:a,trunk=9-7", "runs backwards"),
            ("vhost-user:a,trunk=1+", "from 1 to 4094"),
            ("vhost-user:a,speed=1", "no option \"speed\""),
            ("vhost-user-fd:3,client", "only a path"),
            ("vduse:", "what is behind it"),
            ("vduse:a/b", "no name of a VDUSE device"),
            ("vduse:a,queues=2", "no option \"queues\""),
            ("vhost-user:a,control-queue=1", "no value"),
            ("tap:x,mtu=1500", "no option \"mtu\""),
            ("tap-fd:x", "no descriptor"),
            ("responder,packets-per-second=0", "no option"),
            ("tap:x,packets-per-second=0", "at least 1"),
        ] {
            let error = text.parse::<PortSpec>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_goes_with_its_name() {
        let mac = mac_of("vhost-user:/tmp/a");
        assert!(!mac.is_multicast() && mac.0[0] == 2);
        assert_eq!(mac, mac_of("vhost-user:/tmp/a"));
        assert_ne!(mac, mac_of("vhost-user:/tmp/b"));
    }
}
