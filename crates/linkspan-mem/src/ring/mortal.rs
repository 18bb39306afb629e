//! Ring memory whose writer dies: tests see what is left of every half-done step.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use super::RingMemory;

/// How many stores a writer has left, over all the memory that it writes.
#[derive(Debug)]
pub struct Life {
    left: AtomicU64,
}

impl Life {
    /// A life of `stores` stores.
    pub fn new(stores: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(stores),
        })
    }

    /// Whether the last store is done. What the writer does from now on happens
    /// to nobody, and a test stops it when it likes.
    pub fn is_over(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    fn spend(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.left.fetch_update(set, fetch, less).is_ok()
    }
}

/// Memory that loses every store that comes after its writer's [`Life`].
///
/// A crash between two stores of a queue is a life that ends there; the memory
/// underneath is then what the next life finds.
#[derive(Clone, Debug)]
pub struct Mortal<M> {
    memory: M,
    life: Arc<Life>,
}

impl<M> Mortal<M> {
    /// `memory` as the writer with this life sees it.
    pub fn new(memory: M, life: Arc<Life>) -> Self {
        Self { memory, life }
    }
}

macro_rules! mortal_access {
    ($load:ident, $store:ident, $value:ty) => {
        unsafe fn $load(&self, offset: usize) -> $value {
            // SAFETY: the contract is passed on unchanged.
            unsafe { self.memory.$load(offset) }
        }

        unsafe fn $store(&self, offset: usize, value: $value) {
            if self.life.spend() {
                // SAFETY: the contract is passed on unchanged.
                unsafe { self.memory.$store(offset, value) }
            }
        }
    };
}

impl<M: RingMemory> RingMemory for Mortal<M> {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn is_aligned(&self, align: usize) -> bool {
        self.memory.is_aligned(align)
    }

    mortal_access!(load_u8, store_u8, u8);
    mortal_access!(load_u16, store_u16, u16);
    mortal_access!(load_u32, store_u32, u32);
    mortal_access!(load_u64, store_u64, u64);

    unsafe fn copy_out(&self, offset: usize, target: &mut [u8]) {
        // SAFETY: the contract is passed on unchanged.
        unsafe { self.memory.copy_out(offset, target) }
    }

    unsafe fn copy_in(&self, offset: usize, source: &[u8]) {
        if self.life.spend() {
            // SAFETY: the contract is passed on unchanged.
            unsafe { self.memory.copy_in(offset, source) }
        }
    }
}
