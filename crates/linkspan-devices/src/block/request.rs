//! From a chain to a request, and from its result to an answer (virtio 1.3 5.2.6).

use linkspan_mem::{RegionTable, Span};
use linkspan_virtio::{Chain, QueueError};
use virtio_bindings::virtio_blk as bits;

use super::{ID_BYTES, SECTOR};

/// Bytes of the header of a request: type, reserved, sector.
const HEADER_LEN: usize = 16;

/// What a worker knows of the disk: a copy of its own, as plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the disk in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether each write must be durable before it is answered.
    pub write_through: bool,
    /// Whether discards were negotiated.
    pub discard: bool,
    /// Whether writing zeroes without data was negotiated.
    pub write_zeroes: bool,
    /// Serial number, padded with NUL.
    pub serial: [u8; ID_BYTES],
}

/// How a request ended: its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`.
    Ok,
    /// `VIRTIO_BLK_S_IOERR`.
    IoErr,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupp,
}

impl Status {
    /// From the byte on the wire. What the specification does not know is a failure.
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Ok,
            2 => Self::Unsupp,
            _ => Self::IoErr,
        }
    }

    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoErr => 1,
            Self::Unsupp => 2,
        }
    }
}

const _: () = assert!(
    bits::VIRTIO_BLK_S_OK == 0 && bits::VIRTIO_BLK_S_IOERR == 1 && bits::VIRTIO_BLK_S_UNSUPP == 2
);

/// What is to be done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the chain's writable spans, at least one byte, from the disk.
    Read {
        /// Where on the disk in bytes.
        offset: u64,
    },
    /// Write the chain's readable spans, at least one byte, to the disk.
    Write {
        /// Where on the disk in bytes.
        offset: u64,
        /// Whether to answer only when the data is durable.
        durable: bool,
    },
    /// Forget the ranges that the chain lists: read them with [`Ranges::read`](super::Ranges::read).
    Discard,
    /// Make zero the ranges that the chain lists: read them with
    /// [`Ranges::read`](super::Ranges::read).
    WriteZeroes {
        /// Whether to answer only when all of them are durable.
        durable: bool,
    },
    /// Make durable all writes that were answered before.
    Flush,
    /// Nothing: the request is ready to be completed with this status.
    Answer(Status),
}

/// A request whose header was read and whose data is what is left in its chain:
/// [`Chain::readable`] or [`Chain::writable`], whole sectors inside the disk, or a
/// list of ranges that has not been looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    status: Span,
    /// Writable bytes before the status byte.
    room: u32,
    /// How many of them are written when the request succeeds.
    fills: u32,
}

impl Request {
    /// Reads a request from a chain and trims the chain to its data.
    ///
    /// # Errors
    /// [`QueueError::NoRoom`] when there is no whole header or no status byte:
    /// such a chain cannot be answered, so the queue must be retired. Whatever
    /// else is wrong becomes [`Operation::Answer`].
    #[inline]
    pub fn parse(
        chain: &mut Chain,
        table: &RegionTable,
        geometry: &Geometry,
    ) -> Result<Self, QueueError> {
        let status = chain.take_last_writable()?;
        let mut header = [0; HEADER_LEN];
        chain.read_front(table, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        // A chain has less than 2^32 bytes, or it would not have been popped.
        let room = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX);

        let mut fills = 0;
        let operation = match u32::from_le_bytes([t0, t1, t2, t3]) {
            bits::VIRTIO_BLK_T_IN => {
                fills = room;
                let range = geometry.offset(sector, u64::from(room));
                range.map_or_else(Operation::Answer, |offset| Operation::Read { offset })
            }
            bits::VIRTIO_BLK_T_OUT if geometry.read_only => Operation::Answer(Status::IoErr),
            bits::VIRTIO_BLK_T_OUT => {
                let durable = geometry.write_through;
                let range = geometry.offset(sector, chain.readable_len());
                range.map_or_else(Operation::Answer, |offset| Operation::Write {
                    offset,
                    durable,
                })
            }
            bits::VIRTIO_BLK_T_FLUSH => Operation::Flush,
            bits::VIRTIO_BLK_T_DISCARD | bits::VIRTIO_BLK_T_WRITE_ZEROES if geometry.read_only => {
                Operation::Answer(Status::IoErr)
            }
            bits::VIRTIO_BLK_T_DISCARD if geometry.discard => Operation::Discard,
            bits::VIRTIO_BLK_T_WRITE_ZEROES if geometry.write_zeroes => Operation::WriteZeroes {
                durable: geometry.write_through,
            },
            bits::VIRTIO_BLK_T_GET_ID => {
                // A shorter buffer gets the beginning.
                fills = room.min(bits::VIRTIO_BLK_ID_BYTES);
                let part = &geometry.serial[..fills as usize];
                let whole = table.scatter(chain.writable(), 0, part).is_ok();
                assert!(whole, "a chain holds the bytes it counts");
                Operation::Answer(Status::Ok)
            }
            _ => Operation::Answer(Status::Unsupp),
        };
        Ok(Self {
            operation,
            status,
            room,
            fills,
        })
    }

    /// The places that this request has changed, or may have, when it was completed
    /// with `status`: for whoever logs writes.
    pub fn for_each_write(&self, chain: &Chain, status: Status, mut each: impl FnMut(Span)) {
        let mut left = match (self.operation, status) {
            // A read that failed may have read a part.
            (Operation::Read { .. }, _) | (_, Status::Ok) => self.fills,
            _ => 0,
        };
        for span in chain.writable() {
            let part = span.part(0, left);
            left -= part.len();
            if !part.is_empty() {
                each(part);
            }
        }
        each(self.status);
    }

    /// Writes the status byte and gives the used length for
    /// [`push`](linkspan_virtio::DeviceQueue::push).
    ///
    /// That length counts bytes that were written without a gap from the first
    /// writable one on (virtio 1.3 2.7.8.2), so the status byte only counts when
    /// everything before it was written (QEMU 8e7fd6f623: wrong used length).
    #[inline]
    pub fn complete(&self, table: &RegionTable, status: Status) -> u32 {
        table.slice(self.status).write(&[status.byte()]);
        let filled = if status == Status::Ok { self.fills } else { 0 };
        if filled == self.room {
            filled + 1
        } else {
            filled
        }
    }
}

impl Geometry {
    /// Where `len` bytes at `sector` begin, or what to answer at once.
    pub(super) fn offset(&self, sector: u64, len: u64) -> Result<u64, Status> {
        if !len.is_multiple_of(SECTOR) {
            return Err(Status::IoErr);
        }
        match sector.checked_add(len / SECTOR) {
            Some(end) if end <= self.capacity_sectors => {}
            _ => return Err(Status::IoErr),
        }
        if len == 0 {
            return Err(Status::Ok);
        }
        sector.checked_mul(SECTOR).ok_or(Status::IoErr)
    }
}
