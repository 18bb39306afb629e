//! Where a ring goes on of a device that does not say it.

use linkspan_mem::{GuestMemory, SplitRing, UserVa};
use linkspan_virtio::{Features, QueueLayout};

/// What the used ring of a split ring in this memory says.
pub(super) fn used_index(
    memory: &GuestMemory,
    features: u64,
    size: u16,
    areas: [UserVa; 3],
) -> Option<u32> {
    let layout = QueueLayout::of(Features::from_bits_retain(features));
    if layout != QueueLayout::Split {
        return None;
    }
    let lens = layout.part_lens(size);
    let window = |part: usize| memory.front_end.window(areas[part], lens[part]).ok();
    let ring = SplitRing::new(window(0)?, window(1)?, window(2)?, size);
    Some(ring.ok()?.used_index().into())
}
