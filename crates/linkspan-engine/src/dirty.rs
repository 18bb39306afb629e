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
    /// What is written of the ring, if writes to it are logged (`VHOST_VRING_F_LOG`).
    pub area: Option<LoggedArea>,
    /// Who wants to hear that the log changed (`VHOST_USER_SET_LOG_FD`).
    pub told: Option<Arc<PeerEventFd>>,
}

/// The parts of a ring that a device writes, where the log has their bits. The device
/// area is where the front end says, which need not be an address of the guest.
#[derive(Clone, Copy, Debug)]
pub enum LoggedArea {
    /// Of a split ring: the used ring.
    Split {
        /// Where it begins.
        used: Gpa,
        /// Whether `avail_event` is written, and not `used.flags`.
        event_idx: bool,
    },
    /// Of a packed ring: the descriptors, as used ones overwrite available ones, and the
    /// device's event suppression. The front end names the latter alone.
    Packed {
        /// Where the descriptors begin.
        descriptors: Gpa,
        /// Where the event suppression structure of the device is.
        device: Gpa,
    },
}

/// Offsets within the used ring of a split queue (virtio 1.3 2.7.8).
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
const ENTRY: u64 = 8;

/// Bytes of a packed descriptor and of event suppression (virtio 1.3 2.8.13, 2.8.14).
const DESCRIPTOR: u64 = 16;
const EVENT: u64 = 4;

impl RingLog {
    /// Logs a write to a buffer of this memory; for whoever has lent its ring, as
    /// [`ActiveRing::log_write`](crate::ActiveRing::log_write).
    #[cold]
    pub fn buffer(&self, memory: &GuestMemory, span: Span) {
        if let Some(address) = memory.guest.address(span) {
            self.log.mark(address, u64::from(span.len()));
        }
    }

    /// Logs the used elements of a split ring at the positions from `from` to before `to`,
    /// to be called before they are published.
    #[cold]
    pub(crate) fn before_publish(&self, size: u16, from: u16, to: u16) {
        if let Some(LoggedArea::Split { used, .. }) = self.area {
            let count = to.wrapping_sub(from);
            self.entries(used, (ENTRIES, ENTRY), size, from % size, count);
        }
    }

    /// Logs what one pass may have written besides: what publishes the positions from
    /// `from` to before `to`, if there are any, and the words that ask the driver to kick
    /// or not to.
    #[cold]
    pub(crate) fn after_publish(&self, size: u16, from: u16, to: u16) {
        match self.area {
            Some(LoggedArea::Split { used, event_idx }) => {
                if from != to {
                    mark(&self.log, used, INDEX, 2);
                }
                let word = match event_idx {
                    true => ENTRIES + ENTRY * u64::from(size),
                    false => FLAGS,
                };
                mark(&self.log, used, word, 2);
            }
            Some(LoggedArea::Packed {
                descriptors,
                device,
            }) => {
                let count = packed_distance(size, from, to);
                self.entries(descriptors, (0, DESCRIPTOR), size, from & !WRAP, count);
                mark(&self.log, device, 0, EVENT);
            }
            None => {}
        }
        if from != to
            && let Some(told) = &self.told
        {
            // One that is full has been signalled already.
            let _ = told.signal();
        }
    }

    /// Logs `count` entries of a ring, from the one at `first` on.
    fn entries(&self, area: Gpa, (start, len): (u64, u64), size: u16, first: u16, count: u16) {
        let (first, count) = (u64::from(first), u64::from(count));
        let before_wrap = count.min(u64::from(size) - first);
        mark(&self.log, area, start + len * first, len * before_wrap);
        mark(&self.log, area, start, len * (count - before_wrap));
    }
}

/// The wrap counter in a position of a packed ring ([`linkspan_virtio::QueueState`]).
const WRAP: u16 = 1 << 15;

/// Descriptors of a packed ring from one position to a later one: at most all.
fn packed_distance(size: u16, from: u16, to: u16) -> u16 {
    let rounds = if (from ^ to) & WRAP == 0 { 0 } else { size };
    (to & !WRAP).wrapping_add(rounds).wrapping_sub(from & !WRAP)
}

/// Marks `len` bytes at a distance from where a part of a ring begins. The session
/// has checked that all of it has bits.
fn mark(log: &DirtyLog, area: Gpa, offset: u64, len: u64) {
    if let Some(address) = area.0.checked_add(offset) {
        log.mark(Gpa(address), len);
    }
}

#[cfg(test)]
mod tests {
    use linkspan_mem::Region;

    use super::*;

    fn marked(area: LoggedArea, write: impl FnOnce(&RingLog)) -> u8 {
        let region = Region::heap(1).unwrap();
        let log = RingLog {
            log: Arc::new(DirtyLog::new(region.clone())),
            buffers: true,
            area: Some(area),
            told: None,
        };
        write(&log);
        let mut bits = [0];
        region.slice(0, 1).unwrap().read(&mut bits);
        bits[0]
    }

    /// Elements of 512 fill a page; the ring begins 4 bytes before one.
    #[test]
    fn elements_are_marked_where_they_lie_also_around_the_end() {
        let area = LoggedArea::Split {
            used: Gpa(4092),
            event_idx: true,
        };
        let marks = |from, to| marked(area, |log| log.before_publish(1024, from, to));
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

    /// Descriptors of 256 fill a page, 600 are in three; the event suppression is in the
    /// fifth. Bit 15 of a position is the wrap counter.
    #[test]
    fn packed_descriptors_are_marked_where_they_lie_also_around_the_end() {
        let area = LoggedArea::Packed {
            descriptors: Gpa(0),
            device: Gpa(4 * 4096),
        };
        let marks = |from, to| marked(area, |log| log.after_publish(600, from, to));
        assert_eq!(marks(WRAP, WRAP), 0b10000);
        assert_eq!(marks(WRAP, WRAP | 1), 0b10001);
        assert_eq!(marks(255, 257), 0b10011);
        assert_eq!(marks(WRAP | 599, 1), 0b10101);
        assert_eq!(marks(599, WRAP), 0b10100);
        assert_eq!(marks(300, WRAP | 300), 0b10111);
        assert_eq!(marks(WRAP, 0), 0b10111);
    }
}
