//! A front end's memory table, mapped under the rules for hostile peers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::{GuestMemory, Region, SpaceError};
use linkspan_sys::{EventFd, PeerMemory, mapping, reaper};
use linkspan_vhost::MemoryRegion;

/// The regions that a front end shares at this moment.
#[derive(Debug, Default)]
pub(crate) struct MemoryTable {
    mapped: Vec<Mapped>,
}

/// A region, where it is, and the file that it is in, for a successor process.
#[derive(Clone, Debug)]
struct Mapped {
    known: MemoryRegion,
    region: Region,
    file: Arc<PeerMemory>,
}

/// Why memory of the peer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The file is of the wrong kind, too short, or could not be mapped.
    #[error(transparent)]
    Map(#[from] mapping::Error),
    /// The regions contradict each other.
    #[error(transparent)]
    Layout(#[from] SpaceError),
}

impl MemoryTable {
    /// The table with these regions in place of all others; `fds[i]` holds region
    /// `i`. `gone` is signalled when the peer takes memory back.
    pub(crate) fn replaced(
        regions: Vec<MemoryRegion>,
        fds: Vec<OwnedFd>,
        gone: &Arc<EventFd>,
    ) -> Result<Self, MemoryError> {
        let mut mapped = Vec::new();
        let mut fds = fds.into_iter();
        for (region, fd) in regions.into_iter().zip(&mut fds) {
            match map(&region, fd, gone) {
                Ok(one) => mapped.push(one),
                Err(error) => {
                    // Unchecked, so that closing them could block.
                    fds.for_each(reaper::dispose);
                    return Err(error);
                }
            }
        }
        Ok(Self { mapped })
    }

    /// The table with one more region.
    pub(crate) fn with(
        &self,
        region: MemoryRegion,
        fd: OwnedFd,
        gone: &Arc<EventFd>,
    ) -> Result<Self, MemoryError> {
        let added = map(&region, fd, gone)?;
        let mut mapped = self.mapped.clone();
        mapped.push(added);
        Ok(Self { mapped })
    }

    /// The table without one region.
    pub(crate) fn without(&self, region: MemoryRegion) -> Self {
        let mapped = self.mapped.iter().filter(|it| it.known != region);
        Self {
            mapped: mapped.cloned().collect(),
        }
    }

    /// The regions and where they are.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (&MemoryRegion, &Region)> {
        self.mapped.iter().map(|it| (&it.known, &it.region))
    }

    /// The file of each region, in the order of [`regions`](Self::regions).
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.mapped.iter().map(|it| it.file.as_fd())
    }

    /// Whether the peer took memory back.
    pub(crate) fn poisoned(&self) -> bool {
        self.mapped.iter().any(|it| it.region.poisoned())
    }

    /// The address spaces that the table describes.
    pub(crate) fn resolve(&self) -> Result<Arc<GuestMemory>, MemoryError> {
        let regions = self.mapped.iter().map(|it| {
            (
                it.region.clone(),
                it.known.guest_address,
                it.known.user_address,
            )
        });
        Ok(Arc::new(GuestMemory::new(regions.collect())?))
    }
}

fn map(known: &MemoryRegion, fd: OwnedFd, gone: &Arc<EventFd>) -> Result<Mapped, MemoryError> {
    let file = PeerMemory::check(fd)?;
    let mapping = file.map(known.mmap_offset, known.size, Some(Arc::clone(gone)))?;
    Ok(Mapped {
        known: *known,
        region: Region::new(Arc::new(mapping)),
        file: Arc::new(file),
    })
}
