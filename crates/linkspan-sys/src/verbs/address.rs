//! Addresses as the C libraries have them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// What C calls a `sockaddr`, of either family.
pub(super) fn write(address: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: a structure of numbers.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let place = &raw mut storage;
    match address {
        SocketAddr::V4(v4) => {
            let sockaddr = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a storage has room and alignment for any address.
            unsafe { place.cast::<libc::sockaddr_in>().write(sockaddr) };
        }
        SocketAddr::V6(v6) => {
            let sockaddr = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo().to_be(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(sockaddr) };
        }
    }
    storage
}

/// What C calls a `sockaddr`; `None` for other families.
pub(super) fn read(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let place = &raw const *storage;
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: that is what its family says it is.
            let v4 = unsafe { place.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { place.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            let flow = u32::from_be(v6.sin6_flowinfo);
            Some(SocketAddrV6::new(ip, port, flow, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn family(number: i32) -> libc::sa_family_t {
    // 2 and 10.
    libc::sa_family_t::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_come_back() {
        for text in ["192.0.2.1:5445", "[2001:db8::7]:445", "[fe80::1%3]:9"] {
            let address = text.parse().unwrap();
            assert_eq!(super::read(&super::write(address)), Some(address));
        }
        // SAFETY: a structure of numbers.
        let none = unsafe { std::mem::zeroed() };
        assert_eq!(super::read(&none), None);
    }
}
