//! What a seed decides: both ends, the load, and what goes wrong.

use linkspan_rdma::verbs::Limits;
use linkspan_smbdirect::{Options, Role};

use crate::ends::LIMITS;

/// The longest message.
pub(crate) const MESSAGE_MAX: u32 = 131_072;

/// A fault of the model, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Now and then a message is not delivered.
    LosesMessage,
    /// Now and then a message is delivered twice.
    RepeatsMessage,
    /// Now and then a byte of a message is another one.
    ChangesByte,
    /// Now and then a message grants nothing, whatever its sender meant.
    LosesGrant,
    /// A message overtakes what was written before it.
    Overtakes,
    /// Now and then a buffer is not given back.
    LosesBuffer,
    /// Now and then nobody hears that work is done.
    LosesCompletion,
    /// One receive less is posted than was said.
    PostsTooFew,
    /// Now and then an invalidation is forgotten.
    ForgetsToken,
}

/// Numbers that follow from a seed alone (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn small(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(end.into())).expect("below a small number")
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn short(&mut self, min: u16, max: u16) -> u16 {
        min + u16::try_from(self.below(u64::from(max - min) + 1)).expect("below a short")
    }

    /// Few, most of the time: then they run out.
    fn credits(&mut self) -> u16 {
        match self.below(4) {
            0 => 1,
            1 => self.short(1, 4),
            2 => self.short(1, 32),
            _ => self.short(1, 255),
        }
    }

    fn size(&mut self) -> u32 {
        match self.below(5) {
            0 => 128,
            1 => 1364,
            2 => 128 + self.small(400),
            _ => 128 + self.small(8064),
        }
    }
}

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) options: [Options; 2],
    pub(crate) limits: Limits,
    /// Times that both ends have something to do, and rest in between.
    pub(crate) phases: u64,
    /// Messages of an end in a phase, and pieces of memory that it lets the other reach.
    pub(crate) messages: u64,
    pub(crate) offers: u64,
    /// Things that go wrong in all, and how many of the posts are refused.
    pub(crate) mishaps: u64,
    pub(crate) refusals: u64,
    /// Whether messages are read when they are whole, or as they come.
    pub(crate) whole: [bool; 2],
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng, fault: Fault) -> Self {
        let roles = [Role::Initiator, Role::Listener];
        let options = roles.map(|role| Options {
            receive_credit_max: rng.credits(),
            send_credit_target: rng.credits(),
            max_send_size: rng.size(),
            max_receive_size: rng.size(),
            max_fragmented_receive_size: MESSAGE_MAX,
            inbound_reads: rng.short(1, 4),
            outbound_reads: rng.short(1, 4),
            send_gather: rng.short(2, 8),
            send_depth: rng.short(1, 40),
            transfer_depth: rng.short(1, 8),
            queue: rng.short(4, 40),
            registrations: rng.short(1, 8),
            ..Options::of(role)
        });
        let registrations = options.each_ref().map(|it| usize::from(it.registrations));
        let sizes = options.each_ref().map(|it| it.max_receive_size);
        let limits = Limits {
            receive_size: sizes[0].max(sizes[1]).max(512),
            works: 8 + rng.index(100),
            gather: 2 + rng.index(6),
            read_into: 1 + rng.index(4),
            work_bytes: 8192 << rng.below(4),
            exposures: registrations[0].max(registrations[1]),
            ..LIMITS
        };
        // A seed that is to show one fault has no other.
        let alone = fault == Fault::None;
        Self {
            options,
            limits,
            phases: 1 + rng.below(3),
            messages: rng.below(24),
            offers: rng.below(6),
            mishaps: if alone && rng.percent(60) {
                rng.below(4)
            } else {
                0
            },
            refusals: if alone && rng.percent(40) {
                rng.below(12)
            } else {
                0
            },
            whole: [rng.percent(50), rng.percent(50)],
        }
    }
}
