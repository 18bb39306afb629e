//! Discards and requests for zeroes on a served disk.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{
    Completion, Image, ImageQueue, MemoryImage, NullImage, OpenOptions, Operation, RawImage,
};
use linkspan_engine::Workers;
use linkspan_mem::RegionTable;
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::{SECTORS, content, write_image};
use linkspan_testkit::{Disk, Io, Options, Served};
use rustix::fs::{FallocateFlags, fallocate};

const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const UNMAP: u32 = 1;

/// Sectors of a range at most, and what a slice of it has (see the block device).
const RANGE_MAX: u32 = 1 << 22;
const SLICE: u64 = 16 << 20;

/// All sectors as they are read, with what is not known as zeroes.
fn expected(zero: impl Fn(u64) -> bool) -> Vec<u8> {
    let sector = |number| {
        if zero(number) {
            vec![0; SECTOR]
        } else {
            content(number)
        }
    };
    (0..SECTORS).flat_map(sector).collect()
}

/// Whether the folder for temporary files can have holes in files at all.
fn holes_are_there() -> bool {
    let file = tempfile::tempfile().unwrap();
    rustix::io::pwrite(&file, &[1; 1 << 16], 0).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, 0, 1 << 15).is_ok() && file.metadata().unwrap().blocks() < before
}

#[test]
fn ranges_become_zero_and_no_byte_beside_them() {
    let served = Served::disk(2);
    let mut disk = Disk::bring_up(served.connect(), &Options::default(), 2, 64).unwrap();
    let ring = &mut disk.rings[0];
    let discarded = [(8, 64, 0), (200, 3, 0), (SECTORS - 1, 1, 0), (300, 0, 0)];
    let done = ring.request(Io::Discard(&discarded));
    assert_eq!((done.status, done.written), (0, 1));
    for (sector, flags) in [(400, 0), (500, UNMAP)] {
        let zeroes = ring.request(Io::WriteZeroes(&[(sector, 17, flags), (sector + 50, 1, 0)]));
        assert_eq!((zeroes.status, zeroes.written), (0, 1));
    }
    disk.rings[1].flush();
    let counters = &served.block_device().counters()[0];
    assert_eq!(counters.discards.value(), 1);
    assert_eq!(counters.write_zeroes.value(), 2);
    disk.shut_down();
    let within = |number, from, count| (from..from + count).contains(&number);
    let want = expected(|number| {
        within(number, 8, 64)
            || within(number, 200, 3)
            || number == SECTORS - 1
            || [400, 500]
                .iter()
                .any(|at| within(number, *at, 17) || number == at + 50)
    });
    assert!(fs::read(served.image()).unwrap() == want);
}

#[test]
fn discards_give_storage_back() {
    if !holes_are_there() {
        drop(writeln!(
            io::stderr().lock(),
            "SKIP discards_give_storage_back: the folder for temporary files has no holes"
        ));
        return;
    }
    let served = Served::disk(1);
    fs::File::open(served.image()).unwrap().sync_all().unwrap();
    let held = || fs::metadata(served.image()).unwrap().blocks() * 512;
    let before = held();
    let mut disk = served.drive(1);
    for (io, len) in [
        (Io::Discard(&[(0, 1024, 0)]), 1024),
        (Io::WriteZeroes(&[(1024, 512, UNMAP)]), 512),
    ] {
        let (before, size) = (held(), fs::metadata(served.image()).unwrap().len());
        assert_eq!(disk.rings[0].request(io).status, 0);
        assert_eq!(held(), before - len * 512);
        assert_eq!(fs::metadata(served.image()).unwrap().len(), size);
    }
    // These keep it.
    assert_eq!(
        disk.rings[0]
            .request(Io::WriteZeroes(&[(2048, 512, 0)]))
            .status,
        0
    );
    assert_eq!(held(), before - 1536 * 512);
}

#[test]
fn what_is_refused_changes_nothing_and_the_ring_goes_on() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    for (io, status) in [
        (Io::Discard(&[(0, 8, 0), (SECTORS, 1, 0)]), IOERR),
        (Io::Discard(&[(0, 8, 0), (0, 1, UNMAP)]), UNSUPP),
        (Io::WriteZeroes(&[(0, 8, 0), (u64::MAX, 1, 0)]), IOERR),
        (Io::WriteZeroes(&[(0, 8, 2)]), UNSUPP),
        (Io::Discard(&[]), IOERR),
        (Io::Discard(&[(0, 1, 0); 33]), IOERR),
    ] {
        let done = ring.request(io);
        assert_eq!((done.status, done.written), (status, 1), "{io:?}");
    }
    assert_eq!(ring.read(0, SECTOR), content(0));
    assert_eq!(served.block_device().counters()[0].errors.value(), 6);
    disk.shut_down();
    assert!(fs::read(served.image()).unwrap() == expected(|_| false));
}

#[test]
fn read_only_disk_has_neither() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    write_image(&path);
    let read_only = OpenOptions {
        read_only: true,
        lock_wait: Duration::ZERO,
        ..OpenOptions::default()
    };
    let image = RawImage::open(&path, &read_only).unwrap();
    let device = BlockDevice::new(Arc::new(image), 1, 64).unwrap();
    let workers = Arc::new(Workers::new(1).unwrap());
    let served = Served::device(folder, Arc::new(device), workers);
    let mut disk = served.drive(1);
    assert_eq!(disk.front.features() & (1 << 13 | 1 << 14), 0);
    for io in [Io::Discard(&[(0, 1, 0)]), Io::WriteZeroes(&[(0, 1, 0)])] {
        assert_eq!(disk.rings[0].request(io).status, IOERR);
    }
    assert_eq!(disk.rings[0].read(0, SECTOR), content(0));
}

/// On an image that answers late: one slice at a time, others in between, and the
/// answer after the last.
#[test]
fn ranges_go_to_the_image_one_by_one() {
    let (served, image) = Served::gated(1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    let discard = ring.submit(Io::Discard(&[(0, 8, 0), (16, 8, 0), (32, 8, 0)]));
    image.expect_kept(1);
    let read = ring.submit(Io::Read {
        sector: 50,
        len: SECTOR,
    });
    image.expect_kept(2);
    // The discard's first slice, then the read; the second slice takes its place.
    image.release(2);
    let done = ring.wait();
    assert_eq!((done.id, done.data), (read, content(50)));
    image.expect_kept(1);
    assert!(ring.poll().is_none());
    image.release(1);
    image.expect_kept(1);
    assert!(ring.poll().is_none());
    image.release(1);
    let done = ring.wait();
    assert_eq!((done.id, done.status), (discard, 0));
    disk.shut_down();
}

/// Hostile-peer rule 4: one request for 64 GiB does not hold the worker. A read
/// that came behind it is answered long before it.
#[test]
fn huge_discard_lets_others_through() {
    let image = NullImage::new(1 << 40, false, true);
    let served = Served::image_of(Arc::new(image), 1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    let all = [(0, RANGE_MAX, 0); 32];
    let discard = ring.add(Io::Discard(&all));
    let read = ring.add(Io::Read {
        sector: 1,
        len: SECTOR,
    });
    ring.kick();
    let first = ring.wait();
    assert_eq!((first.id, first.status), (read, 0));
    let second = ring.wait();
    assert_eq!((second.id, second.status), (discard, 0));
    disk.shut_down();
}

/// An image that counts slices and is done with each at once, or in `launch`.
#[derive(Clone, Default)]
struct Counting {
    count: Arc<AtomicU64>,
    in_launch: bool,
}

#[derive(Default)]
struct CountingQueue {
    image: Counting,
    begun: VecDeque<Completion>,
    ended: VecDeque<Completion>,
}

impl Image for Counting {
    fn len(&self) -> u64 {
        1 << 40
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(CountingQueue {
            image: self.clone(),
            ..CountingQueue::default()
        }))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl ImageQueue for CountingQueue {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation<'_>,
        _memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>> {
        if let Operation::Discard { len, .. } = operation {
            assert!(len <= SLICE);
        }
        self.image.count.fetch_add(1, Ordering::SeqCst);
        let result = Ok(());
        if !self.image.in_launch {
            return Some(result);
        }
        self.begun.push_back(Completion { token, result });
        None
    }

    fn launch(&mut self) {
        self.ended.append(&mut self.begun);
    }

    fn completion(&mut self) -> Option<Completion> {
        self.ended.pop_front()
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A slice that is done by the end of the pass that began it is followed by the next,
/// though nothing happens in between.
#[test]
fn slices_that_end_when_they_are_launched_go_on() {
    let image = Counting {
        in_launch: true,
        ..Counting::default()
    };
    let served = Served::image_of(Arc::new(image.clone()), 1);
    let mut disk = served.drive(1);
    let done = disk.rings[0].request(Io::Discard(&[(0, RANGE_MAX, 0); 2]));
    assert_eq!(done.status, 0);
    let slices = 2 * u64::from(RANGE_MAX) * 512 / SLICE;
    assert_eq!(image.count.load(Ordering::SeqCst), slices);
    disk.shut_down();
}

/// A ring that stops in the middle of a request hands itself back when the request
/// is done; nobody has to kick.
#[test]
fn ring_that_stops_finishes_its_slices() {
    let image = Counting::default();
    let served = Served::image_of(Arc::new(image.clone()), 1);
    let mut disk = served.drive(1);
    let all = [(0, RANGE_MAX, 0); 32];
    let slices = 32 * u64::from(RANGE_MAX) * 512 / SLICE;
    let before = disk.rings[0].base();
    disk.rings[0].submit(Io::Discard(&all));
    assert!(settled(|| image.count.load(Ordering::SeqCst) > 0));
    let base = disk.front.stop(0).unwrap();
    assert_eq!(base, before.wrapping_add(1));
    assert_eq!(image.count.load(Ordering::SeqCst), slices);
    assert_eq!(disk.rings[0].wait_polling().status, 0);
}

/// The same when the driver breaks the ring meanwhile: it is given up, and stops.
#[test]
fn broken_ring_with_slices_left_stops() {
    let image = Counting::default();
    let served = Served::image_of(Arc::new(image.clone()), 1);
    let mut disk = served.drive(1);
    disk.rings[0].submit(Io::Discard(&[(0, RANGE_MAX, 0); 32]));
    assert!(settled(|| image.count.load(Ordering::SeqCst) > 0));
    // More available entries than the ring has.
    let raw = disk.rings[0].raw();
    raw.publish_available_index(1000);
    disk.rings[0].kick();
    disk.rings[0].expect_broken();
    disk.front.stop(0).unwrap();
    drop(disk);
    let mut disk = served.drive(1);
    disk.rings[0].flush();
    disk.shut_down();
}

#[test]
fn memory_disk_forgets_what_is_discarded() {
    let image = Arc::new(MemoryImage::new(SECTORS * SECTOR as u64, false).unwrap());
    let served = Served::image_of(image, 2);
    let mut disk = Disk::bring_up(served.connect(), &Options::default(), 2, 64).unwrap();
    disk.rings[0].write(100, &content(100));
    assert_eq!(disk.rings[1].read(100, SECTOR), content(100));
    assert_eq!(disk.rings[0].request(Io::Discard(&[(96, 8, 0)])).status, 0);
    assert_eq!(disk.rings[1].read(100, SECTOR), [0; SECTOR]);
    disk.shut_down();
    served.expect_serves();
}
