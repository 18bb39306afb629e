//! A million files that are begun and never finished. Memory is the process's, so this is
//! one test.

use std::fs;

use linkspan_backends::fcopy::{Tree, TreeOptions};
use linkspan_vmbus::fcopy::{Effect, Guest, Policy, Receiver, Roots, START_LEN};
use linkspan_vmbus::ic::{Echo, Reaction, Status};

const STARTS: u32 = 1_000_000;

/// Of so many, one is a file on a disk.
const CARRIED_OUT: u32 = 100;

/// A request with this body, of this kind (facts: include/linux/hyperv.h).
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend((u32::from(size) + 20).to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend(kind.to_le_bytes());
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 9, 3, 0, 0]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn start(path: &str) -> Vec<u8> {
    let mut body = vec![0; START_LEN];
    for (at, text) in [(36, "file"), (556, path)] {
        for (index, unit) in text.encode_utf16().enumerate() {
            body[at + 2 * index..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    body[1080..].copy_from_slice(&5000_u64.to_le_bytes());
    message(7, &body)
}

/// Pages of memory that this process has.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Known bug 3 of Linux's daemon: each START kept its names.
#[test]
fn a_million_starts_take_no_memory() {
    // In memory, where there is such a place: the file system is not what is tried.
    let root = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let path = root.path().to_str().unwrap();
    let policy = Policy {
        roots: Roots::new(&[path]).unwrap(),
        max_size: u64::MAX,
    };
    let mut tree = Tree::new(&[path], TreeOptions::default()).unwrap();
    let mut guest = Guest::new(Receiver::new(policy), Echo::Full);
    let negotiation = [1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0];
    let mut payload = message(0, &negotiation);
    assert!(matches!(
        guest.receive(&mut payload),
        Ok(Reaction::Reply(_))
    ));
    let start = start(path);
    let mut payload = start.clone();
    let (mut before, mut opened) = (0, 0);
    for round in 0..STARTS {
        payload.copy_from_slice(&start);
        let mut reaction = guest.receive(&mut payload).unwrap();
        while let Reaction::Do(effect) = reaction {
            opened += u32::from(matches!(effect, Effect::Open(_)));
            if round % CARRIED_OUT == 0 {
                tree.carry_out(&effect, &payload).unwrap();
            }
            reaction = guest.answer(Status::OK, &mut payload);
        }
        if round == 1000 {
            before = resident();
        }
    }
    let after = resident();
    assert!(after <= before + 64, "{before} pages became {after}");
    // The first one was given up for the second, and so on.
    assert_eq!(opened, STARTS);
    drop(tree);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}
