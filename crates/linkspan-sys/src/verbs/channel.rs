//! Connections while they are made, and when they end: `librdmacm`.

use std::ffi::c_void;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use linkspan_mem::fault::Site;

use super::abi::{
    self, CmEvent, CmId, ConnParam, EVENT_ADDRESS_RESOLVED, EVENT_CONNECT_REQUEST,
    EVENT_DISCONNECTED, EVENT_ESTABLISHED, EVENT_REJECTED, EVENT_ROUTE_RESOLVED, TRANSPORT_IWARP,
};
use super::library::Library;
use super::{address, check};
use crate::acquire;

/// How many requests may wait.
const BACKLOG: i32 = 128;

/// How often a device repeats what is not acknowledged, and what a peer has no receive for: a
/// message that nobody wants ends the connection, as in iWARP.
const RETRIES: u8 = 6;
const RETRIES_NOT_READY: u8 = 0;

/// Tells what happens to all connections that were made on it.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    library: Library,
    raw: NonNull<abi::EventChannel>,
}

// SAFETY: the libraries may be called by any thread.
unsafe impl Send for Inner {}
// SAFETY: as above; they have their own locks.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: made by `rdma_create_event_channel`; every identifier on it is gone, since
        // each holds this value.
        unsafe { (self.library.functions.destroy_event_channel)(self.raw.as_ptr()) };
    }
}

impl Channel {
    /// A channel without connections.
    ///
    /// # Errors
    /// The kernel has no RDMA, or refuses.
    pub fn new(library: Library) -> io::Result<Self> {
        acquire(Site::Fd)?;
        // SAFETY: it takes nothing.
        let raw = unsafe { (library.functions.create_event_channel)() };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self {
            inner: Arc::new(Inner { library, raw }),
        };
        rustix::io::ioctl_fionbio(&channel, true)?;
        Ok(channel)
    }

    fn raw(&self) -> *mut abi::EventChannel {
        self.inner.raw.as_ptr()
    }

    /// What has happened next.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has; what the kernel says.
    pub fn next(&self) -> io::Result<ConnectionEvent> {
        let functions = self.inner.library.functions;
        let mut event: *mut CmEvent = std::ptr::null_mut();
        // SAFETY: the channel is there, and `event` has room for a pointer.
        check(unsafe { (functions.get_cm_event)(self.raw(), &raw mut event) })?;
        // SAFETY: it was given an event, which stays until it is acknowledged.
        let told = unsafe { self.read(&*event) };
        // SAFETY: acknowledged once; what was read of it was copied.
        check(unsafe { (functions.ack_cm_event)(event) })?;
        Ok(told)
    }

    /// # Safety
    /// `event` is one of the library's.
    unsafe fn read(&self, event: &CmEvent) -> ConnectionEvent {
        let greets = matches!(
            event.event,
            EVENT_CONNECT_REQUEST | EVENT_ESTABLISHED | EVENT_REJECTED
        );
        let conn = &event.conn;
        let private_data = if greets && !conn.private_data.is_null() {
            let len = usize::from(conn.private_data_len);
            // SAFETY: so many bytes belong to the event.
            unsafe { std::slice::from_raw_parts(conn.private_data.cast::<u8>(), len) }.to_vec()
        } else {
            Vec::new()
        };
        let parameters = Parameters {
            private_data,
            inbound: if greets { conn.responder_resources } else { 0 },
            outbound: if greets { conn.initiator_depth } else { 0 },
        };
        let happened = match event.event {
            EVENT_ADDRESS_RESOLVED => Happened::AddressResolved,
            EVENT_ROUTE_RESOLVED => Happened::RouteResolved,
            EVENT_CONNECT_REQUEST => match NonNull::new(event.id) {
                // The identifier of the new connection is ours to destroy.
                Some(raw) => Happened::Requested(
                    Identifier {
                        raw,
                        channel: self.clone(),
                    },
                    parameters,
                ),
                None => Happened::Failed {
                    status: event.status,
                },
            },
            EVENT_ESTABLISHED => Happened::Established(parameters),
            EVENT_REJECTED => Happened::Rejected {
                status: event.status,
                private_data: parameters.private_data,
            },
            EVENT_DISCONNECTED => Happened::Disconnected,
            // CONNECT_ERROR, UNREACHABLE, ADDR_ERROR, ROUTE_ERROR, DEVICE_REMOVAL.
            1 | 3 | 6 | 7 | 11 => Happened::Failed {
                status: event.status,
            },
            _ => Happened::Other,
        };
        let of = match event.event {
            EVENT_CONNECT_REQUEST => event.listen_id,
            _ => event.id,
        };
        ConnectionEvent {
            of: IdentifierKey(of.addr()),
            happened,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the channel's, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw((*self.raw()).fd) }
    }
}

/// By what the channel tells connections apart. Another connection may have the same one
/// when this one is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentifierKey(usize);

/// Something that happened to a connection, or to a listener.
#[derive(Debug)]
pub struct ConnectionEvent {
    /// To which; of a request, the listener.
    pub of: IdentifierKey,
    /// What.
    pub happened: Happened,
}

/// What happens to connections.
#[derive(Debug)]
#[non_exhaustive]
pub enum Happened {
    /// The peer's address leads to a device.
    AddressResolved,
    /// The way to the peer is known: connect.
    RouteResolved,
    /// Somebody wants to connect: accept or reject.
    Requested(Identifier, Parameters),
    /// Both ends are there.
    Established(Parameters),
    /// The peer does not want us, or is not there.
    Rejected {
        /// Why, in the numbers of the transport.
        status: i32,
        /// What the peer's upper layer says.
        private_data: Vec<u8>,
    },
    /// The peer left, or we did.
    Disconnected,
    /// It came to nothing, or the device is gone.
    Failed {
        /// Why: an error number, negative.
        status: i32,
    },
    /// What concerns nobody here.
    Other,
}

/// What both ends tell each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// For the upper layers. Over InfiniBand and RoCE zeroes follow.
    pub private_data: Vec<u8>,
    /// Reads of the peer that we answer at a time.
    pub inbound: u8,
    /// Reads of ours that the peer answers at a time.
    pub outbound: u8,
}

impl Parameters {
    fn raw(&self) -> io::Result<ConnParam> {
        let private_data_len = u8::try_from(self.private_data.len());
        Ok(ConnParam {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: private_data_len.map_err(|_| io::ErrorKind::InvalidInput)?,
            responder_resources: self.inbound,
            initiator_depth: self.outbound,
            flow_control: 0,
            retry_count: RETRIES,
            rnr_retry_count: RETRIES_NOT_READY,
            srq: 0,
            qp_num: 0,
        })
    }
}

/// A connection that is made, or a listener. It is gone when the value is dropped.
#[derive(Debug)]
pub struct Identifier {
    raw: NonNull<CmId>,
    channel: Channel,
}

// SAFETY: the libraries may be called by any thread, and one at a time has this value.
unsafe impl Send for Identifier {}

impl Drop for Identifier {
    fn drop(&mut self) {
        // SAFETY: made by the library, and not used any more; its queue pair is gone, and
        // no event of it is left unacknowledged, for which it would wait.
        unsafe { (self.library().functions.destroy_id)(self.raw.as_ptr()) };
    }
}

impl Identifier {
    /// One for a connection or a listener, without either.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn new(channel: &Channel) -> io::Result<Self> {
        acquire(Site::Fd)?;
        let functions = channel.inner.library.functions;
        let mut raw: *mut CmId = std::ptr::null_mut();
        let none: *mut c_void = std::ptr::null_mut();
        // SAFETY: the channel is there, and `raw` has room for a pointer.
        let result = unsafe {
            (functions.create_id)(channel.raw(), &raw mut raw, none, abi::PORT_SPACE_TCP)
        };
        check(result)?;
        Ok(Self {
            raw: NonNull::new(raw).ok_or(io::ErrorKind::OutOfMemory)?,
            channel: channel.clone(),
        })
    }

    pub(super) fn library(&self) -> Library {
        self.channel.inner.library
    }

    pub(super) fn raw(&self) -> *mut CmId {
        self.raw.as_ptr()
    }

    /// By what events name it.
    #[must_use]
    pub fn key(&self) -> IdentifierKey {
        IdentifierKey(self.raw.as_ptr().addr())
    }

    /// Whether a device is known.
    #[must_use]
    pub fn has_device(&self) -> bool {
        // SAFETY: the identifier is there.
        unsafe { !(*self.raw()).verbs.is_null() }
    }

    /// Whether its device speaks iWARP: what a read goes into has to be exposed then.
    #[must_use]
    pub fn is_iwarp(&self) -> bool {
        // SAFETY: the identifier is there, and a context has its device.
        unsafe {
            let verbs = (*self.raw()).verbs;
            !verbs.is_null() && (*(*verbs).device).transport_type == TRANSPORT_IWARP
        }
    }

    /// Listens, and says where.
    ///
    /// # Errors
    /// No device has the address, or it is taken.
    pub fn listen(&self, at: SocketAddr) -> io::Result<SocketAddr> {
        acquire(Site::Fd)?;
        let functions = self.library().functions;
        let storage = address::write(at);
        // SAFETY: the address is one of its family.
        check(unsafe { (functions.bind_addr)(self.raw(), (&raw const storage).cast()) })?;
        // SAFETY: the identifier is bound.
        check(unsafe { (functions.listen)(self.raw(), BACKLOG) })?;
        self.address()
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Our address.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is there.
        address::read(unsafe { &(*self.raw()).src_addr })
    }

    /// The peer's.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is there.
        address::read(unsafe { &(*self.raw()).dst_addr })
    }

    /// Looks for a device that leads there; [`Happened::AddressResolved`] tells.
    ///
    /// # Errors
    /// None leads there.
    pub fn resolve(&self, to: SocketAddr, within: Duration) -> io::Result<()> {
        let storage = address::write(to);
        let none = std::ptr::null();
        let to = (&raw const storage).cast();
        let functions = self.library().functions;
        // SAFETY: the address is one of its family; null is none.
        check(unsafe { (functions.resolve_addr)(self.raw(), none, to, milliseconds(within)) })
    }

    /// Looks for the way to the peer; [`Happened::RouteResolved`] tells.
    ///
    /// # Errors
    /// There is none.
    pub fn resolve_route(&self, within: Duration) -> io::Result<()> {
        let functions = self.library().functions;
        // SAFETY: the identifier is there.
        check(unsafe { (functions.resolve_route)(self.raw(), milliseconds(within)) })
    }

    /// Asks the peer; [`Happened::Established`] tells, or [`Happened::Rejected`].
    ///
    /// # Errors
    /// The device refuses: too much private data, more reads than it can.
    pub fn connect(&self, parameters: &Parameters) -> io::Result<()> {
        let mut raw = parameters.raw()?;
        let functions = self.library().functions;
        // SAFETY: the private data lives until the call is over, which copies it.
        check(unsafe { (functions.connect)(self.raw(), &raw mut raw) })
    }

    /// Takes the peer.
    ///
    /// # Errors
    /// As for [`Self::connect`]; the peer is gone.
    pub fn accept(&self, parameters: &Parameters) -> io::Result<()> {
        let mut raw = parameters.raw()?;
        let functions = self.library().functions;
        // SAFETY: as in `connect`.
        check(unsafe { (functions.accept)(self.raw(), &raw mut raw) })
    }

    /// Does not take it.
    ///
    /// # Errors
    /// The peer is gone; too much private data.
    pub fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        let len = u8::try_from(private_data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let functions = self.library().functions;
        // SAFETY: so many bytes are there.
        check(unsafe { (functions.reject)(self.raw(), private_data.as_ptr().cast(), len) })
    }

    /// Ends the connection, and all work of its queue pair.
    ///
    /// # Errors
    /// There is none any more.
    pub fn disconnect(&self) -> io::Result<()> {
        let functions = self.library().functions;
        // SAFETY: the identifier is there.
        check(unsafe { (functions.disconnect)(self.raw()) })
    }
}

fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}
