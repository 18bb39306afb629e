//! The frames that `linkspan driver net bench` sends, and knows again.

use linkspan_devices::net::driver::Received;

/// A batch of frames of ours: Ethernet of a type for experiments, a mark, the number of
/// the pair, then number and time of the frame, then bytes that stay the same.
pub(super) struct Stamped {
    size: usize,
    bytes: Vec<u8>,
}

/// Where the addresses end, and with them what a device that sends frames back may
/// change.
const ADDRESSES: usize = 12;
const NUMBER: usize = 20;
const TIME: usize = NUMBER + 8;
const REST: usize = TIME + 8;

impl Stamped {
    pub(super) fn new(size: u16, pair: u16, batch: u16) -> Self {
        let mut bytes: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[0]).collect();
        bytes[..ADDRESSES].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        // IEEE 802 local experimental EtherType 1.
        bytes[ADDRESSES..][..6].copy_from_slice(&[0x88, 0xB5, b'l', b's', b'p', b'n']);
        bytes[ADDRESSES + 6..NUMBER].copy_from_slice(&pair.to_be_bytes());
        Self {
            size: usize::from(size),
            bytes: bytes.repeat(usize::from(batch.max(1))),
        }
    }

    /// Gives the first `count` frames their numbers from `number` on and their time in
    /// nanoseconds. All of them before the first is copied: a processor is slow to
    /// copy what it has just written in smaller pieces.
    #[inline]
    pub(super) fn stamp(&mut self, count: u16, number: u64, time: u64) {
        let frames = self.bytes.chunks_exact_mut(self.size);
        for (number, frame) in (number..).zip(frames.take(usize::from(count))) {
            frame[NUMBER..TIME].copy_from_slice(&number.to_be_bytes());
            frame[TIME..REST].copy_from_slice(&time.to_be_bytes());
        }
    }

    #[inline]
    pub(super) fn frame(&self, at: u16) -> &[u8] {
        &self.bytes[usize::from(at) * self.size..][..self.size]
    }

    /// Number and time of a frame that came back; `None` when it is not as it was
    /// sent.
    #[inline]
    pub(super) fn read(&self, received: &Received<'_>, scratch: &mut [u8]) -> Option<(u64, u64)> {
        let frame = &received.frame;
        if frame.len() != self.size as u64 {
            return None;
        }
        let bytes = frame.read(scratch)?;
        let ours = self.frame(0);
        let same = |from: usize, to: usize| bytes[from..to] == ours[from..to];
        if !same(ADDRESSES, NUMBER - 2) || !same(REST, self.size) {
            return None;
        }
        let number = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        Some((number(NUMBER)?, number(TIME)?))
    }
}

#[cfg(test)]
mod tests {
    use linkspan_devices::net::Frame;
    use linkspan_devices::net::header::{Header, Offload};

    use super::*;

    fn read(stamped: &Stamped, bytes: &[u8]) -> Option<(u64, u64)> {
        let received = Received {
            offload: Offload::NONE,
            header: &Header::default(),
            frame: Frame::private(bytes),
        };
        stamped.read(&received, &mut vec![0; stamped.size])
    }

    #[test]
    fn a_frame_that_was_changed_is_noticed_and_its_addresses_may_change() {
        for size in [60, 64, 1514] {
            let mut stamped = Stamped::new(size, 3, 2);
            stamped.stamp(2, 6, 11);
            let sent = stamped.frame(1).to_vec();
            stamped.stamp(2, 8, 12);
            assert_eq!(read(&stamped, &sent), Some((7, 11)));
            for at in 0..sent.len() {
                let mut other = sent.clone();
                other[at] ^= 1;
                let found = read(&stamped, &other);
                match at {
                    0..ADDRESSES | 18..NUMBER => assert_eq!(found, Some((7, 11)), "byte {at}"),
                    NUMBER..REST => assert!(found.is_some_and(|found| found != (7, 11))),
                    _ => assert_eq!(found, None, "byte {at}"),
                }
            }
            assert_eq!(read(&stamped, &sent[1..]), None);
        }
    }
}
