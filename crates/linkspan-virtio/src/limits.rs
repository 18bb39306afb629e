//! Every bound on what a driver may ask of a queue, with its reason.

/// Descriptors of one chain, those of an indirect table included. What QEMU
/// allows, and far above what drivers use; it bounds the work of one `pop`
/// where descriptors without bytes cost no segment.
pub const CHAIN_DESCRIPTORS_MAX: u16 = 1024;

/// Segments of one chain that suffice for any chain within
/// [`CHAIN_DESCRIPTORS_MAX`] that does not cross regions: a safe size for a
/// [`Chain`](crate::Chain) whose device sets no bound of its own.
pub const CHAIN_SEGMENTS_MAX: usize = 1024;

/// Bytes of one chain. A used element counts bytes in 32 bits, so more could
/// not be reported (virtio 1.3 2.7.5 allows no more than 2^32 either).
pub const CHAIN_BYTES_MAX: u64 = u32::MAX as u64;

/// Entries of one indirect table: the largest queue (virtio 1.3 2.7), so that
/// `next` can name each of them.
pub const INDIRECT_ENTRIES_MAX: u32 = 1 << 15;
