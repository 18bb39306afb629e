//! The frames by which programs of ours meet.

use linkspan_vmbus::fcopy::Operation;
use linkspan_vmbus::ic::{FILE_COPY, HEARTBEAT, Status};
use linkspan_vmbus::link::{
    Conversation, DIGEST_LEN, Digest, FRAMES, Frame, LinkError, Outcome, Phase, Reason, Request,
    Role, SLICE_MAX, Side, VERSION, choose,
};
use linkspan_vmbus::{RestoreError, Shape};
use proptest::prelude::*;

/// Ends a process, and goes on in the next one.
#[track_caller]
fn cut(end: &mut Conversation) {
    let restored = Conversation::restore(&end.snapshot()).unwrap();
    assert_eq!(restored, *end);
    *end = restored;
}

/// Says a frame at one end and hears it at the other, cut into pieces of `piece`; both
/// ends are saved and restored at every step.
#[track_caller]
fn pass(from: &mut Conversation, to: &mut Conversation, frame: &Frame, piece: usize) {
    let bytes = from.say(frame);
    let code = u16::from_le_bytes([bytes[0], bytes[1]]);
    let kind = FRAMES.iter().find(|kind| kind.code == code).unwrap();
    let mut fds = kind.fds;
    let (mut rest, mut heard) = (&bytes[..], None);
    while !rest.is_empty() {
        assert_eq!(heard, None);
        let len = piece.min(to.wanted()).min(rest.len());
        heard = to.receive(&rest[..len], std::mem::take(&mut fds)).unwrap();
        cut(to);
        rest = &rest[len..];
    }
    cut(from);
    assert_eq!(heard.as_ref(), Some(frame));
    assert_eq!(from.phase(), to.phase());
    assert_eq!(from.version(), to.version());
}

fn ends() -> (Conversation, Conversation) {
    (
        Conversation::new(Side::Client),
        Conversation::new(Side::Host),
    )
}

fn digest(len: u32) -> Frame {
    Frame::Digest(Digest {
        status: Status::OK,
        len,
        size: 1 << 41,
        sha256: [0xA5; DIGEST_LEN],
    })
}

fn channel() -> Frame {
    channel_of(VERSION)
}

fn channel_of(version: u16) -> Frame {
    Frame::Channel {
        version,
        interface: FILE_COPY.interface,
        instance: FILE_COPY.instance.unwrap(),
        shape: Shape::halves(40960, 4096),
    }
}

fn request() -> Request {
    Request {
        file: "naïve-日本.txt".into(),
        path: "/srv/in/".into(),
        overwrite: true,
        create_path: false,
        size: 1 << 40,
        patience: 30_000,
        verify: true,
        folder: false,
    }
}

const OUTCOMES: [Outcome; 13] = [
    Outcome::Done,
    Outcome::Verified,
    Outcome::Differs {
        offset: 7 << 33 | 5,
    },
    Outcome::Unread {
        status: Status::FAIL,
    },
    Outcome::NoFolders,
    Outcome::Refused {
        operation: Operation::Write,
        status: Status::DISK_FULL,
    },
    Outcome::Protocol,
    Outcome::Silent,
    Outcome::Stopped,
    Outcome::Source,
    Outcome::NoGuest,
    Outcome::Lost,
    Outcome::Name,
];

#[test]
fn a_guest_gets_its_channel_and_a_sender_its_answers() {
    for piece in 1..70 {
        let (mut client, mut host) = ends();
        pass(&mut client, &mut host, &Frame::hello(Role::Guest), piece);
        pass(&mut host, &mut client, &channel(), piece);
        assert_eq!(host.phase(), Phase::Joined);
        for len in [0, 1, SLICE_MAX] {
            let offset = 1 << 40;
            let verify = Frame::Verify { offset, len };
            pass(&mut host, &mut client, &verify, piece);
            assert_eq!(client.phase(), Phase::Verifying);
            pass(&mut client, &mut host, &digest(len), piece);
        }
        let folder = Frame::Folder {
            file: "日本".into(),
            path: "/srv/in/".into(),
            create_path: true,
        };
        pass(&mut host, &mut client, &folder, piece);
        assert_eq!(client.phase(), Phase::Making);
        pass(&mut client, &mut host, &Frame::Made(Status::OK), piece);
        assert_eq!(host.phase(), Phase::Joined);

        let (mut client, mut host) = ends();
        pass(&mut client, &mut host, &Frame::hello(Role::Sender), piece);
        let welcome = Frame::Welcome { version: VERSION };
        pass(&mut host, &mut client, &welcome, piece);
        for outcome in OUTCOMES {
            pass(&mut client, &mut host, &Frame::Send(request()), piece);
            for checked in [0, 1 << 34] {
                let sent = 1 << 33;
                let progress = Frame::Progress { sent, checked };
                pass(&mut host, &mut client, &progress, piece);
            }
            pass(&mut client, &mut host, &Frame::Cancel, piece);
            pass(&mut host, &mut client, &Frame::Done(outcome), piece);
            // It crossed the DONE.
            pass(&mut client, &mut host, &Frame::Cancel, piece);
        }
        for reason in [
            Reason::Version,
            Reason::Busy,
            Reason::Role,
            Reason::Interface,
        ] {
            let (mut client, mut host) = ends();
            let hello = Frame::hello_of(&HEARTBEAT);
            pass(&mut client, &mut host, &hello, piece);
            pass(&mut host, &mut client, &Frame::Refused(reason), piece);
            assert_eq!(client.phase(), Phase::Over);
        }
    }
}

#[test]
fn the_newest_version_of_both_is_spoken() {
    assert_eq!(choose(1, 1), Some(1));
    assert_eq!(choose(0, 9), Some(2));
    assert_eq!(choose(2, 9), Some(2));
    assert_eq!(choose(3, 9), None);
    assert_eq!(choose(0, 0), None);
    assert_eq!(choose(1, 0), None);
}

/// A frame with this body, as a client hears it after `said` was said.
fn hear(said: &[Frame], frame: &[u8], fds: usize) -> Result<Option<Frame>, LinkError> {
    let (mut client, mut host) = ends();
    for frame in said {
        let client_says = matches!(
            frame,
            Frame::Hello { .. } | Frame::Send(_) | Frame::Digest(_)
        );
        let (from, to) = if client_says {
            (&mut client, &mut host)
        } else {
            (&mut host, &mut client)
        };
        pass(from, to, frame, usize::MAX);
    }
    let (header, body) = frame.split_at(8);
    let first = client.receive(header, fds)?;
    if body.is_empty() {
        return Ok(first);
    }
    client.receive(body, 0)
}

fn frame(code: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_le_bytes().to_vec();
    bytes.extend([0; 2]);
    bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn frames_that_cannot_be_are_named() {
    let guest = [Frame::hello(Role::Guest)];
    let sender = [Frame::hello(Role::Sender)];
    let code = hear(&guest, &frame(13, &[]), 0);
    assert_eq!(code, Err(LinkError::Code { code: 13 }));
    let early = hear(&[], &frame(4, &[1, 0, 0, 0]), 0);
    assert!(matches!(
        early,
        Err(LinkError::Phase {
            frame: "WELCOME",
            ..
        })
    ));
    let other = hear(&guest, &frame(4, &[1, 0, 0, 0]), 0);
    assert!(matches!(other, Err(LinkError::Phase { .. })));
    let ours = hear(&sender, &frame(1, &[0; 8]), 0);
    assert!(matches!(ours, Err(LinkError::Phase { frame: "HELLO", .. })));
    let version = hear(&sender, &frame(4, &[9, 0, 0, 0]), 0);
    assert!(matches!(
        version,
        Err(LinkError::Field {
            field: "version",
            ..
        })
    ));
    let long = hear(&sender, &frame(4, &[1, 0, 0, 0, 0]), 0);
    assert!(matches!(long, Err(LinkError::Length { len: 5, .. })));
    let mut reserved = frame(4, &[1, 0, 0, 0]);
    reserved[2] = 1;
    assert!(matches!(
        hear(&sender, &reserved, 0),
        Err(LinkError::Field { .. })
    ));
    let surplus = hear(&sender, &frame(4, &[1, 0, 0, 0]), 1);
    let want = LinkError::Descriptors {
        frame: "WELCOME",
        got: 1,
        want: 0,
    };
    assert_eq!(surplus, Err(want));
    let none = hear(
        &guest,
        &Conversation::clone(&joined_host()).say(&channel()),
        2,
    );
    assert!(matches!(
        none,
        Err(LinkError::Descriptors {
            got: 2,
            want: 3,
            ..
        })
    ));
    let mut shape = joined_host().say(&channel());
    shape[48] = 1;
    let shape = hear(&guest, &shape, 3);
    assert!(matches!(
        shape,
        Err(LinkError::Field { field: "shape", .. })
    ));
}

#[test]
fn what_a_guest_is_asked_for_needs_version_2() {
    let hello = Frame::hello(Role::Guest);
    let verify = frame(9, &[0; 12]);
    let joined = [hello.clone(), channel_of(1)];
    let old = hear(&joined, &verify, 0);
    assert!(matches!(
        old,
        Err(LinkError::Phase {
            frame: "VERIFY",
            ..
        })
    ));
    let joined = [hello.clone(), channel()];
    assert!(matches!(hear(&joined, &verify, 0), Ok(Some(_))));
    // One at a time, and not too much.
    let asked = [hello, channel(), Frame::Verify { offset: 0, len: 1 }];
    for again in [&verify, &frame(11, &[0; 8])] {
        let twice = hear(&asked, again, 0);
        assert!(matches!(twice, Err(LinkError::Phase { .. })), "{twice:?}");
    }
    let mut long = frame(9, &[0; 12]);
    long[16..20].copy_from_slice(&(SLICE_MAX + 1).to_le_bytes());
    assert!(matches!(
        hear(&joined, &long, 0),
        Err(LinkError::Field {
            field: "length",
            ..
        })
    ));
    // Names that the body has not, or more than the names.
    for body in [
        &[0, 0, 1, 0, 0, 0, 0, 0][..],
        &[0; 9],
        &[1, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 1, 0, 0, 0, 0, 0, 0xFF],
    ] {
        let wrong = hear(&joined, &frame(11, body), 0);
        assert!(
            matches!(
                wrong,
                Err(LinkError::Length { .. } | LinkError::Field { .. })
            ),
            "{body:?}"
        );
    }
    for len in [9, 23] {
        let mut host = Conversation::new(Side::Host);
        let hello = frame(1, &vec![0; len]);
        assert_eq!(host.receive(&hello[..8], 0), Ok(None));
        let wrong = host.receive(&hello[8..], 0);
        assert!(matches!(wrong, Err(LinkError::Length { .. })), "{wrong:?}");
    }
}

#[test]
fn saved_conversations_that_are_none_are_refused() {
    let (mut client, mut host) = ends();
    pass(&mut client, &mut host, &Frame::hello(Role::Sender), 99);
    let welcome = Frame::Welcome { version: VERSION };
    pass(&mut host, &mut client, &welcome, 99);
    let send = client.say(&Frame::Send(request()));
    host.receive(&send[..8], 1).unwrap();
    host.receive(&send[8..20], 0).unwrap();
    let saved = host.snapshot();
    for len in 0..saved.len() {
        assert!(Conversation::restore(&saved[..len]).is_err());
    }
    assert!(matches!(
        Conversation::restore(&[&saved[..], &[0]].concat()),
        Err(RestoreError::Length { .. })
    ));
    // The end, the phase, the version, the frame, its length, what has come of it.
    for (at, value) in [(8, 0), (9, 9), (10, 3), (14, 6), (16, 1), (21, 9)] {
        let mut wrong = saved.clone();
        wrong[at] = value;
        assert!(Conversation::restore(&wrong).is_err(), "byte {at}");
    }
    // Descriptors at the wrong place stay that.
    host.receive(&send[20..21], 1).unwrap();
    cut(&mut host);
    let refused = host.receive(&send[21..], 0);
    assert!(matches!(refused, Err(LinkError::Descriptors { .. })));
}

fn joined_host() -> Conversation {
    let (mut client, mut host) = ends();
    pass(&mut client, &mut host, &Frame::hello(Role::Guest), 99);
    host
}

#[test]
fn descriptors_come_with_the_first_byte() {
    let (mut client, mut host) = ends();
    pass(&mut client, &mut host, &Frame::hello(Role::Sender), 99);
    let welcome = Frame::Welcome { version: VERSION };
    pass(&mut host, &mut client, &welcome, 99);
    let bytes = client.say(&Frame::Send(request()));
    assert_eq!(host.receive(&bytes[..8], 0), Ok(None));
    let late = host.receive(&bytes[8..], 1);
    assert!(matches!(late, Err(LinkError::Descriptors { .. })));
}

proptest! {
    /// What is restored is what was saved.
    #[test]
    fn any_saved_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let bytes = [&b"LSvlink1"[..], &bytes].concat();
        if let Ok(restored) = Conversation::restore(&bytes) {
            prop_assert_eq!(restored.snapshot(), bytes);
        }
    }

    /// Whatever comes, it ends with a frame, a wish for more, or a named error.
    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300), side: bool) {
        let us = if side { Side::Host } else { Side::Client };
        let mut end = Conversation::new(us);
        if us == Side::Client {
            let _ = end.say(&Frame::hello(Role::Sender));
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = end.wanted().min(rest.len());
            prop_assert!(len > 0);
            if end.receive(&rest[..len], 0).is_err() {
                break;
            }
            cut(&mut end);
            rest = &rest[len..];
        }
    }
}
