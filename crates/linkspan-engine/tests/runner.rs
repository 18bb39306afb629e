//! The session runner with a session that does as little as can be.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use linkspan_engine::session::{End, Outgoing, Session, run};
use linkspan_sys::{EventFd, Stream};
use linkspan_testkit::PATIENCE;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused")]
struct Refused;

/// What a scripted session finds when it is woken.
#[derive(Clone, Copy)]
enum Event {
    Fails,
    Quiet,
}

/// Answers each byte with the same byte.
struct Echo {
    wake: EventFd,
    events: VecDeque<Event>,
    answers: VecDeque<Outgoing>,
    busy: bool,
}

impl Echo {
    fn new(events: &[Event]) -> Self {
        let wake = EventFd::new().unwrap();
        if !events.is_empty() {
            wake.signal().unwrap();
        }
        Self {
            wake,
            busy: !events.is_empty(),
            events: events.iter().copied().collect(),
            answers: VecDeque::new(),
        }
    }
}

impl Session for Echo {
    type Error = Refused;

    fn wanted(&self) -> usize {
        16
    }

    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), Refused> {
        assert_eq!(fds.len(), 0);
        let bytes = bytes.to_vec();
        self.answers.push_back(Outgoing { bytes, fds });
        Ok(())
    }

    fn poll_send(&mut self) -> Option<Outgoing> {
        self.answers.pop_front()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }

    fn wake(&mut self) -> Result<(), Refused> {
        self.wake.drain().unwrap();
        while let Some(event) = self.events.pop_front() {
            match event {
                Event::Fails => return Err(Refused),
                Event::Quiet => self.busy = false,
            }
        }
        Ok(())
    }

    fn close(&mut self) {}

    fn is_quiet(&self) -> bool {
        !self.busy
    }
}

#[test]
fn peer_that_does_not_wait_for_its_answer_is_gone_and_not_at_fault() {
    let (front, back) = Stream::pair().unwrap();
    front
        .send(b"hello", &[], Instant::now() + PATIENCE)
        .unwrap();
    drop(front);
    let end = run(&mut Echo::new(&[]), &back, &EventFd::new().unwrap()).unwrap();
    assert!(matches!(end, End::PeerClosed), "{end:?}");
}

/// The signal of an event was taken when one before it ended the session.
#[test]
fn event_behind_the_one_that_ends_the_session_is_not_waited_for() {
    let (_front, back) = Stream::pair().unwrap();
    let mut session = Echo::new(&[Event::Fails, Event::Quiet]);
    let end = run(&mut session, &back, &EventFd::new().unwrap()).unwrap();
    assert!(matches!(end, End::Failed(Refused)), "{end:?}");
    assert!(session.is_quiet());
}

#[test]
fn word_to_end_ends_it() {
    let (front, back) = Stream::pair().unwrap();
    let cancel = EventFd::new().unwrap();
    cancel.signal().unwrap();
    let end = run(&mut Echo::new(&[]), &back, &cancel).unwrap();
    assert!(matches!(end, End::Cancelled), "{end:?}");
    drop(front);
}
