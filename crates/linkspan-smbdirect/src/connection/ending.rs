//! How a connection ends: once, for the first reason, and so that everything comes back.

use super::{Connection, MessageId, News, Phase, Task, Timers};
use crate::error::{Error, Refusal};
use crate::outbox;

impl Connection {
    /// Ends the connection; whoever waits is told. [`News::Ended`] is the last one.
    pub fn disconnect(&mut self) {
        self.fail(Error::Disconnected);
    }

    /// What [`Output::Keep`](super::Output::Keep) asks for cannot be done.
    pub fn not_kept(&mut self) {
        self.fail(Error::NoArea);
    }

    /// The connection is over: nothing is under way any more, every receive and every
    /// registration is gone.
    pub fn ended(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        self.fail(Error::Lost);
        self.phase = Phase::Ended;
        // It is too late to ask for it.
        self.tasks.retain(|task| !matches!(task, Task::Disconnect));
        let error = self.first_error.unwrap_or(Error::Lost);
        let why = Refusal::Ended(error);
        self.credits.end();
        while let Some(message) = self.flight.end() {
            let result = Err(why);
            self.tell(News::Sent { message, result });
        }
        if let Some(message) = self.outbox.drop_begun() {
            let result = Err(why);
            self.tell(News::Sent { message, result });
        }
        self.end_transfers(why, true);
        while let Some(id) = self.registrations.disable() {
            let result = Err(why);
            self.tell(News::Deregistered { id, result });
        }
        self.tell(News::Ended(error));
    }

    /// Something is wrong, the first time: what was not begun is given up at once, what
    /// is under way when the provider has let go of it.
    pub(super) fn fail(&mut self, error: Error) {
        if matches!(self.phase, Phase::Ending | Phase::Ended) {
            return;
        }
        self.phase = Phase::Ending;
        let error = *self.first_error.get_or_insert(error);
        let why = Refusal::Ended(error);
        self.timers = Timers::default();
        self.immediate = false;
        // What was not taken yet is not done any more; what is over stays over.
        let flight = &mut self.flight;
        self.tasks.retain(|task| match task {
            Task::PostReceives { .. } => false,
            Task::Invalidate { work, .. } => {
                flight.not_posted(*work);
                false
            }
            _ => true,
        });
        if let Some(early) = self.early.take() {
            let buffer = early.buffer;
            self.tasks.push_back(Task::Release { buffer });
        }
        let tasks = &mut self.tasks;
        self.inbox
            .cut(|buffer| tasks.push_back(Task::Release { buffer }));
        while let Some(message) = self.outbox.drop_waiting() {
            let result = Err(why);
            self.tell(News::Sent { message, result });
        }
        self.end_transfers(why, false);
        self.tasks.push_back(Task::Disconnect);
    }

    pub(super) fn end_transfers(&mut self, why: Refusal, all: bool) {
        self.writes.end(why, all);
        self.reads.end(why, all);
        self.tell_transfers();
    }

    /// A message was sent; those in a row wait to be told as one.
    pub(super) fn tell_sent(&mut self, message: MessageId) {
        match self.tasks.back_mut() {
            Some(Task::Sent { first, count })
                if first.0.wrapping_add(u64::from(*count)) == message.0 =>
            {
                *count += 1;
            }
            _ => self.tasks.push_back(Task::Sent {
                first: message,
                count: 1,
            }),
        }
    }

    pub(super) fn tell(&mut self, news: News) {
        self.tasks.push_back(Task::Tell(news));
    }

    pub(super) fn tell_transfers(&mut self) {
        for (queue, are_writes) in [(&mut self.writes, true), (&mut self.reads, false)] {
            while let Some((transfer, refused)) = queue.finished() {
                let result = refused.map_or(Ok(()), Err);
                // What was sent behind it after it was given up.
                while are_writes
                    && result.is_err()
                    && let Some(message) = self.outbox.drop_behind(outbox::NEVER)
                {
                    let behind = News::Sent { message, result };
                    self.tasks.push_back(Task::Tell(behind));
                }
                if are_writes && let Some(why) = refused {
                    self.unheard = Some((transfer, why));
                }
                let over = News::Transferred {
                    transfer,
                    write: are_writes,
                    result,
                };
                self.tasks.push_back(Task::Tell(over));
            }
        }
    }
}
