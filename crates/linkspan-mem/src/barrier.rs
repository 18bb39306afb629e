//! The three orderings that two sides of a ring need, by name.
//!
//! Rings say what they mean and never write an `Ordering`; loom checks these
//! three. All are fences between relaxed accesses and not ordered accesses,
//! because a model checker can follow the former only.

#[cfg(not(loom))]
use core::sync::atomic::fence;
#[cfg(loom)]
use loom::sync::atomic::fence;

use core::sync::atomic::Ordering;

/// Everything written before is visible to a peer that sees what is stored
/// next: goes before the store of an index or of an owner bit.
#[inline(always)]
pub fn publish() {
    fence(Ordering::Release);
}

/// Everything that the peer wrote before it published is visible from here on:
/// goes after the load of an index or of an owner bit.
#[inline(always)]
pub fn observe() {
    fence(Ordering::Acquire);
}

/// What was stored before is visible before anything loaded next: goes between
/// saying "wake me" and the last look at the ring, and between publishing and
/// the look whether the peer wants to be woken. Without it both sides can sleep.
#[inline(always)]
pub fn publish_then_check() {
    fence(Ordering::SeqCst);
}
