//! Configuration space.

use linkspan_vhost::backend::{Answer, ConfigError, ConfigWriter, Effect, Failure};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, HEADER_BYTES, Header};
use linkspan_vhost::{Cause, Disposition, Error, ProtocolFeatures};
use zerocopy::IntoBytes;

use crate::{BIT_30, Outcome, Session, VERSION_1};

fn access(offset: u32, size: u32, flags: u32) -> Vec<u8> {
    let mut body = [offset, size, flags].as_bytes().to_vec();
    body.extend((0..size.min(256)).map(|_| 0xee));
    body
}

/// An empty body says that GET_CONFIG failed, and the session goes on.
#[track_caller]
fn empty(outcome: Outcome) -> Error {
    let error = outcome.error.expect("an error");
    assert_eq!(error.disposition(), Disposition::Nack);
    let header = Header {
        request: 24,
        flags: Header::VERSION | Header::REPLY,
        size: 0,
    };
    assert_eq!(outcome.replies, [(header, vec![])]);
    error
}

#[test]
fn config_is_read_in_the_size_asked_for() {
    let mut session = Session::ready();
    for (offset, size) in [(0, 96), (0, 60), (95, 1), (20, 4)] {
        let read = session.send(Request::GetConfig, &access(offset, size, 0));
        assert_eq!(read.effects, [Effect::ReadConfig { offset, size }]);
        let reply = read.reply(Request::GetConfig);
        assert_eq!(reply[..12], *[offset, size, 0].as_bytes());
        let expected: Vec<u8> = (0..=95).collect();
        assert_eq!(reply[12..], expected[offset as usize..][..size as usize]);
    }
}

#[test]
fn a_failed_read_of_config_is_an_empty_reply() {
    let mut session = Session::ready();
    for (offset, size) in [(0, 0), (0, 97), (96, 1), (u32::MAX, 1), (1, u32::MAX)] {
        let error = empty(session.ask(Request::GetConfig, &access(offset, size, 0), 0));
        let range = ConfigError::Range {
            offset,
            size,
            config_size: 96,
        };
        assert_eq!(error.cause(), &Cause::Config(range));
    }
    let mut long = access(0, 8, 0);
    long.push(0);
    for body in [&long[..], &long[..12]] {
        let error = empty(session.send(Request::GetConfig, body));
        assert_eq!(
            error.cause(),
            &Cause::BodySize {
                got: body.len(),
                min: 20,
                max: 20
            }
        );
    }
    empty(session.send(Request::GetConfig, &[]));
    session.failure = Some(Failure::Unsupported);
    empty(session.send(Request::GetConfig, &access(0, 8, 0)));
    session
        .send(Request::GetConfig, &access(0, 8, 0))
        .reply(Request::GetConfig);
}

#[test]
fn a_device_that_answers_another_size_is_a_failed_read() {
    let mut session = Session::ready();
    let message = wire::encode(24, 0, &access(0, 8, 0));
    session
        .backend
        .receive(&message[..HEADER_BYTES], 0)
        .expect("a header");
    session
        .backend
        .receive(&message[HEADER_BYTES..], 0)
        .expect("a body");
    session.backend.poll_effect().expect("ReadConfig");
    session
        .backend
        .answer(Ok(Answer::Config(vec![0; 7])))
        .expect_err("one byte is missing");
    let reply = wire::encode(24, Header::REPLY, &[]);
    assert_eq!(
        session.backend.poll_effect(),
        Some(Effect::Send {
            bytes: reply,
            fds: Vec::new()
        })
    );
}

/// QEMU 421f45d03f wrote its cached configuration instead of the driver's bytes.
#[test]
fn config_is_written_with_the_bytes_and_the_writer() {
    let mut session = Session::ready();
    for (flags, writer) in [(0, ConfigWriter::Driver), (1, ConfigWriter::Migration)] {
        let effects = session.send(Request::SetConfig, &access(32, 2, flags)).ok();
        let bytes = vec![0xee; 2];
        assert_eq!(
            effects,
            [Effect::WriteConfig {
                offset: 32,
                bytes,
                writer
            }]
        );
    }
    let error = session
        .ask(Request::SetConfig, &access(32, 2, 2), 0)
        .nacked();
    assert_eq!(
        error.cause(),
        &Cause::Config(ConfigError::Writer { flags: 2 })
    );
    let error = session
        .ask(Request::SetConfig, &access(95, 2, 0), 0)
        .nacked();
    assert!(matches!(
        error.cause(),
        Cause::Config(ConfigError::Range { .. })
    ));
    let error = session
        .ask(Request::SetConfig, &access(0, 2, 0)[..13], 0)
        .nacked();
    assert_eq!(
        error.cause(),
        &Cause::BodySize {
            got: 13,
            min: 14,
            max: 14
        }
    );
    session.failure = Some(Failure::Rejected);
    session
        .ask(Request::SetConfig, &access(0, 2, 0), 0)
        .nacked();
}

#[test]
fn config_needs_its_protocol_feature() {
    let mut session = Session::ready_with(VERSION_1 | BIT_30, ProtocolFeatures::REPLY_ACK);
    let error = empty(session.send(Request::GetConfig, &access(0, 8, 0)));
    assert!(matches!(error.cause(), Cause::NotNegotiated { .. }));
    let error = session
        .ask(Request::SetConfig, &access(0, 8, 0), 0)
        .nacked();
    assert!(matches!(error.cause(), Cause::NotNegotiated { .. }));
}
