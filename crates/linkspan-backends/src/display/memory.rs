//! Memory of pictures: a sealed file, which viewers can look at, or pages of files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use linkspan_devices::gpu::Code;
use linkspan_display::decode::intel::Piece;
use linkspan_display::link::Got;
use linkspan_mem::Region;
use linkspan_sys::memfd::{self, SealFlags, Sealing};
use linkspan_sys::{PeerMemory, udmabuf};
use rustix::fs::{Mode, fchmod};

const PAGE: u64 = 4096;

/// Bytes that all resources and their lists together may take, and do.
#[derive(Debug)]
pub(super) struct Purse {
    max: u64,
    used: AtomicU64,
}

impl Purse {
    pub(super) fn new(max: u64) -> Arc<Self> {
        let used = AtomicU64::new(0);
        Arc::new(Self { max, used })
    }

    /// Takes so many bytes out, if they are there.
    pub(super) fn share(self: &Arc<Self>, bytes: u64) -> Result<Share, Code> {
        let add = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|_| Code::OutOfMemory)?;
        let purse = Arc::clone(self);
        Ok(Share { purse, bytes })
    }
}

/// Bytes that were taken out of a purse; they go back with this.
#[derive(Debug)]
pub(super) struct Share {
    purse: Arc<Purse>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.purse.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Memory of a resource. It counts until nobody keeps it any more.
#[derive(Debug)]
pub(super) struct PictureMemory {
    file: Arc<PeerMemory>,
    pub(super) len: u64,
    _share: Share,
}

impl PictureMemory {
    /// Memory for a picture of so many bytes on which nobody else draws, and its mapping.
    pub(super) fn new(bytes: u64, purse: &Arc<Purse>) -> Result<(Region, Arc<Self>), Code> {
        // Newer kernels make no dma-buf of a file that nobody can write to.
        let future = match udmabuf::exists() {
            true => SealFlags::empty(),
            false => SealFlags::FUTURE_WRITE,
        };
        Self::sealed(bytes, purse, future)
    }

    /// The same on which others draw: see [`to_draw_on`](Self::to_draw_on).
    pub(super) fn drawn_on(bytes: u64, purse: &Arc<Purse>) -> Result<(Region, Arc<Self>), Code> {
        Self::sealed(bytes, purse, SealFlags::empty())
    }

    fn sealed(
        bytes: u64,
        purse: &Arc<Purse>,
        seals: SealFlags,
    ) -> Result<(Region, Arc<Self>), Code> {
        let len = bytes.next_multiple_of(PAGE);
        let made = Self::make(len, purse.share(len)?, seals);
        made.map_err(|error| {
            tracing::debug!("no memory for a resource: {error}");
            Code::OutOfMemory
        })
    }

    fn make(len: u64, share: Share, seals: SealFlags) -> io::Result<(Region, Arc<Self>)> {
        let file = memfd::create("linkspan-gpu", len, Sealing::Open)?;
        memfd::add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        // Whoever has a descriptor to read from may try to open it for writing, by its name
        // in /proc: other users cannot, and nobody can where it is sealed against that.
        fchmod(&file, Mode::RUSR | Mode::WUSR)?;
        let file = PeerMemory::check(file).map_err(io::Error::other)?;
        let mapping = file.map(0, len, None).map_err(io::Error::other)?;
        memfd::add_seals(&file, seals | SealFlags::SEAL)?;
        let memory = Self {
            file: Arc::new(file),
            len,
            _share: share,
        };
        Ok((Region::new(Arc::new(mapping)), Arc::new(memory)))
    }

    /// The file that holds it.
    pub(super) fn file(&self) -> &Arc<PeerMemory> {
        &self.file
    }

    /// A descriptor by which the memory can be looked at and not changed, but for our own
    /// user, who can open it anew. It lives on its own.
    pub(super) fn to_look_at(&self) -> io::Result<OwnedFd> {
        linkspan_mem::fault::point(linkspan_mem::fault::Site::Fd).map_err(io::Error::other)?;
        let number = self.file.as_fd().as_raw_fd();
        Ok(File::open(format!("/proc/self/fd/{number}"))?.into())
    }

    /// A descriptor by which the memory can be changed too: for who draws.
    pub(super) fn to_draw_on(&self) -> io::Result<OwnedFd> {
        linkspan_mem::fault::point(linkspan_mem::fault::Site::Fd).map_err(io::Error::other)?;
        self.file.as_fd().try_clone_to_owned()
    }

    /// The memory as a dma-buf, which graphics drivers take.
    pub(super) fn to_dma_buf(&self) -> io::Result<OwnedFd> {
        udmabuf::export(&*self.file, self.len)
    }
}

/// Pages of files, one after the other: a picture that its guest has scattered. The files
/// are kept, and there is no way to look at them but a dma-buf.
#[derive(Debug)]
pub(super) struct Pages {
    pieces: Vec<Piece<Arc<PeerMemory>>>,
    len: u64,
}

impl Pages {
    pub(super) fn new(pieces: Vec<Piece<Arc<PeerMemory>>>) -> Self {
        let len = pieces.iter().map(|piece| piece.len).sum();
        Self { pieces, len }
    }

    fn to_dma_buf(&self) -> io::Result<OwnedFd> {
        let pieces = self.pieces.iter().map(|piece| udmabuf::Piece {
            file: piece.file.as_fd(),
            offset: piece.offset,
            len: piece.len,
        });
        udmabuf::export_list(&pieces.collect::<Vec<_>>())
    }
}

impl PartialEq for Pages {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Piece<Arc<PeerMemory>>, &Piece<Arc<PeerMemory>>)| {
            Arc::ptr_eq(&a.file, &b.file) && (a.offset, a.len) == (b.offset, b.len)
        };
        self.pieces.len() == other.pieces.len() && self.pieces.iter().zip(&other.pieces).all(same)
    }
}

/// Where the bytes of a picture are.
#[derive(Clone, Debug)]
pub(super) enum Backing {
    /// In a file of ours.
    Whole(Arc<PictureMemory>),
    /// In pages of files.
    Pages(Arc<Pages>),
}

/// Whether it is the same memory.
impl PartialEq for Backing {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Arc::ptr_eq(a, b),
            (Self::Pages(a), Self::Pages(b)) => a == b,
            _ => false,
        }
    }
}

impl Backing {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Whole(memory) => memory.len,
            Self::Pages(pages) => pages.len,
        }
    }

    /// A descriptor by which it can be looked at and not changed, if it has one.
    pub(super) fn to_look_at(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Whole(memory) => memory.to_look_at(),
            Self::Pages(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// A dma-buf, if the machine makes one.
    pub(super) fn to_dma_buf(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Whole(memory) => memory.to_dma_buf(),
            Self::Pages(pages) => pages.to_dma_buf(),
        }
    }

    /// What a viewer gets who asks for a dma-buf or does not: what is in pages has nothing
    /// else.
    pub(super) fn give(&self, dma_buf: bool) -> io::Result<(Got, OwnedFd)> {
        match dma_buf || matches!(self, Self::Pages(_)) {
            true => Ok((Got::DmaBuf, self.to_dma_buf()?)),
            false => Ok((Got::Memory, self.to_look_at()?)),
        }
    }
}
