//! A slow image: its operations end when the test says so.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_backends::image::{Completion, Image, ImageQueue, Operation};
use linkspan_mem::{RegionTable, Span};
use linkspan_sys::EventFd;

use crate::census::settled;
use crate::disk::SECTOR;
use crate::served::content;

/// A disk in memory, sector `n` with [`content`] of `n`, that keeps every
/// operation until it is [`release`](Self::release)d.
#[derive(Debug)]
pub struct GatedImage {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    len: u64,
    data: Mutex<Vec<u8>>,
    kept: Mutex<VecDeque<Kept>>,
}

/// An operation that has not been done.
#[derive(Debug)]
struct Kept {
    token: u32,
    work: Work,
    memory: Arc<RegionTable>,
    ends: Arc<Ends>,
}

#[derive(Debug)]
enum Work {
    Read(u64, Vec<Span>),
    Write(u64, Vec<Span>),
    Zero(u64, u64),
    Flush,
}

/// What a queue hears of.
#[derive(Debug)]
struct Ends {
    done: Mutex<VecDeque<Completion>>,
    event: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GatedImage {
    /// An image of so many sectors.
    pub fn new(sectors: u64) -> Arc<Self> {
        let data: Vec<u8> = (0..sectors).flat_map(content).collect();
        Arc::new(Self {
            shared: Arc::new(Shared {
                len: sectors * SECTOR as u64,
                data: Mutex::new(data),
                kept: Mutex::default(),
            }),
        })
    }

    /// Waits until so many operations are kept.
    ///
    /// # Panics
    /// When they do not come.
    #[track_caller]
    pub fn expect_kept(&self, count: usize) {
        let there = || lock(&self.shared.kept).len();
        assert!(
            settled(|| there() == count),
            "{} operations in place of {count}",
            there()
        );
    }

    /// Does the oldest `count` operations that are kept.
    ///
    /// # Panics
    /// When there are fewer.
    #[track_caller]
    pub fn release(&self, count: usize) {
        for _ in 0..count {
            let kept = lock(&self.shared.kept).pop_front();
            let kept = kept.expect("an operation that is kept");
            self.shared.carry_out(&kept);
            let token = kept.token;
            let result = Ok(());
            lock(&kept.ends.done).push_back(Completion { token, result });
            kept.ends.event.signal().expect("an eventfd");
        }
    }
}

impl Shared {
    fn carry_out(&self, kept: &Kept) {
        let mut data = lock(&self.data);
        let at = |offset: u64| usize::try_from(offset).expect("inside the image");
        let bytes = |spans: &[Span]| spans.iter().map(|span| span.len() as usize).sum::<usize>();
        match &kept.work {
            Work::Read(offset, spans) => {
                let from = &data[at(*offset)..at(*offset) + bytes(spans)];
                kept.memory.scatter(spans, 0, from).expect("room");
            }
            Work::Write(offset, spans) => {
                let to = &mut data[at(*offset)..at(*offset) + bytes(spans)];
                kept.memory.gather(spans, 0, to).expect("bytes");
            }
            Work::Zero(offset, len) => data[at(*offset)..at(offset + len)].fill(0),
            Work::Flush => {}
        }
    }
}

impl Image for GatedImage {
    fn len(&self) -> u64 {
        self.shared.len
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(GatedQueue {
            shared: Arc::clone(&self.shared),
            ends: Arc::new(Ends {
                done: Mutex::default(),
                event: EventFd::new()?,
            }),
        }))
    }

    /// It is memory of this process, and a test that takes it over has it already.
    fn lend(&self) -> Result<Vec<OwnedFd>, String> {
        Ok(Vec::new())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

struct GatedQueue {
    shared: Arc<Shared>,
    ends: Arc<Ends>,
}

impl ImageQueue for GatedQueue {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>> {
        let work = match operation {
            Operation::Read { offset, data } => Work::Read(offset, data.to_vec()),
            Operation::Write { offset, data, .. } => Work::Write(offset, data.to_vec()),
            Operation::Flush => Work::Flush,
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                Work::Zero(offset, len)
            }
        };
        lock(&self.shared.kept).push_back(Kept {
            token,
            work,
            memory: Arc::clone(memory),
            ends: Arc::clone(&self.ends),
        });
        None
    }

    fn completion(&mut self) -> Option<Completion> {
        let next = lock(&self.ends.done).pop_front();
        if next.is_some() {
            return next;
        }
        // Before the last look: what ends from here on makes it readable again.
        self.ends.event.drain().expect("an eventfd");
        lock(&self.ends.done).pop_front()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ends.event.as_fd())
    }
}
