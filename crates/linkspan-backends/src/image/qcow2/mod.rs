//! qcow2 images, by the crate `imago`.
//!
//! One thread owns the image: what it does may wait for the disk at any point,
//! and a worker must not. Data goes through a buffer of that thread. So a qcow2
//! image is slower than a raw one, and all its queues share the one thread.
//!
//! A request is answered when the tables that lead to its data have been handed
//! to the kernel. QEMU may leave them in its own memory until a flush, since its
//! guest dies with it; ours lives on when this process is killed, and believes
//! what was answered.

mod chain;
mod header;
mod serve;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use linkspan_mem::{RegionTable, Span, fault};
use linkspan_sys::{EventFd, thread};

use super::{Completion, Image, ImageQueue, Operation, ResizeError};
use chain::ChainOptions;
pub use chain::{CHAIN_MAX, Qcow2Error};
pub(super) use header::MAGIC;
pub use header::{FeatureNames, HeaderError};
pub use serve::contains_panics;

/// A qcow2 image as a disk. Dropping it writes back its tables, and waits for that.
pub struct Qcow2Image {
    shared: Arc<Shared>,
    len: u64,
    cluster: u32,
    read_only: bool,
    thread: Option<JoinHandle<()>>,
}

/// What queues and the thread have in common.
struct Shared {
    todo: Mutex<Todo>,
    wake: Condvar,
}

#[derive(Default)]
struct Todo {
    jobs: VecDeque<Job>,
    ending: bool,
}

/// Something for the thread to do.
enum Job {
    Request(Request),
    /// Makes everything durable; the result goes to who waits for it.
    Sync(SyncSender<io::Result<()>>),
}

struct Request {
    token: u32,
    work: Work,
    /// The data of a read or write. The vector goes back with the completion.
    spans: Vec<Span>,
    memory: Arc<RegionTable>,
    ends: Arc<Ends>,
}

#[derive(Clone, Copy, Debug)]
enum Work {
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

impl Qcow2Image {
    /// Opens and locks the image and what it stands on; waits at most `lock_wait`
    /// for each other user of a file. Backing images and data files are opened
    /// only below the folders `allowed`.
    ///
    /// # Errors
    /// [`Qcow2Error`]; nothing stays open then.
    pub fn open(
        path: &Path,
        read_only: bool,
        lock_wait: Duration,
        allowed: &[PathBuf],
    ) -> Result<Self, Qcow2Error> {
        let options = ChainOptions {
            read_only,
            lock_wait,
            allowed: allowed.to_vec(),
        };
        let shared = Arc::new(Shared {
            todo: Mutex::default(),
            wake: Condvar::new(),
        });
        let (sender, opened) = mpsc::sync_channel(1);
        let (of_thread, path) = (Arc::clone(&shared), path.to_owned());
        // The image is opened where it is used: its reader may panic there.
        let thread = thread::spawn("qcow2", move || {
            serve::run(&path, &options, &of_thread, &sender);
        })?;
        // Dropped on failure, when the thread has nothing to serve and ends.
        let mut image = Self {
            shared,
            len: 0,
            cluster: 512,
            read_only,
            thread: Some(thread),
        };
        let header = match opened.recv() {
            Ok(opened) => opened?,
            Err(mpsc::RecvError) => unreachable!("the thread says how it went"),
        };
        image.len = header.size - header.size % 512;
        image.cluster = header.cluster;
        Ok(image)
    }
}

impl fmt::Debug for Qcow2Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qcow2Image({} bytes)", self.len)
    }
}

impl Drop for Qcow2Image {
    fn drop(&mut self) {
        lock(&self.shared.todo).ending = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the thread of a qcow2 image panicked");
        }
    }
}

impl Shared {
    fn hand_over(&self, job: Job) {
        lock(&self.todo).jobs.push_back(job);
        self.wake.notify_one();
    }
}

impl Image for Qcow2Image {
    fn len(&self) -> u64 {
        self.len
    }

    /// The size is in the image, which is locked against others.
    fn measure(&self) -> Result<(), ResizeError> {
        Err(ResizeError::Fixed)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn discard_granularity(&self) -> u32 {
        self.cluster
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        let done = fault::try_with_capacity(COMPLETIONS).map_err(io::Error::other)?;
        Ok(Box::new(Qcow2Queue {
            shared: Arc::clone(&self.shared),
            ends: Arc::new(Ends {
                done: Mutex::new(VecDeque::from(done)),
                event: EventFd::new()?,
            }),
            spare: Vec::new(),
        }))
    }

    fn sync(&self) -> io::Result<()> {
        let (sender, result) = mpsc::sync_channel(1);
        self.shared.hand_over(Job::Sync(sender));
        result
            .recv()
            .map_err(|_| io::Error::other("the image is closed"))?
    }
}

/// Completions that fit without another allocation, for a start.
const COMPLETIONS: usize = 16;

struct Qcow2Queue {
    shared: Arc<Shared>,
    ends: Arc<Ends>,
    /// Vectors of requests that were completed.
    spare: Vec<Vec<Span>>,
}

impl ImageQueue for Qcow2Queue {
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
        self.shared.hand_over(Job::Request(Request {
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
            if let Err(error) = self.ends.event.drain() {
                panic!("our own eventfd cannot be read: {error}");
            }
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
    /// Tells the queue how it ended.
    fn complete(self, result: io::Result<()>) {
        let Self {
            token, spans, ends, ..
        } = self;
        let mut done = lock(&ends.done);
        done.push_back((Completion { token, result }, spans));
        let first = done.len() == 1;
        drop(done);
        // Of several the queue hears once: it takes all that are there.
        if first && let Err(error) = ends.event.signal() {
            panic!("our own eventfd cannot be signalled: {error}");
        }
    }
}
