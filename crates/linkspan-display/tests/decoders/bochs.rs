//! The Bochs display interface.

use linkspan_display::decode::bochs::{
    BANK, BPP, BochsError, ENABLE, ID, REGISTERS, VIRT_HEIGHT, VIRT_WIDTH, X_OFFSET, XRES,
    Y_OFFSET, YRES, decode, shows,
};
use linkspan_display::{FourCc, Refusal};

const MEMORY: u64 = 16 << 20;

fn registers(width: u16, height: u16, bpp: u16) -> [u16; REGISTERS] {
    let mut registers = [0; REGISTERS];
    registers[ID] = 0xB0C5;
    registers[XRES] = width;
    registers[YRES] = height;
    registers[BPP] = bpp;
    registers[ENABLE] = 0x41;
    registers[VIRT_WIDTH] = width;
    registers
}

#[test]
fn every_depth_has_its_format() {
    for (bpp, format, bytes) in [
        (15, FourCc::XRGB1555, 2),
        (16, FourCc::RGB565, 2),
        (24, FourCc::RGB888, 3),
        (32, FourCc::XRGB8888, 4),
    ] {
        let layout = decode(&registers(1024, 768, bpp), MEMORY).unwrap().unwrap();
        let surface = layout.surface();
        assert_eq!((surface.format, surface.stride), (format, 1024 * bytes));
        assert_eq!(
            (surface.width, surface.height, surface.offset),
            (1024, 768, 0)
        );
    }
    let refused = |bpp| decode(&registers(1024, 768, bpp), MEMORY).unwrap_err();
    let format = FourCc::C8;
    assert_eq!(refused(8), BochsError::Refused(Refusal::Palette { format }));
    assert_eq!(refused(4), BochsError::Depth { bpp: 4 });
    assert_eq!(refused(0), BochsError::Depth { bpp: 0 });
}

#[test]
fn a_line_is_as_wide_as_it_is_said_and_never_narrower_than_the_picture() {
    let mut wide = registers(1024, 768, 32);
    wide[VIRT_WIDTH] = 2048;
    assert_eq!(
        decode(&wide, MEMORY).unwrap().unwrap().surface().stride,
        8192
    );
    wide[VIRT_WIDTH] = 3;
    assert_eq!(
        decode(&wide, MEMORY).unwrap().unwrap().surface().stride,
        4096
    );
}

/// mbochs refuses to export a picture that does not begin at a page.
#[test]
fn a_picture_may_begin_anywhere() {
    let mut moved = registers(1000, 700, 32);
    moved[VIRT_WIDTH] = 1024;
    (moved[X_OFFSET], moved[Y_OFFSET]) = (3, 5);
    let layout = decode(&moved, MEMORY).unwrap().unwrap();
    assert_eq!(layout.surface().offset, 5 * 4096 + 12);
    // It ends where the next one begins: an offset may go over the end of a line.
    moved[X_OFFSET] = 1020;
    assert!(decode(&moved, MEMORY).is_ok());
    moved[Y_OFFSET] = 0xFFFF;
    assert!(matches!(
        decode(&moved, MEMORY),
        Err(BochsError::Refused(Refusal::Outside { .. }))
    ));
}

#[test]
fn nothing_is_shown_that_is_off_or_no_display() {
    let mut off = registers(0, 0, 0);
    off[ENABLE] = 0x40;
    assert_eq!(decode(&off, MEMORY), Ok(None));
    off[ID] = 0;
    assert_eq!(decode(&off, MEMORY), Err(BochsError::Id { id: 0 }));
    let empty = registers(0, 768, 32);
    assert_eq!(
        decode(&empty, MEMORY),
        Err(BochsError::Refused(Refusal::Size {
            width: 0,
            height: 768
        }))
    );
}

/// As bochs-drm of Linux 6.1 does it: what is between is no picture.
#[test]
fn a_mode_that_is_set_register_by_register_is_shown_once() {
    let writes = [
        (ENABLE, 0),
        (BPP, 32),
        (XRES, 1024),
        (YRES, 768),
        (BANK, 0),
        (VIRT_WIDTH, 1024),
        (VIRT_HEIGHT, 0x1000),
        (X_OFFSET, 0),
        (Y_OFFSET, 0),
        (ENABLE, 0x41),
        (VIRT_WIDTH, 1024),
        (X_OFFSET, 0),
        (Y_OFFSET, 768),
    ];
    let mut registers = registers(640, 480, 32);
    let mut shown = Vec::new();
    for (index, value) in writes {
        registers[index] = value;
        if shows(index) {
            let layout = decode(&registers, MEMORY).unwrap();
            let seen = layout.map(|layout| {
                let surface = *layout.surface();
                (surface.width, surface.height, surface.offset)
            });
            if shown.last() != Some(&seen) {
                shown.push(seen);
            }
        }
    }
    assert_eq!(
        shown,
        [None, Some((1024, 768, 0)), Some((1024, 768, 768 * 4096))]
    );
}

#[test]
fn any_registers_are_a_picture_or_an_error() {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [_, _, low, high] = state.to_le_bytes();
        u16::from_le_bytes([low, high])
    };
    for _ in 0..20_000 {
        let mut registers = [0; REGISTERS];
        registers.fill_with(&mut next);
        registers[ID] = 0xB0C0 + registers[ID] % 8;
        registers[BPP] = [8, 15, 16, 24, 32, 7][usize::from(registers[BPP] % 6)];
        if let Ok(Some(layout)) = decode(&registers, MEMORY) {
            assert!(layout.end() <= MEMORY);
        }
    }
}
