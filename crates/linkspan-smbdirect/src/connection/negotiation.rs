//! From the first receive to the first Data Transfer (MS-SMBD 3.1.5.2 to 3.1.5.7).

use zerocopy::transmute_ref;

use super::{Connection, News, Phase, Role, Task};
use crate::error::Error;
use crate::wire::{self, NegotiateRequest, NegotiateResponse, VERSION, status};

impl Connection {
    /// The transport is connected when it says so, and a receive is posted: then
    /// somebody may speak.
    pub(super) fn open(&mut self, posted: bool, established: bool) {
        self.phase = Phase::Opening {
            posted,
            established,
        };
        if !(posted && established) {
            return;
        }
        self.phase = match self.role {
            Role::Initiator => Phase::Request,
            Role::Listener => Phase::Awaiting,
        };
        if let Some(early) = self.early.take() {
            let buffer = early.buffer;
            self.tasks.push_back(Task::Release { buffer });
            match self.role {
                Role::Listener => self.negotiate(&early.head[..early.len]),
                // An answer before the question.
                Role::Initiator => self.fail(Error::NoCredit),
            }
        }
    }

    /// Takes the peer's negotiate message.
    pub(super) fn negotiate(&mut self, head: &[u8]) {
        let agreed = match self.role {
            Role::Listener => self.take_request(head),
            Role::Initiator => self.take_response(head),
        };
        match agreed {
            Ok(()) => {
                // So that grants are what is really posted.
                let count = self.credits.goal();
                self.credits.asked = count;
                self.phase = Phase::Posting;
                let count = u32::from(count);
                self.tasks.push_back(Task::PostReceives { count });
            }
            Err(error @ Error::VersionRange { .. }) => self.refuse(error, status::NOT_SUPPORTED),
            Err(error) => self.fail(error),
        }
    }

    fn take_request(&mut self, head: &[u8]) -> Result<(), Error> {
        let request = NegotiateRequest::parse(head)?;
        self.agree(
            request.preferred_send_size.get(),
            request.max_receive_size.get(),
            request.max_fragmented_size.get(),
        );
        self.credits.peer_target = request.credits_requested.get();
        Ok(())
    }

    fn take_response(&mut self, head: &[u8]) -> Result<(), Error> {
        let response = NegotiateResponse::parse(head, self.sizes.receive)?;
        self.agree(
            response.preferred_send_size.get(),
            response.max_receive_size.get(),
            response.max_fragmented_size.get(),
        );
        let read_write = response.max_read_write_size.get();
        self.sizes.read_write = self.sizes.read_write.min(read_write);
        self.credits.peer_target = response.credits_requested.get();
        self.credits.gain(response.credits_granted.get())
    }

    fn agree(&mut self, peer_sends: u32, peer_receives: u32, peer_fragmented: u32) {
        let sizes = &mut self.sizes;
        sizes.receive = sizes
            .receive
            .min(peer_sends)
            .max(wire::MAX_RECEIVE_SIZE_MIN);
        sizes.send = sizes.send.min(peer_receives);
        sizes.fragmented_send = peer_fragmented;
    }

    /// The peer is told that it cannot be, and then the connection ends.
    fn refuse(&mut self, error: Error, status: u32) {
        self.first_error.get_or_insert(error);
        self.phase = Phase::Refuse(status);
    }

    /// The receives of the negotiation are posted, as many as could be.
    pub(super) fn receives_ready(&mut self, now_ms: u64) {
        match self.role {
            Role::Listener if self.credits.available == 0 => {
                self.refuse(Error::NoReceives, status::INSUFFICIENT_RESOURCES);
            }
            Role::Listener => self.phase = Phase::Response,
            Role::Initiator if self.credits.available == 0 => self.fail(Error::NoReceives),
            Role::Initiator => self.ready(now_ms),
        }
    }

    fn ready(&mut self, now_ms: u64) {
        self.phase = Phase::Ready;
        self.timers.negotiate = None;
        self.idle_from(now_ms, self.options.keepalive_interval_ms);
        self.tell(News::Connected);
    }

    pub(super) fn send_request(&mut self) -> Task {
        let request = NegotiateRequest {
            min_version: VERSION.into(),
            max_version: VERSION.into(),
            reserved: 0.into(),
            credits_requested: self.credits.send_target.into(),
            preferred_send_size: self.sizes.send.into(),
            max_receive_size: self.sizes.receive.into(),
            max_fragmented_size: self.options.max_fragmented_receive_size.into(),
        };
        self.phase = Phase::Awaiting;
        self.send_negotiate::<{ wire::NEGOTIATE_REQUEST_LEN }>(transmute_ref!(&request))
    }

    pub(super) fn send_response(&mut self, now_ms: u64) -> Task {
        // Never more than it asked for, although a second one is posted.
        let granted = self.credits.available.min(self.credits.peer_target);
        self.credits.available -= granted;
        self.credits.outstanding += granted;
        let response = NegotiateResponse {
            min_version: VERSION.into(),
            max_version: VERSION.into(),
            negotiated_version: VERSION.into(),
            reserved: 0.into(),
            credits_requested: self.credits.send_target.into(),
            credits_granted: granted.into(),
            status: status::SUCCESS.into(),
            max_read_write_size: self.sizes.read_write.into(),
            preferred_send_size: self.sizes.send.into(),
            max_receive_size: self.sizes.receive.into(),
            max_fragmented_size: self.options.max_fragmented_receive_size.into(),
        };
        let task =
            self.send_negotiate::<{ wire::NEGOTIATE_RESPONSE_LEN }>(transmute_ref!(&response));
        self.ready(now_ms);
        task
    }

    pub(super) fn send_refusal(&mut self, status: u32) -> Task {
        let response = NegotiateResponse::refusal(status);
        let task =
            self.send_negotiate::<{ wire::NEGOTIATE_RESPONSE_LEN }>(transmute_ref!(&response));
        if let Task::Send { work, .. } = task {
            self.phase = Phase::Refusing(work);
        }
        task
    }
}
