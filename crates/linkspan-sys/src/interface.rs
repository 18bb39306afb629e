//! Network interfaces of this machine: their addresses, and whether they are up.

use std::ffi::c_short;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linkspan_mem::fault::Site;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::acquire;
use crate::tap::Request;

/// Gives an interface an IPv4 address in a network of so many bits, and brings it up.
/// It needs `CAP_NET_ADMIN`. The address goes with the interface.
///
/// # Errors
/// What the system says; `InvalidInput` for a name that no interface has, or more
/// than 32 bits.
pub fn give_address(name: &str, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let host_bits = 32_u32.checked_sub(prefix_len.into()).ok_or_else(invalid)?;
    let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
    acquire(Site::Fd)?;
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = Request::new(name).map_err(|_| invalid())?;
    request.put(address);
    call(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.put(mask.into());
    call(&socket, libc::SIOCSIFNETMASK, &mut request)?;
    call(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    request.raise();
    call(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Says when something has changed of the interfaces of this machine, or rather of
/// the network namespace that this process is in (rtnetlink(7)).
#[derive(Debug)]
pub struct Interfaces {
    socket: OwnedFd,
}

impl AsFd for Interfaces {
    /// Readable when something has changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Interfaces {
    /// Watches from now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn watch() -> io::Result<Self> {
        acquire(Site::Fd)?;
        // No protocol is `NETLINK_ROUTE`.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let links = u32::try_from(libc::RTMGRP_LINK).expect("1");
        bind(&socket, &SocketAddrNetlink::new(0, links))?;
        Ok(Self { socket })
    }

    /// What has changed until now is seen; never waits.
    ///
    /// # Errors
    /// What the system says.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            // What is in the messages is asked for by name instead, so that none that is
            // lost or cut off is missed.
            match recv(&self.socket, &mut [0_u8; 1][..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether whoever owns an interface has it up, be there a carrier or not.
    ///
    /// # Errors
    /// `InvalidInput` for a name that no interface has, and what the system says.
    pub fn is_up(&self, name: &str) -> io::Result<bool> {
        let mut request = Request::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
        call(&self.socket, libc::SIOCGIFFLAGS, &mut request)?;
        Ok(request.flags() & crate::tap::short(libc::IFF_UP) != 0)
    }
}

fn call(socket: &OwnedFd, what: libc::c_ulong, request: &mut Request) -> io::Result<()> {
    // C libraries differ in the type of these 16 bits.
    let what = what as libc::Ioctl;
    // SAFETY: each request here reads or writes one `ifreq`.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request.0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Request {
    fn put(&mut self, address: Ipv4Addr) {
        let place = (&raw mut self.0.ifr_ifru).cast::<libc::sockaddr_in>();
        let family = libc::sa_family_t::try_from(libc::AF_INET).expect("2");
        let address = libc::sockaddr_in {
            sin_family: family,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from(address).to_be(),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: the union has room for a `sockaddr`, which is as large as a
        // `sockaddr_in`; nothing is assumed of how it is aligned.
        unsafe { place.write_unaligned(address) };
    }

    /// Flags that were asked for.
    fn flags(&self) -> c_short {
        // SAFETY: the kernel wrote the flags, and any bits are some.
        unsafe { self.0.ifr_ifru.ifru_flags }
    }

    /// The same, and up.
    fn raise(&mut self) {
        self.0.ifr_ifru.ifru_flags = self.flags() | crate::tap::short(libc::IFF_UP);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::tap::{Offloads, TapError, open_tap};

    #[test]
    fn what_no_interface_has_is_refused() {
        let address = Ipv4Addr::new(198, 51, 100, 1);
        for (name, bits) in [("", 24), ("a/b", 24), ("lo", 33)] {
            let error = give_address(name, address, bits).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}/{bits}");
        }
        assert!(give_address("no-such-name", address, 24).is_err());
    }

    #[test]
    fn an_interface_has_its_address_until_it_goes() {
        let (name, queues) = match open_tap("lsaddr%d", 1, Offloads::empty()) {
            Ok(opened) => opened,
            Err(error @ (TapError::NoTun | TapError::Permission(_))) => {
                eprintln!("SKIP a tap interface: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        // For documentation: nobody has it (RFC 5737).
        let address = Ipv4Addr::new(198, 51, 100, 1);
        assert!(UdpSocket::bind((address, 0)).is_err());
        let interfaces = Interfaces::watch().unwrap();
        assert!(!interfaces.is_up(&name).unwrap());
        give_address(&name, address, 30).unwrap();
        assert!(interfaces.is_up(&name).unwrap());
        let news = || {
            let mut fds = [rustix::event::PollFd::new(
                &interfaces,
                rustix::event::PollFlags::IN,
            )];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap()
        };
        assert_eq!(news(), 1, "it came up");
        assert!(UdpSocket::bind((address, 0)).is_ok());
        let operates = std::fs::read_to_string(format!("/sys/class/net/{name}/flags")).unwrap();
        let flags = i64::from_str_radix(operates.trim().trim_start_matches("0x"), 16).unwrap();
        assert_eq!(flags & i64::from(libc::IFF_UP), libc::IFF_UP.into());
        let carrier = || std::fs::read_to_string(format!("/sys/class/net/{name}/carrier")).unwrap();
        assert_eq!(carrier().trim(), "1");
        queues[0].set_carrier(false).unwrap();
        assert_eq!(carrier().trim(), "0");
        assert!(interfaces.is_up(&name).unwrap(), "but without a carrier");
        queues[0].set_carrier(true).unwrap();
        assert_eq!(carrier().trim(), "1");
        assert_eq!(queues[0].name().unwrap(), name);
        interfaces.drain().unwrap();
        drop(queues);
        // Another test's child has the queue, too, until it runs its program; and the system takes
        // the address away after the name.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let is_bindable = || UdpSocket::bind((address, 0)).is_ok();
        while interfaces.is_up(&name).is_ok() || is_bindable() {
            assert!(std::time::Instant::now() < deadline, "it does not go");
            std::thread::yield_now();
        }
    }
}
