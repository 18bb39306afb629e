//! A stock Linux guest draws on `linkspan gpu`, under the QEMU of a distribution, without
//! a GPU and without OpenGL: its pixels are compared, one by one.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use linkspan::demo::initramfs::{self, GuestFile};
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Devices, Event, Gpu, Hardware, Machine, Mode, monitor};
use linkspan::demo::process::{Process, Stop, await_socket, find_program, supervised};
use linkspan::demo::report;
use linkspan_testkit::census::settled;

const LIMIT: Duration = Duration::from_secs(240);
/// What QEMU tells the guest if nobody says otherwise.
const WIDTH: usize = 1280;
const HEIGHT: usize = 800;

/// Letters of the kernel's font of 8 by 16, lines 2 to 11; the others are empty.
const LETTERS: &[(char, [u8; 10])] = &[
    (
        'A',
        [0x10, 0x38, 0x6C, 0xC6, 0xC6, 0xFE, 0xC6, 0xC6, 0xC6, 0xC6],
    ),
    (
        'I',
        [0x3C, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x3C],
    ),
    (
        'K',
        [0xE6, 0x66, 0x66, 0x6C, 0x78, 0x78, 0x6C, 0x66, 0x66, 0xE6],
    ),
    (
        'L',
        [0xF0, 0x60, 0x60, 0x60, 0x60, 0x60, 0x60, 0x62, 0x66, 0xFE],
    ),
    (
        'N',
        [0xC6, 0xE6, 0xF6, 0xFE, 0xDE, 0xCE, 0xC6, 0xC6, 0xC6, 0xC6],
    ),
    (
        'P',
        [0xFC, 0x66, 0x66, 0x66, 0x7C, 0x60, 0x60, 0x60, 0x60, 0xF0],
    ),
    (
        'S',
        [0x7C, 0xC6, 0xC6, 0x60, 0x38, 0x0C, 0x06, 0xC6, 0xC6, 0x7C],
    ),
];

/// A picture, `0xRRGGBB`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u32>,
}

impl Picture {
    fn png(path: &Path) -> Self {
        let decoder = png::Decoder::new(BufReader::new(File::open(path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let channels = match info.color_type {
            png::ColorType::Rgb => 3,
            png::ColorType::Rgba => 4,
            other => panic!("{other:?}"),
        };
        let pixels = bytes[..info.buffer_size()].chunks_exact(channels);
        Self {
            width: info.width as usize,
            height: info.height as usize,
            pixels: pixels
                .map(|pixel| u32::from_be_bytes([0, pixel[0], pixel[1], pixel[2]]))
                .collect(),
        }
    }

    /// Of a PPM file of QEMU.
    fn ppm(bytes: &[u8]) -> Result<Self, String> {
        let mut words = bytes.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut word = || {
            let word = words.next().unwrap_or_default();
            String::from_utf8_lossy(word).into_owned()
        };
        let (magic, width, height) = (word(), word(), word());
        let rest = words.next().unwrap_or_default();
        let (Ok(width), Ok(height)) = (width.parse(), height.parse()) else {
            return Err("no size".into());
        };
        let pixels = rest.strip_prefix(b"255\n").ok_or("no pixels")?;
        assert_eq!(magic, "P6");
        let pixels = pixels.as_chunks::<3>().0.iter();
        Ok(Self {
            width,
            height,
            pixels: pixels
                .map(|&[r, g, b]| u32::from_be_bytes([0, r, g, b]))
                .collect(),
        })
    }

    /// The text in a row of the console.
    fn row(&self, row: usize, columns: usize) -> String {
        (0..columns)
            .map(|column| self.letter(row, column))
            .collect()
    }

    fn letter(&self, row: usize, column: usize) -> char {
        let line = |y: usize| {
            let start = (row * 16 + y) * self.width + column * 8;
            let pixels = self.pixels[start..start + 8].iter();
            pixels.fold(0u8, |line, pixel| line << 1 | u8::from(*pixel != 0))
        };
        let lines: [u8; 10] = std::array::from_fn(|y| line(y + 2));
        let edges = [0, 1, 12, 13, 14, 15].map(line);
        let known = LETTERS.iter().find(|(_, letter)| *letter == lines);
        match known {
            Some((letter, _)) if edges == [0; 6] => *letter,
            _ if lines == [0; 10] => ' ',
            _ => '?',
        }
    }
}

/// Pixels that are nowhere alike.
fn pattern() -> Vec<u32> {
    let pixel = |n: u32| n.wrapping_mul(0x9E37_79B1) >> 8;
    (0..u32::try_from(WIDTH * HEIGHT).unwrap())
        .map(pixel)
        .collect()
}

/// QEMU 7.2 has the device with KVM alone.
fn later_qemu() -> Option<PathBuf> {
    let named = std::env::var_os("LINKSPAN_LATER_QEMU").map(PathBuf::from)?;
    find_program(&named)
}

struct Bench {
    dir: tempfile::TempDir,
    hardware: Hardware,
    gpu: Process,
}

impl Bench {
    /// A GPU, and what a machine needs; `None` after saying what is missing.
    fn new(test: &str) -> Option<Self> {
        let need = || -> Result<(Hardware, PathBuf), String> {
            initramfs::find_busybox().map_err(|error| error.to_string())?;
            let kernel = Kernel::find_with_screen().map_err(|error| error.to_string())?;
            let qemu = later_qemu().ok_or("no later QEMU in LINKSPAN_LATER_QEMU")?;
            let hardware = Hardware {
                qemu,
                accel: Accel::Tcg,
                memory_mib: 384,
                kernel,
            };
            Ok((hardware, env!("CARGO_BIN_EXE_linkspan").into()))
        };
        let (hardware, program) = match need() {
            Ok(found) => found,
            Err(why) => {
                let why = why.lines().next().unwrap_or_default().to_owned();
                // See tests/guest.rs.
                drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("gpu.log");
        let output = File::create(&log).unwrap();
        let mut command = supervised(&program);
        command
            .args(["-v", "gpu", "--socket-path"])
            .arg(dir.path().join("gpu"))
            .arg("--display")
            .arg(dir.path().join("screen"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut gpu = Process::spawn("linkspan", &mut command).unwrap();
        let socket = dir.path().join("gpu");
        await_socket(&mut gpu, &socket, &log, LIMIT, &Stop::default()).unwrap();
        Some(Self { dir, hardware, gpu })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Boots a guest with a pattern in a file.
    fn boot(&self, packed: bool) -> Guest {
        let bytes = pattern().into_iter().flat_map(u32::to_le_bytes).collect();
        let files = [GuestFile {
            path: "pattern".into(),
            data: bytes,
        }];
        let modules = ["virtio_pci", "virtio_gpu"];
        let archive = initramfs::build_with(&self.hardware.kernel, &modules, &files).unwrap();
        let initramfs = self.path("initramfs");
        initramfs::store(&archive, &initramfs).unwrap();
        let socket = self.path("gpu");
        let devices = Devices {
            gpu: Some(Gpu {
                socket: &socket,
                packed,
            }),
            ..Devices::default()
        };
        let console = self.path("console");
        let machine = Machine::start(&self.hardware, devices, Mode::Remote, &initramfs, &console);
        let mut guest = Guest {
            machine: machine.unwrap(),
        };
        guest.report("remote");
        guest
    }

    fn shot(&self, args: &[&str]) -> Result<Picture, String> {
        let file = self.path("shot.png");
        let output = Command::new(env!("CARGO_BIN_EXE_linkspan"))
            .args(["display", "shot"])
            .arg(self.path("screen"))
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

    /// What QEMU believes to show.
    fn dump(&self) -> Result<Picture, String> {
        let file = self.path("dump.ppm");
        let mut monitor = UnixStream::connect(monitor(&self.path("console"))).unwrap();
        let mut replies = BufReader::new(monitor.try_clone().unwrap()).lines();
        let mut say = |line: &str| {
            writeln!(monitor, "{line}").unwrap();
            // Events may come in between.
            let mut reply = replies.next().unwrap().unwrap();
            while !reply.contains("return") && !reply.contains("\"error\"") {
                reply = replies.next().unwrap().unwrap();
            }
            reply
        };
        say(r#"{"execute": "qmp_capabilities"}"#);
        let path = file.display();
        say(&format!(
            r#"{{"execute": "screendump", "arguments": {{"filename": "{path}"}}}}"#
        ));
        Picture::ppm(&fs::read(&file).map_err(|error| error.to_string())?)
    }

    /// Shows the screen by VNC.
    fn vnc(&self) -> Vnc {
        let mut command = supervised(Path::new(env!("CARGO_BIN_EXE_linkspan")));
        command
            .args(["display", "vnc", "--json", "--listen", "127.0.0.1:0"])
            .arg(self.path("screen"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::spawn("linkspan", &mut command).unwrap();
        let mut line = String::new();
        let out = process.take_stdout().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address: SocketAddr = said["address"].as_str().unwrap().parse().unwrap();
        Vnc {
            _process: process,
            port: address.port(),
        }
    }

    /// What a client sees that was told this port.
    fn capture(&self, client: &Path, port: u16) -> Result<Picture, String> {
        let file = self.path("capture.png");
        let output = Command::new(client)
            .arg(format!("127.0.0.1:{}", i32::from(port) - 5900))
            .arg(&file)
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(Picture::png(&file)),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("gpu.log")).unwrap()
    }
}

/// A VNC server of ours.
struct Vnc {
    _process: Process,
    port: u16,
}

struct Guest {
    machine: Machine,
}

impl Guest {
    #[track_caller]
    fn report(&mut self, key: &str) -> (String, Vec<String>) {
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
    fn run(&mut self, line: &str) -> String {
        self.machine.tell(line).unwrap();
        let (status, lines) = self.report("status");
        assert_eq!(status, "0", "{line}: {lines:#?}");
        lines.join("\n")
    }
}

/// The guest draws when it has time to.
#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    assert!((0..3).any(|_| settled(&mut is)), "{what}");
}

fn guest_draws(test: &str, packed: bool) {
    let Some(mut bench) = Bench::new(test) else {
        return;
    };
    assert!(bench.shot(&[]).unwrap_err().contains("no signal: "));
    let mut guest = bench.boot(packed);
    assert_eq!(
        guest.run("cat /sys/class/graphics/fb0/virtual_size"),
        format!("{WIDTH},{HEIGHT}")
    );
    // The console, as text.
    guest.run("printf '\\033[2J\\033[HLINKSPAN\\n\\n PAN SKI\\033[?25l' >/dev/tty1");
    until("the text", || {
        let picture = bench.shot(&[]).unwrap();
        (picture.width, picture.height) == (WIDTH, HEIGHT)
            && picture.row(0, 12) == "LINKSPAN    "
            && picture.row(1, 12) == "            "
            && picture.row(2, 12) == " PAN SKI    "
    });
    // Every pixel.
    guest.run("cat /pattern >/dev/fb0");
    let wanted = Picture {
        width: WIDTH,
        height: HEIGHT,
        pixels: pattern(),
    };
    until("the pattern", || bench.shot(&[]).as_ref() == Ok(&wanted));
    // QEMU has it too.
    until("QEMU's own screen", || bench.dump().as_ref() == Ok(&wanted));
    // And a VNC client that others wrote.
    if let Some(client) = find_program(Path::new("gvnccapture")) {
        let vnc = bench.vnc();
        let seen = bench.capture(&client, vnc.port);
        assert!(
            seen.unwrap() == wanted,
            "the pixels that a VNC client sees differ"
        );
    } else {
        drop(writeln!(
            std::io::stderr().lock(),
            "SKIP {test}: gvnccapture is not installed"
        ));
    }
    guest.machine.kill().unwrap();
    until("the end", || {
        bench.shot(&[]).is_err_and(|why| why.contains("no signal"))
    });
    bench.gpu.stop().unwrap();
    let log = bench.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_guest_draws_text_and_pixels() {
    guest_draws("a_guest_draws_text_and_pixels", false);
}

#[test]
fn a_guest_draws_over_packed_rings() {
    guest_draws("a_guest_draws_over_packed_rings", true);
}
