//! Seeds of the targets of VMBus.

use super::{Expected, Seed};
use crate::vmbus::channel::{guest_owner, host_owner, step as channel_step};
use crate::vmbus::ring::{DATA, HEADER, step as ring_step};
use crate::vmbus::services::{end, host_step, step as guest_step};

pub(super) fn seeds() -> Vec<Seed> {
    [ring(), services(), channel(), link()].concat()
}

fn seed(
    target: &'static str,
    (name, done, refused, error): (&str, usize, usize, &'static str),
    parts: &[Vec<u8>],
) -> Seed {
    Seed {
        target,
        name: name.to_owned(),
        bytes: parts.concat(),
        expected: Expected::Vmbus {
            done,
            refused,
            error: Some(error).filter(|error| !error.is_empty()),
        },
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

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

fn ring() -> Vec<Seed> {
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

fn services() -> Vec<Seed> {
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

fn message(code: u8, body: &[u32]) -> Vec<u8> {
    let bytes = words(body);
    let len = u8::try_from(bytes.len()).expect("short");
    [&[channel_step::MESSAGE, code, len][..], &bytes].concat()
}

fn owner(what: u8, number: u8) -> Vec<u8> {
    vec![channel_step::OWNER, what, number]
}

const V5_3: u32 = 5 << 16 | 3;

fn channel() -> Vec<Seed> {
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

/// A frame as `vmbus_link` takes it: descriptors and header, no descriptors and body.
fn frame(code: u16, fds: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![fds];
    bytes.extend(code.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(u32::try_from(body.len()).expect("short").to_le_bytes());
    if !body.is_empty() {
        bytes.push(0);
        bytes.extend(body);
    }
    bytes
}

fn link() -> Vec<Seed> {
    let hello = |role: u8| frame(1, 0, &[1, 0, 1, 0, role, 0, 0, 0]);
    let mut send = vec![0; 20];
    send[14] = 4;
    send[16] = 1;
    send.extend(b"file/");
    let mut channel = vec![0; 64];
    channel[0] = 1;
    for (at, byte) in [(41, 0xA0), (49, 0x50), (57, 0x10)] {
        channel[at] = byte;
    }
    let welcome = frame(4, 0, &[1, 0, 0, 0]);
    let done = frame(8, 0, &[1, 0, 0, 0, 2, 0, 0, 0, 0x70, 0, 7, 0x80]);
    let progress = frame(7, 0, &[1; 8]);
    [
        (("host_guest", 1, 0, ""), vec![vec![0], hello(0)]),
        (
            ("host_sender", 5, 0, ""),
            vec![
                vec![0],
                hello(1),
                frame(5, 1, &send),
                frame(6, 0, &[]),
                frame(5, 1, &send),
                frame(6, 0, &[]),
            ],
        ),
        (
            ("host_version", 1, 0, ""),
            vec![vec![0], frame(1, 0, &[2, 0, 9, 0, 1, 0, 0, 0])],
        ),
        (
            (
                "host_no_file",
                1,
                1,
                "SEND with 0 descriptors where 1 belong",
            ),
            vec![vec![0], hello(1), frame(5, 0, &send)],
        ),
        (
            ("host_twice", 1, 1, "HELLO does not come"),
            vec![vec![0], hello(1), hello(1)],
        ),
        (
            ("host_role", 0, 1, "role makes no sense"),
            vec![vec![0], hello(2)],
        ),
        (
            ("host_unknown", 0, 1, "no frame 99"),
            vec![vec![0], frame(99, 0, &[])],
        ),
        (
            ("guest_channel", 1, 0, ""),
            vec![vec![1], frame(2, 3, &channel)],
        ),
        (
            ("guest_shape", 0, 1, "shape makes no sense"),
            vec![vec![1], frame(2, 3, &[&[1], &[0; 63][..]].concat())],
        ),
        (
            ("sender_file", 3, 0, ""),
            vec![vec![3], welcome.clone(), progress, done.clone()],
        ),
        (
            ("sender_outcome", 1, 1, "outcome makes no sense"),
            vec![vec![3], welcome, frame(8, 0, &[9; 12])],
        ),
    ]
    .map(|(expected, parts)| seed("vmbus_link", expected, &parts))
    .to_vec()
}
