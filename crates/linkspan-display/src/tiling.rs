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

/// Makes lines of tiles that lie side by side: `tiles` are whole tiles of one row, and a
/// line of `lines` is as long as all of them are wide.
///
/// # Panics
/// If the two are of different sizes.
pub fn untile(tiling: Tiling, tiles: &[u8], lines: &mut [u8]) {
    assert_eq!(tiles.len(), lines.len(), "tiles and lines hold the same");
    match tiling {
        Tiling::Linear => lines.copy_from_slice(tiles),
        Tiling::X => from_x(tiles, lines),
        Tiling::Y => from_y(tiles, lines),
    }
}

fn from_x(tiles: &[u8], lines: &mut [u8]) {
    const WIDTH: usize = Tiling::X.width_bytes();
    let pitch = tiles.len() / Tiling::X.height();
    let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
    for (number, tile) in tiles.iter().enumerate() {
        let (parts, _) = tile.as_chunks::<WIDTH>();
        for (part, line) in parts.iter().zip(lines.chunks_exact_mut(pitch)) {
            line[number * WIDTH..][..WIDTH].copy_from_slice(part);
        }
    }
}

fn from_y(tiles: &[u8], lines: &mut [u8]) {
    const HEIGHT: usize = Tiling::Y.height();
    const COLUMNS: usize = Tiling::Y.width_bytes() / COLUMN;
    let pitch = tiles.len() / HEIGHT;
    let (columns, _) = tiles.as_chunks::<COLUMN>();
    let (columns, _) = columns.as_chunks::<HEIGHT>();
    let (tiles, _) = columns.as_chunks::<COLUMNS>();
    for (y, line) in lines.chunks_exact_mut(pitch.max(1)).enumerate().take(HEIGHT) {
        let (parts, _) = line.as_chunks_mut::<COLUMN>();
        let (parts, _) = parts.as_chunks_mut::<COLUMNS>();
        for (part, tile) in parts.iter_mut().zip(tiles) {
            for (bytes, column) in part.iter_mut().zip(tile) {
                *bytes = column[y];
            }
        }
    }
}
