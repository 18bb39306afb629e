//! What is cached, read through a mapping of the file.

use linkspan_sys::file::Transfer;

use super::*;

const CHUNK: u64 = CHUNK_LEN as u64;
const CHUNK_LEN: usize = 64 << 10;

/// An image of these bytes on memory or on a disk, served by each engine.
fn each_engine(bytes: &[u8], test: impl Fn(Way, Rig)) {
    for folder in ["/dev/shm", "/var/tmp"] {
        for io in [Io::Auto, Io::Uring, Io::Threads] {
            let way = way(folder, io, false);
            let options = OpenOptions {
                mapped: true,
                ..way.options()
            };
            let Some(rig) = way.rig_with(bytes, &options) else {
                continue;
            };
            if rig.image.file.mapped.is_none() {
                println!("SKIP {way:?}: not a file system whose files are mapped");
                continue;
            }
            test(way, rig);
        }
    }
}

/// Calls `test` with 4 KiB from this place on that go to memory.
fn at<R>(offset: u64, test: impl Fn(&Transfer<'_>) -> R) -> R {
    let memory = memory();
    test(&Transfer {
        table: memory.table(),
        spans: &spans(&memory, &[(0, 4096)]),
        offset,
    })
}

/// Whether 4 KiB at this place are read without a system call.
fn is_mapped(rig: &Rig, offset: u64) -> bool {
    at(offset, |transfer| {
        rig.image.file.read_mapped(transfer, &mut 0)
    })
}

/// 4 KiB at this place, as a guest reads them.
fn read_at(queue: &mut dyn ImageQueue, offset: u64) -> io::Result<Vec<u8>> {
    let memory = memory();
    let data = spans(&memory, &[(100, 1000), (5000, 3096)]);
    one(queue, read(offset, &data), memory.table())?;
    Ok(bytes_at(&memory, &data))
}

#[test]
fn a_hole_is_read_without_storage_for_it() {
    each_engine(&[7; CHUNK_LEN], |way, rig| {
        rig.file.as_file().set_len(4 * CHUNK).unwrap();
        rig.image.measure().unwrap();
        rig.file.as_file().sync_all().unwrap();
        let blocks = || rig.file.as_file().metadata().unwrap().blocks();
        let before = blocks();
        let mut queue = rig.image.open_queue(2).unwrap();
        for _ in 0..3 {
            assert_eq!(read_at(&mut *queue, 8192).unwrap(), [7; 4096], "{way:?}");
            // Wholly in the hole, and at its edge.
            for offset in [2 * CHUNK, CHUNK - 512] {
                let bytes = read_at(&mut *queue, offset).unwrap();
                assert_eq!(bytes[512..], [0; 3584], "{way:?}");
            }
        }
        assert_eq!(blocks(), before, "{way:?}");
        // What is there did not need a system call.
        assert!(is_mapped(&rig, 8192), "{way:?}");
    });
}

#[test]
fn an_image_that_shrinks_fails_its_requests_and_goes_on() {
    each_engine(&[7; 4 * CHUNK_LEN], |way, rig| {
        let mut queue = rig.image.open_queue(2).unwrap();
        assert!(is_mapped(&rig, 2 * CHUNK) && is_mapped(&rig, 0), "{way:?}");
        rig.file.as_file().set_len(CHUNK).unwrap();
        // As it is for who asked before it shrank.
        let mapped = rig.image.file.mapped.as_ref().unwrap();
        assert!(!at(2 * CHUNK, |transfer| mapped.map.read(transfer)));
        let error = read_at(&mut *queue, 2 * CHUNK).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{way:?}");
        // What is left is read as ever, by system calls from now on.
        assert_eq!(read_at(&mut *queue, 0).unwrap(), [7; 4096], "{way:?}");
        assert!(!is_mapped(&rig, 0), "{way:?}");
        rig.file.as_file().set_len(4 * CHUNK).unwrap();
        assert_eq!(read_at(&mut *queue, 2 * CHUNK).unwrap(), [0; 4096]);
    });
}

#[test]
fn what_is_written_by_each_engine_and_by_others_is_read() {
    each_engine(&[7; 2 * CHUNK_LEN], |way, rig| {
        let mut queue = rig.image.open_queue(2).unwrap();
        let memory = memory();
        let data = spans(&memory, &[(0, 4096)]);
        for round in 0..20 {
            let offset = u64::from(round) * 4096;
            assert!(is_mapped(&rig, offset), "{way:?}");
            memory.table().scatter(&data, 0, &[round; 4096]).unwrap();
            one(&mut *queue, write(offset, &data), memory.table()).unwrap();
            assert_eq!(read_at(&mut *queue, offset).unwrap(), [round; 4096]);
            // By another process, as far as the kernel is concerned.
            let other = File::options().write(true).open(rig.file.path()).unwrap();
            other.write_all_at(&[!round; 4096], offset).unwrap();
            assert_eq!(read_at(&mut *queue, offset).unwrap(), [!round; 4096]);
            assert!(is_mapped(&rig, offset), "{way:?}");
        }
    });
}

#[test]
fn what_is_given_back_reads_as_zeroes_and_takes_no_room_again() {
    each_engine(&[7; 4 * CHUNK_LEN], |way, rig| {
        let mut queue = rig.image.open_queue(2).unwrap();
        let memory = memory();
        let blocks = || rig.file.as_file().metadata().unwrap().blocks();
        rig.file.as_file().sync_all().unwrap();
        assert!(
            (0..4).all(|chunk| is_mapped(&rig, chunk * CHUNK)),
            "{way:?}"
        );
        let full = blocks();
        let discard = Operation::Discard {
            offset: 0,
            len: CHUNK,
        };
        let zeroes = Operation::WriteZeroes {
            offset: 2 * CHUNK,
            len: CHUNK,
            unmap: true,
            durable: false,
        };
        for operation in [discard, zeroes] {
            one(&mut *queue, operation, memory.table()).unwrap();
        }
        let left = blocks();
        if left == full {
            println!("SKIP {way:?}: nothing can be given back here");
            return;
        }
        for (chunk, byte) in [(0, 0), (1, 7), (2, 0), (3, 7)] {
            let bytes = read_at(&mut *queue, chunk * CHUNK).unwrap();
            assert_eq!(bytes, [byte; 4096], "{way:?} {chunk}");
        }
        assert_eq!(blocks(), left, "{way:?}");
    });
}

#[test]
fn an_image_that_grew_is_read_to_its_new_end() {
    each_engine(&[7; CHUNK_LEN], |way, rig| {
        let mut queue = rig.image.open_queue(2).unwrap();
        assert!(is_mapped(&rig, 0), "{way:?}");
        rig.file
            .as_file()
            .write_all_at(&[8; CHUNK_LEN], CHUNK)
            .unwrap();
        // Until it is measured the image ends where it did.
        assert!(!is_mapped(&rig, CHUNK), "{way:?}");
        rig.image.measure().unwrap();
        assert_eq!(read_at(&mut *queue, CHUNK).unwrap(), [8; 4096], "{way:?}");
        assert!(is_mapped(&rig, CHUNK), "{way:?}");
    });
}

#[test]
fn nothing_is_mapped_past_the_cache_or_unasked() {
    for (direct, mapped) in [(true, true), (false, false)] {
        let way = way("/var/tmp", Io::Auto, direct);
        let options = OpenOptions {
            mapped,
            ..way.options()
        };
        if let Some(rig) = way.rig_with(&[1; CHUNK_LEN], &options) {
            assert!(rig.image.file.mapped.is_none());
        }
    }
}
