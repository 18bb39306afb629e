//! Peers that want more than there is, against a listener in the same thread.

use std::net::Ipv4Addr;
use std::time::Duration;

use linkspan_mem::Region;
use linkspan_rdma::verbs::{MemoryId, Slice};
use linkspan_smbdirect::{Descriptor, Options, Refusal, Role};

use super::{Classes, Endpoint, Happening, Id, Mode, Service, Status};
use crate::smbdirect::Config;

/// 16 buffers, which are all that this much memory has.
const MEMORY: usize = 64 << 10;

fn config(role: Role, queue: u16) -> Config {
    let options = Options {
        receive_credit_max: 16,
        send_credit_target: 16,
        queue,
        ..Options::of(role)
    };
    let mut config = Config::new(role, options);
    config.iwarp.options.linger = Duration::from_millis(5);
    config
}

struct Ends {
    service: Service,
    initiator: Endpoint,
    memory: MemoryId,
    ids: Vec<Id>,
    ended: Vec<Id>,
    /// As many as ever waited for buffers at once.
    stalled_max: usize,
}

impl Ends {
    /// A listener that lets `queue` messages wait, with so many peers.
    fn new(queue: u16, peers: usize) -> Self {
        let listener = config(Role::Listener, queue);
        let endpoint = Endpoint::new(listener).unwrap();
        let mut service = Service::new(endpoint, Mode::Echo, MEMORY, Classes::NONE);
        let address = service.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut initiator = Endpoint::new(config(Role::Initiator, 256)).unwrap();
        let memory = initiator.add_memory(Region::heap(1 << 17).unwrap());
        let mut ends = Self {
            service,
            memory: memory.unwrap(),
            initiator,
            ids: Vec::new(),
            ended: Vec::new(),
            stalled_max: 0,
        };
        for count in 1..=peers {
            ends.ids.push(ends.initiator.connect(address).unwrap());
            ends.until(|ends| ends.service.connections().count() == count);
            ends.until(|ends| {
                let mut all = ends.service.connections();
                all.all(|one| one.status.send_credits > 0)
            });
        }
        ends
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..20_000 {
            if done(self) {
                return;
            }
            let moment = Some(Duration::from_micros(100));
            self.service.turn_within(moment).unwrap();
            while self.service.happened().is_some() {}
            self.stalled_max = self.stalled_max.max(self.service.stalled.len());
            self.initiator.wait(moment).unwrap();
            while let Some((id, happening)) = self.initiator.poll() {
                if let Happening::Ended(_) = happening {
                    self.ended.push(id);
                }
            }
        }
        panic!("it does not happen");
    }

    fn send(&mut self, peer: usize, len: u32, count: usize) {
        let slice = Slice {
            memory: self.memory,
            len,
            offset: 0,
        };
        for _ in 0..count {
            let mut session = self.initiator.session(self.ids[peer]).unwrap();
            session.send(&[slice]).unwrap();
        }
    }

    fn read(&mut self, peer: usize) -> Option<u32> {
        self.initiator.session(self.ids[peer])?.skip()
    }

    /// How the listener sees a peer.
    fn status(&self, peer: usize) -> Status {
        let number = peer as u64 + 1;
        let mut all = self.service.connections();
        all.find(|one| one.number == number).unwrap().status
    }

    /// It sends so much without reading what comes back that the listener's queue is full.
    fn overfill(&mut self, peer: usize) {
        self.send(peer, 100, 30);
        self.until(|ends| {
            let status = ends.status(peer);
            status.waiting == 4 && status.messages > 0
        });
    }
}

/// Ours: one that could not go on, for whatever reason, held up all that waited for buffers.
#[test]
fn a_peer_whose_queue_is_full_holds_up_nobody_who_waits_for_buffers() {
    let mut ends = Ends::new(4, 5);
    // 4 buffers each.
    for peer in 0..4 {
        ends.overfill(peer);
    }
    assert_eq!(ends.service.buffers.used().1, 16);
    ends.send(4, 100, 1);
    ends.until(|ends| ends.status(4).messages == 1);
    assert_eq!(ends.read(4), None);
    let id = ends.ids[1];
    ends.initiator.session(id).unwrap().disconnect();
    ends.until(|ends| ends.read(4) == Some(100));
}

/// Ours: the queue grew by an entry with each message that went back.
#[test]
fn who_reads_slowly_is_queued_once() {
    for (queue, len) in [(4, 100), (256, 12_288)] {
        let mut ends = Ends::new(queue, 1);
        ends.send(0, len, 60);
        for _ in 0..60 {
            ends.until(|ends| ends.read(0) == Some(len));
        }
        assert!(ends.stalled_max <= 1, "{} in the queue", ends.stalled_max);
        ends.until(|ends| ends.service.buffers.used().1 == 0);
    }
}

#[test]
fn a_message_that_never_fits_ends_its_connection() {
    // More buffers than there are.
    for len in [65_537, 100_000] {
        let mut ends = Ends::new(4, 2);
        ends.send(0, len, 1);
        ends.until(|ends| ends.ended.contains(&ends.ids[0]));
        ends.send(1, 65_536, 1);
        ends.until(|ends| ends.read(1) == Some(65_536));
        assert_eq!(ends.service.stalled.len(), 0);
    }
}

/// Ours: what was sent behind a write that had been refused went out, if nobody had taken
/// notice of that yet.
#[test]
fn a_message_behind_a_write_whose_refusal_was_not_taken_is_refused() {
    let mut ends = Ends::new(4, 1);
    ends.until(|ends| {
        ends.initiator
            .session(ends.ids[0])
            .unwrap()
            .status()
            .send_credits
            > 1
    });
    let id = ends.ids[0];
    let there = Slice {
        memory: ends.memory,
        len: 100,
        offset: 0,
    };
    // No such bytes are known, so that the provider refuses.
    let nowhere = Slice {
        offset: 1 << 40,
        ..there
    };
    let remote = Descriptor {
        offset: 0,
        token: 1,
        length: 100,
    };
    let mut session = ends.initiator.session(id).unwrap();
    session.write(&[nowhere], &[remote], 0).unwrap();
    ends.initiator.wait(Some(Duration::ZERO)).unwrap();
    let mut session = ends.initiator.session(id).unwrap();
    session.send(&[there]).unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        ends.initiator.wait(Some(Duration::ZERO)).unwrap();
        told.extend(std::iter::from_fn(|| ends.initiator.poll()));
    }
    let refused = |it: Result<(), Refusal>| matches!(it, Err(Refusal::Post(_)));
    assert!(matches!(told[0], (_, Happening::Transferred(_, it)) if refused(it)));
    assert!(matches!(told[1], (_, Happening::Sent(1, it)) if refused(it)));
    // What is sent now is.
    ends.send(0, 100, 1);
    ends.until(|ends| ends.read(0) == Some(100));
}

/// Ours: messages that waited were told to have failed before those under way, and the
/// buffers of these went to others while their bytes were still being written.
#[test]
fn buffers_of_a_connection_that_fails_come_back_when_it_is_over_and_not_before() {
    let mut ends = Ends::new(256, 1);
    // Nobody reads what comes back, so that most of it waits for credits.
    ends.send(0, 100, 30);
    ends.until(|ends| ends.status(0).waiting >= 4);
    let id = ends.service.served[0].id.unwrap();
    ends.service.let_go(id);
    let mut refused = 0;
    for _ in 0..20_000 {
        let moment = Some(Duration::from_micros(100));
        ends.service.endpoint.wait(moment).unwrap();
        while let Some((id, happening)) = ends.service.endpoint.poll() {
            let lent = ends.service.buffers.used().1;
            ends.service.handle(id, happening);
            let left = ends.service.buffers.used().1;
            match happening {
                Happening::Sent(_, Err(_)) => {
                    assert_eq!(left, lent, "they are needed until the end");
                    refused += 1;
                }
                Happening::Ended(_) => {
                    assert!(refused >= 4 && lent >= 4, "{refused} refused, {lent} lent");
                    assert_eq!(left, 0);
                    return;
                }
                _ => {}
            }
        }
        ends.initiator.wait(moment).unwrap();
        while ends.initiator.poll().is_some() {}
    }
    panic!("it does not end");
}
