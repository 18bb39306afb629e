//! A channel's rings from both ends, on real memory.

mod hostile;
mod model;
mod packets;
mod signals;

use linkspan_mem::{Region, Window};
use linkspan_vmbus::packet::Header;
use linkspan_vmbus::{Incoming, Outgoing, Packet, Shape};

/// One direction of a channel, and the memory that it lies in.
struct Rig {
    region: Region,
    header: u64,
    outgoing: Outgoing<Window>,
    incoming: Incoming<Window>,
    packet: Packet,
}

impl Rig {
    /// Rings of `len` bytes, with headers of 4 KiB.
    fn new(len: u64) -> Self {
        Self::shaped(len, 4096)
    }

    fn shaped(len: u64, header: u64) -> Self {
        let region = Region::heap(usize::try_from(2 * len).unwrap()).unwrap();
        let shape = Shape::halves(2 * len, header);
        let [sent, _] = shape.rings(&region, 0).unwrap();
        let [received, _] = shape.rings(&region, 0).unwrap();
        let incoming = Incoming::new(received).unwrap();
        Self {
            packet: Packet::new(incoming.packet_max()).unwrap(),
            region,
            header,
            outgoing: Outgoing::new(sent).unwrap(),
            incoming,
        }
    }

    /// A field of the header, as the other side writes it.
    fn set(&self, offset: u64, value: u32) {
        let field = self.region.slice(offset, 4).unwrap();
        assert_eq!(field.write(&value.to_le_bytes()), 4);
    }

    fn get(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.region.slice(offset, 4).unwrap().read(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Bytes of the data, as the other side writes them.
    fn poke(&self, at: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        let data = self.region.slice(self.header + at, len).unwrap();
        assert_eq!(data.write(bytes), bytes.len());
    }

    fn send(&mut self, id: u64, payload: &[u8]) {
        self.outgoing
            .send(Header::in_band(id), &[payload])
            .expect("room");
    }

    /// Sends one and says whether to signal.
    fn post(&mut self, id: u64, payload: &[u8]) -> bool {
        self.send(id, payload);
        self.outgoing.publish().unwrap()
    }

    /// The next packet's number and payload.
    fn take(&mut self) -> Option<(u64, Vec<u8>)> {
        let taken = self.incoming.receive(&mut self.packet).unwrap();
        let packet = &self.packet;
        taken.then(|| {
            let id = packet.descriptor().transaction_id;
            (id, packet.payload().to_vec())
        })
    }
}

const WRITE_INDEX: u64 = 0;
const READ_INDEX: u64 = 4;
const MASK: u64 = 8;
const PENDING: u64 = 12;
const FEATURES: u64 = 64;
