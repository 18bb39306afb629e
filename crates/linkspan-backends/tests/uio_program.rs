//! A program that has a device of VMBus: the device's file, its sysfs, and how both
//! come and go.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::mpsc::Receiver;

use linkspan_backends::uio::{Error, Program};
use linkspan_testkit::{PATIENCE, VmbusHost};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

const RING: u64 = 20480;

/// Which part of [`inside`] this process is.
const PART: &str = "LINKSPAN_TEST_UIO_PART";

/// A program with the device, or a word why there can be none here.
fn start(command: Command) -> Option<(Program, Receiver<VmbusHost>)> {
    let (connect, hosts) = VmbusHost::for_each_guest(RING);
    match Program::start(VmbusHost::offer(RING), connect, command) {
        Ok(program) => Some((program, hosts)),
        Err(error) => {
            let remedy = error.remedy().unwrap_or_else(|| panic!("{error:?}"));
            let mut out = io::stderr().lock();
            drop(writeln!(
                out,
                "SKIP a device for a program: {error}: {remedy}"
            ));
            None
        }
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// This test program once more, as what has the device.
fn part(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "inside", "--nocapture"]);
    command.env(PART, name);
    command
}

#[track_caller]
fn succeeds(program: Program) {
    let status = program.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn the_program_sees_the_device_and_nobody_else_does() {
    let device = "/sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4";
    let before = fs::metadata("/dev").unwrap().ino();
    let script = format!(
        "set -e; test -f /dev/uio0; test -c /dev/null; echo > /dev/null
         test -d /sys/bus/platform/devices
         test \"$(cat {device}/class_id)\" = '{{34d14be3-dee4-41c8-9ae7-6b174977c192}}'
         test \"$(cat {device}/uio/uio0/maps/map0/size)\" = 0x000000000000a000
         test \"$(stat -c %s {device}/channels/11/ring)\" = 40960"
    );
    let Some((program, _hosts)) = start(shell(&script)) else {
        return;
    };
    succeeds(program);
    assert!(!fs::exists(device).unwrap());
    assert_eq!(fs::metadata("/dev").unwrap().ino(), before);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Ours are called so; shares that somebody has mounted are of another type.
    assert!(!mounts.contains(" - tmpfs linkspan "), "{mounts}");
}

#[test]
fn how_the_program_ends_is_told() {
    let Some((program, _hosts)) = start(shell("exit 7")) else {
        return;
    };
    assert_eq!(program.wait().unwrap().code(), Some(7));
    let (connect, _hosts) = VmbusHost::for_each_guest(RING);
    let nothing = Command::new("/nonexistent/program");
    let error = Program::start(VmbusHost::offer(RING), connect, nothing).unwrap_err();
    assert!(matches!(error, Error::Start(_)), "{error:?}");
}

#[test]
fn a_signal_ends_a_program_that_waits_for_an_interrupt() {
    let Some((program, hosts)) = start(shell("exec dd if=/dev/uio0 bs=4 count=1")) else {
        return;
    };
    let _host = hosts.recv_timeout(PATIENCE).unwrap();
    program.signal(Signal::TERM).unwrap();
    assert_eq!(program.wait().unwrap().signal(), Some(15));
}

#[test]
fn the_device_ends_with_the_program_whatever_it_has_left_running() {
    let script = "dd if=/dev/uio0 of=/dev/null bs=4 2>/dev/null & exec 3<>/dev/uio0; exit 0";
    let Some((program, _hosts)) = start(shell(script)) else {
        return;
    };
    succeeds(program);
    // Dropped instead of awaited, one is killed.
    let (program, hosts) = start(part("reads")).unwrap();
    let _host = hosts.recv_timeout(PATIENCE).unwrap();
    drop(program);
}

#[test]
fn reads_are_interrupts_and_writes_are_signals() {
    let Some((program, hosts)) = start(part("reads")) else {
        return;
    };
    let mut host = hosts.recv_timeout(PATIENCE).unwrap();
    // Each step of the other side ends with a signal to us.
    host.await_kick();
    host.interrupt();
    host.await_kick();
    host.interrupt();
    host.await_kick();
    host.rescind();
    succeeds(program);
}

#[test]
fn a_device_that_all_have_closed_has_a_new_channel() {
    let Some((program, hosts)) = start(part("reopens")) else {
        return;
    };
    let mut first = hosts.recv_timeout(PATIENCE).unwrap();
    first.await_kick();
    first.rescind();
    let mut second = hosts.recv_timeout(PATIENCE).unwrap();
    second.await_kick();
    second.interrupt();
    succeeds(program);
}

/// What the program does, once it has the device.
#[test]
fn inside() {
    match std::env::var(PART).as_deref() {
        Ok("reads") => reads(),
        Ok("reopens") => reopens(),
        Ok(other) => panic!("{other}"),
        Err(_) => {}
    }
}

fn device() -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open("/dev/uio0").unwrap()
}

fn signal(device: &File) {
    device.write_all_at(&1_i32.to_ne_bytes(), 0).unwrap();
}

fn polled(device: &File, nonblocking: bool) -> PollFlags {
    let mut fds = [PollFd::new(device, PollFlags::IN)];
    let at_once = rustix::event::Timespec::default();
    poll(&mut fds, nonblocking.then_some(&at_once)).unwrap();
    fds[0].revents()
}

fn reads() {
    let mut device = device();
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc_nonblock());
    let mut never_waits = options.open("/dev/uio0").unwrap();
    let mut word = [0; 4];
    let error = never_waits.read(&mut word).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(polled(&device, true), PollFlags::empty());
    for wrong in [1, 3, 5, 8] {
        let error = device.read(&mut vec![0; wrong]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}");
        let error = device.write(&vec![0; wrong]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong}");
    }
    signal(&device);
    // One waits in poll, and one in read.
    assert_eq!(polled(&device, false), PollFlags::IN);
    device.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(u32::from_ne_bytes(word), 1);
    assert_eq!(never_waits.read(&mut word).unwrap(), 4);
    signal(&device);
    device.read_exact_at(&mut word, 0).unwrap();
    assert_eq!(u32::from_ne_bytes(word), 2);
    signal(&device);
    let error = device.read_exact_at(&mut word, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let error = device.write(&1_i32.to_ne_bytes()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(polled(&device, false).contains(PollFlags::ERR));
    let error = File::open("/dev/uio0").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(19), "{error}");
}

fn reopens() {
    let first = device();
    signal(&first);
    let mut word = [0; 4];
    first.read_exact_at(&mut word, 0).unwrap_err();
    drop(first);
    let second = device();
    signal(&second);
    second.read_exact_at(&mut word, 0).unwrap();
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}
