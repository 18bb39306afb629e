//! The plane seam: what there is to know of a picture that a virtual GPU shows, whoever
//! makes it. Ids and the memory behind them are in [`Held`](crate::Held) for who looks and
//! in [`Exports`](crate::Exports) for who shows.

use alloc::string::String;
use core::fmt;

use crate::layout::Surface;

/// The most sprites of one screen.
pub const SPRITES_MAX: u8 = 2;

/// Which layer of a screen, from the lowest to the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The picture below all others (DRM_PLANE_TYPE_PRIMARY).
    Primary,
    /// One above it (DRM_PLANE_TYPE_OVERLAY), counted from 1 to [`SPRITES_MAX`].
    Sprite(u8),
    /// The pointer (DRM_PLANE_TYPE_CURSOR).
    Cursor,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Sprite(number) => write!(f, "sprite {number}"),
            Self::Cursor => f.write_str("cursor"),
        }
    }
}

/// Where the upper left pixel of a plane is on the screen, which may be outside of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Pixels from the left.
    pub x: i32,
    /// Pixels from the top.
    pub y: i32,
}

impl Position {
    /// What `x_pos` and `y_pos` of the kernel's structure mean: they are declared without a
    /// sign and have one.
    #[must_use]
    pub const fn from_wire(x: u32, y: u32) -> Self {
        Self {
            x: x.cast_signed(),
            y: y.cast_signed(),
        }
    }
}

/// The pixel of a pointer that points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HotSpot {
    /// Pixels from its left.
    pub x: u32,
    /// Pixels from its top.
    pub y: u32,
}

impl HotSpot {
    /// What `x_hot` and `y_hot` of the kernel's structure mean in a pointer of this size.
    /// Nothing is guessed: who does not know says 0xFFFFFFFF in either, and what is outside
    /// the pointer is not known either.
    #[must_use]
    pub const fn from_wire(x: u32, y: u32, width: u32, height: u32) -> Option<Self> {
        if x < width && y < height {
            return Some(Self { x, y });
        }
        None
    }
}

/// A picture that is shown: how it lies in its memory, and where it is on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Its layout.
    pub surface: Surface,
    /// Bytes of its memory, as its maker says.
    pub size: u64,
    /// Where it is.
    pub position: Position,
    /// Of a pointer, where it points, if that is known.
    pub hot_spot: Option<HotSpot>,
}

/// Why a plane is not shown, in words for people: short, and of letters that every terminal
/// and card has, whoever says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// Letters of the longest.
    pub const MAX: usize = 160;

    /// These words, as far as they fit; other letters become question marks.
    #[must_use]
    pub fn new(words: &str) -> Self {
        let plain = |letter: char| if is_plain(letter) { letter } else { '?' };
        Self(words.chars().take(Self::MAX).map(plain).collect())
    }

    /// What somebody else says, if it is such words.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let right = !bytes.is_empty() && bytes.len() <= Self::MAX;
        let right = right && bytes.iter().all(|byte| is_plain(char::from(*byte)));
        right.then(|| Self::new(core::str::from_utf8(bytes).unwrap_or_default()))
    }

    /// The words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn is_plain(letter: char) -> bool {
    matches!(letter, ' '..='~')
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A plane that is on and is not shown: it would be shown wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPlane {
    /// Of which screen.
    pub head: u8,
    /// Which layer.
    pub kind: Kind,
    /// Why.
    pub why: Reason,
}

/// Why every id of a source is void and every picture of it gone. A viewer is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The device was reset.
    Reset,
    /// The device was taken away, or its driver.
    Removed,
    /// The process that had it is gone.
    Ended,
    /// The guest has switched its screen off.
    Off,
    /// No guest uses the device: its virtual machine has not come, or has gone.
    Unused,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "the device was reset",
            Self::Removed => "the device was removed",
            Self::Ended => "the process that has the device has ended",
            Self::Off => "the guest has switched its screen off",
            Self::Unused => "no guest uses the device",
        })
    }
}
