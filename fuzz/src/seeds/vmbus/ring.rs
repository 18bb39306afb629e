//! Seeds of `vmbus_ring`.

use super::{seed, words};
use crate::seeds::Seed;
use crate::vmbus::ring::{DATA, HEADER, step as ring_step};

fn send(len: u16, kind: u8) -> Vec<u8> {
    [&[ring_step::SEND][..], &len.to_le_bytes(), &[kind]].concat()
}

fn poke(at: u16, bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("short");
    [&[ring_step::POKE][..], &at.to_le_bytes(), &[len], bytes].concat()
}

fn publish() -> Vec<u8> {
    vec![ring_step::PUBLISH]
}

fn receive() -> Vec<u8> {
    vec![ring_step::RECEIVE, 20, ring_step::ARM]
}

/// A packet with these fields behind its descriptor, which the payload follows.
fn packet(kind: u16, head: &[u8]) -> Vec<u8> {
    let len8 = u16::try_from(2 + head.len() / 8).expect("short");
    let [k, l] = [kind, len8].map(u16::to_le_bytes);
    let descriptor = [&k[..], &l, &l, &[0; 10]].concat();
    let bytes = [&descriptor, head].concat();
    let end = u32::try_from(bytes.len() + 8).expect("short");
    [poke(HEADER, &bytes), poke(0, &end.to_le_bytes()), receive()].concat()
}

pub(super) fn seeds() -> Vec<Seed> {
    let round = [send(100, 6), send(3, 11), publish(), receive()].concat();
    let wait = [vec![ring_step::WAIT], 200_u16.to_le_bytes().to_vec()].concat();
    let race = |later: u8, at: u16, value: u32| {
        [
            &[ring_step::RACE, later][..],
            &at.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat()
    };
    let descriptor = |offset8: u8, len8: u8, end: u32| {
        let bytes = [6, 0, offset8, 0, len8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        [poke(HEADER, &bytes), poke(0, &end.to_le_bytes()), receive()].concat()
    };
    let gpa = [words(&[0, 1, 8192, 16]), vec![7; 24]].concat();
    let pages = [words(&[9, 1, 4096, 0]), vec![7; 8]].concat();
    let resume = vec![ring_step::RESUME];
    let index = u32::from(DATA);
    [
        (
            ("packets_around_the_end", 20, 0, ""),
            vec![round.repeat(10)],
        ),
        (
            ("full_and_waiting", 4, 0, ""),
            vec![
                send(200, 6),
                send(200, 6),
                publish(),
                send(200, 6),
                wait.clone(),
                receive(),
                send(200, 6),
                send(200, 6),
                publish(),
                receive(),
            ],
        ),
        (
            ("resumed_after_each_step", 2, 0, ""),
            vec![
                send(8, 6),
                send(8, 6),
                publish(),
                resume.clone(),
                vec![ring_step::RECEIVE, 1, ring_step::RELEASE],
                resume.clone(),
                receive(),
            ],
        ),
        (
            ("write_index_outside", 0, 1, "write index"),
            vec![poke(0, &index.to_le_bytes()), receive()],
        ),
        (
            ("write_index_between", 0, 1, "write index 12"),
            vec![poke(0, &12_u32.to_le_bytes()), receive()],
        ),
        (
            ("write_index_back", 1, 1, "back over"),
            vec![
                send(100, 6),
                send(8, 6),
                publish(),
                vec![ring_step::RECEIVE, 1],
                poke(0, &[136]),
                receive(),
            ],
        ),
        (
            ("read_index_outside", 0, 1, "read index"),
            vec![poke(4, &index.to_le_bytes()), publish(), wait],
        ),
        (
            ("read_index_ahead", 0, 1, "back over"),
            vec![
                send(8, 6),
                publish(),
                poke(4, &[72]),
                send(8, 6),
                publish(),
                send(400, 6),
            ],
        ),
        (
            (
                "payload_behind_the_packet",
                0,
                1,
                "whose payload begins at 40",
            ),
            vec![descriptor(5, 4, 64)],
        ),
        (
            (
                "payload_in_the_descriptor",
                0,
                1,
                "whose payload begins at 8",
            ),
            vec![descriptor(1, 4, 64)],
        ),
        (
            (
                "packet_without_trailer",
                0,
                1,
                "where 32 bytes were published",
            ),
            vec![descriptor(2, 4, 32)],
        ),
        (
            ("packet_too_long", 0, 1, "where 400 are the most"),
            vec![descriptor(2, 51, 480)],
        ),
        (
            ("transfer_pages", 1, 0, ""),
            vec![packet(7, &words(&[5, 1, 100, 8]))],
        ),
        (("gpadl", 1, 0, ""), vec![packet(8, &words(&[5, 0]))]),
        (("gpa_direct", 1, 0, ""), vec![packet(9, &gpa)]),
        (("gpadl_comes", 1, 0, ""), vec![packet(4, &pages)]),
        (("gpadl_goes", 1, 0, ""), vec![packet(5, &words(&[9, 0]))]),
        (
            ("ranges_without_end", 0, 1, "where its fields need"),
            vec![packet(9, &words(&[0, u32::MAX]))],
        ),
        (("kind_unknown", 0, 1, "kind 0xa"), vec![packet(10, &[])]),
        (
            (
                "length_changes_while_read",
                1,
                1,
                "where 72 bytes were published",
            ),
            vec![
                send(40, 6),
                publish(),
                race(3, HEADER + 4, 20),
                vec![ring_step::RECEIVE, 1],
                send(48, 6),
                publish(),
                poke(HEADER + 68, &[20]),
                receive(),
            ],
        ),
        (
            ("pending_size_changes_while_read", 2, 0, ""),
            vec![
                send(40, 6),
                send(40, 6),
                publish(),
                poke(12, &[0, 1]),
                race(2, 12, 8),
                vec![ring_step::RECEIVE, 1],
                vec![ring_step::RELEASE],
                receive(),
            ],
        ),
    ]
    .map(|(expected, parts)| seed("vmbus_ring", expected, &parts))
    .to_vec()
}
