//! Names for file descriptors, which the sessions never touch.

/// One of the descriptors that came with the message being handled, counted from 0.
///
/// Whoever drives a session keeps those that came with a message until the
/// message is done, takes the ones that are named, and closes the rest. A
/// message is done when more is wanted again, and when an error ends the
/// session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdSlot(pub usize);

/// A descriptor of whoever drives the session, by a number of its own choice.
///
/// A session stores and returns it, and never looks into it. What is to be
/// sent must stay open until its `Send` is written; sending closes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdId(pub u64);
