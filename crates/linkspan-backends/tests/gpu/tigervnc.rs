//! TigerVNC's viewer, which wants continuous updates and fences: on an X server whose
//! screen is a file, in which the picture is looked for.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::settled;

use crate::rig::{Rig, pattern};
use crate::vnc::Served;

const XRGB: u32 = 2;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];
/// What Debian calls them: xvfb and tigervnc-viewer.
const SCREEN: &str = "Xvfb";
const VIEWER: &str = "xtigervncviewer";

/// A program that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Whether both are installed; says what is missing.
fn are_there(test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|at| at.join(name).is_file());
    let missing: Vec<_> = [SCREEN, VIEWER]
        .into_iter()
        .filter(|it| !is_there(it))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let mut out = std::io::stderr().lock();
    drop(writeln!(
        out,
        "SKIP {test}: no {}",
        missing.join(" and no ")
    ));
    false
}

/// An X server, and the number of its display.
fn screen(folder: &Path) -> (Running, String) {
    let child = Command::new(SCREEN)
        .args(["-displayfd", "1", "-screen", "0", "640x480x24", "-nocursor"])
        .args(["-nolisten", "tcp", "-fbdir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(folder.join("screen.log")).unwrap())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let mut number = String::new();
    let said = running.0.stdout.as_mut().unwrap();
    BufReader::new(said).read_line(&mut number).unwrap();
    let log = || fs::read_to_string(folder.join("screen.log"));
    assert!(!number.trim().is_empty(), "no display: {:?}", log());
    (running, format!(":{}", number.trim()))
}

/// The lines of the X server's screen, from its file (X Window Dump, XWDFile.h).
fn lines(path: &Path) -> Vec<Vec<u32>> {
    let bytes = fs::read(path).unwrap();
    let head = |at: usize| {
        let word = bytes[at * 4..].first_chunk().copied();
        word.map_or(0, u32::from_be_bytes) as usize
    };
    // Its own size, lines, bits of a pixel, bytes of a line, and colours, 12 bytes each.
    let (start, height, bits, stride) = (head(0) + head(19) * 12, head(5), head(11), head(12));
    assert_eq!((height, bits), (480, 32));
    let lines = bytes[start..].chunks_exact(stride);
    let pixels = |line: &[u8]| {
        let pixels = line.as_chunks::<4>().0.iter();
        pixels
            .map(|pixel| u32::from_ne_bytes(*pixel) & 0xFF_FFFF)
            .collect()
    };
    lines.take(height).map(pixels).collect()
}

/// Whether the picture is on the screen, wherever its window is.
fn has(lines: &[Vec<u32>], picture: &[u32]) -> bool {
    let width = SIZE.0 as usize;
    let wanted: Vec<&[u32]> = picture.chunks_exact(width).collect();
    let column = |line: &[u32]| line.windows(width).position(|part| part == wanted[0]);
    let found = lines
        .iter()
        .enumerate()
        .find_map(|(y, line)| Some((y, column(line)?)));
    found.is_some_and(|(y, x)| {
        let rest = lines[y..].iter().map(|line| &line[x..x + width]);
        rest.take(wanted.len()).eq(wanted.iter().copied())
    })
}

#[test]
fn tigervnc_has_continuous_updates_and_sees_every_pixel() {
    let test = "tigervnc_has_continuous_updates_and_sees_every_pixel";
    if !are_there(test) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut rig = Rig::new();
    let rgb = |seed: u32| -> Vec<u32> {
        let pixels = pattern(SIZE.0 * SIZE.1, seed).into_iter();
        pixels.map(|pixel| pixel & 0xFF_FFFF).collect()
    };
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &rgb(1));
    rig.driver.show(0, 1, WHOLE);
    let served = Served::of_screen(rig.screen());
    let (_screen, display) = screen(folder.path());
    // With more in the log it draws statistics over the picture.
    let log: PathBuf = folder.path().join("viewer.log");
    let viewer = Command::new(VIEWER)
        .args(["-Log", "*:stderr:30", "-SecurityTypes", "None"])
        .args([
            "-RemoteResize=0",
            "-AutoSelect=0",
            "-PreferredEncoding",
            "Tight",
        ])
        .args(["-NoJPEG=1", "-FullColor=1"])
        .arg(format!("127.0.0.1::{}", served.address.port()))
        .env("DISPLAY", &display)
        .env("HOME", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut viewer = Running(viewer);
    let said = || fs::read_to_string(&log).unwrap();
    let file = folder.path().join("Xvfb_screen0");
    // The first picture comes on request, and all that are later without one.
    for seed in 1..12 {
        let picture = rgb(seed);
        rig.driver.draw(1, SIZE, 0, &picture);
        rig.driver.flush(1, WHOLE);
        assert!(
            settled(|| has(&lines(&file), &picture)),
            "picture {seed}: {}",
            said()
        );
    }
    let log = said();
    assert!(log.contains("Enabling continuous updates"), "{log}");
    for complaint in ["not support", "Unknown fence", "too large"] {
        assert!(!log.contains(complaint), "{log}");
    }
    assert_eq!(viewer.0.try_wait().unwrap(), None);
    drop(viewer);
    served.end().unwrap();
}
