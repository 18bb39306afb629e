//! A picture that is scattered over a guest's pages, as one dma-buf.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linkspan_display::decode::intel::{GttError, pages_of, pieces};
use linkspan_mem::Gpa;
use linkspan_sys::udmabuf::{self, PIECES_MAX};

/// A file that holds a part of a guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestFile<'a> {
    /// The file: sealed against shrinking and not against writing, as udmabuf wants it.
    pub file: BorrowedFd<'a>,
    /// The guest's address of its first byte that counts.
    pub start: Gpa,
    /// How many bytes.
    pub len: u64,
    /// Where that byte is in the file.
    pub offset: u64,
}

impl GuestFile<'_> {
    /// Where a page of the guest is in it.
    fn find(&self, Gpa(page): Gpa) -> Option<u64> {
        let at = page.checked_sub(self.start.0)?;
        let end = at.checked_add(linkspan_display::decode::intel::PAGE)?;
        (end <= self.len).then_some(self.offset.checked_add(at)?)
    }
}

/// Why there is no dma-buf.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagesError {
    /// The graphics address table does not say where the picture is.
    #[error(transparent)]
    Table(#[from] GttError),
    /// The kernel makes none.
    #[error("this kernel has no /dev/udmabuf, so there is no dma-buf of scattered pages")]
    NoUdmabuf,
    /// It refused.
    #[error("UDMABUF_CREATE_LIST of {pieces} pieces: {source}")]
    Create {
        /// How many.
        pieces: usize,
        /// Its reason.
        source: io::Error,
    },
}

/// Makes a dma-buf of `len` bytes from a graphics address on, whose pages are those that
/// the graphics address table says: `entry` reads one of its `entries`, each once.
///
/// # Errors
/// [`PagesError`].
pub fn export_pages(
    files: &[GuestFile<'_>],
    address: u64,
    len: u64,
    entries: u64,
    entry: impl FnMut(u64) -> u64,
) -> Result<OwnedFd, PagesError> {
    let pages = pages_of(address, len, entries, entry)?;
    let find = |page| {
        let mut files = files.iter().enumerate();
        files.find_map(|(number, file)| Some((number, file.find(page)?)))
    };
    let found = pieces(address, &pages, PIECES_MAX, find)?;
    let list = found.iter().map(|piece| udmabuf::Piece {
        file: files[piece.file].file.as_fd(),
        offset: piece.offset,
        len: piece.len,
    });
    let list: Vec<_> = list.collect();
    udmabuf::export_list(&list).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PagesError::NoUdmabuf,
        _ => PagesError::Create {
            pieces: list.len(),
            source,
        },
    })
}
