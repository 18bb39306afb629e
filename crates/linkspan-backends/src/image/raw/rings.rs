//! Rings that are made before a process serves, since its sandbox lets it make none later.

use std::fmt;
use std::num::NonZero;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use linkspan_sys::uring::{Error, Ring};

/// Rings for each processor: more queues than these have their I/O done by threads.
const PER_PROCESSOR: usize = 2;

/// Rings however few processors there are.
const AT_LEAST: usize = 8;

/// What was made ahead and is free. `None`: rings are made when they are wanted.
#[derive(Default)]
pub(super) struct Rings(Mutex<Option<Vec<Ring>>>);

/// A ring in use. One that was made ahead goes back once nothing is in flight.
pub(super) struct Lent {
    /// `Some` but for the end.
    ring: Option<Ring>,
    home: Option<Arc<Rings>>,
}

impl Rings {
    fn free(&self) -> MutexGuard<'_, Option<Vec<Ring>>> {
        // A list is whole after each change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes rings for as many queues, as far as processors can keep them busy; none later.
    ///
    /// # Errors
    /// What the system refuses; nothing has changed then.
    pub(super) fn prepare(
        &self,
        file: BorrowedFd<'_>,
        queues: u16,
        depth: u16,
    ) -> Result<(), Error> {
        let processors = available_parallelism().map_or(1, NonZero::get);
        let most = (PER_PROCESSOR * processors).max(AT_LEAST);
        let rings = (0..usize::from(queues).min(most)).map(|_| Ring::new(file, depth.into()));
        let rings: Result<Vec<_>, _> = rings.collect();
        *self.free() = Some(rings?);
        Ok(())
    }

    /// A ring of at least this depth; `None` when those that were made ahead are in use.
    ///
    /// # Errors
    /// One that was to be made could not be.
    pub(super) fn take(
        self: &Arc<Self>,
        file: BorrowedFd<'_>,
        depth: u16,
    ) -> Result<Option<Lent>, Error> {
        let lent = |ring, home| Lent {
            ring: Some(ring),
            home,
        };
        match &mut *self.free() {
            Some(rings) => Ok(rings.pop().map(|ring| lent(ring, Some(Arc::clone(self))))),
            None => Ok(Some(lent(Ring::new(file, depth.into())?, None))),
        }
    }
}

impl Deref for Lent {
    type Target = Ring;

    fn deref(&self) -> &Ring {
        self.ring.as_ref().expect("it has not ended")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Ring {
        self.ring.as_mut().expect("it has not ended")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let ring = self.ring.take().filter(|ring| ring.in_flight() == 0);
        if let (Some(ring), Some(home)) = (ring, &self.home)
            && let Some(rings) = &mut *home.free()
        {
            rings.push(ring);
        }
    }
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = self.free().as_ref().map(Vec::len);
        f.debug_tuple("Rings").field(&free).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn rings_that_were_made_ahead_come_back_and_no_others_are_made() {
        let file = tempfile::tempfile().unwrap();
        let rings = Arc::new(Rings::default());
        match rings.take(file.as_fd(), 4) {
            Ok(ring) => assert!(ring.is_some()),
            Err(error @ Error::Refused { .. }) => {
                eprintln!("SKIP rings: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        }
        rings.prepare(file.as_fd(), 2, 4).unwrap();
        let taken = || rings.take(file.as_fd(), 4).unwrap();
        let (one, other) = (taken(), taken());
        assert!(one.is_some() && other.is_some());
        assert!(taken().is_none());
        drop(one);
        assert!(taken().is_some());
        drop(other);
        assert_eq!(format!("{rings:?}"), "Rings(Some(2))");
    }

    /// With many queues there are no more than processors can keep busy.
    #[test]
    fn rings_are_for_processors_and_not_for_queues() {
        let file = tempfile::tempfile().unwrap();
        let rings = Arc::new(Rings::default());
        if let Err(error) = rings.prepare(file.as_fd(), u16::MAX, 1) {
            eprintln!("SKIP rings: {error}");
            return;
        }
        let made = std::iter::from_fn(|| rings.take(file.as_fd(), 1).unwrap());
        let made: Vec<_> = made.collect();
        let processors = available_parallelism().unwrap().get();
        assert_eq!(made.len(), (2 * processors).max(8));
    }
}
