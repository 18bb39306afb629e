//! From connection to the first command.

use Request as R;
use linkspan_vhost::frontend::{Command, Error, Misfit, QueueUnit, WishError};
use linkspan_vhost::message::{FRONTEND_REQUESTS, Reply, Request, Scope};
use linkspan_vhost::wire::Header;
use linkspan_vhost::{Frontend, Offer, ProtocolFeatures, VHOST_F_LOG_ALL, Wish};

use crate::{
    ALL, BIT_30, EVENT_IDX, PACKED, Pair, VERSION_1, config, offer, start, start_all, wish,
};

fn misfit(wish: Wish, offer: Offer) -> Misfit {
    let mut pair = Pair::with(wish, offer);
    pair.run();
    assert_eq!(pair.events, []);
    // Nothing was started, and nothing is left open.
    assert!(pair.back.rings().iter().all(|ring| !ring.running));
    pair.error.expect("an error").misfit().expect("a misfit")
}

#[test]
fn everything_is_negotiated_in_order() {
    let mut pair = Pair::with(wish(), offer());
    pair.run();
    let negotiated = pair.negotiated();
    let offered = VERSION_1 | PACKED | EVENT_IDX | VHOST_F_LOG_ALL | BIT_30;
    assert_eq!(negotiated.offered, offered);
    assert_eq!(negotiated.features, VERSION_1 | EVENT_IDX);
    assert_eq!(negotiated.protocol_features, ALL);
    assert_eq!((negotiated.queues_max, negotiated.memory_slots), (4, 32));
    assert_eq!(negotiated.config, config(0, 60));
    let expected = [
        R::GetFeatures,
        R::GetProtocolFeatures,
        R::SetProtocolFeatures,
        R::GetQueueNum,
        R::GetMaxMemSlots,
        R::SetOwner,
        R::GetConfig,
    ];
    assert_eq!(pair.requests(), expected);
    assert_eq!(pair.back.protocol_features(), ALL);
}

#[test]
fn configuration_space_is_read_in_messages_of_at_most_256_bytes() {
    let mut pair = Pair::with(
        Wish {
            config_size: 600,
            ..wish()
        },
        offer(),
    );
    pair.run();
    assert_eq!(pair.negotiated().config, config(0, 600));
    let reads = pair.requests();
    let reads = reads.iter().filter(|request| **request == R::GetConfig);
    assert_eq!(reads.count(), 3);
}

/// A back end that knows nothing of protocol features is not asked about them,
/// and its rings are enabled from the start.
#[test]
fn a_back_end_without_protocol_features_is_served() {
    let plain = Wish {
        required_protocol_features: ProtocolFeatures::empty(),
        queues: 1,
        ..wish()
    };
    let bare = Offer {
        protocol_features: ProtocolFeatures::empty(),
        ..offer()
    };
    let mut pair = Pair::with(plain, bare);
    pair.run();
    let negotiated = pair.negotiated();
    assert_eq!((negotiated.queues_max, negotiated.memory_slots), (1, 8));
    assert_eq!(negotiated.config, []);
    assert_eq!(pair.requests(), [R::GetFeatures, R::SetOwner]);
    pair.make_ready();
    assert_eq!(pair.front.features(), Some(VERSION_1 | EVENT_IDX));
    pair.done(Command::StartRings(vec![start(0)]));
    let requests = pair.requests();
    assert!(!requests.contains(&R::SetVringEnable), "{requests:?}");
    assert!(pair.back.rings()[0].enabled && pair.front.rings()[0].enabled);
    // There is no acknowledgement, so a question stands in for it.
    assert_eq!(requests.last(), Some(&R::GetFeatures));
}

/// QEMU 84affad1fd: without MQ the maximum is 1.
#[test]
fn without_mq_one_ring_or_one_pair_is_all_there_is() {
    let without = || Offer {
        protocol_features: ALL.difference(ProtocolFeatures::MQ),
        ..offer()
    };
    let expected = Misfit::Queues { wanted: 4, max: 1 };
    assert_eq!(misfit(wish(), without()), expected);
    for (unit, fits, max) in [(QueueUnit::Rings, 1u16, 1), (QueueUnit::Pairs, 3, 3)] {
        for queues in 1..=4 {
            let wish = Wish {
                queues,
                queue_unit: unit,
                ..wish()
            };
            if queues > fits {
                let wanted = queues;
                assert_eq!(misfit(wish, without()), Misfit::Queues { wanted, max });
                continue;
            }
            let mut pair = Pair::with(wish, without());
            pair.run();
            assert_eq!(pair.negotiated().queues_max, max);
            assert!(!pair.requests().contains(&R::GetQueueNum));
        }
    }
}

/// QEMU c90bd505a3 and the review of its multiqueue series: too many fail
/// early, and a number equal to the maximum does not.
#[test]
fn exactly_the_maximum_works_and_one_more_fails_at_once() {
    for rings in [1u16, 2, 4] {
        let offer = Offer {
            queue_num: rings.into(),
            ..offer()
        };
        let with = |queues| Wish { queues, ..wish() };
        let mut pair = Pair::with(with(rings), offer.clone());
        pair.run();
        pair.negotiated();
        pair.make_ready();
        pair.done(Command::StartRings((0..rings).map(start).collect()));
        pair.agree_on(rings);
        let mut pair = Pair::with(with(rings + 1), offer);
        pair.run();
        let (wanted, max) = (rings + 1, rings.into());
        let error = pair.error.clone().expect("too many");
        assert_eq!(error, Error::Misfit(Misfit::Queues { wanted, max }));
        assert!(error.to_string().contains(&format!("{wanted} rings")));
        assert!(!pair.requests().contains(&R::SetOwner), "nothing was begun");
    }
}

impl Pair {
    /// So many rings run on both sides.
    fn agree_on(&self, rings: u16) {
        for rings_of in [self.front.rings(), self.back.rings()] {
            let running = rings_of.iter().filter(|ring| ring.running && ring.enabled);
            assert_eq!(running.count(), usize::from(rings));
        }
    }
}

/// As many as the messages with descriptors can name, each with its own.
#[test]
fn all_256_rings_come_up_and_come_back() {
    let queues = 256;
    let many = || Offer {
        queues,
        queue_num: 256,
        ..offer()
    };
    let all = || Command::StartRings((0..queues).map(start).collect());
    let wish = Wish { queues, ..wish() };
    let mut pair = Pair::with(wish.clone(), many());
    pair.run();
    pair.negotiated();
    pair.make_ready();
    pair.done(all());
    pair.agree_on(queues);
    pair.lose();
    let saved = pair.front.saved().expect("negotiated");
    let mut pair = Pair::of(Frontend::resume(wish, saved).expect("a wish"), many());
    pair.run();
    pair.negotiated();
    pair.make_ready();
    pair.done(all());
    pair.agree_on(queues);
    let last = pair.back.running_setup(255).expect("it runs");
    assert_eq!(last.descriptor, start(255).descriptor);
}

/// Pairs in QEMU, DPDK and passt; rings in rust-vmm and Cloud Hypervisor.
#[test]
fn both_readings_of_get_queue_num_are_understood() {
    let pairs = Offer {
        queue_num: 2,
        queues: 5,
        ..offer()
    };
    for (queues, fits) in [(4, true), (5, true), (6, false)] {
        let wish = Wish {
            queues,
            queue_unit: QueueUnit::Pairs,
            ..wish()
        };
        if fits {
            let mut pair = Pair::with(wish, pairs.clone());
            pair.run();
            assert_eq!(pair.negotiated().queues_max, 5);
        } else {
            let (wanted, max) = (6, 5);
            assert_eq!(misfit(wish, pairs.clone()), Misfit::Queues { wanted, max });
        }
    }
    assert_eq!(misfit(wish(), pairs), Misfit::Queues { wanted: 4, max: 2 });
    let none = Offer {
        queue_num: 0,
        ..offer()
    };
    for queue_unit in [QueueUnit::Rings, QueueUnit::Pairs] {
        let wish = Wish {
            queue_unit,
            queues: 1,
            ..wish()
        };
        let expected = Misfit::Queues { wanted: 1, max: 0 };
        assert_eq!(misfit(wish, none.clone()), expected);
    }
    let endless = Offer {
        queue_num: u64::MAX,
        ..offer()
    };
    let wish = Wish {
        queue_unit: QueueUnit::Pairs,
        ..wish()
    };
    let mut pair = Pair::with(wish, endless);
    pair.run();
    assert_eq!(pair.negotiated().queues_max, u64::MAX);
}

/// QEMU fff4e48ed5: 0 queues, and more than there can be.
#[test]
fn wishes_that_nobody_can_fulfil_are_refused_at_once() {
    for queues in [0, 257, 1024, u16::MAX] {
        let error = Frontend::new(Wish { queues, ..wish() }).expect_err("no such rings");
        assert_eq!(error, WishError::Queues { queues, max: 256 });
    }
    let features = 1 << 33;
    let error = Frontend::new(Wish { features, ..wish() }).expect_err("no IOMMU");
    assert_eq!(error, WishError::Features { extra: features });
    for extra in [
        ProtocolFeatures::INBAND_NOTIFICATIONS,
        ProtocolFeatures::XEN_MMAP,
    ] {
        let protocol_features = ALL | extra;
        let error = Frontend::new(Wish {
            protocol_features,
            ..wish()
        });
        let expected = WishError::ProtocolFeatures { extra };
        assert_eq!(error.expect_err("not implemented"), expected);
    }
    let config_size = 4097;
    let error = Frontend::new(Wish {
        config_size,
        ..wish()
    });
    let expected = WishError::Config {
        size: 4097,
        max: 4096,
    };
    assert_eq!(error.expect_err("too large"), expected);
}

/// Cloud Hypervisor and QEMU acknowledge whatever is offered; this side does not.
#[test]
fn what_is_offered_and_not_wanted_is_not_acknowledged() {
    let few = Wish {
        protocol_features: ProtocolFeatures::MQ,
        ..wish()
    };
    let mut pair = Pair::with(few, offer());
    pair.run();
    let expected = ProtocolFeatures::MQ | ProtocolFeatures::CONFIG;
    assert_eq!(pair.negotiated().protocol_features, expected);
    assert_eq!(pair.back.protocol_features(), expected);
}

/// QEMU 56534930b5: a missing CONFIG was suppressed silently.
#[test]
fn a_required_protocol_feature_that_is_missing_is_named() {
    let missing = ProtocolFeatures::CONFIG;
    let without = Offer {
        protocol_features: ALL.difference(missing),
        ..offer()
    };
    let expected = Misfit::ProtocolFeatures { missing };
    assert_eq!(misfit(wish(), without), expected);
    let bare = Offer {
        protocol_features: ProtocolFeatures::empty(),
        ..offer()
    };
    assert_eq!(misfit(wish(), bare), expected);
}

#[test]
fn a_required_feature_that_is_missing_is_named() {
    let old = Offer {
        features: EVENT_IDX,
        ..offer()
    };
    let missing = VERSION_1;
    assert_eq!(misfit(wish(), old), Misfit::Features { missing });
}

#[test]
fn a_configuration_space_that_is_too_small_is_named() {
    let small = Offer {
        config_size: 59,
        ..offer()
    };
    let expected = Misfit::Config {
        offset: 0,
        size: 60,
    };
    assert_eq!(misfit(wish(), small), expected);
    let small = Offer {
        config_size: 300,
        ..offer()
    };
    let config_size = 301;
    let expected = Misfit::Config {
        offset: 256,
        size: 45,
    };
    let large = Wish {
        config_size,
        ..wish()
    };
    assert_eq!(misfit(large, small), expected);
}

#[test]
fn too_few_memory_slots_are_named() {
    let few = Offer {
        memory_slots: 1,
        ..offer()
    };
    let expected = Misfit::MemorySlots { wanted: 2, max: 1 };
    assert_eq!(misfit(wish(), few), expected);
    let without = Offer {
        protocol_features: ALL.difference(ProtocolFeatures::CONFIGURE_MEM_SLOTS),
        ..offer()
    };
    let many = Wish {
        memory_slots: 9,
        ..wish()
    };
    let expected = Misfit::MemorySlots { wanted: 9, max: 8 };
    assert_eq!(misfit(many, without), expected);
}

/// QEMU's list of messages that are sent once was wrong for years
/// (920c184fa9, 667e58aef1, 7c211eb078); here a session has all rings, so a
/// message about the device is sent once however many there are.
#[test]
fn messages_about_the_device_are_sent_once_for_all_rings() {
    let mut pair = Pair::with(wish(), offer());
    pair.run();
    pair.negotiated();
    let features = pair.front.negotiated().expect("negotiated").features;
    pair.done(Command::SetFeatures(features));
    pair.done(Command::SetMemory(vec![crate::memory()[0]]));
    pair.done(start_all());
    pair.done(Command::StopRings(vec![0, 1, 2, 3]));
    pair.done(Command::ResetDevice);
    let sent = pair.requests();
    for row in &FRONTEND_REQUESTS {
        let times = sent.iter().filter(|sent| **sent == row.request).count();
        match row.scope {
            Scope::Device => assert!(times <= 1, "{} {times} times", row.name),
            Scope::Ring => assert!(times == 0 || times == 4, "{} {times} times", row.name),
        }
    }
}

/// QEMU 22d2464f7e: RESET_OWNER is no reset. d7dc0682f5, 1ba9a52203: ENABLE,
/// KICK, CALL and ERR are synchronous.
#[test]
fn every_message_without_reply_asks_for_one_as_soon_as_it_can() {
    let mut pair = Pair::with(wish(), offer());
    pair.run();
    pair.negotiated();
    let first = pair.sent.len();
    pair.done(Command::SetFeatures(VERSION_1));
    pair.done(Command::SetMemory(crate::memory()));
    pair.done(start_all());
    pair.done(Command::SetCall {
        ring: 0,
        call: None,
    });
    pair.done(Command::StopRings(vec![2, 0]));
    for sent in &pair.sent[first..] {
        assert_ne!(sent.request, R::ResetOwner);
        let asks = sent.flags & Header::NEED_REPLY != 0;
        let ack = sent.request.message().reply == Reply::Ack;
        assert_eq!(asks, ack, "{:?}", sent.request);
    }
}

/// QEMU 60cd11024f: nobody waits for a reply that was not asked for. 41, 42:
/// but what a ring needs is known to be done when the command is.
#[test]
fn without_reply_ack_a_question_ends_each_command() {
    let mut pair = Pair::with(
        Wish {
            protocol_features: ALL.difference(ProtocolFeatures::REPLY_ACK),
            ..wish()
        },
        offer(),
    );
    pair.run();
    pair.negotiated();
    pair.make_ready();
    for command in [
        start_all(),
        Command::EnableRing {
            ring: 1,
            enabled: false,
        },
        Command::SetCall {
            ring: 1,
            call: None,
        },
        Command::SetKick {
            ring: 1,
            kick: None,
        },
        Command::WriteStatus(15),
    ] {
        pair.done(command);
        pair.agree();
        assert!(pair.sent.iter().all(|sent| sent.flags == Header::VERSION));
        assert_eq!(pair.requests().last(), Some(&R::GetFeatures));
    }
    // What has a reply of its own needs none.
    pair.done(Command::StopRings(vec![1]));
    assert_eq!(pair.requests(), [R::GetVringBase]);
}
