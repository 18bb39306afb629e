//! Disks without a file: memory of ours, and nothing at all.
//!
//! Both do everything within `submit`. A memory disk makes no system call per
//! request; a null disk touches no byte, for measuring what stands before it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use linkspan_mem::{Backing, OutsideRegion, Region, RegionTable, Span};
use linkspan_sys::AnonymousMemory;

use super::{Completion, Image, ImageQueue, Operation};

/// A disk in memory: zeroes at first, gone when it is dropped. What was never
/// written takes no memory, and what is discarded is given back.
#[derive(Debug)]
pub struct MemoryImage {
    shared: Arc<Store>,
    read_only: bool,
}

/// The bytes of a [`MemoryImage`].
#[derive(Debug)]
struct Store {
    region: Region,
    /// The same, to give it back by.
    memory: Arc<AnonymousMemory>,
}

impl MemoryImage {
    /// A disk of `bytes` bytes, a multiple of 512.
    ///
    /// # Errors
    /// When the address space cannot be had.
    pub fn new(bytes: u64, read_only: bool) -> io::Result<Self> {
        let memory = Arc::new(AnonymousMemory::new(bytes)?);
        let region = Region::new(Arc::clone(&memory) as Arc<dyn Backing>);
        Ok(Self {
            shared: Arc::new(Store { region, memory }),
            read_only,
        })
    }
}

impl Image for MemoryImage {
    fn len(&self) -> u64 {
        self.shared.region.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(InlineQueue {
            disk: Disk::Memory(Arc::clone(&self.shared)),
        }))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Store {
    /// Moves bytes between the disk from `offset` on and spans of guest memory.
    fn transfer(
        &self,
        offset: u64,
        data: &[Span],
        memory: &RegionTable,
        to_guest: bool,
    ) -> Result<(), OutsideRegion> {
        let mut at = offset;
        for span in data {
            let guest = memory.slice(*span);
            let disk = self.region.slice(at, guest.len() as u64)?;
            if to_guest {
                disk.copy_to(guest);
            } else {
                guest.copy_to(disk);
            }
            at += guest.len() as u64;
        }
        Ok(())
    }

    /// Gives memory back; what is not a whole page is made zero.
    fn give_back(&self, offset: u64, len: u64) -> io::Result<()> {
        let given = self.memory.give_back(offset, len)?;
        let parts = [offset..given.start, given.end..offset + len];
        for part in parts {
            let slice = self.region.slice(part.start, part.end - part.start);
            slice.map_err(io::Error::other)?.clear();
        }
        Ok(())
    }

    fn carry_out(&self, operation: Operation<'_>, memory: &RegionTable) -> io::Result<()> {
        let done = match operation {
            Operation::Read { offset, data } => self.transfer(offset, data, memory, true),
            Operation::Write { offset, data, .. } => self.transfer(offset, data, memory, false),
            Operation::Flush => Ok(()),
            Operation::Discard { offset, len }
            | Operation::WriteZeroes {
                offset,
                len,
                unmap: true,
                ..
            } => return self.give_back(offset, len),
            Operation::WriteZeroes { offset, len, .. } => {
                self.region.slice(offset, len).map(|slice| slice.clear())
            }
        };
        done.map_err(io::Error::other)
    }
}

/// A disk that keeps nothing.
///
/// Writes are dropped. Reads leave the buffers as they are, as those of QEMU's
/// null-co do, so that nothing is measured but the way to the disk; only with
/// `read_zeroes` they give zeroes.
#[derive(Clone, Copy, Debug)]
pub struct NullImage {
    bytes: u64,
    read_only: bool,
    read_zeroes: bool,
}

impl NullImage {
    /// A disk of `bytes` bytes, a multiple of 512.
    pub fn new(bytes: u64, read_only: bool, read_zeroes: bool) -> Self {
        Self {
            bytes,
            read_only,
            read_zeroes,
        }
    }
}

impl Image for NullImage {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn open_queue(&self, _depth: u16) -> io::Result<Box<dyn ImageQueue>> {
        Ok(Box::new(InlineQueue {
            disk: Disk::Null {
                read_zeroes: self.read_zeroes,
            },
        }))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

enum Disk {
    Memory(Arc<Store>),
    Null { read_zeroes: bool },
}

struct InlineQueue {
    disk: Disk,
}

impl ImageQueue for InlineQueue {
    #[inline]
    fn submit(
        &mut self,
        _token: u32,
        operation: Operation<'_>,
        memory: &Arc<RegionTable>,
    ) -> Option<io::Result<()>> {
        Some(match &self.disk {
            Disk::Memory(store) => store.carry_out(operation, memory),
            Disk::Null { read_zeroes } => {
                if let (true, Operation::Read { data, .. }) = (read_zeroes, operation) {
                    for span in data {
                        memory.slice(*span).clear();
                    }
                }
                Ok(())
            }
        })
    }

    fn completion(&mut self) -> Option<Completion> {
        None
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_mem::{Gpa, GuestMemory, UserVa};

    const SIZE: u64 = 8 << 20;

    struct Rig {
        memory: GuestMemory,
        queue: Box<dyn ImageQueue>,
    }

    impl Rig {
        fn new(image: &dyn Image) -> Self {
            let region = Region::heap(1 << 16).unwrap();
            Self {
                memory: GuestMemory::new(vec![(region, Gpa(0), UserVa(0x1000))]).unwrap(),
                queue: image.open_queue(64).unwrap(),
            }
        }

        fn spans(&self, ranges: &[(u64, u32)]) -> Vec<Span> {
            let mut spans = Vec::new();
            for (at, len) in ranges {
                let resolved = self
                    .memory
                    .guest
                    .resolve(Gpa(*at), *len, |span| spans.push(span));
                resolved.unwrap();
            }
            spans
        }

        fn run(&mut self, operation: Operation<'_>) {
            let done = self.queue.submit(3, operation, self.memory.table());
            done.expect("at once").unwrap();
        }

        fn write(&mut self, offset: u64, bytes: &[u8]) {
            let data = self.spans(&[
                (0, 1000),
                (5000, u32::try_from(bytes.len() - 1000).unwrap()),
            ]);
            self.memory.table().scatter(&data, 0, bytes).unwrap();
            let durable = true;
            let data = &data;
            self.run(Operation::Write {
                offset,
                data,
                durable,
            });
        }

        /// Reads over bytes of 0xEE.
        fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
            let data = self.spans(&[(20000, 512), (30000, len - 512)]);
            let mut bytes = vec![0xEE; len as usize];
            self.memory.table().scatter(&data, 0, &bytes).unwrap();
            let read = Operation::Read {
                offset,
                data: &data,
            };
            self.run(read);
            self.memory.table().gather(&data, 0, &mut bytes).unwrap();
            bytes
        }
    }

    #[test]
    fn memory_keeps_what_was_written_until_it_is_discarded() {
        let image = MemoryImage::new(SIZE, false).unwrap();
        assert_eq!(image.len(), SIZE);
        let mut rig = Rig::new(&image);
        assert!(rig.read(SIZE - 4096, 4096).iter().all(|byte| *byte == 0));
        rig.write(512, &[0xAB; 16384]);
        // Another queue sees it.
        let read = Rig::new(&image).read(512, 16384);
        assert!(read.iter().all(|byte| *byte == 0xAB));
        rig.run(Operation::Flush);
        rig.run(Operation::Discard {
            offset: 4096,
            len: 8192,
        });
        let read = rig.read(512, 16384);
        let hole = 4096 - 512..12288 - 512;
        for (at, byte) in read.iter().enumerate() {
            assert_eq!(*byte, if hole.contains(&at) { 0 } else { 0xAB }, "{at}");
        }
    }

    #[test]
    fn memory_is_zero_where_it_was_made_so() {
        let image = MemoryImage::new(SIZE, false).unwrap();
        let mut rig = Rig::new(&image);
        for (offset, len) in [(512, 8704), (1024, 512), (3584, 1024), (4096, 4096)] {
            for unmap in [false, true] {
                rig.write(0, &[7; 16384]);
                rig.run(Operation::WriteZeroes {
                    offset,
                    len,
                    unmap,
                    durable: false,
                });
                let zeroes =
                    usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
                for (at, byte) in rig.read(0, 16384).iter().enumerate() {
                    assert_eq!(*byte, if zeroes.contains(&at) { 0 } else { 7 }, "{at}");
                }
            }
        }
    }

    #[test]
    fn what_lies_outside_is_an_error() {
        let image = MemoryImage::new(4096, false).unwrap();
        let mut rig = Rig::new(&image);
        let data = rig.spans(&[(0, 1024)]);
        let read = Operation::Read {
            offset: 3584,
            data: &data,
        };
        let done = rig.queue.submit(1, read, rig.memory.table());
        assert!(done.expect("at once").is_err());
    }

    #[test]
    fn nothing_keeps_nothing_and_reads_zeroes_only_if_asked() {
        for (read_zeroes, found) in [(false, 0xEE), (true, 0)] {
            let image = NullImage::new(1 << 40, false, read_zeroes);
            let mut rig = Rig::new(&image);
            rig.write(0, &[7; 4096]);
            rig.run(Operation::Discard {
                offset: 0,
                len: 1 << 40,
            });
            let read = rig.read(0, 4096);
            assert!(read.iter().all(|byte| *byte == found));
        }
    }
}
