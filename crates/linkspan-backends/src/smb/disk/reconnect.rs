//! When the connection of a disk is lost: another one, on which what may be lost is written
//! again.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, wait_for};

use super::super::again::write_again;
use super::super::error::Error;
use super::serve::Server;

/// How long a server that is away is waited for when the disk is to be closed.
const HURRY: Duration = Duration::from_secs(5);

/// A time in which requests wait: from a lost connection until those that waited then are done. A
/// server that is there and does nothing is away, too.
pub(super) struct Away {
    begin: Instant,
    /// The number of the first request that came later.
    next: u64,
}

impl Server {
    /// Connects again, as often as it takes; false if the disk was closed meanwhile.
    pub(super) fn reconnect(&mut self, why: &Error) -> bool {
        let path = self.target.path.clone();
        tracing::warn!("{path}: {why}; connecting again");
        self.put_back();
        let lost = Instant::now();
        let next = self.next_task();
        let begin = self.away.get_or_insert(Away { begin: lost, next }).begin;
        let mut said = why.to_string();
        let mut pause = self.pace.lost();
        while self.rest(begin, Instant::now() + pause) {
            match self.again() {
                Ok(()) => {
                    tracing::info!("{path}: connected again after {:.1?}", lost.elapsed());
                    self.pace.connected();
                    return true;
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        tracing::warn!("{path}: not connected: {text}");
                        said = text;
                    }
                    match self.pace.after(&error, self.time_limit) {
                        Some(next) => pause = next,
                        None => {
                            tracing::error!("{path}: {said}; it is not tried again");
                            self.refuse(&said);
                            break;
                        }
                    }
                }
            }
        }
        self.fail("the disk was closed before the server was there again");
        if !self.kept.is_empty() {
            tracing::error!("{path}: what was not flushed may be lost: {said}");
        }
        false
    }

    /// All that is asked for fails, until the disk is closed.
    fn refuse(&mut self, why: &str) {
        while self.take() {
            self.fail(why);
            let event = self.handed.event().as_fd();
            if let Err(error) = wait_for(event, Direction::Read, None, None) {
                panic!("our own eventfd cannot be waited for: {error}");
            }
        }
    }

    /// Whether what waited when the connection was lost is done.
    pub(super) fn look_whether_back(&mut self) {
        if self
            .away
            .as_ref()
            .is_some_and(|away| !self.waits(away.next))
        {
            self.away = None;
        }
    }

    /// What was asked for is to be asked for, in its order.
    fn put_back(&mut self) {
        for piece in std::mem::take(&mut self.flying).into_values().rev() {
            self.todo.push_front(piece);
        }
        if let Some(flush) = self.flush.take() {
            self.waiting.extend(flush.waiters);
        }
    }

    /// Waits until then, and takes what queues hand over meanwhile, which fails where the time
    /// limit is over; false if the disk is to be closed.
    fn rest(&mut self, begin: Instant, until: Instant) -> bool {
        let limit = self.time_limit.map(|limit| begin + limit);
        loop {
            if !self.take() {
                return false;
            }
            let now = Instant::now();
            if self.handed.is_in_a_hurry() {
                let since = *self.hurry.get_or_insert(now);
                if since + HURRY <= now {
                    self.fail("the disk is to be closed, and the server is away");
                }
            }
            if limit.is_some_and(|limit| limit <= now) {
                self.fail("the server has not been there for longer than the time limit");
            }
            if now >= until {
                return true;
            }
            let event = self.handed.event().as_fd();
            let hurry = self.hurry.map(|since| since + HURRY);
            let until = hurry
                .filter(|then| *then > now)
                .map_or(until, |then| then.min(until));
            if let Err(error) = wait_for(event, Direction::Read, None, Some(until)) {
                panic!("our own eventfd cannot be waited for: {error}");
            }
        }
    }

    /// One attempt. What is not durable is written again before anything else is asked for.
    fn again(&mut self) -> Result<(), Error> {
        self.share.reopen()?;
        self.open = self.target.open(&mut self.share)?;
        write_again(&mut self.share, &self.open, &self.kept)?;
        // Not before: it stays readable until somebody takes what was handed over.
        self.share.connection.watch(self.handed.event())
    }
}
