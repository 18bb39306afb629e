//! One end of a life, and what its user knows: what it sent, what it awaits, which memory
//! is whose.

use std::collections::{BTreeMap, VecDeque};

use linkspan_rdma::verbs::{Access, Event, Key, Slice};
use linkspan_smbdirect::{
    Connection, Descriptor, Error, MessageId, Misuse, News, Refusal, RegistrationId,
    RegistrationState, Role, TransferId,
};

use crate::Rng;

use super::carrier::Carrier;
use super::ends::Side;
use super::luck::{Luck, Moody};
use super::places::{ARENA, LARGE, LOCAL, OFFERED, Places, SMALL, pattern};
use super::plan::{Fault, Plan};

/// A message that is on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) number: u64,
    pub(crate) len: u32,
    /// The offer that is done with.
    pub(crate) finishes: Option<u64>,
    pub(crate) invalidates: Option<Key>,
}

/// Memory that the other end may reach.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) number: u64,
    pub(crate) write: bool,
    pub(crate) descriptors: Vec<Descriptor>,
    /// What was written, where; nothing if that is not known.
    pub(crate) written: Option<(u64, u64, u32)>,
}

/// What its owner knows of it.
#[derive(Debug)]
struct Owned {
    registrations: Vec<(RegistrationId, Key)>,
    slices: Vec<Slice>,
    place: u64,
    /// Those that still have to end.
    left: usize,
}

/// A transfer of ours.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) offer: Offer,
    local: Slice,
    at: u64,
}

/// An end during one connection.
pub(crate) struct User<C> {
    pub(crate) side: Side<C>,
    at: usize,
    small: Places,
    large: Places,
    local: Places,
    offered: Places,
    /// What was sent and is not done, with its place.
    pending: BTreeMap<MessageId, (Message, Slice)>,
    /// Transfers under way.
    transfers: BTreeMap<TransferId, Transfer>,
    owned: BTreeMap<u64, Owned>,
    /// Registrations that are ended, and of which offer each is.
    ending: BTreeMap<RegistrationId, u64>,
    /// Registrations whose end was refused: to be ended again.
    again: Vec<(RegistrationId, u64)>,
    /// Offers that are done with, of which their owner was not told.
    pub(crate) finishing: VecDeque<(Offer, bool)>,
    /// Offers of the other end.
    pub(crate) offers: VecDeque<Offer>,
    /// What is to arrive, and how much of the first one was read.
    pub(crate) awaited: VecDeque<Message>,
    read: u32,
    pub(crate) connected: bool,
    pub(crate) ended: Option<Error>,
    /// Something found no room; until the next news.
    pub(crate) full: bool,
    /// What may be possible, until it was tried.
    pub(crate) events: bool,
    pub(crate) outputs: bool,
    pub(crate) packets: bool,
}

/// What the other end has to know at once.
#[derive(Debug)]
pub(crate) enum Said {
    Sent(Message),
    /// A message was not sent after all.
    Unsent(Message),
    Offered(Offer),
    /// What became of a write is not known.
    Spoilt(u64),
}

impl<C: Carrier> User<C> {
    pub(crate) fn new(at: usize, plan: &Plan<C::Way>, now: u64) -> Self {
        let role = [Role::Initiator, Role::Listener][at];
        let options = &plan.options[at];
        let end = C::make(role, options, plan.limits, &plan.way, now);
        Self {
            side: Side::with_arena(end, C::add_memory, role, options, now, ARENA).expect("it fits"),
            at,
            small: Places::new(SMALL),
            large: Places::new(LARGE),
            local: Places::new(LOCAL),
            offered: Places::new(OFFERED),
            pending: BTreeMap::new(),
            transfers: BTreeMap::new(),
            owned: BTreeMap::new(),
            ending: BTreeMap::new(),
            again: Vec::new(),
            finishing: VecDeque::new(),
            offers: VecDeque::new(),
            awaited: VecDeque::new(),
            read: 0,
            connected: false,
            ended: None,
            full: false,
            events: true,
            outputs: true,
            packets: true,
        }
    }

    pub(crate) fn core(&self) -> &Connection {
        self.side.driver.core()
    }

    pub(crate) fn core_mut(&mut self) -> &mut Connection {
        self.outputs = true;
        self.side.driver.core_mut()
    }

    /// When time is to be told.
    pub(crate) fn next_timeout(&self) -> Option<u64> {
        let dues = [self.core().next_timeout(), self.side.end.next_timeout()];
        dues.into_iter().flatten().min()
    }

    /// Writes to where nobody may; says whether there was room for that.
    pub(crate) fn stray(&mut self) -> bool {
        let nowhere = Descriptor {
            offset: 0,
            token: 0xDEAD_BEEF,
            length: 100,
        };
        let offer = Offer {
            number: u64::MAX,
            write: true,
            descriptors: vec![nowhere],
            written: None,
        };
        let Some(place) = self.local.0.pop() else {
            return false;
        };
        let local = self.side.slice(place, 100);
        let Ok(id) = self.core_mut().write(&[local], &offer.descriptors, 0) else {
            self.local.0.push(place);
            return false;
        };
        let stray = Transfer {
            offer,
            local,
            at: 0,
        };
        self.transfers.insert(id, stray);
        true
    }

    /// The next event of the provider, if there is one.
    pub(crate) fn event(&mut self, now: u64, luck: &mut Luck) {
        match self.side.end.poll() {
            None => self.events = false,
            Some(Event::Completed(done)) if done.done && luck.strikes(Fault::LosesCompletion) => {}
            Some(event) => {
                let memories = self.side.end.memories();
                self.side.driver.happened(now, memories, event);
                self.outputs = true;
            }
        }
    }

    /// The next thing to be done.
    pub(crate) fn poll(&mut self, now: u64, luck: &mut Luck) -> Option<Said> {
        let end = &mut self.side.end;
        let news = self.side.driver.poll(now, &mut Moody { end, luck });
        (self.packets, self.events) = (true, true);
        let Some(news) = news else {
            self.outputs = false;
            return None;
        };
        self.full = false;
        assert!(self.ended.is_none(), "after its end it is told {news:?}");
        match news {
            News::Connected => {
                assert!(!self.connected, "it is connected a second time");
                self.connected = true;
            }
            News::Received => assert!(self.core().message().is_some(), "there is nothing"),
            News::Sent { message, result } => return self.sent(message, result),
            News::Transferred {
                transfer, result, ..
            } => return self.transferred(transfer, result),
            News::Deregistered { id, result } => self.deregistered(id, result),
            News::Ended(error) => {
                self.ended = Some(error);
                let lost = [self.pending.len(), self.transfers.len(), self.owned.len()];
                assert_eq!(lost, [0; 3], "somebody waits after the end");
            }
        }
        None
    }

    fn sent(&mut self, id: MessageId, result: Result<(), Refusal>) -> Option<Said> {
        let (message, place) = self.pending.remove(&id).expect("it was told of it before");
        let size = place.len;
        let places = if size == self.small.1 {
            &mut self.small
        } else {
            &mut self.large
        };
        places.0.push(place.offset);
        match result {
            Ok(()) => None,
            Err(Refusal::Ended(_)) => None,
            Err(why) => {
                assert!(matches!(why, Refusal::Post(_)), "{why}");
                if let Some(number) = message.finishes {
                    // Its owner has to hear of it all the same.
                    let offer = Offer {
                        number,
                        write: false,
                        descriptors: Vec::new(),
                        written: None,
                    };
                    self.finishing.push_back((offer, false));
                }
                Some(Said::Unsent(message))
            }
        }
    }

    fn transferred(&mut self, id: TransferId, result: Result<(), Refusal>) -> Option<Said> {
        let transfer = self
            .transfers
            .remove(&id)
            .expect("it was told of it before");
        self.local.0.push(transfer.local.offset);
        let Transfer { offer, local, at } = transfer;
        if offer.write {
            let spoilt = result.is_err().then_some(Said::Spoilt(offer.number));
            return spoilt;
        }
        if result.is_ok() {
            let bytes = self.side.bytes(local);
            let start = usize::try_from(at).expect("small");
            let whole = pattern(offer.number, OFFERED.2);
            let wanted = &whole[start..start + bytes.len()];
            assert!(
                bytes == wanted,
                "offer {}: other bytes were read",
                offer.number
            );
        }
        self.finishing.push_back((offer, true));
        None
    }

    fn deregistered(&mut self, id: RegistrationId, result: Result<(), Refusal>) {
        let ended = matches!(result, Ok(()) | Err(Refusal::Ended(_)));
        let number = match self.ending.remove(&id) {
            Some(number) => number,
            None => {
                assert!(
                    matches!(result, Err(Refusal::Ended(_))),
                    "{id:?} was not ended"
                );
                let mut owned = self.owned.iter();
                let of = owned.find(|(_, it)| it.registrations.iter().any(|(name, _)| *name == id));
                *of.expect("it was told of it before").0
            }
        };
        if !ended {
            self.again.push((id, number));
            return;
        }
        let owned = self
            .owned
            .get_mut(&number)
            .expect("it was told of it before");
        owned.registrations.retain(|(name, _)| *name != id);
        owned.left -= 1;
        if owned.left == 0 {
            let place = self.owned.remove(&number).expect("it is there").place;
            self.offered.0.push(place);
        }
    }

    /// Sends a message of this length, if that is possible.
    pub(crate) fn send(&mut self, rng: &mut Rng, message: Message) -> Option<Said> {
        let places = if message.len <= self.small.1 {
            &mut self.small
        } else {
            &mut self.large
        };
        let size = places.1;
        let Some(offset) = places.0.pop() else {
            self.full = true;
            return None;
        };
        let whole = self.side.slice(offset, size);
        let data = whole.part(0, message.len);
        self.side.write(data, pattern(message.number, message.len));
        // In a few parts, some of which are nothing.
        let mut slices = Vec::new();
        let mut at = 0;
        for _ in 0..rng.below(12) {
            let part = data.part(at, rng.small(message.len + 1));
            at += part.len;
            slices.push(part);
        }
        slices.push(data.part(at, message.len));
        match self.core_mut().send(&slices, message.invalidates) {
            Ok(id) => {
                assert!(
                    self.pending.insert(id, (message, whole)).is_none(),
                    "{id:?} twice"
                );
                Some(Said::Sent(message))
            }
            Err(why) => {
                assert!(matches!(why, Misuse::Full { .. }), "{why}");
                let places = if size == self.small.1 {
                    &mut self.small
                } else {
                    &mut self.large
                };
                places.0.push(offset);
                self.full = true;
                None
            }
        }
    }

    /// Lets the other end reach some memory, if that is possible.
    pub(crate) fn offer(&mut self, rng: &mut Rng, luck: &mut Luck, number: u64) -> Option<Said> {
        let place = self.offered.0.pop()?;
        let write = rng.percent(50);
        let whole = self.side.slice(place, OFFERED.2);
        self.side.write(whole, pattern(number, OFFERED.2));
        let access = if write { Access::WRITE } else { Access::READ };
        let mut owned = Owned {
            registrations: Vec::new(),
            slices: Vec::new(),
            place,
            left: 0,
        };
        let mut descriptors = Vec::new();
        let mut at = 0;
        for _ in 0..=rng.below(3) {
            // One range of one or two pieces.
            let slice = whole.part(at, 1 + rng.small(4000));
            let cut = rng.small(slice.len);
            let parts = [slice.part(0, cut), slice.part(cut, slice.len)];
            let parts = &parts[usize::from(cut == 0)..];
            let before = self.core().status().registrations;
            let end = &mut self.side.end;
            match self
                .side
                .driver
                .register(&mut Moody { end, luck }, parts, access)
            {
                Ok((id, descriptor)) => {
                    owned.registrations.push((id, Key(descriptor.token)));
                    owned.slices.push(slice);
                    descriptors.push(descriptor);
                    at += slice.len;
                }
                Err(why) => {
                    let fits =
                        matches!(why, Refusal::Misuse(Misuse::Full { .. }) | Refusal::Post(_));
                    assert!(fits, "{why}");
                    assert_eq!(self.core().status().registrations, before);
                    break;
                }
            }
        }
        owned.left = owned.registrations.len();
        if owned.left == 0 {
            self.offered.0.push(place);
            return None;
        }
        assert!(self.owned.insert(number, owned).is_none());
        Some(Said::Offered(Offer {
            number,
            write,
            descriptors,
            written: None,
        }))
    }

    /// Reads or writes a part of what the other end offers; gives the offer back if that
    /// is not possible now.
    pub(crate) fn transfer(&mut self, rng: &mut Rng, mut offer: Offer) -> Result<(), Offer> {
        let Some(place) = self.local.0.pop() else {
            self.full = true;
            return Err(offer);
        };
        let total: u32 = offer.descriptors.iter().map(|it| it.length).sum();
        let at = rng.small(total);
        let len = 1 + rng.small(total - at);
        let local = self.side.slice(place, len);
        let cut = rng.small(len);
        let parts = [local.part(0, cut), local.part(cut, len)];
        let offset = u64::from(at);
        let started = if offer.write {
            self.side.write(local, pattern(!offer.number, len));
            let core = self.core_mut();
            core.write(&parts, &offer.descriptors, offset)
        } else {
            self.side.write(local, &vec![0; len as usize]);
            self.core_mut().read(&parts, &offer.descriptors, offset)
        };
        let id = match started {
            Ok(id) => id,
            Err(why) => {
                assert!(matches!(why, Misuse::Full { .. }), "{why}");
                self.local.0.push(place);
                self.full = true;
                return Err(offer);
            }
        };
        if offer.write {
            offer.written = Some((!offer.number, offset, len));
            // Behind what was written, and before that is done.
            self.finishing.push_back((offer.clone(), true));
        }
        let transfer = Transfer {
            offer,
            local,
            at: offset,
        };
        assert!(
            self.transfers.insert(id, transfer).is_none(),
            "{id:?} twice"
        );
        Ok(())
    }

    /// Reads a part of what has arrived, and checks it; the offer that it finishes.
    pub(crate) fn read(&mut self, len: u32) -> Option<(Message, bool)> {
        let first = self.core().message().expect("there is one");
        let message = *self
            .awaited
            .front()
            .unwrap_or_else(|| panic!("{first:?} is one too many"));
        assert_eq!(
            first.len,
            message.len - self.read,
            "message {} has another length",
            message.number
        );
        let mut bytes = vec![0; len.min(first.arrived) as usize];
        let count = self.side.driver.read(self.side.end.memories(), &mut bytes);
        self.outputs = true;
        assert_eq!(count, bytes.len());
        let wanted = &pattern(message.number, message.len)[self.read as usize..][..count];
        let same = bytes.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        assert!(
            same == count,
            "message {} has other bytes: {same} of {count} at {} of {} are right",
            message.number,
            self.read,
            message.len
        );
        self.read += u32::try_from(count).expect("it is below a length");
        if self.read < message.len {
            return None;
        }
        self.read = 0;
        self.awaited.pop_front();
        let invalidated = first.invalidated == message.invalidates;
        assert!(
            invalidated,
            "{:?} was to be invalidated",
            message.invalidates
        );
        Some((message, true))
    }

    /// The other end is done with memory of ours.
    pub(crate) fn finished(
        &mut self,
        number: u64,
        invalidated: Option<Key>,
        spoilt: bool,
        offer: &Offer,
    ) {
        let Some(owned) = self.owned.get(&number) else {
            panic!("offer {number} is finished twice");
        };
        for (id, key) in &owned.registrations {
            let state = self.core().registration(*id);
            let wanted = if invalidated == Some(*key) {
                RegistrationState::Invalidated
            } else {
                RegistrationState::Registered
            };
            assert_eq!(state, Some(wanted), "of offer {number}");
        }
        if let Some((content, at, len)) = offer.written.filter(|_| !spoilt) {
            let bytes: Vec<u8> = owned
                .slices
                .iter()
                .flat_map(|it| self.side.bytes(*it))
                .collect();
            let mut wanted = pattern(number, OFFERED.2)[..bytes.len()].to_vec();
            let start = usize::try_from(at).expect("small");
            wanted[start..][..len as usize].copy_from_slice(pattern(content, len));
            assert!(bytes == wanted, "offer {number}: other bytes were written");
        }
        let ids: Vec<_> = owned.registrations.iter().map(|(id, _)| *id).collect();
        self.again.extend(ids.into_iter().map(|id| (id, number)));
    }

    pub(crate) fn may_deregister(&self) -> bool {
        !self.again.is_empty()
    }

    pub(crate) fn deregister(&mut self) {
        let Some((id, number)) = self.again.pop() else {
            return;
        };
        self.core_mut().deregister(id).expect("it is registered");
        self.ending.insert(id, number);
    }

    /// Messages or transfers of it wait for work that was posted.
    pub(crate) fn awaits_its_provider(&self) -> bool {
        let waits = !self.pending.is_empty() || !self.transfers.is_empty();
        waits && self.ended.is_none() && self.core().status().works > 0
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
            && self.transfers.is_empty()
            && self.owned.is_empty()
            && self.finishing.is_empty()
            && self.offers.is_empty()
            && self.awaited.is_empty()
    }

    /// After the end: every buffer comes back, and nothing else is left.
    pub(crate) fn check_end(&mut self, now: u64, luck: &mut Luck) {
        while let Some(message) = self.core().message() {
            self.core_mut().consume(message.len);
        }
        while self.outputs {
            self.poll(now, luck);
        }
        let status = self.core().status();
        let name = ["initiator", "listener"][self.at];
        assert_eq!(self.side.end.lent(), 0, "{name}: buffers are lost");
        assert_eq!(
            status.held_buffers + status.works + status.waiting + status.transfers,
            0
        );
        assert_eq!(
            status.registrations[..4],
            [0; 4],
            "{name}: registrations are left"
        );
        assert_eq!(self.core().next_timeout(), None);
        assert_eq!(self.core().first_error(), self.ended);
    }
}
