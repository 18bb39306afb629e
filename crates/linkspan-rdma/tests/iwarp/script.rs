//! A peer that is a script: frames made by hand, and those that come read by hand.

use linkspan_mem::crc32c;
use linkspan_rdma::iwarp::Options;

use super::pair::End;

/// A frame without its length: the rest is added.
pub(crate) fn frame(ulpdu: &[u8], crc: bool) -> Vec<u8> {
    let len = u16::try_from(ulpdu.len()).unwrap();
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(ulpdu);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let sum = if crc { crc32c(0, &bytes) } else { 0 };
    bytes.extend(sum.to_le_bytes());
    bytes
}

pub(crate) fn tagged(control: u16, key: u32, address: u64, payload: &[u8]) -> Vec<u8> {
    [
        &control.to_be_bytes()[..],
        &key.to_be_bytes(),
        &address.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub(crate) fn untagged(control: u16, reserved: u32, place: [u32; 3], payload: &[u8]) -> Vec<u8> {
    let [queue, number, offset] = place;
    [
        &control.to_be_bytes()[..],
        &reserved.to_be_bytes(),
        &queue.to_be_bytes(),
        &number.to_be_bytes(),
        &offset.to_be_bytes(),
        payload,
    ]
    .concat()
}

pub(crate) fn read_request(number: u32, sink: u32, len: u32, key: u32, address: u64) -> Vec<u8> {
    let body = [
        &sink.to_be_bytes()[..],
        &0_u64.to_be_bytes(),
        &len.to_be_bytes(),
        &key.to_be_bytes(),
        &address.to_be_bytes(),
    ]
    .concat();
    untagged(READ_REQUEST, 0, [1, number, 0], &body)
}

pub(crate) const SEND: u16 = 0x4143;
pub(crate) const SEND_MORE: u16 = 0x0143;
pub(crate) const SEND_INVALIDATE: u16 = 0x4144;
pub(crate) const WRITE: u16 = 0xC140;
pub(crate) const WRITE_MORE: u16 = 0x8140;
pub(crate) const READ_REQUEST: u16 = 0x4141;
pub(crate) const READ_RESPONSE: u16 = 0xC142;
pub(crate) const READ_RESPONSE_MORE: u16 = 0x8142;
pub(crate) const TERMINATE: u16 = 0x4147;

/// A request of revision 2 without anything.
pub(crate) fn request() -> Vec<u8> {
    b"MPA ID Req Frame\x10\x02\x00\x04\x00\x10\x00\x10".to_vec()
}

pub(crate) fn reply() -> Vec<u8> {
    b"MPA ID Rep Frame\x10\x02\x00\x04\x00\x10\x00\x04".to_vec()
}

/// A responder that has accepted the script, with receives posted and events taken.
pub(crate) fn responder(options: Options) -> End {
    let mut end = End::responder(options);
    let mut request = request();
    if options.crc {
        request[16] |= 0x40;
    }
    end.receive(&request);
    end.connection.accept(b"", options.depth).unwrap();
    end.connection.post_receives(4).unwrap();
    end.transmit(usize::MAX);
    end.events();
    end
}

/// An initiator that the script has accepted.
pub(crate) fn initiator(options: Options) -> End {
    let mut end = End::initiator(options);
    end.connection.post_receives(4).unwrap();
    end.transmit(usize::MAX);
    end.receive(&reply());
    end.events();
    end
}

/// The last frame of `bytes`, if it is a terminate message: layer, kind, code.
pub(crate) fn terminate_in(bytes: &[u8]) -> Option<(u8, u8, u8)> {
    let mut rest = bytes;
    let mut found = None;
    while rest.len() >= 4 {
        let len = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let all = (len + 2).next_multiple_of(4) + 4;
        let control = u16::from_be_bytes([rest[2], rest[3]]);
        found = (control == TERMINATE).then(|| (rest[20] >> 4, rest[20] & 0xF, rest[21]));
        rest = &rest[all..];
    }
    assert!(rest.is_empty(), "frames are whole");
    found
}
