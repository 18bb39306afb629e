//! Closing descriptors whose close can block.
//!
//! `close(2)` of a file calls the file system's flush, and a FUSE server that
//! never answers it holds the caller for ever. A peer can send us such a file.
//! So what fails its check, and what was sent in surplus, is closed by one
//! detached thread that nobody waits for and that is started when it is first
//! needed. If a peer blocks it, the descriptors behind stay open: the owner of
//! a link looks at [`backlog`] and ends a link that makes it grow.

use crate::thread;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

struct Queue {
    waiting: VecDeque<OwnedFd>,
    closing: bool,
    started: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    waiting: VecDeque::new(),
    closing: false,
    started: false,
});
static MORE: Condvar = Condvar::new();

/// Closes `fd` without ever blocking the caller.
pub fn dispose(fd: OwnedFd) {
    let mut queue = lock();
    queue.waiting.push_back(fd);
    if !queue.started {
        // Without a thread the descriptor waits until the next call gets one.
        queue.started = thread::spawn("reaper", run).is_ok();
    }
    MORE.notify_one();
}

/// How many descriptors are not closed yet. Zero at rest; a number that stays
/// up means that a peer's file system blocks its own close.
#[must_use]
pub fn backlog() -> usize {
    let queue = lock();
    queue.waiting.len() + usize::from(queue.closing)
}

fn run() {
    loop {
        let mut queue = MORE
            .wait_while(lock(), |queue| queue.waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let fd = queue.waiting.pop_front();
        queue.closing = true;
        drop(queue);
        drop(fd);
        lock().closing = false;
    }
}

fn lock() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::read;

    #[test]
    fn disposed_descriptor_is_closed() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        dispose(writer);
        // The end of the pipe comes only once the writer is closed.
        assert_eq!(read(&reader, &mut [0; 1]).unwrap(), 0);
    }
}
