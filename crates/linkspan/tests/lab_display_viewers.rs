//! Viewers by VNC and on a page of the kernel's sample devices: what they see, and what they
//! hear when a device is reset by somebody else or removed.

//: about viewers of VFIO screens: flips, a reset by another holder, removal
//: memory 384
//: limit 240

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};

use linkspan_sys::vfio::{Call, Kernel as _, Linux};
use linkspan_testkit::census::settled;
use linkspan_testkit::lab::{self, Mdev};
use rustix::process::Signal;

mod mdevs;
mod programs;
#[allow(dead_code, reason = "another test uses all of it")]
#[path = "gpu_guest/viewer.rs"]
mod viewer;

use mdevs::{Machine, gradient};
use programs::Program;
use viewer::Viewer;

/// The size of the card that says why there is no picture.
const CARD: (usize, usize) = (640, 200);

/// The port that a program says it listens at.
fn port(program: &Program) -> u16 {
    let port = || {
        let said = program.said();
        let (_, rest) = said.split_once("127.0.0.1:")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let there = settled(|| port().is_some());
    assert!(there, "{}{}", program.said(), program.complained());
    port().unwrap()
}

fn serve(kind: &str, source: &[&str]) -> (Program, u16) {
    let all = [&[kind, "--json", "--listen", "127.0.0.1:0"], source].concat();
    let program = Program::start("display", all);
    let port = port(&program);
    (program, port)
}

fn sees(viewer: &mut Viewer, size: (usize, usize), wanted: &[u32]) {
    viewer.until(|viewer| {
        let same = |(seen, wanted): (&u32, &u32)| seen & 0xFF_FFFF == *wanted;
        viewer.size == size && viewer.pixels.iter().zip(wanted).all(same)
    });
}

/// Ends a program, and gives the lines of its log that have this.
fn end(program: Program, what: &str) -> usize {
    program.signal(Signal::TERM);
    let (status, _, errors) = program.end();
    assert_eq!(status, Some(0), "{errors}");
    errors.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn viewers_see_mdpy_and_are_told_of_its_removal() {
    if !lab::guest("viewers_see_mdpy_and_are_told_of_its_removal") {
        return;
    }
    let mdev = Mdev::new("mdpy", "mdpy-vga");
    // A page answers who asks for it.
    let (watch, port) = serve("watch", &[mdev.uuid()]);
    let mut page = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let ask = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    page.write_all(ask.as_bytes()).unwrap();
    let mut head = [0; 15];
    page.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    drop(page);
    end(watch, "");
    // Nor does it hold the device when nobody looks.
    for kind in ["watch", "vnc"] {
        let mdev = Mdev::new("mdpy", "mdpy-vga");
        let (idle, port) = serve(kind, &[mdev.uuid()]);
        if kind == "vnc" {
            // Somebody has looked, so that it is mapped.
            sees(&mut Viewer::connect(port), (640, 480), &gradient());
        }
        fs::write(mdev.dir().join("remove"), "1").unwrap();
        assert!(!mdev.dir().exists());
        end(idle, "");
    }
    let (vnc, port) = serve("vnc", &[mdev.uuid()]);
    let mut viewers = [Viewer::connect(port), Viewer::connect(port)];
    for viewer in &mut viewers {
        sees(viewer, (640, 480), &gradient());
    }
    // The kernel waits for all who have it open.
    let remove = mdev.dir().join("remove");
    let removal = std::thread::spawn(move || fs::write(remove, "1"));
    for viewer in &mut viewers {
        viewer.until(|viewer| viewer.size == CARD);
    }
    removal.join().unwrap().unwrap();
    assert!(!mdev.dir().exists());
    let said = end(vnc, "no signal: the device was removed");
    assert_eq!(said, 1);
}

/// A reset by another holder is told by nobody: the driver shows nothing from then on, and
/// viewers are told that, until there is a picture again.
#[test]
fn viewers_of_mbochs_are_told_of_a_reset_by_another_holder() {
    if !lab::guest("viewers_of_mbochs_are_told_of_a_reset_by_another_holder") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-small");
    let machine = Machine::new(&mdev);
    let painted = [machine.paint(64, 1), machine.paint(128, 2)];
    machine.show(64);
    let passed = machine.pass();
    rustix::io::fcntl_setfd(&passed, rustix::io::FdFlags::empty()).unwrap();
    let number = passed.as_raw_fd().to_string();
    let (vnc, port) = serve("vnc", &["--fd", &number, "--force"]);
    let mut viewer = Viewer::connect(port);
    sees(&mut viewer, (64, 64), &painted[0]);
    for _ in 0..3 {
        for (line, painted) in [(128, &painted[1]), (64, &painted[0])] {
            machine.show(line);
            sees(&mut viewer, (64, 64), painted);
        }
        Linux.call(machine.device.as_fd(), Call::Reset).unwrap();
        viewer.until(|viewer| viewer.size == CARD);
        machine.show(64);
        sees(&mut viewer, (64, 64), &painted[0]);
    }
    // Flips are no lines of the log, and each loss is one. A flip is off for a moment.
    let said = end(vnc, "no signal: the guest shows nothing");
    assert!((3..=9).contains(&said), "{said}");
}
