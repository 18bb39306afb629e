//! Frames of every kind, as Wireshark sees them: an independent decoder of our wire.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Duration;

use linkspan_backends::rdma::{Config, ConnectionId, Provider};
use linkspan_mem::Region;
use linkspan_rdma::iwarp::{FrameSize, Options, Ready};
use linkspan_rdma::verbs::{Access, Event, Key, Post, Remote, Slice, Verbs as _, Work};
use linkspan_testkit::tshark;

fn provider(frame: FrameSize) -> (Provider, impl Fn(u64, u32) -> Slice) {
    provider_with(frame, |_| ())
}

fn provider_with(
    frame: FrameSize,
    change: impl Fn(&mut Options),
) -> (Provider, impl Fn(u64, u32) -> Slice) {
    let mut options = Options {
        crc: true,
        frame,
        ..Options::default()
    };
    change(&mut options);
    let mut provider = Provider::new(Config {
        options,
        ..Config::default()
    })
    .unwrap();
    let region = Region::heap(1 << 20).unwrap();
    let memory = provider.add_memory(region).unwrap();
    let slice = move |offset, len| Slice {
        memory,
        len,
        offset,
    };
    (provider, slice)
}

fn post(provider: &mut Provider, id: ConnectionId, work: Work<'_>) {
    let post = Post {
        id: 1,
        signalled: true,
        work,
    };
    provider.connection(id).unwrap().post(&post).unwrap();
}

fn run(a: &mut Provider, b: &mut Provider) -> [Vec<(ConnectionId, Event)>; 2] {
    let mut events = [Vec::new(), Vec::new()];
    for (provider, events) in [a, b].into_iter().zip(&mut events) {
        provider.wait(Some(Duration::from_millis(1))).unwrap();
        while let Some((id, event)) = provider.poll() {
            if let Event::Received(received) = event {
                let mut connection = provider.connection(id).unwrap();
                connection.release(received.buffer);
            }
            events.push((id, event));
        }
    }
    events
}

/// Goes on until so many works of the first one are done.
fn completions(a: &mut Provider, b: &mut Provider, count: usize) {
    let mut done = 0;
    while done < count {
        let [of_a, _] = run(a, b);
        let events = of_a.iter().map(|it| &it.1);
        done += events
            .filter(|event| matches!(event, Event::Completed(it) if it.done))
            .count();
    }
}

/// A conversation of all opcodes, written to `file` by the end that connects.
fn conversation(frame: FrameSize, file: File) {
    let (mut a, a_slice) = provider(frame);
    let (mut b, b_slice) = provider(frame);
    a.capture(file).unwrap();
    let address = b.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let at_a = a.connect(address, b"private").unwrap();
    let mut exposed = None;
    let mut established = false;
    while !established || exposed.is_none() {
        let [of_a, of_b] = run(&mut a, &mut b);
        established |= of_a.iter().any(|it| matches!(it.1, Event::Established(_)));
        for (id, event) in of_b {
            if let Event::Requested(greeting) = event {
                let mut connection = b.connection(id).unwrap();
                connection.post_receives(10).unwrap();
                connection.accept(b"", greeting.depth).unwrap();
                let both = Access {
                    read: true,
                    write: true,
                };
                let list = [b_slice(0, 200_000)];
                exposed = Some(connection.expose(&list, both).unwrap());
            }
        }
    }
    let to: Remote = exposed.unwrap();
    let list = [a_slice(1, 99_999), a_slice(300_000, 3)];
    post(&mut a, at_a, Work::Write { gather: &list, to });
    let into = [a_slice(400_000, 120_001)];
    post(
        &mut a,
        at_a,
        Work::Read {
            into: &into,
            from: to,
        },
    );
    // An exposure is ended when nobody reads it any more.
    completions(&mut a, &mut b, 2);
    for (invalidate, solicited) in [(None, false), (None, true), (Some(to.key), false)] {
        let gather = [a_slice(0, 1364)];
        let work = Work::Send {
            gather: &gather,
            invalidate,
            solicited,
        };
        post(&mut a, at_a, work);
    }
    completions(&mut a, &mut b, 3);
    // And something that B answers by terminating.
    let unknown = Work::Send {
        gather: &[],
        invalidate: Some(Key(to.key.0)),
        solicited: true,
    };
    post(&mut a, at_a, unknown);
    while a.count() + b.count() > 0 {
        run(&mut a, &mut b);
    }
}

#[test]
fn every_frame_is_understood_and_every_checksum_good() {
    for frame in [FrameSize::Max, FrameSize::Segment(1448)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream.pcap");
        conversation(frame, File::create(&path).unwrap());
        let Some(good) = tshark::good_checksums(&path) else {
            return;
        };
        // Two writes, one request, two responses, four messages, one terminate.
        let frames = if frame == FrameSize::Max { 10 } else { 100 };
        assert!(good >= frames, "{good} good");
        let seen = tshark::numbers(&path, "iwarp_rdma.opcode");
        let seen: BTreeSet<u64> = seen.into_iter().collect();
        assert_eq!(seen, (0..8).collect(), "opcodes");
    }
}

/// What both ends say before the first frame, and the first frame itself.
#[derive(Clone, Copy, Debug)]
struct Setup {
    revision: u8,
    ready: Option<Ready>,
    rejects: bool,
}

/// A connection that is set up like this, with a message each way unless it is rejected.
fn set_up(setup: Setup, file: File) {
    let options = |it: &mut Options| (it.revision, it.ready) = (setup.revision, setup.ready);
    let (mut a, a_slice) = provider_with(FrameSize::Max, options);
    let (mut b, b_slice) = provider(FrameSize::Max);
    a.capture(file).unwrap();
    let address = b.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let at_a = a.connect(address, b"private").unwrap();
    let message = |slice: Slice| [slice];
    let (mut back, mut rejected) = (0, false);
    while a.count() + b.count() > 0 {
        let [of_a, of_b] = run(&mut a, &mut b);
        for (id, event) in of_b {
            match event {
                Event::Requested(_) if setup.rejects => {
                    b.connection(id).unwrap().reject(b"not you").unwrap();
                }
                Event::Requested(greeting) => {
                    let mut connection = b.connection(id).unwrap();
                    connection.post_receives(1).unwrap();
                    connection.accept(b"", greeting.depth).unwrap();
                }
                Event::Received(_) => send(&mut b, id, &message(b_slice(0, 100))),
                _ => {}
            }
        }
        for (id, event) in of_a {
            match event {
                Event::Established(_) => {
                    a.connection(id).unwrap().post_receives(1).unwrap();
                    send(&mut a, id, &message(a_slice(0, 100)));
                }
                Event::Rejected { private_data } => rejected = private_data == b"not you",
                Event::Received(_) => {
                    back += 1;
                    a.connection(at_a).unwrap().disconnect();
                }
                _ => {}
            }
        }
    }
    assert_eq!((back, rejected), (u32::from(!setup.rejects), setup.rejects));
}

fn send(provider: &mut Provider, id: ConnectionId, gather: &[Slice]) {
    let work = Work::Send {
        gather,
        invalidate: None,
        solicited: false,
    };
    post(provider, id, work);
}

#[test]
fn every_way_to_set_up_is_understood() {
    let usual = Setup {
        revision: 2,
        ready: None,
        rejects: false,
    };
    let ready = |kind: usize| {
        let [write, read, send] = [0, 1, 2].map(|it| it == kind);
        Some(Ready { write, read, send })
    };
    let setups = [
        usual,
        Setup {
            revision: 1,
            ..usual
        },
        Setup {
            rejects: true,
            ..usual
        },
        Setup {
            revision: 1,
            rejects: true,
            ..usual
        },
        // Ends of equal rank: a write, a read or a message without bytes comes first.
        Setup {
            ready: ready(0),
            ..usual
        },
        Setup {
            ready: ready(1),
            ..usual
        },
        Setup {
            ready: ready(2),
            ..usual
        },
    ];
    for setup in setups {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("setup.pcap");
        set_up(setup, File::create(&path).unwrap());
        let Some(good) = tshark::good_checksums(&path) else {
            return;
        };
        let numbers = |field: &str| tshark::numbers(&path, field);
        let text = tshark::read(&path, &["-V"]).unwrap();
        let has = |what: &str| text.matches(what).count();
        assert_eq!(
            (has("Request frame header"), has("Reply frame header")),
            (1, 1)
        );
        let revision = u64::from(setup.revision);
        assert_eq!(numbers("iwarp_mpa.rev"), [revision; 2], "{setup:?}");
        // Of the request there is none.
        let rejects = numbers("iwarp_mpa.rej_flag");
        assert_eq!(rejects.last(), Some(&u64::from(setup.rejects)), "{setup:?}");
        let opcodes = numbers("iwarp_rdma.opcode");
        let first: &[u64] = match setup.ready {
            None => &[],
            Some(Ready { write: true, .. }) => &[0],
            Some(Ready { read: true, .. }) => &[1],
            Some(_) => &[3],
        };
        assert!(opcodes.starts_with(first), "{setup:?}: {opcodes:?}");
        let messages = opcodes.iter().filter(|it| **it == 3).count();
        let extra = usize::from(first == [3]);
        let wanted = if setup.rejects { 0 } else { 2 + extra };
        assert_eq!(messages, wanted, "{setup:?}");
        assert_eq!(good, opcodes.len(), "{setup:?}");
    }
}
