//! What holds for disks. Nothing is ever written to one.

use virtio_bindings::virtio_blk as blk;

use super::chains::chained;
use crate::device::{DATA, Device, HEADER, SECTOR, STATUS};
use crate::front_end::{broken, number};
use crate::memory::GUEST;
use crate::ring::{Desc, NEXT, WRITE};
use crate::{Kind, Rule, Stop, Target};

const BLK: &[Kind] = &[Kind::Blk];

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "blk-read-fills",
        says: "A read that succeeds has filled all of its buffer, with the same bytes each time.",
        clause: "virtio 1.3 5.2.6",
        kinds: BLK,
        check: |target| {
            let mut device = target.serving()?;
            let first = filled(&mut device, 0x00)?;
            let second = filled(&mut device, 0xff)?;
            match first == second {
                true => Ok("the same twice".into()),
                false => Err(broken("two reads of sector 0 differ".into())),
            }
        },
    },
    Rule {
        name: "blk-any-layout",
        says: "A request means the same in whatever pieces its buffers come.",
        clause: "virtio 1.3 2.7.4.1",
        kinds: BLK,
        check: |target| {
            let mut device = target.serving()?;
            let whole = filled(&mut device, 0)?;
            device.block_request(blk::VIRTIO_BLK_T_IN, 0, SECTOR)?;
            device.memory.write(DATA - GUEST, &[0; 512])?;
            device.submit(&[
                Desc(HEADER, 3, NEXT, 1),
                Desc(HEADER + 3, 13, NEXT, 2),
                Desc(DATA, 100, NEXT | WRITE, 3),
                Desc(DATA + 100, 412, NEXT | WRITE, 4),
                Desc(STATUS, 1, WRITE, 0),
            ])?;
            device.used()?;
            let found = device.memory.read(DATA - GUEST, 512)?;
            match (device.status()?, found == whole) {
                (0, true) => Ok("the same".into()),
                (0, false) => Err(broken("other bytes are read".into())),
                (status, _) => Err(broken(format!("status {status}"))),
            }
        },
    },
    Rule {
        name: "blk-last-sector",
        says: "The last sector that the capacity promises can be read.",
        clause: "virtio 1.3 5.2.4, 5.2.6",
        kinds: BLK,
        check: |target| {
            let mut device = target.serving()?;
            let last = capacity(&device)?.checked_sub(1);
            let last = last.ok_or_else(|| Stop::NotApplicable("the disk is empty".into()))?;
            match answered(&mut device, blk::VIRTIO_BLK_T_IN, last)? {
                0 => Ok(format!("sector {last}")),
                status => Err(broken(format!("sector {last}: status {status}"))),
            }
        },
    },
    Rule {
        name: "blk-beyond-capacity",
        says: "A read behind the last sector does not succeed.",
        clause: "virtio 1.3 5.2.6.1, 5.2.6.2",
        kinds: BLK,
        check: |target| {
            let mut device = target.serving()?;
            let end = capacity(&device)?;
            fails(&mut device, blk::VIRTIO_BLK_T_IN, end)
        },
    },
    Rule {
        name: "blk-sector-wraps",
        says: "A read whose place in bytes is beyond the largest number does not succeed.",
        clause: "virtio 1.3 5.2.6.1, 5.2.6.2",
        kinds: BLK,
        check: |target| {
            let mut device = target.serving()?;
            fails(&mut device, blk::VIRTIO_BLK_T_IN, u64::MAX)?;
            // 512 times this is a place within the disk again.
            fails(&mut device, blk::VIRTIO_BLK_T_IN, 1 << 55)
        },
    },
    Rule {
        name: "blk-unknown-type",
        says: "A request of a type that does not exist does not succeed.",
        clause: "virtio 1.3 5.2.6",
        kinds: BLK,
        check: |target| fails(&mut target.serving()?, 0x7777_7777, 0),
    },
    Rule {
        name: "blk-identifies",
        says: "A request for the name of the disk is answered.",
        clause: "virtio 1.3 5.2.6",
        kinds: BLK,
        check: |target| {
            let mut device = target.serving()?;
            let chain = device.block_request(blk::VIRTIO_BLK_T_GET_ID, 0, 20)?;
            device.submit(&chain)?;
            device.used()?;
            match device.status()? {
                status @ 0..=2 => Ok(format!("status {status}")),
                status => Err(broken(format!("status {status}"))),
            }
        },
    },
    odd(
        "blk-read-into-readable",
        "A read does not write to buffers that are to be read.",
        |target| {
            chained(target, |device| {
                let mut chain = device.request()?;
                chain[1].2 = NEXT;
                Ok(chain)
            })
        },
    ),
    odd(
        "blk-no-status",
        "A request without a byte for its status does no harm.",
        |target| {
            chained(target, |device| {
                let mut chain = device.request()?;
                chain.truncate(1);
                chain[0].2 = 0;
                Ok(chain)
            })
        },
    ),
    odd(
        "blk-status-readable",
        "A request whose byte for its status is to be read does no harm.",
        |target| {
            chained(target, |device| {
                let mut chain = device.request()?;
                chain[1].2 = NEXT;
                chain[2].2 = 0;
                Ok(chain)
            })
        },
    ),
    odd(
        "blk-header-short",
        "A request whose header is short does no harm.",
        |target| {
            chained(target, |device| {
                let mut chain = device.request()?;
                chain[0].1 = 8;
                Ok(chain)
            })
        },
    ),
    odd(
        "blk-header-missing",
        "A request without a header does no harm.",
        |target| {
            chained(target, |device| {
                device.request()?;
                Ok(vec![Desc(STATUS, 1, WRITE, 0)])
            })
        },
    ),
    odd(
        "blk-no-data",
        "A read of no bytes does no harm.",
        |target| {
            chained(target, |device| {
                device.request()?;
                Ok(vec![Desc(HEADER, 16, NEXT, 1), Desc(STATUS, 1, WRITE, 0)])
            })
        },
    ),
    odd(
        "blk-part-of-sector",
        "A read of a part of a sector does no harm.",
        |target| {
            chained(target, |device| {
                let mut chain = device.request()?;
                chain[1].1 = 100;
                Ok(chain)
            })
        },
    ),
];

const fn odd(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        name,
        says,
        clause: "safety; virtio 1.3 5.2.6",
        kinds: BLK,
        check,
    }
}

/// Sectors of the disk.
fn capacity(device: &Device) -> Result<u64, Stop> {
    let space = device.config()?;
    number(&space).ok_or_else(|| broken("the capacity cannot be read".into()))
}

/// Reads sector 0 into a buffer of such bytes; what is in the buffer then.
fn filled(device: &mut Device, byte: u8) -> Result<Vec<u8>, Stop> {
    device.memory.write(DATA - GUEST, &[byte; 512])?;
    device.serve()?;
    device.memory.read(DATA - GUEST, 512)
}

/// Makes a request that is answered; its status.
fn answered(device: &mut Device, kind: u32, sector: u64) -> Result<u8, Stop> {
    let chain = device.block_request(kind, sector, SECTOR)?;
    device.submit(&chain)?;
    device.used()?;
    device.status()
}

/// Makes a request that has to be answered, and must not succeed.
fn fails(device: &mut Device, kind: u32, sector: u64) -> Result<String, Stop> {
    match answered(device, kind, sector)? {
        status @ 1..=2 => Ok(format!("status {status}")),
        status => Err(broken(format!("status {status}"))),
    }
}
