//! Connections over TCP whose bytes go straight to and from shared memory.
//!
//! Nothing here waits: whoever finds nothing to do gets `WouldBlock`.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use linkspan_mem::SharedSlice;
use linkspan_mem::fault::Site;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, sockopt};

use crate::acquire;

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long nothing comes until the peer is asked whether it is there (`TCP_KEEPIDLE`).
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// How often it is asked, and how many times (`TCP_KEEPINTVL`, `TCP_KEEPCNT`).
const PROBE_EACH: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// How long what was written may stay unacknowledged, or find no room at the peer, in
/// milliseconds (`TCP_USER_TIMEOUT`).
const GIVE_UP_MS: u32 = 125_000;

/// Pieces of one system call at most.
pub const PIECES: usize = 256;

/// Bytes that are to be written, in order, wherever they are.
#[derive(Debug)]
pub struct Gather<'a> {
    pieces: Pieces,
    borrow: PhantomData<&'a [u8]>,
}

/// Places that bytes which are read are put to, in order.
#[derive(Debug)]
pub struct Scatter<'a> {
    pieces: Pieces,
    borrow: PhantomData<&'a mut [u8]>,
}

struct Pieces {
    list: [libc::iovec; PIECES],
    count: usize,
    bytes: usize,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes in {} pieces", self.bytes, self.count)
    }
}

impl Pieces {
    fn new() -> Self {
        let none = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            list: [none; PIECES],
            count: 0,
            bytes: 0,
        }
    }

    fn push(&mut self, start: *mut u8, len: usize) -> bool {
        let Some(piece) = self.list.get_mut(self.count) else {
            return false;
        };
        piece.iov_base = start.cast();
        piece.iov_len = len;
        self.count += 1;
        self.bytes += len;
        true
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: a structure of numbers and pointers, for which zero is none.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        // Which type it has depends on the C library; there are few.
        message.msg_iovlen = self.count as _;
        message
    }
}

impl<'a> Gather<'a> {
    /// Nothing.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "4 KiB are not made by the way")]
    pub fn new() -> Self {
        Self {
            pieces: Pieces::new(),
            borrow: PhantomData,
        }
    }

    /// Adds bytes; `false` if there are [`PIECES`] already.
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        // It is only read.
        self.pieces.push(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// The same with shared memory.
    pub fn push_shared(&mut self, slice: SharedSlice<'a>) -> bool {
        self.pieces.push(slice.as_ptr(), slice.len())
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.bytes == 0
    }
}

impl<'a> Scatter<'a> {
    /// Nowhere.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "4 KiB are not made by the way")]
    pub fn new() -> Self {
        Self {
            pieces: Pieces::new(),
            borrow: PhantomData,
        }
    }

    /// Adds a place; `false` if there are [`PIECES`] already.
    pub fn push(&mut self, bytes: &'a mut [u8]) -> bool {
        self.pieces.push(bytes.as_mut_ptr(), bytes.len())
    }

    /// The same in shared memory.
    pub fn push_shared(&mut self, slice: SharedSlice<'a>) -> bool {
        self.pieces.push(slice.as_ptr(), slice.len())
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.bytes
    }

    /// Whether there is no place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.bytes == 0
    }
}

/// A connection.
#[derive(Debug)]
pub struct TcpStream(OwnedFd);

impl TcpStream {
    /// Begins to connect: it is connected, or failed, when it can be written.
    ///
    /// # Errors
    /// What `socket(2)` and `connect(2)` report at once.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = Self::of(new_socket(address)?)?;
        match net::connect(&stream.0, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(stream),
            Err(errno) => Err(errno.into()),
        }
    }

    fn of(socket: OwnedFd) -> io::Result<Self> {
        // Whoever writes here has gathered what there is.
        sockopt::set_tcp_nodelay(&socket, true)?;
        // A peer that is gone without a word is noticed, whether it owes an answer or not.
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_EACH)?;
        sockopt::set_tcp_keepcnt(&socket, PROBES)?;
        sockopt::set_tcp_user_timeout(&socket, GIVE_UP_MS)?;
        Ok(Self(socket))
    }

    /// Why connecting failed, if it did.
    ///
    /// # Errors
    /// What `connect(2)` would have reported.
    pub fn check(&self) -> io::Result<()> {
        sockopt::socket_error(&self.0)?.map_err(io::Error::from)
    }

    /// Writes as much as there is room for; says how much.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; `BrokenPipe` or `ConnectionReset` if the peer is
    /// gone; `EFAULT` if a peer took memory away.
    pub fn write(&self, gather: &mut Gather<'_>) -> io::Result<usize> {
        let message = gather.pieces.message();
        transfer(|| {
            // SAFETY: the kernel only reads; the borrow keeps all pieces valid, of
            // which as many are filled in as the message says.
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }
        })
    }

    /// Reads what is there, as much as there are places for; 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; `ConnectionReset` and the like; `EFAULT` if a
    /// peer took memory away.
    pub fn read(&self, scatter: &mut Scatter<'_>) -> io::Result<usize> {
        let mut message = scatter.pieces.message();
        transfer(|| {
            // SAFETY: the borrow keeps all places valid for writes, private ones for
            // these alone; as many are filled in as the message says.
            unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) }
        })
    }

    /// The same to one place in private memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_bytes(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match net::recv(&self.0, &mut *bytes, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                done => return Ok(done?.0),
            }
        }
    }

    /// Ends the half that we write.
    ///
    /// # Errors
    /// What `shutdown(2)` reports.
    pub fn shut_down(&self) -> io::Result<()> {
        Ok(net::shutdown(&self.0, Shutdown::Write)?)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// What `getpeername(2)` reports.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        let address = net::getpeername(&self.0)?;
        let address = address.ok_or(io::ErrorKind::NotConnected)?;
        Ok(SocketAddr::try_from(address)?)
    }

    /// The address of this end.
    ///
    /// # Errors
    /// What `getsockname(2)` reports.
    pub fn address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(net::getsockname(&self.0)?)?)
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn transfer(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        let done = call();
        if let Ok(len) = usize::try_from(done) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A socket that peers connect to.
#[derive(Debug)]
pub struct TcpListener(OwnedFd);

impl TcpListener {
    /// Listens at `address`; port 0 is any that is free.
    ///
    /// # Errors
    /// `AddrInUse`; `PermissionDenied` for ports below 1024; what `bind(2)` reports.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = new_socket(address)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        net::bind(&socket, &address)?;
        net::listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Takes the next connection.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; what `accept4(2)` reports.
    pub fn accept(&self) -> io::Result<TcpStream> {
        acquire(Site::Fd)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            match net::accept_with(&self.0, flags) {
                Ok(socket) => return TcpStream::of(socket),
                // The peer gave up before we looked: as if it had never come.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What `getsockname(2)` reports.
    pub fn address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(net::getsockname(&self.0)?)?)
    }
}

impl AsFd for TcpListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn new_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    acquire(Site::Fd)?;
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(family, SocketType::STREAM, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::{Direction, wait_for};
    use linkspan_mem::Region;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn wait(source: impl AsFd, direction: Direction) {
        wait_for(source.as_fd(), direction, None, None).unwrap();
    }

    fn pair(ip: IpAddr) -> io::Result<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
        let none = listener.accept().unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        let one = TcpStream::connect(listener.address()?)?;
        wait(&listener, Direction::Read);
        let other = listener.accept()?;
        wait(&one, Direction::Write);
        one.check()?;
        assert_eq!(one.peer()?, listener.address()?);
        assert_eq!(other.peer()?, one.address()?);
        for stream in [&one, &other] {
            assert!(sockopt::socket_keepalive(stream)?);
            assert_eq!(sockopt::tcp_keepidle(stream)?, PROBE_AFTER);
            assert_eq!(sockopt::tcp_keepintvl(stream)?, PROBE_EACH);
            assert_eq!(sockopt::tcp_keepcnt(stream)?, PROBES);
            assert_eq!(sockopt::tcp_user_timeout(stream)?, GIVE_UP_MS);
        }
        Ok((one, other))
    }

    #[test]
    fn pieces_of_both_kinds_go_there_in_order() {
        let (one, other) = pair(Ipv4Addr::LOCALHOST.into()).unwrap();
        let region = Region::heap(100).unwrap();
        region.slice(10, 3).unwrap().write(b"def");
        let mut gather = Gather::new();
        assert!(gather.push(b"abc") && gather.push_shared(region.slice(10, 3).unwrap()));
        assert!(gather.push(b"gh"));
        assert_eq!((gather.len(), gather.is_empty()), (8, false));
        assert_eq!(one.write(&mut gather).unwrap(), 8);
        wait(&other, Direction::Read);
        let mut head = [0; 2];
        let mut scatter = Scatter::new();
        assert!(scatter.push(&mut head) && scatter.push_shared(region.slice(50, 20).unwrap()));
        assert_eq!((scatter.len(), scatter.is_empty()), (22, false));
        assert_eq!(other.read(&mut scatter).unwrap(), 8);
        let mut rest = [0; 6];
        region.slice(50, 6).unwrap().read(&mut rest);
        assert_eq!((&head, &rest), (b"ab", b"cdefgh"));
        let empty = other.read_bytes(&mut head).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        one.shut_down().unwrap();
        wait(&other, Direction::Read);
        assert_eq!(other.read_bytes(&mut head).unwrap(), 0);
    }

    #[test]
    fn pieces_have_a_limit() {
        let bytes = [1; PIECES + 1];
        let mut gather = Gather::new();
        let taken = bytes.chunks(1).take_while(|byte| gather.push(byte)).count();
        assert_eq!(taken, PIECES);
    }

    #[test]
    fn nobody_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.address().unwrap();
        drop(listener);
        let failed = TcpStream::connect(address).and_then(|stream| {
            wait(&stream, Direction::Write);
            stream.check()
        });
        let kind = failed.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn six_is_as_good_as_four() {
        match pair(Ipv6Addr::LOCALHOST.into()) {
            Ok(_) => {}
            Err(error) => eprintln!("SKIP: no IPv6 here: {error}"),
        }
    }
}
