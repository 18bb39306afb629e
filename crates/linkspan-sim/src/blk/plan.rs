//! What a seed decides: the link, the load, and what goes wrong.

use crate::Rng;
use crate::history::{BLOCK, BLOCKS};
use linkspan_devices::block::{Block, BlockOptions};
use linkspan_vhost::ProtocolFeatures;
use linkspan_virtio::Features;

/// Blocks of one request at most.
pub(crate) const BLOCKS_MAX: u64 = 4;

/// A fault of the model, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There is none.
    #[default]
    None,
    /// The next back end does not look at what the last one had in flight.
    NoReplay,
    /// It does that again in another order than it was taken.
    ReplayOutOfOrder,
    /// Now and then a write is answered with a block that was not written.
    LosesBlock,
    /// What a killed back end had begun to write is written later.
    WritesAfterDeath,
    /// Now and then a kick gets lost.
    LosesKick,
    /// Now and then a call gets lost.
    LosesCall,
}

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) features: Features,
    pub(crate) protocol: ProtocolFeatures,
    pub(crate) queues: u16,
    pub(crate) size: u16,
    /// Requests of a queue at a time.
    pub(crate) depth: u16,
    /// Requests in all.
    pub(crate) requests: u64,
    /// Things that go wrong in all.
    pub(crate) mishaps: u64,
    /// Whether back ends die in the middle of a store too.
    pub(crate) mortal: bool,
    pub(crate) block: Block,
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng, fault: Fault) -> Self {
        let queues = 1 + u16::try_from(rng.below(4)).expect("small");
        let packed = rng.percent(50);
        let size = if packed {
            4 + u16::try_from(rng.below(14)).expect("small")
        } else {
            4 << rng.below(3)
        };
        let options = BlockOptions {
            size_bytes: BLOCKS * BLOCK as u64,
            block_size: 512,
            physical_block_size: 4096,
            discard_granularity: 4096,
            queues,
            queue_size: size,
            read_only: false,
            serial: *b"simulation\0\0\0\0\0\0\0\0\0\0",
        };
        let block = Block::new(options).expect("a disk");
        let mut features = block.features() | Features::VIRTIO_F_VERSION_1;
        features.set(Features::VIRTIO_F_RING_PACKED, packed);
        features.set(Features::VIRTIO_F_INDIRECT_DESC, rng.percent(50));
        features.set(Features::VIRTIO_F_EVENT_IDX, rng.percent(50));
        features.set(Features::VIRTIO_F_IN_ORDER, rng.percent(25));
        let mut protocol = ProtocolFeatures::MQ | ProtocolFeatures::CONFIG;
        protocol.set(ProtocolFeatures::REPLY_ACK, rng.percent(75));
        protocol.set(ProtocolFeatures::CONFIGURE_MEM_SLOTS, rng.percent(50));
        protocol.set(ProtocolFeatures::INFLIGHT_SHMFD, rng.percent(80));
        protocol.set(ProtocolFeatures::RESET_DEVICE, rng.percent(50));
        Self {
            fault,
            features,
            protocol,
            queues,
            size,
            depth: 1 + u16::try_from(rng.below(8)).expect("small"),
            requests: 20 + rng.below(200),
            mishaps: rng.below(16),
            mortal: rng.percent(60),
            block,
        }
    }

    pub(crate) fn has(&self, feature: Features) -> bool {
        self.features.contains(feature)
    }
}
