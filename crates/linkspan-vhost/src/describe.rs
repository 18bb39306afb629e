//! Messages in words, for people who watch a link: by the table that sessions work by.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

use zerocopy::FromBytes;

use crate::message::{FRONTEND_REQUESTS, Payload, Reply, find};
use crate::wire::{
    ConfigHeader, DeviceStateParameters, HEADER_BYTES, Header, InflightDescription, LogDescription,
    MAX_BODY_BYTES, MAX_TABLE_REGIONS, MemoryRegionDescription, MemoryTableHeader,
    SingleMemoryRegion, VHOST_USER_VRING_IDX_MASK, VHOST_USER_VRING_NOFD_MASK, VringAddr,
    VringState,
};

/// Messages cut out of a front end's stream, or of one to it, as it goes by. What is no
/// message is for the session to judge.
#[derive(Debug, Default)]
pub struct Watcher {
    bytes: Vec<u8>,
    fds: usize,
}

impl Watcher {
    /// Takes bytes with so many descriptors, and says each message that is whole by now.
    pub fn take(&mut self, bytes: &[u8], fds: usize, mut each: impl FnMut(String)) {
        self.bytes.extend_from_slice(bytes);
        self.fds += fds;
        while let Ok((header, rest)) = Header::read_from_prefix(&self.bytes) {
            let size = usize::try_from(header.size).unwrap_or(usize::MAX);
            if size > MAX_BODY_BYTES {
                // A session that hears this ends.
                each(describe(&header, &[], self.fds) + ", too long");
                *self = Self::default();
                return;
            }
            let Some(body) = rest.get(..size) else {
                return;
            };
            each(describe(&header, body, self.fds));
            self.bytes.drain(..HEADER_BYTES + size);
            self.fds = 0;
        }
    }
}

/// A message of a front end, or an answer to one.
fn describe(header: &Header, body: &[u8], fds: usize) -> String {
    let row = find(&FRONTEND_REQUESTS, header.request);
    let name = row.map_or_else(
        || format!("message {}", header.request),
        |row| row.name.into(),
    );
    let is_reply = header.flags & Header::REPLY != 0;
    let payload = match row {
        None => Payload::None,
        Some(row) if !is_reply => row.payload,
        Some(row) => match row.reply {
            Reply::Ack | Reply::Code => Payload::U64,
            Reply::Always(payload) | Reply::OrEmpty(payload) => payload,
        },
    };
    let mut text = name;
    if is_reply {
        text += " reply";
    }
    let words = match words(payload, body) {
        Some(words) => words,
        None if body.is_empty() => String::new(),
        None => format!("{} bytes", body.len()),
    };
    if !words.is_empty() {
        let _ = write!(text, ": {words}");
    }
    if header.flags & Header::NEED_REPLY != 0 {
        text += ", wants a reply";
    }
    if fds > 0 {
        let _ = write!(text, ", {fds} fds");
    }
    text
}

/// What a body says; `None` for one that is not what the table says, or that has no words.
fn words(payload: Payload, body: &[u8]) -> Option<String> {
    fn of<T: FromBytes>(body: &[u8]) -> Option<T> {
        T::read_from_bytes(body).ok()
    }
    Some(match payload {
        Payload::U64 => format!("{:#x}", of::<u64>(body)?),
        Payload::VringState => {
            let VringState { index, num } = of(body)?;
            format!("ring {index}, {num}")
        }
        Payload::VringAddr => {
            let address: VringAddr = of(body)?;
            format!(
                "ring {}, descriptors {:#x}, available {:#x}, used {:#x}, flags {:#x}, log {:#x}",
                address.index,
                address.descriptor,
                address.available,
                address.used,
                address.flags,
                address.log
            )
        }
        Payload::VringFd => {
            let word: u64 = of(body)?;
            let none = word & VHOST_USER_VRING_NOFD_MASK != 0;
            let more = if none { ", none" } else { "" };
            format!("ring {}{more}", word & VHOST_USER_VRING_IDX_MASK)
        }
        Payload::MemoryTable => {
            let (header, rest) = MemoryTableHeader::read_from_prefix(body).ok()?;
            let regions = rest.chunks(size_of::<MemoryRegionDescription>());
            let regions = regions.take(MAX_TABLE_REGIONS).map_while(of);
            let regions: Vec<_> = regions.map(|it| region(&it)).collect();
            format!("{} regions: {}", header.num_regions, regions.join(", "))
        }
        Payload::MemoryRegion => region(&of::<SingleMemoryRegion>(body)?.region),
        Payload::Config => {
            let (header, rest) = ConfigHeader::read_from_prefix(body).ok()?;
            let ConfigHeader { offset, size, .. } = header;
            format!("offset {offset}, size {size}, {} bytes", rest.len())
        }
        Payload::Log => {
            let log: LogDescription = of(body)?;
            format!("{} bytes at {:#x}", log.mmap_size, log.mmap_offset)
        }
        Payload::Inflight => {
            let padded = body.iter().copied().chain([0; 4]);
            let padded: Vec<u8> = padded.take(size_of::<InflightDescription>()).collect();
            let it: InflightDescription = of(&padded)?;
            format!(
                "{} bytes at {:#x}, {} rings of {}",
                it.mmap_size, it.mmap_offset, it.num_queues, it.queue_size
            )
        }
        Payload::DeviceState => {
            let DeviceStateParameters { direction, .. } = of(body)?;
            (if direction == 0 { "save" } else { "load" }).into()
        }
        _ => return None,
    })
}

fn region(region: &MemoryRegionDescription) -> String {
    format!(
        "{} bytes, guest {:#x}, front end {:#x}, file {:#x}",
        region.size, region.guest_address, region.user_address, region.mmap_offset
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Request;
    use alloc::vec;

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).unwrap();
        let words = [request, flags | Header::VERSION, size];
        let header = words.iter().flat_map(|word| word.to_ne_bytes());
        header.chain(body.iter().copied()).collect()
    }

    fn said(bytes: &[u8], fds: usize) -> Vec<String> {
        let mut all = Vec::new();
        Watcher::default().take(bytes, fds, |text| all.push(text));
        all
    }

    #[test]
    fn messages_say_what_they_hold() {
        let number = 0x30_u64.to_ne_bytes();
        let pair = [2_u32.to_ne_bytes(), 256_u32.to_ne_bytes()].concat();
        let kick = 0x103_u64.to_ne_bytes();
        let code = |request: Request| request.code();
        for (bytes, fds, text) in [
            (message(1, 0, &[]), 0, "VHOST_USER_GET_FEATURES"),
            (
                message(1, Header::REPLY, &number),
                0,
                "VHOST_USER_GET_FEATURES reply: 0x30",
            ),
            (
                message(code(Request::SetFeatures), Header::NEED_REPLY, &number),
                0,
                "VHOST_USER_SET_FEATURES: 0x30, wants a reply",
            ),
            (
                message(code(Request::SetVringNum), 0, &pair),
                0,
                "VHOST_USER_SET_VRING_NUM: ring 2, 256",
            ),
            (
                message(code(Request::SetVringKick), 0, &kick),
                1,
                "VHOST_USER_SET_VRING_KICK: ring 3, none, 1 fds",
            ),
            (
                message(code(Request::SetVringNum), 0, &[1]),
                0,
                "VHOST_USER_SET_VRING_NUM: 1 bytes",
            ),
            (message(99, 0, &[1, 2]), 0, "message 99: 2 bytes"),
        ] {
            assert_eq!(said(&bytes, fds), [text]);
        }
        let mut table = vec![2, 0, 0, 0, 0, 0, 0, 0];
        table.extend(
            [0x10_u64, 4096, 0x7000, 0]
                .iter()
                .flat_map(|word| word.to_ne_bytes()),
        );
        let text = said(&message(code(Request::SetMemTable), 0, &table), 2);
        let expected = "VHOST_USER_SET_MEM_TABLE: 2 regions: 4096 bytes, guest 0x10, \
            front end 0x7000, file 0x0, 2 fds";
        assert_eq!(text, [expected]);
    }

    #[test]
    fn a_stream_is_cut_wherever_it_comes_apart() {
        let bytes = [
            message(1, 0, &[]),
            message(3, 0, &[]),
            message(2, 0, &[0; 8]),
        ]
        .concat();
        for cut in 0..=bytes.len() {
            let (mut watcher, mut all) = (Watcher::default(), 0);
            watcher.take(&bytes[..cut], 0, |_| all += 1);
            watcher.take(&bytes[cut..], 0, |_| all += 1);
            assert_eq!((all, watcher.bytes.len()), (3, 0), "{cut}");
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
            let code = u32::try_from(random % 48).unwrap();
            let len = usize::try_from(random >> 8 & 0x3f).unwrap();
            let flags = u32::try_from(random >> 16 & 0xf).unwrap();
            let mut bytes = message(code, flags, &vec![0xa5; len]);
            if random >> 20 & 7 == 0 {
                bytes.truncate(len);
            }
            watcher.take(&bytes, len & 3, |text| assert!(!text.is_empty()));
            assert!(watcher.bytes.len() <= HEADER_BYTES + MAX_BODY_BYTES);
        }
    }
}
