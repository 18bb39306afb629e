//! A few threads that do what would make a worker wait, for all queues of an
//! image.
//!
//! They start when they are first needed. A job is in the pool's queue, with a
//! thread, or in the list of its port; each list has the room that it can ever
//! need from the start, and the pool's lock is taken once for a batch.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use linkspan_mem::fault::{self, Site};
use linkspan_sys::{EventFd, thread};

use super::bounce::Bounce;
use super::file_io::RawFile;
use super::job::Job;

/// Threads of an image. Enough to keep several requests in a disk's own queue.
const THREADS: usize = 8;

/// The threads of an image and their work. Dropping it waits for that.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<RawFile>,
    queue: Mutex<Queue>,
    wanted: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<(Job, Arc<Ended>)>,
    /// Jobs that all ports together may have in the pool.
    limit: usize,
    closing: bool,
}

/// Where a queue gives jobs to the pool and takes them back.
#[derive(Debug)]
pub(super) struct Port {
    pool: Arc<Pool>,
    depth: usize,
    /// Jobs for the pool, which [`send`](Self::send) hands over at once.
    batch: Vec<Job>,
    ended: Arc<Ended>,
    /// Jobs taken back. This list and that of `ended` change places.
    taken: Vec<Job>,
    /// Jobs added and not yet given to whoever takes them.
    out: usize,
    /// Whether the descriptor is readable for another reason.
    woken: bool,
}

/// Jobs that are done, on their way back.
#[derive(Debug)]
struct Ended {
    jobs: Mutex<Vec<Job>>,
    /// Whether there are any.
    some: AtomicBool,
    /// Signalled when there are some where there were none.
    event: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new(file: Arc<RawFile>) -> Self {
        Self {
            shared: Arc::new(Shared {
                file,
                queue: Mutex::default(),
                wanted: Condvar::new(),
            }),
            threads: Mutex::default(),
        }
    }

    /// Starts the threads, all or none, unless they run.
    pub(super) fn start(&self) -> io::Result<()> {
        let mut threads = lock(&self.threads);
        while threads.len() < THREADS {
            let shared = Arc::clone(&self.shared);
            match thread::spawn("image I/O", move || shared.serve()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.end(&mut threads);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the threads once they have done all there is.
    fn end(&self, threads: &mut Vec<JoinHandle<()>>) {
        lock(&self.shared.queue).closing = true;
        self.shared.wanted.notify_all();
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that does an image's I/O failed");
            }
        }
        lock(&self.shared.queue).closing = false;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut threads = std::mem::take(&mut *lock(&self.threads));
        self.end(&mut threads);
    }
}

impl Shared {
    fn serve(&self) {
        let mut bounce = Bounce::default();
        while let Some((mut job, ended)) = self.next() {
            job.carry_out(&self.file, &mut bounce);
            ended.add(job);
        }
    }

    /// The oldest job; waits for one. `None` when there will be no more.
    fn next(&self) -> Option<(Job, Arc<Ended>)> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(next) = queue.jobs.pop_front() {
                return Some(next);
            }
            if queue.closing {
                return None;
            }
            let woken = self.wanted.wait(queue);
            queue = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Ended {
    fn add(&self, job: Job) {
        let mut jobs = lock(&self.jobs);
        jobs.push(job);
        // With the lock held, so that who takes the jobs finds the signal too.
        if !self.some.swap(true, Ordering::Release)
            && let Err(error) = self.event.signal()
        {
            panic!("our own eventfd cannot be signalled: {error}");
        }
    }
}

impl Port {
    /// A port for `depth` jobs at a time.
    pub(super) fn new(pool: Arc<Pool>, depth: usize) -> io::Result<Self> {
        let refused = |refused| io::Error::new(io::ErrorKind::OutOfMemory, refused);
        let room = || fault::try_with_capacity(depth).map_err(refused);
        let ended = Ended {
            jobs: Mutex::new(room()?),
            some: AtomicBool::new(false),
            event: EventFd::new()?,
        };
        let (batch, taken) = (room()?, room()?);
        fault::point(Site::Alloc).map_err(refused)?;
        let mut queue = lock(&pool.shared.queue);
        let more = queue.limit + depth - queue.jobs.len().min(queue.limit);
        queue.jobs.try_reserve(more)?;
        queue.limit += depth;
        drop(queue);
        Ok(Self {
            pool,
            depth,
            batch,
            ended: Arc::new(ended),
            taken,
            out: 0,
            woken: false,
        })
    }

    /// Takes a job for the next batch.
    pub(super) fn add(&mut self, job: Job) {
        self.batch.push(job);
        self.out += 1;
    }

    /// Whether threads may be at work for it.
    pub(super) fn is_busy(&self) -> bool {
        self.out > 0
    }

    /// Hands the batch to the threads, which are started if they are not there. If
    /// they cannot be, the jobs come back with the reason.
    pub(super) fn send(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if let Err(error) = self.pool.start() {
            for mut job in self.batch.drain(..) {
                job.result = Err(error.kind().into());
                self.ended.add(job);
            }
            return;
        }
        let shared = &self.pool.shared;
        let count = self.batch.len();
        let jobs = self.batch.drain(..);
        let jobs = jobs.map(|job| (job, Arc::clone(&self.ended)));
        lock(&shared.queue).jobs.extend(jobs);
        for _ in 0..count.min(THREADS) {
            shared.wanted.notify_one();
        }
    }

    /// The next job that was done, if there is one. When there is none, the
    /// descriptor becomes readable with the next.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Job> {
        let job = self.next();
        self.out -= usize::from(job.is_some());
        job
    }

    #[inline]
    fn next(&mut self) -> Option<Job> {
        if let Some(job) = self.taken.pop() {
            return Some(job);
        }
        if !self.has_ended() {
            return None;
        }
        let mut jobs = lock(&self.ended.jobs);
        std::mem::swap(&mut *jobs, &mut self.taken);
        if let Err(error) = self.ended.event.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        self.ended.some.store(false, Ordering::Release);
        self.woken = false;
        drop(jobs);
        self.taken.pop()
    }

    /// Whether there is a reason to look for jobs that were done.
    #[inline]
    pub(super) fn has_ended(&self) -> bool {
        self.woken || self.ended.some.load(Ordering::Acquire)
    }

    /// Makes the descriptor readable though no job was done: there is another
    /// reason to look again. The next look ends it.
    pub(super) fn wake(&mut self) {
        self.woken = true;
        if let Err(error) = self.ended.event.signal() {
            panic!("our own eventfd cannot be signalled: {error}");
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.event.as_fd()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        lock(&self.pool.shared.queue).limit -= self.depth;
    }
}
