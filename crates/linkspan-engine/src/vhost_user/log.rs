//! The dirty log of a front end: its memory, and what each ring writes there
//! (vhost-user: Migration).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::{DirtyLog, Gpa, GuestMemory, Region};
use linkspan_sys::{EventFd, PeerEventFd, PeerMemory, mapping};
use linkspan_vhost::backend::RingSetup;
use linkspan_virtio::{Features, QueueLayout};

use crate::dirty::{LoggedArea, RingLog};

/// What a front end said of its log so far.
#[derive(Debug, Default)]
pub(super) struct Logging {
    log: Option<MappedLog>,
    /// Whether `VHOST_F_LOG_ALL` is set.
    pub(super) all: bool,
    /// Who wants to hear of changes.
    pub(super) told: Option<Arc<PeerEventFd>>,
}

/// A log, and the file that it is in, for a successor process.
#[derive(Debug)]
pub(super) struct MappedLog {
    pub(super) log: Arc<DirtyLog>,
    file: PeerMemory,
}

/// Why writes cannot be logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The file cannot be used.
    #[error("the dirty log: {0}")]
    Map(#[from] mapping::Error),
    /// Not every page of the guest has a bit.
    #[error("a dirty log of {len} bytes is too small for memory up to {last:#x}: it takes {need}")]
    TooSmall {
        /// Bytes that it has.
        len: u64,
        /// The last guest address.
        last: u64,
        /// Bytes that it takes.
        need: u64,
    },
    /// Not every page of a used ring has a bit (vhost-user: Migration).
    #[error("a dirty log of {len} bytes does not reach to the used ring at {used:#x}")]
    UsedRing {
        /// Bytes that it has.
        len: u64,
        /// Where the used ring begins in the log.
        used: u64,
    },
}

impl MappedLog {
    /// A log that was not there before. `gone` is signalled when the peer takes the
    /// memory back.
    pub(super) fn map(
        fd: OwnedFd,
        log: linkspan_vhost::Log,
        gone: &Arc<EventFd>,
    ) -> Result<Self, LogError> {
        let file = PeerMemory::check(fd)?;
        let mapping = file.map(log.offset, log.size, Some(Arc::clone(gone)))?;
        let log = Arc::new(DirtyLog::new(Region::new(Arc::new(mapping))));
        Ok(Self { log, file })
    }
}

impl Logging {
    /// Uses this log from now on.
    pub(super) fn replace(&mut self, log: MappedLog) {
        self.log = Some(log);
    }

    /// The file of the log, if there is one.
    pub(super) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().map(|mapped| mapped.file.as_fd())
    }

    /// Whether the peer took memory back.
    pub(super) fn poisoned(&self) -> bool {
        self.log.as_ref().is_some_and(|it| it.log.poisoned())
    }

    /// What a ring of this setup logs. Without a log there is nothing to write,
    /// whatever was negotiated: front ends set the feature before the log.
    pub(super) fn of_ring(&self, setup: &RingSetup, memory: &GuestMemory) -> Option<RingLog> {
        let log = &self.log.as_ref()?.log;
        (self.all || setup.log.is_some()).then(|| RingLog {
            log: Arc::clone(log),
            buffers: self.all,
            area: setup.log.and_then(|at| area(setup, at, memory)),
            told: self.told.clone(),
        })
    }

    /// Whether all of this memory can be logged, if it is to be.
    pub(super) fn check_memory(&self, memory: &GuestMemory) -> Result<(), LogError> {
        match &self.log {
            Some(it) if self.all => covers(&it.log, memory),
            _ => Ok(()),
        }
    }

    /// Whether all of this ring can be logged, if it is to be.
    pub(super) fn check_ring(
        &self,
        setup: &RingSetup,
        memory: &GuestMemory,
    ) -> Result<(), LogError> {
        let log = self.log.as_ref();
        log.map_or(Ok(()), |it| reaches(&it.log, setup, memory))
    }
}

/// Whether a log has a bit for each page of this memory.
pub(super) fn covers(log: &DirtyLog, memory: &GuestMemory) -> Result<(), LogError> {
    let Some(last) = memory.guest.last() else {
        return Ok(());
    };
    let (len, need) = (log.len(), DirtyLog::len_for(last));
    if len < need {
        let last = last.0;
        return Err(LogError::TooSmall { len, last, need });
    }
    Ok(())
}

/// Whether a log has a bit for each page that a device writes of a ring.
pub(super) fn reaches(
    log: &DirtyLog,
    setup: &RingSetup,
    memory: &GuestMemory,
) -> Result<(), LogError> {
    let Some(Gpa(used)) = setup.log else {
        return Ok(());
    };
    let layout = layout(setup);
    let [_, _, bytes] = layout.part_lens(setup.size);
    let last = used.checked_add(bytes as u64 - 1).map(Gpa);
    if last.is_none_or(|last| DirtyLog::len_for(last) > log.len()) {
        let len = log.len();
        return Err(LogError::UsedRing { len, used });
    }
    match layout {
        // Its descriptors are anywhere in memory.
        QueueLayout::Packed => covers(log, memory),
        QueueLayout::Split => Ok(()),
    }
}

fn layout(setup: &RingSetup) -> QueueLayout {
    QueueLayout::of(Features::from_bits_retain(setup.features))
}

/// What is written of a ring whose device area is logged at `at`; `None` for descriptors that
/// are in no memory, where no ring can be.
fn area(setup: &RingSetup, at: Gpa, memory: &GuestMemory) -> Option<LoggedArea> {
    if layout(setup) == QueueLayout::Split {
        let features = Features::from_bits_retain(setup.features);
        return Some(LoggedArea::Split {
            used: at,
            event_idx: features.contains(Features::VIRTIO_F_EVENT_IDX),
        });
    }
    // A ring is within one region, so its first byte says where the others are.
    let first = memory
        .front_end
        .resolve_one(setup.descriptor, 1, false, &mut 0)?;
    Some(LoggedArea::Packed {
        descriptors: memory.guest.address(first)?,
        device: at,
    })
}
