//! A link that outlives its back ends, with real ones and with some that this
//! test speaks for.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::vhost_user::{self, LinkError};
use linkspan_engine::{Phase, Server, Workers};
use linkspan_sys::memfd::{self, SealFlags};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{Listener, PeerMemory};
use linkspan_testkit::back_end::{Caller, Message, Says, honest};
use linkspan_testkit::driven::{answered, ask, connect};
use linkspan_testkit::served::{content, write_image};
use linkspan_testkit::{BackEnd, Driven, PATIENCE, Served};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::{Misfit, WishError};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{SingleMemoryRegion, VringAddr};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use zerocopy::FromBytes;

/// A place where one back end after the other serves the same image.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_image(&folder.path().join("disk"));
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A real one.
    fn serve(&self) -> Server {
        let path = self.folder.path().join("disk");
        let image = RawImage::open(&path, &OpenOptions::default()).unwrap();
        let device = Arc::new(BlockDevice::new(Arc::new(image), 4, 256).unwrap());
        let workers = Arc::new(Workers::new(1).unwrap());
        let source = Inherited::Listener(Listener::bind(&self.socket()).unwrap());
        vhost_user::serve(source, device, workers, |_| {}).unwrap()
    }

    /// One that this test speaks for.
    fn listen(&self) -> BackEnd {
        BackEnd::listen(&self.socket())
    }
}

/// A disk without a region for requests in flight: who follows it knows nothing.
fn forgetful() -> Says {
    let mut says = Says::default();
    says.protocol.remove(ProtocolFeatures::INFLIGHT_SHMFD);
    says
}

/// Answers honestly until so many rings were enabled.
#[track_caller]
fn enable(caller: &Caller, says: &Says, rings: usize) {
    for _ in 0..rings {
        let wanted = |message: &Message| message.request == Request::SetVringEnable;
        let message = caller.until(says, wanted).expect("a ring is enabled");
        caller.answer(says, &message);
    }
}

/// A link with so many queues on a back end that this test speaks for.
fn drive(back: &BackEnd, says: &Says, queues: u16) -> (Driven, Caller) {
    std::thread::scope(|scope| {
        let path = back.path();
        let front = scope.spawn(move || Driven::new(&path, queues).unwrap());
        let caller = back.accept();
        enable(&caller, says, queues.into());
        (front.join().unwrap(), caller)
    })
}

#[test]
fn a_queue_that_does_not_look_holds_up_nobody() {
    let place = Place::new();
    let mut server = place.serve();
    let mut driven = Driven::new(&place.socket(), 2).unwrap();
    for round in 0..3 {
        ask(&mut driven.queues[0], round);
        assert_eq!(answered(&mut driven.queues[0]), (round, content(round)));
        server.stop().unwrap();
        server = place.serve();
    }
    // It never heard of three lost devices, and finds the fourth.
    let last = driven.queues.pop().unwrap();
    let mut idle = last;
    for number in 5..9 {
        ask(&mut idle, number);
        assert_eq!(answered(&mut idle), (number, content(number)));
    }
    driven.expect_phase(Phase::Running);
    drop(driven);
    server.stop().unwrap();
}

/// Nobody looks, and yet there is a connection: it has no rings, until somebody does.
#[test]
fn without_a_queue_that_looks_the_link_is_ready() {
    let place = Place::new();
    let server = place.serve();
    let mut driven = Driven::new(&place.socket(), 2).unwrap();
    server.stop().unwrap();
    let server = place.serve();
    driven.expect_phase(Phase::Ready);
    ask(&mut driven.queues[1], 3);
    assert_eq!(answered(&mut driven.queues[1]), (3, content(3)));
    driven.expect_phase(Phase::Running);
    drop(driven);
    server.stop().unwrap();
}

/// What a queue asked for is answered by the third device, though the second one
/// came and went before the queue looked.
#[test]
fn a_second_reconnect_before_a_queue_looks_is_seen() {
    let place = Place::new();
    let back = place.listen();
    let says = forgetful();
    let (mut driven, caller) = drive(&back, &says, 2);
    for queue in &mut driven.queues {
        (10..15).for_each(|number| ask(queue, number));
    }
    drop(caller);
    let mut idle = driven.queues.pop().unwrap();
    let mut busy = driven.queues.pop().unwrap();
    std::thread::scope(|scope| {
        let numbers = scope.spawn(|| {
            let numbers = (0..5).map(|_| answered(&mut busy).0);
            numbers.collect::<Vec<_>>()
        });
        // One ring only: the other queue sleeps.
        let caller = back.accept();
        enable(&caller, &says, 1);
        driven.expect_phase(Phase::Running);
        drop((caller, back));
        let server = place.serve();
        let mut numbers = numbers.join().unwrap();
        numbers.sort_unstable();
        assert_eq!(numbers, [10, 11, 12, 13, 14]);
        let mut numbers: Vec<_> = (0..5).map(|_| answered(&mut idle).0).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [10, 11, 12, 13, 14]);
        drop(driven);
        server.stop().unwrap();
    });
}

/// A back end that knows nothing of what is under way makes a region, and fails
/// before a ring runs. The next one knows no more than it did.
#[test]
fn a_region_of_a_back_end_that_ran_no_ring_says_nothing() {
    let place = Place::new();
    let back = place.listen();
    let without = Says {
        inflight: 0,
        ..Says::default()
    };
    let (mut driven, caller) = drive(&back, &without, 1);
    (20..25).for_each(|number| ask(&mut driven.queues[0], number));
    drop(caller);
    std::thread::scope(|scope| {
        let mut queue = driven.queues.pop().unwrap();
        let numbers = scope.spawn(move || {
            let numbers = (0..5).map(|_| answered(&mut queue).0);
            numbers.collect::<Vec<_>>()
        });
        let caller = back.accept();
        let kick = |message: &Message| message.request == Request::SetVringKick;
        let refused = caller.until(&Says::default(), kick).unwrap();
        let mut nack = honest(&Says::default(), &refused).unwrap();
        *nack.bytes.last_mut().unwrap() = 1;
        caller.say(&nack);
        caller.expect_closed();
        drop(back);
        let server = place.serve();
        let mut numbers = numbers.join().unwrap();
        numbers.sort_unstable();
        assert_eq!(numbers, [20, 21, 22, 23, 24]);
        drop(driven);
        server.stop().unwrap();
    });
}

/// QEMU ef02c6becf: a back end that comes back is kicked, or waits for ever.
#[test]
fn each_ring_is_kicked_after_a_reconnect() {
    let place = Place::new();
    let back = place.listen();
    let says = Says::default();
    let (mut driven, caller) = drive(&back, &says, 2);
    for queue in &mut driven.queues {
        ask(queue, 1);
    }
    drop(caller);
    std::thread::scope(|scope| {
        for mut queue in driven.queues.drain(..) {
            // It ends with the link: nobody answers.
            scope.spawn(move || while queue.answer().is_ok() && queue.wait(None).is_ok() {});
        }
        let (mut kicks, mut enabled) = (Vec::new(), 0);
        let caller = back.accept();
        while enabled < 2 {
            let mut message = caller.next().expect("two rings are enabled");
            match message.request {
                Request::SetVringKick => kicks.append(&mut message.fds),
                // The last message before the queue hears of its device.
                Request::SetVringEnable => {
                    enabled += 1;
                    // What it signalled to the device before counts no more.
                    for kick in &kicks {
                        let _ = rustix::io::read(kick, &mut [0; 8]);
                    }
                }
                _ => {}
            }
            caller.answer(&says, &message);
        }
        assert_eq!(kicks.len(), 2);
        for kick in &kicks {
            let deadline = Some(std::time::Instant::now() + PATIENCE);
            let woken = wait_for(kick.as_fd(), Direction::Read, None, deadline).unwrap();
            assert_eq!(woken, Wake::Ready, "a ring is not kicked");
        }
        drop(driven);
    });
}

/// QEMU 23a4edb6db: memory that is mapped privately is not what the guest writes.
#[test]
fn memory_of_a_driver_is_shared_and_cannot_shrink() {
    let place = Place::new();
    let back = place.listen();
    let says = Says::default();
    std::thread::scope(|scope| {
        let path = back.path();
        let front = scope.spawn(move || Driven::new(&path, 1).unwrap());
        let caller = back.accept();
        let added = |message: &Message| message.request == Request::AddMemReg;
        let mut region = caller.until(&says, added).unwrap();
        caller.answer(&says, &region);
        let addresses = |message: &Message| message.request == Request::SetVringAddr;
        let ring = caller.until(&says, addresses).unwrap();
        caller.answer(&says, &ring);
        enable(&caller, &says, 1);
        let mut driven = front.join().unwrap();
        let place = SingleMemoryRegion::read_from_bytes(&region.body).unwrap();
        let ring = VringAddr::read_from_bytes(&ring.body).unwrap();
        let file = region.fds.pop().expect("a file");
        let seals = memfd::seals(&file).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW));
        let memory = PeerMemory::check(file.try_clone().unwrap()).unwrap();
        assert!(memory.file_len() >= place.region.mmap_offset + place.region.size);
        let index = ring.available - place.region.user_address + place.region.mmap_offset + 2;
        let mut available = [0; 2];
        for number in 1..4u16 {
            ask(&mut driven.queues[0], number.into());
            rustix::io::pread(&file, &mut available, index).unwrap();
            assert_eq!(u16::from_le_bytes(available), number);
        }
    });
}

/// What a front end asks of a back end that has too little, and why it gives up.
#[track_caller]
fn unfit(says: &Says, queues: u16) -> (Misfit, Vec<Request>) {
    let place = Place::new();
    let back = place.listen();
    std::thread::scope(|scope| {
        let path = back.path();
        let front = scope.spawn(move || connect(&path, queues, PATIENCE).map(drop));
        let asked = back.accept().serve(says);
        let error = front.join().unwrap().expect_err("too little");
        assert!(error.is_peer());
        let text = format!("{:#}", std::error::Error::source(&error).unwrap());
        let misfit = error.misfit().expect("a misfit");
        assert_eq!(text, misfit.to_string());
        (misfit, asked)
    })
}

/// QEMU c90bd505a3, 84affad1fd: both numbers are named, before any ring is set up.
#[test]
fn too_few_queues_fail_before_a_ring_is_set_up() {
    let mut single = Says::default();
    single.protocol.remove(ProtocolFeatures::MQ);
    let with = |queues| Says {
        queues,
        ..Says::default()
    };
    for (says, wanted, max) in [
        (with(0), 1, 0),
        (with(1), 2, 1),
        (with(3), 4, 3),
        (with(255), 256, 255),
        (single, 2, 1),
    ] {
        let (misfit, asked) = unfit(&says, wanted);
        assert_eq!(misfit, Misfit::Queues { wanted, max });
        assert!(misfit.to_string().contains(&wanted.to_string()));
        assert!(misfit.to_string().contains(&max.to_string()));
        for request in &asked {
            let about_device = !request.message().name.contains("VRING");
            assert!(about_device && *request != Request::AddMemReg, "{asked:?}");
        }
    }
}

/// `VHOST_USER_SET_VRING_KICK` and its like have 8 bits for the ring.
#[test]
fn more_queues_than_messages_can_name_are_refused_without_a_connection() {
    let nowhere = Path::new("/nonexistent/socket");
    for queues in [0, 257, 1024, u16::MAX] {
        let error = connect(nowhere, queues, Duration::ZERO)
            .map(drop)
            .unwrap_err();
        let expected = WishError::Queues { queues, max: 256 };
        assert!(matches!(error, LinkError::Wish(wish) if wish == expected));
    }
}

#[test]
fn exactly_as_many_queues_as_there_are_serve() {
    // Both ends of the descriptors of 256 rings are in this process.
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 4096) {
        println!("SKIP: 4096 open files are not allowed here (ulimit -Hn)");
        return;
    }
    let raised = Rlimit {
        current: Some(limit.current.unwrap_or(4096).max(4096)),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    for queues in [1, 2, 7, 256] {
        let served = Served::disk(queues);
        let mut driven = Driven::new(&served.socket(), queues).unwrap();
        for (number, queue) in (0..).zip(&mut driven.queues) {
            ask(queue, number);
            assert_eq!(answered(queue), (number, content(number)));
        }
        drop(driven);
        served.next_end();
        if queues < 256 {
            let wanted = queues + 1;
            let error = Driven::new(&served.socket(), wanted).map(drop).unwrap_err();
            let max = queues.into();
            assert_eq!(error.misfit(), Some(Misfit::Queues { wanted, max }));
            served.next_end();
        }
        served.stop();
    }
}

/// All rings come up or none: whichever one is refused, no other is left running.
#[test]
fn a_ring_that_is_refused_stops_those_that_were_started() {
    let place = Place::new();
    let back = place.listen();
    let says = Says::default();
    for refused in 0..3u8 {
        std::thread::scope(|scope| {
            let path = back.path();
            let front = scope.spawn(move || Driven::new(&path, 3).map(drop));
            let caller = back.accept();
            let (mut started, mut stopped) = (Vec::new(), Vec::new());
            while let Some(message) = caller.next() {
                let mut answer = honest(&says, &message).into_iter().collect::<Vec<_>>();
                let ring = message.body.first().copied();
                match message.request {
                    Request::SetVringKick if ring == Some(refused) => {
                        *answer[0].bytes.last_mut().unwrap() = 1;
                    }
                    Request::SetVringKick => started.push(ring),
                    Request::GetVringBase => stopped.push(ring),
                    Request::SetVringEnable => panic!("ring {ring:?} is enabled"),
                    _ => {}
                }
                for answer in &answer {
                    caller.say(answer);
                }
            }
            assert_eq!(started.len(), usize::from(refused));
            assert_eq!(stopped, started, "before the connection was closed");
            let error = front.join().unwrap().unwrap_err();
            let request = Request::SetVringKick;
            assert!(
                matches!(error, LinkError::Refused { request: at, code } if at == request && code != 0),
                "{error:?}"
            );
        });
    }
}
