//! A host: offers services to the guests that connect, each service to one at a time.
//! One thread, which waits in one place.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_engine::Messages;
use linkspan_engine::vmbus::{ChannelError, FramedError, Offer};
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::{Epoll, Listener, reaper};
use linkspan_vmbus::Guid;
use linkspan_vmbus::ic::Service;
use linkspan_vmbus::link::{self, Frame, Reason, Role};

use crate::clients::{Clients, until};
use crate::door::Door;

use super::talk::{HostEvent, HostOptions, Parting, Talk};

/// Bytes of each ring, as Linux's kernel has them for these services.
const RING: u64 = 5 * 4096;

const CANCEL: u64 = 0;
const LISTENER: u64 = 1;
/// Channels, in the order of the services.
const FIRST_LINE: u64 = 2;
const FIRST_CLIENT: u64 = 64;

/// A service, and its guest if there is one.
struct Line {
    service: &'static Service,
    guest: Option<(u64, Talk)>,
    /// What goes over its channels.
    messages: Arc<Messages>,
}

/// A host.
pub struct Host {
    epoll: Epoll,
    door: Door<Listener>,
    options: HostOptions,
    clients: Clients<()>,
    lines: Vec<Line>,
    events: Box<dyn FnMut(&'static Service, HostEvent) + Send>,
}

impl Host {
    /// A host at this socket. `events` hears what happens with which service.
    ///
    /// # Errors
    /// The system refused.
    pub fn new(
        listener: Listener,
        options: HostOptions,
        events: impl FnMut(&'static Service, HostEvent) + Send + 'static,
    ) -> Result<Self, ChannelError> {
        // Better now than when a guest comes.
        drop(Offer::new(RING)?);
        let epoll = Epoll::new()?;
        let door = Door::new(listener, LISTENER, &epoll)?;
        let line = |service: &&'static Service| Line {
            service,
            guest: None,
            messages: Arc::default(),
        };
        Ok(Self {
            epoll,
            door,
            lines: options.services.iter().map(line).collect(),
            options,
            clients: Clients::new(FIRST_CLIENT),
            events: Box::new(events),
        })
    }

    /// What goes over the channels of each service.
    pub fn messages(&self) -> impl Iterator<Item = (&'static Service, &Arc<Messages>)> {
        self.lines.iter().map(|line| (line.service, &line.messages))
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
                    LISTENER => {
                        let same = |(): &()| true;
                        self.clients.accept(&self.epoll, &mut self.door, (), same);
                    }
                    // Every line has its turn below.
                    token if token < FIRST_CLIENT => {}
                    token => self.hear(token),
                }
            }
            self.door.open(&self.epoll, Instant::now());
            self.expire();
            more = self.turn();
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let lines = self
            .lines
            .iter()
            .filter_map(|line| line.guest.as_ref()?.1.deadline());
        let hello = self.clients.deadline();
        until(hello.into_iter().chain(lines).chain(self.door.due()).min())
    }

    fn hear(&mut self, token: u64) {
        let Some(client) = self.clients.get_mut(token) else {
            return;
        };
        let heard = match client.framed.take() {
            Ok(Some(frame)) => self.heard(token, frame),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = heard {
            self.remove(token, &error);
        }
    }

    fn heard(
        &mut self,
        token: u64,
        (frame, fds): (Frame, Vec<OwnedFd>),
    ) -> Result<(), FramedError> {
        fds.into_iter().for_each(reaper::dispose);
        // The conversation lets no other frame of a guest pass that is not asked.
        let Frame::Hello {
            oldest,
            newest,
            role,
            interface,
        } = frame
        else {
            return Ok(());
        };
        let version = link::choose(oldest, newest);
        let at = self.line_of(role, interface).and_then(|at| {
            // One that has left is not in the way, even if nobody has looked yet.
            if let Some((held, _)) = &self.lines[at].guest {
                let held = *held;
                self.hear(held);
            }
            match self.lines[at].guest {
                Some(_) => Err(Reason::Busy),
                None => Ok(at),
            }
        });
        let version = version.ok_or(Reason::Version);
        match version.and_then(|version| Ok((version, at?))) {
            Ok((version, at)) => self.join(token, version, at),
            Err(reason) => {
                if let Some(client) = self.clients.get_mut(token) {
                    client.framed.say(&Frame::Refused(reason), &[])?;
                }
                Err(FramedError::Closed)
            }
        }
    }

    fn line_of(&self, role: Role, interface: Guid) -> Result<usize, Reason> {
        if role != Role::Guest {
            return Err(Reason::Role);
        }
        let mut lines = self.lines.iter();
        let at = lines.position(|line| line.service.interface == interface);
        at.ok_or(Reason::Interface)
    }

    /// Gives a guest the channel of a service.
    fn join(&mut self, token: u64, version: u16, at: usize) -> Result<(), FramedError> {
        let Some(client) = self.clients.get_mut(token) else {
            return Ok(());
        };
        let service = self.lines[at].service;
        let offer = Offer::new(RING).map_err(io::Error::other)?;
        let channel = offer.host().map_err(io::Error::other)?;
        let frame = Frame::Channel {
            version,
            interface: service.interface,
            instance: service.instance.unwrap_or_default(),
            shape: offer.shape,
        };
        // Its first message is there before the guest is, so that nothing but the guest's
        // leaving ends what was told to have begun.
        let talk = Talk::new(service, channel, &self.options, &self.lines[at].messages);
        let talk = talk.map_err(io::Error::other)?;
        client.framed.say(&frame, &offer.descriptors())?;
        let line = FIRST_LINE + at as u64;
        self.epoll.add(&talk.channel, line, Interest::READ.edge())?;
        self.lines[at].guest = Some((token, talk));
        (self.events)(service, HostEvent::Joined);
        Ok(())
    }

    /// Ends connections that say nothing.
    fn expire(&mut self) {
        let now = Instant::now();
        for token in self.clients.late(now) {
            self.remove(token, &FramedError::Late);
        }
    }

    /// A turn of every channel; whether there is more to do at once.
    fn turn(&mut self) -> bool {
        let (now, mut more) = (Instant::now(), false);
        for at in 0..self.lines.len() {
            let Line { service, guest, .. } = &mut self.lines[at];
            let (service, Some((_, talk))) = (*service, guest) else {
                continue;
            };
            let events = &mut self.events;
            let turn = talk.turn(now, &self.options, &mut |event| events(service, event));
            match turn {
                Ok(rest) => more |= rest,
                Err(fault) => self.lose(at, &fault.to_string(), fault.parting()),
            }
        }
        more
    }

    /// A guest is gone, or to go.
    fn lose(&mut self, at: usize, reason: &str, parting: Parting) {
        let Some((token, talk)) = self.lines[at].guest.take() else {
            return;
        };
        // The guest has the same open file, so closing ours does not end the watch.
        let _ = self.epoll.delete(&talk.channel);
        self.clients.remove(&self.epoll, token);
        let reason = reason.to_owned();
        (self.events)(self.lines[at].service, HostEvent::Left { reason, parting });
    }

    /// A client is gone, or to go.
    fn remove(&mut self, token: u64, why: &FramedError) {
        let holds = |line: &Line| line.guest.as_ref().is_some_and(|(held, _)| *held == token);
        if let Some(at) = self.lines.iter().position(holds) {
            let parting = match why {
                FramedError::Closed => Parting::Went,
                _ => Parting::Broke,
            };
            return self.lose(at, &why.to_string(), parting);
        }
        if self.clients.remove(&self.epoll, token).is_some() {
            tracing::debug!("a client left: {why}");
        }
    }
}
