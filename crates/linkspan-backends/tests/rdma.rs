//! iWARP over TCP: two providers, or one and a socket that anybody could have opened.

mod rdma_suite;

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use linkspan_backends::rdma::{Config, ConnectionId, Provider};
use linkspan_rdma::iwarp::{FrameSize, Options, WireError};
use linkspan_rdma::verbs::{Access, Event, Failure, MemoryId, Operation, Remote, Verbs as _, Work};
use linkspan_sys::EventFd;
use linkspan_testkit::PATIENCE;
use rdma_suite::{
    DEPTH, Kind, MEMORY, MEMORY_LEN, RECEIVE_SIZE, done, established, gone, pattern, received,
    requested, until,
};
use rustix::net;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

type Side = rdma_suite::Side<Provider>;

fn options(crc: bool) -> Config {
    let mut options = Options {
        crc,
        depth: DEPTH,
        ..Options::default()
    };
    options.limits.receive_size = RECEIVE_SIZE;
    Config {
        options,
        ..Config::default()
    }
}

fn side(config: Config) -> Side {
    Side::new(Provider::new(config).unwrap())
}

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Two sides with a connection, and its numbers.
fn connected(a: Config, b: Config) -> (Side, Side, ConnectionId, ConnectionId) {
    let (mut a, mut b) = (side(a), side(b));
    let address = b.provider.listen(anywhere()).unwrap();
    let (at_a, at_b) = connect(&mut a, &mut b, address);
    (a, b, at_a, at_b)
}

/// The same, and the listener's upper layer knows its peer.
fn connect(a: &mut Side, b: &mut Side, address: SocketAddr) -> (ConnectionId, ConnectionId) {
    let (at_a, at_b) = rdma_suite::connect(a, b, address);
    b.provider.connection(at_b).unwrap().admit();
    (at_a, at_b)
}

#[test]
fn everything_arrives_with_checksums_and_without_in_frames_of_any_size() {
    for (crc, frame) in [
        (false, FrameSize::Max),
        (true, FrameSize::Max),
        (false, FrameSize::Segment(1448)),
        (true, FrameSize::Segment(1448)),
    ] {
        let mut config = options(crc);
        config.options.frame = frame;
        let (mut a, mut b, at_a, at_b) = connected(config, config);
        let data = pattern(MEMORY / 2, 1);
        a.write(0, &data);
        let both = Access {
            read: true,
            write: true,
        };
        // In two pieces, the second one first.
        let half = MEMORY_LEN / 2;
        let pieces = [b.slice(1_000_003, half - 1_000_003), b.slice(0, 1_000_003)];
        let to = b.expose(at_b, &pieces, both);
        let gather = [a.slice(0, 77), a.slice(77, half - 77)];
        a.post(
            at_a,
            1,
            Work::Write {
                gather: &gather,
                to,
            },
        )
        .unwrap();
        let into = [a.slice(u64::from(half), half - 5)];
        let mut from = to;
        from.address += 5;
        a.post(at_a, 2, Work::Read { into: &into, from }).unwrap();
        a.send(at_a, 3, &[a.slice(3, 8192)]);
        a.send(at_a, 4, &[]);
        let mut left = vec![
            (1, Operation::Write),
            (2, Operation::Read),
            (3, Operation::Send),
            (4, Operation::Send),
        ];
        let mut messages = Vec::new();
        until(&mut a, &mut b, |a, b| {
            while let Some((_, it)) = a.find(done) {
                left.retain(|one| *one != it);
            }
            messages.extend(b.message());
            (left.is_empty() && messages.len() == 2).then_some(())
        });
        assert!(messages == [&data[3..3 + 8192], b""]);
        assert!(a.read(into[0]) == data[5..], "read back, {crc} {frame:?}");
        assert!([b.read(pieces[0]), b.read(pieces[1])].concat() == data);
        assert_eq!(b.provider.buffers().1, 0);
    }
}

/// What all providers do, over TCP and over the pair in memory.
#[test]
fn what_all_providers_do_over_tcp() {
    for crc in [false, true] {
        let [a, b] = [(); 2].map(|()| Provider::new(options(crc)).unwrap());
        let kind = Kind {
            tells_invalidation: true,
            ..Kind::default()
        };
        rdma_suite::all(a, b, anywhere(), kind);
    }
}

#[test]
fn what_all_providers_do_in_memory() {
    let [a, b] = rdma_suite::local::pair(options(false).options.limits, DEPTH);
    let kind = Kind {
        single: true,
        tells_invalidation: true,
    };
    rdma_suite::all(a, b, anywhere(), kind);
}

/// More than sockets hold: the writer waits, and goes on when the reader does.
#[test]
fn a_reader_that_sleeps_holds_up_the_writer_and_nothing_else() {
    let (mut a, mut b, at_a, at_b) = connected(options(true), options(true));
    let to = b.expose(at_b, &[b.slice(0, MEMORY_LEN)], Access::WRITE);
    let data = pattern(MEMORY, 9);
    a.write(0, &data);
    // The first frame is the initiator's, and the responder has to have seen it.
    for number in 0..20 {
        let gather = [a.slice(0, MEMORY_LEN)];
        a.post(
            at_a,
            number,
            Work::Write {
                gather: &gather,
                to,
            },
        )
        .unwrap();
    }
    let mut before = 0;
    for _ in 0..50 {
        a.look();
        before = a.events.len();
    }
    assert!(before < 20, "80 MiB do not fit into sockets");
    let mut count = 0;
    until(&mut a, &mut b, |a, _| {
        while a.find(done).is_some() {
            count += 1;
        }
        (count == 20).then_some(())
    });
    // The last bytes may be on their way.
    a.send(at_a, 99, &[]);
    until(&mut a, &mut b, |_, b| b.message());
    assert!(b.read(b.slice(0, MEMORY_LEN)) == data);
}

#[test]
fn messages_beyond_the_budget_wait_for_buffers() {
    let config = Config {
        budget: 0,
        ..options(false)
    };
    let (mut a, mut b, at_a, at_b) = connected(options(false), config);
    a.write(0, &pattern(100, 0));
    for number in 0..100 {
        a.send(at_a, number, &[a.slice(0, 100)]);
    }
    let mut held = VecDeque::new();
    let mut seen = 0;
    while seen < 100 {
        // A slab of 64 KiB: as many as are wanted are there before one goes back.
        let wanted = 8.min(100 - seen);
        until(&mut a, &mut b, |_, b| {
            held.extend(std::iter::from_fn(|| b.find(received)));
            (held.len() >= wanted).then_some(())
        });
        assert_eq!(held.len(), wanted);
        let (_, received) = held.pop_front().unwrap();
        assert_eq!(b.read(received.buffer), pattern(100, 0));
        let mut connection = b.provider.connection(at_b).unwrap();
        connection.release(received.buffer);
        seen += 1;
    }
    assert_eq!(b.provider.buffers(), (64 << 10, 0));
}

/// One address with many connections had all buffers, and others waited for it.
#[test]
fn each_address_has_a_share_of_the_buffers() {
    const CONNECTIONS: usize = 5;
    const SHARE: usize = 8;
    let receive = options(false).options.limits.receive_size as usize;
    let config = Config {
        share: SHARE * receive.next_multiple_of(64),
        ..options(false)
    };
    let (mut a, mut b) = (side(options(false)), side(config));
    let address = b
        .provider
        .listen((Ipv6Addr::UNSPECIFIED, 0).into())
        .unwrap();
    let [many, other] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]
        .map(|ip: IpAddr| SocketAddr::new(ip, address.port()));
    let ids: Vec<_> = (0..CONNECTIONS)
        .map(|_| connect(&mut a, &mut b, many).0)
        .collect();
    let (alone, at_b) = connect(&mut a, &mut b, other);
    a.write(0, &pattern(100, 3));
    for id in &ids {
        for number in 0..10 {
            a.send(*id, number, &[a.slice(0, 100)]);
        }
    }
    // Nobody gives a buffer back: its share is all that it has.
    until(&mut a, &mut b, |_, b| {
        (b.provider.short() == CONNECTIONS).then_some(())
    });
    assert_eq!(b.provider.buffers().1, SHARE);
    let held: Vec<_> = std::iter::from_fn(|| b.find(received)).collect();
    assert_eq!(held.len(), SHARE);
    // Others have theirs.
    a.send(alone, 1, &[a.slice(0, 100)]);
    let (id, theirs) = until(&mut a, &mut b, |_, b| b.find(received));
    assert_eq!((id, b.read(theirs.buffer)), (at_b, pattern(100, 3)));
    b.provider.connection(at_b).unwrap().release(theirs.buffer);
    // And all messages of it come, as buffers are given back.
    for (id, received) in held {
        let mut connection = b.provider.connection(id).unwrap();
        connection.release(received.buffer);
    }
    let mut seen = SHARE;
    until(&mut a, &mut b, |_, b| {
        while b.message().is_some() {
            seen += 1;
        }
        (seen == CONNECTIONS * 10).then_some(())
    });
    assert_eq!((b.provider.short(), b.provider.buffers().1), (0, 0));
}

/// What was read and finds no buffer is bounded over all connections, and none of it is lost.
#[test]
fn what_is_read_ahead_of_its_buffers_is_bounded() {
    const CONNECTIONS: usize = 40;
    const MESSAGES: usize = 200;
    let config = Config {
        budget: 0,
        ..options(false)
    };
    let (mut a, mut b) = (side(options(false)), side(config));
    let address = b.provider.listen(anywhere()).unwrap();
    let ids: Vec<_> = (0..CONNECTIONS)
        .map(|_| connect(&mut a, &mut b, address).0)
        .collect();
    a.write(0, &pattern(1000, 5));
    for id in ids {
        for number in 0..MESSAGES as u64 {
            a.send(id, number, &[a.slice(0, 1000)]);
        }
    }
    // All that there is room for is read, while nobody gives a buffer back.
    for _ in 0..20 {
        a.look();
        b.look();
    }
    let waiting = b.provider.waiting_bytes();
    assert!((1 << 20..9 << 18).contains(&waiting), "{waiting}");
    let mut seen = 0;
    until(&mut a, &mut b, |_, b| {
        while let Some(message) = b.message() {
            assert_eq!(message, pattern(1000, 5));
            seen += 1;
        }
        (seen == CONNECTIONS * MESSAGES).then_some(())
    });
    assert_eq!(b.provider.waiting_bytes(), 0);
    assert_eq!(b.provider.buffers(), (64 << 10, 0));
}

/// A peer that takes whatever it reads at once does not keep the thread for itself.
#[test]
fn a_peer_that_reads_without_end_leaves_others_their_turn() {
    const READS: u64 = 32;
    let mut b = side(options(false));
    let address = b.provider.listen(anywhere()).unwrap();
    let (tell, told) = mpsc::channel::<Remote>();
    let reader = thread::spawn(move || read_without_end(address, &told, READS));
    let begin = Instant::now();
    let from = loop {
        b.look();
        if let Some((id, _)) = b.find(requested) {
            b.accept(id, 255);
        }
        if let Some((id, _)) = b.find(established) {
            break b.expose(id, &[b.slice(0, MEMORY_LEN)], Access::READ);
        }
        assert!(begin.elapsed() < PATIENCE, "nobody comes");
    };
    tell.send(from).unwrap();
    let mut turns = 0;
    while !reader.is_finished() {
        b.look();
        turns += 1;
    }
    reader.join().unwrap();
    // 1 MiB a turn, and what one system call takes beyond it.
    let least = READS * (MEMORY as u64) / (3 << 19);
    assert!(turns >= least, "{turns} of {least}");
}

fn read_without_end(address: SocketAddr, told: &mpsc::Receiver<Remote>, reads: u64) {
    let mut a = side(options(false));
    let id = a.provider.connect(address, b"hello").unwrap();
    let begin = Instant::now();
    while a.find(established).is_none() {
        a.look();
        assert!(begin.elapsed() < PATIENCE, "nobody answers");
    }
    let from = told.recv().unwrap();
    for number in 0..reads {
        let into = [a.slice(0, MEMORY_LEN)];
        let work = Work::Read { into: &into, from };
        a.post(id, number, work).unwrap();
    }
    let mut count = 0;
    while count < reads {
        a.look();
        while a.find(done).is_some() {
            count += 1;
        }
        assert!(begin.elapsed() < PATIENCE, "{count} of {reads}");
    }
}

#[test]
fn a_process_that_dies_is_a_loss_and_everything_comes_back() {
    let (mut a, mut b, at_a, at_b) = connected(options(false), options(false));
    let to = b.expose(at_b, &[b.slice(0, MEMORY_LEN)], Access::WRITE);
    let gather = [a.slice(0, MEMORY_LEN)];
    for number in 0..10 {
        a.post(
            at_a,
            number,
            Work::Write {
                gather: &gather,
                to,
            },
        )
        .unwrap();
    }
    // What it has sent is not read: a reset.
    a.look();
    drop(b);
    let mut other = side(options(false));
    until(&mut a, &mut other, |a, _| {
        (a.provider.count() == 0).then_some(())
    });
    assert!(
        matches!(
            a.ends[..],
            [(
                _,
                Failure::Lost | Failure::Wire(WireError::Truncated) | Failure::Closed
            )]
        ),
        "{:?}",
        a.ends
    );
    let back = |event: &Event| matches!(event, Event::Completed(_)).then_some(());
    assert_eq!(std::iter::from_fn(|| a.find(back)).count(), 10);
}

#[test]
fn nobody_listens() {
    let mut a = side(options(false));
    let mut b = side(options(false));
    let address = b.provider.listen(anywhere()).unwrap();
    drop(b);
    let mut b = side(options(false));
    // Refused at once, or a moment later.
    if let Ok(id) = a.provider.connect(address, b"") {
        gone(&mut a, &mut b);
        assert_eq!(a.ends, [(id, Failure::Lost)]);
    }
}

#[test]
fn whoever_speaks_no_mpa_is_closed() {
    let (mut a, mut b) = (side(options(false)), side(options(false)));
    let address = b.provider.listen(anywhere()).unwrap();
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    until(&mut a, &mut b, |_, b| (!b.ends.is_empty()).then_some(()));
    assert!(matches!(
        b.ends[..],
        [(_, Failure::Wire(WireError::NotMpa { .. }))]
    ));
    let mut rest = Vec::new();
    stranger.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    drop(stranger);
    gone(&mut a, &mut b);
}

/// A frame that cannot be, right behind a good one: the peer is told why.
#[test]
fn whoever_breaks_the_protocol_is_told_why() {
    let (mut a, mut b) = (side(options(false)), side(options(false)));
    let address = b.provider.listen(anywhere()).unwrap();
    let mut stranger = TcpStream::connect(address).unwrap();
    stranger
        .write_all(b"MPA ID Req Frame\x10\x02\x00\x04\x00\x10\x00\x10")
        .unwrap();
    let requested = |event: &Event| matches!(event, Event::Requested(_)).then_some(());
    let (id, ()) = until(&mut a, &mut b, |_, b| b.find(requested));
    let mut connection = b.provider.connection(id).unwrap();
    connection.accept(b"", DEPTH).unwrap();
    b.provider.flush();
    let mut reply = [0; 24];
    stranger.read_exact(&mut reply).unwrap();
    assert_eq!(&reply[..17], b"MPA ID Rep Frame\x10");
    stranger.write_all(b"\x00\x12\x41\x4F").unwrap();
    until(&mut a, &mut b, |_, b| (!b.ends.is_empty()).then_some(()));
    let failure = Failure::Wire(WireError::Opcode { got: 15 });
    assert_eq!(b.ends, [(id, failure)]);
    let mut told = Vec::new();
    stranger.read_to_end(&mut told).unwrap();
    assert_eq!(
        (told.len(), &told[2..4], &told[20..22]),
        (28, &b"\x41\x47"[..], &b"\x02\x06"[..])
    );
    drop(stranger);
    gone(&mut a, &mut b);
}

#[test]
fn memory_that_is_removed_ends_what_uses_it() {
    for receiving in [false, true] {
        let (mut a, mut b, at_a, at_b) = connected(options(false), options(false));
        let to = b.expose(at_b, &[b.slice(0, MEMORY_LEN)], Access::WRITE);
        let gather = [a.slice(0, MEMORY_LEN)];
        a.post(
            at_a,
            1,
            Work::Write {
                gather: &gather,
                to,
            },
        )
        .unwrap();
        let (side, memory) = if receiving {
            (&mut b, MemoryId(0))
        } else {
            (&mut a, MemoryId(0))
        };
        side.provider.remove_memory(memory).unwrap();
        gone(&mut a, &mut b);
        let ends = if receiving { &b.ends } else { &a.ends };
        assert!(matches!(ends[..], [(_, Failure::Memory)]), "{ends:?}");
    }
}

/// 1,000 idle connections with 255 receives each, both ends in this process.
#[test]
fn a_thousand_idle_connections_take_little_memory_and_no_time() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
    if limit.maximum.is_some_and(|most| most < 3000) {
        eprintln!("SKIP: 3,000 descriptors are needed (ulimit -Hn)");
        return;
    }
    let (mut a, mut b) = (side(options(false)), side(options(false)));
    let address = b.provider.listen(anywhere()).unwrap();
    let before = resident();
    let mut last = None;
    for _ in 0..1000 {
        last = Some(connect(&mut a, &mut b, address));
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "2,000 ends take {grown} bytes");
    assert_eq!((a.provider.count(), b.provider.count()), (1000, 1000));
    assert_eq!(b.provider.buffers(), (0, 0));
    // Nothing is due, so a wait without end would be one: only a message ends it.
    let (at_a, _) = last.unwrap();
    a.send(at_a, 1, &[a.slice(0, 8)]);
    a.provider.flush();
    b.provider.wait(None).unwrap();
    let message = until(&mut a, &mut b, |_, b| b.message());
    assert_eq!(message.len(), 8);
    println!("2,000 ends of idle connections take {} KiB", grown >> 10);
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn connections_have_their_limit() {
    let config = Config {
        connections: 1,
        ..options(false)
    };
    let (mut a, mut b) = (side(options(false)), side(config));
    let address = b.provider.listen(anywhere()).unwrap();
    connect(&mut a, &mut b, address);
    let extra = a.provider.connect(address, b"").unwrap();
    until(&mut a, &mut b, |a, _| (!a.ends.is_empty()).then_some(()));
    assert_eq!(a.ends, [(extra, Failure::Lost)]);
    assert_eq!(b.provider.count(), 1);
    let error = b.provider.connect(address, b"").unwrap_err();
    assert_eq!(error.to_string(), "1 connections are there already");
}

/// A connection from an address of this machine that says nothing.
fn silent(from: u8, to: SocketAddr) -> TcpStream {
    let kind = net::SocketType::STREAM;
    let socket = net::socket(net::AddressFamily::INET, kind, None).unwrap();
    let from: SocketAddr = (Ipv4Addr::new(127, 0, 0, from), 0).into();
    net::bind(&socket, &from).unwrap();
    net::connect(&socket, &to).unwrap();
    socket.into()
}

#[test]
fn half_open_connections_have_a_limit_and_each_address_a_share_of_it() {
    let config = Config {
        half_open: 4,
        ..options(false)
    };
    let mut provider = Provider::new(config).unwrap();
    let address = provider.listen(anywhere()).unwrap();
    // Once at least.
    let mut look = |until: &dyn Fn(&Provider) -> bool| {
        loop {
            provider.wait(Some(Duration::from_millis(1))).unwrap();
            // Their ends are told, and nothing else.
            while let Some((_, event)) = provider.poll() {
                assert!(matches!(event, Event::Ended(_)), "{event:?}");
            }
            if until(&provider) {
                break;
            }
        }
    };
    let mut open: Vec<_> = (1..=3).map(|from| silent(from, address)).collect();
    look(&|provider| provider.count() == 3);
    // One of four is all that one address has.
    let mut second = silent(1, address);
    look(&|provider| provider.guests() == (3, 1));
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    open.push(silent(4, address));
    look(&|provider| provider.count() == 4);
    // The fifth waits until one leaves, and is then the fourth.
    open.push(silent(5, address));
    look(&|provider| provider.guests() == (4, 1));
    drop(open.remove(0));
    look(&|provider| provider.guests() == (3, 1));
    look(&|provider| provider.guests() == (4, 1));
    // And the sixth until one has done what is wanted.
    open.push(silent(6, address));
    look(&|provider| provider.guests() == (4, 1));
    drop(open.remove(0));
    look(&|provider| provider.guests() == (3, 1));
    look(&|provider| provider.guests() == (4, 1));
}

#[test]
fn other_descriptors_are_watched_in_the_same_place() {
    let mut provider = Provider::new(options(false)).unwrap();
    let event = EventFd::new().unwrap();
    provider.watch(&event, 7).unwrap();
    provider.wait(Some(Duration::ZERO)).unwrap();
    assert_eq!(provider.watched(), None);
    event.signal().unwrap();
    provider.wait(None).unwrap();
    assert_eq!((provider.watched(), provider.watched()), (Some(7), None));
    provider.unwatch(&event).unwrap();
    provider.wait(Some(Duration::ZERO)).unwrap();
    assert_eq!(provider.watched(), None);
}

#[test]
fn wrong_options_are_refused() {
    let mut config = options(false);
    config.options.revision = 7;
    let error = Provider::new(config).err().unwrap();
    assert_eq!(
        error.to_string(),
        "revision is 7, where 1 to 2 are possible"
    );
    let mut a = side(options(false));
    let long = a.provider.connect(anywhere(), &[0; 300]).unwrap_err();
    assert!(!long.to_string().is_empty());
}
