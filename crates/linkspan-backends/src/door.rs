//! A listener among what a server waits for. Who waits there and cannot be taken in, for want
//! of descriptors, is told of again and again: so the listener rests for a moment then.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use linkspan_sys::Epoll;
use linkspan_sys::poll::Interest;

/// How long it rests.
const REST: Duration = Duration::from_millis(100);

/// A listener that is watched, but for a moment after an error.
#[derive(Debug)]
pub(crate) struct Door<L> {
    listener: L,
    token: u64,
    /// When it is watched again.
    until: Option<Instant>,
    /// The last one could not be taken in, which was said.
    failed: bool,
}

impl<L: AsFd> Door<L> {
    /// Has this listener watched with this token.
    pub(crate) fn new(listener: L, token: u64, epoll: &Epoll) -> io::Result<Self> {
        epoll.add(&listener, token, Interest::READ)?;
        Ok(Self {
            listener,
            token,
            until: None,
            failed: false,
        })
    }

    pub(crate) fn listener(&self) -> &L {
        &self.listener
    }

    /// Who came, as `accept` says. After an error the listener rests.
    pub(crate) fn accept<T>(
        &mut self,
        epoll: &Epoll,
        accept: impl FnOnce(&L) -> io::Result<T>,
    ) -> Option<T> {
        match accept(&self.listener) {
            Ok(stream) => {
                self.failed = false;
                Some(stream)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!("who connects has to wait: {error}");
                }
                let rests = epoll.modify(&self.listener, self.token, Interest::NONE);
                self.until = rests.ok().map(|()| Instant::now() + REST);
                None
            }
        }
    }

    /// When [`open`](Self::open) has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.until
    }

    /// Has it watched again if it has rested.
    pub(crate) fn open(&mut self, epoll: &Epoll, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            let watched = epoll.modify(&self.listener, self.token, Interest::READ);
            self.until = watched.err().map(|_| now + REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_sys::poll::Ready;
    use linkspan_sys::{Listener, Stream};

    use super::*;

    /// Without descriptors who waits would be told of without end.
    #[test]
    fn a_listener_rests_after_an_error_and_loses_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let epoll = Epoll::new().unwrap();
        let mut door = Door::new(Listener::bind(&path).unwrap(), 7, &epoll).unwrap();
        let _client = Stream::connect(&path).unwrap();
        let told = || {
            let mut ready = Ready::with_capacity(4);
            epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
            ready.iter().map(|event| event.token).collect::<Vec<_>>()
        };
        assert_eq!(told(), [7]);
        let none = |_: &Listener| Err::<Stream, _>(io::Error::from_raw_os_error(24));
        assert!(door.accept(&epoll, none).is_none());
        assert_eq!(told(), [0u64; 0]);
        let until = door.due().unwrap();
        door.open(&epoll, until.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!((told(), door.due()), (vec![], Some(until)));
        door.open(&epoll, until);
        assert_eq!((told(), door.due()), (vec![7], None));
        assert!(door.accept(&epoll, Listener::accept).is_some());
        // That nobody is there is no error.
        assert!(door.accept(&epoll, Listener::accept).is_none());
        assert_eq!((told(), door.due()), (vec![], None));
    }
}
