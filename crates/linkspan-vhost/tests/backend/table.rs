//! Every message in every state, with every wrong size, count and flag.

use linkspan_vhost::message::{FRONTEND_REQUESTS, Gate, Message, Reply, Request};
use linkspan_vhost::wire::{self, Header};
use linkspan_vhost::{Backend, Cause, Disposition, ProtocolFeatures};
use zerocopy::IntoBytes;

use crate::{
    BIT_30, Outcome, Session, VERSION_1, addr, inflight, offer, region, single, state, table_of,
};

/// The states that messages tell apart.
fn states() -> Vec<(&'static str, Session)> {
    let mut set_up = Session::ready();
    set_up.set_up(0);
    let mut started = Session::ready();
    started.set_up(0);
    started.kick(0).ok();
    let mut running = Session::ready();
    running.run(0);
    let mut stopped = Session::ready();
    stopped.run(0);
    stopped
        .send(Request::GetVringBase, &state(0, 0))
        .reply(Request::GetVringBase);
    let bare = ProtocolFeatures::empty();
    vec![
        ("new", Session::new(offer())),
        ("no protocol features", Session::ready_with(VERSION_1, bare)),
        ("ready", Session::ready()),
        ("set up", set_up),
        ("started", started),
        ("running", running),
        ("stopped", stopped),
    ]
}

/// A body that is right in itself, about ring 0.
fn body(row: &Message<Request>) -> Vec<u8> {
    match row.request {
        Request::SetFeatures => (VERSION_1 | BIT_30).as_bytes().to_vec(),
        Request::SetProtocolFeatures => Backend::PROTOCOL_FEATURES.bits().as_bytes().to_vec(),
        Request::SetMemTable => table_of(&[region(0, 0x10_0000, 0x7000_0000)]),
        Request::AddMemReg => single(region(1 << 32, 0x1000, 1 << 32)),
        Request::RemMemReg => single(region(0, 0x10_0000, 0x7000_0000)),
        Request::SetVringNum => state(0, 128),
        Request::SetVringAddr => addr(0).as_bytes().to_vec(),
        Request::SetVringBase | Request::GetVringBase => state(0, 0),
        Request::SetVringEnable => state(0, 1),
        Request::GetConfig | Request::SetConfig => [[0u32, 4, 0].as_bytes(), &[0; 4]].concat(),
        Request::SetLogBase => [0x1000u64, 0].as_bytes().to_vec(),
        Request::GetInflightFd => inflight(0, 4),
        Request::SetInflightFd => inflight(0x4000, 4),
        Request::NetSetMtu => 1500u64.as_bytes().to_vec(),
        Request::SetStatus => 15u64.as_bytes().to_vec(),
        _ => vec![0; *row.payload.sizes().start()],
    }
}

fn copy(session: &Session) -> Session {
    let mut copy = Session::new(offer());
    let saved = session.backend.snapshot().expect("quiet");
    copy.backend = Backend::restore(offer(), &saved).expect("a session");
    copy
}

/// The outcome is one of those that the table allows; what was refused changed
/// nothing; and the session either goes on or is over and says so.
fn judge(
    name: &str,
    row: Option<&Message<Request>>,
    session: &mut Session,
    message: &[u8],
    fds: usize,
) -> Outcome {
    let before = session.backend.snapshot().expect("quiet");
    let outcome = session.raw(message, fds);
    let context = format!("{name}: {message:?} with {fds} fds: {outcome:?}");
    assert!(outcome.replies.len() <= 1, "{context}");
    let over = match &outcome.error {
        None => {
            let row = row.expect("only a known message is accepted");
            let needs = message[4] & 8 != 0
                && session
                    .backend
                    .protocol_features()
                    .contains(ProtocolFeatures::REPLY_ACK);
            let replies = row.reply != Reply::Ack || needs;
            assert_eq!(outcome.replies.len(), usize::from(replies), "{context}");
            false
        }
        Some(error) => {
            assert!(!error.to_string().is_empty());
            let nack = error.disposition() == Disposition::Nack;
            assert_eq!(outcome.replies.len(), usize::from(nack), "{context}");
            !nack
        }
    };
    if over {
        assert_eq!(session.backend.wanted(), 0, "{context}");
        let running = session
            .backend
            .rings()
            .iter()
            .filter(|ring| ring.running)
            .count();
        assert_eq!(session.disconnect().len(), running, "{context}");
    } else {
        if outcome.error.is_some() {
            assert_eq!(
                session.backend.snapshot().expect("quiet"),
                before,
                "{context}"
            );
        }
        let features = session.send(Request::GetFeatures, &[]);
        assert_ne!(features.reply_u64(Request::GetFeatures), 0, "{context}");
    }
    outcome
}

#[test]
fn every_message_in_every_state() {
    for (name, session) in states() {
        for row in &FRONTEND_REQUESTS {
            for flags in [0, Header::NEED_REPLY] {
                let message = wire::encode(row.code, flags, &body(row));
                for fds in 0..=8 {
                    judge(name, Some(row), &mut copy(&session), &message, fds);
                }
            }
        }
    }
}

#[test]
fn every_message_with_every_length() {
    for (name, session) in states() {
        for row in &FRONTEND_REQUESTS {
            for len in 0..=300 {
                let mut body = body(row);
                body.resize(len, 0);
                let message = wire::encode(row.code, Header::NEED_REPLY, &body);
                let outcome = judge(name, Some(row), &mut copy(&session), &message, row.min_fds);
                if !row.payload.sizes().contains(&len) {
                    let error = outcome.error.expect("a wrong size is refused");
                    let named = matches!(
                        error.cause(),
                        Cause::BodySize { .. } | Cause::NotNegotiated { .. }
                    );
                    assert!(named, "{name}: {error}");
                }
            }
        }
    }
}

#[test]
fn every_wrong_number_of_descriptors_is_named() {
    for row in &FRONTEND_REQUESTS {
        for fds in (0..=8).filter(|fds| !(row.min_fds..=row.max_fds).contains(fds)) {
            let mut session = Session::ready();
            let message = wire::encode(row.code, Header::NEED_REPLY, &body(row));
            let outcome = session.raw(&message, fds);
            assert_eq!(outcome.effects, []);
            let error = outcome.error.expect("refused");
            match error.cause() {
                Cause::NotNegotiated { .. } => assert_ne!(row.gate, Gate::Open),
                Cause::FdCount { got, min, max } => {
                    assert_eq!((*got, *min, *max), (fds, row.min_fds, row.max_fds));
                }
                other => panic!("{}: {other}", row.name),
            }
        }
    }
}

#[test]
fn every_combination_of_header_flags() {
    for row in &FRONTEND_REQUESTS {
        let body = body(row);
        for flags in 0..64u32 {
            let mut session = Session::ready();
            let mut message = wire::encode(row.code, 0, &body);
            message[4..8].copy_from_slice(flags.as_bytes());
            let refused = flags & !Header::NEED_REPLY != Header::VERSION;
            if refused {
                let outcome = session.raw(&message, row.min_fds);
                assert!(matches!(outcome.closed().cause(), Cause::Framing(_)));
            } else {
                judge("ready", Some(row), &mut session, &message, row.min_fds);
            }
        }
    }
}

#[test]
fn every_gated_message_is_refused_without_its_feature() {
    for row in FRONTEND_REQUESTS
        .iter()
        .filter(|row| matches!(row.gate, Gate::Negotiated(_)))
    {
        let mut session = Session::ready_with(VERSION_1 | BIT_30, ProtocolFeatures::empty());
        let outcome = session.raw(&wire::encode(row.code, 0, &body(row)), row.min_fds);
        let error = outcome.error.expect("refused");
        assert_eq!(error.cause(), &Cause::NotNegotiated { needs: row.gate });
        let expected = match row.reply {
            Reply::OrEmpty(_) | Reply::Code => Disposition::Nack,
            _ => Disposition::CloseLink,
        };
        assert_eq!(error.disposition(), expected, "{}", row.name);
    }
}

/// What the offer can have is done; everything else says why not.
#[test]
fn every_message_is_either_done_or_not_negotiated() {
    let mut done = 0;
    for row in &FRONTEND_REQUESTS {
        let mut session = Session::ready();
        session.set_up(0);
        let fds = row.max_fds.min(1);
        let outcome = session.raw(&wire::encode(row.code, 0, &body(row)), fds);
        match outcome.error {
            None => done += 1,
            Some(error) => {
                assert_eq!(error.cause(), &Cause::NotNegotiated { needs: row.gate });
            }
        }
    }
    assert_eq!(done, 33);
}
