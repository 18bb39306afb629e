//! What a seed decides: both ends, the load, and what goes wrong.

use crate::Rng;
use linkspan_rdma::verbs::Limits;
use linkspan_smbdirect::{Options, Role};

use super::ends::LIMITS;

/// The longest message, and the longest that both would take.
pub(crate) const MESSAGE_MAX: u32 = 65_536;
const FRAGMENTED_MAX: u32 = 131_072;

/// A fault of the model, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
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

/// Few, most of the time: then they run out.
fn credits(rng: &mut Rng) -> u16 {
    match rng.below(4) {
        0 => 1,
        1 => rng.short(1, 4),
        2 => rng.short(1, 32),
        _ => rng.short(1, 255),
    }
}

fn size(rng: &mut Rng) -> u32 {
    match rng.below(5) {
        0 => 128,
        1 => 1364,
        2 => 128 + rng.small(400),
        _ => 128 + rng.small(8064),
    }
}

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Plan<W> {
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
    /// How what is between both carries it.
    pub(crate) way: W,
}

impl<W> Plan<W> {
    pub(crate) fn new(rng: &mut Rng, fault: Fault, way: fn(&mut Rng) -> W) -> Self {
        let roles = [Role::Initiator, Role::Listener];
        let options = roles.map(|role| Options {
            receive_credit_max: credits(rng),
            send_credit_target: credits(rng),
            max_send_size: size(rng),
            max_receive_size: size(rng),
            max_fragmented_receive_size: FRAGMENTED_MAX,
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
            messages: rng.below(14),
            offers: rng.below(5),
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
            way: way(rng),
        }
    }
}
