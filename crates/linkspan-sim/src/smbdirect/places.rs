//! Where a user's messages and memory lie, and what is in them.

use std::sync::OnceLock;

use super::plan::MESSAGE_MAX;
use crate::Rng;

/// Places in memory: of short messages, of long ones, of what is read or written, and of
/// what the other end may reach.
pub(crate) const SMALL: (u64, u64, u32) = (0, 16, 4096);
pub(crate) const LARGE: (u64, u64, u32) = (1 << 16, 2, MESSAGE_MAX);
pub(crate) const LOCAL: (u64, u64, u32) = (3 << 16, 6, 12_288);
pub(crate) const OFFERED: (u64, u64, u32) = (LOCAL.0 + 6 * 12_288, 6, 12_288);
/// Bytes of all of them.
pub(crate) const ARENA: u32 = (3 << 16) + 2 * 6 * 12_288;

/// Bytes that all contents are cut from.
pub(crate) fn pattern(number: u64, len: u32) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut rng = Rng::new(1);
        (0..1 << 15)
            .flat_map(|_| rng.next().to_le_bytes())
            .collect()
    });
    let start = Rng::new(number).index(1 << 16);
    &bytes[start..start + len as usize]
}

/// Free places of one kind.
#[derive(Debug)]
pub(crate) struct Places(pub(crate) Vec<u64>, pub(crate) u32);

impl Places {
    pub(crate) fn new((start, count, size): (u64, u64, u32)) -> Self {
        let all = (0..count).map(|at| start + at * u64::from(size));
        Self(all.collect(), size)
    }
}
