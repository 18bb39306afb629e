//! Credits of both directions (MS-SMBD 3.1.5.1 and 3.1.5.9).
//!
//! A credit is a receive that the other side has posted. What we grant are receives
//! that are really posted: *available* ones are posted and not granted yet,
//! *outstanding* ones are granted and not used yet.

use crate::error::Error;

/// The least receives that a peer is kept supplied with, even if it wants one only: with
/// one on each side a grant would need a grant, for ever.
const GOAL_MIN: u16 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credits {
    /// Messages that may be sent.
    pub(crate) send: u16,
    /// What we ask for, in all.
    pub(crate) send_target: u16,
    /// What the peer asked for last, in all.
    pub(crate) peer_target: u16,
    /// The most receives that we post for it.
    receive_max: u16,
    /// Posted and not granted.
    pub(crate) available: u16,
    /// Granted and not used.
    pub(crate) outstanding: u16,
    /// To be posted; it is not known yet whether they are.
    pub(crate) asked: u16,
}

impl Credits {
    pub(crate) fn new(send_target: u16, receive_max: u16) -> Self {
        Self {
            send: 0,
            send_target,
            peer_target: 0,
            receive_max,
            available: 0,
            outstanding: 0,
            asked: 0,
        }
    }

    /// Receives that the peer is to be kept supplied with.
    pub(crate) fn goal(&self) -> u16 {
        let max = self.receive_max.max(GOAL_MIN);
        self.peer_target.clamp(GOAL_MIN, max)
    }

    /// Receives that may ever be posted at once: one more than the goal goes with a
    /// last credit.
    pub(crate) fn capacity(receive_max: u16) -> u16 {
        receive_max.max(GOAL_MIN).saturating_add(1)
    }

    /// Receives that are posted, or are about to be.
    pub(crate) fn posted(&self) -> u16 {
        self.available
            .saturating_add(self.outstanding)
            .saturating_add(self.asked)
    }

    /// How many receives to post now, where `room` of them have a buffer. `sending`:
    /// something waits to be sent, and a last credit goes only with a grant.
    pub(crate) fn to_post(&self, room: usize, sending: bool) -> u16 {
        if self.asked > 0 {
            return 0;
        }
        let mut want = self.goal().saturating_sub(self.posted());
        if want == 0 && sending && self.send == 1 && self.available == 0 {
            want = 1;
        }
        u16::try_from(room).map_or(want, |room| want.min(room))
    }

    /// So many were posted, of those that were asked for.
    pub(crate) fn have_posted(&mut self, count: u16) {
        let count = count.min(self.asked);
        self.asked = 0;
        self.available = self.available.saturating_add(count);
    }

    /// Whether a message may be sent (the last credit only with a grant).
    pub(crate) fn may_send(&self) -> bool {
        self.send > 1 || (self.send == 1 && self.available > 0)
    }

    /// Whether the peer is short of credits, so that a message without data pays. Never
    /// for each message that arrives: two ends would answer each other for ever.
    pub(crate) fn worth_a_message(&self) -> bool {
        // Half of them at a time, so that it goes on sending while they come.
        let many = self.available >= (self.goal() / 2).max(2);
        many || (self.available > 0 && self.outstanding <= self.goal() / 4)
    }

    /// A message goes out: takes a credit, and gives what it grants.
    pub(crate) fn take(&mut self) -> u16 {
        self.send = self.send.saturating_sub(1);
        let grant = core::mem::take(&mut self.available);
        self.outstanding = self.outstanding.saturating_add(grant);
        grant
    }

    /// It did not go out after all.
    pub(crate) fn give_back(&mut self, grant: u16) {
        self.send = self.send.saturating_add(1);
        self.outstanding = self.outstanding.saturating_sub(grant);
        self.available = self.available.saturating_add(grant);
    }

    /// A message came in: uses a credit that was granted.
    pub(crate) fn used(&mut self) -> Result<(), Error> {
        self.outstanding = self.outstanding.checked_sub(1).ok_or(Error::NoCredit)?;
        Ok(())
    }

    /// What a message of the peer grants.
    pub(crate) fn gain(&mut self, granted: u16) -> Result<(), Error> {
        let held = self.send;
        let sum = held.checked_add(granted);
        self.send = sum.ok_or(Error::Credits { held, granted })?;
        Ok(())
    }

    /// No receive is posted any more.
    pub(crate) fn end(&mut self) {
        (self.send, self.available, self.outstanding, self.asked) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Credits of an end that keeps its peer supplied with `goal`.
    fn supplied(goal: u16) -> Credits {
        let mut credits = Credits::new(goal, goal);
        credits.peer_target = goal;
        credits.send = 100;
        post(&mut credits);
        credits.take();
        credits
    }

    fn post(credits: &mut Credits) {
        credits.asked = credits.to_post(1000, false);
        credits.have_posted(credits.asked);
    }

    #[test]
    fn credits_go_back_when_half_of_them_are_used_and_never_one_by_one() {
        for (goal, grant) in [(2, 2), (3, 2), (4, 2), (10, 5), (255, 127)] {
            let mut credits = supplied(goal);
            for _ in 0..grant {
                assert!(!credits.worth_a_message(), "{goal}: {credits:?}");
                credits.used().unwrap();
                post(&mut credits);
            }
            assert!(credits.worth_a_message(), "{goal}: {credits:?}");
            assert_eq!(credits.take(), grant);
            assert!(!credits.worth_a_message());
        }
    }
}
