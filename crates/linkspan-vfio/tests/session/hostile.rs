//! A client that does everything wrong: each message is refused by name, its reply is a
//! header alone, and the session goes on unless the stream cannot.

use linkspan_vfio::message::{Gate, MESSAGES, Sender};
use linkspan_vfio::server::Effect;
use linkspan_vfio::wire::{DATA_MAX, Header, PLANE_REFUSED, errno};
use linkspan_vfio::{Cause, Disposition, DmaError, Server};

use crate::rig::{Device, agreed, header, message, offer, version};

/// Words of 32 bits as a body.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What is refused, with which error; the session goes on.
#[track_caller]
fn refused(command: u16, body: &[u8], fds: usize) -> (Cause, u32) {
    let (mut server, mut device) = agreed();
    let (sent, result) = device.serve(&mut server, &message(command, 0, body), fds);
    let error = result.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Nack, "{error}");
    let [(reply, 0)] = &sent[..] else {
        panic!("{sent:?}");
    };
    let reply_header = header(reply);
    assert_eq!((reply.len(), reply_header.id), (16, 77));
    assert_eq!(reply_header.flags, Header::REPLY | Header::ERROR);
    assert_eq!(reply_header.command, command);
    // A message that is right is still answered.
    let (sent, result) = device.serve(&mut server, &message(4, 0, &words(&[16, 0, 0, 0])), 0);
    assert_eq!((sent.len(), result), (1, Ok(())));
    // The same without a reply: nothing is said.
    let quiet = message(command, Header::NO_REPLY, body);
    let (sent, result) = device.serve(&mut server, &quiet, fds);
    assert_eq!(sent, []);
    assert_eq!(result.unwrap_err().cause(), error.cause());
    (error.cause().clone(), reply_header.error)
}

#[test]
fn every_message_of_a_wrong_length_or_with_descriptors_is_refused() {
    for row in MESSAGES.iter().filter(|row| row.sender == Sender::Client) {
        if matches!(row.gate, Gate::First | Gate::Refused) {
            continue;
        }
        let lengths = [row.body_min.checked_sub(1), Some(row.body_max + 1)];
        for len in lengths.into_iter().flatten().filter(|len| *len <= DATA_MAX) {
            let (cause, number) = refused(row.code, &vec![0; len], 0);
            assert!(
                matches!(cause, Cause::BodySize { got, .. } if got == len),
                "{}",
                row.name
            );
            assert_eq!(number, errno::EINVAL);
        }
        if row.fds_max < 8 {
            let (cause, _) = refused(row.code, &vec![0; row.body_min], row.fds_max + 1);
            assert!(
                matches!(cause, Cause::FdCount { .. }),
                "{}: {cause}",
                row.name
            );
        }
    }
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    for row in MESSAGES.iter().filter(|row| row.gate == Gate::Refused) {
        assert_eq!(
            refused(row.code, &[1; 40], 0),
            (Cause::Unsupported, errno::EOPNOTSUPP)
        );
    }
    for command in [0, 19, 0x7FFF, 0x8002, u16::MAX] {
        assert_eq!(
            refused(command, &[], 0),
            (Cause::UnknownCommand, errno::EINVAL)
        );
    }
    for command in [11, 12] {
        assert_eq!(refused(command, &[0; 16], 0).0, Cause::WrongEnd);
    }
    assert_eq!(
        refused(1, &[0; 4], 0),
        (Cause::SecondVersion, errno::EPROTO)
    );
}

#[test]
fn numbers_outside_are_refused() {
    let region = |index: u32| words(&[32, 0, index, 0, 0, 0, 0, 0]);
    for index in [3, 9, u32::MAX] {
        assert!(matches!(
            refused(5, &region(index), 0).0,
            Cause::RegionIndex { .. }
        ));
        assert!(matches!(
            refused(7, &words(&[16, 0, index, 0]), 0).0,
            Cause::Irq(_)
        ));
    }
    assert!(matches!(
        refused(6, &words(&[64, 0, 3, 0]), 0).0,
        Cause::RegionIndex { .. }
    ));
    assert_eq!(
        refused(6, &words(&[64, 1, 1, 0]), 0).0,
        Cause::Flags { flags: 1 }
    );
    assert_eq!(
        refused(6, &words(&[64, 0, 1, 5]), 0).0,
        Cause::Count { count: 5, got: 0 }
    );
    for (command, len) in [(3, 24), (4, 16), (5, 32), (6, 16), (7, 16), (8, 20)] {
        let mut body = vec![0; len];
        body[0] = u8::try_from(len - 1).unwrap();
        assert!(
            matches!(refused(command, &body, 0).0, Cause::Argsz { .. }),
            "{command}"
        );
    }
    let access = |offset: u64, region: u32, count: u32| {
        [offset.to_ne_bytes().to_vec(), words(&[region, count])].concat()
    };
    for (offset, count) in [
        (0x2000, 1),
        (0x1FFF, 2),
        (0, 0),
        (0, 0x2001),
        (u64::MAX, 1),
        (u64::MAX - 1, 8),
    ] {
        let (cause, _) = refused(9, &access(offset, 0, count), 0);
        assert!(
            matches!(cause, Cause::RegionRange { .. }),
            "{offset:#x} {count}"
        );
    }
    let much = access(0, 0, u32::try_from(DATA_MAX + 1).unwrap());
    assert!(matches!(refused(9, &much, 0).0, Cause::Transfer { .. }));
    assert!(matches!(
        refused(9, &access(0, 2, 1), 0).0,
        Cause::RegionRange { size: 0, .. }
    ));
    let write = |offset, region, count, data: &[u8]| {
        [access(offset, region, count), data.to_vec()].concat()
    };
    assert!(matches!(
        refused(10, &write(0, 0, 2, &[1]), 0).0,
        Cause::Count { count: 2, got: 1 }
    ));
    assert!(matches!(
        refused(10, &write(0, 0, u32::MAX, &[1]), 0).0,
        Cause::Count { .. }
    ));
    assert_eq!(
        refused(10, &write(0, 1, 1, &[1]), 0),
        (
            Cause::RegionAccess {
                region: 1,
                write: true
            },
            errno::EACCES
        )
    );
    assert!(matches!(
        refused(10, &write(0x2000, 0, 1, &[1]), 0).0,
        Cause::RegionRange { .. }
    ));
}

#[test]
fn several_writes_are_all_checked_before_the_first_one() {
    let one = |offset: u64, count: u32| {
        [
            offset.to_ne_bytes().to_vec(),
            words(&[0, count]),
            vec![9; 8],
        ]
        .concat()
    };
    let many =
        |count: u64, writes: &[Vec<u8>]| [count.to_ne_bytes().to_vec(), writes.concat()].concat();
    let (mut server, mut device) = agreed();
    let body = many(2, &[one(0, 1), one(0x2000, 1)]);
    let (_, result) = device.serve(&mut server, &message(15, 0, &body), 0);
    assert!(matches!(
        result.unwrap_err().cause(),
        Cause::RegionRange { .. }
    ));
    assert_eq!(device.memory[0], 0);
    assert!(matches!(
        refused(15, &many(2, &[one(0, 1)]), 0).0,
        Cause::Count { count: 2, got: 24 }
    ));
    assert!(matches!(
        refused(15, &many(u64::MAX, &[]), 0).0,
        Cause::Count { .. }
    ));
    assert!(matches!(
        refused(15, &many(1, &[one(0, 9)]), 0).0,
        Cause::Transfer { .. }
    ));
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let map = |argsz: u32, flags: u32, offset: u64, address: u64, size: u64| {
        [
            words(&[argsz, flags]),
            offset.to_ne_bytes().to_vec(),
            address.to_ne_bytes().to_vec(),
            size.to_ne_bytes().to_vec(),
        ]
        .concat()
    };
    for body in [
        map(31, 3, 0, 0, 1),
        map(32, 0, 0, 0, 1),
        map(32, 4, 0, 0, 1),
        map(32, 16 | 3, 0, 0, 1),
        map(32, 0xFFFF_FFFF, 0, 0, 1),
        map(32, 3, 0, 0, 0),
        map(32, 3, 0, 2, u64::MAX),
        map(32, 3, 2, 0, u64::MAX),
    ] {
        assert!(matches!(
            refused(2, &body, 1),
            (Cause::Dma(_), errno::EINVAL)
        ));
    }
    // A way to use a descriptor, and none.
    for way in [4, 8, 12] {
        let (cause, number) = refused(2, &map(32, way | 3, 0, 0, 1), 0);
        let flags = way | 3;
        assert_eq!(cause, Cause::Dma(DmaError::NoDescriptor { flags }));
        assert_eq!(number, errno::EINVAL);
    }
    let unmap = |flags: u32, address: u64, size: u64| {
        [
            words(&[24, flags]),
            address.to_ne_bytes().to_vec(),
            size.to_ne_bytes().to_vec(),
        ]
        .concat()
    };
    assert_eq!(refused(3, &unmap(0, 0, 1), 0).1, errno::ENOENT);
    // A dirty bitmap, all with an address, something else.
    for body in [unmap(1, 0, 0), unmap(2, 1, 0), unmap(4, 0, 0)] {
        assert!(matches!(refused(3, &body, 0).0, Cause::Flags { .. }));
    }
}

#[test]
fn interrupts_that_cannot_be_are_refused() {
    let set = |flags: u32, index: u32, start: u32, count: u32, data: &[u8]| {
        [words(&[20, flags, index, start, count]), data.to_vec()].concat()
    };
    for (body, fds) in [
        (set(0x21, 2, 0, 1, &[]), 0),
        (set(0x21, 1, 0, 5, &[]), 0),
        (set(0x21, 1, u32::MAX, 2, &[]), 0),
        (set(0x01, 1, 0, 1, &[]), 0),
        (set(0x31, 1, 0, 1, &[]), 0),
        (set(0x23, 1, 0, 1, &[0]), 0),
        (set(0x20, 1, 0, 1, &[]), 0),
        (set(0x40, 1, 0, 1, &[]), 0),
        (set(0x22, 1, 0, 2, &[1]), 0),
        (set(0x21, 1, 0, 1, &[1]), 0),
        (set(0x24, 1, 0, 2, &[]), 1),
        (set(0x21, 1, 0, 1, &[]), 1),
        (set(0x0C, 1, 0, 1, &[]), 1),
        (set(0x24, 1, 0, 0, &[]), 0),
        (set(0x21, 1, 1, 0, &[]), 0),
        (set(0x09, 1, 0, 0, &[]), 0),
    ] {
        assert!(
            matches!(refused(8, &body, fds).0, Cause::Irq(_)),
            "{body:?}"
        );
    }
}

#[test]
fn planes_that_are_not_are_refused() {
    let query = |argsz: u32, flags: u32, kind: u32| {
        let mut all = [0; 16];
        (all[0], all[1], all[2]) = (argsz, flags, kind);
        words(&all)
    };
    assert!(matches!(
        refused(0x8000, &query(59, 2, 1), 0).0,
        Cause::Argsz { .. }
    ));
    for flags in [0, 1, 6, 7, 8, 10, u32::MAX] {
        assert!(
            matches!(
                refused(0x8000, &query(64, flags, 1), 0),
                (Cause::Flags { .. }, errno::EINVAL)
            ),
            "{flags}"
        );
    }
    // Within a region they are not.
    assert_eq!(refused(0x8000, &query(64, 5, 1), 0).0, Cause::Unsupported);
    assert_eq!(
        refused(0x8000, &query(60, 2, 3), 0),
        (Cause::PlaneType { kind: 3 }, errno::EINVAL)
    );
    assert_eq!(refused(0x8001, &words(&[4]), 0).1, errno::ENOENT);
    // One that is on and not shown: an error for who has no room for words.
    for argsz in [60, 64] {
        assert_eq!(
            refused(0x8000, &query(argsz, 2, 0), 0),
            (Cause::Unsupported, errno::EOPNOTSUPP)
        );
    }
    for (argsz, why) in [
        (65, "r"),
        (68, "rota"),
        (72, "rotation"),
        (u32::MAX, "rotation"),
    ] {
        let (mut server, mut device) = agreed();
        let asked = message(0x8000, 0, &query(argsz, 2, 0));
        let (sent, result) = device.serve(&mut server, &asked, 0);
        let [(reply, 0)] = &sent[..] else {
            panic!("{sent:?}");
        };
        let (info, words) = reply[16..].split_at(64);
        assert_eq!((result, words), (Ok(()), why.as_bytes()));
        let len = u32::try_from(info.len() + words.len()).unwrap();
        assert_eq!(info[..4], len.to_ne_bytes());
        assert_eq!(info[4..8], (2 | PLANE_REFUSED).to_ne_bytes());
        assert!(info[12..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn nothing_is_done_before_the_version() {
    let mut server = Server::new(offer());
    let mut device = Device::new();
    for row in MESSAGES
        .iter()
        .filter(|row| row.sender == Sender::Client && row.code != 1)
    {
        let (sent, result) = device.serve(
            &mut server,
            &message(row.code, 0, &vec![0; row.body_min]),
            0,
        );
        assert_eq!(
            result.unwrap_err().cause(),
            &Cause::BeforeVersion,
            "{}",
            row.name
        );
        assert_eq!(header(&sent[0].0).error, errno::EPROTO);
    }
    let (sent, result) = device.serve(&mut server, &version(), 0);
    assert_eq!((sent.len(), result), (1, Ok(())));
    assert_eq!(device.done, []);
}

/// What was not agreed upon is no message.
#[test]
fn an_ordinary_client_hears_nothing_of_planes() {
    let (mut server, mut device) = (Server::new(offer()), Device::new());
    let (sent, _) = device.serve(&mut server, &message(1, 0, &[0; 4]), 0);
    assert!(sent[0].0.ends_with(b"{\"capabilities\":{}}\0"));
    for (command, len) in [(0x8000, 64), (0x8001, 4), (15, 8)] {
        let (_, result) = device.serve(&mut server, &message(command, 0, &vec![0; len]), 0);
        assert_eq!(result.unwrap_err().cause(), &Cause::NotAgreed);
    }
}

/// After these the next message cannot be found, or there is nothing to agree on.
#[test]
fn a_stream_that_cannot_go_on_ends() {
    let ends = |bytes: &[u8], fds: usize| {
        let (mut server, mut device) = agreed();
        let (sent, result) = device.serve(&mut server, bytes, fds);
        assert_eq!(sent, []);
        let error = result.unwrap_err();
        assert_eq!(error.disposition(), Disposition::CloseLink, "{error}");
        assert!(server.is_over());
        error.to_string()
    };
    let mut small = message(4, 0, &[]);
    small[4..8].copy_from_slice(&15u32.to_ne_bytes());
    assert!(ends(&small, 0).contains("a message of 15 bytes"));
    for size in [0, 1 << 21, u32::MAX] {
        small[4..8].copy_from_slice(&size.to_ne_bytes());
        assert!(ends(&small, 0).contains("are possible"));
    }
    for flags in [2, 0xF, 0x20, 0x40, 0x8000_0000] {
        assert!(ends(&message(4, flags, &[0; 16]), 0).contains("are those of no message"));
    }
    assert!(ends(&message(4, 0, &[0; 16]), 9).contains("9 file descriptors"));
    let first = |body: &[u8], flags: u32| {
        let (mut server, mut device) = (Server::new(offer()), Device::new());
        let (_, result) = device.serve(&mut server, &message(1, flags, body), 0);
        let error = result.unwrap_err();
        assert_eq!(error.disposition(), Disposition::CloseLink);
        error.to_string()
    };
    assert!(first(&[1, 0, 0, 0], 0).contains("version 1.0"));
    assert!(first(&[0, 0, 0, 0, b'{'], 0).contains("without a zero"));
    assert!(first(&[0, 0, 0, 0, b'{', 0], 0).contains("no JSON"));
    assert!(first(&[0; 4], Header::NO_REPLY).contains("asks for no reply"));
}

/// vfio_user 0.1.7 subtracts the length of a version from that of its message: a shorter
/// one is a panic of the server.
#[test]
fn vfio_user_a_version_that_is_too_short() {
    for len in 0..4 {
        let (mut server, mut device) = (Server::new(offer()), Device::new());
        let (sent, result) = device.serve(&mut server, &message(1, 0, &vec![0; len]), 0);
        assert!(matches!(result.unwrap_err().cause(), Cause::BodySize { got, .. } if *got == len));
        assert_eq!(header(&sent[0].0).error, errno::EINVAL);
        // It may try again.
        assert_eq!(device.serve(&mut server, &version(), 0).1, Ok(()));
    }
}

/// An answer to nothing changes nothing, and is not answered.
#[test]
fn answers_that_were_not_asked_for_are_refused() {
    let (mut server, mut device) = agreed();
    for (command, flags) in [(11, 1), (12, 1), (9, 1), (11, 0x21), (0, 0x31)] {
        let (sent, result) = device.serve(&mut server, &message(command, flags, &[0; 20]), 0);
        assert_eq!(result.unwrap_err().cause(), &Cause::Unasked { id: 77 });
        assert_eq!(sent, []);
    }
    assert!(
        !device
            .done
            .iter()
            .any(|effect| matches!(effect, Effect::Told { .. }))
    );
}
