//! A client's memory, mapped under the rules for hostile peers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use linkspan_mem::{Gpa, GuestMemory, Iova, Region, SpaceError, UserVa};
use linkspan_sys::{EventFd, PeerMemory, mapping};
use linkspan_vfio::DmaMap;

/// Why memory of a client cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The file is of the wrong kind, too short, or could not be mapped.
    #[error(transparent)]
    Map(#[from] mapping::Error),
    /// The maps contradict each other.
    #[error(transparent)]
    Layout(#[from] SpaceError),
    /// The same place with another file.
    #[error("{size:#x} bytes at {address} are there already, and those of another file")]
    AnotherFile {
        /// Where.
        address: Iova,
        /// How many bytes.
        size: u64,
    },
}

/// One map of a client.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// Where it is.
    pub map: DmaMap,
    /// Its memory; `None`: it came without a descriptor.
    pub region: Option<Region>,
    /// Its file, by device and number.
    file: Option<(u64, u64)>,
    /// The same to be exported from, if it is one of the first [`FILES_MAX`]: a monitor has
    /// few, and a descriptor for each map of others would be many.
    pub backing: Option<Arc<PeerMemory>>,
}

/// Files that are kept open at a time.
const FILES_MAX: usize = 16;

/// The memory that a client shares at this moment.
#[derive(Debug)]
pub struct Memory {
    maps: Vec<Mapped>,
    space: Arc<GuestMemory>,
    gone: Arc<EventFd>,
}

/// No memory at all.
fn nothing() -> Arc<GuestMemory> {
    let none = GuestMemory::new(Vec::new());
    Arc::new(none.expect("no regions contradict each other"))
}

impl Memory {
    /// None; `gone` is signalled when the client takes some back.
    pub(super) fn new(gone: Arc<EventFd>) -> Self {
        Self {
            maps: Vec::new(),
            space: nothing(),
            gone,
        }
    }

    /// All maps.
    #[must_use]
    pub fn maps(&self) -> &[Mapped] {
        &self.maps
    }

    /// The map at exactly this place.
    #[must_use]
    pub fn find(&self, map: &DmaMap) -> Option<&Mapped> {
        self.maps.iter().find(|known| known.map == *map)
    }

    /// One generation of what was shared by descriptor: both kinds of address in it are
    /// the device's. Who keeps it keeps the memory mapped.
    #[must_use]
    pub fn space(&self) -> &Arc<GuestMemory> {
        &self.space
    }

    /// Copies bytes out of what was shared by descriptor.
    ///
    /// # Errors
    /// They are not all in it; nothing is said of `target` then.
    pub fn read(&self, address: Iova, target: &mut [u8]) -> Result<(), SpaceError> {
        let mut at = 0;
        let len = u32::try_from(target.len()).unwrap_or(u32::MAX);
        let table = self.space.table();
        self.space.guest.resolve(Gpa(address.0), len, |span| {
            at += table.slice(span).read(&mut target[at..]);
        })
    }

    /// Copies bytes into what was shared by descriptor to be written.
    ///
    /// # Errors
    /// They are not all in it; some may have been written.
    pub fn write(&self, address: Iova, source: &[u8]) -> Result<(), SpaceError> {
        let mut at = 0;
        let len = u32::try_from(source.len()).unwrap_or(u32::MAX);
        let table = self.space.table();
        let each = |span| at += table.slice(span).write(&source[at..]);
        self.space
            .guest
            .resolve_for(Gpa(address.0), len, true, each)
    }

    /// One more map, with its descriptor if it has one. On an error nothing has changed.
    pub(super) fn add(&mut self, map: DmaMap, fd: Option<OwnedFd>) -> Result<(), MemoryError> {
        let mut mapped = Mapped {
            map,
            region: None,
            file: None,
            backing: None,
        };
        if let Some(fd) = fd {
            let wake = Some(Arc::clone(&self.gone));
            let file = PeerMemory::check(fd)?;
            let memory = file.map(map.offset, map.size, wake)?;
            let id = file.file_id()?;
            mapped.region = Some(Region::new(Arc::new(memory)));
            mapped.file = Some(id);
            mapped.backing = self.keep_file(id, file);
        }
        let shared = mapped.region.is_some();
        self.maps.push(mapped);
        if shared && let Err(error) = self.resolve() {
            self.maps.pop();
            return Err(error.into());
        }
        Ok(())
    }

    /// The file, shared with the other maps of it.
    fn keep_file(&self, id: (u64, u64), file: PeerMemory) -> Option<Arc<PeerMemory>> {
        let kept = self.maps.iter().filter_map(|known| {
            let backing = known.backing.as_ref()?;
            Some((known.file?, backing))
        });
        let mut files = Vec::new();
        for (known, backing) in kept {
            if known == id {
                return Some(Arc::clone(backing));
            }
            if !files.contains(&known) {
                files.push(known);
            }
        }
        (files.len() < FILES_MAX).then(|| Arc::new(file))
    }

    /// Whether a map that is there is of this file.
    pub(super) fn is_of(&self, map: &DmaMap, fd: OwnedFd) -> Result<(), MemoryError> {
        let file = PeerMemory::check(fd)?.file_id()?;
        let known = self.find(map).and_then(|mapped| mapped.file);
        match known == Some(file) {
            true => Ok(()),
            false => Err(MemoryError::AnotherFile {
                address: map.address,
                size: map.size,
            }),
        }
    }

    /// One map less.
    pub(super) fn remove(&mut self, map: &DmaMap) {
        self.maps.retain(|known| known.map != *map);
        // What was without contradiction is so with less.
        if map.shared && self.resolve().is_err() {
            self.space = nothing();
        }
    }

    /// The client is gone.
    pub(super) fn clear(&mut self) {
        self.maps.clear();
        self.space = nothing();
    }

    /// Whether the client took memory back.
    pub(super) fn poisoned(&self) -> bool {
        self.space.table().poisoned()
    }

    fn resolve(&mut self) -> Result<(), SpaceError> {
        let (mut regions, mut read_only) = (Vec::new(), Vec::new());
        for Mapped { map, region, .. } in &self.maps {
            // What may only be written is not given to devices that could read it.
            let Some(region) = region.as_ref().filter(|_| map.readable) else {
                continue;
            };
            if !map.writable {
                read_only.push(regions.len());
            }
            let address = map.address.0;
            regions.push((region.clone(), Gpa(address), UserVa(address)));
        }
        self.space = Arc::new(GuestMemory::new(regions)?.with_read_only(&read_only));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_sys::memfd::{self, Sealing};

    /// A client may map as many files as it may map pieces: few of them are kept open.
    #[test]
    fn files_are_shared_by_their_maps_and_few_are_kept() {
        let mut memory = Memory::new(Arc::new(EventFd::new().unwrap()));
        let map = |number: u64| DmaMap {
            address: Iova(number * 4096),
            size: 4096,
            offset: 0,
            readable: true,
            writable: true,
            shared: true,
        };
        let file = || memfd::create("guest", 4096, Sealing::Fixed).unwrap();
        let first = file();
        for number in 0..3 {
            let fd = first.try_clone().unwrap();
            memory.add(map(number), Some(fd)).unwrap();
        }
        let kept =
            |memory: &Memory, number: u64| memory.find(&map(number)).unwrap().backing.clone();
        let shared = kept(&memory, 0).unwrap();
        assert!((1..3).all(|number| Arc::ptr_eq(&shared, &kept(&memory, number).unwrap())));
        for number in 3..40 {
            memory.add(map(number), Some(file())).unwrap();
        }
        let backing = (3..40).filter(|number| kept(&memory, *number).is_some());
        assert_eq!(backing.count(), FILES_MAX - 1);
        // One that goes makes room.
        memory.remove(&map(3));
        memory.add(map(40), Some(file())).unwrap();
        assert!(kept(&memory, 40).is_some() && kept(&memory, 39).is_none());
        // Memory without a descriptor has no file.
        let without = DmaMap {
            shared: false,
            ..map(41)
        };
        memory.add(without, None).unwrap();
        assert!(memory.find(&without).unwrap().backing.is_none());
    }
}
