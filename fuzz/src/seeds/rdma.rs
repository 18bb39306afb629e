//! Seeds of `rdma_mpa` and `rdma_ddp`.

use super::{Expected, Seed};
use crate::rdma::{CRC, INITIATOR, READY, REJECTS, REVISION_1, SHORT};

const SEND: u16 = 0x4143;
const SEND_MORE: u16 = 0x0143;
const SEND_INVALIDATE: u16 = 0x4144;
const WRITE: u16 = 0xC140;
const WRITE_MORE: u16 = 0x8140;
const READ_REQUEST: u16 = 0x4141;
const READ_RESPONSE: u16 = 0xC142;
const READ_RESPONSE_MORE: u16 = 0x8142;
const TERMINATE: u16 = 0x4147;

const WRITABLE: u32 = 0xFFFF_FF01;
const READABLE: u32 = 0xFFFF_FF02;
const SINK: u32 = 0xFFFF_FF03;
const LONG: u32 = 0xFFFF_FF04;
const BASE: u64 = 1 << 16;

const LOST: u8 = 13;
const EOF: u8 = 12;
const TRANSMIT: [u8; 2] = [8, 255];

fn with_len(operation: u8, bytes: &[u8]) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("short");
    [&[operation, len], bytes].concat()
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    with_len(0, bytes)
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    with_len(1, bytes)
}

fn tagged(control: u16, key: u32, address: u64, payload: &[u8]) -> Vec<u8> {
    let (control, key) = (control.to_be_bytes(), key.to_be_bytes());
    frame(&[&control[..], &key, &address.to_be_bytes(), payload].concat())
}

fn untagged(control: u16, reserved: u32, place: [u32; 3], payload: &[u8]) -> Vec<u8> {
    let mut bytes = control.to_be_bytes().to_vec();
    for word in [reserved, place[0], place[1], place[2]] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    frame(&bytes)
}

fn read_request(number: u32, len: u32, key: u32, address: u64) -> Vec<u8> {
    let mut body = 0x77_u32.to_be_bytes().to_vec();
    body.extend(0_u64.to_be_bytes());
    body.extend(len.to_be_bytes());
    body.extend(key.to_be_bytes());
    body.extend(address.to_be_bytes());
    untagged(READ_REQUEST, 0, [1, number, 0], &body)
}

type Row = (&'static str, u8, usize, usize, &'static str, Vec<Vec<u8>>);

fn seed(target: &'static str, row: Row) -> Seed {
    let (name, kind, done, refused, error, parts) = row;
    Seed {
        target,
        name: name.into(),
        bytes: [vec![kind], parts.concat()].concat(),
        expected: Expected::Rdma {
            done,
            refused,
            error: Some(error).filter(|error| !error.is_empty()),
        },
    }
}

pub(super) fn seeds() -> Vec<Seed> {
    let mpa = mpa().into_iter().map(|row| seed("rdma_mpa", row));
    let ddp = ddp().into_iter().map(|row| seed("rdma_ddp", row));
    let long = long().into_iter().map(|row| seed("rdma_ddp", row));
    mpa.chain(ddp).chain(long).collect()
}

fn mpa() -> Vec<Row> {
    let request = b"MPA ID Req Frame\x10\x02\x00\x04\x00\x10\x00\x10";
    let reply = b"MPA ID Rep Frame\x10\x02\x00\x04\x00\x10\x00\x02";
    let send = || untagged(SEND, 0, [0, 1, 0], b"hi");
    let receives = || vec![14, 2];
    let changed = |frame: &[u8], at: usize, byte: u8| {
        let mut bytes = frame.to_vec();
        bytes[at] = byte;
        raw(&bytes)
    };
    vec![
        (
            "accepts",
            0,
            1,
            0,
            "",
            vec![receives(), raw(request), TRANSMIT.to_vec(), send()],
        ),
        (
            "accepts_crc",
            CRC,
            1,
            0,
            "",
            vec![receives(), raw(request), TRANSMIT.to_vec(), send()],
        ),
        (
            "accepts_in_pieces",
            0,
            0,
            0,
            "",
            vec![
                raw(&request[..7]),
                raw(&request[7..19]),
                raw(&request[19..]),
            ],
        ),
        (
            "accepts_revision_1",
            0,
            0,
            0,
            "",
            vec![
                raw(b"MPA ID Req Frame\x00\x01\x00\x02ab"),
                TRANSMIT.to_vec(),
            ],
        ),
        (
            "accepts_peer",
            0,
            1,
            0,
            "",
            vec![
                receives(),
                raw(b"MPA ID Req Frame\x10\x02\x00\x04\x80\x10\x80\x10"),
                tagged(WRITE, 1, 0, b""),
                send(),
            ],
        ),
        (
            "peer_that_begins_otherwise",
            0,
            0,
            0,
            "was agreed upon",
            vec![
                receives(),
                raw(b"MPA ID Req Frame\x10\x02\x00\x04\xC0\x10\x40\x10"),
                send(),
                TRANSMIT.to_vec(),
            ],
        ),
        (
            "rejects",
            REJECTS,
            0,
            0,
            "disconnected",
            vec![raw(request), TRANSMIT.to_vec()],
        ),
        (
            "markers",
            0,
            0,
            0,
            "markers",
            vec![changed(request, 16, 0x90), TRANSMIT.to_vec()],
        ),
        (
            "not_mpa",
            0,
            0,
            0,
            "no MPA request frame",
            vec![raw(b"GET / HTTP/1.1"), TRANSMIT.to_vec()],
        ),
        (
            "revision_3",
            0,
            0,
            0,
            "MPA revision 3",
            vec![changed(request, 17, 3), TRANSMIT.to_vec()],
        ),
        (
            "private_data_too_long",
            0,
            0,
            0,
            "bytes of private data",
            vec![changed(request, 18, 3), TRANSMIT.to_vec()],
        ),
        (
            "bytes_behind_the_request",
            0,
            0,
            1,
            "before the set-up was over",
            vec![raw(&[&request[..], b"x"].concat()), TRANSMIT.to_vec()],
        ),
        (
            "no_request_in_time",
            0,
            0,
            0,
            "did not answer in time",
            vec![raw(b"MPA"), vec![15]],
        ),
        (
            "end_inside_of_a_request",
            0,
            0,
            0,
            "lost",
            vec![raw(b"MPA"), vec![EOF]],
        ),
        (
            "connects",
            INITIATOR,
            2,
            0,
            "",
            vec![
                receives(),
                TRANSMIT.to_vec(),
                raw(reply),
                vec![3, 40],
                TRANSMIT.to_vec(),
                send(),
            ],
        ),
        (
            "connects_revision_1",
            INITIATOR | REVISION_1,
            0,
            0,
            "",
            vec![raw(b"MPA ID Rep Frame\x00\x01\x00\x00")],
        ),
        (
            "connects_ready",
            INITIATOR | READY,
            0,
            0,
            "",
            vec![
                raw(b"MPA ID Rep Frame\x10\x02\x00\x04\x80\x10\x80\x02"),
                TRANSMIT.to_vec(),
            ],
        ),
        (
            "connects_ready_read",
            INITIATOR | READY | CRC,
            0,
            0,
            "",
            vec![
                raw(b"MPA ID Rep Frame\x10\x02\x00\x04\x80\x10\x40\x02"),
                TRANSMIT.to_vec(),
                tagged(READ_RESPONSE, SINK, 0, b""),
            ],
        ),
        (
            "nudges",
            INITIATOR,
            1,
            0,
            "",
            vec![
                TRANSMIT.to_vec(),
                raw(reply),
                vec![3, 40],
                TRANSMIT.to_vec(),
                vec![15],
                TRANSMIT.to_vec(),
                vec![15],
                TRANSMIT.to_vec(),
            ],
        ),
        (
            "too_many_reads",
            INITIATOR,
            0,
            0,
            "and we answer 4",
            vec![changed(reply, 23, 5), TRANSMIT.to_vec()],
        ),
        (
            "rejected",
            INITIATOR,
            0,
            0,
            "rejected",
            vec![changed(reply, 16, 0x30), TRANSMIT.to_vec()],
        ),
        (
            "reply_not_offered",
            INITIATOR,
            0,
            0,
            "no way to begin",
            vec![changed(reply, 20, 0x80), TRANSMIT.to_vec()],
        ),
    ]
}

fn ddp() -> Vec<Row> {
    let begin = || untagged(SEND, 0, [0, 1, 0], b"");
    let t = || TRANSMIT.to_vec();
    vec![
        (
            "message",
            0,
            1,
            0,
            "",
            vec![untagged(SEND, 0, [0, 1, 0], b"abc")],
        ),
        (
            "message_in_parts",
            CRC,
            1,
            0,
            "",
            vec![
                untagged(SEND_MORE, 0, [0, 1, 0], b"abc"),
                untagged(SEND, 0, [0, 1, 3], b"de"),
            ],
        ),
        (
            "message_and_write_interleave",
            0,
            1,
            0,
            "",
            vec![
                untagged(SEND_MORE, 0, [0, 1, 0], b"abc"),
                tagged(WRITE_MORE, WRITABLE, BASE, b"12"),
                untagged(SEND, 0, [0, 1, 3], b"de"),
                tagged(WRITE, WRITABLE, BASE + 2, b"34"),
            ],
        ),
        (
            "message_too_long",
            0,
            0,
            0,
            "a message of 201 bytes",
            vec![untagged(SEND, 0, [0, 1, 0], &[1; 201]), t()],
        ),
        (
            "no_receive",
            0,
            2,
            0,
            "no receive is posted",
            vec![
                begin(),
                untagged(SEND, 0, [0, 2, 0], b""),
                untagged(SEND, 0, [0, 3, 0], b""),
                t(),
            ],
        ),
        (
            "message_number",
            0,
            0,
            0,
            "message 2 of queue 0",
            vec![untagged(SEND, 0, [0, 2, 0], b""), t()],
        ),
        (
            "message_offset",
            0,
            0,
            0,
            "offset 1 of a message",
            vec![untagged(SEND, 0, [0, 1, 1], b""), t()],
        ),
        (
            "queue",
            0,
            0,
            0,
            "on queue 3",
            vec![untagged(SEND, 0, [3, 1, 0], b""), t()],
        ),
        (
            "write",
            CRC,
            0,
            0,
            "",
            vec![tagged(WRITE, WRITABLE, BASE + 90, &[1; 100])],
        ),
        (
            "write_beyond",
            0,
            0,
            0,
            "are outside what key",
            vec![tagged(WRITE, WRITABLE, BASE + 250, b"1234567"), t()],
        ),
        (
            "write_wraps",
            0,
            0,
            0,
            "beyond the last address",
            vec![tagged(WRITE, WRITABLE, u64::MAX, b"12"), t()],
        ),
        (
            "write_where_one_reads",
            0,
            0,
            0,
            "not exposed for that",
            vec![tagged(WRITE, READABLE, BASE, b"1"), t()],
        ),
        (
            "write_nowhere",
            0,
            0,
            0,
            "exposes nothing",
            vec![tagged(WRITE, 5, BASE, b"1"), t()],
        ),
        (
            "write_after_invalidate",
            0,
            1,
            0,
            "exposes nothing",
            vec![
                untagged(SEND_INVALIDATE, WRITABLE, [0, 1, 0], b""),
                tagged(WRITE, WRITABLE, BASE, b"1"),
                t(),
            ],
        ),
        (
            "read",
            CRC,
            0,
            0,
            "",
            vec![read_request(1, 200, READABLE, BASE + 20), t()],
        ),
        (
            "read_short_frames",
            SHORT,
            0,
            0,
            "",
            vec![
                read_request(1, 256, READABLE, BASE),
                read_request(2, 256, READABLE, BASE),
                vec![8, 9],
                t(),
            ],
        ),
        (
            "read_beyond",
            0,
            0,
            0,
            "are outside what key",
            vec![read_request(1, 257, READABLE, BASE), t()],
        ),
        (
            "read_too_often",
            0,
            0,
            0,
            "more than 4 reads",
            (1..6)
                .map(|number| read_request(number, 9, READABLE, BASE))
                .chain([t()])
                .collect(),
        ),
        (
            "read_ends_before_its_response",
            SHORT,
            2,
            0,
            "exposes nothing",
            vec![
                begin(),
                read_request(1, 256, READABLE, BASE),
                vec![6, 1],
                t(),
            ],
        ),
        (
            "read_ends_on_its_way_out",
            SHORT,
            0,
            0,
            "before a read of it was answered",
            vec![
                read_request(1, 256, READABLE, BASE),
                vec![8, 2],
                untagged(SEND_INVALIDATE, READABLE, [0, 1, 0], b""),
                t(),
            ],
        ),
        (
            "response",
            INITIATOR,
            1,
            0,
            "",
            vec![
                vec![5, 10],
                t(),
                tagged(READ_RESPONSE_MORE, SINK, 0, b"012"),
                tagged(READ_RESPONSE, SINK, 3, b"3456789"),
            ],
        ),
        (
            "response_too_long",
            INITIATOR,
            0,
            1,
            "which was not asked for",
            vec![
                vec![5, 10],
                t(),
                tagged(READ_RESPONSE, SINK, 0, b"0123456789a"),
                t(),
            ],
        ),
        (
            "response_to_nothing",
            INITIATOR,
            0,
            0,
            "unexpected ReadResponse",
            vec![tagged(READ_RESPONSE, SINK, 0, b""), t()],
        ),
        (
            "works",
            INITIATOR | CRC,
            3,
            0,
            "",
            vec![vec![3, 200], vec![4, 100], vec![6, 0], t()],
        ),
        (
            "works_lost",
            INITIATOR,
            0,
            3,
            "lost",
            vec![
                vec![3, 200],
                vec![4, 100],
                vec![5, 9],
                vec![8, 1],
                vec![LOST],
            ],
        ),
        (
            "terminated",
            0,
            0,
            0,
            "wrong CRC",
            vec![untagged(TERMINATE, 0, [2, 1, 0], &[0x20, 2, 0, 0])],
        ),
        (
            "wrong_crc",
            CRC,
            0,
            0,
            "where",
            vec![
                raw(b"\0\x12\x41\x43\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0"),
                t(),
            ],
        ),
        (
            "length",
            0,
            0,
            0,
            "a frame of 17 bytes",
            vec![raw(b"\0\x11\x41\x43"), t()],
        ),
        (
            "opcode",
            0,
            0,
            0,
            "unknown opcode 9",
            vec![raw(b"\0\x12\x41\x49"), t()],
        ),
        (
            "versions",
            0,
            0,
            0,
            "RDMAP version 2",
            vec![raw(b"\0\x12\x41\x83"), t()],
        ),
    ]
}

/// Payload that is written from where it is, and summed when it is; and works that the end
/// cuts off.
fn long() -> Vec<Row> {
    let begin = || untagged(SEND, 0, [0, 1, 0], b"");
    let t = || TRANSMIT.to_vec();
    let write = |len| vec![4, 255, len];
    let unknown = || raw(b"\0\x12\x41\x49");
    let wrong = "unknown opcode 9";
    let cut = |name, done, refused, parts: &[Vec<u8>]| {
        let all = [&[begin()], parts, &[unknown(), t()]].concat();
        (name, 0, done, refused, wrong, all)
    };
    vec![
        ("long_write", CRC, 2, 0, "", vec![begin(), write(200), t()]),
        (
            "long_write_in_parts",
            CRC,
            3,
            0,
            "",
            vec![
                begin(),
                write(255),
                vec![3, 9],
                vec![8, 1],
                vec![8, 200],
                t(),
                t(),
            ],
        ),
        (
            "write_by_reference",
            INITIATOR | CRC,
            2,
            0,
            "",
            vec![write(4), write(40), vec![8, 3], t()],
        ),
        (
            "long_read",
            CRC,
            0,
            0,
            "",
            vec![
                read_request(1, 100_000, LONG, BASE + 7),
                vec![8, 254],
                vec![8, 1],
                t(),
            ],
        ),
        cut(
            "sends_cut_off",
            2,
            2,
            &[vec![3, 40], vec![3, 41], vec![3, 42], vec![8, 1]],
        ),
        cut(
            "long_write_cut_off",
            1,
            2,
            &[write(255), vec![3, 41], vec![8, 1]],
        ),
    ]
}
