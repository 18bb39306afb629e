//! The program against disk drivers and back ends that others wrote.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use linkspan_peers::driver::exercise;
use linkspan_peers::{
    Blkio, Manner, RustVmm, RustVmmBackEnd, StorageDaemon, rust_vmm_driver, storage_daemon,
};
use linkspan_testkit::Census;
use linkspan_testkit::census::settled;
use linkspan_testkit::served::{SECTORS, write_image};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const BYTES: u64 = SECTORS * 512;

fn linkspan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_linkspan"))
}

/// A folder with an image, and a socket once somebody serves it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        write_image(&place.path("disk.img"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `linkspan driver blk` on the socket: exit status, standard output,
    /// standard error.
    /// Runs `linkspan driver blk` on the socket: exit status, standard output and
    /// standard error.
    #[track_caller]
    fn try_driver(&self, args: &[&str]) -> (i32, String, String) {
        let (out, err) = (self.path("driver.out"), self.path("driver.err"));
        let mut child = linkspan()
            .args(["driver", "blk", "--socket-path"])
            .arg(self.path("socket"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .spawn()
            .unwrap();
        let mut status = None;
        let mut ended = || {
            status = child.try_wait().unwrap();
            status.is_some()
        };
        // One of these waits for ten seconds or more.
        let hangs = !(0..6).any(|_| settled(&mut ended));
        if hangs {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let text = |path| fs::read_to_string(path).unwrap();
        let (out, err) = (text(out), text(err));
        assert!(!hangs, "the driver hangs: {args:?}\n{err}");
        (status.and_then(|status| status.code()).unwrap(), out, err)
    }

    /// The same for what has to work: standard output.
    #[track_caller]
    fn driver(&self, args: &[&str]) -> String {
        let (status, out, err) = self.try_driver(args);
        assert_eq!(status, 0, "{args:?}\n{err}");
        out
    }

    /// The same for what has to fail with a status and these words.
    #[track_caller]
    fn driver_fails(&self, status: i32, words: &[&str], args: &[&str]) {
        let (found, _, err) = self.try_driver(args);
        assert_eq!(found, status, "{args:?}\n{err}");
        for word in words {
            assert!(err.contains(word), "no {word} in:\n{err}");
        }
    }

    /// Everything that the driver can do, on a fresh image behind a back end with
    /// so many queues. Gives how often the driver ran.
    #[track_caller]
    fn use_everything(&self, queues: u16, serial: &str) -> u64 {
        let info = self.driver(&["info", "--json"]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["size_bytes"], BYTES);
        assert_eq!(info["block_size"], 512);
        assert_eq!(info["queues_max"], queues);
        assert_eq!(info["queues_in_config"], queues);
        assert_eq!(info["serial"], serial);
        assert_eq!(info["read_only"], false);
        assert_eq!(info["flush"], true);

        let image = self.path("disk.img");
        let mut expected = fs::read(&image).unwrap();
        let part: Vec<u8> = expected.iter().rev().skip(1536).copied().collect();
        let (from, to) = (self.path("from"), self.path("to"));
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        fs::write(from, &part).unwrap();
        self.driver(&["write", "--offset", "512", "--from", from]);
        expected[512..][..part.len()].copy_from_slice(&part);
        assert!(fs::read(&image).unwrap() == expected, "what was written");
        let len = part.len().to_string();
        self.driver(&["read", "--offset", "512", "--length", &len, "--to", to]);
        assert!(fs::read(to).unwrap() == part, "what was read");

        let count = queues.to_string();
        let verify = [
            "verify",
            "--overwrite",
            "--json",
            "--seconds",
            "1",
            "--queues",
        ];
        let report = self.driver(&[&verify[..], &[&count]].concat());
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let whole_blocks = BYTES / 4096 / u64::from(queues) * u64::from(queues);
        assert_eq!(report["blocks"], whole_blocks, "{report}");
        assert!(report["writes"].as_u64().unwrap() > 0, "{report}");

        // One more than there are, and rings that it has not.
        let more = (queues + 1).to_string();
        let words = [more.as_str(), &count, "--queues"];
        self.driver_fails(4, &words, &[&verify[..], &[&more]].concat());
        self.driver_fails(4, &["features 0x400000000"], &["--packed", "info"]);
        6
    }
}

/// A program that is killed when it is dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the summary of `cargo xtask test` looks; `eprintln` would be captured.
fn skip(test: &str, why: &str) {
    drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
}

#[test]
fn linkspan_blk_serves_drivers_of_others_one_after_the_other() {
    let place = Place::new();
    let (socket, image) = (place.path("socket"), place.path("disk.img"));
    let mut program = linkspan();
    program.args(["blk", "--queues", "4", "--socket-path"]);
    program.arg(&socket).arg("--image").arg(&image);
    program.stdout(Stdio::null()).stderr(Stdio::null());
    let mut program = Program(program.spawn().unwrap());
    assert!(settled(|| socket.exists()), "it does not listen");
    let memory = rust_vmm_driver::memory();
    // The first one lets it start what stays.
    let mut before = None;
    for (seed, queues) in (0..).zip([4, 1, 4]) {
        let mut driver = Blkio::connect(&socket, queues);
        exercise(&mut driver, &image, seed);
        drop(driver);
        let mut driver = RustVmm::connect(&socket, &memory, queues);
        exercise(&mut driver, &image, seed + 100);
        driver.stop();
        let id = program.0.id();
        let before = before.get_or_insert_with(|| Census::of_child_at_rest(id));
        before.assert_restored("after the drivers left");
    }
    kill_process(Pid::from_child(&program.0), Signal::TERM).unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists(), "the socket is gone");
}

#[test]
fn linkspan_driver_uses_disks_of_rust_vmm() {
    let usual = Manner::USUAL;
    let manners = [
        usual,
        Manner { queues: 1, ..usual },
        Manner {
            lengths: false,
            ..usual
        },
        Manner {
            ring_features: false,
            ..usual
        },
    ];
    for manner in manners {
        println!("{manner:?}");
        let place = Place::new();
        let (socket, image) = (place.path("socket"), place.path("disk.img"));
        let back_end = RustVmmBackEnd::start(&socket, &image, manner);
        let sessions = place.use_everything(manner.queues, "rust-vmm");
        // Each of them was let go of.
        assert!(settled(|| back_end.sessions() == sessions));
    }
}

#[test]
fn a_back_end_without_configuration_space_is_named_as_unfit() {
    let place = Place::new();
    let manner = Manner {
        config: false,
        ..Manner::USUAL
    };
    let (socket, image) = (place.path("socket"), place.path("disk.img"));
    let _back_end = RustVmmBackEnd::start(&socket, &image, manner);
    place.driver_fails(
        4,
        &["does not offer protocol features", "CONFIG"],
        &["info"],
    );
}

#[test]
fn linkspan_driver_uses_disks_of_qemu() {
    if !storage_daemon::is_installed() {
        return skip("peers", "qemu-storage-daemon is not installed");
    }
    for queues in [1, 4] {
        println!("{queues} queues");
        let place = Place::new();
        let (socket, image) = (place.path("socket"), place.path("disk.img"));
        let daemon = StorageDaemon::start(&socket, &image, queues);
        place.use_everything(queues, "vhost_user_blk");
        drop(daemon);
        // It leaves its socket behind, at which nobody answers.
        place.driver_fails(
            3,
            &["no back end answers"],
            &["--connect-limit", "0", "info"],
        );
    }
}
