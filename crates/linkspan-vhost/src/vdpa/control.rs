//! The commands that a bridge gives a network device on its control queue.

use alloc::vec::Vec;

/// Queue pairs that a device can have in use at most (virtio 1.3, 5.1.6.5.5).
pub const PAIRS_MAX: u16 = 0x8000;

/// A command on the control queue (virtio 1.3, 5.1.6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// `VIRTIO_NET_CTRL_MAC_ADDR_SET`.
    Mac([u8; 6]),
    /// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
    Pairs(u16),
}

impl ControlCommand {
    /// The bytes that the device reads; it answers with one byte, 0 for success.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let (head, body): ([u8; 2], &[u8]) = match self {
            Self::Mac(mac) => ([1, 1], mac),
            Self::Pairs(pairs) => ([4, 0], &pairs.to_le_bytes()),
        };
        [&head, body].concat()
    }
}

/// Which ring is the control queue (virtio 1.3, 5.1.2): behind all pairs that the
/// device can have if several were agreed upon, else behind the first.
#[must_use]
pub fn control_ring(mq: bool, pairs: u16) -> u16 {
    if mq { 2 * pairs.clamp(1, 0x7fff) } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_specification() {
        let mac = ControlCommand::Mac([2, 0, 0, 0, 0, 9]);
        assert_eq!(mac.bytes(), [1, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(ControlCommand::Pairs(0x102).bytes(), [4, 0, 2, 1]);
        assert_eq!((control_ring(false, 4), control_ring(true, 4)), (2, 8));
    }
}
