//! Seeds of `conform_replies`.

use linkspan_vhost::wire::{ConfigHeader, Header, VringState, encode};
use zerocopy::IntoBytes as _;

use super::{Expected, Seed};

fn reply(request: u32, body: &[u8]) -> Vec<u8> {
    encode(request, Header::REPLY, body)
}

fn number(request: u32, value: u64) -> Vec<u8> {
    reply(request, value.as_bytes())
}

fn config(size: u32, bytes: usize) -> Vec<u8> {
    let (offset, flags) = (0, 0);
    let header = ConfigHeader {
        offset,
        size,
        flags,
    };
    reply(24, &[header.as_bytes(), &vec![7; bytes]].concat())
}

fn base(index: u32, num: u32) -> Vec<u8> {
    reply(11, VringState { index, num }.as_bytes())
}

pub(super) fn seeds() -> Vec<Seed> {
    let seed = |name: &str, said: &[Vec<u8>], expected| Seed {
        target: "conform_replies",
        name: name.into(),
        bytes: said.concat(),
        expected: Expected::Met(expected),
    };
    // VERSION_1, and that there are protocol features: configuration space.
    let features = number(1, 1 << 32 | 1 << 30);
    let protocol = number(15, 1 << 9);
    let plain = number(1, 1 << 32);
    let begin = [features.clone(), protocol.clone()];
    let with = |more: &[Vec<u8>]| [&begin[..], more].concat();
    vec![
        seed(
            "a_disk",
            &with(&[config(8, 8), features.clone(), base(0, 3)]),
            "ignored; the ring stops at 3",
        ),
        seed(
            "without_protocol_features",
            &[plain.clone(), plain.clone(), base(0, 0)],
            "the ring stops at 0",
        ),
        seed("nothing", &[], "closed the connection upon GetFeatures"),
        seed(
            "half_a_header",
            &[features[..5].to_vec()],
            "closed the connection upon GetFeatures",
        ),
        seed(
            "half_a_body",
            &[features[..15].to_vec()],
            "closed the connection upon GetFeatures",
        ),
        seed(
            "another_reply",
            &[number(15, 0)],
            "a reply to request 15 instead of GetFeatures",
        ),
        seed(
            "no_reply_bit",
            &[encode(1, 0, &[0; 8])],
            "has flags 0x1, not 0x5",
        ),
        seed(
            "a_reply_of_4_gib",
            &[[1, 5, u32::MAX].as_bytes().to_vec()],
            "a reply claims 4294967295 bytes",
        ),
        seed("a_short_number", &[reply(1, &[0; 4])], "has 4 bytes, not 8"),
        seed(
            "everything_is_refused",
            &[features.clone(), number(15, 1 << 3), number(3, 1)],
            "refuses SetOwner",
        ),
        seed(
            "configuration_space_is_short",
            &with(&[config(8, 4)]),
            "4 bytes instead of 8",
        ),
        seed(
            "configuration_space_of_another_size",
            &with(&[config(4, 8)]),
            "of another place",
        ),
        seed(
            "a_reply_that_nobody_asked_for",
            &with(&[config(8, 8), number(17, 1)]),
            "a reply to request 17, which nobody made",
        ),
        seed(
            "the_base_of_another_ring",
            &[plain.clone(), plain, base(7, 0)],
            "a base of ring 0",
        ),
    ]
}
