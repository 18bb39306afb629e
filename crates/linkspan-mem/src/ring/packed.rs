//! The packed layout of a virtqueue: one ring for both directions, and two
//! places where each side says when it wants to be notified.

use super::{RingMemory, WindowError};
use crate::barrier::{observe, publish};

/// A packed descriptor as it stood in shared memory at one moment (virtio 1.3
/// 2.8.13): a private copy, not yet believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PackedDescriptor {
    /// Address of the buffer, in the space that the transport negotiated. Means
    /// nothing in a used descriptor.
    pub address: u64,
    /// Size of the buffer in bytes, or of what was written, if it is used.
    pub len: u32,
    /// Names the buffer; counts in the last descriptor of a chain only.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`: also to whom it belongs.
    pub flags: u16,
}

/// When a side wants to be notified (virtio 1.3 2.8.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EventSuppression {
    /// Position in the ring in bits 0 to 14, its wrap counter in bit 15.
    pub position: u16,
    /// `RING_EVENT_FLAGS_*`.
    pub flags: u16,
}

/// The three parts of a packed virtqueue (virtio 1.3 2.8), for either side.
///
/// A descriptor's flags hand it over: their load ends with [`observe`], their
/// store begins with [`publish`]. They are loaded and stored together with length and
/// id, as one word. The event fields need
/// [`publish_then_check`](crate::publish_then_check) around them.
#[derive(Debug)]
pub struct PackedRing<M> {
    descriptors: M,
    driver: M,
    device: M,
    size: u16,
}

/// Offset within a descriptor of the word that has length, id and flags.
const WORD: usize = 8;

/// Offsets within an event suppression structure.
const POSITION: usize = 0;
const EVENT_FLAGS: usize = 2;

impl<M: RingMemory> PackedRing<M> {
    /// Bytes of each of the two event suppression structures.
    pub const EVENT_LEN: usize = 4;

    /// Bytes of the ring of a queue of `size` entries.
    pub const fn descriptors_len(size: u16) -> usize {
        16 * size as usize
    }

    /// Joins the ring and the event suppression structures that the driver and
    /// the device write to a queue of `size` entries.
    ///
    /// # Errors
    /// When the size is impossible or a window is too small or not aligned to
    /// 16, 4 and 4 bytes.
    pub fn new(descriptors: M, driver: M, device: M, size: u16) -> Result<Self, WindowError> {
        if size == 0 || size > 1 << 15 {
            return Err(WindowError::Size { size });
        }
        for (window, need, align) in [
            (&descriptors, Self::descriptors_len(size), 16),
            (&driver, Self::EVENT_LEN, 4),
            (&device, Self::EVENT_LEN, 4),
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
            driver,
            device,
            size,
        })
    }

    /// Entries of the queue.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The windows again: ring, the driver's and the device's event suppression.
    pub fn windows(&self) -> [&M; 3] {
        [&self.descriptors, &self.driver, &self.device]
    }

    /// Flags of the descriptor at `position`; what they hand over is visible
    /// afterwards.
    ///
    /// # Panics
    /// When `position` is not below the size: positions are the caller's own.
    #[inline]
    pub fn flags(&self, position: u16) -> u16 {
        let (_, _, flags) = self.word(self.offset(position));
        flags
    }

    /// The descriptor at `position`. What its flags hand over is visible afterwards,
    /// its address included.
    ///
    /// # Panics
    /// As for [`flags`](Self::flags).
    #[inline]
    pub fn descriptor(&self, position: u16) -> PackedDescriptor {
        let offset = self.offset(position);
        let (len, id, flags) = self.word(offset);
        PackedDescriptor {
            // SAFETY: the descriptor is inside the ring, which is aligned to 16.
            address: u64::from_le(unsafe { self.descriptors.load_u64(offset) }),
            len,
            id,
            flags,
        }
    }

    /// Has the processor fetch the descriptor at `position`, if there is one.
    #[inline]
    pub fn prefetch_descriptor(&self, position: u16) {
        self.descriptors.prefetch(16 * usize::from(position));
    }

    /// Driver side: writes the descriptor at `position`, at which nobody looks before
    /// another one is [handed over](Self::publish_descriptor).
    ///
    /// # Panics
    /// As for [`flags`](Self::flags).
    #[inline]
    pub fn set_descriptor(&self, position: u16, descriptor: PackedDescriptor) {
        let offset = self.offset(position);
        self.set_address(offset, descriptor.address);
        self.set_word(offset, descriptor);
    }

    /// Driver side: writes the descriptor at `position` and hands it over, after what
    /// was written before.
    ///
    /// # Panics
    /// As for [`flags`](Self::flags).
    #[inline]
    pub fn publish_descriptor(&self, position: u16, descriptor: PackedDescriptor) {
        let offset = self.offset(position);
        self.set_address(offset, descriptor.address);
        publish();
        self.set_word(offset, descriptor);
    }

    /// Device side: writes the used descriptor at `position`, but for its address, at
    /// which nobody looks before another one is [handed over](Self::publish_used).
    ///
    /// # Panics
    /// As for [`flags`](Self::flags).
    #[inline]
    pub fn set_used(&self, position: u16, used: PackedDescriptor) {
        self.set_word(self.offset(position), used);
    }

    /// Device side: writes the used descriptor at `position`, but for its address, and
    /// hands it over, after what was written before.
    ///
    /// # Panics
    /// As for [`flags`](Self::flags).
    #[inline]
    pub fn publish_used(&self, position: u16, used: PackedDescriptor) {
        let offset = self.offset(position);
        publish();
        self.set_word(offset, used);
    }

    #[inline]
    fn word(&self, offset: usize) -> (u32, u16, u16) {
        // SAFETY: `offset` is one that `Self::offset` gave; aligned to 8.
        let word = u64::from_le(unsafe { self.descriptors.load_u64(offset + WORD) });
        observe();
        let [l0, l1, l2, l3, i0, i1, f0, f1] = word.to_le_bytes();
        (
            u32::from_le_bytes([l0, l1, l2, l3]),
            u16::from_le_bytes([i0, i1]),
            u16::from_le_bytes([f0, f1]),
        )
    }

    #[inline]
    fn set_word(&self, offset: usize, descriptor: PackedDescriptor) {
        let PackedDescriptor { len, id, flags, .. } = descriptor;
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        // SAFETY: as in `word`.
        unsafe { self.descriptors.store_u64(offset + WORD, word.to_le()) }
    }

    #[inline]
    fn set_address(&self, offset: usize, address: u64) {
        // SAFETY: as in `word`.
        unsafe { self.descriptors.store_u64(offset, address.to_le()) }
    }

    /// What the driver wants to hear of.
    #[inline]
    pub fn driver_event(&self) -> EventSuppression {
        load_event(&self.driver)
    }

    /// Driver side: says what to notify.
    #[inline]
    pub fn set_driver_event(&self, event: EventSuppression) {
        store_event(&self.driver, event);
    }

    /// Driver side: changes the flags of what to notify alone.
    #[inline]
    pub fn set_driver_event_flags(&self, flags: u16) {
        store_event_flags(&self.driver, flags);
    }

    /// Driver side: what the device wants to hear of.
    #[inline]
    pub fn device_event(&self) -> EventSuppression {
        load_event(&self.device)
    }

    /// Device side: says what to notify.
    #[inline]
    pub fn set_device_event(&self, event: EventSuppression) {
        store_event(&self.device, event);
    }

    /// Device side: changes the flags of what to notify alone.
    #[inline]
    pub fn set_device_event_flags(&self, flags: u16) {
        store_event_flags(&self.device, flags);
    }

    #[inline]
    fn offset(&self, position: u16) -> usize {
        assert!(position < self.size, "no such position in a packed ring");
        16 * usize::from(position)
    }
}

/// In which order the two fields are seen does not matter: a side that asks looks
/// at the ring afterwards, and whoever it did not see there then sees both.
#[inline]
fn load_event<M: RingMemory>(window: &M) -> EventSuppression {
    // SAFETY: `PackedRing::new` checked for 4 bytes, aligned to 4.
    let flags = u16::from_le(unsafe { window.load_u16(EVENT_FLAGS) });
    // SAFETY: as above.
    let position = u16::from_le(unsafe { window.load_u16(POSITION) });
    EventSuppression { position, flags }
}

#[inline]
fn store_event<M: RingMemory>(window: &M, event: EventSuppression) {
    // SAFETY: as in `load_event`.
    unsafe { window.store_u16(POSITION, event.position.to_le()) };
    store_event_flags(window, event.flags);
}

#[inline]
fn store_event_flags<M: RingMemory>(window: &M, flags: u16) {
    // SAFETY: as in `load_event`.
    unsafe { window.store_u16(EVENT_FLAGS, flags.to_le()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Region, Window};

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let region = Region::heap(4096).unwrap();
        let [ring, driver, device] =
            [(0, 48), (48, 4), (52, 4)].map(|(at, len)| region.window(at, len).unwrap());
        let ring = PackedRing::new(ring, driver, device, 3).unwrap();
        let descriptor = PackedDescriptor {
            address: 0x1122_3344_5566_7788,
            len: 0xAABB_CCDD,
            id: 0x0102,
            flags: 0x8081,
        };
        ring.publish_descriptor(1, descriptor);
        let used = PackedDescriptor {
            address: u64::MAX,
            len: 9,
            id: 7,
            flags: 2,
        };
        ring.publish_used(2, used);
        let event = EventSuppression {
            position: 0x8003,
            flags: 2,
        };
        ring.set_driver_event(event);
        ring.set_device_event_flags(1);
        let mut bytes = [0; 56];
        region.slice(0, 56).unwrap().read(&mut bytes);
        assert_eq!(
            &bytes[16..32],
            b"\x88\x77\x66\x55\x44\x33\x22\x11\xdd\xcc\xbb\xaa\x02\x01\x81\x80"
        );
        assert_eq!(&bytes[32..48], b"\0\0\0\0\0\0\0\0\x09\0\0\0\x07\0\x02\0");
        assert_eq!(&bytes[48..], b"\x03\x80\x02\0\0\0\x01\0");
        assert_eq!((ring.descriptor(1), ring.flags(1)), (descriptor, 0x8081));
        assert_eq!(ring.driver_event(), event);
        assert_eq!(ring.device_event().flags, 1);
    }

    #[test]
    fn a_ring_that_does_not_fit_is_refused() {
        let region = Region::heap(4096).unwrap();
        let window = |at, len| region.window(at, len).unwrap();
        let make = |at, len, size| {
            PackedRing::new(window(at, len), window(2048, 4), window(2052, 4), size).err()
        };
        for size in [0, 0x8001] {
            assert_eq!(make(0, 64, size), Some(WindowError::Size { size }));
        }
        let error = WindowError::TooSmall {
            size: 5,
            need: 80,
            len: 64,
        };
        assert_eq!(make(0, 64, 5), Some(error));
        assert_eq!(make(8, 64, 4), Some(WindowError::Unaligned { align: 16 }));
        assert_eq!(make(16, 48, 3), None);
        let short: Result<PackedRing<Window>, _> =
            PackedRing::new(window(0, 64), window(2048, 3), window(2052, 4), 4);
        assert!(matches!(short, Err(WindowError::TooSmall { need: 4, .. })));
    }
}
