//! Ring memory with a peer that writes between any two of our loads: fuzzers see
//! what comes of every value that is read twice.

use alloc::sync::Arc;
use core::fmt;

use super::RingMemory;

/// Memory before each load of which its peer may do something.
#[derive(Clone)]
pub struct Raced<M> {
    memory: M,
    peer: Arc<dyn Fn() + Send + Sync>,
}

impl<M> Raced<M> {
    /// `memory`, with `peer` called before each load.
    pub fn new(memory: M, peer: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { memory, peer }
    }
}

impl<M: fmt::Debug> fmt::Debug for Raced<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Raced").field(&self.memory).finish()
    }
}

macro_rules! raced_access {
    ($load:ident, $store:ident, $value:ty) => {
        unsafe fn $load(&self, offset: usize) -> $value {
            (self.peer)();
            // SAFETY: the contract is passed on unchanged.
            unsafe { self.memory.$load(offset) }
        }

        unsafe fn $store(&self, offset: usize, value: $value) {
            // SAFETY: the contract is passed on unchanged.
            unsafe { self.memory.$store(offset, value) }
        }
    };
}

impl<M: RingMemory> RingMemory for Raced<M> {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn is_aligned(&self, align: usize) -> bool {
        self.memory.is_aligned(align)
    }

    raced_access!(load_u8, store_u8, u8);
    raced_access!(load_u16, store_u16, u16);
    raced_access!(load_u32, store_u32, u32);
    raced_access!(load_u64, store_u64, u64);

    unsafe fn copy_out(&self, offset: usize, target: &mut [u8]) {
        (self.peer)();
        // SAFETY: the contract is passed on unchanged.
        unsafe { self.memory.copy_out(offset, target) }
    }

    unsafe fn copy_in(&self, offset: usize, source: &[u8]) {
        // SAFETY: the contract is passed on unchanged.
        unsafe { self.memory.copy_in(offset, source) }
    }
}
