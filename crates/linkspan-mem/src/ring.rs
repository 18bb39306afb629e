//! Windows onto rings in shared memory: each field read and written by value,
//! with the ordering that its meaning asks for, bounds checked once.

mod channel;
mod inflight;
#[cfg(loom)]
pub mod model;
mod mortal;
mod packed;
mod raced;
mod window;

pub use channel::ChannelRing;
pub use inflight::{InflightPacked, InflightPackedEntry, InflightSplit, InflightSplitEntry};
pub use mortal::{Life, Mortal};
pub use packed::{EventSuppression, PackedDescriptor, PackedRing};
pub use raced::Raced;
pub use window::Window;

use crate::barrier::{observe, publish};
use crate::region::OutsideRegion;

/// Memory in which a ring lies. Real rings use a [`Window`]; under loom the
/// same code runs on model memory, which is why access is by value.
pub trait RingMemory: Send {
    /// Size in bytes.
    fn len(&self) -> usize;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether offsets that are multiples of `align` are aligned so in memory.
    fn is_aligned(&self, align: usize) -> bool;

    /// Reads 8 bits, relaxed.
    ///
    /// # Safety
    /// `offset < len()`.
    unsafe fn load_u8(&self, offset: usize) -> u8;

    /// Writes 8 bits, relaxed.
    ///
    /// # Safety
    /// As for [`load_u8`](Self::load_u8).
    unsafe fn store_u8(&self, offset: usize, value: u8);

    /// Reads 16 bits, relaxed, in the machine's byte order.
    ///
    /// # Safety
    /// `offset + 2 <= len()` and the place is aligned to 2.
    unsafe fn load_u16(&self, offset: usize) -> u16;

    /// Writes 16 bits, relaxed.
    ///
    /// # Safety
    /// As for [`load_u16`](Self::load_u16).
    unsafe fn store_u16(&self, offset: usize, value: u16);

    /// Reads 32 bits, relaxed.
    ///
    /// # Safety
    /// `offset + 4 <= len()` and the place is aligned to 4.
    unsafe fn load_u32(&self, offset: usize) -> u32;

    /// Writes 32 bits, relaxed.
    ///
    /// # Safety
    /// As for [`load_u32`](Self::load_u32).
    unsafe fn store_u32(&self, offset: usize, value: u32);

    /// Reads 64 bits, relaxed.
    ///
    /// # Safety
    /// `offset + 8 <= len()` and the place is aligned to 8.
    unsafe fn load_u64(&self, offset: usize) -> u64;

    /// Writes 64 bits, relaxed.
    ///
    /// # Safety
    /// As for [`load_u64`](Self::load_u64).
    unsafe fn store_u64(&self, offset: usize, value: u64);

    /// Has the processor fetch the cache line of this offset, wherever it is: a hint.
    #[inline]
    fn prefetch(&self, offset: usize) {
        let _ = offset;
    }

    /// Copies bytes out, in any order: what a peer writes meanwhile arrives in
    /// any mix of old and new.
    ///
    /// # Safety
    /// `offset + target.len() <= len()`.
    unsafe fn copy_out(&self, offset: usize, target: &mut [u8]);

    /// Copies bytes in, in any order.
    ///
    /// # Safety
    /// As for [`copy_out`](Self::copy_out), with `source`.
    unsafe fn copy_in(&self, offset: usize, source: &[u8]);
}

/// A window that cannot hold its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// The window would leave its region.
    #[error(transparent)]
    Outside(#[from] OutsideRegion),
    /// The window is smaller than the ring.
    #[error("a ring of {size} entries needs {need} bytes, the window has {len}")]
    TooSmall {
        /// Entries of the ring.
        size: u16,
        /// Bytes that it needs.
        need: usize,
        /// Bytes that there are.
        len: usize,
    },
    /// A ring of a VMBus channel whose parts cannot be one.
    #[error(
        "a channel's ring has a header of {header} bytes and {data} bytes of data, a multiple of 8"
    )]
    Channel {
        /// Bytes of its header.
        header: usize,
        /// Bytes of its data.
        data: usize,
    },
    /// The ring does not begin where the specification allows (virtio 1.3 2.7).
    #[error("this part of a ring must be aligned to {align} bytes")]
    Unaligned {
        /// The alignment asked for, in bytes.
        align: usize,
    },
    /// A queue has 1 to 32768 entries, and in the split layout a power of two
    /// (virtio 1.3 2.7, 2.8.10.1).
    #[error("{size} is not a possible queue size: 1 to 32768, and a power of two if split")]
    Size {
        /// The size asked for.
        size: u16,
    },
}

/// A descriptor as it stood in shared memory at one moment (virtio 1.3 2.7.5):
/// a private copy, read once, not yet believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Descriptor {
    /// Address of the buffer, in the space that the transport negotiated.
    pub address: u64,
    /// Size of the buffer in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// The next descriptor, if the flags say so.
    pub next: u16,
}

impl Descriptor {
    /// Size in shared memory in bytes.
    pub const SIZE: usize = 16;

    /// From its little-endian bytes.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    /// To its little-endian bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// An element of the used ring (virtio 1.3 2.7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct UsedElement {
    /// Head of the chain that was used.
    pub id: u32,
    /// Bytes that the device wrote into it.
    pub len: u32,
}

/// The three parts of a split virtqueue (virtio 1.3 2.7), for either side.
///
/// Loads of an index end with [`observe`], stores of an index begin with
/// [`publish`]; flags and event fields are plain and need
/// [`publish_then_check`](crate::publish_then_check) around them, which only
/// the queue can place.
#[derive(Debug)]
pub struct SplitRing<M> {
    descriptors: M,
    available: M,
    used: M,
    mask: u16,
}

/// Offsets within the available and the used ring.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

impl<M: RingMemory> SplitRing<M> {
    /// Bytes of the descriptor table of a queue of `size` entries.
    pub const fn descriptors_len(size: u16) -> usize {
        Descriptor::SIZE * size as usize
    }

    /// Bytes of the available ring, `used_event` included.
    pub const fn available_len(size: u16) -> usize {
        ENTRIES + 2 * size as usize + 2
    }

    /// Bytes of the used ring, `avail_event` included.
    pub const fn used_len(size: u16) -> usize {
        ENTRIES + 8 * size as usize + 2
    }

    /// Joins three windows to a queue of `size` entries.
    ///
    /// # Errors
    /// When the size is impossible or a window is too small or not aligned to
    /// 16, 2 and 4 bytes.
    pub fn new(descriptors: M, available: M, used: M, size: u16) -> Result<Self, WindowError> {
        if !size.is_power_of_two() {
            return Err(WindowError::Size { size });
        }
        for (window, need, align) in [
            (&descriptors, Self::descriptors_len(size), 16),
            (&available, Self::available_len(size), 2),
            (&used, Self::used_len(size), 4),
        ] {
            let len = window.len();
            if len < need {
                return Err(WindowError::TooSmall { size, need, len });
            }
            if !window.is_aligned(align) {
                return Err(WindowError::Unaligned { align });
            }
        }
        Ok(Self {
            descriptors,
            available,
            used,
            mask: size - 1,
        })
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    /// The windows again: descriptor table, available ring, used ring.
    pub fn windows(&self) -> [&M; 3] {
        [&self.descriptors, &self.available, &self.used]
    }

    /// Descriptor `index`, or `None` when the table has no such entry.
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index > self.mask {
            return None;
        }
        let offset = Descriptor::SIZE * usize::from(index);
        // SAFETY: the table has `size` entries of 16 bytes, aligned to 16.
        let [low, high] = unsafe {
            [
                self.descriptors.load_u64(offset),
                self.descriptors.load_u64(offset + 8),
            ]
        }
        .map(u64::from_le);
        let [l0, l1, l2, l3, f0, f1, n0, n1] = high.to_le_bytes();
        Some(Descriptor {
            address: low,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    /// Has the processor fetch descriptor `index`, if there is one.
    #[inline]
    pub fn prefetch_descriptor(&self, index: u16) {
        self.descriptors
            .prefetch(Descriptor::SIZE * usize::from(index & self.mask));
    }

    /// Driver side: writes descriptor `index` (taken modulo the size).
    #[inline]
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let offset = Descriptor::SIZE * usize::from(index & self.mask);
        let high = u64::from(descriptor.len)
            | u64::from(descriptor.flags) << 32
            | u64::from(descriptor.next) << 48;
        // SAFETY: as in `descriptor`, with the index masked.
        unsafe {
            self.descriptors
                .store_u64(offset, descriptor.address.to_le());
            self.descriptors.store_u64(offset + 8, high.to_le());
        }
    }

    /// `avail.idx`; what it covers is visible afterwards.
    #[inline]
    pub fn available_index(&self) -> u16 {
        // SAFETY: within the available ring, aligned to 2.
        let index = u16::from_le(unsafe { self.available.load_u16(INDEX) });
        observe();
        index
    }

    /// Driver side: publishes `avail.idx`, after what it covers.
    #[inline]
    pub fn publish_available_index(&self, index: u16) {
        publish();
        // SAFETY: as in `available_index`.
        unsafe { self.available.store_u16(INDEX, index.to_le()) }
    }

    /// `avail.ring[position mod size]`: a head, not yet believed.
    #[inline]
    pub fn available_entry(&self, position: u16) -> u16 {
        // SAFETY: masked to the ring's `size` entries of 2 bytes.
        u16::from_le(unsafe { self.available.load_u16(self.available_offset(position)) })
    }

    /// Driver side: writes `avail.ring[position mod size]`.
    #[inline]
    pub fn set_available_entry(&self, position: u16, head: u16) {
        // SAFETY: as in `available_entry`.
        unsafe {
            self.available
                .store_u16(self.available_offset(position), head.to_le())
        }
    }

    /// `avail.flags`: bit 0 asks the device not to notify.
    #[inline]
    pub fn available_flags(&self) -> u16 {
        // SAFETY: within the available ring.
        u16::from_le(unsafe { self.available.load_u16(FLAGS) })
    }

    /// Driver side: writes `avail.flags`.
    #[inline]
    pub fn set_available_flags(&self, flags: u16) {
        // SAFETY: within the available ring.
        unsafe { self.available.store_u16(FLAGS, flags.to_le()) }
    }

    /// `used_event`: the driver wants a notification when this used index is passed.
    #[inline]
    pub fn used_event(&self) -> u16 {
        // SAFETY: the window holds the field behind the last entry.
        u16::from_le(unsafe { self.available.load_u16(self.used_event_offset()) })
    }

    /// Driver side: writes `used_event`.
    #[inline]
    pub fn set_used_event(&self, index: u16) {
        // SAFETY: as in `used_event`.
        unsafe {
            self.available
                .store_u16(self.used_event_offset(), index.to_le())
        }
    }

    /// Driver side: `used.idx`; what it covers is visible afterwards.
    #[inline]
    pub fn used_index(&self) -> u16 {
        // SAFETY: within the used ring.
        let index = u16::from_le(unsafe { self.used.load_u16(INDEX) });
        observe();
        index
    }

    /// Device side: publishes `used.idx`, after what it covers.
    #[inline]
    pub fn publish_used_index(&self, index: u16) {
        publish();
        // SAFETY: within the used ring.
        unsafe { self.used.store_u16(INDEX, index.to_le()) }
    }

    /// Driver side: `used.ring[position mod size]`, not yet believed.
    #[inline]
    pub fn used_element(&self, position: u16) -> UsedElement {
        let offset = self.used_offset(position);
        // SAFETY: masked to the ring's `size` entries of 8 bytes, aligned to 4.
        unsafe {
            UsedElement {
                id: u32::from_le(self.used.load_u32(offset)),
                len: u32::from_le(self.used.load_u32(offset + 4)),
            }
        }
    }

    /// Device side: writes `used.ring[position mod size]`.
    #[inline]
    pub fn set_used_element(&self, position: u16, element: UsedElement) {
        let offset = self.used_offset(position);
        // SAFETY: as in `used_element`.
        unsafe {
            self.used.store_u32(offset, element.id.to_le());
            self.used.store_u32(offset + 4, element.len.to_le());
        }
    }

    /// Driver side: `used.flags`; bit 0 asks the driver not to notify.
    #[inline]
    pub fn used_flags(&self) -> u16 {
        // SAFETY: within the used ring.
        u16::from_le(unsafe { self.used.load_u16(FLAGS) })
    }

    /// Device side: writes `used.flags`.
    #[inline]
    pub fn set_used_flags(&self, flags: u16) {
        // SAFETY: within the used ring.
        unsafe { self.used.store_u16(FLAGS, flags.to_le()) }
    }

    /// Driver side: `avail_event`: the device wants a notification when this
    /// available index is passed.
    #[inline]
    pub fn available_event(&self) -> u16 {
        // SAFETY: the window holds the field behind the last entry.
        u16::from_le(unsafe { self.used.load_u16(self.available_event_offset()) })
    }

    /// Device side: writes `avail_event`.
    #[inline]
    pub fn set_available_event(&self, index: u16) {
        // SAFETY: as in `available_event`.
        unsafe {
            self.used
                .store_u16(self.available_event_offset(), index.to_le())
        }
    }

    fn available_offset(&self, position: u16) -> usize {
        ENTRIES + 2 * usize::from(position & self.mask)
    }

    fn used_offset(&self, position: u16) -> usize {
        ENTRIES + 8 * usize::from(position & self.mask)
    }

    fn used_event_offset(&self) -> usize {
        ENTRIES + 2 * (usize::from(self.mask) + 1)
    }

    fn available_event_offset(&self) -> usize {
        ENTRIES + 8 * (usize::from(self.mask) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Region;

    fn windows(size: u16) -> [Window; 3] {
        let region = Region::heap(1 << 16).unwrap();
        [
            region
                .window(0, SplitRing::<Window>::descriptors_len(size))
                .unwrap(),
            region
                .window(0x4000, SplitRing::<Window>::available_len(size))
                .unwrap(),
            region
                .window(0x8000, SplitRing::<Window>::used_len(size))
                .unwrap(),
        ]
    }

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let region = Region::heap(4096).unwrap();
        let [d, a, u] =
            [(0, 64), (64, 14), (80, 38)].map(|(at, len)| region.window(at, len).unwrap());
        let ring = SplitRing::new(d, a, u, 4).unwrap();
        ring.set_descriptor(
            1,
            Descriptor {
                address: 0x1122_3344_5566_7788,
                len: 0xAABB_CCDD,
                flags: 3,
                next: 2,
            },
        );
        ring.set_available_flags(1);
        ring.publish_available_index(7);
        ring.set_available_entry(5, 3);
        ring.set_used_event(9);
        ring.set_used_flags(1);
        ring.publish_used_index(0x0102);
        ring.set_used_element(7, UsedElement { id: 1, len: 512 });
        ring.set_available_event(0x0A0B);
        let mut bytes = [0; 118];
        region.slice(0, 118).unwrap().read(&mut bytes);
        assert_eq!(
            &bytes[16..32],
            b"\x88\x77\x66\x55\x44\x33\x22\x11\xdd\xcc\xbb\xaa\x03\0\x02\0"
        );
        assert_eq!(&bytes[64..78], b"\x01\0\x07\0\0\0\x03\0\0\0\0\0\x09\0");
        assert_eq!(&bytes[80..86], b"\x01\0\x02\x01\0\0");
        assert_eq!(&bytes[108..118], b"\x01\0\0\0\0\x02\0\0\x0b\x0a");
        let descriptor = ring.descriptor(1).unwrap();
        assert_eq!(descriptor.to_bytes(), bytes[16..32]);
        assert_eq!(Descriptor::from_bytes(descriptor.to_bytes()), descriptor);
        assert_eq!(ring.descriptor(4), None);
    }

    #[test]
    fn a_ring_that_does_not_fit_is_refused() {
        for size in [0, 3, 0x8001] {
            let [d, a, u] = windows(256);
            assert_eq!(
                SplitRing::new(d, a, u, size).err(),
                Some(WindowError::Size { size })
            );
        }
        let [d, a, u] = windows(256);
        assert!(matches!(
            SplitRing::new(d, a, u, 512),
            Err(WindowError::TooSmall { size: 512, .. })
        ));
        let region = Region::heap(4096).unwrap();
        let [d, a, u] =
            [(8, 64), (1024, 64), (2048, 64)].map(|(at, len)| region.window(at, len).unwrap());
        assert_eq!(
            SplitRing::new(d, a, u, 4).err(),
            Some(WindowError::Unaligned { align: 16 })
        );
    }
}
