//! `linkspan blk` with every kind of image, seen through `linkspan driver blk`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use linkspan_testkit::census::settled;
use linkspan_testkit::program;
use linkspan_testkit::served::{content, write_image};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const LINKSPAN: &str = env!("CARGO_BIN_EXE_linkspan");

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    program(LINKSPAN).args(args).output().unwrap()
}

fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A disk that is served.
struct Disk {
    child: Child,
    folder: TempDir,
}

impl Disk {
    /// Serves in `folder`, which is where the program runs.
    fn start(folder: TempDir, args: &[&str]) -> Self {
        let mut command = program(LINKSPAN);
        command.args(["blk", "--socket-path", "socket"]).args(args);
        Self::spawn(command, folder)
    }

    fn spawn(mut command: Command, folder: TempDir) -> Self {
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command
            .current_dir(folder.path())
            .stderr(log)
            .stdout(Stdio::null());
        let disk = Self {
            child: command.spawn().unwrap(),
            folder,
        };
        let socket = disk.path("socket");
        let there = settled(|| UnixStream::connect(&socket).is_ok());
        assert!(there, "it does not listen: {}", disk.log());
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn driver(&self, args: &[&str]) -> Output {
        let mut command = program(LINKSPAN);
        command.args(["driver", "blk", "--socket-path", "socket"]);
        command
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn drive(&self, args: &[&str]) -> Vec<u8> {
        let output = self.driver(args);
        assert!(output.status.success(), "{} {}", talk(&output), self.log());
        output.stdout
    }

    fn info(&self) -> Value {
        serde_json::from_slice(&self.drive(&["info", "--json"])).unwrap()
    }

    #[track_caller]
    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let (offset, length) = (offset.to_string(), length.to_string());
        let part = ["--offset", &offset, "--length", &length, "--to", "read"];
        self.drive(&[&["read"][..], &part].concat());
        fs::read(self.path("read")).unwrap()
    }

    #[track_caller]
    fn write(&self, offset: u64, bytes: &[u8]) {
        fs::write(self.path("written"), bytes).unwrap();
        self.drive(&[
            "write",
            "--offset",
            &offset.to_string(),
            "--from",
            "written",
        ]);
    }

    /// Ends it as a person does.
    #[track_caller]
    fn end(mut self) -> TempDir {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status} {}", self.log());
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn memory_is_a_disk_until_the_end() {
    let disk = Disk::start(
        folder(),
        &["--image", "mem:64M", "--serial", "A serial, 20 bytes!!"],
    );
    let info = disk.info();
    assert_eq!(info["size_bytes"], 64 << 20);
    assert_eq!(info["serial"], "A serial, 20 bytes!!");
    assert_eq!(info["discard"]["alignment_bytes"], 4096);
    assert_eq!(info["write_zeroes"]["may_unmap"], true);
    disk.write(1 << 20, &content(5));
    assert_eq!(
        disk.read(1 << 20, 1024),
        [content(5), vec![0; 512]].concat()
    );
    disk.end();
}

#[test]
fn nothing_is_a_disk_of_any_size() {
    let disk = Disk::start(
        folder(),
        &["--image", "null:8T,read-zeroes", "--block-size", "4096"],
    );
    let info = disk.info();
    assert_eq!(info["size_bytes"], 8_u64 << 40);
    assert_eq!(info["block_size"], 4096);
    assert_eq!(info["physical_block_size"], 4096);
    disk.write(0, &content(5));
    assert_eq!(disk.read(0, 512), [0; 512]);
    disk.end();
    let disk = Disk::start(folder(), &["--image", "null:1G", "--read-only"]);
    let info = disk.info();
    assert_eq!(
        (&info["read_only"], &info["discard"]),
        (&true.into(), &Value::Null)
    );
    disk.end();
}

#[test]
fn file_with_a_colon_has_its_prefix() {
    let folder = folder();
    write_image(&folder.path().join("mem:1G"));
    let disk = Disk::start(folder, &["--image", "file:mem:1G"]);
    assert_eq!(disk.read(512, 512), content(1));
    disk.end();
}

#[test]
fn wrong_images_and_options_are_wrong_usage() {
    let folder = folder();
    let (image, socket) = (folder.path().join("disk"), folder.path().join("socket"));
    write_image(&image);
    let image = image.to_str().unwrap();
    for (args, why) in [
        (&["--image", "smb://server"][..], "it names no share"),
        (&["--image", "smb://server/share"], "it names no file"),
        (
            &["--image", "smb://me:secret@server/share/disk"],
            "seen by others",
        ),
        (&["--image", "memory:1G"], "file:memory:"),
        (&["--image", "mem:1000"], "512"),
        (&["--image", "null:many"], "4096, 64K or 1G"),
        (
            &["--image", "mem:1M", "--format", "raw"],
            "a format is for files",
        ),
        (&["--image", image, "--allow-backing", "/"], "qcow2"),
        (
            &["--image", image, "--format", "qcow2", "--migratable"],
            "a guest migrates with a raw file or device only",
        ),
        (&["--image", "mem:1M", "--migratable"], "raw file or device"),
        (
            &["--image", image, "--migratable", "--cache", "writeback"],
            "cannot be used with",
        ),
        (&["--image", image, "--format", "vmdk"], "raw or qcow2"),
        (&["--image", image, "--block-size", "1000"], "power of two"),
        (&["--image", image, "--block-size", "256"], "power of two"),
        (&["--image", image, "--block-size", "64K"], "power of two"),
        (
            &["--image", image, "--serial", "123456789012345678901"],
            "20",
        ),
        (&["--image", image, "--serial", "Kühlschrank"], "ASCII"),
    ] {
        let output = run(["blk", "--socket-path", socket.to_str().unwrap()]
            .iter()
            .chain(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", talk(&output));
        assert!(talk(&output).contains(why), "{args:?}: {}", talk(&output));
        assert!(!socket.exists());
    }
}

fn qemu_img(folder: &Path, args: &[&str]) -> Option<Output> {
    let mut command = Command::new("qemu-img");
    match command.args(args).current_dir(folder).output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(output)
        }
        Err(error) => {
            drop(writeln!(
                std::io::stderr().lock(),
                "SKIP qcow2: qemu-img (package qemu-utils): {error}"
            ));
            None
        }
    }
}

#[test]
fn qcow2_is_what_qemu_says_it_is() {
    let folder = folder();
    fs::create_dir(folder.path().join("bases")).unwrap();
    write_image(&folder.path().join("bases/raw"));
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "bases/raw",
        "-F",
        "raw",
        "disk",
    ];
    if qemu_img(folder.path(), &create).is_none() {
        return;
    }
    let image = ["--image", "disk", "--format", "qcow2"];
    let mut refused = program(LINKSPAN);
    refused.args(["blk", "--socket-path", "socket"]).args(image);
    let refused = refused.current_dir(folder.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        talk(&refused).contains("--allow-backing"),
        "{}",
        talk(&refused)
    );

    let disk = Disk::start(
        folder,
        &[&image[..], &["--allow-backing", "bases"]].concat(),
    );
    assert_eq!(disk.info()["discard"]["alignment_bytes"], 65536);
    let mut want = fs::read(disk.path("bases/raw")).unwrap();
    assert!(disk.read(0, want.len()) == want);
    disk.write(70 * 512, &content(9999));
    want[70 * 512..71 * 512].copy_from_slice(&content(9999));
    kill_process(Pid::from_child(&disk.child), Signal::HUP).unwrap();
    let told = settled(|| disk.log().contains("qemu-img resize"));
    assert!(told, "{}", disk.log());
    let folder = disk.end();
    qemu_img(folder.path(), &["check", "-f", "qcow2", "disk"]);
    qemu_img(
        folder.path(),
        &["convert", "-f", "qcow2", "-O", "raw", "disk", "out"],
    );
    assert!(fs::read(folder.path().join("out")).unwrap() == want);
}

/// A guest writes what it likes into a raw image.
#[test]
fn raw_image_that_looks_like_qcow2_is_raw_with_a_warning() {
    let bytes = [&b"QFI\xfb"[..], &[0; 508]].concat();
    for (format, warns) in [(&[][..], true), (&["--format", "raw"], false)] {
        let folder = folder();
        fs::write(folder.path().join("disk"), &bytes).unwrap();
        let disk = Disk::start(folder, &[&["--image", "disk"][..], format].concat());
        assert_eq!(disk.read(0, 512), bytes);
        assert_eq!(
            disk.log().contains("--format qcow2"),
            warns,
            "{}",
            disk.log()
        );
        disk.end();
    }
}

/// A write that the system refuses is an error of that write.
#[test]
fn full_image_fails_the_request_and_goes_on() {
    let folder = folder();
    let file = fs::File::create(folder.path().join("disk")).unwrap();
    file.set_len(8 << 20).unwrap();
    // Files of this process may have 4 MiB, in units of 512 bytes; its log is small.
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        "trap '' XFSZ; ulimit -f 8192; \
         exec {LINKSPAN} blk --socket-path socket --image disk --json >said"
    ));
    let disk = Disk::spawn(command, folder);
    disk.write((4 << 20) - 512, &content(7));
    fs::write(disk.path("written"), content(8)).unwrap();
    let failed = disk.driver(&["write", "--offset", "4M", "--from", "written"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        talk(&failed).contains("error at byte 4194304"),
        "{}",
        talk(&failed)
    );
    assert!(
        disk.log().contains("a request of the guest failed"),
        "{}",
        disk.log()
    );
    assert_eq!(
        disk.read((4 << 20) - 512, 1024),
        [content(7), vec![0; 512]].concat()
    );
    let folder = disk.end();
    let said = fs::read_to_string(folder.path().join("said")).unwrap();
    let counts: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(counts["event"], "counts");
    assert_eq!(counts["errors"], 1, "{counts}");
    assert_eq!(counts["written_bytes"], content(7).len(), "{counts}");
}

/// Who came first keeps the image, be it QEMU or we.
#[test]
fn an_image_that_qemu_uses_is_refused_until_it_is_free() {
    let folder = folder();
    fs::write(folder.path().join("disk"), content(7)).unwrap();
    let mut qemu = Command::new("qemu-storage-daemon");
    qemu.args(["--blockdev", "driver=file,node-name=f,filename=disk"])
        .args([
            "--export",
            "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path=theirs",
        ])
        .current_dir(folder.path());
    let Ok(mut qemu) = qemu.spawn() else {
        let line = "SKIP an_image_that_qemu_uses_is_refused_until_it_is_free: there is no qemu-storage-daemon";
        // Not by `eprintln`, which the test harness captures.
        drop(writeln!(std::io::stderr().lock(), "{line}"));
        return;
    };
    let theirs = folder.path().join("theirs");
    let there = settled(|| UnixStream::connect(&theirs).is_ok());
    let mut ours = program(LINKSPAN);
    ours.args([
        "blk",
        "--lock-wait",
        "0",
        "--socket-path",
        "socket",
        "--image",
        "disk",
    ]);
    let refused = ours.current_dir(folder.path()).output().unwrap();
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(there, "QEMU does not listen");
    assert_eq!(refused.status.code(), Some(1), "{}", talk(&refused));
    assert!(talk(&refused).contains("disk"), "{}", talk(&refused));
    assert!(
        talk(&refused).contains("another process"),
        "{}",
        talk(&refused)
    );
    let disk = Disk::start(folder, &["--image", "disk"]);
    assert_eq!(disk.read(0, 512), content(7));
    disk.end();
}

/// Pages that a process has for itself, and its page tables, after a load on 4 queues.
#[test]
fn a_disk_with_4_queues_takes_less_than_8_mib() {
    let folder = folder();
    fs::File::create(folder.path().join("disk"))
        .and_then(|file| file.set_len(64 << 20))
        .unwrap();
    let disk = Disk::start(folder, &["--image", "disk"]);
    disk.drive(&[
        "bench",
        "--queues",
        "4",
        "--depth",
        "32",
        "--seconds",
        "0.2",
    ]);
    let about = format!("/proc/{}", disk.child.id());
    let sum = |file: &str, name: &str| {
        let text = fs::read_to_string(format!("{about}/{file}")).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap())
            .sum::<u64>()
    };
    let kib = sum("smaps_rollup", "Private_Dirty:") + sum("status", "VmPTE:");
    assert!((100..8 << 10).contains(&kib), "{kib} KiB");
    disk.end();
}
