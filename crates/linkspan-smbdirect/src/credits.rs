//! Credits of both directions (MS-SMBD 3.1.5.1 and 3.1.5.9).
//!
//! A credit is a receive that the other side has posted. What we grant are receives
//! that are really posted: *available* ones are posted and not granted yet,
//! *outstanding* ones are granted and not used yet.

use crate::error::Error;

/// The least receives that a peer is kept supplied with, even if it wants one only: with
/// one on each side a grant would need a grant, for ever.
const GOAL_MIN: u16 = 2;

/// The least that is granted by a message without data: the one that it takes comes back.
const GRANT_MIN: u16 = 2;

/// Buffers that no receive but that of a last credit has. Messages that nobody has read must not
/// take it: whoever waits to be sent the rest of one, with few buffers, grants no single credit.
const RESERVE: usize = 1;

/// Buffers that a message which is not whole leaves for its rest.
pub(crate) const REST_MIN: usize = GRANT_MIN as usize + RESERVE;

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
    /// something waits to be sent, and a last credit goes only with a grant, for which a buffer
    /// is kept.
    pub(crate) fn to_post(&self, room: usize, sending: bool) -> u16 {
        if self.asked > 0 {
            return 0;
        }
        let want = self.goal().saturating_sub(self.posted());
        let spare = room.saturating_sub(RESERVE);
        let want = u16::try_from(spare).map_or(want, |spare| want.min(spare));
        if want == 0 && sending && self.send == 1 && self.available == 0 {
            return u16::from(room > 0);
        }
        want
    }

    /// So many were posted, of those that were asked for.
    pub(crate) fn have_posted(&mut self, count: u16) {
        debug_assert!(count <= self.asked, "{count} were not asked for: {self:?}");
        let count = count.min(self.asked);
        self.asked = 0;
        self.available = self.available.saturating_add(count);
    }

    /// Whether a message may be sent (the last credit only with a grant).
    pub(crate) fn may_send(&self) -> bool {
        self.send > 1 || (self.send == 1 && self.available > 0)
    }

    /// Whether the peer is short of credits, so that a message without data pays. Never
    /// for each message that arrives, however few there are: two ends would answer each other
    /// for ever. So one alone waits for a second, or goes with something else.
    pub(crate) fn worth_a_message(&self) -> bool {
        // Half of them at a time, so that it goes on sending while they come.
        let many = self.available >= self.goal() / 2;
        self.available >= GRANT_MIN && (many || self.outstanding <= self.goal() / 4)
    }

    /// Whether the peer has no credit, and will have none with `room` for receives more.
    pub(crate) fn is_peer_without(&self, room: usize) -> bool {
        let spare = usize::from(self.available) + usize::from(self.asked) + room;
        self.outstanding == 0 && spare < REST_MIN
    }

    /// A message goes out: takes a credit, and gives what it grants.
    pub(crate) fn take(&mut self) -> u16 {
        debug_assert!(
            self.may_send(),
            "a credit is taken that is not there: {self:?}"
        );
        self.send = self.send.saturating_sub(1);
        let grant = core::mem::take(&mut self.available);
        self.outstanding = self.outstanding.saturating_add(grant);
        grant
    }

    /// It did not go out after all.
    pub(crate) fn give_back(&mut self, grant: u16) {
        debug_assert!(
            grant <= self.outstanding,
            "{grant} come back twice: {self:?}"
        );
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

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "come back twice")]
    fn a_grant_that_comes_back_twice_is_found() {
        let mut credits = supplied(2);
        credits.give_back(2);
        credits.give_back(2);
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "were not asked for")]
    fn receives_that_are_told_twice_are_found() {
        let mut credits = supplied(2);
        credits.used().unwrap();
        credits.asked = credits.to_post(2, false);
        credits.have_posted(1);
        credits.have_posted(1);
    }

    /// Ours, found by a loop over all numbers of credits: where neither end read what it had,
    /// and so few receives were left, each grant of one was answered by one.
    #[test]
    fn one_credit_alone_is_worth_no_message() {
        let mut credits = supplied(15);
        for _ in 0..15 {
            credits.used().unwrap();
        }
        // All but two buffers are full, one of which is for a last credit.
        credits.asked = credits.to_post(2, false);
        credits.have_posted(credits.asked);
        assert_eq!((credits.available, credits.outstanding), (1, 0));
        assert!(!credits.worth_a_message() && credits.is_peer_without(1));
        credits.asked = credits.to_post(2, false);
        assert!(!credits.is_peer_without(1));
        credits.have_posted(credits.asked);
        assert!(credits.worth_a_message());
    }

    #[test]
    fn one_buffer_is_for_a_last_credit() {
        let mut credits = supplied(10);
        credits.used().unwrap();
        credits.send = 1;
        assert_eq!(credits.to_post(2, true), 1);
        assert_eq!(credits.to_post(1, false), 0);
        assert_eq!(credits.to_post(1, true), 1);
        assert_eq!(credits.to_post(0, true), 0);
        credits.send = 2;
        assert_eq!(credits.to_post(1, true), 0);
    }
}
