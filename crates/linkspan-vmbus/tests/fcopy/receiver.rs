//! The guest's end, message by message.

use linkspan_vmbus::fcopy::{
    Effect, Guest, Operation, PARTS_MAX, Parts, Place, Receiver, Refusal, Target,
};
use linkspan_vmbus::ic::{Echo, Reaction, Status};
use proptest::prelude::*;

use crate::{CANCEL, COMPLETE, Rig, head, message, pattern, policy, start, write};

#[test]
fn a_file_comes_in_fragments_and_is_finished() {
    for len in [0, 1, 6143, 6144, 6145, 20_000] {
        let (mut rig, data) = (Rig::new(), pattern(len));
        assert_eq!(rig.ask(&start("file", "/tmp/", 3, len as u64)), Status::OK);
        let place = Place {
            root: 1,
            folder: String::new(),
            target: Target::In {
                name: "file".into(),
            },
            overwrite: true,
            create_path: true,
            size: len as u64,
        };
        assert_eq!(rig.effects(), [Effect::Open(place)]);
        for (at, fragment) in data.chunks(6144).enumerate() {
            assert_eq!(rig.ask(&write(at as u64 * 6144, fragment)), Status::OK);
        }
        assert_eq!(rig.written, data);
        rig.effects();
        assert_eq!(rig.ask(&head(COMPLETE)), Status::OK);
        assert_eq!(rig.effects(), [Effect::Finish]);
        assert!(!rig.guest.service().is_open());
    }
}

#[test]
fn data_are_written_from_where_they_were_received() {
    let mut rig = Rig::begun(10);
    let mut payload = message(7, &write(3, b"12345"));
    let Ok(Reaction::Do(Effect::Write { offset, data })) = rig.guest.receive(&mut payload) else {
        panic!("a write");
    };
    assert_eq!((offset, &data), (3, &(80..85)));
    assert_eq!(&payload[data], b"12345");
}

/// Linux's daemon answers 80004005, keeps the file open and leaves what there is.
#[test]
fn cancel_removes_what_there_is() {
    let mut rig = Rig::begun(10_000);
    assert_eq!(rig.ask(&write(0, &pattern(6144))), Status::OK);
    rig.effects();
    assert_eq!(rig.ask(&head(CANCEL)), Status::OK);
    assert_eq!(rig.effects(), [Effect::Discard]);
    assert!(!rig.guest.service().is_open());
    assert_eq!(
        rig.ask(&head(CANCEL)),
        Status::OK,
        "there is nothing left to do"
    );
    assert_eq!(rig.effects(), []);
}

/// Linux's daemon wrote 134400 bytes of its heap into the file.
#[test]
fn write_of_more_than_came_writes_nothing() {
    for size in [6145, 200_000, u32::MAX] {
        let mut rig = Rig::begun(1 << 30);
        let mut body = write(0, &pattern(100));
        body[48..52].copy_from_slice(&size.to_le_bytes());
        assert_eq!(rig.ask(&body), Status::INVALID_ARGUMENT);
        assert_eq!(rig.refusal(), Refusal::Fragment { size, room: 6144 });
        assert_eq!(rig.effects(), []);
    }
    // A short message with a size that a whole one could have.
    let mut rig = Rig::begun(1 << 30);
    let body = &write(0, &pattern(100))[..52 + 96];
    assert_eq!(rig.ask(body), Status::INVALID_ARGUMENT);
    assert_eq!(
        rig.refusal(),
        Refusal::Fragment {
            size: 100,
            room: 96
        }
    );
}

/// Linux's daemon reads what an earlier message left; one below 36 bytes ended it.
#[test]
fn every_prefix_of_every_message_is_answered_and_the_guest_lives() {
    for body in [
        start("file", "/tmp/", 0, 9),
        write(0, &pattern(200)),
        head(COMPLETE),
        head(CANCEL),
    ] {
        let whole = match body[0] {
            0 => 1088,
            1 => 52 + 200,
            _ => 36,
        };
        for len in 0..whole {
            let mut rig = Rig::begun(400);
            assert_eq!(
                rig.ask(&body[..len]),
                Status::INVALID_ARGUMENT,
                "{len} of {}",
                body[0]
            );
            assert!(rig.guest.service_mut().take_refusal().is_some());
            assert_eq!(rig.effects(), []);
            assert_eq!(rig.ask(&write(0, b"alive")), Status::OK);
        }
    }
}

/// Linux's daemon closes or writes to descriptor 0, which is whatever it is.
#[test]
fn nothing_is_done_to_no_file() {
    let mut rig = Rig::new();
    for (body, operation) in [
        (write(0, b"data"), Operation::Write),
        (head(COMPLETE), Operation::Complete),
    ] {
        assert_eq!(rig.ask(&body), Status::FAIL);
        assert_eq!(rig.refusal(), Refusal::NoFile { operation });
    }
    assert_eq!(rig.ask(&start("file", "/tmp/", 0, 4)), Status::OK);
    assert_eq!(rig.ask(&write(0, b"data")), Status::OK);
    assert_eq!(rig.ask(&head(COMPLETE)), Status::OK);
    rig.effects();
    for body in [write(0, b"data"), head(COMPLETE)] {
        assert_eq!(rig.ask(&body), Status::FAIL, "it is over");
    }
    assert_eq!(rig.effects(), []);
}

/// Linux's daemon leaks the first one's descriptor.
#[test]
fn a_second_start_gives_the_first_file_up() {
    let mut rig = Rig::begun(10);
    assert_eq!(rig.ask(&start("next", "/tmp/", 0, 4)), Status::OK);
    let effects = rig.effects();
    assert!(matches!(&effects[..], [Effect::Discard, Effect::Open(place)] if place.size == 4));
    // One that is refused changes nothing.
    assert_eq!(
        rig.ask(&start("../up", "/tmp/", 0, 4)),
        Status::INVALID_ARGUMENT
    );
    assert_eq!(rig.effects(), []);
    assert_eq!(rig.ask(&write(0, b"data")), Status::OK);
    assert_eq!(rig.ask(&head(COMPLETE)), Status::OK);
}

/// Linux's daemon never compares what came with the size that was announced.
#[test]
fn complete_before_all_has_come_removes_the_file() {
    let mut rig = Rig::begun(10_000);
    assert_eq!(rig.ask(&write(0, &pattern(6144))), Status::OK);
    assert_eq!(rig.ask(&write(6145, &pattern(3855))), Status::OK);
    rig.effects();
    assert_eq!(rig.ask(&head(COMPLETE)), Status::FAIL);
    assert_eq!(
        rig.refusal(),
        Refusal::Incomplete {
            got: 9999,
            size: 10_000
        }
    );
    assert_eq!(rig.effects(), [Effect::Discard]);
}

#[test]
fn fragments_come_in_any_order_and_more_than_once() {
    let mut rig = Rig::begun(30);
    for (offset, len) in [(20, 10), (0, 5), (3, 7), (0, 30), (29, 1), (10, 10)] {
        assert_eq!(rig.ask(&write(offset, &pattern(len))), Status::OK);
    }
    assert_eq!(rig.ask(&head(COMPLETE)), Status::OK);
}

#[test]
fn bytes_behind_the_end_and_offsets_that_overflow_are_refused() {
    for (offset, size) in [
        (100, 1),
        (96, 5),
        (u64::MAX, 1),
        (u64::MAX - 3, 5),
        (1 << 63, 6144),
    ] {
        let mut rig = Rig::begun(100);
        assert_eq!(
            rig.ask(&write(offset, &pattern(size))),
            Status::INVALID_ARGUMENT
        );
        let size = u32::try_from(size).unwrap();
        assert_eq!(
            rig.refusal(),
            Refusal::Beyond {
                offset,
                size,
                file: 100
            }
        );
        assert_eq!(rig.effects(), []);
    }
    let mut rig = Rig::begun(100);
    assert_eq!(
        rig.ask(&write(100, b"")),
        Status::OK,
        "nothing at the end is fine"
    );
    assert_eq!(rig.effects(), []);
}

#[test]
fn sizes_that_no_file_has_or_that_are_too_large_are_refused() {
    let mut rig = Rig::new();
    for (size, status) in [
        (u64::MAX, Status::INVALID_ARGUMENT),
        (1 << 63, Status::INVALID_ARGUMENT),
        ((1 << 40) + 1, Status::DISK_FULL),
    ] {
        assert_eq!(rig.ask(&start("file", "/tmp/", 0, size)), status);
    }
    assert_eq!(
        rig.refusal(),
        Refusal::TooLarge {
            size: (1 << 40) + 1,
            max: 1 << 40
        }
    );
    assert_eq!(rig.effects(), []);
    assert_eq!(rig.ask(&start("file", "/tmp/", 0, 1 << 40)), Status::OK);
}

/// Every failure of the file system has its status; ENOSPC after part of a write was
/// E_FAIL, and a failed close() was nothing at all.
#[test]
fn what_fails_is_told_with_its_status() {
    for status in [
        Status::FAIL,
        Status::ALREADY_EXISTS,
        Status::DISK_FULL,
        Status::INVALID_ARGUMENT,
    ] {
        let mut rig = Rig::new();
        let begin = start("file", "/tmp/", 0, 4);
        assert_eq!(rig.ask_with(&begin, &[status]), status);
        assert!(!rig.guest.service().is_open());
        assert_eq!(rig.ask(&begin), Status::OK);
        assert_eq!(rig.ask_with(&write(0, b"data"), &[status]), status);
        assert!(rig.guest.service().is_open(), "the host may try again");
        rig.effects();
        assert_eq!(
            rig.ask(&head(COMPLETE)),
            Status::FAIL,
            "what failed did not come"
        );
        assert_eq!(rig.effects(), [Effect::Discard]);
        assert_eq!(rig.ask(&begin), Status::OK);
        assert_eq!(rig.ask(&write(0, b"data")), Status::OK);
        rig.effects();
        assert_eq!(rig.ask_with(&head(COMPLETE), &[status]), status);
        assert_eq!(rig.effects(), [Effect::Finish, Effect::Discard]);
        assert!(!rig.guest.service().is_open());
    }
}

#[test]
fn operations_that_do_not_exist_are_not_supported() {
    let mut rig = Rig::begun(10);
    for code in [4, 5, 0xFF, u32::MAX] {
        assert_eq!(rig.ask(&head(code)), Status::NOT_SUPPORTED);
        assert_eq!(rig.refusal(), Refusal::Operation { code });
    }
    assert!(rig.guest.service().is_open());
}

#[test]
fn a_negotiation_in_the_middle_begins_anew() {
    let mut rig = Rig::begun(10);
    assert_eq!(rig.negotiate(), Status::OK);
    assert_eq!(rig.effects(), [Effect::Discard]);
    assert_eq!(rig.ask(&write(0, b"data")), Status::FAIL);
    // One that fails leaves nothing to talk about.
    assert_eq!(rig.give(message(0, &[0; 16]), &[]), Status::FAIL);
    assert_eq!(rig.ask(&start("file", "/tmp/", 0, 1)), Status::FAIL);
    assert_eq!(rig.negotiate(), Status::OK);
    assert_eq!(rig.ask(&start("file", "/tmp/", 0, 1)), Status::OK);
}

/// Guest services switched off while a file comes: the daemon reads EIO for ever and
/// fills the log.
#[test]
fn a_channel_that_goes_away_leaves_nothing() {
    let mut rig = Rig::begun(10);
    assert_eq!(rig.guest.end(), Some(Effect::Discard));
    rig.guest.ended(Status::OK);
    assert_eq!(rig.guest.end(), None);
    // It may go in the middle of an effect, too.
    for body in [start("file", "/tmp/", 0, 10), write(0, b"data")] {
        let mut rig = Rig::begun(10);
        let mut payload = message(7, &body);
        assert!(matches!(
            rig.guest.receive(&mut payload),
            Ok(Reaction::Do(_))
        ));
        assert_eq!(rig.guest.end(), Some(Effect::Discard));
        rig.guest.ended(Status::FAIL);
        assert_eq!(rig.negotiate(), Status::OK, "and comes back");
        assert_eq!(
            rig.ask(&body),
            if body[0] == 0 {
                Status::OK
            } else {
                Status::FAIL
            }
        );
    }
}

#[test]
fn a_thousand_starts_keep_nothing() {
    let mut rig = Rig::new();
    let size = rig.guest.snapshot().unwrap().len();
    for number in 0..1000 {
        assert_eq!(
            rig.ask(&start(&format!("{number}"), "/tmp/", 0, 5)),
            Status::OK
        );
        assert_eq!(rig.guest.snapshot().unwrap().len(), size + 12);
        rig.effects();
    }
}

#[test]
fn only_so_many_holes_are_kept() {
    let mut rig = Rig::begun(1 << 20);
    for at in 0..PARTS_MAX as u64 {
        assert_eq!(rig.ask(&write(at * 100, b"x")), Status::OK);
    }
    rig.effects();
    assert_eq!(rig.ask(&write(9999, b"x")), Status::INVALID_ARGUMENT);
    assert!(matches!(rig.refusal(), Refusal::Parts(_)));
    assert_eq!(rig.effects(), [], "refused before it is written");
    assert_eq!(
        rig.ask(&write(1, b"x")),
        Status::OK,
        "what joins another is fine"
    );
}

proptest! {
    #[test]
    fn parts_agree_with_a_naive_model(runs in proptest::collection::vec((0..200_u16, 0..40_u16), 0..120)) {
        let (mut parts, mut bytes) = (Parts::default(), [false; 240]);
        for (start, len) in runs {
            if parts.add(start.into(), u64::from(start + len)).is_ok() {
                bytes[usize::from(start)..usize::from(start + len)].fill(true);
            }
            let total = bytes.iter().filter(|set| **set).count();
            prop_assert_eq!(parts.total(), total as u64);
            let first = bytes.iter().position(|set| !*set).unwrap_or(240);
            for size in 0..=240 {
                let whole = size == 0 || size == first && total == first;
                prop_assert_eq!(parts.is_whole(size as u64), whole);
            }
        }
    }
}

#[test]
fn saved_bytes_that_no_copy_leads_to_are_refused() {
    let mut rig = Rig::begun(100);
    rig.ask(&write(10, b"0123456789"));
    let saved = rig.guest.snapshot().unwrap();
    let restore =
        |bytes: &[u8]| Guest::restore(Receiver::new(policy()), Echo::Full, bytes).map(|_| ());
    assert_eq!(restore(&saved), Ok(()));
    for len in 0..saved.len() {
        assert!(restore(&saved[..len]).is_err());
    }
    // The flag, the size, the count, a run that ends before it begins or behind the end.
    let state = saved.len() - 29;
    for (at, value) in [
        (0, 2),
        (1, 5),
        (8, 0xFF),
        (9, 65),
        (9, 0),
        (13, 30),
        (21, 101),
    ] {
        let mut wrong = saved.clone();
        wrong[state + at] = value;
        assert!(restore(&wrong).is_err(), "byte {at}");
    }
}
