//! What an upper layer asks for: messages, transfers, memory for the peer, and what came.

use linkspan_rdma::verbs::{Key, PostError, Remote, Slice};

use super::{Connection, KeepAlive, MessageId, News, Phase, RegistrationId, Task, TransferId};
use crate::descriptor::Descriptor;
use crate::error::{Misuse, Refusal};
use crate::gather;
use crate::inbox::{Message, Piece};
use crate::outbox;
use crate::registrations::{End, RegistrationState};
use crate::transfers::Transfers;

impl Connection {
    /// Takes a message: header, data and pages as slices of any number and size, sent in
    /// their order and as one. What it names stays as it is until [`News::Sent`] says
    /// that it was sent. It goes behind all [`write`](Self::write)s before it,
    /// and is refused with them, also while the upper layer was not told of that.
    /// `invalidate`: a token of the peer's that it does not need any more.
    ///
    /// # Errors
    /// Not connected, or not such a message, or too many wait.
    pub fn send(&mut self, data: &[Slice], invalidate: Option<Key>) -> Result<MessageId, Misuse> {
        self.connected()?;
        let len = checked_len(data, self.sizes.fragmented_send)?;
        if let Some((_, why)) = self.unheard {
            return self.refuse_message(why);
        }
        let after = if self.writes.are_refused() {
            // Nobody was told of that write yet: this waits for it, and is refused with it.
            outbox::NEVER
        } else {
            self.writes.taken()
        };
        self.outbox.push(data, len, invalidate, after)
    }

    /// The same for an upper layer that knows less than it was told: it has not heard yet that
    /// a write of its was refused for this reason. So the message is refused with it.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_behind(&mut self, data: &[Slice], why: Refusal) -> Result<MessageId, Misuse> {
        self.connected()?;
        checked_len(data, self.sizes.fragmented_send)?;
        self.refuse_message(why)
    }

    fn refuse_message(&mut self, why: Refusal) -> Result<MessageId, Misuse> {
        let max = usize::from(self.options.queue);
        if self.tasks.len() >= max {
            let what = "messages";
            return Err(Misuse::Full { what, max });
        }
        let message = self.outbox.name();
        let result = Err(why);
        self.tell(News::Sent { message, result });
        Ok(message)
    }

    /// Writes `local` into memory of the peer's, at `offset` of what `remote` describes
    /// (MS-SMBD 3.1.4.5). [`News::Transferred`] says when it is done.
    ///
    /// # Errors
    /// Not connected, or not such a transfer, or too many wait.
    pub fn write(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<TransferId, Misuse> {
        self.transfer(local, remote, offset, |this| &mut this.writes)
    }

    /// Reads memory of the peer's into `local` (MS-SMBD 3.1.4.6), like
    /// [`write`](Self::write).
    ///
    /// # Errors
    /// As for a write; and the peer answers no reads.
    pub fn read(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<TransferId, Misuse> {
        self.connected()?;
        if self.depth.outbound == 0 {
            return Err(Misuse::NoReads);
        }
        self.transfer(local, remote, offset, |this| &mut this.reads)
    }

    fn transfer(
        &mut self,
        local: &[Slice],
        remote: &[Descriptor],
        offset: u64,
        queue: impl FnOnce(&mut Self) -> &mut Transfers,
    ) -> Result<TransferId, Misuse> {
        self.connected()?;
        let len = checked_len(local, self.sizes.read_write)?;
        let id = TransferId(self.next_transfer);
        queue(self).push(id, local, len, remote, offset)?;
        self.next_transfer += 1;
        Ok(id)
    }

    /// Registers `len` bytes for the peer, which `expose` makes known to the provider: a
    /// registration is there with its descriptor, or nothing has happened. The memory is
    /// the peer's until [`deregister`](Self::deregister) has its end.
    ///
    /// # Errors
    /// Not connected, none is free, or what `expose` says.
    pub fn register(
        &mut self,
        len: u32,
        expose: impl FnOnce() -> Result<Remote, PostError>,
    ) -> Result<(RegistrationId, Descriptor), Refusal> {
        self.connected()?;
        let full = Misuse::Full {
            what: "registrations",
            max: self.registrations.len(),
        };
        if len == 0 {
            return Err(Misuse::Empty.into());
        }
        let index = self.registrations.free().ok_or(full)?;
        let remote = expose()?;
        let id = self.registrations.begin(index, remote.key);
        let descriptor = Descriptor {
            offset: remote.address,
            token: remote.key.0,
            length: len,
        };
        Ok((id, descriptor))
    }

    /// What state a registration is in; nothing if it has ended.
    #[must_use]
    pub fn registration(&self, id: RegistrationId) -> Option<RegistrationState> {
        self.registrations.state(id)
    }

    /// Ends a registration, by an invalidation unless the peer did that.
    /// [`News::Deregistered`] says when the memory is its owner's again.
    ///
    /// # Errors
    /// There is no such registration, it is being ended, or the connection is over, with
    /// which it ends by itself.
    pub fn deregister(&mut self, id: RegistrationId) -> Result<(), Misuse> {
        self.connected()?;
        let result = Ok(());
        match self.registrations.end(id).ok_or(Misuse::Registration)? {
            End::Done => self.tell(News::Deregistered { id, result }),
            End::Invalidate(key) => {
                let work = self.flight.invalidate(id);
                self.tasks.push_back(Task::Invalidate { work, key });
            }
        }
        Ok(())
    }

    /// Asks the peer for a sign of life, as after a long silence (MS-SMBD 3.1.6.2). It is
    /// awaited as long as [`Status`](super::Status) says so.
    ///
    /// # Errors
    /// Not connected.
    pub fn ask(&mut self, now_ms: u64) -> Result<(), Misuse> {
        self.connected()?;
        if self.keepalive == KeepAlive::None {
            self.keepalive = KeepAlive::Pending;
            self.immediate = true;
            self.idle_from(now_ms, self.options.keepalive_wait_ms);
        }
        Ok(())
    }

    /// The first message that can be read, whole or in part.
    #[must_use]
    pub fn message(&self) -> Option<Message> {
        self.inbox.message()
    }

    /// What of it has arrived, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.inbox.pieces()
    }

    /// So many bytes of the first message were read; what is behind its end stays.
    /// Buffers that are not needed any more are given back.
    pub fn consume(&mut self, bytes: u32) {
        let tasks = &mut self.tasks;
        self.inbox.consume(bytes, |buffer| {
            tasks.push_back(Task::Release { buffer });
        });
    }

    /// The same where buffers go back at once.
    pub(crate) fn consume_to(&mut self, bytes: u32, free: impl FnMut(Slice)) {
        self.inbox.consume(bytes, free);
    }

    /// Whether a message has pieces in the area.
    pub(crate) fn keeps(&self) -> bool {
        self.inbox.keeps()
    }

    fn connected(&self) -> Result<(), Misuse> {
        match self.phase {
            Phase::Ready => Ok(()),
            _ => Err(Misuse::NotConnected {
                state: self.state(),
            }),
        }
    }
}

/// Bytes of slices, at least one and at most `max`.
fn checked_len(slices: &[Slice], max: u32) -> Result<u32, Misuse> {
    let len = gather::total(slices).unwrap_or(u64::MAX);
    match u32::try_from(len) {
        Ok(0) => Err(Misuse::Empty),
        Ok(len) if len <= max => Ok(len),
        _ => Err(Misuse::TooLong { len, max }),
    }
}
