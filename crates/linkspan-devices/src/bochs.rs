//! The registers of a Bochs display (VBE DISPI), as QEMU's standard VGA has them in its
//! second memory region: a screen's EDID, the few of a VGA that drivers touch, and the
//! interface itself. What they show is for whoever decodes them.

use alloc::vec::Vec;

/// Bytes of registers.
pub const BYTES: u64 = 4096;
/// The most bytes of an EDID.
pub const EDID_MAX: usize = 0x400;

const VGA: u64 = 0x400;
const VGA_END: u64 = 0x420;
const DISPI: u64 = 0x500;
/// Registers of 16 bits.
pub const REGISTERS: usize = 11;
const DISPI_END: u64 = DISPI + 2 * REGISTERS as u64;
/// QEMU's extension: its length, and the order of a pixel's bytes.
const EXTENSION: u64 = 0x600;
const EXTENSION_END: u64 = 0x608;
const LITTLE_ENDIAN: u32 = 0x1E1E_1E1E;

/// Port 0x3C0: the index of the attribute controller.
const ATTRIBUTE: u64 = VGA;
/// Port 0x3DA: reading it makes the next write to the former an index.
const STATUS: u64 = VGA + 0x1A;
/// Of that index: pixels are shown.
const SHOWN: u8 = 0x20;

const ID: usize = 0;
const XRES: usize = 1;
const YRES: usize = 2;
const BPP: usize = 3;
const ENABLE: usize = 4;
const VIRT_WIDTH: usize = 6;
const X_OFFSET: usize = 8;
const Y_OFFSET: usize = 9;
const MEMORY: usize = 10;

/// The newest interface.
const ID5: u16 = 0xB0C5;
const ENABLED: u16 = 1 << 0;
/// Reads of the mode give the highest one.
const GET_CAPS: u16 = 1 << 1;
/// What is in memory stays.
const NO_CLEAR: u16 = 1 << 7;
/// The highest mode: across, lines, bits of a pixel.
const CAPS: [u16; 3] = [16000, 12000, 32];
/// The memory register counts in these.
const UNIT: u64 = 64 << 10;

/// What a write leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Another picture may be shown.
    pub shows: bool,
    /// The picture's memory is to be cleared.
    pub clears: bool,
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Bochs {
    registers: [u16; REGISTERS],
    memory: u16,
    /// The next write to the attribute controller is data.
    attribute_data: bool,
    shown: bool,
    edid: Vec<u8>,
    edid_visible: bool,
}

impl Bochs {
    /// Registers of a device with so many bytes of video memory.
    #[must_use]
    pub fn new(memory: u64) -> Self {
        let mut bochs = Self {
            registers: [0; REGISTERS],
            memory: u16::try_from(memory / UNIT).unwrap_or(u16::MAX),
            attribute_data: false,
            shown: false,
            edid: Vec::new(),
            edid_visible: true,
        };
        bochs.reset();
        bochs
    }

    /// All but the screen is as it was at first.
    pub fn reset(&mut self) {
        self.registers = [0; REGISTERS];
        self.registers[ID] = ID5;
        self.registers[MEMORY] = self.memory;
        self.attribute_data = false;
        self.shown = false;
    }

    /// What the screen says of itself, of which [`EDID_MAX`] bytes are seen.
    pub fn set_edid(&mut self, edid: &[u8]) {
        self.edid = edid[..edid.len().min(EDID_MAX)].to_vec();
    }

    /// Whether there is a screen.
    pub fn set_link(&mut self, up: bool) {
        self.edid_visible = up;
    }

    /// The registers of the interface.
    #[must_use]
    pub fn registers(&self) -> &[u16; REGISTERS] {
        &self.registers
    }

    /// Whether pixels are shown, whatever the interface says.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.shown
    }

    /// Reads; what is nothing reads as zero.
    pub fn read(&mut self, offset: u64, target: &mut [u8]) {
        for (at, byte) in (offset..BYTES).zip(target) {
            *byte = match at {
                0..VGA if self.edid_visible => {
                    let at = usize::try_from(at).unwrap_or(usize::MAX);
                    self.edid.get(at).copied().unwrap_or(0)
                }
                STATUS => {
                    self.attribute_data = false;
                    0
                }
                DISPI..DISPI_END => {
                    let (index, part) = register(at);
                    self.value(index).to_le_bytes()[part]
                }
                EXTENSION..EXTENSION_END => {
                    let words = [8, LITTLE_ENDIAN];
                    let at = usize::try_from(at - EXTENSION).unwrap_or(0);
                    words[at / 4].to_le_bytes()[at % 4]
                }
                _ => 0,
            };
        }
    }

    fn value(&self, index: usize) -> u16 {
        match index {
            XRES | YRES | BPP if self.registers[ENABLE] & GET_CAPS != 0 => CAPS[index - XRES],
            _ => self.registers[index],
        }
    }

    /// Writes. A register of the interface is written as a whole: a byte of one leaves
    /// the other as it is.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Written {
        let mut written = Written::default();
        let mut at = offset;
        let mut rest = bytes;
        while let [first, more @ ..] = rest {
            let mut taken = more;
            match at {
                ATTRIBUTE => {
                    if !self.attribute_data {
                        let shown = first & SHOWN != 0;
                        written.shows |= shown != self.shown;
                        self.shown = shown;
                    }
                    self.attribute_data = !self.attribute_data;
                }
                DISPI..DISPI_END => {
                    let (index, part) = register(at);
                    let mut value = self.registers[index].to_le_bytes();
                    value[part] = *first;
                    if let (0, [second, more @ ..]) = (part, more) {
                        value[1] = *second;
                        taken = more;
                    }
                    self.set(index, u16::from_le_bytes(value), &mut written);
                }
                VGA_END.. | 0..VGA_END => {}
            }
            let len = (rest.len() - taken.len()) as u64;
            let Some(next) = at.checked_add(len).filter(|next| *next < BYTES) else {
                break;
            };
            (at, rest) = (next, taken);
        }
        written
    }

    fn set(&mut self, index: usize, value: u16, written: &mut Written) {
        match index {
            // What it is does not change.
            ID | MEMORY => return,
            ENABLE => {
                if value & ENABLED != 0 && self.registers[ENABLE] & ENABLED == 0 {
                    for index in [VIRT_WIDTH, X_OFFSET, Y_OFFSET] {
                        self.registers[index] = 0;
                    }
                    written.clears |= value & NO_CLEAR == 0;
                }
                written.shows = true;
            }
            VIRT_WIDTH | X_OFFSET | Y_OFFSET => written.shows = true,
            _ => {}
        }
        self.registers[index] = value;
    }
}

/// The register at an offset, and which byte of it.
fn register(at: u64) -> (usize, usize) {
    let at = usize::try_from(at - DISPI).unwrap_or(0);
    (at / 2, at % 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(bochs: &mut Bochs, index: u64, value: u16) -> Written {
        bochs.write(DISPI + 2 * index, &value.to_le_bytes())
    }

    fn get(bochs: &mut Bochs, index: u64) -> u16 {
        let mut bytes = [0; 2];
        bochs.read(DISPI + 2 * index, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// What bochs-drm of Linux 6.1 does at first.
    #[test]
    fn a_driver_sets_a_mode() {
        let mut bochs = Bochs::new(16 << 20);
        assert_eq!((get(&mut bochs, 0), get(&mut bochs, 10)), (ID5, 256));
        assert!(!bochs.is_shown());
        assert!(!bochs.write(0x402, &[1]).shows);
        assert!(bochs.write(0x400, &[0x20]).shows && bochs.is_shown());
        assert!(set(&mut bochs, 4, 0).shows);
        for (index, value) in [(3, 32), (1, 1024), (2, 768), (5, 0), (7, 0x1000)] {
            assert_eq!(set(&mut bochs, index, value), Written::default());
        }
        set(&mut bochs, 6, 2048);
        let written = set(&mut bochs, 4, 0x41);
        assert!(written.shows && written.clears);
        assert!(!set(&mut bochs, 4, 0x41).clears);
        assert!(set(&mut bochs, 6, 1024).shows);
        assert_eq!(bochs.registers()[1..5], [1024, 768, 32, 0x41]);
        // The ID and the memory stay.
        set(&mut bochs, 0, 0xB0C0);
        set(&mut bochs, 10, 1);
        assert_eq!((get(&mut bochs, 0), get(&mut bochs, 10)), (ID5, 256));
        set(&mut bochs, 4, 2);
        assert_eq!((get(&mut bochs, 1), get(&mut bochs, 3)), (16000, 32));
        let kept = set(&mut bochs, 4, 0xC1);
        assert!(kept.shows && !kept.clears);
        bochs.reset();
        assert_eq!(get(&mut bochs, 1), 0);
        assert!(!bochs.is_shown());
    }

    #[test]
    fn later_kernels_blank_by_the_attribute_controller() {
        let mut bochs = Bochs::new(1 << 20);
        bochs.write(0x400, &[0x20]);
        // The second write is data, until the status is read.
        assert!(!bochs.write(0x400, &[0]).shows && bochs.is_shown());
        bochs.write(0x400, &[0x20]);
        bochs.read(0x41A, &mut [0]);
        assert!(bochs.write(0x400, &[0]).shows && !bochs.is_shown());
    }

    #[test]
    fn a_screen_is_seen_while_it_is_there() {
        let mut bochs = Bochs::new(1 << 20);
        bochs.set_edid(&[7; 128]);
        let mut bytes = [1; 130];
        bochs.read(0, &mut bytes);
        assert_eq!((bytes[127], bytes[128]), (7, 0));
        bochs.set_link(false);
        bochs.read(0, &mut bytes);
        assert_eq!(bytes, [0; 130]);
        let mut extension = [0; 8];
        bochs.read(0x600, &mut extension);
        assert_eq!(extension, [8, 0, 0, 0, 0x1E, 0x1E, 0x1E, 0x1E]);
    }

    #[test]
    fn accesses_of_any_width_at_any_place_end() {
        let mut bochs = Bochs::new(1 << 20);
        for offset in (0x3F0..0x620).chain([0, 4090, 4095, 4096, u64::MAX - 1, u64::MAX]) {
            for len in [1, 2, 3, 4, 8, 64] {
                bochs.write(offset, &[0xFF; 64][..len]);
                bochs.read(offset, &mut [0; 64][..len]);
            }
        }
        let mut bytes = Bochs::new(1 << 20);
        bytes.write(DISPI + 2, &[0x34]);
        bytes.write(DISPI + 3, &[0x12, 0x78]);
        assert_eq!(bytes.registers()[1..3], [0x1234, 0x78]);
    }
}
