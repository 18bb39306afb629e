//! The host's end: offers channels to one guest.

mod handle;
mod saved;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use thiserror::Error;
use zerocopy::IntoBytes;

use super::STATUS_UNSUCCESSFUL;
use super::message::{Kind, MessageError, ProtocolVersion, bytes};
use super::offer::Offer;
use crate::packet::{GpaRanges, PacketError};

/// What a guest can make this end keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The best version that is spoken.
    pub version: ProtocolVersion,
    /// GPADLs at once.
    pub gpadls: usize,
    /// Pages in all of them together.
    pub pages: usize,
}

impl Default for Limits {
    /// Enough for Linux with UIO, whose two buffers have 12032 pages a channel.
    fn default() -> Self {
        Self {
            version: ProtocolVersion::WIN10_V5_3,
            gpadls: 256,
            pages: 1 << 17,
        }
    }
}

/// Channels of one guest at most: their numbers are bits of one page.
pub const CHANNELS_MAX: usize = 2047;

/// The connection that messages go to from version 5 on.
const MESSAGE_CONNECTION: u32 = 1;

/// How a guest opened a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The guest's number of the request.
    pub open_id: u32,
    /// The memory of both rings.
    pub gpadl: u32,
    /// The processor to be interrupted.
    pub target_vp: u32,
    /// The page of that memory where the ring from host to guest begins.
    pub second_page: u32,
    /// What the kind of the channel defines.
    pub user_data: [u8; 120],
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Give the guest this message.
    Send(Vec<u8>),
    /// Open the channel on the memory that [`Host::gpadl`] has, then say with
    /// [`Host::opened`] whether it is.
    Open {
        /// Which.
        relid: u32,
        /// How.
        request: OpenRequest,
    },
    /// Use the channel's rings no more.
    Close {
        /// Which.
        relid: u32,
    },
    /// The guest wants interrupts of the channel at another processor.
    Retarget {
        /// Which.
        relid: u32,
        /// The processor.
        target_vp: u32,
    },
    /// Use this memory no more, then say so with [`Host::released`].
    Release {
        /// Which.
        gpadl: u32,
    },
    /// Use no ring and no memory of this guest any more: it left, or begins anew.
    Reset,
}

/// A message that was dropped; nothing has changed but what the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// It is none.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message before a version was agreed upon.
    #[error("{kind:?} before the first contact")]
    NotConnected {
        /// What it is.
        kind: Kind,
    },
    /// A channel that is not offered, or not in this state.
    #[error("{kind:?} for channel {relid}, which is not there for it")]
    Channel {
        /// What it is.
        kind: Kind,
        /// Which channel.
        relid: u32,
    },
    /// A GPADL that does not exist, exists already, or is in use.
    #[error("{kind:?} for GPADL {gpadl:#x}, which is not there for it")]
    Gpadl {
        /// What it is.
        kind: Kind,
        /// Which GPADL.
        gpadl: u32,
    },
    /// A GPADL beyond what this end keeps.
    #[error("GPADL {gpadl:#x} with {pages} pages is more than is kept for a guest")]
    Budget {
        /// Which GPADL.
        gpadl: u32,
        /// Its pages.
        pages: usize,
    },
    /// The ranges of a GPADL make no sense.
    #[error("GPADL {gpadl:#x}: {error}")]
    Ranges {
        /// Which GPADL.
        gpadl: u32,
        /// Why.
        error: PacketError,
    },
    /// More page numbers than were announced.
    #[error("GPADL {gpadl:#x} has {got} bytes of ranges where {want} were announced")]
    RangeBytes {
        /// Which GPADL.
        gpadl: u32,
        /// Bytes that came.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// The second ring does not begin within the memory.
    #[error("channel {relid}: the second ring begins at page {second_page} of {pages}")]
    SecondRing {
        /// Which channel.
        relid: u32,
        /// Where it begins.
        second_page: u32,
        /// Pages there are.
        pages: usize,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

/// Something that cannot be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// More channels than there are numbers.
    #[error("more than {CHANNELS_MAX} channels")]
    Channels,
    /// A channel that is not there, or not in this state.
    #[error("channel {relid} is not there for it")]
    Channel {
        /// Which.
        relid: u32,
    },
    /// A GPADL that is not there, or not in this state.
    #[error("GPADL {gpadl:#x} is not there for it")]
    Gpadl {
        /// Which.
        gpadl: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Offered,
    Opening(OpenRequest),
    Open(OpenRequest),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Channel {
    offer: Offer,
    state: Use,
    /// The guest was told of it.
    known: bool,
    rescinded: bool,
}

/// Memory of the guest, by the numbers of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gpadl {
    relid: u32,
    ranges: u16,
    /// Bytes of the ranges that were announced.
    want: usize,
    bytes: Vec<u8>,
    state: GpadlState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GpadlState {
    Coming,
    Created,
    /// It is being released; whether the guest waits for that.
    Releasing(bool),
}

/// The host's end of one guest's control path.
#[derive(Debug)]
pub struct Host {
    limits: Limits,
    version: Option<ProtocolVersion>,
    /// The guest has asked for offers.
    asked: bool,
    channels: BTreeMap<u32, Channel>,
    gpadls: BTreeMap<u32, Gpadl>,
    outputs: VecDeque<Output>,
}

impl Host {
    /// Nobody is connected and nothing is offered.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            version: None,
            asked: false,
            channels: BTreeMap::new(),
            gpadls: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// What was agreed upon, if a guest is connected.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.version
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The ranges of a GPADL that is complete, with their page numbers. Not compared
    /// with the memory that there is.
    #[must_use]
    pub fn gpadl(&self, gpadl: u32) -> Option<GpaRanges<'_>> {
        let entry = self.gpadls.get(&gpadl)?;
        if entry.state == GpadlState::Coming {
            return None;
        }
        GpaRanges::parse(entry.ranges.into(), &entry.bytes).ok()
    }

    /// Offers a channel; returns its number.
    ///
    /// # Errors
    /// There are too many.
    pub fn offer(&mut self, offer: Offer) -> Result<u32, Misuse> {
        let numbers = 1..=u32::try_from(CHANNELS_MAX).expect("a few");
        let mut free = numbers.filter(|relid| !self.channels.contains_key(relid));
        let relid = free.next().ok_or(Misuse::Channels)?;
        let known = self.asked;
        self.channels.insert(
            relid,
            Channel {
                offer,
                state: Use::Offered,
                known,
                rescinded: false,
            },
        );
        if known {
            self.tell(Kind::OfferChannel, offer.body(relid).as_bytes());
        }
        Ok(relid)
    }

    /// Takes an offer back. The number is free again when the guest has released it.
    ///
    /// # Errors
    /// There is no such channel.
    pub fn rescind(&mut self, relid: u32) -> Result<(), Misuse> {
        let channel = self
            .channels
            .get_mut(&relid)
            .filter(|channel| !channel.rescinded);
        let channel = channel.ok_or(Misuse::Channel { relid })?;
        if !channel.known {
            self.channels.remove(&relid);
            return Ok(());
        }
        channel.rescinded = true;
        let state = core::mem::replace(&mut channel.state, Use::Offered);
        if state != Use::Offered {
            self.outputs.push_back(Output::Close { relid });
        }
        self.tell(Kind::RescindOffer, &bytes(&[relid]));
        Ok(())
    }

    /// Says whether a channel is open. One that was closed or rescinded meanwhile
    /// has had its [`Output::Close`].
    pub fn opened(&mut self, relid: u32, open: bool) {
        let Some(channel) = self.channels.get_mut(&relid) else {
            return;
        };
        let Use::Opening(request) = channel.state else {
            return;
        };
        channel.state = if open {
            Use::Open(request)
        } else {
            Use::Offered
        };
        let status = if open { 0 } else { STATUS_UNSUCCESSFUL };
        self.tell(Kind::OpenResult, &bytes(&[relid, request.open_id, status]));
    }

    /// Says that memory is not used any more.
    ///
    /// # Errors
    /// It was not to be released.
    pub fn released(&mut self, gpadl: u32) -> Result<(), Misuse> {
        let state = self.gpadls.get(&gpadl).map(|entry| entry.state);
        let Some(GpadlState::Releasing(awaited)) = state else {
            return Err(Misuse::Gpadl { gpadl });
        };
        self.gpadls.remove(&gpadl);
        if awaited {
            self.tell(Kind::GpadlTorndown, &bytes(&[gpadl]));
        }
        Ok(())
    }

    fn tell(&mut self, kind: Kind, body: &[u8]) {
        self.outputs.push_back(Output::Send(kind.encode(&[body])));
    }

    fn pages(&self) -> usize {
        self.gpadls.values().map(|entry| entry.want / 8).sum()
    }

    fn in_use(&self, gpadl: u32) -> bool {
        self.channels.values().any(|channel| match channel.state {
            Use::Offered => false,
            Use::Opening(request) | Use::Open(request) => request.gpadl == gpadl,
        })
    }

    /// Everything of the guest is gone.
    fn reset(&mut self) {
        if self.version.take().is_none() {
            return;
        }
        self.asked = false;
        self.gpadls.clear();
        self.channels.retain(|_, channel| !channel.rescinded);
        for channel in self.channels.values_mut() {
            channel.state = Use::Offered;
            channel.known = false;
        }
        self.outputs.push_back(Output::Reset);
    }

    fn room_for(&self, gpadl: u32, want: usize) -> Result<Vec<u8>, Error> {
        let pages = want / 8;
        if self.gpadls.len() >= self.limits.gpadls || self.pages() + pages > self.limits.pages {
            return Err(Error::Budget { gpadl, pages });
        }
        Ok(fault::try_with_capacity(want)?)
    }
}
