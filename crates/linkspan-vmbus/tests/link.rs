//! The frames by which programs of ours meet.

use linkspan_vmbus::Shape;
use linkspan_vmbus::fcopy::Operation;
use linkspan_vmbus::ic::{FILE_COPY, Status};
use linkspan_vmbus::link::{
    Conversation, FRAMES, Frame, LinkError, Outcome, Phase, Reason, Request, Role, Side, VERSION,
    choose,
};
use proptest::prelude::*;

/// Says a frame at one end and hears it at the other, cut into pieces of `piece`.
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
        rest = &rest[len..];
    }
    assert_eq!(heard.as_ref(), Some(frame));
    assert_eq!(from.phase(), to.phase());
}

fn ends() -> (Conversation, Conversation) {
    (
        Conversation::new(Side::Client),
        Conversation::new(Side::Host),
    )
}

fn channel() -> Frame {
    Frame::Channel {
        version: VERSION,
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
    }
}

const OUTCOMES: [Outcome; 9] = [
    Outcome::Done,
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

        let (mut client, mut host) = ends();
        pass(&mut client, &mut host, &Frame::hello(Role::Sender), piece);
        let welcome = Frame::Welcome { version: VERSION };
        pass(&mut host, &mut client, &welcome, piece);
        for outcome in OUTCOMES {
            pass(&mut client, &mut host, &Frame::Send(request()), piece);
            let progress = Frame::Progress { sent: 1 << 33 };
            pass(&mut host, &mut client, &progress, piece);
            pass(&mut client, &mut host, &Frame::Cancel, piece);
            pass(&mut host, &mut client, &Frame::Done(outcome), piece);
            // It crossed the DONE.
            pass(&mut client, &mut host, &Frame::Cancel, piece);
        }
        for reason in [Reason::Version, Reason::Busy, Reason::Role] {
            let (mut client, mut host) = ends();
            pass(&mut client, &mut host, &Frame::hello(Role::Guest), piece);
            pass(&mut host, &mut client, &Frame::Refused(reason), piece);
            assert_eq!(client.phase(), Phase::Over);
        }
    }
}

#[test]
fn the_newest_version_of_both_is_spoken() {
    assert_eq!(choose(1, 1), Some(1));
    assert_eq!(choose(0, 9), Some(1));
    assert_eq!(choose(2, 9), None);
    assert_eq!(choose(0, 0), None);
    assert_eq!(choose(1, 0), None);
}

/// A frame with this body, as a client hears it after `said` was said.
fn hear(said: &[Frame], frame: &[u8], fds: usize) -> Result<Option<Frame>, LinkError> {
    let (mut client, mut host) = ends();
    for frame in said {
        let client_says = matches!(frame, Frame::Hello { .. } | Frame::Send(_));
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
    let code = hear(&guest, &frame(9, &[]), 0);
    assert_eq!(code, Err(LinkError::Code { code: 9 }));
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
            rest = &rest[len..];
        }
    }
}
