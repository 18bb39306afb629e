//! What is not shown has a name, which viewers are told, and the picture comes back.

use linkspan_backends::display::{Model, Screen, Script, VfioUserSource};
use linkspan_display::Kind;
use linkspan_testkit::logs;

use crate::rig::{Guest, Rig, until};
use crate::sprites::SCRIPT;

const CONTROL: u64 = 0x70180;
const GOOD: u32 = 0x8400_0000;

fn word(guest: &mut Guest, at: u64, value: u32) {
    guest.write(0, at, &value.to_le_bytes()).unwrap();
}

#[test]
fn each_reason_of_intel_reaches_its_viewers() {
    logs::capture();
    let script = Script::parse(SCRIPT).unwrap();
    let rig = Rig::new(Model::Intel(Box::new(script)));
    let mut guest = rig.guest();
    let mut screen = rig.viewer(0);
    // A register, what it says, what it says otherwise, and the reason.
    let surface = 0x7019C;
    let entry = (8 << 20) + 16 * 8;
    let cases: [(u64, u32, u32, &str); 17] = [
        (
            CONTROL,
            0x8300_0000,
            GOOD,
            "pixel format 0x3 is not supported",
        ),
        (
            CONTROL,
            0x8000_0000,
            GOOD,
            "video format YUYV is not supported",
        ),
        (
            CONTROL,
            0x8100_0000,
            GOOD,
            "video format NV12 is not supported",
        ),
        (CONTROL, 0x8C00_0000, GOOD, "format C8 has a palette"),
        (CONTROL, GOOD | 2 << 10, GOOD, "tiling 2 is not supported"),
        (CONTROL, GOOD | 5 << 10, GOOD, "is not supported"),
        (CONTROL, GOOD | 1, GOOD, "rotation by 90 degrees"),
        (CONTROL, GOOD | 2, GOOD, "rotation by 180 degrees"),
        (CONTROL, GOOD | 3, GOOD, "rotation by 270 degrees"),
        (CONTROL, GOOD | 1 << 8, GOOD, "a mirrored picture"),
        (CONTROL, GOOD | 1 << 15, GOOD, "compressed memory"),
        (CONTROL, GOOD | 1 << 21, GOOD, "a colour key"),
        (CONTROL, GOOD | 3 << 4, GOOD, "opacity of mode 3"),
        (0x68180, 0x8200_0000, 0, "scaling is not supported"),
        (surface, 0x1_0004, 0x1_0000, "protected memory"),
        (0x70188, 1, 8, "a stride of 64 bytes for lines of 512"),
        (
            entry,
            0x2000,
            0x2001,
            "graphics address 0x10000 is not mapped",
        ),
    ];
    for (at, bad, good, why) in cases {
        word(&mut guest, at, bad);
        // The table counts with the next address.
        word(
            &mut guest,
            surface,
            if at == surface { bad } else { 0x1_0000 },
        );
        until(&mut screen, why, |screen| {
            let said = screen.no_signal().map(ToString::to_string);
            said.is_some_and(|said| said.contains(why))
        });
        // Once each, never with each look.
        let said = screen.no_signal().unwrap().to_string();
        let before = logs::lines(&["no signal", &said]).len();
        for _ in 0..20 {
            assert!(screen.look().unwrap().is_empty());
        }
        assert_eq!(logs::lines(&["no signal", &said]).len(), before, "{said}");
        word(&mut guest, at, good);
        word(&mut guest, surface, 0x1_0000);
        until(&mut screen, "the picture", |screen| {
            screen.no_signal().is_none()
        });
    }
}

/// A viewer that is the device's client itself hears the same words, and what is shown beside.
#[test]
fn the_reason_reaches_a_viewer_that_is_the_client() {
    for (bad, kind, why) in [
        (
            "0x70180 0x84000001",
            Kind::Primary,
            "rotation by 90 degrees",
        ),
        ("0x70280 0x84008020", Kind::Sprite(1), "compressed memory"),
    ] {
        let (register, _) = bad.split_once(' ').unwrap();
        let lines = SCRIPT.lines().map(|line| match line.contains(register) {
            true => format!("register {bad}"),
            false => line.to_owned(),
        });
        let script = Script::parse(&lines.collect::<Vec<_>>().join("\n")).unwrap();
        let rig = Rig::new(Model::Intel(Box::new(script)));
        let source = VfioUserSource::connect(&rig.path("vga")).unwrap();
        let mut screen = Screen::new(Box::new(source), 0).unwrap();
        until(&mut screen, why, |screen| {
            let said = screen.refused(kind).map(ToString::to_string);
            said.is_some_and(|said| said.contains(why))
        });
        let said = screen.no_signal().map(ToString::to_string);
        assert_eq!(said.is_some(), kind == Kind::Primary, "{said:?}");
    }
}

#[test]
fn what_a_bochs_display_cannot_show_has_a_name_too() {
    let rig = Rig::new(Model::Bochs);
    let mut guest = rig.guest();
    let mut screen = rig.viewer(0);
    guest.mode(320, 200);
    until(&mut screen, "the picture", |screen| {
        screen.no_signal().is_none()
    });
    for (bits, why) in [
        (8, "format C8 has a palette, which is not told"),
        (4, "4 bits a pixel"),
    ] {
        guest.dispi(&[(4, 0), (3, bits), (4, 0x41)]);
        until(&mut screen, why, |screen| {
            screen.no_signal().map(ToString::to_string) == Some(why.into())
        });
    }
    guest.dispi(&[(4, 0), (3, 32), (4, 0x41)]);
    until(&mut screen, "the picture", |screen| {
        screen.no_signal().is_none()
    });
}
