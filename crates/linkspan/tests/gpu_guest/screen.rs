//! The pointer, other sizes, a second screen, and what viewers type, with a stock guest.

use std::io::Cursor;
use std::path::Path;

use linkspan::demo::initramfs::GuestFile;
use linkspan::demo::machine::Devices;
use linkspan_testkit::Browser;

use crate::bench::{Bench, Guest, skip};
use crate::drawing::{SIDE, order, shape, start};
use crate::picture::Picture;
use crate::viewer::Viewer;
use crate::{HEIGHT, WIDTH, pattern, until};

/// This program and what it is linked with; where it is in the guest.
fn this_program() -> (Vec<GuestFile>, String) {
    let program = std::env::current_exe().unwrap();
    let listed = std::process::Command::new("ldd").arg(&program).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let libraries = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    let file = |from: &Path, path: &str| GuestFile {
        path: path.to_owned(),
        data: std::fs::read(from).unwrap(),
    };
    let mut files = vec![file(&program, "bin/drawing")];
    files.extend(libraries.map(|path| file(Path::new(path), path.trim_start_matches('/'))));
    (files, "/bin/drawing".into())
}

/// A picture with the pointer over it, its colours multiplied by their opacity already.
fn with_pointer(mut picture: Picture, (left, top): (i32, i32)) -> Picture {
    for (at, over) in (0..).zip(shape()) {
        let side = i32::try_from(SIDE).unwrap();
        let (x, y) = (left + at % side, top + at / side);
        let (Ok(x), Ok(y)) = (usize::try_from(x), usize::try_from(y)) else {
            continue;
        };
        if x >= picture.width || y >= picture.height {
            continue;
        }
        let under = &mut picture.pixels[y * picture.width + x];
        let rest = 255 - (over >> 24);
        let channel = |shift: u32| {
            // The nearest whole number.
            let share = (2 * (*under >> shift & 0xFF) * rest + 255) / 510;
            ((over >> shift & 0xFF) + share) << shift
        };
        *under = channel(16) | channel(8) | channel(0);
    }
    picture
}

fn drawn(width: usize, height: usize, seed: u32) -> Picture {
    Picture {
        width,
        height,
        pixels: pattern(width, height, seed),
    }
}

/// What the tablet of the guest has said: kind, code, value.
fn felt(guest: &mut Guest) -> Vec<(u16, u16, u32)> {
    let hex = guest.run("hexdump -v -e '1/1 \"%02x\"' /tmp/felt; echo");
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len() / 2).map(|at| byte(at * 2)).collect();
    let events = bytes.as_chunks::<24>().0.iter();
    let event = |event: &[u8; 24]| {
        let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
        (
            half(16),
            half(18),
            u32::from_le_bytes(event[20..].try_into().unwrap()),
        )
    };
    events.map(event).collect()
}

#[test]
fn a_guest_has_a_pointer_sizes_screens_and_a_keyboard() {
    const TEST: &str = "a_guest_has_a_pointer_sizes_screens_and_a_keyboard";
    let Some(mut bench) = Bench::new(TEST, 2) else {
        return;
    };
    if !bench.has_dbus() {
        skip(TEST, "QEMU has no D-Bus display");
        return;
    }
    let (files, program) = this_program();
    let path = |name: &str| bench.path(name).display().to_string();
    let (gpu, qmp, qmp2, qmp3) = (path("gpu"), path("qmp"), path("qmp2"), path("qmp3"));
    // With a VGA of old beside it, two screens, and a monitor for each viewer.
    let options = format!(
        "-chardev socket,id=gpu,path={gpu} -device vhost-user-vga,chardev=gpu,max_outputs=2 \
         -device virtio-tablet-pci -display dbus,p2p=yes \
         -chardev socket,id=q,server=on,wait=off,path={qmp} -mon chardev=q,mode=control \
         -chardev socket,id=r,server=on,wait=off,path={qmp2} -mon chardev=r,mode=control \
         -chardev socket,id=s,server=on,wait=off,path={qmp3} -mon chardev=s,mode=control"
    );
    let options: Vec<&str> = options.split_whitespace().collect();
    let devices = Devices {
        more: &options,
        ..Devices::default()
    };
    let modules = ["virtio_pci", "virtio_gpu", "virtio_input", "evdev"];
    let mut guest = bench.boot_with(devices, &modules, &files);
    let vnc = bench.vnc(&["--qmp", &qmp]);
    let mut viewer = Viewer::connect(vnc.port);
    viewer.until(|viewer| viewer.size == (WIDTH, HEIGHT));

    types(&bench, &mut guest, &mut viewer);
    points(&mut guest, &mut viewer);
    match Browser::start(TEST) {
        Some(mut browser) => page_types_and_points(&bench, &mut guest, &mut browser, &qmp3),
        None => skip(TEST, "no browser types"),
    }
    // A size that a viewer wants: QEMU is told, the guest hears it, its console takes it.
    viewer.want(1024, 768);
    viewer.until(|viewer| viewer.size == (1024, 768));
    until("the console in the other size", || {
        let picture = bench.shot(&[]).unwrap();
        (picture.width, picture.height) == (1024, 768) && picture.row(0, 9) == "LINKSPAN "
    });
    start(&mut guest, &program);
    draws(&bench, &mut guest, &mut viewer);

    // A second screen comes when somebody wants it.
    let second = bench.vnc(&["--head", "1", "--qmp", &qmp2]);
    let mut other = Viewer::connect(second.port);
    other.want(800, 600);
    order(&mut guest, "mode 1 800 600");
    let wanted = drawn(800, 600, 1);
    until("the second picture", || {
        bench.shot(&["--head", "1"]).as_ref() == Ok(&wanted)
    });
    other.until(|other| other.size == (800, 600) && other.pixels == wanted.pixels);
    assert!(
        bench.shot(&[]).as_ref() == Ok(&drawn(WIDTH, HEIGHT, 0)),
        "the first screen is as it was"
    );
    guest.machine.kill().unwrap();
    until("the end", || {
        let why = bench.shot(&[]).err();
        why.is_some_and(|why| why.contains("no signal: no guest uses the device"))
    });
    bench.gpu.stop().unwrap();
    let log = bench.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

/// What a viewer types is in the guest, and on its console.
fn types(bench: &Bench, guest: &mut Guest, viewer: &mut Viewer) {
    guest.run("printf '\\033[2J\\033[H\\033[?25l' >/dev/tty1; cat </dev/tty1 >/tmp/typed &");
    for letter in "LINKSPAN\r".bytes() {
        let keysym = if letter == b'\r' {
            0xFF0D
        } else {
            letter.into()
        };
        viewer.key(keysym);
    }
    until("what was typed", || {
        guest.run("cat /tmp/typed") == "LINKSPAN"
    });
    until("what was typed on the console", || {
        bench.shot(&[]).unwrap().row(0, 9) == "LINKSPAN "
    });
}

/// The pointer of a viewer is the guest's tablet.
fn points(guest: &mut Guest, viewer: &mut Viewer) {
    guest.run(
        "for d in /sys/class/input/event*; do \
         grep -q Tablet $d/device/name && tablet=/dev/input/${d##*/}; done; \
         cat <$tablet >/tmp/felt & \
         until ls -l /proc/$!/fd/0 | grep -q input/event; do usleep 10000; done",
    );
    viewer.point(0, 640, 400);
    viewer.point(1, 640, 400);
    viewer.point(0, 640, 400);
    // Of 0x7FFF from edge to edge.
    let wanted = [(3, 0, 16397), (3, 1, 16405), (1, 0x110, 1), (1, 0x110, 0)];
    until("the pointer", || {
        let felt = felt(guest);
        wanted.iter().all(|event| felt.contains(event))
    });
}

/// The same from the page, in a browser that others wrote.
fn page_types_and_points(bench: &Bench, guest: &mut Guest, browser: &mut Browser, qmp: &str) {
    // Its console is still read into the file.
    guest.run("printf '\\033[2J\\033[H' >/dev/tty1");
    let (_page, url) = bench.page(&["--qmp", qmp]);
    let tab = browser.open(&url);
    browser.until(
        &tab,
        "document.getElementById('screen').width === 1280 && \
         !document.getElementById('hint').hidden",
    );
    // In its own size, and where the pointer was not before.
    let place = "(() => { document.getElementById('fit').click(); \
        const it = document.getElementById('screen').getBoundingClientRect(); \
        return [it.x + 320.5, it.y + 200.5]; })()";
    let place = browser.evaluate(&tab, place);
    let side = |at: usize| place[at].as_f64().unwrap();
    browser.click(&tab, side(0), side(1));
    let wanted = [(3, 0, 8199), (3, 1, 8203)];
    until("the pointer of the page", || {
        let felt = felt(guest);
        let clicks = felt.iter().filter(|event| **event == (1, 0x110, 1)).count();
        wanted.iter().all(|event| felt.contains(event)) && clicks == 2
    });
    browser.type_text(&tab, "PAN SKI\n");
    until("what the page typed", || {
        guest.run("cat /tmp/typed") == "LINKSPAN\nPAN SKI"
    });
    until("what the page typed, on the page", || {
        let file = browser.canvas(&tab, "screen");
        Picture::read(Cursor::new(file)).row(0, 8) == "PAN SKI "
    });
    // Out of the picture: what is typed now is the page's.
    browser.evaluate(&tab, "document.getElementById('fit').focus()");
    browser.type_text(&tab, "SKIP");
    browser.evaluate(&tab, "document.getElementById('screen').parentNode.focus()");
    browser.type_text(&tab, "NAIL\n");
    until("what the page typed later", || {
        guest.run("cat /tmp/typed") == "LINKSPAN\nPAN SKI\nNAIL"
    });
    // As it was.
    guest.run("printf '\\033[2J\\033[HLINKSPAN\\n' >/dev/tty1");
}

/// A program of the guest sets modes and moves the pointer.
fn draws(bench: &Bench, guest: &mut Guest, viewer: &mut Viewer) {
    order(guest, "mode 0 1024 768");
    let wanted = drawn(1024, 768, 0);
    until("the picture", || bench.shot(&[]).as_ref() == Ok(&wanted));
    viewer.until(|viewer| viewer.pixels == wanted.pixels);
    order(guest, "cursor 0 100 50");
    for place in [(100, 50), (-20, -10), (1000, 740), (333, 444)] {
        order(guest, &format!("move 0 {} {}", place.0, place.1));
        let wanted = with_pointer(drawn(1024, 768, 0), place);
        until("the pointer", || {
            bench.shot(&["--cursor"]).as_ref() == Ok(&wanted)
        });
    }
    assert!(bench.shot(&[]).as_ref() == Ok(&wanted), "without it");
    // The viewer, which cannot draw a pointer, has it in its picture.
    let wanted = with_pointer(wanted, (333, 444));
    viewer.until(|viewer| viewer.pixels == wanted.pixels);
    order(guest, "hide 0");
    let wanted = drawn(1024, 768, 0);
    until("no pointer", || {
        bench.shot(&["--cursor"]).as_ref() == Ok(&wanted)
    });
    // Back again: the viewer wants it, and the program sets it.
    viewer.want(
        u16::try_from(WIDTH).unwrap(),
        u16::try_from(HEIGHT).unwrap(),
    );
    order(guest, &format!("mode 0 {WIDTH} {HEIGHT}"));
    let wanted = drawn(WIDTH, HEIGHT, 0);
    viewer.until(|viewer| viewer.size == (WIDTH, HEIGHT) && viewer.pixels == wanted.pixels);
}
