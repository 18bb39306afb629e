//! Seeds of `vmbus_channel`.

use super::{seed, words};
use crate::seeds::Seed;
use crate::vmbus::channel::{guest_owner, host_owner, step as channel_step};

fn message(code: u8, body: &[u32]) -> Vec<u8> {
    let bytes = words(body);
    let len = u8::try_from(bytes.len()).expect("short");
    [&[channel_step::MESSAGE, code, len][..], &bytes].concat()
}

fn owner(what: u8, number: u8) -> Vec<u8> {
    vec![channel_step::OWNER, what, number]
}

const V5_3: u32 = 5 << 16 | 3;

pub(super) fn seeds() -> Vec<Seed> {
    let save = vec![channel_step::SAVE];
    let contact = |version: u32| message(14, &[version, 0, 0, 0, 0, 0, 0, 0]);
    let hello = [vec![0], contact(V5_3), message(3, &[])].concat();
    let gpadl = |relid: u32, gpadl: u32, pages: u32| {
        let len = 8 + 8 * pages;
        let head = [relid, gpadl, len | 1 << 16, pages * 4096, 0];
        message(8, &[&head[..], &vec![7; 2 * pages as usize]].concat())
    };
    let open = |relid: u32, gpadl: u32, second: u32| {
        message(5, &[&[relid, 3, gpadl, 0, second][..], &[0; 30]].concat())
    };
    let opened = [hello.clone(), gpadl(1, 5, 10), open(1, 5, 5)].concat();
    let offer = |relid: u32| {
        let mut body = vec![0; 47];
        body[44] = relid;
        message(1, &body)
    };
    let met = [vec![1], message(15, &[1, 1]), offer(1), message(4, &[])].concat();
    let shared = [
        met.clone(),
        owner(guest_owner::SHARE, 1),
        save.clone(),
        message(10, &[1, 0xE1E10, 0]),
    ]
    .concat();
    let guest_open = [
        shared.clone(),
        owner(guest_owner::OPEN, 1),
        message(6, &[1, 1, 0]),
    ]
    .concat();
    [
        (
            ("host_whole_life", 8, 0, ""),
            vec![
                opened.clone(),
                save.clone(),
                message(22, &[1, 3]),
                message(7, &[1]),
                message(11, &[1, 5]),
                message(16, &[]),
            ],
        ),
        (
            ("host_gpadl_in_parts", 4, 0, ""),
            vec![
                hello.clone(),
                message(8, &[1, 5, 40 | 1 << 16, 4 * 4096, 0, 1, 0]),
                save.clone(),
                message(9, &[1, 5, 1, 0, 2, 0, 3, 0]),
            ],
        ),
        (
            ("host_gpadl_too_much", 3, 1, "where 24 were announced"),
            vec![
                hello.clone(),
                message(8, &[1, 5, 24 | 1 << 16, 8192, 0, 1, 0]),
                message(9, &[1, 5, 1, 0, 2, 0]),
            ],
        ),
        (
            ("host_gpadl_offset", 2, 1, "begins at byte 4096"),
            vec![
                hello.clone(),
                message(8, &[1, 5, 16 | 1 << 16, 4096, 4096, 1, 0]),
            ],
        ),
        (
            ("host_budget", 2, 1, "more than is kept"),
            vec![
                hello.clone(),
                message(8, &[1, 5, 8000 | 1 << 16, 4096 * 900, 0]),
            ],
        ),
        (
            ("host_open_refused", 4, 0, ""),
            vec![
                hello.clone(),
                owner(host_owner::GRANT, 1),
                gpadl(1, 5, 10),
                open(1, 5, 5),
            ],
        ),
        (
            ("host_second_ring_outside", 3, 1, "page 10 of 10"),
            vec![hello.clone(), gpadl(1, 5, 10), open(1, 5, 10)],
        ),
        (
            ("host_opened_twice", 4, 1, "not there for it"),
            vec![opened.clone(), open(1, 5, 5)],
        ),
        (
            ("host_teardown_in_use", 4, 1, "GPADL 0x5"),
            vec![opened.clone(), message(11, &[1, 5])],
        ),
        (
            ("host_rescinded", 6, 0, ""),
            vec![
                opened.clone(),
                owner(host_owner::RESCIND, 1),
                save.clone(),
                message(7, &[1]),
                message(13, &[1]),
                owner(host_owner::OFFER, 3),
            ],
        ),
        (
            ("host_begun_anew", 5, 0, ""),
            vec![opened, contact(2 << 16 | 4)],
        ),
        (
            ("host_before_contact", 0, 1, "before the first contact"),
            vec![vec![0], message(3, &[])],
        ),
        (
            ("host_version_unknown", 1, 1, "before the first contact"),
            vec![vec![0], contact(9), message(3, &[])],
        ),
        (
            ("host_short_message", 0, 2, "20 bytes, where 40"),
            vec![
                vec![0, channel_step::RAW, 3, 1, 2, 3],
                message(14, &[1, 2, 3]),
            ],
        ),
        (
            ("guest_whole_life", 7, 0, ""),
            vec![
                guest_open.clone(),
                owner(guest_owner::RETARGET, 1),
                message(24, &[1, 0]),
                owner(guest_owner::CLOSE, 1),
                owner(guest_owner::UNSHARE, 1),
                save.clone(),
                message(12, &[0xE1E10]),
            ],
        ),
        (
            ("guest_unloads", 6, 0, ""),
            vec![
                guest_open.clone(),
                owner(guest_owner::UNLOAD, 0),
                message(17, &[]),
            ],
        ),
        (
            ("guest_falls_back", 3, 0, ""),
            vec![
                vec![1],
                message(15, &[0]),
                message(15, &[0]),
                message(15, &[1]),
            ],
        ),
        (
            ("guest_rescinded_and_late_answers", 8, 0, ""),
            vec![
                guest_open,
                message(2, &[1]),
                message(6, &[1, 1, 0]),
                message(10, &[1, 9, 0]),
                owner(guest_owner::RELEASE, 1),
                save,
            ],
        ),
        (
            ("guest_offered_twice", 3, 1, "channel 1, which"),
            vec![met.clone(), offer(1)],
        ),
        (
            ("guest_offered_too_much", 6, 1, "one more than 4"),
            vec![met.clone(), offer(2), offer(3), offer(4), offer(5)],
        ),
        (
            ("guest_unasked", 3, 3, "when it was not asked for"),
            vec![
                met,
                message(6, &[1, 1, 0]),
                message(12, &[7]),
                message(17, &[]),
            ],
        ),
        (
            ("guest_refused_memory", 4, 1, "OpenResult for channel 1"),
            vec![
                shared[..shared.len() - 1].to_vec(),
                vec![0xC0],
                message(6, &[1, 0, 0]),
            ],
        ),
    ]
    .map(|(expected, parts)| seed("vmbus_channel", expected, &parts))
    .to_vec()
}
