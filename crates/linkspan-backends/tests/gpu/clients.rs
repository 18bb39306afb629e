//! VNC viewers that others wrote: libvncclient, which decodes each encoding by itself, several
//! at once. Pixels are compared, and what they are told of size and pointer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::rig::{Rig, pattern};
use crate::vnc::Served;

const XRGB: u32 = 2;
const ARGB: u32 = 1;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];
const HEADER: &str = "/usr/include/rfb/rfbclient.h";

/// The program of `client.c`; `None` after saying what is missing.
fn build(test: &str, folder: &Path) -> Option<PathBuf> {
    let program = folder.join("client");
    if !Path::new(HEADER).exists() {
        let mut out = std::io::stderr().lock();
        drop(writeln!(out, "SKIP {test}: no libvncclient ({HEADER})"));
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/client.c");
    let output = Command::new("cc")
        .args(["-Wall", "-Werror", "-O1", "-o"])
        .args([&program, &source])
        .arg("-lvncclient")
        .output();
    let output = output.expect("a compiler");
    assert!(output.status.success(), "{output:?}");
    Some(program)
}

/// A viewer with these encodings.
struct Viewer {
    encodings: &'static str,
    child: Child,
    orders: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
    /// All that it said.
    heard: Vec<String>,
}

impl Viewer {
    fn start(program: &Path, port: u16, encodings: &'static str) -> Self {
        let mut child = Command::new(program)
            .args([&port.to_string(), encodings])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, said) = (child.stdin.take(), child.stdout.take().unwrap());
        Self {
            encodings,
            child,
            orders,
            said: BufReader::new(said),
            heard: Vec::new(),
        }
    }

    fn want(&mut self, picture: &Path) {
        let orders = self.orders.as_mut().unwrap();
        writeln!(orders, "{}", picture.display()).unwrap();
    }

    /// Reads what it says until it says this.
    #[track_caller]
    fn until(&mut self, wanted: &str) {
        loop {
            let mut line = String::new();
            self.said.read_line(&mut line).unwrap();
            assert!(
                !line.is_empty(),
                "{}: it ends without {wanted:?}: {:?}, {:?}",
                self.encodings,
                self.heard,
                self.child.wait()
            );
            self.heard.push(line.trim().to_owned());
            if line.trim() == wanted {
                return;
            }
        }
    }

    /// It leaves as it should.
    fn end(mut self) {
        drop(self.orders.take());
        assert!(self.child.wait().unwrap().success(), "{}", self.encodings);
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Pictures that encodings treat each in its own way: one colour, two, few, many, noise.
fn pictures((width, height): (u32, u32)) -> Vec<Vec<u32>> {
    let all = |pixel: fn(u32, u32) -> u32| -> Vec<u32> {
        let lines = (0..height).map(|y| (0..width).map(move |x| pixel(x, y)));
        lines.flatten().collect()
    };
    vec![
        all(|_, _| 0x12_3456),
        all(|x, y| if (x / 3 + y) % 7 < 3 { 0xFF_FFFF } else { 0 }),
        all(|x, y| (x / 9 % 11 + y / 5 % 3) * 0x01_0503),
        all(|x, y| x << 16 | y << 8 | (x + y) & 0xFF),
        pattern(width * height, 21),
    ]
}

#[test]
fn libvncclient_sees_every_pixel_in_every_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let test = "libvncclient_sees_every_pixel_in_every_encoding";
    let Some(program) = build(test, folder.path()) else {
        return;
    };
    let store = |name: &str, pixels: &[u32]| {
        let path = folder.path().join(name);
        let bytes: Vec<u8> = pixels.iter().flat_map(|it| it.to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &pictures(SIZE)[4]);
    rig.driver.show(0, 1, WHOLE);
    let served = Served::of_screen(rig.screen());
    let port = served.address.port();
    let mut viewers = ["raw", "zlib", "tight", "zrle"].map(|it| Viewer::start(&program, port, it));
    // All that is drawn, and then one pixel of each.
    for (number, mut picture) in pictures(SIZE).into_iter().enumerate() {
        for (step, change) in [0, 0x00FF_FFFF].into_iter().enumerate() {
            picture[57 * 200 + 131] ^= change;
            let file = store(&format!("{number}.{step}"), &picture);
            rig.driver.draw(1, SIZE, 0, &picture);
            rig.driver.flush(1, WHOLE);
            for viewer in &mut viewers {
                viewer.want(&file);
            }
            for viewer in &mut viewers {
                viewer.until("seen");
            }
        }
    }
    // The pointer: 64 by 64, with a hot spot, of which the first lines are drawn.
    let shape: Vec<u32> = (0..64 * 64)
        .map(|at| if at < 640 { 0xFF00_0003 } else { 0 })
        .collect();
    rig.driver.create(2, ARGB, (64, 64), 100_000);
    rig.driver.draw(2, (64, 64), 100_000, &shape);
    rig.driver.pointer(0x300, (50, 40), 2, (3, 5));
    // Another size, and what is there.
    let size = (320, 131);
    let later = pattern(320 * 131, 9);
    rig.driver.create(3, XRGB, size, 200_000);
    rig.driver.draw(3, size, 200_000, &later);
    let file = store("later", &later);
    for viewer in &mut viewers {
        viewer.want(&file);
        viewer.until("cursor 3 5 64 64 640 1920");
    }
    rig.driver.show(0, 3, [0, 0, 320, 131]);
    for viewer in &mut viewers {
        viewer.until("size 320 131");
        viewer.until("seen");
    }
    viewers.into_iter().for_each(Viewer::end);
    served.end().unwrap();
}
