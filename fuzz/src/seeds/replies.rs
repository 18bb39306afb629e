//! Seeds of `vhost_user_replies`: sessions as drivers have them, with back ends
//! that do all, refuse, stop short, or make things up.

use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, Header};

use super::{Expected, Seed};
use crate::vhost_user_replies::{how, kind, step};

/// Replies to: features, protocol features, queues, slots, owner, and two parts of
/// configuration space.
const NEGOTIATION: usize = 7;

/// Flags of a ring that starts: kick, call, err, enabled.
const ALL: u8 = 15;

pub(super) fn seeds() -> Vec<Seed> {
    let fine = |name, done, bytes| seed(name, (done, 0), None, bytes);
    let over = |name, error, bytes| seed(name, (0, 0), Some(error), bytes);
    let mut seeds = vec![
        fine("whole_life", 22, whole_life(&[], 0)),
        fine("whole_life_byte_by_byte", 22, whole_life(&[], 1)),
        fine("whole_life_saved", 22, whole_life(&[step::SAVE], 0)),
        fine("without_acknowledgements", 3, without_acknowledgements()),
        fine("resumed_before_features", 3, resumed()),
        fine("inflight_of_none", 2, inflight_of_none()),
        seed("start_refused", (2, 1), None, start_refused()),
        seed("everything_refused", (2, 9), None, everything_refused()),
        over(
            "truncated_reply",
            "a reply of 7 bytes",
            reply(how::SHORT).to_vec(),
        ),
        over("answered_twice", "although nothing was asked", doubled()),
        over(
            "reply_to_another",
            "a reply to message 2 instead",
            reply(how::OTHER).to_vec(),
        ),
        over(
            "a_descriptor_too_many",
            "1 file descriptors with the reply",
            reply(how::MORE_FDS).to_vec(),
        ),
        over(
            "too_few_rings",
            "4 rings are wanted",
            [replies(2), reply(how::REFUSES).to_vec()].concat(),
        ),
        over(
            "no_config",
            "no 256 bytes from 0",
            [replies(5), reply(how::REFUSES).to_vec()].concat(),
        ),
        over(
            "request_instead",
            "a request where only replies belong",
            say(1, 1, 0, &[0; 8]),
        ),
        over("endless_body", "the limit is 4096", endless()),
    ];
    seeds.push(fine("requests_of_its_own", 0, requests()));
    seeds.push(fine("half_a_reply", 0, half()));
    seeds
}

fn seed(
    name: &str,
    (done, refused): (usize, usize),
    error: Option<&'static str>,
    bytes: Vec<u8>,
) -> Seed {
    Seed {
        target: "vhost_user_replies",
        name: name.to_owned(),
        bytes,
        expected: Expected::Replies {
            done,
            refused,
            error,
        },
    }
}

fn reply(how: u8) -> [u8; 3] {
    [step::REPLY, how, 0]
}

/// Right replies, at most so many.
fn replies(count: usize) -> Vec<u8> {
    vec![step::REPLIES, u8::try_from(count).expect("few"), 0]
}

fn give(kind: u8, more: &[u8]) -> Vec<u8> {
    [&[step::COMMAND, kind][..], more].concat()
}

fn say(code: u8, flags: u8, fds: u8, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).expect("short").to_le_bytes();
    [
        &[step::MESSAGE, code, flags, fds, 0, size[0], size[1]],
        body,
    ]
    .concat()
}

fn start(rings: &[u8]) -> Vec<u8> {
    let count = u8::try_from(rings.len()).expect("4 at most");
    let starts = rings.iter().flat_map(|ring| [*ring, 0, ALL]);
    let more: Vec<u8> = std::iter::once(count).chain(starts).collect();
    give(kind::START, &more)
}

/// Features and memory, without a packed ring.
fn ready() -> Vec<u8> {
    [
        give(kind::SET_FEATURES, &[2]),
        replies(1),
        give(kind::SET_MEMORY, &[2, 0, 1, 16, 2]),
        replies(2),
    ]
    .concat()
}

/// Each command once, all of them done.
fn whole_life(between: &[u8], piece: u8) -> Vec<u8> {
    let size = 256u16.to_le_bytes();
    let region = [&[4][..], &size].concat();
    let commands = [
        give(kind::BACKEND_REQUESTS, &[]),
        give(kind::SET_FEATURES, &[2]),
        give(kind::SET_MEMORY, &[2, 0, 1, 16, 2]),
        give(kind::CREATE_INFLIGHT, &region),
        give(kind::ADOPT_INFLIGHT, &region),
        give(kind::WRITE_STATUS, &[15]),
        give(kind::READ_STATUS, &[]),
        start(&[0, 1, 2, 3]),
        give(kind::SET_LOG, &[0, 16]),
        give(kind::LOG_FD, &[]),
        give(kind::SET_FEATURES, &[6]),
        give(kind::SET_RING_LOG, &[1, 1]),
        give(kind::SET_KICK, &[1, 3]),
        give(kind::SET_CALL, &[1, 2]),
        give(kind::SET_ERR, &[1, 5]),
        give(kind::SET_MEMORY, &[2, 0, 1, 32, 3]),
        give(kind::ENABLE, &[0, 0]),
        give(kind::READ_CONFIG, &[0, 0, 7, 0]),
        give(kind::WRITE_CONFIG, &[1, 0, 2, 0]),
        give(kind::STOP, &[4, 3, 1, 0, 2]),
        give(kind::MOVE_STATE, &[0]),
        give(kind::CHECK_STATE, &[]),
    ];
    // More than any of them waits for.
    let answers = [step::REPLIES, 30, piece];
    let mut steps = answers.to_vec();
    for command in commands {
        steps.extend_from_slice(between);
        steps.extend(command);
        steps.extend_from_slice(between);
        steps.extend(answers);
    }
    steps
}

/// A back end that acknowledges nothing is asked a question at the end of each.
fn without_acknowledgements() -> Vec<u8> {
    let mut steps = [reply(0), reply(how::PLAIN)].concat();
    steps.extend(replies(NEGOTIATION));
    steps.extend([give(kind::SET_FEATURES, &[2]), replies(1)].concat());
    steps.extend([give(kind::SET_MEMORY, &[1, 0, 1]), replies(1)].concat());
    steps.extend([start(&[0, 1]), replies(1)].concat());
    steps
}

/// What was promised to the driver outlives a connection that never got as far.
fn resumed() -> Vec<u8> {
    [
        replies(NEGOTIATION),
        ready(),
        start(&[0]),
        vec![step::RESUME],
        replies(2),
        vec![step::RESUME],
        replies(NEGOTIATION),
        vec![step::SAVE, step::RESUME],
        replies(NEGOTIATION),
        vec![step::SAVE],
        give(kind::SET_FEATURES, &[2]),
        replies(1),
    ]
    .concat()
}

fn inflight_of_none() -> Vec<u8> {
    let region = [4, 0, 1];
    [
        replies(NEGOTIATION),
        give(kind::CREATE_INFLIGHT, &region),
        reply(0).to_vec(),
        vec![step::RESUME],
        replies(NEGOTIATION),
        give(kind::CREATE_INFLIGHT, &region),
        reply(how::WITHOUT).to_vec(),
        vec![step::SAVE],
    ]
    .concat()
}

/// The third ring is refused its kick, so the two that run are stopped again.
fn start_refused() -> Vec<u8> {
    [
        replies(NEGOTIATION),
        ready(),
        start(&[0, 1, 2]),
        replies(3 * 5 + 2),
        reply(how::REFUSES).to_vec(),
        replies(2),
        vec![step::SAVE],
    ]
    .concat()
}

fn everything_refused() -> Vec<u8> {
    let no = reply(how::REFUSES).to_vec();
    let region = [4, 0, 1];
    let mut steps = [replies(NEGOTIATION), ready()].concat();
    for command in [
        give(kind::SET_FEATURES, &[2]),
        give(kind::SET_MEMORY, &[1, 32, 3]),
        start(&[3]),
        give(kind::SET_CALL, &[0, 1]),
        give(kind::READ_CONFIG, &[0, 0, 7, 0]),
        give(kind::WRITE_CONFIG, &[0, 0, 7, 0]),
        give(kind::ADOPT_INFLIGHT, &region),
        give(kind::MOVE_STATE, &[1]),
        give(kind::CHECK_STATE, &[]),
    ] {
        steps.extend(command);
        steps.extend(&no);
    }
    steps
}

fn doubled() -> Vec<u8> {
    [replies(NEGOTIATION - 1), reply(how::TWICE).to_vec()].concat()
}

fn raw(bytes: &[u8], fds: u8) -> Vec<u8> {
    let len = u8::try_from(bytes.len()).expect("short");
    [&[step::RAW, len, fds][..], bytes].concat()
}

fn endless() -> Vec<u8> {
    let mut header = wire::encode(Request::GetFeatures.code(), Header::REPLY, &[]);
    header[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    raw(&header, 0)
}

fn half() -> Vec<u8> {
    let whole = wire::encode(Request::GetFeatures.code(), Header::REPLY, &[0; 8]);
    raw(&whole[..15], 0)
}

/// Announcements, asked for and not, and requests that do not exist.
fn requests() -> Vec<u8> {
    let ask = |code, flags, fds, body: &[u8]| {
        let len = u8::try_from(body.len()).expect("short");
        [&[step::REQUEST, code, flags, fds, len][..], body].concat()
    };
    [
        ask(2, 1, 0, &[]),
        ask(2, 9, 0, &[]),
        vec![step::SAVE],
        ask(4, 9, 0, &[0; 8]),
        ask(9, 9, 1, &[0; 40]),
        ask(2, 1, 1, &[]),
        ask(2, 1, 0, &[]),
    ]
    .concat()
}
