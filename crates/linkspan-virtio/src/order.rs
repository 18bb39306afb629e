//! The order in which chains came, where they must go back in the same order.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};

/// Names of chains, oldest first. Kept by a side of a queue with
/// `VIRTIO_F_IN_ORDER` (virtio 1.3 2.7.9, 2.8.9).
#[derive(Debug)]
pub(crate) struct Order {
    /// A power of two of them, so that places are found by a mask.
    names: Vec<u16>,
    /// Names that were added and removed so far.
    end: u32,
    start: u32,
}

impl Order {
    /// Room for `size` chains: no more are kept at a time.
    pub(crate) fn new(size: u16) -> Result<Self, Injected> {
        let room = usize::from(size).next_power_of_two();
        let mut names = fault::try_with_capacity(room)?;
        names.resize(room, 0);
        Ok(Self {
            names,
            end: 0,
            start: 0,
        })
    }

    #[inline]
    pub(crate) fn add(&mut self, name: u16) {
        let place = self.place(self.end);
        self.names[place] = name;
        self.end = self.end.wrapping_add(1);
    }

    pub(crate) fn remove_newest(&mut self) -> Option<u16> {
        if self.start == self.end {
            return None;
        }
        self.end = self.end.wrapping_sub(1);
        Some(self.names[self.place(self.end)])
    }

    #[inline]
    pub(crate) fn remove_oldest(&mut self) -> Option<u16> {
        if self.start == self.end {
            return None;
        }
        let oldest = self.names[self.place(self.start)];
        self.start = self.start.wrapping_add(1);
        Some(oldest)
    }

    #[inline]
    fn place(&self, number: u32) -> usize {
        number as usize & (self.names.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::VecDeque;

    use super::*;

    #[test]
    fn names_come_back_in_order_or_newest_first_round_and_round() {
        for size in [1, 3, 8] {
            let mut order = Order::new(size).unwrap();
            // As after very many of them.
            (order.start, order.end) = (u32::MAX - 2, u32::MAX - 2);
            let mut model = VecDeque::new();
            for name in 0..40 {
                if model.len() == usize::from(size) {
                    assert_eq!(order.remove_oldest(), model.pop_front());
                }
                order.add(name);
                model.push_back(name);
                if name % 5 == 0 {
                    assert_eq!(order.remove_newest(), model.pop_back());
                }
            }
            while let Some(name) = model.pop_front() {
                assert_eq!(order.remove_oldest(), Some(name));
            }
            assert_eq!((order.remove_oldest(), order.remove_newest()), (None, None));
        }
    }
}
