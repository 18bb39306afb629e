//! Sockets that another process opened and started us with (`--fd N`).

use super::{Listener, Stream};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::{set_socket_passcred, socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// What a descriptor that we were started with turned out to be.
#[derive(Debug)]
pub enum Inherited {
    /// A socket that peers connect to.
    Listener(Listener),
    /// A connection to one peer.
    Stream(Stream),
}

/// Takes over the socket that has the number `fd` since we were started.
///
/// A number on a command line may name anything, also a descriptor that this
/// program opened for itself. Those all have the close-on-exec flag, and what
/// came through `exec` cannot have it: so the flag tells them apart, and it is
/// set here, so that nothing is taken over twice.
///
/// # Errors
/// `InvalidInput` if there is no such descriptor, if it was not inherited, or
/// if it is not a Unix stream socket that listens or is connected. Its owner is
/// then nobody, as before.
pub fn inherit(fd: RawFd) -> io::Result<Inherited> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    if fd <= 2 {
        return Err(refused(fd, "is a standard stream or no descriptor at all"));
    }
    // SAFETY: the number is not negative. If no descriptor has it, each call
    // below fails; the borrow ends before the descriptor gets an owner.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed).map_err(|_| refused(fd, "is not open"))?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(refused(fd, "was not inherited"));
    }
    let kind = socket_type(borrowed).map_err(|_| refused(fd, "is not a socket"))?;
    if kind != SocketType::STREAM || socket_domain(borrowed)? != AddressFamily::UNIX {
        return Err(refused(fd, "is not a Unix stream socket"));
    }
    let listens = socket_acceptconn(borrowed)?;
    if !listens && getpeername(borrowed).is_err() {
        return Err(refused(fd, "neither listens nor is connected"));
    }
    if listens {
        // `accept` has no flag of its own for not waiting.
        fcntl_setfl(borrowed, fcntl_getfl(borrowed)? | OFlags::NONBLOCK)?;
    } else {
        set_socket_passcred(borrowed, false)?;
    }
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;

    // SAFETY: the descriptor is open and was inherited, so no value of this
    // process owned it; it has just been marked, so no second call gets here.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(if listens {
        Inherited::Listener(Listener { socket, path: None })
    } else {
        Inherited::Stream(Stream::of(socket))
    })
}

/// Takes over anything that has the number `fd` since we were started, once.
///
/// # Errors
/// `InvalidInput` if there is no such descriptor, or it was not inherited.
pub(crate) fn inherit_any(fd: RawFd) -> io::Result<OwnedFd> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let no = |why| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} {why}"),
        )
    };
    if fd <= 2 {
        return Err(no("is a standard stream or no descriptor at all"));
    }
    // SAFETY: the number is not negative. If no descriptor has it, each call
    // below fails; the borrow ends before the descriptor gets an owner.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl_getfd(borrowed).map_err(|_| no("is not open"))?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(no("was not inherited"));
    }
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open and was inherited, so no value of this
    // process owned it; it has just been marked, so no second call gets here.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn refused(fd: RawFd, why: &str) -> io::Error {
    let text = format!("descriptor {fd} {why}: give the number of an inherited Unix stream socket");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SocketFlags, socket_with};
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixListener;

    /// What `exec` would leave us: open, without the flag, owned by nobody.
    fn as_if_inherited(fd: impl Into<OwnedFd>) -> RawFd {
        let fd = fd.into();
        fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        fd.into_raw_fd()
    }

    fn why(fd: RawFd) -> String {
        let error = inherit(fd).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        error.to_string()
    }

    #[test]
    fn listening_socket_is_taken_over_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let number = as_if_inherited(UnixListener::bind(&path).unwrap());
        let Inherited::Listener(listener) = inherit(number).unwrap() else {
            panic!("it listens");
        };
        assert!(why(number).contains("was not inherited"));
        assert!(fcntl_getfd(&listener).unwrap().contains(FdFlags::CLOEXEC));
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
        Stream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert!(path.exists(), "the path belongs to who bound it");
    }

    #[test]
    fn connected_socket_is_taken_over() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let Inherited::Stream(stream) = inherit(as_if_inherited(ours)).unwrap() else {
            panic!("it is connected");
        };
        drop(theirs);
        assert_eq!(
            stream
                .receive(&mut [0; 1], &mut Vec::new(), 0)
                .unwrap()
                .bytes,
            0
        );
    }

    #[test]
    fn everything_else_is_refused_and_left_open() {
        let flags = SocketFlags::empty();
        let fresh = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let datagram = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        let ours = crate::EventFd::new().unwrap();
        assert!(why(fresh.as_raw_fd()).contains("neither listens nor is connected"));
        assert!(why(datagram.as_raw_fd()).contains("not a Unix stream socket"));
        assert!(why(pipe.as_raw_fd()).contains("not a socket"));
        assert!(why(ours.as_fd().as_raw_fd()).contains("was not inherited"));
        assert!(why(-1).contains("no descriptor"));
        assert!(why(RawFd::MAX).contains("not open"));
        assert!(!fcntl_getfd(&pipe).unwrap().contains(FdFlags::CLOEXEC));
    }
}
