//! A VMM that speaks vfio-user, for tests: it can ask for anything. On it a driver of
//! virtio over PCI, which finds its registers as any driver does.

mod virtio;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{EventFd, Stream};
use linkspan_vfio::message::Command;
use linkspan_vfio::wire::{
    Access, DMA_READ, DMA_WRITE, DmaMapBody, DmaUnmapBody, HEADER_BYTES, Header, IRQ_ACTION_MASK,
    IRQ_ACTION_TRIGGER, IRQ_ACTION_UNMASK, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IoEvent, IoFds, IrqSet,
    RegionInfo, VERSION, Version,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::PATIENCE;
use crate::memory::SharedMemory;

pub use virtio::VirtioPci;

/// Why something did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The device answered with this error of Linux.
    #[error("refused with error {0}")]
    Errno(u32),
    /// The device closed the connection.
    #[error("the connection was closed")]
    Closed,
}

/// A connection to a device.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    next: Cell<u16>,
}

impl Client {
    /// Connects to the socket at `path` and agrees on a version.
    ///
    /// # Errors
    /// When the device does not want that.
    ///
    /// # Panics
    /// When nobody listens there.
    #[track_caller]
    pub fn connect(path: &Path) -> Result<Self, Refused> {
        let client = Self {
            stream: Stream::connect(path).expect("somebody listens"),
            next: Cell::new(0),
        };
        let (major, minor) = VERSION;
        let text = b"{\"capabilities\":{\"max_msg_fds\":8}}\0";
        let body = [Version { major, minor }.as_bytes(), text].concat();
        client.ask(Command::Version, &body, &[])?;
        Ok(client)
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn ask(
        &self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Refused> {
        Ok(self.ask_for(command, body, fds)?.0)
    }

    /// The same, and the descriptors that come with the reply.
    ///
    /// # Errors
    /// When it is refused.
    ///
    /// # Panics
    /// When the reply is none.
    #[track_caller]
    pub fn ask_for(
        &self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Refused> {
        let id = self.send(command, Header::COMMAND, body, fds)?;
        let mut got = Vec::new();
        let head = self.receive_exactly(HEADER_BYTES, &mut got)?;
        let header = Header::read_from_bytes(&head).expect("the sizes are equal");
        assert_eq!((header.id, header.command), (id, command.code()));
        assert_eq!(header.flags & Header::TYPE_MASK, Header::REPLY);
        let size = header.size as usize - HEADER_BYTES;
        let body = self.receive_exactly(size, &mut got)?;
        if header.flags & Header::ERROR != 0 {
            assert!(body.is_empty() && got.is_empty());
            return Err(Refused::Errno(header.error));
        }
        Ok((body, got))
    }

    /// Sends a command that wants no reply.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn post(&self, command: Command, body: &[u8]) -> Result<(), Refused> {
        let flags = Header::COMMAND | Header::NO_REPLY;
        self.send(command, flags, body, &[]).map(drop)
    }

    fn send(
        &self,
        command: Command,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u16, Refused> {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let header = Header {
            id,
            command: command.code(),
            size: u32::try_from(HEADER_BYTES + body.len()).expect("it is short"),
            flags,
            error: 0,
        };
        let bytes = [header.as_bytes(), body].concat();
        let sent = self.stream.send(&bytes, fds, Instant::now() + PATIENCE);
        sent.map(|()| id).map_err(|_| Refused::Closed)
    }

    #[track_caller]
    fn receive_exactly(&self, len: usize, fds: &mut Vec<OwnedFd>) -> Result<Vec<u8>, Refused> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match wait_for(self.stream.as_fd(), Direction::Read, None, Some(deadline)) {
                Ok(Wake::Ready) => {}
                other => panic!("the device neither answers nor closes: {other:?}"),
            }
            match self.stream.receive(&mut bytes[done..], fds, 8) {
                Ok(received) if received.bytes == 0 => return Err(Refused::Closed),
                Ok(received) => done += received.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(Refused::Closed);
                }
                Err(error) => panic!("the socket failed: {error}"),
            }
        }
        Ok(bytes)
    }

    /// Shares memory at its guest address.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn map(&self, memory: &SharedMemory) -> Result<(), Refused> {
        let (address, size) = (memory.guest(0).0, memory.len());
        self.map_range(address, size, Some(memory.as_fd()))
    }

    /// Shares a range, with a descriptor or without.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn map_range(
        &self,
        address: u64,
        size: u64,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Refused> {
        let body = DmaMapBody {
            argsz: 32,
            flags: DMA_READ | DMA_WRITE,
            offset: 0,
            address,
            size,
        };
        let fds: Vec<_> = fd.into_iter().collect();
        self.ask(Command::DmaMap, body.as_bytes(), &fds).map(drop)
    }

    /// Takes memory back.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn unmap(&self, memory: &SharedMemory) -> Result<(), Refused> {
        let body = DmaUnmapBody {
            argsz: 24,
            flags: 0,
            address: memory.guest(0).0,
            size: memory.len(),
        };
        self.ask(Command::DmaUnmap, body.as_bytes(), &[]).map(drop)
    }

    /// Reads bytes of a region.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn read(&self, region: u32, offset: u64, len: usize) -> Result<Vec<u8>, Refused> {
        let access = access(region, offset, len);
        let mut body = self.ask(Command::RegionRead, access.as_bytes(), &[])?;
        let head = size_of::<Access>();
        assert_eq!((&body[..head], body.len() - head), (access.as_bytes(), len));
        Ok(body.split_off(head))
    }

    /// Writes bytes of a region.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        let access = access(region, offset, bytes.len());
        let body = [access.as_bytes(), bytes].concat();
        self.ask(Command::RegionWrite, &body, &[]).map(drop)
    }

    /// The same without waiting for it.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn post_write(&self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        let access = access(region, offset, bytes.len());
        self.post(Command::RegionWrite, &[access.as_bytes(), bytes].concat())
    }

    /// What is said of a region, with its capabilities, and its file.
    ///
    /// # Errors
    /// When it is refused.
    ///
    /// # Panics
    /// When the answer is too short.
    #[track_caller]
    pub fn region(&self, index: u32) -> Result<(RegionInfo, Vec<u8>, Vec<OwnedFd>), Refused> {
        let mut asked = RegionInfo::new_zeroed();
        (asked.argsz, asked.index) = (1 << 16, index);
        let (body, fds) = self.ask_for(Command::DeviceGetRegionInfo, asked.as_bytes(), &[])?;
        let (info, _) = RegionInfo::read_from_prefix(&body).expect("all of it");
        Ok((info, body, fds))
    }

    /// The parts of a region that are eventfds, and these.
    ///
    /// # Errors
    /// When it is refused.
    ///
    /// # Panics
    /// When the answer makes no sense.
    #[track_caller]
    pub fn doorbells(&self, index: u32) -> Result<(Vec<IoEvent>, Vec<OwnedFd>), Refused> {
        let asked = IoFds {
            argsz: 1 << 12,
            flags: 0,
            index,
            count: 0,
        };
        let command = Command::DeviceGetRegionIoFds;
        let (body, fds) = self.ask_for(command, asked.as_bytes(), &[])?;
        let (info, rest) = IoFds::read_from_prefix(&body).expect("all of it");
        let events: Vec<_> = rest
            .chunks_exact(size_of::<IoEvent>())
            .map(|event| IoEvent::read_from_bytes(event).expect("the sizes are equal"))
            .collect();
        assert_eq!((info.argsz as usize, info.index), (body.len(), index));
        assert_eq!(
            (info.count as usize, fds.len()),
            (events.len(), events.len())
        );
        Ok((events, fds))
    }

    /// From now on these interrupts of a kind are told by these.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn set_events(&self, index: u32, start: u32, events: &[&EventFd]) -> Result<(), Refused> {
        let fds: Vec<_> = events.iter().map(|event| event.as_fd()).collect();
        let count = u32::try_from(events.len()).expect("few");
        let flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
        self.set_irqs(flags, index, start, count, &fds)
    }

    /// This interrupt is told nobody any more.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn unset_event(&self, index: u32, number: u32) -> Result<(), Refused> {
        let flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
        self.set_irqs(flags, index, number, 1, &[])
    }

    /// Holds the line back, or does not any more.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn mask(&self, index: u32, masked: bool) -> Result<(), Refused> {
        let action = match masked {
            true => IRQ_ACTION_MASK,
            false => IRQ_ACTION_UNMASK,
        };
        self.set_irqs(IRQ_DATA_NONE | action, index, 0, 1, &[])
    }

    #[track_caller]
    fn set_irqs(
        &self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Refused> {
        let set = IrqSet {
            argsz: 20,
            flags,
            index,
            start,
            count,
        };
        self.ask(Command::DeviceSetIrqs, set.as_bytes(), fds)
            .map(drop)
    }

    /// Resets the device.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn reset(&self) -> Result<(), Refused> {
        self.ask(Command::DeviceReset, &[], &[]).map(drop)
    }
}

fn access(region: u32, offset: u64, len: usize) -> Access {
    Access {
        offset,
        region,
        count: u32::try_from(len).expect("it is short"),
    }
}
