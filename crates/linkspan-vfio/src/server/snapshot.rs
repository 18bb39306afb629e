//! A session as bytes, for a successor process: what was agreed upon, and the maps. The
//! bytes come from a file or another process and are checked like messages.

use alloc::vec::Vec;

use linkspan_mem::record::{Reader, RestoreError, Writer};
use thiserror::Error;

use super::{Agreed, Offer, Server, Turn};
use crate::dma::{DmaMap, Place};
use crate::version::Capabilities;
use crate::wire::{DMA_READ, DMA_WRITE, DmaMapBody, VERSION};

const MAGIC: [u8; 8] = *b"LSvfus\x01\0";
const WHAT: &str = "session of vfio-user";

const AGREED: u8 = 1 << 0;
const WRITE_MULTIPLE: u8 = 1 << 1;
const GFX_PLANE: u8 = 1 << 2;

const WRITABLE: u8 = 1 << 0;
const SHARED: u8 = 1 << 1;
const UNREADABLE: u8 = 1 << 2;

/// The session cannot be saved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotQuiet {
    /// Part of a message was received.
    #[error("a message is half received")]
    Receiving,
    /// An effect waits to be taken or answered, or a question for its answer.
    #[error("an effect or a question waits")]
    Working,
    /// There is nothing to go on with.
    #[error("the session is over")]
    Over,
}

impl Server {
    /// The session as bytes, between two messages.
    ///
    /// # Errors
    /// A message is being received or handled, or the session is over.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if self.over {
            return Err(NotQuiet::Over);
        }
        if self.framing.begun() {
            return Err(NotQuiet::Receiving);
        }
        let idle = matches!(self.turn, Turn::Idle) && self.told.is_none();
        if !idle || !self.outbox.is_empty() || self.questions.wait() {
            return Err(NotQuiet::Working);
        }
        let mut writer = Writer::new(MAGIC);
        let known = self
            .agreed
            .map_or_else(Capabilities::default, |agreed| agreed.capabilities);
        let mut flags = 0;
        for (is, flag) in [
            (self.agreed.is_some(), AGREED),
            (known.write_multiple, WRITE_MULTIPLE),
            (known.gfx_plane, GFX_PLANE),
        ] {
            flags |= if is { flag } else { 0 };
        }
        writer.u8(flags);
        writer.u16(self.agreed.map_or(0, |agreed| agreed.version.1));
        for number in [
            known.msg_fds,
            known.data_xfer_size,
            known.dma_maps,
            known.pgsizes,
        ] {
            writer.u64(number);
        }
        writer.count(self.maps.all().len());
        for map in self.maps.all() {
            let mark = |is: bool, flag: u8| if is { flag } else { 0 };
            writer.u8(mark(map.writable, WRITABLE)
                | mark(map.shared, SHARED)
                | mark(!map.readable, UNREADABLE));
            for number in [map.address.0, map.size, map.offset] {
                writer.u64(number);
            }
        }
        Ok(writer.finish())
    }

    /// The session that was saved, with the same offer. Its maps are to be mapped anew,
    /// by whoever drives it: [`maps`](Self::maps) has them.
    ///
    /// # Errors
    /// The bytes are no session of this offer.
    pub fn restore(offer: Offer, bytes: &[u8]) -> Result<Self, RestoreError> {
        let nonsense = |what| RestoreError::Nonsense { what };
        let mut reader = Reader::new(WHAT, MAGIC, bytes)?;
        let flags = reader.u8()?;
        if flags & !(AGREED | WRITE_MULTIPLE | GFX_PLANE) != 0 {
            return Err(nonsense("what was agreed upon"));
        }
        let minor = reader.u16()?;
        let capabilities = Capabilities {
            msg_fds: reader.u64()?,
            data_xfer_size: reader.u64()?,
            dma_maps: reader.u64()?,
            pgsizes: reader.u64()?,
            write_multiple: flags & WRITE_MULTIPLE != 0,
            gfx_plane: flags & GFX_PLANE != 0,
        };
        if minor > VERSION.1 || (capabilities.gfx_plane && !offer.planes) {
            return Err(nonsense("what was agreed upon"));
        }
        let mut server = Self::new(offer);
        let is_agreed = flags & AGREED != 0;
        let nothing = (0, 0, Capabilities::default());
        if !is_agreed && (flags, minor, capabilities) != nothing {
            return Err(nonsense("what was not agreed upon"));
        }
        server.agreed = is_agreed.then_some(Agreed {
            version: (VERSION.0, minor),
            capabilities,
        });
        for _ in 0..reader.u32()? {
            let flags = reader.u8()?;
            let body = DmaMapBody {
                argsz: 32,
                flags: (if flags & UNREADABLE == 0 { DMA_READ } else { 0 })
                    | if flags & WRITABLE != 0 { DMA_WRITE } else { 0 },
                address: reader.u64()?,
                size: reader.u64()?,
                offset: reader.u64()?,
            };
            let map = DmaMap::new(&body, flags & SHARED != 0).map_err(|_| nonsense("a map"))?;
            let place = server.maps.place(&map, server.offer.dma_maps);
            match place {
                // They are saved by address.
                Ok(Place::At(at))
                    if is_agreed
                        && flags & !(WRITABLE | SHARED | UNREADABLE) == 0
                        && at == server.maps.all().len() =>
                {
                    server.maps.insert(at, map);
                }
                _ => return Err(nonsense("a map")),
            }
        }
        reader.end()?;
        Ok(server)
    }
}
