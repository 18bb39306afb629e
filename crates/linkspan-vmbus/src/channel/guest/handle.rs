//! What each message of the host does.

use super::{Channel, Error, GpadlState, Guest, Link, OLD_CONNECTION, Output, Queued, Use};
use crate::channel::message::{End, Kind, OfferBody, ProtocolVersion, check, read, words};
use crate::channel::offer::Offer;

impl Guest {
    /// Takes a message of the host.
    ///
    /// # Errors
    /// It was dropped, and nothing has changed. Answers for what was rescinded
    /// meanwhile are dropped without one.
    pub fn receive(&mut self, message: &[u8]) -> Result<(), Error> {
        let version = match self.link {
            Link::Connected(version, _) | Link::Contacting(version) => Some(version),
            _ => None,
        };
        let (kind, body) = check(message, End::Host, version)?;
        match (kind, self.link) {
            (Kind::VersionResponse, Link::Contacting(version)) => {
                self.version_response(version, body);
                Ok(())
            }
            (Kind::UnloadResponse, Link::Unloading(_)) => {
                self.link = Link::Apart;
                self.event(Output::Unloaded);
                Ok(())
            }
            // Until the answer comes the host may have sent this or that.
            (_, Link::Unloading(_)) if kind != Kind::VersionResponse => Ok(()),
            (_, Link::Connected(..)) => self.connected(kind, body),
            _ => Err(Error::Unasked { kind }),
        }
    }

    fn version_response(&mut self, version: ProtocolVersion, body: &[u8]) {
        if body.first() == Some(&0) {
            let mut worse = ProtocolVersion::ALL.into_iter();
            match worse.find(|other| *other < version) {
                Some(worse) => self.contact(worse),
                None => {
                    self.link = Link::Apart;
                    self.event(Output::NoVersion);
                }
            }
            return;
        }
        // Older hosts have a shorter answer, and one connection.
        let connection = body.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let connection = connection.map(u32::from_le_bytes);
        let connection = connection.filter(|_| version >= ProtocolVersion::WIN10_V5);
        self.link = Link::Connected(version, connection.unwrap_or(OLD_CONNECTION));
        self.event(Output::Connected(version));
        self.send(Kind::RequestOffers, &[]);
    }

    fn connected(&mut self, kind: Kind, body: &[u8]) -> Result<(), Error> {
        match kind {
            Kind::OfferChannel => self.offered(&read::<OfferBody>(body)?.0),
            Kind::AllOffersDelivered => {
                self.event(Output::AllOffered);
                Ok(())
            }
            Kind::RescindOffer => self.rescinded(words(body)?),
            Kind::GpadlCreated => self.gpadl_created(words(body)?),
            Kind::GpadlTorndown => self.gpadl_torndown(words(body)?),
            Kind::OpenResult => self.open_result(words(body)?),
            Kind::ModifyResponse => self.modified(words(body)?),
            _ => Err(Error::Unasked { kind }),
        }
    }

    fn offered(&mut self, body: &OfferBody) -> Result<(), Error> {
        let relid = body.relid.get();
        let kind = Kind::OfferChannel;
        if relid == 0 || self.channels.contains_key(&relid) {
            return Err(Error::Channel { kind, relid });
        }
        let max = self.limits.channels;
        if self.channels.len() >= max {
            return Err(Error::Budget { relid, max });
        }
        let channel = Channel {
            offer: Offer::of(body),
            state: Use::Closed,
            modifying: 0,
            rescinded: false,
        };
        self.channels.insert(relid, channel);
        self.event(Output::Offered(relid));
        Ok(())
    }

    fn rescinded(&mut self, [relid]: [u32; 1]) -> Result<(), Error> {
        let channel = self.channels.get_mut(&relid);
        let channel = channel.filter(|channel| !channel.rescinded);
        let kind = Kind::RescindOffer;
        let channel = channel.ok_or(Error::Channel { kind, relid })?;
        channel.rescinded = true;
        channel.state = Use::Closed;
        channel.modifying = 0;
        self.gpadls.retain(|_, entry| entry.relid != relid);
        let left = &self.gpadls;
        self.queue.retain(|queued| match queued {
            Queued::Ready(_) => true,
            Queued::Pages { gpadl, .. } => left.contains_key(gpadl),
        });
        self.event(Output::Rescinded(relid));
        Ok(())
    }

    /// Whether answers for the channel come too late and mean nothing.
    fn is_gone(&self, relid: u32) -> bool {
        let channel = self.channels.get(&relid);
        channel.is_some_and(|channel| channel.rescinded)
    }

    fn gpadl_created(&mut self, [relid, gpadl, status]: [u32; 3]) -> Result<(), Error> {
        if self.is_gone(relid) {
            return Ok(());
        }
        let waiting = self.queue.iter().any(
            |queued| matches!(queued, Queued::Pages { gpadl: sending, .. } if *sending == gpadl),
        );
        let entry = self.gpadls.get_mut(&gpadl);
        let entry = entry.filter(|entry| {
            entry.state == GpadlState::Creating && entry.relid == relid && !(waiting && status == 0)
        });
        let kind = Kind::GpadlCreated;
        let entry = entry.ok_or(Error::Unasked { kind })?;
        if status == 0 {
            entry.state = GpadlState::Created;
            self.event(Output::Shared(gpadl));
            return Ok(());
        }
        self.gpadls.remove(&gpadl);
        self.queue.retain(
            |queued| !matches!(queued, Queued::Pages { gpadl: sending, .. } if *sending == gpadl),
        );
        self.event(Output::NotShared { gpadl, status });
        Ok(())
    }

    fn gpadl_torndown(&mut self, [gpadl]: [u32; 1]) -> Result<(), Error> {
        let entry = self.gpadls.get(&gpadl);
        let Some(entry) = entry else {
            // It may have gone with its channel.
            let any = self.channels.values().any(|channel| channel.rescinded);
            let kind = Kind::GpadlTorndown;
            return if any {
                Ok(())
            } else {
                Err(Error::Unasked { kind })
            };
        };
        if entry.state != GpadlState::TearingDown {
            let kind = Kind::GpadlTorndown;
            return Err(Error::Unasked { kind });
        }
        self.gpadls.remove(&gpadl);
        self.event(Output::Unshared(gpadl));
        Ok(())
    }

    fn open_result(&mut self, [relid, _open_id, status]: [u32; 3]) -> Result<(), Error> {
        if self.is_gone(relid) {
            return Ok(());
        }
        let channel = self.channels.get_mut(&relid);
        let opening = channel.and_then(|channel| match channel.state {
            Use::Opening(gpadl) => Some((channel, gpadl)),
            _ => None,
        });
        let kind = Kind::OpenResult;
        let (channel, gpadl) = opening.ok_or(Error::Channel { kind, relid })?;
        if status == 0 {
            channel.state = Use::Open(gpadl);
            self.event(Output::Opened(relid));
        } else {
            channel.state = Use::Closed;
            self.event(Output::NotOpened { relid, status });
        }
        Ok(())
    }

    fn modified(&mut self, [relid, status]: [u32; 2]) -> Result<(), Error> {
        if self.is_gone(relid) {
            return Ok(());
        }
        let kind = Kind::ModifyResponse;
        let channel = self.channels.get_mut(&relid);
        let channel = channel.filter(|channel| channel.modifying > 0);
        let channel = channel.ok_or(Error::Channel { kind, relid })?;
        channel.modifying -= 1;
        self.event(Output::Retargeted { relid, status });
        Ok(())
    }
}
