//! Steering tags: what a peer may name, for how long, and what it may do there.
//!
//! A tag is a slot and a number of its lives, enciphered with keys of this connection.
//! So a tag cannot be guessed from others, is found without a search, and never comes
//! back: a slot whose lives are spent is used no more (RFC 5042, 6.1.1).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use linkspan_mem::fault;
use linkspan_mem::record::{Reader, RestoreError, Writer};

use crate::verbs::{Access, Key, PostError, Refusal, Remote, Slice};

/// Bytes of entropy that tags are made from.
pub const ENTROPY: usize = 32;

/// Where the addresses of every exposure begin: not at zero, so that whoever ignores
/// the address that it was told is found out.
pub(crate) const BASE: u64 = 1 << 16;

/// The exposures of one connection.
#[derive(Debug)]
pub(crate) struct Tags {
    cipher: Cipher,
    slot_bits: u32,
    max: usize,
    slots: Vec<Slot>,
    /// Slots that may be used again, the longest unused one first.
    free: VecDeque<u32>,
    live: usize,
    /// The life of the slot that stands for sinks of our own reads.
    sink: u32,
}

#[derive(Debug, Default)]
struct Slot {
    life: u32,
    live: bool,
    access: Access,
    len: u32,
    /// The last frame that has bytes of it.
    framed: u64,
    /// Kept, so that exposing again takes no memory.
    slices: Vec<Slice>,
}

/// An exposure that a peer may use as it wanted to, when it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    slot: u32,
    life: u32,
}

impl Tags {
    pub(crate) fn new(max: usize, entropy: [u8; ENTROPY]) -> Self {
        // One more slot stands for sinks.
        let slot_bits = usize::BITS - max.leading_zeros();
        Self {
            cipher: Cipher::new(entropy),
            slot_bits,
            max,
            slots: Vec::new(),
            free: VecDeque::new(),
            live: 0,
            sink: 0,
        }
    }

    /// Writes what makes tags, of which none is live: keys, and the lives of slots.
    pub(crate) fn save(&self, writer: &mut Writer) {
        for key in self.cipher.0 {
            writer.u64(key);
        }
        writer.u32(self.sink);
        writer.count(self.slots.len());
        for slot in &self.slots {
            writer.u32(slot.life);
        }
        writer.count(self.free.len());
        for slot in &self.free {
            writer.u32(*slot);
        }
    }

    /// What [`Self::save`] wrote, for as many exposures at a time.
    ///
    /// # Errors
    /// It is not that.
    pub(crate) fn restore(max: usize, reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        let nonsense = |what| Err(RestoreError::Nonsense { what });
        let mut this = Self::new(max, [0; ENTROPY]);
        for key in &mut this.cipher.0 {
            *key = reader.u64()?;
        }
        this.sink = reader.u32()?;
        let lives = this.lives();
        if this.sink > lives {
            return nonsense("the life of a sink");
        }
        for _ in 0..reader.count("a number of tags", 4, max)? {
            let life = reader.u32()?;
            if life > lives {
                return nonsense("the life of a tag");
            }
            this.slots.push(Slot {
                life,
                ..Slot::default()
            });
        }
        let count = reader.count("a number of free tags", 4, this.slots.len())?;
        let mut free = alloc::vec![false; this.slots.len()];
        for _ in 0..count {
            let slot = reader.u32()?;
            match free.get_mut(slot as usize) {
                Some(seen @ false) => *seen = true,
                _ => return nonsense("a free tag"),
            }
            this.free.push_back(slot);
        }
        // The others are spent; one life is kept for the tag that is skipped.
        let right = |(slot, free): (&Slot, &bool)| {
            if *free {
                slot.life < lives
            } else {
                slot.life + 2 > lives
            }
        };
        if !this.slots.iter().zip(&free).all(right) {
            return nonsense("the life of a tag");
        }
        Ok(this)
    }

    /// Exposures at this moment.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn expose(
        &mut self,
        slices: &[Slice],
        len: u32,
        access: Access,
    ) -> Result<Remote, PostError> {
        if self.live >= self.max {
            return Err(PostError::Full { max: self.max });
        }
        let slot = match self.free.front() {
            Some(slot) => *slot,
            None => self.add_slot()?,
        };
        let entry = &mut self.slots[slot as usize];
        if entry.slices.capacity() < slices.len() {
            entry.slices = fault::try_with_capacity(slices.len())?;
        }
        self.free.pop_front();
        self.live += 1;
        entry.slices.clear();
        entry.slices.extend_from_slice(slices);
        entry.live = true;
        entry.access = access;
        entry.len = len;
        entry.framed = 0;
        let mut key = self.key(slot);
        if key.0 == 0 {
            // Tag 0 means nothing.
            self.slots[slot as usize].life += 1;
            key = self.key(slot);
        }
        Ok(Remote { key, address: BASE })
    }

    fn add_slot(&mut self) -> Result<u32, PostError> {
        // Slots that are spent count as well.
        if self.slots.len() >= self.max {
            return Err(PostError::KeysSpent);
        }
        fault::point(fault::Site::Alloc)?;
        let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot::default());
        self.free.push_back(slot);
        Ok(slot)
    }

    fn key(&self, slot: u32) -> Key {
        let life = self.slots[slot as usize].life;
        Key(self.cipher.encipher(life << self.slot_bits | slot))
    }

    /// A tag for a sink of a read of ours. It exposes nothing: a response is only taken
    /// for the read that it belongs to.
    pub(crate) fn sink(&mut self) -> u32 {
        loop {
            let slot = (1 << self.slot_bits) - 1;
            let tag = self.cipher.encipher(self.sink << self.slot_bits | slot);
            self.sink = (self.sink + 1) & self.lives();
            if tag != 0 {
                return tag;
            }
        }
    }

    /// The last life.
    fn lives(&self) -> u32 {
        u32::MAX >> self.slot_bits
    }

    fn find(&self, key: u32) -> Option<Found> {
        let plain = self.cipher.decipher(key);
        let found = Found {
            slot: plain & ((1 << self.slot_bits) - 1),
            life: plain >> self.slot_bits,
        };
        self.slot(found).map(|_| found)
    }

    fn slot(&self, found: Found) -> Option<&Slot> {
        let slot = self.slots.get(found.slot as usize)?;
        (slot.live && slot.life == found.life).then_some(slot)
    }

    /// Whether it names something.
    pub(crate) fn is_live(&self, key: Key) -> bool {
        self.find(key.0).is_some()
    }

    /// Whether a peer may do that: every check of 2.6.
    pub(crate) fn check(
        &self,
        key: u32,
        address: u64,
        len: u32,
        write: bool,
    ) -> Result<(Found, u32), Refusal> {
        let name = Key(key);
        let found = self.find(key).ok_or(Refusal::Key { key: name })?;
        let slot = self.slot(found).ok_or(Refusal::Key { key: name })?;
        let allowed = if write {
            slot.access.write
        } else {
            slot.access.read
        };
        if !allowed {
            return Err(Refusal::Access { key: name });
        }
        let end = address.checked_add(u64::from(len));
        let end = end.ok_or(Refusal::Wrap { address, len })?;
        let inside = address >= BASE && end - BASE <= u64::from(slot.len);
        if !inside {
            return Err(Refusal::Bounds {
                key: name,
                address,
                len,
            });
        }
        // At most the length of the exposure.
        let offset = u32::try_from(address - BASE).unwrap_or(slot.len);
        Ok((found, offset))
    }

    /// The places of `len` bytes from `offset` on, if the exposure has not ended.
    pub(crate) fn places(
        &self,
        found: Found,
        offset: u32,
        len: u32,
        each: &mut dyn FnMut(Slice),
    ) -> bool {
        let Some(slot) = self.slot(found) else {
            return false;
        };
        parts(slot.slices.iter(), offset, len, each);
        true
    }

    /// Whether it has not ended.
    pub(crate) fn is_valid(&self, found: Found) -> bool {
        self.slot(found).is_some()
    }

    /// This frame has bytes of it.
    pub(crate) fn is_framed(&mut self, found: Found, frame: u64) {
        if self.is_valid(found) {
            self.slots[found.slot as usize].framed = frame;
        }
    }

    /// The last frame that has bytes of it; 0 if none has.
    pub(crate) fn framed(&self, key: Key) -> u64 {
        let slot = self.find(key.0).and_then(|found| self.slot(found));
        slot.map_or(0, |slot| slot.framed)
    }

    /// Ends an exposure; says whether there was one.
    pub(crate) fn invalidate(&mut self, key: Key) -> bool {
        let Some(found) = self.find(key.0) else {
            return false;
        };
        let lives = self.lives();
        let slot = &mut self.slots[found.slot as usize];
        slot.live = false;
        slot.slices.clear();
        self.live -= 1;
        // One is kept for the tag that is skipped.
        if slot.life + 2 <= lives {
            slot.life += 1;
            self.free.push_back(found.slot);
        }
        true
    }

    /// Ends all of them.
    pub(crate) fn clear(&mut self) {
        self.slots = Vec::new();
        self.free = VecDeque::new();
        self.live = 0;
        self.max = 0;
    }
}

/// The part of a list that begins at `offset` and has `len` bytes.
pub(crate) fn parts<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    offset: u32,
    len: u32,
    each: &mut dyn FnMut(Slice),
) {
    let (mut skip, mut left) = (offset, len);
    for slice in slices {
        if left == 0 {
            return;
        }
        if skip >= slice.len {
            skip -= slice.len;
            continue;
        }
        let part = slice.part(skip, left);
        skip = 0;
        left -= part.len;
        each(part);
    }
}

/// A permutation of 32-bit numbers: a Feistel network of four rounds over halves.
#[derive(Debug)]
struct Cipher([u64; 4]);

impl Cipher {
    fn new(entropy: [u8; ENTROPY]) -> Self {
        let mut keys = [0; 4];
        for (key, bytes) in keys.iter_mut().zip(entropy.chunks_exact(8)) {
            *key = bytes
                .iter()
                .fold(0, |key, byte| key << 8 | u64::from(*byte));
        }
        Self(keys)
    }

    fn encipher(&self, number: u32) -> u32 {
        let (mut left, mut right) = (number >> 16, number & 0xFFFF);
        for key in self.0 {
            (left, right) = (right, left ^ round(key, right));
        }
        left << 16 | right
    }

    fn decipher(&self, number: u32) -> u32 {
        let (mut left, mut right) = (number >> 16, number & 0xFFFF);
        for key in self.0.iter().rev() {
            (left, right) = (right ^ round(*key, left), left);
        }
        left << 16 | right
    }
}

/// 16 bits of a key and half a number (the finisher of splitmix64, keyed at both ends).
fn round(key: u64, half: u32) -> u32 {
    let mut mixed = key ^ u64::from(half).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed = (mixed ^ mixed >> 31).wrapping_add(key.rotate_left(32));
    mixed = (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    u32::try_from(mixed >> 48).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;
    use std::vec;

    use super::*;
    use crate::verbs::MemoryId;

    const ENTROPY_A: [u8; ENTROPY] = *b"0123456789abcdef0123456789ABCDEF";

    fn slice(len: u32) -> Slice {
        Slice {
            memory: MemoryId(1),
            len,
            offset: 64,
        }
    }

    fn expose(tags: &mut Tags) -> Key {
        tags.expose(&[slice(10)], 10, Access::READ).unwrap().key
    }

    #[test]
    fn the_cipher_is_a_permutation() {
        let cipher = Cipher::new(ENTROPY_A);
        for number in (0..1 << 20).chain([u32::MAX, u32::MAX - 1, 1 << 31]) {
            assert_eq!(cipher.decipher(cipher.encipher(number)), number);
        }
    }

    #[test]
    fn a_tag_never_comes_back_and_its_slot_ends_with_its_lives() {
        // 20 bits of slots leave 12 of lives.
        let mut tags = Tags::new((1 << 20) - 1, ENTROPY_A);
        tags.max = 1;
        let mut seen = HashSet::new();
        let mut count = 0;
        loop {
            match tags.expose(&[slice(10)], 10, Access::READ) {
                Ok(remote) => {
                    assert!(seen.insert(remote.key), "{:?} came back", remote.key);
                    assert_ne!(remote.key.0, 0);
                    assert!(tags.invalidate(remote.key));
                    assert!(!tags.is_live(remote.key) && !tags.invalidate(remote.key));
                    count += 1;
                }
                Err(error) => {
                    assert_eq!(error, PostError::KeysSpent);
                    break;
                }
            }
        }
        assert!((4000..4096).contains(&count), "{count}");
        assert_eq!(tags.live(), 0);
    }

    #[test]
    fn tags_of_other_connections_and_neighbours_mean_nothing() {
        let mut tags = Tags::new(1000, ENTROPY_A);
        let mut entropy = ENTROPY_A;
        entropy[31] ^= 1;
        let mut other = Tags::new(1000, entropy);
        let keys: Vec<Key> = (0..100).map(|_| expose(&mut tags)).collect();
        for key in &keys {
            assert!(tags.is_live(*key));
            assert!(!other.is_live(*key));
            for step in 1..300 {
                let near = Key(key.0.wrapping_add(step));
                assert!(keys.contains(&near) || !tags.is_live(near));
            }
        }
        let theirs = expose(&mut other);
        assert!(!tags.is_live(theirs));
    }

    #[test]
    fn as_many_as_were_agreed_upon_and_no_more() {
        let mut tags = Tags::new(3, ENTROPY_A);
        let keys = [(); 3].map(|()| expose(&mut tags));
        let full = tags.expose(&[slice(10)], 10, Access::READ);
        assert_eq!(full, Err(PostError::Full { max: 3 }));
        assert!(tags.invalidate(keys[1]));
        expose(&mut tags);
        assert_eq!(tags.live(), 3);
    }

    #[test]
    fn sinks_expose_nothing() {
        let mut tags = Tags::new(3, ENTROPY_A);
        let mut seen = HashSet::new();
        for _ in 0..10_000 {
            let sink = tags.sink();
            assert!(seen.insert(sink) && sink != 0);
            assert!(!tags.is_live(Key(sink)));
        }
    }

    #[test]
    fn every_check_has_its_refusal() {
        let mut tags = Tags::new(3, ENTROPY_A);
        let key = tags
            .expose(&[slice(6), slice(4)], 10, Access::READ)
            .unwrap()
            .key;
        assert!(tags.check(key.0, BASE + 3, 7, false).is_ok());
        assert!(tags.check(key.0, BASE + 10, 0, false).is_ok());
        let refused =
            |key: u32, address, len, write| tags.check(key, address, len, write).unwrap_err();
        let bad = Key(key.0 ^ 1);
        assert_eq!(refused(bad.0, BASE, 1, false), Refusal::Key { key: bad });
        assert_eq!(refused(key.0, BASE, 1, true), Refusal::Access { key });
        for (address, len) in [
            (BASE, 11),
            (BASE + 10, 1),
            (BASE + 11, 0),
            (BASE - 1, 1),
            (0, 1),
            (u64::MAX, 0),
        ] {
            let expected = Refusal::Bounds { key, address, len };
            assert_eq!(refused(key.0, address, len, false), expected);
        }
        let expected = Refusal::Wrap {
            address: u64::MAX,
            len: 1,
        };
        assert_eq!(refused(key.0, u64::MAX, 1, false), expected);
    }

    #[test]
    fn places_are_parts_of_the_list_in_order() {
        let mut tags = Tags::new(3, ENTROPY_A);
        let list = [slice(6), slice(4), slice(5)];
        let key = tags.expose(&list, 15, Access::WRITE).unwrap().key;
        let (found, offset) = tags.check(key.0, BASE + 4, 8, true).unwrap();
        let mut places = vec![];
        assert!(tags.places(found, offset, 8, &mut |place| places.push(place)));
        assert_eq!(places, [slice(6).part(4, 9), slice(4), slice(5).part(0, 2)]);
        tags.invalidate(key);
        assert!(!tags.is_valid(found));
        assert!(!tags.places(found, offset, 8, &mut |_| panic!("it has ended")));
    }
}
