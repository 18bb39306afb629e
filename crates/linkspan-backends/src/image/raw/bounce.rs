//! Reads and writes past the page cache whose memory or place is not aligned as
//! the device wants it: by way of a buffer that is.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use linkspan_mem::{AddressSpace, Region, RegionOffset, RegionTable, Span};
use linkspan_sys::file::{self, ReadWriteFlags, Transfer};
use linkspan_sys::storage::Alignment;

/// Bytes of a buffer: a multiple of every alignment, whose start is a page's.
const BUFFER: u32 = 256 << 10;

/// Private memory in the form that I/O takes.
#[derive(Debug)]
pub(super) struct Buffer {
    space: AddressSpace<RegionOffset>,
}

impl Buffer {
    /// A buffer of zeroes.
    pub(super) fn new() -> io::Result<Self> {
        let region = Region::heap(BUFFER as usize)
            .map_err(|refused| io::Error::new(io::ErrorKind::OutOfMemory, refused))?;
        let table = Arc::new(RegionTable::new(vec![region]));
        let space = AddressSpace::new(table, &[RegionOffset(0)]).expect("one range of some bytes");
        Ok(Self { space })
    }

    /// At most `len` of its bytes from `at` on.
    pub(super) fn part(&self, at: u64, len: u64) -> (&RegionTable, Span) {
        let mut found = Span::default();
        let len = u32::try_from(len).unwrap_or(BUFFER).min(BUFFER);
        let resolved = self
            .space
            .resolve(RegionOffset(at), len, |span| found = span);
        resolved.expect("inside the buffer");
        (self.space.table(), found)
    }
}

/// Room for one operation at a time, made when it is needed.
#[derive(Debug, Default)]
pub(super) struct Bounce(Option<Buffer>);

/// A part of an operation: whole blocks of the file that fit the buffer.
struct Piece {
    /// First byte of the first block.
    from: u64,
    /// Bytes of all blocks.
    len: u64,
    /// Bytes of the first block before the part.
    before: u64,
    /// Bytes of the part.
    wanted: u64,
}

impl Piece {
    fn next(alignment: Alignment, transfer: &Transfer<'_>, done: u64) -> Self {
        let block = u64::from(alignment.offset);
        let at = transfer.offset + done;
        let before = at % block;
        let wanted = (transfer.len() - done).min(u64::from(BUFFER) - before);
        Self {
            from: at - before,
            len: (before + wanted).next_multiple_of(block),
            before,
            wanted,
        }
    }
}

impl Bounce {
    fn buffer(&mut self) -> io::Result<&Buffer> {
        match &mut self.0 {
            Some(buffer) => Ok(buffer),
            none => Ok(none.insert(Buffer::new()?)),
        }
    }

    /// Reads what is left of a transfer; ends early only at the end of the file.
    pub(super) fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        alignment: Alignment,
        transfer: &Transfer<'_>,
        done: &mut u64,
    ) -> io::Result<()> {
        let buffer = self.buffer()?;
        while *done < transfer.len() {
            let piece = Piece::next(alignment, transfer, *done);
            let came = fill(fd, buffer, &piece)?.saturating_sub(piece.before);
            let came = came.min(piece.wanted);
            if came == 0 {
                break;
            }
            let (table, span) = buffer.part(piece.before, came);
            copy((table, &[span], 0), (transfer.table, transfer.spans, *done))?;
            *done += came;
        }
        Ok(())
    }

    /// Writes what is left of a transfer. Blocks of which it is only a part are
    /// read first: the caller keeps other writes to them out.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        alignment: Alignment,
        transfer: &Transfer<'_>,
        done: &mut u64,
        flags: ReadWriteFlags,
    ) -> io::Result<()> {
        let buffer = self.buffer()?;
        while *done < transfer.len() {
            let piece = Piece::next(alignment, transfer, *done);
            if piece.wanted < piece.len && fill(fd, buffer, &piece)? < piece.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (table, span) = buffer.part(piece.before, piece.wanted);
            copy((transfer.table, transfer.spans, *done), (table, &[span], 0))?;
            let (table, span) = buffer.part(0, piece.len);
            let blocks = Transfer {
                table,
                spans: &[span],
                offset: piece.from,
            };
            let mut written = 0;
            file::write_spans(fd, &blocks, &mut written, flags)?;
            if written < piece.len {
                break;
            }
            *done += piece.wanted;
        }
        Ok(())
    }
}

/// Reads the blocks of a piece into the buffer; how many bytes came.
fn fill(fd: BorrowedFd<'_>, buffer: &Buffer, piece: &Piece) -> io::Result<u64> {
    let (table, span) = buffer.part(0, piece.len);
    let blocks = Transfer {
        table,
        spans: &[span],
        offset: piece.from,
    };
    let mut came = 0;
    file::read_spans(fd, &blocks, &mut came, ReadWriteFlags::empty())?;
    Ok(came)
}

/// Spans of a table, of which some bytes are passed over.
type Place<'a> = (&'a RegionTable, &'a [Span], u64);

/// Copies from one place to another until one of them ends.
fn copy(from: Place<'_>, to: Place<'_>) -> io::Result<()> {
    let len = |(_, spans, skip): Place<'_>| {
        spans.iter().map(|span| u64::from(span.len())).sum::<u64>() - skip
    };
    let mut left = len(from).min(len(to));
    let mut at = 0;
    let mut bytes = [0; 4096];
    while left > 0 {
        let count = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let part = &mut bytes[..count];
        let read = from.0.gather(from.1, from.2 + at, part);
        let copied = read.and_then(|()| to.0.scatter(to.1, to.2 + at, part));
        copied.map_err(io::Error::other)?;
        at += count as u64;
        left -= count as u64;
    }
    Ok(())
}
