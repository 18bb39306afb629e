//! The loop of a worker's thread: what is ready, what is commanded, and one pass
//! for each ring that has something to do.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::{io, thread};

use linkspan_sys::EventFd;
use linkspan_sys::poll::{Epoll, Interest, Ready};

use super::{Command, EventSink, Ring, RingEvent};
use crate::device::Progress;

/// Token of the control descriptor. A ring at place `p` has `2p + 2` for its kick
/// and `2p + 3` for its handler's completions.
pub(super) const CONTROL: u64 = 0;

fn kick_token(place: usize) -> u64 {
    2 * place as u64 + 2
}

fn completion_token(place: usize) -> u64 {
    kick_token(place) + 1
}

struct Slot {
    number: u64,
    ring: Box<Ring>,
    events: EventSink,
    /// Whether it is in the list of those that have a pass next.
    queued: bool,
    /// Whether the owner waits for it to become quiet.
    stopping: bool,
}

/// What one pass of a slot came to.
enum Outcome {
    /// Nothing to do until something happens.
    Rests,
    /// Something is left to do.
    Works,
    /// Nothing was left; look again, since nobody will say when there is more.
    Polls,
    /// It is quiet, as its owner wants it.
    Quiet,
}

/// A worker's thread.
pub(super) struct Loop {
    epoll: Epoll,
    control: Arc<EventFd>,
    commands: Receiver<(u64, Command)>,
    /// Rings by place; a place is used again.
    slots: Vec<Option<Slot>>,
    /// Places without a ring.
    free: Vec<usize>,
    /// The place of each ring by its number, for commands. Events carry the place.
    places: HashMap<u64, usize>,
    /// Places of rings that have a pass next, each once and in order, so that
    /// nobody looks at those that rest, however many there are.
    queued: Vec<usize>,
}

impl Loop {
    /// A worker that obeys `commands` whenever `control`, which `epoll` watches
    /// as [`CONTROL`], is signalled.
    pub(super) fn new(
        epoll: Epoll,
        control: Arc<EventFd>,
        commands: Receiver<(u64, Command)>,
    ) -> Self {
        Self {
            epoll,
            control,
            commands,
            slots: Vec::new(),
            free: Vec::new(),
            places: HashMap::new(),
            queued: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        let mut ready = Ready::with_capacity(64);
        let mut round = Vec::new();
        loop {
            let timeout = (!self.queued.is_empty()).then_some(std::time::Duration::ZERO);
            if let Err(error) = self.epoll.wait(&mut ready, timeout) {
                panic!("a wait on our own epoll failed: {error}");
            }
            let mut commanded = false;
            for event in ready.iter() {
                match event.token.checked_sub(kick_token(0)) {
                    None => commanded = true,
                    Some(token) => self.woken(token / 2, token % 2 == 0),
                }
            }
            if commanded && !self.obey() {
                return;
            }
            // Each ring has one pass before any has its next one.
            std::mem::swap(&mut round, &mut self.queued);
            let mut only_polls = !round.is_empty();
            for place in round.drain(..) {
                only_polls &= self.pass(place);
            }
            if only_polls {
                // Perhaps the driver waits for this processor.
                thread::yield_now();
            }
        }
    }

    /// Something happened to the ring at `place`. Nothing of a ring that is gone
    /// gets here: its descriptors are forgotten before the next wait.
    fn woken(&mut self, place: u64, kick: bool) {
        let Some(place) = usize::try_from(place).ok() else {
            return;
        };
        if let Some(Some(slot)) = self.slots.get(place) {
            if kick {
                slot.ring.counters.kicks.add(1);
            }
            self.queue(place);
        }
    }

    fn queue(&mut self, place: usize) {
        if let Some(slot) = &mut self.slots[place]
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.queued.push(place);
        }
    }

    /// One pass of the ring at `place`; whether it is only polled.
    fn pass(&mut self, place: usize) -> bool {
        let Some(slot) = &mut self.slots[place] else {
            return true;
        };
        slot.queued = false;
        match slot.pass() {
            Outcome::Rests => false,
            Outcome::Works => {
                self.queue(place);
                false
            }
            Outcome::Polls => {
                self.queue(place);
                true
            }
            Outcome::Quiet => {
                self.release(place);
                false
            }
        }
    }

    /// Carries out all commands; false when there will be no more.
    fn obey(&mut self) -> bool {
        // Before looking: what comes meanwhile signals again.
        if let Err(error) = self.control.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        loop {
            match self.commands.try_recv() {
                Ok((number, Command::Start(ring, events))) => self.start(number, ring, events),
                Ok((number, command)) => self.command(number, command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn start(&mut self, number: u64, ring: Box<Ring>, events: EventSink) {
        let index = ring.index;
        let place = self.free.pop().unwrap_or(self.slots.len());
        if let Err(error) = self.watch(place, &ring) {
            if place < self.slots.len() {
                self.free.push(place);
            }
            return events.send(RingEvent::Refused {
                ring: index,
                error,
                lost: true,
            });
        }
        if place == self.slots.len() {
            self.slots.push(None);
        }
        let enabled = ring.enabled;
        self.slots[place] = Some(Slot {
            number,
            queued: false,
            ring,
            events: events.clone(),
            stopping: false,
        });
        self.places.insert(number, place);
        if enabled {
            self.queue(place);
        }
        events.send(RingEvent::Done { ring: index });
    }

    /// Watches a ring's kick (edge-triggered and never read: a peer's
    /// descriptor could block a reader) and its handler's completions.
    fn watch(&self, place: usize, ring: &Ring) -> io::Result<()> {
        if let Some(kick) = &ring.kick {
            self.epoll
                .add(kick, kick_token(place), Interest::READ.edge())?;
        }
        if let Some(fd) = ring.handler.completion_fd()
            && let Err(error) = self.epoll.add(fd, completion_token(place), Interest::READ)
        {
            // Dropping the ring could leave the kick watched: the peer holds it too.
            if let Some(kick) = &ring.kick {
                self.epoll.delete(kick)?;
            }
            return Err(error);
        }
        Ok(())
    }

    fn command(&mut self, number: u64, command: Command) {
        let Some(&place) = self.places.get(&number) else {
            return;
        };
        let Some(slot) = &mut self.slots[place] else {
            return;
        };
        let index = slot.ring.index;
        let (mut result, mut scan) = (Ok(()), false);
        match command {
            Command::Start(..) => {}
            Command::Stop => {
                slot.stopping = true;
                return self.queue(place);
            }
            Command::Enable(enabled) => {
                slot.ring.enabled = enabled;
                scan = true;
            }
            Command::Kick(kick) => {
                // The new one first: should it be refused, the old one goes on.
                let token = kick_token(place);
                result = kick.as_ref().map_or(Ok(()), |kick| {
                    self.epoll.add(kick, token, Interest::READ.edge())
                });
                if result.is_ok() {
                    let old = std::mem::replace(&mut slot.ring.kick, kick);
                    if let Some(Err(error)) = old.map(|old| self.epoll.delete(&old)) {
                        panic!("a watched kick descriptor cannot be forgotten: {error}");
                    }
                    scan = true;
                }
            }
            Command::Call(call) => {
                slot.ring.call = call;
                slot.ring.notify();
            }
            Command::Err(err) => slot.ring.err = err,
            Command::Log(log) => slot.ring.active.log = log,
        }
        slot.events.send(match result {
            Ok(()) => RingEvent::Done { ring: index },
            Err(error) => RingEvent::Refused {
                ring: index,
                error,
                lost: false,
            },
        });
        if scan {
            self.queue(place);
        }
    }

    /// Hands back the ring at `place`, which has nothing in flight.
    fn release(&mut self, place: usize) {
        let Some(slot) = self.slots[place].take() else {
            return;
        };
        self.places.remove(&slot.number);
        self.free.push(place);
        let Slot { ring, events, .. } = slot;
        let watched = [
            ring.kick.as_ref().map(AsFd::as_fd),
            ring.handler.completion_fd(),
        ];
        for fd in watched.into_iter().flatten() {
            if let Err(error) = self.epoll.delete(fd) {
                panic!("a watched descriptor cannot be forgotten: {error}");
            }
        }
        events.send(RingEvent::Stopped { ring });
    }
}

impl Slot {
    fn pass(&mut self) -> Outcome {
        let progress = self.ring.pass(self.stopping);
        if let Err(error) = progress
            && !self.ring.retired
        {
            self.ring.retire();
            let ring = self.ring.index;
            self.events.send(RingEvent::Broken { ring, error });
        }
        if self.stopping {
            return match self.ring.handler.in_flight() {
                0 => Outcome::Quiet,
                _ if self.ring.moves => Outcome::Works,
                _ => Outcome::Rests,
            };
        }
        match progress {
            Ok(Progress::More) => Outcome::Works,
            _ if self.ring.moves => Outcome::Works,
            _ if self.ring.is_polled() => Outcome::Polls,
            _ => Outcome::Rests,
        }
    }
}
