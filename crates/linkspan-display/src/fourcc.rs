//! Names of pixel formats and of memory layouts, as the kernel's drm_fourcc.h spells them.

use core::fmt;

/// A pixel format: four characters, the first in the lowest byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FourCc(pub u32);

macro_rules! fourccs {
    ($($name:ident = $code:literal,)*) => {
        impl FourCc {
            $(
                #[doc = concat!("DRM_FORMAT_", stringify!($name), ".")]
                pub const $name: Self = Self::new($code);
            )*
        }
    };
}

fourccs! {
    XRGB8888 = b"XR24",
    ARGB8888 = b"AR24",
    XBGR8888 = b"XB24",
    ABGR8888 = b"AB24",
    RGBX8888 = b"RX24",
    RGBA8888 = b"RA24",
    BGRX8888 = b"BX24",
    BGRA8888 = b"BA24",
    XRGB2101010 = b"XR30",
    ARGB2101010 = b"AR30",
    XBGR2101010 = b"XB30",
    ABGR2101010 = b"AB30",
    RGB888 = b"RG24",
    BGR888 = b"BG24",
    RGB565 = b"RG16",
    BGR565 = b"BG16",
    XRGB1555 = b"XR15",
    ARGB1555 = b"AR15",
    R8 = b"R8  ",
    C8 = b"C8  ",
    YUYV = b"YUYV",
    YVYU = b"YVYU",
    UYVY = b"UYVY",
    VYUY = b"VYUY",
    NV12 = b"NV12",
}

impl FourCc {
    /// The format of these four characters.
    #[must_use]
    pub const fn new(code: &[u8; 4]) -> Self {
        Self(u32::from_le_bytes(*code))
    }
}

impl fmt::Display for FourCc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0.to_le_bytes();
        if code.iter().all(|byte| (0x20..0x7F).contains(byte)) {
            // Short names end with spaces.
            let len = code
                .iter()
                .rposition(|byte| *byte != b' ')
                .map_or(0, |at| at + 1);
            for byte in &code[..len] {
                fmt::Write::write_char(f, char::from(*byte))?;
            }
            return Ok(());
        }
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Debug for FourCc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a picture lies in its memory: a vendor in the highest byte, and a number of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Modifier(pub u64);

/// The number of Intel's modifiers.
const INTEL: u64 = 1 << 56;

impl Modifier {
    /// Line by line.
    pub const LINEAR: Self = Self(0);
    /// Nobody knows.
    pub const INVALID: Self = Self(0x00FF_FFFF_FFFF_FFFF);
    /// X tiles.
    pub const X_TILED: Self = Self(INTEL | 1);
    /// Y tiles.
    pub const Y_TILED: Self = Self(INTEL | 2);
    /// Yf tiles.
    pub const YF_TILED: Self = Self(INTEL | 3);
    /// Y tiles with compression.
    pub const Y_TILED_CCS: Self = Self(INTEL | 4);
    /// Yf tiles with compression.
    pub const YF_TILED_CCS: Self = Self(INTEL | 5);

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        /// Intel's, by number.
        const OF_INTEL: [&str; 10] = [
            "Intel 0",
            "Intel X",
            "Intel Y",
            "Intel Yf",
            "Intel Y with compression",
            "Intel Yf with compression",
            "Intel gen12 Y with render compression",
            "Intel gen12 Y with media compression",
            "Intel gen12 Y with clear colour",
            "Intel 4",
        ];
        if self == Self::LINEAR {
            return "linear";
        }
        if self == Self::INVALID {
            return "unknown";
        }
        match self.0 >> 56 {
            1 => usize::try_from(self.0 ^ INTEL)
                .ok()
                .and_then(|number| OF_INTEL.get(number).copied())
                .unwrap_or("Intel, newer"),
            0 => "of no vendor",
            2 => "AMD",
            3 => "NVIDIA",
            4 => "Samsung",
            5 => "Qualcomm",
            6 => "Vivante",
            7 => "Broadcom",
            8 => "ARM",
            9 => "Allwinner",
            10 => "Amlogic",
            _ => "of another vendor",
        }
    }
}

impl fmt::Display for Modifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.name(), self.0)
    }
}

impl fmt::Debug for Modifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
