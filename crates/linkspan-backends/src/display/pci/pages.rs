//! Where a picture lies whose pages a graphics address table says: in files that hold the
//! device's memory or its guest's.

use std::io;
use std::sync::Arc;

use linkspan_display::decode::intel::{GttError, PAGE, Piece, pages_of, pieces};
use linkspan_engine::vfio_user::Mapped;
use linkspan_mem::Gpa;
use linkspan_sys::PeerMemory;
use linkspan_sys::udmabuf::{self, PIECES_MAX};

use super::super::memory::Pages;

/// Why a picture is not found, or not shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum PagesError {
    /// The table does not say where it is.
    #[error(transparent)]
    Table(#[from] GttError),
    /// It is not in one piece, and the machine makes no dma-buf.
    #[error("its pages are scattered, and there is no /dev/udmabuf here to put them together: {0}")]
    Udmabuf(io::Error),
    /// A file can become shorter, so that none can be made.
    #[error("its pages are in memory that is not sealed against shrinking, so there is no dma-buf")]
    Unsealed,
}

/// Memory at some addresses, and where it is in its file.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) file: Arc<PeerMemory>,
    pub(super) start: Gpa,
    pub(super) len: u64,
    pub(super) offset: u64,
}

impl Span {
    fn find(&self, Gpa(page): Gpa) -> Option<u64> {
        let at = page.checked_sub(self.start.0)?;
        let end = at.checked_add(PAGE)?;
        (end <= self.len).then_some(self.offset.checked_add(at)?)
    }
}

/// All memory that a table may speak of, each span with the place here of the first one of
/// its file: each page of a picture is looked up.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans(Vec<(Span, usize)>);

impl Spans {
    /// Of one file that begins at address 0.
    pub(super) fn of(file: &Arc<PeerMemory>, len: u64) -> Self {
        Self::new(vec![Span {
            file: Arc::clone(file),
            start: Gpa(0),
            len,
            offset: 0,
        }])
    }

    /// Of spans that do not overlap.
    fn new(mut spans: Vec<Span>) -> Self {
        spans.sort_by_key(|span| span.start.0);
        let first = |span: &Span| {
            let same = |it: &Span| Arc::ptr_eq(&it.file, &span.file);
            spans.iter().position(same).unwrap_or(0)
        };
        let firsts: Vec<usize> = spans.iter().map(first).collect();
        Self(spans.into_iter().zip(firsts).collect())
    }

    /// What a client shares by descriptors and a device may read and write: who has a dma-buf
    /// of it can do both.
    pub(super) fn of_guest(maps: &mut dyn Iterator<Item = &Mapped>) -> Self {
        let span = |mapped: &Mapped| {
            let open = mapped.map.readable && mapped.map.writable;
            open.then_some(())?;
            Some(Span {
                file: Arc::clone(mapped.backing.as_ref()?),
                start: Gpa(mapped.map.address.0),
                len: mapped.map.size,
                offset: mapped.map.offset,
            })
        };
        Self::new(maps.filter_map(span).collect())
    }

    /// The file that has a page of the guest, by its place here, and where.
    fn find(&self, page: Gpa) -> Option<(usize, u64)> {
        let behind = self.0.partition_point(|(span, _)| span.start.0 <= page.0);
        let (found, first) = self.0.get(behind.checked_sub(1)?)?;
        Some((*first, found.find(page)?))
    }

    /// The pieces of files that hold `len` bytes from a graphics address on.
    ///
    /// # Errors
    /// What is wrong with the table.
    pub(super) fn pieces(
        &self,
        address: u64,
        len: u64,
        entries: u64,
        entry: impl FnMut(u64) -> u64,
    ) -> Result<Vec<Piece<Arc<PeerMemory>>>, GttError> {
        let pages = pages_of(address, len, entries, entry)?;
        let found = pieces(address, &pages, PIECES_MAX, |page| self.find(page))?;
        let pieces = found.into_iter().map(|piece| Piece {
            file: Arc::clone(&self.0[piece.file].0.file),
            offset: piece.offset,
            len: piece.len,
        });
        Ok(pieces.collect())
    }
}

/// Pieces as memory of a picture, of which there will be a dma-buf.
///
/// # Errors
/// There will be none.
pub(super) fn scattered(pieces: Vec<Piece<Arc<PeerMemory>>>) -> Result<Arc<Pages>, PagesError> {
    if pieces.iter().any(|piece| !piece.file.sealed_shrink()) {
        return Err(PagesError::Unsealed);
    }
    udmabuf::available().map_err(PagesError::Udmabuf)?;
    Ok(Arc::new(Pages::new(pieces)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_sys::memfd::{self, Sealing};

    fn file(pages: u64) -> Arc<PeerMemory> {
        let file = memfd::create("guest", pages * PAGE, Sealing::Fixed).unwrap();
        Arc::new(PeerMemory::check(file).unwrap())
    }

    fn span(file: &Arc<PeerMemory>, start: u64, len: u64, offset: u64) -> Span {
        Span {
            file: Arc::clone(file),
            start: Gpa(start * PAGE),
            len: len * PAGE,
            offset: offset * PAGE,
        }
    }

    #[test]
    fn pages_become_as_few_pieces_as_they_are_in_files() {
        let (low, high) = (file(8), file(4));
        let spans = Spans::new(vec![
            span(&low, 0, 4, 0),
            span(&low, 16, 4, 4),
            span(&high, 100, 4, 0),
        ]);
        // Pages 3 and 16 of the guest follow each other in the file.
        let table = [3, 16, 101, 102, 0];
        let entry = |at: u64| (table[usize::try_from(at).unwrap()] * PAGE) | 1;
        let pieces = spans.pieces(0, 5 * PAGE, 5, entry).unwrap();
        let found: Vec<_> = pieces
            .iter()
            .map(|it| {
                let is_low = Arc::ptr_eq(&it.file, &low);
                (is_low, it.offset / PAGE, it.len / PAGE)
            })
            .collect();
        assert_eq!(found, [(true, 3, 2), (false, 1, 2), (true, 0, 1)]);
    }

    /// Absent, outside of the table, outside of memory: before, between and behind.
    #[test]
    fn what_is_wrong_with_a_table_has_a_name() {
        let low = file(8);
        let spans = Spans::new(vec![span(&low, 2, 2, 0), span(&low, 8, 2, 2)]);
        let one = |entry: u64| spans.pieces(0, PAGE, 1, |_| entry).unwrap_err();
        for page in [0, 1, 4, 7, 10, 1 << 40] {
            let error = one((page * PAGE) | 1);
            assert!(
                matches!(error, GttError::NoMemory { .. }),
                "{page}: {error}"
            );
        }
        assert!(matches!(one(2 * PAGE), GttError::Absent { .. }));
        let error = spans
            .pieces(0, 2 * PAGE, 1, |_| (2 * PAGE) | 1)
            .unwrap_err();
        assert!(matches!(error, GttError::Outside { .. }), "{error}");
        let error = spans.pieces(7, PAGE, 1, |_| 0).unwrap_err();
        assert!(matches!(error, GttError::Unaligned { .. }), "{error}");
        let none = Spans::default().pieces(0, PAGE, 1, |_| 1).unwrap_err();
        assert!(matches!(none, GttError::NoMemory { .. }), "{none}");
        // More pieces than the kernel takes.
        let spans = Spans::new(vec![span(&low, 0, 8, 0)]);
        let zigzag = |at: u64| (at % 2 * 2 * PAGE) | 1;
        let error = spans.pieces(0, 2000 * PAGE, 2000, zigzag).unwrap_err();
        assert!(matches!(error, GttError::Pieces { max: PIECES_MAX }));
    }

    #[test]
    fn memory_that_can_shrink_is_refused_by_name() {
        let file = memfd::create("guest", PAGE, Sealing::Open).unwrap();
        let file = Arc::new(PeerMemory::check(file).unwrap());
        let spans = Spans::of(&file, PAGE);
        let pieces = spans.pieces(0, PAGE, 1, |_| 1).unwrap();
        let error = scattered(pieces).unwrap_err();
        assert!(matches!(error, PagesError::Unsealed), "{error}");
    }
}
