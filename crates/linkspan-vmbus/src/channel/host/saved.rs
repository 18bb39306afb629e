//! The host's end as bytes.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::{CHANNELS_MAX, Channel, Gpadl, GpadlState, Host, Limits, OpenRequest, Use};
use crate::NotQuiet;
use crate::channel::message::{OfferBody, ProtocolVersion};
use crate::channel::offer::Offer;
use crate::packet::GpaRanges;
use linkspan_mem::record::{Reader, RestoreError, Writer};

const MAGIC: [u8; 8] = *b"LSchhst1";

/// Bytes of a channel and of a GPADL, at least.
const CHANNEL_LEAST: usize = size_of::<OfferBody>() + 3;
const GPADL_LEAST: usize = 19;

impl Host {
    /// The control path as bytes. A channel that is being opened and memory that is
    /// being released are to be answered for by the next life as well.
    ///
    /// # Errors
    /// An output was not taken.
    pub fn snapshot(&self) -> Result<Vec<u8>, NotQuiet> {
        if !self.outputs.is_empty() {
            return Err(NotQuiet);
        }
        let mut writer = Writer::new(MAGIC);
        writer.u32(self.version.map_or(0, |version| version.0));
        writer.u8(self.asked.into());
        writer.count(self.channels.len());
        for (relid, channel) in &self.channels {
            writer.bytes(channel.offer.body(*relid).as_bytes());
            writer.u8(channel.known.into());
            writer.u8(channel.rescinded.into());
            save_use(&mut writer, &channel.state);
        }
        writer.count(self.gpadls.len());
        for (gpadl, entry) in &self.gpadls {
            writer.u32(*gpadl);
            writer.u32(entry.relid);
            writer.u16(entry.ranges);
            writer.count(entry.want);
            writer.u8(match entry.state {
                GpadlState::Coming => 0,
                GpadlState::Created => 1,
                GpadlState::Releasing(false) => 2,
                GpadlState::Releasing(true) => 3,
            });
            writer.count(entry.bytes.len());
            writer.bytes(&entry.bytes);
        }
        Ok(writer.finish())
    }

    /// The control path that [`snapshot`](Self::snapshot) saved.
    ///
    /// # Errors
    /// `bytes` are not that, or more than `limits` allow.
    pub fn restore(limits: Limits, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::new("host of channels", MAGIC, bytes)?;
        let mut host = Self::new(limits);
        let version = ProtocolVersion(reader.u32()?);
        host.version = (version.0 != 0).then_some(version);
        let known = host.version.is_none_or(|version| {
            ProtocolVersion::ALL.contains(&version) && version <= limits.version
        });
        if !known {
            return Err(nonsense("the version"));
        }
        host.asked = reader.flag("whether offers were asked for")?;
        for _ in 0..reader.count("the number of channels", CHANNEL_LEAST, CHANNELS_MAX)? {
            host.load_channel(&mut reader)?;
        }
        for _ in 0..reader.count("the number of GPADLs", GPADL_LEAST, limits.gpadls)? {
            host.load_gpadl(&mut reader)?;
        }
        reader.end()?;
        let created = |gpadl| host.gpadls.get(&gpadl).map(|entry| entry.state);
        let sound = host.channels.values().all(|channel| match channel.state {
            Use::Offered => true,
            Use::Opening(request) | Use::Open(request) => {
                created(request.gpadl) == Some(GpadlState::Created)
            }
        });
        if !sound {
            return Err(nonsense("a channel without memory"));
        }
        Ok(host)
    }

    fn load_channel(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let body: [u8; size_of::<OfferBody>()] = reader.array()?;
        let body = OfferBody::read_from_bytes(&body).map_err(|_| nonsense("an offer"))?;
        let channel = Channel {
            offer: Offer::of(&body),
            known: reader.flag("whether an offer is known")?,
            rescinded: reader.flag("whether an offer was taken back")?,
            state: load_use(reader)?,
        };
        let relid = body.relid.get();
        let possible =
            usize::try_from(relid).is_ok_and(|relid| (1..=CHANNELS_MAX).contains(&relid));
        if !possible || self.channels.insert(relid, channel).is_some() {
            return Err(nonsense("a channel's number"));
        }
        Ok(())
    }

    fn load_gpadl(&mut self, reader: &mut Reader<'_>) -> Result<(), RestoreError> {
        let (gpadl, relid, ranges) = (reader.u32()?, reader.u32()?, reader.u16()?);
        let want = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
        let state = match reader.u8()? {
            0 => GpadlState::Coming,
            1 => GpadlState::Created,
            2 => GpadlState::Releasing(false),
            3 => GpadlState::Releasing(true),
            _ => return Err(nonsense("the state of a GPADL")),
        };
        let len = reader.count("bytes of a GPADL", 1, want.min(usize::from(u16::MAX)))?;
        let room = self.room_for(gpadl, want);
        let mut bytes = room.map_err(|_| nonsense("the size of a GPADL"))?;
        bytes.extend_from_slice(reader.bytes(len)?);
        let coming = state == GpadlState::Coming;
        let parsed = GpaRanges::parse(ranges.into(), &bytes);
        if coming != (len < want) || !coming && parsed.is_err() {
            return Err(nonsense("the ranges of a GPADL"));
        }
        let entry = Gpadl {
            relid,
            ranges,
            want,
            bytes,
            state,
        };
        if self.gpadls.insert(gpadl, entry).is_some() {
            return Err(nonsense("a GPADL that is there twice"));
        }
        Ok(())
    }
}

fn nonsense(what: &'static str) -> RestoreError {
    RestoreError::Nonsense { what }
}

fn save_use(writer: &mut Writer, state: &Use) {
    let (kind, request) = match state {
        Use::Offered => return writer.u8(0),
        Use::Opening(request) => (1, request),
        Use::Open(request) => (2, request),
    };
    writer.u8(kind);
    for word in [
        request.open_id,
        request.gpadl,
        request.target_vp,
        request.second_page,
    ] {
        writer.u32(word);
    }
    writer.bytes(&request.user_data);
}

fn load_use(reader: &mut Reader<'_>) -> Result<Use, RestoreError> {
    let kind = reader.u8()?;
    if kind == 0 {
        return Ok(Use::Offered);
    }
    let request = OpenRequest {
        open_id: reader.u32()?,
        gpadl: reader.u32()?,
        target_vp: reader.u32()?,
        second_page: reader.u32()?,
        user_data: reader.array()?,
    };
    match kind {
        1 => Ok(Use::Opening(request)),
        2 => Ok(Use::Open(request)),
        _ => Err(nonsense("the state of a channel")),
    }
}
