//! The header of a qcow2 file, looked at before anything else is read: what
//! would make a reader allocate without bound, or is not supported, ends here.
//!
//! The limits are QEMU's, so that what it makes is served.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The first bytes of every qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the header that are looked at: all of version 2, and the first
/// fields of version 3.
const LEN: usize = 104;

/// Bytes of the table of first-level entries at most.
const L1_BYTES_MAX: u64 = 32 << 20;

/// Bytes of the table of reference counts at most.
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;

/// Bytes of an entry of either table.
const ENTRY: u64 = 8;

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// It could not be read.
    #[error("the header cannot be read: {0}")]
    System(#[from] io::Error),
    /// Another format.
    #[error("this is no qcow2 image: it begins with {found:02x?} and not with QFI\\xfb")]
    Magic {
        /// The first bytes.
        found: [u8; 4],
    },
    /// A version of the format that is not served.
    #[error("version {0} of qcow2 is not supported; there are 2 and 3")]
    Version(u32),
    /// The content is encrypted.
    #[error("the image is encrypted (method {0}), which is not supported")]
    Encrypted(u32),
    /// Features that change what the content means.
    #[error("the image has features that are not supported: {0}")]
    Features(FeatureNames),
    /// Numbers that contradict the format or each other.
    #[error("{field} is {value}, which a qcow2 image cannot have ({why})")]
    Field {
        /// Which one.
        field: &'static str,
        /// What stands there.
        value: u64,
        /// What it would have to be.
        why: &'static str,
    },
}

/// Incompatible features by their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureNames(pub u64);

impl std::fmt::Display for FeatureNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = [
            "dirty (repair it with `qemu-img check -r all`)",
            "corrupt (repair it with `qemu-img check -r all`)",
            "external data file",
            "compression other than zlib",
            "extended L2 entries",
        ];
        let mut first = true;
        for bit in (0..64).filter(|bit| self.0 >> bit & 1 != 0) {
            if !std::mem::take(&mut first) {
                f.write_str(", ")?;
            }
            match known.get(bit) {
                Some(name) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
        }
        Ok(())
    }
}

/// Features that the reader has: an external data file.
const FEATURES_KNOWN: u64 = 1 << 2;

/// What is known of an image whose header was found good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the disk.
    pub(super) size: u64,
    /// Bytes of a cluster.
    pub(super) cluster: u32,
    /// Where the table of reference counts is.
    counts: u64,
    /// Bits of a reference count, as a power of two.
    count_order: u32,
}

impl Header {
    /// Reads and checks the header of a file.
    pub(super) fn read(file: &File) -> Result<Self, HeaderError> {
        let mut bytes = [0; LEN];
        let mut have = 0;
        while have < LEN {
            match file.read_at(&mut bytes[have..], have as u64)? {
                0 => break,
                count => have += count,
            }
        }
        Self::check(&bytes)
    }

    /// Checks that the reference counts begin as they must if the image is to be
    /// written: the header itself is counted as used. Without that the first thing
    /// that is allocated would take its place, and `imago` 0.2 recurses without end.
    pub(super) fn check_counts(&self, file: &File) -> Result<(), HeaderError> {
        let read = |at| {
            let mut word = [0; 8];
            match file.read_exact_at(&mut word, at) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok([0; 8]),
                result => result.map(|()| word),
            }
        };
        let entry = u64::from_be_bytes(read(self.counts)?);
        let block = entry & !0x1FF;
        if block == 0 || block >= 1 << 56 || !block.is_multiple_of(self.cluster.into()) {
            return Err(HeaderError::Field {
                field: "the first entry of the table of reference counts",
                value: entry,
                why: "a cluster; repair it with `qemu-img check -r all`",
            });
        }
        let (word, bits) = (read(block)?, 1 << self.count_order);
        let count = match bits {
            // Counts of less than a byte begin at its lowest bit.
            0..8 => u64::from(word[0]) & ((1 << bits) - 1),
            _ => u64::from_be_bytes(word) >> (64 - bits),
        };
        if count == 0 {
            return Err(HeaderError::Field {
                field: "the reference count of the header",
                value: 0,
                why: "it is used; repair it with `qemu-img check -r all`",
            });
        }
        Ok(())
    }

    /// Checks the first bytes of a file; what is missing of them is zero.
    pub(super) fn check(bytes: &[u8; LEN]) -> Result<Self, HeaderError> {
        let fields = Fields(bytes);
        let [a, b, c, d, ..] = *bytes;
        if [a, b, c, d] != MAGIC {
            return Err(HeaderError::Magic {
                found: [a, b, c, d],
            });
        }
        let version = fields.word(4);
        if !matches!(version, 2 | 3) {
            return Err(HeaderError::Version(version));
        }
        if fields.word(32) != 0 {
            return Err(HeaderError::Encrypted(fields.word(32)));
        }
        let unknown = fields.long(72) & !FEATURES_KNOWN;
        if version == 3 && unknown != 0 {
            return Err(HeaderError::Features(FeatureNames(unknown)));
        }
        let cluster_bits = fields.word(20);
        if !(9..=21).contains(&cluster_bits) {
            let why = "clusters have 2^9 to 2^21 bytes";
            return wrong("cluster_bits", cluster_bits.into(), why);
        }
        let count_order = if version == 2 { 4 } else { fields.word(96) };
        if count_order > 6 {
            return wrong("refcount_order", count_order.into(), "at most 6");
        }
        fields.check_tables(1 << cluster_bits)?;
        Ok(Self {
            size: fields.long(24),
            cluster: 1 << cluster_bits,
            counts: fields.long(48),
            count_order,
        })
    }
}

/// The first bytes of an image, with big-endian numbers in them.
struct Fields<'a>(&'a [u8; LEN]);

impl Fields<'_> {
    fn word(&self, at: usize) -> u32 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| self.0[at + i]);
        u32::from_be_bytes([a, b, c, d])
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }

    /// Checks sizes and places of the tables of an image with such clusters.
    fn check_tables(&self, cluster: u64) -> Result<(), HeaderError> {
        let (size, l1_entries) = (self.long(24), u64::from(self.word(36)));
        // One entry stands for a whole table of second level, a cluster.
        let l1_needed = size.div_ceil(cluster * (cluster / ENTRY));
        if l1_needed > L1_BYTES_MAX / ENTRY {
            let why = "its first-level table would have more than 32 MiB";
            return wrong("size", size, why);
        }
        if l1_entries > L1_BYTES_MAX / ENTRY {
            return wrong("l1_size", l1_entries, "at most 4194304 entries");
        }
        if l1_entries < l1_needed {
            return wrong("l1_size", l1_entries, "too few entries for the size");
        }
        let clusters = u64::from(self.word(56));
        if clusters == 0 || clusters > (REFCOUNT_TABLE_BYTES_MAX / cluster).max(1) {
            let why = "the table of reference counts has 1 cluster to 8 MiB";
            return wrong("refcount_table_clusters", clusters, why);
        }
        for (name, at, entries) in [
            ("l1_table_offset", 40, l1_entries),
            ("refcount_table_offset", 48, 1),
        ] {
            let offset = self.long(at);
            // Offsets in tables have 56 bits.
            let fits = offset < 1 << 56 && offset.is_multiple_of(cluster);
            if !fits || (entries > 0 && offset == 0) {
                return wrong(name, offset, "a cluster behind the header");
            }
        }
        Ok(())
    }
}

fn wrong<T>(field: &'static str, value: u64, why: &'static str) -> Result<T, HeaderError> {
    Err(HeaderError::Field { field, value, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header as `qemu-img create -f qcow2 disk 1G` makes it.
    fn good() -> [u8; LEN] {
        let mut bytes = [0; LEN];
        for (at, word) in [
            (0, 0x5146_49fb_u32),
            (4, 3),
            (20, 16),
            (28, 1 << 30),
            (36, 2),
            (44, 0x30000),
            (52, 0x10000),
            (56, 1),
            (96, 4),
            (100, 112),
        ] {
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn with(at: usize, word: u32) -> Result<Header, HeaderError> {
        let mut bytes = good();
        bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
        Header::check(&bytes)
    }

    #[test]
    fn a_good_header_is_good() {
        let header = Header::check(&good()).unwrap();
        let want = Header {
            size: 1 << 30,
            cluster: 1 << 16,
            counts: 0x10000,
            count_order: 4,
        };
        assert_eq!(header, want);
        assert!(with(4, 2).is_ok());
        // An external data file.
        assert!(with(76, 4).is_ok());
    }

    #[test]
    fn header_must_be_counted_as_used() {
        for (order, count, used) in [
            (4, &[0, 1][..], true),
            (4, &[0, 0, 1], false),
            (0, &[1], true),
            (0, &[2], false),
            (2, &[0xF0], false),
            (3, &[1], true),
            (5, &[0, 0, 0, 1], true),
            (6, &[0, 0, 0, 0, 0, 0, 0, 1], true),
            (6, &[], false),
        ] {
            let header = Header {
                count_order: order,
                ..Header::check(&good()).unwrap()
            };
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&0x20000_u64.to_be_bytes(), 0x10000)
                .unwrap();
            file.write_all_at(count, 0x20000).unwrap();
            file.set_len(0x30000).unwrap();
            assert_eq!(
                header.check_counts(&file).is_ok(),
                used,
                "{order} {count:?}"
            );
            for entry in [0_u64, 0x1FF, 0x20200, 1 << 56, u64::MAX] {
                file.write_all_at(&entry.to_be_bytes(), 0x10000).unwrap();
                assert!(header.check_counts(&file).is_err(), "{entry:#x}");
            }
        }
    }

    #[test]
    fn what_is_not_served_is_named() {
        assert!(matches!(with(0, 0), Err(HeaderError::Magic { .. })));
        assert!(matches!(with(4, 1), Err(HeaderError::Version(1))));
        assert!(matches!(with(32, 2), Err(HeaderError::Encrypted(2))));
        let error = with(76, 0b11001).unwrap_err().to_string();
        for name in ["dirty", "compression", "extended L2"] {
            assert!(error.contains(name), "{error}");
        }
        let error = with(72, 1 << 31).unwrap_err().to_string();
        assert!(error.contains("bit 63"), "{error}");
    }

    #[test]
    fn what_would_take_memory_without_bound_is_refused() {
        for (name, at, word) in [
            ("cluster_bits", 20, 8),
            ("cluster_bits", 20, 22),
            ("cluster_bits", 20, u32::MAX),
            ("size", 24, u32::MAX),
            ("l1_size", 36, 1),
            ("l1_size", 36, u32::MAX),
            ("l1_table_offset", 44, 0),
            ("l1_table_offset", 44, 0x30001),
            ("l1_table_offset", 40, u32::MAX),
            ("refcount_table_offset", 52, 0),
            ("refcount_table_offset", 48, u32::MAX),
            ("refcount_table_clusters", 56, 0),
            ("refcount_table_clusters", 56, 129),
            ("refcount_order", 96, 7),
        ] {
            match with(at, word) {
                Err(HeaderError::Field { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
