//! What people see of messages on their way through a gateway, and how long the server takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use linkspan_engine::Sights;
use linkspan_smb2::Header;
use linkspan_smb2::describe::{describe, is_setup};
use linkspan_smb2::gateway::{Error, Gateway as Core, ToClient, ToServer};
use linkspan_smb2::header::{Command, flags};

/// Requests of one connection that are timed at a time; beyond them none is.
const TIMED: usize = 8192;

/// What one connection remembers, and what is seen of it. One thread has it.
pub(super) struct Seen {
    core: Core,
    number: u64,
    sights: Arc<Sights>,
    asked: BTreeMap<u64, Instant>,
}

impl Seen {
    pub(super) fn new(core: Core, number: u64, sights: Arc<Sights>) -> Self {
        Self {
            core,
            number,
            sights,
            asked: BTreeMap::new(),
        }
    }

    /// See [`Core::from_client`].
    pub(super) fn client_says(&mut self, message: &[u8]) -> Result<ToServer, Error> {
        self.pass(true, message, message.len());
        if let Some(header) = alone(message)
            && is_timed(&header)
            && self.asked.len() < TIMED
        {
            self.asked.insert(header.message_id.get(), Instant::now());
        }
        self.core.from_client(message)
    }

    /// See [`Core::from_server`].
    pub(super) fn server_says(&mut self, head: &[u8], len: usize) -> Result<ToClient, Error> {
        self.pass(false, head, len);
        // That something takes time is no answer, and one that nobody asked for none of these.
        if let Some(header) = alone(head)
            && !(header.is(flags::ASYNC) && header.status.get() == linkspan_smb2::status::PENDING)
            && let Some(asked) = self.asked.remove(&header.message_id.get())
        {
            self.sights.latency.record(asked.elapsed());
        }
        self.core.from_server(head, len)
    }

    fn pass(&self, by_client: bool, message: &[u8], len: usize) {
        let messages = &self.sights.messages;
        let text = || format!("{}: {}", self.number, describe(message, len));
        if is_setup(message) {
            messages.pass(by_client, text());
        } else {
            messages.pass_watched(by_client, text);
        }
    }
}

/// Whether the server's answer says how fast it is: nobody answers a CANCEL, which has the number
/// of another request, and a CHANGE_NOTIFY waits for what others do.
fn is_timed(header: &Header) -> bool {
    !matches!(
        header.command(),
        Ok(Command::Cancel | Command::ChangeNotify)
    )
}

/// The header of a message that is no part of a compound.
fn alone(message: &[u8]) -> Option<Header> {
    let header = Header::parse_any(message).ok()?;
    (header.next_command.get() == 0).then_some(header)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    #[test]
    fn what_is_answered_is_timed_and_nothing_else_is_kept() {
        let sights = Arc::<Sights>::default();
        let mut seen = Seen::new(Core::new(1 << 20), 1, Arc::clone(&sights));
        let message = |command, id: u64, flags: u32| {
            let mut header = Header::request(command);
            header.message_id = id.into();
            header.flags = flags.into();
            [header.as_bytes(), &[4, 0, 0, 0]].concat()
        };
        seen.client_says(&message(Command::Echo, 5, 0)).unwrap();
        for id in 5..10 {
            seen.client_says(&message(Command::Cancel, id, 0)).unwrap();
        }
        let notify = message(Command::ChangeNotify, 6, 0);
        seen.client_says(&notify).unwrap();
        assert_eq!(seen.asked.keys().copied().collect::<Vec<_>>(), [5]);
        let answer = message(Command::Echo, 5, flags::RESPONSE);
        seen.server_says(&answer, answer.len()).unwrap();
        assert_eq!((seen.asked.len(), sights.latency.latency().count), (0, 1));
    }
}
