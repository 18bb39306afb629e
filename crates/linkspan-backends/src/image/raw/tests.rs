//! Raw images on files of this process, with each engine.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use linkspan_mem::{Gpa, GuestMemory, Region, RegionTable, Span, UserVa};
use linkspan_sys::PeerMemory;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_testkit::census::settled;
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::*;
use crate::image::{Completion, Durability, Operation};

mod mapped;
mod opening;

const OPTIONS: OpenOptions = OpenOptions {
    read_only: false,
    lock_wait: Duration::ZERO,
    io: Io::Auto,
    direct: false,
    durability: Durability::Flush,
    // Pages that are mapped cannot be made to leave the cache.
    mapped: false,
    migratable: false,
};

/// A way to serve an image, and the folder that its file has to be in.
#[derive(Clone, Copy, Debug)]
struct Way {
    folder: &'static str,
    io: Io,
    direct: bool,
}

const fn way(folder: &'static str, io: Io, direct: bool) -> Way {
    Way { folder, io, direct }
}

const WAYS: [Way; 9] = [
    way("/dev/shm", Io::Auto, false),
    way("/dev/shm", Io::Uring, false),
    way("/dev/shm", Io::Threads, false),
    way("/tmp", Io::Auto, false),
    way("/tmp", Io::Uring, false),
    way("/tmp", Io::Threads, false),
    // Not all file systems behind /tmp can; the file of the last is on a disk.
    way("/tmp", Io::Uring, true),
    way("/tmp", Io::Threads, true),
    way("/var/tmp", Io::Uring, true),
];

/// A file and the image on it.
struct Rig {
    file: NamedTempFile,
    image: RawImage,
}

impl Way {
    fn options(self) -> OpenOptions {
        OpenOptions {
            io: self.io,
            direct: self.direct,
            ..OPTIONS
        }
    }

    fn file(self, bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new_in(self.folder).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// An image of these bytes, or `None` with a word where this way is closed.
    fn rig(self, bytes: &[u8]) -> Option<Rig> {
        self.rig_with(bytes, &self.options())
    }

    fn rig_with(self, bytes: &[u8], options: &OpenOptions) -> Option<Rig> {
        let file = self.file(bytes);
        match RawImage::open(file.path(), options) {
            Ok(image) => Some(Rig { file, image }),
            Err(error @ (OpenError::Uring(_) | OpenError::Direct { .. })) => {
                println!("SKIP {self:?}: {error}");
                None
            }
            Err(error) => panic!("{self:?}: {error}"),
        }
    }
}

/// Calls `test` with an image of these bytes for each way.
fn each_way(bytes: &[u8], test: impl Fn(Way, Rig)) {
    for way in WAYS {
        if let Some(rig) = way.rig(bytes) {
            test(way, rig);
        }
    }
}

fn memory() -> GuestMemory {
    memory_of(Region::heap(1 << 16).unwrap())
}

fn memory_of(region: Region) -> GuestMemory {
    GuestMemory::new(vec![(region, Gpa(0), UserVa(0x1000))]).unwrap()
}

fn spans(memory: &GuestMemory, ranges: &[(u64, u32)]) -> Vec<Span> {
    let mut spans = Vec::new();
    for (at, len) in ranges {
        memory
            .guest
            .resolve(Gpa(*at), *len, |span| spans.push(span))
            .unwrap();
    }
    spans
}

fn bytes_at(memory: &GuestMemory, spans: &[Span]) -> Vec<u8> {
    let mut bytes = vec![0; spans.iter().map(|span| span.len() as usize).sum()];
    memory.table().gather(spans, 0, &mut bytes).unwrap();
    bytes
}

fn next(queue: &mut dyn ImageQueue) -> Completion {
    loop {
        if let Some(completion) = queue.completion() {
            return completion;
        }
        let fd = queue.completion_fd().unwrap();
        wait_for(fd, Direction::Read, None, None).unwrap();
    }
}

fn one(
    queue: &mut dyn ImageQueue,
    operation: Operation<'_>,
    memory: &Arc<RegionTable>,
) -> io::Result<()> {
    let known = queue.submit(7, operation, memory);
    if let Some(known) = known {
        return known;
    }
    queue.launch();
    let completion = next(queue);
    assert_eq!(completion.token, 7);
    completion.result
}

fn read(offset: u64, data: &[Span]) -> Operation<'_> {
    Operation::Read { offset, data }
}

fn write(offset: u64, data: &[Span]) -> Operation<'_> {
    Operation::Write {
        offset,
        data,
        durable: false,
    }
}

/// Drops what is cached of a file, so that the next read has to wait for it.
fn forget_cached(file: &File) {
    file.sync_all().unwrap();
    fadvise(file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn data_moves_between_file_and_scattered_memory() {
    each_way(&[0x11; 4096], |way, rig| {
        let memory = memory();
        let mut queue = rig.image.open_queue(4).unwrap();
        // No address or size of them suits a device; the second does.
        for (ranges, durable) in [
            ([(100, 300), (5000, 724)], true),
            ([(4096, 512), (8192, 512)], false),
        ] {
            let data = spans(&memory, &ranges);
            memory.table().scatter(&data, 0, &[0xAB; 1024]).unwrap();
            let operation = Operation::Write {
                offset: 512,
                data: &data,
                durable,
            };
            one(&mut *queue, operation, memory.table()).unwrap();
            one(&mut *queue, Operation::Flush, memory.table()).unwrap();
            let mut expected = [0x11; 4096];
            expected[512..1536].fill(0xAB);
            assert_eq!(std::fs::read(rig.file.path()).unwrap(), expected, "{way:?}");

            for back in [(20_001, 1536), (20_480, 1536)] {
                let back = spans(&memory, &[back]);
                memory.table().scatter(&back, 0, &[0; 1536]).unwrap();
                forget_cached(rig.file.as_file());
                one(&mut *queue, read(0, &back), memory.table()).unwrap();
                assert_eq!(bytes_at(&memory, &back), expected[..1536], "{way:?}");
            }
        }
    });
}

#[test]
fn what_is_cached_is_read_at_once_and_a_miss_is_waited_for() {
    for io in [Io::Auto, Io::Threads] {
        let way = way("/var/tmp", io, false);
        let Some(rig) = way.rig(&[0x33; 1 << 20]) else {
            continue;
        };
        let memory = memory();
        let data = spans(&memory, &[(0, 4096)]);
        let mut queue = rig.image.open_queue(2).unwrap();
        let known = queue.submit(1, read(8192, &data), memory.table());
        if !rig.image.file.nowait && rig.image.engine() != Engine::Inline {
            println!("SKIP: the file system of {} cannot tell", way.folder);
            continue;
        }
        assert!(known.expect("at once").is_ok());
        if rig.image.engine() == Engine::Inline {
            continue;
        }
        forget_cached(rig.file.as_file());
        let known = queue.submit(2, read(8192, &data), memory.table());
        if known.is_some() {
            println!("SKIP: {} keeps what it is told to forget", way.folder);
            continue;
        }
        queue.launch();
        let completion = next(&mut *queue);
        assert_eq!(completion.token, 2);
        completion.result.unwrap();
        assert_eq!(bytes_at(&memory, &data), [0x33; 4096]);
    }
}

#[test]
fn a_file_with_a_broken_last_sector_reads_zeroes_behind_its_end() {
    for way in WAYS.into_iter().filter(|way| !way.direct) {
        let Some(rig) = way.rig(&[0x22; 700]) else {
            continue;
        };
        assert_eq!(rig.image.len(), 1024);
        let memory = memory();
        let data = spans(&memory, &[(0, 1024)]);
        let mut queue = rig.image.open_queue(1).unwrap();
        for cached in [true, false] {
            memory.table().scatter(&data, 0, &[0xFF; 1024]).unwrap();
            if !cached {
                forget_cached(rig.file.as_file());
            }
            one(&mut *queue, read(0, &data), memory.table()).unwrap();
            let bytes = bytes_at(&memory, &data);
            assert!(bytes[..700].iter().all(|byte| *byte == 0x22), "{way:?}");
            assert!(bytes[700..].iter().all(|byte| *byte == 0), "{way:?}");
        }
    }
}

#[test]
fn a_file_that_shrank_gives_an_error_and_not_zeroes() {
    each_way(&[1; 8192], |way, rig| {
        rig.file.as_file().set_len(4096).unwrap();
        let memory = memory();
        let mut queue = rig.image.open_queue(1).unwrap();
        for offset in [0, 4096] {
            let data = spans(&memory, &[(0, 4096), (4096, 512)]);
            let result = one(&mut *queue, read(offset, &data), memory.table());
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{way:?}");
        }
        let data = spans(&memory, &[(0, 4096)]);
        one(&mut *queue, read(0, &data), memory.table()).unwrap();
    });
}

#[test]
fn a_read_only_image_is_never_written() {
    for way in WAYS {
        let options = OpenOptions {
            read_only: true,
            ..way.options()
        };
        let Some(rig) = way.rig_with(&[1; 4096], &options) else {
            continue;
        };
        let memory = memory();
        let data = spans(&memory, &[(0, 512)]);
        let mut queue = rig.image.open_queue(1).unwrap();
        let (offset, len) = (0, 512);
        for operation in [
            write(0, &data),
            Operation::Discard { offset, len },
            Operation::WriteZeroes {
                offset,
                len,
                unmap: true,
                durable: true,
            },
        ] {
            let error = one(&mut *queue, operation, memory.table()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{way:?}");
        }
        assert_eq!(std::fs::read(rig.file.path()).unwrap(), [1; 4096]);
    }
}

#[test]
fn many_operations_are_in_flight_and_each_ends_once() {
    const COUNT: u32 = 200;
    let content: Vec<u8> = (0..COUNT)
        .flat_map(|sector| [sector.to_le_bytes(); 128].concat())
        .collect();
    each_way(&[0; 512 * COUNT as usize], |way, rig| {
        let memory = memory_of(Region::heap(512 * COUNT as usize).unwrap());
        let all = spans(&memory, &[(0, 512 * COUNT)]);
        let mut queue = rig.image.open_queue(256).unwrap();
        let round = |queue: &mut dyn ImageQueue, writes: bool| {
            let mut tokens = Vec::new();
            for token in 0..COUNT {
                let place = u64::from(token) * 512;
                let data = spans(&memory, &[(place, 512)]);
                let operation = if writes {
                    write(place, &data)
                } else {
                    read(place, &data)
                };
                if let Some(known) = queue.submit(token, operation, memory.table()) {
                    known.unwrap();
                    tokens.push(token);
                }
            }
            queue.launch();
            while tokens.len() < COUNT as usize {
                let completion = next(queue);
                completion.result.unwrap();
                tokens.push(completion.token);
            }
            tokens.sort_unstable();
            assert!(tokens.into_iter().eq(0..COUNT), "{way:?}");
            assert!(queue.completion().is_none());
        };
        memory.table().scatter(&all, 0, &content).unwrap();
        round(&mut *queue, true);
        assert_eq!(std::fs::read(rig.file.path()).unwrap(), content, "{way:?}");
        forget_cached(rig.file.as_file());
        memory
            .table()
            .scatter(&all, 0, &vec![0; content.len()])
            .unwrap();
        round(&mut *queue, false);
        assert_eq!(bytes_at(&memory, &all), content, "{way:?}");
    });
}

#[test]
fn who_looks_without_sleeping_sees_a_completion() {
    each_way(&[0; 4096], |way, rig| {
        let memory = memory();
        let data = spans(&memory, &[(0, 512)]);
        let mut queue = rig.image.open_queue(1).unwrap();
        assert!(!queue.has_completion());
        let known = queue.submit(1, write(0, &data), memory.table());
        if rig.image.engine() == Engine::Inline {
            assert!(known.expect("at once").is_ok());
            return;
        }
        assert!(known.is_none());
        queue.launch();
        let seen = settled(|| queue.has_completion());
        assert!(seen, "{way:?}");
        assert!(queue.completion().unwrap().result.is_ok());
        assert!(!queue.has_completion());
    });
}

#[test]
fn requests_larger_than_any_buffer_and_with_many_pieces_are_done_whole() {
    const LEN: u32 = 3 << 20;
    let content: Vec<u8> = (0..LEN).map(|at| (at / 511).to_le_bytes()[0]).collect();
    each_way(&vec![0; LEN as usize + 512], |way, rig| {
        let memory = memory_of(Region::heap(LEN as usize + 4096).unwrap());
        let mut queue = rig.image.open_queue(2).unwrap();
        // In one piece, and in 1500 of which one is odd.
        let mut pieces: Vec<(u64, u32)> = (0..1500).map(|at| (at * 2048, 2048)).collect();
        pieces.push((1500 * 2048, LEN - 1500 * 2048 - 7));
        pieces.push((u64::from(LEN) + 1, 7));
        for data in [spans(&memory, &[(0, LEN)]), spans(&memory, &pieces)] {
            memory.table().scatter(&data, 0, &content).unwrap();
            one(&mut *queue, write(512, &data), memory.table()).unwrap();
            let file = std::fs::read(rig.file.path()).unwrap();
            assert!(file[512..] == content, "{way:?}");
            memory
                .table()
                .scatter(&data, 0, &vec![0; content.len()])
                .unwrap();
            forget_cached(rig.file.as_file());
            one(&mut *queue, read(512, &data), memory.table()).unwrap();
            assert!(bytes_at(&memory, &data) == content, "{way:?}");
            rig.file
                .as_file()
                .write_all_at(&vec![0; content.len()], 512)
                .unwrap();
        }
    });
}

#[test]
fn memory_that_the_peer_takes_away_fails_its_requests_alone() {
    each_way(&[5; 16384], |way, rig| {
        let fd = memfd::create("test", 8192, Sealing::Open).unwrap();
        let mapping = PeerMemory::check(fd.try_clone().unwrap())
            .and_then(|memory| memory.map(0, 8192, None))
            .unwrap();
        let memory = memory_of(Region::new(Arc::new(mapping)));
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        let (there, gone) = (
            spans(&memory, &[(0, 4096)]),
            spans(&memory, &[(4096, 4096)]),
        );
        let mut queue = rig.image.open_queue(8).unwrap();
        let durable = Operation::Write {
            offset: 0,
            data: &gone,
            durable: true,
        };
        for operation in [read(4096, &gone), write(4096, &gone), durable] {
            let error = one(&mut *queue, operation, memory.table()).unwrap_err();
            let errno = Errno::from_io_error(&error);
            assert_eq!(errno, Some(Errno::FAULT), "{way:?}: {error}");
        }
        one(&mut *queue, read(4096, &there), memory.table()).unwrap();
        assert_eq!(bytes_at(&memory, &there), [5; 4096], "{way:?}");
        one(&mut *queue, Operation::Flush, memory.table()).unwrap();
    });
}

#[test]
fn a_queue_dropped_with_operations_in_flight_leaves_nothing() {
    each_way(&[3; 1 << 20], |way, rig| {
        let memory = memory();
        let data = spans(&memory, &[(0, 4096), (8192, 4096)]);
        let holders = Arc::strong_count(memory.table());
        for launched in [true, false] {
            let mut queue = rig.image.open_queue(64).unwrap();
            forget_cached(rig.file.as_file());
            for token in 0..64 {
                let place = u64::from(token) * 8192;
                let _ = queue.submit(token, read(place, &data), memory.table());
            }
            if launched {
                queue.launch();
            }
            drop(queue);
        }
        let path = rig.file.path();
        drop(rig.image);
        // Whatever was in flight holds neither memory nor the image any more.
        assert_eq!(Arc::strong_count(memory.table()), holders, "{way:?}");
        RawImage::open(path, &way.options()).unwrap();
    });
}

#[test]
fn a_range_is_zeroed_and_a_range_is_given_back() {
    each_way(&[9; 1 << 20], |way, rig| {
        let memory = memory();
        let mut queue = rig.image.open_queue(8).unwrap();
        let mut expected = vec![9; 1 << 20];
        let ranges = [
            (4096, 8192, false),
            (65536, 512, false),
            (1 << 19, 1 << 18, true),
        ];
        for (offset, len, unmap) in ranges {
            let zeroes = Operation::WriteZeroes {
                offset,
                len,
                unmap,
                durable: !unmap,
            };
            one(&mut *queue, zeroes, memory.table()).unwrap();
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            expected[range].fill(0);
        }
        assert!(
            std::fs::read(rig.file.path()).unwrap() == expected,
            "{way:?}"
        );

        let metadata = || rig.file.as_file().metadata().unwrap();
        rig.file.as_file().sync_all().unwrap();
        let before = metadata().blocks();
        let len = 1 << 20;
        one(
            &mut *queue,
            Operation::Discard { offset: 0, len },
            memory.table(),
        )
        .unwrap();
        assert_eq!(metadata().len(), 1 << 20, "{way:?}");
        if storage::change_range(&rig.file, storage::Range::Hole, 0, 4096).unwrap() {
            assert!(
                metadata().blocks() < before,
                "{way:?}: no room is given back"
            );
        }
    });
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    let image = WAYS[0].rig(&[7; 1 << 20]).unwrap().image;
    let mut bounce = bounce::Bounce::default();
    image
        .file
        .write_plain_zeroes(512, 700 << 10, &mut bounce)
        .unwrap();
    let mut bytes = vec![0; 1 << 20];
    image.file.file.read_exact_at(&mut bytes, 0).unwrap();
    let end = 512 + (700 << 10);
    assert!(bytes[512..end].iter().all(|byte| *byte == 0));
    assert!(
        bytes[..512]
            .iter()
            .chain(&bytes[end..])
            .all(|byte| *byte == 7)
    );
}

#[test]
fn a_sync_that_failed_stays_failed() {
    each_way(&[1; 4096], |way, rig| {
        let memory = memory();
        let mut queue = rig.image.open_queue(2).unwrap();
        one(&mut *queue, Operation::Flush, memory.table()).unwrap();
        let failed = rig.image.file.end_sync(Err(Errno::IO.into()));
        assert!(failed.is_err() && rig.image.sync().is_err(), "{way:?}");
        assert!(one(&mut *queue, Operation::Flush, memory.table()).is_err());
        // What needs no sync goes on.
        let data = spans(&memory, &[(0, 512)]);
        one(&mut *queue, write(0, &data), memory.table()).unwrap();
    });
}

#[test]
fn an_image_to_throw_away_is_never_synced() {
    each_way(&[1; 4096], |way, rig| {
        drop(rig);
        let options = OpenOptions {
            durability: Durability::Nothing,
            ..way.options()
        };
        let Some(rig) = way.rig_with(&[1; 4096], &options) else {
            return;
        };
        let memory = memory();
        let mut queue = rig.image.open_queue(2).unwrap();
        let _ = rig.image.file.end_sync(Err(Errno::IO.into()));
        one(&mut *queue, Operation::Flush, memory.table()).unwrap();
        rig.image.sync().unwrap();
        assert!(!rig.image.file.is_durable(true));
    });
}

#[test]
fn a_write_refused_before_it_begins_fails_alone() {
    let limited = NamedTempFile::new().unwrap();
    limited.as_file().set_len(4096).unwrap();
    for io in [Io::Auto, Io::Uring, Io::Threads] {
        let options = OpenOptions { io, ..OPTIONS };
        let image = match RawImage::open(limited.path(), &options) {
            Err(OpenError::Uring(error)) => {
                println!("SKIP {io:?}: {error}");
                continue;
            }
            opened => opened.unwrap(),
        };
        let memory = memory();
        let data = spans(&memory, &[(0, 512)]);
        let mut queue = image.open_queue(2).unwrap();
        // Past the largest file there can be: EFBIG, or EINVAL.
        let durable = Operation::Write {
            offset: i64::MAX.cast_unsigned() & !511,
            data: &data,
            durable: true,
        };
        let error = one(&mut *queue, durable, memory.table()).unwrap_err();
        let errno = Errno::from_io_error(&error);
        assert!(matches!(errno, Some(Errno::FBIG | Errno::INVAL)), "{error}");
        one(&mut *queue, write(0, &data), memory.table()).unwrap();
        one(&mut *queue, Operation::Flush, memory.table()).unwrap();
    }
}
