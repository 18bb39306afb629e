#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod block;
pub mod bochs;
pub mod gpu;
pub mod net;

/// Copies configuration space from `offset` on; `false`, and nothing is copied, when
/// the range is not all inside.
fn read_config(space: &[u8], offset: usize, target: &mut [u8]) -> bool {
    let end = offset.checked_add(target.len());
    let part = end.and_then(|end| space.get(offset..end));
    part.inspect(|bytes| target.copy_from_slice(bytes))
        .is_some()
}
