//! Bytes of a stream that are in private memory already.

use linkspan_mem::SharedSlice;

use super::connection::{Connection, Wanted};
use crate::memory::{Memories, Pool};

/// Takes bytes that were read ahead, and copies those that have to be placed; says how
/// many were taken. What is left waits for a buffer (the pool has none).
pub fn feed(
    connection: &mut Connection,
    bytes: &[u8],
    memories: &mut Memories,
    pool: &mut Pool,
) -> usize {
    let mut used = 0;
    while used < bytes.len() {
        let rest = &bytes[used..];
        if let Some(count) = connection.receive_message(rest, memories, pool) {
            used += count;
            continue;
        }
        match connection.wanted() {
            Wanted::Bytes(_) => used += connection.receive(rest),
            Wanted::Place { len, crc } => used += copy(connection, rest, memories, len, crc),
            Wanted::Buffer { .. } => match pool.take(memories) {
                Some(buffer) => connection.give(buffer),
                None => return used,
            },
            Wanted::Nothing => return bytes.len(),
        }
    }
    used
}

fn copy(
    connection: &mut Connection,
    bytes: &[u8],
    memories: &Memories,
    len: u32,
    crc: Option<u32>,
) -> usize {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    let bytes = &bytes[..len];
    // At most what was wanted.
    let count = u32::try_from(len).unwrap_or(u32::MAX);
    let mut at = 0;
    let mut whole = true;
    connection.places(count, |place| {
        let part = place.len as usize;
        let slice: Option<SharedSlice<'_>> = memories.slice(place);
        whole &= slice.is_some_and(|slice| slice.write(&bytes[at..at + part]) == part);
        at += part;
    });
    if !whole {
        connection.memory_lost();
        return len;
    }
    connection.placed(count, crc.map_or(0, |crc| linkspan_mem::crc32c(crc, bytes)));
    len
}
