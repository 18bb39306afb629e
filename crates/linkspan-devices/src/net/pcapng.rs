//! Frames as a file that Wireshark and others read: pcapng
//! (draft-ietf-opsawg-pcapng), one interface for each port.

use alloc::vec::Vec;

const SECTION: u32 = 0x0A0D_0D0A;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

/// The byte order of what follows.
const MAGIC: u32 = 0x1A2B_3C4D;

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// Bytes that the length of a string may have: what a reader is sure to take.
const NAME_MAX: usize = 255;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It comes from whoever is behind the port.
    In,
    /// It goes to whoever is behind the port.
    Out,
}

/// When, where and how long a frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of the port, in the order in which they were described.
    pub port: u32,
    /// Which way it went.
    pub way: Way,
    /// Nanoseconds since 1970.
    pub nanos: u64,
    /// Bytes of it, of which fewer may be written.
    pub len: u32,
}

/// What stands before all blocks of a file.
pub fn begin(to: &mut Vec<u8>, program: &str) {
    block(to, SECTION, |to| {
        put(to, &[MAGIC]);
        // Version 1.0; the length is not known.
        to.extend([1_u16.to_le_bytes(), 0_u16.to_le_bytes()].concat());
        put(to, &[u32::MAX, u32::MAX]);
        option(to, 4, name(program));
        end_of_options(to);
    });
}

/// A port. Of its frames `snap_length` bytes are written at most.
pub fn port(to: &mut Vec<u8>, name_of_it: &str, snap_length: u32) {
    block(to, INTERFACE, |to| {
        put(to, &[ETHERNET, snap_length]);
        option(to, 2, name(name_of_it));
        // Time in units of 10^-9 seconds.
        option(to, 9, &[9]);
        end_of_options(to);
    });
}

/// A frame, or its first bytes.
pub fn frame(to: &mut Vec<u8>, seen: &Seen, bytes: &[u8]) {
    block(to, PACKET, |to| {
        let captured = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let [high, low] = halves(seen.nanos);
        put(to, &[seen.port, high, low, captured, seen.len]);
        padded(to, bytes);
        let way: u32 = match seen.way {
            Way::In => 1,
            Way::Out => 2,
        };
        option(to, 2, &way.to_le_bytes());
        end_of_options(to);
    });
}

/// How many frames of a port are in the file, and how many are missing.
pub fn counts(to: &mut Vec<u8>, port: u32, nanos: u64, (written, missing): (u64, u64)) {
    block(to, STATISTICS, |to| {
        let [high, low] = halves(nanos);
        put(to, &[port, high, low]);
        option(to, 4, &(written + missing).to_le_bytes());
        option(to, 5, &missing.to_le_bytes());
        end_of_options(to);
    });
}

/// The length of a block stands at its beginning and at its end.
fn block(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    put(to, &[kind, 0]);
    body(to);
    let len = u32::try_from(to.len() - start + 4).unwrap_or(u32::MAX);
    put(to, &[len]);
    to[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
}

fn put(to: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        to.extend(word.to_le_bytes());
    }
}

fn padded(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(bytes);
    let more = bytes.len().next_multiple_of(4) - bytes.len();
    to.extend(&[0; 3][..more]);
}

fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    to.extend([code.to_le_bytes(), len.to_le_bytes()].concat());
    padded(to, value);
}

fn end_of_options(to: &mut Vec<u8>) {
    put(to, &[0]);
}

fn halves(nanos: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = nanos.to_be_bytes();
    [
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    ]
}

/// As much of a text as fits, whole characters only.
fn name(text: &str) -> &[u8] {
    let mut end = text.len().min(NAME_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_length_at_both_ends_and_whole_words() {
        let mut file = Vec::new();
        begin(&mut file, "program");
        port(&mut file, &"ä".repeat(200), 100);
        for len in 0..9_u32 {
            let seen = Seen {
                port: 0,
                way: Way::Out,
                nanos: 0x1_0000_0002,
                len,
            };
            frame(&mut file, &seen, &[7; 9][..len as usize]);
        }
        counts(&mut file, 0, 5, (9, 1));
        let word = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let len = word(at + 4) as usize;
            assert!(len.is_multiple_of(4));
            assert_eq!(word(at + len - 4), word(at + 4));
            kinds.push(word(at));
            if word(at) == PACKET {
                assert_eq!((word(at + 12), word(at + 16)), (1, 2));
                assert_eq!(word(at + 20), word(at + 24));
            }
            at += len;
        }
        assert_eq!(kinds[..3], [SECTION, INTERFACE, PACKET]);
        assert_eq!((kinds.len(), kinds.last()), (12, Some(&STATISTICS)));
        // Of the name no character is cut.
        assert_eq!(name(&"ä".repeat(200)).len(), 254);
    }
}
