//! Memory of ours that the peer may reach: how many registrations there are, which
//! state each is in, and by which token the peer knows it.

use alloc::vec::Vec;

use linkspan_mem::fault::{Injected, try_with_capacity};
use linkspan_rdma::verbs::Key;

use crate::connection::RegistrationId;
use crate::error::Error;

/// What a registration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Free.
    Ready,
    /// The peer may reach the memory.
    Registered,
    /// The peer gave its right up; the memory is its owner's again when it says so.
    Invalidated,
    /// It could not be invalidated; the connection ends.
    Error,
    /// The connection is over.
    Disabled,
}

/// All states, in the order in which [`crate::Status`] counts them.
pub(crate) const STATES: [RegistrationState; 5] = [
    RegistrationState::Ready,
    RegistrationState::Registered,
    RegistrationState::Invalidated,
    RegistrationState::Error,
    RegistrationState::Disabled,
];

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: RegistrationState,
    /// Counts its lives, so that a name of an earlier one finds nothing.
    life: u32,
    key: Key,
    /// Our invalidation is under way.
    ending: bool,
}

#[derive(Debug)]
pub(crate) struct Registrations(Vec<Entry>);

/// What is to be done so that a registration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing: the peer did it.
    Done,
    /// This key is to be invalidated.
    Invalidate(Key),
}

impl Registrations {
    pub(crate) fn new(count: usize) -> Result<Self, Injected> {
        let mut entries = try_with_capacity(count)?;
        let free = Entry {
            state: RegistrationState::Ready,
            life: 0,
            key: Key(0),
            ending: false,
        };
        entries.resize(count, free);
        Ok(Self(entries))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many are in each state.
    pub(crate) fn count(&self) -> [usize; STATES.len()] {
        STATES.map(|state| self.0.iter().filter(|entry| entry.state == state).count())
    }

    /// Whether none is in use.
    pub(crate) fn are_free(&self) -> bool {
        let mut entries = self.0.iter();
        entries.all(|entry| entry.state == RegistrationState::Ready)
    }

    /// A free one, if there is.
    pub(crate) fn free(&self) -> Option<usize> {
        let mut entries = self.0.iter();
        entries.position(|entry| entry.state == RegistrationState::Ready)
    }

    /// The free one of this index is registered now.
    pub(crate) fn begin(&mut self, index: usize, key: Key) -> RegistrationId {
        let entry = &mut self.0[index];
        entry.life = entry.life.wrapping_add(1);
        (entry.state, entry.key) = (RegistrationState::Registered, key);
        RegistrationId {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            life: entry.life,
        }
    }

    fn find(&mut self, id: RegistrationId) -> Option<&mut Entry> {
        let entry = self.0.get_mut(usize::try_from(id.index).ok()?)?;
        (entry.life == id.life).then_some(entry)
    }

    /// What state it is in; nothing of a life that is over.
    pub(crate) fn state(&self, id: RegistrationId) -> Option<RegistrationState> {
        let entry = self.0.get(usize::try_from(id.index).ok()?)?;
        (entry.life == id.life).then_some(entry.state)
    }

    /// The peer invalidated this token.
    pub(crate) fn invalidated(&mut self, key: Key) -> Result<(), Error> {
        let mut entries = self.0.iter_mut();
        let entry = entries
            .find(|entry| entry.state == RegistrationState::Registered && entry.key == key)
            .ok_or(Error::Token { token: key.0 })?;
        entry.state = RegistrationState::Invalidated;
        Ok(())
    }

    /// Its owner wants it back.
    pub(crate) fn end(&mut self, id: RegistrationId) -> Option<End> {
        let entry = self.find(id).filter(|entry| !entry.ending)?;
        match entry.state {
            RegistrationState::Invalidated => {
                entry.state = RegistrationState::Ready;
                Some(End::Done)
            }
            RegistrationState::Registered => {
                entry.ending = true;
                Some(End::Invalidate(entry.key))
            }
            _ => None,
        }
    }

    /// What became of its invalidation.
    pub(crate) fn ended(&mut self, id: RegistrationId, outcome: RegistrationState) {
        if let Some(entry) = self.find(id) {
            entry.ending = false;
            entry.state = outcome;
        }
    }

    /// The connection is over: all are disabled. One that was in use, if there is one
    /// that was not told of.
    pub(crate) fn disable(&mut self) -> Option<RegistrationId> {
        for (index, entry) in self.0.iter_mut().enumerate() {
            let before = core::mem::replace(&mut entry.state, RegistrationState::Disabled);
            let free = [RegistrationState::Ready, RegistrationState::Disabled];
            if !free.contains(&before) {
                return Some(RegistrationId {
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    life: entry.life,
                });
            }
        }
        None
    }
}
