//! Messages in words, for people who watch a connection.

use alloc::format;
use alloc::string::String;

use linkspan_rdma::verbs::Remote;
use zerocopy::FromBytes;

use crate::connection::{Header, Role};
use crate::wire::{
    DataTransfer, HEAD_LEN, NegotiateRequest, NegotiateResponse, RESPONSE_REQUESTED,
};

/// Messages that are kept until somebody takes them.
pub(crate) const PASSING_MAX: usize = 1024;

/// A message that goes by.
#[derive(Clone, Copy, Debug)]
pub struct Passing {
    /// Whether the peer sent it.
    pub by_peer: bool,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Of the negotiation, by this role.
    Negotiation(Role, Head),
    Data(Head),
    Write(Remote, u32),
    Read(Remote, u32),
    Exposure {
        token: u32,
        bytes: u32,
    },
}

/// The first bytes of a message.
#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: [u8; HEAD_LEN],
    len: usize,
}

impl Head {
    fn new(head: &[u8]) -> Self {
        let mut bytes = [0; HEAD_LEN];
        let len = head.len().min(HEAD_LEN);
        bytes[..len].copy_from_slice(&head[..len]);
        Self { bytes, len }
    }

    fn of<T: FromBytes>(&self) -> Option<T> {
        let known = T::read_from_prefix(&self.bytes[..self.len]);
        known.map(|(known, _)| known).ok()
    }
}

impl Passing {
    /// A message of the negotiation, which the end of this role sends.
    pub(crate) fn negotiation(by_peer: bool, sender: Role, head: &[u8]) -> Self {
        let what = What::Negotiation(sender, Head::new(head));
        Self { by_peer, what }
    }

    pub(crate) fn received(head: &[u8]) -> Self {
        let what = What::Data(Head::new(head));
        let by_peer = true;
        Self { by_peer, what }
    }

    pub(crate) fn sent(header: &Header) -> Self {
        let what = What::Data(Head::new(header.bytes()));
        let by_peer = false;
        Self { by_peer, what }
    }

    pub(crate) fn write(remote: Remote, bytes: u32) -> Self {
        let (by_peer, what) = (false, What::Write(remote, bytes));
        Self { by_peer, what }
    }

    pub(crate) fn read(remote: Remote, bytes: u32) -> Self {
        let (by_peer, what) = (false, What::Read(remote, bytes));
        Self { by_peer, what }
    }

    /// Memory that the peer is given.
    pub(crate) fn exposure(token: u32, bytes: u32) -> Self {
        let (by_peer, what) = (false, What::Exposure { token, bytes });
        Self { by_peer, what }
    }

    /// Whether it is about the connection, and not about what goes over it.
    #[must_use]
    pub fn is_negotiation(&self) -> bool {
        matches!(self.what, What::Negotiation(..))
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        let place = |remote: &Remote, bytes: u32| {
            let Remote { key, address } = *remote;
            format!("{bytes} bytes at {address:#x} of {:#x}", key.0)
        };
        match &self.what {
            What::Negotiation(Role::Initiator, head) => request(head),
            What::Negotiation(Role::Listener, head) => response(head),
            What::Data(head) => data(head),
            What::Write(remote, bytes) => format!("RDMA write: {}", place(remote, *bytes)),
            What::Read(remote, bytes) => format!("RDMA read: {}", place(remote, *bytes)),
            What::Exposure { token, bytes } => {
                format!("memory: {bytes} bytes are {token:#x} from now on")
            }
        }
    }
}

fn short(message: &str, head: &Head) -> String {
    format!("{message}: {} bytes", head.len)
}

fn request(head: &Head) -> String {
    let name = "Negotiate Request";
    let Some(it) = head.of::<NegotiateRequest>() else {
        return short(name, head);
    };
    format!(
        "{name}: versions {:#x} to {:#x}, wants {} credits, sends {}, receives {}, in fragments {}",
        it.min_version,
        it.max_version,
        it.credits_requested,
        it.preferred_send_size,
        it.max_receive_size,
        it.max_fragmented_size,
    )
}

fn response(head: &Head) -> String {
    let name = "Negotiate Response";
    let Some(it) = head.of::<NegotiateResponse>() else {
        return short(name, head);
    };
    format!(
        "{name}: status {:#x}, version {:#x}, wants {} credits, grants {}, sends {}, receives {}, \
         in fragments {}, by RDMA {}",
        it.status,
        it.negotiated_version,
        it.credits_requested,
        it.credits_granted,
        it.preferred_send_size,
        it.max_receive_size,
        it.max_fragmented_size,
        it.max_read_write_size,
    )
}

fn data(head: &Head) -> String {
    let name = "Data Transfer";
    let Some(it) = head.of::<DataTransfer>() else {
        return short(name, head);
    };
    let (bytes, left) = (it.data_length.get(), it.remaining_data_length.get());
    let (wanted, granted) = (it.credits_requested.get(), it.credits_granted.get());
    let asks = match it.flags.get() & RESPONSE_REQUESTED {
        0 => "",
        _ => ", wants an answer",
    };
    format!(
        "{name}: {bytes} bytes, {left} behind them, wants {wanted} credits, grants {granted}{asks}"
    )
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::wire::VERSION;
    use linkspan_rdma::verbs::Key;

    #[test]
    fn messages_say_what_they_hold() {
        let request = NegotiateRequest {
            min_version: VERSION.into(),
            max_version: VERSION.into(),
            reserved: 0.into(),
            credits_requested: 255.into(),
            preferred_send_size: 1364.into(),
            max_receive_size: 8192.into(),
            max_fragmented_size: 1_048_576.into(),
        };
        let said = Passing::negotiation(true, Role::Initiator, request.as_bytes());
        assert!(said.is_negotiation() && said.by_peer);
        assert_eq!(
            said.text(),
            "Negotiate Request: versions 0x100 to 0x100, wants 255 credits, sends 1364, \
             receives 8192, in fragments 1048576"
        );
        let refusal = NegotiateResponse::refusal(0xC000_00BB);
        let said = Passing::negotiation(false, Role::Listener, refusal.as_bytes());
        assert!(
            said.text()
                .starts_with("Negotiate Response: status 0xc00000bb, ")
        );
        let data = DataTransfer {
            credits_requested: 255.into(),
            credits_granted: 3.into(),
            flags: RESPONSE_REQUESTED.into(),
            reserved: 0.into(),
            remaining_data_length: 100.into(),
            data_offset: 24.into(),
            data_length: 50.into(),
        };
        assert_eq!(
            Passing::received(data.as_bytes()).text(),
            "Data Transfer: 50 bytes, 100 behind them, wants 255 credits, grants 3, wants an answer"
        );
        assert_eq!(Passing::received(&[1, 2]).text(), "Data Transfer: 2 bytes");
        let remote = Remote {
            key: Key(0x77),
            address: 0x1000,
        };
        assert_eq!(
            Passing::write(remote, 5).text(),
            "RDMA write: 5 bytes at 0x1000 of 0x77"
        );
    }
}
