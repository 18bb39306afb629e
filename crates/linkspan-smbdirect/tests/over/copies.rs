//! How often the bytes of a message are copied between whoever carries them and whoever
//! reads them.

use std::collections::BTreeSet;

use linkspan_rdma::Memories;
use linkspan_rdma::verbs::{Slice, Verbs as _};
use linkspan_smbdirect::{Driver, Options, Place};

use linkspan_sim::smbdirect::ends::{LIMITS, Pair};

/// Bytes of the first message by where they are: in the buffers in which they arrived, and
/// anywhere else.
fn places(driver: &Driver) -> (usize, usize, Vec<Slice>) {
    let (mut there, mut copied, mut buffers) = (0, 0, Vec::new());
    for piece in driver.core().pieces() {
        match piece.place {
            Place::Buffer(buffer) => {
                there += piece.len as usize;
                buffers.push(buffer.part(piece.offset, piece.len));
            }
            Place::Area => copied += piece.len as usize,
        }
    }
    (there, copied, buffers)
}

/// What those who read in place are shown.
fn shown(driver: &Driver, memories: &Memories) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in driver.parts(memories) {
        let at = bytes.len();
        bytes.resize(at + part.len(), 0);
        part.read(&mut bytes[at..]);
    }
    bytes
}

/// A message of this length: how many of its bytes were copied when it was whole.
fn copied(len: u32) -> usize {
    let mut pair = Pair::connected();
    let pattern: Vec<u8> = (0..=250).cycle().take(len as usize).collect();
    let from = pair.sides[0].slice(0, len);
    pair.sides[0].write(from, &pattern);
    pair.sides[0].send(&[from]);
    pair.settle();
    let side = &pair.sides[1];
    assert!(side.driver.core().message().unwrap().is_whole());
    let (there, copied, buffers) = places(&side.driver);
    assert_eq!(there + copied, len as usize);
    let memories = side.end.memories();
    // What is said to be where it arrived is there, each piece in a buffer of its own.
    let own: BTreeSet<(u32, u64)> = buffers.iter().map(|it| (it.memory.0, it.offset)).collect();
    assert_eq!(own.len(), buffers.len());
    assert_eq!(side.end.lent(), buffers.len());
    assert!(buffers.iter().all(|it| it.memory != side.arena));
    let mut found = Vec::new();
    for buffer in &buffers {
        let at = found.len();
        found.resize(at + buffer.len as usize, 0);
        memories.slice(*buffer).unwrap().read(&mut found[at..]);
    }
    assert!(copied > 0 || found == pattern, "other bytes");
    // And it is what whoever reads in place sees.
    assert!(shown(&side.driver, memories) == pattern, "other bytes");
    // Each byte that was copied was copied once.
    let kept = usize::try_from(side.driver.core().status().traffic.kept).unwrap();
    assert!(copied <= kept * (1364 - 24), "{copied} of {kept} pieces");
    copied
}

#[test]
fn a_message_that_its_buffers_hold_is_copied_by_nobody_before_it_is_read() {
    for len in [1, 100, 1340, 1341, 4096, 65_536, 131_072, 173_910] {
        assert_eq!(copied(len), 0, "{len} bytes");
    }
}

/// Only a peer that cuts a message into more pieces than there are buffers has it copied, once,
/// since the rest needs them.
#[test]
fn a_message_of_very_many_pieces_is_copied_once_and_no_more_of_it_than_has_to() {
    let few = Options {
        receive_credit_max: 10,
        ..Options::listener()
    };
    let mut pair = Pair::new([&Options::initiator(), &few], LIMITS).unwrap();
    pair.settle();
    let from = pair.sides[0].slice(0, 100_000);
    pair.sides[0].write(from, &[9; 100_000]);
    pair.sides[0].send(&[from]);
    pair.settle();
    let driver = &pair.sides[1].driver;
    let (there, copied, buffers) = places(driver);
    assert_eq!(there + copied, 100_000);
    // As many as it may leave held stay where they are; the last ones came when it was whole.
    assert!(buffers.len() >= 9, "{} buffers", buffers.len());
    let kept = driver.core().status().traffic.kept;
    assert_eq!(kept, 100_000_u64.div_ceil(1340) - buffers.len() as u64);
}
