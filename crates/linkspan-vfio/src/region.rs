//! Regions of a device: what is said of each.

use alloc::vec::Vec;
use core::mem::size_of;
use core::ops::Range;

use zerocopy::IntoBytes;

use crate::wire::{
    CAP_SPARSE_MMAP, CAP_TYPE, CapHeader, REGION_CAPS, REGION_MMAP, REGION_READ, REGION_WRITE,
    RegionInfo,
};

/// What a region is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Bytes; 0: it does not exist.
    pub size: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// Parts that the client may map, with a descriptor that the device gives; whole pages.
    pub mappable: Vec<Range<u64>>,
    /// Where the region begins in that descriptor's file, in bytes.
    pub file_offset: u64,
    /// Parts of which a write does nothing but signal, so that the client may have an eventfd
    /// for each instead (`VFIO_USER_DEVICE_GET_REGION_IO_FDS`).
    pub doorbells: Vec<Range<u64>>,
    /// A type and a subtype, of a region that no bus defines (`VFIO_REGION_INFO_CAP_TYPE`).
    pub kind: Option<(u32, u32)>,
}

impl Region {
    /// A region that can be read and written.
    #[must_use]
    pub fn of(size: u64) -> Self {
        Self {
            size,
            readable: true,
            writable: true,
            ..Self::default()
        }
    }

    /// The same, all of which the client may map.
    ///
    /// Its parts are said to be one, as many clients ask for a descriptor only then.
    #[must_use]
    pub fn mapped(size: u64) -> Self {
        Self {
            mappable: alloc::vec![0..size],
            ..Self::of(size)
        }
    }

    /// The information of region `index` and its capabilities.
    pub(crate) fn info(&self, index: u32) -> Vec<u8> {
        let mut flags = 0;
        for (is, flag) in [
            (self.readable, REGION_READ),
            (self.writable, REGION_WRITE),
            (!self.mappable.is_empty(), REGION_MMAP),
            (
                !self.mappable.is_empty() || self.kind.is_some(),
                REGION_CAPS,
            ),
        ] {
            flags |= if is { flag } else { 0 };
        }
        let head = size_of::<RegionInfo>();
        let mut caps: Vec<(u16, Vec<u8>)> = Vec::new();
        if !self.mappable.is_empty() {
            let count = u32::try_from(self.mappable.len()).unwrap_or(u32::MAX);
            let mut body = [count, 0].as_bytes().to_vec();
            for part in &self.mappable {
                let size = part.end.saturating_sub(part.start);
                body.extend_from_slice([part.start, size].as_bytes());
            }
            caps.push((CAP_SPARSE_MMAP, body));
        }
        if let Some((kind, subtype)) = self.kind {
            caps.push((CAP_TYPE, [kind, subtype].as_bytes().to_vec()));
        }
        let mut bytes = alloc::vec![0; head];
        let last = caps.len().saturating_sub(1);
        for (number, (id, body)) in caps.iter().enumerate() {
            let end = bytes.len() + size_of::<CapHeader>() + body.len();
            let next = if number == last { 0 } else { end };
            let header = CapHeader {
                id: *id,
                version: 1,
                next: u32::try_from(next).unwrap_or(0),
            };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(body);
        }
        let info = RegionInfo {
            argsz: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            flags,
            index,
            cap_offset: if caps.is_empty() { 0 } else { 32 },
            size: self.size,
            offset: self.file_offset,
        };
        bytes[..head].copy_from_slice(info.as_bytes());
        bytes
    }
}
