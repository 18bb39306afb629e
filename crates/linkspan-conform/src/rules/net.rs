//! What holds for network devices: frames on the queue to transmit.

use super::chains::chained;
use crate::device::{FRAME, HEADER};
use crate::memory::{GUEST, LEN};
use crate::ring::{BUFFERS, Desc, NEXT, WRITE};
use crate::{Kind, Rule, Stop, Target};

const NET: &[Kind] = &[Kind::Net];

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "net-any-layout",
        says: "A frame is taken in whatever pieces its buffers come.",
        clause: "virtio 1.3 2.7.4.1",
        kinds: NET,
        check: |target| {
            let mut device = target.serving()?;
            device.request()?;
            device.submit(&[
                Desc(HEADER, 3, NEXT, 1),
                Desc(HEADER + 3, 20, NEXT, 2),
                Desc(HEADER + 23, FRAME - 23, 0, 0),
            ])?;
            device.used()?;
            Ok("taken".into())
        },
    },
    frame(
        "net-shorter-than-header",
        "A frame that is shorter than its header does no harm.",
        |target| chained(target, |_| Ok(vec![Desc(HEADER, 4, 0, 0)])),
    ),
    frame(
        "net-without-frame",
        "A header without a frame does no harm.",
        |target| chained(target, |_| Ok(vec![Desc(HEADER, 12, 0, 0)])),
    ),
    frame(
        "net-frame-of-1-byte",
        "A frame of one byte does no harm.",
        |target| {
            chained(target, |_| {
                Ok(vec![Desc(HEADER, 12, NEXT, 1), Desc(HEADER + 12, 1, 0, 0)])
            })
        },
    ),
    frame(
        "net-frame-huge",
        "A frame of most of a mebibyte does no harm.",
        |target| {
            chained(target, |_| {
                let len = u32::try_from(LEN - BUFFERS - 0x1000).expect("less than 1 MiB");
                Ok(vec![Desc(HEADER, len, 0, 0)])
            })
        },
    ),
    frame(
        "net-frame-in-crumbs",
        "A frame of 60 pieces of one byte does no harm.",
        |target| {
            chained(target, |device| {
                device.request()?;
                let piece = |at: u16| Desc(HEADER + u64::from(at), 1, NEXT, at + 1);
                let mut chain: Vec<_> = (0..60).map(piece).collect();
                chain.push(Desc(HEADER + 60, 12, 0, 0));
                Ok(chain)
            })
        },
    ),
    frame(
        "net-offload-lies",
        "A header that asks for offloads beyond the frame does no harm.",
        |target| {
            chained(target, |device| {
                let chain = device.request()?;
                // NEEDS_CSUM, TCP over IPv4, header length, segment size, where the checksum is.
                let header = [1, 1, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff];
                device.memory.write(BUFFERS, &header)?;
                Ok(chain)
            })
        },
    ),
    frame(
        "net-segment-size-0",
        "A header that asks for segments of 0 bytes does no harm.",
        |target| {
            chained(target, |device| {
                let mut chain = device.request()?;
                let header = [1, 1, 54, 0, 0, 0, 34, 0, 16, 0];
                device.memory.write(BUFFERS, &header)?;
                chain[0].1 = 0x8000;
                Ok(chain)
            })
        },
    ),
    frame(
        "net-writable-to-transmit",
        "A frame in a buffer to write does no harm, and is not written.",
        |target| {
            let mut device = target.serving()?;
            device.request()?;
            device.make_available(&[Desc(HEADER, FRAME, WRITE, 0)])?;
            let picture = device.picture()?;
            device.ring().kick()?;
            device.watch(target.settle)?;
            device.untouched(&picture, &[])?;
            Ok("not written".into())
        },
    ),
    frame(
        "net-frame-outside",
        "A frame of which a later piece is outside memory does no harm.",
        |target| {
            chained(target, |device| {
                device.request()?;
                Ok(vec![
                    Desc(HEADER, FRAME, NEXT, 1),
                    Desc(GUEST + 16 * LEN, 512, 0, 0),
                ])
            })
        },
    ),
];

const fn frame(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        name,
        says,
        clause: "safety; virtio 1.3 5.1.6.2",
        kinds: NET,
        check,
    }
}
