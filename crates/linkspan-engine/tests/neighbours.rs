//! What runs on a worker reaches what else runs there: rings that others fill, and
//! tasks.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use linkspan_engine::{
    ActiveRing, Budget, Device, DriverMemory, InProcess, Neighbours, OpenQueueError, Progress,
    QueueEvents, QueueHandler, Task, Workers,
};
use linkspan_mem::Window;
use linkspan_sys::EventFd;
use linkspan_testkit::census::settled;
use linkspan_virtio::{Buffer, Chain, DriverQueue, Features, QueueError, QueueLayout};

/// Where the filled ring is found, and a task that counts.
const EAR: u32 = 7;
const CLERK: u32 = 2;

/// Whatever comes on queue 0 makes a buffer of queue 1 used, and is told a task.
struct Echo {
    taken: Arc<Taken>,
}

/// What the handler of queue 1 was told.
#[derive(Default)]
struct Taken {
    takes: AtomicBool,
    said: AtomicU32,
}

impl Device for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn device_id(&self) -> u32 {
        0
    }

    fn features(&self) -> Features {
        Features::SPLIT_QUEUE
    }

    fn queues(&self) -> u16 {
        2
    }

    fn queue_size_max(&self) -> u16 {
        64
    }

    fn lane(&self, _: u16) -> u16 {
        0
    }

    fn open_queue(&self, index: u16, _: Features) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        Ok(match index {
            0 => Box::new(Mouth {
                chain: Chain::new(4)?,
            }),
            _ => Box::new(Ear {
                chain: Chain::new(4)?,
                taken: Arc::clone(&self.taken),
            }),
        })
    }
}

struct Mouth {
    chain: Chain,
}

impl QueueHandler for Mouth {
    fn run(&mut self, _: &mut ActiveRing, _: Budget) -> Result<Progress, QueueError> {
        Ok(Progress::Idle)
    }

    fn run_among(
        &mut self,
        ring: &mut ActiveRing,
        _: Budget,
        neighbours: &mut Neighbours<'_>,
    ) -> Result<Progress, QueueError> {
        while ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
            assert!(neighbours.ring::<Self>(EAR).is_none(), "that is no mouth");
            assert!(neighbours.ring::<Ear>(EAR + 1).is_none());
            if let Some((other, ear)) = neighbours.ring::<Ear>(EAR)
                && other.queue.pop(&other.memory.guest, &mut ear.chain)?
            {
                other.queue.push(&ear.chain, 1)?;
            }
            if let Some(clerk) = neighbours.task::<Clerk>(CLERK) {
                clerk.heard.fetch_add(1, Ordering::Relaxed);
            }
            ring.queue.push(&self.chain, 0)?;
        }
        Ok(Progress::Idle)
    }
}

struct Ear {
    chain: Chain,
    taken: Arc<Taken>,
}

impl QueueHandler for Ear {
    fn run(&mut self, _: &mut ActiveRing, _: Budget) -> Result<Progress, QueueError> {
        panic!("a ring that others fill has no pass");
    }

    fn address(&self) -> Option<u32> {
        Some(EAR)
    }

    fn takes(&mut self, _: &mut ActiveRing, takes: bool) {
        self.taken.takes.store(takes, Ordering::SeqCst);
        self.taken.said.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts what it hears, and ends when it is told to.
struct Clerk {
    wake: Arc<EventFd>,
    heard: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
}

impl Task for Clerk {
    fn run(&mut self, _: Budget, neighbours: &mut Neighbours<'_>) -> (bool, Progress) {
        assert!(
            neighbours.task::<Self>(CLERK).is_none(),
            "it is out of its place"
        );
        self.wake.drain().unwrap();
        (false, Progress::Idle)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }

    fn address(&self) -> Option<u32> {
        Some(CLERK)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

fn driver(memory: &DriverMemory, index: u16) -> DriverQueue<Window> {
    let (features, layout) = (Features::SPLIT_QUEUE, QueueLayout::Split);
    let parts = memory.parts(index, layout);
    DriverQueue::new(parts, memory.size(index), features, layout.start()).unwrap()
}

#[test]
fn a_ring_is_filled_by_its_neighbour_and_its_driver_never_kicks() {
    let workers = Arc::new(Workers::new(2).unwrap());
    let wake = Arc::new(EventFd::new().unwrap());
    let (heard, over) = (
        Arc::new(AtomicU32::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let clerk = Clerk {
        wake: Arc::clone(&wake),
        heard: Arc::clone(&heard),
        over: Arc::clone(&over),
    };
    workers.add(0, Box::new(clerk)).unwrap();
    let taken = Arc::new(Taken::default());
    let device = Echo {
        taken: Arc::clone(&taken),
    };
    let memory = DriverMemory::new(2, 64, 4096).unwrap();
    let events = [QueueEvents::new().unwrap(), QueueEvents::new().unwrap()];
    let features = Features::SPLIT_QUEUE;
    let link = InProcess::start(&device, Arc::clone(&workers), &memory, &events, features).unwrap();
    assert!(settled(|| taken.takes.load(Ordering::SeqCst)));
    let (mut mouth, mut ear) = (driver(&memory, 0), driver(&memory, 1));
    let (address, _) = memory.rest(0, 64).unwrap();
    let buffer = Buffer { address, len: 64 };
    let mut kicks = 0;
    for round in 1..100 {
        ear.add(&[], &[buffer], None).unwrap();
        ear.publish().unwrap();
        kicks += u32::from(ear.kick_wanted().unwrap());
        mouth.add(&[buffer], &[], None).unwrap();
        mouth.publish().unwrap();
        if mouth.kick_wanted().unwrap() {
            events[0].kick.signal().unwrap();
        }
        assert!(settled(|| {
            ear.refresh().unwrap();
            ear.pop().unwrap().is_some()
        }));
        assert!(settled(|| {
            mouth.refresh().unwrap();
            mouth.pop().unwrap().is_some()
        }));
        assert_eq!(heard.load(Ordering::Relaxed), round);
    }
    let called = settled(|| events[1].call.drain().unwrap() > 0);
    assert!(called, "its driver is notified");
    // With an event index the first one is wanted, whoever looks at the ring.
    assert!(kicks <= 1, "{kicks} kicks for a ring that nobody looks at");
    // A task that is over is dropped, and found no more.
    over.store(true, Ordering::SeqCst);
    wake.signal().unwrap();
    assert!(settled(|| Arc::strong_count(&heard) == 1));
    drop(link);
    assert!(
        !taken.takes.load(Ordering::SeqCst),
        "it was told that it is stopped"
    );
    assert!(ear.add(&[], &[buffer], None).is_ok() && ear.publish().is_ok());
    assert!(ear.kick_wanted().unwrap(), "whoever serves it next is told");
}
