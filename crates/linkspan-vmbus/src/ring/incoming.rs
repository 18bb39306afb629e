//! The receiving side of a ring.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{ChannelRing, RingMemory, observe, publish_then_check};

use super::{GAP, RingError, StartError, advance, check_index, distance};
use crate::packet::{self, Contents, DESCRIPTOR_LEN, Descriptor, PacketError, TRAILER_LEN};

/// The ring from the other end to this one.
///
/// A pass: [`refresh`](Self::refresh), [`receive`](Self::receive) until there is no
/// more, [`release`](Self::release); and before sleep [`arm`](Self::arm).
#[derive(Debug)]
pub struct Incoming<M> {
    ring: ChannelRing<M>,
    /// Where the next packet begins.
    read: u32,
    /// What the sender was told of that.
    released: u32,
    /// Where the sender was, when we last looked.
    write: u32,
    retired: Option<RingError>,
}

/// A private copy of a packet, filled anew by each [`Incoming::receive`] without an
/// allocation.
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    len: usize,
    descriptor: Descriptor,
}

impl Packet {
    /// Room for packets of up to `max` bytes, their descriptor included.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(max: usize) -> Result<Self, Injected> {
        let mut bytes = fault::try_with_capacity(max)?;
        bytes.resize(max, 0);
        Ok(Self {
            bytes,
            len: 0,
            descriptor: Descriptor::default(),
        })
    }

    /// What the packet says of itself; its lengths are checked.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        self.descriptor
    }

    /// What is behind the descriptor and whatever belongs to it.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload_at()..self.len]
    }

    /// The same, to be answered in place: it is ours alone.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let at = self.payload_at();
        &mut self.bytes[at..self.len]
    }

    /// What is in it.
    ///
    /// # Errors
    /// It is of a kind that is not known, or its own lengths contradict it. The ring
    /// is not broken by that.
    pub fn contents(&self) -> Result<Contents<'_>, PacketError> {
        let descriptor = self.descriptor;
        let head = &self.bytes[DESCRIPTOR_LEN.min(self.len)..self.payload_at()];
        packet::parse(descriptor, head, self.payload())
    }

    fn payload_at(&self) -> usize {
        self.descriptor.payload_at().min(self.len)
    }
}

impl<M: RingMemory> Incoming<M> {
    /// Takes the ring over as it stands: where the receiver before was. A new ring
    /// is all zero.
    ///
    /// # Errors
    /// What stands there cannot be.
    pub fn new(ring: ChannelRing<M>) -> Result<Self, StartError> {
        let at = ring.read_index();
        Self::resume(ring, at)
    }

    /// The same with the [`position`](Self::position) of an earlier life, for rings
    /// whose peer may have written over it.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn resume(ring: ChannelRing<M>, position: u32) -> Result<Self, StartError> {
        let at = check_index("read", position, ring.size())?;
        ring.publish_read_index(at);
        let mut incoming = Self {
            ring,
            read: at,
            released: at,
            write: at,
            retired: None,
        };
        incoming.refresh()?;
        Ok(incoming)
    }

    /// Where a next life goes on: what was received and released is behind it.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.released
    }

    /// The longest packet that can be in this ring, for [`Packet::new`].
    #[must_use]
    pub fn packet_max(&self) -> usize {
        (self.ring.size() - GAP) as usize - TRAILER_LEN
    }

    /// Looks how far the sender is, once for the whole batch; returns how many
    /// bytes wait.
    ///
    /// # Errors
    /// When the ring is broken; it then stays so.
    #[inline]
    pub fn refresh(&mut self) -> Result<u32, RingError> {
        self.check()?;
        let size = self.ring.size();
        let index = self.ring.write_index();
        let write = check_index("write", index, size).or_else(|error| self.retire(error))?;
        let waiting = distance(self.read, write, size);
        if waiting < distance(self.read, self.write, size) {
            return self.retire(RingError::Back {
                index: "write",
                from: self.write,
                to: write,
                ours: self.read,
            });
        }
        self.write = write;
        Ok(waiting)
    }

    /// Takes the next of the packets that were there at the last look; `false` if
    /// there is none. Descriptor and payload are read once each.
    ///
    /// # Errors
    /// When it is none, or longer than `packet` has room for: the ring is broken
    /// then, since nobody knows where the next one begins.
    #[inline]
    pub fn receive(&mut self, packet: &mut Packet) -> Result<bool, RingError> {
        self.check()?;
        let size = self.ring.size();
        let available = distance(self.read, self.write, size);
        if available == 0 {
            return Ok(false);
        }
        let least = DESCRIPTOR_LEN + TRAILER_LEN;
        if (available as usize) < least {
            return self.retire(RingError::Unpublished {
                len: packet::DESCRIPTOR_BYTES,
                available,
            });
        }
        let mut bytes = [0; DESCRIPTOR_LEN];
        self.ring.read_at(self.read, &mut bytes);
        let descriptor = Descriptor::from_bytes(bytes);
        let len = descriptor.len();
        let total = self.checked(&descriptor, available, packet.bytes.len());
        let total = total.or_else(|error| self.retire(error))?;
        let behind = advance(self.read, packet::DESCRIPTOR_BYTES, size);
        self.ring
            .read_at(behind, &mut packet.bytes[DESCRIPTOR_LEN..len]);
        packet.len = len;
        packet.descriptor = descriptor;
        self.read = advance(self.read, total, size);
        Ok(true)
    }

    /// The bytes of a packet with its trailer, if they can be.
    #[inline]
    fn checked(
        &self,
        descriptor: &Descriptor,
        available: u32,
        room: usize,
    ) -> Result<u32, RingError> {
        let [len, payload] =
            [descriptor.length8, descriptor.data_offset8].map(|x| u32::from(x) * 8);
        if payload < packet::DESCRIPTOR_BYTES || payload > len {
            return Err(RingError::Lengths { len, payload });
        }
        let total = len + packet::TRAILER_BYTES;
        if total > available {
            return Err(RingError::Unpublished { len, available });
        }
        if len as usize > room {
            let max = u32::try_from(room).unwrap_or(u32::MAX);
            return Err(RingError::TooLong { len, max });
        }
        Ok(total)
    }

    /// Gives the room of all packets that were received back, with one store;
    /// returns whether the sender is to be signalled: it waits for more room than
    /// there was before, and there is enough now.
    ///
    /// # Errors
    /// When the ring is broken.
    #[inline]
    pub fn release(&mut self) -> Result<bool, RingError> {
        self.check()?;
        if self.read == self.released {
            return Ok(false);
        }
        let size = self.ring.size();
        let given = distance(self.released, self.read, size);
        self.ring.publish_read_index(self.read);
        self.released = self.read;
        publish_then_check();
        if self.ring.features() & 1 == 0 {
            return Ok(false);
        }
        // Some peers set bit 0 on top of the size.
        let pending = self.ring.pending_send_size() & !7;
        if pending == 0 {
            return Ok(false);
        }
        // The size was written after all that the sender had published.
        observe();
        self.refresh()?;
        let free = size - distance(self.read, self.write, size);
        Ok(free.saturating_sub(given) <= pending && pending < free)
    }

    /// Asks to be signalled and looks once more: whether there are packets, so that
    /// this side must not sleep. The mask is written each time, since kernels before
    /// b15b7d2a1b09 set it behind our back.
    ///
    /// # Errors
    /// When the ring is broken.
    ///
    /// # Panics
    /// When packets were received and not released: a sender signals an empty ring
    /// only, and this one would never be empty.
    #[inline]
    pub fn arm(&mut self) -> Result<bool, RingError> {
        assert_eq!(self.read, self.released, "released before sleep");
        self.check()?;
        self.ring.set_interrupt_mask(0);
        publish_then_check();
        Ok(self.refresh()? != 0)
    }

    /// Asks not to be signalled, while this side is awake anyway.
    #[inline]
    pub fn disarm(&mut self) {
        self.ring.set_interrupt_mask(1);
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
