//! One direction of a VMBus channel: a page of control fields and a ring of bytes
//! (`struct hv_ring_buffer` of Linux's include/linux/hyperv.h).

use super::{RingMemory, WindowError};
use crate::barrier::{observe, publish};

/// Offsets of the fields, 32 bits each.
const WRITE_INDEX: usize = 0;
const READ_INDEX: usize = 4;
const INTERRUPT_MASK: usize = 8;
const PENDING_SEND_SIZE: usize = 12;
const FEATURES: usize = 64;

/// The ring of one direction, for either side.
///
/// Loads of an index end with [`observe`], stores of an index begin with
/// [`publish`]; the other fields are plain and need
/// [`publish_then_check`](crate::publish_then_check) around them, which only the
/// channel can place. No index is believed here: places in the data are the
/// caller's own, and asserted.
#[derive(Debug)]
pub struct ChannelRing<M> {
    header: M,
    data: M,
    size: u32,
}

impl<M: RingMemory> ChannelRing<M> {
    /// Bytes of the control fields that are in use.
    pub const HEADER_LEN: usize = FEATURES + 4;

    /// The least data: one packet without payload, and the 8 bytes that stay free.
    pub const DATA_MIN: usize = 32;

    /// The most data. The largest channel of Linux has 16 MiB.
    pub const DATA_MAX: usize = 1 << 30;

    /// Joins the window of the control fields and the window of the data.
    ///
    /// # Errors
    /// When a window is too small, too large or not aligned to 4 and 8 bytes, or
    /// when the data are not a multiple of 8 bytes.
    pub fn new(header: M, data: M) -> Result<Self, WindowError> {
        let (len, possible) = (data.len(), Self::DATA_MIN..=Self::DATA_MAX);
        let wrong = WindowError::Channel {
            header: header.len(),
            data: len,
        };
        let size = u32::try_from(len).map_err(|_| wrong)?;
        if header.len() < Self::HEADER_LEN || !possible.contains(&len) || !len.is_multiple_of(8) {
            return Err(wrong);
        }
        for (window, align) in [(&header, 4), (&data, 8)] {
            if !window.is_aligned(align) {
                return Err(WindowError::Unaligned { align });
            }
        }
        Ok(Self { header, data, size })
    }

    /// Bytes of data.
    #[inline]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The windows again: control fields, data.
    pub fn windows(&self) -> [&M; 2] {
        [&self.header, &self.data]
    }

    /// Where the sender writes next; what is before it is visible afterwards.
    #[inline]
    pub fn write_index(&self) -> u32 {
        let index = self.load(WRITE_INDEX);
        observe();
        index
    }

    /// Sender's side: publishes the write index, after what was written.
    #[inline]
    pub fn publish_write_index(&self, index: u32) {
        publish();
        self.store(WRITE_INDEX, index);
    }

    /// Where the receiver reads next; it is done with what is before it.
    #[inline]
    pub fn read_index(&self) -> u32 {
        let index = self.load(READ_INDEX);
        observe();
        index
    }

    /// Receiver's side: gives what is before the index back, after what was read.
    #[inline]
    pub fn publish_read_index(&self, index: u32) {
        publish();
        self.store(READ_INDEX, index);
    }

    /// Whether the receiver wants no signal when the ring stops being empty.
    #[inline]
    pub fn interrupt_mask(&self) -> u32 {
        self.load(INTERRUPT_MASK)
    }

    /// Receiver's side: writes the mask.
    #[inline]
    pub fn set_interrupt_mask(&self, mask: u32) {
        self.store(INTERRUPT_MASK, mask);
    }

    /// How many bytes the sender waits for; 0 if it does not wait.
    #[inline]
    pub fn pending_send_size(&self) -> u32 {
        self.load(PENDING_SEND_SIZE)
    }

    /// Sender's side: writes how many bytes it waits for.
    #[inline]
    pub fn set_pending_send_size(&self, bytes: u32) {
        self.store(PENDING_SEND_SIZE, bytes);
    }

    /// What the sender can do; bit 0: it says how many bytes it waits for.
    #[inline]
    pub fn features(&self) -> u32 {
        self.load(FEATURES)
    }

    /// Sender's side: writes what it can do.
    #[inline]
    pub fn set_features(&self, features: u32) {
        self.store(FEATURES, features);
    }

    /// Copies data out, from `at` on and over the end to the beginning.
    ///
    /// # Panics
    /// When `at` is not inside the data or `target` is longer than them: both are
    /// the caller's own numbers.
    #[inline]
    pub fn read_at(&self, at: u32, target: &mut [u8]) {
        let first = self.first_part(at, target.len());
        let (before, after) = target.split_at_mut(first);
        // SAFETY: `first_part` checked that `at + first` and the rest are inside.
        unsafe {
            self.data.copy_out(at as usize, before);
            if !after.is_empty() {
                self.data.copy_out(0, after);
            }
        }
    }

    /// Copies data in, from `at` on and over the end to the beginning.
    ///
    /// # Panics
    /// As for [`read_at`](Self::read_at).
    #[inline]
    pub fn write_at(&self, at: u32, source: &[u8]) {
        let first = self.first_part(at, source.len());
        let (before, after) = source.split_at(first);
        // SAFETY: as in `read_at`.
        unsafe {
            self.data.copy_in(at as usize, before);
            if !after.is_empty() {
                self.data.copy_in(0, after);
            }
        }
    }

    /// How many of `len` bytes lie between `at` and the end of the data.
    #[inline]
    fn first_part(&self, at: u32, len: usize) -> usize {
        let size = self.size as usize;
        assert!(
            at < self.size && len <= size,
            "{len} bytes at {at} of a ring of {size}"
        );
        len.min(size - at as usize)
    }

    #[inline]
    fn load(&self, offset: usize) -> u32 {
        // SAFETY: the header has all fields and is aligned to 4.
        u32::from_le(unsafe { self.header.load_u32(offset) })
    }

    #[inline]
    fn store(&self, offset: usize, value: u32) {
        // SAFETY: as in `load`.
        unsafe { self.header.store_u32(offset, value.to_le()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;
    use crate::ring::Window;

    fn ring(header: usize, data: usize) -> Result<ChannelRing<Window>, WindowError> {
        let region = Region::heap(header + data).unwrap();
        let header_window = region.window(0, header).unwrap();
        ChannelRing::new(header_window, region.window(header as u64, data).unwrap())
    }

    #[test]
    fn windows_that_cannot_be_a_channels_ring_are_refused() {
        for (header, data) in [(64, 4096), (4096, 24), (4096, 4100), (4096, 0)] {
            let wrong = WindowError::Channel { header, data };
            assert_eq!(ring(header, data).err(), Some(wrong));
        }
        assert_eq!(
            ring(68, 4096).err(),
            Some(WindowError::Unaligned { align: 8 })
        );
        assert_eq!(ring(4096, 32).unwrap().size(), 32);
    }

    /// The layout that Linux and Windows have.
    #[test]
    fn fields_are_where_the_other_side_looks() {
        let ring = ring(4096, 4096).unwrap();
        ring.publish_write_index(0x11);
        ring.publish_read_index(0x22);
        ring.set_interrupt_mask(0x33);
        ring.set_pending_send_size(0x44);
        ring.set_features(0x55);
        let header = ring.windows()[0];
        for (at, value) in [(0, 0x11), (4, 0x22), (8, 0x33), (12, 0x44), (64, 0x55)] {
            // SAFETY: inside the header, aligned to 4.
            assert_eq!(u32::from_le(unsafe { header.load_u32(at) }), value);
        }
        for at in (16..64).step_by(4) {
            // SAFETY: as above.
            assert_eq!(unsafe { header.load_u32(at) }, 0);
        }
    }

    #[test]
    fn data_go_over_the_end_at_any_place() {
        let ring = ring(4096, 64).unwrap();
        let bytes: [u8; 40] = core::array::from_fn(|at| at.to_le_bytes()[0]);
        for at in 0..64 {
            ring.write_at(at, &bytes);
            let mut back = [0; 40];
            ring.read_at(at, &mut back);
            assert_eq!(back, bytes);
            let mut one = [0];
            ring.read_at((at + 39) % 64, &mut one);
            assert_eq!(one, [39]);
        }
    }

    #[test]
    #[should_panic(expected = "65 bytes at 0 of a ring of 64")]
    fn more_than_the_data_is_our_mistake() {
        ring(4096, 64).unwrap().write_at(0, &[0; 65]);
    }
}
