//! The frames of the socket at which programs of ours meet, against both ends.
//!
//! The first byte says which end is under test, and what a client is; the rest is what
//! its peer sends, in pieces as large as are wanted, each after a byte that says how many
//! descriptors come with it. The end answers as the program does.

use linkspan_vmbus::Shape;
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{
    Conversation, FRAMES, Frame, NAME_MAX, Outcome as Sent, Phase, Request, Role, Side, VERSION,
    choose,
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
        let heard = match end.receive(piece, usize::from(fds)) {
            Ok(None) => continue,
            heard => heard,
        };
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

fn answer(end: &mut Conversation, us: Side, frame: &Frame) {
    let reply = match (us, frame) {
        (
            Side::Host,
            Frame::Hello {
                oldest,
                newest,
                role,
            },
        ) => match (choose(*oldest, *newest), role) {
            (None, _) => Frame::Refused(linkspan_vmbus::link::Reason::Version),
            (Some(version), Role::Sender) => Frame::Welcome { version },
            (Some(version), Role::Guest) => Frame::Channel {
                version,
                interface: FILE_COPY.interface,
                instance: FILE_COPY.instance.unwrap_or_default(),
                shape: Shape::halves(40960, 4096),
            },
        },
        (Side::Host, Frame::Send(request)) => {
            assert!(request.file.len() <= 2 * NAME_MAX);
            Frame::Done(Sent::Done)
        }
        (Side::Client, Frame::Channel { shape, version, .. }) => {
            assert!(shape.data().is_ok() && *version == VERSION);
            return;
        }
        (Side::Client, Frame::Welcome { .. } | Frame::Done(_)) => Frame::Send(Request {
            file: "file".into(),
            path: "/".into(),
            overwrite: false,
            create_path: false,
            size: 1,
            patience: 1,
        }),
        _ => return,
    };
    let bytes = end.say(&reply);
    let code = u16::from_le_bytes([bytes[0], bytes[1]]);
    assert!(
        FRAMES
            .iter()
            .any(|kind| kind.code == code && kind.from == us)
    );
}
