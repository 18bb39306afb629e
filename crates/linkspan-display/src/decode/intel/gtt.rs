//! The graphics address table: from a graphics address to the guest's pages, and on to the
//! files that hold them.
//!
//! An entry has 8 bytes: bit 0 says whether it counts, bits 63:12 are a page of the guest.
//! They lie 8 MiB behind the registers.

use alloc::vec::Vec;

use linkspan_mem::{Gpa, fault};
use thiserror::Error;

/// Bytes of a page of either side.
pub const PAGE: u64 = 4096;
/// Where the table begins, behind the registers.
pub const ENTRIES_OFFSET: u64 = 8 << 20;
/// The most pages of one picture.
pub const PAGES_MAX: u64 = (crate::PIXELS_MAX as u64 * 4 / PAGE) * 2;

const PRESENT: u64 = 1;

/// Why memory of a picture is not to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GttError {
    /// It does not begin at a page.
    #[error("graphics address {address:#x} is not that of a page")]
    Unaligned {
        /// What was given.
        address: u64,
    },
    /// It is larger than any picture.
    #[error("{pages} pages at graphics address {address:#x}; the most is {PAGES_MAX}")]
    TooLarge {
        /// Where.
        address: u64,
        /// How many pages.
        pages: u64,
    },
    /// It ends behind the table.
    #[error(
        "graphics address {address:#x} with {pages} pages is outside of a table of {entries} entries"
    )]
    Outside {
        /// Where.
        address: u64,
        /// How many pages.
        pages: u64,
        /// How many entries the table has.
        entries: u64,
    },
    /// A page of it is not there.
    #[error("graphics address {address:#x} is not mapped: its entry is {entry:#x}")]
    Absent {
        /// Of the page.
        address: u64,
        /// What the table says.
        entry: u64,
    },
    /// A page of it is none of the guest's memory.
    #[error(
        "graphics address {address:#x} is guest address {page:#x}, where the guest has no memory"
    )]
    NoMemory {
        /// Of the page.
        address: u64,
        /// Of the guest.
        page: u64,
    },
    /// A page lies in its file where no page begins, so it cannot be exported.
    #[error("guest address {page:#x} is at byte {offset:#x} of its file, where no page begins")]
    File {
        /// Of the guest.
        page: u64,
        /// In the file.
        offset: u64,
    },
    /// It is too scattered for what exports it.
    #[error("more than {max} pieces of memory")]
    Pieces {
        /// The most.
        max: usize,
    },
    /// There is no memory for the list of pages.
    #[error(transparent)]
    Memory(#[from] fault::Injected),
}

/// Pages of a file that lie one after the other, in the order of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<F> {
    /// Which file.
    pub file: F,
    /// Where they begin there, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// The guest's pages behind `len` bytes from a graphics address on. `entry` reads an entry
/// of the table, which has `entries`; each is read once.
///
/// # Errors
/// What is wrong with the table.
pub fn pages_of(
    address: u64,
    len: u64,
    entries: u64,
    mut entry: impl FnMut(u64) -> u64,
) -> Result<Vec<Gpa>, GttError> {
    if !address.is_multiple_of(PAGE) {
        return Err(GttError::Unaligned { address });
    }
    let pages = len.div_ceil(PAGE);
    if pages > PAGES_MAX {
        return Err(GttError::TooLarge { address, pages });
    }
    let first = address / PAGE;
    if first + pages > entries {
        return Err(GttError::Outside {
            address,
            pages,
            entries,
        });
    }
    // Bounded by the line above, whatever a machine calls its size.
    let mut list = fault::try_with_capacity(usize::try_from(pages).unwrap_or(usize::MAX))?;
    for index in first..first + pages {
        let entry = entry(index);
        if entry & PRESENT == 0 {
            let address = index * PAGE;
            return Err(GttError::Absent { address, entry });
        }
        list.push(Gpa(entry & !(PAGE - 1)));
    }
    Ok(list)
}

/// Where the pages lie in files, as few pieces as they are: what one list for udmabuf's
/// CREATE_LIST says. `file_of` says in which file a page of the guest is, and where.
///
/// # Errors
/// A page is not there, or there are more pieces than `max`.
pub fn pieces<F: PartialEq>(
    address: u64,
    pages: &[Gpa],
    max: usize,
    mut file_of: impl FnMut(Gpa) -> Option<(F, u64)>,
) -> Result<Vec<Piece<F>>, GttError> {
    let mut list: Vec<Piece<F>> = Vec::new();
    for (index, &page) in pages.iter().enumerate() {
        let address = address.saturating_add(index as u64 * PAGE);
        let Gpa(number) = page;
        let nowhere = GttError::NoMemory {
            address,
            page: number,
        };
        let (file, offset) = file_of(page).ok_or(nowhere)?;
        if !offset.is_multiple_of(PAGE) {
            let page = number;
            return Err(GttError::File { page, offset });
        }
        if let Some(last) = list.last_mut()
            && last.file == file
            && last.offset.checked_add(last.len) == Some(offset)
        {
            last.len += PAGE;
            continue;
        }
        if list.len() == max {
            return Err(GttError::Pieces { max });
        }
        list.push(Piece {
            file,
            offset,
            len: PAGE,
        });
    }
    Ok(list)
}

/// The guest's address of byte `offset` of a picture with these pages, and how many bytes
/// follow it there without a gap; nothing behind the last page.
#[must_use]
pub fn address_of(pages: &[Gpa], offset: u64) -> Option<(Gpa, u64)> {
    let index = usize::try_from(offset / PAGE).ok()?;
    let inside = offset % PAGE;
    let page = pages.get(index)?;
    Some((Gpa(page.0 + inside), PAGE - inside))
}
