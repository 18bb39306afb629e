//! Messages that wait to be sent, in order. One whole message owns the way out: nothing
//! comes between its segments.

use alloc::collections::VecDeque;

use linkspan_mem::fault::{Injected, try_with_capacity};
use linkspan_rdma::verbs::{Key, Slice};

use crate::connection::MessageId;
use crate::error::Misuse;
use crate::gather::{self, Gather};

/// Slices of all messages that wait, for each of them on average.
const SLICES_PER_MESSAGE: usize = 16;

/// More writes than there ever are.
pub(crate) const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: MessageId,
    /// Bytes that were not posted.
    left: u32,
    begun: bool,
    invalidate: Option<Key>,
    /// Writes that go before it.
    after: u64,
}

/// A segment that is to be posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Its bytes.
    pub(crate) len: u32,
    /// Bytes of the message behind it.
    pub(crate) remaining: u32,
    pub(crate) invalidate: Option<Key>,
    /// The message whose first one it is.
    pub(crate) begins: Option<MessageId>,
    /// The message whose last one it is.
    pub(crate) ends: Option<MessageId>,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    messages: VecDeque<Waiting>,
    slices: VecDeque<Slice>,
    messages_max: usize,
    next: u64,
}

impl Outbox {
    pub(crate) fn new(messages_max: usize) -> Result<Self, Injected> {
        Ok(Self {
            messages: try_with_capacity(messages_max)?.into(),
            slices: try_with_capacity(messages_max * SLICES_PER_MESSAGE)?.into(),
            messages_max,
            next: 0,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Takes a message whose length was checked.
    pub(crate) fn push(
        &mut self,
        data: &[Slice],
        len: u32,
        invalidate: Option<Key>,
        after: u64,
    ) -> Result<MessageId, Misuse> {
        let slices_max = self.messages_max * SLICES_PER_MESSAGE;
        if self.messages.len() == self.messages_max {
            return Err(Misuse::Full {
                what: "messages",
                max: self.messages_max,
            });
        }
        if data.len() > slices_max - self.slices.len() {
            return Err(Misuse::Full {
                what: "slices",
                max: slices_max,
            });
        }
        for slice in data.iter().filter(|slice| slice.len > 0) {
            self.slices.push_back(*slice);
        }
        let id = self.name();
        self.messages.push_back(Waiting {
            id,
            left: len,
            begun: false,
            invalidate,
            after,
        });
        Ok(id)
    }

    /// A name for a message.
    pub(crate) fn name(&mut self) -> MessageId {
        let id = MessageId(self.next);
        self.next += 1;
        id
    }

    /// Whether a segment can follow, where so many writes were posted.
    pub(crate) fn ready(&self, writes: u64) -> bool {
        self.messages
            .front()
            .is_some_and(|message| message.begun || message.after <= writes)
    }

    /// Whether a message is under way.
    pub(crate) fn is_mid_message(&self) -> bool {
        self.messages.front().is_some_and(|message| message.begun)
    }

    /// The next segment: at most `bytes` bytes in at most `slices` slices, which `data` is
    /// then.
    pub(crate) fn segment(
        &mut self,
        bytes: u32,
        slices: usize,
        data: &mut Gather,
    ) -> Option<Segment> {
        let message = self.messages.front_mut()?;
        let begins = (!message.begun).then_some(message.id);
        message.begun = true;
        let len = data.take(&mut self.slices, message.left.min(bytes), slices);
        message.left -= len;
        let segment = Segment {
            len,
            remaining: message.left,
            // With exactly one segment.
            invalidate: message.invalidate.take(),
            begins,
            ends: (message.left == 0).then_some(message.id),
        };
        if message.left == 0 {
            gather::pop(&mut self.messages);
        }
        Some(segment)
    }

    /// Forgets the message that is under way.
    pub(crate) fn drop_begun(&mut self) -> Option<MessageId> {
        let message = self.messages.pop_front_if(|message| message.begun)?;
        gather::skip(&mut self.slices, u64::from(message.left));
        Some(message.id)
    }

    /// Forgets what was to go behind a write that was given up: of so many writes that were
    /// posted it is the last one.
    pub(crate) fn drop_behind(&mut self, writes: u64) -> Option<MessageId> {
        let behind = |message: &mut Waiting| !message.begun && message.after >= writes;
        let message = self.messages.pop_back_if(behind)?;
        let mut left = message.left;
        while left > 0 {
            let slice = self.slices.pop_back()?;
            left = left.saturating_sub(slice.len);
        }
        Some(message.id)
    }

    /// Forgets what was not begun, the first one first.
    pub(crate) fn drop_waiting(&mut self) -> Option<MessageId> {
        // What is under way is the first one; its memory may be in use.
        let at = usize::from(self.is_mid_message());
        let message = self.messages.remove(at)?;
        if self.messages.len() == at {
            // Nothing but the rest of what is under way remains.
            let left = self.messages.front().map_or(0, |begun| begun.left);
            let mut keep = 0;
            let mut bytes = 0;
            while bytes < left && keep < self.slices.len() {
                bytes += self.slices[keep].len;
                keep += 1;
            }
            self.slices.truncate(keep);
        }
        Some(message.id)
    }
}
