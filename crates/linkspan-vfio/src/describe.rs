//! Messages in words, for people who watch a link: by the table that sessions work by.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use zerocopy::FromBytes as _;

use crate::message::Command;
use crate::wire::{
    Access, DeviceInfo, DmaAccess, DmaMapBody, DmaUnmapBody, HEADER_BYTES, Header, IoFds, IrqInfo,
    IrqSet, PLANE_REFUSED, PlaneBuffer, PlaneInfo, RegionInfo, Version, head,
};

/// Bytes of a body that are looked at.
const BODY_SEEN: usize = 512;

/// Messages cut out of a stream as it goes by, in either direction. What is no message is for
/// the session to judge.
#[derive(Debug, Default)]
pub struct Watcher {
    /// The header, and what is looked at of the body.
    seen: Vec<u8>,
    /// Bytes of the body that are to come.
    left: usize,
    fds: usize,
}

/// A message that went by, in words once somebody wants them.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    header: Header,
    body: &'a [u8],
    fds: usize,
}

impl Watcher {
    /// Takes bytes with so many descriptors, and says each message that is whole by now.
    pub fn take(&mut self, mut bytes: &[u8], fds: usize, mut each: impl FnMut(Said<'_>)) {
        self.fds += fds;
        while !bytes.is_empty() || self.is_whole() {
            if self.seen.len() < HEADER_BYTES {
                let (now, later) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.seen.len()));
                self.seen.extend_from_slice(now);
                bytes = later;
                let Ok(header) = Header::read_from_bytes(&self.seen) else {
                    return;
                };
                let size = usize::try_from(header.size).unwrap_or(usize::MAX);
                self.left = size.saturating_sub(HEADER_BYTES);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.left));
            let room = (HEADER_BYTES + BODY_SEEN).saturating_sub(self.seen.len());
            self.seen.extend_from_slice(&now[..now.len().min(room)]);
            self.left -= now.len();
            bytes = later;
            if !self.is_whole() {
                return;
            }
            if let Some((header, body)) = head::<Header>(&self.seen) {
                let fds = self.fds;
                each(Said { header, body, fds });
            }
            self.seen.clear();
            self.fds = 0;
        }
    }

    fn is_whole(&self) -> bool {
        self.seen.len() >= HEADER_BYTES && self.left == 0
    }
}

impl Said<'_> {
    /// Whether it is one of those that a driver's every access makes, or a device's.
    #[must_use]
    pub fn is_access(&self) -> bool {
        use Command as C;
        let all = [
            C::RegionRead,
            C::RegionWrite,
            C::DmaRead,
            C::DmaWrite,
            C::RegionWriteMulti,
            C::QueryGfxPlane,
        ];
        all.iter().any(|it| it.code() == self.header.command)
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { header, body, fds } = *self;
        let row = Command::row(header.command);
        let mut text = match row {
            Some(row) => row.name.into(),
            None => format!("message {}", header.command),
        };
        let is_reply = header.flags & Header::TYPE_MASK == Header::REPLY;
        if is_reply {
            text += " reply";
        }
        let error = header.flags & Header::ERROR != 0;
        let said = match row {
            Some(row) if !error => words(row.command, is_reply, body),
            _ => None,
        };
        if let Some(words) = said {
            let _ = write!(text, ": {words}");
        } else if error {
            let _ = write!(text, ": error {}", header.error);
        } else if header.size as usize > HEADER_BYTES {
            let _ = write!(text, ": {} bytes", header.size as usize - HEADER_BYTES);
        }
        if !is_reply && header.flags & Header::NO_REPLY != 0 {
            text += ", wants no reply";
        }
        if fds > 0 {
            let _ = write!(text, ", {fds} fds");
        }
        text
    }
}

/// What a body says; `None` for one that is not what the table says, or that has no words.
fn words(command: Command, is_reply: bool, body: &[u8]) -> Option<String> {
    use Command as C;
    Some(match command {
        C::Version => {
            let (Version { major, minor }, data) = head(body)?;
            let end = data.iter().position(|byte| *byte == 0);
            let data = String::from_utf8_lossy(&data[..end.unwrap_or(data.len())]);
            format!("{major}.{minor} {data}")
        }
        C::DmaMap => {
            let (map, _) = head::<DmaMapBody>(body)?;
            format!(
                "{:#x} bytes at {:#x}, file {:#x}, flags {:#x}",
                map.size, map.address, map.offset, map.flags
            )
        }
        C::DmaUnmap => {
            let (map, _) = head::<DmaUnmapBody>(body)?;
            let (size, address, flags) = (map.size, map.address, map.flags);
            format!("{size:#x} bytes at {address:#x}, flags {flags:#x}")
        }
        C::DeviceGetInfo => {
            let (info, _) = head::<DeviceInfo>(body)?;
            let (regions, irqs, flags) = (info.num_regions, info.num_irqs, info.flags);
            match is_reply {
                true => format!("{regions} regions, {irqs} kinds of interrupts, flags {flags:#x}"),
                false => String::new(),
            }
        }
        C::DeviceGetRegionInfo => {
            let (info, _) = head::<RegionInfo>(body)?;
            let (index, size, flags) = (info.index, info.size, info.flags);
            match is_reply {
                true => format!("region {index}, {size:#x} bytes, flags {flags:#x}"),
                false => format!("region {index}"),
            }
        }
        C::DeviceGetRegionIoFds => {
            let (fds, _) = head::<IoFds>(body)?;
            match is_reply {
                true => format!("region {}, {} parts", fds.index, fds.count),
                false => format!("region {}", fds.index),
            }
        }
        C::DeviceGetIrqInfo => {
            let (info, _) = head::<IrqInfo>(body)?;
            let (index, count, flags) = (info.index, info.count, info.flags);
            match is_reply {
                true => format!("kind {index}, {count} of it, flags {flags:#x}"),
                false => format!("kind {index}"),
            }
        }
        C::DeviceSetIrqs if !is_reply => {
            let (set, _) = head::<IrqSet>(body)?;
            let (index, start, count, flags) = (set.index, set.start, set.count, set.flags);
            format!("kind {index}, {count} from {start} on, flags {flags:#x}")
        }
        C::RegionRead | C::RegionWrite => {
            let (access, data) = head::<Access>(body)?;
            let (region, offset, count) = (access.region, access.offset, access.count);
            let place = format!("region {region}, {count} bytes at {offset:#x}");
            match value(count, data) {
                Some(value) => format!("{place}: {value:#x}"),
                None => place,
            }
        }
        C::DmaRead | C::DmaWrite => {
            let (DmaAccess { address, count }, _) = head(body)?;
            format!("{count} bytes at {address:#x}")
        }
        C::RegionWriteMulti => {
            let (count, _) = head::<u64>(body)?;
            format!("{count} writes")
        }
        C::QueryGfxPlane => {
            let (plane, words) = head::<PlaneInfo>(body)?;
            match is_reply {
                true if plane.flags & PLANE_REFUSED != 0 => {
                    format!("not shown: {}", words.escape_ascii())
                }
                true => format!(
                    "{} by {}, format {:#x}, handle {}, flags {:#x}",
                    plane.width, plane.height, plane.format, plane.handle, plane.flags
                ),
                false => format!("type {}, flags {:#x}", plane.plane_type, plane.flags),
            }
        }
        C::GetGfxDmabuf => match is_reply {
            true => {
                let (buffer, _) = head::<PlaneBuffer>(body)?;
                let (id, len, offset) = (buffer.id, buffer.len, buffer.offset);
                format!("id {id}, {len:#x} bytes, the plane at {offset:#x}")
            }
            false => format!("id {}", head::<u32>(body)?.0),
        },
        _ => return None,
    })
}

/// The value of an access that is a register's, or of its reply.
fn value(count: u32, data: &[u8]) -> Option<u64> {
    let count = usize::try_from(count).ok().filter(|count| *count <= 8)?;
    let data = data.get(..count).filter(|data| !data.is_empty())?;
    let mut bytes = [0; 8];
    bytes[..count].copy_from_slice(data);
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::framing::message;

    fn said(bytes: &[u8], fds: usize) -> Vec<String> {
        let mut all = Vec::new();
        Watcher::default().take(bytes, fds, |said| all.push(said.text()));
        all
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn messages_say_what_they_hold() {
        let (reply, error) = (Header::REPLY, Header::ERROR);
        let access = bytes(&[0x10, 4 << 32 | 2]);
        let value = 0x1234_u32.to_ne_bytes();
        let version = [&[0, 0, 1, 0][..], b"{\"capabilities\":{}}\0"].concat();
        for (message, fds, text) in [
            (
                message(1, 1, 0, 0, &[&version]),
                0,
                "VFIO_USER_VERSION: 0.1 {\"capabilities\":{}}",
            ),
            (
                message(
                    1,
                    2,
                    0,
                    0,
                    &[&bytes(&[3 << 32 | 32, 0x1000, 0x2000, 0x3000])],
                ),
                1,
                "VFIO_USER_DMA_MAP: 0x3000 bytes at 0x2000, file 0x1000, flags 0x3, 1 fds",
            ),
            (
                message(1, 9, 0, 0, &[&access]),
                0,
                "VFIO_USER_REGION_READ: region 2, 4 bytes at 0x10",
            ),
            (
                message(1, 9, reply, 0, &[&access, &value]),
                0,
                "VFIO_USER_REGION_READ reply: region 2, 4 bytes at 0x10: 0x1234",
            ),
            (
                message(1, 10, Header::NO_REPLY, 0, &[&access, &value]),
                0,
                "VFIO_USER_REGION_WRITE: region 2, 4 bytes at 0x10: 0x1234, wants no reply",
            ),
            (
                message(1, 4, reply | error, 22, &[]),
                0,
                "VFIO_USER_DEVICE_GET_INFO reply: error 22",
            ),
            (message(1, 13, 0, 0, &[]), 0, "VFIO_USER_DEVICE_RESET"),
            (message(1, 77, 0, 0, &[&[1, 2]]), 0, "message 77: 2 bytes"),
            (
                message(1, 2, 0, 0, &[&[1]]),
                0,
                "VFIO_USER_DMA_MAP: 1 bytes",
            ),
        ] {
            assert_eq!(said(&message, fds), [text]);
        }
    }

    #[test]
    fn a_stream_is_cut_wherever_it_comes_apart() {
        let long = vec![7; 4 * BODY_SEEN];
        let bytes = [
            message(1, 13, 0, 0, &[]),
            message(2, 10, 0, 0, &[&bytes(&[0, 0]), &long]),
            message(3, 13, Header::REPLY, 0, &[]),
        ]
        .concat();
        for cut in 0..=bytes.len() {
            let (mut watcher, mut all) = (Watcher::default(), 0);
            watcher.take(&bytes[..cut], 0, |_| all += 1);
            watcher.take(&bytes[cut..], 0, |_| all += 1);
            assert_eq!((all, watcher.seen.len()), (3, 0), "{cut}");
            assert!(watcher.seen.capacity() <= 4 * (HEADER_BYTES + BODY_SEEN));
        }
    }

    /// Whatever a peer sends, it is said or left out, and little is kept.
    #[test]
    fn no_bytes_are_too_broken_to_watch() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut watcher = Watcher::default();
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let small = |shift: u32, most: u64| u16::try_from(random >> shift & most).unwrap();
            let command = [small(0, 31), 0x8000 | small(0, 1)][usize::from(random & 32 != 0)];
            let body = vec![0xa5; small(8, 63).into()];
            let mut bytes = message(1, command, small(16, 63).into(), 7, &[&body]);
            if random >> 24 & 7 == 0 {
                bytes[4] = 3;
            }
            watcher.take(&bytes, 0, |said| assert!(!said.text().is_empty()));
            assert!(watcher.seen.len() <= HEADER_BYTES + BODY_SEEN);
        }
    }
}
