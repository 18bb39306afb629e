//! Seeds of `saved_ports`.

use super::{Expected, Seed};
use crate::saved_ports::{ports, station};

fn fresh() -> Vec<u8> {
    ports().saved(vec![station()])
}

/// One byte is another one.
fn with(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = fresh();
    bytes[at] = byte;
    bytes
}

/// Bytes of the head; the first port follows: what is behind it, and its marks.
const HEAD: usize = 40;

pub(super) fn seeds() -> Vec<Seed> {
    let shut = ports();
    shut.set_link(0, false);
    let all = fresh();
    let [cut, longer] = [&all[..all.len() - 1], &[&all[..], &[0]].concat()].map(<[u8]>::to_vec);
    #[rustfmt::skip]
    let mut rows = vec![
        ("fresh", all, "up"),
        ("shut", shut.saved(Vec::new()), "shut"),
        ("cut", cut, "refused"),
        ("longer", longer, "refused"),
        ("of_others", with(0, b'x'), "refused"),
        ("newer", with(8, 2), "refused"),
        ("another_mode", with(12, 1), "refused"),
        ("more_ports", with(16, 3), "refused"),
        ("many_stations", with(22, 1), "refused"),
        ("reasons", with(24, 0xff), "refused"),
        ("another_kind", with(HEAD, 1), "refused"),
        ("unknown_marks", with(HEAD + 1, 0x80), "refused"),
        ("more_pairs", with(HEAD + 4, 2), "refused"),
        ("large_count", with(HEAD + 8 + 7, 0xff), "up"),
    ];
    // When it was made goes with it.
    for (_, bytes, _) in &mut rows {
        bytes[32..40].fill(0);
    }
    let seed = |(name, bytes, what): (&str, Vec<u8>, &'static str)| Seed {
        target: "saved_ports",
        name: name.to_owned(),
        bytes,
        expected: Expected::Saved(what),
    };
    rows.into_iter().map(seed).collect()
}
