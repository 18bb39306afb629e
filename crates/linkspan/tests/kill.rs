//! A back end that is killed again and again under a load that remembers what
//! was acknowledged: nothing of that is ever lost or undone.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use linkspan_peers::storage_daemon;
use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How often the back end is killed; `cargo xtask long kill-blk` asks for more.
const KILLS_ENV: &str = "LINKSPAN_KILLS";

/// Bytes that a back end writes to the image before it is killed: the load is
/// under way then, with every queue busy.
const BYTES_BEFORE_KILL: u64 = 8 << 20;

const WRITERS: &str = "3";

/// Whom the load is on.
#[derive(Clone, Copy)]
enum BackEnd {
    Linkspan,
    /// It keeps no in-flight region, so what was not answered is asked again.
    StorageDaemon,
}

struct Rig {
    back_end: BackEnd,
    folder: TempDir,
    driver: Child,
}

fn linkspan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_linkspan"))
}

impl Rig {
    /// A verifying load that waits for its first back end.
    fn new(back_end: BackEnd, image_bytes: u64, layout: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("disk.img"))
            .unwrap()
            .set_len(image_bytes)
            .unwrap();
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
            driver,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn back_end(&self) -> Child {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path("blk.log"))
            .unwrap();
        let (socket, image) = (self.path("socket"), self.path("disk.img"));
        let mut command = match self.back_end {
            BackEnd::StorageDaemon => storage_daemon::command(&socket, &image, 4),
            BackEnd::Linkspan => {
                let mut command = linkspan();
                command.args(["blk", "--socket-path"]).arg(socket);
                command.arg("--image").arg(image);
                command
            }
        };
        command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
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
    fn await_load(&mut self, back_end: &Child) {
        let io = PathBuf::from(format!("/proc/{}/io", back_end.id()));
        let loaded = settled(|| {
            let over = self.driver.try_wait().unwrap();
            assert!(over.is_none(), "the load ended: {over:?}\n{}", self.logs());
            written(&io) >= BYTES_BEFORE_KILL
        });
        assert!(loaded, "no load reaches the back end\n{}", self.logs());
    }

    /// Ends the load, which then reads everything once more, and gives its report.
    fn finish(mut self) -> serde_json::Value {
        let pid = Pid::from_raw(i32::try_from(self.driver.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let mut report = String::new();
        std::io::Read::read_to_string(self.driver.stdout.as_mut().unwrap(), &mut report).unwrap();
        let status = self.driver.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.logs());
        serde_json::from_str(&report).unwrap()
    }
}

/// Bytes that a process has written, to files and sockets.
fn written(io: &Path) -> u64 {
    let text = fs::read_to_string(io).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

fn no_acknowledged_write_is_lost(back_end: BackEnd, layout: &[&str]) {
    let kills: u64 = match std::env::var(KILLS_ENV) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 10,
    };
    let mut rig = Rig::new(back_end, 64 << 20, layout);
    for _ in 0..kills {
        let mut back_end = rig.back_end();
        rig.await_load(&back_end);
        back_end.kill().unwrap();
        back_end.wait().unwrap();
    }
    let mut last = rig.back_end();
    rig.await_load(&last);
    let report = rig.finish();
    let writes = report["writes"].as_u64().unwrap();
    assert!(writes * 4096 >= kills * BYTES_BEFORE_KILL / 2, "{report}");
    assert!(report["blocks"].as_u64().unwrap() > 16_000, "{report}");
    last.kill().unwrap();
    last.wait().unwrap();
    println!("{kills} kills, {report}");
}

#[test]
fn no_acknowledged_write_is_lost_in_split_rings_when_the_back_end_is_killed() {
    no_acknowledged_write_is_lost(BackEnd::Linkspan, &[]);
}

#[test]
fn no_acknowledged_write_is_lost_in_packed_rings_when_the_back_end_is_killed() {
    no_acknowledged_write_is_lost(BackEnd::Linkspan, &["--packed"]);
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
