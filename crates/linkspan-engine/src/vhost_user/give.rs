//! The end of a hand-over that has the link: it asks its server's thread to let the link be
//! taken, and the thread goes on with it whenever it was not.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use linkspan_sys::clock::monotonic_ns;
use linkspan_sys::{EventFd, Listener, Stream};

use super::handing::{
    FDS_EACH, HandOverError, PAUSE_LIMIT, PREPARE_LIMIT, Wire, Word, check_hello,
};
use super::saved::{HandedFd, SavedLink};
use super::session::BackendSession;
use crate::device::Device;
use crate::session::{self, End};
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

/// A successor that is prepared.
#[derive(Debug)]
pub(super) struct Job {
    wire: Wire,
    done: SyncSender<Result<(), HandOverError>>,
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
}

/// Hands a link over that is being served. Many may have one.
#[derive(Clone)]
pub struct Giver {
    pub(crate) desk: Arc<Desk>,
    pub(crate) cancel: Arc<EventFd>,
    pub(crate) device: Arc<dyn Device>,
}

impl std::fmt::Debug for Giver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Giver").finish_non_exhaustive()
    }
}

impl Giver {
    /// Hands the link over to the process at the other end of this socket, which runs
    /// [`Successor`](super::Successor). Waits for it; the link is served meanwhile, and its
    /// guest notices nothing before the successor has opened its device. After success this
    /// process has no link any more, and its server has ended.
    ///
    /// # Errors
    /// It was not taken, and is served on as before. The other process was told why.
    pub fn hand_over(&self, stream: Stream) -> Result<(), HandOverError> {
        let wire = Wire(stream);
        let begun = self.begin();
        let prepared = begun.and_then(|()| {
            let prepared = self.prepare(&wire);
            if prepared.is_err() {
                self.give_up();
            }
            prepared
        });
        if let Err(error) = prepared {
            wire.refuse(&error);
            return Err(error);
        }
        let (done, ended) = sync_channel(1);
        match &mut *self.desk.standing() {
            Standing::Taken(job) => *job = Some(Job { wire, done }),
            Standing::Free | Standing::Closed => return Err(HandOverError::Ended),
        }
        signal(&self.cancel);
        let done = ended.recv().unwrap_or(Err(HandOverError::Ended));
        if done.is_err() {
            self.give_up();
        }
        done
    }

    fn begin(&self) -> Result<(), HandOverError> {
        let mut standing = self.desk.standing();
        match *standing {
            Standing::Free => *standing = Standing::Taken(None),
            Standing::Taken(_) => return Err(HandOverError::Busy),
            Standing::Closed => return Err(HandOverError::Ended),
        }
        Ok(())
    }

    fn give_up(&self) {
        let mut standing = self.desk.standing();
        if let Standing::Taken(_) = *standing {
            *standing = Standing::Free;
        }
    }

    fn prepare(&self, wire: &Wire) -> Result<(), HandOverError> {
        let until = Instant::now() + PREPARE_LIMIT;
        let (_, hello) = wire.receive(&[Word::Hello], until)?;
        check_hello(&hello.body)?;
        let lent = self.device.lend()?;
        let fds: Vec<BorrowedFd<'_>> = lent.iter().map(|fd| fd.as_fd()).collect();
        wire.send(Word::Lent, &[], &fds, until)?;
        wire.receive(&[Word::Prepared], until)?;
        Ok(())
    }
}

/// What became of a session that was to be handed over.
pub(super) enum Given {
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
    /// Hands over a link to which nobody is connected; whether it was taken.
    pub(super) fn give_idle(self, belongings: &Belongings<'_>) -> bool {
        let until = Instant::now() + PAUSE_LIMIT;
        let (saved, fds) = belongings.saved(monotonic_ns());
        let given = self.wire.give(&saved, &fds, until);
        let away = given.is_ok();
        self.end(given);
        away
    }

    /// Hands over a link with its session.
    pub(super) fn give(
        self,
        session: &mut BackendSession,
        stream: &Stream,
        cancel: &EventFd,
        belongings: &Belongings<'_>,
    ) -> Given {
        let until = Instant::now() + PAUSE_LIMIT;
        let come = |session: &mut BackendSession, there: fn(&BackendSession) -> bool, until| {
            session::run_until(session, stream, cancel, until, there)
        };
        let limit = PAUSE_LIMIT;
        let calm = come(session, BackendSession::is_calm, Some(until));
        let (end, why) = match calm {
            End::Reached => {
                let paused_at = monotonic_ns();
                session.lend();
                match come(session, BackendSession::is_lent, Some(until)) {
                    End::Reached => {
                        let given = self.give_session(session, stream, paused_at, belongings);
                        if given.is_ok() {
                            self.end(Ok(()));
                            return Given::Away;
                        }
                        return self.keep(session, given);
                    }
                    end => (end, "requests in flight did not end"),
                }
            }
            end => (end, "the front end was not done with what it was saying"),
        };
        let error = match &end {
            End::Late => HandOverError::NotQuiet { why, limit },
            _ => HandOverError::Ended,
        };
        let kept = self.keep(session, Err(error));
        match (end, kept) {
            // A word to stop is looked at next.
            (End::Late | End::Cancelled, kept) => kept,
            (end, _) => Given::Over(end),
        }
    }

    /// The session goes on here, each ring as soon as it has come to rest.
    fn keep(self, session: &mut BackendSession, given: Result<(), HandOverError>) -> Given {
        let back = session.take_back();
        if let Err(error) = &given {
            tracing::warn!("the link is not handed over, and goes on here: {error}");
        }
        self.end(given);
        back.map_or_else(|error| Given::Over(End::Failed(error)), |()| Given::Here)
    }

    fn give_session(
        &self,
        session: &BackendSession,
        stream: &Stream,
        paused_at: u64,
        belongings: &Belongings<'_>,
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
        self.wire.give(&saved, &fds, Instant::now() + PAUSE_LIMIT)
    }

    /// Tells both who wait.
    fn end(self, given: Result<(), HandOverError>) {
        if let Err(error) = &given {
            self.wire.refuse(error);
        }
        // Whoever asked may have gone.
        let _ = self.done.send(given);
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
    /// Gives a link away; after an error nobody has taken it, and nobody will.
    fn give(
        &self,
        saved: &SavedLink,
        fds: &[BorrowedFd<'_>],
        until: Instant,
    ) -> Result<(), HandOverError> {
        for fds in fds.chunks(FDS_EACH) {
            self.send(Word::Fds, &[], fds, until)?;
        }
        self.send(Word::Saved, &saved.bytes(), &[], until)?;
        self.receive(&[Word::Ready], until)?;
        self.let_go(until)
    }
}
