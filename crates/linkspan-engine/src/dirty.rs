//! What one ring writes down of its writes to guest memory while the guest is
//! being migrated (vhost-user: Migration).

use std::sync::Arc;

use linkspan_mem::{DirtyLog, Gpa, GuestMemory, Span};
use linkspan_sys::PeerEventFd;

/// The dirty log as one ring uses it.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// The log, which other rings use at the same time.
    pub log: Arc<DirtyLog>,
    /// Whether writes to buffers are logged (`VHOST_F_LOG_ALL`).
    pub buffers: bool,
    /// Where the used ring begins in the log, if writes to it are logged
    /// (`VHOST_VRING_F_LOG`). It need not be an address of the guest.
    pub used: Option<Gpa>,
    /// Whether `avail_event` is written, and not `used.flags`.
    pub event_idx: bool,
    /// Who wants to hear that the log changed (`VHOST_USER_SET_LOG_FD`).
    pub told: Option<Arc<PeerEventFd>>,
}

/// Offsets within the used ring of a split queue (virtio 1.3 2.7.8).
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
const ENTRY: u64 = 8;

impl RingLog {
    /// Logs a write to a buffer of this memory; for whoever has lent its ring, as
    /// [`ActiveRing::log_write`](crate::ActiveRing::log_write).
    #[cold]
    pub fn buffer(&self, memory: &GuestMemory, span: Span) {
        if let Some(address) = memory.guest.address(span) {
            self.log.mark(address, u64::from(span.len()));
        }
    }

    /// Logs the used elements at the positions from `from` to before `to`, to be
    /// called before they are published.
    #[cold]
    pub(crate) fn used_elements(&self, size: u16, from: u16, to: u16) {
        let Some(used) = self.used else {
            return;
        };
        let count = u64::from(to.wrapping_sub(from));
        let at = u64::from(from % size);
        let before_wrap = count.min(u64::from(size) - at);
        mark(&self.log, used, ENTRIES + ENTRY * at, ENTRY * before_wrap);
        mark(&self.log, used, ENTRIES, ENTRY * (count - before_wrap));
    }

    /// Logs what one pass may have written besides: the index, if used elements
    /// were `published`, and the word that asks the driver to kick or not to.
    #[cold]
    pub(crate) fn words(&self, size: u16, published: bool) {
        if let Some(used) = self.used {
            if published {
                mark(&self.log, used, INDEX, 2);
            }
            let word = if self.event_idx {
                ENTRIES + ENTRY * u64::from(size)
            } else {
                FLAGS
            };
            mark(&self.log, used, word, 2);
        }
        if published && let Some(told) = &self.told {
            // One that is full has been signalled already.
            let _ = told.signal();
        }
    }
}

/// Marks `len` bytes at a distance from where the used ring begins. The session
/// has checked that the whole ring has bits.
fn mark(log: &DirtyLog, used: Gpa, offset: u64, len: u64) {
    if let Some(address) = used.0.checked_add(offset) {
        log.mark(Gpa(address), len);
    }
}

#[cfg(test)]
mod tests {
    use linkspan_mem::Region;

    use super::*;

    /// Elements of 512 fill a page; the ring begins 4 bytes before one.
    #[test]
    fn elements_are_marked_where_they_lie_also_around_the_end() {
        let marks = |from: u16, to: u16| {
            let region = Region::heap(1).unwrap();
            let log = RingLog {
                log: Arc::new(DirtyLog::new(region.clone())),
                buffers: true,
                used: Some(Gpa(4092)),
                event_idx: true,
                told: None,
            };
            log.used_elements(1024, from, to);
            let mut bits = [0];
            region.slice(0, 1).unwrap().read(&mut bits);
            bits[0]
        };
        assert_eq!(marks(5, 5), 0);
        assert_eq!(marks(0, 1), 0b010);
        assert_eq!(marks(511, 512), 0b010);
        assert_eq!(marks(512, 513), 0b100);
        assert_eq!(marks(500, 600), 0b110);
        assert_eq!(marks(1000, 1025), 0b110);
        assert_eq!(marks(65535, 0), 0b100);
        assert_eq!(marks(65535, 1), 0b110);
        assert_eq!(marks(0, 1024), 0b110);
    }
}
