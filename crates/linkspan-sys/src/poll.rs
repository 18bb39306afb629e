//! Waiting: many descriptors in one place, or one socket and a wish to stop.

use crate::acquire;
use linkspan_mem::fault::Site;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What to be told about a descriptor. Errors and hang-ups are always told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(EventFlags);

impl Interest {
    /// Something can be read.
    pub const READ: Self = Self(EventFlags::IN);
    /// Something can be written.
    pub const WRITE: Self = Self(EventFlags::OUT);
    /// Either of them.
    pub const READ_WRITE: Self = Self(EventFlags::IN.union(EventFlags::OUT));

    /// Nothing but errors and hang-ups.
    pub const NONE: Self = Self(EventFlags::empty());

    /// Tells of each change once, instead of as long as the state lasts
    /// (`EPOLLET`). The way to watch a peer's kicks, which are never read.
    #[must_use]
    pub fn edge(self) -> Self {
        Self(self.0 | EventFlags::ET)
    }
}

/// One descriptor that became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyEvent {
    /// The number it was added with.
    pub token: u64,
    /// Something can be read; that may be the end of the stream.
    pub readable: bool,
    /// Something can be written.
    pub writable: bool,
    /// The other end is gone, or the descriptor failed: reading says which.
    pub closed: bool,
}

/// A fixed buffer for what [`Epoll::wait`] finds.
pub struct Ready(Vec<Event>);

// SAFETY: events are numbers. What of them could be a pointer is a token of ours, which is one
// too, and nothing is ever read through it.
unsafe impl Send for Ready {}

impl Ready {
    /// Room for `count` events of one wait; the rest comes with the next.
    #[must_use]
    pub fn with_capacity(count: usize) -> Self {
        assert!(count > 0, "a wait needs room for one event");
        Self(Vec::with_capacity(count))
    }

    /// What the last wait found.
    pub fn iter(&self) -> impl Iterator<Item = ReadyEvent> {
        self.0.iter().map(|event| {
            let flags = event.flags;
            ReadyEvent {
                token: event.data.u64(),
                readable: flags.contains(EventFlags::IN),
                writable: flags.contains(EventFlags::OUT),
                closed: flags.intersects(EventFlags::HUP | EventFlags::ERR),
            }
        })
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A set of descriptors to wait for, each with a number.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// Whatever `epoll_create1(2)` reports, `EMFILE` above all.
    pub fn new() -> io::Result<Self> {
        acquire(Site::Fd)?;
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Watches `source`; its events carry `token`.
    ///
    /// Delete it before its last duplicate is closed: as long as a peer holds
    /// the same open file, closing our descriptor does not end the watch.
    ///
    /// # Errors
    /// Whatever `epoll_ctl(2)` reports.
    pub fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        acquire(Site::Alloc)?;
        Ok(epoll::add(
            &self.0,
            source,
            EventData::new_u64(token),
            interest.0,
        )?)
    }

    /// Changes token and interest of a watched descriptor.
    ///
    /// # Errors
    /// Whatever `epoll_ctl(2)` reports.
    pub fn modify(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(
            &self.0,
            source,
            EventData::new_u64(token),
            interest.0,
        )?)
    }

    /// Ends the watch.
    ///
    /// # Errors
    /// `ENOENT` if the descriptor was not watched.
    pub fn delete(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, source)?)
    }

    /// Waits for an event, at most `timeout` (`None`: for ever), and replaces
    /// what `ready` held. Signals do not end the wait.
    ///
    /// # Errors
    /// Whatever `epoll_wait(2)` reports except `EINTR`.
    pub fn wait(&self, ready: &mut Ready, timeout: Option<Duration>) -> io::Result<()> {
        ready.0.clear();
        // Whoever does not wait needs no clock.
        let at_once = timeout == Some(Duration::ZERO);
        let deadline = timeout
            .filter(|_| !at_once)
            .and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = if at_once {
                Some(Timespec::default())
            } else {
                remaining(deadline)
            };
            match epoll::wait(&self.0, spare_capacity(&mut ready.0), left.as_ref()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Epoll> for OwnedFd {
    fn from(epoll: Epoll) -> Self {
        epoll.0
    }
}

/// Which direction of a descriptor [`wait_for`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Until something can be read, the end of the stream included.
    Read,
    /// Until something can be written.
    Write,
}

/// Why [`wait_for`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is ready, or broken in a way that the next call on it tells.
    Ready,
    /// The cancel descriptor became readable; it comes before readiness.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

/// Waits for one descriptor, a wish to stop, or a point in time.
///
/// # Errors
/// Whatever `ppoll(2)` reports except `EINTR`.
pub fn wait_for(
    source: BorrowedFd<'_>,
    direction: Direction,
    cancel: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Wake> {
    let flags = match direction {
        Direction::Read => PollFlags::IN,
        Direction::Write => PollFlags::OUT,
    };
    // Without a cancel descriptor the second entry repeats the first and is not looked at.
    let mut watched = [
        PollFd::from_borrowed_fd(source, flags),
        PollFd::from_borrowed_fd(cancel.unwrap_or(source), PollFlags::IN),
    ];
    let count = if cancel.is_some() { 2 } else { 1 };
    loop {
        let left = remaining(deadline);
        match poll(&mut watched[..count], left.as_ref()) {
            Ok(0) => return Ok(Wake::Deadline),
            Ok(_) if count == 2 && !watched[1].revents().is_empty() => return Ok(Wake::Cancelled),
            Ok(_) => return Ok(Wake::Ready),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The time until `deadline`; a deadline too far for the kernel is none.
fn remaining(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Timespec::try_from(left).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventFd;

    const PAST: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn level_repeats_and_edge_does_not() {
        let (level, edge) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let epoll = Epoll::new().unwrap();
        epoll.add(&level, 1, Interest::READ).unwrap();
        epoll.add(&edge, u64::MAX, Interest::READ.edge()).unwrap();
        level.signal().unwrap();
        edge.signal().unwrap();
        let mut ready = Ready::with_capacity(8);
        epoll.wait(&mut ready, None).unwrap();
        let mut tokens: Vec<u64> = ready.iter().map(|event| event.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [1, u64::MAX]);
        epoll.wait(&mut ready, PAST).unwrap();
        let again: Vec<ReadyEvent> = ready.iter().collect();
        let expected = ReadyEvent {
            token: 1,
            readable: true,
            writable: false,
            closed: false,
        };
        assert_eq!(again, [expected]);
    }

    #[test]
    fn modified_and_deleted_descriptors_follow() {
        let event = EventFd::new().unwrap();
        let epoll = Epoll::new().unwrap();
        let mut ready = Ready::with_capacity(1);
        epoll.add(&event, 1, Interest::READ).unwrap();
        epoll.modify(&event, 2, Interest::READ_WRITE).unwrap();
        epoll.wait(&mut ready, PAST).unwrap();
        let seen = ready.iter().next().unwrap();
        assert_eq!((seen.token, seen.readable, seen.writable), (2, false, true));
        epoll.delete(&event).unwrap();
        epoll.wait(&mut ready, PAST).unwrap();
        assert_eq!(ready.iter().count(), 0);
        assert!(epoll.delete(&event).is_err());
    }

    #[test]
    fn buffer_is_not_overrun_and_nothing_is_lost() {
        let events: Vec<EventFd> = (0..5).map(|_| EventFd::new().unwrap()).collect();
        let epoll = Epoll::new().unwrap();
        for (token, event) in (0..).zip(&events) {
            epoll.add(event, token, Interest::READ.edge()).unwrap();
            event.signal().unwrap();
        }
        let mut ready = Ready::with_capacity(2);
        let mut seen = Vec::new();
        for _ in 0..3 {
            epoll.wait(&mut ready, PAST).unwrap();
            assert!(ready.iter().count() <= 2);
            seen.extend(ready.iter().map(|event| event.token));
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn wait_for_tells_its_three_reasons_apart() {
        let (source, cancel) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let now = Some(Instant::now());
        let wait = |direction, deadline| {
            wait_for(source.as_fd(), direction, Some(cancel.as_fd()), deadline).unwrap()
        };
        assert_eq!(wait(Direction::Read, now), Wake::Deadline);
        assert_eq!(wait(Direction::Write, None), Wake::Ready);
        source.signal().unwrap();
        assert_eq!(wait(Direction::Read, None), Wake::Ready);
        cancel.signal().unwrap();
        assert_eq!(wait(Direction::Read, now), Wake::Cancelled);
        assert_eq!(
            wait_for(source.as_fd(), Direction::Read, None, now).unwrap(),
            Wake::Ready
        );
    }
}
