//! Seeds of `vmbus_services`.

use super::{seed, words};
use crate::seeds::Seed;
use crate::vmbus::services::{end, host_step, step as guest_step};

fn body(kind: u8, size: u16, given: &[u8]) -> Vec<u8> {
    let len = u16::try_from(given.len()).expect("short");
    [
        &[guest_step::BODY, kind][..],
        &size.to_le_bytes(),
        &len.to_le_bytes(),
        given,
    ]
    .concat()
}

fn negotiate(version: u8) -> Vec<u8> {
    body(
        0,
        16,
        &[1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, version, 0, 0, 0],
    )
}

fn fcopy_negotiate() -> Vec<u8> {
    body(0, 16, &[1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0])
}

fn start(file: &str, path: &str, size: u64) -> Vec<u8> {
    let mut bytes = vec![guest_step::START];
    for text in [file, path] {
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        bytes.push(u8::try_from(units.len()).expect("short"));
        bytes.extend(units);
    }
    bytes.extend(size.to_le_bytes());
    bytes
}

fn write(offset: u64, size: u32) -> Vec<u8> {
    let head = [
        words(&[1]),
        vec![0; 36],
        offset.to_le_bytes().to_vec(),
        words(&[size]),
    ]
    .concat();
    body(7, 6196, &head)
}

fn operation(code: u32) -> Vec<u8> {
    body(7, 36, &words(&[code]))
}

pub(super) fn seeds() -> Vec<Seed> {
    let begun = [
        vec![end::FILE_COPY],
        fcopy_negotiate(),
        start("naïve-日本", "/tmp/", 10_000),
    ]
    .concat();
    let save = vec![guest_step::SAVE];
    let reply = |status: u8, at: u16, change: u8| {
        [
            &[host_step::REPLY, status][..],
            &at.to_le_bytes(),
            &[change],
        ]
        .concat()
    };
    let fine = reply(0, 0, 0);
    let begin = |size: u32| [vec![host_step::SEND], words(&[size])].concat();
    let ready = [vec![end::SENDER], fine.repeat(2)].concat();
    let hosts = [vec![end::HOSTS], fine.clone()].concat();
    let beat = vec![host_step::SEND];
    let time = |purpose: u8| {
        let unix = 130_000_000_000_000_000_u64.to_le_bytes();
        body(4, 22, &[&unix[..], &[1; 8], &[purpose]].concat())
    };
    let end_all = vec![guest_step::END];
    let fail = vec![guest_step::ANSWER, 2];
    [
        (
            ("fcopy_a_file", 5, 0, ""),
            vec![
                begun.clone(),
                write(0, 6144),
                save.clone(),
                write(6144, 3856),
                operation(2),
                save.clone(),
            ],
        ),
        (
            ("fcopy_cancelled", 4, 0, ""),
            vec![begun.clone(), write(0, 6144), operation(3)],
        ),
        (
            ("fcopy_incomplete", 3, 1, "failed"),
            vec![begun.clone(), write(0, 6144), operation(2)],
        ),
        (
            ("fcopy_disk_full", 2, 2, "failed"),
            vec![begun.clone(), fail.clone(), write(0, 6144), operation(2)],
        ),
        (
            ("fcopy_two_starts", 4, 0, ""),
            vec![begun.clone(), start("g", "sub/dir", 5), write(0, 5)],
        ),
        (
            ("fcopy_without_start", 1, 2, "failed"),
            vec![
                vec![end::FILE_COPY],
                fcopy_negotiate(),
                write(0, 1),
                operation(2),
            ],
        ),
        (
            ("fcopy_heap_over_read", 2, 1, "invalid"),
            vec![begun.clone(), write(0, 200_000)],
        ),
        (
            ("fcopy_offset_overflows", 2, 1, "invalid"),
            vec![begun.clone(), write(u64::MAX, 5)],
        ),
        (
            ("fcopy_leaves_the_root", 1, 3, "invalid"),
            vec![
                vec![end::FILE_COPY],
                fcopy_negotiate(),
                start("../x", "/tmp/", 1),
                start("x", "/tmp/../etc/", 1),
                start("x", "/etc/", 1),
            ],
        ),
        (
            ("fcopy_short_message", 2, 1, "invalid"),
            vec![begun.clone(), body(7, 8, &[0; 8])],
        ),
        (
            ("fcopy_unknown_operation", 2, 1, "not supported"),
            vec![begun.clone(), operation(9)],
        ),
        (
            ("fcopy_negotiated_again", 3, 1, "failed"),
            vec![begun.clone(), fcopy_negotiate(), write(0, 1)],
        ),
        (
            ("fcopy_channel_goes", 2, 1, "failed"),
            vec![begun, end_all, write(0, 1)],
        ),
        (
            ("frame_short_and_reply", 0, 2, "no request"),
            vec![
                vec![end::FILE_COPY],
                vec![guest_step::RAW, 8, 0],
                vec![1; 8],
                vec![guest_step::RAW, 28, 0],
                [vec![1; 25], vec![5, 0, 0]].concat(),
            ],
        ),
        (
            ("heartbeat", 3, 0, ""),
            vec![
                vec![end::HEARTBEAT],
                negotiate(3),
                body(1, 40, &[]),
                save,
                body(1, 40, &[7]),
            ],
        ),
        (
            ("heartbeat_without_version", 0, 2, "failed"),
            vec![vec![end::HEARTBEAT], negotiate(9), body(1, 40, &[])],
        ),
        (
            ("shutdown_and_nonsense", 2, 1, "failed"),
            vec![
                vec![end::SHUTDOWN],
                negotiate(3),
                body(3, 2060, &words(&[1, 2, 1])),
                body(3, 2060, &words(&[1, 2, 9])),
            ],
        ),
        (
            ("time_set_and_sampled", 4, 1, "invalid"),
            vec![
                vec![end::TIME_SYNC],
                negotiate(4),
                time(0),
                time(1),
                time(2),
                body(4, 22, &[]),
            ],
        ),
        (
            ("sender_a_file", 1, 0, ""),
            vec![ready.clone(), begin(20_000), fine.repeat(7)],
        ),
        (
            ("sender_refused", 0, 1, "refused START"),
            vec![ready.clone(), begin(20_000), reply(3, 0, 0), fine.clone()],
        ),
        (
            ("sender_cancelled", 0, 1, "stopped"),
            vec![
                ready.clone(),
                begin(20_000),
                fine.repeat(2),
                vec![host_step::CANCEL, host_step::SAVE],
                fine.repeat(2),
            ],
        ),
        (
            ("sender_next_before_the_outcome", 1, 1, "refused"),
            vec![
                ready.clone(),
                begin(20_000),
                reply(1, 0, 0),
                begin(1),
                fine.repeat(5),
            ],
        ),
        (
            ("sender_silent", 0, 1, "does not answer"),
            vec![vec![end::SENDER, host_step::EXPIRE], fine.clone()],
        ),
        (
            ("sender_wrong_kind", 0, 1, "a reply of kind 6"),
            vec![ready, begin(1), reply(0, 12, 1), fine.clone()],
        ),
        (
            ("hosts_all_answered", 6, 0, ""),
            vec![hosts.clone(), beat.clone(), fine.clone()],
        ),
        (
            ("hosts_strange_replies", 6, 3, "no reply"),
            vec![hosts, beat, reply(1, 30, 0xFF), reply(0, 25, 4)],
        ),
    ]
    .map(|(expected, parts)| seed("vmbus_services", expected, &parts))
    .to_vec()
}
