//! The control queue of a port of ours driven by Linux's `virtio_net`, in a stock guest
//! under a QEMU that passes all rings on: its `vhost-user-test-device`.

use std::path::{Path, PathBuf};

use linkspan::demo::initramfs;
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Devices, Hardware, Machine, Mode};
use linkspan::demo::process::find_program;
use linkspan_devices::net::{Mac, Toeplitz};
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use rustix::process::Signal;
use serde_json::{Value, json};

mod machines;
mod programs;

use machines::{Monitor, Told, answered, eventually, skip, with_libraries};
use programs::Program;

const TEST: &str = "linux_drives_the_control_queue";

/// Drivers of the guest: its card, and VLANs.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_net", "af_packet", "8021q"];

/// The switch, the guest at its first port and a card of ours at its second.
struct Net {
    switch: Program,
    guest: Told,
    card: Card,
    _dir: tempfile::TempDir,
}

/// What a machine needs, or what is missing.
fn hardware() -> Result<(Hardware, PathBuf), String> {
    initramfs::find_busybox().map_err(|error| error.to_string())?;
    let named = std::env::var_os("LINKSPAN_LATER_QEMU").map(PathBuf::from);
    let qemu = named.and_then(|named| find_program(&named));
    let hardware = Hardware {
        qemu: qemu.ok_or("no later QEMU in LINKSPAN_LATER_QEMU")?,
        accel: Accel::Tcg,
        memory_mib: 192,
        kernel: Kernel::find(None).map_err(|error| error.to_string())?,
    };
    let ethtool = find_program(Path::new("ethtool")).ok_or("ethtool is not installed")?;
    Ok((hardware, ethtool))
}

impl Net {
    /// `None` after saying what is missing.
    fn new() -> Option<Self> {
        let (hardware, ethtool) = match hardware() {
            Ok(found) => found,
            Err(why) => {
                skip(TEST, why.lines().next().unwrap_or_default());
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("initramfs");
        let built =
            initramfs::build_with(&hardware.kernel, &MODULES, &with_libraries(&ethtool)).unwrap();
        initramfs::store(&built, &archive).unwrap();
        let sockets = ["a", "b"].map(|name| dir.path().join(name));
        // Untagged frames are in VLAN 1, and those of VLAN 7 carry a tag.
        let [a, b] = sockets
            .each_ref()
            .map(|socket| format!("vhost-user:{},vlan=1,trunk=7", socket.display()));
        let a = format!("{a},queues=2,control-queue,count=rings,mac={}", station(1));
        let switch = Program::start("net", ["--json", "--port", &a, "--port", &b]);
        assert!(eventually(|| sockets.iter().all(|socket| socket.exists())));
        let card = Card::bring_up(&sockets[1], &CardOptions::default()).unwrap();
        let console = dir.path().join("console.log");
        let devices = Devices::default();
        let machine = Machine::start(&hardware, devices, Mode::Remote, &archive, &console);
        let mut guest = Told {
            name: "the guest",
            machine: machine.unwrap(),
        };
        guest.report("remote");
        plug(&console, &sockets[0]);
        guest.run("until ip link show eth0; do usleep 50000; done 2>/dev/null");
        Some(Self {
            switch,
            guest,
            card,
            _dir: dir,
        })
    }

    /// What the switch has counted at the guest's port.
    #[track_caller]
    fn counts(&self) -> Value {
        self.switch.counts("/a")
    }

    /// A frame comes from the other port: the guest wants it, or it is filtered.
    #[track_caller]
    fn sends(&mut self, frame: &[u8], wanted: bool) {
        let before = self.counts();
        self.card.send(0, frame);
        let mut now = Value::Null;
        let done = eventually(|| {
            now = self.counts();
            let gone = |counts: &Value| number(&counts["dropped"], "filtered");
            let [was, is] =
                [&before, &now].map(|counts| (number(counts, "frames_out"), gone(counts)));
            (is.0 - was.0, is.1 - was.1) == (u64::from(wanted), u64::from(!wanted))
        });
        assert!(done, "wanted: {wanted}, {before}, then {now}");
    }

    /// Many flows come; to which pair of the guest each went.
    #[track_caller]
    fn send_flows(&mut self, to: Mac) -> Vec<usize> {
        let mut homes = Vec::new();
        let of_pairs =
            |counts: &Value| [0, 1].map(|pair| number(&counts["pairs"][pair], "frames_out"));
        let mut before = of_pairs(&self.counts());
        for port in 0..FLOWS {
            self.card.send(0, &flow(to, port));
            let mut now = before;
            let came = eventually(|| {
                now = of_pairs(&self.counts());
                now != before
            });
            assert!(came, "flow {port} is not there: {now:?}");
            homes.push(usize::from(now[0] == before[0]));
            before = now;
        }
        homes
    }

    /// The guest does this, and it takes commands, none of which is refused.
    #[track_caller]
    fn commands(&mut self, line: &str) {
        let before = number(&self.counts(), "commands");
        self.guest.run(line);
        let counts = self.counts();
        assert!(number(&counts, "commands") > before, "{line}: {counts}");
        let refused = counts["commands_refused"].as_object().unwrap();
        assert!(
            refused.values().all(|count| *count == 0),
            "{line}: {counts}"
        );
    }
}

/// Puts a card behind this socket into the machine.
fn plug(console: &Path, socket: &Path) {
    let mut monitor = Monitor::connect(console);
    let address = json!({"type": "unix", "data": {"path": socket}});
    let data = json!({"addr": address, "server": false});
    let backend = json!({"type": "socket", "data": data});
    let chardev = json!({"id": "net", "backend": backend});
    monitor.command(
        &json!({"execute": "chardev-add", "arguments": chardev}),
        answered,
    );
    let card = json!({
        "driver": "vhost-user-test-device-pci", "id": "card", "chardev": "net", "virtio-id": 1,
        "num_vqs": 5, "vq_size": 256, "config_size": 24,
    });
    monitor.command(
        &json!({"execute": "device_add", "arguments": card}),
        answered,
    );
}

fn number(counts: &Value, name: &str) -> u64 {
    counts[name].as_u64().unwrap()
}

const FLOWS: u16 = 16;

/// A frame of a flow of its own.
fn flow(to: Mac, port: u16) -> Vec<u8> {
    let mut udp = frame(station(2), to, 0, 20 + 8 + 20);
    udp[12..26].copy_from_slice(&[8, 0, 0x45, 0, 0, 48, 0, 1, 0, 0, 64, 17, 0, 0]);
    udp[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    udp[34..36].copy_from_slice(&port.to_be_bytes());
    udp
}

/// Which frames it wants: its address, all of them, a VLAN, another address.
#[track_caller]
fn filters(net: &mut Net) {
    let to = |number: u8| frame(station(2), station(number), 7, 100);
    net.sends(&to(1), true);
    net.sends(&to(9), false);
    net.commands("ip link set eth0 promisc on");
    net.sends(&to(9), true);
    net.commands("ip link set eth0 promisc off");
    net.sends(&to(9), false);

    let mut tagged = to(1);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    net.sends(&tagged, false);
    net.commands("ip link add link eth0 name eth0.7 type vlan id 7 && ip link set eth0.7 up");
    net.sends(&tagged, true);
    net.guest.run(
        "until [ $(cat /sys/class/net/eth0.7/statistics/rx_packets) = 1 ]; do usleep 10000; done",
    );
    net.commands("ip link del eth0.7");
    net.sends(&tagged, false);

    net.commands(&format!("ip link set eth0 address {}", station(5)));
    net.sends(&to(5), true);
    net.sends(&to(1), false);
}

/// How flows are spread over its queue pairs.
#[track_caller]
fn spreads(net: &mut Net) {
    net.commands("ethtool -L eth0 combined 2");
    assert_eq!(net.guest.pairs(), [2, 2]);
    let homes = net.send_flows(station(5));
    assert!(homes.contains(&0) && homes.contains(&1), "{homes:?}");
    net.commands("ethtool -L eth0 combined 1");
    assert_eq!(net.guest.pairs(), [2, 1]);
    assert_eq!(net.send_flows(station(5)), [0; FLOWS as usize]);
    net.commands("ethtool -L eth0 combined 2");

    // By a table of its own.
    net.commands("ethtool -X eth0 weight 0 1");
    assert_eq!(net.send_flows(station(5)), [1; FLOWS as usize]);
    // And by a key of its own.
    let key: Vec<u8> = (1..=40).collect();
    let hex: Vec<_> = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.join(":");
    net.commands(&format!(
        "ethtool -X eth0 equal 2 && ethtool -X eth0 hkey {hex}"
    ));
    let table = net.guest.run("ethtool -x eth0");
    assert!(
        table.contains("with 2 RX ring(s)") && table.contains(&hex),
        "{table}"
    );
    let toeplitz = Toeplitz::new(&key);
    let homes = (0..FLOWS).map(|port| {
        let sent = flow(station(5), port);
        let hash = toeplitz.hash(&sent[26..38]);
        // Entries take turns, and there is an even number of them.
        usize::from(hash & 1 == 1)
    });
    let homes: Vec<_> = homes.collect();
    assert_eq!(net.send_flows(station(5)), homes);
}

#[test]
fn linux_drives_the_control_queue() {
    let Some(mut net) = Net::new() else { return };
    let address = net.guest.run("cat /sys/class/net/eth0/address");
    assert_eq!(address, station(1).to_string(), "configuration space");
    // IPv6 would send frames by itself.
    net.guest
        .run("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 2>/dev/null || true");
    net.commands("ip link set eth0 up");
    net.guest.await_carrier(true);
    filters(&mut net);
    spreads(&mut net);
    for (signal, there) in [(Signal::USR1, false), (Signal::USR2, true)] {
        net.switch.signal(signal);
        net.guest.await_carrier(there);
        assert_eq!(net.counts()["link_up"], there);
    }
    net.sends(&frame(station(2), station(5), 7, 100), true);
    let counts = net.counts();
    for why in ["header", "broken", "no_buffers"] {
        assert_eq!(counts["dropped"][why], 0, "{counts}");
    }
    net.guest.machine.kill().unwrap();
    net.switch.signal(Signal::TERM);
    let (status, _, errors) = net.switch.end();
    assert_eq!(status, Some(0), "{errors}");
}
