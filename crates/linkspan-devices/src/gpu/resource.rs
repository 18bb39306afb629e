//! A resource: a picture that the guest names, in memory of ours, and the guest's own
//! memory that it is copied from.

use alloc::vec::Vec;

use linkspan_mem::fault::{self, Injected};
use linkspan_mem::{AddressSpace, Gpa, Region};

use super::format::Format;
use super::wire::Code;

/// The most pieces of guest memory that a resource is copied from: the largest picture in
/// single pages.
pub const ENTRIES_MAX: usize = 32768;

/// A picture that the guest names.
#[derive(Debug)]
pub(super) struct Resource<M, S> {
    pub(super) format: Format,
    pub(super) width: u32,
    pub(super) height: u32,
    /// Its pixels, line by line, four bytes each.
    pub(super) region: Region,
    /// Who keeps them.
    pub(super) memory: M,
    backing: Option<Backing<S>>,
}

/// Bytes of our memory that a piece of guest memory takes.
const ENTRY_LEN: u64 = (size_of::<(u64, u32)>() + size_of::<u64>()) as u64;

/// Pieces of guest memory, as a run.
#[derive(Debug)]
struct Backing<S> {
    entries: Vec<(u64, u32)>,
    /// Where each begins in the run.
    starts: Vec<u64>,
    len: u64,
    /// What this list takes of our memory.
    _share: S,
}

impl<M, S> Resource<M, S> {
    pub(super) fn new(
        (width, height): (u32, u32),
        format: Format,
        (region, memory): (Region, M),
    ) -> Self {
        Self {
            format,
            width,
            height,
            region,
            memory,
            backing: None,
        }
    }

    pub(super) fn stride(&self) -> u32 {
        self.width * 4
    }

    /// Whether a part is inside, and has a pixel.
    pub(super) fn holds(&self, x: u32, y: u32, width: u32, height: u32) -> bool {
        let inside = |from: u32, len: u32, all: u32| {
            len > 0 && from.checked_add(len).is_some_and(|end| end <= all)
        };
        inside(x, width, self.width) && inside(y, height, self.height)
    }

    /// Takes over guest memory; `charge` is told how many bytes the list takes of ours.
    pub(super) fn attach(
        &mut self,
        entries: Vec<(u64, u32)>,
        guest: &AddressSpace<Gpa>,
        charge: impl FnOnce(u64) -> Result<S, Code>,
    ) -> Result<(), Code> {
        if self.backing.is_some() {
            return Err(Code::Unspecified);
        }
        let share = charge(entries.len() as u64 * ENTRY_LEN)?;
        let backing = Backing::new(entries, guest, share)?;
        self.backing = Some(backing);
        Ok(())
    }

    /// Gives it back.
    pub(super) fn detach(&mut self) -> Result<(), Code> {
        self.backing.take().map(drop).ok_or(Code::Unspecified)
    }

    /// Copies a part of the picture, which is [inside](Self::holds), from guest memory, in
    /// which it begins at `offset`; how many bytes that were.
    pub(super) fn transfer(
        &self,
        (x, y, width, height): (u32, u32, u32, u32),
        offset: u64,
        guest: &AddressSpace<Gpa>,
    ) -> Result<u64, Code> {
        let backing = self.backing.as_ref().ok_or(Code::Unspecified)?;
        let stride = u64::from(self.stride());
        let line = u64::from(width) * 4;
        let all = u64::from(height - 1) * stride + line;
        let end = offset.checked_add(all).ok_or(Code::Parameter)?;
        if end > backing.len {
            return Err(Code::Parameter);
        }
        let to = u64::from(y) * stride + u64::from(x) * 4;
        if line == stride {
            backing.copy(offset, all, &self.region, to, guest)?;
        } else {
            for row in 0..u64::from(height) {
                let at = row * stride;
                backing.copy(offset + at, line, &self.region, to + at, guest)?;
            }
        }
        Ok(u64::from(height) * line)
    }
}

impl<S> Backing<S> {
    fn new(entries: Vec<(u64, u32)>, guest: &AddressSpace<Gpa>, share: S) -> Result<Self, Code> {
        let mut starts =
            fault::try_with_capacity(entries.len()).map_err(|_: Injected| Code::OutOfMemory)?;
        let mut len = 0;
        for &(address, bytes) in &entries {
            let found = guest.resolve(Gpa(address), bytes, |_| {});
            found.map_err(|_| Code::Parameter)?;
            starts.push(len);
            // At most 2^15 times 2^32.
            len += u64::from(bytes);
        }
        Ok(Self {
            entries,
            starts,
            len,
            _share: share,
        })
    }

    /// Copies `len` bytes of the run, all inside, from `from` on. The guest may have taken
    /// back its memory since it gave it.
    fn copy(
        &self,
        from: u64,
        len: u64,
        target: &Region,
        to: u64,
        guest: &AddressSpace<Gpa>,
    ) -> Result<(), Code> {
        let first = self.starts.partition_point(|start| *start <= from);
        let (mut at, mut to, mut left) = (from, to, len);
        for index in first.saturating_sub(1)..self.entries.len() {
            if left == 0 {
                break;
            }
            let (address, bytes) = self.entries[index];
            let skip = at - self.starts[index];
            let part = u64::from(bytes).saturating_sub(skip).min(left);
            let Ok(count) = u32::try_from(part) else {
                return Err(Code::Parameter);
            };
            let place = address.checked_add(skip).ok_or(Code::Parameter)?;
            let mut written = to;
            let copied = guest.resolve(Gpa(place), count, |span| {
                let len = u64::from(span.len());
                if let Ok(slice) = target.slice(written, len) {
                    guest.table().slice(span).copy_to(slice);
                }
                written += len;
            });
            copied.map_err(|_| Code::Parameter)?;
            (at, to, left) = (at + part, to + part, left - part);
        }
        match left {
            0 => Ok(()),
            _ => Err(Code::Parameter),
        }
    }
}
