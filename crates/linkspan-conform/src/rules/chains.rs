//! Rings and chains that no driver may write. Whatever becomes of such a chain, its ring can be
//! stopped, nothing is written where nothing was given, and the next front end is served.

use linkspan_vhost::message::Request;

use super::BOTH;
use super::rings::needs_indirect;
use crate::device::{DATA, Device, HEADER, STATUS, state, writable};
use crate::front_end::broken;
use crate::memory::{GUEST, LEN};
use crate::ring::{Desc, INDIRECT, NEXT, SIZE, WRITE, Watched};
use crate::{Rule, Stop, Target};

/// Where a table of indirect descriptors lies.
const TABLE: u64 = GUEST + 0x2_0000;

pub(super) const RULES: &[Rule] = &[
    ring(
        "head-beyond-ring",
        "A head that is no descriptor of the ring does no harm.",
        |target| {
            let mut device = target.serving()?;
            device.publish(0xffff)?;
            let picture = device.picture()?;
            device.ring().kick()?;
            settle(&mut device, &picture, 0xffff, 0, &[])
        },
    ),
    ring(
        "available-index-jumps",
        "An index that runs ahead of the ring by more than its size does no harm.",
        |target| {
            let mut device = target.serving()?;
            let next = device.ring().available.wrapping_add(0x7fff);
            let ring = device.index();
            crate::ring::Ring::new(ring)?.set_index(&device.memory, next)?;
            device.ring().kick()?;
            // Chains that it may have found there are answered in any way.
            device.watch(target.settle)?;
            stopped(&device)
        },
    ),
    ring(
        "next-beyond-ring",
        "A descriptor whose next one is beyond the table does no harm.",
        |target| bent(target, |chain| chain[0] = Desc(HEADER, 16, NEXT, SIZE)),
    ),
    ring(
        "descriptors-loop",
        "Descriptors that follow each other in a circle do no harm.",
        |target| {
            chained(target, |_| {
                Ok(vec![Desc(HEADER, 16, NEXT, 1), Desc(HEADER, 16, NEXT, 0)])
            })
        },
    ),
    ring(
        "descriptors-loop-writable",
        "Descriptors to write that follow each other in a circle do no harm.",
        |target| {
            let mut device = target.serving()?;
            let first = device.request()?[0];
            let again = Desc(DATA, 512, NEXT | WRITE, 1);
            let chain = [Desc(first.0, first.1, NEXT, 1), again];
            // It may go round as often as the ring is long.
            judged(&mut device, &chain, &[again; SIZE as usize])
        },
    ),
    ring(
        "buffer-outside",
        "A buffer outside memory does no harm.",
        |target| bent(target, |chain| middle(chain).0 = GUEST + 16 * LEN),
    ),
    ring(
        "buffer-null",
        "A buffer at address 0 does no harm.",
        |target| bent(target, |chain| middle(chain).0 = 0),
    ),
    ring(
        "buffer-wraps",
        "A buffer whose end is beyond the largest address does no harm.",
        |target| bent(target, |chain| middle(chain).0 = u64::MAX - 7),
    ),
    ring(
        "buffer-across-end",
        "A buffer that begins in memory and ends beyond it does no harm.",
        |target| bent(target, |chain| middle(chain).0 = GUEST + LEN - 8),
    ),
    ring(
        "buffer-before-start",
        "A buffer that begins before memory and ends in it does no harm.",
        |target| bent(target, |chain| middle(chain).0 = GUEST - 8),
    ),
    ring(
        "buffer-4-gib",
        "A buffer of 4 GiB does no harm.",
        |target| bent(target, |chain| middle(chain).1 = u32::MAX),
    ),
    ring(
        "buffers-over-4-gib",
        "Buffers of more than 4 GiB in one chain do no harm.",
        |target| {
            chained(target, |device| {
                let mut chain = vec![device.request()?[0]];
                chain[0] = Desc(chain[0].0, chain[0].1, NEXT, 1);
                let more = (2..20).map(|next| Desc(DATA, 0xffff_fe00, NEXT | WRITE, next));
                chain.extend(more);
                chain.push(Desc(STATUS, 1, WRITE, 0));
                Ok(chain)
            })
        },
    ),
    ring(
        "buffer-empty",
        "A buffer of 0 bytes does no harm.",
        |target| bent(target, |chain| middle(chain).1 = 0),
    ),
    ring(
        "first-buffer-outside",
        "A chain whose first buffer is outside memory does no harm.",
        |target| bent(target, |chain| chain[0].0 = GUEST + 16 * LEN),
    ),
    ring(
        "last-buffer-outside",
        "A chain whose last buffer is outside memory does no harm.",
        |target| {
            bent(target, |chain| {
                chain.last_mut().expect("one").0 = GUEST + 16 * LEN
            })
        },
    ),
    ring(
        "writable-before-readable",
        "A buffer to read behind one to write does no harm.",
        |target| {
            chained(target, |device| {
                device.request()?;
                Ok(vec![
                    Desc(STATUS, 1, NEXT | WRITE, 1),
                    Desc(DATA, 512, NEXT | WRITE, 2),
                    Desc(HEADER, 16, 0, 0),
                ])
            })
        },
    ),
    ring(
        "buffer-is-the-ring",
        "A buffer to write that is the descriptor table does no harm.",
        |target| {
            let mut device = target.serving()?;
            let at = GUEST + device.ring().parts()[0];
            let mut chain = device.request()?;
            *middle(&mut chain) = Desc(at, 512, NEXT | WRITE, 2);
            if chain.len() == 1 {
                chain[0].2 = WRITE;
            }
            device.submit(&chain)?;
            device.watch(target.settle)?;
            stopped(&device)
        },
    ),
    indirect(
        "indirect-in-indirect",
        "An indirect table within an indirect table does no harm.",
        |target| tabled(target, 32, |_| vec![Desc(TABLE, 32, INDIRECT, 0)]),
    ),
    indirect(
        "indirect-length-odd",
        "An indirect table that ends within a descriptor does no harm.",
        |target| tabled(target, 17, |chain| chain),
    ),
    indirect(
        "indirect-empty",
        "An indirect table without descriptors does no harm.",
        |target| tabled(target, 0, |chain| chain),
    ),
    indirect(
        "indirect-4-gib",
        "An indirect table of 4 GiB does no harm.",
        |target| tabled(target, 0xffff_fff0, |chain| chain),
    ),
    indirect(
        "indirect-outside",
        "An indirect table outside memory does no harm.",
        |target| tabled_at(target, GUEST + 16 * LEN, 48),
    ),
    indirect(
        "indirect-across-end",
        "An indirect table that begins in memory and ends beyond it does no harm.",
        |target| tabled_at(target, GUEST + LEN - 16, 48),
    ),
    indirect(
        "indirect-wraps",
        "An indirect table whose end is beyond the largest address does no harm.",
        |target| tabled_at(target, u64::MAX - 15, 48),
    ),
    indirect(
        "indirect-next-beyond",
        "A descriptor of an indirect table whose next one is beyond it does no harm.",
        |target| {
            tabled(target, 48, |mut chain| {
                chain[0].2 |= NEXT;
                chain[0].3 = 0x8000;
                chain
            })
        },
    ),
    indirect(
        "indirect-loop",
        "Descriptors of an indirect table that follow each other in a circle do no harm.",
        |target| {
            tabled(target, 48, |mut chain| {
                chain[0].2 |= NEXT;
                chain[0].3 = 0;
                chain
            })
        },
    ),
    indirect(
        "indirect-long",
        "An indirect table with more descriptors than the ring has does no harm.",
        |target| {
            tabled(target, 16 * 4096, |_| {
                let desc = |next: u16| Desc(HEADER, 16, NEXT, next);
                (1..=4096).map(desc).collect()
            })
        },
    ),
    indirect(
        "indirect-and-next",
        "A descriptor that is an indirect table and has a next one does no harm.",
        |target| {
            let mut device = target.serving()?;
            needs_indirect(&device)?;
            let table = device.request()?;
            write_table(&device, &table)?;
            let last = Desc(DATA, 16, WRITE, 0);
            let chain = [Desc(TABLE, 48, INDIRECT | NEXT, 1), last];
            // It may take either of them for what is meant.
            judged(&mut device, &chain, &[&table[..], &[last]].concat())
        },
    ),
];

const fn ring(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        name,
        says,
        clause: "safety; virtio 1.3 2.7.5, 2.7.6",
        kinds: BOTH,
        check,
    }
}

const fn indirect(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        clause: "safety; virtio 1.3 2.7.5.3",
        ..ring(name, says, check)
    }
}

/// The descriptor of the data of a request; of its only one, if it has no other.
fn middle(chain: &mut [Desc]) -> &mut Desc {
    let middle = chain.len() / 2;
    &mut chain[middle]
}

/// Makes an honest request, but for one thing.
pub(super) fn bent(target: &Target, bend: fn(&mut Vec<Desc>)) -> Result<String, Stop> {
    chained(target, |device| {
        let mut chain = device.request()?;
        bend(&mut chain);
        Ok(chain)
    })
}

/// Makes this chain available on a ring that has served before; what became of it.
pub(super) fn chained(
    target: &Target,
    make: impl FnOnce(&Device) -> Result<Vec<Desc>, Stop>,
) -> Result<String, Stop> {
    let mut device = target.serving()?;
    let chain = make(&device)?;
    judged(&mut device, &chain, &chain)
}

/// Makes a request with a table of indirect descriptors that is said to have `len` bytes.
fn tabled(
    target: &Target,
    len: u32,
    bend: impl FnOnce(Vec<Desc>) -> Vec<Desc>,
) -> Result<String, Stop> {
    let mut device = target.serving()?;
    needs_indirect(&device)?;
    let table = bend(device.request()?);
    write_table(&device, &table)?;
    judged(&mut device, &[Desc(TABLE, len, INDIRECT, 0)], &table)
}

fn tabled_at(target: &Target, address: u64, len: u32) -> Result<String, Stop> {
    chained(target, |device| {
        needs_indirect(device)?;
        Ok(vec![Desc(address, len, INDIRECT, 0)])
    })
}

fn write_table(device: &Device, table: &[Desc]) -> Result<(), Stop> {
    let bytes: Vec<u8> = table.iter().flat_map(|desc| desc.bytes()).collect();
    device.memory.write(TABLE - GUEST, &bytes)
}

/// Submits a chain whose buffers are these, and watches.
fn judged(device: &mut Device, chain: &[Desc], buffers: &[Desc]) -> Result<String, Stop> {
    device.make_available(chain)?;
    let picture = device.picture()?;
    device.ring().kick()?;
    settle(device, &picture, 0, writable(buffers), &may_write(buffers))
}

/// The guest addresses that a device may write of these, with their lengths.
pub(super) fn may_write(chain: &[Desc]) -> Vec<(u64, u64)> {
    let may = chain.iter().filter(|desc| desc.2 & WRITE != 0);
    may.map(|desc| (desc.0, desc.1.into())).collect()
}

/// Watches what becomes of a chain that nobody should make.
fn settle(
    device: &mut Device,
    picture: &[u8],
    head: u32,
    room: u64,
    may_write: &[(u64, u64)],
) -> Result<String, Stop> {
    let seen = match device.watch(device.settle)? {
        Watched::Nothing => "leaves it".to_owned(),
        Watched::GaveUp => "gives the ring up".into(),
        Watched::Used(used) if used.id != head => {
            return Err(broken(format!(
                "used chain {}, which was not made available",
                used.id
            )));
        }
        Watched::Used(used) if u64::from(used.len) > room => {
            return Err(broken(format!(
                "says it wrote {} bytes of {room}",
                used.len
            )));
        }
        Watched::Used(used) => format!("used it, {} bytes written", used.len),
    };
    device.untouched(picture, may_write)?;
    let stopped = stopped(device)?;
    Ok(format!("{seen}; {stopped}"))
}

/// Stops the ring, which an honest front end does before it goes.
fn stopped(device: &Device) -> Result<String, Stop> {
    let body = state(device.index(), 0);
    match device.front.ask(Request::GetVringBase, &body, &[]) {
        Ok(_) => Ok("the ring stops".into()),
        Err(Stop::Refused(_)) => Ok("closed the connection".into()),
        Err(stop) => Err(stop),
    }
}
