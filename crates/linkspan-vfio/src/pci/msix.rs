//! The table of MSI-X vectors (PCI 3.0, 6.8.2). Most virtual machine monitors keep one of
//! their own and give an eventfd for each vector; who does not finds this one.

use alloc::vec;
use alloc::vec::Vec;

/// Bytes of a vector: address, data, control.
pub const ENTRY: usize = 16;
const CONTROL: usize = 12;
const MASKED: u8 = 1;

/// The vectors, and which of them wait.
#[derive(Clone, Debug)]
pub struct MsixTable {
    bytes: Vec<u8>,
    pending: Vec<u8>,
}

impl MsixTable {
    /// So many vectors, all of them held back.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        let count = usize::from(vectors);
        let mut table = Self {
            bytes: vec![0; count * ENTRY],
            // In words of 64 bits.
            pending: vec![0; count.div_ceil(64) * 8],
        };
        table.reset();
        table
    }

    /// All of them are held back, and none waits.
    pub fn reset(&mut self) {
        self.bytes.fill(0);
        self.pending.fill(0);
        for entry in self.bytes.chunks_exact_mut(ENTRY) {
            entry[CONTROL] = MASKED;
        }
    }

    /// Reads the table; what is outside reads as zero.
    pub fn read(&self, offset: u64, target: &mut [u8]) {
        read(&self.bytes, offset, target);
    }

    /// Writes the table; what is outside is lost, and so are the bits that mean nothing.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let places = self.bytes.get_mut(start..).unwrap_or_default();
        for ((at, place), byte) in places.iter_mut().enumerate().zip(bytes) {
            *place = match (start + at) % ENTRY {
                0 => byte & !0b11,
                CONTROL => byte & MASKED,
                13.. => 0,
                _ => *byte,
            };
        }
    }

    /// Reads the bits of those that wait; they cannot be written.
    pub fn read_pending(&self, offset: u64, target: &mut [u8]) {
        read(&self.pending, offset, target);
    }

    /// Whether a vector is held back; one that does not exist is.
    #[must_use]
    pub fn is_masked(&self, vector: u16) -> bool {
        let control = self.bytes.get(usize::from(vector) * ENTRY + CONTROL);
        control.is_none_or(|control| control & MASKED != 0)
    }

    /// A vector waits, or does not any more; says whether it did.
    pub fn set_pending(&mut self, vector: u16, waits: bool) -> bool {
        let (at, bit) = (usize::from(vector) / 8, 1 << (vector % 8));
        let Some(byte) = self.pending.get_mut(at) else {
            return false;
        };
        let before = *byte & bit != 0;
        *byte = *byte & !bit | if waits { bit } else { 0 };
        before
    }
}

fn read(bytes: &[u8], offset: u64, target: &mut [u8]) {
    target.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    if let Some(bytes) = bytes.get(start..) {
        let len = bytes.len().min(target.len());
        target[..len].copy_from_slice(&bytes[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_masked_until_a_driver_says_otherwise() {
        let mut table = MsixTable::new(3);
        assert!((0..4).all(|vector| table.is_masked(vector)));
        table.write(16, &[0xFF; 16]);
        table.write(16 + 12, &[0xFE, 0xFF, 0xFF, 0xFF]);
        let mut entry = [0; 16];
        table.read(16, &mut entry);
        let mut wanted = [0xFF; 16];
        wanted[0] = 0xFC;
        wanted[12..].fill(0);
        assert_eq!(entry, wanted);
        assert!(!table.is_masked(1) && table.is_masked(0) && table.is_masked(2));
        assert!(!table.set_pending(2, true) && table.set_pending(2, true));
        let mut pending = [0; 9];
        table.read_pending(0, &mut pending);
        assert_eq!(pending, [4, 0, 0, 0, 0, 0, 0, 0, 0]);
        // Nothing is outside.
        table.write(47, &[0xFF; 100]);
        table.write(u64::MAX, &[1]);
        table.read(u64::MAX, &mut entry);
        assert_eq!(entry, [0; 16]);
        assert!(!table.set_pending(64, true));
        table.reset();
        assert!(table.is_masked(1));
    }
}
