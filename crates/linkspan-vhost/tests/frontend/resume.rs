//! A later back end in the place of one that is gone.

use linkspan_vhost::frontend::{Command, Error, Misfit, Saved, WishError};
use linkspan_vhost::{Frontend, Offer, ProtocolFeatures, Wish};

use crate::{ALL, EVENT_IDX, Pair, VERSION_1, offer, start_all, wish};

/// What is left of a session in which everything was used.
fn saved() -> Saved {
    let mut pair = Pair::ready();
    pair.done(start_all());
    pair.lose();
    pair.front.saved().expect("negotiated")
}

fn misfit(offer: Offer) -> Misfit {
    let front = Frontend::resume(wish(), saved()).expect("a wish");
    let mut pair = Pair::of(front, offer);
    pair.run();
    assert_eq!(pair.events, []);
    let error = pair.error.clone().expect("an error");
    // Not a protocol error: the endpoint waits for another back end, with
    // what it had.
    assert!(matches!(error, Error::Misfit(_)), "{error}");
    assert_eq!(pair.front.saved(), Some(saved()));
    error.misfit().expect("a misfit")
}

#[test]
fn the_same_back_end_is_taken_again() {
    let saved = saved();
    assert_eq!(saved.features, Some(VERSION_1 | EVENT_IDX | crate::BIT_30));
    let mut pair = Pair::of(
        Frontend::resume(wish(), saved.clone()).expect("a wish"),
        offer(),
    );
    pair.run();
    assert_eq!(pair.negotiated(), saved.negotiated);
    for (ring, old) in pair.front.rings().iter().zip(&saved.rings) {
        assert!(!ring.running && !ring.enabled);
        assert_eq!(
            (ring.size, ring.addresses, ring.base),
            (old.size, old.addresses, old.base)
        );
    }
    // Until features are set again, those of before are still promised.
    assert_eq!(pair.front.features(), None);
    assert_eq!(pair.front.saved().expect("saved").features, saved.features);
}

#[test]
fn a_back_end_with_more_is_used_like_the_one_before() {
    let mut pair = Pair::with(
        wish(),
        Offer {
            protocol_features: ALL.difference(ProtocolFeatures::STATUS),
            memory_slots: 8,
            ..offer()
        },
    );
    pair.run();
    let before = pair.negotiated();
    pair.lose();
    let saved = pair.front.saved().expect("negotiated");
    let mut pair = Pair::of(Frontend::resume(wish(), saved).expect("a wish"), offer());
    pair.run();
    let after = pair.negotiated();
    assert_eq!(after.protocol_features, before.protocol_features);
    assert_eq!(after.memory_slots, 32);
}

#[test]
fn features_that_were_acknowledged_are_not_given_up() {
    let less = Offer {
        features: VERSION_1,
        ..offer()
    };
    let missing = EVENT_IDX;
    assert_eq!(misfit(less), Misfit::Features { missing });
}

/// A feature that was offered and not acknowledged may go.
#[test]
fn features_that_nobody_used_may_go() {
    let mut pair = Pair::new();
    pair.done(Command::SetFeatures(VERSION_1));
    pair.lose();
    let saved = pair.front.saved().expect("negotiated");
    let features = VERSION_1;
    let less = Offer {
        features,
        ..offer()
    };
    let mut pair = Pair::of(Frontend::resume(wish(), saved).expect("a wish"), less);
    pair.run();
    assert_eq!(pair.negotiated().features, VERSION_1);
}

#[test]
fn protocol_features_in_use_are_not_given_up() {
    let missing = ProtocolFeatures::INFLIGHT_SHMFD;
    let less = Offer {
        protocol_features: ALL.difference(missing),
        ..offer()
    };
    assert_eq!(misfit(less), Misfit::ProtocolFeatures { missing });
    let none = Offer {
        protocol_features: ProtocolFeatures::empty(),
        ..offer()
    };
    let missing = ALL.difference(ProtocolFeatures::BACKEND_REQ);
    assert_eq!(misfit(none), Misfit::ProtocolFeatures { missing });
}

/// Its socket ended with the connection, and no driver was promised one.
#[test]
fn requests_of_the_back_end_are_agreed_anew() {
    let mut saved = saved();
    for with in [false, true] {
        let mut offer = offer();
        let feature = ProtocolFeatures::BACKEND_REQ;
        offer.protocol_features.set(feature, with);
        let mut pair = Pair::of(Frontend::resume(wish(), saved).expect("a wish"), offer);
        pair.run();
        let protocol = pair.negotiated().protocol_features;
        assert_eq!(protocol.contains(feature), with);
        pair.lose();
        saved = pair.front.saved().expect("negotiated");
    }
}

#[test]
fn fewer_rings_slots_or_config_are_named() {
    let less = Offer {
        queue_num: 3,
        ..offer()
    };
    assert_eq!(misfit(less), Misfit::Queues { wanted: 4, max: 3 });
    // QEMU fails too if GET_MAX_MEM_SLOTS shrinks.
    let less = Offer {
        memory_slots: 31,
        ..offer()
    };
    let (wanted, max) = (32, 31);
    assert_eq!(misfit(less), Misfit::MemorySlots { wanted, max });
    let less = Offer {
        config_size: 20,
        ..offer()
    };
    let (offset, size) = (0, 60);
    assert_eq!(misfit(less), Misfit::Config { offset, size });
}

#[test]
fn a_session_goes_on_with_as_many_rings_as_it_had() {
    for queues in [3, 5] {
        let error = Frontend::resume(Wish { queues, ..wish() }, saved());
        let expected = WishError::OtherQueues { queues, had: 4 };
        assert_eq!(error.expect_err("other rings"), expected);
    }
}

/// QEMU f02a4b8e64 to a527e312b5: a failure while reconnecting.
#[test]
fn a_connection_lost_while_resuming_loses_nothing() {
    let saved = saved();
    for cut in 0..30 {
        let front = Frontend::resume(wish(), saved.clone()).expect("a wish");
        let mut pair = Pair::of(front, offer());
        pair.cut = Some(cut);
        pair.run();
        pair.lose();
        let again = pair.front.saved().expect("kept");
        assert_eq!(again.features, saved.features, "{cut}");
        assert_eq!(again.negotiated, saved.negotiated, "{cut}");
        let mut pair = Pair::of(Frontend::resume(wish(), again).expect("a wish"), offer());
        pair.run();
        pair.negotiated();
    }
}

/// A process that takes over between the negotiation and the features still
/// holds the next back end to what was promised, and has the region of before.
#[test]
fn what_was_promised_is_saved_too() {
    let mut before = Pair::ready();
    before.done(Command::CreateInflight {
        queues: 4,
        queue_size: 256,
    });
    before.lose();
    let saved = before.front.saved().expect("negotiated");
    let mut pair = Pair::of(
        Frontend::resume(wish(), saved.clone()).expect("a wish"),
        offer(),
    );
    pair.run();
    pair.negotiated();
    let bytes = pair.front.snapshot().expect("idle");
    let successor = Frontend::restore(wish(), &bytes).expect("a session");
    assert_eq!(successor.snapshot(), Ok(bytes));
    let after = successor.saved().expect("negotiated");
    assert_eq!(after.features, Some(VERSION_1 | EVENT_IDX | crate::BIT_30));
    assert_eq!(
        (after.features, after.inflight),
        (saved.features, saved.inflight)
    );
    assert!(after.inflight.is_some());
    // A driver of fewer features than were promised takes over as well.
    let fewer = Wish {
        features: VERSION_1,
        ..wish()
    };
    let mut pair = Pair::of(
        Frontend::resume(fewer.clone(), saved).expect("a wish"),
        offer(),
    );
    pair.run();
    pair.negotiated();
    let bytes = pair.front.snapshot().expect("idle");
    Frontend::restore(fewer, &bytes).expect("a session");
}
