//! What is handed over by the thread that takes what the kernel asks.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::Errno;
use linkspan_sys::EventFd;

use super::ask::Job;

/// What both threads have in common.
#[derive(Debug)]
pub(super) struct Asked {
    todo: Mutex<Todo>,
    /// Is readable when there is something to do and who does it sleeps.
    event: EventFd,
}

#[derive(Debug, Default)]
struct Todo {
    jobs: VecDeque<Job>,
    /// Who takes them is told of the next one.
    asleep: bool,
    /// Nothing more will come.
    ending: bool,
    /// Nobody takes anything any more.
    deaf: bool,
}

impl Asked {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            todo: Mutex::default(),
            event: EventFd::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Todo> {
        // Whoever held it did nothing that could be left half done.
        self.todo.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    fn tell(&self) {
        if let Err(error) = self.event.signal() {
            panic!("our own eventfd cannot be signalled: {error}");
        }
    }

    pub(super) fn hand_over(&self, job: Job) {
        let mut todo = self.lock();
        if todo.deaf {
            drop(todo);
            return job.fail(Errno::EIO);
        }
        todo.jobs.push_back(job);
        let wakes = std::mem::take(&mut todo.asleep);
        drop(todo);
        if wakes {
            self.tell();
        }
    }

    /// Who takes what comes is going to wait for the event: until here it was not signalled, and
    /// did not end the waits for answers of the server again and again.
    pub(super) fn rest(&self) {
        let mut todo = self.lock();
        todo.asleep = todo.jobs.is_empty();
        let wakes = !todo.asleep;
        drop(todo);
        if wakes {
            self.tell();
        }
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.lock().ending = true;
        self.tell();
    }

    /// Takes all that is there; whether more may come.
    pub(super) fn take(&self) -> (VecDeque<Job>, bool) {
        // Before the look: what comes from here on makes it readable again.
        if let Err(error) = self.event.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        let mut todo = self.lock();
        todo.asleep = false;
        (std::mem::take(&mut todo.jobs), !todo.ending)
    }

    /// Nobody takes anything any more.
    pub(super) fn deafen(&self) {
        let mut todo = self.lock();
        todo.deaf = true;
        let jobs = std::mem::take(&mut todo.jobs);
        drop(todo);
        for job in jobs {
            job.fail(Errno::EIO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forget(node: u64) -> Job {
        Job::Forget { node, lookups: 1 }
    }

    /// Ours: what came while the server was asked kept the wait for its answer from waiting.
    #[test]
    fn only_who_sleeps_is_woken() {
        let asked = Asked::new().unwrap();
        let is_readable = || asked.event().drain().unwrap() > 0;
        asked.hand_over(forget(1));
        asked.hand_over(forget(2));
        assert!(!is_readable(), "nobody waits");
        asked.rest();
        assert!(is_readable(), "there is something to do");
        let (jobs, more) = asked.take();
        assert!(jobs.len() == 2 && more);
        asked.rest();
        assert!(!is_readable());
        asked.hand_over(forget(3));
        assert!(is_readable());
        assert_eq!(asked.take().0.len(), 1);
        asked.hand_over(forget(4));
        asked.end();
        assert!(is_readable());
        let (jobs, more) = asked.take();
        assert!(jobs.len() == 1 && !more);
    }
}
