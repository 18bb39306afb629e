//! The link of a driver over back ends that come and go at the wrong moment.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use linkspan_engine::session::{Outgoing, Session, run_until};
use linkspan_engine::vhost_user::{Connection, LinkOptions};
use linkspan_engine::{DriverMemory, Resumed, queue_link};
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::{EventFd, Listener};
use linkspan_testkit::PATIENCE;
use linkspan_vhost::backend::{Answer, Effect, Failure, FdId};
use linkspan_vhost::{Backend, Offer};
use linkspan_virtio::Features;

/// What one back end is like.
#[derive(Clone, Copy)]
struct Habit {
    makes_region: bool,
    dies_at_start: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("dies")]
struct Dies;

/// A back end without a device.
struct Scripted {
    core: Backend,
    habit: Habit,
    /// Whether it was given a region for requests in flight, or asked for one.
    adopted: bool,
    outgoing: VecDeque<Outgoing>,
}

impl Scripted {
    fn new(habit: Habit) -> Self {
        let core = Backend::new(Offer {
            features: Features::SPLIT_QUEUE.bits(),
            protocol_features: Backend::PROTOCOL_FEATURES,
            queues: 1,
            queue_num: 1,
            queue_size_max: 64,
            config_size: 0,
            memory_slots: 8,
        });
        Self {
            core: core.unwrap(),
            habit,
            adopted: false,
            outgoing: VecDeque::new(),
        }
    }

    fn runs(&self) -> bool {
        let ring = &self.core.rings()[0];
        ring.running && ring.enabled && self.outgoing.is_empty()
    }
}

impl Session for Scripted {
    type Error = Dies;

    fn wanted(&self) -> usize {
        self.core.wanted()
    }

    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), Dies> {
        self.core.receive(bytes, fds.len()).unwrap();
        while let Some(effect) = self.core.poll_effect() {
            let answer = match effect {
                Effect::Send { bytes, fds } => {
                    let file = |_| memfd::create("region", 0x1000, Sealing::Fixed).unwrap();
                    let fds = fds.into_iter().map(file).collect();
                    self.outgoing.push_back(Outgoing { bytes, fds });
                    continue;
                }
                Effect::CreateInflight { .. } if !self.habit.makes_region => Err(Failure::System),
                Effect::CreateInflight { .. } => Ok(Answer::Inflight {
                    size: 0x1000,
                    offset: 0,
                    fd: FdId(0),
                }),
                Effect::StartRing { .. } if self.habit.dies_at_start => return Err(Dies),
                Effect::AdoptInflight { .. } => {
                    self.adopted = true;
                    Ok(Answer::Done)
                }
                _ => Ok(Answer::Done),
            };
            // What is refused is told.
            let _ = self.core.answer(answer);
        }
        Ok(())
    }

    fn poll_send(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wake(&mut self) -> Result<(), Dies> {
        Ok(())
    }

    fn close(&mut self) {}

    fn is_quiet(&self) -> bool {
        true
    }
}

/// The first back end makes no region for requests in flight. The second makes
/// one, and the rings are emptied for it; but it dies before the queues hear of
/// that. Then they still have to begin anew, with the third.
#[test]
fn rings_that_were_emptied_begin_anew_whoever_serves_them_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path).unwrap();
    let habits = [(false, false), (true, true), (true, false)];
    let habits = habits.map(|(makes_region, dies_at_start)| Habit {
        makes_region,
        dies_at_start,
    });
    let deadline = Some(Instant::now() + PATIENCE);
    let back_ends = thread::spawn(move || {
        let never = EventFd::new().unwrap();
        let mut last = None;
        for habit in habits {
            // The one of before is gone by now.
            drop(last.take());
            wait_for(listener.as_fd(), Direction::Read, None, deadline).unwrap();
            let stream = listener.accept().unwrap();
            let mut session = Scripted::new(habit);
            run_until(&mut session, &stream, &never, deadline, Scripted::runs);
            last = Some((session.adopted, stream));
        }
        last.unwrap()
    });
    let (queue, handle) = queue_link().unwrap();
    let driver = thread::spawn(move || {
        loop {
            wait_for(queue.events.call.as_fd(), Direction::Read, None, deadline).unwrap();
            queue.events.call.drain().unwrap();
            if let Some(resumed) = queue.take_news().unwrap() {
                return resumed;
            }
        }
    });
    let options = LinkOptions {
        path,
        connect_limit: PATIENCE,
        queues: 1,
        features: Features::SPLIT_QUEUE,
        required: Features::empty(),
        config_size: 0,
    };
    let connection = Connection::open(options, Arc::new(EventFd::new().unwrap())).unwrap();
    let memory = Arc::new(DriverMemory::new(1, 64, 4096).unwrap());
    let link = connection.start(memory, vec![handle]).unwrap();
    let (adopted, _stream) = back_ends.join().unwrap();
    assert!(!adopted, "a region of rings that begin anew");
    assert_eq!(driver.join().unwrap(), Resumed::Fresh);
    drop(link);
}
