//! A connection over which bytes and descriptors travel together.

use crate::poll::{Direction, Wake, wait_for};
use crate::reaper;
use rustix::io::Errno;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketType, getpeername,
    recvmsg, sendmsg, shutdown,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// The most descriptors that the kernel lets one message carry (`SCM_MAX_FD`).
/// There is room for all of them, so that control data is cut only if this
/// process runs out of descriptors.
const SCM_MAX_FD: usize = 253;

const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(SCM_MAX_FD), ScmCredentials(1));

/// A connected Unix stream socket.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
}

/// What one call of [`Stream::receive`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes written to the buffer; zero means that the peer closed.
    pub bytes: usize,
    /// Descriptors that came beyond the allowed number. They are closed already.
    pub surplus: usize,
}

/// Some descriptors of a message were lost, since this process may not open as
/// many. None of the message's descriptors is kept. [`Stream::receive`] reports
/// it inside an [`io::Error`]; the stream cannot be used further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "descriptors of a message were lost, {arrived} arrived: raise the limit of open files (ulimit -n)"
)]
pub struct ControlTruncated {
    /// How many descriptors did arrive. They are closed already.
    pub arrived: usize,
}

/// Who is at the other end, as the kernel saw it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process id; `None` if the process cannot be seen from our namespace.
    pub pid: Option<u32>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Stream {
    pub(super) fn of(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Accepts a descriptor from a peer if it is a Unix stream socket that is
    /// connected. Asks only what every descriptor answers without waiting.
    ///
    /// # Errors
    /// `InvalidInput`; the descriptor is then closed by the [`reaper`].
    pub fn check(fd: OwnedFd) -> io::Result<Self> {
        let connected = socket_type(&fd) == Ok(SocketType::STREAM)
            && socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && getpeername(&fd).is_ok();
        if !connected {
            reaper::dispose(fd);
            let text = "the descriptor is not a connected Unix stream socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { socket: fd })
    }

    /// Reads what is there, without waiting, and appends the descriptors that
    /// came with it to `fds`, at most `max_fds` of them. They have the
    /// close-on-exec flag and are **unchecked**: each one goes through
    /// [`crate::PeerMemory::check`], [`crate::PeerEventFd::check`] or
    /// [`reaper::dispose`].
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; [`ControlTruncated`]; what
    /// `recvmsg(2)` reports. No error leaves a descriptor in `fds`.
    pub fn receive(
        &self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        max_fds: usize,
    ) -> io::Result<Received> {
        assert!(
            !buffer.is_empty(),
            "no bytes would look like the end of the stream"
        );
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = loop {
            let mut parts = [IoSliceMut::new(buffer)];
            match recvmsg(&self.socket, &mut parts, &mut control, flags) {
                Err(Errno::INTR) => {}
                done => break done?,
            }
        };
        let cut = message.flags.contains(ReturnFlags::CTRUNC);
        let allowed = if cut { 0 } else { max_fds };
        let (mut taken, mut surplus) = (0, 0);
        for part in control.drain() {
            // Credentials and the like are not asked for and mean nothing here.
            let RecvAncillaryMessage::ScmRights(arrived) = part else {
                continue;
            };
            for fd in arrived {
                if taken < allowed {
                    taken += 1;
                    fds.push(fd);
                } else {
                    surplus += 1;
                    reaper::dispose(fd);
                }
            }
        }
        if cut {
            return Err(io::Error::other(ControlTruncated { arrived: surplus }));
        }
        Ok(Received {
            bytes: message.bytes,
            surplus,
        })
    }

    /// Writes all of `bytes`; `fds` travel with the first of them. Waits for
    /// room in the socket until `deadline`.
    ///
    /// # Errors
    /// `TimedOut` if the peer did not make room in time, `BrokenPipe` if it is
    /// gone, `InvalidInput` for descriptors without bytes or more than 253 of
    /// them. After an error a part may have been sent: the connection is of no
    /// further use.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<()> {
        let mut sent = self.send_some(bytes, fds, deadline)?;
        while sent < bytes.len() {
            sent += self.send_some(&bytes[sent..], &[], deadline)?;
        }
        Ok(())
    }

    /// Writes as many of `bytes` as there is room for; perhaps none.
    ///
    /// # Errors
    /// `BrokenPipe` if the peer is gone.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.send_some(bytes, &[], Instant::now()) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(0),
            sent => sent,
        }
    }

    /// Nothing more comes in or goes out: the peer's next message fails, for sure. What
    /// came before can still be read.
    ///
    /// # Errors
    /// What `shutdown(2)` reports.
    pub fn shut(&self) -> io::Result<()> {
        Ok(shutdown(&self.socket, Shutdown::Both)?)
    }

    /// Who connected, or whom we connected to (`SO_PEERCRED`).
    ///
    /// # Errors
    /// What `getsockopt(2)` reports.
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        let mut found = libc::ucred {
            pid: 0,
            uid: u32::MAX,
            gid: u32::MAX,
        };
        let mut len = libc::socklen_t::try_from(size_of_val(&found)).expect("12 bytes");
        // rustix would make a non-zero pid of it, and a peer outside of our
        // pid namespace has the number 0.
        // SAFETY: both pointers are to values of ours that live through the
        // call, and `len` is the size of the first.
        let status = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut len,
            )
        };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(PeerCredentials {
            pid: u32::try_from(found.pid).ok().filter(|&pid| pid != 0),
            uid: found.uid,
            gid: found.gid,
        })
    }

    fn send_some(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<usize> {
        if bytes.is_empty() && fds.is_empty() {
            return Ok(0);
        }
        if bytes.is_empty() || fds.len() > SCM_MAX_FD {
            let text = format!(
                "{} descriptors cannot travel with {} bytes",
                fds.len(),
                bytes.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                let fits = control.push(SendAncillaryMessage::ScmRights(fds));
                assert!(fits, "the space is for as many as a message can carry");
            }
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.await_room(deadline)?,
                done => return Ok(done?),
            }
        }
    }

    fn await_room(&self, deadline: Instant) -> io::Result<()> {
        match wait_for(self.as_fd(), Direction::Write, None, Some(deadline))? {
            Wake::Deadline => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer does not read what we send",
            )),
            Wake::Ready | Wake::Cancelled => Ok(()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        stream.socket
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_child;
    use crate::{EventFd, PeerEventFd};
    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::net::sockopt::{set_socket_passcred, set_socket_send_buffer_size};
    use rustix::process::{Resource, Rlimit, setrlimit};
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn bytes_and_descriptors_travel_together() {
        let (one, other) = Stream::pair().unwrap();
        let event = EventFd::new().unwrap();
        one.send(b"kick", &[event.as_fd()], soon()).unwrap();
        one.send(b"call", &[], soon()).unwrap();
        let (mut buffer, mut fds) = ([0; 64], Vec::new());
        let got = other.receive(&mut buffer, &mut fds, 8).unwrap();
        // A message with descriptors is a border: its bytes come alone or first.
        assert!(buffer[..got.bytes].starts_with(b"kick"));
        assert_eq!((got.surplus, fds.len()), (0, 1));
        assert!(fcntl_getfd(&fds[0]).unwrap().contains(FdFlags::CLOEXEC));
        let theirs = PeerEventFd::check(fds.remove(0)).unwrap();
        assert_eq!(theirs.signal().unwrap(), crate::eventfd::Delivery::Sent);
        assert_eq!(event.drain().unwrap(), 1);
    }

    #[test]
    fn descriptors_that_are_no_connection_are_refused() {
        let (one, _other) = Stream::pair().unwrap();
        let same = one.as_fd().try_clone_to_owned().unwrap();
        assert!(Stream::check(same).is_ok());
        let event: OwnedFd = EventFd::new().unwrap().into();
        let alone = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let (datagrams, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        for fd in [event, alone, datagrams.into()] {
            let refused = Stream::check(fd).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn empty_stream_and_end_of_stream_differ() {
        let (one, other) = Stream::pair().unwrap();
        let nothing = one.receive(&mut [0; 4], &mut Vec::new(), 8).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        drop(other);
        let end = one.receive(&mut [0; 4], &mut Vec::new(), 8).unwrap();
        assert_eq!(end.bytes, 0);
        let gone = one.send(b"x", &[], soon()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }

    /// What came before can be read, and nothing comes after it.
    #[test]
    fn a_socket_that_is_shut_gives_what_had_come() {
        let (one, other) = Stream::pair().unwrap();
        other.send(b"before", &[], soon()).unwrap();
        one.shut().unwrap();
        let gone = other.send(b"after", &[], soon()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
        let mut buffer = [0; 16];
        let got = one.receive(&mut buffer, &mut Vec::new(), 0).unwrap();
        assert_eq!(&buffer[..got.bytes], b"before");
        let end = one.receive(&mut buffer, &mut Vec::new(), 0).unwrap();
        assert_eq!(end.bytes, 0);
    }

    #[test]
    fn surplus_descriptors_are_counted_and_closed() {
        let (one, other) = Stream::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let many = vec![writer.as_fd(); SCM_MAX_FD];
        one.send(b"x", &many, soon()).unwrap();
        drop(writer);
        let mut fds = Vec::new();
        let got = other.receive(&mut [0; 4], &mut fds, 8).unwrap();
        assert_eq!((got.bytes, got.surplus, fds.len()), (1, SCM_MAX_FD - 8, 8));
        drop(fds);
        // The pipe ends only if not one of its writers is left open.
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn lost_descriptors_are_an_error_of_their_own() {
        in_child(
            "socket::stream::tests::lost_descriptors_are_an_error_of_their_own",
            || {
                let (one, other) = Stream::pair().unwrap();
                let event = EventFd::new().unwrap();
                // The thread of the reaper must not need descriptors below.
                reaper::dispose(event.try_clone().unwrap().into());
                one.send(b"x", &[event.as_fd(); 16], soon()).unwrap();
                let next = event.try_clone().unwrap();
                let limit = u64::try_from(next.as_fd().as_raw_fd()).unwrap() + 4;
                drop(next);
                let limit = Rlimit {
                    current: Some(limit),
                    maximum: Some(limit),
                };
                setrlimit(Resource::Nofile, limit).unwrap();
                let mut fds = Vec::new();
                let error = other.receive(&mut [0; 4], &mut fds, 8).unwrap_err();
                let cut = error
                    .get_ref()
                    .unwrap()
                    .downcast_ref::<ControlTruncated>()
                    .unwrap();
                assert!((1..16).contains(&cut.arrived), "{cut}");
                assert!(fds.is_empty());
            },
        )
        .assert_success();
    }

    #[test]
    fn unasked_credentials_are_ignored() {
        let (one, other) = Stream::pair().unwrap();
        set_socket_passcred(&other, true).unwrap();
        let event = EventFd::new().unwrap();
        one.send(b"x", &[event.as_fd()], soon()).unwrap();
        let mut fds = Vec::new();
        let got = other.receive(&mut [0; 4], &mut fds, 8).unwrap();
        assert_eq!((got.bytes, got.surplus, fds.len()), (1, 0, 1));
    }

    #[test]
    fn peer_that_never_reads_does_not_hold_us() {
        let (one, _other) = Stream::pair().unwrap();
        set_socket_send_buffer_size(&one, 4096).unwrap();
        let error = one.send(&[0; 1 << 20], &[], Instant::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn long_message_is_sent_in_parts_with_its_descriptors_once() {
        let (one, other) = Stream::pair().unwrap();
        set_socket_send_buffer_size(&one, 4096).unwrap();
        let event = EventFd::new().unwrap();
        let bytes: Vec<u8> = (0..1 << 20)
            .map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1])
            .collect();
        let (mut got, mut fds, mut buffer) = (Vec::new(), Vec::new(), [0; 5000]);
        std::thread::scope(|scope| {
            scope.spawn(|| one.send(&bytes, &[event.as_fd()], soon()).unwrap());
            while got.len() < bytes.len() {
                wait_for(other.as_fd(), Direction::Read, None, Some(soon())).unwrap();
                let part = other.receive(&mut buffer, &mut fds, 8).unwrap();
                got.extend_from_slice(&buffer[..part.bytes]);
            }
        });
        assert!(got == bytes);
        assert_eq!(fds.len(), 1);
    }

    #[test]
    fn descriptors_need_bytes_and_have_a_limit() {
        let (one, _other) = Stream::pair().unwrap();
        let event = EventFd::new().unwrap();
        let alone = one.send(b"", &[event.as_fd()], soon()).unwrap_err();
        assert_eq!(alone.kind(), io::ErrorKind::InvalidInput);
        let many = one
            .send(b"x", &[event.as_fd(); SCM_MAX_FD + 1], soon())
            .unwrap_err();
        assert_eq!(many.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn peer_is_known() {
        let (one, _other) = Stream::pair().unwrap();
        let peer = one.peer_credentials().unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert_eq!(peer.gid, rustix::process::getgid().as_raw());
    }
}
