//! Images that are block devices with blocks of 4096 bytes: a loop device on a
//! file, which only root can make.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::image::{
    Engine, Image, ImageQueue, Io, OpenError, OpenOptions, Operation, RawImage,
};
use linkspan_mem::{AddressSpace, Region, RegionOffset, RegionTable, Span};
use linkspan_sys::poll::{Direction, wait_for};
use tempfile::NamedTempFile;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const SIZE: usize = 256 * BLOCK;

/// A loop device, gone when dropped.
struct Loop {
    path: PathBuf,
    _file: NamedTempFile,
}

impl Loop {
    /// A device of these bytes, or `None` with a word on why there is none.
    fn new(bytes: &[u8]) -> Option<Self> {
        let file = NamedTempFile::new().unwrap();
        file.as_file().write_all_at(bytes, 0).unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(file.path())
            .output();
        match made {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                let path = PathBuf::from(path.trim());
                Some(Self { path, _file: file })
            }
            other => {
                println!("SKIP a block device: losetup makes none here: {other:?}");
                None
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        let device = File::open(&self.path).unwrap();
        device.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let ended = Command::new("losetup").arg("-d").arg(&self.path).status();
        assert!(
            std::thread::panicking() || ended.unwrap().success(),
            "the loop device does not go"
        );
    }
}

struct Rig {
    memory: Arc<RegionTable>,
    queue: Box<dyn ImageQueue>,
    /// Operations that were done at once.
    known: usize,
}

impl Rig {
    fn new(image: &RawImage) -> Self {
        let region = Region::heap(SIZE + BLOCK).unwrap();
        Self {
            memory: Arc::new(RegionTable::new(vec![region])),
            queue: image.open_queue(64).unwrap(),
            known: 0,
        }
    }

    fn span(&self, at: usize, len: usize) -> Span {
        let space = AddressSpace::new(Arc::clone(&self.memory), &[RegionOffset(0)]).unwrap();
        let mut found = Span::default();
        let len = u32::try_from(len).unwrap();
        let resolved = space.resolve(RegionOffset(at as u64), len, |span| found = span);
        resolved.unwrap();
        found
    }

    /// Completes `count` operations.
    fn finish(&mut self, count: usize) {
        self.queue.launch();
        let known = std::mem::take(&mut self.known);
        for _ in known..count {
            loop {
                if let Some(completion) = self.queue.completion() {
                    completion.result.unwrap();
                    break;
                }
                let fd = self.queue.completion_fd().unwrap();
                wait_for(fd, Direction::Read, None, None).unwrap();
            }
        }
    }

    fn submit(&mut self, operation: Operation<'_>) {
        let memory = Arc::clone(&self.memory);
        if let Some(known) = self.queue.submit(1, operation, &memory) {
            known.unwrap();
            self.known += 1;
        }
    }

    fn write(&mut self, offset: usize, data: Span) {
        self.submit(Operation::Write {
            offset: offset as u64,
            data: &[data],
            durable: false,
        });
    }
}

fn options(io: Io, direct: bool) -> OpenOptions {
    OpenOptions {
        lock_wait: Duration::ZERO,
        io,
        direct,
        ..OpenOptions::default()
    }
}

/// Calls `test` with each way to serve a device of these bytes.
fn each_way(bytes: &[u8], test: impl Fn(&Loop, &RawImage)) {
    for (io, direct) in [
        (Io::Uring, false),
        (Io::Threads, false),
        (Io::Threads, true),
        (Io::Auto, true),
    ] {
        let Some(device) = Loop::new(bytes) else {
            return;
        };
        let image = match RawImage::open(&device.path, &options(io, direct)) {
            Err(OpenError::Uring(error)) => {
                println!("SKIP {io:?}: {error}");
                continue;
            }
            opened => opened.unwrap(),
        };
        assert_eq!(image.len(), SIZE as u64);
        assert_eq!(image.block_size() as usize, BLOCK);
        if direct {
            assert_eq!(image.engine(), Engine::Threads);
        }
        test(&device, &image);
    }
}

#[test]
fn sectors_of_one_block_are_written_at_once_and_none_is_lost() {
    each_way(&[0xEE; SIZE], |device, image| {
        // Two queues write every sector of the first blocks, the sectors of a
        // block from both, and one of them whole blocks behind those.
        let mut rigs = [Rig::new(image), Rig::new(image)];
        let sectors = 32;
        for (number, rig) in rigs.iter_mut().enumerate() {
            for sector in (number..sectors).step_by(2) {
                // Neither is memory aligned.
                let data = rig.span(sector * (SECTOR + 1) + 1, SECTOR);
                let mark = [u8::try_from(sector).unwrap(); SECTOR];
                rig.memory.scatter(&[data], 0, &mark).unwrap();
                rig.write(sector * SECTOR, data);
            }
            rig.queue.launch();
        }
        for rig in &mut rigs {
            rig.finish(sectors / 2);
        }
        let [rig, _] = &mut rigs;
        let data = rig.span(BLOCK, BLOCK);
        rig.memory.scatter(&[data], 0, &[0x77; BLOCK]).unwrap();
        rig.write(sectors * SECTOR, data);
        rig.finish(1);
        rig.submit(Operation::Flush);
        rig.finish(1);

        let mut expected = vec![0xEE; SIZE];
        for (sector, bytes) in expected.chunks_mut(SECTOR).take(sectors).enumerate() {
            bytes.fill(u8::try_from(sector).unwrap());
        }
        expected[sectors * SECTOR..][..BLOCK].fill(0x77);
        assert!(device.bytes() == expected);
        // All of it, into memory that is not aligned, from a place that is not.
        let data = rig.span(3, SIZE - SECTOR);
        rig.submit(Operation::Read {
            offset: SECTOR as u64,
            data: &[data],
        });
        rig.finish(1);
        let mut seen = vec![0; SIZE - SECTOR];
        rig.memory.gather(&[data], 0, &mut seen).unwrap();
        assert!(seen == expected[SECTOR..]);
    });
}

#[test]
fn ranges_of_a_device_become_zeroes_whatever_their_alignment() {
    each_way(&[0x44; SIZE], |device, image| {
        let mut rig = Rig::new(image);
        let mut expected = vec![0x44; SIZE];
        for (sector, sectors, unmap) in [(8, 16, false), (64, 64, true), (201, 3, true)] {
            let (offset, len) = (sector * SECTOR, sectors * SECTOR);
            rig.submit(Operation::WriteZeroes {
                offset: offset as u64,
                len: len as u64,
                unmap,
                durable: true,
            });
            rig.finish(1);
            expected[offset..offset + len].fill(0);
        }
        assert!(device.bytes() == expected);
        // A hint: what is next to it stays.
        rig.submit(Operation::Discard {
            offset: (801 * SECTOR) as u64,
            len: (100 * SECTOR) as u64,
        });
        rig.finish(1);
        let after = device.bytes();
        assert!(after[..801 * SECTOR] == expected[..801 * SECTOR]);
        assert!(after[901 * SECTOR..] == expected[901 * SECTOR..]);
    });
}
