//! The guest's end: finds channels, shares memory for them, opens and closes them.

mod handle;
mod saved;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use thiserror::Error;
use zerocopy::IntoBytes;

use super::message::{
    BODY_PAGES, ContactBody, GpadlBodyBody, GpadlHeaderBody, HEADER_PAGES, Kind, MessageError,
    OpenBody, ProtocolVersion, bytes,
};
use super::offer::Offer;
use crate::packet::pages_of;

/// The connection for the first contact from version 5 on, and for everything before.
const CONTACT_CONNECTION: u32 = 4;
const OLD_CONNECTION: u32 = 1;

/// What a host can make this end keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The best version that is tried.
    pub version: ProtocolVersion,
    /// Channels at once.
    pub channels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            version: ProtocolVersion::WIN10_V5_3,
            channels: super::host::CHANNELS_MAX,
        }
    }
}

/// Page numbers that one GPADL can have: 16 bits count their bytes.
pub const GPADL_PAGES_MAX: usize = (u16::MAX as usize - 8) / 8;

/// What is to be done or known, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Post this message.
    Send {
        /// To this connection.
        connection: u32,
        /// It.
        message: Vec<u8>,
    },
    /// The host speaks this version. Offers follow.
    Connected(ProtocolVersion),
    /// The host speaks none of ours.
    NoVersion,
    /// A channel is there; see [`Guest::offer`].
    Offered(u32),
    /// All channels that there are now were offered.
    AllOffered,
    /// Memory is shared, under this name.
    Shared(u32),
    /// The host would not take the memory.
    NotShared {
        /// Its name.
        gpadl: u32,
        /// Why.
        status: u32,
    },
    /// The host uses the memory no more.
    Unshared(u32),
    /// The channel is open.
    Opened(u32),
    /// The host would not open it.
    NotOpened {
        /// Which.
        relid: u32,
        /// Why.
        status: u32,
    },
    /// The interrupts of the channel have moved, or not.
    Retargeted {
        /// Which.
        relid: u32,
        /// 0, or why not.
        status: u32,
    },
    /// The channel is gone, with its memory; let go of it and call
    /// [`Guest::release`].
    Rescinded(u32),
    /// The host has forgotten all; a new contact can begin.
    Unloaded,
}

/// A message of the host that was dropped; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// It is none.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It answers what was not asked, or comes too early.
    #[error("{kind:?} now, when it was not asked for")]
    Unasked {
        /// What it is.
        kind: Kind,
    },
    /// A channel that is offered twice, or was not offered.
    #[error("{kind:?} for channel {relid}, which is not there for it")]
    Channel {
        /// What it is.
        kind: Kind,
        /// Which channel.
        relid: u32,
    },
    /// More channels than are kept.
    #[error("channel {relid} is one more than {max}")]
    Budget {
        /// Which channel.
        relid: u32,
        /// Those that are kept.
        max: usize,
    },
}

/// Something that cannot be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misuse {
    /// There is, or is no, connection.
    #[error("not in this state of the connection")]
    Connection,
    /// A channel that is not there, or not in this state.
    #[error("channel {relid} is not there for it")]
    Channel {
        /// Which.
        relid: u32,
    },
    /// Memory that is not there, or not in this state, or in use.
    #[error("GPADL {gpadl:#x} is not there for it")]
    Gpadl {
        /// Which.
        gpadl: u32,
    },
    /// No memory, or more than one GPADL describes, or pages that do not fit it.
    #[error("{pages} pages for {len} bytes")]
    Pages {
        /// Page numbers given.
        pages: usize,
        /// Bytes.
        len: u32,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Refused(#[from] Injected),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Apart,
    /// The version that was asked for.
    Contacting(ProtocolVersion),
    /// The version, and the connection that messages go to.
    Connected(ProtocolVersion, u32),
    Unloading(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Closed,
    Opening(u32),
    Open(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Channel {
    offer: Offer,
    state: Use,
    /// How many times a change was asked for and not answered.
    modifying: u32,
    rescinded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GpadlState {
    Creating,
    Created,
    TearingDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gpadl {
    relid: u32,
    pages: u32,
    state: GpadlState,
}

/// Messages are made when they are taken: a GPADL can have hundreds.
#[derive(Debug)]
enum Queued {
    Ready(Output),
    Pages {
        gpadl: u32,
        number: u32,
        pages: Vec<u64>,
        next: usize,
    },
}

/// The guest's end of the control path.
#[derive(Debug)]
pub struct Guest {
    limits: Limits,
    link: Link,
    channels: BTreeMap<u32, Channel>,
    gpadls: BTreeMap<u32, Gpadl>,
    next_gpadl: u32,
    queue: VecDeque<Queued>,
}

impl Guest {
    /// Nobody is connected.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            link: Link::Apart,
            channels: BTreeMap::new(),
            gpadls: BTreeMap::new(),
            // As Linux begins, so that a name is seldom a small number.
            next_gpadl: 0xE1E10,
            queue: VecDeque::new(),
        }
    }

    /// What was agreed upon, if there is a connection.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        match self.link {
            Link::Connected(version, _) => Some(version),
            _ => None,
        }
    }

    /// A channel that is there.
    #[must_use]
    pub fn offer(&self, relid: u32) -> Option<&Offer> {
        self.channels.get(&relid).map(|channel| &channel.offer)
    }

    /// The channels that are there, by their numbers.
    pub fn offers(&self) -> impl Iterator<Item = (u32, &Offer)> {
        self.channels
            .iter()
            .map(|(relid, channel)| (*relid, &channel.offer))
    }

    /// Begins the first contact, with the best version.
    ///
    /// # Errors
    /// There is a connection.
    pub fn connect(&mut self) -> Result<(), Misuse> {
        if self.link != Link::Apart {
            return Err(Misuse::Connection);
        }
        self.contact(self.limits.version);
        Ok(())
    }

    fn contact(&mut self, version: ProtocolVersion) {
        self.link = Link::Contacting(version);
        let body = ContactBody {
            version: version.0.into(),
            target_vp: 0.into(),
            // From version 5 on the first byte is the interrupt source, 2.
            interrupt_page: u64::from(version >= ProtocolVersion::WIN10_V5)
                .wrapping_mul(2)
                .into(),
            monitor_pages: [0.into(); 2],
        };
        let connection = if version >= ProtocolVersion::WIN10_V5 {
            CONTACT_CONNECTION
        } else {
            OLD_CONNECTION
        };
        let message = Kind::InitiateContact.encode(&[body.as_bytes()]);
        self.event(Output::Send {
            connection,
            message,
        });
    }

    /// Shares `len` bytes that begin at a page, in the pages with these numbers;
    /// returns the name that the memory has from now on.
    ///
    /// # Errors
    /// Not now, or not this memory.
    pub fn share(&mut self, relid: u32, len: u32, pages: &[u64]) -> Result<u32, Misuse> {
        self.live(relid)?;
        let fits = pages_of(len, 0) == pages.len() as u64;
        if !fits || pages.is_empty() || pages.len() > GPADL_PAGES_MAX {
            let pages = pages.len();
            return Err(Misuse::Pages { pages, len });
        }
        let mut kept = fault::try_with_capacity(pages.len())?;
        kept.extend_from_slice(pages);
        let gpadl = self.name();
        let entry = Gpadl {
            relid,
            pages: u32::try_from(pages.len()).unwrap_or(u32::MAX),
            state: GpadlState::Creating,
        };
        self.gpadls.insert(gpadl, entry);
        let first = pages.len().min(HEADER_PAGES);
        let header = GpadlHeaderBody {
            relid: relid.into(),
            gpadl: gpadl.into(),
            range_len: u16::try_from(8 + 8 * pages.len())
                .unwrap_or(u16::MAX)
                .into(),
            ranges: 1.into(),
        };
        let range = bytes(&[len, 0]);
        let numbers = page_bytes(&pages[..first]);
        self.send(Kind::GpadlHeader, &[header.as_bytes(), &range, &numbers]);
        if pages.len() > first {
            self.queue.push_back(Queued::Pages {
                gpadl,
                number: 1,
                pages: kept,
                next: first,
            });
        }
        Ok(gpadl)
    }

    /// Takes memory back.
    ///
    /// # Errors
    /// It is not shared, or an open channel lies in it.
    pub fn unshare(&mut self, gpadl: u32) -> Result<(), Misuse> {
        let wrong = Misuse::Gpadl { gpadl };
        let used = self.channels.values().any(|channel| match channel.state {
            Use::Closed => false,
            Use::Opening(used) | Use::Open(used) => used == gpadl,
        });
        let entry = self.gpadls.get_mut(&gpadl).filter(|_| !used);
        let entry = entry.filter(|entry| entry.state == GpadlState::Created);
        let entry = entry.ok_or(wrong)?;
        entry.state = GpadlState::TearingDown;
        let relid = entry.relid;
        self.send(Kind::GpadlTeardown, &[&bytes(&[relid, gpadl])]);
        Ok(())
    }

    /// Opens a channel on memory whose second ring begins at `second_page`.
    ///
    /// # Errors
    /// Not now, or not on this memory.
    pub fn open(
        &mut self,
        relid: u32,
        gpadl: u32,
        second_page: u32,
        target_vp: u32,
        user_data: [u8; 120],
    ) -> Result<(), Misuse> {
        let entry = self.gpadls.get(&gpadl).copied();
        let entry =
            entry.filter(|entry| entry.state == GpadlState::Created && entry.relid == relid);
        let entry = entry.ok_or(Misuse::Gpadl { gpadl })?;
        let pages = entry.pages as usize;
        if !(1..entry.pages).contains(&second_page) {
            return Err(Misuse::Pages { pages, len: 0 });
        }
        let channel = self.live(relid)?;
        if channel.state != Use::Closed {
            return Err(Misuse::Channel { relid });
        }
        channel.state = Use::Opening(gpadl);
        let body = OpenBody {
            relid: relid.into(),
            open_id: relid.into(),
            gpadl: gpadl.into(),
            target_vp: target_vp.into(),
            second_page: second_page.into(),
            user_data,
        };
        self.send(Kind::OpenChannel, &[body.as_bytes()]);
        Ok(())
    }

    /// Closes a channel; the host uses it no more once its memory is taken back.
    ///
    /// # Errors
    /// It is not open.
    pub fn close(&mut self, relid: u32) -> Result<(), Misuse> {
        let channel = self.live(relid)?;
        if !matches!(channel.state, Use::Open(_)) {
            return Err(Misuse::Channel { relid });
        }
        channel.state = Use::Closed;
        self.send(Kind::CloseChannel, &[&bytes(&[relid])]);
        Ok(())
    }

    /// Moves the interrupts of an open channel. From version 5.3 on that is answered.
    ///
    /// # Errors
    /// It is not open.
    pub fn retarget(&mut self, relid: u32, target_vp: u32) -> Result<(), Misuse> {
        let answered = self.version() >= Some(ProtocolVersion::WIN10_V5_3);
        let channel = self.live(relid)?;
        if !matches!(channel.state, Use::Open(_)) {
            return Err(Misuse::Channel { relid });
        }
        channel.modifying += u32::from(answered);
        self.send(Kind::ModifyChannel, &[&bytes(&[relid, target_vp])]);
        Ok(())
    }

    /// Lets go of a channel that was rescinded. Its number may come again.
    ///
    /// # Errors
    /// It was not rescinded.
    pub fn release(&mut self, relid: u32) -> Result<(), Misuse> {
        let channel = self
            .channels
            .get(&relid)
            .filter(|channel| channel.rescinded);
        channel.ok_or(Misuse::Channel { relid })?;
        self.channels.remove(&relid);
        self.send(Kind::RelidReleased, &[&bytes(&[relid])]);
        Ok(())
    }

    /// Leaves: the host forgets everything.
    ///
    /// # Errors
    /// There is no connection.
    pub fn unload(&mut self) -> Result<(), Misuse> {
        let Link::Connected(_, connection) = self.link else {
            return Err(Misuse::Connection);
        };
        self.queue
            .retain(|queued| matches!(queued, Queued::Ready(_)));
        self.send(Kind::Unload, &[]);
        self.link = Link::Unloading(connection);
        self.channels.clear();
        self.gpadls.clear();
        Ok(())
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        match self.queue.front_mut()? {
            Queued::Ready(_) => match self.queue.pop_front() {
                Some(Queued::Ready(output)) => Some(output),
                _ => None,
            },
            Queued::Pages {
                gpadl,
                number,
                pages,
                next,
            } => {
                let end = pages.len().min(*next + BODY_PAGES);
                let body = GpadlBodyBody {
                    number: (*number).into(),
                    gpadl: (*gpadl).into(),
                };
                let numbers = page_bytes(&pages[*next..end]);
                let message = Kind::GpadlBody.encode(&[body.as_bytes(), &numbers]);
                *next = end;
                *number += 1;
                if end == pages.len() {
                    self.queue.pop_front();
                }
                let connection = self.connection();
                Some(Output::Send {
                    connection,
                    message,
                })
            }
        }
    }

    fn connection(&self) -> u32 {
        match self.link {
            Link::Connected(_, connection) | Link::Unloading(connection) => connection,
            Link::Apart | Link::Contacting(_) => OLD_CONNECTION,
        }
    }

    fn event(&mut self, output: Output) {
        self.queue.push_back(Queued::Ready(output));
    }

    fn send(&mut self, kind: Kind, parts: &[&[u8]]) {
        let connection = self.connection();
        let message = kind.encode(parts);
        self.event(Output::Send {
            connection,
            message,
        });
    }

    /// A channel that can be used now.
    fn live(&mut self, relid: u32) -> Result<&mut Channel, Misuse> {
        if self.version().is_none() {
            return Err(Misuse::Connection);
        }
        let channel = self.channels.get_mut(&relid);
        let channel = channel.filter(|channel| !channel.rescinded);
        channel.ok_or(Misuse::Channel { relid })
    }

    /// A name that no memory has.
    fn name(&mut self) -> u32 {
        while self.next_gpadl == 0 || self.gpadls.contains_key(&self.next_gpadl) {
            self.next_gpadl = self.next_gpadl.wrapping_add(1);
        }
        let name = self.next_gpadl;
        self.next_gpadl = name.wrapping_add(1);
        name
    }
}

fn page_bytes(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}
