//! The messages of FUSE that a single file needs (include/uapi/linux/fuse.h, 7.40). All
//! numbers are the machine's own.

/// Bytes before each request's body: `struct fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;

/// The protocol that is spoken: the first one with passthrough.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 40;

pub(super) mod opcode {
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const BATCH_FORGET: u32 = 42;
}

/// INIT: there is a second word of flags.
pub(super) const INIT_EXT: u32 = 1 << 30;
/// INIT, second word: a file of ours may stand behind an open one.
pub(super) const PASSTHROUGH: u32 = 1 << 5;
/// OPEN: reads and writes come to us as they are.
pub(super) const OPEN_DIRECT_IO: u32 = 1;
/// OPEN: no message when a descriptor is closed.
pub(super) const OPEN_NOFLUSH: u32 = 1 << 5;
/// OPEN: writes do not wait for each other.
pub(super) const OPEN_PARALLEL_WRITES: u32 = 1 << 6;
/// OPEN: what is mapped is the file behind it.
pub(super) const OPEN_PASSTHROUGH: u32 = 1 << 7;
/// SETATTR: mode, owner or group.
pub(super) const ATTR_OWNER: u32 = 0b111;
/// POLL: tell when this changes.
pub(super) const POLL_SCHEDULE_NOTIFY: u32 = 1;
/// The notification of POLL (`FUSE_NOTIFY_POLL`).
pub(super) const NOTIFY_POLL: i32 = 1;

/// A request, cut into the fields that every one has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// `None` if the bytes are none.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let whole = Request {
            opcode: 0,
            unique: 0,
            body: bytes,
        };
        let len = usize::try_from(whole.u32(0)?).ok()?;
        if len != bytes.len() {
            return None;
        }
        Some(Self {
            opcode: whole.u32(4)?,
            unique: whole.u64(8)?,
            body: bytes.get(IN_HEADER..)?,
        })
    }

    /// The word at this place of the body.
    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.body.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// The double word at this place of the body.
    pub(super) fn u64(&self, at: usize) -> Option<u64> {
        let bytes = self.body.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }
}

/// A message to the kernel, built in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Message {
    /// The longest one has the file's attributes.
    const MAX: usize = 120;

    /// An answer; `error` is 0 or a negative number of an error.
    pub(super) fn answer(unique: u64, error: i32) -> Self {
        let message = Self {
            bytes: [0; Self::MAX],
            len: 0,
        };
        message.i32(0).i32(error).u64(unique)
    }

    /// What the kernel is told unasked.
    pub(super) fn notification(code: i32) -> Self {
        Self::answer(0, code)
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.put(&value.to_ne_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.put(&value.to_ne_bytes())
    }

    pub(super) fn i32(self, value: i32) -> Self {
        self.put(&value.to_ne_bytes())
    }

    pub(super) fn zeroes(mut self, count: usize) -> Self {
        self.len += count;
        self.sized()
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self.sized()
    }

    fn sized(mut self) -> Self {
        let len = u32::try_from(self.len).expect("it is short");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// As the kernel takes it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
