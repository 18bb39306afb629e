//! A frame with another VLAN tag than it came with: its first bytes are written
//! anew, and places in it move.

use linkspan_devices::net::header::{Checksum, Gso, Offload, PartialChecksum};
use linkspan_devices::net::switch::Egress;
use linkspan_devices::net::{Frame, HEAD_LEN, VLAN_LEN};

use super::lane::Came;

/// The two addresses of a frame; its tag is behind them.
const ADDRESSES: usize = 12;
const TAG: [u8; 2] = [0x81, 0x00];

/// The first bytes of a frame with the tag that it is to have.
pub(super) struct Retagged {
    bytes: [u8; HEAD_LEN + VLAN_LEN],
    len: usize,
    offload: Offload,
}

impl Retagged {
    pub(super) fn new(egress: &Egress, came: &Came<'_>) -> Self {
        let head = came.frame.head;
        let tagged = head.get(ADDRESSES..ADDRESSES + 2) == Some(&TAG);
        // The switch takes no frame that is shorter.
        let rest = ADDRESSES + if tagged { VLAN_LEN } else { 0 };
        let (first, rest) = (&head[..ADDRESSES], head.get(rest..).unwrap_or(&[]));
        let tag = match egress {
            Egress::Tag(vlan) => Some(*vlan),
            _ => None,
        };
        let mut new = Self {
            bytes: [0; HEAD_LEN + VLAN_LEN],
            len: 0,
            offload: moved(came.offload, tagged, tag.is_some()),
        };
        new.put(first);
        if let Some(vlan) = tag {
            new.put(&TAG);
            new.put(&vlan.to_be_bytes());
        }
        new.put(rest);
        new
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// The frame with them.
    pub(super) fn came<'a>(&'a self, before: &Came<'a>) -> Came<'a> {
        Came {
            port: before.port,
            offload: &self.offload,
            frame: Frame {
                head: &self.bytes[..self.len],
                body: before.frame.body,
            },
        }
    }
}

/// What is left to do with a frame that loses a tag, or gets one.
fn moved(offload: &Offload, tagged: bool, tag: bool) -> Offload {
    let len = u16::try_from(VLAN_LEN).unwrap_or(0);
    let by = |place: u16| {
        let place = if tagged {
            place.saturating_sub(len)
        } else {
            place
        };
        if tag {
            place.saturating_add(len)
        } else {
            place
        }
    };
    let partial = |partial: PartialChecksum| PartialChecksum {
        start: by(partial.start),
        ..partial
    };
    match *offload {
        Offload::Whole(Checksum::Partial(checksum)) => {
            Offload::Whole(Checksum::Partial(partial(checksum)))
        }
        Offload::Segments(gso) => Offload::Segments(Gso {
            header_len: by(gso.header_len),
            checksum: partial(gso.checksum),
            ..gso
        }),
        whole => whole,
    }
}
