//! Both ends back to back, saved and restored at every step.

use linkspan_vmbus::channel::guest::{self, GPADL_PAGES_MAX, Misuse};
use linkspan_vmbus::channel::{ProtocolVersion, STATUS_UNSUCCESSFUL, host};

use crate::{Pair, file_copy, heartbeat};

const USER: [u8; 120] = [3; 120];

#[test]
fn the_best_common_version_is_found() {
    let versions = ProtocolVersion::ALL;
    for at_host in versions {
        for at_guest in versions {
            let mut pair = Pair::with(true, at_host, at_guest);
            pair.guest.connect().unwrap();
            let best = at_host.min(at_guest);
            assert_eq!(
                pair.events(),
                [guest::Output::Connected(best), guest::Output::AllOffered]
            );
            assert_eq!(pair.host.version(), Some(best));
            assert_eq!(pair.guest.version(), Some(best));
            assert_eq!(pair.guest.connect(), Err(Misuse::Connection));
        }
    }
    let mut pair = Pair::with(true, ProtocolVersion(1), ProtocolVersion::WIN8);
    pair.guest.connect().unwrap();
    assert_eq!(pair.events(), [guest::Output::NoVersion]);
    assert_eq!(pair.messages, 1);
}

/// Contact goes to connection 4 from version 5 on, what follows to the one that the
/// host names.
#[test]
fn messages_go_to_the_connection_of_their_version() {
    let mut pair = Pair::with(false, ProtocolVersion::WIN8, ProtocolVersion::WIN10_V5_3);
    pair.guest.connect().unwrap();
    let mut connections = Vec::new();
    while let Some(output) = pair.guest.poll_output() {
        let guest::Output::Send {
            connection,
            message,
        } = output
        else {
            continue;
        };
        connections.push(connection);
        pair.host.receive(&message).unwrap();
        while let Some(host::Output::Send(message)) = pair.host.poll_output() {
            pair.guest.receive(&message).unwrap();
        }
    }
    assert_eq!(connections, [4, 4, 4, 4, 1, 1, 1, 1, 1]);
}

#[test]
fn a_channel_lives_from_its_offer_to_the_unload() {
    for cut in [false, true] {
        let (mut pair, relid) = Pair::connected(cut);
        assert_eq!(pair.guest.offer(relid), Some(&file_copy()));
        let gpadl = pair.share(relid, 10);
        pair.guest.open(relid, gpadl, 5, 2, USER).unwrap();
        assert_eq!(pair.events(), [guest::Output::Opened(relid)]);
        let effects = pair.effects();
        let [
            host::Output::Open {
                relid: opened,
                request,
            },
        ] = effects[..]
        else {
            panic!("{effects:?}");
        };
        assert_eq!(
            (
                opened,
                request.gpadl,
                request.second_page,
                request.target_vp,
                request.user_data
            ),
            (relid, gpadl, 5, 2, USER)
        );
        assert_eq!(
            pair.guest.unshare(gpadl),
            Err(Misuse::Gpadl { gpadl }),
            "in use"
        );
        pair.guest.retarget(relid, 7).unwrap();
        assert_eq!(
            pair.events(),
            [guest::Output::Retargeted { relid, status: 0 }]
        );
        assert_eq!(
            pair.effects(),
            [host::Output::Retarget {
                relid,
                target_vp: 7
            }]
        );
        pair.guest.close(relid).unwrap();
        assert_eq!(pair.effects(), [host::Output::Close { relid }]);
        pair.guest.unshare(gpadl).unwrap();
        assert_eq!(pair.events(), [guest::Output::Unshared(gpadl)]);
        assert_eq!(pair.effects(), [host::Output::Release { gpadl }]);
        assert!(pair.host.gpadl(gpadl).is_none());
        // Once more, and away with all of it.
        let gpadl = pair.share(relid, 10);
        pair.guest.open(relid, gpadl, 5, 2, USER).unwrap();
        pair.events();
        pair.effects();
        pair.guest.unload().unwrap();
        assert_eq!(pair.events(), [guest::Output::Unloaded]);
        assert_eq!(pair.effects(), [host::Output::Reset]);
        assert_eq!((pair.host.version(), pair.guest.version()), (None, None));
        pair.guest.connect().unwrap();
        let offered = guest::Output::Offered(relid);
        assert!(pair.events().contains(&offered), "and it comes back");
    }
}

#[test]
fn a_change_of_processor_is_not_answered_before_version_5_3() {
    let mut pair = Pair::with(true, ProtocolVersion::WIN10_V5, ProtocolVersion::WIN10_V5_3);
    let relid = pair.host.offer(file_copy()).unwrap();
    pair.guest.connect().unwrap();
    pair.events();
    let gpadl = pair.share(relid, 4);
    pair.guest.open(relid, gpadl, 2, 0, USER).unwrap();
    pair.events();
    pair.guest.retarget(relid, 1).unwrap();
    assert_eq!(pair.events(), []);
    assert!(pair.effects().contains(&host::Output::Retarget {
        relid,
        target_vp: 1
    }));
}

/// Linux's UIO driver shares 31 MiB and 16 MiB when it finds a device: more than 400
/// messages.
#[test]
fn memory_of_many_messages_arrives_whole() {
    for cut in [false, true] {
        let (mut pair, relid) = Pair::connected(cut);
        for pages in [1, 25, 26, 27, 54, 55, 4096, 7936] {
            let before = pair.messages;
            pair.share(relid, pages);
            let more = pages.saturating_sub(26).div_ceil(28);
            assert_eq!(pair.messages - before, 1 + more as usize, "{pages} pages");
        }
    }
}

#[test]
fn what_the_host_does_not_grant_is_told() {
    let (mut pair, relid) = Pair::connected(true);
    let gpadl = pair.share(relid, 10);
    pair.grant = false;
    pair.guest.open(relid, gpadl, 5, 0, USER).unwrap();
    let status = STATUS_UNSUCCESSFUL;
    assert_eq!(pair.events(), [guest::Output::NotOpened { relid, status }]);
    pair.grant = true;
    pair.guest.open(relid, gpadl, 5, 0, USER).unwrap();
    assert_eq!(pair.events(), [guest::Output::Opened(relid)]);
}

/// Guest services switched off and on again: the device comes back under a new offer.
#[test]
fn a_device_that_is_rescinded_comes_back() {
    for cut in [false, true] {
        let (mut pair, relid) = Pair::connected(cut);
        for _ in 0..3 {
            let gpadl = pair.share(relid, 10);
            pair.guest.open(relid, gpadl, 5, 0, USER).unwrap();
            pair.events();
            pair.effects();
            pair.host.rescind(relid).unwrap();
            assert!(pair.host.rescind(relid).is_err());
            assert_eq!(pair.events(), [guest::Output::Rescinded(relid)]);
            assert_eq!(pair.effects(), [host::Output::Close { relid }]);
            assert_eq!(pair.guest.close(relid), Err(Misuse::Channel { relid }));
            assert_eq!(
                pair.guest.open(relid, gpadl, 5, 0, USER),
                Err(Misuse::Gpadl { gpadl })
            );
            pair.guest.release(relid).unwrap();
            assert_eq!(pair.effects(), [host::Output::Release { gpadl }]);
            assert_eq!(pair.guest.offers().count(), 0);
            assert_eq!(
                pair.host.offer(file_copy()),
                Ok(relid),
                "its number is free again"
            );
            assert_eq!(pair.events(), [guest::Output::Offered(relid)]);
        }
    }
}

/// Rescinded after any number of messages, with answers of the host on their way.
#[test]
fn a_rescind_at_any_moment_leaves_nothing() {
    for after in 0..40 {
        let (mut pair, relid) = Pair::connected(false);
        let other = pair.host.offer(heartbeat()).unwrap();
        pair.events();
        let pages: Vec<u64> = (0..200).collect();
        let gpadl = pair.guest.share(relid, 200 * 4096, &pages).unwrap();
        let (mut opened, mut steps) = (false, 0);
        // The guest is always a step ahead of what it hears.
        while steps < after {
            steps += 1;
            match pair.guest.poll_output() {
                Some(guest::Output::Send { message, .. }) => pair.host.receive(&message).unwrap(),
                Some(guest::Output::Shared(_)) => {
                    pair.guest.open(relid, gpadl, 100, 0, USER).unwrap();
                    opened = true;
                }
                _ => {}
            }
            if steps % 2 == 0
                && let Some(effect) = pair.host.poll_output()
            {
                pair.host_effect(effect);
            }
        }
        pair.host.rescind(relid).unwrap();
        // The guest's messages that were on their way may be for nothing now.
        while let Some(effect) = pair.host.poll_output() {
            pair.host_effect(effect);
        }
        while let Some(output) = pair.guest.poll_output() {
            if let guest::Output::Send { message, .. } = output {
                let _ = pair.host.receive(&message);
            }
            while let Some(effect) = pair.host.poll_output() {
                pair.host_effect(effect);
            }
        }
        pair.guest.release(relid).unwrap();
        pair.talk();
        assert!(
            pair.host.gpadl(gpadl).is_none(),
            "after {after} steps, opened {opened}"
        );
        assert_eq!(
            pair.guest
                .offers()
                .map(|(relid, _)| relid)
                .collect::<Vec<_>>(),
            [other]
        );
        pair.share(other, 3);
    }
}

/// A guest that is started again without a word (kexec) begins anew.
#[test]
fn a_second_contact_forgets_the_first_guest() {
    let (mut pair, relid) = Pair::connected(true);
    let gpadl = pair.share(relid, 10);
    pair.guest.open(relid, gpadl, 5, 0, USER).unwrap();
    pair.events();
    pair.effects();
    pair.guest = linkspan_vmbus::channel::Guest::new(pair.guest_limits);
    pair.guest.connect().unwrap();
    let events = pair.events();
    assert!(
        events.contains(&guest::Output::Offered(relid)),
        "{events:?}"
    );
    assert_eq!(pair.effects(), [host::Output::Reset]);
    let gpadl = pair.share(relid, 10);
    pair.guest.open(relid, gpadl, 5, 0, USER).unwrap();
    assert_eq!(pair.events(), [guest::Output::Opened(relid)]);
}

#[test]
fn what_cannot_be_asked_is_refused_at_once() {
    let (mut pair, relid) = Pair::connected(false);
    for (len, pages) in [
        (0, vec![]),
        (4096, vec![]),
        (4096, vec![1, 2]),
        (8193, vec![1, 2]),
    ] {
        let count = pages.len();
        assert_eq!(
            pair.guest.share(relid, len, &pages),
            Err(Misuse::Pages { pages: count, len })
        );
    }
    let pages = vec![1; GPADL_PAGES_MAX + 1];
    let len = u32::try_from(pages.len() * 4096).unwrap();
    assert!(matches!(
        pair.guest.share(relid, len, &pages),
        Err(Misuse::Pages { .. })
    ));
    assert_eq!(
        pair.guest.share(99, 4096, &[1]),
        Err(Misuse::Channel { relid: 99 })
    );
    assert_eq!(
        pair.guest.open(relid, 1, 1, 0, USER),
        Err(Misuse::Gpadl { gpadl: 1 })
    );
    assert_eq!(pair.guest.unshare(1), Err(Misuse::Gpadl { gpadl: 1 }));
    assert_eq!(pair.guest.close(relid), Err(Misuse::Channel { relid }));
    assert_eq!(pair.guest.release(relid), Err(Misuse::Channel { relid }));
    assert_eq!(
        pair.guest.retarget(relid, 1),
        Err(Misuse::Channel { relid })
    );
    let gpadl = pair.share(relid, 10);
    for second in [0, 10, u32::MAX] {
        assert!(matches!(
            pair.guest.open(relid, gpadl, second, 0, USER),
            Err(Misuse::Pages { .. })
        ));
    }
    assert_eq!(
        pair.host.released(gpadl),
        Err(host::Misuse::Gpadl { gpadl })
    );
    let free = host::CHANNELS_MAX - 1;
    for _ in 0..free {
        pair.host.offer(heartbeat()).unwrap();
    }
    assert_eq!(pair.host.offer(heartbeat()), Err(host::Misuse::Channels));
    assert_eq!(pair.events().len(), free);
}
