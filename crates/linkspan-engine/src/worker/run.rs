//! The loop of a worker's thread: what is ready, what is commanded, and one pass
//! for each ring that has something to do.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use std::{io, thread};

use linkspan_sys::EventFd;
use linkspan_sys::poll::{Epoll, Interest, Ready};

use super::neighbours::Addresses;
use super::slot::{Outcome, Slot, Work, retire};
use super::{Command, EventSink, Neighbours, Ring, RingEvent, Task};
use crate::counters::WorkerCounters;
use crate::spin::Spin;

/// How long at most a worker that is awake goes without asking the system what has
/// happened, a round of passes aside: a ring that sleeps waits no longer to be heard.
const ASK_EVERY: Duration = Duration::from_micros(20);

/// The longest sleep until a certain time; older kernels know no longer ones.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Token of the control descriptor. A ring at place `p` has `2p + 2` for its kick
/// and `2p + 3` for its handler's completions.
pub(super) const CONTROL: u64 = 0;

fn kick_token(place: usize) -> u64 {
    2 * place as u64 + 2
}

fn completion_token(place: usize) -> u64 {
    kick_token(place) + 1
}

/// How a worker hears of commands.
pub(super) struct Control {
    /// Watched as [`CONTROL`].
    pub(super) wake: Arc<EventFd>,
    /// The same for a worker that is awake. Set first.
    pub(super) commanded: Arc<AtomicBool>,
    /// Commands for rings and tasks by number; closed when there will be no more.
    pub(super) commands: Receiver<(u64, Command)>,
}

/// A worker's thread.
pub(super) struct Loop {
    epoll: Epoll,
    control: Control,
    spin: Spin,
    /// Whether it never sleeps.
    busy: bool,
    counters: Arc<WorkerCounters>,
    /// Rings by place; a place is used again.
    slots: Vec<Option<Slot>>,
    /// Places without a ring.
    free: Vec<usize>,
    /// The place of each ring by its number, for commands. Events carry the place.
    places: HashMap<u64, usize>,
    /// Places of rings that have a pass next, each once and in order, so that
    /// nobody looks at those that rest, however many there are.
    queued: Vec<usize>,
    /// Places of rings whose drivers were not asked for a kick, each once.
    awake: Vec<usize>,
    /// Places of rings that have a pass at a certain time, each once.
    timed: Vec<usize>,
    /// Places that others reach.
    addresses: Addresses,
    /// Places of rings that others filled since they were last published.
    fed: Vec<usize>,
    /// Since when there is nothing to do.
    idle_since: Option<Instant>,
}

impl Loop {
    /// A worker that obeys `control`, whose descriptor `epoll` watches.
    pub(super) fn new(
        epoll: Epoll,
        control: Control,
        (spin, busy): (Spin, bool),
        counters: Arc<WorkerCounters>,
    ) -> Self {
        Self {
            epoll,
            control,
            spin,
            busy,
            counters,
            slots: Vec::new(),
            free: Vec::new(),
            places: HashMap::new(),
            queued: Vec::new(),
            awake: Vec::new(),
            timed: Vec::new(),
            addresses: Addresses::default(),
            fed: Vec::new(),
            idle_since: None,
        }
    }

    pub(super) fn run(mut self) {
        let mut ready = Ready::with_capacity(64);
        let mut round = Vec::new();
        let mut asked = Instant::now();
        loop {
            let now = Instant::now();
            if self.control.commanded.load(Ordering::Acquire) && !self.obey() {
                return;
            }
            self.queue_due(now);
            if now.duration_since(asked) >= ASK_EVERY {
                self.ask(&mut ready, Some(Duration::ZERO));
                asked = now;
            }
            self.look();
            if !self.queued.is_empty() {
                self.pass_each(&mut round, now);
                continue;
            }
            let idle_since = *self.idle_since.get_or_insert(now);
            // One that never sleeps saves nothing by asking the system sooner.
            let window = if self.busy {
                ASK_EVERY
            } else if self.can_see_work() {
                self.spin.window()
            } else {
                Duration::ZERO
            };
            if now.duration_since(idle_since) < window {
                self.counters.polls.add(1);
                std::hint::spin_loop();
            } else if self.busy || self.is_polling() {
                self.counters.polls.add(1);
                // Perhaps the driver waits for this processor.
                thread::yield_now();
            } else {
                self.sleep(&mut ready, now);
                asked = Instant::now();
            }
        }
    }

    /// One pass for each ring that has something to do, before any has its next.
    /// `round` is empty, and is so again afterwards.
    fn pass_each(&mut self, round: &mut Vec<usize>, now: Instant) {
        std::mem::swap(round, &mut self.queued);
        let mut worked = false;
        for place in round.drain(..) {
            worked |= self.pass(place, now);
        }
        if worked && let Some(since) = self.idle_since.take() {
            let gap = now.duration_since(since);
            self.counters
                .poll_hits
                .add(u64::from(gap < self.spin.window()));
            self.spin.came_after(gap);
        }
    }

    /// Looks at the rings whose drivers do not kick.
    fn look(&mut self) {
        let mut at = 0;
        while let Some(&place) = self.awake.get(at) {
            match self.slots[place].as_mut() {
                Some(slot) if slot.takes() => {
                    if !slot.queued && slot.has_work() {
                        self.queue(place);
                    }
                    at += 1;
                }
                slot => {
                    if let Some(slot) = slot {
                        slot.awake = false;
                    }
                    self.awake.swap_remove(at);
                }
            }
        }
    }

    /// Whether looking can find something: without a ring, and without a task that others
    /// bring something, only the system knows.
    fn can_see_work(&self) -> bool {
        let awake = self.awake.iter();
        let mut slots = awake.filter_map(|place| self.slots[*place].as_ref());
        slots.any(Slot::can_see_work)
    }

    /// Whether nobody says when there is something to do for one of the rings.
    fn is_polling(&self) -> bool {
        let awake = self.awake.iter();
        let mut slots = awake.filter_map(|place| self.slots[*place].as_ref());
        slots.any(Slot::is_polled)
    }

    /// Asks all drivers for kicks and, unless there is something to do by now,
    /// sleeps until something happens.
    fn sleep(&mut self, ready: &mut Ready, now: Instant) {
        let mut at = 0;
        while let Some(&place) = self.awake.get(at) {
            let Some(slot) = &mut self.slots[place] else {
                self.awake.swap_remove(at);
                continue;
            };
            if slot.takes() && slot.arm() {
                self.queue(place);
                at += 1;
            } else {
                slot.awake = false;
                self.awake.swap_remove(at);
            }
        }
        if self.queued.is_empty() {
            let times = self.timed.iter();
            let times = times.filter_map(|place| self.slots[*place].as_ref()?.until);
            let left = times.min().map(|until| {
                let left = until.saturating_duration_since(now);
                left.min(SLEEP_MAX)
            });
            self.counters.sleeps.add(1);
            self.ask(ready, left);
            self.counters.wakes.add(1);
        }
    }

    /// Hears what happened, and waits for it for at most `timeout`.
    fn ask(&mut self, ready: &mut Ready, timeout: Option<Duration>) {
        if let Err(error) = self.epoll.wait(ready, timeout) {
            panic!("a wait on our own epoll failed: {error}");
        }
        for event in ready.iter() {
            match event.token.checked_sub(kick_token(0)) {
                None => self.control.commanded.store(true, Ordering::Relaxed),
                Some(token) => self.woken(token / 2, token % 2 == 0),
            }
        }
    }

    /// Rings whose time has come have a pass.
    fn queue_due(&mut self, now: Instant) {
        for at in 0..self.timed.len() {
            let place = self.timed[at];
            let slot = self.slots[place].as_ref();
            if slot
                .and_then(|slot| slot.until)
                .is_some_and(|until| until <= now)
            {
                self.queue(place);
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
            if kick && let Work::Ring(ring, _) = &slot.work {
                ring.counters.kicks.add(1);
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

    /// One pass of the ring at `place`, in a round that began at `now`; whether anything
    /// moved on.
    fn pass(&mut self, place: usize, now: Instant) -> bool {
        // Out of its place, so that it can have all others.
        let Some(mut slot) = self.slots[place].take() else {
            return false;
        };
        self.counters.passes.add(1);
        slot.queued = false;
        if slot.until.take().is_some() {
            self.timed.retain(|timed| *timed != place);
        }
        let (worked, outcome) = slot.pass(&mut Neighbours {
            slots: &mut self.slots,
            addresses: &self.addresses,
            fed: &mut self.fed,
            now,
        });
        match outcome {
            Outcome::Awake if !std::mem::replace(&mut slot.awake, true) => self.awake.push(place),
            Outcome::Waits(until) => {
                slot.until = Some(until);
                self.timed.push(place);
            }
            _ => {}
        }
        self.slots[place] = Some(slot);
        self.publish_fed();
        match outcome {
            Outcome::Works => self.queue(place),
            Outcome::Waits(_) => self.let_rest(place),
            Outcome::Quiet => self.release(place),
            Outcome::Rests | Outcome::Awake => {}
        }
        worked
    }

    /// Shows their drivers what was put into rings by others.
    fn publish_fed(&mut self) {
        for place in self.fed.drain(..) {
            if let Some(Some(slot)) = self.slots.get_mut(place)
                && let Some(fed) = slot.fed.take()
                && let Work::Ring(ring, events) = &mut slot.work
                && let Err(error) = ring.publish(fed.before)
            {
                retire(ring, events, error);
                // Its handler hears that nobody is to fill it any more.
                if !std::mem::replace(&mut slot.queued, true) {
                    self.queued.push(place);
                }
            }
        }
    }

    /// The ring at `place` is not looked at until it has another pass.
    fn let_rest(&mut self, place: usize) {
        if let Some(slot) = &mut self.slots[place]
            && std::mem::replace(&mut slot.awake, false)
        {
            self.awake.retain(|awake| *awake != place);
        }
    }

    /// Carries out all commands; false when there will be no more.
    fn obey(&mut self) -> bool {
        // Before looking: what comes meanwhile signals again.
        self.control.commanded.store(false, Ordering::Relaxed);
        if let Err(error) = self.control.wake.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        loop {
            match self.control.commands.try_recv() {
                Ok((number, Command::Start(ring, events))) => self.start(number, ring, events),
                Ok((number, Command::Add(task, answer))) => {
                    // Whoever asked waits for it.
                    let _ = answer.send(self.add(number, task));
                }
                Ok((_, Command::Answer(answer))) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
                Ok((number, command)) => self.command(number, command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn start(&mut self, number: u64, mut ring: Box<Ring>, events: EventSink) {
        let index = ring.index;
        let place = self.place();
        if let Err(error) = self.watch(place, &ring) {
            self.free.push(place);
            return events.send(RingEvent::Refused {
                ring: index,
                error,
                lost: true,
            });
        }
        let (address, enabled) = (ring.handler.address(), ring.enabled);
        if address.is_some() && ring.takes() {
            // As in `command`.
            let _ = ring.leave_to_others(true);
        }
        self.settle(place, number, Work::Ring(ring, events.clone()), address);
        if enabled {
            self.queue(place);
        }
        events.send(RingEvent::Done { ring: index });
    }

    fn add(&mut self, number: u64, task: Box<dyn Task>) -> io::Result<()> {
        let place = self.place();
        if let Some(fd) = task.fd()
            && let Err(error) = self.epoll.add(fd, completion_token(place), Interest::READ)
        {
            self.free.push(place);
            return Err(error);
        }
        let address = task.address();
        self.settle(place, number, Work::Task(task), address);
        self.queue(place);
        Ok(())
    }

    /// A place that is free.
    fn place(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        })
    }

    fn settle(&mut self, place: usize, number: u64, work: Work, address: Option<u32>) {
        self.slots[place] = Some(Slot::new(number, work, address));
        if let Some(address) = address {
            self.addresses.set(address, place);
        }
        self.places.insert(number, place);
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
        if let Command::Stop = command {
            slot.stopping = true;
            return self.queue(place);
        }
        if let Command::Stay = command {
            slot.stopping = false;
        }
        let (address, stopping) = (slot.address, slot.stopping);
        let Work::Ring(ring, events) = &mut slot.work else {
            return;
        };
        let index = ring.index;
        let (mut result, mut scan) = (Ok(()), false);
        match command {
            Command::Start(..) | Command::Add(..) | Command::Answer(_) | Command::Stop => {}
            Command::Stay => scan = true,
            Command::Enable(enabled) => {
                ring.enabled = enabled;
                if address.is_some() {
                    // From the acknowledgement on others fill it, or do not any more.
                    // What is wrong with it shows in its pass.
                    let serves = ring.takes() && !stopping;
                    let _ = ring.leave_to_others(serves);
                }
                scan = true;
            }
            Command::Kick(kick) => {
                // The new one first: should it be refused, the old one goes on.
                let token = kick_token(place);
                result = kick.as_ref().map_or(Ok(()), |kick| {
                    self.epoll.add(kick, token, Interest::READ.edge())
                });
                if result.is_ok() {
                    let old = std::mem::replace(&mut ring.kick, kick);
                    if let Some(Err(error)) = old.map(|old| self.epoll.delete(&old)) {
                        panic!("a watched kick descriptor cannot be forgotten: {error}");
                    }
                    scan = true;
                }
            }
            Command::Call(call) => {
                ring.call = call;
                ring.notify();
            }
            Command::Err(err) => ring.err = err,
            Command::Log(log) => ring.active.log = log,
        }
        events.send(match result {
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

    /// Hands back the ring at `place`, which has nothing in flight, or ends its task.
    fn release(&mut self, place: usize) {
        self.let_rest(place);
        let Some(mut slot) = self.slots[place].take() else {
            return;
        };
        if slot.disarmed {
            // Whoever serves it next finds it as one that rests.
            slot.arm();
        }
        if let Some(address) = slot.address {
            self.addresses.remove(address, place);
        }
        self.places.remove(&slot.number);
        self.free.push(place);
        let watched = match &slot.work {
            Work::Ring(ring, _) => [
                ring.kick.as_ref().map(AsFd::as_fd),
                ring.handler.completion_fd(),
            ],
            Work::Task(task) => [task.fd(), None],
        };
        for fd in watched.into_iter().flatten() {
            if let Err(error) = self.epoll.delete(fd) {
                panic!("a watched descriptor cannot be forgotten: {error}");
            }
        }
        if let Work::Ring(ring, events) = slot.work {
            events.send(RingEvent::Stopped { ring });
        }
    }
}
