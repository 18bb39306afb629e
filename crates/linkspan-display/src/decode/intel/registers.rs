//! Registers of the display engine, for pipe A, and their fields. Names are i915's.

use crate::fourcc::FourCc;
use crate::plane::Position;

/// Bit 31: what the register controls is on.
pub(super) const ENABLE: u32 = 1 << 31;

pub(super) const PIPESRC: u32 = 0x6_001C;
pub(super) const PIPECONF: u32 = 0x7_0008;
pub(super) const PIPECONF_EDP: u32 = 0x7_F008;
pub(super) const TRANS_DDI_FUNC_CTL_EDP: u32 = 0x6_F400;

pub(super) const DSPCNTR: u32 = 0x7_0180;
pub(super) const DSPSTRIDE: u32 = 0x7_0188;
pub(super) const DSPSURF: u32 = 0x7_019C;
pub(super) const DSPOFFSET: u32 = 0x7_01A4;
/// The stride of gen8 is in bytes, and a multiple of 64.
pub(super) const DSPSTRIDE_MASK: u32 = 0xFFC0;

pub(super) const SPRCTL: u32 = 0x7_0280;
pub(super) const SPRSTRIDE: u32 = 0x7_0288;
pub(super) const SPRPOS: u32 = 0x7_028C;
pub(super) const SPRSIZE: u32 = 0x7_0290;
pub(super) const SPRSURF: u32 = 0x7_029C;
pub(super) const SPROFFSET: u32 = 0x7_02A4;
pub(super) const SPRSCALE: u32 = 0x7_0304;

/// From a plane of gen9 to the next one of its pipe.
pub(super) const PLANE: u32 = 0x100;
pub(super) const PLANE_CTL: u32 = 0x7_0180;
pub(super) const PLANE_STRIDE: u32 = 0x7_0188;
pub(super) const PLANE_POS: u32 = 0x7_018C;
pub(super) const PLANE_SIZE: u32 = 0x7_0190;
pub(super) const PLANE_SURF: u32 = 0x7_019C;
pub(super) const PLANE_OFFSET: u32 = 0x7_01A4;
pub(super) const PLANE_STRIDE_MASK: u32 = 0x3FF;

/// The first scaler of pipe A; others of a pipe, and of other pipes.
pub(super) const PS_CTRL: u32 = 0x6_8180;
pub(super) const PS_SCALER: u32 = 0x100;
pub(super) const PS_PIPE: u32 = 0x800;

pub(super) const CURCNTR: u32 = 0x7_0080;
pub(super) const CURBASE: u32 = 0x7_0084;
pub(super) const CURPOS: u32 = 0x7_0088;
/// With bit 31, how many lines of a pointer there are, less one.
pub(super) const CUR_FBC_CTL: u32 = 0x7_00A0;
/// Bits 5 and 2:0 are the mode, 2:0 its size.
pub(super) const CURSOR_MODE: u32 = 0x27;
pub(super) const CURSOR_SIZE: u32 = 0x07;

/// Where a pointer points, as a guest's driver tells GVT-g (PVINFO).
pub(super) const CURSOR_X_HOT: u32 = 0x7_8830;
pub(super) const CURSOR_Y_HOT: u32 = 0x7_8834;

/// Of DSPCNTR and SPRCTL: X tiles.
pub(super) const TILED: u32 = 1 << 10;
/// Of DSPCNTR, SPRCTL and CURCNTR: upside down.
pub(super) const ROTATE_180: u32 = 1 << 15;
/// Of SPRCTL and PLANE_CTL: red is in the lowest byte.
pub(super) const ORDER_RGBX: u32 = 1 << 20;
/// Of PLANE_CTL: a colour that is not drawn, or drawn over.
pub(super) const COLOUR_KEY: u32 = 3 << 21;
/// The same of SPRCTL, which has both apart.
pub(super) const SPRITE_KEYS: u32 = 1 << 22 | 1 << 2;
/// Of PLANE_CTL, with [`ALPHA_SHIFT`]: how opacity counts.
pub(super) const ALPHA_SHIFT: u32 = 4;
pub(super) const ALPHA_NONE: u32 = 0;
/// Colours are multiplied by it already.
pub(super) const ALPHA_MULTIPLIED: u32 = 2;
/// Of PLANE_CTL: render compression.
pub(super) const DECOMPRESS: u32 = 1 << 15;
/// Of PLANE_CTL: left is right.
pub(super) const MIRROR: u32 = 1 << 8;
/// Of PLANE_SURF: protected content.
pub(super) const DECRYPT: u32 = 1 << 2;
/// Of all that have one: the address of a page.
pub(super) const ADDRESS: u32 = !0xFFF;

/// 13 bits across.
pub(super) const fn wide(value: u32) -> u32 {
    value & 0x1FFF
}

/// 12 bits down.
pub(super) const fn high(value: u32) -> u32 {
    value & 0xFFF
}

/// A place without signs.
pub(super) fn place(value: u32) -> Position {
    Position {
        x: wide(value).cast_signed(),
        y: wide(value >> 16).cast_signed(),
    }
}

/// A pointer's place: a sign and 15 bits for each side.
pub(super) fn signed_place(value: u32) -> Position {
    let side = |half: u32| {
        let magnitude = (half & 0x7FFF).cast_signed();
        if half & 0x8000 == 0 {
            magnitude
        } else {
            -magnitude
        }
    };
    Position {
        x: side(value),
        y: side(value >> 16),
    }
}

/// The order of YUV 4:2:2, in bits 17:16.
pub(super) const fn video_order(control: u32) -> FourCc {
    match control >> 16 & 3 {
        0 => FourCc::YUYV,
        1 => FourCc::UYVY,
        2 => FourCc::YVYU,
        _ => FourCc::VYUY,
    }
}
