//! The way of a frame on one worker: from the port that sent it, by a decision, to
//! the ports that get it. A guest's receive queue on the same worker is filled at
//! once, straight from where the frame lies.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use linkspan_devices::net::frame::RESPONSE_MAX;
use linkspan_devices::net::header::{Checksum, Header, Offload};
use linkspan_devices::net::offload::{Plan, Receiver, complete_checksum, plan};
use linkspan_devices::net::switch::{Egress, Forward, Station, Switch};
use linkspan_devices::net::{Body, Frame, FrameHead, Mac, flow_hash, steer};
use linkspan_engine::{Budget, Neighbours, Progress};
use linkspan_mem::fault::{self, Injected};
use linkspan_sys::tap::{HEADER_LEN as TAP_HEADER, TapQueue};

use super::control::{Known, Terms};
use super::counters::{Books, Counts, DropCause};
use super::fabric::{BYTES_MAX, Fabric, Mode, Side};
use super::guest::Receive;
use super::link::Pairs;
use super::mailbox::{Address, Mailbox, Note, split};
use super::retag::Retagged;

/// What handling a frame costs beside its bytes, in bytes: a pass has a budget of
/// them, and one frame can become many.
pub(super) const FRAME_COST: u64 = 512;

/// What one worker has of a fabric for itself.
pub(super) struct Lane {
    pub(super) number: usize,
    /// The queue pairs of every guest that this worker has, as bits.
    pub(super) own: u128,
    /// The queue pair of the guest whose frames come in this pass.
    pub(super) pair: u16,
    switch: Switch,
    pub(super) now: Instant,
    now_ms: u64,
    /// How long a source waited last.
    pub(super) pause: Duration,
    /// What was done in this pass, in bytes.
    pub(super) cost: u64,
    /// What the drivers of guests have asked for, by port.
    pub(super) known: Vec<Known>,
    /// Room for a whole frame.
    pub(super) whole: Vec<u8>,
    answer: Vec<u8>,
}

/// A frame that came out of a port, with a header that was checked.
#[derive(Clone, Copy)]
pub(super) struct Came<'a> {
    pub(super) port: u16,
    pub(super) offload: &'a Offload,
    pub(super) frame: Frame<'a>,
}

impl Lane {
    pub(super) fn new(
        (number, workers): (usize, usize),
        ports: usize,
        switch: Switch,
    ) -> Result<Self, Injected> {
        let mut known = fault::try_with_capacity(ports)?;
        known.resize(ports, None);
        let own = (number..128).step_by(workers.max(1));
        Ok(Self {
            number,
            own: own.fold(0, |own, pair| own | 1 << pair),
            pair: 0,
            switch,
            now: Instant::now(),
            now_ms: 0,
            pause: Duration::ZERO,
            cost: 0,
            known,
            whole: vec![0; BYTES_MAX],
            answer: vec![0; RESPONSE_MAX],
        })
    }

    /// What this worker's table has learned and remembers.
    pub(super) fn stations(&self, now_ms: u64) -> Vec<Station> {
        self.switch.stations(now_ms).collect()
    }

    /// When the pass began.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    fn mailbox<'f>(&self, fabric: &'f Fabric) -> &'f Mailbox {
        &fabric.mailboxes[self.number]
    }

    /// What this worker counts of a port.
    #[inline]
    pub(super) fn counts<'f>(&self, fabric: &'f Fabric, port: u16) -> &'f Counts {
        &fabric.ports[usize::from(port)].counts[self.number]
    }

    /// The books that this worker keeps of a port.
    #[inline]
    pub(super) fn books<'f>(&self, fabric: &'f Fabric, port: u16) -> Books<'f> {
        Books {
            counts: self.counts(fabric, port),
            capture: fabric.capture.as_deref(),
            port,
            now: self.now,
        }
    }

    pub(super) fn begin(&mut self, fabric: &Fabric, now: Instant) {
        self.now = now;
        self.now_ms = fabric.millis(self.now);
        self.cost = 0;
        while let Some(note) = self.mailbox(fabric).next_note() {
            self.switch
                .note(note.port, note.vlan, note.mac, self.now_ms);
        }
    }

    /// Sends a frame to where it belongs.
    #[inline]
    pub(super) fn forward(
        &mut self,
        fabric: &Fabric,
        came: &Came<'_>,
        neighbours: &mut Neighbours<'_>,
    ) {
        self.books(fabric, came.port).came(&came.frame);
        let (head, len) = (came.frame.head, came.frame.len());
        if !fabric.mode.passes_on() {
            return self.consume(fabric, came.port, (head, len), || came.frame);
        }
        let way = self.way_of(fabric, came.port, (head, len));
        if fabric.mode != Mode::Echo {
            return self.go(fabric, way, came, neighbours);
        }
        let mut head = FrameHead::of(came.frame.head);
        head.swap_addresses();
        let (head, body) = (head.bytes(), came.frame.body);
        let frame = Frame { head, body };
        self.go(fabric, way, &Came { frame, ..*came }, neighbours);
    }

    /// Decides about a frame that came out of a port and was counted, by its first bytes.
    /// What is dropped is counted here.
    #[inline]
    pub(super) fn way_of(&mut self, fabric: &Fabric, port: u16, (head, len): (&[u8], u64)) -> Way {
        self.cost += FRAME_COST + len;
        match fabric.mode {
            Mode::Switch => self.switch(fabric, port, head),
            Mode::Pair => self.way_to(fabric, 1 - port, head),
            Mode::Echo => self.way_back(fabric, port, head),
            // It is consumed instead.
            Mode::Sink | Mode::Source => Way::Nowhere,
        }
    }

    /// Has a frame go where it was decided that it goes.
    #[inline]
    pub(super) fn go(
        &mut self,
        fabric: &Fabric,
        way: Way,
        came: &Came<'_>,
        neighbours: &mut Neighbours<'_>,
    ) {
        match way {
            Way::Queue(to, pair) => {
                let frames = [*came].into_iter();
                self.fill(fabric, (to, pair), &Terms::default(), frames, neighbours);
            }
            Way::Nowhere => {}
            way => self.go_far(fabric, &way, came, neighbours),
        }
    }

    fn go_far(
        &mut self,
        fabric: &Fabric,
        way: &Way,
        came: &Came<'_>,
        neighbours: &mut Neighbours<'_>,
    ) {
        match *way {
            Way::Queue(..) | Way::Nowhere => {}
            Way::Asked(to, pair, terms) => {
                self.fill(fabric, (to, pair), &terms, [*came].into_iter(), neighbours);
            }
            Way::Port(to) => self.deliver(fabric, to, came, neighbours, true),
            Way::Switched(forward) => self.pass_on(fabric, forward, came, neighbours, true),
        }
    }

    /// Decides about a frame as a switch does.
    fn switch(&mut self, fabric: &Fabric, port: u16, head: &[u8]) -> Way {
        match self.look_up(fabric, port, head) {
            Forward::One { port: to, vlan } => match self.switch.egress(to, vlan, head) {
                Some(Egress::AsItIs) => self.way_to(fabric, to, head),
                _ => Way::Switched(Forward::One { port: to, vlan }),
            },
            forward => Way::Switched(forward),
        }
    }

    /// Asks the switch, and tells the other workers what it learned.
    #[inline]
    fn look_up(&mut self, fabric: &Fabric, port: u16, head: &[u8]) -> Forward {
        let news = self.switch.news();
        let forward = self.switch.forward(port, head, self.now_ms);
        match forward {
            Forward::One { vlan, .. } | Forward::Flood { vlan } if news != self.switch.news() => {
                self.tell(fabric, port, vlan, Mac::source(head));
            }
            _ => {}
        }
        forward
    }

    /// Has a frame go where the switch says. `answers`: whether responders hear of it.
    fn pass_on(
        &mut self,
        fabric: &Fabric,
        forward: Forward,
        came: &Came<'_>,
        neighbours: &mut Neighbours<'_>,
        answers: bool,
    ) {
        let port = came.port;
        match forward {
            Forward::One { port: to, vlan } => {
                if !self.leave(fabric, (to, vlan), came, neighbours, answers) {
                    self.counts(fabric, port).dropped(DropCause::Vlan);
                }
            }
            Forward::Flood { vlan } => {
                self.counts(fabric, port).flooded();
                for to in (0..fabric.ports()).filter(|to| *to != port) {
                    self.leave(fabric, (to, vlan), came, neighbours, answers);
                }
            }
            Forward::Drop(reason) => self.counts(fabric, port).dropped(reason.into()),
        }
    }

    /// Tells the other workers where a station is.
    #[cold]
    fn tell(&self, fabric: &Fabric, port: u16, vlan: u16, mac: Mac) {
        let others = fabric.mailboxes.iter().enumerate();
        for (_, mailbox) in others.filter(|(number, _)| *number != self.number) {
            mailbox.note(Note { port, vlan, mac });
        }
    }

    /// Gives a frame to a port with the tag that it is to have there; `false` when
    /// the port has no part in the VLAN.
    #[inline]
    fn leave(
        &mut self,
        fabric: &Fabric,
        (to, vlan): (u16, u16),
        came: &Came<'_>,
        neighbours: &mut Neighbours<'_>,
        answers: bool,
    ) -> bool {
        match self.switch.egress(to, vlan, came.frame.head) {
            Some(Egress::AsItIs) => self.deliver(fabric, to, came, neighbours, answers),
            Some(egress) => {
                let retagged = Retagged::new(&egress, came);
                let came = retagged.came(came);
                self.deliver(fabric, to, &came, neighbours, answers);
            }
            None => return false,
        }
        true
    }

    /// The way of a frame back to its port: on the pair that it came on, where that is
    /// possible.
    #[inline]
    fn way_back(&mut self, fabric: &Fabric, port: u16, head: &[u8]) -> Way {
        let pair = self.pair;
        let Side::Guest(pairs) = &fabric.ports[usize::from(port)].kind else {
            return Way::Port(port);
        };
        if pairs.enabled() & self.own & 1 << pair == 0 {
            return Way::Port(port);
        }
        if !pairs.asked.is_there() {
            return Way::Queue(port, pair);
        }
        match self.terms(fabric, (port, pair), head) {
            Some(terms) => Way::Asked(port, pair, terms),
            None => Way::Port(port),
        }
    }

    /// The way of a frame to a port.
    #[inline]
    fn way_to(&mut self, fabric: &Fabric, to: u16, head: &[u8]) -> Way {
        let Side::Guest(pairs) = &fabric.ports[usize::from(to)].kind else {
            return Way::Port(to);
        };
        if pairs.asked.is_there() {
            return match self.pick_as_asked(fabric, (to, pairs), head) {
                (Pick::Here(pair), terms) => Way::Asked(to, pair, terms),
                _ => Way::Port(to),
            };
        }
        match self.pick(fabric, pairs.enabled(), head) {
            Pick::Here(pair) => Way::Queue(to, pair),
            _ => Way::Port(to),
        }
    }

    /// Gives a frame to a port.
    #[inline]
    fn deliver(
        &mut self,
        fabric: &Fabric,
        to: u16,
        came: &Came<'_>,
        neighbours: &mut Neighbours<'_>,
        answers: bool,
    ) {
        let port = &fabric.ports[usize::from(to)];
        if !matches!(port.kind, Side::Guest(_)) {
            self.cost += FRAME_COST;
        }
        match &port.kind {
            Side::Guest(pairs) => {
                let (pick, terms) = self.pick_for(fabric, (to, pairs), came.frame.head);
                match pick {
                    Pick::Here(pair) => {
                        self.fill(fabric, (to, pair), &terms, [*came].into_iter(), neighbours);
                    }
                    Pick::There(pair, worker) => {
                        let address = Address::Pair(to, pair);
                        if !fabric.mailboxes[worker].send(address, came.offload, &came.frame) {
                            self.counts(fabric, to).dropped(DropCause::Busy);
                        }
                    }
                    Pick::Nowhere(why) => self.counts(fabric, to).dropped(why),
                }
            }
            Side::Tap(..) if port.is_shut() => self.counts(fabric, to).dropped(DropCause::Down),
            Side::Tap(queues, _) => {
                let books = self.books(fabric, to);
                let queue = &queues[self.number % queues.len()];
                send_to_tap(queue, came, &mut self.whole, &books);
            }
            Side::Responder(responder) if answers => {
                self.books(fabric, to).went(&came.frame);
                let Some(bytes) = came.frame.read(&mut self.whole) else {
                    return;
                };
                if let Offload::Whole(Checksum::Partial(partial)) = *came.offload {
                    complete_checksum(bytes, partial);
                }
                // Out of its place, so that the rest can be used to send it.
                let mut answer = std::mem::take(&mut self.answer);
                if let Some(len) = responder.respond(bytes, &mut answer) {
                    self.respond(fabric, (to, came.port), &answer[..len], neighbours);
                }
                self.answer = answer;
            }
            Side::Responder(_) => {}
        }
    }

    /// Sends what the responder at a port has to say; other responders do not hear it.
    fn respond(
        &mut self,
        fabric: &Fabric,
        (port, asker): (u16, u16),
        answer: &[u8],
        neighbours: &mut Neighbours<'_>,
    ) {
        let came = Came {
            port,
            offload: &Offload::NONE,
            frame: split(answer),
        };
        self.books(fabric, port).came(&came.frame);
        match fabric.mode {
            Mode::Switch => {
                let forward = self.look_up(fabric, port, came.frame.head);
                self.pass_on(fabric, forward, &came, neighbours, false);
            }
            _ => self.deliver(fabric, asker, &came, neighbours, false),
        }
    }

    /// Which queue pair of a guest gets a frame, and on what terms.
    #[inline]
    fn pick_for(
        &mut self,
        fabric: &Fabric,
        (to, pairs): (u16, &Pairs),
        head: &[u8],
    ) -> (Pick, Terms) {
        if pairs.asked.is_there() {
            return self.pick_as_asked(fabric, (to, pairs), head);
        }
        (self.pick(fabric, pairs.enabled(), head), Terms::default())
    }

    /// One of this worker if any is enabled,
    /// and the same for all frames of a flow.
    #[inline]
    fn pick(&self, fabric: &Fabric, enabled: u128, head: &[u8]) -> Pick {
        let here = enabled & self.own;
        if here != 0 {
            return Pick::Here(one_of(here, head));
        }
        if enabled == 0 {
            return Pick::Nowhere(DropCause::Down);
        }
        let pair = one_of(enabled, head);
        Pick::There(pair, usize::from(pair) % fabric.mailboxes.len())
    }

    /// The same for a guest whose driver has a control queue: what it has asked for
    /// decides.
    fn pick_as_asked(
        &mut self,
        fabric: &Fabric,
        (to, pairs): (u16, &Pairs),
        head: &[u8],
    ) -> (Pick, Terms) {
        let Some(control) = pairs.asked.see(&mut self.known[usize::from(to)]) else {
            let pick = self.pick(fabric, pairs.enabled(), head);
            return (pick, Terms::default());
        };
        if control.filter().check(head).is_err() {
            return (Pick::Nowhere(DropCause::Filtered), Terms::default());
        }
        let (placed, hash) = control.placed(head);
        let terms = Terms {
            offloads: Some(control.offloads()),
            hash,
        };
        let asked = match placed {
            Some(pair) => 1 << pair,
            // There are 127 at most.
            None => (1_u128 << control.pairs().min(127)) - 1,
        };
        (self.pick(fabric, pairs.enabled() & asked, head), terms)
    }

    /// What the driver of a guest has to say of a frame that another worker sent here;
    /// `None` when it does not use the queue any more.
    fn terms(&mut self, fabric: &Fabric, (to, pair): (u16, u16), head: &[u8]) -> Option<Terms> {
        let Side::Guest(pairs) = &fabric.ports[usize::from(to)].kind else {
            return None;
        };
        if !pairs.asked.is_there() {
            return Some(Terms::default());
        }
        let Some(control) = pairs.asked.see(&mut self.known[usize::from(to)]) else {
            return Some(Terms::default());
        };
        control.receives(pair).then(|| Terms {
            offloads: Some(control.offloads()),
            hash: control.placed(head).1,
        })
    }

    /// Puts frames into a receive queue of this worker.
    #[inline]
    pub(super) fn fill<'f>(
        &mut self,
        fabric: &Fabric,
        (to, pair): (u16, u16),
        terms: &Terms,
        frames: impl ExactSizeIterator<Item = Came<'f>>,
        neighbours: &mut Neighbours<'_>,
    ) {
        let books = self.books(fabric, to);
        let address = fabric.address(to, pair);
        let Some((ring, receive)) = neighbours.ring::<Receive>(address) else {
            return frames.for_each(|_| books.dropped(DropCause::Down));
        };
        let mtu = fabric.ports[usize::from(to)].mtu.load(Ordering::Relaxed);
        receive.expect(ring, frames.len());
        for came in frames {
            self.cost += FRAME_COST + came.frame.len();
            self.cost += receive.deliver(ring, (&came, terms), mtu, &mut self.whole, &books);
        }
        receive.finish(ring);
    }

    /// Takes what others have for this worker.
    pub(super) fn take_parcels(
        &mut self,
        fabric: &Fabric,
        budget: Budget,
        neighbours: &mut Neighbours<'_>,
    ) -> (bool, Progress) {
        for taken in 0..budget.chains {
            if self.cost >= budget.bytes {
                return (true, Progress::More);
            }
            let Some(parcel) = self.mailbox(fabric).next() else {
                return (taken > 0, Progress::Idle);
            };
            let came = Came {
                port: 0,
                offload: &parcel.offload,
                frame: parcel.frame(),
            };
            match parcel.address {
                Address::Pair(port, pair) => {
                    match self.terms(fabric, (port, pair), came.frame.head) {
                        Some(terms) => {
                            let frames = [came].into_iter();
                            self.fill(fabric, (port, pair), &terms, frames, neighbours);
                        }
                        None => self.counts(fabric, port).dropped(DropCause::Down),
                    }
                }
                Address::From(port) => {
                    self.forward(fabric, &Came { port, ..came }, neighbours);
                }
            }
            self.mailbox(fabric).give_back(parcel);
        }
        (true, Progress::More)
    }
}

/// Where a frame goes.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// Into the receive queue of this pair of a port, which is this worker's.
    Queue(u16, u16),
    /// The same, where the driver has said what it wants.
    Asked(u16, u16, Terms),
    /// To a port, whatever is behind it.
    Port(u16),
    /// Where the switch says, perhaps with another tag.
    Switched(Forward),
    /// Nowhere; that was counted.
    Nowhere,
}

enum Pick {
    Here(u16),
    There(u16, usize),
    Nowhere(DropCause),
}

/// One of these pairs, of which there is at least one, by the flow of a frame.
#[inline]
fn one_of(mut pairs: u128, head: &[u8]) -> u16 {
    if pairs & pairs.wrapping_sub(1) != 0 {
        // 128 at most.
        let count = u16::try_from(pairs.count_ones()).unwrap_or(1);
        for _ in 0..steer(flow_hash(head), count) {
            pairs &= pairs - 1;
        }
    }
    u16::try_from(pairs.trailing_zeros()).unwrap_or(0)
}

/// Gives a frame to the kernel, which does all offloads.
fn send_to_tap(queue: &TapQueue, came: &Came<'_>, whole: &mut [u8], books: &Books<'_>) {
    let receiver = Receiver {
        offloads: super::tap::TO_KERNEL,
        mtu: u16::MAX,
    };
    let frame = &came.frame;
    let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let Plan::Forward(offload) = plan(came.offload, frame.head, len, &receiver) else {
        return books.dropped(DropCause::TooLong);
    };
    let header = Header::of(&offload).to_bytes();
    let header: &[u8; TAP_HEADER] = header.first_chunk().expect("20 bytes");
    let sent = match frame.body {
        Body::Shared {
            table, spans, skip, ..
        } if spans.len() < 62 => queue.send_spans(header, frame.head, table, (spans, skip)),
        Body::Private(rest) => queue.send(header, (frame.head, rest)),
        Body::Shared { .. } => match frame.read(whole) {
            Some(bytes) => queue.send(header, (bytes, &[])),
            None => Ok(false),
        },
    };
    match sent {
        Ok(true) => books.went(frame),
        Ok(false) => books.dropped(DropCause::NoBuffers),
        Err(_) => books.dropped(DropCause::Broken),
    }
}
