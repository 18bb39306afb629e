//! Back ends that break the protocol: every reply is checked.

use Request as R;
use linkspan_vhost::frontend::{
    Command, Effect, Error, Event, FdSlot, FramingError, Frontend, Misuse,
};
use linkspan_vhost::message::{Reply, Request};
use linkspan_vhost::wire::{self, Header};
use linkspan_vhost::{Direction, Fault, Inflight};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use crate::{Pair, STOPPED_AT, start_all, wish};

/// A session that has just sent `command` and awaits its first reply.
fn asked(command: Command) -> Frontend {
    let mut pair = Pair::ready();
    if matches!(command, Command::StopRings(_)) {
        pair.done(start_all());
    }
    let mut front = pair.front;
    front.command(command).expect("a command");
    while front.poll_effect().is_some() {}
    front
}

/// Hands a whole message over.
fn reply(front: &mut Frontend, message: &[u8], fds: usize) -> Result<(), Error> {
    let (mut rest, mut fds) = (message, fds);
    while !rest.is_empty() {
        let count = front.wanted().min(rest.len());
        assert!(count > 0, "nothing is wanted of {message:?}");
        front.receive(&rest[..count], fds)?;
        fds = 0;
        rest = &rest[count..];
    }
    Ok(())
}

#[track_caller]
fn refused(command: Command, request: R, body: &[u8], fds: usize) -> Error {
    let mut front = asked(command);
    assert_eq!(front.awaited(), Some(request));
    let message = wire::encode(request.code(), Header::REPLY, body);
    let error = reply(&mut front, &message, fds).expect_err("a wrong reply");
    assert_eq!(error.fault(), Fault::Peer);
    assert!(front.is_over() && front.wanted() == 0 && front.awaited().is_none());
    assert_eq!(front.poll_effect(), None);
    error
}

/// One command for each kind of reply, with its message and a right reply.
fn questions() -> Vec<(Command, R, Vec<u8>, usize)> {
    let u64 = |value: u64| value.as_bytes().to_vec();
    let state = [1, STOPPED_AT].as_bytes().to_vec();
    let config = [[0u32, 4, 0].as_bytes(), &[9; 4]].concat();
    let fd = linkspan_vhost::FdId(1);
    let inflight = [[0x1000u64, 0].as_bytes(), [4u16, 256, 0, 0].as_bytes()].concat();
    let log = linkspan_vhost::Log::new(1, 0).expect("a log");
    vec![
        (
            Command::EnableRing {
                ring: 0,
                enabled: true,
            },
            R::SetVringEnable,
            u64(0),
            0,
        ),
        (Command::StopRings(vec![1]), R::GetVringBase, state, 0),
        (
            Command::ReadConfig { offset: 0, size: 4 },
            R::GetConfig,
            config,
            0,
        ),
        (Command::ReadStatus, R::GetStatus, u64(15), 0),
        (
            Command::CreateInflight {
                queues: 4,
                queue_size: 256,
            },
            R::GetInflightFd,
            inflight,
            1,
        ),
        (Command::SetLog { log, fd }, R::SetLogBase, u64(0), 0),
        (
            Command::MoveState {
                direction: Direction::Save,
                fd,
            },
            R::SetDeviceStateFd,
            u64(0),
            1,
        ),
        (Command::CheckState, R::CheckDeviceState, u64(0), 0),
    ]
}

#[test]
fn the_right_replies_are_right() {
    for (command, request, body, fds) in questions() {
        let mut front = asked(command);
        let message = wire::encode(request.code(), Header::REPLY, &body);
        reply(&mut front, &message, fds).expect("a right reply");
        let mut last = None;
        while let Some(effect) = front.poll_effect() {
            last = Some(effect);
        }
        assert_eq!(last, Some(Effect::Report(Event::Done)), "{request:?}");
        assert!(front.is_idle());
    }
}

#[test]
fn replies_to_another_message_are_refused() {
    for (command, request, body, fds) in questions() {
        for got in (0..50).filter(|got| *got != request.code()) {
            let mut front = asked(command.clone());
            let message = wire::encode(got, Header::REPLY, &body);
            let error = reply(&mut front, &message, fds).expect_err("another message");
            assert_eq!(error, Error::WrongReply { request, got });
        }
    }
}

#[test]
fn every_wrong_length_is_refused() {
    for (command, request, body, fds) in questions() {
        for len in 0..=300 {
            let row = request.message().reply;
            let legal = match row {
                Reply::Always(payload) => payload.sizes().contains(&len),
                Reply::OrEmpty(_) => len == 0 || len == body.len(),
                _ => len == 8,
            };
            if legal {
                continue;
            }
            let mut wrong = body.clone();
            wrong.resize(len, 0);
            let error = refused(command.clone(), request, &wrong, fds);
            let named = matches!(error, Error::ReplySize { got, .. } if got == len)
                || matches!(error, Error::ReplyConfig { .. });
            assert!(named, "{len}: {error}");
        }
    }
}

#[test]
fn every_wrong_number_of_descriptors_is_refused() {
    for (command, request, body, fds) in questions() {
        for got in (0..=8).filter(|got| *got != fds) {
            let error = refused(command.clone(), request, &body, got);
            assert!(
                matches!(error, Error::ReplyFds { got: fds, .. } if fds == got),
                "{request:?} with {got}: {error}"
            );
        }
    }
}

#[test]
fn every_wrong_header_is_refused() {
    for (command, request, body, fds) in questions() {
        for flags in (0..64u32).filter(|flags| *flags != 5) {
            let mut front = asked(command.clone());
            let mut message = wire::encode(request.code(), 0, &body);
            message[4..8].copy_from_slice(flags.as_bytes());
            let error = reply(&mut front, &message, fds).expect_err("wrong flags");
            assert!(matches!(error, Error::Framing(_)), "{flags}: {error}");
        }
        let mut front = asked(command);
        let mut message = wire::encode(request.code(), Header::REPLY, &[]);
        message[8..12].copy_from_slice(&[0xff; 4]);
        let error = reply(&mut front, &message, 0).expect_err("too long");
        assert!(matches!(
            error,
            Error::Framing(FramingError::BodyTooLong { .. })
        ));
    }
}

/// QEMU 60cd11024f from the other side: what nobody asked for.
#[test]
fn a_reply_to_nothing_ends_the_session() {
    for request in [R::GetFeatures, R::SetVringEnable, R::GetVringBase] {
        let mut front = Pair::ready().front;
        let message = wire::encode(request.code(), Header::REPLY, &[0; 8]);
        let error = reply(&mut front, &message, 0).expect_err("nothing was asked");
        let code = request.code();
        assert_eq!(error, Error::Unasked { code });
        assert!(front.is_over());
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let stop = || Command::StopRings(vec![1]);
    let error = refused(stop(), R::GetVringBase, [2u32, 5].as_bytes(), 0);
    assert_eq!(error, Error::ReplyRing { ring: 1, got: 2 });
    let error = refused(stop(), R::GetVringBase, [1u32, 1 << 16].as_bytes(), 0);
    assert!(matches!(error, Error::ReplyBase { ring: 1, .. }), "{error}");
    let read = || Command::ReadConfig { offset: 0, size: 4 };
    for (offset, size) in [(1u32, 4u32), (0, 3), (0, 5), (0, u32::MAX)] {
        let body = [[offset, size, 0].as_bytes(), &[0; 4]].concat();
        let error = refused(read(), R::GetConfig, &body, 0);
        assert!(matches!(error, Error::ReplyConfig { .. }), "{error}");
    }
    let value = 0x100u64;
    let error = refused(Command::ReadStatus, R::GetStatus, value.as_bytes(), 0);
    let request = R::GetStatus;
    assert_eq!(error, Error::ReplyValue { request, value });
}

/// QEMU, July 2026, and libvhost-user fbdfdbb992: the size of an in-flight
/// region overflowed what was allocated for it.
#[test]
fn an_inflight_region_that_was_not_asked_for_is_refused() {
    let create = || Command::CreateInflight {
        queues: 4,
        queue_size: 256,
    };
    let body = |size: u64, offset: u64, queues: u16, queue_size: u16| {
        let rest = [queues, queue_size, 0, 0];
        [[size, offset].as_bytes(), rest.as_bytes()].concat()
    };
    for (size, offset, queues, queue_size) in [
        (0x1000, u64::MAX, 4, 256),
        (0x1000, 0, 5, 256),
        (0x1000, 0, 0, 256),
        (0x1000, 0, 4, 257),
        (0x1000, 0, 4, 0),
        (0x1000, 0, 3, 256),
    ] {
        let body = body(size, offset, queues, queue_size);
        let error = refused(create(), R::GetInflightFd, &body, 1);
        assert!(
            matches!(error, Error::ReplyInflight(_) | Error::ReplyValue { .. }),
            "{error}"
        );
    }
    // No bytes and no descriptor say that there is none; a descriptor to it does not.
    let none = body(0, 0, 4, 256);
    let error = refused(create(), R::GetInflightFd, &none, 1);
    assert!(matches!(error, Error::ReplyFds { got: 1, max: 0, .. }));
    let mut front = asked(create());
    let message = wire::encode(31, Header::REPLY, &none[..20]);
    reply(&mut front, &message, 0).expect("none, without padding");
    let none = Effect::Report(Event::Inflight(None));
    assert_eq!(front.poll_effect(), Some(none));
    let mut front = asked(create());
    let message = wire::encode(31, Header::REPLY, &body(0x1000, 0x2000, 4, 256)[..20]);
    reply(&mut front, &message, 1).expect("one, without padding");
    let inflight = Inflight::new(0x1000, 0x2000, 4, 256).expect("a region");
    let one = Event::Inflight(Some((inflight, FdSlot(0))));
    assert_eq!(front.poll_effect(), Some(Effect::Report(one)));
}

/// vhost-user, SET_DEVICE_STATE_FD: an error and a descriptor exclude each other.
#[test]
fn a_state_channel_is_there_or_not() {
    let save = || Command::MoveState {
        direction: Direction::Save,
        fd: linkspan_vhost::FdId(1),
    };
    let nofd = 1u64 << 8;
    for (value, fds, legal) in [
        (0, 1, true),
        (nofd, 0, true),
        (1 | nofd, 0, true),
        (1, 0, true),
        (0, 0, false),
        (nofd, 1, false),
        (1 | nofd, 1, false),
        (1, 1, false),
        (1 << 9, 0, false),
    ] {
        let mut front = asked(save());
        let message = wire::encode(42, Header::REPLY, value.as_bytes());
        let got = reply(&mut front, &message, fds);
        assert_eq!(got.is_ok(), legal, "{value:#x} with {fds}");
        let expected = match value & 0xff {
            _ if !legal => None,
            0 => Some(Event::StateChannel((fds > 0).then_some(FdSlot(0)))),
            code => Some(Event::Refused {
                request: R::SetDeviceStateFd,
                code,
            }),
        };
        assert_eq!(front.poll_effect(), expected.map(Effect::Report));
    }
}

/// vhost #217, #342: nothing, a number and the message itself are all sent.
#[test]
fn whatever_is_in_the_reply_to_set_log_base_is_ignored() {
    let log = linkspan_vhost::Log::new(0x1000, 0).expect("a log");
    for len in [0, 8, 16] {
        let fd = linkspan_vhost::FdId(1);
        let mut front = asked(Command::SetLog { log, fd });
        let message = wire::encode(6, Header::REPLY, &vec![0xff; len]);
        reply(&mut front, &message, 0).expect("a reply");
        assert_eq!(front.poll_effect(), Some(Effect::Report(Event::Done)));
    }
}

/// A back end that offers everything gets what is wanted: never bits 14 and 17.
#[test]
fn of_everything_that_is_offered_only_what_is_wanted_is_acknowledged() {
    let mut front = Frontend::new(wish()).expect("a wish");
    front.poll_effect().expect("GET_FEATURES");
    for request in [R::GetFeatures, R::GetProtocolFeatures] {
        let everything = u64::MAX.as_bytes();
        let message = wire::encode(request.code(), Header::REPLY, everything);
        reply(&mut front, &message, 0).expect("a reply");
        let Some(Effect::Send { bytes, .. }) = front.poll_effect() else {
            panic!("{request:?}");
        };
        if request == R::GetProtocolFeatures {
            let expected = wire::encode(16, 0, crate::ALL.bits().as_bytes());
            assert_eq!(bytes, expected);
        }
    }
}

#[test]
fn a_step_of_the_negotiation_that_is_refused_is_named() {
    let mut front = Frontend::new(wish()).expect("a wish");
    let answers = [
        (1, 1u64 << 30 | 1 << 32),
        (15, crate::ALL.bits()),
        (17, 4),
        (36, 8),
        (3, 7),
    ];
    let mut last = Ok(());
    for (code, value) in answers {
        last.expect("not yet");
        while front.poll_effect().is_some() {}
        let message = wire::encode(code, Header::REPLY, value.as_bytes());
        last = reply(&mut front, &message, 0);
    }
    let request = R::SetOwner;
    assert_eq!(last, Err(Error::Refused { request, code: 7 }));
    assert_eq!(front.saved(), None);
}

#[test]
fn whoever_drives_it_wrongly_is_told() {
    let mut front = Pair::ready().front;
    let wanted = front.wanted();
    assert_eq!(wanted, 12);
    let error = front.receive(&[0; 13], 0).expect_err("too many");
    let misuse = Misuse::Unwanted { got: 13, wanted };
    assert_eq!(error, Error::Misuse(misuse));
    assert_eq!(error.fault(), Fault::Us);
    let error = front.receive(&[0], 0).expect_err("over");
    assert_eq!(error, Error::Misuse(Misuse::Over));
    // Nothing is read while effects wait.
    let mut front = Frontend::new(wish()).expect("a wish");
    assert_eq!(front.wanted(), 0);
    let error = front.receive(&[0], 0).expect_err("not wanted");
    let misuse = Misuse::Unwanted { got: 1, wanted: 0 };
    assert_eq!(error, Error::Misuse(misuse));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Replies that are nearly right, in any order.
    #[test]
    fn any_replies_are_survived(
        replies in vec((0u32..48, prop_oneof![Just(5u32), 0..16u32], vec(any::<u8>(), 0..40), 0usize..3), 0..40),
        values in vec(prop_oneof![0u64..5, any::<u64>()], 40),
        exact in vec(proptest::bool::weighted(0.9), 40),
    ) {
        let mut front = Frontend::new(wish()).expect("a wish");
        let mut commands = crate::pair::conversation().into_iter();
        for (at, (code, flags, body, fds)) in replies.into_iter().enumerate() {
            while front.poll_effect().is_some() {}
            if front.is_idle()
                && let Some(command) = commands.next()
            {
                let _ = front.command(command);
                continue;
            }
            let message = match front.awaited() {
                Some(request) if exact[at] => {
                    let value = if request == R::GetProtocolFeatures { u64::MAX } else { values[at] };
                    wire::encode(request.code(), Header::REPLY, value.as_bytes())
                }
                _ => {
                    let mut message = wire::encode(code, 0, &body);
                    message[4..8].copy_from_slice(flags.as_bytes());
                    message
                }
            };
            if reply(&mut front, &message, if exact[at] { 0 } else { fds }).is_err() {
                prop_assert!(front.is_over());
                break;
            }
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200), fds in vec(0usize..10, 0..20)) {
        let mut front = Frontend::new(wish()).expect("a wish");
        while front.poll_effect().is_some() {}
        let (mut rest, mut fds) = (bytes.as_slice(), fds.into_iter());
        while !rest.is_empty() {
            let count = front.wanted().min(rest.len());
            if count == 0 || front.receive(&rest[..count], fds.next().unwrap_or(0)).is_err() {
                break;
            }
            rest = &rest[count..];
            while front.poll_effect().is_some() {}
        }
    }

    #[test]
    fn any_bytes_are_no_session(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(Frontend::restore(wish(), &bytes).is_err());
    }
}
