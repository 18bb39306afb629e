//! Whoever has a guest's screen: a virtual GPU of ours, or a device of the kernel.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use linkspan_display::{Kind, Loss, Plane, Rectangle, RefusedPlane};
use linkspan_sys::dmabuf::{self, DmaBuf};
use linkspan_sys::{OutsideView, View};

/// A plane that is shown now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which screen of the guest, from 0.
    pub head: u8,
    /// Which layer of it.
    pub kind: Kind,
    /// The name of its memory. The same id is the same memory, for as long as it is shown.
    pub id: u32,
    /// How it lies in its memory, and where it is on the screen.
    pub plane: Plane,
    /// Another number when the source knows that its pixels are others; always 0 if it
    /// does not know.
    pub content: u32,
}

/// What has changed since that was last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Nobody knows: compare.
    Compare,
    /// These parts of these screens and nothing else of them, and perhaps which planes are
    /// shown, and pointers.
    Parts(Vec<(u8, Rectangle)>),
}

/// Memory of a plane. A copy of it is the same memory, mapped once.
#[derive(Clone, Debug)]
pub enum Memory {
    /// Plain memory, or a device's.
    View(Arc<View>),
    /// A dma-buf, whose driver is told when it is read.
    DmaBuf(Arc<DmaBuf>),
}

impl From<View> for Memory {
    fn from(view: View) -> Self {
        Self::View(Arc::new(view))
    }
}

impl Memory {
    /// Its bytes, until the result is dropped.
    ///
    /// # Errors
    /// They cannot be read now.
    pub fn reading(&self) -> Result<Reading<'_>, SourceError> {
        match self {
            Self::View(view) => Ok(Reading::View(view)),
            Self::DmaBuf(buffer) => match buffer.reading() {
                Ok(reading) => Ok(Reading::DmaBuf(reading)),
                Err(source) => Err(SourceError::System {
                    what: "DMA_BUF_IOCTL_SYNC",
                    source,
                }),
            },
        }
    }
}

/// Bytes of a plane while they are read.
#[derive(Debug)]
pub enum Reading<'a> {
    /// Of plain memory.
    View(&'a View),
    /// Of a dma-buf.
    DmaBuf(dmabuf::Reading<'a>),
}

impl Reading<'_> {
    /// Copies bytes out, from `offset` on.
    ///
    /// # Errors
    /// They are not all inside; nothing was copied then.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), OutsideView> {
        match self {
            Self::View(view) => view.read(offset, target),
            Self::DmaBuf(reading) => reading.read(offset, target),
        }
    }
}

/// Why a source does not say what was asked. What is in it is said to people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is nothing to look at any more, or not now.
    #[error("{0}")]
    Lost(Loss),
    /// The memory of an id cannot be had: it is not shown any more.
    #[error("buffer {id} is not shown any more")]
    Retired {
        /// Which.
        id: u32,
    },
    /// The source cannot do that, and this is why.
    #[error("{0}")]
    Unsupported(String),
    /// The source broke its protocol.
    #[error("the source broke the protocol: {0}")]
    Broken(String),
    /// The system said no.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The memory cannot be mapped.
    #[error("the memory of the picture: {0}")]
    Map(#[from] linkspan_sys::mapping::Error),
}

/// Whoever has a guest's screen.
pub trait Source: Send {
    /// What people call it.
    fn name(&self) -> String;

    /// The planes that are shown now. May wait for a short while at most.
    ///
    /// # Errors
    /// [`SourceError::Lost`] when none are, with the reason; all ids are void then.
    fn planes(&mut self) -> Result<Vec<Shown>, SourceError>;

    /// Planes that are on and not shown, as [`planes`](Self::planes) found last.
    fn refused(&self) -> &[RefusedPlane] {
        &[]
    }

    /// The memory of an id that [`planes`](Self::planes) named last. It is asked for once
    /// for each id that is held ([`Held`](linkspan_display::Held)).
    ///
    /// # Errors
    /// It cannot be had.
    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError>;

    /// What has changed since this was last asked.
    fn change(&mut self) -> Change {
        Change::Compare
    }

    /// Becomes readable when something has changed, if the source can say so; what cannot
    /// is asked again and again.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether something has changed since [`change`](Self::change) was asked last that was
    /// heard meanwhile, so that [`wake_fd`](Self::wake_fd) does not tell of it any more.
    fn has_news(&self) -> bool {
        false
    }

    /// Whether [`check`](Self::check) is to be called now and then while nobody looks: who has
    /// a device open holds up its removal.
    fn needs_checks(&self) -> bool {
        false
    }

    /// Lets go of what is not there any more.
    ///
    /// # Errors
    /// [`SourceError::Lost`]: whatever is held of it is to be let go too.
    fn check(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    /// Asks the guest for another size of a screen.
    ///
    /// # Errors
    /// [`SourceError::Unsupported`] with the reason.
    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError>;
}
