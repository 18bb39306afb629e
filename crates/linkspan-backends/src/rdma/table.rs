//! The connections of a carrier by number, who of them has something to tell, and when each
//! is looked at next.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use linkspan_rdma::verbs::Event;

use super::ConnectionId;

/// A connection, as its carrier keeps it.
pub(super) trait Entry {
    /// Whether there is something to tell.
    fn has_events(&self) -> bool;

    /// What has happened.
    fn poll(&mut self) -> Option<Event>;

    /// When it has to be told the time.
    fn next_due(&self) -> Option<Duration>;
}

/// The life that no connection has: descriptors of others that are watched, and channels.
pub(super) const OTHERS: u32 = u32::MAX;

struct Slot<L> {
    life: u32,
    link: Option<L>,
    telling: bool,
    timer: Option<Duration>,
}

pub(super) struct Table<L> {
    slots: Vec<Slot<L>>,
    free: Vec<u32>,
    telling: VecDeque<ConnectionId>,
    timers: BTreeSet<(Duration, ConnectionId)>,
}

impl<L: Entry> Table<L> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            telling: VecDeque::new(),
            timers: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The number of the next one; `None` if no number is left.
    pub(super) fn next_id(&self) -> Option<ConnectionId> {
        let place = match self.free.last() {
            Some(place) => *place,
            None => u32::try_from(self.slots.len()).ok()?,
        };
        let life = self.slots.get(place as usize).map_or(0, |slot| slot.life);
        Some(ConnectionId { place, life })
    }

    /// Adds one, with the number that was told last.
    pub(super) fn add(&mut self, id: ConnectionId, link: L) {
        debug_assert_eq!(Some(id), self.next_id());
        if self.free.pop().is_none() {
            self.slots.push(Slot {
                life: 0,
                link: None,
                telling: false,
                timer: None,
            });
        }
        self.slots[id.place()].link = Some(link);
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&L> {
        let slot = self.slots.get(id.place())?;
        slot.link.as_ref().filter(|_| slot.life == id.life)
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut L> {
        let slot = self.slots.get_mut(id.place())?;
        slot.link.as_mut().filter(|_| slot.life == id.life)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &L)> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(place, slot)| {
            let life = slot.life;
            Some((ConnectionId { place, life }, slot.link.as_ref()?))
        })
    }

    /// After anything: what it has to tell is asked for, and its time is noted.
    pub(super) fn note(&mut self, id: ConnectionId) {
        let Some(slot) = self.slots.get_mut(id.place()) else {
            return;
        };
        let Some(link) = slot.link.as_ref().filter(|_| slot.life == id.life) else {
            return;
        };
        if link.has_events() && !slot.telling {
            slot.telling = true;
            self.telling.push_back(id);
        }
        let due = link.next_due();
        if due != slot.timer {
            if let Some(timer) = slot.timer {
                self.timers.remove(&(timer, id));
            }
            if let Some(due) = due {
                self.timers.insert((due, id));
            }
            slot.timer = due;
        }
    }

    /// Forgets one. Its number never comes back, its place does.
    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<L> {
        self.get(id)?;
        let slot = &mut self.slots[id.place()];
        if let Some(timer) = slot.timer.take() {
            self.timers.remove(&(timer, id));
        }
        slot.telling = false;
        slot.life = (slot.life + 1) % OTHERS;
        self.free.push(id.place);
        slot.link.take()
    }

    /// Whether somebody may have something to tell.
    pub(super) fn tells(&self) -> bool {
        !self.telling.is_empty()
    }

    /// What has happened, on any of them; `Err` names one that has told all, and is to be
    /// settled.
    pub(super) fn poll(&mut self) -> Option<Result<(ConnectionId, Event), ConnectionId>> {
        let id = *self.telling.front()?;
        if let Some(event) = self.get_mut(id).and_then(L::poll) {
            return Some(Ok((id, event)));
        }
        self.telling.pop_front();
        let slot = self.slots.get_mut(id.place());
        if let Some(slot) = slot.filter(|slot| slot.life == id.life) {
            slot.telling = false;
        }
        Some(Err(id))
    }

    /// When the first one has to be told the time.
    pub(super) fn first_due(&self) -> Option<Duration> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// One that has to be told the time.
    pub(super) fn due(&mut self, now: Duration) -> Option<ConnectionId> {
        let (due, id) = *self.timers.first()?;
        if due > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(slot) = self.slots.get_mut(id.place()) {
            slot.timer = None;
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use linkspan_rdma::verbs::Failure;

    use super::*;

    #[derive(Default)]
    struct Link {
        events: VecDeque<Event>,
        due: Option<Duration>,
    }

    impl Entry for Link {
        fn has_events(&self) -> bool {
            !self.events.is_empty()
        }

        fn poll(&mut self) -> Option<Event> {
            self.events.pop_front()
        }

        fn next_due(&self) -> Option<Duration> {
            self.due
        }
    }

    fn add(table: &mut Table<Link>) -> ConnectionId {
        let id = table.next_id().unwrap();
        table.add(id, Link::default());
        id
    }

    #[test]
    fn places_come_back_and_numbers_do_not() {
        let mut table = Table::new();
        let [one, two] = [(); 2].map(|()| add(&mut table));
        assert!(table.remove(one).is_some() && table.remove(one).is_none());
        let three = add(&mut table);
        assert_eq!(three.place(), one.place());
        assert!(three != one && table.get(one).is_none() && table.get_mut(one).is_none());
        let ids: Vec<_> = table.iter().map(|(id, _)| id).collect();
        assert_eq!((ids, table.len()), (vec![three, two], 2));
    }

    #[test]
    fn each_tells_what_it_has_and_is_told_the_time_once() {
        let mut table = Table::new();
        let [one, two] = [(); 2].map(|()| add(&mut table));
        let link = table.get_mut(one).unwrap();
        link.events.push_back(Event::Ended(Failure::Lost));
        link.due = Some(Duration::from_secs(2));
        table.get_mut(two).unwrap().due = Some(Duration::from_secs(1));
        for id in [one, one, two] {
            table.note(id);
        }
        assert!(matches!(table.poll(), Some(Ok((id, _))) if id == one));
        assert!(matches!(table.poll(), Some(Err(id)) if id == one));
        assert!(table.poll().is_none() && !table.tells());
        assert_eq!(table.first_due(), Some(Duration::from_secs(1)));
        assert_eq!(table.due(Duration::from_secs(1)), Some(two));
        assert_eq!(table.due(Duration::from_secs(1)), None);
        // A timer goes with its connection.
        table.remove(one);
        assert_eq!(table.first_due(), None);
    }
}
