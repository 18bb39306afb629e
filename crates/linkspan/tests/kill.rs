//! A back end that is killed again and again under a load that remembers what
//! was acknowledged: nothing of that is ever lost or undone.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use linkspan_peers::storage_daemon;
use linkspan_testkit::census::{settled, written_by};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How often the back end is killed; `cargo xtask long kill-blk` asks for more.
const KILLS_ENV: &str = "LINKSPAN_KILLS";

/// Bytes that a back end writes to the image before it is killed: the load is
/// under way then, with every queue busy.
const BYTES_BEFORE_KILL: u64 = 8 << 20;

const WRITERS: &str = "3";

/// A child that does not outlive its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whom the load is on.
#[derive(Clone, Copy)]
enum BackEnd {
    /// With these options.
    Linkspan(&'static [&'static str]),
    /// Linkspan on an image with tables, which are in its memory.
    Qcow2,
    /// It keeps no in-flight region, so what was not answered is asked again.
    StorageDaemon,
}

struct Rig {
    back_end: BackEnd,
    folder: TempDir,
    driver: Guard,
}

fn linkspan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_linkspan"))
}

impl Rig {
    /// A verifying load that waits for its first back end.
    fn new(back_end: BackEnd, image_bytes: u64, layout: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        match back_end {
            BackEnd::Qcow2 => drop(qemu_img(&["create", "-q", "-f", "qcow2"], &image, "64M")),
            _ => File::create(image).unwrap().set_len(image_bytes).unwrap(),
        }
        let log = File::create(folder.path().join("driver.log")).unwrap();
        let driver = linkspan()
            .args(["driver", "blk", "--connect-limit", "60", "--socket-path"])
            .arg(folder.path().join("socket"))
            .args(layout)
            .args(["verify", "--overwrite", "--json", "--seconds", "3600"])
            .args(["--queues", WRITERS, "--depth", "32"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            back_end,
            folder,
            driver: Guard(driver),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A back end, and an image with nothing to write back.
    fn back_end(&self) -> Guard {
        let image = File::open(self.path("disk.img")).unwrap();
        image.sync_data().unwrap();
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path("blk.log"))
            .unwrap();
        let (socket, image) = (self.path("socket"), self.path("disk.img"));
        let mut command = match self.back_end {
            BackEnd::StorageDaemon => storage_daemon::command(&socket, &image, 4),
            BackEnd::Linkspan(_) | BackEnd::Qcow2 => {
                let options = match self.back_end {
                    BackEnd::Linkspan(options) => options,
                    _ => &["--format", "qcow2"],
                };
                let mut command = linkspan();
                command.args(["blk", "--lock-wait", "120", "--socket-path"]);
                command.arg(socket);
                command.arg("--image").arg(image).args(options);
                command
            }
        };
        let back_end = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Guard(back_end.unwrap())
    }

    fn logs(&self) -> String {
        let log = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!(
            "driver:\n{}\nback ends:\n{}",
            log("driver.log"),
            log("blk.log")
        )
    }

    /// Waits until a back end has written much.
    fn await_load(&mut self, back_end: &Guard) {
        let mut loaded = || {
            let over = self.driver.0.try_wait().unwrap();
            assert!(over.is_none(), "the load ended: {over:?}\n{}", self.logs());
            written_by(back_end.0.id()) >= BYTES_BEFORE_KILL
        };
        // The kernel lets go of a dead back end's ring, and of the lock with it, in
        // its own time: on a busy disk that can take many seconds.
        let loaded = (0..4).any(|_| settled(&mut loaded));
        assert!(loaded, "no load reaches the back end\n{}", self.logs());
    }

    /// Ends the load, which then reads everything once more, and gives its report.
    fn finish(&mut self) -> serde_json::Value {
        let pid = Pid::from_raw(i32::try_from(self.driver.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let mut report = String::new();
        std::io::Read::read_to_string(self.driver.0.stdout.as_mut().unwrap(), &mut report).unwrap();
        let status = self.driver.0.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.logs());
        serde_json::from_str(&report).unwrap()
    }
}

/// What is left at the end is in the folder of the rig.
fn no_acknowledged_write_is_lost(back_end: BackEnd, layout: &[&str]) -> Rig {
    let kills: u64 = match std::env::var(KILLS_ENV) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 10,
    };
    let mut rig = Rig::new(back_end, 64 << 20, layout);
    for _ in 0..kills {
        let back_end = rig.back_end();
        rig.await_load(&back_end);
        drop(back_end);
    }
    let last = rig.back_end();
    rig.await_load(&last);
    let report = rig.finish();
    let writes = report["writes"].as_u64().unwrap();
    assert!(writes * 4096 >= kills * BYTES_BEFORE_KILL / 2, "{report}");
    assert!(report["blocks"].as_u64().unwrap() > 16_000, "{report}");
    drop(last);
    println!("{kills} kills, {report}");
    rig
}

fn qemu_img(args: &[&str], image: &Path, last: &str) -> Output {
    let mut command = Command::new("qemu-img");
    command.args(args).arg(image).arg(last).output().unwrap()
}

/// Who is told that it wrote must find it, though the tables that lead to it were in
/// the memory of a process that was killed.
#[test]
fn no_acknowledged_write_is_lost_in_a_qcow2_image_when_the_back_end_is_killed() {
    if let Err(error) = Command::new("qemu-img").arg("--version").output() {
        drop(writeln!(
            std::io::stderr().lock(),
            "SKIP kill: qemu-img (package qemu-utils): {error}"
        ));
        return;
    }
    let rig = no_acknowledged_write_is_lost(BackEnd::Qcow2, &[]);
    let check = ["check", "-f", "qcow2"];
    let check = qemu_img(&check, &rig.path("disk.img"), "--output=human");
    // 3 means clusters that nobody uses: those of writes that were under way.
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
}

#[test]
fn no_acknowledged_write_is_lost_in_split_rings_when_the_back_end_is_killed() {
    no_acknowledged_write_is_lost(BackEnd::Linkspan(&[]), &[]);
}

#[test]
fn no_acknowledged_write_is_lost_in_packed_rings_when_the_back_end_is_killed() {
    no_acknowledged_write_is_lost(BackEnd::Linkspan(&[]), &["--packed"]);
}

#[test]
fn no_acknowledged_write_is_lost_when_threads_do_the_io_and_the_back_end_is_killed() {
    no_acknowledged_write_is_lost(BackEnd::Linkspan(&["--io", "threads"]), &[]);
}

#[test]
fn no_acknowledged_write_is_lost_past_the_cache_when_the_back_end_is_killed() {
    no_acknowledged_write_is_lost(BackEnd::Linkspan(&["--cache", "none"]), &[]);
}

#[test]
fn no_acknowledged_write_is_lost_when_a_back_end_of_others_is_killed() {
    if !storage_daemon::is_installed() {
        drop(writeln!(
            std::io::stderr().lock(),
            "SKIP kill: qemu-storage-daemon is not installed"
        ));
        return;
    }
    no_acknowledged_write_is_lost(BackEnd::StorageDaemon, &[]);
}
