//! The program on the lab's kernel, and what tests of the lab stand on: simulated
//! devices that go from one driver of the kernel to the other.

//: about our program on the lab's kernel, and the helpers of its tests
//: pack vdpa

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::process::{Command, Stdio};

use linkspan::demo::process::{Process, Stop, await_socket, supervised};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::lab::{self, Vdpa};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

#[test]
fn our_disk_serves_our_driver() {
    if !lab::guest("our_disk_serves_our_driver") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (socket, log) = (dir.path().join("s"), dir.path().join("log"));
    let mut command = supervised(PROGRAM.as_ref());
    command
        .args(["blk", "--image", "mem:16M", "--socket-path"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stderr(File::create(&log).unwrap());
    let mut server = Process::spawn("linkspan blk", &mut command).unwrap();
    await_socket(&mut server, &socket, &log, PATIENCE, &Stop::default()).unwrap();
    let mut driver = Command::new(PROGRAM);
    let driver = driver.args(["driver", "blk", "--socket-path"]).arg(&socket);
    lab::run(driver.args(["verify", "--seconds", "1", "--overwrite"]));
    server.stop().unwrap();
}

#[test]
fn a_simulated_disk_goes_from_driver_to_driver() {
    if !lab::guest("a_simulated_disk_goes_from_driver_to_driver") {
        return;
    }
    let vdpa = Vdpa::simulated_disk();
    let disk = File::options().read(true).write(true).open(vdpa.disk());
    let disk = disk.unwrap();
    disk.write_all_at(&[0xa5; 4096], 8192).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    let node = vdpa.char_device();
    assert!(fs::metadata(&node).unwrap().file_type().is_char_device());
    // Back again, with what was written.
    let disk = File::open(vdpa.disk()).unwrap();
    let mut read = [0; 4096];
    disk.read_exact_at(&mut read, 8192).unwrap();
    assert_eq!(read, [0xa5; 4096]);
    assert!(!node.exists());
}

#[test]
fn a_simulated_card_has_an_interface() {
    if !lab::guest("a_simulated_card_has_an_interface") {
        return;
    }
    let vdpa = Vdpa::simulated_card();
    let interface = vdpa.interface();
    let dir = vdpa.dir();
    let address = fs::read_to_string(format!("/sys/class/net/{interface}/address")).unwrap();
    assert_eq!(address.trim().len(), "00:00:00:00:00:00".len());
    drop(vdpa);
    assert!(!dir.exists());
}
