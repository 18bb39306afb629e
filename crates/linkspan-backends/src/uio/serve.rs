//! Serves the device's file: the thread between the kernel and the host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use linkspan_mem::{ChannelRing, Region, Window};
use linkspan_sys::fuse::{BUFFER_MIN, Fuse, Received};
use linkspan_sys::poll::{Epoll, Interest, Ready};
use linkspan_sys::{EventFd, PeerEventFd, PeerMemory};
use linkspan_vmbus::Shape;
use linkspan_vmbus::ring::VMBUS_PAGE;
use rustix::io::Errno;

use super::device::{Device, Effect};

/// A channel that the host has opened for a guest.
#[derive(Debug)]
pub struct Channel {
    /// Its two rings, from guest to host first, in a memfd of exactly their size.
    pub memory: OwnedFd,
    /// The eventfd that signals the host.
    pub kick: OwnedFd,
    /// The eventfd that interrupts the guest.
    pub call: OwnedFd,
    /// Becomes readable, or is hung up, when the host takes the channel back: an
    /// eventfd, or a socket.
    pub gone: OwnedFd,
}

/// How a guest gets its channel: called when it opens the device and nobody else has
/// it open. When the last one has closed it the channel is dropped.
pub type Connect = Box<dyn FnMut() -> io::Result<Channel> + Send>;

const FUSE: u64 = 0;
const STOP: u64 = 1;
const CALL: u64 = 2;
const GONE: u64 = 3;

/// A channel under way.
struct Link {
    to_guest: ChannelRing<Window>,
    kick: PeerEventFd,
    call: PeerEventFd,
    gone: OwnedFd,
    backing: i32,
}

/// The thread's things.
pub(super) struct Server {
    fuse: Fuse,
    epoll: Epoll,
    device: Device,
    effects: VecDeque<Effect>,
    connect: Connect,
    link: Option<Link>,
    /// Bytes of both rings.
    both: u64,
    /// Who waits for the kernel's first word.
    ready: SyncSender<bool>,
}

impl Server {
    pub(super) fn new(
        fuse: Fuse,
        stop: &EventFd,
        device: Device,
        connect: Connect,
        both: u64,
        ready: SyncSender<bool>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&fuse, FUSE, Interest::READ)?;
        epoll.add(stop, STOP, Interest::READ)?;
        Ok(Self {
            fuse,
            epoll,
            device,
            effects: VecDeque::new(),
            connect,
            link: None,
            both,
            ready,
        })
    }

    /// Until it is stopped or unmounted.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut ready = Ready::with_capacity(8);
        let mut buffer = vec![0; BUFFER_MIN];
        loop {
            self.epoll.wait(&mut ready, None)?;
            for event in ready.iter() {
                match event.token {
                    STOP => return Ok(()),
                    FUSE => match self.fuse.receive(&mut buffer)? {
                        Received::Message(len) => {
                            self.device.request(&buffer[..len], &mut self.effects);
                        }
                        Received::Nothing => {}
                        Received::Unmounted => return Ok(()),
                    },
                    CALL => self.device.interrupted(&mut self.effects),
                    _ => {
                        if let Some(link) = &self.link {
                            self.epoll.delete(&link.gone)?;
                        }
                        self.device.rescinded(&mut self.effects);
                    }
                }
                self.carry_out()?;
            }
        }
    }

    fn carry_out(&mut self) -> io::Result<()> {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Send(message) => self.fuse.send(message.bytes())?,
                // Whoever waited may have given up.
                Effect::Ready { passthrough } => drop(self.ready.try_send(passthrough)),
                Effect::Interrupts { on } => self.interrupts(on)?,
                Effect::Disconnect => self.disconnect(),
                Effect::Connect { unique } => {
                    let backing = self.open_channel().map_err(|error| {
                        tracing::warn!("the device cannot be opened: {error}");
                        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
                        errno.unwrap_or(Errno::IO)
                    });
                    self.device.connected(unique, backing, &mut self.effects);
                }
            }
        }
        Ok(())
    }

    fn interrupts(&self, on: bool) -> io::Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        link.to_guest.set_interrupt_mask(u32::from(!on));
        if on {
            // Signalling is a system call, and so a barrier; a full counter is a signal.
            let _ = link.kick.signal()?;
        }
        Ok(())
    }

    fn open_channel(&mut self) -> io::Result<i32> {
        let channel = (self.connect)()?;
        let other = io::Error::other::<Box<dyn std::error::Error + Send + Sync>>;
        let memory = PeerMemory::check(channel.memory).map_err(|error| other(error.into()))?;
        let mapping = memory
            .map(0, self.both, None)
            .map_err(|error| other(error.into()))?;
        // The mask is in the header, whatever the size of that is in the guest.
        let header = VMBUS_PAGE;
        let region = Region::new(Arc::new(mapping));
        let [_, to_guest] = Shape::halves(self.both, header)
            .rings(&region, 0)
            .map_err(|error| other(error.into()))?;
        let eventfd = |fd| PeerEventFd::check(fd).map_err(|error| other(error.into()));
        let (kick, call) = (eventfd(channel.kick)?, eventfd(channel.call)?);
        let backing = self.fuse.back(memory.as_fd())?;
        let link = self.link.insert(Link {
            to_guest,
            kick,
            call,
            gone: channel.gone,
            backing,
        });
        let watched = self
            .epoll
            .add(&link.call, CALL, Interest::READ.edge())
            .and_then(|()| self.epoll.add(&link.gone, GONE, Interest::READ));
        if watched.is_err() {
            self.disconnect();
        }
        watched.map(|()| backing)
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            // Each may be missing: a step of opening failed, or the channel is gone.
            drop(self.epoll.delete(&link.call));
            drop(self.epoll.delete(&link.gone));
            drop(self.fuse.unback(link.backing));
        }
    }
}
