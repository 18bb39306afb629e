//! A vhost-user front end for tests. It can send any bytes with any descriptors
//! in any split, and it knows the honest way as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{EventFd, Stream};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{
    self, HEADER_BYTES, Header, LogDescription, MemoryTableHeader, SingleMemoryRegion, VringState,
};
use linkspan_vhost::{ProtocolFeatures, VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES};
use linkspan_virtio::Features;
use zerocopy::{FromBytes, IntoBytes};

use crate::PATIENCE;
use crate::disk::DiskRing;
use crate::memory::SharedMemory;

/// What a front end takes of what it is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether `VHOST_USER_F_PROTOCOL_FEATURES` is acknowledged. QEMU before 7.2
    /// negotiates protocol features and yet does not.
    pub ack_bit_30: bool,
    /// Whether `REPLY_ACK` is negotiated, and each message acknowledged.
    pub reply_ack: bool,
    /// Whether memory comes region by region.
    pub mem_slots: bool,
    /// Virtio features not to take.
    pub without: u64,
    /// Whether packed rings are taken, if they are offered.
    pub packed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ack_bit_30: true,
            reply_ack: true,
            mem_slots: false,
            without: 0,
            packed: false,
        }
    }
}

/// Why an honest request did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The back end acknowledged it with an error.
    #[error("{request:?} was refused")]
    Nack {
        /// What was asked.
        request: Request,
    },
    /// The back end closed the connection.
    #[error("the connection was closed upon {request:?}")]
    Closed {
        /// What was asked.
        request: Request,
    },
    /// No connection.
    #[error("no connection: {0}")]
    Connect(io::Error),
}

/// A connection to a back end.
#[derive(Debug)]
pub struct FrontEnd {
    stream: Stream,
    features: u64,
    protocol: ProtocolFeatures,
    declined: ProtocolFeatures,
    mem_slots: bool,
}

impl FrontEnd {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`Refused::Connect`].
    pub fn connect(path: &Path) -> Result<Self, Refused> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Stream::connect(path) {
                Ok(stream) => return Ok(Self::over(stream)),
                // Too many wait to be accepted: that passes.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
                {
                    std::thread::yield_now();
                }
                Err(error) => return Err(Refused::Connect(error)),
            }
        }
    }

    /// Talks over a socket that is connected already.
    pub fn over(stream: Stream) -> Self {
        Self {
            stream,
            features: 0,
            protocol: ProtocolFeatures::empty(),
            declined: ProtocolFeatures::empty(),
            mem_slots: false,
        }
    }

    /// The virtio features that were acknowledged.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Sends bytes as they are, descriptors with the first of them. Whether the
    /// back end still takes them.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.stream
            .send(bytes, fds, Instant::now() + PATIENCE)
            .is_ok()
    }

    /// The next message of the back end; `None` when it closed the connection.
    ///
    /// # Panics
    /// When neither happens.
    #[track_caller]
    pub fn receive(&self) -> Option<(Header, Vec<u8>)> {
        let head = self.receive_exactly(HEADER_BYTES)?;
        let header = Header::read_from_bytes(&head).expect("the sizes are equal");
        let size = usize::try_from(header.size).expect("it fits");
        assert!(size <= wire::MAX_BODY_BYTES, "a reply of {size} bytes");
        Some((header, self.receive_exactly(size)?))
    }

    /// Waits until the back end closes the connection; replies before that count
    /// for nothing.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_closed(&self) {
        while self.receive().is_some() {}
    }

    /// Asks for something that is always replied to.
    ///
    /// # Errors
    /// When the connection is closed instead.
    #[track_caller]
    pub fn ask(
        &self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, Refused> {
        if !self.send_raw(&wire::encode(request.code(), 0, body), fds) {
            return Err(Refused::Closed { request });
        }
        self.reply(request)
    }

    /// Says something, and waits for the acknowledgement if that was negotiated.
    ///
    /// # Errors
    /// When it is refused.
    #[track_caller]
    pub fn tell(
        &self,
        request: Request,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Refused> {
        let acked = self.protocol.contains(ProtocolFeatures::REPLY_ACK);
        let flags = if acked { Header::NEED_REPLY } else { 0 };
        if !self.send_raw(&wire::encode(request.code(), flags, body), fds) {
            return Err(Refused::Closed { request });
        }
        if acked && number(&self.reply(request)?) != 0 {
            return Err(Refused::Nack { request });
        }
        Ok(())
    }

    /// A question about nothing: what was said before is done when it returns.
    ///
    /// # Errors
    /// When the connection is closed.
    #[track_caller]
    pub fn sync(&self) -> Result<(), Refused> {
        self.ask(Request::GetFeatures, &[], &[]).map(drop)
    }

    /// Protocol features that [`negotiate`](Self::negotiate) does not take.
    pub fn decline(&mut self, features: ProtocolFeatures) {
        self.declined = features;
    }

    /// Agrees on features, as QEMU does.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn negotiate(&mut self, options: &Options) -> Result<(), Refused> {
        let offered = number(&self.ask(Request::GetFeatures, &[], &[])?);
        // Migration begins when somebody asks for it.
        let mut not_yet = VHOST_F_LOG_ALL;
        if !options.packed {
            not_yet |= Features::VIRTIO_F_RING_PACKED.bits();
        }
        let mut features = offered & !options.without & !not_yet;
        if offered & VHOST_USER_F_PROTOCOL_FEATURES != 0 {
            let offered = number(&self.ask(Request::GetProtocolFeatures, &[], &[])?);
            let mut protocol = ProtocolFeatures::from_bits_retain(offered);
            protocol.set(ProtocolFeatures::REPLY_ACK, options.reply_ack);
            protocol.remove(self.declined);
            self.tell(
                Request::SetProtocolFeatures,
                protocol.bits().as_bytes(),
                &[],
            )?;
            self.protocol = protocol;
        }
        if !options.ack_bit_30 {
            features &= !VHOST_USER_F_PROTOCOL_FEATURES;
        }
        self.tell(Request::SetOwner, &[], &[])?;
        self.tell(Request::SetFeatures, features.as_bytes(), &[])?;
        self.features = features;
        self.mem_slots = options.mem_slots;
        Ok(())
    }

    /// Shares memory: one table, or region by region, as negotiated.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn share(&self, regions: &[Arc<SharedMemory>]) -> Result<(), Refused> {
        if self.mem_slots {
            return regions.iter().try_for_each(|region| self.add(region));
        }
        self.set_table(regions)
    }

    /// `VHOST_USER_SET_MEM_TABLE`.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn set_table(&self, regions: &[Arc<SharedMemory>]) -> Result<(), Refused> {
        let descriptions: Vec<_> = regions.iter().map(|region| region.description()).collect();
        let header = MemoryTableHeader {
            num_regions: u32::try_from(regions.len()).expect("few"),
            padding: 0,
        };
        let body = [header.as_bytes(), descriptions.as_bytes()].concat();
        let fds: Vec<_> = regions.iter().map(|region| region.as_fd()).collect();
        self.tell(Request::SetMemTable, &body, &fds)
    }

    /// `VHOST_USER_ADD_MEM_REG`.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn add(&self, region: &SharedMemory) -> Result<(), Refused> {
        self.tell(Request::AddMemReg, &single(region), &[region.as_fd()])
    }

    /// `VHOST_USER_REM_MEM_REG`.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn remove(&self, region: &SharedMemory) -> Result<(), Refused> {
        self.tell(Request::RemMemReg, &single(region), &[])
    }

    /// Sets a ring up and starts it at its first request that is not answered.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn start(&self, ring: &DiskRing) -> Result<(), Refused> {
        let index = ring.index();
        self.tell(Request::SetVringNum, &state(index, ring.size().into()), &[])?;
        self.tell(
            Request::SetVringBase,
            &state(index, ring.base().into()),
            &[],
        )?;
        self.tell(Request::SetVringAddr, ring.address().as_bytes(), &[])?;
        self.set_event(Request::SetVringCall, index, &ring.call)?;
        self.set_event(Request::SetVringErr, index, &ring.err)?;
        self.set_event(Request::SetVringKick, index, &ring.kick)
    }

    /// `VHOST_USER_SET_FEATURES` once more, with or without `VHOST_F_LOG_ALL`.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn log_all(&self, all: bool) -> Result<(), Refused> {
        let log = if all { VHOST_F_LOG_ALL } else { 0 };
        let features = self.features | log;
        self.tell(Request::SetFeatures, features.as_bytes(), &[])
    }

    /// `VHOST_USER_SET_LOG_BASE`; whether the back end took the log.
    ///
    /// # Errors
    /// When the back end closes the connection.
    #[track_caller]
    pub fn set_log(&self, file: BorrowedFd<'_>, size: u64, offset: u64) -> Result<(), Refused> {
        let log = LogDescription {
            mmap_size: size,
            mmap_offset: offset,
        };
        let request = Request::SetLogBase;
        let reply = self.ask(request, log.as_bytes(), &[file])?;
        match reply == log.as_bytes() {
            true => Ok(()),
            false => Err(Refused::Nack { request }),
        }
    }

    /// `VHOST_USER_SET_BACKEND_REQ_FD` with one end of a new socket; the other end,
    /// on which the back end makes requests.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn listen_to_requests(&self) -> Result<Self, Refused> {
        let (ours, theirs) = Stream::pair().map_err(Refused::Connect)?;
        self.tell(Request::SetBackendReqFd, &[], &[theirs.as_fd()])?;
        Ok(Self::over(ours))
    }

    /// Whether a message is there that was not received yet.
    ///
    /// # Panics
    /// When the socket failed.
    pub fn has_message(&self) -> bool {
        let now = Some(Instant::now());
        wait_for(self.stream.as_fd(), Direction::Read, None, now).expect("a socket") == Wake::Ready
    }

    /// Gives a ring one of its eventfds.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn set_event(&self, request: Request, ring: u16, event: &EventFd) -> Result<(), Refused> {
        self.tell(request, u64::from(ring).as_bytes(), &[event.as_fd()])
    }

    /// `VHOST_USER_SET_VRING_ENABLE`.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn enable(&self, ring: u16, enabled: bool) -> Result<(), Refused> {
        let body = state(ring, enabled.into());
        self.tell(Request::SetVringEnable, &body, &[])
    }

    /// Stops a ring; where it would go on.
    ///
    /// # Errors
    /// When the back end refuses.
    #[track_caller]
    pub fn stop(&self, ring: u16) -> Result<u16, Refused> {
        let reply = self.ask(Request::GetVringBase, &state(ring, 0), &[])?;
        let reply = VringState::read_from_bytes(&reply).expect("8 bytes");
        assert_eq!(reply.index, u32::from(ring), "the reply is about this ring");
        Ok(u16::try_from(reply.num).expect("an index of a split ring"))
    }

    /// The reply to `request`.
    #[track_caller]
    fn reply(&self, request: Request) -> Result<Vec<u8>, Refused> {
        let (header, body) = self.receive().ok_or(Refused::Closed { request })?;
        assert_eq!(header.request, request.code(), "the reply is to this");
        // QEMU compares the flags as a whole.
        assert_eq!(header.flags, Header::VERSION | Header::REPLY);
        Ok(body)
    }

    #[track_caller]
    fn receive_exactly(&self, len: usize) -> Option<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match wait_for(self.stream.as_fd(), Direction::Read, None, Some(deadline)) {
                Ok(Wake::Ready) => {}
                other => panic!("the back end neither answers nor closes: {other:?}"),
            }
            match self.stream.receive(&mut bytes[done..], &mut Vec::new(), 8) {
                Ok(received) if received.bytes == 0 => return None,
                Ok(received) => done += received.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The back end closed with messages of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the socket failed: {error}"),
            }
        }
        Some(bytes)
    }
}

impl AsFd for FrontEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A ring and a number, as most messages about rings have them.
pub fn state(ring: u16, num: u32) -> Vec<u8> {
    let index = ring.into();
    VringState { index, num }.as_bytes().to_vec()
}

/// The body of `VHOST_USER_ADD_MEM_REG` and `VHOST_USER_REM_MEM_REG`.
pub fn single(region: &SharedMemory) -> Vec<u8> {
    let region = region.description();
    SingleMemoryRegion { padding: 0, region }
        .as_bytes()
        .to_vec()
}

#[track_caller]
fn number(body: &[u8]) -> u64 {
    u64::read_from_bytes(body).expect("a reply of 8 bytes")
}
