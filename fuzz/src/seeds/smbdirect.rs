//! Seeds of `smbdirect`.

use super::{Expected, Seed};
use crate::smbdirect::{CONNECTED, INITIATOR, MEAGRE};

const HEAR: [u8; 1] = [7];
const LOSE: [u8; 1] = [12];
const RESTORE: [u8; 1] = [14];
const NEXT_TIMER: [u8; 1] = [15];

fn raw(bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("short");
    [&[0, len], bytes].concat()
}

/// A Data Transfer that asks for six credits and grants `granted`.
fn data(granted: u8, remaining: u16, offset: u8, length: u8) -> Vec<u8> {
    let [low, high] = remaining.to_le_bytes();
    vec![1, 6, granted, 0, low, high, offset, length, 0]
}

fn send(len: u16, parts: u8) -> Vec<u8> {
    let [low, high] = len.to_le_bytes();
    vec![2, low, high, parts]
}

/// A write or read of `len` bytes at the begin of so many descriptors of 100 bytes.
fn transfer(operation: u8, len: u16, count: u8) -> Vec<u8> {
    let [low, high] = len.to_le_bytes();
    let mut bytes = vec![operation, low, high, 0, 0, count * 16];
    for at in 0..count {
        bytes.extend([0, 16, 0, 0, 0, 0, 0, 0, at, 0, 0, 1, 100, 0, 0, 0]);
    }
    bytes
}

fn request(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 1, 0, 0, 6, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0];
    change(&mut bytes);
    raw(&bytes)
}

fn response(change: impl Fn(&mut [u8])) -> Vec<u8> {
    let head = [0, 1, 0, 1, 0, 1, 0, 0, 6, 0, 6, 0, 0, 0, 0, 0];
    let sizes = [0, 0, 16, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0];
    let mut bytes = [head, sizes].concat();
    change(&mut bytes);
    raw(&bytes)
}

type Row = (&'static str, u8, usize, usize, &'static str, Vec<Vec<u8>>);

pub(super) fn seeds() -> Vec<Seed> {
    let rows = negotiation().into_iter().chain(connected());
    let seed = |(name, kind, done, refused, error, parts): Row| Seed {
        target: "smbdirect",
        name: name.into(),
        bytes: [vec![kind], parts.concat()].concat(),
        expected: Expected::Smbdirect {
            done,
            refused,
            error: Some(error).filter(|error| !error.is_empty()),
        },
    };
    rows.map(seed).collect()
}

fn negotiation() -> Vec<Row> {
    let same = |_: &mut [u8]| {};
    vec![
        (
            "listener_agrees",
            0,
            0,
            0,
            "",
            vec![request(same), HEAR.into(), data(3, 0, 0, 0)],
        ),
        (
            "listener_short",
            0,
            0,
            0,
            "Negotiate Request of 5 bytes",
            vec![raw(&[0; 5])],
        ),
        (
            "listener_other_version",
            0,
            0,
            0,
            "versions",
            vec![request(|it| it[1] = 2), HEAR.into()],
        ),
        (
            "listener_no_credits",
            0,
            0,
            0,
            "CreditsRequested is 0",
            vec![request(|it| it[6] = 0)],
        ),
        (
            "listener_timer",
            0,
            0,
            0,
            "no negotiation within",
            vec![NEXT_TIMER.into()],
        ),
        (
            "initiator_agrees",
            INITIATOR,
            1,
            1,
            "",
            vec![
                response(same),
                HEAR.into(),
                send(500, 1),
                HEAR.into(),
                send(0, 0),
            ],
        ),
        (
            "initiator_refused",
            INITIATOR,
            0,
            0,
            "refused with status",
            vec![response(|it| it[12] = 1)],
        ),
        (
            "initiator_short",
            INITIATOR,
            0,
            0,
            "Negotiate Response of 20 bytes",
            vec![request(same)],
        ),
        (
            "initiator_sends_too_much",
            INITIATOR,
            0,
            0,
            "PreferredSendSize",
            vec![response(|it| it[22] = 1)],
        ),
    ]
}

fn connected() -> Vec<Row> {
    let [listens, asks] = [CONNECTED, CONNECTED | INITIATOR];
    let last = data(1, 0, 24, 100);
    let key = vec![1, 6, 1, 0, 0, 0, 24, 9, 1];
    vec![
        (
            "message",
            listens,
            100,
            0,
            "",
            vec![last.clone(), vec![9, 100]],
        ),
        (
            "fragments",
            listens,
            200,
            0,
            "",
            vec![
                data(1, 100, 24, 100),
                data(1, 0, 0, 0),
                vec![9, 1],
                last.clone(),
                vec![9, 100],
            ],
        ),
        (
            "fragments_that_do_not_fit",
            listens,
            0,
            0,
            "are missing",
            vec![data(1, 100, 24, 100), data(1, 1, 24, 100)],
        ),
        (
            "offset_in_the_header",
            listens,
            0,
            0,
            "within the header",
            vec![data(1, 0, 16, 10)],
        ),
        (
            "offset_unaligned",
            listens,
            0,
            0,
            "no multiple of 8",
            vec![data(1, 0, 25, 10)],
        ),
        (
            "many_small_fragments",
            listens | MEAGRE,
            0,
            0,
            "",
            (1..20)
                .rev()
                .flat_map(|left| [data(1, left, 24, 1), HEAR.into()])
                .collect(),
        ),
        (
            "without_a_credit",
            listens | MEAGRE,
            0,
            0,
            "without a credit",
            vec![data(0, 0, 0, 0); 8],
        ),
        (
            "credits_overflow",
            asks,
            0,
            0,
            "",
            vec![data(255, 0, 0, 0), HEAR.into(), data(255, 0, 0, 0)],
        ),
        (
            "sends_until_no_credit",
            asks,
            1,
            3,
            "",
            vec![
                send(50, 0),
                send(3000, 9),
                send(9, 3),
                HEAR.into(),
                send(4000, 2),
            ],
        ),
        (
            "write_of_three_descriptors",
            asks,
            1,
            0,
            "",
            vec![transfer(3, 250, 3), HEAR.into()],
        ),
        ("write_outside", asks, 0, 1, "", vec![transfer(3, 301, 3)]),
        (
            "read_in_parts",
            asks,
            1,
            0,
            "",
            vec![
                transfer(4, 250, 3),
                HEAR.into(),
                vec![8, 255],
                HEAR.into(),
                vec![8, 255],
                HEAR.into(),
                vec![8, 255],
            ],
        ),
        (
            "peer_writes_and_invalidates",
            asks,
            10,
            0,
            "",
            vec![
                vec![5, 100],
                HEAR.into(),
                vec![13, 1, 50, 100],
                key.clone(),
                vec![6, 0],
                vec![9, 9],
            ],
        ),
        (
            "peer_invalidates_twice",
            asks,
            0,
            1,
            "lost",
            vec![HEAR.into(), vec![5, 100], key.clone(), HEAR.into(), key],
        ),
        (
            "peer_reads_what_is_not_there",
            asks,
            0,
            1,
            "lost",
            vec![
                HEAR.into(),
                vec![5, 100],
                vec![13, 0x83, 0, 10],
                HEAR.into(),
            ],
        ),
        (
            "deregistered_here",
            asks,
            1,
            1,
            "",
            vec![vec![5, 100], vec![6, 0], vec![6, 0], HEAR.into()],
        ),
        (
            "idle_and_dead",
            listens,
            0,
            0,
            "was silent",
            vec![
                data(3, 0, 0, 0),
                HEAR.into(),
                NEXT_TIMER.into(),
                HEAR.into(),
                NEXT_TIMER.into(),
            ],
        ),
        (
            "saved_and_restored",
            asks,
            101,
            0,
            "",
            vec![HEAR.into(), RESTORE.into(), last, vec![9, 100]],
        ),
        (
            "lost_with_everything_under_way",
            asks,
            0,
            4,
            "was not done",
            vec![
                send(3000, 3),
                transfer(4, 250, 3),
                vec![5, 100],
                send(50, 1),
                LOSE.into(),
            ],
        ),
    ]
}
