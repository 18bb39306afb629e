//! Depths at the begin of private data: how ends of SMB Direct over iWARP told them before
//! the set-up had a place for that, and still do ([MS-SMBD] appendix A).
//!
//! Eight bytes, two big-endian numbers: the reads that the sender answers, and those it
//! asks. Old Linux writes them little-endian.

use crate::verbs::Depth;

/// Bytes of the header.
pub const HEADER: usize = 8;

/// More than any set-up can express.
const MAX: u32 = 0x3FFE;

/// What private data says of its sender, in either byte order and no more than a set-up
/// can express; `None` if it is too short for that.
#[must_use]
pub fn read(private_data: &[u8]) -> Option<Depth> {
    let bytes: [u8; HEADER] = *private_data.first_chunk()?;
    let [a, b, c, d, e, f, g, h] = bytes;
    let big = [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ];
    // Nobody has 65,536 reads under way, and few of 256: what is that large as it stands
    // and small when turned around was written the other way round.
    let turned = big.map(u32::swap_bytes);
    let is_small = |words: [u32; 2]| words.iter().all(|word| *word <= 0xFFFF);
    let words = if !is_small(big) && is_small(turned) {
        turned
    } else {
        big
    };
    let [inbound, outbound] = words.map(|word| u16::try_from(word.min(MAX)).unwrap_or(0));
    Some(Depth { inbound, outbound })
}

/// The header, as its sender says it of itself.
#[must_use]
pub fn write(depth: Depth) -> [u8; HEADER] {
    let [inbound, outbound] = [depth.inbound, depth.outbound].map(|it| u32::from(it).to_be_bytes());
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&inbound);
    bytes[4..].copy_from_slice(&outbound);
    bytes
}

/// What holds at an acceptor, and the header that it answers with: the numbers of the
/// other end, each no more than what is possible here. `None` if nothing could be read
/// either way, which is a reason to reject.
#[must_use]
pub fn answer(own: Depth, peer: Depth) -> Option<(Depth, [u8; HEADER])> {
    let agreed = Depth {
        inbound: own.inbound.min(peer.outbound),
        outbound: own.outbound.min(peer.inbound),
    };
    let header = write(Depth {
        inbound: agreed.outbound,
        outbound: agreed.inbound,
    });
    (agreed.inbound > 0 || agreed.outbound > 0).then_some((agreed, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(inbound: u16, outbound: u16) -> Depth {
        Depth { inbound, outbound }
    }

    /// k:ef71f1e0, k:fad988a2: the wrong byte order, and 8 bits of it.
    #[test]
    fn either_byte_order_is_understood() {
        for (bytes, expected) in [
            (*b"\0\0\0\x20\0\0\0\x01", depth(32, 1)),
            // Linux 6.12.
            (*b"\x20\0\0\0\x01\0\0\0", depth(32, 1)),
            (*b"\0\0\0\x20\0\0\0\0", depth(32, 0)),
            (*b"\x20\0\0\0\0\0\0\0", depth(32, 0)),
            (*b"\0\0\0\0\0\0\0\0", depth(0, 0)),
            (*b"\0\0\x01\x2C\0\0\0\x10", depth(300, 16)),
            (*b"\xFF\xFF\xFF\xFF\0\0\0\x01", depth(0x3FFE, 1)),
            (*b"\0\0\xFF\xFF\0\0\xFF\xFF", depth(0x3FFE, 0x3FFE)),
        ] {
            assert_eq!(read(&bytes), Some(expected), "{bytes:?}");
        }
        assert_eq!(read(b"\0\0\0\x20\0\0\0"), None);
        assert_eq!(read(b""), None);
        let long = [&write(depth(300, 7))[..], b"more"].concat();
        assert_eq!(read(&long), Some(depth(300, 7)));
    }

    #[test]
    fn an_answer_has_no_more_than_either_end() {
        let (agreed, header) = answer(depth(1, 8), depth(32, 1)).unwrap();
        assert_eq!(agreed, depth(1, 8));
        assert_eq!(header, *b"\0\0\0\x08\0\0\0\x01");
        let (agreed, _) = answer(depth(16, 200), depth(32, 0)).unwrap();
        assert_eq!(agreed, depth(0, 32));
        assert_eq!(answer(depth(8, 8), depth(0, 0)), None);
    }
}
