//! A queue pair and what belongs to it: `libibverbs`.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use linkspan_mem::Region;
use linkspan_mem::fault::Site;

use super::abi::{
    self, CmId, DeviceAttr, LOCAL_WRITE, QpInitAttr, REMOTE_READ, REMOTE_WRITE, RecvWr,
    STATUS_FLUSHED, STATUS_SUCCESS, SendWr, WC_INVALIDATED, Wc,
};
use super::channel::{Identifier, Parameters};
use super::library::Library;
use super::{check, check_number};
use crate::acquire;

/// Completions that are taken at a time.
const COMPLETIONS: usize = 16;

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Works that are posted to one queue.
    pub works: u32,
    /// Elements of a list.
    pub elements: u32,
    /// Elements of the list that a read goes into.
    pub read_elements: u32,
    /// Completions that nobody has taken.
    pub completions: u32,
    /// Bytes of one registration.
    pub registration_bytes: u64,
    /// Reads of the peer that are answered at a time.
    pub inbound: u8,
    /// Reads of ours at a time.
    pub outbound: u8,
}

/// How large the queues of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Works that are posted and not done.
    pub works: u32,
    /// Receives that are posted and not taken.
    pub receives: u32,
    /// Elements of a list.
    pub elements: u32,
}

/// Bytes that the device reads or writes. It checks them against what was registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Element(abi::Sge);

impl Element {
    /// `len` bytes at `address`, of the registration with that local key.
    #[must_use]
    pub fn new(address: u64, len: u32, local_key: u32) -> Self {
        Self(abi::Sge {
            addr: address,
            length: len,
            lkey: local_key,
        })
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A message.
    Send {
        /// The key of the peer's that ends with it.
        invalidate: Option<u32>,
        /// Whether the peer wakes up for it.
        solicited: bool,
    },
    /// Bytes into the peer's memory.
    Write {
        /// Where to.
        address: u64,
        /// Its key.
        key: u32,
    },
    /// Bytes out of the peer's memory.
    Read {
        /// Where they are.
        address: u64,
        /// Its key.
        key: u32,
    },
}

/// Work that is over. Only the number means anything unless it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The number that it was posted with.
    pub id: u64,
    /// Why it was not done, in the numbers of `ibv_wc_status`; `None` if it was.
    pub failed: Option<i32>,
    /// Whether it only failed because something before it has.
    pub flushed: bool,
    /// Bytes of a message that came.
    pub len: u32,
    /// The key of ours that ended with it.
    pub invalidated: Option<u32>,
}

/// What a device may do with registered memory, beside reading it for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// The device writes what comes for us.
    pub write: bool,
    /// The peer reads.
    pub remote_read: bool,
    /// The peer writes.
    pub remote_write: bool,
}

/// Memory that a device may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    place: usize,
    /// The key for [`Element`].
    pub local_key: u32,
    /// The key for the peer.
    pub remote_key: u32,
    /// The address of the first byte.
    pub address: u64,
}

struct Pd {
    library: Library,
    raw: NonNull<abi::Pd>,
}

impl Drop for Pd {
    fn drop(&mut self) {
        // SAFETY: allocated by the library; whatever was in it is gone.
        unsafe { (self.library.functions.dealloc_pd)(self.raw.as_ptr()) };
    }
}

struct CompChannel {
    library: Library,
    raw: NonNull<abi::CompChannel>,
}

impl Drop for CompChannel {
    fn drop(&mut self) {
        // SAFETY: as above; its completion queue is gone.
        unsafe { (self.library.functions.destroy_comp_channel)(self.raw.as_ptr()) };
    }
}

impl AsFd for CompChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the channel's, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_ref().fd) }
    }
}

struct Cq {
    library: Library,
    raw: NonNull<abi::Cq>,
    /// Notifications that were taken and not acknowledged: it would wait for them.
    told: u32,
}

impl Drop for Cq {
    fn drop(&mut self) {
        // SAFETY: as above; its queue pair is gone.
        unsafe {
            (self.library.functions.ack_cq_events)(self.raw.as_ptr(), self.told);
            (self.library.functions.destroy_cq)(self.raw.as_ptr());
        }
    }
}

/// The queue pair of an identifier.
struct Qp {
    library: Library,
    id: *mut CmId,
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: the identifier lives longer, and has a queue pair. When this returns the
        // device does nothing for it any more.
        unsafe { (self.library.functions.destroy_qp)(self.id) };
    }
}

struct Mr {
    library: Library,
    raw: NonNull<abi::Mr>,
    /// What the device may reach.
    region: Region,
    gone: bool,
}

impl Mr {
    fn end(&mut self) -> io::Result<()> {
        // SAFETY: registered by the library, and not ended before.
        check_number(unsafe { (self.library.functions.dereg_mr)(self.raw.as_ptr()) })?;
        self.gone = true;
        Ok(())
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // One that the kernel keeps would let the device reach memory that is not ours
        // any more: then it stays.
        if !self.gone && self.end().is_err() {
            std::mem::forget(self.region.clone());
        }
    }
}

/// A connection's queues, completions and memory. Dropped, it gives all of them back, and the
/// device is done with all that was posted.
pub struct QueuePair {
    // In the order in which they go.
    #[expect(dead_code, reason = "it is held until it is destroyed")]
    qp: Qp,
    memory: Vec<Option<Mr>>,
    cq: Cq,
    channel: CompChannel,
    pd: Pd,
    id: Identifier,
}

// SAFETY: the libraries may be called by any thread, and one at a time has this value.
unsafe impl Send for QueuePair {}

impl std::fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueuePair")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What the device of an identifier can do.
///
/// # Errors
/// It has no device, or the device does not say.
pub(super) fn limits(id: &Identifier) -> io::Result<DeviceLimits> {
    if !id.has_device() {
        return Err(io::ErrorKind::NotConnected.into());
    }
    // SAFETY: a structure of numbers.
    let mut attr: DeviceAttr = unsafe { std::mem::zeroed() };
    // SAFETY: the identifier has a context, and the structure is as large as the library's.
    check_number(unsafe {
        (id.library().functions.query_device)((*id.raw()).verbs, &raw mut attr)
    })?;
    let count = |number: c_int| u32::try_from(number).unwrap_or(0);
    let depth = |number: c_int| u8::try_from(number.clamp(0, 255)).unwrap_or(0);
    Ok(DeviceLimits {
        works: count(attr.max_qp_wr),
        elements: count(attr.max_sge),
        read_elements: count(attr.max_sge_rd).min(count(attr.max_sge)),
        completions: count(attr.max_cqe),
        registration_bytes: attr.max_mr_size,
        inbound: depth(attr.max_qp_rd_atom),
        outbound: depth(attr.max_qp_init_rd_atom),
    })
}

impl Identifier {
    /// What its device can do.
    ///
    /// # Errors
    /// It has no device yet, or the device does not say.
    pub fn limits(&self) -> io::Result<DeviceLimits> {
        limits(self)
    }
}

impl QueuePair {
    /// Queues for a connection whose device is known. If that fails nothing is left of it.
    ///
    /// # Errors
    /// What the device or the kernel refuses.
    pub fn new(id: Identifier, sizes: Sizes) -> io::Result<Self> {
        if !id.has_device() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let library = id.library();
        let functions = library.functions;
        // SAFETY: the identifier is there.
        let verbs = unsafe { (*id.raw()).verbs };
        let failed = io::Error::last_os_error;

        acquire(Site::Alloc)?;
        // SAFETY: the context lives as long as the identifier.
        let raw = NonNull::new(unsafe { (functions.alloc_pd)(verbs) }).ok_or_else(failed)?;
        let pd = Pd { library, raw };

        acquire(Site::Fd)?;
        // SAFETY: as above.
        let raw = unsafe { (functions.create_comp_channel)(verbs) };
        let raw = NonNull::new(raw).ok_or_else(failed)?;
        let channel = CompChannel { library, raw };
        rustix::io::ioctl_fionbio(&channel, true)?;

        acquire(Site::Alloc)?;
        let count = c_int::try_from(sizes.works.saturating_add(sizes.receives));
        let count = count.map_err(|_| io::ErrorKind::InvalidInput)?;
        let none = std::ptr::null_mut();
        // SAFETY: as above; the channel lives longer than the queue.
        let raw = unsafe { (functions.create_cq)(verbs, count, none, channel.raw.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(failed)?;
        let cq = Cq {
            library,
            raw,
            told: 0,
        };

        acquire(Site::Alloc)?;
        let mut attr = QpInitAttr {
            qp_context: none,
            send_cq: cq.raw.as_ptr(),
            recv_cq: cq.raw.as_ptr(),
            srq: none,
            max_send_wr: sizes.works,
            max_recv_wr: sizes.receives,
            max_send_sge: sizes.elements,
            max_recv_sge: 1,
            max_inline_data: 0,
            qp_type: abi::QP_RELIABLE,
            sq_sig_all: 0,
        };
        // SAFETY: what the structure names lives longer than the queue pair.
        check(unsafe { (functions.create_qp)(id.raw(), pd.raw.as_ptr(), &raw mut attr) })?;
        let pair = Self {
            qp: Qp {
                library,
                id: id.raw(),
            },
            memory: Vec::new(),
            cq,
            channel,
            pd,
            id,
        };
        pair.arm()?;
        Ok(pair)
    }

    /// Its connection.
    #[must_use]
    pub fn id(&self) -> &Identifier {
        &self.id
    }

    /// Takes the peer; see [`Identifier::accept`].
    ///
    /// # Errors
    /// As there.
    pub fn accept(&self, parameters: &Parameters) -> io::Result<()> {
        self.id.accept(parameters)
    }

    /// The descriptor becomes readable with the next completion.
    fn arm(&self) -> io::Result<()> {
        let cq = self.cq.raw.as_ptr();
        // SAFETY: the queue is there, with its context.
        unsafe {
            let notify = (*(*cq).context).req_notify_cq;
            check_number(notify.ok_or(io::ErrorKind::Unsupported)?(cq, 0))
        }
    }

    /// Takes all notifications, so that the descriptor becomes readable only with a completion
    /// that comes later. Those that are there have to be taken after this.
    ///
    /// # Errors
    /// What the device says.
    pub fn listen(&mut self) -> io::Result<()> {
        loop {
            let (mut cq, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
            let channel = self.channel.raw.as_ptr();
            let functions = self.cq.library.functions;
            // SAFETY: the channel is there, and both have room for a pointer.
            let taken = unsafe {
                check((functions.get_cq_event)(
                    channel,
                    &raw mut cq,
                    &raw mut context,
                ))
            };
            match taken {
                Ok(()) => self.cq.told = self.cq.told.wrapping_add(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.arm()
    }

    /// Takes completions, in order for each of both queues; returns how many.
    ///
    /// # Errors
    /// The device is broken.
    pub fn poll(&mut self, each: &mut dyn FnMut(Completion)) -> io::Result<usize> {
        let mut list = [Wc::default(); COMPLETIONS];
        let cq = self.cq.raw.as_ptr();
        let room = c_int::try_from(COMPLETIONS).unwrap_or(1);
        // SAFETY: the queue is there, with its context; the list has room for so many.
        let count = unsafe {
            let poll = (*(*cq).context).poll_cq.ok_or(io::ErrorKind::Unsupported)?;
            poll(cq, room, list.as_mut_ptr())
        };
        let count = usize::try_from(count).map_err(|_| io::ErrorKind::BrokenPipe)?;
        for wc in list.iter().take(count) {
            let done = wc.status == STATUS_SUCCESS;
            let invalidates = done && wc.wc_flags & WC_INVALIDATED != 0;
            each(Completion {
                id: wc.wr_id,
                failed: (!done).then_some(wc.status),
                flushed: wc.status == STATUS_FLUSHED,
                len: wc.byte_len,
                invalidated: invalidates.then_some(wc.invalidated_rkey),
            });
        }
        Ok(count)
    }

    /// Posts work, which comes back by its number.
    ///
    /// # Errors
    /// The queue is full; the device cannot do it.
    pub fn post(&mut self, id: u64, elements: &[Element], operation: Operation) -> io::Result<()> {
        let (opcode, flags, invalidate, address, key) = match operation {
            Operation::Send {
                invalidate,
                solicited,
            } => {
                let flags = if solicited { abi::SOLICITED } else { 0 };
                let opcode = match invalidate {
                    Some(_) => abi::WR_SEND_INVALIDATE,
                    None => abi::WR_SEND,
                };
                // siw's library looks for the key where a write has its own; nobody else
                // looks there.
                let key = invalidate.unwrap_or(0);
                (opcode, flags, key, 0, key)
            }
            Operation::Write { address, key } => (abi::WR_WRITE, 0, 0, address, key),
            Operation::Read { address, key } => (abi::WR_READ, 0, 0, address, key),
        };
        let mut work = SendWr {
            wr_id: id,
            next: std::ptr::null_mut(),
            sg_list: elements.as_ptr().cast(),
            num_sge: c_int::try_from(elements.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            opcode,
            send_flags: flags | abi::SIGNALLED,
            invalidate_rkey: invalidate,
            remote_addr: address,
            rkey: key,
            after_rdma: [0; 5],
            qp_type: 0,
            last: [0; 6],
        };
        let mut bad = std::ptr::null_mut();
        // SAFETY: the identifier has a queue pair; the list is copied before the call is over.
        unsafe {
            let qp = (*self.id.raw()).qp;
            let post = (*(*qp).context).post_send;
            let post = post.ok_or(io::ErrorKind::Unsupported)?;
            check_number(post(qp, &raw mut work, &raw mut bad))
        }
    }

    /// Lets a message come into these bytes.
    ///
    /// # Errors
    /// As for [`Self::post`].
    pub fn post_receive(&mut self, id: u64, element: Element) -> io::Result<()> {
        let list = [element];
        let mut work = RecvWr {
            wr_id: id,
            next: std::ptr::null_mut(),
            sg_list: list.as_ptr().cast(),
            num_sge: 1,
        };
        let mut bad = std::ptr::null_mut();
        // SAFETY: as in `post`.
        unsafe {
            let qp = (*self.id.raw()).qp;
            let post = (*(*qp).context).post_recv;
            let post = post.ok_or(io::ErrorKind::Unsupported)?;
            check_number(post(qp, &raw mut work, &raw mut bad))
        }
    }

    /// Lets the device reach bytes of a region, which it holds until that ends.
    ///
    /// # Errors
    /// They are not inside; the device has no room, or the memory cannot be pinned.
    pub fn register(
        &mut self,
        region: &Region,
        offset: u64,
        len: u64,
        rights: Rights,
    ) -> io::Result<Registration> {
        let slice = region.slice(offset, len);
        let slice = slice.map_err(|_| io::ErrorKind::InvalidInput)?;
        let place = match self.memory.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                let more = self.memory.try_reserve(1);
                more.map_err(|_| io::ErrorKind::OutOfMemory)?;
                self.memory.push(None);
                self.memory.len() - 1
            }
        };
        let mut access = 0;
        if rights.write || rights.remote_write {
            access |= LOCAL_WRITE;
        }
        if rights.remote_write {
            access |= REMOTE_WRITE;
        }
        if rights.remote_read {
            access |= REMOTE_READ;
        }
        acquire(Site::Map)?;
        let library = self.pd.library;
        let start = slice.as_ptr();
        // SAFETY: the bytes are valid for as long as the region, which the registration holds.
        let raw = unsafe {
            (library.functions.reg_mr)(self.pd.raw.as_ptr(), start.cast(), slice.len(), access)
        };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let memory = Mr {
            library,
            raw,
            region: region.clone(),
            gone: false,
        };
        // SAFETY: the library has filled it in.
        let (local_key, remote_key, address) = unsafe {
            let mr = memory.raw.as_ref();
            (mr.lkey, mr.rkey, mr.addr.addr() as u64)
        };
        self.memory[place] = Some(memory);
        Ok(Registration {
            place,
            local_key,
            remote_key,
            address,
        })
    }

    /// The device reaches it no more when this returns.
    ///
    /// # Errors
    /// The kernel keeps it; it ends with the connection then.
    pub fn deregister(&mut self, registration: Registration) -> io::Result<()> {
        let memory = self.memory.get_mut(registration.place);
        let memory = memory.ok_or(io::ErrorKind::NotFound)?;
        memory.as_mut().ok_or(io::ErrorKind::NotFound)?.end()?;
        *memory = None;
        Ok(())
    }
}

impl AsFd for QueuePair {
    /// Readable when there are completions, after [`QueuePair::listen`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
