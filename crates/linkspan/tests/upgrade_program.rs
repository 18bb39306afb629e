//! `linkspan upgrade` as a program: disks under a load that remembers what was acknowledged go
//! on in new processes, and nothing is lost, whoever is killed meanwhile.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::{settled, written_by};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

mod host;
mod programs;

use host::Host;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// How often a disk is handed over; `cargo xtask long upgrade` asks for more.
const UPGRADES_ENV: &str = "LINKSPAN_UPGRADES";

/// Bytes that a process writes before it hands the disk over.
const BYTES_BEFORE: u64 = 2 << 20;

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.disk]\ncommand = \"blk\"\nsocket-path = \"disk.sock\"\nimage = \"disk.img\"\n\
    [link.screen]\ncommand = \"gpu\"\nsocket-path = \"screen.sock\"\n\
    [link.memory]\ncommand = \"blk\"\nsocket-path = \"memory.sock\"\nimage = \"mem:1M\"\n\
    [link.later]\ncommand = \"blk\"\nsocket-path = \"later.sock\"\nimage = \"null:1M\"\nstart = false\n";

/// A plane with a disk, and a verifying load on it.
struct Rig {
    host: Host,
    driver: Driver,
}

struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Rig {
    fn new(layout: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = File::create(folder.path().join("disk.img")).unwrap();
        image.set_len(32 << 20).unwrap();
        let log = File::create(folder.path().join("driver.log")).unwrap();
        let driver = Command::new(PROGRAM)
            .args(["driver", "blk", "--connect-limit", "60", "--socket-path"])
            .arg(folder.path().join("disk.sock"))
            .args(layout)
            .args(["verify", "--overwrite", "--json", "--seconds", "3600"])
            .args(["--queues", "2", "--depth", "16"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let host = Host::start(folder, PLANE, &["--json"]);
        host.becomes("disk/disk/phase", |phase| phase == "running");
        let driver = Driver(driver);
        Self { host, driver }
    }

    fn logs(&self) -> String {
        let driver = fs::read_to_string(self.host.at("driver.log")).unwrap_or_default();
        format!("driver:\n{driver}\nplane:\n{}", self.host.up.complained())
    }

    /// Waits until the disk's process has written much; which one it is.
    #[track_caller]
    fn loaded(&mut self) -> u32 {
        let mut pid = 0;
        let mut loaded = || {
            let over = self.driver.0.try_wait().unwrap();
            assert!(over.is_none(), "the load ended: {over:?}\n{}", self.logs());
            let now = self.host.seen("disk/pid").as_u64();
            pid = now.and_then(|now| u32::try_from(now).ok()).unwrap_or(pid);
            pid > 0 && written_by(pid) >= BYTES_BEFORE
        };
        let loaded = (0..4).any(|_| settled(&mut loaded));
        assert!(loaded, "no load reaches the disk\n{}", self.logs());
        pid
    }

    /// Hands the disk over, again if a slow disk kept its requests too long; what is said of it.
    #[track_caller]
    fn upgrade(&self) -> Value {
        let mut said = Value::Null;
        let mut upgraded = || {
            let output = self.host.run(&["upgrade", "disk", "--json"]);
            said = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let error = said["error"].as_str().unwrap_or_default();
            // Or if it has not heard yet that its last successor was killed.
            let again = error.contains("requests in flight") || error.contains("already");
            assert!(
                output.status.success() || again,
                "{output:?}\n{}",
                self.logs()
            );
            output.status.success()
        };
        assert!(settled(&mut upgraded), "{said}\n{}", self.logs());
        said
    }

    /// Ends the load, which then reads everything once more, and the plane.
    fn finish(mut self) -> Value {
        let pid = Pid::from_child(&self.driver.0);
        kill_process(pid, Signal::TERM).unwrap();
        let mut report = String::new();
        let out = self.driver.0.stdout.as_mut().unwrap();
        std::io::Read::read_to_string(out, &mut report).unwrap();
        let status = self.driver.0.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.logs());
        self.host.end();
        serde_json::from_str(&report).unwrap()
    }
}

fn upgrades() -> u64 {
    std::env::var(UPGRADES_ENV).map_or(10, |text| text.parse().unwrap())
}

/// The pauses as a table, in the order of their length.
fn print(mut pauses: Vec<u64>) {
    pauses.sort_unstable();
    let at = |part: usize| pauses[(pauses.len() - 1) * part / 100];
    println!(
        "{} upgrades, pauses in us: min {}, median {}, p90 {}, max {}",
        pauses.len(),
        at(0),
        at(50),
        at(90),
        at(100)
    );
    for pause in pauses {
        println!("{pause:>10}");
    }
}

fn nothing_is_lost(layout: &[&str]) {
    let mut rig = Rig::new(layout);
    let (mut pauses, mut before) = (Vec::new(), 0);
    for _ in 0..upgrades() {
        let pid = rig.loaded();
        assert_ne!(pid, before);
        before = pid;
        let said = rig.upgrade();
        assert_ne!(said["pid"], pid, "{said}");
        pauses.push(said["pause_us"].as_u64().expect("a front end is there"));
    }
    rig.loaded();
    // Its front end was never without a back end.
    assert_eq!(rig.host.seen("disk/disk/generation"), 1, "{}", rig.logs());
    assert_eq!(rig.host.seen("disk/starts"), 1);
    let report = rig.finish();
    let writes = report["writes"].as_u64().unwrap();
    assert!(writes * 4096 >= upgrades() * BYTES_BEFORE / 2, "{report}");
    print(pauses);
    println!("{report}");
}

#[test]
fn a_disk_under_load_goes_on_in_new_processes_and_loses_nothing_in_split_rings() {
    nothing_is_lost(&[]);
}

#[test]
fn a_disk_under_load_goes_on_in_new_processes_and_loses_nothing_in_packed_rings() {
    nothing_is_lost(&["--packed"]);
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split(' ').filter_map(|pid| pid.parse().ok()).collect()
}

/// Whoever is killed while it is under way: what was acknowledged is there, and the disk is
/// served by one process.
#[test]
fn nothing_is_lost_when_the_old_or_the_new_process_is_killed_meanwhile() {
    let mut rig = Rig::new(&[]);
    for round in 0..6 {
        let old = rig.loaded();
        let before = children(rig.host.up.id());
        let mut command = Command::new(PROGRAM);
        command.args(["upgrade", "disk", "--json", "--control"]);
        command
            .arg(rig.host.at("control.sock"))
            .stdout(Stdio::null());
        let mut upgrade = command.stderr(Stdio::null()).spawn().unwrap();
        let mut new = None;
        let mut there = || {
            let now = children(rig.host.up.id());
            new = now.into_iter().find(|pid| !before.contains(pid));
            new.is_some()
        };
        assert!(settled(&mut there), "{}", rig.logs());
        let victim = if round % 2 == 0 { old } else { new.unwrap() };
        let victim = Pid::from_raw(i32::try_from(victim).unwrap()).unwrap();
        // It may have ended by itself.
        let _ = kill_process(victim, Signal::KILL);
        upgrade.wait().unwrap();
        rig.host
            .becomes("disk/disk/phase", |phase| phase == "running");
    }
    rig.loaded();
    rig.upgrade();
    rig.loaded();
    println!("{}", rig.finish());
}

#[test]
fn who_cannot_be_handed_over_says_why_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let image = File::create(folder.path().join("disk.img")).unwrap();
    image.set_len(1 << 20).unwrap();
    let host = Host::start(folder, PLANE, &[]);
    for link in ["disk/disk", "screen/screen", "memory/disk"] {
        host.becomes(link, Value::is_object);
    }
    let pids = |links: [&str; 2]| links.map(|link| host.process(link));
    let before = pids(["screen", "memory"]);
    for (link, why) in [
        ("screen", "cannot be"),
        ("memory", "cannot be handed to another process"),
        ("later", "does not run"),
        ("nobody", "nobody"),
    ] {
        let output = host.run(&["upgrade", link]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(why), "{link}: {said}");
    }
    assert_eq!(pids(["screen", "memory"]), before);
    // A program that is none of ours takes nothing over.
    let disk = host.process("disk");
    let output = host.run(&["upgrade", "disk", "--program", "/bin/true"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(host.process("disk"), disk);
    // One that works does not hide the others. The old process may not have heard yet that its
    // first successor is gone.
    let mut lines = String::new();
    let mut upgraded = || {
        let output = host.run(&["upgrade", "--all", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        lines = String::from_utf8(output.stdout).unwrap();
        let parse = |line| serde_json::from_str::<Value>(line).unwrap();
        let of_disk = lines.lines().map(parse).filter(|it| it["link"] == "disk");
        let of_disk = of_disk.collect::<Vec<_>>();
        assert_eq!(of_disk.len(), 1, "{lines}");
        // Nobody was connected, so there was no pause.
        of_disk[0].get("error").is_none() && of_disk[0]["pause_us"] == Value::Null
    };
    assert!(settled(&mut upgraded), "{lines}");
    assert_ne!(host.process("disk"), disk);
    // What goes on can be ended as ever, and takes its socket along.
    let socket = host.at("disk.sock");
    assert!(socket.exists());
    assert!(host.run(&["link", "stop", "disk"]).status.success());
    host.becomes("disk/state", |state| state == "stopped");
    assert!(!socket.exists());
    host.end();
}
