//! Whole files, with several requests in flight.

use std::collections::BTreeMap;
use std::io;

use linkspan_smb2::client::RequestId;
use linkspan_smb2::io::{ReadRequest, WriteRequest, WriteResponse};
use linkspan_smb2::status;
use linkspan_smb2::wire::Body as _;

use super::data::{Data, Room};
use super::error::Error;
use super::share::{Open, Share, accepted, refused};

/// Bytes that one credit pays for: what can always be asked for, or waited for.
pub(super) const CREDIT: u32 = 65_536;

/// Requests in flight.
pub const WINDOW: usize = 16;

/// Where a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the share.
    Get,
    /// To the share.
    Put,
}

/// A piece of a file: where, and how many bytes.
type Piece = (u64, u32);

/// What is still to be asked for, and what is asked for.
struct Pieces {
    next: u64,
    end: u64,
    max: u32,
    /// What came short and has a rest.
    rests: Vec<Piece>,
    flying: BTreeMap<RequestId, Piece>,
}

impl Pieces {
    fn new(from: u64, end: u64, max: u32) -> Self {
        Self {
            next: from,
            end,
            max,
            rests: Vec::new(),
            flying: BTreeMap::new(),
        }
    }

    /// The next piece, if there is one, room in the window, and credits for it.
    /// `affordable` bytes are what one piece may have now.
    fn take(&mut self, affordable: u32) -> Option<Piece> {
        if self.flying.len() >= WINDOW {
            return None;
        }
        let piece = self.rests.pop().unwrap_or_else(|| {
            let left = self.end.saturating_sub(self.next);
            let len = u32::try_from(left).unwrap_or(u32::MAX).min(self.max);
            let piece = (self.next, len);
            self.next += u64::from(len);
            piece
        });
        // Answers bring credits; where none is to come, a shorter piece has to do.
        let len = match piece.1 {
            len if len <= affordable => len,
            len if self.flying.is_empty() => len.min(affordable.max(CREDIT)),
            _ => 0,
        };
        self.rest(piece, len);
        (len > 0).then_some((piece.0, len))
    }

    /// What is left of a piece of which so many bytes are done.
    fn rest(&mut self, piece: Piece, done: u32) {
        if done < piece.1 {
            self.rests.push((piece.0 + u64::from(done), piece.1 - done));
        }
    }
}

impl Share {
    /// Reads a file from a byte to another, in pieces that come in any order.
    ///
    /// # Errors
    /// The server refuses, or the file ends before; or `sink` fails.
    pub fn read(
        &mut self,
        open: &Open,
        from: u64,
        end: u64,
        mut sink: impl FnMut(u64, Data<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let mut pieces = Pieces::new(from, end, self.connection.io_max().0);
        let result = self.read_pieces(open, &mut pieces, &mut sink);
        self.connection.forget(pieces.flying.into_keys());
        result
    }

    fn read_pieces(
        &mut self,
        open: &Open,
        pieces: &mut Pieces,
        sink: &mut impl FnMut(u64, Data<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        loop {
            while let Some(piece) = pieces.take(self.connection.affordable()) {
                let request = ReadRequest {
                    length: piece.1.into(),
                    offset: piece.0.into(),
                    file: open.file,
                    ..ReadRequest::new()
                };
                let id = self.connection.read(request, piece.1)?;
                pieces.flying.insert(id, piece);
            }
            if pieces.flying.is_empty() {
                return Ok(());
            }
            let response = self.connection.any(|id| pieces.flying.contains_key(&id))?;
            let Some(piece) = pieces.flying.remove(&response.id) else {
                continue;
            };
            let response = accepted(&open.path, response)?;
            let taken = self.connection.data(&response, |data| match data.len() {
                0 => Ok(0),
                len => sink(piece.0, data).map(|()| len),
            })?;
            let len = taken.map_err(Error::Here)?;
            if len == 0 {
                // It would be asked for again for ever.
                return Err(refused(&open.path, status::END_OF_FILE));
            }
            // The protocol's end has checked that it is not more than was asked for.
            pieces.rest(piece, u32::try_from(len).unwrap_or(piece.1));
        }
    }

    /// Writes a file from a byte to another; `source` fills each piece.
    ///
    /// # Errors
    /// The server refuses, or writes nothing; or `source` fails.
    pub fn write(
        &mut self,
        open: &Open,
        from: u64,
        end: u64,
        mut source: impl FnMut(u64, Room<'_>) -> io::Result<()>,
        mut done: impl FnMut(u64),
    ) -> Result<(), Error> {
        let mut pieces = Pieces::new(from, end, self.connection.io_max().1);
        let result = self.write_pieces(open, &mut pieces, &mut source, &mut done);
        self.connection.forget(pieces.flying.into_keys());
        result
    }

    fn write_pieces(
        &mut self,
        open: &Open,
        pieces: &mut Pieces,
        source: &mut impl FnMut(u64, Room<'_>) -> io::Result<()>,
        done: &mut impl FnMut(u64),
    ) -> Result<(), Error> {
        loop {
            while let Some(piece) = pieces.take(self.connection.affordable()) {
                let request = WriteRequest {
                    offset: piece.0.into(),
                    file: open.file,
                    ..WriteRequest::new()
                };
                let fill = |room: Room<'_>| source(piece.0, room);
                let id = self.connection.write(request, piece.1, fill)?;
                pieces.flying.insert(id, piece);
            }
            if pieces.flying.is_empty() {
                return Ok(());
            }
            let response = self.connection.any(|id| pieces.flying.contains_key(&id))?;
            let Some(piece) = pieces.flying.remove(&response.id) else {
                continue;
            };
            let response = accepted(&open.path, response)?;
            let count = WriteResponse::read(response.message())?.count.get();
            if count == 0 {
                return Err(refused(&open.path, status::DISK_FULL));
            }
            done(count.into());
            pieces.rest(piece, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    /// Ours: with fewer than 16 credits the first piece of 1 MiB was the last.
    #[test]
    fn a_piece_is_as_long_as_its_credits() {
        let mut pieces = Pieces::new(0, 3 << 20, MIB);
        assert_eq!(pieces.take(8 * MIB), Some((0, MIB)));
        pieces.flying.insert(RequestId(1), (0, MIB));
        // Credits are to come.
        assert_eq!(pieces.take(65_536), None);
        assert_eq!(pieces.take(MIB), Some((1 << 20, MIB)));
        pieces.flying.clear();
        // None is.
        assert_eq!(pieces.take(65_536), Some((2 << 20, 65_536)));
        assert_eq!(pieces.take(MIB), Some(((2 << 20) + 65_536, MIB - 65_536)));
        assert_eq!(pieces.take(MIB), None);
    }
}
