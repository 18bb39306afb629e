//! Intel's tiles of 4 KiB: where the bytes of a picture lie that is not stored line by line.
//!
//! Tiles follow each other row by row. An X tile is 512 bytes wide and 8 lines high, line by
//! line; a Y tile is 128 bytes wide and 32 lines high, in columns of 16 bytes. From gen8 on
//! no address bit is swizzled.

use core::fmt;

use crate::fourcc::Modifier;

/// Bytes of a tile of any kind.
pub const TILE_BYTES: usize = 4096;

/// How lines lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tiling {
    /// Line by line.
    Linear,
    /// X tiles.
    X,
    /// Y tiles.
    Y,
}

/// Bytes of a column of a Y tile.
const COLUMN: usize = 16;

impl Tiling {
    /// What this modifier says, if it is one that is read.
    #[must_use]
    pub fn from_modifier(modifier: Modifier) -> Option<Self> {
        match modifier {
            Modifier::LINEAR => Some(Self::Linear),
            Modifier::X_TILED => Some(Self::X),
            Modifier::Y_TILED => Some(Self::Y),
            _ => None,
        }
    }

    /// The modifier that says this.
    #[must_use]
    pub const fn modifier(self) -> Modifier {
        match self {
            Self::Linear => Modifier::LINEAR,
            Self::X => Modifier::X_TILED,
            Self::Y => Modifier::Y_TILED,
        }
    }

    /// Bytes of a line of a tile; 1 where there are none.
    #[must_use]
    pub const fn width_bytes(self) -> usize {
        match self {
            Self::Linear => 1,
            Self::X => 512,
            Self::Y => 128,
        }
    }

    /// Lines of a tile; 1 where there are none.
    #[must_use]
    pub const fn height(self) -> usize {
        match self {
            Self::Linear => 1,
            Self::X => 8,
            Self::Y => 32,
        }
    }
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.modifier().name())
    }
}

/// Makes lines of a tile, `pitch` bytes from each other in `lines`.
///
/// # Panics
/// If they do not fit there, or nothing is tiled.
pub fn untile(tiling: Tiling, tile: &[u8; TILE_BYTES], lines: &mut [u8], pitch: usize) {
    const WIDTH: usize = Tiling::X.width_bytes();
    match tiling {
        Tiling::Linear => panic!("lines are no tiles"),
        Tiling::X => {
            for (y, line) in tile.as_chunks::<WIDTH>().0.iter().enumerate() {
                lines[y * pitch..][..WIDTH].copy_from_slice(line);
            }
        }
        Tiling::Y => untile_y(tile, lines, pitch),
    }
}

#[inline(always)]
pub(crate) fn untile_y(tile: &[u8; TILE_BYTES], lines: &mut [u8], pitch: usize) {
    const HEIGHT: usize = Tiling::Y.height();
    const COLUMNS: usize = Tiling::Y.width_bytes() / COLUMN;
    let (pieces, _) = tile.as_chunks::<COLUMN>();
    let (columns, _) = pieces.as_chunks::<HEIGHT>();
    let Some(columns) = columns.first_chunk::<COLUMNS>() else {
        return;
    };
    for y in 0..HEIGHT {
        let line = &mut lines[y * pitch..][..COLUMNS * COLUMN];
        for (piece, column) in line.as_chunks_mut::<COLUMN>().0.iter_mut().zip(columns) {
            *piece = column[y];
        }
    }
}
