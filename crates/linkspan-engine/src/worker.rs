//! Workers: threads that own queues, run them, and sleep in one place.
//!
//! A worker owns its queues outright: they arrive by message and leave by
//! message, so nothing on the hot path is shared or locked. Whoever sends a
//! command gets exactly one [`RingEvent`] back when it has taken effect.
//!
//! A worker without work looks for some for a while, if that has paid of late,
//! and then sleeps until something happens to one of its rings, unless one of them
//! is polled: a driver that gives no kick descriptor takes a processor.

use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use linkspan_sys::poll::{Epoll, Interest};
use linkspan_sys::thread::spawn_on;
use linkspan_sys::vduse::VduseDevice;
use linkspan_sys::{EventFd, PeerEventFd};
use linkspan_virtio::QueueError;

use crate::counters::{QueueCounters, WorkerCounters};
use crate::device::{ActiveRing, Budget, Progress, QueueHandler};
use crate::dirty::RingLog;
use crate::spin::Spin;

mod neighbours;
mod run;
mod slot;

pub use neighbours::Neighbours;

use run::{CONTROL, Control, Loop};

/// A queue with everything that it needs to run; moves into a worker at its
/// start and out again at its stop.
pub struct Ring {
    /// Index within its device.
    pub index: u16,
    /// Its worker, modulo their number.
    pub lane: u16,
    /// The virtqueue and its memory.
    pub active: ActiveRing,
    /// The device's part.
    pub handler: Box<dyn QueueHandler>,
    /// Where the driver says that it made something available. Without it the
    /// ring is polled while it is enabled: its worker never sleeps then, and
    /// still serves its other rings in turn (vhost-user: `VHOST_USER_SET_VRING_KICK`).
    pub kick: Option<PeerEventFd>,
    /// Where the driver wants to be told of used buffers, if it does not poll.
    pub call: Option<Notify>,
    /// Where a broken ring is reported.
    pub err: Option<Arc<PeerEventFd>>,
    /// Whether it may be processed.
    pub enabled: bool,
    /// Whether it was given up because it is broken: it then only finishes what
    /// is in flight. Set by [`retire`](Self::retire).
    pub retired: bool,
    /// Whether what is in flight moves on in the next pass, without an event; the
    /// handler said so last.
    pub moves: bool,
    /// What it has done so far.
    pub counters: Arc<QueueCounters>,
}

/// How a driver is told of used buffers.
#[derive(Clone, Debug)]
pub enum Notify {
    /// By an eventfd.
    Event(Arc<PeerEventFd>),
    /// By the kernel, for this ring of a VDUSE device. Memory of such a ring is
    /// mapped on demand: what it finds outside may be there by now.
    Interrupt(Arc<VduseDevice>, u16),
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("index", &self.index)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

/// Names a running ring towards its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingKey {
    worker: usize,
    slot: u64,
}

/// What a worker tells the owner of a ring.
#[derive(Debug)]
#[non_exhaustive]
pub enum RingEvent {
    /// A command took effect.
    Done {
        /// Index of the ring.
        ring: u16,
    },
    /// The ring could not be started, or not watch its new kick descriptor.
    Refused {
        /// Index of the ring.
        ring: u16,
        /// The system's reason.
        error: io::Error,
        /// Whether the ring is gone; otherwise it goes on as before.
        lost: bool,
    },
    /// The ring is quiet and belongs to its owner again.
    Stopped {
        /// The ring with its final state.
        ring: Box<Ring>,
    },
    /// The peer broke the ring. It stays with its worker, untouched, until it
    /// is stopped; nobody asked for this event.
    Broken {
        /// Index of the ring.
        ring: u16,
        /// How.
        error: RingFault,
    },
}

/// Why a ring was retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingFault {
    /// The driver wrote a ring that the specification forbids.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The memory's file shrank under the mapping.
    #[error("the peer took back memory that it had shared")]
    MemoryGone,
}

/// Where a worker sends events of one link's rings.
#[derive(Clone, Debug)]
pub struct EventSink {
    sender: Sender<RingEvent>,
    wake: Arc<EventFd>,
}

impl EventSink {
    /// A sink, and the other end: events and the descriptor that becomes
    /// readable when there are some.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<(Self, Receiver<RingEvent>, Arc<EventFd>)> {
        let wake = Arc::new(EventFd::new()?);
        let (sender, receiver) = mpsc::channel();
        let sink = Self {
            sender,
            wake: Arc::clone(&wake),
        };
        Ok((sink, receiver, wake))
    }

    fn send(&self, event: RingEvent) {
        // A link that is gone needs no events.
        if self.sender.send(event).is_ok() {
            signal(&self.wake);
        }
    }
}

/// Something that a worker does beside its rings: it waits for a descriptor, or for
/// others to bring it something.
pub trait Task: Any + Send {
    /// One pass; whether anything moved on, and what is left.
    fn run(&mut self, budget: Budget, neighbours: &mut Neighbours<'_>) -> (bool, Progress);

    /// Becomes readable when there is something to do; watched level-triggered.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How others of its worker reach it, if they do.
    fn address(&self) -> Option<u32> {
        None
    }

    /// Whether a pass would find something, as far as can be seen without a system
    /// call. Asked often while its worker is awake.
    fn has_work(&mut self) -> bool {
        false
    }

    /// Whether [`has_work`](Self::has_work) may ever say so. A worker that has nothing
    /// like that sleeps at once when nothing is left to do.
    fn can_see_work(&self) -> bool {
        false
    }

    /// Its worker is about to sleep: `true` if there is something to do already.
    fn arm(&mut self) -> bool {
        false
    }

    /// Whether it has nothing to do any more, ever: it is dropped then.
    fn is_over(&self) -> bool {
        false
    }
}

enum Command {
    Start(Box<Ring>, EventSink),
    Add(Box<dyn Task>, Sender<io::Result<()>>),
    Answer(Sender<()>),
    Stop,
    Stay,
    Enable(bool),
    Kick(Option<PeerEventFd>),
    Call(Option<Notify>),
    Err(Option<Arc<PeerEventFd>>),
    Log(Option<RingLog>),
}

/// What workers are like.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// How many.
    pub count: usize,
    /// Worker `i` runs on processor `cpus[i]` and on no other; one beyond the end
    /// of the list runs anywhere.
    pub cpus: Vec<u32>,
    /// The longest time that a worker without work looks for some before it
    /// sleeps. It looks only while that pays; zero: never.
    pub poll: Duration,
    /// Whether they never sleep, and take a processor each.
    pub busy: bool,
}

impl WorkerOptions {
    /// For [`poll`](Self::poll): about the time of a fast disk's answer, and a
    /// few times what it costs to sleep and to be woken.
    pub const POLL: Duration = Duration::from_micros(50);
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            count: 1,
            cpus: Vec::new(),
            poll: Self::POLL,
            busy: false,
        }
    }
}

/// A fixed set of worker threads. Dropping it stops and joins them; rings that
/// still run are dropped with their threads.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Worker>,
    next_slot: AtomicU64,
}

#[derive(Debug)]
struct Worker {
    commands: Option<Sender<(u64, Command)>>,
    wake: Arc<EventFd>,
    /// Set before `wake` is signalled, for a worker that is awake.
    commanded: Arc<AtomicBool>,
    counters: Arc<WorkerCounters>,
    thread: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` workers that run anywhere: all of them or none.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had.
    pub fn new(count: usize) -> io::Result<Self> {
        Self::with(&WorkerOptions {
            count,
            ..WorkerOptions::default()
        })
    }

    /// Starts workers: all of them or none.
    ///
    /// # Errors
    /// When a thread or a descriptor cannot be had, or a processor is not one that
    /// this process may use.
    pub fn with(options: &WorkerOptions) -> io::Result<Self> {
        let mut threads =
            linkspan_mem::fault::try_with_capacity(options.count).map_err(io::Error::other)?;
        for number in 0..options.count {
            threads.push(Worker::start(number, options)?);
        }
        Ok(Self {
            threads,
            next_slot: AtomicU64::new(0),
        })
    }

    /// What each worker has counted so far.
    pub fn counters(&self) -> impl ExactSizeIterator<Item = &WorkerCounters> {
        self.threads.iter().map(|worker| &*worker.counters)
    }

    /// Number of workers.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Gives a ring to the worker of its lane, as after a restart, too. [`RingEvent::Done`] or
    /// [`RingEvent::Refused`] follows; the worker then scans the ring once, since a
    /// kick may have come before it watched.
    pub fn start(&self, ring: Box<Ring>, events: EventSink) -> RingKey {
        let key = RingKey {
            worker: usize::from(ring.lane) % self.threads.len(),
            slot: self.next_slot.fetch_add(1, Ordering::Relaxed),
        };
        self.send(key, Command::Start(ring, events));
        key
    }

    /// Has a worker, modulo their number, do a task until it is [stopped](Self::stop):
    /// it is dropped there. Waits for the worker, so never call it on one.
    ///
    /// # Errors
    /// When the worker cannot watch its descriptor; it is dropped then.
    pub fn add(&self, lane: u16, task: Box<dyn Task>) -> io::Result<RingKey> {
        let key = RingKey {
            worker: usize::from(lane) % self.threads.len(),
            slot: self.next_slot.fetch_add(1, Ordering::Relaxed),
        };
        let (sender, answer) = mpsc::channel();
        self.send(key, Command::Add(task, sender));
        answer.recv().map_err(io::Error::other)??;
        Ok(key)
    }

    /// Whether each worker comes round within this time: none is held up by what it does.
    /// Waits for them, so never call it on one.
    pub fn come_round(&self, limit: Duration) -> bool {
        let by = Instant::now() + limit;
        let (sender, answers) = mpsc::channel();
        for worker in 0..self.threads.len() {
            // The number is no ring's.
            let key = RingKey {
                worker,
                slot: u64::MAX,
            };
            self.send(key, Command::Answer(sender.clone()));
        }
        let left = || by.saturating_duration_since(Instant::now());
        (0..self.threads.len()).all(|_| answers.recv_timeout(left()).is_ok())
    }

    /// Takes a ring back once it is quiet: [`RingEvent::Stopped`] follows.
    pub fn stop(&self, key: RingKey) {
        self.send(key, Command::Stop);
    }

    /// Takes a [`stop`](Self::stop) back: [`RingEvent::Done`] follows, unless the ring has
    /// become quiet and [`RingEvent::Stopped`] is on its way.
    pub(crate) fn stay(&self, key: RingKey) {
        self.send(key, Command::Stay);
    }

    /// Allows or forbids processing; enabling scans the ring once.
    /// [`RingEvent::Done`] follows.
    pub fn enable(&self, key: RingKey, enabled: bool) {
        self.send(key, Command::Enable(enabled));
    }

    /// Replaces the kick descriptor of a running ring and scans the ring once, or
    /// polls it from now on. [`RingEvent::Done`] or [`RingEvent::Refused`] follows.
    pub fn set_kick(&self, key: RingKey, kick: Option<PeerEventFd>) {
        self.send(key, Command::Kick(kick));
    }

    /// Replaces the call descriptor and notifies once through the new one, since
    /// a notification may have gone to the old. [`RingEvent::Done`] follows.
    pub fn set_call(&self, key: RingKey, call: Option<Notify>) {
        self.send(key, Command::Call(call));
    }

    /// Replaces the error descriptor. [`RingEvent::Done`] follows.
    pub fn set_err(&self, key: RingKey, err: Option<Arc<PeerEventFd>>) {
        self.send(key, Command::Err(err));
    }

    /// Logs writes to guest memory elsewhere, or no longer, from the next pass on.
    /// [`RingEvent::Done`] follows; the log of before is not used after it.
    pub fn set_log(&self, key: RingKey, log: Option<RingLog>) {
        self.send(key, Command::Log(log));
    }

    fn send(&self, key: RingKey, command: Command) {
        let worker = &self.threads[key.worker];
        if let Some(commands) = &worker.commands
            && commands.send((key.slot, command)).is_ok()
        {
            worker.call();
        }
    }
}

impl Worker {
    fn start(number: usize, options: &WorkerOptions) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new()?);
        let epoll = Epoll::new()?;
        epoll.add(&*wake, CONTROL, Interest::READ)?;
        let (commands, receiver) = mpsc::channel();
        let commanded = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(WorkerCounters::default());
        let control = Control {
            wake: Arc::clone(&wake),
            commanded: Arc::clone(&commanded),
            commands: receiver,
        };
        let counted = Arc::clone(&counters);
        let (spin, busy) = (Spin::new(options.poll), options.busy);
        let cpu = options.cpus.get(number).copied();
        let thread = spawn_on(cpu, format!("worker-{number}"), move || {
            Loop::new(epoll, control, (spin, busy), counted).run();
        })?;
        Ok(Self {
            commands: Some(commands),
            wake,
            commanded,
            counters,
            thread: Some(thread),
        })
    }

    /// Lets it look at its commands.
    fn call(&self) {
        self.commanded.store(true, Ordering::Release);
        signal(&self.wake);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Closing the channel is the word to end.
        self.commands = None;
        self.call();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("a worker panicked");
        }
    }
}

impl Ring {
    /// One pass: look at the ring once, let the device work, publish once and
    /// notify once. Whether anything was taken or answered, and what is left.
    fn pass(
        &mut self,
        drain: bool,
        neighbours: &mut Neighbours<'_>,
    ) -> (bool, Result<Progress, RingFault>) {
        self.counters.passes.add(1);
        let before = self.active.queue.state();
        let progress = self.work(drain, before.next_used, neighbours);
        let after = self.active.queue.state();
        self.counters.in_flight.set(self.handler.in_flight() as u64);
        (after != before, progress.map_err(|error| self.fault(error)))
    }

    /// `used` is the position of the next used element.
    fn work(
        &mut self,
        drain: bool,
        used: u16,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, RingFault> {
        let mut budget = Budget::default();
        if drain {
            // Nothing new; only what is in flight moves on.
            budget.chains = 0;
        } else {
            self.active.queue.disarm()?;
            let refreshed = self.active.queue.refresh();
            if refreshed.is_err() {
                self.log_words();
            }
            refreshed?;
        }
        let progress = self.handler.run_among(&mut self.active, budget, neighbours);
        self.moves = matches!(progress, Ok(Progress::More)) && self.handler.in_flight() > 0;
        let published = self.publish(used);
        let progress = progress?;
        published?;
        if budget.chains == 0 {
            return Ok(Progress::Idle);
        }
        Ok(progress)
    }

    /// Shows the driver what was pushed since the position `used`.
    fn publish(&mut self, used: u16) -> Result<(), RingFault> {
        let active = &mut self.active;
        let state = active.queue.state();
        let now = state.next_used;
        self.counters.available.set(state.next_available.into());
        self.counters.used.set(now.into());
        if let Some(log) = &active.log {
            // What is logged has to be there.
            active.queue.end_run();
            log.before_publish(active.queue.size(), used, now);
        }
        // Before anything is acknowledged: zeroes read from a hole are not data.
        let result = if active.memory.table().poisoned() {
            Err(RingFault::MemoryGone)
        } else {
            active.queue.publish().map_err(RingFault::from)
        };
        if let Some(log) = &active.log {
            log.after_publish(active.queue.size(), used, now);
        }
        result?;
        if active.queue.notify_wanted()? {
            self.notify();
        }
        Ok(())
    }

    /// Others fill this ring: its driver need not say that it has made buffers
    /// available.
    fn leave_to_others(&mut self, serves: bool) -> Result<Progress, RingFault> {
        self.handler.takes(&mut self.active, serves);
        if serves {
            self.active.queue.disarm()?;
            self.log_words();
        }
        Ok(Progress::Idle)
    }

    /// Logs the words that ask the driver to kick or not to.
    fn log_words(&self) {
        if let Some(log) = &self.active.log {
            let at = self.active.queue.state().next_used;
            log.after_publish(self.active.queue.size(), at, at);
        }
    }

    /// Asks for a kick and looks once more: whether chains wait already, or the
    /// ring is broken, so that a pass has to follow.
    fn arm(&mut self) -> bool {
        let waits = self.active.queue.arm();
        self.log_words();
        waits.unwrap_or(true)
    }

    /// Looks, with one load, whether a pass would find something.
    #[inline]
    fn has_work(&mut self) -> bool {
        !matches!(self.active.queue.refresh(), Ok(0)) || self.handler.has_completions()
    }

    /// Whether new chains are taken from it.
    fn takes(&self) -> bool {
        self.enabled && !self.retired
    }

    /// A ring in memory that is gone reads as zeroes, and that is what is wrong.
    fn fault(&self, error: RingFault) -> RingFault {
        if self.active.memory.table().poisoned() {
            return RingFault::MemoryGone;
        }
        error
    }

    /// Whether it found memory that is not mapped, and may be to be mapped. It does
    /// nothing more then until its owner decides.
    fn misses(&self, error: RingFault) -> bool {
        let on_demand = matches!(self.call, Some(Notify::Interrupt(..)));
        on_demand && matches!(error, RingFault::Queue(QueueError::OutsideMemory { .. }))
    }

    /// Whether nothing says when there is something to do, so that one has to look.
    fn is_polled(&self) -> bool {
        self.kick.is_none() && self.takes()
    }

    /// Gives the ring up and tells the driver, if it wants to know.
    pub fn retire(&mut self) {
        self.retired = true;
        self.counters.ring_errors.add(1);
        if let Some(err) = &self.err {
            tell(err);
        }
    }

    fn notify(&self) {
        match &self.call {
            Some(Notify::Event(call)) => tell(call),
            // Refused while the kernel does not yet hold the device for running:
            // whoever owns the rings interrupts once more when it does.
            Some(Notify::Interrupt(device, ring)) => drop(device.interrupt(*ring)),
            None => return,
        }
        self.counters.notifications.add(1);
    }
}

/// Signals an eventfd of our own.
pub(crate) fn signal(event: &EventFd) {
    if let Err(error) = event.signal() {
        panic!("our own eventfd cannot be signalled: {error}");
    }
}

/// Signals an eventfd of the peer. One that is full has been signalled already,
/// and no other state of it makes a difference to us.
fn tell(event: &PeerEventFd) {
    let _ = event.signal();
}
