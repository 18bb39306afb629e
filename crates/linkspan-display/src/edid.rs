//! EDID 1.4: what a screen says of itself, made for one mode, and read.

use alloc::string::String;

use thiserror::Error;

/// Bytes of the base block, and of each extension.
pub const BLOCK: usize = 128;

const HEADER: [u8; 8] = [0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0];
/// Where the four descriptors of 18 bytes begin.
const DESCRIPTORS: usize = 54;
const DESCRIPTOR: usize = 18;
const NAME: u8 = 0xFC;
const RANGES: u8 = 0xFD;
const UNUSED: u8 = 0x10;

/// One mode with its detailed timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Pixels across.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Pixels a second, in units of 10 kHz.
    pub clock_10khz: u32,
    /// Pixels of a line that are not shown.
    pub horizontal_blank: u32,
    /// Pixels before its sync pulse.
    pub horizontal_front: u32,
    /// Pixels of its sync pulse.
    pub horizontal_sync: u32,
    /// Lines that are not shown.
    pub vertical_blank: u32,
    /// Lines before their sync pulse.
    pub vertical_front: u32,
    /// Lines of their sync pulse.
    pub vertical_sync: u32,
}

/// A mode that cannot be told, or an EDID that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EdidError {
    /// A detailed timing has 12 bits for each side.
    #[error("a mode of {width}x{height}; from 64x64 to 4095x4095 can be told")]
    Size {
        /// Pixels across.
        width: u32,
        /// Lines.
        height: u32,
    },
    /// A detailed timing has 16 bits for its clock, and ranges 8 for the rate.
    #[error("a mode of {width}x{height} at {rate} Hz has a pixel clock that cannot be told")]
    Clock {
        /// Pixels across.
        width: u32,
        /// Lines.
        height: u32,
        /// Pictures a second.
        rate: u32,
    },
    /// It ends early.
    #[error("an EDID of {got} bytes, less than {want}")]
    Short {
        /// Bytes there are.
        got: usize,
        /// Bytes it should have, extensions included.
        want: usize,
    },
    /// It does not begin as one does.
    #[error("no EDID: it begins otherwise")]
    Header,
    /// The bytes of a block do not add up.
    #[error("block {block} of an EDID has a wrong checksum: its bytes add up to {sum:#x}")]
    Checksum {
        /// Which, from 0.
        block: usize,
        /// What they add up to, modulo 256.
        sum: u8,
    },
    /// Its first descriptor is no timing, or one of size 0.
    #[error("an EDID without a preferred mode")]
    NoMode,
}

impl Mode {
    /// The timing that VESA's CVT gives such a mode with reduced blanking.
    ///
    /// # Errors
    /// It cannot be told in an EDID.
    pub fn reduced(width: u32, height: u32, rate: u32) -> Result<Self, EdidError> {
        const HORIZONTAL_BLANK: u32 = 160;
        const BLANK_NS: u64 = 460_000;
        const BACK_MIN: u64 = 6;
        const FRONT: u32 = 3;
        if !(64..=4095).contains(&width) || !(64..=4095).contains(&height) {
            return Err(EdidError::Size { width, height });
        }
        let no_clock = EdidError::Clock {
            width,
            height,
            rate,
        };
        if !(1..=240).contains(&rate) {
            return Err(no_clock);
        }
        let sync = match (width, height) {
            _ if height * 4 / 3 == width => 4,
            _ if height * 16 / 9 == width => 5,
            _ if height * 16 / 10 == width => 6,
            _ if height * 5 / 4 == width || height * 15 / 9 == width => 7,
            _ => 10,
        };
        // Time of a line, in picoseconds; then as many lines as the pause takes.
        let line_ps =
            (1_000_000_000 / u64::from(rate)).saturating_sub(BLANK_NS) * 1000 / u64::from(height);
        if line_ps == 0 {
            return Err(no_clock);
        }
        let pause = (BLANK_NS * 1000 / line_ps + 1).max(u64::from(FRONT + sync) + BACK_MIN);
        let total = u64::from(width + HORIZONTAL_BLANK) * (u64::from(height) + pause);
        // In steps of 250 kHz, downwards.
        let clock = total * u64::from(rate) / 250_000 * 25;
        let clock = u16::try_from(clock).ok().filter(|clock| *clock > 0);
        let clock = clock.ok_or(no_clock)?;
        let vertical_blank = u32::try_from(pause).ok().filter(|lines| *lines < 4096);
        Ok(Self {
            width,
            height,
            clock_10khz: clock.into(),
            horizontal_blank: HORIZONTAL_BLANK,
            horizontal_front: 48,
            horizontal_sync: 32,
            vertical_blank: vertical_blank.ok_or(no_clock)?,
            vertical_front: FRONT,
            vertical_sync: sync,
        })
    }

    /// Pictures a second, in thousandths; 0 if nothing is shown.
    #[must_use]
    pub fn rate_mhz(&self) -> u64 {
        let line = u64::from(self.width) + u64::from(self.horizontal_blank);
        let total = line * (u64::from(self.height) + u64::from(self.vertical_blank));
        (u64::from(self.clock_10khz) * 10_000_000)
            .checked_div(total)
            .unwrap_or(0)
    }

    fn descriptor(&self) -> [u8; DESCRIPTOR] {
        let low = |value: u32| value.to_le_bytes()[0];
        // The four highest of twelve bits of two numbers.
        let high = |a: u32, b: u32| low(a >> 8 << 4 | b >> 8);
        let clock = self.clock_10khz;
        // Millimetres at 96 dots an inch, as much as fits.
        let size = |pixels: u32| (pixels * 254 / 960).min(4095);
        let (across, down) = (size(self.width), size(self.height));
        [
            low(clock),
            low(clock >> 8),
            low(self.width),
            low(self.horizontal_blank),
            high(self.width, self.horizontal_blank),
            low(self.height),
            low(self.vertical_blank),
            high(self.height, self.vertical_blank),
            low(self.horizontal_front),
            low(self.horizontal_sync),
            low((self.vertical_front & 15) << 4 | self.vertical_sync & 15),
            low(self.horizontal_front >> 8 << 6
                | (self.horizontal_sync >> 8) << 4
                | (self.vertical_front >> 4) << 2
                | self.vertical_sync >> 4),
            low(across),
            low(down),
            high(across, down),
            0,
            0,
            // Digital, separate sync, horizontal positive.
            0x1A,
        ]
    }

    fn read(bytes: &[u8; DESCRIPTOR]) -> Option<Self> {
        let at = |index: usize| u32::from(bytes[index]);
        let mode = Self {
            clock_10khz: at(0) | at(1) << 8,
            width: at(2) | at(4) >> 4 << 8,
            horizontal_blank: at(3) | (at(4) & 15) << 8,
            height: at(5) | at(7) >> 4 << 8,
            vertical_blank: at(6) | (at(7) & 15) << 8,
            horizontal_front: at(8) | at(11) >> 6 << 8,
            horizontal_sync: at(9) | (at(11) >> 4 & 3) << 8,
            vertical_front: at(10) >> 4 | (at(11) >> 2 & 3) << 4,
            vertical_sync: at(10) & 15 | (at(11) & 3) << 4,
        };
        (mode.clock_10khz > 0 && mode.width > 0 && mode.height > 0).then_some(mode)
    }
}

/// The number that makes the bytes of a block add up to 0.
fn checksum(block: &[u8]) -> u8 {
    let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    sum.wrapping_neg()
}

/// The EDID of a screen that has `mode` and no other; `name` is cut at 13 characters.
#[must_use]
pub fn make(mode: &Mode, name: &str, serial: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&HEADER);
    // Three letters of five bits: LSP.
    let letters = b"LSP".map(|letter| u16::from(letter - b'A' + 1));
    let maker = letters[0] << 10 | letters[1] << 5 | letters[2];
    block[8..10].copy_from_slice(&maker.to_be_bytes());
    block[10] = 1;
    block[12..16].copy_from_slice(&serial.to_le_bytes());
    // Made in 2026, EDID 1.4.
    block[17] = 36;
    block[18] = 1;
    block[19] = 4;
    // Digital, 8 bits a colour.
    block[20] = 0xA0;
    let centimetres = |pixels: u32| (pixels * 254 / 9600).clamp(1, 255).to_le_bytes()[0];
    block[21] = centimetres(mode.width);
    block[22] = centimetres(mode.height);
    // Gamma 2.2.
    block[23] = 120;
    // sRGB; the first timing is the native one.
    block[24] = 0x06;
    // The colours of sRGB.
    block[25..35].copy_from_slice(&[0xEE, 0x91, 0xA3, 0x54, 0x4C, 0x99, 0x26, 0x0F, 0x50, 0x54]);
    // No standard timings.
    block[38..54].fill(1);
    let mut descriptors = block[DESCRIPTORS..].chunks_exact_mut(DESCRIPTOR);
    let mut put = |bytes: &[u8; DESCRIPTOR]| {
        if let Some(place) = descriptors.next() {
            place.copy_from_slice(bytes);
        }
    };
    put(&mode.descriptor());
    let mut text = [b' '; DESCRIPTOR];
    text[..5].copy_from_slice(&[0, 0, 0, NAME, 0]);
    let printable = name.bytes().filter(|byte| (0x20..0x7F).contains(byte));
    let mut len = 5;
    for byte in printable.take(DESCRIPTOR - 5) {
        text[len] = byte;
        len += 1;
    }
    if len < DESCRIPTOR {
        text[len] = b'\n';
    }
    put(&text);
    put(&ranges(mode));
    let mut unused = [0; DESCRIPTOR];
    unused[3] = UNUSED;
    put(&unused);
    block[BLOCK - 1] = checksum(&block);
    block
}

/// The limits of the screen, around its mode.
fn ranges(mode: &Mode) -> [u8; DESCRIPTOR] {
    let byte = |value: u64| u8::try_from(value.clamp(1, 255)).unwrap_or(255);
    let rate = mode.rate_mhz();
    let line_khz = u64::from(mode.clock_10khz) * 10 / u64::from(mode.width + mode.horizontal_blank);
    let mut bytes = [0; DESCRIPTOR];
    bytes[3] = RANGES;
    bytes[5] = byte(rate / 1000);
    bytes[6] = byte(rate.div_ceil(1000) + 1);
    bytes[7] = byte(line_khz.saturating_sub(1));
    bytes[8] = byte(line_khz + 1);
    bytes[9] = byte(u64::from(mode.clock_10khz).div_ceil(1000));
    // No more is said.
    bytes[10] = 1;
    bytes[11] = b'\n';
    bytes[12..].fill(b' ');
    bytes
}

/// What an EDID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edid {
    /// Its maker's three letters.
    pub maker: [char; 3],
    /// Its name, if it has one.
    pub name: String,
    /// The mode that it prefers.
    pub mode: Mode,
    /// Blocks that follow the first one.
    pub extensions: usize,
}

/// Reads an EDID. Each block has to add up; what extensions say is not read.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Edid, EdidError> {
    let short = |want| EdidError::Short {
        got: bytes.len(),
        want,
    };
    let block: &[u8; BLOCK] = bytes.first_chunk().ok_or(short(BLOCK))?;
    if block[..8] != HEADER {
        return Err(EdidError::Header);
    }
    let extensions = usize::from(block[126]);
    let want = (1 + extensions) * BLOCK;
    let all = bytes.get(..want).ok_or(short(want))?;
    for (number, block) in all.chunks_exact(BLOCK).enumerate() {
        let sum = checksum(block).wrapping_neg();
        if sum != 0 {
            return Err(EdidError::Checksum { block: number, sum });
        }
    }
    let (descriptors, _) = block[DESCRIPTORS..126].as_chunks::<DESCRIPTOR>();
    let mode = Mode::read(&descriptors[0]).ok_or(EdidError::NoMode)?;
    let named = descriptors
        .iter()
        .find(|text| text[..5] == [0, 0, 0, NAME, 0]);
    let name = named.map_or(&[][..], |text| &text[5..]);
    let name = name.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let maker = u16::from_be_bytes([block[8], block[9]]);
    let letter = |shift: u16| char::from(b'A' - 1 + (maker >> shift & 31).to_le_bytes()[0]);
    let printable = name.iter().filter(|byte| (0x20..0x7F).contains(*byte));
    let name: String = printable.map(|byte| char::from(*byte)).collect();
    Ok(Edid {
        maker: [letter(10), letter(5), letter(0)],
        name: name.trim_end().into(),
        mode,
        extensions,
    })
}
