//! `linkspan gpu` and `linkspan display` as programs, without a guest.

use std::path::Path;
use std::process::{Command, Output};

use linkspan_testkit::census::settled;
use rustix::process::Signal;

mod programs;

use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn run(arguments: &[&str]) -> Output {
    let output = Command::new(PROGRAM).args(arguments).output();
    output.expect("the program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn each_kind_of_failure_has_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("s");
    let nowhere = nowhere.to_str().unwrap();
    let picture = folder.path().join("p.png");
    let picture = picture.to_str().unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "generation 9\npipe A\n").unwrap();
    let script = script.to_str().unwrap();
    let device = format!("vfio-user:{nowhere}");
    let serve = ["display", "serve", "--socket-path", nowhere];
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["display", "shot", nowhere, "-o", picture],
            3,
            "no screen at",
        ),
        (
            &["display", "vnc", nowhere, "--listen", "127.0.0.1:0"],
            3,
            "no screen at",
        ),
        (
            &["display", "vnc", nowhere, "--listen", "0.0.0.0:0"],
            2,
            "no password",
        ),
        (
            &["display", "vnc", nowhere, "--listen", "[::]:0"],
            2,
            "no password",
        ),
        (&["display", "watch", nowhere], 3, "no screen at"),
        (
            &["display", "watch", nowhere, "--listen", "0.0.0.0:0"],
            2,
            "not encrypted",
        ),
        (&["gpu"], 2, "--socket-path"),
        (
            &["gpu", "--socket-path", nowhere, "--mode", "1x1"],
            2,
            "1x1",
        ),
        (
            &["gpu", "--socket-path", nowhere, "--mode", "wide"],
            2,
            "1280x800",
        ),
        (&["gpu", "--socket-path", nowhere, "--heads", "17"], 2, "17"),
        (
            &["display", "shot", &device, "-o", picture],
            3,
            "no screen at",
        ),
        (&["display", "serve"], 2, "--socket-path"),
        (
            &[&serve[..], &["--memory", "3M"]].concat(),
            2,
            "power of two",
        ),
        (&[&serve[..], &["--mode", "5000x10"]].concat(), 2, "5000x10"),
        (&[&serve[..], &["--model", "vga"]].concat(), 2, "bochs"),
        (&[&serve[..], &["--model", "intel"]].concat(), 2, "--script"),
        (
            &[&serve[..], &["--script", script]].concat(),
            2,
            "for the model intel",
        ),
        (
            &[&serve[..], &["--model", "intel", "--script", script]].concat(),
            2,
            "line 2: pipe is none of",
        ),
        (
            &[&serve[..], &["--model", "intel", "--script", nowhere]].concat(),
            2,
            "cannot read",
        ),
    ];
    for (arguments, status, part) in cases {
        let output = run(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(*status), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    assert!(!Path::new(picture).exists());
}

#[test]
fn capabilities_are_what_management_software_expects() {
    let output = run(&["gpu", "--print-capabilities"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["type"], "gpu");
}

#[test]
fn a_gpu_without_a_guest_has_no_signal_and_ends_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, screen) = (path("gpu"), path("screen"));
    let gpu = Program::start(
        "gpu",
        ["--json", "--socket-path", &socket, "--display", &screen],
    );
    assert!(settled(|| gpu.said().contains("listening")));
    let output = run(&["display", "shot", &screen, "-o", &path("p.png")]);
    let why = said(&output);
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(why.contains("no signal: no guest uses the device"), "{why}");
    let vnc = ["vnc", "--json", "--listen", "127.0.0.1:0", &screen];
    let vnc = Program::start("display", vnc);
    assert!(settled(|| vnc.said().contains("listening")));
    vnc.signal(Signal::TERM);
    let (status, lines, errors) = vnc.end();
    assert_eq!((status, lines.len()), (Some(0), 1), "{errors}");
    let watch = Program::start("display", ["watch", "--json", &screen]);
    assert!(settled(|| watch.said().contains("http://127.0.0.1:")));
    watch.signal(Signal::INT);
    let (status, lines, errors) = watch.end();
    assert_eq!((status, lines.len()), (Some(0), 1), "{errors}");
    gpu.signal(Signal::TERM);
    let (status, _, errors) = gpu.end();
    assert_eq!(status, Some(0), "{errors}");
    assert!(!Path::new(&socket).exists() && !Path::new(&screen).exists());
}

#[test]
fn a_display_without_a_monitor_is_seen_by_a_viewer_that_is_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, screen, picture) = (path("vga"), path("screen"), path("p.png"));
    let sizes = ["--model", "fixed", "--mode", "320x200", "--memory", "1M"];
    let places = [
        "serve",
        "--json",
        "--socket-path",
        &socket,
        "--display",
        &screen,
    ];
    let display = Program::start("display", [&places[..], &sizes[..]].concat());
    assert!(settled(|| display.said().contains("listening")));
    // Nobody has it, so its own socket shows nothing.
    let output = run(&["display", "shot", &screen, "-o", &picture]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let device = format!("vfio-user:{socket}");
    let output = run(&["display", "shot", &device, "-o", &picture]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let header = std::fs::read(&picture).unwrap();
    assert_eq!(header[16..24], [0, 0, 1, 64, 0, 0, 0, 200]);
    let output = run(&["display", "show", &device, "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["planes"][0]["width"], 320);
    display.signal(Signal::TERM);
    let (status, lines, errors) = display.end();
    assert_eq!(status, Some(0), "{errors}");
    assert!(lines.len() >= 5, "{lines:?}");
    assert!(!Path::new(&socket).exists() && !Path::new(&screen).exists());
}

/// A picture of 16 by 4, a sprite of 8 by 4 at 4,0, and one that is turned.
const PLANES: &str = "\
register 0x70008 0x80000000
register 0x70180 0x84000000
register 0x70188 1
register 0x70190 0x0003000F
register 0x7019C 0x00010000
register 0x70280 0x84000000
register 0x70288 1
register 0x7028C 0x00000004
register 0x70290 0x00030007
register 0x7029C 0x00020000
register 0x70380 0x84000002
register 0x7039C 0x00020000
table 16 0x1000
table 32 0x2000
";

#[test]
fn planes_are_listed_put_together_and_refused_by_name() {
    use linkspan_engine::vfio_user::Connection;
    use linkspan_vfio::Capabilities;
    use linkspan_vfio::client::Ask;

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, screen, picture) = (path("vga"), path("screen"), path("p.png"));
    std::fs::write(path("script"), PLANES).unwrap();
    let places = ["--socket-path", &socket, "--display", &screen, "--json"];
    let model = ["--model", "intel", "--script", &path("script")];
    let display = [&["serve"][..], &places, &model].concat();
    let display = Program::start("display", display);
    assert!(settled(|| display.said().contains("listening")));
    let mut guest = Connection::open(Path::new(&socket), Capabilities::default()).unwrap();
    let mut draw = |offset, bytes: &[u8]| {
        let region = 2;
        let write = Ask::Write {
            region,
            offset,
            bytes,
        };
        guest.ask(&write, &[]).unwrap();
    };
    draw(0x1000, &[0x11; 256]);
    draw(0x2000, &[0x22; 256]);
    let shot = |arguments: &[&str]| {
        let _ = std::fs::remove_file(&picture);
        let output = run(&[&["display", "shot", &screen, "-o", &picture], arguments].concat());
        let decoder = std::fs::File::open(&picture).ok();
        let pixels = decoder.map(|file| {
            let file = std::io::BufReader::new(file);
            let mut reader = png::Decoder::new(file).read_info().unwrap();
            let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut bytes).unwrap();
            let each = bytes.len() / (info.width * info.height) as usize;
            let pixels: Vec<u8> = bytes.chunks(each).map(|pixel| pixel[0]).collect();
            ((info.width, info.height), pixels)
        });
        (output.status.code(), said(&output), pixels)
    };
    let (status, why, seen) = shot(&[]);
    assert_eq!(status, Some(0), "{why}");
    assert_eq!(seen, Some(((16, 4), vec![0x11; 64])));
    assert!(why.contains("sprites are on and left out"), "{why}");
    let (status, why, seen) = shot(&["--plane", "sprite1"]);
    assert_eq!(status, Some(0), "{why}");
    assert_eq!(seen, Some(((8, 4), vec![0x22; 32])));
    // The other sprite is turned, so that there is no whole of all.
    let turned = "rotation by 180 degrees is not supported";
    for arguments in [&["--compose"][..], &["--plane", "sprite2"]] {
        let (status, why, seen) = shot(arguments);
        assert_eq!((status, seen), (Some(1), None), "{why}");
        assert!(why.contains("no signal: ") && why.contains(turned), "{why}");
    }
    let output = run(&["display", "show", &screen, "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["planes"][1]["kind"], "sprite 1");
    assert_eq!(told["planes"][1]["x"], 4);
    assert_eq!(told["refused"][0]["why"], turned);
    let output = run(&["display", "show", &screen]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(&format!("0  sprite 2  refused: {turned}")),
        "{text}"
    );
    // Without it there is.
    let region = 0;
    let off = Ask::Write {
        region,
        offset: 0x70380,
        bytes: &[0; 4],
    };
    guest.ask(&off, &[]).unwrap();
    let (status, why, seen) = shot(&["--compose"]);
    assert_eq!(status, Some(0), "{why}");
    let wanted = |at: usize| {
        if (4..12).contains(&(at % 16)) {
            0x22
        } else {
            0x11
        }
    };
    assert_eq!(seen, Some(((16, 4), (0..64).map(wanted).collect())));
    // And a picture that is refused is a reason to end with.
    let compressed = Ask::Write {
        region,
        offset: 0x70180,
        bytes: &0x8400_8000u32.to_le_bytes(),
    };
    guest.ask(&compressed, &[]).unwrap();
    let (status, why, _) = shot(&[]);
    assert_eq!(status, Some(1), "{why}");
    assert!(
        why.contains("no signal: compressed memory is not supported"),
        "{why}"
    );
    display.signal(Signal::TERM);
    assert_eq!(display.end().0, Some(0));
}

/// A picture of 32 by 32, of lines of 128 bytes, in one page of the guest.
const GUEST: &str = "\
memory guest
register 0x70008 0x80000000
register 0x70180 0x84000000
register 0x70188 2
register 0x70190 0x001F001F
register 0x7019C 0x00010000
table 16 0x103000
";

/// Of a guest's memory a viewer has the picture's pages as a dma-buf; where there is none,
/// it is told so.
#[test]
fn a_picture_in_the_guests_memory_is_seen_or_refused_by_name() {
    use std::os::fd::AsFd as _;

    use linkspan_engine::vfio_user::Connection;
    use linkspan_mem::Iova;
    use linkspan_sys::memfd::{self, Sealing};
    use linkspan_vfio::client::Ask;
    use linkspan_vfio::{Capabilities, DmaMap};

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, screen, picture) = (path("vga"), path("screen"), path("p.png"));
    std::fs::write(path("script"), GUEST).unwrap();
    let places = ["--socket-path", &socket, "--display", &screen, "--json"];
    let model = ["--model", "intel", "--script", &path("script")];
    let display = [&["serve"][..], &places, &model].concat();
    let display = Program::start("display", display);
    assert!(settled(|| display.said().contains("listening")));
    let mut guest = Connection::open(Path::new(&socket), Capabilities::default()).unwrap();
    let memory = memfd::create("guest", 0x8000, Sealing::Fixed).unwrap();
    rustix::io::pwrite(&memory, &[0x5A; 0x1000], 0x3000).unwrap();
    let shot = || run(&["display", "shot", &screen, "-o", &picture]);
    let output = shot();
    let why = said(&output);
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(why.contains("where the guest has no memory"), "{why}");
    let map = DmaMap {
        address: Iova(0x10_0000),
        size: 0x8000,
        offset: 0,
        readable: true,
        writable: true,
        shared: true,
    };
    guest.ask(&Ask::Map(map), &[memory.as_fd()]).unwrap();
    let output = shot();
    let why = said(&output);
    if let Err(error) = linkspan_sys::udmabuf::available() {
        println!("without /dev/udmabuf ({error}) it is refused by name");
        assert_eq!(output.status.code(), Some(1), "{why}");
        assert!(why.contains("there is no /dev/udmabuf"), "{why}");
    } else {
        assert_eq!(output.status.code(), Some(0), "{why}");
        let file = std::io::BufReader::new(std::fs::File::open(&picture).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((info.width, info.height), (32, 32));
        assert!(bytes.iter().all(|byte| *byte == 0x5A));
    }
    display.signal(Signal::TERM);
    assert_eq!(display.end().0, Some(0));
}

/// What has ended stays readable for ever.
#[test]
fn viewers_of_a_gpu_that_is_gone_cost_nothing_while_nobody_looks() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, screen) = (path("gpu"), path("screen"));
    let gpu = ["--json", "--socket-path", &socket, "--display", &screen];
    let gpu = Program::start("gpu", gpu);
    assert!(settled(|| gpu.said().contains("listening")));
    let viewers = ["vnc", "watch"].map(|kind| {
        let viewer = [kind, "--json", "--listen", "127.0.0.1:0", &screen];
        let viewer = Program::start("display", viewer);
        assert!(settled(|| viewer.said().contains("127.0.0.1:")));
        viewer
    });
    gpu.signal(Signal::TERM);
    assert_eq!(gpu.end().0, Some(0));
    // They sleep, and go on doing so, however often one looks.
    let sleeps = |viewer: &Program| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", viewer.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    };
    assert!(settled(|| viewers.iter().all(sleeps)));
    assert!((0..1000).all(|_| viewers.iter().all(sleeps)));
    for viewer in viewers {
        viewer.signal(Signal::TERM);
        let (status, _, errors) = viewer.end();
        assert_eq!(status, Some(0), "{errors}");
    }
}
