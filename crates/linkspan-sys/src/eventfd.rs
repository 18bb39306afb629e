//! Event counters: our own, and those that a peer gave us as kick, call or
//! error descriptors.

use crate::{acquire, reaper};
use linkspan_mem::fault::Site;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{CWD, readlinkat_raw};
use rustix::io::{Errno, read, write};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What `/proc/self/fd/N` says of an eventfd. A path can never equal it,
/// because a path starts with a slash.
const EVENTFD_LINK: &[u8] = b"anon_inode:[eventfd]";

/// An event counter of our own: never inherited, never blocking.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A counter that stands at zero.
    ///
    /// # Errors
    /// Whatever `eventfd(2)` reports, `EMFILE` above all.
    pub fn new() -> io::Result<Self> {
        acquire(Site::Fd)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Adds one and wakes whoever waits. A counter that is full is signalled
    /// already, so that is success.
    ///
    /// # Errors
    /// Only if something else shares the descriptor and broke it.
    pub fn signal(&self) -> io::Result<()> {
        match add_one(self.as_fd()) {
            Ok(()) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the counter back to zero and returns what it held; zero if nobody
    /// signalled. Never waits.
    ///
    /// # Errors
    /// Only if something else shares the descriptor and broke it.
    pub fn drain(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        loop {
            return match read(&self.0, &mut count) {
                Ok(_) => Ok(u64::from_ne_bytes(count)),
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// A second descriptor of the same counter, to give to a peer.
    ///
    /// # Errors
    /// Whatever `dup` reports, `EMFILE` above all.
    pub fn try_clone(&self) -> io::Result<Self> {
        acquire(Site::Fd)?;
        Ok(Self(self.0.try_clone()?))
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0
    }
}

/// What became of a signal to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a full counter is worth counting"]
pub enum Delivery {
    /// The counter went up by one.
    Sent,
    /// The peer has not read its counter for so long that it is full. It is
    /// signalled already; nothing is lost.
    Full,
}

/// Why a descriptor cannot carry notifications.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent something else where the protocol asks for an eventfd.
    #[error(
        "descriptor {fd} is not an eventfd: only eventfds are accepted for notifications, because others can block"
    )]
    NotEventFd {
        /// The number that the descriptor had here.
        fd: i32,
    },
    /// `/proc` cannot be read, so the kind of the descriptor stays unknown.
    #[error("cannot tell the kind of descriptor {fd}: is /proc mounted here?")]
    Unknown {
        /// The number that the descriptor had here.
        fd: i32,
        /// What reading `/proc/self/fd` reported.
        source: io::Error,
    },
}

/// An event counter that a peer owns as well (vhost-user: SET_VRING_KICK,
/// SET_VRING_CALL, SET_VRING_ERR).
///
/// The peer can fill it, empty it and change its flags while we use it. So a
/// kick is watched edge-triggered ([`crate::poll::Interest::edge`]) and never
/// read: every write to an eventfd is a new edge, whatever the counter holds.
/// And before each signal the counter is asked whether it has room. The flags
/// are left alone: they belong to the open file, and a peer that reads its call
/// descriptor blocking would break if we made it non-blocking. Nor are they
/// trusted, since a peer could clear `O_NONBLOCK` after we looked.
#[derive(Debug)]
pub struct PeerEventFd(OwnedFd);

impl PeerEventFd {
    /// Accepts a descriptor from a peer if it is an eventfd.
    ///
    /// Reads one link below `/proc/self/fd` and makes no call on the descriptor
    /// itself, so that a file of a dead file server cannot hold us.
    ///
    /// # Errors
    /// [`Error`]; the descriptor is then closed by the [`reaper`].
    pub fn check(fd: OwnedFd) -> Result<Self, Error> {
        match is_eventfd(fd.as_fd()) {
            Ok(true) => Ok(Self(fd)),
            Ok(false) => {
                let number = fd.as_raw_fd();
                reaper::dispose(fd);
                Err(Error::NotEventFd { fd: number })
            }
            Err(errno) => {
                let number = fd.as_raw_fd();
                reaper::dispose(fd);
                Err(Error::Unknown {
                    fd: number,
                    source: errno.into(),
                })
            }
        }
    }

    /// Adds one to the peer's counter unless it is full.
    ///
    /// # Errors
    /// What `poll(2)` or `write(2)` report; no state of an eventfd that a peer
    /// can reach makes them fail.
    pub fn signal(&self) -> io::Result<Delivery> {
        let mut room = [PollFd::new(&self.0, PollFlags::OUT)];
        if retry(|| poll(&mut room, Some(&Timespec::default())))? == 0 {
            return Ok(Delivery::Full);
        }
        match add_one(self.as_fd()) {
            Ok(()) => Ok(Delivery::Sent),
            Err(Errno::AGAIN) => Ok(Delivery::Full),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for PeerEventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn add_one(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    retry(|| write(fd, &1_u64.to_ne_bytes())).map(drop)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

fn is_eventfd(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    has_link(fd, EVENTFD_LINK)
}

/// Whether `/proc/self/fd` says this of a descriptor. Makes no call on the
/// descriptor itself.
pub(crate) fn has_link(fd: BorrowedFd<'_>, text: &[u8]) -> Result<bool, Errno> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .expect("a number has no zero byte");
    // Room for more than any text we look for, so that a longer one differs.
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (link, _) = readlinkat_raw(CWD, &path, &mut buffer)?;
    Ok(link == text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::{Epoll, Interest, Ready};
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::fs::File;
    use std::time::Duration;

    fn blocking_eventfd(start: u64) -> OwnedFd {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        if start > 0 {
            write(&fd, &start.to_ne_bytes()).unwrap();
        }
        fd
    }

    #[test]
    fn own_counter_counts_and_drains() {
        let event = EventFd::new().unwrap();
        assert_eq!(event.drain().unwrap(), 0);
        event.signal().unwrap();
        event.try_clone().unwrap().signal().unwrap();
        assert_eq!(event.drain().unwrap(), 2);
        assert_eq!(event.drain().unwrap(), 0);
    }

    #[test]
    fn own_counter_that_is_full_is_signalled() {
        let event = EventFd::new().unwrap();
        write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal().unwrap();
        assert_eq!(event.drain().unwrap(), u64::MAX - 1);
    }

    #[test]
    fn peer_counter_is_signalled_and_its_flags_stay() {
        let theirs = blocking_eventfd(0);
        let ours = PeerEventFd::check(theirs.try_clone().unwrap()).unwrap();
        assert_eq!(ours.signal().unwrap(), Delivery::Sent);
        let mut count = [0; 8];
        read(&theirs, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        assert!(!fcntl_getfl(&theirs).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn full_blocking_peer_counter_does_not_hold_us() {
        let ours = PeerEventFd::check(blocking_eventfd(u64::MAX - 1)).unwrap();
        assert_eq!(ours.signal().unwrap(), Delivery::Full);
    }

    #[test]
    fn peer_that_clears_nonblock_later_does_not_hold_us() {
        let theirs = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let ours = PeerEventFd::check(theirs.try_clone().unwrap()).unwrap();
        fcntl_setfl(&theirs, OFlags::empty()).unwrap();
        write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert_eq!(ours.signal().unwrap(), Delivery::Full);
    }

    #[test]
    fn only_eventfds_are_accepted() {
        let folder = tempfile::tempdir().unwrap();
        // A file whose name is the very text that marks an eventfd.
        let liar = folder.path().join("anon_inode:[eventfd]");
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        let others: [OwnedFd; 4] = [
            File::create(liar).unwrap().into(),
            pipe,
            crate::memfd::create("anon_inode:[eventfd]", 0, crate::memfd::Sealing::Open).unwrap(),
            Epoll::new().unwrap().into(),
        ];
        for fd in others {
            let number = fd.as_raw_fd();
            let refused = PeerEventFd::check(fd).unwrap_err();
            assert!(matches!(refused, Error::NotEventFd { fd } if fd == number));
        }
    }

    #[test]
    fn each_kick_is_an_edge_though_nobody_reads() {
        let theirs = blocking_eventfd(0);
        let ours = PeerEventFd::check(theirs.try_clone().unwrap()).unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(&ours, 7, Interest::READ.edge()).unwrap();
        let mut ready = Ready::with_capacity(4);
        for _ in 0..5 {
            write(&theirs, &1_u64.to_ne_bytes()).unwrap();
            epoll.wait(&mut ready, None).unwrap();
            assert_eq!(
                ready.iter().map(|event| event.token).collect::<Vec<_>>(),
                [7]
            );
            // Without another kick there is no other wake-up.
            epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            assert_eq!(ready.iter().count(), 0);
        }
    }

    #[test]
    fn kick_before_it_is_watched_is_seen() {
        let theirs = blocking_eventfd(3);
        let ours = PeerEventFd::check(theirs).unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(&ours, 1, Interest::READ.edge()).unwrap();
        let mut ready = Ready::with_capacity(4);
        epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert_eq!(ready.iter().count(), 1);
    }
}
