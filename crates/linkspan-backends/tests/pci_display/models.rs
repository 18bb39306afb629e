//! The models fixed and intel.

use linkspan_backends::display::{Model, Script};
use linkspan_display::decode::fixed;

use crate::rig::{MEMORY, Rig, draw, pixel, until};

#[test]
fn a_fixed_picture_is_described_in_configuration_space() {
    let rig = Rig::new(Model::Fixed);
    let mut guest = rig.guest();
    let config: [u8; 256] = guest.read(7, 0, 256).try_into().unwrap();
    let layout = fixed::mdpy(&config, MEMORY).unwrap();
    assert_eq!(
        (layout.surface().width, layout.surface().height),
        (640, 480)
    );
    let memory = guest.map(0);
    let mut screen = rig.viewer(0);
    draw(&memory, (479 * 640 + 639) * 4, 0x0065_4321);
    until(&mut screen, "the pixel", |screen| {
        pixel(screen, 639, 479) == Some(0x65_4321)
    });
    // Of another size it cannot be, and a viewer is told so.
    let wish = screen.source_mut().resize(0, 800, 600).unwrap_err();
    assert!(
        wish.to_string().contains("no size for this screen"),
        "{wish}"
    );
    // Nothing of it can be moved.
    guest.write(7, 0x40, &[0xFF; 16]).unwrap();
    assert_eq!(guest.read(7, 0x40, 16), config[0x40..0x50]);
}

/// A screen of 128 by 64 in tiles of X, at graphics page 16, which is page 2 of the memory.
const SCRIPT: &str = "\
generation 9
register 0x70008 0x80000000  # pipe A is on
register 0x6001C 0x007F003F
register 0x70180 0x84000400  # a plane of XRGB8888 in tiles of X
register 0x70188 1           # 512 bytes a line
register 0x70190 0x003F007F
register 0x7019C 0x00010000
table 16 0x2000 16
";

#[test]
fn intel_registers_are_decoded_up_to_a_viewer() {
    let mut script = Script::parse(SCRIPT).unwrap();
    let mut opregion = vec![0; 8192];
    opregion[..16].copy_from_slice(b"IntelGraphicsMem");
    opregion[16..20].copy_from_slice(&8u32.to_le_bytes());
    script.opregion_bytes = opregion.clone();
    let rig = Rig::new(Model::Intel(Box::new(script)));
    let mut guest = rig.guest();
    assert_eq!(guest.word(7, 0), 0x1916_8086);
    assert_eq!(guest.word(0, 0x7019C), 0x1_0000);
    assert_eq!(guest.word(0, (8 << 20) + 16 * 8), 0x2001);
    let memory = guest.map(2);
    let mut screen = rig.viewer(0);
    // Line 9 is the second line of the second row of tiles.
    draw(&memory, 0x2000 + 4096 + 512 + 3 * 4, 0x0033_2211);
    until(&mut screen, "the pixel", |screen| {
        pixel(screen, 3, 9) == Some(0x33_2211)
    });
    for head in 0..4 {
        assert!(screen.source_mut().resize(head, 640, 480).is_err());
    }
    // A flip: the address is what is armed last.
    draw(&memory, 0x8000 + 4, 0x0000_FF00);
    guest.write(0, 0x7019C, &0x1_6000u32.to_le_bytes()).unwrap();
    until(&mut screen, "the flip", |screen| {
        pixel(screen, 1, 0) == Some(0xFF00)
    });
    // Pages that are elsewhere, or not one behind the other, are no picture.
    guest
        .write(0, (8 << 20) + 22 * 8, &(MEMORY | 1).to_le_bytes())
        .unwrap();
    guest.write(0, 0x7019C, &0x1_6000u32.to_le_bytes()).unwrap();
    until(&mut screen, "no picture", |screen| {
        screen.no_signal().is_some()
    });
    guest
        .0
        .ask(&linkspan_vfio::client::Ask::Reset, &[])
        .unwrap();
    until(&mut screen, "the reset", |screen| {
        pixel(screen, 3, 9) == Some(0x33_2211)
    });
    // The OpRegion can be read and not written.
    assert_eq!(guest.read(10, 0, 32), opregion[..32]);
    assert!(guest.write(10, 0, &[0]).is_err());
    // Any register may be anything.
    for at in (0x6_0000..0x8_0000u64).step_by(64) {
        guest.write(0, at, &[0xFF; 64]).unwrap();
    }
    screen.look().unwrap();
}
