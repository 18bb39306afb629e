//! Accesses of any length as accesses that registers have.

/// A part of an access: 1, 2, 4 or 8 bytes at a multiple of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is in the BAR.
    pub offset: u64,
    /// Where it is in the bytes of the access.
    pub at: usize,
    /// Its bytes.
    pub len: usize,
}

/// An access of any length and alignment, cut as a bus would cut it.
pub fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    core::iter::from_fn(move || {
        let left = len - at;
        // None is longer than what is left, nor than where it begins allows. An offset
        // beyond the end of 64 bits is in no BAR, wherever it comes out again.
        let offset = offset.wrapping_add(at as u64);
        let fits = |len: &usize| *len <= left && offset.is_multiple_of(*len as u64);
        let len = [8, 4, 2, 1].into_iter().find(fits)?;
        let piece = Piece { offset, at, len };
        at += len;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn cut(offset: u64, len: usize) -> Vec<(u64, usize, usize)> {
        let all = pieces(offset, len);
        all.map(|piece| (piece.offset, piece.at, piece.len))
            .collect()
    }

    #[test]
    fn what_a_register_can_have_stays_whole() {
        for len in [1, 2, 4, 8] {
            assert_eq!(cut(0x18, len), [(0x18, 0, len)]);
        }
        assert_eq!(cut(0x18, 0), []);
    }

    #[test]
    fn other_accesses_are_cut_at_multiples_of_their_pieces() {
        assert_eq!(cut(0x10, 3), [(0x10, 0, 2), (0x12, 2, 1)]);
        assert_eq!(cut(0x14, 8), [(0x14, 0, 4), (0x18, 4, 4)]);
        assert_eq!(cut(7, 10), [(7, 0, 1), (8, 1, 8), (16, 9, 1)]);
        let all = cut(1, 4096);
        assert_eq!(all.iter().map(|piece| piece.2).sum::<usize>(), 4096);
        assert_eq!(cut(u64::MAX, 2), [(u64::MAX, 0, 1), (0, 1, 1)]);
    }
}
