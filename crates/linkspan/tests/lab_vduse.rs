//! Our devices as vDPA devices of the lab's kernel, through VDUSE, with the kernel's
//! own drivers on them.

//: about our devices are vDPA devices of the kernel, and survive the death of their process
//: pack vdpa ip ping mkfs.ext4 e2fsck fio
//: memory 512
//: limit 300

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use linkspan::demo::process::supervised;
use linkspan_peers::Blkio;
use linkspan_peers::driver::exercise;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_testkit::census::settled;
use linkspan_testkit::driven::{answered, ask};
use linkspan_testkit::lab::{self, Vdpa, unique};
use linkspan_testkit::served::write_image;
use linkspan_testkit::{Driven, PATIENCE};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// Our program, which serves a device.
struct Daemon {
    child: Child,
    events: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let log = dir.join(unique("log"));
        let mut command = supervised(PROGRAM.as_ref());
        command
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap());
        Self { child, events, log }
    }

    /// Reads events until the one of this name.
    fn expect(&mut self, event: &str) {
        let mut line = String::new();
        let wanted = format!("\"event\":\"{event}\"");
        loop {
            line.clear();
            let read = self.events.read_line(&mut line).unwrap();
            assert!(read > 0, "no {event}: {}", self.log());
            if line.contains(&wanted) {
                return;
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        lab::run(Command::new("kill").args(["-s", name, &id]));
    }

    /// Waits until it has worked for a while, by the time of a processor that it
    /// took, or everything is over.
    fn await_work(&self, mut over: impl FnMut() -> bool) {
        const TICKS: u64 = 30;
        let path = format!("/proc/{}/stat", self.child.id());
        let ticks = || -> u64 {
            let stat = fs::read_to_string(&path).unwrap();
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            let times = fields.split(' ').skip(11).take(2);
            times.map(|field| field.parse::<u64>().unwrap()).sum()
        };
        let before = ticks();
        let _ = settled(|| over() || ticks() >= before + TICKS);
    }

    /// Dies at once, with whatever it was doing.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends in order.
    fn stop(mut self) {
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

fn disk(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn serve_disk(dir: &Path, name: &str, image: &Path, more: &[&str]) -> Daemon {
    let image = image.to_str().unwrap();
    let mut arguments = vec!["blk", "--vduse", name, "--image", image, "--queues", "2"];
    arguments.extend(more);
    Daemon::start(dir, &arguments)
}

/// The device node of a device that no driver has any more.
fn await_gone(name: &str) {
    let node = Path::new("/dev/vduse").join(name);
    assert!(settled(|| !node.exists()), "{} stays", node.display());
}

#[test]
fn a_disk_that_nobody_uses_goes_with_its_process() {
    if !lab::guest("a_disk_that_nobody_uses_goes_with_its_process") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 1 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    let state = Path::new("/run/linkspan").join(format!("vduse-{name}"));
    assert!(state.exists() && Path::new("/dev/vduse").join(&name).exists());
    let timeout = fs::read_to_string(format!("/sys/class/vduse/{name}/msg_timeout")).unwrap();
    assert_eq!(timeout.trim(), "0");
    // A second process is told.
    let second = serve_disk(dir.path(), &name, &image, &["--read-only"]);
    let Daemon { mut child, log, .. } = second;
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let said = fs::read_to_string(log).unwrap();
    assert!(said.contains("another process"), "{said}");
    daemon.stop();
    await_gone(&name);
    assert!(!state.exists());
    // One that died leaves the device, which is made anew.
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    daemon.kill();
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    daemon.stop();
    await_gone(&name);
}

#[test]
fn a_file_system_survives_the_death_of_its_disk() {
    if !lab::guest("a_file_system_survives_the_death_of_its_disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 64 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let node = vdpa.disk();
    daemon.expect("running");
    lab::run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&node));
    let mount = dir.path().join("mnt");
    fs::create_dir(&mount).unwrap();
    lab::run(Command::new("mount").arg(&node).arg(&mount));

    let mut load = Command::new("fio");
    load.args(["--name=load", "--rw=randrw", "--bs=4k", "--size=16M"])
        .args(["--ioengine=io_uring", "--iodepth=16", "--direct=1"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
        .args([
            "--verify_backlog=64",
            "--loops=4",
            "--numjobs=2",
            "--thread",
        ])
        .arg(format!("--directory={}", mount.display()));
    let log = File::create(dir.path().join("fio")).unwrap();
    let mut load = load
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut kills = 0;
    let status = loop {
        if let Some(status) = load.try_wait().unwrap() {
            break status;
        }
        if kills < 8 {
            // Anywhere in the middle of the load.
            daemon.await_work(|| load.try_wait().unwrap().is_some());
            daemon.kill();
            kills += 1;
            daemon = serve_disk(dir.path(), &name, &image, &[]);
            daemon.expect("taken-over");
            daemon.expect("running");
        } else {
            break load.wait().unwrap();
        }
    };
    let said = fs::read_to_string(dir.path().join("fio")).unwrap();
    assert!(status.success(), "{status}: {said}\n{}", daemon.log());
    assert!(kills > 2, "the load was over after {kills} deaths: {said}");
    println!("{kills} deaths");

    lab::run(Command::new("umount").arg(&mount));
    // An orderly end of a disk in use leaves the kernel's device as well.
    daemon.stop();
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("taken-over");
    lab::run(Command::new("e2fsck").args(["-f", "-n"]).arg(&node));
    drop(vdpa);
    daemon.expect("reset");
    daemon.stop();
    await_gone(&name);
    lab::run(Command::new("e2fsck").args(["-f", "-n"]).arg(&image));
}

#[test]
fn a_disk_grows_under_its_driver() {
    if !lab::guest("a_disk_grows_under_its_driver") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 8 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let node = vdpa.disk();
    daemon.expect("running");
    let size = Path::new("/sys/class/block").join(node.file_name().unwrap());
    let size = || fs::read_to_string(size.join("size")).unwrap();
    assert_eq!(size().trim(), "16384");
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    daemon.signal("HUP");
    let grown = settled(|| size().trim() == "32768");
    assert!(grown, "{}: {}", size(), daemon.log());
    // What is behind the old end can be used.
    let disk = File::options().read(true).write(true).open(&node).unwrap();
    disk.write_all_at(&[0x5a; 4096], 12 << 20).unwrap();
    disk.sync_all().unwrap();
    let mut read = [0; 4096];
    File::open(&image)
        .unwrap()
        .read_exact_at(&mut read, 12 << 20)
        .unwrap();
    assert_eq!(read, [0x5a; 4096]);
    drop((disk, vdpa));
    daemon.stop();
}

#[test]
fn a_disk_puts_itself_on_the_bus() {
    if !lab::guest("a_disk_puts_itself_on_the_bus") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 1 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &["--vdpa-add"]);
    daemon.expect("offered");
    let vdpa = Vdpa::added_by_others(&name);
    let node = vdpa.disk();
    daemon.expect("running");
    let disk = File::open(node).unwrap();
    disk.read_exact_at(&mut [0; 4096], 0).unwrap();
    drop(disk);
    let said = settled(|| daemon.log().contains("is on the vDPA bus"));
    assert!(said, "{}", daemon.log());
    // One that comes after another death goes on with what is on the bus.
    daemon.kill();
    let mut daemon = serve_disk(dir.path(), &name, &image, &["--vdpa-add"]);
    daemon.expect("taken-over");
    daemon.expect("running");
    drop(vdpa);
    daemon.stop();
    await_gone(&name);
}

/// The device is there all the same, and can be put on the bus by hand.
#[test]
fn a_disk_without_the_program_vdpa_says_so_and_is_offered() {
    if !lab::guest("a_disk_without_the_program_vdpa_says_so_and_is_offered") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 1 << 20));
    let log = dir.path().join("log");
    let mut command = supervised(PROGRAM.as_ref());
    command
        .args(["blk", "--vduse", &name, "--vdpa-add", "--image"])
        .arg(&image)
        .env("PATH", dir.path())
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let log = || fs::read_to_string(&log).unwrap();
    assert!(settled(|| log().contains("package iproute2")), "{}", log());
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let disk = File::open(vdpa.disk()).unwrap();
    disk.read_exact_at(&mut [0; 4096], 0).unwrap();
    drop((disk, vdpa));
    let id = child.id().to_string();
    lab::run(Command::new("kill").args(["-s", "TERM", &id]));
    assert!(child.wait().unwrap().success(), "{}", log());
    await_gone(&name);
}

#[test]
fn a_broken_device_is_made_anew() {
    if !lab::guest("a_broken_device_is_made_anew") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 1 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &["--vduse-timeout", "1"]);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let _ = vdpa.disk();
    daemon.expect("running");
    // It does not answer the reset.
    daemon.signal("STOP");
    let driver = vdpa.dir().join("driver/unbind");
    fs::write(driver, &name).unwrap();
    daemon.signal("CONT");
    daemon.expect("broken");
    drop(vdpa);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let node = vdpa.disk();
    daemon.expect("running");
    let disk = File::options().read(true).write(true).open(node).unwrap();
    disk.write_all_at(&[1; 4096], 0).unwrap();
    disk.sync_all().unwrap();
    drop((disk, vdpa));
    daemon.stop();
    await_gone(&name);
}

#[test]
fn a_card_reaches_the_responder() {
    if !lab::guest("a_card_reaches_the_responder") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let name = unique("vn");
    let port = format!("vduse:{name},mac=52:54:00:12:34:56");
    let arguments = ["net", "--port", &port, "--port", "responder"];
    let mut daemon = Daemon::start(dir.path(), &arguments);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let interface = vdpa.interface();
    let address = fs::read_to_string(format!("/sys/class/net/{interface}/address")).unwrap();
    assert_eq!(address.trim(), "52:54:00:12:34:56");
    let ip = |words: &[&str]| lab::run(Command::new("ip").args(words));
    ip(&["addr", "add", "10.0.2.15/24", "dev", &interface]);
    ip(&["link", "set", &interface, "up"]);
    let ping = |size: &str| {
        let words = ["-c", "5", "-i", "0.2", "-W", "10", "-s", size, "10.0.2.2"];
        lab::run(Command::new("ping").args(words))
    };
    ping("56");
    ping("1400");
    daemon.kill();
    let mut daemon = Daemon::start(dir.path(), &arguments);
    daemon.expect("taken-over");
    daemon.expect("running");
    ping("1400");
    drop(vdpa);
    daemon.stop();
    await_gone(&name);
}

/// Linux's own driver sees whether somebody is at the other end of a pair, and what whoever
/// runs the program wants.
#[test]
fn a_card_has_a_carrier_while_its_link_is_up() {
    if !lab::guest("a_card_has_a_carrier_while_its_link_is_up") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let names = [unique("vn"), unique("vn")];
    let [one, other] = [0, 1].map(|at| format!("vduse:{},mac=52:54:00:12:34:5{at}", names[at]));
    let ports = ["--port", &one, "--port", &other];
    let arguments = [&["net", "--mode", "pair"], &ports[..]].concat();
    let mut daemon = Daemon::start(dir.path(), &arguments);
    daemon.expect("offered");
    daemon.expect("offered");
    let first = Vdpa::add(&names[0], "vduse", &[]);
    let interface = first.interface();
    let ip = |words: &[&str]| lab::run(Command::new("ip").args(words));
    ip(&["link", "set", &interface, "up"]);
    let carrier = |there: bool| {
        let said = ip(&["link", "show", &interface]);
        said.contains("NO-CARRIER") != there
    };
    assert!(
        settled(|| carrier(false)),
        "nobody is there: {}",
        daemon.log()
    );
    let driver = |vdpa: &Vdpa| vdpa.dir().join("driver/unbind");
    let second = Vdpa::add(&names[1], "vduse", &[]);
    for _ in 0..2 {
        ip(&["link", "set", &second.interface(), "up"]);
        assert!(settled(|| carrier(true)), "somebody came: {}", daemon.log());
        daemon.signal("USR1");
        assert!(settled(|| carrier(false)), "it was taken down");
        daemon.signal("USR2");
        assert!(settled(|| carrier(true)), "and up again");
        fs::write(driver(&second), &names[1]).unwrap();
        assert!(
            settled(|| carrier(false)),
            "the other went: {}",
            daemon.log()
        );
    }
    drop((first, second));
    daemon.stop();
    names.iter().for_each(|name| await_gone(name));
}

/// An independent driver in user space, behind vhost_vdpa: its memory changes by
/// messages, and its rings are split.
#[test]
fn libblkio_drives_our_disk_through_vhost_vdpa() {
    if !lab::guest("libblkio_drives_our_disk_through_vhost_vdpa") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), dir.path().join("disk"));
    write_image(&image);
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let node = vdpa.char_device();
    // The kernel's own driver was first.
    daemon.expect("reset");
    let mut driver = Blkio::open_vdpa(&node, 2);
    daemon.expect("running");
    exercise(&mut driver, &image, 1);
    drop(driver);
    daemon.expect("reset");
    // Its server dies in the middle, again and again.
    let mut driver = Blkio::open_vdpa(&node, 2);
    daemon.expect("running");
    let over = AtomicBool::new(false);
    let deaths = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut deaths = 0;
            while !over.load(Ordering::Acquire) {
                daemon.await_work(|| over.load(Ordering::Acquire));
                daemon.kill();
                daemon = serve_disk(dir.path(), &name, &image, &[]);
                daemon.expect("taken-over");
                daemon.expect("running");
                deaths += 1;
            }
            (deaths, daemon)
        });
        for seed in 3..6 {
            exercise(&mut driver, &image, seed);
        }
        over.store(true, Ordering::Release);
        killer.join().unwrap()
    });
    let (deaths, mut daemon) = deaths;
    println!("{deaths} deaths");
    assert!(deaths > 1);
    drop(driver);
    daemon.expect("reset");
    drop(vdpa);
    daemon.stop();
}

/// Both ends are ours and the kernel is between them: once directly, once more
/// through a bridge and a socket.
#[test]
fn our_driver_runs_on_our_own_disk_through_vhost_vdpa() {
    if !lab::guest("our_driver_runs_on_our_own_disk_through_vhost_vdpa") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 16 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let node = vdpa.char_device();
    // The kernel's own driver was first.
    daemon.expect("reset");
    let driver = |place: &[&str], what: &[&str]| {
        let mut command = Command::new(PROGRAM);
        lab::run(command.args(["driver", "blk"]).args(place).args(what))
    };
    let at = ["--vdpa", node.to_str().unwrap()];
    copy_through(dir.path(), &image, 1, |what| driver(&at, what));
    daemon.expect("running");
    driver(
        &at,
        &["verify", "--overwrite", "--seconds", "2", "--queues", "2"],
    );

    let (bridge, socket) = serve_device(dir.path(), &node);
    let at = ["--socket-path", socket.to_str().unwrap()];
    copy_through(dir.path(), &image, 2, |what| driver(&at, what));
    driver(&at, &["verify", "--overwrite", "--seconds", "2"]);
    bridge.stop();
    drop(vdpa);
    daemon.stop();
    await_gone(&name);
}

/// A vDPA device passed on, and the socket.
fn serve_device(dir: &Path, node: &Path) -> (Daemon, PathBuf) {
    let socket = dir.join(unique("s"));
    let place = [node, &socket].map(|path| path.to_str().unwrap());
    let arguments = ["vdpa", "serve", place[0], "--socket-path", place[1]];
    let mut bridge = Daemon::start(dir, &arguments);
    bridge.expect("listening");
    (bridge, socket)
}

/// Four programs and the kernel: the disk's process is told of the new size, the kernel by
/// VDUSE, the bridge by an interrupt of vhost-vdpa, and the driver by a message, for which
/// it reads the size by the way back.
#[test]
fn a_disk_grows_behind_a_bridge() {
    if !lab::guest("a_disk_grows_behind_a_bridge") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (name, image) = (unique("vd"), disk(dir.path(), 8 << 20));
    let mut daemon = serve_disk(dir.path(), &name, &image, &[]);
    daemon.expect("offered");
    let vdpa = Vdpa::add(&name, "vduse", &[]);
    let (bridge, socket) = serve_device(dir.path(), &vdpa.char_device());
    let mut driven = Driven::new(&socket, 1).unwrap();
    let sectors = |driven: &Driven| {
        let capacity = driven.link.config()[..8].try_into().unwrap();
        u64::from_le_bytes(capacity)
    };
    assert_eq!(sectors(&driven), 16384);
    for mib in [16, 32] {
        let file = File::options().write(true).open(&image).unwrap();
        let (bytes, last) = (mib << 20, (mib << 11) - 1);
        file.set_len(bytes).unwrap();
        file.write_all_at(&[0x5a; 512], last * 512).unwrap();
        daemon.signal("HUP");
        let deadline = Some(Instant::now() + PATIENCE);
        let told = wait_for(
            driven.link.config_changed(),
            Direction::Read,
            None,
            deadline,
        );
        assert_eq!(told.unwrap(), Wake::Ready, "{}", bridge.log());
        assert_eq!(sectors(&driven), last + 1);
        // What is behind the old end can be used.
        ask(&mut driven.queues[0], last);
        assert_eq!(answered(&mut driven.queues[0]), (last, vec![0x5a; 512]));
    }
    drop(driven);
    assert!(!bridge.log().contains("ERROR"), "{}", bridge.log());
    bridge.stop();
    drop(vdpa);
    daemon.stop();
    await_gone(&name);
}

/// Writes with a driver, reads it again, and finds it in the image.
fn copy_through(dir: &Path, image: &Path, seed: u32, driver: impl Fn(&[&str]) -> String) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    let words = (0..1_000_000_u32).map(|at| at.wrapping_mul(seed).to_le_bytes());
    let mut bytes = words.flatten().collect::<Vec<u8>>();
    bytes.truncate(bytes.len() / 4096 * 4096);
    fs::write(&from, &bytes).unwrap();
    driver(&["write", "--from", from.to_str().unwrap()]);
    let length = bytes.len().to_string();
    driver(&["read", "--length", &length, "--to", to.to_str().unwrap()]);
    assert!(fs::read(&to).unwrap() == bytes);
    let mut stored = vec![0; bytes.len()];
    let image = File::open(image).unwrap();
    image.read_exact_at(&mut stored, 0).unwrap();
    assert!(stored == bytes);
}
