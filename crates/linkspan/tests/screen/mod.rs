//! What tests have that look at a guest's screen: a picture and its text, the QEMU of a
//! later Debian, and a guest that runs lines of shell.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "../gpu_guest/picture.rs"]
mod picture;

use linkspan::demo::initramfs;
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Event, Hardware, Machine};
use linkspan::demo::process::{Stop, find_program};
use linkspan::demo::report;
use linkspan_testkit::census::settled;

pub(crate) use picture::Picture;

pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// Pixels that are nowhere alike.
pub(crate) fn pattern(width: usize, height: usize) -> Vec<u32> {
    let pixel = |n: u32| n.wrapping_mul(0x9E37_79B1) >> 8;
    (0..u32::try_from(width * height).unwrap())
        .map(pixel)
        .collect()
}

/// QEMU 7.2 has the device with KVM alone.
fn later_qemu() -> Option<PathBuf> {
    let named = std::env::var_os("LINKSPAN_LATER_QEMU").map(PathBuf::from)?;
    find_program(&named)
}

/// What a machine needs; `None` after saying what is missing.
pub(crate) fn hardware(test: &str) -> Option<Hardware> {
    let need = || -> Result<Hardware, String> {
        initramfs::find_busybox().map_err(|error| error.to_string())?;
        let kernel = Kernel::find_with_screen().map_err(|error| error.to_string())?;
        let qemu = later_qemu().ok_or("no later QEMU in LINKSPAN_LATER_QEMU")?;
        Ok(Hardware {
            qemu,
            accel: Accel::Tcg,
            memory_mib: 384,
            kernel,
        })
    };
    match need() {
        Ok(found) => Some(found),
        Err(why) => {
            let why = why.lines().next().unwrap_or_default().to_owned();
            // See tests/guest.rs.
            drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
            None
        }
    }
}

/// What `linkspan display shot` writes of the socket at `screen`.
pub(crate) fn shot(screen: &Path, args: &[&str]) -> Result<Picture, String> {
    let file = screen.with_extension("png");
    let output = Command::new(env!("CARGO_BIN_EXE_linkspan"))
        .args(["display", "shot"])
        .arg(screen)
        .arg("-o")
        .arg(&file)
        .args(args)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(Picture::png(&file)),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

pub(crate) struct Guest {
    pub(crate) machine: Machine,
}

impl Guest {
    #[track_caller]
    pub(crate) fn report(&mut self, key: &str) -> (String, Vec<String>) {
        let deadline = Instant::now() + LIMIT;
        let mut lines = Vec::new();
        loop {
            match self.machine.next_event(deadline, &Stop::default()).unwrap() {
                Event::Line(line) => match report::parse(&line) {
                    Some((found, value)) if found == key => return (value.to_owned(), lines),
                    Some(("problem", what)) => panic!("{what}"),
                    _ => lines.push(line),
                },
                end => panic!(
                    "no {key}: {end:?}\n{lines:#?}\n{}",
                    self.machine.console_tail()
                ),
            }
        }
    }

    /// Runs a line of shell that works: what it printed.
    #[track_caller]
    pub(crate) fn run(&mut self, line: &str) -> String {
        self.machine.tell(line).unwrap();
        let (status, lines) = self.report("status");
        assert_eq!(status, "0", "{line}: {lines:#?}");
        lines.join("\n")
    }
}

/// The guest draws when it has time to.
#[track_caller]
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    assert!((0..3).any(|_| settled(&mut is)), "{what}");
}
