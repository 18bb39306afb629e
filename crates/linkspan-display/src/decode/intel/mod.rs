//! Planes of Intel's gen8 (Broadwell) and gen9 (Skylake to Comet Lake) display engines,
//! from their registers.
//!
//! Every plane of every enabled pipe is listed: those that are off, those that are shown,
//! and those that are refused, with what was met.

use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::cursor::Cursor;
use crate::fourcc::{FourCc, Modifier};
use crate::layout::{Layout, Refusal, Surface};
use crate::plane::{HotSpot, Kind, Position};

mod gtt;
mod opregion;
mod registers;

pub use gtt::{ENTRIES_OFFSET, GttError, PAGE, PAGES_MAX, Piece, address_of, pages_of, pieces};
pub use opregion::{OPREGION_SUBTYPE, OPREGION_TYPE, OpRegion, OpRegionError, opregion};
use registers as reg;

/// Bytes of registers that are read: offsets are below this.
pub const REGISTERS_BYTES: u32 = 0x8_0000;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Broadwell.
    Gen8,
    /// Skylake, Kaby Lake, Coffee Lake, Comet Lake.
    Gen9,
}

/// What drives one screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pipe {
    /// The first.
    A,
    /// The second.
    B,
    /// The third.
    C,
}

impl Pipe {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    const fn offset(self) -> u32 {
        match self {
            Self::A => 0,
            Self::B => 0x1000,
            Self::C => 0x2000,
        }
    }
}

impl fmt::Display for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a plane that is on is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IntelError {
    /// Pixels that have no name here.
    #[error("pixel format {number:#x} is not supported")]
    Format {
        /// The number in the register.
        number: u32,
    },
    /// Tiles that have no name here.
    #[error("tiling {number} is not supported")]
    Tiling {
        /// The number in the register.
        number: u32,
    },
    /// The picture is turned.
    #[error("rotation by {degrees} degrees is not supported")]
    Rotated {
        /// By how much.
        degrees: u32,
    },
    /// The picture is mirrored.
    #[error("a mirrored picture is not supported")]
    Mirrored,
    /// The picture is made larger or smaller.
    #[error("scaling is not supported")]
    Scaled,
    /// The memory is compressed.
    #[error("compressed memory is not supported")]
    Compressed,
    /// The memory is encrypted.
    #[error("protected memory is not supported")]
    Protected,
    /// Where a colour is, other planes are seen, or this one alone is.
    #[error("a colour key is not supported")]
    Keyed,
    /// The engine multiplies colours by their opacity.
    #[error("opacity of mode {mode} is not supported")]
    Opacity {
        /// The number in the register.
        mode: u32,
    },
    /// A pointer of another kind than ARGB: inverting, or of few colours.
    #[error("a pointer of mode {mode:#04x} is not supported")]
    Pointer {
        /// The number in the register.
        mode: u32,
    },
    /// What the registers describe is no picture.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A plane that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// How it lies in its memory.
    pub layout: Layout,
    /// Where that begins: a graphics address, of a page.
    pub address: u32,
    /// Where it is on the screen of its pipe.
    pub position: Position,
    /// Of a pointer, where it points, if the guest's driver says.
    pub hot_spot: Option<HotSpot>,
}

/// One plane of an enabled pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// On which screen.
    pub pipe: Pipe,
    /// Which layer.
    pub kind: Kind,
    /// Nothing if it is off.
    pub shown: Result<Option<Shown>, IntelError>,
}

/// All planes of all enabled pipes. `read` gives the register at an offset below
/// [`REGISTERS_BYTES`]; each is read once.
pub fn planes(generation: Generation, read: impl FnMut(u32) -> u32) -> Vec<Found> {
    let mut engine = Engine {
        generation,
        read,
        hot: None,
    };
    let embedded = engine.embedded();
    let mut found = Vec::new();
    for pipe in Pipe::ALL {
        let own = engine.at(reg::PIPECONF, pipe) & reg::ENABLE != 0;
        if own || embedded == Some(pipe) {
            engine.pipe(pipe, &mut found);
        }
    }
    found
}

struct Engine<R> {
    generation: Generation,
    read: R,
    /// What PVINFO says, which is the same for every pipe.
    hot: Option<(u32, u32)>,
}

/// A sprite's number on Broadwell, where there is one on each pipe.
const ONLY_SPRITE: u8 = 1;

impl<R: FnMut(u32) -> u32> Engine<R> {
    fn at(&mut self, offset: u32, pipe: Pipe) -> u32 {
        (self.read)(offset + pipe.offset())
    }

    /// The pipe that feeds an embedded panel, which has a transcoder of its own.
    fn embedded(&mut self) -> Option<Pipe> {
        if (self.read)(reg::PIPECONF_EDP) & reg::ENABLE == 0 {
            return None;
        }
        let control = (self.read)(reg::TRANS_DDI_FUNC_CTL_EDP);
        if control & reg::ENABLE == 0 {
            return None;
        }
        match control >> 12 & 7 {
            0 | 4 => Some(Pipe::A),
            5 => Some(Pipe::B),
            6 => Some(Pipe::C),
            _ => None,
        }
    }

    fn pipe(&mut self, pipe: Pipe, found: &mut Vec<Found>) {
        let mut add = |kind, shown| found.push(Found { pipe, kind, shown });
        match self.generation {
            Generation::Gen8 => {
                add(Kind::Primary, self.gen8_primary(pipe));
                add(Kind::Sprite(ONLY_SPRITE), self.gen8_sprite(pipe));
            }
            Generation::Gen9 => {
                let scaled = self.scaled_planes(pipe);
                for number in 1..=3u8 {
                    let kind = match number {
                        1 => Kind::Primary,
                        _ => Kind::Sprite(number - 1),
                    };
                    add(kind, self.gen9_plane(pipe, number, scaled));
                }
            }
        }
        add(Kind::Cursor, self.cursor(pipe));
    }

    fn gen8_primary(&mut self, pipe: Pipe) -> Result<Option<Shown>, IntelError> {
        let control = self.at(reg::DSPCNTR, pipe);
        if control & reg::ENABLE == 0 {
            return Ok(None);
        }
        let format = match control >> 26 & 15 {
            2 => FourCc::C8,
            5 => FourCc::RGB565,
            6 => FourCc::XRGB8888,
            8 => FourCc::XBGR2101010,
            10 => FourCc::XRGB2101010,
            14 => FourCc::XBGR8888,
            number => return Err(IntelError::Format { number }),
        };
        if control & reg::ROTATE_180 != 0 {
            return Err(IntelError::Rotated { degrees: 180 });
        }
        let source = self.at(reg::PIPESRC, pipe);
        let offset = self.at(reg::DSPOFFSET, pipe);
        let surface = Surface {
            format,
            modifier: tiled_x(control),
            width: reg::wide(source >> 16) + 1,
            height: reg::high(source) + 1,
            stride: self.at(reg::DSPSTRIDE, pipe) & reg::DSPSTRIDE_MASK,
            offset: 0,
            x: reg::wide(offset),
            y: reg::high(offset >> 16),
        };
        let address = self.at(reg::DSPSURF, pipe);
        shown(surface, address, Position::default(), None)
    }

    fn gen8_sprite(&mut self, pipe: Pipe) -> Result<Option<Shown>, IntelError> {
        let control = self.at(reg::SPRCTL, pipe);
        if control & reg::ENABLE == 0 {
            return Ok(None);
        }
        let swapped = control & reg::ORDER_RGBX != 0;
        let format = match (control >> 25 & 7, swapped) {
            (0, _) => reg::video_order(control),
            (1, false) => FourCc::XRGB2101010,
            (1, true) => FourCc::XBGR2101010,
            (2, false) => FourCc::XRGB8888,
            (2, true) => FourCc::XBGR8888,
            (number, _) => return Err(IntelError::Format { number }),
        };
        if control & reg::ROTATE_180 != 0 {
            return Err(IntelError::Rotated { degrees: 180 });
        }
        if control & reg::SPRITE_KEYS != 0 {
            return Err(IntelError::Keyed);
        }
        if self.at(reg::SPRSCALE, pipe) & reg::ENABLE != 0 {
            return Err(IntelError::Scaled);
        }
        let size = self.at(reg::SPRSIZE, pipe);
        let offset = self.at(reg::SPROFFSET, pipe);
        let surface = Surface {
            format,
            modifier: tiled_x(control),
            width: reg::wide(size) + 1,
            height: reg::high(size >> 16) + 1,
            stride: self.at(reg::SPRSTRIDE, pipe) & reg::DSPSTRIDE_MASK,
            offset: 0,
            x: reg::wide(offset),
            y: reg::high(offset >> 16),
        };
        let position = reg::place(self.at(reg::SPRPOS, pipe));
        let address = self.at(reg::SPRSURF, pipe);
        shown(surface, address, position, None)
    }

    /// A bit for each plane of the pipe that a scaler is bound to.
    fn scaled_planes(&mut self, pipe: Pipe) -> u32 {
        let base = reg::PS_CTRL + pipe.offset() / 0x1000 * reg::PS_PIPE;
        let scalers = if pipe == Pipe::C { 1 } else { 2 };
        let mut planes = 0;
        for scaler in 0..scalers {
            let control = (self.read)(base + scaler * reg::PS_SCALER);
            // Bound to 0 it scales what the pipe has made of all planes.
            if control & reg::ENABLE != 0 {
                planes |= 1 << (control >> 25 & 7);
            }
        }
        planes & !1
    }

    fn gen9_plane(
        &mut self,
        pipe: Pipe,
        number: u8,
        scaled: u32,
    ) -> Result<Option<Shown>, IntelError> {
        let base = u32::from(number - 1) * reg::PLANE;
        let control = self.at(reg::PLANE_CTL + base, pipe);
        if control & reg::ENABLE == 0 {
            return Ok(None);
        }
        let format = gen9_format(control)?;
        let modifier = match control >> 10 & 7 {
            0 => Modifier::LINEAR,
            1 => Modifier::X_TILED,
            4 => Modifier::Y_TILED,
            5 => Modifier::YF_TILED,
            number => return Err(IntelError::Tiling { number }),
        };
        if control & reg::DECOMPRESS != 0 {
            return Err(IntelError::Compressed);
        }
        match control & 3 {
            0 => {}
            quarters => {
                let degrees = quarters * 90;
                return Err(IntelError::Rotated { degrees });
            }
        }
        if control & reg::MIRROR != 0 {
            return Err(IntelError::Mirrored);
        }
        if control & reg::COLOUR_KEY != 0 {
            return Err(IntelError::Keyed);
        }
        if scaled >> number & 1 != 0 {
            return Err(IntelError::Scaled);
        }
        let address = self.at(reg::PLANE_SURF + base, pipe);
        if address & reg::DECRYPT != 0 {
            return Err(IntelError::Protected);
        }
        let size = self.at(reg::PLANE_SIZE + base, pipe);
        let offset = self.at(reg::PLANE_OFFSET + base, pipe);
        // In units of 64 bytes, or of a line of a tile.
        let unit = match modifier {
            Modifier::X_TILED => 512,
            Modifier::Y_TILED => 128,
            _ => 64,
        };
        let surface = Surface {
            format,
            modifier,
            width: reg::wide(size) + 1,
            height: reg::high(size >> 16) + 1,
            stride: (self.at(reg::PLANE_STRIDE + base, pipe) & reg::PLANE_STRIDE_MASK) * unit,
            offset: 0,
            x: reg::wide(offset),
            y: reg::high(offset >> 16),
        };
        let position = reg::place(self.at(reg::PLANE_POS + base, pipe));
        shown(surface, address, position, None)
    }

    fn cursor(&mut self, pipe: Pipe) -> Result<Option<Shown>, IntelError> {
        let control = self.at(reg::CURCNTR, pipe);
        let mode = control & reg::CURSOR_MODE;
        let width = match mode {
            mode if mode & reg::CURSOR_SIZE == 0 => return Ok(None),
            0x22 => 128,
            0x23 => 256,
            0x27 => 64,
            // Without 0x20 the highest byte chooses between drawing and inverting.
            mode => return Err(IntelError::Pointer { mode }),
        };
        if control & reg::ROTATE_180 != 0 {
            return Err(IntelError::Rotated { degrees: 180 });
        }
        let short = self.at(reg::CUR_FBC_CTL, pipe);
        let height = match short & reg::ENABLE {
            0 => width,
            _ => width.min((short & 0xFF) + 1),
        };
        let surface = Surface {
            format: FourCc::ARGB8888,
            modifier: Modifier::LINEAR,
            width,
            height,
            stride: width * 4,
            offset: 0,
            x: 0,
            y: 0,
        };
        const { assert!(Cursor::MAX >= 256, "every pointer fits") };
        let position = reg::signed_place(self.at(reg::CURPOS, pipe));
        let read = &mut self.read;
        let hot = self
            .hot
            .get_or_insert_with(|| (read(reg::CURSOR_X_HOT), read(reg::CURSOR_Y_HOT)));
        let (x, y) = *hot;
        let hot_spot = HotSpot::from_wire(x, y, width, height);
        let address = self.at(reg::CURBASE, pipe);
        shown(surface, address, position, hot_spot)
    }
}

/// The tiling that bit 10 of a register of gen8 says.
const fn tiled_x(control: u32) -> Modifier {
    match control & reg::TILED {
        0 => Modifier::LINEAR,
        _ => Modifier::X_TILED,
    }
}

fn gen9_format(control: u32) -> Result<FourCc, IntelError> {
    let swapped = control & reg::ORDER_RGBX != 0;
    let alpha = match control >> reg::ALPHA_SHIFT & 3 {
        reg::ALPHA_NONE => false,
        reg::ALPHA_MULTIPLIED => true,
        mode if control >> 24 & 15 == 4 => return Err(IntelError::Opacity { mode }),
        // There is none in other formats.
        _ => true,
    };
    Ok(match (control >> 24 & 15, swapped, alpha) {
        (0, ..) => reg::video_order(control),
        (1, ..) => FourCc::NV12,
        (2, false, _) => FourCc::XRGB2101010,
        (2, true, _) => FourCc::XBGR2101010,
        (4, false, false) => FourCc::XRGB8888,
        (4, false, true) => FourCc::ARGB8888,
        (4, true, false) => FourCc::XBGR8888,
        (4, true, true) => FourCc::ABGR8888,
        (12, ..) => FourCc::C8,
        (14, ..) => FourCc::RGB565,
        (number, ..) => return Err(IntelError::Format { number }),
    })
}

/// Checks a picture; its memory is looked up later, so only its own numbers count here.
fn shown(
    surface: Surface,
    address: u32,
    position: Position,
    hot_spot: Option<HotSpot>,
) -> Result<Option<Shown>, IntelError> {
    Ok(Some(Shown {
        layout: Layout::new(&surface, u64::MAX)?,
        address: address & reg::ADDRESS,
        position,
        hot_spot,
    }))
}
