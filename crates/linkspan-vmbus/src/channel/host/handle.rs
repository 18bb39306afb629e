//! What each message of the guest does.

use zerocopy::IntoBytes;

use super::{Error, Gpadl, GpadlState, Host, MESSAGE_CONNECTION, OpenRequest, Output, Use};
use crate::channel::STATUS_UNSUCCESSFUL;
use crate::channel::message::{
    ContactBody, End, GpadlBodyBody, GpadlHeaderBody, Kind, OpenBody, ProtocolVersion, bytes,
    check, read, words,
};
use crate::packet::GpaRanges;

impl Host {
    /// Takes a message of the guest.
    ///
    /// # Errors
    /// It was dropped. Where there is an answer to give, it was given; log it with a
    /// limit on the rate.
    pub fn receive(&mut self, message: &[u8]) -> Result<(), Error> {
        let (kind, body) = check(message, End::Guest, self.version)?;
        if kind == Kind::InitiateContact {
            return self.contact(&read::<ContactBody>(body)?.0);
        }
        if self.version.is_none() {
            return Err(Error::NotConnected { kind });
        }
        match kind {
            Kind::RequestOffers => self.request_offers(),
            Kind::GpadlHeader => {
                let (header, ranges) = read::<GpadlHeaderBody>(body)?;
                self.gpadl_header(&header, ranges)
            }
            Kind::GpadlBody => {
                let (body, pages) = read::<GpadlBodyBody>(body)?;
                self.gpadl_body(body.gpadl.get(), pages)
            }
            Kind::GpadlTeardown => self.teardown(words(body)?),
            Kind::OpenChannel => self.open(&read::<OpenBody>(body)?.0),
            Kind::CloseChannel => self.close(words(body)?),
            Kind::RelidReleased => self.relid_released(words(body)?),
            Kind::ModifyChannel => self.modify(words(body)?),
            Kind::Unload => {
                self.reset();
                self.tell(Kind::UnloadResponse, &[]);
                Ok(())
            }
            // The guest's messages are all above.
            _ => Err(Error::NotConnected { kind }),
        }
    }

    /// A guest that is connected and begins anew was started again without a word.
    fn contact(&mut self, contact: &ContactBody) -> Result<(), Error> {
        self.reset();
        let wanted = ProtocolVersion(contact.version.get());
        let spoken = ProtocolVersion::ALL.contains(&wanted) && wanted <= self.limits.version;
        self.version = spoken.then_some(wanted);
        let connection = if wanted >= ProtocolVersion::WIN10_V5 {
            MESSAGE_CONNECTION
        } else {
            0
        };
        let supported = u32::from(spoken);
        self.tell(Kind::VersionResponse, &bytes(&[supported, connection]));
        Ok(())
    }

    fn request_offers(&mut self) -> Result<(), Error> {
        self.asked = true;
        let mut offers = alloc::vec::Vec::new();
        for (relid, channel) in &mut self.channels {
            if !core::mem::replace(&mut channel.known, true) {
                offers.push(channel.offer.body(*relid));
            }
        }
        for offer in offers {
            self.tell(Kind::OfferChannel, offer.as_bytes());
        }
        self.tell(Kind::AllOffersDelivered, &[]);
        Ok(())
    }

    fn gpadl_header(&mut self, header: &GpadlHeaderBody, ranges: &[u8]) -> Result<(), Error> {
        let (relid, gpadl) = (header.relid.get(), header.gpadl.get());
        let kind = Kind::GpadlHeader;
        // Without a channel that it is for nobody waits for an answer.
        let channel = self.channels.get(&relid).filter(|channel| channel.known);
        channel.ok_or(Error::Channel { kind, relid })?;
        if self.gpadls.contains_key(&gpadl) {
            return Err(Error::Gpadl { kind, gpadl });
        }
        let want = usize::from(header.range_len.get());
        let room = self.room_for(gpadl, want);
        let bytes = room.inspect_err(|_| self.created(relid, gpadl, STATUS_UNSUCCESSFUL))?;
        let entry = Gpadl {
            relid,
            ranges: header.ranges.get(),
            want,
            bytes,
            state: GpadlState::Coming,
        };
        self.gpadls.insert(gpadl, entry);
        self.add_ranges(gpadl, ranges)
    }

    fn gpadl_body(&mut self, gpadl: u32, pages: &[u8]) -> Result<(), Error> {
        let entry = self.gpadls.get(&gpadl);
        if entry.is_none_or(|entry| entry.state != GpadlState::Coming) {
            let kind = Kind::GpadlBody;
            return Err(Error::Gpadl { kind, gpadl });
        }
        self.add_ranges(gpadl, pages)
    }

    /// More of a GPADL; when all is there it is checked and answered.
    fn add_ranges(&mut self, gpadl: u32, more: &[u8]) -> Result<(), Error> {
        let Some(entry) = self.gpadls.get_mut(&gpadl) else {
            return Ok(());
        };
        let (relid, want) = (entry.relid, entry.want);
        let got = entry.bytes.len() + more.len();
        let checked = if got > want {
            Err(Error::RangeBytes { gpadl, got, want })
        } else {
            entry.bytes.extend_from_slice(more);
            if got < want {
                return Ok(());
            }
            check_ranges(gpadl, entry)
        };
        match checked {
            Ok(()) => {
                entry.state = GpadlState::Created;
                self.created(relid, gpadl, 0);
            }
            Err(_) => {
                self.gpadls.remove(&gpadl);
                self.created(relid, gpadl, STATUS_UNSUCCESSFUL);
            }
        }
        checked
    }

    fn created(&mut self, relid: u32, gpadl: u32, status: u32) {
        self.tell(Kind::GpadlCreated, &bytes(&[relid, gpadl, status]));
    }

    fn teardown(&mut self, [relid, gpadl]: [u32; 2]) -> Result<(), Error> {
        let kind = Kind::GpadlTeardown;
        let in_use = self.in_use(gpadl);
        let entry = self.gpadls.get_mut(&gpadl);
        let entry = entry
            .filter(|entry| entry.state == GpadlState::Created && entry.relid == relid && !in_use);
        let entry = entry.ok_or(Error::Gpadl { kind, gpadl })?;
        entry.state = GpadlState::Releasing(true);
        self.outputs.push_back(Output::Release { gpadl });
        Ok(())
    }

    fn open(&mut self, body: &OpenBody) -> Result<(), Error> {
        let (relid, gpadl) = (body.relid.get(), body.gpadl.get());
        let kind = Kind::OpenChannel;
        let channel = self.channels.get(&relid).filter(|channel| channel.known);
        let channel = channel.ok_or(Error::Channel { kind, relid })?;
        let refused = if channel.state != Use::Offered {
            // The answer to the request before is what its guest waits for.
            return Err(Error::Channel { kind, relid });
        } else if channel.rescinded {
            Some(Error::Channel { kind, relid })
        } else {
            self.second_ring(relid, gpadl, body.second_page.get()).err()
        };
        if let Some(error) = refused {
            let answer = [relid, body.open_id.get(), STATUS_UNSUCCESSFUL];
            self.tell(Kind::OpenResult, &bytes(&answer));
            return Err(error);
        }
        let request = OpenRequest {
            open_id: body.open_id.get(),
            gpadl,
            target_vp: body.target_vp.get(),
            second_page: body.second_page.get(),
            user_data: body.user_data,
        };
        if let Some(channel) = self.channels.get_mut(&relid) {
            channel.state = Use::Opening(request);
        }
        self.outputs.push_back(Output::Open { relid, request });
        Ok(())
    }

    /// The memory is the channel's, complete, and has two rings.
    fn second_ring(&self, relid: u32, gpadl: u32, second_page: u32) -> Result<(), Error> {
        let entry = self.gpadls.get(&gpadl);
        let entry =
            entry.filter(|entry| entry.state == GpadlState::Created && entry.relid == relid);
        let entry = entry.ok_or(Error::Gpadl {
            kind: Kind::OpenChannel,
            gpadl,
        })?;
        let ranges = GpaRanges::parse(entry.ranges.into(), &entry.bytes);
        let pages = ranges.map_or(0, |ranges| ranges.page_count());
        let inside = usize::try_from(second_page).is_ok_and(|page| (1..pages).contains(&page));
        if !inside {
            return Err(Error::SecondRing {
                relid,
                second_page,
                pages,
            });
        }
        Ok(())
    }

    /// A guest closes what was rescinded, too.
    fn close(&mut self, [relid]: [u32; 1]) -> Result<(), Error> {
        let kind = Kind::CloseChannel;
        let channel = self.channels.get_mut(&relid);
        let channel = channel.filter(|channel| channel.rescinded || channel.state != Use::Offered);
        let channel = channel.ok_or(Error::Channel { kind, relid })?;
        let state = core::mem::replace(&mut channel.state, Use::Offered);
        if state != Use::Offered {
            self.outputs.push_back(Output::Close { relid });
        }
        Ok(())
    }

    fn relid_released(&mut self, [relid]: [u32; 1]) -> Result<(), Error> {
        let kind = Kind::RelidReleased;
        let channel = self
            .channels
            .get(&relid)
            .filter(|channel| channel.rescinded);
        channel.ok_or(Error::Channel { kind, relid })?;
        self.channels.remove(&relid);
        // Guests do not tear down the memory of a channel that was rescinded.
        self.gpadls
            .retain(|_, entry| entry.relid != relid || entry.state != GpadlState::Coming);
        let entries = self.gpadls.iter_mut();
        for (gpadl, entry) in entries.filter(|(_, entry)| entry.relid == relid) {
            if entry.state == GpadlState::Created {
                entry.state = GpadlState::Releasing(false);
                self.outputs.push_back(Output::Release { gpadl: *gpadl });
            }
        }
        Ok(())
    }

    fn modify(&mut self, [relid, target_vp]: [u32; 2]) -> Result<(), Error> {
        let kind = Kind::ModifyChannel;
        let channel = self.channels.get_mut(&relid);
        let request = channel.and_then(|channel| match &mut channel.state {
            Use::Open(request) => Some(request),
            _ => None,
        });
        let answered = self.version >= Some(ProtocolVersion::WIN10_V5_3);
        let status = if let Some(request) = request {
            request.target_vp = target_vp;
            self.outputs
                .push_back(Output::Retarget { relid, target_vp });
            0
        } else {
            STATUS_UNSUCCESSFUL
        };
        if answered {
            self.tell(Kind::ModifyResponse, &bytes(&[relid, status]));
        }
        if status == 0 {
            return Ok(());
        }
        Err(Error::Channel { kind, relid })
    }
}

fn check_ranges(gpadl: u32, entry: &Gpadl) -> Result<(), Error> {
    let ranges = GpaRanges::parse(entry.ranges.into(), &entry.bytes);
    let ranges = ranges.map_err(|error| Error::Ranges { gpadl, error })?;
    let (got, want) = (ranges.len(), entry.bytes.len());
    if got != want || got == 0 {
        return Err(Error::RangeBytes { gpadl, got, want });
    }
    Ok(())
}
