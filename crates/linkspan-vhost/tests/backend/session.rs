//! Negotiation, acknowledgements, framing.

use linkspan_vhost::backend::{Answer, Effect, Failure, FramingError, Misuse, OfferError};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, HEADER_BYTES, Header, MAX_BODY_BYTES};
use linkspan_vhost::{
    Backend, Cause, Disposition, Fault, Offer, ProtocolFeatures, VHOST_F_LOG_ALL,
};
use zerocopy::IntoBytes;

use crate::{
    BIT_30, PACKED, STOPPED_AT, Session, VERSION_1, addr, header, offer, region, single, state,
    table_of,
};

/// What the vhost-user-blk device of QEMU 7.2 sends for 2 queues, from
/// connection to stop, and what it gets.
#[test]
fn qemu_block_front_end_from_connection_to_stop() {
    let mut session = Session::new(offer());
    let offered = session.send(Request::GetFeatures, &[]);
    let offered = offered.reply_u64(Request::GetFeatures);
    assert_eq!(offered, VERSION_1 | PACKED | VHOST_F_LOG_ALL | BIT_30);
    let protocol = session.send(Request::GetProtocolFeatures, &[]);
    let protocol = protocol.reply_u64(Request::GetProtocolFeatures);
    assert_eq!(protocol, Backend::PROTOCOL_FEATURES.bits());
    let acked = protocol & ((1 << 23) - 1);
    session
        .send(Request::SetProtocolFeatures, acked.as_bytes())
        .quiet();
    let queues = session.send(Request::GetQueueNum, &[]);
    assert_eq!(queues.reply_u64(Request::GetQueueNum), 4);
    let slots = session.send(Request::GetMaxMemSlots, &[]);
    assert_eq!(slots.reply_u64(Request::GetMaxMemSlots), 32);
    session.send(Request::SetOwner, &[]).quiet();
    session
        .send(Request::GetFeatures, &[])
        .reply(Request::GetFeatures);
    for ring in 0..2u64 {
        let effects = session
            .send_fds(Request::SetVringCall, ring.as_bytes(), 1)
            .ok();
        assert!(matches!(
            effects[..],
            [Effect::SetCall { call: Some(_), .. }]
        ));
    }
    let mut config = [0u32, 60, 0].as_bytes().to_vec();
    config.extend([0; 60]);
    let config = session.send(Request::GetConfig, &config);
    assert_eq!(config.reply(Request::GetConfig).len(), 12 + 60);

    let features = VERSION_1 | BIT_30;
    assert_eq!(
        session.send(Request::SetFeatures, features.as_bytes()).ok(),
        [Effect::SetFeatures(features)]
    );
    let ram = single(region(0, 0x10_0000, 0x7000_0000));
    let added = session.ask(Request::AddMemReg, &ram, 1);
    assert!(matches!(added.effects[..], [Effect::AddRegion(_)]));
    assert_eq!(added.reply_u64(Request::AddMemReg), 0);
    for ring in 0..2 {
        session.set_up(ring);
        let effects = session.kick(ring).ok();
        assert!(matches!(
            effects[..],
            [Effect::StartRing { setup, .. }] if !setup.enabled && setup.base == 5
        ));
        session
            .send_fds(Request::SetVringCall, u64::from(ring).as_bytes(), 1)
            .ok();
    }
    for ring in 0..2 {
        assert_eq!(
            session.send(Request::SetVringEnable, &state(ring, 1)).ok(),
            [Effect::EnableRing {
                ring,
                enabled: true
            }]
        );
    }
    for ring in 0..2 {
        let base = session.send(Request::GetVringBase, &state(ring, 0));
        assert_eq!(base.effects, [Effect::StopRing { ring }]);
        assert_eq!(base.reply(Request::GetVringBase), state(ring, STOPPED_AT));
    }
    assert_eq!(session.disconnect(), []);
}

/// QEMU before 7.2 acknowledges everything but bit 30; what bit 30 brings is
/// gated on its being offered.
#[test]
fn qemu_before_7_2_never_acks_bit_30_and_its_rings_are_all_enabled() {
    let mut session = Session::new(offer());
    session
        .send(Request::GetProtocolFeatures, &[])
        .reply(Request::GetProtocolFeatures);
    let protocol = ProtocolFeatures::CONFIG.bits();
    session
        .send(Request::SetProtocolFeatures, protocol.as_bytes())
        .quiet();
    session
        .send(Request::SetFeatures, VERSION_1.as_bytes())
        .ok();
    session.set_up(0);
    let effects = session.kick(0).ok();
    assert!(matches!(effects[..], [Effect::StartRing { setup, .. }] if setup.enabled));
    // It still sends SET_VRING_ENABLE to a network device.
    assert_eq!(
        session.send(Request::SetVringEnable, &state(0, 0)).ok(),
        [Effect::EnableRing {
            ring: 0,
            enabled: false
        }]
    );
    // And its next SET_FEATURES enables what runs disabled.
    assert_eq!(
        session
            .send(Request::SetFeatures, VERSION_1.as_bytes())
            .ok(),
        [Effect::EnableRing {
            ring: 0,
            enabled: true
        }]
    );
    assert!(session.backend.rings().iter().all(|ring| ring.enabled));
}

#[test]
fn without_protocol_features_bit_30_is_not_offered_and_nothing_of_it_is_answered() {
    let offer = Offer {
        protocol_features: ProtocolFeatures::empty(),
        ..offer()
    };
    for request in [Request::GetProtocolFeatures, Request::GetQueueNum] {
        let mut session = Session::new(offer.clone());
        let offered = session
            .send(Request::GetFeatures, &[])
            .reply_u64(Request::GetFeatures);
        assert_eq!(offered & BIT_30, 0);
        let error = session.send(request, &[]).closed();
        assert!(
            matches!(error.cause(), Cause::NotNegotiated { .. }),
            "{error}"
        );
    }
    let mut session = Session::new(offer);
    let error = session.send(Request::SetVringEnable, &state(0, 1)).closed();
    assert!(
        matches!(error.cause(), Cause::NotNegotiated { .. }),
        "{error}"
    );
}

/// There are front ends that acknowledge whatever is offered.
#[test]
fn bits_14_and_17_are_never_offered() {
    for extra in [
        ProtocolFeatures::INBAND_NOTIFICATIONS,
        ProtocolFeatures::XEN_MMAP,
    ] {
        let protocol_features = Backend::PROTOCOL_FEATURES | extra;
        let error = Backend::new(Offer {
            protocol_features,
            ..offer()
        });
        let expected = OfferError::ProtocolFeatures { extra };
        assert_eq!(error.expect_err("too much"), expected);
    }
}

/// What is not implemented is nowhere on offer: host notifiers, postcopy, shared
/// objects, guest addresses in place of the front end's, an IOMMU. QEMU ends if
/// that last one comes without the messages that it needs.
#[test]
fn what_is_not_implemented_is_never_offered() {
    let mut refused = 0;
    for extra in ProtocolFeatures::all().iter() {
        if Backend::PROTOCOL_FEATURES.contains(extra) {
            continue;
        }
        refused += 1;
        let error = Backend::new(Offer {
            protocol_features: extra,
            ..offer()
        });
        let expected = OfferError::ProtocolFeatures { extra };
        assert_eq!(error.expect_err("not implemented"), expected);
    }
    let absent = ProtocolFeatures::HOST_NOTIFIER
        | ProtocolFeatures::PAGEFAULT
        | ProtocolFeatures::SHARED_OBJECT
        | ProtocolFeatures::SHMEM
        | ProtocolFeatures::GPA_ADDRESSES
        | ProtocolFeatures::INBAND_NOTIFICATIONS
        | ProtocolFeatures::XEN_MMAP;
    assert!(!Backend::PROTOCOL_FEATURES.intersects(absent));
    assert!(!linkspan_vhost::Frontend::PROTOCOL_FEATURES.intersects(absent));
    assert!(refused >= 7);
    let extra = 1 << 33;
    let error = Backend::new(Offer {
        features: VERSION_1 | extra,
        ..offer()
    });
    let expected = OfferError::Features { extra };
    assert_eq!(error.expect_err("no IOMMU"), expected);
}

#[test]
fn more_rings_than_their_messages_can_name_are_not_offered() {
    for queues in [0, 257, 1024] {
        let error = Backend::new(Offer { queues, ..offer() }).expect_err("unnameable");
        assert_eq!(error, OfferError::Queues { queues, max: 256 });
        let error = Backend::restore(Offer { queues, ..offer() }, &[]).expect_err("unnameable");
        let offer = OfferError::Queues { queues, max: 256 };
        assert_eq!(error, linkspan_vhost::backend::RestoreError::Offer(offer));
    }
    for queues in [1, 256] {
        Backend::new(Offer { queues, ..offer() }).expect("as many as can be named");
    }
    for size in [0, (1 << 15) + 1] {
        let queue_size_max = size;
        let error = Backend::new(Offer {
            queue_size_max,
            ..offer()
        });
        let expected = OfferError::QueueSize { size, max: 1 << 15 };
        assert_eq!(error.expect_err("no such ring"), expected);
    }
}

#[test]
fn only_offered_features_are_accepted() {
    let mut session = Session::new(offer());
    let error = session
        .send(Request::SetFeatures, (VERSION_1 | 1 << 5).as_bytes())
        .closed();
    assert_eq!(error.cause(), &Cause::Features { unknown: 1 << 5 });
    assert_eq!(error.fault(), Fault::Peer);
    assert_eq!(session.backend.features(), None);

    let mut session = Session::new(offer());
    let bits = (1u64 << 14) | (1 << 3);
    let error = session
        .send(Request::SetProtocolFeatures, bits.as_bytes())
        .closed();
    assert_eq!(error.cause(), &Cause::ProtocolFeatures { unknown: 1 << 14 });
    assert_eq!(
        session.backend.protocol_features(),
        ProtocolFeatures::empty()
    );
}

#[test]
fn running_rings_keep_their_features_but_for_the_log() {
    let mut session = Session::ready();
    session.run(2);
    let features = VERSION_1 | BIT_30;
    // Every device of a multi-queue network card repeats them on one socket.
    session
        .send(Request::SetFeatures, features.as_bytes())
        .quiet();
    for features in [features | VHOST_F_LOG_ALL, features] {
        assert_eq!(
            session.send(Request::SetFeatures, features.as_bytes()).ok(),
            [Effect::SetFeatures(features)]
        );
        assert_eq!(session.backend.features(), Some(features));
    }
    let error = session
        .ask(Request::SetFeatures, (features | PACKED).as_bytes(), 0)
        .nacked();
    assert_eq!(
        error.cause(),
        &Cause::FeaturesWhileRunning {
            changed: PACKED,
            ring: 2
        }
    );
    assert_eq!(session.backend.features(), Some(features));
    session
        .send(Request::GetVringBase, &state(2, 0))
        .reply(Request::GetVringBase);
    session
        .send(Request::SetFeatures, (features | PACKED).as_bytes())
        .ok();
}

#[test]
fn owner_messages_change_nothing() {
    let mut session = Session::ready();
    session.run(0);
    session.send(Request::SetOwner, &[]).quiet();
    session.send(Request::SetOwner, &[]).quiet();
    session.send(Request::ResetOwner, &[]).quiet();
    assert!(session.backend.rings()[0].running);
    assert_eq!(session.backend.features(), Some(VERSION_1 | BIT_30));
}

#[test]
fn need_reply_is_acknowledged_once_and_after_the_effect() {
    let mut session = Session::ready();
    let call = wire::encode(
        Request::SetVringCall.code(),
        Header::NEED_REPLY,
        0u64.as_bytes(),
    );
    session
        .backend
        .receive(&call[..HEADER_BYTES], 1)
        .expect("a header");
    session
        .backend
        .receive(&call[HEADER_BYTES..], 0)
        .expect("a body");
    assert!(matches!(
        session.backend.poll_effect(),
        Some(Effect::SetCall { .. })
    ));
    assert_eq!(
        session.backend.poll_effect(),
        None,
        "no reply before the answer"
    );
    assert_eq!(session.backend.wanted(), 0);
    session.backend.answer(Ok(Answer::Done)).expect("an answer");
    assert_eq!(session.backend.wanted(), 0, "the reply is to be sent first");
    let Some(Effect::Send { bytes, .. }) = session.backend.poll_effect() else {
        panic!("no reply");
    };
    let expected = wire::encode(13, Header::REPLY, 0u64.as_bytes());
    assert_eq!(bytes, expected);
    assert_eq!(session.backend.poll_effect(), None);
    assert_eq!(session.backend.wanted(), HEADER_BYTES);
}

/// QEMU 69a5daec06, 7f27d20ded: messages with a reply of their own answered twice.
#[test]
fn messages_that_always_reply_ignore_need_reply() {
    let mut session = Session::ready();
    session.run(0);
    let asked = session.ask(Request::GetFeatures, &[], 0);
    assert_ne!(asked.reply_u64(Request::GetFeatures), 0);
    let asked = session.ask(Request::GetVringBase, &state(0, 0), 0);
    assert_eq!(asked.reply(Request::GetVringBase), state(0, STOPPED_AT));
}

#[test]
fn need_reply_means_nothing_before_reply_ack_is_negotiated() {
    let protocol = ProtocolFeatures::MQ;
    let mut session = Session::ready_with(VERSION_1 | BIT_30, protocol);
    session.ask(Request::SetOwner, &[], 0).quiet();
    let error = session.ask(Request::SetVringNum, &state(0, 3), 0).closed();
    assert!(
        matches!(error.cause(), Cause::Ring { ring: 0, .. }),
        "{error}"
    );
}

#[test]
fn the_message_that_negotiates_reply_ack_can_ask_already() {
    let mut session = Session::new(offer());
    let bits = ProtocolFeatures::REPLY_ACK.bits();
    let asked = session.ask(Request::SetProtocolFeatures, bits.as_bytes(), 0);
    assert_eq!(asked.reply_u64(Request::SetProtocolFeatures), 0);
}

#[test]
fn a_failed_effect_is_a_nack_if_a_reply_was_asked_for_and_the_end_otherwise() {
    let mut session = Session::ready();
    session.failure = Some(Failure::Rejected);
    let error = session
        .ask(Request::SetVringCall, 1u64.as_bytes(), 1)
        .nacked();
    assert_eq!(error.cause(), &Cause::Failed(Failure::Rejected));
    assert_eq!(error.fault(), Fault::Peer);
    session.failure = Some(Failure::System);
    let error = session
        .send_fds(Request::SetVringCall, 1u64.as_bytes(), 1)
        .closed();
    assert_eq!(error.fault(), Fault::System);
    assert_eq!(session.backend.wanted(), 0);
    let error = session.backend.receive(&[1], 0).expect_err("over");
    assert_eq!(error.cause(), &Cause::Misuse(Misuse::Over));
}

/// A u64 in place of the reply would be misread: there is no way to say no.
#[test]
fn a_refused_message_with_its_own_reply_ends_the_session() {
    let mut session = Session::ready();
    let error = session.ask(Request::GetVringBase, &state(4, 0), 0).closed();
    assert_eq!(error.cause(), &Cause::RingIndex { index: 4, rings: 4 });
    assert_eq!(error.to_string(), "VHOST_USER_GET_VRING_BASE: ring 4 of 4");
}

#[test]
fn unknown_requests_are_refused_whole() {
    for code in [0, 45, 1006, u32::MAX] {
        let mut session = Session::ready();
        let error = session
            .raw(&wire::encode(code, Header::NEED_REPLY, &[7; 100]), 3)
            .nacked();
        assert_eq!(error.cause(), &Cause::UnknownRequest);
        session.send(Request::SetOwner, &[]).quiet();
        let error = session.raw(&wire::encode(code, 0, &[7; 100]), 0).closed();
        assert_eq!(error.cause(), &Cause::UnknownRequest);
    }
}

#[test]
fn broken_headers_end_the_session_before_a_body_is_read() {
    let cases = [
        (header(1, 0, 0), FramingError::Version { got: 0 }),
        (
            header(1, 2 | Header::NEED_REPLY, 0),
            FramingError::Version { got: 2 },
        ),
        (header(1, 1 | Header::REPLY, 0), FramingError::Reply),
        (
            header(1, 1 | 1 << 4, 0),
            FramingError::Flags { flags: 0x11 },
        ),
        (
            header(5, 1, u32::MAX),
            FramingError::BodyTooLong {
                got: u32::MAX,
                max: MAX_BODY_BYTES,
            },
        ),
        (
            header(5, 9, 4097),
            FramingError::BodyTooLong {
                got: 4097,
                max: MAX_BODY_BYTES,
            },
        ),
    ];
    for (bytes, cause) in cases {
        let mut session = Session::ready();
        let error = session.raw(&bytes, 0).closed();
        assert_eq!(error.cause(), &Cause::Framing(cause));
        assert_eq!(session.backend.wanted(), 0);
    }
}

#[test]
fn the_longest_body_is_read_and_refused() {
    let mut session = Session::ready();
    let bytes = wire::encode(2, Header::NEED_REPLY, &[0; MAX_BODY_BYTES]);
    let error = session.raw(&bytes, 0).nacked();
    assert_eq!(
        error.cause(),
        &Cause::BodySize {
            got: MAX_BODY_BYTES,
            min: 8,
            max: 8
        }
    );
    session.send(Request::SetOwner, &[]).quiet();
}

#[test]
fn descriptors_come_with_the_first_byte_and_are_at_most_8() {
    let call = wire::encode(13, 0, 0u64.as_bytes());
    for at in 1..call.len() {
        let mut session = Session::ready();
        let mut received = 0;
        let error = loop {
            let fds = usize::from(received == at);
            match session.backend.receive(&call[received..=received], fds) {
                Ok(()) => received += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(received, at);
        assert_eq!(
            error.cause(),
            &Cause::Framing(FramingError::LateFds { got: 1 })
        );
        assert_eq!(error.disposition(), Disposition::CloseLink);
    }
    let mut session = Session::ready();
    let error = session.raw(&call, 9).closed();
    assert_eq!(
        error.cause(),
        &Cause::Framing(FramingError::TooManyFds { got: 9, max: 8 })
    );
}

#[test]
fn any_split_of_the_bytes_has_the_same_outcome() {
    let conversation = || {
        [
            (wire::encode(1, 0, &[]), 0),
            (
                wire::encode(16, 0, Backend::PROTOCOL_FEATURES.bits().as_bytes()),
                0,
            ),
            (wire::encode(2, 8, (VERSION_1 | BIT_30).as_bytes()), 0),
            (
                wire::encode(5, 8, &table_of(&[region(0, 0x10_0000, 0x7000_0000)])),
                1,
            ),
            (wire::encode(8, 8, &state(1, 256)), 0),
            (wire::encode(9, 0, addr(1).as_bytes()), 0),
            (wire::encode(12, 8, 1u64.as_bytes()), 1),
            (wire::encode(18, 8, &state(1, 1)), 0),
            (wire::encode(8, 8, &state(1, 512)), 0),
            (wire::encode(11, 0, &state(1, 0)), 0),
        ]
    };
    let mut whole = Session::new(offer());
    let expected: Vec<_> = conversation()
        .iter()
        .map(|(m, fds)| whole.raw(m, *fds))
        .collect();
    for piece in 1..=52 {
        let mut session = Session::new(offer());
        let outcomes: Vec<_> = conversation()
            .iter()
            .map(|(m, fds)| session.pieces(m, *fds, piece))
            .collect();
        assert_eq!(outcomes, expected, "in pieces of {piece}");
    }
}

#[test]
fn a_driver_that_errs_is_told() {
    let mut session = Session::ready();
    let error = session
        .backend
        .receive(&[0; 13], 0)
        .expect_err("one too many");
    assert_eq!(
        error.cause(),
        &Cause::Misuse(Misuse::Unwanted {
            got: 13,
            wanted: 12
        })
    );
    assert_eq!(error.fault(), Fault::Us);

    let mut session = Session::ready();
    let error = session
        .backend
        .answer(Ok(Answer::Done))
        .expect_err("nothing was asked");
    assert_eq!(error.cause(), &Cause::Misuse(Misuse::NoQuestion));

    let mut session = Session::ready();
    let call = wire::encode(13, Header::NEED_REPLY, 0u64.as_bytes());
    session
        .backend
        .receive(&call[..HEADER_BYTES], 1)
        .expect("a header");
    session
        .backend
        .receive(&call[HEADER_BYTES..], 0)
        .expect("a body");
    session.backend.poll_effect().expect("an effect");
    let answer = Answer::RingStopped { base: 0 };
    let error = session
        .backend
        .answer(Ok(answer))
        .expect_err("another question");
    assert_eq!(error.cause(), &Cause::Misuse(Misuse::WrongAnswer));
    assert_eq!(error.disposition(), Disposition::Nack);
}
