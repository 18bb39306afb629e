//! The thread that serves a device of this process: one front end after the other, until it is
//! stopped or another process takes the link over.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use linkspan_sys::Stream;
use linkspan_sys::clock::monotonic_ns;

use super::error::SessionError;
use super::give::{Belongings, Desk, Outcome};
use super::session::BackendSession;
use super::take::TakenLink;
use crate::connecting::{Came, Ending, Event, Source, describe};
use crate::device::Device;
use crate::endpoint::Phase;
use crate::serving::Common;
use crate::session::{self, End, NotQuiet, Session as _};
use crate::shared::Held;
use crate::worker::Workers;

/// A device that is served.
pub(super) struct Serving<R> {
    pub(super) common: Common,
    pub(super) desk: Arc<Desk>,
    pub(super) device: Arc<dyn Device>,
    pub(super) workers: Arc<Workers>,
    pub(super) report: R,
}

/// Where the link comes from.
pub(super) enum Origin {
    /// It begins here.
    Source(Source),
    /// Another process had it; if it has no listener, a front end may listen here.
    Another(Box<TakenLink>, Option<PathBuf>),
}

/// How a session comes back that another process had.
struct Back {
    /// When its rings were stopped.
    paused_at: u64,
    /// What it shares with others, until its rings run.
    held: Option<Arc<Held>>,
}

impl<R: Fn(Event)> Serving<R> {
    /// Serves until it is to end.
    pub(super) fn run(self, from: Origin) -> Result<(), NotQuiet> {
        let done = self.serve(from);
        self.desk.close();
        done
    }

    fn serve(&self, from: Origin) -> Result<(), NotQuiet> {
        let mut source = match from {
            Origin::Source(source) => {
                (self.report)(Event::Listening);
                source
            }
            Origin::Another(taken, path) => {
                let taken = *taken;
                let listener = taken.listener.map(Source::Listener);
                let other = || path.map_or(Source::Stream(None), Source::Path);
                let source = listener.unwrap_or_else(other);
                let generation = taken.generation;
                self.common.endpoint.resume(generation);
                match taken.session {
                    Some((session, stream)) => {
                        let back = Back {
                            paused_at: taken.paused_at,
                            held: taken.held,
                        };
                        let front = (&stream, generation, Some(back));
                        if self.one(Ok(self.shown(session)), front, &source)? {
                            return self.leave(source);
                        }
                    }
                    None => {
                        drop(taken.held);
                        (self.report)(Event::TakenOver {
                            generation,
                            pause: None,
                        });
                    }
                }
                source
            }
        };
        // A word to end may have been heard during a session.
        while !self.desk.is_stopping() {
            match source.next(&self.common.cancel) {
                Came::Peer(stream) => {
                    let generation = self.common.endpoint.begin();
                    (self.report)(Event::Connected { generation });
                    let changes = Arc::clone(&self.common.changes);
                    let (device, workers) = (&self.device, &self.workers);
                    let session =
                        BackendSession::new(Arc::clone(device), Arc::clone(workers), changes);
                    let session = session.map(|session| self.shown(session));
                    if self.one(session, (&stream, generation, None), &source)? {
                        return self.leave(source);
                    }
                }
                Came::Word if self.is_last_word() => break,
                Came::Word => {
                    let generation = self.common.endpoint.generation();
                    let job = self.desk.take();
                    if job.is_some_and(|job| job.give_idle(&self.belongings(generation, &source))) {
                        return self.leave(source);
                    }
                }
                Came::Nobody => break,
            }
        }
        self.common.endpoint.enter(Phase::Stopped);
        Ok(())
    }

    fn shown(&self, session: BackendSession) -> BackendSession {
        session.shown_by(Arc::clone(&self.common.endpoint))
    }

    /// The rings of a session that was taken over run again; or how it ended before that.
    fn go_on(
        &self,
        session: &mut BackendSession,
        (stream, generation): (&Stream, u32),
        back: Back,
    ) -> Option<End<SessionError>> {
        let cancel = &self.common.cancel;
        let run = session::run_until(session, stream, cancel, None, BackendSession::is_back);
        let end = match run {
            End::Reached | End::Cancelled | End::Late => None,
            // The link is ours all the same, and whoever waits to hear so does.
            end => Some(end),
        };
        drop(back.held);
        let pause = Duration::from_nanos(monotonic_ns().saturating_sub(back.paused_at));
        session.show();
        (self.report)(Event::TakenOver {
            generation,
            pause: Some(pause),
        });
        end
    }

    /// Serves one front end: its connection, which one it is, and how it comes back if another
    /// process had it before. Whether another one has it in the end.
    fn one(
        &self,
        session: io::Result<BackendSession>,
        front: (&Stream, u32, Option<Back>),
        source: &Source,
    ) -> Result<bool, NotQuiet> {
        let generation = front.1;
        let (reason, fault): Ending = match session {
            Ok(mut session) => {
                let Some(end) = self.talk(&mut session, front, source) else {
                    return Ok(true);
                };
                session.close();
                session::settle(&mut session)?;
                describe(end)
            }
            Err(error) => (format!("no session could be set up: {error}"), true),
        };
        self.common.endpoint.lose(fault.then_some(reason.as_str()));
        (self.report)(Event::Ended {
            generation,
            reason,
            fault,
        });
        Ok(false)
    }

    /// Talks to a front end until the session ends; `None` when another process has it.
    fn talk(
        &self,
        session: &mut BackendSession,
        (stream, generation, back): (&Stream, u32, Option<Back>),
        source: &Source,
    ) -> Option<End<SessionError>> {
        let cancel = &self.common.cancel;
        if let Some(back) = back
            && let Some(end) = self.go_on(session, (stream, generation), back)
        {
            return Some(end);
        }
        loop {
            let end = session::run_until(session, stream, cancel, None, |_| false);
            let End::Cancelled = end else {
                return Some(end);
            };
            if self.is_last_word() {
                return Some(end);
            }
            let Some(job) = self.desk.take() else {
                continue;
            };
            let belongings = self.belongings(generation, source);
            match job.give(session, stream, cancel, &belongings) {
                Outcome::Away => return None,
                Outcome::Here => {}
                Outcome::Over(end) => return Some(end),
            }
        }
    }

    /// Somebody has a word with this thread: whether it is to end.
    fn is_last_word(&self) -> bool {
        // First, so that what is said after it signals again.
        if let Err(error) = self.common.cancel.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        self.desk.is_stopping()
    }

    fn belongings<'a>(&'a self, generation: u32, source: &'a Source) -> Belongings<'a> {
        Belongings {
            device: &*self.device,
            generation,
            listener: source.listener(),
        }
    }

    /// Another process has the link.
    fn leave(&self, source: Source) -> Result<(), NotQuiet> {
        if let Source::Listener(listener) = source {
            listener.leave();
        }
        self.common.away.store(true, Ordering::Release);
        self.common.endpoint.enter(Phase::Stopped);
        (self.report)(Event::HandedOver);
        Ok(())
    }
}
