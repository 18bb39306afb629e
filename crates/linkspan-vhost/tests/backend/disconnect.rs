//! The end of a session.

use linkspan_vhost::backend::{Answer, Effect, Failure};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, HEADER_BYTES, Header};
use zerocopy::IntoBytes;

use crate::{STOPPED_AT, Session, header, state};

#[test]
fn disconnect_stops_every_running_ring_once() {
    let mut session = Session::ready();
    session.run(0);
    session.run(3);
    session.send(Request::SetVringEnable, &state(3, 0)).ok();
    assert_eq!(
        session.disconnect(),
        [Effect::StopRing { ring: 0 }, Effect::StopRing { ring: 3 }]
    );
    assert_eq!(session.backend.rings()[3].base, STOPPED_AT);
    session.backend.disconnect();
    assert_eq!(session.backend.poll_effect(), None);
}

#[test]
fn disconnect_goes_on_when_a_ring_does_not_stop() {
    let mut session = Session::ready();
    session.run(0);
    session.run(1);
    session.failure = Some(Failure::System);
    assert_eq!(session.disconnect().len(), 2);
}

#[test]
fn disconnect_after_an_error_stops_the_rings() {
    let mut session = Session::ready();
    session.run(1);
    session.raw(&header(1, 0, 0), 0).closed();
    assert_eq!(session.backend.poll_effect(), None);
    assert_eq!(session.disconnect(), [Effect::StopRing { ring: 1 }]);
}

#[test]
fn disconnect_waits_for_the_effect_that_was_taken_and_drops_the_one_that_was_not() {
    for taken in [false, true] {
        let mut session = Session::ready();
        session.set_up(0);
        let kick = wire::encode(12, Header::NEED_REPLY, 0u64.as_bytes());
        session
            .backend
            .receive(&kick[..HEADER_BYTES], 1)
            .expect("a header");
        session
            .backend
            .receive(&kick[HEADER_BYTES..], 0)
            .expect("a body");
        if taken {
            session.backend.poll_effect().expect("StartRing");
        }
        session.backend.disconnect();
        assert_eq!(session.backend.is_over(), !taken);
        assert_eq!(session.backend.poll_effect(), None);
        if taken {
            // The ring did start, so it is stopped; the peer hears nothing of it.
            session.backend.answer(Ok(Answer::Done)).expect("an answer");
            assert_eq!(
                session.backend.poll_effect(),
                Some(Effect::StopRing { ring: 0 })
            );
            session
                .backend
                .answer(Ok(Answer::RingStopped { base: 9 }))
                .expect("stopped");
        }
        assert_eq!(session.backend.poll_effect(), None);
        assert!(session.backend.is_over());
    }
}

#[test]
fn nothing_is_sent_after_disconnect() {
    let mut session = Session::ready();
    let message = wire::encode(1, 0, &[]);
    session.backend.receive(&message, 0).expect("a message");
    session.backend.disconnect();
    assert_eq!(session.backend.poll_effect(), None);
    assert_eq!(session.backend.wanted(), 0);
}
