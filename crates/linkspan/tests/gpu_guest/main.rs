//! A stock Linux guest draws on `linkspan gpu`, under the QEMU of a distribution, without
//! a GPU and without OpenGL: its pixels are compared, one by one.

mod bench;
mod drawing;
mod picture;
mod screen;
mod viewer;

use std::path::Path;

use bench::{Bench, skip};
use linkspan::demo::process::find_program;
use linkspan_testkit::census::settled;
use picture::Picture;

/// What QEMU tells the guest if nobody says otherwise.
const WIDTH: usize = 1280;
const HEIGHT: usize = 800;

/// Pixels that are nowhere alike.
fn pattern(width: usize, height: usize, seed: u32) -> Vec<u32> {
    let pixel = |n: u32| n.wrapping_mul(0x9E37_79B1) >> 8 ^ seed;
    (0..u32::try_from(width * height).unwrap())
        .map(pixel)
        .collect()
}

/// The guest draws when it has time to.
#[track_caller]
fn until(what: &str, mut is: impl FnMut() -> bool) {
    assert!((0..3).any(|_| settled(&mut is)), "{what}");
}

fn guest_draws(test: &str, packed: bool) {
    let Some(mut bench) = Bench::new(test, 1) else {
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
        pixels: pattern(WIDTH, HEIGHT, 0),
    };
    until("the pattern", || bench.shot(&[]).as_ref() == Ok(&wanted));
    // QEMU has it too.
    until("QEMU's own screen", || bench.dump().as_ref() == Ok(&wanted));
    // And a VNC client that others wrote.
    if let Some(client) = find_program(Path::new("gvnccapture")) {
        let vnc = bench.vnc(&[]);
        let seen = bench.capture(&client, vnc.port);
        assert!(
            seen.unwrap() == wanted,
            "the pixels that a VNC client sees differ"
        );
    } else {
        skip(test, "gvnccapture is not installed");
    }
    guest.machine.kill().unwrap();
    until("the end", || {
        let why = bench.shot(&[]).err();
        why.is_some_and(|why| why.contains("no signal: no guest uses the device"))
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
