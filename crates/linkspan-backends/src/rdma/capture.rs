//! What goes over connections, written to a file for Wireshark.
//!
//! The kernel's packets are not seen from here: each piece of the stream becomes one with
//! the addresses of its connection, and each connection begins with a handshake, without
//! which nobody looks for MPA in it.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use linkspan_sys::tcp::TcpStream;

/// `LINKTYPE_RAW`: packets begin with the header of IP.
const LINK_TYPE: u32 = 101;
const SNAP_LENGTH: u32 = 1 << 18;
/// Bytes of the stream in one packet: with its headers it has to stay below 64 KiB.
const SEGMENT: usize = 60_000;
/// Headers of IP and TCP.
const HEADERS: usize = 40;

const SYN: u8 = 0x02;
const PUSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

/// How far a connection is.
#[derive(Debug, Default)]
pub(super) struct Trace(Option<Box<Tracked>>);

#[derive(Debug)]
struct Tracked {
    ends: [End; 2],
    frames: [Frames; 2],
}

/// Where frames of MPA begin and end in one direction: a packet for each is what
/// Wireshark decodes best.
#[derive(Debug, Default)]
struct Frames {
    /// What is known of a header of which something is missing.
    header: [u8; REQUEST],
    have: usize,
    /// Bytes that the frame lacks.
    left: usize,
    /// Whether the request, or the reply, is over.
    set_up: bool,
}

/// Bytes of a request or reply of MPA, and of the length that begins a frame.
const REQUEST: usize = 20;
const LENGTH: usize = 2;

impl Frames {
    /// How many of these bytes, one at least, belong to one frame.
    fn first(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        if self.left == 0 {
            let whole = if self.set_up { LENGTH } else { REQUEST };
            used = bytes.len().min(whole - self.have);
            self.header[self.have..self.have + used].copy_from_slice(&bytes[..used]);
            self.have += used;
            if self.have < whole {
                return used;
            }
            let [high, low] = [self.header[whole - 2], self.header[whole - 1]];
            let len = usize::from(u16::from_be_bytes([high, low]));
            self.left = if self.set_up {
                // Padding, and a checksum.
                (LENGTH + len).next_multiple_of(4) + 4 - LENGTH
            } else {
                len
            };
            (self.have, self.set_up) = (0, true);
        }
        let rest = self.left.min(bytes.len() - used);
        self.left -= rest;
        used + rest
    }
}

/// One end of a connection: here, or there.
#[derive(Clone, Copy, Debug)]
struct End {
    address: [u8; 4],
    port: u16,
    /// The number of its next byte.
    next: u32,
}

#[derive(Debug)]
pub(super) struct Capture {
    /// Nothing after the first error.
    file: Option<BufWriter<File>>,
}

impl Capture {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut file = BufWriter::new(file);
        file.write_all(&0xA1B2_C3D4_u32.to_le_bytes())?;
        file.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        file.write_all(&SNAP_LENGTH.to_le_bytes())?;
        file.write_all(&LINK_TYPE.to_le_bytes())?;
        file.flush()?;
        Ok(Self { file: Some(file) })
    }

    /// Bytes that were written or read.
    pub(super) fn write(
        &mut self,
        trace: &mut Trace,
        stream: &TcpStream,
        way: Way,
        parts: &[&[u8]],
    ) {
        let bytes = parts.concat();
        if let Some(file) = &mut self.file
            && write(file, trace, stream, way, &bytes).is_err()
        {
            self.file = None;
        }
    }
}

fn write(
    file: &mut BufWriter<File>,
    trace: &mut Trace,
    stream: &TcpStream,
    way: Way,
    bytes: &[u8],
) -> io::Result<()> {
    if trace.0.is_none() {
        let mut ends = [end(stream.address()?, 1), end(stream.peer()?, 2)];
        // Whoever sends the first bytes is the one that connected: MPA's initiator.
        let from = usize::from(way == Way::In);
        packet(file, &mut ends, from, SYN, &[])?;
        packet(file, &mut ends, 1 - from, SYN | ACK, &[])?;
        packet(file, &mut ends, from, ACK, &[])?;
        let frames = <[Frames; 2]>::default();
        trace.0 = Some(Box::new(Tracked { ends, frames }));
    }
    let Some(tracked) = &mut trace.0 else {
        return Ok(());
    };
    let from = usize::from(way == Way::In);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (frame, behind) = rest.split_at(tracked.frames[from].first(rest));
        for part in frame.chunks(SEGMENT) {
            packet(file, &mut tracked.ends, from, PUSH | ACK, part)?;
        }
        rest = behind;
    }
    file.flush()
}

/// Addresses of IPv6 become ones of this end and the other.
fn end(address: SocketAddr, number: u8) -> End {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [10, 0, 0, number],
    };
    End {
        address: octets,
        port: address.port(),
        next: 0,
    }
}

fn packet(
    file: &mut BufWriter<File>,
    ends: &mut [End; 2],
    from: usize,
    flags: u8,
    bytes: &[u8],
) -> io::Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let len = HEADERS + bytes.len();
    let (source, target) = (ends[from], ends[1 - from]);
    // At most 60,040.
    let len_16 = u16::try_from(len).unwrap_or(u16::MAX);
    let len_32 = u32::from(len_16);
    let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    for word in [seconds, now.subsec_micros(), len_32, len_32] {
        file.write_all(&word.to_le_bytes())?;
    }
    let [high, low] = len_16.to_be_bytes();
    // Version, length, identification, fragment, time to live, protocol; no checksum.
    file.write_all(&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0])?;
    file.write_all(&source.address)?;
    file.write_all(&target.address)?;
    file.write_all(&source.port.to_be_bytes())?;
    file.write_all(&target.port.to_be_bytes())?;
    file.write_all(&source.next.to_be_bytes())?;
    let acknowledged = if flags & ACK == 0 { 0 } else { target.next };
    file.write_all(&acknowledged.to_be_bytes())?;
    // Length, flags, window; no checksum, nothing urgent.
    file.write_all(&[0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0])?;
    file.write_all(bytes)?;
    let counted = bytes.len() + usize::from(flags & SYN != 0);
    let counted = u32::try_from(counted).unwrap_or(0);
    ends[from].next = source.next.wrapping_add(counted);
    Ok(())
}
