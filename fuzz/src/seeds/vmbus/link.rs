//! Seeds of `vmbus_link`.

use super::{Seed, seed};

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

pub(super) fn seeds() -> Vec<Seed> {
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
    let service = [&[1, 0, 2, 0, 0, 0, 0, 0][..], &[7; 16]].concat();
    let mut digest = vec![0; 48];
    digest[4] = 9;
    let mut channel2 = channel.clone();
    channel2[0] = 2;
    let mut verify = vec![0; 12];
    verify[8] = 8;
    let folder = [&[2, 0, 3, 0, 1, 0, 0, 0][..], b"dir/"].concat();
    let mut slice = verify.clone();
    slice[11] = 1;
    let saved = [
        &b"LSvlink1"[..],
        &[1, 2, 2, 0, 0, 0, 0, 0],
        &[0; 4],
        &[2, 0, 0, 0, 5, 0],
    ]
    .concat();
    [
        (("saved", 1, 0, ""), vec![vec![4], saved.clone()]),
        (
            ("saved_short", 0, 1, "ends early"),
            vec![vec![4], saved[..20].to_vec()],
        ),
        (
            ("host_asks", 4, 0, ""),
            vec![
                vec![0],
                frame(1, 0, &service),
                frame(10, 0, &digest),
                frame(12, 0, &[0; 4]),
                frame(10, 0, &digest),
            ],
        ),
        (
            ("host_not_asked", 1, 1, "MADE does not come"),
            vec![vec![0], frame(1, 0, &service), frame(12, 0, &[0; 4])],
        ),
        (
            ("guest_asked", 4, 0, ""),
            vec![
                vec![1],
                frame(2, 3, &channel2),
                frame(9, 0, &verify),
                frame(11, 0, &folder),
                frame(9, 0, &verify),
            ],
        ),
        (
            ("guest_asked_too_early", 1, 1, "VERIFY does not come"),
            vec![vec![1], frame(2, 3, &channel), frame(9, 0, &verify)],
        ),
        (
            ("guest_asked_too_much", 1, 1, "length makes no sense"),
            vec![vec![1], frame(2, 3, &channel2), frame(9, 0, &slice)],
        ),
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
            vec![vec![0], frame(1, 0, &[3, 0, 9, 0, 1, 0, 0, 0])],
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
            vec![vec![3], welcome, frame(8, 0, &[99; 12])],
        ),
    ]
    .map(|(expected, parts)| seed("vmbus_link", expected, &parts))
    .to_vec()
}
