//! The guest's end as bytes.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::{Channel, GPADL_PAGES_MAX, Gpadl, GpadlState, Guest, Limits, Link, Use};
use crate::NotQuiet;
use crate::channel::message::{OfferBody, ProtocolVersion};
use crate::channel::offer::Offer;
use linkspan_mem::record::{Reader, RestoreError, Writer};

const MAGIC: [u8; 8] = *b"LSchgst1";

/// Bytes of a channel and of a GPADL.
const CHANNEL_LEAST: usize = size_of::<OfferBody>() + 10;
const GPADL_LEAST: usize = 13;

/// GPADLs that a saved state can have.
const GPADLS_MAX: usize = 1 << 16;

impl Guest {
    /// The control path as bytes.
    ///
    /// # Errors
    /// An output was not taken.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if !self.queue.is_empty() {
            return Err(NotQuiet);
        }
        let mut writer = Writer::new(MAGIC);
        let (kind, version, connection) = match self.link {
            Link::Apart => (0, 0, 0),
            Link::Contacting(version) => (1, version.0, 0),
            Link::Connected(version, connection) => (2, version.0, connection),
            Link::Unloading(connection) => (3, 0, connection),
        };
        writer.u8(kind);
        writer.u32(version);
        writer.u32(connection);
        writer.u32(self.next_gpadl);
        writer.count(self.channels.len());
        for (relid, channel) in &self.channels {
            writer.bytes(channel.offer.body(*relid).as_bytes());
            let (kind, gpadl) = match channel.state {
                Use::Closed => (0, 0),
                Use::Opening(gpadl) => (1, gpadl),
                Use::Open(gpadl) => (2, gpadl),
            };
            writer.u8(kind);
            writer.u32(gpadl);
            writer.u32(channel.modifying);
            writer.u8(channel.rescinded.into());
        }
        writer.count(self.gpadls.len());
        for (gpadl, entry) in &self.gpadls {
            writer.u32(*gpadl);
            writer.u32(entry.relid);
            writer.u32(entry.pages);
            writer.u8(match entry.state {
                GpadlState::Creating => 0,
                GpadlState::Created => 1,
                GpadlState::TearingDown => 2,
            });
        }
        Ok(writer.finish())
    }

    /// The control path that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that, or more than `limits` allow.
    pub fn restore(limits: Limits, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new("guest of channels", MAGIC, bytes)?;
        let mut guest = Self::new(limits);
        let kind = reader.u8()?;
        let (version, connection) = (ProtocolVersion(reader.u32()?), reader.u32()?);
        let known = ProtocolVersion::ALL.contains(&version) && version <= limits.version;
        guest.link = match kind {
            0 => Link::Apart,
            1 if known => Link::Contacting(version),
            2 if known => Link::Connected(version, connection),
            3 => Link::Unloading(connection),
            _ => return Err(nonsense("the state of the connection")),
        };
        guest.next_gpadl = reader.u32()?;
        for _ in 0..reader.count("the number of channels", CHANNEL_LEAST, limits.channels)? {
            guest.load_channel(&mut reader)?;
        }
        for _ in 0..reader.count("the number of GPADLs", GPADL_LEAST, GPADLS_MAX)? {
            guest.load_gpadl(&mut reader)?;
        }
        reader.end()?;
        let connected = matches!(guest.link, Link::Connected(..));
        let nothing = guest.channels.is_empty() && guest.gpadls.is_empty();
        let sound = guest.channels.values().all(|channel| match channel.state {
            Use::Closed => true,
            Use::Opening(gpadl) | Use::Open(gpadl) => guest
                .gpadls
                .get(&gpadl)
                .is_some_and(|entry| entry.state == GpadlState::Created),
        });
        if !sound || !connected && !nothing {
            return Err(nonsense("a channel without memory or connection"));
        }
        Ok(guest)
    }

    fn load_channel(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let body: [u8; size_of::<OfferBody>()] = reader.array()?;
        let body = OfferBody::read_from_bytes(&body).map_err(|_| nonsense("an offer"))?;
        let (kind, gpadl) = (reader.u8()?, reader.u32()?);
        let channel = Channel {
            offer: Offer::of(&body),
            state: match kind {
                0 => Use::Closed,
                1 => Use::Opening(gpadl),
                2 => Use::Open(gpadl),
                _ => return Err(nonsense("the state of a channel")),
            },
            modifying: reader.u32()?,
            rescinded: reader.flag("whether an offer was taken back")?,
        };
        let relid = body.relid.get();
        if relid == 0 || self.channels.insert(relid, channel).is_some() {
            return Err(nonsense("a channel's number"));
        }
        Ok(())
    }

    fn load_gpadl(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let gpadl = reader.u32()?;
        let entry = Gpadl {
            relid: reader.u32()?,
            pages: reader.u32()?,
            state: match reader.u8()? {
                0 => GpadlState::Creating,
                1 => GpadlState::Created,
                2 => GpadlState::TearingDown,
                _ => return Err(nonsense("the state of a GPADL")),
            },
        };
        let possible = usize::try_from(entry.pages).is_ok_and(|pages| pages <= GPADL_PAGES_MAX);
        let channel = self.channels.contains_key(&entry.relid);
        if !possible || !channel || self.gpadls.insert(gpadl, entry).is_some() {
            return Err(nonsense("a GPADL"));
        }
        Ok(())
    }
}

fn nonsense(what: &'static str) -> RestoreError {
    RestoreError::Nonsense { what }
}
