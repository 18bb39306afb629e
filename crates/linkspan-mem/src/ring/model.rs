//! Ring memory made of loom's atomics.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use super::RingMemory;

enum Cell {
    Byte(AtomicU8),
    Half(AtomicU16),
    Word(AtomicU32),
    Double(AtomicU64),
}

/// Memory whose cells have fixed widths, shared by its clones. A ring
/// accesses each field by one width only, so no cell is ever split.
#[derive(Clone)]
pub struct ModelMemory {
    cells: Arc<Vec<(usize, Cell)>>,
    len: usize,
}

impl ModelMemory {
    /// Zeroed cells of the given widths (1, 2, 4 or 8 bytes), one behind the other.
    pub fn new(widths: &[usize]) -> Self {
        let mut offset = 0;
        let mut cells = Vec::new();
        for width in widths {
            let cell = match width {
                1 => Cell::Byte(AtomicU8::new(0)),
                2 => Cell::Half(AtomicU16::new(0)),
                4 => Cell::Word(AtomicU32::new(0)),
                8 => Cell::Double(AtomicU64::new(0)),
                other => panic!("no cell of {other} bytes"),
            };
            cells.push((offset, cell));
            offset += width;
        }
        Self {
            cells: Arc::new(cells),
            len: offset,
        }
    }

    fn cell(&self, offset: usize) -> &Cell {
        let at = self.cells.binary_search_by_key(&offset, |(at, _)| *at);
        &self.cells[at.expect("a cell begins at this offset")].1
    }
}

macro_rules! model_access {
    ($load:ident, $store:ident, $value:ty, $variant:ident) => {
        unsafe fn $load(&self, offset: usize) -> $value {
            match self.cell(offset) {
                Cell::$variant(cell) => cell.load(Ordering::Relaxed),
                _ => panic!("the cell at {offset} has another width"),
            }
        }

        unsafe fn $store(&self, offset: usize, value: $value) {
            match self.cell(offset) {
                Cell::$variant(cell) => cell.store(value, Ordering::Relaxed),
                _ => panic!("the cell at {offset} has another width"),
            }
        }
    };
}

impl RingMemory for ModelMemory {
    fn len(&self) -> usize {
        self.len
    }

    fn is_aligned(&self, _align: usize) -> bool {
        true
    }

    model_access!(load_u8, store_u8, u8, Byte);
    model_access!(load_u16, store_u16, u16, Half);
    model_access!(load_u32, store_u32, u32, Word);
    model_access!(load_u64, store_u64, u64, Double);

    /// In cells of 8 bytes only.
    unsafe fn copy_out(&self, offset: usize, target: &mut [u8]) {
        for (at, bytes) in (offset..).step_by(8).zip(target.chunks_exact_mut(8)) {
            // SAFETY: model memory checks everything.
            bytes.copy_from_slice(&unsafe { self.load_u64(at) }.to_ne_bytes());
        }
    }

    unsafe fn copy_in(&self, offset: usize, source: &[u8]) {
        for (at, bytes) in (offset..).step_by(8).zip(source.chunks_exact(8)) {
            let value = u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
            // SAFETY: model memory checks everything.
            unsafe { self.store_u64(at, value) }
        }
    }
}
