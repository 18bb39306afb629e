//! A stock Linux guest draws on `linkspan display serve`, a PCI device over vfio-user,
//! under QEMU's own client: its pixels are compared, one by one.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use linkspan::demo::initramfs::{self, GuestFile};
use linkspan::demo::machine::{Devices, Hardware, Machine, Mode};
use linkspan::demo::process::{Process, Stop, await_socket, supervised};
use linkspan_backends::display::{GpuSource, Source as _};

mod screen;

use screen::{Guest, LIMIT, Picture, pattern, until};

/// What the guest is told at first, and later.
const FIRST: (usize, usize) = (1280, 800);
const LATER: (usize, usize) = (1024, 768);

struct Bench {
    dir: tempfile::TempDir,
    hardware: Hardware,
    display: Process,
}

impl Bench {
    /// A display, and what a machine needs; `None` after saying what is missing.
    fn new(test: &str) -> Option<Self> {
        let hardware = screen::hardware(test)?;
        let program: PathBuf = env!("CARGO_BIN_EXE_linkspan").into();
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("display.log");
        let output = File::create(&log).unwrap();
        let mut command = supervised(&program);
        command
            .args([
                "-v",
                "display",
                "serve",
                "--model",
                "bochs",
                "--socket-path",
            ])
            .arg(dir.path().join("vga"))
            .arg("--display")
            .arg(dir.path().join("screen"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut display = Process::spawn("linkspan", &mut command).unwrap();
        let socket = dir.path().join("vga");
        await_socket(&mut display, &socket, &log, LIMIT, &Stop::default()).unwrap();
        Some(Self {
            dir,
            hardware,
            display,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Boots a guest with patterns in files.
    fn boot(&self) -> Guest {
        let file = |name: &str, (width, height)| {
            let pixels = pattern(width, height).into_iter();
            GuestFile {
                path: name.into(),
                data: pixels.flat_map(u32::to_le_bytes).collect(),
            }
        };
        let files = [file("first", FIRST), file("later", LATER)];
        let archive = initramfs::build_with(&self.hardware.kernel, &["bochs"], &files).unwrap();
        let initramfs = self.path("initramfs");
        initramfs::store(&archive, &initramfs).unwrap();
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "socket": { "type": "unix", "path": self.path("vga") },
        });
        let more = ["-device", &device.to_string()];
        let devices = Devices {
            more: &more,
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

    fn shot(&self) -> Result<Picture, String> {
        screen::shot(&self.path("screen"), &[])
    }

    /// The guest's screen has this size, and shows what the guest draws: text and pixels.
    fn shows(&self, guest: &mut Guest, (width, height): (usize, usize), file: &str) {
        assert_eq!(
            guest.run("cat /sys/class/graphics/fb0/virtual_size"),
            format!("{width},{height}")
        );
        guest.run("printf '\\033[2J\\033[HLINKSPAN\\n\\n PAN SKI\\033[?25l' >/dev/tty1");
        until("the text", || {
            let picture = self.shot();
            picture.is_ok_and(|picture| {
                (picture.width, picture.height) == (width, height)
                    && picture.row(0, 12) == "LINKSPAN    "
                    && picture.row(1, 12) == "            "
                    && picture.row(2, 12) == " PAN SKI    "
            })
        });
        guest.run(&format!("cat {file} >/dev/fb0"));
        let wanted = Picture {
            width,
            height,
            pixels: pattern(width, height),
        };
        until("the pattern", || self.shot().as_ref() == Ok(&wanted));
    }
}

#[test]
fn a_guest_draws_through_mapped_memory() {
    let Some(mut bench) = Bench::new("a_guest_draws_through_mapped_memory") else {
        return;
    };
    assert!(bench.shot().unwrap_err().contains("no signal: "));
    let mut guest = bench.boot();
    bench.shows(&mut guest, FIRST, "/first");
    // A viewer wants another size: the driver reads the EDID anew when it comes anew.
    let mut viewer = GpuSource::connect(&bench.path("screen")).unwrap();
    let (width, height) = LATER;
    let sides = [width, height].map(|side| u32::try_from(side).unwrap());
    viewer.resize(0, sides[0], sides[1]).unwrap();
    let device = guest.run("basename /sys/bus/pci/drivers/bochs-drm/0000:*");
    guest.run(&format!(
        "cd /sys/bus/pci/drivers/bochs-drm && echo {device} >unbind && echo {device} >bind"
    ));
    bench.shows(&mut guest, LATER, "/later");
    // The guest starts anew, and the monitor resets the device.
    guest.machine.tell("reboot -f").unwrap();
    guest.report("remote");
    bench.shows(&mut guest, LATER, "/later");
    // The monitor dies, and another one comes.
    guest.machine.kill().unwrap();
    until("the end", || {
        bench.shot().is_err_and(|why| why.contains("no signal"))
    });
    let mut guest = bench.boot();
    bench.shows(&mut guest, LATER, "/later");
    guest.machine.kill().unwrap();
    bench.display.stop().unwrap();
    let log = fs::read_to_string(bench.path("display.log")).unwrap();
    let refused = log.matches("refused").count();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    assert_eq!(refused, 0, "{log}");
    assert_eq!(log.matches("a front end connected").count(), 2, "{log}");
}
