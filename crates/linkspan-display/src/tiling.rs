//! Intel's tiles of 4 KiB: where the bytes of a picture lie that is not stored line by line.
//!
//! Tiles follow each other row by row. An X tile is 512 bytes wide and 8 lines high, line by
//! line; a Y tile is 128 bytes wide and 32 lines high, in columns of 16 bytes. From gen8 on
//! no address bit is swizzled.

use core::fmt;

use linkspan_mem::PastCaches;

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
pub(crate) const COLUMN: usize = 16;

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

/// Makes lines of tiles that are side by side, from byte `at` of `lines` on and `pitch` bytes
/// from each other. Nothing else is stored there.
///
/// ```
/// use linkspan_display::{TILE_BYTES, Tiling, untile};
///
/// // Two tiles side by side.
/// let tiles = [[1; TILE_BYTES], [2; TILE_BYTES]];
/// let mut lines = vec![0; 1024 * 8];
/// linkspan_mem::past_caches(&mut lines, |lines| {
///     untile(Tiling::X, &tiles[0], lines, 0, 1024);
///     untile(Tiling::X, &tiles[1], lines, 512, 1024);
/// });
/// assert_eq!((lines[1024 + 511], lines[1024 + 512]), (1, 2));
/// ```
///
/// # Panics
/// If they do not fit there, or nothing is tiled. What is short of a tile is left out.
#[inline]
pub fn untile(tiling: Tiling, tiles: &[u8], lines: &mut PastCaches<'_>, at: usize, pitch: usize) {
    const WIDTH: usize = Tiling::X.width_bytes();
    let (tiles, _) = tiles.as_chunks::<TILE_BYTES>();
    match tiling {
        Tiling::Linear => panic!("lines are no tiles"),
        Tiling::X => {
            for (number, tile) in tiles.iter().enumerate() {
                for (y, line) in tile.as_chunks::<WIDTH>().0.iter().enumerate() {
                    lines.copy(at + y * pitch + number * WIDTH, line);
                }
            }
        }
        Tiling::Y => {
            // Line by line over all of them: memory likes long runs.
            for y in 0..HEIGHT_Y {
                for (number, tile) in tiles.iter().enumerate() {
                    let at = at + y * pitch + number * WIDTH_Y;
                    lines.copy(at, line_y(tile, y).as_flattened());
                }
            }
        }
    }
}

pub(crate) const HEIGHT_Y: usize = Tiling::Y.height();
pub(crate) const WIDTH_Y: usize = Tiling::Y.width_bytes();
pub(crate) const COLUMNS: usize = WIDTH_Y / COLUMN;

/// Line `y` of a Y tile, piece by piece.
#[inline(always)]
pub(crate) fn line_y(tile: &[u8; TILE_BYTES], y: usize) -> [[u8; COLUMN]; COLUMNS] {
    core::array::from_fn(pieces_y(tile, y))
}

/// The pieces of line `y` of a Y tile.
#[inline(always)]
pub(crate) fn pieces_y(tile: &[u8; TILE_BYTES], y: usize) -> impl Fn(usize) -> [u8; COLUMN] {
    // In columns, so that the places of all pieces are one address and constants.
    let (pieces, _) = tile.as_chunks::<COLUMN>();
    let (columns, _) = pieces.as_chunks::<HEIGHT_Y>();
    let columns: &[_; COLUMNS] = columns.first_chunk().expect("a tile is these columns");
    move |column| columns[column % COLUMNS][y % HEIGHT_Y]
}
