//! Messages of a protocol that go by, in words, for who watches.
//!
//! What a protocol says once (who is there, what is agreed upon, what is set up) is kept always.
//! What it says for each request is kept while somebody watches, and costs one relaxed load
//! else. Nobody who watches is waited for: the oldest messages go, and their numbers say so.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::histogram::Histogram;

/// Messages that are kept while nobody watches.
const KEPT: usize = 256;

/// Messages that are kept for who watches.
const WATCHED: usize = 2048;

/// Characters of a message at most.
const TEXT_MAX: usize = 1024;

/// How long somebody watches who asked once.
const LEASE: Duration = Duration::from_secs(5);

/// A message of the protocol that went by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Counts the messages that were put into words, from 1.
    pub number: u64,
    /// Whether the peer sent it.
    pub by_peer: bool,
    /// What it said.
    pub text: String,
}

/// What an endpoint that answers requests one by one shows of them.
#[derive(Debug, Default)]
pub struct Sights {
    /// What goes by.
    pub messages: Arc<Messages>,
    /// From each request to its answer.
    pub latency: Histogram,
}

/// The last messages of an endpoint.
#[derive(Debug, Default)]
pub struct Messages {
    watched: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    messages: VecDeque<Passed>,
    passed: u64,
    until: Option<Instant>,
}

impl Messages {
    /// Whether messages about single requests are wanted.
    #[inline]
    pub fn are_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// A message went by that is kept always.
    pub fn pass(&self, by_peer: bool, text: String) {
        self.keep(by_peer, text);
    }

    /// A message about a request went by, which `text` puts into words if somebody watches.
    #[inline]
    pub fn pass_watched(&self, by_peer: bool, text: impl FnOnce() -> String) {
        if self.are_watched() {
            self.keep(by_peer, text());
        }
    }

    fn keep(&self, by_peer: bool, mut text: String) {
        if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
            text.truncate(end);
            text.push('…');
            // What a peer said at length is not kept.
            text.shrink_to_fit();
        }
        let watched = self.are_watched();
        let mut kept = self.kept();
        if watched && kept.until.is_none_or(|until| until <= Instant::now()) {
            // Whoever watched has left.
            self.watched.store(false, Ordering::Relaxed);
            kept.until = None;
        }
        let most = if kept.until.is_some() { WATCHED } else { KEPT };
        while kept.messages.len() >= most {
            kept.messages.pop_front();
        }
        kept.passed += 1;
        let number = kept.passed;
        kept.messages.push_back(Passed {
            number,
            by_peer,
            text,
        });
    }

    /// The last messages, without those up to this number.
    pub fn last(&self, after: u64) -> Vec<Passed> {
        let kept = self.kept();
        let messages = kept.messages.iter();
        messages.filter(|it| it.number > after).cloned().collect()
    }

    /// Somebody watches for some seconds from now on.
    pub fn watch(&self) {
        self.kept().until = Some(Instant::now() + LEASE);
        self.watched.store(true, Ordering::Relaxed);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // What is within is whole after each change.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(messages: &Messages) -> (u64, u64) {
        let last = messages.last(0);
        (last[0].number, last[last.len() - 1].number)
    }

    #[test]
    fn what_is_about_requests_is_kept_for_who_watches() {
        let messages = Messages::default();
        let say = |count: usize| {
            for _ in 0..count {
                messages.pass_watched(true, || "x".into());
            }
        };
        say(10);
        assert_eq!(messages.last(0), []);
        messages.pass(false, "hello".into());
        messages.watch();
        say(10);
        assert_eq!(numbers(&messages), (1, 11));
        // Numbers go on, so that who watches sees how many went unseen.
        say(2 * WATCHED);
        let last = 11 + 2 * WATCHED as u64;
        assert_eq!(numbers(&messages), (last - WATCHED as u64 + 1, last));
        assert_eq!(messages.last(last - 1).len(), 1);
        // Whoever watched has left: the next message finds that out.
        messages.kept().until = Some(Instant::now());
        say(10);
        assert!(!messages.are_watched());
        assert_eq!(numbers(&messages), (last + 2 - KEPT as u64, last + 1));
    }

    #[test]
    fn no_message_is_long() {
        let messages = Messages::default();
        messages.pass(true, "ü".repeat(10_000));
        let kept = messages.kept();
        let text = &kept.messages[0].text;
        assert_eq!(text.chars().count(), TEXT_MAX + 1);
        // Nor is its memory.
        assert!(text.capacity() < 4 * TEXT_MAX, "{}", text.capacity());
    }
}
