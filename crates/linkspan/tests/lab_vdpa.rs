//! vDPA devices of a real kernel: driven by our drivers, shown by our program, and
//! passed on to drivers that we did not write.

//: about vDPA devices of the kernel under our drivers, and passed on over vhost-user
//: pack vdpa
//: memory 512
//: limit 300

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use linkspan_peers::{Blkio, CHUNK, Driver as _};
use linkspan_sys::EventFd;
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::lab::{self, Vdpa};
use linkspan_testkit::{Disk as TestDisk, DiskRing, FrontEnd, Io, Options, VirtioPci};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn linkspan(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(args);
    command
}

fn json(args: &[&str]) -> Value {
    let text = lab::run(&mut linkspan(args));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A command that ends with a status, and what it said.
fn fails(args: &[&str], status: i32) -> String {
    let output = linkspan(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn our_disk_driver_runs_on_a_simulated_disk() {
    if !lab::guest("our_disk_driver_runs_on_a_simulated_disk") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let node = vdpa.char_device();
    let blk = ["driver", "blk", "--vdpa", text(&node)];
    let with = |more: &[&'static str]| [&blk[..], more].concat();
    let info = json(&with(&["info", "--json"]));
    assert_eq!(info["size_bytes"], 128 << 20, "{info}");
    assert_eq!(info["queues_max"], 1);
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let bytes = &bytes[..bytes.len() / 4096 * 4096];
    fs::write(&from, bytes).unwrap();
    let mut write = linkspan(&with(&["write"]));
    lab::run(write.arg("--from").arg(&from));
    let mut read = linkspan(&with(&["read"]));
    let len = bytes.len().to_string();
    lab::run(read.args(["--length", &len, "--to"]).arg(&to));
    assert!(fs::read(&to).unwrap() == bytes);
    // The kernel's own driver finds the same.
    let disk = File::open(vdpa.disk()).unwrap();
    let mut start = vec![0; 1 << 20];
    disk.read_exact_at(&mut start, 0).unwrap();
    assert!(start == bytes[..1 << 20]);
    drop(disk);
    assert_eq!(vdpa.char_device(), node);
    lab::run(&mut linkspan(&with(&[
        "verify",
        "--overwrite",
        "--seconds",
        "2",
    ])));
    let bench = json(&with(&[
        "bench",
        "--seconds",
        "1",
        "--depth",
        "32",
        "--json",
    ]));
    println!("{bench}");
}

#[test]
fn our_network_driver_runs_on_a_simulated_card() {
    if !lab::guest("our_network_driver_runs_on_a_simulated_card") {
        return;
    }
    let vdpa = Vdpa::simulated_card();
    let node = vdpa.char_device();
    let net = ["driver", "net", "--vdpa", text(&node)];
    let info = json(&[&net[..], &["info", "--json"]].concat());
    assert!(info["link_up"].as_bool().unwrap(), "{info}");
    // It sends back what it gets.
    let bench = [
        "bench",
        "--mode",
        "tx",
        "--ring",
        "256",
        "--seconds",
        "1",
        "--json",
    ];
    let bench = json(&[&net[..], &bench].concat());
    println!("{bench}");
}

#[test]
fn queue_sizes_and_counts_are_refused_with_both_numbers() {
    if !lab::guest("queue_sizes_and_counts_are_refused_with_both_numbers") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let node = vdpa.char_device();
    let blk = ["driver", "blk", "--vdpa", text(&node), "--queue-size"];
    let said = fails(&[&blk[..], &["512", "info"]].concat(), 1);
    assert!(said.contains("512") && said.contains("256"), "{said}");
    for size in ["0", "64", "256"] {
        lab::run(&mut linkspan(&[&blk[..], &[size, "info"]].concat()));
    }
    let serve = ["vdpa", "serve", text(&node), "--socket-path", "/tmp/none"];
    let said = fails(&[&serve[..], &["--queue-size", "512"]].concat(), 1);
    assert!(said.contains("512") && said.contains("256"), "{said}");
    // Nobody could connect before that was known.
    assert!(!Path::new("/tmp/none").exists());
    let said = fails(
        &["driver", "blk", "--vdpa", "/dev/vhost-vdpa-99", "info"],
        3,
    );
    assert!(said.contains(text(&node)), "{said}");
    // The only one is another driver's.
    let _ = vdpa.disk();
    let said = fails(
        &["driver", "blk", "--vdpa", "/dev/vhost-vdpa-99", "info"],
        5,
    );
    let words = format!("echo {} > driver/unbind", vdpa.name());
    assert!(said.contains(&words), "{said}");
    drop(vdpa);
    let said = fails(
        &["driver", "blk", "--vdpa", "/dev/vhost-vdpa-99", "info"],
        5,
    );
    assert!(said.contains("vdpa dev add"), "{said}");
}

#[test]
fn devices_are_listed_and_shown_with_all_that_they_tell() {
    if !lab::guest("devices_are_listed_and_shown_with_all_that_they_tell") {
        return;
    }
    let (disk, card) = (Vdpa::simulated_disk(), Vdpa::simulated_card());
    let nodes = [disk.char_device(), card.char_device()];
    let list = json(&["vdpa", "list", "--json"]);
    let named = |name: &str| {
        let all = list.as_array().unwrap();
        all.iter().find(|it| it["name"] == name).unwrap().clone()
    };
    assert_eq!(named(disk.name())["device"]["device_type"], "block");
    // The simulators hang on no device of sysfs.
    assert_eq!(named(card.name())["management"], Value::Null);
    println!("{}", lab::run(&mut linkspan(&["vdpa", "list"])));
    let shown = json(&["vdpa", "show", text(&nodes[0]), "--json"]);
    println!("{shown}");
    assert_eq!(
        (&shown["queues"], &shown["queue_size_max"]),
        (&1.into(), &256.into())
    );
    assert_eq!(shown["config"]["block"]["size_bytes"], 128 << 20);
    assert_eq!(shown["name"], disk.name());
    let features = shown["feature_names"].as_array().unwrap();
    assert!(features.contains(&"ACCESS_PLATFORM".into()), "{shown}");
    let shown = json(&["vdpa", "show", text(&nodes[1]), "--json"]);
    println!("{shown}");
    assert_eq!((&shown["queues"], &shown["groups"]), (&3.into(), &2.into()));
    assert_eq!(shown["queue_groups"], serde_json::json!([0, 0, 1]));
    println!(
        "{}",
        lab::run(&mut linkspan(&["vdpa", "show", text(&nodes[1])]))
    );
    // One that the kernel has itself is listed, and not opened.
    let disk_node = disk.disk();
    let list = json(&["vdpa", "list", "--json"]);
    assert!(list.to_string().contains("virtio_vdpa"), "{list}");
    assert!(disk_node.exists());
}

#[test]
fn a_device_that_is_open_already_is_taken_over() {
    if !lab::guest("a_device_that_is_open_already_is_taken_over") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let node = vdpa.char_device();
    let script = format!(
        "exec 9<>{}; exec {PROGRAM} driver blk --fd 9 info --json",
        text(&node)
    );
    let said = lab::run(Command::new("sh").args(["-c", &script]));
    assert!(said.contains("size_bytes"), "{said}");
    let bridge = Bridge::inheriting(&node);
    let socket = bridge.socket();
    let blk = ["driver", "blk", "--socket-path", text(&socket)];
    for _ in 0..2 {
        lab::run(&mut linkspan(
            &[&blk[..], &["verify", "--overwrite", "--seconds", "1"]].concat(),
        ));
    }
    drop(bridge);
    // While somebody has it nobody else does.
    let held = File::options()
        .read(true)
        .write(true)
        .custom_flags(0)
        .open(&node);
    let held = held.unwrap();
    assert!(held.as_raw_fd() > 2);
    let said = fails(&["driver", "blk", "--vdpa", text(&node), "info"], 3);
    assert!(said.contains("another process"), "{said}");
}

/// `linkspan vdpa serve`, which runs until it is dropped.
struct Bridge {
    child: Child,
    folder: TempDir,
}

impl Bridge {
    fn new(node: &Path) -> Self {
        Self::start(linkspan(&["vdpa", "serve", text(node), "--socket-path"]))
    }

    /// Of a device that is open already.
    fn inheriting(node: &Path) -> Self {
        let script = format!(
            "exec 9<>{}; exec {PROGRAM} vdpa serve --fd 9 --socket-path \"$0\"",
            text(node)
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        Self::start(command)
    }

    /// By a command that wants the path of the socket as its last word.
    fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let command = command.arg(folder.path().join("s")).stdin(Stdio::null());
        let child = command.stderr(log).spawn().unwrap();
        let bridge = Self { child, folder };
        assert!(settled(|| bridge.socket().exists()), "{}", bridge.log());
        bridge
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// How often its threads went to sleep: none can make a call that waits, or be
    /// woken, without that.
    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap();
        let lines = tasks.map(|task| status(task.unwrap()));
        let count = |text: String| {
            let line = text.lines().find(|line| line.starts_with("voluntary_ctxt"));
            line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok())
        };
        lines.filter_map(count).sum()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

#[test]
fn a_simulated_disk_is_passed_on_to_our_driver_again_and_again() {
    if !lab::guest("a_simulated_disk_is_passed_on_to_our_driver_again_and_again") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let bridge = Bridge::new(&vdpa.char_device());
    let socket = bridge.socket();
    let blk = ["driver", "blk", "--socket-path", text(&socket)];
    for _ in 0..3 {
        let info = json(&[&blk[..], &["info", "--json"]].concat());
        assert_eq!(info["size_bytes"], 128 << 20, "{info}");
    }
    lab::run(&mut linkspan(
        &[&blk[..], &["verify", "--overwrite", "--seconds", "2"]].concat(),
    ));
    // A front end that dies leaves a device for the next one.
    let verify = [&blk[..], &["verify", "--overwrite", "--seconds", "30"]].concat();
    let mut child = linkspan(&verify).stderr(Stdio::null()).spawn().unwrap();
    assert!(settled(|| bridge.log().matches("connected").count() >= 5));
    child.kill().unwrap();
    child.wait().unwrap();
    lab::run(&mut linkspan(
        &[&blk[..], &["verify", "--overwrite", "--seconds", "1"]].concat(),
    ));
    println!("{}", bridge.log());
}

/// What a monitor does that pauses its machine: each ring is stopped with requests under way,
/// says where it is, and goes on from there with other descriptors. None is lost, and none
/// is answered twice, which the ring would take for a broken device.
#[test]
fn rings_of_a_simulated_disk_stop_under_load_and_go_on() {
    if !lab::guest("rings_of_a_simulated_disk_stop_under_load_and_go_on") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let bridge = Bridge::new(&vdpa.char_device());
    let front = FrontEnd::connect(&bridge.socket()).unwrap();
    let mut disk = TestDisk::bring_up(front, &Options::default(), 1, 64).unwrap();
    let ring = &mut disk.rings[0];
    for sector in 0..8 {
        ring.write(sector, &[sector.to_le_bytes()[0] + 1; SECTOR]);
    }
    let reads = |ring: &mut DiskRing, done: &mut usize| {
        while let Some(read) = ring.poll() {
            assert_eq!(read.status, 0);
            assert!((1..=8).contains(&read.data[0]), "{}", read.data[0]);
            assert_eq!(read.data, [read.data[0]; SECTOR]);
            *done += 1;
        }
    };
    let (mut asked, mut done, mut under_way) = (0, 0, 0);
    for round in 0..60_u64 {
        for sector in 0..8 {
            ring.add(Io::Read {
                sector,
                len: SECTOR,
            });
            asked += 1;
        }
        // Now and then nobody tells the device before it stops.
        if round % 4 != 0 {
            ring.kick();
        }
        let base = disk.front.stop(0).unwrap();
        assert_eq!(base, ring.base(), "where it is");
        reads(ring, &mut done);
        under_way += asked - done;
        ring.kick = EventFd::new().unwrap();
        ring.call = EventFd::new().unwrap();
        // Descriptors are new, and nobody kicks: what was asked before is looked at.
        disk.front.start(ring).unwrap();
        disk.front.enable(0, true).unwrap();
        while done < asked {
            let read = ring.wait();
            assert_eq!((read.status, read.data.len()), (0, SECTOR));
            done += 1;
        }
    }
    println!("{under_way} of {asked} requests were under way when their ring stopped");
    assert!(under_way > 0, "it never stopped under load");
    disk.shut_down();
    assert!(!bridge.log().contains("WARN"), "{}", bridge.log());
}

/// The same disk as a PCI device, under a driver that finds it on its bus: its rings lose
/// their memory for a moment under load, it is reset, and the next client has it.
#[test]
fn a_simulated_disk_is_a_pci_device_again_and_again() {
    if !lab::guest("a_simulated_disk_is_a_pci_device_again_and_again") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let node = vdpa.char_device();
    let serve = ["vdpa", "serve", text(&node), "--vfio-user"];
    let bridge = Bridge::start(linkspan(&serve));
    let content = |sector: u64| [sector.to_le_bytes()[0] + 1; SECTOR];
    for _ in 0..3 {
        let mut driver = VirtioPci::connect(&bridge.socket()).unwrap();
        assert_eq!(driver.config(0, 8), (128_u64 << 11).to_le_bytes());
        let mut rings = driver.bring_up(1);
        let memory = Arc::clone(rings[0].memory());
        let ring = &mut rings[0];
        for sector in 0..8 {
            let data = &content(sector);
            ring.add(Io::Write { sector, data });
            driver.kick(0);
        }
        // Under requests that nobody waits for.
        driver.client.unmap(&memory).unwrap();
        driver.client.map(&memory).unwrap();
        for _ in 0..8 {
            assert_eq!(rings[0].wait().status, 0);
        }
        for sector in 0..8 {
            let len = SECTOR;
            rings[0].add(Io::Read { sector, len });
            driver.kick(0);
            assert_eq!(rings[0].wait().data, content(sector));
        }
        let mut rings = driver.bring_up_again(rings);
        rings[0].add(Io::Flush);
        driver.kick(0);
        assert_eq!(rings[0].wait().status, 0);
    }
    println!("{}", bridge.log());
    assert!(!bridge.log().contains("WARN"));
    drop(bridge);
    let disk = File::open(vdpa.disk()).unwrap();
    for sector in 0..8 {
        let mut read = [0; SECTOR];
        disk.read_exact_at(&mut read, sector * SECTOR as u64)
            .unwrap();
        assert!(read == content(sector));
    }
}

/// The data path goes from the driver to the kernel and back.
#[test]
fn a_driver_of_others_runs_over_the_bridge_which_sleeps_meanwhile() {
    if !lab::guest("a_driver_of_others_runs_over_the_bridge_which_sleeps_meanwhile") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let bridge = Bridge::new(&vdpa.char_device());
    let mut driver = Blkio::connect(&bridge.socket(), 1);
    assert_eq!(driver.capacity(), 128 << 20);
    let data: Vec<u8> = (0..CHUNK * 64)
        .map(|at| (at * 7 / 5).to_le_bytes()[0])
        .collect();
    driver.write(0, 4096, &data);
    driver.flush(0);
    let mut read = vec![0; data.len()];
    driver.read(0, 4096, &mut read);
    assert!(read == data);
    let before = bridge.sleeps();
    for _ in 0..20 {
        driver.read(0, 4096, &mut read);
    }
    assert_eq!(bridge.sleeps(), before, "the bridge has no part in this");
    drop(driver);
    let disk = File::open({
        drop(bridge);
        vdpa.disk()
    });
    let mut read = vec![0; data.len()];
    disk.unwrap().read_exact_at(&mut read, 4096).unwrap();
    assert!(read == data);
}

#[test]
fn a_simulated_card_is_passed_on_with_its_control_queue() {
    if !lab::guest("a_simulated_card_is_passed_on_with_its_control_queue") {
        return;
    }
    let vdpa = Vdpa::simulated_card();
    let bridge = Bridge::new(&vdpa.char_device());
    let socket = bridge.socket();
    let net = ["driver", "net", "--socket-path", text(&socket)];
    for _ in 0..2 {
        let info = json(&[&net[..], &["info", "--json"]].concat());
        assert_eq!(info["queue_pairs_max"], 1, "{info}");
        let bench = [
            "bench",
            "--mode",
            "tx",
            "--ring",
            "256",
            "--seconds",
            "1",
            "--json",
        ];
        println!("{}", json(&[&net[..], &bench].concat()));
    }
    assert!(!bridge.log().contains("WARN"), "{}", bridge.log());
}
