//! The sending side of a ring.

use linkspan_mem::{ChannelRing, RingMemory, observe, publish_then_check};
use thiserror::Error;

use super::{GAP, RingError, StartError, advance, check_index, distance};
use crate::packet::{self, Descriptor, Header, TRAILER_LEN};

/// Feature bit 0: this sender says how much room it waits for.
const FEAT_PENDING_SEND_SZ: u32 = 1;

/// The ring from this end to the other.
///
/// A pass: [`send`](Self::send) as often as there is something, then
/// [`publish`](Self::publish). When it is full, [`wait_for`](Self::wait_for).
#[derive(Debug)]
pub struct Outgoing<M> {
    ring: ChannelRing<M>,
    /// Where the next packet is written.
    write: u32,
    /// What the receiver was told of that.
    published: u32,
    /// Where the receiver was, when we last looked.
    read: u32,
    /// A life before may have published and ended before it signalled.
    owed: bool,
    waiting: bool,
    retired: Option<RingError>,
}

/// A packet that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no room now: [`Outgoing::wait_for`] these bytes.
    #[error("{need} bytes are needed and {free} are free")]
    Full {
        /// Bytes of the packet in the ring.
        need: u32,
        /// Bytes that are free, of which 8 have to stay so.
        free: u32,
    },
    /// There never is room.
    #[error("a packet of {len} bytes does not fit a ring of {size}")]
    TooLong {
        /// Bytes of the packet, its descriptor included.
        len: usize,
        /// Bytes of data of the ring.
        size: u32,
    },
    /// The ring is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl<M: RingMemory> Outgoing<M> {
    /// Takes the ring over as it stands: behind what the sender before published. A
    /// new ring is all zero.
    ///
    /// # Errors
    /// What stands there cannot be.
    pub fn new(ring: ChannelRing<M>) -> Result<Self, StartError> {
        let at = ring.write_index();
        Self::resume(ring, at)
    }

    /// The same with the [`position`](Self::position) of an earlier life, for rings
    /// whose peer may have written over it.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn resume(ring: ChannelRing<M>, position: u32) -> Result<Self, StartError> {
        let size = ring.size();
        let at = check_index("write", position, size)?;
        let read = check_index("read", ring.read_index(), size)?;
        ring.publish_write_index(at);
        ring.set_pending_send_size(0);
        ring.set_features(ring.features() | FEAT_PENDING_SEND_SZ);
        Ok(Self {
            ring,
            write: at,
            published: at,
            read,
            // A ring on which nobody has sent is owed nothing.
            owed: at != read,
            waiting: false,
            retired: None,
        })
    }

    /// Where a next life goes on: what was published is before it.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.published
    }

    /// Bytes that a packet with this payload takes in the ring.
    #[must_use]
    pub fn room_of(payload: usize) -> usize {
        packet::packet_len(payload) + TRAILER_LEN
    }

    /// Looks how far the receiver is; returns how many bytes can be sent, headers
    /// and trailers of packets included.
    ///
    /// # Errors
    /// When the ring is broken; it then stays so.
    #[inline]
    pub fn refresh(&mut self) -> Result<u32, RingError> {
        let free = self.look()?;
        Ok(free.saturating_sub(GAP))
    }

    /// Bytes that are free now, the gap included.
    #[inline]
    fn look(&mut self) -> Result<u32, RingError> {
        self.check()?;
        let size = self.ring.size();
        let index = self.ring.read_index();
        let read = check_index("read", index, size).or_else(|error| self.retire(error))?;
        let (used, before) = (
            distance(read, self.write, size),
            distance(self.read, self.write, size),
        );
        if used > before {
            return self.retire(RingError::Back {
                index: "read",
                from: self.read,
                to: read,
                ours: self.write,
            });
        }
        self.read = read;
        Ok(size - used)
    }

    /// Adds a packet whose payload is these parts, one behind the other. It is seen
    /// by nobody before [`publish`](Self::publish).
    ///
    /// # Errors
    /// When there is no room for it. Then nothing was written.
    #[inline]
    pub fn send(&mut self, header: Header, parts: &[&[u8]]) -> Result<(), SendError> {
        self.check()?;
        let size = self.ring.size();
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let too_long = SendError::TooLong {
            len: payload.saturating_add(packet::DESCRIPTOR_LEN),
            size,
        };
        let len = packet::packet_len(payload);
        let length8 = u16::try_from(len / 8).map_err(|_| too_long)?;
        let need = u32::from(length8) * 8 + packet::TRAILER_BYTES;
        if need > size - GAP {
            return Err(too_long);
        }
        let used = distance(self.read, self.write, size);
        if need >= size - used {
            let free = self.look()?;
            if need >= free {
                return Err(SendError::Full { need, free });
            }
        }
        let descriptor = Descriptor {
            kind: header.kind,
            data_offset8: packet::DESCRIPTOR_LEN8,
            length8,
            flags: header.flags,
            transaction_id: header.transaction_id,
        };
        self.write_packet(descriptor, parts, len - packet::DESCRIPTOR_LEN - payload);
        self.write = advance(self.write, need, size);
        Ok(())
    }

    #[inline]
    fn write_packet(&mut self, descriptor: Descriptor, parts: &[&[u8]], padding: usize) {
        let size = self.ring.size();
        let mut at = self.write;
        let mut put = |bytes: &[u8]| {
            self.ring.write_at(at, bytes);
            at = advance(at, u32::try_from(bytes.len()).expect("fits"), size);
        };
        put(&descriptor.to_bytes());
        for part in parts {
            put(part);
        }
        // The trailer says where the packet began.
        let mut end = [0; 7 + TRAILER_LEN];
        end[padding + 4..padding + TRAILER_LEN].copy_from_slice(&self.write.to_le_bytes());
        put(&end[..padding + TRAILER_LEN]);
    }

    /// Shows all that was sent to the receiver, with one store; returns whether it
    /// is to be signalled: it had read everything before, and did not ask for quiet.
    ///
    /// # Errors
    /// When the ring is broken.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        self.check()?;
        if self.write == self.published {
            return Ok(core::mem::take(&mut self.owed));
        }
        let before = self.published;
        self.ring.publish_write_index(self.write);
        self.published = self.write;
        publish_then_check();
        let owed = core::mem::take(&mut self.owed);
        if self.ring.interrupt_mask() != 0 {
            return Ok(owed);
        }
        // The index that counts is read after the mask.
        observe();
        self.look()?;
        Ok(owed || self.read == before)
    }

    /// Says that this side waits for `bytes` of room, as [`SendError::Full`] told,
    /// and looks once more: whether there is room now, so that it must not sleep.
    /// To wait for more at once, a quarter of the ring, saves signals.
    ///
    /// # Errors
    /// When the ring is broken.
    ///
    /// # Panics
    /// When packets were sent and not published: the receiver could not tell when it
    /// has given enough room.
    #[inline]
    pub fn wait_for(&mut self, bytes: u32) -> Result<bool, RingError> {
        assert_eq!(self.write, self.published, "published before sleep");
        self.check()?;
        let bytes = bytes.min(self.ring.size() - GAP);
        self.waiting = true;
        self.ring.set_pending_send_size(bytes);
        publish_then_check();
        let room = self.look()? > bytes;
        if room {
            self.stop_waiting();
        }
        Ok(room)
    }

    /// Says that this side does not wait any more. Goes before the next packet.
    #[inline]
    pub fn stop_waiting(&mut self) {
        if core::mem::take(&mut self.waiting) {
            self.ring.set_pending_send_size(0);
        }
    }

    /// The ring, to be joined by a next life.
    #[must_use]
    pub fn into_ring(self) -> ChannelRing<M> {
        self.ring
    }

    #[inline]
    fn check(&self) -> Result<(), RingError> {
        self.retired.map_or(Ok(()), Err)
    }

    #[cold]
    fn retire<T>(&mut self, error: RingError) -> Result<T, RingError> {
        self.retired = Some(error);
        Err(error)
    }
}
