//! The ends of frames that a benchmark needs: sinks, which look at what they get, and
//! sources, which make frames for guests.

use std::time::Duration;

use linkspan_devices::net::{ETHERNET_LEN, Frame, Mac};
use linkspan_engine::{Neighbours, Progress};

use super::counters::DropCause;
use super::fabric::{Fabric, Mode, Side};
use super::guest::Receive;
use super::lane::{FRAME_COST, Lane};

/// Frames that a source makes for one queue in a pass.
const SOURCE_BATCH: u32 = 64;

/// How long a source waits for buffers at most, after it waited for shorter times in vain.
const SOURCE_PAUSE_MAX: Duration = Duration::from_micros(64);

impl Lane {
    /// A frame that came out of a port and was counted ends here. A sink takes all of it out
    /// of its sender's memory and looks at it; its first bytes, `head`, were taken before.
    #[inline]
    pub(super) fn consume<'a>(
        &mut self,
        fabric: &Fabric,
        port: u16,
        (head, len): (&[u8], u64),
        frame: impl FnOnce() -> Frame<'a>,
    ) {
        self.cost += FRAME_COST + len;
        if fabric.mode != Mode::Sink {
            return;
        }
        let bytes = if len == head.len() as u64 {
            Some(head)
        } else {
            frame().read(&mut self.whole).map(|bytes| &*bytes)
        };
        let cause = match bytes {
            None => DropCause::TooLong,
            Some(bytes) if bytes.len() < ETHERNET_LEN => DropCause::Malformed,
            Some(bytes) if Mac::source(bytes).is_multicast() => DropCause::Source,
            Some(_) => return,
        };
        self.counts(fabric, port).dropped(cause);
    }

    /// Gives guests as many frames as they take.
    pub(super) fn make_frames(
        &mut self,
        fabric: &Fabric,
        neighbours: &mut Neighbours<'_>,
    ) -> (bool, Progress) {
        let mut worked = false;
        for (to, port) in (0..).zip(&fabric.ports) {
            let Side::Guest(pairs) = &port.kind else {
                continue;
            };
            let mut here = pairs.enabled() & self.own;
            if pairs.asked.is_there()
                && let Some(control) = pairs.asked.see(&mut self.known[usize::from(to)])
            {
                here &= (1_u128 << control.pairs().min(127)) - 1;
            }
            while here != 0 {
                let pair = u16::try_from(here.trailing_zeros()).unwrap_or(0);
                here &= here - 1;
                let books = self.books(fabric, to);
                let address = fabric.address(to, pair);
                if let Some((ring, receive)) = neighbours.ring::<Receive>(address) {
                    worked |= receive.stuff(ring, SOURCE_BATCH, &books) > 0;
                }
            }
        }
        if worked {
            self.pause = Duration::ZERO;
            return (true, Progress::More);
        }
        let longer = 2 * self.pause + Duration::from_nanos(500);
        self.pause = longer.min(SOURCE_PAUSE_MAX);
        (false, Progress::Until(self.now + self.pause))
    }
}
