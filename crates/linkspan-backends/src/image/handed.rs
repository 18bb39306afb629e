//! Requests for an image that one thread serves: what its queues hand over, what the thread
//! takes, and how it answers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_mem::{RegionTable, Span, fault};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};

use super::{Completion, ImageQueue, Operation};

/// Completions that fit without another allocation, for a start.
const COMPLETIONS: usize = 16;

/// What queues and the thread have in common.
pub(crate) struct Handed {
    todo: Mutex<Todo>,
    /// Is readable when there is something for the thread that was not.
    event: EventFd,
}

#[derive(Default)]
struct Todo {
    jobs: VecDeque<Job>,
    ending: bool,
    hurry: bool,
}

/// Something for the thread to do.
pub(crate) enum Job {
    /// Of a queue.
    Request(Request),
    /// Makes everything durable; the result goes to who waits for it.
    Sync(SyncSender<io::Result<()>>),
}

/// An operation of a queue.
pub(crate) struct Request {
    token: u32,
    pub(crate) work: Work,
    /// The data of a read or write. The vector goes back with the completion.
    pub(crate) spans: Vec<Span>,
    pub(crate) memory: Arc<RegionTable>,
    ends: Arc<Ends>,
}

/// What is to be done, but for the data.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
        durable: bool,
    },
    Flush,
    Discard {
        offset: u64,
        len: u64,
    },
    Zero {
        offset: u64,
        len: u64,
        unmap: bool,
        durable: bool,
    },
}

/// Where the completions of one queue go.
struct Ends {
    done: Mutex<VecDeque<(Completion, Vec<Span>)>>,
    event: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever held it did nothing that could be left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal(event: &EventFd) {
    if let Err(error) = event.signal() {
        panic!("our own eventfd cannot be signalled: {error}");
    }
}

fn drain(event: &EventFd) {
    if let Err(error) = event.drain() {
        panic!("our own eventfd cannot be read: {error}");
    }
}

impl Handed {
    /// With nothing to do.
    ///
    /// # Errors
    /// What `eventfd(2)` reports.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            todo: Mutex::default(),
            event: EventFd::new()?,
        })
    }

    /// Is readable when there may be something to [take](Self::take).
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    fn hand_over(&self, job: Job) {
        let mut todo = lock(&self.todo);
        todo.jobs.push_back(job);
        let first = todo.jobs.len() == 1;
        drop(todo);
        // Of several the thread hears once: it takes all that are there.
        if first {
            signal(&self.event);
        }
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        lock(&self.todo).ending = true;
        signal(&self.event);
    }

    /// There is little time from now on.
    pub(crate) fn hurry(&self) {
        lock(&self.todo).hurry = true;
        signal(&self.event);
    }

    /// Whether there is little time.
    pub(crate) fn is_in_a_hurry(&self) -> bool {
        lock(&self.todo).hurry
    }

    /// Takes all that is there, in place of `jobs`, which are none; whether more may come.
    pub(crate) fn take(&self, jobs: &mut VecDeque<Job>) -> bool {
        // Before the look: what comes from here on makes it readable again.
        drain(&self.event);
        let mut todo = lock(&self.todo);
        std::mem::swap(&mut todo.jobs, jobs);
        !todo.ending
    }

    /// Waits for jobs and takes all that are there; false when there will be none.
    pub(crate) fn wait(&self, jobs: &mut VecDeque<Job>) -> bool {
        loop {
            let more = self.take(jobs);
            if !jobs.is_empty() || !more {
                return !jobs.is_empty();
            }
            if let Err(error) = wait_for(self.event.as_fd(), Direction::Read, None, None) {
                panic!("our own eventfd cannot be waited for: {error}");
            }
        }
    }

    /// Has everything made durable, and waits for that.
    ///
    /// # Errors
    /// What the thread says, or that there is none any more.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let (sender, result) = mpsc::sync_channel(1);
        self.hand_over(Job::Sync(sender));
        result
            .recv()
            .map_err(|_| io::Error::other("the image is closed"))?
    }
}

/// A queue whose requests a thread serves.
pub(crate) struct HandedQueue {
    handed: Arc<Handed>,
    ends: Arc<Ends>,
    /// Vectors of requests that were completed.
    spare: Vec<Vec<Span>>,
}

impl HandedQueue {
    /// A queue for this thread.
    ///
    /// # Errors
    /// When a resource cannot be had.
    pub(crate) fn new(handed: &Arc<Handed>) -> io::Result<Self> {
        let done = fault::try_with_capacity(COMPLETIONS).map_err(io::Error::other)?;
        Ok(Self {
            handed: Arc::clone(handed),
            ends: Arc::new(Ends {
                done: Mutex::new(VecDeque::from(done)),
                event: EventFd::new()?,
            }),
            spare: Vec::new(),
        })
    }
}

impl ImageQueue for HandedQueue {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>> {
        let mut spans = self.spare.pop().unwrap_or_default();
        spans.clear();
        let work = match operation {
            Operation::Read { offset, data } => {
                spans.extend_from_slice(data);
                Work::Read { offset }
            }
            Operation::Write {
                offset,
                data,
                durable,
            } => {
                spans.extend_from_slice(data);
                Work::Write { offset, durable }
            }
            Operation::Flush => Work::Flush,
            Operation::Discard { offset, len } => Work::Discard { offset, len },
            Operation::WriteZeroes {
                offset,
                len,
                unmap,
                durable,
            } => Work::Zero {
                offset,
                len,
                unmap,
                durable,
            },
        };
        self.handed.hand_over(Job::Request(Request {
            token,
            work,
            spans,
            memory: Arc::clone(memory),
            ends: Arc::clone(&self.ends),
        }));
        None
    }

    fn completion(&mut self) -> Option<Completion> {
        let mut next = lock(&self.ends.done).pop_front();
        if next.is_none() {
            // Before the last look: what ends from here on makes it readable again.
            drain(&self.ends.event);
            next = lock(&self.ends.done).pop_front();
        }
        let (completion, spans) = next?;
        self.spare.push(spans);
        Some(completion)
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ends.event.as_fd())
    }

    fn has_completion(&self) -> bool {
        !lock(&self.ends.done).is_empty()
    }
}

impl Request {
    /// Bytes of the data of a read or write.
    pub(crate) fn len(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span.len())).sum()
    }

    /// Tells the queue how it ended.
    pub(crate) fn complete(self, result: io::Result<()>) {
        let Self {
            token, spans, ends, ..
        } = self;
        let mut done = lock(&ends.done);
        done.push_back((Completion { token, result }, spans));
        let first = done.len() == 1;
        drop(done);
        // Of several the queue hears once: it takes all that are there.
        if first {
            signal(&ends.event);
        }
    }
}
