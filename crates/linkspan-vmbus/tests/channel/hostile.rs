//! What the other end may say.

use linkspan_vmbus::RestoreError;
use linkspan_vmbus::channel::message::{Kind, MESSAGES};
use linkspan_vmbus::channel::{
    End, Guest, Host, MessageError, ProtocolVersion, STATUS_UNSUCCESSFUL, guest, host,
};
use linkspan_vmbus::packet::PacketError;

use crate::{Pair, file_copy, heartbeat};

fn message(kind: Kind, words: &[u32]) -> Vec<u8> {
    let all = [&[kind.code(), 0], words].concat();
    all.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What the host answered.
fn said(host: &mut Host) -> Vec<Vec<u8>> {
    let mut said = Vec::new();
    while let Some(output) = host.poll_output() {
        if let host::Output::Send(message) = output {
            said.push(message);
        }
    }
    said
}

#[test]
fn every_message_is_taken_from_its_own_side_whole_and_in_its_version() {
    let (mut pair, _) = Pair::connected(false);
    for row in MESSAGES {
        let code = row.kind.code();
        let whole = {
            let mut bytes = code.to_le_bytes().to_vec();
            bytes.resize(row.len, 0);
            bytes
        };
        let unknown = MessageError::Unknown { code };
        match row.from {
            End::Guest => assert_eq!(
                pair.guest.receive(&whole),
                Err(guest::Error::Message(unknown))
            ),
            End::Host => assert_eq!(
                pair.host.receive(&whole),
                Err(host::Error::Message(unknown))
            ),
        }
        for len in 0..row.len {
            let error = MessageError::Length {
                got: len,
                min: if len < 8 { 8 } else { row.len },
            };
            match row.from {
                End::Guest => assert_eq!(
                    pair.host.receive(&whole[..len]),
                    Err(host::Error::Message(error))
                ),
                End::Host => assert_eq!(
                    pair.guest.receive(&whole[..len]),
                    Err(guest::Error::Message(error))
                ),
            }
        }
        let mut long = whole.clone();
        long.resize(241, 0);
        let error = MessageError::Length { got: 241, min: 8 };
        assert_eq!(pair.host.receive(&long), Err(host::Error::Message(error)));
        assert_eq!(pair.guest.receive(&long), Err(guest::Error::Message(error)));
    }
    for code in [0, 18, 19, 20, 21, 23, 25, u32::MAX] {
        let unknown = MessageError::Unknown { code };
        let bytes = [code.to_le_bytes(), [0; 4]].concat();
        assert_eq!(
            pair.host.receive(&bytes),
            Err(host::Error::Message(unknown))
        );
        assert_eq!(
            pair.guest.receive(&bytes),
            Err(guest::Error::Message(unknown))
        );
    }
    let mut old = Pair::with(false, ProtocolVersion::WIN8, ProtocolVersion::WIN8);
    old.guest.connect().unwrap();
    old.events();
    let code = Kind::ModifyResponse.code();
    let early = old.guest.receive(&message(Kind::ModifyResponse, &[1, 0]));
    assert_eq!(
        early,
        Err(guest::Error::Message(MessageError::Unknown { code }))
    );
}

#[test]
fn nothing_is_done_before_the_first_contact() {
    let mut host = Host::new(host::Limits::default());
    host.offer(file_copy()).unwrap();
    for row in MESSAGES
        .iter()
        .filter(|row| row.from == End::Guest && row.kind != Kind::InitiateContact)
    {
        let mut bytes = row.kind.code().to_le_bytes().to_vec();
        bytes.resize(row.len, 0);
        assert_eq!(
            host.receive(&bytes),
            Err(host::Error::NotConnected { kind: row.kind })
        );
    }
    assert_eq!(host.poll_output(), None);
    let mut guest = Guest::new(guest::Limits::default());
    for row in MESSAGES
        .iter()
        .filter(|row| row.from == End::Host && row.kind != Kind::ModifyResponse)
    {
        let mut bytes = row.kind.code().to_le_bytes().to_vec();
        bytes.resize(row.len, 0);
        assert_eq!(
            guest.receive(&bytes),
            Err(guest::Error::Unasked { kind: row.kind })
        );
    }
}

#[test]
fn versions_that_nobody_speaks_are_refused() {
    let mut host = Host::new(host::Limits::default());
    for version in [0, 1, 0x1_0001, 0x6_0000, u32::MAX] {
        let contact = [&[version][..], &[0; 7]].concat();
        host.receive(&message(Kind::InitiateContact, &contact))
            .unwrap();
        let said = said(&mut host);
        assert_eq!((said.len(), said[0][8]), (1, 0));
        assert_eq!(host.version(), None);
    }
}

fn header(relid: u32, gpadl: u32, range_len: u16, ranges: u16, rest: &[u32]) -> Vec<u8> {
    let lengths = u32::from(range_len) | u32::from(ranges) << 16;
    message(
        Kind::GpadlHeader,
        &[&[relid, gpadl, lengths], rest].concat(),
    )
}

/// Whether the guest was told that the memory is not taken.
fn refused(host: &mut Host, gpadl: u32) -> bool {
    let want = |relid| message(Kind::GpadlCreated, &[relid, gpadl, STATUS_UNSUCCESSFUL]);
    said(host) == [want(1)] && host.gpadl(gpadl).is_none()
}

#[test]
fn memory_that_makes_no_sense_is_refused_by_name() {
    let (mut pair, relid) = Pair::connected(false);
    let host = &mut pair.host;
    // No range at all; more bytes than were announced; an offset beyond the page; pages
    // that are not there; bytes that belong to no range; more ranges than there are.
    for (range_len, ranges, rest) in [
        (0, 0, vec![]),
        (16, 1, vec![4096, 0, 7, 0, 8, 0]),
        (16, 1, vec![4096, 4096, 7, 0]),
        (16, 1, vec![8192, 0, 7, 0]),
        (24, 1, vec![4096, 0, 7, 0, 8, 0]),
        (16, 2, vec![4096, 0, 7, 0]),
        (16, 0, vec![4096, 0, 7, 0]),
        (15, 1, vec![4096, 0, 7, 0]),
    ] {
        let error = host
            .receive(&header(relid, 5, range_len, ranges, &rest))
            .unwrap_err();
        let named = matches!(
            error,
            host::Error::Ranges { gpadl: 5, .. } | host::Error::RangeBytes { gpadl: 5, .. }
        );
        assert!(named, "{error}");
        assert!(refused(host, 5), "{error}");
    }
    let offset = host.receive(&header(relid, 5, 16, 1, &[4096, 4096, 7, 0]));
    let error = PacketError::Offset {
        range: 0,
        offset: 4096,
    };
    assert_eq!(offset, Err(host::Error::Ranges { gpadl: 5, error }));
    said(host);
    // The same in a body: one page number too many.
    host.receive(&header(relid, 6, 24, 1, &[8192, 0, 7, 0]))
        .unwrap();
    assert!(host.gpadl(6).is_none(), "not all of it is there");
    let more = host.receive(&message(Kind::GpadlBody, &[1, 6, 8, 0, 9, 0]));
    assert_eq!(
        more,
        Err(host::Error::RangeBytes {
            gpadl: 6,
            got: 32,
            want: 24
        })
    );
    assert!(refused(host, 6));
    for gpadl in [6, 99] {
        let kind = Kind::GpadlBody;
        let stray = host.receive(&message(kind, &[1, gpadl, 8, 0]));
        assert_eq!(stray, Err(host::Error::Gpadl { kind, gpadl }));
    }
    assert!(said(host).is_empty());
}

#[test]
fn names_of_memory_are_used_once_and_for_channels_that_are_there() {
    let (mut pair, relid) = Pair::connected(false);
    let gpadl = pair.share(relid, 10);
    let other = pair.host.offer(heartbeat()).unwrap();
    pair.events();
    let host = &mut pair.host;
    let kind = Kind::GpadlHeader;
    let again = host.receive(&header(relid, gpadl, 16, 1, &[4096, 0, 7, 0]));
    assert_eq!(again, Err(host::Error::Gpadl { kind, gpadl }));
    let nowhere = host.receive(&header(77, 5, 16, 1, &[4096, 0, 7, 0]));
    assert_eq!(nowhere, Err(host::Error::Channel { kind, relid: 77 }));
    let kind = Kind::GpadlTeardown;
    for (relid, gpadl) in [(relid, 99), (other, gpadl), (77, gpadl)] {
        let wrong = host.receive(&message(kind, &[relid, gpadl]));
        assert_eq!(wrong, Err(host::Error::Gpadl { kind, gpadl }));
    }
    // Half of it there, or being taken back.
    host.receive(&header(relid, 6, 24, 1, &[8192, 0, 7, 0]))
        .unwrap();
    let half = host.receive(&message(kind, &[relid, 6]));
    assert_eq!(half, Err(host::Error::Gpadl { kind, gpadl: 6 }));
    host.receive(&message(kind, &[relid, gpadl])).unwrap();
    let twice = host.receive(&message(kind, &[relid, gpadl]));
    assert_eq!(twice, Err(host::Error::Gpadl { kind, gpadl }));
}

#[test]
fn a_guest_cannot_make_the_host_keep_more_than_its_budget() {
    let mut pair = Pair::new(false);
    pair.host_limits.gpadls = 3;
    pair.host_limits.pages = 100;
    pair.host = Host::new(pair.host_limits);
    let relid = pair.host.offer(file_copy()).unwrap();
    pair.guest.connect().unwrap();
    pair.events();
    let host = &mut pair.host;
    // Announced is as good as sent.
    host.receive(&header(relid, 1, 8 * 90, 1, &[89 * 4096, 0, 7, 0]))
        .unwrap();
    let error = host.receive(&header(relid, 2, 8 * 11, 1, &[10 * 4096, 0, 7, 0]));
    assert_eq!(
        error,
        Err(host::Error::Budget {
            gpadl: 2,
            pages: 11
        })
    );
    assert!(refused(host, 2));
    for gpadl in [2, 3] {
        host.receive(&header(relid, gpadl, 16, 1, &[4096, 0, 7, 0]))
            .unwrap();
    }
    said(host);
    let error = host.receive(&header(relid, 4, 16, 1, &[4096, 0, 7, 0]));
    assert_eq!(error, Err(host::Error::Budget { gpadl: 4, pages: 2 }));
    assert!(refused(host, 4));
}

fn open(relid: u32, gpadl: u32, second_page: u32) -> Vec<u8> {
    message(
        Kind::OpenChannel,
        &[&[relid, 42, gpadl, 0, second_page][..], &[0; 30]].concat(),
    )
}

#[test]
fn a_channel_opens_on_its_own_memory_only() {
    let (mut pair, relid) = Pair::connected(false);
    let other = pair.host.offer(heartbeat()).unwrap();
    pair.events();
    let (gpadl, foreign) = (pair.share(relid, 10), pair.share(other, 10));
    let host = &mut pair.host;
    let kind = Kind::OpenChannel;
    for (memory, second, error) in [
        (99, 5, host::Error::Gpadl { kind, gpadl: 99 }),
        (
            foreign,
            5,
            host::Error::Gpadl {
                kind,
                gpadl: foreign,
            },
        ),
        (
            gpadl,
            0,
            host::Error::SecondRing {
                relid,
                second_page: 0,
                pages: 10,
            },
        ),
        (
            gpadl,
            10,
            host::Error::SecondRing {
                relid,
                second_page: 10,
                pages: 10,
            },
        ),
        (
            gpadl,
            u32::MAX,
            host::Error::SecondRing {
                relid,
                second_page: u32::MAX,
                pages: 10,
            },
        ),
    ] {
        assert_eq!(host.receive(&open(relid, memory, second)), Err(error));
        let answer = message(Kind::OpenResult, &[relid, 42, STATUS_UNSUCCESSFUL]);
        assert_eq!(said(host), [answer], "it waits for an answer");
    }
}

#[test]
fn a_channel_that_is_open_is_not_opened_again_and_keeps_its_memory() {
    let (mut pair, relid) = Pair::connected(false);
    let gpadl = pair.share(relid, 10);
    let (host, kind) = (&mut pair.host, Kind::OpenChannel);
    host.receive(&open(relid, gpadl, 5)).unwrap();
    for _ in 0..2 {
        let twice = host.receive(&open(relid, gpadl, 5));
        assert_eq!(twice, Err(host::Error::Channel { kind, relid }));
        host.opened(relid, true);
    }
    let torn = host.receive(&message(Kind::GpadlTeardown, &[relid, gpadl]));
    let kind = Kind::GpadlTeardown;
    assert_eq!(
        torn,
        Err(host::Error::Gpadl { kind, gpadl }),
        "its rings lie there"
    );
    for kind in [
        Kind::CloseChannel,
        Kind::RelidReleased,
        Kind::ModifyChannel,
        Kind::OpenChannel,
    ] {
        let mut bytes = message(kind, &[77; 2]);
        bytes.resize(148, 0);
        assert_eq!(
            host.receive(&bytes),
            Err(host::Error::Channel { kind, relid: 77 })
        );
    }
    let kind = Kind::RelidReleased;
    let early = host.receive(&message(kind, &[relid]));
    assert_eq!(
        early,
        Err(host::Error::Channel { kind, relid }),
        "it was not rescinded"
    );
    host.receive(&message(Kind::CloseChannel, &[relid]))
        .unwrap();
    assert!(
        host.receive(&message(Kind::CloseChannel, &[relid]))
            .is_err()
    );
}

#[test]
fn a_host_that_says_what_it_was_not_asked_is_named() {
    let (mut pair, relid) = Pair::connected(false);
    let guest = &mut pair.guest;
    let mut say = |kind, words: &[u32]| guest.receive(&message(kind, words)).unwrap_err();
    let unasked = |kind| guest::Error::Unasked { kind };
    let wrong = |kind, relid| guest::Error::Channel { kind, relid };
    use Kind::{
        GpadlCreated, GpadlTorndown, ModifyResponse, OpenResult, RescindOffer, UnloadResponse,
        VersionResponse,
    };
    assert_eq!(say(VersionResponse, &[1, 1]), unasked(VersionResponse));
    assert_eq!(say(UnloadResponse, &[]), unasked(UnloadResponse));
    assert_eq!(say(GpadlCreated, &[relid, 5, 0]), unasked(GpadlCreated));
    assert_eq!(say(GpadlTorndown, &[5]), unasked(GpadlTorndown));
    assert_eq!(say(OpenResult, &[relid, 5, 0]), wrong(OpenResult, relid));
    assert_eq!(
        say(ModifyResponse, &[relid, 0]),
        wrong(ModifyResponse, relid)
    );
    assert_eq!(say(RescindOffer, &[9]), wrong(RescindOffer, 9));
    // Memory that is said to be there before all of it was sent.
    let gpadl = pair.guest.share(relid, 100 * 4096, &[1; 100]).unwrap();
    pair.guest.poll_output().unwrap();
    let early = pair
        .guest
        .receive(&message(GpadlCreated, &[relid, gpadl, 0]));
    assert_eq!(early, Err(unasked(GpadlCreated)));
    pair.guest
        .receive(&message(GpadlCreated, &[relid, gpadl, 1]))
        .unwrap();
    let told = guest::Output::NotShared { gpadl, status: 1 };
    assert_eq!(
        pair.guest.poll_output(),
        Some(told),
        "and no more of it is sent"
    );
    assert_eq!(pair.guest.poll_output(), None);
}

#[test]
fn a_host_cannot_offer_more_than_is_kept_or_anything_twice() {
    let mut guest = Guest::new(guest::Limits {
        channels: 2,
        ..guest::Limits::default()
    });
    guest.connect().unwrap();
    guest
        .receive(&message(Kind::VersionResponse, &[1, 1]))
        .unwrap();
    let kind = Kind::OfferChannel;
    let offer = |relid: u32| {
        let mut bytes = message(kind, &[]);
        bytes.resize(196, 0);
        bytes[184..188].copy_from_slice(&relid.to_le_bytes());
        bytes
    };
    assert_eq!(
        guest.receive(&offer(0)),
        Err(guest::Error::Channel { kind, relid: 0 })
    );
    guest.receive(&offer(1)).unwrap();
    assert_eq!(
        guest.receive(&offer(1)),
        Err(guest::Error::Channel { kind, relid: 1 })
    );
    guest.receive(&offer(5)).unwrap();
    assert_eq!(
        guest.receive(&offer(6)),
        Err(guest::Error::Budget { relid: 6, max: 2 })
    );
}

#[test]
fn saved_bytes_that_no_conversation_leads_to_are_refused() {
    let (mut pair, relid) = Pair::connected(false);
    let gpadl = pair.share(relid, 3);
    pair.guest.open(relid, gpadl, 1, 0, [0; 120]).unwrap();
    pair.events();
    let (host, guest) = (
        pair.host.snapshot().unwrap(),
        pair.guest.snapshot().unwrap(),
    );
    let as_host = |bytes: &[u8]| Host::restore(pair.host_limits, bytes).map(|_| ());
    let as_guest = |bytes: &[u8]| Guest::restore(pair.guest_limits, bytes).map(|_| ());
    assert_eq!((as_host(&host), as_guest(&guest)), (Ok(()), Ok(())));
    assert!(matches!(as_host(&guest), Err(RestoreError::Magic { .. })));
    for len in 0..host.len() {
        assert!(as_host(&host[..len]).is_err(), "{len}");
    }
    for len in 0..guest.len() {
        assert!(as_guest(&guest[..len]).is_err(), "{len}");
    }
    // Whatever byte is changed: an error, or a state that can be saved again.
    for at in 0..host.len().max(guest.len()) {
        for change in [1, 2, 0x80, 0xFF] {
            let changed = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= change;
                }
                bytes
            };
            if let Ok(host) = Host::restore(pair.host_limits, &changed(&host)) {
                host.snapshot().unwrap();
            }
            if let Ok(guest) = Guest::restore(pair.guest_limits, &changed(&guest)) {
                guest.snapshot().unwrap();
            }
        }
    }
}
