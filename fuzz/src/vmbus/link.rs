//! The frames of the socket at which programs of ours meet, against both ends.
//!
//! The first byte says which end is under test, and what a client is, or that the rest is a
//! saved end; otherwise the rest is what
//! its peer sends, in pieces as large as are wanted, each after a byte that says how many
//! descriptors come with it. The end answers as the program does; after every piece it is
//! saved and restored.

use linkspan_vmbus::Shape;
use linkspan_vmbus::ic::{FILE_COPY, Status};
use linkspan_vmbus::link::{
    ASKS, Conversation, DIGEST_LEN, Digest, FRAMES, Frame, NAME_MAX, Outcome as Sent, Phase,
    Request, Role, SLICE_MAX, Side, choose,
};

use super::Outcome;
use crate::input::Input;

/// The target.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// Runs a script.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut outcome = Outcome::default();
    let kind = input.u8().unwrap_or(0);
    if kind & 4 != 0 {
        let saved = &bytes[1..];
        if let Some(restored) = outcome.count(Conversation::restore(saved)) {
            assert_eq!(restored.snapshot(), saved);
            assert!(restored.wanted() > 0);
        }
        return outcome;
    }
    let us = [Side::Host, Side::Client][usize::from(kind & 1)];
    let mut end = Conversation::new(us);
    if us == Side::Client {
        let role = [Role::Guest, Role::Sender][usize::from(kind >> 1 & 1)];
        let _ = end.say(&Frame::hello(role));
    }
    while let Some(fds) = input.u8() {
        let wanted = end.wanted();
        assert!((1..=20 + 2 * NAME_MAX).contains(&wanted), "{wanted}");
        let piece = input.bytes(wanted);
        let heard = end.receive(piece, usize::from(fds));
        // After an error there is nothing to go on with.
        if heard.is_ok() {
            let restored = Conversation::restore(&end.snapshot()).expect("saved by us");
            assert_eq!(restored, end);
            end = restored;
        }
        if heard == Ok(None) {
            continue;
        }
        let Some(Some(frame)) = outcome.count(heard) else {
            break;
        };
        answer(&mut end, us, &frame);
        if end.phase() == Phase::Over {
            break;
        }
    }
    outcome
}

/// What the program says to a frame, if anything.
fn reply_to(end: &Conversation, us: Side, frame: &Frame) -> Option<Frame> {
    Some(match (us, frame) {
        (
            Side::Host,
            Frame::Hello {
                oldest,
                newest,
                role,
                interface,
            },
        ) => match (choose(*oldest, *newest), role) {
            (None, _) => Frame::Refused(linkspan_vmbus::link::Reason::Version),
            (Some(version), Role::Sender) => Frame::Welcome { version },
            (Some(version), Role::Guest) => Frame::Channel {
                version,
                interface: *interface,
                instance: FILE_COPY.instance.unwrap_or_default(),
                shape: Shape::halves(40960, 4096),
            },
        },
        (Side::Host, Frame::Send(request)) => {
            assert!(request.file.len() <= 2 * NAME_MAX);
            Frame::Done(Sent::Done)
        }
        (Side::Client, Frame::Channel { shape, version, .. }) => {
            assert!(shape.data().is_ok() && *version == end.version());
            return None;
        }
        (Side::Client, Frame::Verify { len, .. }) => {
            assert!(*len <= SLICE_MAX);
            Frame::Digest(Digest {
                status: Status::OK,
                len: *len,
                size: 1,
                sha256: [0; DIGEST_LEN],
            })
        }
        (Side::Client, Frame::Folder { file, path, .. }) => {
            assert!(file.len() <= 2 * NAME_MAX && path.len() <= 2 * NAME_MAX);
            Frame::Made(Status::OK)
        }
        // Asks again, as long as it answers.
        (Side::Host, Frame::Digest(digest)) => {
            assert!(digest.len <= SLICE_MAX);
            Frame::Folder {
                file: "folder".into(),
                path: "/".into(),
                create_path: true,
            }
        }
        (Side::Host, Frame::Made(_)) => Frame::Verify {
            offset: 0,
            len: SLICE_MAX,
        },
        (Side::Client, Frame::Welcome { .. } | Frame::Done(_)) => Frame::Send(Request {
            file: "file".into(),
            path: "/".into(),
            overwrite: false,
            create_path: false,
            size: 1,
            patience: 1,
            verify: end.version() >= ASKS,
            folder: false,
        }),
        _ => return None,
    })
}

fn answer(end: &mut Conversation, us: Side, frame: &Frame) {
    let Some(reply) = reply_to(end, us, frame) else {
        return;
    };
    let bytes = end.say(&reply);
    let code = u16::from_le_bytes([bytes[0], bytes[1]]);
    assert!(
        FRAMES
            .iter()
            .any(|kind| kind.code == code && kind.from == us)
    );
    // A host that wants to know something of its guest.
    if matches!(reply, Frame::Channel { version, .. } if version >= ASKS) {
        let (offset, len) = (0, SLICE_MAX);
        let _ = end.say(&Frame::Verify { offset, len });
    }
}
