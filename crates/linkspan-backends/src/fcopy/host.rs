//! A host: offers the device to one guest at a time, and sends it the files that
//! programs ask for, one after the other. One thread, which waits in one place.

mod asking;
mod jobs;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_engine::vmbus::{ChannelError, FramedError, Offer};
use linkspan_engine::{LogLimit, Sights};
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::{Epoll, Listener, reaper};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{self, Frame, Outcome, Reason, Request, Role};

use self::asking::Asking;
use super::active::{Active, GuestFault, Turn};
use crate::clients::{Clients, until};
use crate::door::Door;

/// The least bytes of a ring with room for every message: a page of control fields,
/// and two pages.
pub const RING_MIN: u64 = 3 * 4096;

/// WRITEs that a guest of ours gets before it has answered the first.
pub const OUTSTANDING: usize = 32;

/// Frames of one client before others have their turn.
const FRAMES_MAX: usize = 8;

const CANCEL: u64 = 0;
const LINE: u64 = 1;
const FIRST_LISTENER: u64 = 2;
const FIRST_CLIENT: u64 = 16;

/// Who may connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Guests and senders.
    All,
    /// Guests only.
    Guests,
    /// Senders only.
    Senders,
}

impl Accepts {
    fn allows(self, role: Role) -> bool {
        match self {
            Self::All => true,
            Self::Guests => role == Role::Guest,
            Self::Senders => role == Role::Sender,
        }
    }
}

/// How a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// Bytes of each ring, its header included; at least [`RING_MIN`].
    pub ring: u64,
    /// WRITEs that the guest gets before it has answered the first, at least 1; guests of
    /// others are promised 1, ours take [`OUTSTANDING`].
    pub outstanding: usize,
}

/// What happens at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A guest has the channel.
    Joined,
    /// It is gone.
    Left {
        /// Why.
        reason: String,
        /// Whether the guest is to blame.
        fault: bool,
    },
    /// A file ended.
    File {
        /// Its name.
        file: String,
        /// Where it was to go.
        path: String,
        /// What became of it.
        outcome: Outcome,
    },
}

/// What is known of a client.
struct Known {
    accepts: Accepts,
    job: Option<Job>,
}

struct Job {
    file: String,
    path: String,
    size: u64,
    patience: Duration,
    /// Whether the guest is to read it back.
    verify: bool,
    /// Until it has begun: what is to be sent, and until when.
    waiting: Option<(Request, OwnedFd, Instant)>,
}

/// A host.
pub struct Host {
    epoll: Epoll,
    doors: Vec<(Door<Listener>, Accepts)>,
    clients: Clients<Known>,
    options: HostOptions,
    guest: Option<(u64, Active)>,
    /// Clients whose files wait, in order.
    queue: VecDeque<u64>,
    /// The client whose file is under way, if it still is there.
    current: Option<u64>,
    /// What the guest was asked for it beside the channel.
    asking: Option<Asking>,
    events: Box<dyn FnMut(HostEvent) + Send>,
    broken: LogLimit,
    sights: Arc<Sights>,
}

impl Host {
    /// A host with these sockets. `events` hears what happens.
    ///
    /// # Errors
    /// The system refused, or the size of the rings cannot be.
    pub fn new(
        listeners: Vec<(Listener, Accepts)>,
        options: HostOptions,
        events: impl FnMut(HostEvent) + Send + 'static,
    ) -> Result<Self, ChannelError> {
        if options.ring < RING_MIN {
            return Err(ChannelError::Size { size: options.ring });
        }
        // Better now than when a guest comes.
        drop(Offer::new(options.ring)?);
        let epoll = Epoll::new()?;
        let mut doors = Vec::new();
        for (token, (listener, accepts)) in (FIRST_LISTENER..).zip(listeners) {
            doors.push((Door::new(listener, token, &epoll)?, accepts));
        }
        Ok(Self {
            epoll,
            doors,
            clients: Clients::new(FIRST_CLIENT),
            options,
            guest: None,
            queue: VecDeque::new(),
            current: None,
            asking: None,
            events: Box::new(events),
            broken: LogLimit::default(),
            sights: Arc::default(),
        })
    }

    /// What goes over the guest's channel, and how long the guest takes for its answers.
    #[must_use]
    pub fn sights(&self) -> &Arc<Sights> {
        &self.sights
    }

    /// Serves until `cancel` becomes readable.
    ///
    /// # Errors
    /// The system failed in a way that no client can cause.
    pub fn run(&mut self, cancel: BorrowedFd<'_>) -> io::Result<()> {
        self.epoll.add(cancel, CANCEL, Interest::READ)?;
        let mut ready = Ready::with_capacity(16);
        let mut more = false;
        loop {
            let timeout = if more {
                Some(Duration::ZERO)
            } else {
                self.next_deadline()
            };
            self.epoll.wait(&mut ready, timeout)?;
            for event in ready.iter() {
                match event.token {
                    CANCEL => return self.epoll.delete(cancel),
                    LINE => {}
                    token if token < FIRST_CLIENT => self.accept(token),
                    token => self.hear(token),
                }
            }
            let now = Instant::now();
            self.doors
                .iter_mut()
                .for_each(|(door, _)| door.open(&self.epoll, now));
            self.expire();
            self.begin();
            // A guest may have become ready, and somebody have waited for that.
            more = self.turn() || self.may_begin();
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let idle = self.is_idle();
        let waiting = self.clients.iter().filter(|_| idle);
        let waiting = waiting.filter_map(|client| {
            let (_, _, until) = client.known.job.as_ref()?.waiting.as_ref()?;
            Some(*until)
        });
        let guest = self.guest.as_ref().and_then(|(_, guest)| guest.deadline());
        let asking = self.asking.as_ref().map(Asking::deadline);
        let hello = self.clients.deadline().into_iter();
        let doors = self.doors.iter().filter_map(|(door, _)| door.due());
        let all = hello.chain(waiting).chain(guest).chain(asking);
        until(all.chain(doors).min())
    }

    /// Whether there is no guest that could be sent anything: neither one that is ready
    /// nor one that serves somebody else.
    fn is_idle(&self) -> bool {
        let ready = self
            .guest
            .as_ref()
            .is_some_and(|(_, guest)| guest.is_ready());
        !ready && self.current.is_none()
    }

    fn accept(&mut self, token: u64) {
        let index = usize::try_from(token - FIRST_LISTENER).unwrap_or(usize::MAX);
        let Some((door, accepts)) = self.doors.get_mut(index) else {
            return;
        };
        let accepts = *accepts;
        let known = Known { accepts, job: None };
        let same = |other: &Known| other.accepts == accepts;
        self.clients.accept(&self.epoll, door, known, same);
    }

    fn hear(&mut self, token: u64) {
        for _ in 0..FRAMES_MAX {
            let Some(client) = self.clients.get_mut(token) else {
                return;
            };
            let frame = match client.framed.take() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => return self.remove(token, &error),
            };
            if let Err(error) = self.heard(token, frame) {
                return self.remove(token, &error);
            }
        }
    }

    fn heard(
        &mut self,
        token: u64,
        (frame, mut fds): (Frame, Vec<OwnedFd>),
    ) -> Result<(), FramedError> {
        match frame {
            Frame::Hello {
                oldest,
                newest,
                role,
                interface,
            } if role == Role::Sender || interface == FILE_COPY.interface => {
                self.greet(token, link::choose(oldest, newest), role)
            }
            Frame::Hello { .. } => self.refuse(token, Reason::Interface),
            Frame::Send(request) => match fds.pop() {
                Some(source) => self.enqueue(token, request, source),
                None => Ok(()),
            },
            Frame::Cancel => {
                self.cancel(token);
                Ok(())
            }
            Frame::Digest(digest) => {
                self.digested(&digest);
                Ok(())
            }
            Frame::Made(status) => {
                self.made(status);
                Ok(())
            }
            // The conversation lets no other frame of a client pass.
            _ => {
                fds.into_iter().for_each(reaper::dispose);
                Ok(())
            }
        }
    }

    fn refuse(&mut self, token: u64, reason: Reason) -> Result<(), FramedError> {
        if let Some(client) = self.clients.get_mut(token) {
            client.framed.say(&Frame::Refused(reason), &[])?;
        }
        Err(FramedError::Closed)
    }

    fn greet(&mut self, token: u64, version: Option<u16>, role: Role) -> Result<(), FramedError> {
        // One that has left is not in the way, even if nobody has looked yet.
        if role == Role::Guest
            && let Some((held, _)) = &self.guest
        {
            let held = *held;
            self.hear(held);
        }
        let busy = role == Role::Guest && self.guest.is_some();
        let Some(client) = self.clients.get_mut(token) else {
            return Ok(());
        };
        let refused = match version {
            None => Err(Reason::Version),
            Some(_) if !client.known.accepts.allows(role) => Err(Reason::Role),
            Some(_) if busy => Err(Reason::Busy),
            Some(version) => Ok(version),
        };
        let version = match refused {
            Ok(version) => version,
            Err(reason) => return self.refuse(token, reason),
        };
        if role == Role::Sender {
            return client.framed.say(&Frame::Welcome { version }, &[]);
        }
        let offer = Offer::new(self.options.ring).map_err(io::Error::other)?;
        let channel = offer.host().map_err(io::Error::other)?;
        let active = Active::new(channel, self.options.outstanding, &self.sights);
        let active = active.map_err(io::Error::other)?;
        let frame = Frame::Channel {
            version,
            interface: FILE_COPY.interface,
            instance: FILE_COPY.instance.unwrap_or_default(),
            shape: offer.shape,
        };
        client.framed.say(&frame, &offer.descriptors())?;
        let line = Interest::READ.edge();
        self.epoll.add(&active.channel, LINE, line)?;
        self.guest = Some((token, active));
        (self.events)(HostEvent::Joined);
        Ok(())
    }

    /// Ends what did not come in time.
    fn expire(&mut self) {
        let now = Instant::now();
        for token in self.clients.late(now) {
            self.remove(token, &FramedError::Late);
        }
        if self.is_idle() {
            let over = |token: &u64| {
                let client = self.clients.get(*token);
                let job = client.and_then(|client| client.known.job.as_ref());
                let waiting = job.and_then(|job| job.waiting.as_ref());
                waiting.is_some_and(|(_, _, until)| *until <= now)
            };
            let over: Vec<u64> = self.queue.iter().copied().filter(over).collect();
            for token in over {
                self.queue.retain(|waiting| *waiting != token);
                self.done(token, Outcome::NoGuest);
            }
        }
        if let Some((_, guest)) = &mut self.guest {
            guest.expire(now);
        }
        let silent = self.asking.as_ref();
        if silent.is_some_and(|asking| asking.deadline() <= now)
            && let Some((token, _)) = self.guest
        {
            let silent = Outcome::Silent;
            self.lose_guest(token, &silent.to_string(), true, silent);
        }
    }

    /// A turn of the guest's channel; whether there is more to do at once.
    fn turn(&mut self) -> bool {
        let Some((token, guest)) = &mut self.guest else {
            return false;
        };
        let token = *token;
        match guest.turn() {
            Ok(Turn {
                outcome,
                source,
                progress,
                more,
            }) => {
                let current = self.current;
                if let (Some(current), Some(sent)) = (current, progress) {
                    let checked = 0;
                    self.tell(current, &Frame::Progress { sent, checked });
                }
                if let (Some(current), Some(outcome)) = (current, outcome) {
                    // It stays the current one until it is read back.
                    if outcome != Outcome::Done || !self.verify(current, source) {
                        self.current = None;
                        self.done(current, outcome);
                    }
                }
                // The next file may wait, and a guest that has become ready just now.
                more || outcome.is_some() || self.may_begin()
            }
            Err(fault) => {
                let outcome = match &fault {
                    GuestFault::Failed(failure) => super::active::outcome(*failure),
                    _ => Outcome::Protocol,
                };
                self.lose_guest(token, &fault.to_string(), true, outcome);
                true
            }
        }
    }

    /// A guest that leaves may have answered before, and nobody have looked; it reads
    /// nothing back any more. What it broke meanwhile is told as its leaving.
    fn hear_last(&mut self) {
        let turn = self.guest.as_mut().map(|(_, guest)| guest.turn());
        if let Some(Ok(Turn {
            outcome: Some(outcome),
            ..
        })) = turn
            && let Some(current) = self.current.take()
        {
            self.done(current, outcome);
        }
    }

    /// The guest is gone, or to go.
    fn lose_guest(&mut self, token: u64, reason: &str, fault: bool, outcome: Outcome) {
        let Some((_, guest)) = self.guest.take() else {
            return;
        };
        // The guest has the same open file, so closing ours does not end the watch.
        let _ = self.epoll.delete(&guest.channel);
        self.clients.remove(&self.epoll, token);
        if fault && let Some(left_out) = self.broken.allow() {
            tracing::warn!(left_out, "the guest is given up: {reason}");
        }
        (self.events)(HostEvent::Left {
            reason: reason.to_owned(),
            fault,
        });
        let reads_back = self.asking.take().is_some_and(|asking| asking.is_of_file());
        if let Some(current) = self.current.take() {
            // A guest that has it, and left while it read it back, has not lost it.
            let outcome = match (reads_back, fault) {
                (true, false) => Outcome::Done,
                _ => outcome,
            };
            self.done(current, outcome);
        }
    }

    /// Tells a client what became of its file.
    fn done(&mut self, token: u64, outcome: Outcome) {
        let Some(client) = self.clients.get_mut(token) else {
            return;
        };
        let Some(Job { file, path, .. }) = client.known.job.take() else {
            return;
        };
        self.tell(token, &Frame::Done(outcome));
        (self.events)(HostEvent::File {
            file,
            path,
            outcome,
        });
    }

    fn tell(&mut self, token: u64, frame: &Frame) {
        let Some(client) = self.clients.get_mut(token) else {
            return;
        };
        if let Err(error) = client.framed.say(frame, &[]) {
            self.remove(token, &error);
        }
    }

    /// A client is gone, or to go.
    fn remove(&mut self, token: u64, why: &FramedError) {
        if self
            .guest
            .as_ref()
            .is_some_and(|(guest, _)| *guest == token)
        {
            self.hear_last();
            let fault = !matches!(why, FramedError::Closed);
            return self.lose_guest(token, &why.to_string(), fault, Outcome::Lost);
        }
        let Some(client) = self.clients.remove(&self.epoll, token) else {
            return;
        };
        tracing::debug!("a client left: {why}");
        self.queue.retain(|waiting| *waiting != token);
        if self.current == Some(token) {
            // The file goes with whoever sent it; the guest is told.
            let outcome = match self.asking {
                Some(_) => Outcome::Done,
                None => Outcome::Stopped,
            };
            self.stop_current();
            if let Some(Job { file, path, .. }) = client.known.job {
                (self.events)(HostEvent::File {
                    file,
                    path,
                    outcome,
                });
            }
        }
    }
}
