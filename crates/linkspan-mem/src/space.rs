//! From a peer's addresses to places in regions.
//!
//! A [`RegionTable`] holds the regions of one generation of a peer's memory.
//! Each [`AddressSpace`] maps one kind of address onto it and turns a range into
//! [`Span`]s: places that were checked once and are then reached without a
//! look-up. Spans are plain numbers, so they can wait in a queue while I/O is
//! under way; who holds spans holds their table, and so the memory stays mapped.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::addr::{Address, Gpa, UserVa};
use crate::region::{Region, SharedSlice};
use crate::ring::{Window, WindowError};

/// A checked place in a [`RegionTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    offset: u64,
    region: u32,
    len: u32,
}

impl Span {
    /// Size in bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bytes at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part that begins at `offset` and has at most `len` bytes.
    #[inline]
    #[must_use]
    pub fn part(&self, offset: u32, len: u32) -> Self {
        let offset = offset.min(self.len);
        Self {
            offset: self.offset + u64::from(offset),
            region: self.region,
            len: len.min(self.len - offset),
        }
    }
}

/// A peer's address range that is not all inside its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{space} {address:#x} with {len} bytes is outside the peer's {}memory",
    if *.write { "writable " } else { "" }
)]
pub struct SpaceError {
    /// Which address space.
    pub space: &'static str,
    /// First address of the range.
    pub address: u64,
    /// Size of the range in bytes.
    pub len: u64,
    /// Whether it was to be written.
    pub write: bool,
}

/// Spans that hold fewer bytes than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{missing} bytes missing")]
pub struct Short {
    /// How many bytes.
    pub missing: usize,
}

/// The regions of one generation of a peer's memory.
#[derive(Debug, Default)]
pub struct RegionTable {
    regions: Vec<Region>,
}

impl RegionTable {
    /// A table of these regions; their positions are what maps refer to.
    pub fn new(regions: Vec<Region>) -> Self {
        Self { regions }
    }

    /// The regions in their order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether the peer took away memory of any region; see
    /// [`Backing::poisoned`](crate::Backing::poisoned).
    pub fn poisoned(&self) -> bool {
        self.regions.iter().any(Region::poisoned)
    }

    /// The bytes of a span. A span of another table gives other bytes of this
    /// one, or none: never memory outside it.
    #[inline]
    pub fn slice(&self, span: Span) -> SharedSlice<'_> {
        // Its parts are read one by one, as they were written: a span is mostly looked at
        // right after it was made, and processors are slow to read in one piece what
        // was just written in several.
        let Span {
            offset,
            region,
            len,
        } = span;
        match self.regions.get(region as usize) {
            Some(region) => region.slice(offset, u64::from(len)).ok(),
            None => None,
        }
        .unwrap_or_else(|| foreign_span(offset, region, len))
    }

    /// Copies bytes out of spans taken as one run, beginning at `offset`.
    ///
    /// # Errors
    /// When the spans end first; how much of `target` was filled is then not said.
    #[inline]
    pub fn gather(&self, spans: &[Span], offset: u64, target: &mut [u8]) -> Result<(), Short> {
        let mut done = 0;
        for slice in self.run(spans, offset) {
            done += slice.read(&mut target[done..]);
            if done == target.len() {
                return Ok(());
            }
        }
        short(target.len() - done)
    }

    /// Copies bytes into spans taken as one run, beginning at `offset`.
    ///
    /// # Errors
    /// When the spans end first; what fits has then been written.
    #[inline]
    pub fn scatter(&self, spans: &[Span], offset: u64, source: &[u8]) -> Result<(), Short> {
        let mut done = 0;
        for slice in self.run(spans, offset) {
            done += slice.write(&source[done..]);
            if done == source.len() {
                return Ok(());
            }
        }
        short(source.len() - done)
    }

    /// As [`scatter`](Self::scatter), out of shared memory.
    ///
    /// # Errors
    /// When the spans end first; what fits has then been written.
    pub fn scatter_shared(
        &self,
        spans: &[Span],
        offset: u64,
        source: SharedSlice<'_>,
    ) -> Result<(), Short> {
        let mut done = 0;
        for slice in self.run(spans, offset) {
            done += source.part(done, source.len()).copy_to(slice);
            if done == source.len() {
                return Ok(());
            }
        }
        short(source.len() - done)
    }

    /// Copies `len` bytes into spans taken as one run, beginning at `offset`, out of
    /// `from`, such a run of another table, beginning at `from_offset`. Each byte is
    /// copied once.
    ///
    /// # Errors
    /// When either run ends first; what there is has then been written.
    pub fn copy_run(
        &self,
        (spans, offset): (&[Span], u64),
        source: &Self,
        (from, from_offset): (&[Span], u64),
        len: u64,
    ) -> Result<(), Short> {
        // What does not fit in memory is not there either.
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut sources = source.run(from, from_offset);
        let mut rest: Option<SharedSlice<'_>> = None;
        for mut target in self.run(spans, offset) {
            while left > 0 && !target.is_empty() {
                let Some(piece) = rest.take().or_else(|| sources.next()) else {
                    return short(left);
                };
                let done = piece.part(0, left).copy_to(target);
                left -= done;
                target = target.part(done, usize::MAX);
                rest = Some(piece.part(done, usize::MAX)).filter(|rest| !rest.is_empty());
            }
            if left == 0 {
                break;
            }
        }
        short(left)
    }

    /// Copies `len` bytes out of spans taken as one run, beginning at `offset`, to other
    /// shared memory; returns how many there were and fit.
    #[inline]
    pub fn copy_out(
        &self,
        (spans, offset): (&[Span], u64),
        len: usize,
        to: &SharedSlice<'_>,
    ) -> usize {
        let mut done = 0;
        for slice in self.run(spans, offset) {
            done += slice.part(0, len - done).copy_to(to.part(done, usize::MAX));
            if done == len {
                break;
            }
        }
        done
    }

    #[inline]
    fn run<'a>(&'a self, spans: &'a [Span], offset: u64) -> impl Iterator<Item = SharedSlice<'a>> {
        let mut skip = offset;
        spans.iter().filter_map(move |span| {
            let len = u64::from(span.len);
            if skip >= len {
                skip -= len;
                return None;
            }
            // Below the length of the span, so it fits.
            let from = u32::try_from(skip).unwrap_or(span.len);
            skip = 0;
            Some(self.slice(span.part(from, span.len)))
        })
    }
}

#[inline]
fn short(missing: usize) -> Result<(), Short> {
    if missing == 0 {
        Ok(())
    } else {
        Err(Short { missing })
    }
}

/// A span that does not belong to its table is our own mistake, never a peer's.
#[cold]
fn foreign_span(offset: u64, region: u32, len: u32) -> ! {
    let span = Span {
        offset,
        region,
        len,
    };
    panic!("{span:?} belongs to another region table")
}

/// Where addresses of one kind lie in a [`RegionTable`].
#[derive(Debug)]
pub struct AddressSpace<A> {
    table: Arc<RegionTable>,
    /// Sorted by start, without overlap.
    ranges: Vec<Range>,
    kind: PhantomData<A>,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    len: u64,
    region: u32,
    /// Whether the peer lets us write there.
    writable: bool,
    /// Where the range begins in its region.
    offset: u64,
}

/// One range of an address space: where it starts, and the place it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) region: usize,
    pub(crate) offset: u64,
}

impl<A: Address> AddressSpace<A> {
    /// A space in which region `i` of the table begins at `starts[i]`.
    ///
    /// # Errors
    /// When a range is empty, wraps, or overlaps another.
    pub fn new(table: Arc<RegionTable>, starts: &[A]) -> Result<Self, SpaceError> {
        let mapped =
            table
                .regions
                .iter()
                .zip(starts)
                .enumerate()
                .map(|(region, (bytes, start))| Mapped {
                    start: start.raw(),
                    len: bytes.len() as u64,
                    region,
                    offset: 0,
                });
        let mapped: Vec<Mapped> = mapped.collect();
        Self::from_mapped(table, &mapped)
    }

    pub(crate) fn from_mapped(
        table: Arc<RegionTable>,
        mapped: &[Mapped],
    ) -> Result<Self, SpaceError> {
        let mut ranges = Vec::with_capacity(mapped.len());
        for range in mapped {
            let bad = outside::<A>(range.start, range.len);
            let region = table.regions.get(range.region).ok_or(bad)?;
            let end = range.offset.checked_add(range.len).ok_or(bad)?;
            if range.len == 0
                || end > region.len() as u64
                || range.start.checked_add(range.len - 1).is_none()
            {
                return Err(bad);
            }
            ranges.push(Range {
                start: range.start,
                len: range.len,
                region: u32::try_from(range.region).map_err(|_| bad)?,
                writable: true,
                offset: range.offset,
            });
        }
        ranges.sort_unstable_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            if pair[1].start - pair[0].start < pair[0].len {
                return Err(outside::<A>(pair[1].start, pair[1].len));
            }
        }
        Ok(Self {
            table,
            ranges,
            kind: PhantomData,
        })
    }

    /// The regions that this space maps onto.
    pub fn table(&self) -> &Arc<RegionTable> {
        &self.table
    }

    /// Turns a range of addresses into spans, in order: one, or more where it
    /// crosses from one region into the next. A range without bytes has none.
    ///
    /// # Errors
    /// When any byte is outside; spans may have been given out before.
    #[inline]
    pub fn resolve(&self, address: A, len: u32, each: impl FnMut(Span)) -> Result<(), SpaceError> {
        self.resolve_for(address, len, false, each)
    }

    /// The same for bytes that are to be written, if `write`.
    ///
    /// # Errors
    /// When any byte is outside, or cannot be written and should be.
    #[inline]
    pub fn resolve_for(
        &self,
        address: A,
        len: u32,
        write: bool,
        mut each: impl FnMut(Span),
    ) -> Result<(), SpaceError> {
        let mut at = address.raw();
        let mut left = len;
        let bad = || SpaceError {
            write,
            ..outside::<A>(address.raw(), u64::from(len))
        };
        while left > 0 {
            let range = self
                .find(at)
                .filter(|range| range.writable || !write)
                .ok_or_else(bad)?;
            let skip = at - range.start;
            let part = u32::try_from(range.len - skip)
                .unwrap_or(u32::MAX)
                .min(left);
            each(Span {
                offset: range.offset + skip,
                region: range.region,
                len: part,
            });
            left -= part;
            if left > 0 {
                at = at.checked_add(u64::from(part)).ok_or_else(bad)?;
            }
        }
        Ok(())
    }

    /// A window onto `len` bytes that must lie in one region.
    ///
    /// # Errors
    /// When they do not.
    pub fn window(&self, address: A, len: usize) -> Result<Window, SpaceError> {
        self.window_for(address, len, false)
    }

    /// The same for bytes that are to be written, if `write`.
    ///
    /// # Errors
    /// When they do not lie in one region, or cannot be written and should be.
    pub fn window_for(&self, address: A, len: usize, write: bool) -> Result<Window, SpaceError> {
        let bad = SpaceError {
            write,
            ..outside::<A>(address.raw(), len as u64)
        };
        let range = self.find(address.raw());
        let range = range.filter(|range| range.writable || !write).ok_or(bad)?;
        let skip = address.raw() - range.start;
        if range.len - skip < len as u64 {
            return Err(bad);
        }
        let region = &self.table.regions[range.region as usize];
        region
            .window(range.offset + skip, len)
            .map_err(|_: WindowError| bad)
    }

    /// The address of the first byte of a span of this space's table; `None` for
    /// memory that has no address here.
    pub fn address(&self, span: Span) -> Option<A> {
        let holds = |range: &&Range| {
            range.region == span.region
                && (range.offset..range.offset + range.len).contains(&span.offset)
        };
        let range = self.ranges.iter().find(holds)?;
        Some(A::from_raw(range.start + (span.offset - range.offset)))
    }

    /// The last address of all, if there is one.
    pub fn last(&self) -> Option<A> {
        let range = self.ranges.last()?;
        Some(A::from_raw(range.start + (range.len - 1)))
    }

    /// The same as [`resolve_for`](Self::resolve_for) for a range that lies in one region, and
    /// is not empty; `None` for any other. `near` is where the last one was found: most
    /// addresses of a queue are in one region.
    #[inline]
    pub fn resolve_one(&self, address: A, len: u32, write: bool, near: &mut u32) -> Option<Span> {
        let at = address.raw();
        let range = match self.ranges.get(*near as usize) {
            Some(range) if at.wrapping_sub(range.start) < range.len => range,
            _ => self.find_near(at, near)?,
        };
        let skip = at - range.start;
        let may = range.writable || !write;
        (may && len != 0 && u64::from(len) <= range.len - skip).then_some(Span {
            offset: range.offset + skip,
            region: range.region,
            len,
        })
    }

    #[inline]
    fn find_near(&self, at: u64, near: &mut u32) -> Option<&Range> {
        let index = self.ranges.partition_point(|range| range.start <= at);
        let index = index.checked_sub(1)?;
        let range = self.ranges.get(index)?;
        *near = u32::try_from(index).unwrap_or(0);
        (at - range.start < range.len).then_some(range)
    }

    #[inline]
    fn find(&self, at: u64) -> Option<&Range> {
        self.find_near(at, &mut 0)
    }
}

fn outside<A: Address>(address: u64, len: u64) -> SpaceError {
    SpaceError {
        space: A::SPACE,
        address,
        len,
        write: false,
    }
}

/// One generation of a guest's memory, reachable by both kinds of address that
/// a vhost-user front end uses: descriptors carry guest addresses, ring
/// addresses are the front end's own.
#[derive(Debug)]
pub struct GuestMemory {
    /// Guest addresses.
    pub guest: AddressSpace<Gpa>,
    /// Addresses in the front end's process.
    pub front_end: AddressSpace<UserVa>,
}

impl GuestMemory {
    /// Memory of which region `i` begins at the `i`-th addresses.
    ///
    /// # Errors
    /// When ranges are empty, wrap or overlap in either space.
    pub fn new(regions: Vec<(Region, Gpa, UserVa)>) -> Result<Self, SpaceError> {
        let guest: Vec<Gpa> = regions.iter().map(|(_, guest, _)| *guest).collect();
        let front_end: Vec<UserVa> = regions.iter().map(|(_, _, user)| *user).collect();
        let regions = regions.into_iter().map(|(region, _, _)| region).collect();
        let table = Arc::new(RegionTable::new(regions));
        Ok(Self {
            guest: AddressSpace::new(Arc::clone(&table), &guest)?,
            front_end: AddressSpace::new(table, &front_end)?,
        })
    }

    /// The same memory, in which the regions at these positions can only be read.
    #[must_use]
    pub fn with_read_only(mut self, regions: &[usize]) -> Self {
        let is_read_only = |range: &Range| {
            let region = usize::try_from(range.region);
            region.is_ok_and(|region| regions.contains(&region))
        };
        let guest = self.guest.ranges.iter_mut();
        for range in guest.chain(&mut self.front_end.ranges) {
            range.writable = !is_read_only(range);
        }
        self
    }

    /// The regions that both spaces map onto.
    pub fn table(&self) -> &Arc<RegionTable> {
        self.guest.table()
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use proptest::prelude::*;

    fn memory() -> GuestMemory {
        GuestMemory::new(vec![
            (
                Region::heap(0x1000).unwrap(),
                Gpa(0x1_0000),
                UserVa(0x7000_0000),
            ),
            (
                Region::heap(0x2000).unwrap(),
                Gpa(0x1_1000),
                UserVa(0x6000_0000),
            ),
            (
                Region::heap(0x1000).unwrap(),
                Gpa(u64::MAX - 0xFFF),
                UserVa(0x100),
            ),
        ])
        .unwrap()
    }

    fn resolve(space: &AddressSpace<Gpa>, at: u64, len: u32) -> Result<Vec<Span>, SpaceError> {
        let mut spans = Vec::new();
        space.resolve(Gpa(at), len, |span| spans.push(span))?;
        Ok(spans)
    }

    /// Whatever was found before, a range in one region is found as by a look-up.
    #[test]
    fn ranges_in_one_region_are_found_from_anywhere() {
        let memory = memory();
        let starts = [0, 1, 0xFFF, 0x1000, 0xFFFF, 0x1_0000, 0x1_0FF0, 0x1_0FFF];
        let starts = starts.into_iter().chain([0x1_1000, 0x2_0000, u64::MAX]);
        let starts: Vec<u64> = starts.collect();
        for before in &starts {
            for at in &starts {
                for len in [0, 1, 0x10, 0x11, u32::MAX] {
                    let mut near = 0;
                    memory.guest.resolve_one(Gpa(*before), 1, false, &mut near);
                    let found = memory.guest.resolve_one(Gpa(*at), len, true, &mut near);
                    let one = match resolve(&memory.guest, *at, len).as_deref() {
                        Ok([one]) => Some(*one),
                        _ => None,
                    };
                    assert_eq!(found, one, "{at:#x} with {len:#x} bytes after {before:#x}");
                }
            }
        }
    }

    /// libvhost-user 85805ee887: an indirect table that crosses regions.
    #[test]
    fn a_range_across_two_regions_is_two_spans() {
        let memory = memory();
        let spans = resolve(&memory.guest, 0x1_0FF0, 0x30).unwrap();
        assert_eq!(spans.len(), 2);
        memory.table().scatter(&spans, 0, &[7; 0x30]).unwrap();
        let mut back = [0; 0x21];
        assert_eq!(
            memory.table().gather(&spans, 0x10, &mut back),
            Err(Short { missing: 1 })
        );
        memory
            .table()
            .gather(&spans, 0x10, &mut back[..0x20])
            .unwrap();
        assert_eq!(back[..0x20], [7; 0x20]);
        assert!(memory.front_end.window(UserVa(0x7000_0FF0), 0x30).is_err());
        assert!(memory.front_end.window(UserVa(0x6000_1FF0), 0x10).is_ok());
    }

    #[test]
    fn what_can_only_be_read_is_not_written() {
        let memory = memory().with_read_only(&[0]);
        let space = &memory.guest;
        let none = |_| {};
        assert!(space.resolve(Gpa(0x1_0FF0), 0x30, none).is_ok());
        assert!(space.resolve_for(Gpa(0x1_1000), 0x30, true, none).is_ok());
        let error = space.resolve_for(Gpa(0x1_0FF0), 0x30, true, none);
        let text = "guest address 0x10ff0 with 48 bytes is outside the peer's writable memory";
        assert_eq!(std::format!("{}", error.unwrap_err()), text);
        let one = |at, write| space.resolve_one(Gpa(at), 16, write, &mut 0).is_some();
        assert!(one(0x1_0000, false) && !one(0x1_0000, true) && one(0x1_1000, true));
        let window = |at, write| memory.front_end.window_for(UserVa(at), 16, write);
        assert!(window(0x7000_0000, false).is_ok());
        assert!(window(0x7000_0000, true).is_err());
        assert!(window(0x6000_0000, true).is_ok());
    }

    #[test]
    fn the_last_byte_of_the_space_is_reachable_and_nothing_behind_it() {
        let memory = memory();
        assert_eq!(resolve(&memory.guest, u64::MAX, 1).unwrap()[0].len(), 1);
        assert_eq!(memory.guest.last(), Some(Gpa(u64::MAX)));
        assert!(resolve(&memory.guest, u64::MAX, 2).is_err());
        assert!(resolve(&memory.guest, u64::MAX - 0xFFF, 0x1001).is_err());
    }

    #[test]
    fn overlapping_or_wrapping_ranges_are_refused() {
        let table = || {
            Arc::new(RegionTable::new(vec![
                Region::heap(0x1000).unwrap(),
                Region::heap(0x1000).unwrap(),
            ]))
        };
        assert!(AddressSpace::new(table(), &[Gpa(0), Gpa(0xFFF)]).is_err());
        assert!(AddressSpace::new(table(), &[Gpa(0), Gpa(u64::MAX - 0xFFE)]).is_err());
        assert!(AddressSpace::new(table(), &[Gpa(0), Gpa(0x1000)]).is_ok());
        let empty = Arc::new(RegionTable::new(vec![Region::heap(0).unwrap()]));
        assert!(AddressSpace::new(empty, &[Gpa(0)]).is_err());
    }

    proptest! {
        /// Any run into any run, in the same table or another, as bytes by hand.
        #[test]
        fn a_run_is_copied_into_another(
            from_lens in proptest::collection::vec(1_u32..40, 1..5),
            to_lens in proptest::collection::vec(1_u32..40, 1..5),
            from_offset in 0_u64..60,
            to_offset in 0_u64..60,
            len in 0_u64..80,
            same in any::<bool>(),
        ) {
            let table = |fill: fn(usize) -> u8| {
                let region = Region::heap(512).unwrap();
                let bytes: std::vec::Vec<u8> = (0..512).map(fill).collect();
                region.slice(0, 512).unwrap().write(&bytes);
                (RegionTable::new(std::vec![region]), bytes)
            };
            let (source, bytes) = table(|at| (at * 7 + 1).to_le_bytes()[0]);
            let (other, mut expected) = table(|_| 0xEE);
            let target = if same { &source } else { &other };
            if same {
                expected.clone_from(&bytes);
            }
            // The targets lie behind all sources, each with a gap.
            let spans = |lens: &[u32], base: u64| -> std::vec::Vec<Span> {
                let place = |(index, len): (u64, &u32)| Span {
                    offset: base + 41 * index,
                    region: 0,
                    len: *len,
                };
                (0..).zip(lens).map(place).collect()
            };
            let (from, to) = (spans(&from_lens, 0), spans(&to_lens, 256));
            let places = |spans: &[Span], offset: u64| -> std::vec::Vec<usize> {
                let all = spans.iter().flat_map(|span| span.offset..span.offset + u64::from(span.len));
                all.skip(usize::try_from(offset).unwrap())
                    .map(|at| usize::try_from(at).unwrap())
                    .collect()
            };
            let (froms, tos) = (places(&from, from_offset), places(&to, to_offset));
            let want = usize::try_from(len).unwrap();
            let fits = froms.len().min(tos.len()).min(want);
            for (from, to) in froms.iter().zip(&tos).take(fits) {
                expected[*to] = bytes[*from];
            }
            let result = target.copy_run((&to, to_offset), &source, (&from, from_offset), len);
            let missing = want - fits;
            prop_assert_eq!(result, if missing == 0 { Ok(()) } else { Err(Short { missing }) });
            let mut found = std::vec![0; 512];
            target.regions()[0].slice(0, 512).unwrap().read(&mut found);
            prop_assert_eq!(found, expected);
        }

        /// Against a byte-for-byte naive map.
        #[test]
        fn resolution_agrees_with_a_naive_map(at in 0xF000_u64..0x1_4000, len in 0_u32..0x5000) {
            let memory = memory();
            let naive = (at..at + u64::from(len)).all(|a| (0x1_0000..0x1_3000).contains(&a));
            match resolve(&memory.guest, at, len) {
                Ok(spans) => {
                    prop_assert!(naive);
                    let back = spans.first().and_then(|span| memory.guest.address(*span));
                    prop_assert_eq!(back, spans.first().map(|_| Gpa(at)));
                    prop_assert_eq!(spans.iter().map(Span::len).sum::<u32>(), len);
                }
                Err(error) => {
                    prop_assert!(!naive);
                    prop_assert_eq!(error.address, at);
                }
            }
        }
    }
}
