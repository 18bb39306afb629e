//! A queue of a raw image: what is done at once, and what goes through a ring or
//! to threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use linkspan_mem::{RegionTable, fault};
use linkspan_sys::Epoll;
use linkspan_sys::file::Transfer;
use linkspan_sys::poll::Interest;
use linkspan_sys::uring;

use super::bounce::Bounce;
use super::file_io::{RawFile, is_aligned};
use super::job::{Job, Work};
use super::pool::Port;
use super::rings::Lent;
use super::turns::Turn;
use crate::image::{Completion, ImageQueue, Operation};

pub(super) struct RawQueue {
    file: Arc<RawFile>,
    /// Whether the worker may wait for the file, which is memory.
    inline: bool,
    ring: Option<RingJobs>,
    /// To the threads: for all of it, or for what a ring does not do.
    port: Port,
    /// Jobs to use again.
    spare: Vec<Job>,
    /// Whether jobs were begun by looking for completions, and not by who
    /// launches what he submits.
    went_on: bool,
    /// Last, so that the ring has nothing in flight when it goes.
    turn: Turn,
}

impl Drop for RawQueue {
    fn drop(&mut self) {
        // Nobody waited for the threads, as when the process ends: nobody else may have the
        // image before they have.
        if self.port.is_busy() {
            std::mem::forget(std::mem::replace(&mut self.turn, Turn::Waits));
        }
    }
}

/// Jobs that a ring has.
struct RingJobs {
    ring: Lent,
    /// By the number under which the ring knows them.
    jobs: Vec<Option<Job>>,
    free: Vec<u32>,
    /// Whether the ring has operations that were not submitted.
    waiting: bool,
    /// The descriptors of the ring and of the port as one.
    either: Epoll,
}

impl RawQueue {
    pub(super) fn new(
        file: Arc<RawFile>,
        port: Port,
        ring: Option<Lent>,
        inline: bool,
        depth: u16,
    ) -> io::Result<Self> {
        let depth = usize::from(depth);
        let refused = |refused| io::Error::new(io::ErrorKind::OutOfMemory, refused);
        let ring = match ring {
            None => None,
            Some(ring) => {
                let either = Epoll::new()?;
                either.add(&*ring, 0, Interest::READ)?;
                either.add(&port, 1, Interest::READ)?;
                Some(RingJobs {
                    ring,
                    jobs: fault::try_with_capacity(depth).map_err(refused)?,
                    free: fault::try_with_capacity(depth).map_err(refused)?,
                    waiting: false,
                    either,
                })
            }
        };
        Ok(Self {
            turn: Turn::of(&file),
            file,
            inline,
            ring,
            port,
            spare: fault::try_with_capacity(depth).map_err(refused)?,
            went_on: false,
        })
    }

    /// What can be answered or done without waiting; `None`, with what was done
    /// of it, when that is not all.
    #[inline]
    fn at_once(
        &self,
        work: Work,
        transfer: &Transfer<'_>,
        done: &mut u64,
    ) -> Option<io::Result<()>> {
        if self.file.read_only && work.changes_image() {
            return Some(Err(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        match work {
            Work::Read { .. } if self.file.read_mapped(transfer, done) => Some(Ok(())),
            Work::Read { .. } if self.file.nowait => self.file.read_cached(transfer, done),
            Work::Flush if let Some(known) = self.file.sync_at_once() => Some(known),
            Work::Read { .. } | Work::Write { .. } | Work::Flush if self.inline => {
                let mut bounce = Bounce::default();
                Some(work.carry_out(transfer, done, &self.file, &mut bounce))
            }
            _ => None,
        }
    }

    /// Gives a job to the ring, or to the threads.
    fn begin(&mut self, job: Job) {
        let job = match &mut self.ring {
            None => Some(job),
            Some(ring) => ring.begin(job, &self.file),
        };
        if let Some(job) = job {
            self.port.add(job);
        }
    }

    fn end(&mut self, mut job: Job) -> Completion {
        let completion = Completion {
            token: job.token,
            result: job.end(),
        };
        self.spare.push(job);
        completion
    }

    /// The next job that the ring is done with. Those that it did a part of, it
    /// goes on with.
    fn next_of_ring(&mut self) -> Option<Job> {
        let ring = self.ring.as_mut()?;
        while let Some((mut job, result)) = ring.next() {
            match go_on(&mut job, result, &self.file) {
                Next::Ended => return Some(job),
                Next::Ring => {
                    if let Some(job) = ring.begin(job, &self.file) {
                        self.port.add(job);
                    }
                }
                Next::Threads => self.port.add(job),
            }
            self.went_on = true;
        }
        None
    }
}

/// What becomes of a job that the ring gave back.
enum Next {
    Ended,
    Ring,
    Threads,
}

/// Takes in what the ring did for a job.
fn go_on(job: &mut Job, result: io::Result<u32>, file: &RawFile) -> Next {
    let moved = match result {
        Ok(moved) => u64::from(moved),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Next::Ring,
        // It would have to wait, which threads can.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Threads,
        Err(error) => {
            job.result = failed(job, error, file);
            return Next::Ended;
        }
    };
    job.done += moved;
    let Some((_, transfer)) = job.data() else {
        return Next::Ended;
    };
    let rest = moved > 0 && job.done < transfer.len();
    job.result = match job.work {
        // At the end of the file there is nothing to go on with.
        Work::Read { offset } if rest && offset + job.done < file.len() => return Next::Ring,
        Work::Read { .. } => file.end_read(&transfer, job.done),
        Work::Write { .. } if rest => return Next::Ring,
        Work::Write { durable, .. } => file.end_write(&transfer, job.done, durable, Ok(())),
        _ => Ok(()),
    };
    Next::Ended
}

fn failed(job: &Job, error: io::Error, file: &RawFile) -> io::Result<()> {
    match (job.work, job.data()) {
        (Work::Flush, _) => file.end_sync(Err(error)),
        (Work::Write { durable, .. }, Some((_, transfer))) => {
            file.end_write(&transfer, job.done, durable, Err(error))
        }
        _ => Err(error),
    }
}

impl RingJobs {
    /// Takes a job; gives it back when it is not for the ring.
    fn begin(&mut self, job: Job, file: &RawFile) -> Option<Job> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.jobs.push(None);
                u32::try_from(self.jobs.len() - 1).expect("a queue has at most 65535 entries")
            }
        };
        if self.start(number, &job, file) {
            self.jobs[number as usize] = Some(job);
            self.waiting = true;
            return None;
        }
        self.free.push(number);
        Some(job)
    }

    fn start(&mut self, number: u32, job: &Job, file: &RawFile) -> bool {
        let Some((memory, transfer)) = job.data() else {
            return false;
        };
        let aligned = |alignment| is_aligned(alignment, &transfer, job.done);
        let started = match job.work {
            Work::Read { .. } | Work::Write { .. } if !file.direct.is_none_or(aligned) => {
                return false;
            }
            Work::Read { .. } => self.ring.read(number, memory, &transfer, job.done),
            Work::Write { durable, .. } => {
                let flags = file.write_flags(durable);
                self.ring.write(number, memory, &transfer, job.done, flags)
            }
            Work::Flush => self.ring.sync_data(number),
            Work::Discard { .. } | Work::WriteZeroes(_) => return false,
        };
        // Without room in the ring there is room with the threads.
        started.is_ok()
    }

    fn next(&mut self) -> Option<(Job, io::Result<u32>)> {
        let uring::Completion { token, result } = self.ring.completion()?;
        let job = self.jobs[token as usize].take();
        self.free.push(token);
        Some((job.expect("a job that the ring has"), result))
    }

    /// Submits what waits; whether the kernel took all.
    fn submit(&mut self) -> bool {
        if self.waiting {
            self.waiting = self.ring.submit().is_err();
        }
        !self.waiting
    }
}

impl ImageQueue for RawQueue {
    #[inline]
    fn has_turn(&mut self) -> bool {
        self.turn.has_come(&self.file)
    }

    fn submit(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>> {
        let (work, spans) = Work::of(operation, &self.file);
        let transfer = Transfer {
            table: memory,
            spans,
            offset: work.offset().unwrap_or(0),
        };
        let mut done = 0;
        let known = self.at_once(work, &transfer, &mut done);
        if known.is_some() {
            return known;
        }
        let mut job = self.spare.pop().unwrap_or_else(Job::new);
        if job.take_over(token, work, spans, memory, done) {
            self.begin(job);
            return None;
        }
        self.spare.push(job);
        Some(Err(io::ErrorKind::OutOfMemory.into()))
    }

    fn launch(&mut self) {
        if let Some(ring) = &mut self.ring
            && !ring.submit()
        {
            // The kernel has no room now. Nobody says when it has.
            self.port.wake();
        }
        self.port.send();
    }

    #[inline]
    fn completion(&mut self) -> Option<Completion> {
        if let Some(job) = self.next_of_ring() {
            return Some(self.end(job));
        }
        if let Some(job) = self.port.take() {
            return Some(self.end(job));
        }
        if std::mem::take(&mut self.went_on) {
            self.launch();
        }
        None
    }

    #[inline]
    fn has_completion(&self) -> bool {
        let ring = self.ring.as_ref();
        ring.is_some_and(|ring| ring.ring.has_completions()) || self.port.has_ended()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(match &self.ring {
            Some(ring) => ring.either.as_fd(),
            None => self.port.as_fd(),
        })
    }
}
