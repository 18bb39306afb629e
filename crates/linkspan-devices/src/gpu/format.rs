//! Formats of virtio-gpu (virtio 1.3 5.7.6.8), each of four bytes.

/// A format of pixels. Its names say the order of bytes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Format {
    B8G8R8A8,
    B8G8R8X8,
    A8R8G8B8,
    X8R8G8B8,
    R8G8B8A8,
    X8B8G8R8,
    A8B8G8R8,
    R8G8B8X8,
}

impl Format {
    /// All formats with their numbers.
    pub const ALL: [(u32, Self); 8] = [
        (1, Self::B8G8R8A8),
        (2, Self::B8G8R8X8),
        (3, Self::A8R8G8B8),
        (4, Self::X8R8G8B8),
        (67, Self::R8G8B8A8),
        (68, Self::X8B8G8R8),
        (121, Self::A8B8G8R8),
        (134, Self::R8G8B8X8),
    ];

    pub(super) fn find(number: u32) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(known, _)| *known == number).map(|row| row.1)
    }
}
