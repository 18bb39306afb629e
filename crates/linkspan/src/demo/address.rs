//! A small network for this machine and its guest, which nothing here knows yet.

use std::fs;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Bits of each network: two hosts have room.
pub(super) const PREFIX_LEN: u8 = 30;

/// Where networks are looked for: a corner of each range for private use (RFC 1918)
/// that few people use, 64 of them in each.
const CORNERS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(172, 31, 254, 0),
    Ipv4Addr::new(192, 168, 254, 0),
    Ipv4Addr::new(10, 254, 254, 0),
];

/// A network that is this process's while it lives.
#[derive(Debug)]
pub(super) struct Network {
    start: u32,
    /// Its name among those of this machine's network; the kernel gives a name to one
    /// process at a time, so two demos never choose the same.
    _name: UnixListener,
}

impl Network {
    /// The first that is free, if there is one.
    pub(super) fn choose() -> std::io::Result<Option<Self>> {
        let known = known(&fs::read_to_string("/proc/net/fib_trie")?);
        for start in free(&known) {
            let name = format!("linkspan-demo-{}", Ipv4Addr::from(start));
            let name = SocketAddr::from_abstract_name(name)?;
            match UnixListener::bind_addr(&name) {
                Ok(name) => return Ok(Some(Self { start, _name: name })),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// This machine's address.
    pub(super) fn host(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.start + 1)
    }

    /// The guest's.
    pub(super) fn guest(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.start + 2)
    }
}

/// A network that the kernel knows: its first address and its bits.
type Known = (u32, u8);

/// The networks that overlap none of `known`.
fn free(known: &[Known]) -> impl Iterator<Item = u32> {
    let corners = CORNERS.into_iter().map(u32::from);
    let all = corners.flat_map(|corner| (0..64).map(move |number| corner + 4 * number));
    all.filter(|start| !known.iter().any(|known| overlaps(*known, *start)))
}

fn overlaps((address, bits): Known, start: u32) -> bool {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(bits.min(PREFIX_LEN)))
        .unwrap_or(0);
    (address ^ start) & mask == 0
}

/// All networks in the kernel's tables of routes, as /proc/net/fib_trie shows them:
/// an address after `|--`, then what is known of it, each as `/BITS SCOPE KIND`.
///
/// Ways to everywhere are left out, also those that some programs split into a few
/// parts: what is nearer goes before them.
fn known(table: &str) -> Vec<Known> {
    const EVERYWHERE_BITS: u8 = 7;
    let mut known = Vec::new();
    let mut address = None;
    for line in table.lines() {
        let line = line.trim_start();
        if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf.trim().parse::<Ipv4Addr>().ok().map(u32::from);
        } else if let Some(rest) = line.strip_prefix('/')
            && let Some(address) = address
        {
            let bits = rest.split(' ').next().and_then(|bits| bits.parse().ok());
            known.extend(
                bits.filter(|bits| (EVERYWHERE_BITS + 1..=32).contains(bits))
                    .map(|bits| (address, bits)),
            );
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
        /1 universe UNICAST
     |-- 192.0.2.0
        /24 link UNICAST
Local:
  +-- 127.0.0.0/8 2 0 2
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 172.31.254.1
        /32 host LOCAL
";

    fn start(address: [u8; 4]) -> u32 {
        u32::from_be_bytes(address)
    }

    #[test]
    fn networks_of_the_kernel_are_read_without_ways_to_everywhere() {
        let want = [
            (start([192, 0, 2, 0]), 24),
            (start([127, 0, 0, 1]), 32),
            (start([172, 31, 254, 1]), 32),
        ];
        assert_eq!(known(TABLE), want);
        for other in [
            "",
            "|-- x\n/24",
            "/24 link UNICAST",
            "|-- 1.2.3.4\n/33 x\n/x\n/",
        ] {
            assert_eq!(known(other), []);
        }
    }

    #[test]
    fn the_first_network_that_nobody_has_is_free() {
        let first = |known: &[Known]| free(known).next();
        assert_eq!(first(&[]), Some(start([172, 31, 254, 0])));
        // An address in it, one beside it, a larger network around it.
        assert_eq!(first(&known(TABLE)), Some(start([172, 31, 254, 4])));
        assert_eq!(
            first(&[(start([172, 31, 254, 4]), 32)]),
            Some(start([172, 31, 254, 0]))
        );
        assert_eq!(
            first(&[(start([172, 16, 0, 0]), 12)]),
            Some(start([192, 168, 254, 0]))
        );
        let all = [(172, 31), (192, 168), (10, 254)];
        let all = all.map(|(a, b)| (start([a, b, 0, 0]), 16));
        assert_eq!(first(&all), None);
    }

    #[test]
    fn two_networks_at_a_time_are_two() {
        let [first, second] = [(); 2].map(|()| Network::choose().unwrap().unwrap());
        assert_ne!(first.start, second.start);
        let start = first.start;
        assert_eq!(u32::from(first.host()), start + 1);
        assert_eq!(u32::from(first.guest()), start + 2);
        drop(first);
        assert!(Network::choose().unwrap().unwrap().start <= start);
    }
}
