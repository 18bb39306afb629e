//! Saving and restoring: when it is possible, that nothing is lost, and that bytes of anybody
//! are refused by name.

use std::time::Duration;

use linkspan_mem::record::RestoreError;
use linkspan_rdma::iwarp::{Connection, Options};
use linkspan_rdma::verbs::{Access, Event, Failure, Refusal, Work};

use super::pair::{DEPTH, End, Pair, end_of, pattern};

fn options() -> Options {
    Options {
        depth: DEPTH,
        ..Options::default()
    }
}

fn met() -> Pair {
    Pair::met(options())
}

fn why(end: &End) -> &'static str {
    end.connection.snapshot().unwrap_err().what
}

#[test]
fn what_is_under_way_is_named() {
    let mut pair = Pair::new(options(), options());
    assert_eq!(why(&pair.a), "nothing is agreed upon");
    pair.run();
    pair.b.connection.accept(b"", options().depth).unwrap();
    assert_eq!(why(&pair.b), "an event waits");
    pair.b.events();
    pair.run();
    pair.a.events();
    // Who came awaits the first frame, who asked may have to poke the other end.
    assert_eq!(why(&pair.b), "the ends have not spoken");
    assert_eq!(why(&pair.a), "the ends have not spoken");

    let mut pair = met();
    pair.a.send(1, pair.a.slice(0, 100)).unwrap();
    assert_eq!(why(&pair.a), "work is under way");
    let bytes = pair.a.transmit(usize::MAX);
    pair.b.receive(&bytes[..50]);
    assert_eq!(why(&pair.b), "a message is there in part");
    pair.b.receive(&bytes[50..]);
    assert_eq!(why(&pair.b), "an event waits");
    pair.a.events();
    pair.b.messages();

    let from = pair.b.expose(0, 100, Access::READ);
    assert_eq!(why(&pair.b), "memory is exposed");
    let into = [pair.a.slice(0, 100)];
    pair.a.post(2, Work::Read { into: &into, from }).unwrap();
    let request = pair.a.transmit(usize::MAX);
    assert_eq!(why(&pair.a), "work is under way");
    pair.b.receive(&request);
    assert_eq!(why(&pair.b), "a read is under way");
    pair.run();
    pair.a.events();
    pair.a.save(options()).unwrap();
    let key = from.key;
    pair.b.post(3, Work::Invalidate { key }).unwrap();
    pair.run();
    pair.b.events();
    pair.b.save(options()).unwrap();
}

/// Bytes go to and fro in pieces, and an end is saved and restored whenever it is quiet.
#[test]
fn a_conversation_goes_on_over_any_quiet_point() {
    for piece in [1, 7, 64, 1000] {
        let mut pair = met();
        let mut saved = 0;
        for round in 0..20_u8 {
            let len = u32::from(round) * 37;
            pair.a.write(0, &pattern(len as usize, round));
            pair.a.send(1, pair.a.slice(0, len)).unwrap();
            let mut messages = Vec::new();
            loop {
                let bytes = pair.a.transmit(piece);
                pair.b.receive(&bytes);
                messages.extend(pair.b.messages());
                saved += usize::from(pair.b.save(options()).is_ok());
                if bytes.is_empty() {
                    break;
                }
            }
            assert_eq!(messages, [pattern(len as usize, round)]);
            pair.a.events();
            for end in [&mut pair.a, &mut pair.b] {
                end.save(options()).unwrap();
                end.connection.post_receives(1).unwrap();
            }
        }
        assert!(saved >= 20, "{saved}");
    }
}

/// What a peer was told before means nothing after, as if nothing had happened.
#[test]
fn no_tag_comes_back() {
    let mut pair = met();
    let old = pair.b.expose(0, 100, Access::WRITE);
    let key = old.key;
    pair.b.post(1, Work::Invalidate { key }).unwrap();
    pair.run();
    pair.b.events();
    pair.b.save(options()).unwrap();
    let mut seen = vec![key];
    for _ in 0..100 {
        let key = pair.b.expose(0, 100, Access::WRITE).key;
        assert!(!seen.contains(&key));
        seen.push(key);
        pair.b.post(1, Work::Invalidate { key }).unwrap();
        pair.run();
        pair.b.events();
        pair.b.save(options()).unwrap();
    }
    let gather = [pair.a.slice(0, 10)];
    let write = Work::Write {
        gather: &gather,
        to: old,
    };
    pair.a.post(2, write).unwrap();
    pair.run();
    let end = end_of(&pair.b.events());
    let refused =
        matches!(end, Failure::Refused { why: Refusal::Key { key: got }, .. } if got == key);
    assert!(refused, "{end:?}");
    assert!(matches!(pair.a.events().last(), Some(Event::Ended(_))));
}

#[test]
fn bytes_of_anybody_are_refused_by_name() {
    let mut pair = met();
    let keys = [(); 3].map(|()| pair.b.expose(0, 100, Access::WRITE).key);
    for key in keys {
        pair.b.post(1, Work::Invalidate { key }).unwrap();
    }
    pair.run();
    pair.b.events();
    let good = pair.b.connection.snapshot().unwrap();
    let restore = |options, bytes: &[u8]| Connection::restore(options, Duration::ZERO, bytes);
    let refused = |bytes: &[u8]| restore(options(), bytes).map(|_| ()).unwrap_err();
    assert!(restore(options(), &good).is_ok());
    for len in 0..good.len() {
        let error = refused(&good[..len]);
        let known = matches!(
            error,
            RestoreError::Magic { .. } | RestoreError::Length { .. }
        );
        assert!(known, "{len}: {error}");
    }
    let long = [&good[..], &[0]].concat();
    assert!(matches!(refused(&long), RestoreError::Length { .. }));
    // Magic, checksums, depths, receives, numbers, keys, sink, tags, free tags.
    let tags = 8 + 1 + 4 + 4 + 16 + 32 + 4;
    let free = tags + 4 + 3 * 4;
    assert_eq!(good.len(), free + 4 + 3 * 4);
    for (at, byte, what) in [
        (8, 2, "whether there are checksums"),
        (10, 0xFF, "a number of reads"),
        (12, 0xFF, "a number of reads"),
        (15, 0xFF, "a number of receives"),
        (tags - 1, 0xFF, "the life of a sink"),
        (tags + 3, 0xFF, "a number of tags"),
        (tags + 7, 0xFF, "the life of a tag"),
        (free, 4, "a number of free tags"),
        (free + 4, 3, "a free tag"),
        (free + 4, good[free + 8], "a free tag"),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(refused(&bytes), RestoreError::Nonsense { what }, "{at}");
    }
    // One that is neither free nor spent.
    let mut bytes = good[..free].to_vec();
    bytes.extend_from_slice(&[0; 4]);
    let what = "the life of a tag";
    assert_eq!(refused(&bytes), RestoreError::Nonsense { what });
    // Other options.
    let mut few = options();
    few.limits.exposures = 2;
    assert!(restore(few, &good).is_err());
    let mut none = options();
    none.limits.receive_size = 0;
    let what = "an option";
    let error = restore(none, &good).map(|_| ()).unwrap_err();
    assert_eq!(error, RestoreError::Nonsense { what });
}

/// Whatever bytes are taken, the connection lives and ends in order.
#[test]
fn any_changed_byte_is_refused_or_makes_a_connection() {
    let mut pair = met();
    let good = pair.a.connection.snapshot().unwrap();
    for at in 8..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            if let Ok(mut restored) = Connection::restore(options(), Duration::ZERO, &bytes) {
                restored.disconnect();
                restored.tick(Duration::from_secs(1000));
                assert!(restored.has_events());
            }
        }
    }
    pair.run();
}
