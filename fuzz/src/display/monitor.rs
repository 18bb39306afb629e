//! What a monitor of QEMU says, in pieces: the first byte of a script says how long they are.

use linkspan_backends::display::Replies;

use super::Outcome;

/// The target.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// Runs a script: the same comes of it in one piece.
pub fn run(bytes: &[u8]) -> Outcome {
    let Some((size, said)) = bytes.split_first() else {
        return Outcome::default();
    };
    let size = usize::from(*size).max(1);
    let outcome = hear(said.chunks(size));
    assert_eq!(outcome.error, hear([said].into_iter()).error);
    outcome
}

fn hear<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut replies = Replies::default();
    let mut outcome = Outcome::default();
    for piece in pieces {
        match replies.receive(piece) {
            Ok(all) => outcome.done += all.len(),
            Err(error) => {
                outcome.refused += 1;
                outcome.error = Some(error.to_string());
                break;
            }
        }
    }
    outcome
}
