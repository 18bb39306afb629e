//! A Linux guest in QEMU whose disk and network go on in new processes, again and again, while
//! it writes, reads back and pings: it sees nothing of it.

use std::fs::{self, File};
use std::path::Path;

use linkspan::demo::initramfs;
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Devices, Disk, Hardware, Machine, Mode, Nic, Place};
use linkspan::demo::process::find_program;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

mod host;
mod machines;
mod programs;

use host::Host;
use machines::{Told, eventually, skip};

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.disk]\ncommand = \"blk\"\nsocket-path = \"disk.sock\"\nimage = \"disk.img\"\n\
    [link.net]\ncommand = \"net\"\n\
    port = [\"vhost-user:net.sock,queues=2\", \"responder,address=10.9.0.2/24\"]\n";

/// Upgrades of each of the two links.
const UPGRADES: u32 = 5;

/// Writes a megabyte, reads it back from the disk, and begins anew.
const WRITE: &str = "(n=0; until [ -e /tmp/stop ]; do \
    dd if=/dev/urandom of=/tmp/block bs=64k count=16 2>/dev/null; \
    dd if=/tmp/block of=/dev/vda bs=64k seek=$((n % 8 * 16)) conv=notrunc,fsync 2>/dev/null \
    || echo wrong; \
    echo 3 >/proc/sys/vm/drop_caches; \
    dd if=/dev/vda bs=64k skip=$((n % 8 * 16)) count=16 2>/dev/null | cmp - /tmp/block \
    || echo wrong; \
    n=$((n + 1)); done; echo done $n) >/tmp/writes 2>&1 &";

/// A frame that is lost is a ping without an answer.
const PING: &str = "(n=0; until [ -e /tmp/stop ]; do \
    ping -c 1 -W 20 10.9.0.2 >/dev/null || echo wrong; \
    n=$((n + 1)); done; echo done $n) >/tmp/pings 2>&1 &";

/// `None` after saying what is missing.
fn hardware(test: &str) -> Option<Hardware> {
    let need = || -> Result<Hardware, String> {
        let kernel = Kernel::find(None).map_err(|error| error.to_string())?;
        let qemu = find_program(Path::new("qemu-system-x86_64")).ok_or("QEMU is not installed")?;
        Ok(Hardware {
            qemu,
            accel: Accel::Tcg,
            memory_mib: 192,
            kernel,
        })
    };
    let why = match need() {
        Ok(hardware) => return Some(hardware),
        Err(why) => why,
    };
    skip(test, why.lines().next().unwrap_or_default());
    None
}

/// A guest whose disk and card are links of this plane.
fn boot(hardware: &Hardware, host: &Host, packed: bool) -> Told {
    let archive = host.at("initramfs.cpio");
    let built = initramfs::build(&hardware.kernel, &[]).unwrap();
    initramfs::store(&built, &archive).unwrap();
    let (disk, nic) = (host.at("disk.sock"), host.at("net.sock"));
    let devices = Devices {
        disk: Some(Disk {
            socket: &disk,
            queues: 2,
            packed,
        }),
        nic: Some(Nic {
            socket: &nic,
            pairs: 2,
            packed,
            mac: [0x52, 0x54, 0, 0, 0, 1],
            place: Place::None,
        }),
        ..Devices::default()
    };
    let console = host.at("guest.log");
    let machine = Machine::start(hardware, devices, Mode::Remote, &archive, &console);
    Told {
        name: "guest",
        machine: machine.unwrap(),
    }
}

/// Waits until this count of a link has grown, in the process that has it now.
#[track_caller]
fn grows(host: &Host, path: &str) {
    let now = || host.seen(path).as_u64().unwrap_or(0);
    let before = now();
    assert!(
        eventually(|| now() > before + 4),
        "{path}: {before}\n{}",
        host.up.complained()
    );
}

fn guest_sees_nothing(test: &str, packed: bool) {
    let Some(hardware) = hardware(test) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let image = File::create(folder.path().join("disk.img")).unwrap();
    image.set_len(16 << 20).unwrap();
    let host = Host::start(folder, PLANE, &["--json"]);
    for link in ["disk/disk", "net/vhost-user:net.sock"] {
        host.becomes(link, Value::is_object);
    }
    let mut guest = boot(&hardware, &host, packed);
    guest.report("remote");
    guest.run("ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up");
    guest.run("until ping -c 1 -W 1 10.9.0.2 >/dev/null; do :; done");
    guest.run(WRITE);
    guest.run(PING);
    for _ in 0..UPGRADES {
        for (link, count) in [
            ("disk", "disk/disk/requests/writes"),
            ("net", "net/vhost-user:net.sock/frames/frames_in"),
        ] {
            grows(&host, count);
            let mut said = String::new();
            let upgraded = eventually(|| {
                let output = host.run(&["upgrade", link, "--json"]);
                said = String::from_utf8(output.stdout).unwrap();
                // A slow disk may keep its requests for too long.
                let again = said.contains("requests in flight");
                assert!(output.status.success() || again, "{said}");
                output.status.success()
            });
            assert!(upgraded, "{said}");
            print!("{said}");
            grows(&host, count);
        }
    }
    guest.run("touch /tmp/stop");
    let said = guest.run(
        "until grep -q done /tmp/writes && grep -q done /tmp/pings; do usleep 50000; done; \
         cat /tmp/writes /tmp/pings",
    );
    println!("{said}");
    assert!(
        !said.contains("wrong") && !said.contains("differ"),
        "{said}"
    );
    let (_, complaints) = guest.try_run("dmesg | grep -i -E 'i/o error|timeout|hung|reset'");
    assert_eq!(complaints, "");
    let hash = guest.run("sync; sha256sum /dev/vda");
    let digest = Sha256::digest(fs::read(host.at("disk.img")).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hash.split(' ').next(), Some(digest.as_str()));
    // QEMU has the connections that it began with.
    for path in ["disk/disk", "net/vhost-user:net.sock"] {
        let seen = host.seen(path);
        assert_eq!(seen["generation"], 1, "{seen:#}");
    }
    drop(guest);
    host.end();
}

#[test]
fn a_guest_sees_nothing_of_upgrades_of_its_disk_and_network() {
    guest_sees_nothing("upgrade_guest_split", false);
}

#[test]
fn a_guest_with_packed_rings_sees_nothing_of_them_either() {
    guest_sees_nothing("upgrade_guest_packed", true);
}
