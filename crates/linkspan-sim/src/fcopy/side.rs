//! One end of a channel: two rings in memory that both ends share, and who is signalled.

use linkspan_mem::{Region, Window};
use linkspan_vmbus::{Incoming, Outgoing, Packet, Shape};

/// Bytes of a ring's header.
pub(crate) const HEADER: u64 = 4096;
/// Payload of the longest message either end sends.
const MESSAGE_MAX: usize = 6224;

/// The ends of a channel, in the order of their rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Guest,
    Host,
}

pub(crate) struct Side {
    pub(crate) outgoing: Outgoing<Window>,
    pub(crate) incoming: Incoming<Window>,
    pub(crate) packet: Packet,
    /// Whether it was signalled, or has something to look at anyway.
    pub(crate) awake: bool,
    /// Whether the other end is to be signalled.
    pub(crate) signals: bool,
}

impl Side {
    /// Joins the rings of `ring` bytes each, as they stand.
    pub(crate) fn new(region: &Region, ring: u64, end: End) -> Self {
        let rings = Shape::halves(2 * ring, HEADER).rings(region, 0);
        let [to_host, to_guest] = rings.expect("room for two rings");
        let (outgoing, incoming) = match end {
            End::Guest => (to_host, to_guest),
            End::Host => (to_guest, to_host),
        };
        let incoming = Incoming::new(incoming).expect("a ring");
        Self {
            packet: Packet::new(incoming.packet_max()).expect("memory"),
            outgoing: Outgoing::new(outgoing).expect("a ring"),
            incoming,
            awake: true,
            signals: false,
        }
    }

    /// The next packet, of those that were there at the last look.
    pub(crate) fn next(&mut self) -> bool {
        let next = self.incoming.receive(&mut self.packet);
        next.expect("a peer of ours")
    }

    /// Whether there is room for any message.
    pub(crate) fn has_room(&mut self) -> bool {
        let room = self.outgoing.refresh().expect("a peer of ours");
        room as usize >= Outgoing::<Window>::room_of(MESSAGE_MAX)
    }

    pub(crate) fn begin(&mut self) {
        self.awake = false;
        self.incoming.disarm();
        self.incoming.refresh().expect("a peer of ours");
    }

    /// Ends a pass: all is published, and this end sleeps unless there is something left. It
    /// waits for room if it `waits`.
    pub(crate) fn end(&mut self, left: bool, waits: bool) {
        let released = self.incoming.release().expect("a peer of ours");
        let published = self.outgoing.publish().expect("a peer of ours");
        self.signals |= released | published;
        let mut again = left;
        if waits {
            let room = u32::try_from(Outgoing::<Window>::room_of(MESSAGE_MAX)).expect("small");
            again |= self.outgoing.wait_for(room).expect("a peer of ours");
        } else {
            self.outgoing.stop_waiting();
        }
        let more = self.incoming.arm().expect("a peer of ours");
        // Who waits for room takes nothing until there is some.
        self.awake |= again | (more && !waits);
    }

    /// Another process has the rings from here on.
    pub(crate) fn hand_over(&mut self, region: &Region, ring: u64, end: End) {
        let at = (self.outgoing.position(), self.incoming.position());
        let (signals, awake) = (self.signals, true);
        let next = Self::new(region, ring, end);
        assert_eq!(
            at,
            (next.outgoing.position(), next.incoming.position()),
            "a ring goes on somewhere else"
        );
        *self = Self {
            signals,
            awake,
            ..next
        };
    }
}
