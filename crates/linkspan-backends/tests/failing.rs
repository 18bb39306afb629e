//! An image whose operations fail: an error of that request, counted, and no more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use linkspan_backends::image::{Completion, Image, ImageQueue, Operation};
use linkspan_mem::RegionTable;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::{Io, Served};

const IOERR: u8 = 1;

/// A disk of 1 TiB whose second half cannot be used. It counts what it is asked for.
#[derive(Default)]
struct Half(Arc<AtomicU64>);

struct HalfQueue(Arc<AtomicU64>, VecDeque<Completion>);

const GOOD: u64 = 1 << 39;

impl Image for Half {
    fn len(&self) -> u64 {
        2 * GOOD
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(HalfQueue(Arc::clone(&self.0), VecDeque::new())))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl ImageQueue for HalfQueue {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        _memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let fails = match operation {
            Operation::Read { offset, .. }
            | Operation::Write { offset, .. }
            | Operation::Discard { offset, .. }
            | Operation::WriteZeroes { offset, .. } => offset >= GOOD,
            Operation::Flush => true,
        };
        let result = if fails {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        };
        // Each other one is known at once.
        if self.0.load(Ordering::SeqCst).is_multiple_of(2) {
            return Some(result);
        }
        self.1.push_back(Completion { token, result });
        None
    }

    fn completion(&mut self) -> Option<Completion> {
        self.1.pop_front()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn every_kind_of_request_fails_by_itself() {
    let asked = Arc::default();
    let served = Served::image_of(Arc::new(Half(Arc::clone(&asked))), 1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    let bad = GOOD / SECTOR as u64;
    let (len, data) = (SECTOR, &[7; SECTOR]);
    let fails = [
        Io::Read { sector: bad, len },
        Io::Write { sector: bad, data },
        Io::Discard(&[(bad, 1, 0)]),
        Io::WriteZeroes(&[(bad, 1, 0)]),
        Io::Flush,
    ];
    for (count, io) in (1..).zip(fails) {
        let done = ring.request(io);
        assert_eq!(done.status, IOERR, "{io:?}");
        // Nothing is claimed to have been written before the status.
        assert!(done.written <= 1, "{io:?}");
        assert_eq!(served.block_device().counters()[0].errors.value(), count);
        ring.write(0, data);
    }
    let counters = &served.block_device().counters()[0];
    assert_eq!((counters.writes.value(), counters.reads.value()), (5, 0));
    assert_eq!(
        (counters.discards.value(), counters.flushes.value()),
        (0, 0)
    );
    disk.shut_down();
}

#[test]
fn slice_that_fails_is_the_last_of_its_request() {
    let asked = Arc::default();
    let served = Served::image_of(Arc::new(Half(Arc::clone(&asked))), 1);
    let mut disk = served.drive(1);
    let bad = GOOD / SECTOR as u64;
    let slice = 16 << 11;
    // Two good slices, one bad, and a good range behind it.
    let done = disk.rings[0].request(Io::Discard(&[
        (bad - 2 * slice, 4 * (16 << 11), 0),
        (0, 8, 0),
    ]));
    assert_eq!(done.status, IOERR);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_eq!(served.block_device().counters()[0].errors.value(), 1);
    // The next one is a request of its own.
    assert_eq!(disk.rings[0].request(Io::Discard(&[(0, 8, 0)])).status, 0);
    disk.shut_down();
}
