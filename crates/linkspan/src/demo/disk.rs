//! The demo's disk image, what the guest writes to it, and what must be in the
//! image afterwards.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Error;
use super::initramfs::GuestFile;

/// Bytes of a sector, the unit in which virtio counts a disk (virtio 1.3 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// The smallest disk on which a [`Plan`] has room.
pub const PLAN_DISK_BYTES_MIN: u64 = 1 << 20;

const CHUNK_BYTES: usize = 1 << 16;

/// The disk as it was before the guest touched it.
#[derive(Clone, Debug)]
pub enum Base {
    /// The demo pattern, this many bytes of it.
    Pattern(u64),
    /// The content of a file that nobody changes meanwhile.
    File(PathBuf),
}

impl Base {
    /// Reads it from its start.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Read>, Error> {
        match self {
            Self::Pattern(bytes) => Ok(Box::new(Pattern {
                at: 0,
                sector: [0; 512],
                end: *bytes,
            })),
            Self::File(path) => Ok(Box::new(
                File::open(path).map_err(Error::file("open", path))?,
            )),
        }
    }

    /// Its SHA-256 in lower-case hex.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::System`] where it cannot be read.
    pub fn sha256(&self) -> Result<String, Error> {
        sha256(&mut self.open()?).map_err(Error::system("read the disk's first content"))
    }

    /// Writes it to a new file.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be made.
    pub fn write_to(&self, path: &Path) -> Result<(), Error> {
        let write = |base: &mut dyn Read| -> io::Result<()> {
            let mut image = io::BufWriter::with_capacity(CHUNK_BYTES, File::create_new(path)?);
            io::copy(base, &mut image)?;
            image.flush()
        };
        write(&mut self.open()?).map_err(Error::file("write", path))
    }
}

/// The demo pattern: each sector begins with a line that says which it is, so
/// that a person sees something, and goes on with numbers that depend on place,
/// so that a byte from elsewhere shows in the hash.
struct Pattern {
    at: u64,
    sector: [u8; 512],
    end: u64,
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let within = usize::try_from(self.at % SECTOR_BYTES).expect("below 512");
        if within == 0 {
            self.sector = pattern_sector(self.at / SECTOR_BYTES);
        }
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let count = buffer.len().min(512 - within).min(left);
        buffer[..count].copy_from_slice(&self.sector[within..within + count]);
        self.at += count as u64;
        Ok(count)
    }
}

fn pattern_sector(index: u64) -> [u8; 512] {
    let mut sector = [0; 512];
    let mut numbers = Numbers(index);
    for word in sector.chunks_exact_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }
    let line = format!("Linkspan demo disk, sector {index:12}\n");
    sector[..line.len()].copy_from_slice(line.as_bytes());
    sector
}

/// SplitMix64: well mixed numbers from a seed, for data that must not look alike.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What the guest writes, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    places: Vec<Place>,
}

/// One write of the guest.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    offset: u64,
    data: Vec<u8>,
    /// Bytes of one request; the data may need several.
    block: usize,
    /// The processor, and so the queue, that writes it.
    cpu: u16,
    /// Through the guest's page cache instead of past it.
    cached: bool,
}

impl Plan {
    /// Places on a disk of `disk_bytes`: its first and last sector, a small and a
    /// large place for each queue, one through the page cache, and last the
    /// marker that tells the second boot from the first. Another `seed` gives
    /// other places and other data.
    ///
    /// # Errors
    /// [`PlanError`] where the disk is too small or not whole sectors.
    pub fn new(disk_bytes: u64, queues: u16, seed: u64) -> Result<Self, PlanError> {
        if disk_bytes < PLAN_DISK_BYTES_MIN || !disk_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(PlanError { disk_bytes });
        }
        let mut numbers = Numbers(seed);
        // (name, most bytes, block or 0 for one request, cpu, cached)
        let mut wanted = Vec::new();
        for queue in 0..queues {
            wanted.push((format!("q{queue}-small"), 4096, 512, queue, false));
            wanted.push((format!("q{queue}-large"), 128 << 10, 0, queue, false));
        }
        wanted.push(("cached".to_owned(), 64 << 10, 0, 0, true));
        wanted.push(("marker".to_owned(), 512, 0, 0, false));
        // The middle of the disk in equal slots, so that no two places overlap.
        let slot_sectors = (disk_bytes / SECTOR_BYTES - 2) / wanted.len() as u64;
        let place = |offset, bytes, name, block, cpu, cached, numbers: &mut Numbers| Place {
            name,
            offset,
            data: random_bytes(bytes, numbers),
            block: if block == 0 { bytes } else { block },
            cpu,
            cached,
        };
        let last = disk_bytes - SECTOR_BYTES;
        let mut places = vec![
            place(0, 512, "first".to_owned(), 0, 0, false, &mut numbers),
            place(
                last,
                512,
                "last".to_owned(),
                0,
                queues - 1,
                false,
                &mut numbers,
            ),
        ];
        for (slot, (name, most, block, cpu, cached)) in (0u64..).zip(wanted) {
            let sectors = (slot_sectors / 2).clamp(1, most / SECTOR_BYTES);
            let sector = 1 + slot * slot_sectors + numbers.next() % (slot_sectors - sectors + 1);
            let bytes = usize::try_from(sectors * SECTOR_BYTES).expect("at most 128 KiB");
            places.push(place(
                sector * SECTOR_BYTES,
                bytes,
                name,
                block,
                cpu,
                cached,
                &mut numbers,
            ));
        }
        Ok(Self { places })
    }

    /// The names of the places, in the order of writing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|place| place.name.as_str())
    }

    /// The files that tell the guest's init what to write.
    #[must_use]
    pub fn guest_files(&self) -> Vec<GuestFile> {
        let mut table = String::new();
        let mut files = Vec::new();
        for Place {
            name,
            offset,
            data,
            block,
            cpu,
            cached,
        } in &self.places
        {
            let how = if *cached { "cached" } else { "direct" };
            table += &format!("{name} {offset} {} {block} {cpu} {how}\n", data.len());
            files.push(GuestFile {
                path: format!("check/{name}"),
                data: data.clone(),
            });
        }
        files.push(GuestFile {
            path: "check/plan".to_owned(),
            data: table.into_bytes(),
        });
        files
    }

    /// Compares `image` with `base` and all writes of this plan applied to it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn compare(&self, base: &mut dyn Read, image: &mut dyn Read) -> io::Result<ImageState> {
        let mut state = ImageState {
            sha256: String::new(),
            wrong_bytes: 0,
            first_wrong: None,
        };
        let mut hash = Sha256::new();
        let (mut want, mut have) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let mut offset = 0;
        loop {
            let wanted = read_full(base, &mut want)?;
            let got = read_full(image, &mut have)?;
            if wanted.max(got) == 0 {
                state.sha256 = hex(&hash.finalize());
                return Ok(state);
            }
            self.apply(offset, &mut want[..wanted]);
            hash.update(&have[..got]);
            let common = wanted.min(got);
            let wrong = |index: &usize| want[*index] != have[*index];
            let first = (0..common)
                .find(wrong)
                .or((wanted != got).then_some(common));
            if let Some(index) = first {
                state.first_wrong.get_or_insert(offset + index as u64);
                let differing = (0..common).filter(wrong).count() + wanted.abs_diff(got);
                state.wrong_bytes += differing as u64;
            }
            offset += CHUNK_BYTES as u64;
        }
    }

    /// Puts those parts of the writes that fall into `chunk` at `start` there.
    fn apply(&self, start: u64, chunk: &mut [u8]) {
        let end = start + chunk.len() as u64;
        for place in &self.places {
            let place_end = place.offset + place.data.len() as u64;
            let (from, to) = (place.offset.max(start), place_end.min(end));
            if from < to {
                let index =
                    |base: u64, at: u64| usize::try_from(at - base).expect("within a buffer");
                chunk[index(start, from)..index(start, to)].copy_from_slice(
                    &place.data[index(place.offset, from)..index(place.offset, to)],
                );
            }
        }
    }
}

/// A disk on which a plan has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{disk_bytes} bytes are less than {PLAN_DISK_BYTES_MIN} or no multiple of 512")]
pub struct PlanError {
    /// The size of the disk.
    pub disk_bytes: u64,
}

/// An image after the guest wrote to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageState {
    /// SHA-256 of the whole image, in lower-case hex.
    pub sha256: String,
    /// How many bytes are not what they should be, missing and surplus ones included.
    pub wrong_bytes: u64,
    /// Where the first of them is.
    pub first_wrong: Option<u64>,
}

fn sha256(reader: &mut dyn Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match read_full(reader, &mut chunk)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&chunk[..count]),
        }
    }
}

/// Reads until `buffer` is full or the end is reached.
fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn random_bytes(count: usize, numbers: &mut Numbers) -> Vec<u8> {
    let words = std::iter::repeat_with(|| numbers.next().to_le_bytes());
    words.flatten().take(count).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn read_all(base: &Base) -> Vec<u8> {
        let mut bytes = Vec::new();
        base.open().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn written(plan: &Plan, base: &[u8]) -> Vec<u8> {
        let mut image = base.to_vec();
        for place in &plan.places {
            let at = usize::try_from(place.offset).unwrap();
            image[at..at + place.data.len()].copy_from_slice(&place.data);
        }
        image
    }

    #[test]
    fn the_pattern_differs_in_every_sector_and_is_nowhere_empty() {
        let bytes = read_all(&Base::Pattern(MIB));
        assert_eq!(bytes.len() as u64, MIB);
        let sectors: std::collections::HashSet<&[u8]> = bytes.chunks(512).collect();
        assert_eq!(sectors.len(), 2048);
        assert!(bytes.starts_with(b"Linkspan demo disk, sector            0\n"));
        assert!(
            bytes
                .chunks(512)
                .all(|sector| sector.iter().any(|&byte| byte != 0))
        );
    }

    #[test]
    fn hashes_are_those_of_sha256() {
        // FIPS 180-2, appendix B.1.
        let abc = sha256(&mut &b"abc"[..]).unwrap();
        assert_eq!(
            abc,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn places_of_every_plan_are_on_the_disk_and_do_not_overlap() {
        for (bytes, queues) in [
            (MIB, 1),
            (MIB, 64),
            (MIB + 512, 3),
            (64 * MIB, 4),
            (1 << 40, 64),
        ] {
            for seed in 0..8 {
                let plan = Plan::new(bytes, queues, seed).unwrap();
                let mut ranges: Vec<(u64, u64)> = plan
                    .places
                    .iter()
                    .map(|p| (p.offset, p.offset + p.data.len() as u64))
                    .collect();
                ranges.sort_unstable();
                assert!(
                    ranges.windows(2).all(|w| w[0].1 <= w[1].0),
                    "{bytes} {queues} {seed}: {ranges:?}"
                );
                assert_eq!(
                    ranges.last().unwrap().1,
                    bytes,
                    "the last sector is written"
                );
                assert_eq!(ranges[0], (0, 512), "the first sector is written");
                for place in &plan.places {
                    assert_eq!(place.offset % 512, 0);
                    assert_eq!(place.data.len() % place.block, 0);
                    assert!(place.cpu < queues);
                }
                assert_eq!(plan.names().last(), Some("marker"));
            }
        }
    }

    #[test]
    fn disks_without_room_are_refused() {
        for disk_bytes in [0, MIB - 512, MIB + 1] {
            assert_eq!(
                Plan::new(disk_bytes, 1, 0).unwrap_err(),
                PlanError { disk_bytes }
            );
        }
    }

    #[test]
    fn exactly_the_planned_writes_pass() {
        let base = read_all(&Base::Pattern(2 * MIB));
        let plan = Plan::new(2 * MIB, 2, 7).unwrap();
        let image = written(&plan, &base);
        let state = plan.compare(&mut &base[..], &mut &image[..]).unwrap();
        let want = ImageState {
            sha256: sha256(&mut &image[..]).unwrap(),
            wrong_bytes: 0,
            first_wrong: None,
        };
        assert_eq!(state, want);
    }

    #[test]
    fn a_missing_write_a_stray_byte_and_a_changed_length_are_found() {
        let base = read_all(&Base::Pattern(MIB));
        let plan = Plan::new(MIB, 1, 7).unwrap();
        let good = written(&plan, &base);
        let wrong = |image: &[u8]| plan.compare(&mut &base[..], &mut &image[..]).unwrap();

        let missing = &plan.places[3];
        let at = usize::try_from(missing.offset).unwrap();
        let mut image = good.clone();
        image[at..at + missing.data.len()].copy_from_slice(&base[at..at + missing.data.len()]);
        assert!(wrong(&image).first_wrong.unwrap() >= missing.offset);

        for at in [0, 70_000, good.len() - 1] {
            let mut image = good.clone();
            image[at] ^= 1;
            assert_eq!(
                (wrong(&image).wrong_bytes, wrong(&image).first_wrong),
                (1, Some(at as u64))
            );
        }
        assert_eq!(wrong(&good[..good.len() - 512]).wrong_bytes, 512);
        let longer = [&good[..], &[0; 100_000]].concat();
        assert_eq!(
            (wrong(&longer).wrong_bytes, wrong(&longer).first_wrong),
            (100_000, Some(MIB))
        );
    }
}
