//! The lock of an image that two processes have open while a guest migrates from one to
//! the other: each has it while queues of it are open, and no longer.
//!
//! The monitor at the destination wants to know the disk before the source lets go of it, so
//! the image is opened without its lock there. The lock is asked for when a guest's first
//! queue starts, and again before operations of a queue that did not get it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_sys::lock;

use super::file_io::RawFile;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns {
    path: PathBuf,
    /// Queues that have the lock together.
    holders: Mutex<u32>,
    /// Whether it was said that somebody else has it, or that it cannot be had.
    told: AtomicBool,
    /// Whether the lock stays when the last queue ends: it belongs to an open file that
    /// another process has as well, and perhaps that one serves the guest.
    stays: AtomicBool,
}

impl Turns {
    /// `shared`: another process has the open file of the lock, and serves.
    pub(super) fn new(path: &Path, shared: bool) -> Self {
        Self {
            path: path.to_owned(),
            holders: Mutex::new(0),
            told: AtomicBool::new(false),
            stays: AtomicBool::new(shared),
        }
    }

    fn holders(&self) -> MutexGuard<'_, u32> {
        // A number is whole after each change.
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another process may have taken the guest over when queues end next.
    pub(super) fn stay(&self) {
        self.stays.store(true, Ordering::Release);
    }
}

/// What a queue has of the lock.
#[derive(Debug)]
pub(super) enum Turn {
    /// The image is locked for as long as it is open.
    Always,
    /// Somebody else has the lock.
    Waits,
    /// The lock is ours.
    Held {
        /// Gives it back.
        _part: Held,
    },
}

/// A part in the lock; dropping the last one gives it back.
#[derive(Debug)]
pub(super) struct Held(Arc<RawFile>);

impl Turn {
    /// For a queue that is opened.
    pub(super) fn of(file: &Arc<RawFile>) -> Self {
        match &file.turns {
            None => Self::Always,
            Some(turns) => take(file, turns).map_or(Self::Waits, |part| Self::Held { _part: part }),
        }
    }

    /// Whether operations may begin; if not, ask again.
    pub(super) fn has_come(&mut self, file: &Arc<RawFile>) -> bool {
        match (&*self, &file.turns) {
            (Self::Always, _) | (_, None) => true,
            (Self::Held { .. }, Some(turns)) => {
                // It is we who serve the guest.
                if turns.stays.load(Ordering::Relaxed) {
                    turns.stays.store(false, Ordering::Release);
                }
                true
            }
            (Self::Waits, Some(_)) => {
                *self = Self::of(file);
                matches!(self, Self::Held { .. })
            }
        }
    }
}

fn take(file: &Arc<RawFile>, turns: &Turns) -> Option<Held> {
    let mut holders = turns.holders();
    if *holders == 0 {
        match lock::lock_image(file.locked_by(), file.read_only) {
            Ok(Ok(())) => {
                if turns.told.swap(false, Ordering::Relaxed) {
                    tracing::info!("{}: free; the guest goes on", turns.path.display());
                }
            }
            Ok(Err(conflict)) => {
                if !turns.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{}: {conflict}; requests of the guest wait for it to end",
                        turns.path.display()
                    );
                }
                return None;
            }
            Err(error) => {
                // Once: a guest can start its queues as often as it likes.
                if !turns.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{}: cannot be locked, so nothing keeps others from using it: {error}",
                        turns.path.display()
                    );
                }
            }
        }
    }
    *holders += 1;
    Some(Held(Arc::clone(file)))
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(turns) = &self.0.turns else {
            return;
        };
        let mut holders = turns.holders();
        *holders -= 1;
        if *holders == 0 && !turns.stays.load(Ordering::Acquire) {
            // What cannot be locked was told of when it was to be.
            let _ = lock::unlock_image(self.0.locked_by(), self.0.read_only);
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_testkit::logs;

    use crate::image::{Image, OpenError, OpenOptions, RawImage};

    fn image() -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        image
    }

    const MIGRATABLE: OpenOptions = OpenOptions {
        read_only: false,
        lock_wait: std::time::Duration::ZERO,
        io: crate::image::Io::Threads,
        direct: false,
        durability: crate::image::Durability::Flush,
        mapped: false,
        migratable: true,
    };

    #[test]
    fn who_has_queues_has_the_image() {
        logs::capture();
        let image = image();
        let open = || RawImage::open(image.path(), &MIGRATABLE).unwrap();
        let [source, destination] = [open(), open()];
        let mut queues = [(); 2].map(|()| source.open_queue(4).unwrap());
        let mut waits = destination.open_queue(4).unwrap();
        assert!(queues.iter_mut().all(|queue| queue.has_turn()));
        assert!(!waits.has_turn());
        logs::expect_line(&[
            &image.path().display().to_string(),
            "requests of the guest wait",
        ]);
        let [one, other] = queues;
        drop(one);
        assert!(!waits.has_turn());
        drop(other);
        assert!(waits.has_turn());
        // Back again: a migration that was cancelled does not take it away.
        let mut late = source.open_queue(4).unwrap();
        assert!(!late.has_turn());
        drop(waits);
        assert!(late.has_turn());
        // Who wants it for itself is refused by name, and only while it is used.
        let alone = OpenOptions {
            migratable: false,
            ..MIGRATABLE
        };
        let refused = RawImage::open(image.path(), &alone);
        assert!(matches!(refused, Err(OpenError::InUse { .. })));
        drop(late);
        RawImage::open(image.path(), &alone).unwrap();
    }

    /// A live upgrade: both processes have the open file of the lock.
    #[test]
    fn a_successor_keeps_the_lock_and_one_that_fails_leaves_it() {
        let image = image();
        let old = RawImage::open(image.path(), &MIGRATABLE).unwrap();
        let mut queue = old.open_queue(4).unwrap();
        assert!(queue.has_turn());
        let other = RawImage::open(image.path(), &MIGRATABLE).unwrap();
        let is_free = || other.open_queue(4).unwrap().has_turn();
        let next = || {
            let lock = old.lend().unwrap().pop().unwrap();
            RawImage::take_over(image.path(), &MIGRATABLE, lock).unwrap()
        };
        let failed = next();
        drop(failed.open_queue(4).unwrap());
        drop(failed);
        assert!(!is_free());
        let new = next();
        let mut taken = new.open_queue(4).unwrap();
        old.leave();
        drop(queue);
        drop(old);
        assert!(!is_free());
        assert!(taken.has_turn());
        drop(taken);
        assert!(is_free());
    }

    #[test]
    fn an_upgrade_that_fails_leaves_the_lock_as_it_was() {
        let image = image();
        let old = RawImage::open(image.path(), &MIGRATABLE).unwrap();
        let mut queue = old.open_queue(4).unwrap();
        old.leave();
        assert!(queue.has_turn());
        drop(queue);
        let other = RawImage::open(image.path(), &MIGRATABLE).unwrap();
        assert!(other.open_queue(4).unwrap().has_turn());
    }
}
