//! Frames of every kind, as Wireshark sees them: an independent decoder of our wire.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use linkspan_backends::rdma::{Config, ConnectionId, Provider};
use linkspan_mem::Region;
use linkspan_rdma::iwarp::{FrameSize, Options};
use linkspan_rdma::verbs::{Access, Event, Key, Post, Remote, Slice, Verbs as _, Work};

fn provider(frame: FrameSize) -> (Provider, impl Fn(u64, u32) -> Slice) {
    let options = Options {
        crc: true,
        frame,
        ..Options::default()
    };
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
        let Some(text) = tshark(&path, &["-V"]) else {
            eprintln!("SKIP: there is no tshark (Debian package tshark)");
            return;
        };
        let count = |what: &str| text.matches(what).count();
        assert_eq!(count("Bad CRC32"), 0);
        assert_eq!(count("Malformed"), 0);
        // Two writes, one request, two responses, four messages, one terminate.
        let frames = if frame == FrameSize::Max { 10 } else { 100 };
        assert!(
            count("Good CRC32") >= frames,
            "{} good",
            count("Good CRC32")
        );
        let fields = ["-T", "fields", "-e", "iwarp_rdma.opcode"];
        let opcodes = tshark(&path, &fields).unwrap();
        let seen: BTreeSet<u8> = opcodes
            .split([',', '\n'])
            .filter(|text| !text.is_empty())
            .map(|text| match text.strip_prefix("0x") {
                Some(digits) => u8::from_str_radix(digits, 16).unwrap(),
                None => text.parse().unwrap(),
            })
            .collect();
        assert_eq!(seen, (0..8).collect(), "opcodes");
    }
}

/// What tshark says; `None` if there is none.
fn tshark(path: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("tshark")
        .args(["-o", "tcp.try_heuristic_first:TRUE", "-r"])
        .arg(path)
        .args(arguments)
        .output();
    match output {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        output => Some(String::from_utf8_lossy(&output.unwrap().stdout).into_owned()),
    }
}
