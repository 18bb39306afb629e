//! The end of a hand-over that has the links: it asks the thread of each to bring its own to
//! rest and to say what there is of it, and each thread goes on whenever they were not taken.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use linkspan_sys::clock::monotonic_ns;
use linkspan_sys::{EventFd, Listener, Stream};

use super::handing::{
    FDS_EACH, HOLD_LIMIT, HandOverError, PAUSE_LIMIT, PREPARE_LIMIT, Wire, Word, check_hello,
};
use super::saved::{HandedFd, SavedLink};
use super::session::BackendSession;
use crate::device::Device;
use crate::session::{self, End};
use crate::shared::{Held, Shared};
use crate::worker::signal;

/// Where a server's thread is asked to hand its link over.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    job: Mutex<Standing>,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
enum Standing {
    #[default]
    Free,
    /// Somebody is being prepared, or waits to be looked at.
    Taken(Option<Job>),
    /// The thread has ended.
    Closed,
}

/// What a link's thread does for a successor that is prepared, a step at a time.
pub(super) struct Job {
    wire: Arc<Wire>,
    /// How each step went.
    done: SyncSender<Result<(), HandOverError>>,
    /// A word for each further step. Closed when the link stays here.
    next: Receiver<Next>,
}

/// Another step is to follow: its front end has said all, then its rings come to rest, then what
/// there is of the link is said, and then it is another process's.
struct Next {
    until: Instant,
    /// What it shares with others, until its rings run again.
    held: Option<Arc<Held>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").finish_non_exhaustive()
    }
}

impl Desk {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        // What is within is whole after each change.
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The successor that waits, if one does.
    pub(super) fn take(&self) -> Option<Job> {
        match &mut *self.standing() {
            Standing::Taken(job) => job.take(),
            Standing::Free | Standing::Closed => None,
        }
    }

    /// The thread is to end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The thread ends.
    pub(super) fn close(&self) {
        *self.standing() = Standing::Closed;
    }

    fn book(&self) -> Result<(), HandOverError> {
        let mut standing = self.standing();
        match *standing {
            Standing::Free => *standing = Standing::Taken(None),
            Standing::Taken(_) => return Err(HandOverError::Busy),
            Standing::Closed => return Err(HandOverError::Ended),
        }
        Ok(())
    }
}

/// Hands a link over that is being served, or several that another process has to take
/// together. Many may have one.
#[derive(Clone)]
pub struct Giver {
    links: Vec<Given>,
    shared: Option<Arc<dyn Shared>>,
}

/// A link that can be handed over.
#[derive(Clone)]
struct Given {
    desk: Arc<Desk>,
    cancel: Arc<EventFd>,
    device: Arc<dyn Device>,
}

impl std::fmt::Debug for Giver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Giver")
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

impl Giver {
    pub(crate) fn new(desk: Arc<Desk>, cancel: Arc<EventFd>, device: Arc<dyn Device>) -> Self {
        let link = Given {
            desk,
            cancel,
            device,
        };
        Self {
            links: vec![link],
            shared: None,
        }
    }

    /// All of these links at once, and what they share.
    #[must_use]
    pub fn together(givers: impl IntoIterator<Item = Self>, shared: Arc<dyn Shared>) -> Self {
        Self {
            links: givers.into_iter().flat_map(|giver| giver.links).collect(),
            shared: Some(shared),
        }
    }

    /// Threads that serve the links are to end.
    pub(crate) fn stop(&self) {
        self.links.iter().for_each(|link| link.desk.stop());
    }

    /// Hands the links over to the process at the other end of this socket, which runs
    /// [`Successor`](super::Successor). Waits for it; they are served meanwhile, and their
    /// guests notice nothing before the successor has opened its devices. After success this
    /// process has none of them any more, and their servers have ended or are about to.
    ///
    /// # Errors
    /// None was taken, and all are served on as before. The other process was told why.
    pub fn hand_over(&self, stream: Stream) -> Result<(), HandOverError> {
        let wire = Arc::new(Wire(stream));
        let given = self.give(&wire);
        if let Err(error) = &given {
            wire.refuse(error);
        }
        given
    }

    fn give(&self, wire: &Arc<Wire>) -> Result<(), HandOverError> {
        let mut booked = Booked(Vec::new());
        for link in &self.links {
            link.desk.book()?;
            booked.0.push(link);
        }
        self.prepare(wire)?;
        let asked: Vec<Asked> = booked.ask(wire)?;
        // Before anything is held: a front end in the middle of a message keeps no other waiting.
        asked.iter().try_for_each(Asked::is_done)?;
        let shared = self.shared.as_ref();
        let held = shared.map(|shared| Held::hold(shared, HOLD_LIMIT));
        let held = held.transpose()?;
        let until = Instant::now() + PAUSE_LIMIT;
        let rest = |link: &Asked| link.go_on(until, held.as_ref());
        asked.iter().try_for_each(rest)?;
        asked.iter().try_for_each(Asked::is_done)?;
        // For all that follows: the guests wait for it.
        let until = Instant::now() + PAUSE_LIMIT;
        if let Some(shared) = shared {
            wire.send(Word::Shared, &shared.save()?, &[], until)?;
        }
        for link in &asked {
            link.go_on(until, None)?;
            link.is_done()?;
        }
        wire.receive(&[Word::Ready], until)?;
        wire.let_go(until)?;
        if let Some(held) = &held {
            held.leave();
        }
        // Whoever has ended meanwhile has nothing to let go of.
        let let_go = |link: &Asked| drop(link.go_on(until, None));
        asked.iter().for_each(let_go);
        Ok(())
    }

    fn prepare(&self, wire: &Wire) -> Result<(), HandOverError> {
        let until = Instant::now() + PREPARE_LIMIT;
        let (_, hello) = wire.receive(&[Word::Hello], until)?;
        check_hello(&hello.body)?;
        let mut lent = match &self.shared {
            Some(shared) => shared.lend()?,
            None => Vec::new(),
        };
        for link in &self.links {
            lent.extend(link.device.lend()?);
        }
        if lent.len() > FDS_EACH {
            let (count, want) = (lent.len(), FDS_EACH);
            return Err(HandOverError::Lent { count, want });
        }
        let fds: Vec<BorrowedFd<'_>> = lent.iter().map(|fd| fd.as_fd()).collect();
        wire.send(Word::Lent, &[], &fds, until)?;
        wire.receive(&[Word::Prepared], until)?;
        Ok(())
    }
}

/// Links that nobody else can hand over meanwhile.
struct Booked<'a>(Vec<&'a Given>);

impl Booked<'_> {
    /// Has the thread of each begin.
    fn ask(&self, wire: &Arc<Wire>) -> Result<Vec<Asked>, HandOverError> {
        let ask = |link: &&Given| {
            // Steps are taken in turn, so that nobody waits for room.
            let ((done, steps), (word, next)) = (sync_channel(2), sync_channel(2));
            let wire = Arc::clone(wire);
            match &mut *link.desk.standing() {
                Standing::Taken(job) => *job = Some(Job { wire, done, next }),
                Standing::Free | Standing::Closed => return Err(HandOverError::Ended),
            }
            signal(&link.cancel);
            Ok(Asked { steps, word })
        };
        self.0.iter().map(ask).collect()
    }
}

impl Drop for Booked<'_> {
    fn drop(&mut self) {
        for link in &self.0 {
            let mut standing = link.desk.standing();
            if let Standing::Taken(_) = *standing {
                *standing = Standing::Free;
            }
        }
    }
}

/// A link whose thread was asked.
struct Asked {
    steps: Receiver<Result<(), HandOverError>>,
    word: SyncSender<Next>,
}

impl Asked {
    /// Waits for the step that is under way.
    fn is_done(&self) -> Result<(), HandOverError> {
        self.steps.recv().unwrap_or(Err(HandOverError::Ended))
    }

    /// Has it take the next step, which is to be done by then.
    fn go_on(&self, until: Instant, held: Option<&Arc<Held>>) -> Result<(), HandOverError> {
        let held = held.cloned();
        let word = self.word.send(Next { until, held });
        word.map_err(|_| HandOverError::Ended)
    }
}

/// What became of a session that was to be handed over.
pub(super) enum Outcome {
    /// Another process has the link.
    Away,
    /// It goes on.
    Here,
    /// It has ended in this way meanwhile.
    Over(End<super::SessionError>),
}

/// What a server has of a link.
pub(super) struct Belongings<'a> {
    pub(super) device: &'a dyn Device,
    pub(super) generation: u32,
    pub(super) listener: Option<&'a Listener>,
}

impl Job {
    /// Says how a step went. The next one, if it is to follow.
    fn goes_on(&self, step: Result<(), HandOverError>) -> Option<Next> {
        let ok = step.is_ok();
        // Whoever asked may have given up.
        let _ = self.done.send(step);
        if ok { self.next.recv().ok() } else { None }
    }

    /// Hands over a link to which nobody is connected; whether it was taken.
    pub(super) fn give_idle(self, belongings: &Belongings<'_>) -> bool {
        let (saved, fds) = belongings.saved(monotonic_ns());
        // Nobody says anything, and no ring runs.
        let calm = self.goes_on(Ok(()));
        let Some(Next { until, .. }) = calm.and_then(|_| self.goes_on(Ok(()))) else {
            return false;
        };
        self.goes_on(self.wire.tell(&saved, &fds, until)).is_some()
    }

    /// Hands over a link with its session.
    pub(super) fn give(
        self,
        session: &mut BackendSession,
        stream: &Stream,
        cancel: &EventFd,
        belongings: &Belongings<'_>,
    ) -> Outcome {
        let until = Some(Instant::now() + PAUSE_LIMIT);
        match session::run_until(session, stream, cancel, until, BackendSession::is_calm) {
            End::Reached => {}
            end => {
                let why = "the front end was not done with what it was saying";
                self.goes_on(Err(not_quiet(&end, why)));
                return match end {
                    // A word to stop is looked at next.
                    End::Late | End::Cancelled => Outcome::Here,
                    end => Outcome::Over(end),
                };
            }
        }
        let Some(Next { until, held }) = self.goes_on(Ok(())) else {
            return Outcome::Here;
        };
        // From when on frames wait, if the link shares what was held before.
        let paused_at = held.as_ref().map_or_else(monotonic_ns, |held| held.since);
        session.lend();
        let until = Some(until);
        match session::run_until(session, stream, cancel, until, BackendSession::is_lent) {
            End::Reached => {}
            end => {
                self.goes_on(Err(not_quiet(&end, "requests in flight did not end")));
                let kept = keep(session, stream, cancel, held);
                return match (end, kept) {
                    // As above.
                    (End::Late | End::Cancelled, kept) => kept,
                    (end, _) => Outcome::Over(end),
                };
            }
        }
        if let Some(Next { until, .. }) = self.goes_on(Ok(())) {
            let told = self.tell(session, stream, (paused_at, belongings), until);
            if self.goes_on(told).is_some() {
                return Outcome::Away;
            }
        }
        keep(session, stream, cancel, held)
    }

    fn tell(
        &self,
        session: &BackendSession,
        stream: &Stream,
        (paused_at, belongings): (u64, &Belongings<'_>),
        until: Instant,
    ) -> Result<(), HandOverError> {
        let (state, of_session) = session.save()?;
        let (mut saved, mut fds) = belongings.saved(paused_at);
        saved.fds.push(HandedFd::Connection);
        fds.push(stream.as_fd());
        for (what, fd) in of_session {
            saved.fds.push(what);
            fds.push(fd);
        }
        saved.session = Some(state);
        self.wire.tell(&saved, &fds, until)
    }
}

/// The session goes on here, each ring as soon as it has come to rest.
fn keep(
    session: &mut BackendSession,
    stream: &Stream,
    cancel: &EventFd,
    held: Option<Arc<Held>>,
) -> Outcome {
    if let Err(error) = session.take_back() {
        return Outcome::Over(End::Failed(error));
    }
    let until = Some(Instant::now() + PAUSE_LIMIT);
    let end = session::run_until(session, stream, cancel, until, BackendSession::is_back);
    // Not before its rings run, so that they miss nothing of what others pass on.
    drop(held);
    match end {
        End::Reached | End::Late | End::Cancelled => Outcome::Here,
        end => Outcome::Over(end),
    }
}

/// Why a session did not come so far: it took too long, or it ended.
fn not_quiet(end: &End<super::SessionError>, why: &'static str) -> HandOverError {
    let limit = PAUSE_LIMIT;
    match end {
        End::Late => HandOverError::NotQuiet { why, limit },
        _ => HandOverError::Ended,
    }
}

impl Belongings<'_> {
    fn saved(&self, paused_at: u64) -> (SavedLink, Vec<BorrowedFd<'_>>) {
        let listener = self.listener.map(|it| (HandedFd::Listener, it.as_fd()));
        let (kinds, fds) = listener.into_iter().unzip();
        let saved = SavedLink {
            device_id: self.device.device_id(),
            generation: self.generation,
            paused_at,
            socket: self.listener.and_then(Listener::inode),
            session: None,
            fds: kinds,
        };
        (saved, fds)
    }
}

impl Wire {
    /// Says what there is of a link.
    fn tell(
        &self,
        saved: &SavedLink,
        fds: &[BorrowedFd<'_>],
        until: Instant,
    ) -> Result<(), HandOverError> {
        for fds in fds.chunks(FDS_EACH) {
            self.send(Word::Fds, &[], fds, until)?;
        }
        self.send(Word::Saved, &saved.bytes(), &[], until)?;
        Ok(())
    }
}
