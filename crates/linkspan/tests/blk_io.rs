//! The ways in which `linkspan blk` reads and writes an image, each under a load
//! that verifies what it reads, on an image that is not cached.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::settled;
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};

const IMAGE: u64 = 16 << 20;

fn linkspan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_linkspan"))
}

/// A child that does not outlive its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves an image in `folder` with these options under a load; what the back
/// end said.
fn verify(folder: &Path, options: &[&str]) -> String {
    let (image, socket, log) = (
        folder.join("disk"),
        folder.join("socket"),
        folder.join("log"),
    );
    let file = File::create(&image).unwrap();
    file.set_len(IMAGE).unwrap();
    let mut back_end = linkspan();
    back_end.args(["blk", "--socket-path"]).arg(&socket);
    back_end.arg("--image").arg(&image).args(options);
    back_end.stderr(File::create(&log).unwrap());
    let mut back_end = Guard(back_end.spawn().unwrap());
    let mut load = linkspan();
    load.args(["driver", "blk", "--connect-limit", "60", "--socket-path"]);
    load.arg(&socket);
    load.args(["verify", "--overwrite", "--json", "--seconds", "1"]);
    load.args(["--queues", "2", "--depth", "32", "--length", "16M"]);
    load.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut load = Guard(load.spawn().unwrap());
    let ended = settled(|| {
        file.sync_data().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        load.0.try_wait().unwrap().is_some()
    });
    assert!(ended, "{options:?}: the load does not end");
    let pid = Pid::from_child(&back_end.0);
    kill_process(pid, Signal::TERM).unwrap();
    let status = back_end.0.wait().unwrap();
    let talk = fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{options:?}: {status}\n{talk}");
    let mut report = String::new();
    let stdout = load.0.stdout.as_mut().unwrap();
    std::io::Read::read_to_string(stdout, &mut report).unwrap();
    let status = load.0.wait().unwrap();
    assert!(status.success(), "{options:?}: {status}\n{talk}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["blocks"], IMAGE / 4096, "{options:?}: {report}");
    assert!(
        report["writes"].as_u64().unwrap() > 100,
        "{options:?}: {report}"
    );
    talk
}

#[test]
fn each_way_of_io_serves_a_load() {
    let ways: [&[&str]; 8] = [
        &["--no-map"],
        &["--io", "threads"],
        &["--io", "uring"],
        &["--cache", "writethrough"],
        &["--direct"],
        &["--direct", "--io", "threads"],
        &["--cache", "directsync"],
        &["--cache", "unsafe"],
    ];
    let trial = File::open(env!("CARGO_BIN_EXE_linkspan")).unwrap();
    let uring = linkspan_sys::uring::Ring::new(std::os::fd::AsFd::as_fd(&trial), 1).is_ok();
    for options in ways {
        if options.contains(&"uring") && !uring {
            println!("SKIP {options:?}: io_uring is refused here");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let talk = verify(folder.path(), options);
        for (option, word) in [("threads", "by threads"), ("uring", "by io_uring")] {
            if options.contains(&option) {
                assert!(talk.contains(word), "{options:?}: {talk}");
            }
        }
    }
}

#[test]
fn an_image_in_memory_is_served_by_the_workers() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let talk = verify(folder.path(), &[]);
    assert!(talk.contains("I/O is done by the workers"), "{talk}");
    let talk = verify(folder.path(), &["--io", "threads"]);
    assert!(talk.contains("I/O is done by threads"), "{talk}");
}

#[test]
fn options_that_exclude_each_other_are_wrong_usage() {
    for options in [
        &["--direct", "--cache", "writeback"][..],
        &["--cache", "nonsense"],
        &["--io", "nonsense"],
        // Raw files alone have the choice.
        &["--io", "uring", "--format", "qcow2"],
    ] {
        let output = linkspan()
            .args(["blk", "--socket-path", "s", "--image", "i"])
            .args(options)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}");
    }
}
