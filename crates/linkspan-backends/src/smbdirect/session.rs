//! What can be done with one connection.

use std::collections::VecDeque;
use std::net::SocketAddr;

use linkspan_rdma::verbs::{Access, Key, Slice};
use linkspan_smbdirect::{
    Connection, Descriptor, Message, MessageId, Misuse, Refusal, RegistrationId, Status, TransferId,
};

use super::endpoint::{Entry, Id};
use crate::rdma::{Host, Provider};

/// One connection, borrowed from its endpoint. What is asked for is done by the next
/// [`Endpoint::wait`](super::Endpoint::wait).
pub struct Session<'a, C: Host = Provider> {
    pub(super) entry: &'a mut Entry,
    pub(super) provider: &'a mut C,
    pub(super) touched: &'a mut VecDeque<Id>,
    pub(super) now_ms: u64,
}

impl<C: Host> Session<'_, C> {
    fn change(&mut self) -> &mut Connection {
        self.entry.touch(self.touched);
        self.entry.driver.core_mut()
    }

    /// Which one it is, counted from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.entry.number
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.entry.peer
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.entry.driver.core().status()
    }

    /// It has done what is wanted of it, and does not count as half open any more.
    pub fn admit(&mut self) {
        self.provider.admit(self.entry.id);
    }

    /// Sends a message; [`Happening::Sent`](super::Happening::Sent) says when its memory is
    /// free again. It goes behind all writes before it, and is refused with them: also where
    /// that was not [taken notice of](super::Endpoint::poll) yet.
    ///
    /// # Errors
    /// See [`Connection::send`].
    pub fn send(&mut self, data: &[Slice]) -> Result<MessageId, Misuse> {
        self.send_ending(data, None)
    }

    /// The same, and ends the peer's registration of this token.
    ///
    /// # Errors
    /// See [`Connection::send`].
    pub fn send_ending(&mut self, data: &[Slice], token: Option<u32>) -> Result<MessageId, Misuse> {
        match self.entry.unheard {
            (1.., Some(why)) => self.change().send_behind(data, why),
            _ => self.change().send(data, token.map(Key)),
        }
    }

    /// Writes into memory of the peer's.
    ///
    /// # Errors
    /// See [`Connection::write`].
    pub fn write(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<TransferId, Misuse> {
        self.change().write(local, remote, offset)
    }

    /// Reads memory of the peer's.
    ///
    /// # Errors
    /// See [`Connection::read`].
    pub fn read(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<TransferId, Misuse> {
        self.change().read(local, remote, offset)
    }

    /// Asks the peer for a sign of life.
    ///
    /// # Errors
    /// Not connected.
    pub fn ask(&mut self) -> Result<(), Misuse> {
        let now = self.now_ms;
        self.change().ask(now)
    }

    /// Lets the peer reach memory until that is [ended](Self::deregister), or the connection is.
    ///
    /// # Errors
    /// See [`Connection::register`].
    pub fn register(
        &mut self,
        slices: &[Slice],
        access: Access,
    ) -> Result<(RegistrationId, Descriptor), Refusal> {
        let mut verbs = self.provider.verbs(self.entry.id);
        self.entry.driver.register(&mut verbs, slices, access)
    }

    /// Ends a registration; [`Happening::Deregistered`](super::Happening::Deregistered) says
    /// when the memory is its owner's again.
    ///
    /// # Errors
    /// See [`Connection::deregister`].
    pub fn deregister(&mut self, id: RegistrationId) -> Result<(), Misuse> {
        self.change().deregister(id)
    }

    /// The first message that can be read, whole or in part.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        self.entry.driver.core().message()
    }

    /// So many bytes of it were read.
    pub fn consume(&mut self, bytes: u32) {
        self.entry.touch(self.touched);
        let mut verbs = self.provider.verbs(self.entry.id);
        self.entry.driver.consume(&mut verbs, bytes);
    }

    /// The first bytes of the first message, as many as there are and fit; how many.
    #[must_use]
    pub fn peek(&self, target: &mut [u8]) -> usize {
        let mut at = 0;
        for part in self.entry.driver.parts(self.provider.memories()) {
            at += part.read(&mut target[at..]);
        }
        at
    }

    /// Copies the first message, which is whole, into memory of the same length.
    pub fn copy_to(&self, target: &[Slice]) {
        let memories = self.provider.memories();
        let mut target = target.iter().filter_map(|slice| memories.slice(*slice));
        let mut place = target.next();
        for part in self.entry.driver.parts(memories) {
            let mut done = 0;
            while done < part.len()
                && let Some(room) = place
            {
                let count = room.len().min(part.len() - done);
                part.part(done, count).copy_to(room.part(0, count));
                done += count;
                place = if count == room.len() {
                    target.next()
                } else {
                    Some(room.part(count, room.len() - count))
                };
            }
        }
    }

    /// Takes the first message if all of it is there.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let message = self.message().filter(Message::is_whole)?;
        let mut bytes = vec![0; message.len as usize];
        let len = self.peek(&mut bytes);
        bytes.truncate(len);
        self.consume(message.len);
        Some(bytes)
    }

    /// Drops the first message if all of it is there; how long it was.
    pub fn skip(&mut self) -> Option<u32> {
        let message = self.message().filter(Message::is_whole)?;
        self.consume(message.len);
        Some(message.len)
    }

    /// Ends the connection.
    pub fn disconnect(&mut self) {
        self.change().disconnect();
    }
}
