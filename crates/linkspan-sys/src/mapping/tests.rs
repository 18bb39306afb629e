//! What is accepted as memory, where it is mapped, and what happens when a peer
//! takes it away.

use super::*;
use crate::memfd::{self, Sealing};
use crate::poll::{Direction, Wake, wait_for};
use crate::testing::{dead_fuse_file, in_child};
use rustix::fs::{MemfdFlags, OFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use std::fs::File;
use std::time::Instant;

const PAGE: u64 = 4096;

fn memory(len: u64, sealing: Sealing) -> (OwnedFd, PeerMemory) {
    let fd = memfd::create("test", len, sealing).unwrap();
    let theirs = PeerMemory::check(fd.try_clone().unwrap()).unwrap();
    (fd, theirs)
}

fn read(mapping: &Mapping, at: usize) -> u8 {
    assert!(at < mapping.len());
    // SAFETY: within the mapping.
    unsafe { mapping.base().add(at).read_volatile() }
}

fn write(mapping: &Mapping, at: usize, value: u8) {
    assert!(at < mapping.len());
    // SAFETY: within the mapping.
    unsafe { mapping.base().add(at).write_volatile(value) }
}

#[test]
fn only_memory_files_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let regular = File::create(folder.path().join("f")).unwrap();
    let on_disk = fcntl_get_seals(&regular).is_err();
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let mut refused: Vec<OwnedFd> = vec![
        pipe,
        File::open("/dev/zero").unwrap().into(),
        File::open("/dev/null").unwrap().into(),
        File::open("/proc/self/status").unwrap().into(),
        File::open("/dev/shm").unwrap().into(),
        EventFd::new().unwrap().into(),
        rustix::fs::open("/dev/shm", OFlags::PATH, rustix::fs::Mode::empty()).unwrap(),
    ];
    if on_disk {
        refused.push(regular.into());
    } else {
        eprintln!("SKIP a file on a disk: the temporary folder is on tmpfs");
    }
    for fd in refused {
        assert!(matches!(PeerMemory::check(fd), Err(Error::NotMemory)));
    }
}

#[test]
fn a_file_is_known_by_its_number() {
    let (fd, first) = memory(PAGE, Sealing::Fixed);
    let again = PeerMemory::check(fd).unwrap();
    let (_fd, other) = memory(PAGE, Sealing::Fixed);
    assert_eq!(first.file_id().unwrap(), again.file_id().unwrap());
    assert_ne!(first.file_id().unwrap(), other.file_id().unwrap());
}

#[test]
fn memfd_and_tmpfs_are_accepted() {
    let (_fd, open) = memory(3 * PAGE, Sealing::Open);
    assert_eq!((open.file_len(), open.page_size()), (3 * PAGE, PAGE));
    assert!(!open.sealed_shrink());
    let (_fd, fixed) = memory(PAGE, Sealing::Fixed);
    assert!(fixed.sealed_shrink());

    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(5000).unwrap();
    let tmpfs = PeerMemory::check(file.into()).unwrap();
    assert_eq!((tmpfs.file_len(), tmpfs.sealed_shrink()), (5000, false));
}

#[test]
fn file_of_a_dead_file_server_is_refused_without_waiting() {
    in_child(
        "mapping::tests::file_of_a_dead_file_server_is_refused_without_waiting",
        || {
            let Some(mut dead) = dead_fuse_file() else {
                return;
            };
            let copy = || dead.file.try_clone().unwrap();
            let (one, other) = (copy(), copy());
            assert!(matches!(PeerMemory::check(one), Err(Error::NotMemory)));
            let event = crate::PeerEventFd::check(other).unwrap_err();
            assert!(matches!(event, crate::eventfd::Error::NotEventFd { .. }));
            // Both are with the reaper now, which waits for a flush that nobody
            // answers, and this thread is here.
            assert!(reaper::backlog() > 0 && dead.still_dead());
            drop(dead);
            while reaper::backlog() > 0 {
                std::thread::yield_now();
            }
        },
    )
    .assert_success();
}

#[test]
fn region_shows_the_bytes_of_the_file() {
    let (fd, theirs) = memory(4 * PAGE, Sealing::Fixed);
    pwrite(&fd, b"ring", PAGE + 24).unwrap();
    let mapping = theirs.map(PAGE + 24, 2 * PAGE, None).unwrap();
    drop(theirs);
    assert_eq!(mapping.len(), 8192);
    assert_eq!([0, 1, 2, 3].map(|at| read(&mapping, at)), *b"ring");
    write(&mapping, 8191, 0x5a);
    let mut last = [0; 1];
    pread(&fd, &mut last, 3 * PAGE + 23).unwrap();
    assert_eq!(last, [0x5a]);
    assert!(!mapping.poisoned());
}

#[test]
fn region_must_lie_in_the_file() {
    let (_fd, theirs) = memory(4 * PAGE, Sealing::Fixed);
    for (offset, len) in [
        (0, 4 * PAGE + 1),
        (PAGE, 4 * PAGE),
        (4 * PAGE, 1),
        (u64::MAX - 7, 8),
        (8, u64::MAX - 7),
        (0, u64::MAX),
        (u64::MAX, 0),
    ] {
        let refused = theirs.map(offset, len, None).unwrap_err();
        assert!(matches!(refused, Error::OutsideFile { file_len, .. } if file_len == 4 * PAGE));
    }
    assert!(matches!(
        theirs.map(8, 0, None),
        Err(Error::Empty { offset: 8 })
    ));
    assert!(matches!(
        theirs.map(12, 8, None),
        Err(Error::Misaligned { offset: 12 })
    ));
    theirs.map(4 * PAGE - 8, 8, None).unwrap();
    theirs.map(0, 4 * PAGE, None).unwrap();
}

#[test]
fn file_that_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("f");
    File::create(&path).unwrap().set_len(PAGE).unwrap();
    let theirs = PeerMemory::check(File::open(&path).unwrap().into()).unwrap();
    assert!(matches!(
        theirs.map(0, PAGE, None),
        Err(Error::System { .. })
    ));

    let (fd, theirs) = memory(PAGE, Sealing::Open);
    memfd::add_seals(&fd, SealFlags::WRITE).unwrap();
    assert!(matches!(
        theirs.map(0, PAGE, None),
        Err(Error::System { .. })
    ));
}

#[test]
fn memory_that_shrinks_reads_as_zeroes_and_is_poisoned() {
    let (fd, theirs) = memory(8 * PAGE, Sealing::Open);
    let (_other_fd, other) = memory(PAGE, Sealing::Open);
    let wake = Arc::new(EventFd::new().unwrap());
    let mapping = theirs.map(0, 8 * PAGE, Some(wake.clone())).unwrap();
    let neighbour = other.map(0, PAGE, None).unwrap();
    for page in 0..8 {
        write(&mapping, page * 4096, 0xee);
    }
    write(&neighbour, 0, 0x11);
    ftruncate(&fd, 2 * PAGE).unwrap();
    assert!(!mapping.poisoned());
    let now = Some(Instant::now());
    assert_eq!(
        wait_for(wake.as_fd(), Direction::Read, None, now).unwrap(),
        Wake::Deadline
    );

    assert_eq!(read(&mapping, 5 * 4096 + 17), 0);
    assert!(mapping.poisoned());
    assert_eq!(wake.drain().unwrap(), 1);
    // Before the first fault too, where the file still has pages, all is as it was.
    assert_eq!(read(&mapping, 4096), 0xee);
    // Between them there is a second fault; then all of it can be written.
    write(&mapping, 2 * 4096, 1);
    write(&mapping, 8 * 4096 - 1, 1);
    assert_eq!(read(&mapping, 2 * 4096), 1);
    assert_eq!((read(&neighbour, 0), neighbour.poisoned()), (0x11, false));
    drop(mapping);
    let again = other.map(0, PAGE, None).unwrap();
    assert!(
        !again.poisoned(),
        "poison does not pass on to the next mapping"
    );
}

#[test]
fn last_page_of_an_unaligned_region_is_repaired_too() {
    let (fd, theirs) = memory(4 * PAGE, Sealing::Open);
    let mapping = theirs.map(PAGE + 8, 2 * PAGE, None).unwrap();
    ftruncate(&fd, 0).unwrap();
    assert_eq!(read(&mapping, 8191), 0);
    assert_eq!(read(&mapping, 0), 0);
    assert!(mapping.poisoned());
}

#[test]
fn huge_pages_that_shrink_are_repaired() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    let Ok(fd) = memfd_create("huge", flags) else {
        eprintln!("SKIP huge pages: this kernel has none");
        return;
    };
    let page = {
        ftruncate(&fd, 1 << 31).unwrap();
        PeerMemory::check(fd.try_clone().unwrap())
            .unwrap()
            .page_size()
    };
    assert!(page > PAGE && page.is_power_of_two());
    let theirs = PeerMemory::check(fd.try_clone().unwrap()).unwrap();
    let mapping = theirs.map(PAGE, 3 * page, None).unwrap();
    ftruncate(&fd, 0).unwrap();
    let far = usize::try_from(2 * page).unwrap() + 5;
    assert_eq!(read(&mapping, far), 0);
    assert!(mapping.poisoned());
    write(&mapping, 0, 3);
    assert_eq!(read(&mapping, 0), 3);
}

#[test]
fn faults_and_changes_of_the_registry_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (fd, theirs) = memory(4 * PAGE, Sealing::Open);
                for round in 0..300_u64 {
                    ftruncate(&fd, 4 * PAGE).unwrap();
                    let mapping = theirs.map(0, 4 * PAGE, None).unwrap();
                    write(&mapping, 0, 7);
                    ftruncate(&fd, PAGE).unwrap();
                    let at = usize::try_from(PAGE * (1 + round % 3)).unwrap();
                    assert_eq!(read(&mapping, at), 0);
                    assert_eq!(read(&mapping, 0), 7);
                    assert!(mapping.poisoned());
                }
            });
            scope.spawn(|| {
                let (_fd, theirs) = memory(2 * PAGE, Sealing::Open);
                for _ in 0..2000 {
                    let mapping = theirs.map(0, 2 * PAGE, None).unwrap();
                    write(&mapping, 4096, 9);
                    assert_eq!(read(&mapping, 4096), 9);
                    assert!(!mapping.poisoned());
                }
            });
        }
    });
}

#[test]
fn threads_that_fault_together_all_go_on() {
    let (fd, theirs) = memory(64 * PAGE, Sealing::Open);
    let mapping = theirs.map(0, 64 * PAGE, None).unwrap();
    ftruncate(&fd, 0).unwrap();
    let together = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (mapping, together) = (&mapping, &together);
            scope.spawn(move || {
                together.wait();
                for page in (0..64).rev() {
                    assert_eq!(read(mapping, page * 4096 + thread), 0);
                }
            });
        }
    });
    assert!(mapping.poisoned());
}

/// Shared memory that this crate was not told of.
fn foreign(fd: &OwnedFd) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses a free address range.
    let start = unsafe { mmap(null_mut(), 4096, access, MapFlags::SHARED, fd, 0) };
    start.unwrap().cast()
}

#[test]
fn fault_in_foreign_memory_still_kills() {
    in_child(
        "mapping::tests::fault_in_foreign_memory_still_kills",
        || {
            let (fd, theirs) = memory(PAGE, Sealing::Open);
            let _mapping = theirs.map(0, PAGE, None).unwrap();
            let start = foreign(&fd);
            ftruncate(&fd, 0).unwrap();
            // SAFETY: mapped; what follows is the point of this test.
            unsafe { start.read_volatile() };
        },
    )
    .assert_signal(libc::SIGBUS);
}

#[test]
fn bus_error_that_somebody_sends_still_kills() {
    in_child(
        "mapping::tests::bus_error_that_somebody_sends_still_kills",
        || {
            let (_fd, theirs) = memory(PAGE, Sealing::Open);
            let _mapping = theirs.map(0, PAGE, None).unwrap();
            // SAFETY: sends a signal to this process, and nothing else.
            unsafe { libc::raise(libc::SIGBUS) };
        },
    )
    .assert_signal(libc::SIGBUS);
}

#[test]
fn earlier_reaction_to_bus_errors_is_kept() {
    extern "C" fn earlier(_: libc::c_int) {
        // SAFETY: ends the process; allowed in a signal handler.
        unsafe { libc::_exit(0) }
    }
    in_child(
        "mapping::tests::earlier_reaction_to_bus_errors_is_kept",
        || {
            let (fd, theirs) = memory(PAGE, Sealing::Open);
            // SAFETY: installs a function that only ends the process.
            unsafe { libc::signal(libc::SIGBUS, earlier as extern "C" fn(libc::c_int) as usize) };
            let mapping = theirs.map(0, PAGE, None).unwrap();
            let start = foreign(&fd);
            ftruncate(&fd, 0).unwrap();
            assert_eq!(read(&mapping, 0), 0);
            // SAFETY: mapped; the earlier reaction ends the process with success.
            unsafe { start.read_volatile() };
            std::process::exit(1);
        },
    )
    .assert_success();
}
