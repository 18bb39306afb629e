//! The host's end, against guests of all kinds.

use linkspan_vmbus::fcopy::{Failure, Job, Misuse, Operation, Options, Output, Sender, WRITE_LEN};
use linkspan_vmbus::ic::{HostError, Status};

fn job(size: u64) -> Job {
    Job {
        file: "file".into(),
        path: "/tmp/".into(),
        overwrite: true,
        create_path: false,
        size,
    }
}

/// A reply as Linux's daemon makes it: all that came, with status and flags changed.
fn reply(mut request: Vec<u8>, status: Status) -> Vec<u8> {
    request[20..24].copy_from_slice(&status.0.to_le_bytes());
    request[25] = 5;
    request.resize(request.len().next_multiple_of(8), 0);
    request
}

fn negotiated(mut request: Vec<u8>) -> Vec<u8> {
    request[18..20].copy_from_slice(&16_u16.to_le_bytes());
    request[28..32].copy_from_slice(&[1, 0, 1, 0]);
    request[36..44].copy_from_slice(&[3, 0, 0, 0, 1, 0, 1, 0]);
    reply(request, Status::OK)
}

fn sent(sender: &mut Sender) -> Vec<u8> {
    match sender.poll_output() {
        Some(Output::Send(bytes)) => bytes,
        Some(Output::Write {
            head, len, padding, ..
        }) => [&head[..], &vec![7; len], &vec![0; padding]].concat(),
        other => panic!("{other:?}"),
    }
}

fn ready(outstanding: usize) -> Sender {
    let mut sender = Sender::new(Options { outstanding }).unwrap();
    let request = sent(&mut sender);
    assert!(sender.awaiting());
    sender.receive(&negotiated(request));
    assert_eq!(sender.poll_output(), Some(Output::Ready));
    assert!(!sender.awaiting());
    sender
}

/// With START answered.
fn begun(outstanding: usize, size: u64) -> Sender {
    let mut sender = ready(outstanding);
    sender.send(&job(size)).unwrap();
    let request = sent(&mut sender);
    sender.receive(&reply(request, Status::OK));
    sender
}

fn operation(message: &[u8]) -> u32 {
    u32::from_le_bytes(message[28..32].try_into().unwrap())
}

#[test]
fn the_guests_of_others_get_one_message_at_a_time() {
    let mut sender = ready(1);
    sender.send(&job(13_000)).unwrap();
    assert_eq!(sender.send(&job(1)), Err(Misuse::NotReady));
    let mut operations = Vec::new();
    for _ in 0..5 {
        let request = sent(&mut sender);
        assert_eq!(sender.poll_output(), None, "not before the answer");
        assert!(sender.awaiting());
        operations.push((operation(&request), request.len()));
        sender.receive(&reply(request, Status::OK));
    }
    let write = (1, 28 + WRITE_LEN);
    assert_eq!(
        operations,
        [(0, 28 + 1088), write, write, write, (2, 28 + 36)]
    );
    assert_eq!(sender.poll_output(), Some(Output::Done));
    assert!(sender.send(&job(0)).is_ok(), "and the next one");
}

#[test]
fn our_own_guest_gets_several_at_a_time() {
    let mut sender = begun(4, 6144 * 6 + 1);
    let mut waiting: Vec<_> = (0..4).map(|_| sent(&mut sender)).collect();
    assert_eq!(sender.poll_output(), None);
    sender.receive(&reply(waiting.remove(0), Status::OK));
    waiting.push(sent(&mut sender));
    assert_eq!(sender.poll_output(), None);
    // Answers may come in any order.
    for request in waiting.into_iter().rev() {
        sender.receive(&reply(request, Status::OK));
    }
    let last: Vec<_> = (0..2).map(|_| sent(&mut sender)).collect();
    assert_eq!(last[1][28 + 48..28 + 52], [1, 0, 0, 0], "one byte");
    assert_eq!(last[1][28 + 40..28 + 48], (6144_u64 * 6).to_le_bytes());
    assert_eq!(sender.sent(), 6144 * 6 + 1);
    for request in last {
        assert_eq!(sender.poll_output(), None, "COMPLETE waits for all");
        sender.receive(&reply(request, Status::OK));
    }
    assert_eq!(operation(&sent(&mut sender)), 2);
}

#[test]
fn refusals_name_what_and_why() {
    let refused = |operation, status| Some(Output::Failed(Failure::Refused { operation, status }));
    let mut sender = ready(1);
    sender.send(&job(0)).unwrap();
    let request = sent(&mut sender);
    sender.receive(&reply(request, Status::ALREADY_EXISTS));
    let exists = refused(Operation::Start, Status::ALREADY_EXISTS);
    assert_eq!(
        sender.poll_output(),
        exists,
        "and nothing is to be cancelled"
    );
    sender.send(&job(0)).unwrap();
    for status in [Status::OK, Status::FAIL] {
        let request = sent(&mut sender);
        sender.receive(&reply(request, status));
    }
    assert_eq!(
        sender.poll_output(),
        refused(Operation::Complete, Status::FAIL)
    );
    assert_eq!(sender.poll_output(), None);
}

/// The guest is told, whether it understands that or not (Linux's daemon does not).
#[test]
fn a_write_that_fails_cancels_the_copy() {
    for answer in [Status::OK, Status::FAIL] {
        let mut sender = begun(2, 100_000);
        let [first, second] = [(); 2].map(|()| sent(&mut sender));
        sender.receive(&reply(first, Status::DISK_FULL));
        assert_eq!(sender.poll_output(), None, "nothing more is sent");
        sender.receive(&reply(second, Status::DISK_FULL));
        let cancel = sent(&mut sender);
        assert_eq!(operation(&cancel), 3);
        sender.receive(&reply(cancel, answer));
        let failure = Failure::Refused {
            operation: Operation::Write,
            status: Status::DISK_FULL,
        };
        assert_eq!(sender.poll_output(), Some(Output::Failed(failure)));
        assert!(sender.send(&job(0)).is_ok());
    }
}

#[test]
fn whoever_stops_a_copy_cancels_it() {
    for why in [Failure::Stopped, Failure::Source] {
        // While it is being written.
        let mut sender = begun(2, 100_000);
        let write = sent(&mut sender);
        sender.cancel(why);
        assert_eq!(sender.poll_output(), None);
        sender.receive(&reply(write, Status::OK));
        let cancel = sent(&mut sender);
        sender.receive(&reply(cancel, Status::OK));
        assert_eq!(sender.poll_output(), Some(Output::Failed(why)));
        // Before START is answered.
        sender.send(&job(5)).unwrap();
        let start = sent(&mut sender);
        sender.cancel(why);
        sender.receive(&reply(start, Status::OK));
        let cancel = sent(&mut sender);
        assert_eq!(operation(&cancel), 3);
        sender.receive(&reply(cancel, Status::OK));
        assert_eq!(sender.poll_output(), Some(Output::Failed(why)));
        // And when there is nothing to stop.
        sender.cancel(why);
        assert_eq!(sender.poll_output(), None);
    }
}

/// Kernels failed a request after 5 s when the daemon hung; Linux's daemon never does.
#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut sender = begun(1, 10);
    sender.expired();
    assert!(
        matches!(sender.poll_output(), Some(Output::Write { .. })),
        "nobody waited yet"
    );
    sender.expired();
    assert_eq!(sender.poll_output(), Some(Output::Failed(Failure::Silent)));
    assert_eq!((sender.poll_output(), sender.awaiting()), (None, false));
    assert_eq!(sender.send(&job(1)), Err(Misuse::NotReady));
    let mut sender = Sender::new(Options { outstanding: 1 }).unwrap();
    let request = sent(&mut sender);
    sender.expired();
    assert_eq!(sender.poll_output(), Some(Output::Failed(Failure::Silent)));
    sender.receive(&negotiated(request));
    assert_eq!(sender.poll_output(), None, "too late");
}

#[test]
fn a_guest_without_our_versions_or_without_manners_ends_it() {
    let mut sender = Sender::new(Options { outstanding: 1 }).unwrap();
    let mut request = negotiated(sent(&mut sender));
    request[28..32].fill(0);
    sender.receive(&request);
    let none = HostError::NoCommonVersion {
        service: "file copy",
    };
    assert_eq!(
        sender.poll_output(),
        Some(Output::Failed(Failure::Protocol(none)))
    );
    let mut sender = begun(1, 10);
    let request = sent(&mut sender);
    let mut other = reply(request.clone(), Status::OK);
    other[24] ^= 0x80;
    sender.receive(&other);
    assert_eq!(
        sender.poll_output(),
        None,
        "an answer to nothing is dropped"
    );
    sender.receive(&request);
    let error = HostError::NotAReply { flags: 3 };
    assert_eq!(
        sender.poll_output(),
        Some(Output::Failed(Failure::Protocol(error)))
    );
}

#[test]
fn names_and_options_that_cannot_be_are_refused_at_once() {
    for outstanding in [0, 33] {
        let refused = Sender::new(Options { outstanding }).err();
        assert_eq!(refused, Some(Misuse::Outstanding { outstanding }));
    }
    let mut sender = ready(1);
    for (file, path) in [
        ("", "/tmp/"),
        ("f", ""),
        ("f\0g", "/tmp/"),
        ("f", "/tmp\0/"),
    ] {
        let (file, path) = (file.into(), path.into());
        assert_eq!(
            sender.send(&Job {
                file,
                path,
                ..job(0)
            }),
            Err(Misuse::Name)
        );
    }
    let long = |len| Job {
        file: "😀".repeat(len),
        ..job(0)
    };
    assert_eq!(sender.send(&long(130)), Err(Misuse::Name));
    assert_eq!(sender.send(&long(129)), Ok(()), "258 units");
}

#[test]
fn what_became_of_a_file_is_told_though_the_guest_breaks_the_protocol_next() {
    let mut sender = begun(1, 1);
    for _ in 0..2 {
        let request = sent(&mut sender);
        sender.receive(&reply(request, Status::OK));
    }
    sender.send(&job(1)).unwrap();
    sender.receive(&[0; 3]);
    assert_eq!(sender.poll_output(), Some(Output::Done));
    assert!(matches!(
        sender.poll_output(),
        Some(Output::Failed(Failure::Protocol(_)))
    ));
    assert_eq!(sender.poll_output(), None);
}
