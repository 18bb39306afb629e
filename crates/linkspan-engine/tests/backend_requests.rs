//! What a back end asks of a link on a socket of its own: a device whose
//! configuration space changes, and back ends that misuse that socket. The link
//! itself outlives all of them.

use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::vhost_user::{self, Connection, Link, LinkOptions, Reach};
use linkspan_engine::{Phase, Server, Workers};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{EventFd, Listener, Stream};
use linkspan_testkit::back_end::{Caller, Message, Says};
use linkspan_testkit::driven::{answered, ask};
use linkspan_testkit::served::{SECTORS, write_image};
use linkspan_testkit::{BackEnd, Driven, PATIENCE, Served, logs};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::QueueUnit;
use linkspan_vhost::message::{BACKEND_REQUESTS, BackendRequest, Reply, Request};
use linkspan_vhost::wire::{self, ConfigHeader, HEADER_BYTES, Header};
use linkspan_virtio::Features;
use rustix::fs::{OFlags, fcntl_getfl};
use tempfile::TempDir;
use zerocopy::FromBytes;

const CONFIG_CHANGE: u32 = BackendRequest::ConfigChangeMsg.code();

/// Waits for the next change, and takes it in.
#[track_caller]
fn changed(link: &Link) -> Vec<u8> {
    let deadline = Some(Instant::now() + PATIENCE);
    let woken = wait_for(link.config_changed(), Direction::Read, None, deadline);
    assert_eq!(woken.unwrap(), Wake::Ready, "nobody is told of a change");
    link.config()
}

fn is_told(link: &Link) -> bool {
    let now = Some(Instant::now());
    wait_for(link.config_changed(), Direction::Read, None, now).unwrap() == Wake::Ready
}

/// The size of a disk in sectors (virtio 1.3, 5.2.4).
fn capacity(config: &[u8]) -> u64 {
    u64::from_le_bytes(config[..8].try_into().unwrap())
}

#[test]
fn a_disk_that_grows_is_seen_by_whoever_drives_it() {
    let served = Served::disk(1);
    let mut driven = Driven::new(&served.socket(), 1).unwrap();
    assert_eq!(capacity(&driven.link.config()), SECTORS);
    assert!(!is_told(&driven.link));
    for sectors in [SECTORS + 8, SECTORS + 800] {
        served.resize(sectors * 512).unwrap();
        assert_eq!(capacity(&changed(&driven.link)), sectors);
        assert!(!is_told(&driven.link), "once for each change");
        ask(&mut driven.queues[0], sectors - 1);
        assert_eq!(
            answered(&mut driven.queues[0]),
            (sectors - 1, vec![0; 512]),
            "what is new can be used"
        );
    }
    // A change that is none.
    served.server().config_changed();
    served.resize((SECTORS + 808) * 512).unwrap();
    assert_eq!(capacity(&changed(&driven.link)), SECTORS + 808);
    assert_eq!(driven.link.endpoint().generation(), 1);
    drop(driven);
    served.stop();
}

/// An image that one server after the other serves, each with a size of its own.
fn serve(folder: &TempDir, sectors: u64) -> (Server, Arc<BlockDevice>) {
    let path = folder.path().join("disk");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(sectors * 512).unwrap();
    let image = RawImage::open(&path, &OpenOptions::default()).unwrap();
    let device = Arc::new(BlockDevice::new(Arc::new(image), 1, 256).unwrap());
    let listener = Listener::bind(&folder.path().join("socket")).unwrap();
    let source = Inherited::Listener(listener);
    let workers = Arc::new(Workers::new(1).unwrap());
    let server = vhost_user::serve(source, Arc::clone(&device) as _, workers, |_| {});
    (server.unwrap(), device)
}

#[test]
fn a_disk_that_grew_while_nobody_served_it_is_seen_and_so_is_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    write_image(&folder.path().join("disk"));
    let mut sectors = SECTORS;
    let (mut server, mut device) = serve(&folder, sectors);
    let driven = Driven::new(&folder.path().join("socket"), 1).unwrap();
    for _ in 0..3 {
        server.stop().unwrap();
        // It holds the image's lock.
        drop(device);
        sectors += 8;
        (server, device) = serve(&folder, sectors);
        assert_eq!(capacity(&changed(&driven.link)), sectors);
        // The socket for requests is one of this connection.
        sectors += 8;
        let image = std::fs::File::options()
            .write(true)
            .open(folder.path().join("disk"));
        image.unwrap().set_len(sectors * 512).unwrap();
        device.resize().unwrap();
        server.config_changed();
        assert_eq!(capacity(&changed(&driven.link)), sectors);
    }
    drop(driven);
    server.stop().unwrap();
}

/// A link, and the two sockets of a back end that this test speaks for.
struct Spoken {
    driven: Driven,
    caller: Caller,
    requests: Caller,
    back: BackEnd,
    _folder: TempDir,
}

/// Answers honestly until one ring runs; the socket for requests that came.
#[track_caller]
fn bring_up(caller: &Caller, says: &Says) -> Caller {
    let wanted = |message: &Message| message.request == Request::SetBackendReqFd;
    let mut message = caller.until(says, wanted).expect("a socket for requests");
    let flags = fcntl_getfl(&message.fds[0]).unwrap();
    assert!(
        !flags.contains(OFlags::NONBLOCK),
        "who waits for an answer there would have to try again and again"
    );
    let requests = message.request_socket();
    caller.answer(says, &message);
    enable(caller, says);
    requests
}

#[track_caller]
fn enable(caller: &Caller, says: &Says) {
    let enabled = |message: &Message| message.request == Request::SetVringEnable;
    let message = caller.until(says, enabled).expect("a ring is enabled");
    caller.answer(says, &message);
}

fn options(back: &BackEnd, config_size: u32) -> LinkOptions {
    LinkOptions {
        reach: Reach::Connect(back.path()),
        connect_limit: PATIENCE,
        queues: 1,
        queue_unit: QueueUnit::Rings,
        features: Features::SPLIT_QUEUE,
        required: Features::VIRTIO_F_VERSION_1,
        protocol_features: ProtocolFeatures::CONFIG | ProtocolFeatures::INFLIGHT_SHMFD,
        required_protocol_features: if config_size > 0 {
            ProtocolFeatures::CONFIG
        } else {
            ProtocolFeatures::empty()
        },
        config_size,
    }
}

#[track_caller]
fn speak(says: &Says) -> Spoken {
    let folder = tempfile::tempdir().unwrap();
    let back = BackEnd::listen(&folder.path().join("socket"));
    let config_size = says.config.len().try_into().unwrap();
    let (driven, caller, requests) = std::thread::scope(|scope| {
        let front = scope.spawn(|| {
            let cancel = Arc::new(EventFd::new().unwrap());
            let connection = Connection::open(options(&back, config_size), cancel).unwrap();
            Driven::start(connection, 1).unwrap()
        });
        let caller = back.accept();
        let requests = bring_up(&caller, says);
        (front.join().unwrap(), caller, requests)
    });
    Spoken {
        driven,
        caller,
        requests,
        back,
        _folder: folder,
    }
}

impl Spoken {
    /// The socket for requests is closed, and nothing else: the link works, and
    /// ends without another word.
    #[track_caller]
    fn lost_its_requests_only(self) {
        // With what we did not read, or without.
        while self.requests.reply(CONFIG_CHANGE).is_some() {}
        self.works();
    }

    #[track_caller]
    fn works(self) {
        assert_eq!(self.driven.link.endpoint().phase(), Phase::Running);
        assert_eq!(self.driven.link.endpoint().generation(), 1);
        drop(self.driven);
        assert_eq!(self.caller.serve(&Says::default()), []);
    }

    /// Configuration space becomes all this byte, which the link hears and reads.
    #[track_caller]
    fn change(&self, says: &mut Says, byte: u8) {
        says.config.fill(byte);
        assert_eq!(self.requests.ask(CONFIG_CHANGE, &[]), Some(0));
        self.read_config(says);
        assert_eq!(changed(&self.driven.link), says.config);
    }

    /// Answers until all of configuration space was asked for.
    #[track_caller]
    fn read_config(&self, says: &Says) {
        let mut end = 0;
        while end < says.config.len() {
            let message = self.caller.next().expect("it is read");
            assert_eq!(message.request, Request::GetConfig);
            let (header, _) = ConfigHeader::read_from_prefix(&message.body).unwrap();
            assert_eq!(header.offset as usize, end);
            end += header.size as usize;
            self.caller.answer(says, &message);
        }
    }
}

/// In more than one piece, of which none is seen before the last.
#[test]
fn a_large_configuration_space_changes_as_a_whole() {
    let mut says = Says {
        config: vec![1; 600],
        ..Says::default()
    };
    let spoken = speak(&says);
    assert_eq!(spoken.driven.link.config(), says.config);
    spoken.change(&mut says, 2);
    // It changes again while it is read.
    let mut between = Says {
        config: vec![3; 600],
        ..Says::default()
    };
    assert_eq!(spoken.requests.ask(CONFIG_CHANGE, &[]), Some(0));
    let first = spoken.caller.next().unwrap();
    assert_eq!(spoken.requests.ask(CONFIG_CHANGE, &[]), Some(0));
    spoken.caller.answer(&between, &first);
    between.config.fill(4);
    for _ in 0..2 {
        let message = spoken.caller.next().unwrap();
        assert!(!is_told(&spoken.driven.link));
        spoken.caller.answer(&between, &message);
    }
    spoken.read_config(&between);
    assert_eq!(changed(&spoken.driven.link), between.config);
    spoken.works();
}

/// Who waits for the answer to its request before it answers ours is not waited
/// for in turn; many changes meanwhile are one.
#[test]
fn requests_are_answered_while_we_wait_for_an_answer() {
    let mut says = Says::default();
    let spoken = speak(&says);
    assert_eq!(spoken.requests.ask(CONFIG_CHANGE, &[]), Some(0));
    let asked = spoken.caller.next().unwrap();
    assert_eq!(asked.request, Request::GetConfig);
    let change = wire::encode(CONFIG_CHANGE, 0, &[]);
    for _ in 0..5000 {
        assert!(spoken.requests.say_raw(&change, &[]));
    }
    assert_eq!(spoken.requests.ask(CONFIG_CHANGE, &[]), Some(0));
    says.config.fill(7);
    spoken.caller.answer(&says, &asked);
    spoken.read_config(&says);
    assert_eq!(changed(&spoken.driven.link), says.config);
    spoken.works();
}

#[test]
fn a_change_before_the_bring_up_is_over_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let back = BackEnd::listen(&folder.path().join("socket"));
    let mut says = Says::default();
    std::thread::scope(|scope| {
        let front = scope.spawn(|| Driven::new(&back.path(), 1).unwrap());
        let caller = back.accept();
        let wanted = |message: &Message| message.request == Request::SetBackendReqFd;
        // What was read before this is not what the device is now.
        let mut message = caller.until(&says, wanted).unwrap();
        says.config.fill(5);
        caller.answer(&says, &message);
        let requests = message.request_socket();
        // And it changes again when the configuration was read a second time.
        let set = |message: &Message| message.request == Request::SetVringNum;
        let message = caller.until(&says, set).unwrap();
        says.config.fill(6);
        assert_eq!(requests.ask(CONFIG_CHANGE, &[]), Some(0));
        caller.answer(&says, &message);
        enable(&caller, &says);
        let asked = caller.next().unwrap();
        assert_eq!(asked.request, Request::GetConfig);
        caller.answer(&says, &asked);
        let driven = front.join().unwrap();
        assert_eq!(driven.link.config(), says.config[..60]);
        drop(driven);
    });
}

/// Without an answer that says what is there now, nothing changes.
#[test]
fn a_change_that_cannot_be_read_is_none() {
    logs::capture();
    let mut says = Says {
        config: vec![1; 600],
        ..Says::default()
    };
    let spoken = speak(&says);
    let other = Says {
        config: vec![9; 600],
        ..Says::default()
    };
    for readable in [0, 1, 2] {
        assert_eq!(spoken.requests.ask(CONFIG_CHANGE, &[]), Some(0));
        for _ in 0..readable {
            let message = spoken.caller.next().unwrap();
            spoken.caller.answer(&other, &message);
        }
        let message = spoken.caller.next().unwrap();
        assert_eq!(message.request, Request::GetConfig);
        let empty = wire::encode(message.header.request, Header::REPLY, &[]);
        spoken.caller.say_raw(&empty, &[]);
    }
    logs::expect_line(&["does not let it be read"]);
    spoken.change(&mut says, 2);
    spoken.works();
}

#[test]
fn what_is_not_negotiated_is_refused_by_name_and_the_rest_works() {
    logs::capture();
    let mut says = Says::default();
    let spoken = speak(&says);
    for row in BACKEND_REQUESTS
        .iter()
        .filter(|row| row.reply == Reply::Ack)
    {
        if row.request != BackendRequest::ConfigChangeMsg {
            let body = vec![0; *row.payload.sizes().start()];
            assert_eq!(
                spoken.requests.ask(row.code, &body),
                Some(1),
                "{}",
                row.name
            );
        }
    }
    for code in [0, 11, u32::MAX] {
        assert_eq!(spoken.requests.ask(code, &[]), Some(1));
    }
    logs::expect_line(&[
        "WARN",
        "refused: request 1 of the back end is not negotiated",
    ]);
    spoken.change(&mut says, 1);
    spoken.works();
}

/// Bytes that break the protocol of that socket, and what the log says of them.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let change = |flags, body: &[u8]| wire::encode(CONFIG_CHANGE, flags, body);
    let with = |at: usize, byte| {
        let mut bytes = change(Header::NEED_REPLY, &[]);
        bytes[at] = byte;
        bytes
    };
    vec![
        (
            "request 99 of the back end is not negotiated",
            wire::encode(99, 0, &[]),
        ),
        ("request 8 of the back end is not negotiated", {
            let asked = BackendRequest::SharedObjectLookup.code();
            wire::encode(asked, Header::NEED_REPLY, &[0; 16])
        }),
        (
            "1 bytes instead of 0 to 0",
            change(Header::NEED_REPLY, &[0]),
        ),
        ("a reply to nothing", change(Header::REPLY, &[0; 8])),
        ("version 2 of the protocol", with(4, 2)),
        ("have bits that mean nothing", with(5, 1)),
        ("a body of 4278190080 bytes", with(11, 0xff)),
    ]
}

#[test]
fn a_broken_request_costs_its_socket_and_not_the_link() {
    logs::capture();
    let says = Says::default();
    for (named, bytes) in broken() {
        println!("{named}");
        let spoken = speak(&says);
        assert!(spoken.requests.say_raw(&bytes, &[]));
        spoken.lost_its_requests_only();
        logs::expect_line(&[
            "WARN",
            "the socket for requests of the back end is closed",
            named,
        ]);
    }
}

#[test]
fn descriptors_with_a_request_are_closed_and_cost_its_socket() {
    let says = Says::default();
    for (count, at) in [(1, 0), (8, 0), (9, 0), (253, 0), (1, HEADER_BYTES - 1)] {
        let spoken = speak(&says);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let fds: Vec<BorrowedFd<'_>> = vec![writer.as_fd(); count];
        let bytes = wire::encode(CONFIG_CHANGE, Header::NEED_REPLY, &[]);
        assert!(spoken.requests.say_raw(&bytes[..at], &[]));
        assert!(spoken.requests.say_raw(&bytes[at..], &fds));
        drop(fds);
        drop(writer);
        spoken.lost_its_requests_only();
        // Its end comes when the last of them is closed.
        assert_eq!(std::fs::File::from(reader).read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_back_end_that_closes_only_that_socket_is_kept() {
    let says = Says::default();
    let change = wire::encode(CONFIG_CHANGE, Header::NEED_REPLY, &[]);
    for sent in [&[][..], &change[..1], &change[..HEADER_BYTES - 1], &change] {
        let mut spoken = speak(&says);
        assert!(spoken.requests.say_raw(sent, &[]));
        let (unused, _) = Stream::pair().unwrap();
        spoken.requests = Caller::over(unused);
        if sent.len() == HEADER_BYTES {
            spoken.read_config(&says);
        }
        ask(&mut spoken.driven.queues[0], 1);
        spoken.works();
    }
}

/// A socket that nobody reads any more: the link goes on, reads no more from
/// it, and ends when it is told to.
#[test]
fn a_back_end_that_does_not_read_our_answers_is_read_no_more() {
    let says = Says::default();
    let spoken = speak(&says);
    let unknown = wire::encode(99, Header::NEED_REPLY, &[]);
    // As long as it is read, that ends only with the patience of `flood`.
    let sent = flood(&spoken.requests, &unknown);
    println!("{sent} requests fit");
    // Every answer comes once there is room.
    for _ in 0..sent {
        assert_eq!(spoken.requests.reply(99), Some(1));
    }
    assert_eq!(spoken.requests.ask(99, &[]), Some(1));
    spoken.works();
}

/// Sends until there has been no room for a while; how often.
fn flood(requests: &Caller, bytes: &[u8]) -> usize {
    let mut sent = 0;
    while requests.say_within(bytes, Duration::from_millis(300)) {
        sent += 1;
        assert!(sent < 1_000_000, "it never stops to read");
    }
    sent
}

/// Changes without end cost nothing but what it takes to read them.
#[test]
fn a_flood_of_changes_keeps_the_link_from_nothing() {
    let says = Says::default();
    let spoken = speak(&says);
    std::thread::scope(|scope| {
        let (requests, driven) = (&spoken.requests, spoken.driven);
        scope.spawn(move || {
            let change = wire::encode(CONFIG_CHANGE, 0, &[]);
            for _ in 0..5000 {
                assert!(requests.say_raw(&change, &[]));
            }
            // The last word, which is behind all of them.
            assert_eq!(requests.ask(99, &[]), Some(1));
            assert_eq!(driven.link.endpoint().generation(), 1);
            assert!(!is_told(&driven.link), "it never was another");
            drop(driven);
        });
        let asked = spoken.caller.serve(&says);
        assert!(asked.iter().all(|request| *request == Request::GetConfig));
        assert!(!asked.is_empty());
    });
}

/// The socket is agreed on with each connection.
#[test]
fn a_later_back_end_may_have_such_a_socket_or_not() {
    let says = Says::default();
    let mut without = Says {
        config: vec![8; 96],
        ..Says::default()
    };
    without.protocol.remove(ProtocolFeatures::BACKEND_REQ);
    let Spoken {
        mut driven,
        caller,
        requests,
        back,
        _folder,
    } = speak(&says);
    drop(caller);
    // It goes with its connection.
    assert_eq!(requests.reply(CONFIG_CHANGE), None);
    std::thread::scope(|scope| {
        let mut queue = driven.queues.pop().unwrap();
        // It ends with the link.
        scope.spawn(move || while queue.answer().is_ok() && queue.wait(None).is_ok() {});
        let caller = back.accept();
        enable(&caller, &without);
        assert_eq!(changed(&driven.link), without.config);
        drop(caller);
        let caller = back.accept();
        let requests = bring_up(&caller, &says);
        driven.expect_phase(Phase::Running);
        assert_eq!(requests.ask(99, &[]), Some(1));
        assert_eq!(changed(&driven.link), says.config);
        drop(driven);
        assert_eq!(requests.reply(CONFIG_CHANGE), None);
    });
}
