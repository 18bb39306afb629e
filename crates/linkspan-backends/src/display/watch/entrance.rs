//! Where viewers come in who were let in elsewhere: a page with many screens has one server
//! for strangers, and a thread for each screen.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Interest, wait_for};
use linkspan_sys::{Epoll, EventFd};
use serde_json::json;

use super::SITE;
use crate::web::{Guest, Message, Web};

/// Viewers on their way at a time.
const WAITING_MAX: usize = 16;
/// How long who is turned away may be on his way.
const COMES_WITHIN: Duration = Duration::from_secs(1);

/// The outer side: viewers go in here.
#[derive(Clone, Debug)]
pub struct Usher {
    sender: SyncSender<Guest>,
    event: Arc<EventFd>,
}

/// The inner side.
#[derive(Debug)]
pub struct Entrance {
    receiver: Receiver<Guest>,
    event: Arc<EventFd>,
}

impl Usher {
    /// Both sides.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn new() -> io::Result<(Self, Entrance)> {
        let event = Arc::new(EventFd::new()?);
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let inner = Entrance {
            receiver,
            event: Arc::clone(&event),
        };
        Ok((Self { sender, event }, inner))
    }

    /// Shows somebody in. Where there is no room, or nobody within any more, his connection
    /// ends, and his page comes again.
    pub fn show_in(&self, guest: Guest) {
        if self.sender.try_send(guest).is_ok() {
            // What cannot be told is seen with the next one.
            let _ = self.event.signal();
        }
    }
}

impl Entrance {
    /// Readable when somebody may have come.
    pub(super) fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        epoll.add(self.event.as_fd(), token, Interest::READ)
    }

    /// Who has come.
    pub(super) fn come(&self) -> Vec<Guest> {
        let _ = self.event.drain();
        self.receiver.try_iter().take(WAITING_MAX).collect()
    }

    /// There is no screen: tells so whoever comes next, and those with him.
    pub fn turn_away(self, name: &str, why: &str) {
        let until = Some(Instant::now() + COMES_WITHIN);
        let _ = wait_for(self.event.as_fd(), Direction::Read, None, until);
        let Ok(mut web) = Web::without_door(SITE) else {
            return;
        };
        let state = json!({ "name": name, "width": 0, "height": 0, "lost": why, "keys": false });
        for guest in self.come() {
            if let Some(id) = web.take_in(guest) {
                web.send(id, Message::text(state.to_string()));
            }
        }
        web.farewell(why);
    }
}
