//! A session that another process takes over: its rings come to rest, all that there is of it
//! is written down, and it goes on here if the other one does not take it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_sys::{EventFd, PeerEventFd, reaper};
use linkspan_vhost::VHOST_F_LOG_ALL;
use linkspan_vhost::backend::{Backend, RingSetup};
use linkspan_virtio::Features;

use super::error::SessionError;
use super::handing::HandOverError;
use super::log::MappedLog;
use super::memory::MemoryTable;
use super::rings::Waiting;
use super::saved::{HandedFd, SavedRing, SavedSession};
use super::session::{BackendSession, offer};
use super::talk::Talk;
use crate::device::Device;
use crate::inflight::InflightArea;
use crate::place::Start;
use crate::rings::{Ground, Rings};
use crate::worker::{Notify, Ring, Workers};

/// Descriptors with what each is.
pub(super) type Fds<'a> = Vec<(HandedFd, BorrowedFd<'a>)>;

impl BackendSession {
    /// Has all rings come to rest; nothing is taken in from the front end meanwhile.
    pub(super) fn lend(&mut self) {
        let left = self.rings.stop_all();
        let rings = Vec::with_capacity(left);
        self.waiting = Some(Waiting::Lend { left, rings });
    }

    /// Whether they have.
    pub(super) fn is_lent(&self) -> bool {
        matches!(self.waiting, Some(Waiting::Lend { left: 0, .. }))
    }

    /// It was not taken: rings go on, also those that have not come to rest.
    pub(super) fn take_back(&mut self) -> Result<(), SessionError> {
        let rings = match self.waiting.take() {
            Some(Waiting::Lend { rings, .. }) => rings,
            other => {
                self.waiting = other;
                return Ok(());
            }
        };
        // First, so that those at rest are not among them.
        let staying = self.rings.stay_all();
        let (starting, lost) = self.go_on(rings);
        self.returned(staying + starting, lost)
    }

    /// Whether no ring is on its way back any more.
    pub(super) fn is_back(&self) -> bool {
        !matches!(self.waiting, Some(Waiting::Return { .. }))
    }

    /// So many rings are on their way back.
    pub(super) fn returned(
        &mut self,
        left: usize,
        lost: Option<SessionError>,
    ) -> Result<(), SessionError> {
        if left > 0 {
            self.waiting = Some(Waiting::Return { left, lost });
            return Ok(());
        }
        self.waiting = None;
        lost.filter(|_| !self.talk.is_closing()).map_or(Ok(()), Err)
    }

    /// All that there is of it, with its descriptors; the rings are at rest.
    pub(super) fn save(&self) -> Result<(SavedSession, Fds<'_>), HandOverError> {
        let Some(Waiting::Lend { left: 0, rings }) = &self.waiting else {
            return Err(HandOverError::Ended);
        };
        // A change that came while the rings were stopped may wait for its answer.
        if !self.talk.is_calm() {
            let why = "the front end is being told of a change";
            return Err(part("the session", &why));
        }
        let core = self.talk.core.snapshot();
        let core = core.map_err(|error| part("the session", &error))?;
        let mut saved = SavedSession {
            core,
            device: self.device.save()?,
            rings: Vec::new(),
            changed: self.talk.has_changed(),
        };
        let mut fds = Vec::new();
        for (index, file) in (0..).zip(self.table.files()) {
            fds.push((HandedFd::Region(index), file));
        }
        for (ring, _) in rings {
            saved.rings.push(SavedRing {
                index: ring.index,
                retired: ring.retired,
                state: ring.active.queue.state(),
            });
            let kick = ring.kick.as_ref();
            fds.extend(kick.map(|kick| (HandedFd::Kick(ring.index), kick.as_fd())));
        }
        saved.rings.sort_unstable_by_key(|ring| ring.index);
        for (index, slot) in self.rings.slots() {
            if let Some(Notify::Event(call)) = &slot.call {
                fds.push((HandedFd::Call(index), call.as_fd()));
            }
            let err = slot.err.as_ref();
            fds.extend(err.map(|err| (HandedFd::Err(index), err.as_fd())));
        }
        let inflight = self.inflight.as_ref().map(InflightArea::file);
        let told = self.logging.told.as_ref();
        let rest = [
            (HandedFd::Inflight, inflight),
            (HandedFd::Log, self.logging.file()),
            (HandedFd::LogTold, told.map(|told| told.as_fd())),
            (HandedFd::Requests, self.talk.request_socket()),
        ];
        fds.extend(rest.into_iter().filter_map(|(what, fd)| Some((what, fd?))));
        Ok((saved, fds))
    }
}

/// A session of another process with everything in its place; its rings do not run yet.
pub(super) struct Placed {
    pub(super) session: BackendSession,
    rings: Vec<(Box<Ring>, RingSetup)>,
}

impl Placed {
    /// Maps and places all of it.
    ///
    /// # Errors
    /// The bytes or descriptors are none of a session that this device could have, or
    /// something cannot be had; nothing is left behind.
    pub(super) fn new(
        device: Arc<dyn Device>,
        workers: Arc<Workers>,
        changes: Arc<EventFd>,
        saved: &SavedSession,
        fds: &mut Handed,
    ) -> Result<Self, HandOverError> {
        let core = Backend::restore(offer(&*device), &saved.core)?;
        device.load(&saved.device)?;
        let system = |error| part("a descriptor", &error);
        let (rings, events, wake) = Rings::new(Arc::clone(&device), workers).map_err(system)?;
        let regions = core.regions().to_vec();
        let files = (0..).zip(&regions);
        let files = files.map(|(index, _)| fds.take(HandedFd::Region(index)));
        let files = files.collect::<Result<_, _>>()?;
        let table = MemoryTable::replaced(regions, files, &wake);
        let table = table.map_err(|error| part("the memory", &error))?;
        let memory = table.resolve();
        let memory = memory.map_err(|error| part("the memory", &error))?;
        let talk = Talk::with(core, changes, &wake).map_err(system)?;
        let ground = (table, memory);
        let mut session = BackendSession::of(device, talk, rings, ground, (events, wake));
        session.adopt(saved, fds)?;
        let rings = session.place_all(saved, fds)?;
        Ok(Self { session, rings })
    }

    /// Gives the rings to their workers. Each is looked at once, since a kick may have come
    /// while nobody watched.
    pub(super) fn launch(self) -> BackendSession {
        let Self { mut session, rings } = self;
        let left = rings.len();
        for (ring, setup) in rings {
            session.rings.launch(ring, setup);
        }
        if left > 0 {
            session.waiting = Some(Waiting::Return { left, lost: None });
        }
        session
    }
}

impl BackendSession {
    /// What belongs to the whole session: in-flight region, log, socket for requests.
    fn adopt(&mut self, saved: &SavedSession, fds: &mut Handed) -> Result<(), HandOverError> {
        let features = self.talk.core.features();
        if let Some(inflight) = self.talk.core.inflight() {
            let fd = fds.take(HandedFd::Inflight)?;
            let features = features.map(Features::from_bits_retain);
            let area = InflightArea::adopt(inflight, fd, features, &self.wake);
            let area = area.map_err(|error| part("the in-flight region", &error))?;
            self.inflight = Some(area);
        }
        if let Some(log) = self.talk.core.log() {
            let log = MappedLog::map(fds.take(HandedFd::Log)?, log, &self.wake);
            self.logging
                .replace(log.map_err(|error| part("the dirty log", &error))?);
        }
        self.logging.all = features.is_some_and(|features| features & VHOST_F_LOG_ALL != 0);
        let covered = self.logging.check_memory(&self.memory);
        covered.map_err(|error| part("the dirty log", &error))?;
        self.logging.told = fds.event(HandedFd::LogTold)?.map(Arc::new);
        // The front end may have closed it before.
        if let Some(socket) = fds.find(HandedFd::Requests) {
            let asked = self.talk.ask_over(socket);
            asked.map_err(|error| part("the socket for requests", &error))?;
        }
        if saved.changed {
            self.talk.set_changed();
        }
        Ok(())
    }

    fn place_all(
        &mut self,
        saved: &SavedSession,
        fds: &mut Handed,
    ) -> Result<Vec<(Box<Ring>, RingSetup)>, HandOverError> {
        for index in 0..self.device.queues() {
            let call = fds.event(HandedFd::Call(index))?.map(Arc::new);
            let err = fds.event(HandedFd::Err(index))?.map(Arc::new);
            let slot = self.rings.slot(index);
            (slot.call, slot.err) = (call.map(Notify::Event), err);
        }
        let running = self.talk.core.rings().iter().filter(|ring| ring.running);
        if running.count() != saved.rings.len() {
            return Err(part("the rings", &"others run than are saved"));
        }
        let mut placed = Vec::with_capacity(saved.rings.len());
        for known in &saved.rings {
            let setup = self.talk.core.running_setup(known.index);
            let setup =
                setup.ok_or_else(|| part("the rings", &"one is saved that does not run"))?;
            let kick = fds.event(HandedFd::Kick(known.index))?;
            let logged = self.logging.check_ring(&setup, &self.memory);
            logged.map_err(|error| part("the dirty log", &error))?;
            let ground = Ground {
                memory: &self.memory,
                inflight: self.inflight.as_ref(),
                log: self.logging.of_ring(&setup, &self.memory),
            };
            let start = Start::At(known.state);
            let ring = self.rings.place(known.index, &setup, start, kick, ground);
            let mut ring = ring.map_err(|error| part("a ring", &error))?;
            ring.retired = known.retired;
            placed.push((ring, setup));
        }
        Ok(placed)
    }
}

/// The descriptors that came, by what they are.
#[derive(Debug, Default)]
pub(super) struct Handed(BTreeMap<HandedFd, OwnedFd>);

impl Handed {
    /// As many as were announced.
    pub(super) fn new(kinds: &[HandedFd], fds: Vec<OwnedFd>) -> Result<Self, HandOverError> {
        if kinds.len() != fds.len() {
            let (count, want) = (fds.len(), kinds.len());
            fds.into_iter().for_each(reaper::dispose);
            return Err(HandOverError::Count { count, want });
        }
        Ok(Self(kinds.iter().copied().zip(fds).collect()))
    }

    pub(super) fn find(&mut self, fd: HandedFd) -> Option<OwnedFd> {
        self.0.remove(&fd)
    }

    pub(super) fn take(&mut self, fd: HandedFd) -> Result<OwnedFd, HandOverError> {
        self.find(fd).ok_or(HandOverError::Missing { fd })
    }

    fn event(&mut self, fd: HandedFd) -> Result<Option<PeerEventFd>, HandOverError> {
        let fd = self.find(fd).map(PeerEventFd::check).transpose();
        fd.map_err(|error| part("a descriptor", &error))
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        // Unchecked, so that closing them could block.
        std::mem::take(&mut self.0)
            .into_values()
            .for_each(reaper::dispose);
    }
}

pub(super) fn part(what: &'static str, why: &impl ToString) -> HandOverError {
    let why = why.to_string();
    HandOverError::Part { what, why }
}
