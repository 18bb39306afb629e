//! What there is to see of a connection.

use super::{Connection, KeepAlive, Role, State};
use crate::error::Error;

/// What went through a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Data Transfers sent.
    pub sends: u64,
    /// Those of them without data.
    pub empty_sends: u64,
    /// Bytes of data sent.
    pub bytes_sent: u64,
    /// Data Transfers received.
    pub receives: u64,
    /// Those of them without data.
    pub empty_receives: u64,
    /// Bytes of data received.
    pub bytes_received: u64,
    /// Pieces that were copied into the reassembly area.
    pub kept: u64,
    /// RDMA writes posted.
    pub writes: u64,
    /// RDMA reads posted.
    pub reads: u64,
    /// Times that the peer was asked for a sign of life.
    pub keepalives: u64,
    /// Posts that the provider refused.
    pub refused: u64,
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which end it is.
    pub role: Role,
    /// How far it is.
    pub state: State,
    /// The most that is sent at once, in bytes.
    pub max_send_size: u32,
    /// The most that is received at once, in bytes.
    pub max_receive_size: u32,
    /// The longest message that the peer takes, in bytes.
    pub max_fragmented_send_size: u32,
    /// The longest message that is taken, in bytes.
    pub max_fragmented_receive_size: u32,
    /// The longest RDMA transfer, in bytes.
    pub max_read_write_size: u32,
    /// Messages that may be sent now.
    pub send_credits: u16,
    /// Credits that we ask for.
    pub send_credit_target: u16,
    /// Receives that are posted and not granted.
    pub receives_available: u16,
    /// Receives that are granted and not used.
    pub receives_granted: u16,
    /// Receives that the peer asks for.
    pub receive_credit_target: u16,
    /// RDMA reads that the peer answers at a time.
    pub outbound_reads: u16,
    /// Messages that wait to be sent.
    pub waiting: usize,
    /// RDMA transfers that wait or are under way.
    pub transfers: usize,
    /// Works that the provider has.
    pub works: usize,
    /// Messages that are being read or reassembled.
    pub messages: usize,
    /// Bytes of them that are there.
    pub message_bytes: u64,
    /// Those of them in the reassembly area.
    pub kept_bytes: u64,
    /// Bytes that the message that is being reassembled lacks.
    pub missing_bytes: u32,
    /// Buffers that they hold.
    pub held_buffers: usize,
    /// Registrations that are ready, registered, invalidated, in error and disabled.
    pub registrations: [usize; 5],
    /// Whether the peer was asked for a sign of life and has not given one.
    pub awaits_sign_of_life: bool,
    /// What went through it.
    pub traffic: Traffic,
    /// What went wrong first.
    pub first_error: Option<Error>,
}

impl Connection {
    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            role: self.role,
            state: self.state(),
            max_send_size: self.sizes.send,
            max_receive_size: self.sizes.receive,
            max_fragmented_send_size: self.sizes.fragmented_send,
            max_fragmented_receive_size: self.options.max_fragmented_receive_size,
            max_read_write_size: self.sizes.read_write,
            send_credits: self.credits.send,
            send_credit_target: self.credits.send_target,
            receives_available: self.credits.available,
            receives_granted: self.credits.outstanding,
            receive_credit_target: self.credits.peer_target,
            outbound_reads: self.depth.outbound,
            waiting: self.outbox.len(),
            transfers: self.writes.len() + self.reads.len(),
            works: self.flight.len(),
            messages: self.inbox.messages(),
            message_bytes: self.inbox.bytes(),
            kept_bytes: self.inbox.kept(),
            missing_bytes: self.inbox.missing(),
            held_buffers: self.inbox.held(),
            registrations: self.registrations.count(),
            awaits_sign_of_life: self.keepalive != KeepAlive::None,
            traffic: self.traffic,
            first_error: self.first_error,
        }
    }
}
