//! Whether the link of a port is up. In a pair it is while somebody is at the other
//! end; and whoever runs a port can take it down. A guest sees it in its configuration
//! space, and the kernel as the carrier of an interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use linkspan_sys::EventFd;

use super::control::Asked;
use super::counters::OfPair;
use super::fabric::{Fabric, Mode, Port, Side};

/// Which receive queues of a guest take frames.
#[derive(Debug)]
pub(super) struct Pairs {
    pub(super) count: u16,
    /// What `taking` says, for those that have frames.
    enabled: [AtomicU64; 2],
    taking: Mutex<Taking>,
    pub(super) asked: Asked,
    /// By pair.
    pub(super) counts: Vec<Arc<OfPair>>,
    /// Signalled when the guest's configuration space changes.
    pub(super) changes: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Taking {
    pairs: u128,
    shut: bool,
}

impl Pairs {
    pub(super) fn new(count: u16) -> io::Result<Self> {
        Ok(Self {
            count,
            enabled: Default::default(),
            taking: Mutex::default(),
            asked: Asked::default(),
            counts: (0..count).map(|_| Arc::default()).collect(),
            changes: Arc::new(EventFd::new()?),
        })
    }

    /// Said by the worker that has the pair, in each of its passes. `news` hears that the
    /// first one takes frames now, or none any more.
    pub(super) fn set(&self, pair: u16, takes: bool, news: impl FnOnce()) {
        let bit = 1_u128 << pair;
        let changed = self.change(|taking| match takes {
            true => taking.pairs |= bit,
            false => taking.pairs &= !bit,
        });
        if changed {
            news();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Taking)) -> bool {
        let mut taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.enabled();
        change(&mut taking);
        let now = if taking.shut { 0 } else { taking.pairs };
        for (word, shift) in self.enabled.iter().zip([0, 64]) {
            let low = u128::from(u64::MAX);
            let part = u64::try_from(now >> shift & low).unwrap_or(0);
            word.store(part, Ordering::Relaxed);
        }
        (before == 0) != (now == 0)
    }

    /// All that do.
    #[inline]
    pub(super) fn enabled(&self) -> u128 {
        let [low, high] = &self.enabled;
        u128::from(low.load(Ordering::Relaxed)) | u128::from(high.load(Ordering::Relaxed)) << 64
    }

    /// Its driver is to look at its configuration space.
    pub(super) fn tell(&self) {
        signal(&self.changes);
    }
}

fn signal(event: &EventFd) {
    if let Err(error) = event.signal() {
        panic!("our own eventfd cannot be signalled: {error}");
    }
}

impl Port {
    /// Whether nothing comes or goes, as somebody wants it so.
    #[inline]
    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }

    /// Has nothing come or go any more, or again; whether that is new.
    pub(super) fn shut(&self, shut: bool) -> bool {
        let new = self.shut.swap(shut, Ordering::AcqRel) != shut;
        if let Side::Guest(pairs) = &self.kind
            && new
        {
            pairs.change(|taking| taking.shut = shut);
        }
        new
    }

    /// Whether somebody is there to take frames.
    fn is_there(&self) -> bool {
        let there = match &self.kind {
            Side::Guest(pairs) => pairs.enabled() != 0,
            Side::Tap(_, up) => up.load(Ordering::Acquire),
            Side::Responder(_) => true,
        };
        there && !self.is_shut()
    }
}

impl Fabric {
    /// Whether the link of a port is up, as whoever is behind it sees it; `false` when
    /// there is no such port.
    pub fn link_is_up(&self, port: u16) -> bool {
        let own = self.ports.get(usize::from(port));
        let other = self.other_end(port);
        own.is_some_and(|own| !own.is_shut()) && other.is_none_or(|other| self.is_there(other))
    }

    /// Whether somebody is at a port to take frames; while it is held, whether that was so.
    fn is_there(&self, port: u16) -> bool {
        let port = &self.ports[usize::from(port)];
        if self.is_held() {
            return port.was_there.load(Ordering::Acquire);
        }
        port.is_there()
    }

    /// Nothing more is taken from any port, and nobody hears who comes or goes.
    pub(super) fn hold(&self) {
        for port in &self.ports {
            port.was_there.store(port.is_there(), Ordering::Release);
        }
        self.held.store(true, Ordering::SeqCst);
    }

    /// Frames are taken from now on, and who came or went meanwhile is known.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        for (number, port) in (0..).zip(&self.ports) {
            if port.is_there() != port.was_there.load(Ordering::Acquire) {
                self.came_or_went(number);
            }
        }
    }

    /// The port at the other end of a pair.
    fn other_end(&self, port: u16) -> Option<u16> {
        (self.mode == Mode::Pair).then(|| 1 - port.min(1))
    }

    /// Takes the link of a port down or up again. While it is down frames from it and to
    /// it are dropped.
    pub fn set_link(&self, port: u16, up: bool) {
        let Some(own) = self.ports.get(usize::from(port)) else {
            return;
        };
        if !own.shut(!up) {
            return;
        }
        self.tell(port);
        self.came_or_went(port);
    }

    /// Somebody came to a port, or went.
    pub(super) fn came_or_went(&self, port: u16) {
        if self.is_held() {
            return;
        }
        if let Some(other) = self.other_end(port) {
            self.tell(other);
        }
    }

    /// Whoever is behind a port is to see whether its link is up.
    fn tell(&self, port: u16) {
        match &self.ports[usize::from(port)].kind {
            Side::Guest(pairs) => pairs.tell(),
            Side::Tap(..) => signal(&self.carriers),
            Side::Responder(_) => {}
        }
    }

    /// Says whether the interface behind a port, if that is what is there, is up, as its
    /// owner has it.
    pub fn set_interface(&self, port: u16, up: bool) {
        let kind = self.ports.get(usize::from(port)).map(|port| &port.kind);
        if let Some(Side::Tap(_, was)) = kind
            && was.swap(up, Ordering::AcqRel) != up
        {
            self.came_or_went(port);
        }
    }

    /// The name of the interface behind a port, as long as it is there.
    pub fn interface(&self, port: u16) -> Option<String> {
        match &self.ports.get(usize::from(port))?.kind {
            Side::Tap(queues, _) => queues.first()?.name().ok(),
            Side::Guest(_) | Side::Responder(_) => None,
        }
    }

    /// Readable when [`set_carriers`](Self::set_carriers) is to be called, by a thread
    /// that may wait: the kernel has a lock for that.
    pub fn carriers(&self) -> BorrowedFd<'_> {
        self.carriers.as_fd()
    }

    /// Has the carriers of all interfaces be as the links of their ports are.
    ///
    /// # Errors
    /// What the kernel says of the last that it refused. One that is gone has none.
    pub fn set_carriers(&self) -> io::Result<()> {
        self.carriers.drain()?;
        let mut done = Ok(());
        for (number, port) in (0..).zip(&self.ports) {
            if let Side::Tap(queues, _) = &port.kind
                && let Some(queue) = queues.first()
                && let Err(error) = queue.set_carrier(self.link_is_up(number))
            {
                done = Err(error);
            }
        }
        done
    }
}
