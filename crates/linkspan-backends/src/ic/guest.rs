//! The guest's end of one service on a channel.

use std::convert::Infallible;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkspan_engine::vmbus::{Channel, Framed};
use linkspan_engine::{LogLimit, Messages};
use linkspan_vmbus::Packet;
use linkspan_vmbus::ic::{self, Echo, GuestService, Reaction, Status};
use linkspan_vmbus::packet::Contents;

use crate::fcopy::{GuestEnd, Waiter, pass, reply};

/// The guest's end of a service, over one channel after the other.
#[derive(Debug)]
pub struct Guest<S> {
    service: ic::Guest<S>,
    dropped: LogLimit,
    messages: Arc<Messages>,
}

impl<S: GuestService> Guest<S> {
    /// A service that was just made.
    pub fn new(service: S) -> Self {
        Self {
            service: ic::Guest::new(service, Echo::Full),
            dropped: LogLimit::default(),
            messages: Arc::default(),
        }
    }

    /// What goes over its channels.
    pub fn messages(&self) -> &Arc<Messages> {
        &self.messages
    }

    /// Serves a channel to its end. `socket` is where the channel came from, which says
    /// when the host takes it back. `act` carries out what a request asks for, and says
    /// how it went; `answered` is called when the answers of a pass have been sent, for
    /// whoever does not live long enough to send them later.
    pub fn serve(
        &mut self,
        channel: Channel,
        socket: Option<&mut Framed>,
        cancel: BorrowedFd<'_>,
        act: &mut dyn FnMut(S::Effect) -> Status,
        answered: &mut dyn FnMut(),
    ) -> GuestEnd {
        let end = match self.converse(channel, socket, cancel, act, answered) {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if let Some(effect) = self.service.end() {
            let status = act(effect);
            self.service.ended(status);
        }
        end
    }

    fn converse(
        &mut self,
        mut channel: Channel,
        socket: Option<&mut Framed>,
        cancel: BorrowedFd<'_>,
        act: &mut dyn FnMut(S::Effect) -> Status,
        answered: &mut dyn FnMut(),
    ) -> Result<Infallible, GuestEnd> {
        let mut packet = channel.packet()?;
        let mut waiter = Waiter::new(&channel, socket, cancel)?;
        loop {
            channel.incoming.refresh()?;
            while channel.incoming.receive(&mut packet)? {
                if let Some(len) = self.request(&mut packet, act) {
                    pass(&self.messages, false, &packet.payload()[..len]);
                    reply(&mut channel, &packet, len, &mut waiter)?;
                }
            }
            channel.flush()?;
            answered();
            let more = channel.arm()?;
            waiter.wait(&channel, more.then_some(Duration::ZERO))?;
        }
    }

    /// Does what a packet asks for; how much of it is the reply.
    fn request(
        &mut self,
        packet: &mut Packet,
        act: &mut dyn FnMut(S::Effect) -> Status,
    ) -> Option<usize> {
        if !matches!(packet.contents(), Ok(Contents::InBand { .. })) {
            self.log_dropped(&"it is not in-band");
            return None;
        }
        let payload = packet.payload_mut();
        pass(&self.messages, true, payload);
        let mut reaction = match self.service.receive(payload) {
            Ok(reaction) => reaction,
            Err(error) => {
                self.log_dropped(&error);
                return None;
            }
        };
        loop {
            match reaction {
                Reaction::Reply(len) => return Some(len),
                Reaction::Do(effect) => {
                    let status = act(effect);
                    reaction = self.service.answer(status, payload);
                }
            }
        }
    }

    fn log_dropped(&mut self, why: &dyn fmt::Display) {
        if let Some(left_out) = self.dropped.allow() {
            let service = S::SERVICE.name;
            tracing::warn!(
                left_out,
                service,
                "a message of the host was dropped: {why}"
            );
        }
    }
}

/// Units of 100 ns that the host's time is ahead of this machine's, or behind.
#[must_use]
pub fn clock_offset(host_unix_100ns: u64) -> i128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos() / 100);
    i128::from(host_unix_100ns) - i128::try_from(now).unwrap_or(i128::MAX)
}
