//! Work that is framed when it is posted, as most messages are: none of it waits in a list
//! in between.

use super::batch::Batch;
use super::connection::{Connection, Phase, sum};
use super::wire::{Header, Opcode, QUEUE_SEND, UNTAGGED, Untagged};
use crate::memory::Memories;
use crate::verbs::{Operation, Post, PostError, Slice, Work};

impl Connection {
    /// Posts work as [`Connection::post`] does, and checks that its memory is there. A message
    /// in one frame, before which nothing waits, goes straight into `batch`, which is the one
    /// that the next [`fill`](Self::fill) is given.
    ///
    /// # Errors
    /// It cannot be done.
    pub fn post_to(
        &mut self,
        post: &Post<'_>,
        batch: &mut Batch,
        memories: &Memories,
    ) -> Result<(), PostError> {
        let slices: &[Slice] = match post.work {
            Work::Send { gather, .. } | Work::Write { gather, .. } => gather,
            Work::Read { into, .. } => into,
            Work::Invalidate { .. } => &[],
        };
        memories.check(slices)?;
        if !self.frames_at_once(batch) {
            return self.post(post);
        }
        let Work::Send {
            gather,
            invalidate,
            solicited,
        } = post.work
        else {
            return self.post(post);
        };
        let limits = &self.options.limits;
        let len = sum(gather, limits.gather, limits.work_bytes)?;
        if len > self.options.payload(UNTAGGED) || self.works() >= limits.works {
            return self.post(post);
        }
        let fields = Untagged {
            invalidate: invalidate.map_or(0, |key| key.0),
            queue: QUEUE_SEND,
            number: self.tx.next_send(),
            offset: 0,
        };
        let opcode = Opcode::send(invalidate.is_some(), solicited);
        let header = Header::untagged(opcode, true, fields);
        let mut frame = batch.frame(header, len, self.crc, memories);
        for slice in gather.iter().filter(|slice| slice.len > 0) {
            frame.push(*slice);
        }
        frame.end();
        self.tx
            .message_is_framed(post.id, post.signalled, Operation::Send);
        Ok(())
    }

    /// Whether nothing goes before what is posted next.
    fn frames_at_once(&self, batch: &Batch) -> bool {
        matches!(self.phase, Phase::Running)
            && self.responses.is_empty()
            && self.tx.takes_frames()
            && !batch.is_full()
    }
}
