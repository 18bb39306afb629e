//! A GPU of ours, a QEMU and a guest.

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

use crate::picture::Picture;
use crate::{HEIGHT, WIDTH, pattern};

const LIMIT: Duration = Duration::from_secs(240);

/// Says what is not tested; see tests/guest.rs.
pub(crate) fn skip(test: &str, why: &str) {
    drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
}

/// QEMU 7.2 has the device with KVM alone.
fn later_qemu() -> Option<PathBuf> {
    let named = std::env::var_os("LINKSPAN_LATER_QEMU").map(PathBuf::from)?;
    find_program(&named)
}

pub(crate) struct Bench {
    dir: tempfile::TempDir,
    hardware: Hardware,
    pub(crate) gpu: Process,
}

impl Bench {
    /// A GPU, and what a machine needs; `None` after saying what is missing.
    pub(crate) fn new(test: &str, heads: u8) -> Option<Self> {
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
                skip(test, &why);
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("gpu.log");
        let output = File::create(&log).unwrap();
        let mut command = supervised(&program);
        command
            .args(["-v", "gpu", "--heads", &heads.to_string(), "--socket-path"])
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Boots a guest with a pattern in a file.
    pub(crate) fn boot(&self, packed: bool) -> Guest {
        let bytes = pattern(WIDTH, HEIGHT, 0);
        let bytes = bytes.into_iter().flat_map(u32::to_le_bytes).collect();
        let files = [GuestFile {
            path: "pattern".into(),
            data: bytes,
        }];
        let socket = self.path("gpu");
        let devices = Devices {
            gpu: Some(Gpu {
                socket: &socket,
                packed,
                keys: None,
            }),
            ..Devices::default()
        };
        self.boot_with(devices, &["virtio_pci", "virtio_gpu"], &files)
    }

    /// Boots a guest with these devices, modules and files.
    pub(crate) fn boot_with(
        &self,
        devices: Devices<'_>,
        modules: &[&str],
        files: &[GuestFile],
    ) -> Guest {
        let archive = initramfs::build_with(&self.hardware.kernel, modules, files).unwrap();
        let initramfs = self.path("initramfs");
        initramfs::store(&archive, &initramfs).unwrap();
        let console = self.path("console");
        let machine = Machine::start(&self.hardware, devices, Mode::Remote, &initramfs, &console);
        let mut guest = Guest {
            machine: machine.unwrap(),
        };
        guest.report("remote");
        guest
    }

    pub(crate) fn shot(&self, args: &[&str]) -> Result<Picture, String> {
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
    pub(crate) fn dump(&self) -> Result<Picture, String> {
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
    pub(crate) fn vnc(&self, args: &[&str]) -> Vnc {
        let (process, said) = self.viewers("vnc", args);
        let address: SocketAddr = said["address"].as_str().unwrap().parse().unwrap();
        Vnc {
            _process: process,
            port: address.port(),
        }
    }

    /// Shows the screen on a page, and its address.
    pub(crate) fn page(&self, args: &[&str]) -> (Process, String) {
        let (process, said) = self.viewers("watch", args);
        (process, said["url"].as_str().unwrap().to_owned())
    }

    /// A server of viewers, and what it says.
    fn viewers(&self, kind: &str, args: &[&str]) -> (Process, serde_json::Value) {
        let mut command = supervised(Path::new(env!("CARGO_BIN_EXE_linkspan")));
        command
            .args(["display", kind, "--json", "--listen", "127.0.0.1:0"])
            .args(args)
            .arg(self.path("screen"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = Process::spawn("linkspan", &mut command).unwrap();
        let mut line = String::new();
        let out = process.take_stdout().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        (process, serde_json::from_str(&line).unwrap())
    }

    /// What a client sees that was told this port.
    pub(crate) fn capture(&self, client: &Path, port: u16) -> Result<Picture, String> {
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

    /// Whether QEMU can tell a guest another size: it has its D-Bus display.
    pub(crate) fn has_dbus(&self) -> bool {
        let mut command = Command::new(&self.hardware.qemu);
        let output = command.args(["-display", "help"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().any(|line| line == "dbus")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("gpu.log")).unwrap()
    }
}

/// A VNC server of ours.
pub(crate) struct Vnc {
    _process: Process,
    pub(crate) port: u16,
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
