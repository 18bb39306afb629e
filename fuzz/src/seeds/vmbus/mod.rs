//! Seeds of the targets of VMBus.

mod channel;
mod link;
mod ring;
mod services;

use super::{Expected, Seed};

pub(super) fn seeds() -> Vec<Seed> {
    [
        ring::seeds(),
        services::seeds(),
        channel::seeds(),
        link::seeds(),
    ]
    .concat()
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
