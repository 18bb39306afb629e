//! Integration services: the frame, the negotiation, and the small services.

use linkspan_vmbus::RestoreError;
use linkspan_vmbus::ic::heartbeat::{Health, Monitor, Pulse};
use linkspan_vmbus::ic::shutdown::{Action, Obedience, Request, Requester};
use linkspan_vmbus::ic::timesync::{Clock, Follower, Purpose, Sample};
use linkspan_vmbus::ic::{
    Agreed, Echo, FILE_COPY, FrameError, Guest, GuestError, GuestService, HEADER_BYTES, HEARTBEAT,
    Host, HostError, HostEvent, PIPE_MAX, Reaction, SERVICES, SHUTDOWN, Service, Status, TIME_SYNC,
    Version, heartbeat, shutdown, timesync,
};

fn version(major: u16, minor: u16) -> Version {
    Version { major, minor }
}

/// A message as a host sends it, padded as a ring pads it.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend((u32::from(size) + 20).to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend(kind.to_le_bytes());
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 77, 3, 0, 0]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn negotiation(frameworks: &[Version], versions: &[Version]) -> Vec<u8> {
    let mut body = Vec::new();
    for list in [frameworks, versions] {
        body.extend(u16::try_from(list.len()).unwrap().to_le_bytes());
    }
    body.extend([0; 4]);
    for version in frameworks.iter().chain(versions) {
        body.extend(version.major.to_le_bytes());
        body.extend(version.minor.to_le_bytes());
    }
    message(0, &body)
}

fn status(reply: &[u8]) -> Status {
    Status(u32::from_le_bytes(reply[20..24].try_into().unwrap()))
}

/// Hands a message to a guest that answers it at once.
fn answer<S: GuestService>(guest: &mut Guest<S>, mut payload: Vec<u8>) -> Vec<u8> {
    match guest.receive(&mut payload) {
        Ok(Reaction::Reply(len)) => payload.truncate(len),
        other => panic!("{other:?}"),
    }
    payload
}

fn ready<S: GuestService>(service: S) -> Guest<S> {
    let mut guest = Guest::new(service, Echo::Full);
    let offer = negotiation(S::SERVICE.frameworks, S::SERVICE.versions);
    assert!(status(&answer(&mut guest, offer)).is_ok());
    guest
}

#[test]
fn the_table_is_what_linux_and_windows_have() {
    let row = |service: &Service| {
        (
            service.kind,
            service.interface.to_string(),
            service.versions.to_vec(),
        )
    };
    let of = |major, minor| version(major, minor);
    assert_eq!(
        SERVICES.map(row),
        [
            (
                7,
                "34d14be3-dee4-41c8-9ae7-6b174977c192".into(),
                vec![of(1, 1)]
            ),
            (
                1,
                "57164f39-9115-4e78-ab55-382f3bd5422d".into(),
                vec![of(3, 0), of(1, 0)]
            ),
            (
                3,
                "0e0b6031-5213-4934-818b-38d90ced39db".into(),
                vec![of(3, 2), of(3, 1), of(3, 0), of(1, 0)]
            ),
            (
                4,
                "9527e630-d0ae-497b-adce-e80ab0175caf".into(),
                vec![of(4, 0), of(3, 0), of(1, 0)]
            ),
        ]
    );
}

#[test]
fn the_best_common_versions_are_chosen() {
    let (v1, v3) = (version(1, 0), version(3, 0));
    for (frameworks, versions, want) in [
        (vec![v1, v3], vec![v1, v3], Some((v3, v3))),
        // Linux's daemon has framework 3.0 only.
        (vec![v1], vec![v1, v3], Some((v1, v3))),
        (vec![version(4, 0), v3], vec![v1], Some((v3, v1))),
        (vec![version(2, 0)], vec![v1], None),
        (vec![v3], vec![version(9, 9)], None),
        (vec![v3], vec![], None),
        (vec![], vec![], None),
    ] {
        let mut guest = Guest::new(Pulse::default(), Echo::Full);
        let offer = negotiation(&frameworks, &versions);
        let reply = answer(&mut guest, offer.clone());
        assert_eq!(reply.len(), offer.len(), "as long as it came");
        assert_eq!(reply[4..8], offer[4..8], "the pipe's length is left alone");
        assert_eq!(reply[18..20], [16, 0], "Linux's size of the answer");
        assert_eq!((reply[24], reply[25]), (77, 5), "number and flags");
        let count = u8::from(want.is_some());
        assert_eq!(reply[28..32], [count, 0, count, 0]);
        assert_eq!(status(&reply).is_ok(), want.is_some());
        assert_eq!(
            guest.agreed(),
            want.map(|(framework, service)| Agreed { framework, service })
        );
        if let Some((framework, service)) = want {
            let found = [framework, service].map(|version| version.major.to_le_bytes()[0]);
            assert_eq!((reply[36], reply[40]), (found[0], found[1]));
        }
    }
}

#[test]
fn a_negotiation_that_contradicts_itself_is_answered_with_no_version() {
    let sound = negotiation(&[version(3, 0)], &[version(3, 0)]);
    for (at, value) in [(28, 101), (28, 0xFF), (29, 0xFF), (30, 3), (31, 1)] {
        let mut broken = sound.clone();
        broken[at] = value;
        let mut guest = Guest::new(Pulse::default(), Echo::Full);
        let reply = answer(&mut guest, broken);
        assert_eq!(
            (status(&reply), &reply[28..32]),
            (Status::FAIL, &[0; 4][..])
        );
        assert_eq!(guest.agreed(), None);
    }
    for len in 0..8 {
        let mut guest = Guest::new(Pulse::default(), Echo::Full);
        let reply = answer(&mut guest, message(0, &vec![1; len]));
        assert_eq!(status(&reply), Status::FAIL);
    }
}

#[test]
fn what_cannot_be_answered_is_dropped_and_what_can_is_answered() {
    let mut guest = ready(Pulse::default());
    for len in 0..HEADER_BYTES {
        let mut short = message(1, &[0; 40])[..len].to_vec();
        let short_error = GuestError::Frame(FrameError::Short { got: len });
        assert_eq!(guest.receive(&mut short), Err(short_error));
    }
    let mut reply = message(1, &[0; 40]);
    reply[25] = 5;
    assert_eq!(
        guest.receive(&mut reply),
        Err(GuestError::NotARequest { flags: 5 })
    );
    // A pipe that is not data, lengths beyond the message, a body beyond the pipe.
    for (at, value) in [
        (0, 2),
        (0, 0),
        (4, 0xFF),
        (4, 19),
        (7, 1),
        (18, 41),
        (19, 1),
    ] {
        let mut broken = message(1, &[0; 40]);
        broken[at] = value;
        assert_eq!(
            status(&answer(&mut guest, broken)),
            Status::INVALID_ARGUMENT
        );
    }
    let mut long = message(1, &vec![0; PIPE_MAX]);
    assert_eq!(
        status(&answer(&mut guest, std::mem::take(&mut long))),
        Status::INVALID_ARGUMENT
    );
    for kind in [2, 3, 5, 7, 8, 0xFFFF] {
        let reply = answer(&mut guest, message(kind, &[0; 40]));
        assert_eq!(status(&reply), Status::FAIL, "kind {kind}");
        assert_eq!(reply.len(), 72);
    }
    let mut early = Guest::new(Pulse::default(), Echo::Full);
    assert_eq!(
        status(&answer(&mut early, message(1, &[0; 40]))),
        Status::FAIL
    );
}

#[test]
fn a_reply_echoes_all_or_the_header_only() {
    let mut full = ready(Pulse {
        health: Health::Healthy,
    });
    let mut body = [0xAB; 40];
    body[..8].copy_from_slice(&41_u64.to_le_bytes());
    let reply = answer(&mut full, message(1, &body));
    assert_eq!(reply.len(), 72);
    assert_eq!(reply[28..36], 42_u64.to_le_bytes());
    assert_eq!(reply[36..40], [1, 0, 0, 0]);
    assert_eq!(reply[40..68], [0xAB; 28], "the rest as it came");
    let saved = full.snapshot().unwrap();
    let mut short = Guest::restore(Pulse::default(), Echo::Header, &saved).unwrap();
    let reply = answer(&mut short, message(1, &body));
    assert_eq!(reply.len(), HEADER_BYTES);
    assert_eq!(
        (&reply[4..8], &reply[18..20]),
        (&[20, 0, 0, 0][..], &[0, 0][..])
    );
    let offer = negotiation(HEARTBEAT.frameworks, HEARTBEAT.versions);
    assert_eq!(
        answer(&mut short, offer).len(),
        56,
        "a negotiation is never cut"
    );
}

/// Carries a message of the host to the guest and the reply back.
fn carry<S: GuestService>(
    guest: &mut Guest<S>,
    mut payload: Vec<u8>,
    allowed: Status,
) -> (Vec<u8>, Vec<S::Effect>) {
    payload.resize(payload.len().next_multiple_of(8), 0);
    let mut effects = Vec::new();
    let mut reaction = guest.receive(&mut payload).unwrap();
    loop {
        match reaction {
            Reaction::Reply(len) => {
                payload.truncate(len);
                return (payload, effects);
            }
            Reaction::Do(effect) => {
                assert!(guest.snapshot().is_err(), "not while something is done");
                effects.push(effect);
                reaction = guest.answer(allowed, &mut payload);
            }
        }
    }
}

/// Saves and restores an end of a host.
macro_rules! cut {
    ($end:ident, $type:ty) => {
        let restored = <$type>::restore(&$end.snapshot()).unwrap();
        assert_eq!(restored, $end);
        $end = restored;
    };
}

#[test]
fn a_heart_beats() {
    let (mut monitor, mut guest) = (
        Monitor::default(),
        Guest::new(
            Pulse {
                health: Health::Critical,
            },
            Echo::Full,
        ),
    );
    assert_eq!(monitor.beat(), Err(HostError::NotReady));
    let start = monitor.start();
    cut!(monitor, Monitor);
    let (reply, _) = carry(&mut guest, start, Status::OK);
    assert!(matches!(
        monitor.receive(&reply),
        Ok(heartbeat::Event::Ready(_))
    ));
    for _ in 0..3 {
        cut!(monitor, Monitor);
        let beat = monitor.beat().unwrap();
        cut!(monitor, Monitor);
        let (reply, _) = carry(&mut guest, beat, Status::OK);
        assert_eq!(
            monitor.receive(&reply),
            Ok(heartbeat::Event::Alive(Health::Critical))
        );
        assert_eq!(monitor.receive(&reply), Ok(heartbeat::Event::Late), "once");
    }
    let lost = monitor.beat().unwrap();
    let beat = monitor.beat().unwrap();
    assert_eq!(monitor.missed(), 1);
    cut!(monitor, Monitor);
    let (reply, _) = carry(&mut guest, lost, Status::OK);
    assert_eq!(monitor.receive(&reply), Ok(heartbeat::Event::Late));
    let (mut reply, _) = carry(&mut guest, beat, Status::OK);
    reply[28] ^= 4;
    assert_eq!(monitor.receive(&reply), Ok(heartbeat::Event::Strange));
    assert_eq!(monitor.missed(), 0, "it answers");
}

#[test]
fn a_guest_shuts_down_only_when_it_is_allowed() {
    let (mut host, mut guest) = (Requester::default(), Guest::new(Obedience, Echo::Full));
    let start = host.start();
    let (reply, _) = carry(&mut guest, start, Status::OK);
    assert!(
        matches!(host.receive(&reply), Ok(shutdown::Event::Ready(agreed)) if agreed.service == version(3, 2))
    );
    for (action, force, allowed) in [
        (Action::PowerOff, true, Status::OK),
        (Action::Restart, false, Status::FAIL),
        (Action::Hibernate, false, Status::OK),
    ] {
        let wish = Request {
            action,
            force,
            reason: 7,
            timeout_s: 60,
            message: "Größe ändern".into(),
        };
        let asked = host.request(&wish).unwrap();
        cut!(host, Requester);
        let (reply, effects) = carry(&mut guest, asked, allowed);
        assert_eq!(effects, [wish]);
        assert_eq!(host.receive(&reply), Ok(shutdown::Event::Answered(allowed)));
    }
    // A text that does not fit is cut between two characters.
    let long = Request {
        action: Action::PowerOff,
        force: false,
        reason: 0,
        timeout_s: 0,
        message: "ä".repeat(3000),
    };
    let (_, effects) = carry(&mut guest, host.request(&long).unwrap(), Status::OK);
    assert_eq!(effects[0].message, "ä".repeat(1023));
}

#[test]
fn wishes_that_make_no_sense_are_refused() {
    let mut old = Guest::new(Obedience, Echo::Full);
    answer(&mut old, negotiation(&[version(3, 0)], &[version(3, 1)]));
    let wish = |flags: u32| [&[0; 8][..], &flags.to_le_bytes(), &[0; 2048]].concat();
    let refused =
        |guest: &mut Guest<Obedience>, body: &[u8]| status(&answer(guest, message(3, body)));
    assert_eq!(
        refused(&mut old, &wish(4)),
        Status::FAIL,
        "only 3.2 hibernates"
    );
    for flags in [6, 8, 0x100, u32::MAX] {
        assert_eq!(refused(&mut old, &wish(flags)), Status::FAIL);
    }
    for len in 0..12 {
        assert_eq!(refused(&mut old, &vec![0; len]), Status::INVALID_ARGUMENT);
    }
}

#[test]
fn time_comes_across_in_every_version() {
    for service in TIME_SYNC.versions {
        let (mut clock, mut guest) = (Clock::default(), Guest::new(Follower, Echo::Full));
        let whole = clock.start();
        let last = negotiation(&[version(3, 0)], &[*service]);
        let mut offer = last.clone();
        offer[24] = whole[24];
        let reply = answer(&mut guest, offer);
        assert!(
            matches!(clock.receive(&reply), Ok(timesync::Event::Ready(agreed)) if agreed.service == *service)
        );
        for purpose in [Purpose::Set, Purpose::Sample, Purpose::Probe] {
            let sample = Sample {
                purpose,
                unix_100ns: 17_000_000_000_000_000,
                reference_100ns: (service.major == 4).then_some(123),
            };
            let told = clock.tell(sample).unwrap();
            cut!(clock, Clock);
            assert_eq!(
                told.len() - HEADER_BYTES,
                if service.major == 4 { 22 } else { 25 }
            );
            let (reply, effects) = carry(&mut guest, told, Status::OK);
            let want = if purpose == Purpose::Probe {
                vec![]
            } else {
                vec![sample]
            };
            assert_eq!(effects, want);
            assert_eq!(
                clock.receive(&reply),
                Ok(timesync::Event::Answered(Status::OK))
            );
        }
    }
}

#[test]
fn a_time_before_1970_or_cut_short_is_refused() {
    let mut guest = ready(Follower);
    for body in [vec![0; 22], vec![0xFF; 21], vec![]] {
        assert_eq!(
            status(&answer(&mut guest, message(4, &body))),
            Status::INVALID_ARGUMENT
        );
    }
}

/// A guest with no version in common, one that chooses what it was not offered, and
/// ones that break the protocol.
#[test]
fn a_host_names_what_a_guest_does_wrong() {
    let reply_to = |host: &mut Host, change: &dyn Fn(&mut Vec<u8>)| {
        let mut guest = Guest::new(Obedience, Echo::Full);
        let mut reply = answer(&mut guest, {
            let mut offer = host.negotiate();
            offer.resize(offer.len().next_multiple_of(8), 0);
            offer
        });
        change(&mut reply);
        host.receive(&reply).map(|event| format!("{event:?}"))
    };
    let mut host = Host::new(&SHUTDOWN);
    let nothing = HostError::NoCommonVersion {
        service: "shutdown",
    };
    assert_eq!(
        reply_to(&mut host, &|reply| reply[28..32].fill(0)),
        Err(nothing)
    );
    let versions = reply_to(&mut host, &|reply| reply[28] = 2);
    let wrong = FrameError::Versions {
        frameworks: 2,
        versions: 1,
        got: 16,
    };
    assert_eq!(versions, Err(HostError::Frame(wrong)));
    let wrong = HostError::NotOffered {
        framework: version(9, 0),
        version: version(3, 2),
    };
    assert_eq!(reply_to(&mut host, &|reply| reply[36] = 9), Err(wrong));
    assert_eq!(
        reply_to(&mut host, &|reply| reply[12] = 3),
        Err(HostError::Kind { got: 3, want: 0 })
    );
    assert_eq!(
        reply_to(&mut host, &|reply| reply[25] = 3),
        Err(HostError::NotAReply { flags: 3 })
    );
    let stale = reply_to(&mut host, &|reply| reply[24] ^= 1).unwrap();
    assert!(stale.contains("Stale"));
    assert_eq!(
        reply_to(&mut host, &|reply| reply.truncate(27)),
        Err(HostError::Frame(FrameError::Short { got: 27 }))
    );
    let size = reply_to(&mut host, &|reply| reply[18..20].fill(0xFF));
    assert!(matches!(
        size,
        Err(HostError::Frame(FrameError::Size { size: 0xFFFF, .. }))
    ));
    assert!(reply_to(&mut host, &|_| ()).unwrap().contains("Negotiated"));
    assert_eq!(
        host.request(PIPE_MAX),
        Err(HostError::Body { len: PIPE_MAX })
    );
    for sent in 0..64 {
        assert_eq!(host.outstanding(), sent);
        host.request(8).unwrap();
    }
    assert_eq!(host.request(8), Err(HostError::Busy { outstanding: 64 }));
    let saved = host.snapshot();
    assert_eq!(Host::restore(&SHUTDOWN, &saved).as_ref(), Ok(&host));
    assert!(Host::restore(&FILE_COPY, &saved).is_err());
}

#[test]
fn numbers_of_requests_are_not_given_twice() {
    let mut host = Host::new(&HEARTBEAT);
    let mut guest = Guest::new(Pulse::default(), Echo::Full);
    let start = host.negotiate();
    let (reply, _) = carry(&mut guest, start, Status::OK);
    host.receive(&reply).unwrap();
    let (kept, _) = host.request(8).unwrap();
    for _ in 0..600 {
        let (number, head) = host.request(8).unwrap();
        assert_ne!(number, kept);
        let (reply, _) = carry(&mut guest, [&head[..], &[0; 8]].concat(), Status::OK);
        assert!(
            matches!(host.receive(&reply), Ok(HostEvent::Reply { transaction, .. }) if transaction == number)
        );
    }
}

#[test]
fn saved_bytes_that_are_none_are_refused() {
    let saved = ready(Pulse::default()).snapshot().unwrap();
    let restore = |bytes: &[u8]| Guest::restore(Pulse::default(), Echo::Full, bytes).map(|_| ());
    assert_eq!(restore(&saved), Ok(()));
    for len in 0..saved.len() {
        assert!(restore(&saved[..len]).is_err());
    }
    assert!(matches!(
        restore(&[&saved[..], &[0]].concat()),
        Err(RestoreError::Length { .. })
    ));
    for (at, value) in [(0, 0), (8, 3), (10, 2), (11, 9), (15, 9)] {
        let mut wrong = saved.clone();
        wrong[at] = value;
        assert!(restore(&wrong).is_err(), "byte {at}");
    }
    let mut monitor = Monitor::default();
    let start = monitor.start();
    let (reply, _) = carry(&mut ready(Pulse::default()), start, Status::OK);
    monitor.receive(&reply).unwrap();
    monitor.beat().unwrap();
    let saved = monitor.snapshot();
    for len in 0..saved.len() {
        assert!(Monitor::restore(&saved[..len]).is_err());
        assert!(Requester::restore(&saved[..len]).is_err());
        assert!(Clock::restore(&saved[..len]).is_err());
    }
    // A reply that is awaited although nothing is outstanding.
    let mut wrong = saved.clone();
    wrong[saved.len() - 14] = 0;
    assert!(Monitor::restore(&wrong).is_err());
}
