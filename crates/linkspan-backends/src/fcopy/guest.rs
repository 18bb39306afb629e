//! The guest's end on a channel: takes requests, writes files, answers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use linkspan_engine::vmbus::{Channel, ChannelError, FlushError, Framed, FramedError};
use linkspan_engine::{LogLimit, Messages};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_vmbus::describe::{describe, is_setup};
use linkspan_vmbus::fcopy::{self, Policy, Receiver};
use linkspan_vmbus::ic::{Echo, Reaction};
use linkspan_vmbus::link::{ASKS, Frame};
use linkspan_vmbus::packet::{Contents, Header};
use linkspan_vmbus::{Packet, RingError, SendError};

use super::tree::Tree;

const LINE: u64 = 0;
const SOCKET: u64 = 1;
const CANCEL: u64 = 2;

/// Passes between two looks at what else there is, while packets come and come.
const PASSES: u32 = 1024;

/// Messages of one pass. Giving room back looks for more, and a host may always have some.
const TAKEN_MAX: usize = 64;

/// Answers that the host gets together, while more requests wait: it sends while we write.
const GROUP: usize = 8;

/// How a channel ended for the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestEnd {
    /// We were asked to stop.
    #[error("stopped")]
    Cancelled,
    /// The host took the channel back.
    #[error("the host took the channel back")]
    Rescinded,
    /// A ring is broken.
    #[error("the host broke a ring: {0}")]
    Ring(#[from] RingError),
    /// The host said something at the wrong place.
    #[error("the host broke the protocol: {0}")]
    Socket(FramedError),
    /// The channel cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The system failed.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl GuestEnd {
    /// Whether the host is to blame.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Cancelled | Self::Rescinded)
    }
}

impl From<FlushError> for GuestEnd {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Ring(error) => Self::Ring(error),
            // Of the kernel's device, `EIO` once the host has taken it back.
            _ => Self::Rescinded,
        }
    }
}

/// The guest's end of file copy, over one channel after the other.
#[derive(Debug)]
pub struct Guest {
    service: fcopy::Guest,
    tree: Tree,
    files: u64,
    dropped: LogLimit,
    refused: LogLimit,
    messages: Arc<Messages>,
}

impl Guest {
    /// Files go below `tree`, as `policy` allows; both have the same roots.
    #[must_use]
    pub fn new(policy: Policy, tree: Tree) -> Self {
        Self {
            service: fcopy::Guest::new(Receiver::new(policy), Echo::Full),
            tree,
            files: 0,
            dropped: LogLimit::default(),
            refused: LogLimit::default(),
            messages: Arc::default(),
        }
    }

    /// What goes over its channels.
    #[must_use]
    pub fn messages(&self) -> &Arc<Messages> {
        &self.messages
    }

    /// How many files were finished.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Serves a channel to its end; what is incomplete is gone then. `socket` is where
    /// the channel came from, which says when the host takes it back.
    pub fn serve(
        &mut self,
        channel: Channel,
        socket: Option<&mut Framed>,
        cancel: BorrowedFd<'_>,
    ) -> GuestEnd {
        let end = match self.converse(channel, socket, cancel) {
            Ok(never) => match never {},
            Err(end) => end,
        };
        self.tree.keep(false);
        if let Some(effect) = self.service.end() {
            // Discarding does not fail.
            let status = self.tree.carry_out(&effect, &[]);
            let status = status.map_or_else(|error| error.status(), |()| DONE);
            self.service.ended(status);
        }
        end
    }

    fn converse(
        &mut self,
        mut channel: Channel,
        socket: Option<&mut Framed>,
        cancel: BorrowedFd<'_>,
    ) -> Result<std::convert::Infallible, GuestEnd> {
        let mut packet = channel.packet()?;
        let ours = socket
            .as_ref()
            .is_some_and(|socket| socket.version() >= ASKS);
        // What nobody can ask for need not stay open.
        self.tree.keep(ours);
        // A host of ours does not want its data back.
        self.service
            .set_echo(if ours { Echo::Header } else { Echo::Full });
        let mut waiter = Waiter::new(&channel, socket, cancel)?;
        let mut passes: u32 = 0;
        loop {
            if channel.incoming.refresh()? != 0 {
                channel.came();
            }
            let mut taken: usize = 0;
            while taken < TAKEN_MAX && channel.incoming.receive(&mut packet)? {
                if let Some(len) = self.request(&mut packet) {
                    pass(&self.messages, false, &packet.payload()[..len]);
                    reply(&mut channel, &packet, len, &mut waiter)?;
                }
                taken += 1;
                if taken.is_multiple_of(GROUP) {
                    channel.flush()?;
                }
            }
            channel.flush()?;
            if let Some(frame) = waiter.asked.take() {
                let answer = self.answer(&frame);
                waiter.say(&answer)?;
            }
            passes = passes.wrapping_add(1);
            if channel.look()? {
                // A host which never rests cannot keep us.
                if taken == TAKEN_MAX || passes.is_multiple_of(PASSES) {
                    waiter.wait(&channel, Some(Duration::ZERO))?;
                }
                continue;
            }
            let more = channel.arm()?;
            waiter.wait(&channel, more.then_some(Duration::ZERO))?;
        }
    }

    /// Does what the host asks for beside the channel.
    fn answer(&mut self, frame: &Frame) -> Frame {
        match frame {
            Frame::Verify { offset, len } => Frame::Digest(self.tree.digest(*offset, *len)),
            Frame::Folder {
                file,
                path,
                create_path,
            } => {
                let place = self.service.service().folder(file, path, *create_path);
                let made = match place {
                    Ok(place) => self.tree.make_folder(&place).map_err(|error| {
                        self.log_refused(&error);
                        error.status()
                    }),
                    Err(refusal) => {
                        self.log_refused(&refusal);
                        Err(refusal.status())
                    }
                };
                Frame::Made(made.map_or_else(|status| status, |()| DONE))
            }
            // The conversation lets no other frame of a host pass.
            _ => Frame::Made(linkspan_vmbus::ic::Status::NOT_SUPPORTED),
        }
    }

    /// Does what a packet asks for; how much of it is the reply.
    fn request(&mut self, packet: &mut Packet) -> Option<usize> {
        if !matches!(packet.contents(), Ok(Contents::InBand { .. })) {
            self.log_dropped(&"it is not in-band");
            return None;
        }
        let payload = packet.payload_mut();
        pass(&self.messages, true, payload);
        let mut reaction = match self.service.receive(payload) {
            Ok(reaction) => reaction,
            Err(error) => {
                self.log_dropped(&error);
                return None;
            }
        };
        loop {
            match reaction {
                Reaction::Reply(len) => {
                    if let Some(refusal) = self.service.service_mut().take_refusal() {
                        self.log_refused(&refusal);
                    }
                    return Some(len);
                }
                Reaction::Do(effect) => {
                    let status = match self.tree.carry_out(&effect, payload) {
                        Ok(()) => {
                            let finished = effect == fcopy::Effect::Finish;
                            self.files += u64::from(finished);
                            DONE
                        }
                        Err(error) => {
                            self.log_refused(&error);
                            error.status()
                        }
                    };
                    reaction = self.service.answer(status, payload);
                }
            }
        }
    }

    fn log_dropped(&mut self, why: &dyn std::fmt::Display) {
        if let Some(left_out) = self.dropped.allow() {
            tracing::warn!(left_out, "a message of the host was dropped: {why}");
        }
    }

    fn log_refused(&mut self, why: &dyn std::fmt::Display) {
        if let Some(left_out) = self.refused.allow() {
            tracing::warn!(left_out, "a request was refused: {why}");
        }
    }
}

/// A message goes by; what is about requests is of interest to who watches alone.
pub(crate) fn pass(messages: &Messages, by_host: bool, message: &[u8]) {
    if is_setup(message) {
        messages.pass(by_host, describe(message));
    } else {
        messages.pass_watched(by_host, || describe(message));
    }
}

const DONE: linkspan_vmbus::ic::Status = linkspan_vmbus::ic::Status::OK;

/// Sends the first `len` bytes of a request back, and waits for room if it must.
pub(crate) fn reply(
    channel: &mut Channel,
    packet: &Packet,
    len: usize,
    waiter: &mut Waiter<'_>,
) -> Result<(), GuestEnd> {
    let header = Header::in_band(packet.descriptor().transaction_id);
    let payload = &packet.payload()[..len];
    loop {
        match channel.outgoing.send(header, &[payload]) {
            Ok(()) => return Ok(()),
            Err(SendError::Full { need, .. }) => {
                // The host may wait for room as well.
                channel.flush()?;
                while !channel.outgoing.wait_for(need)? {
                    waiter.wait(channel, None)?;
                }
                channel.outgoing.stop_waiting();
            }
            Err(SendError::Ring(error)) => return Err(error.into()),
            // The ring back is smaller than the one here: nobody can be answered.
            Err(_) => return Ok(()),
        }
    }
}

/// Waits for the channel, its end, and the wish to stop.
pub(crate) struct Waiter<'a> {
    epoll: Epoll,
    ready: Ready,
    socket: Option<&'a mut Framed>,
    /// What came over the socket and is to be answered; it is one frame at most.
    asked: Option<Frame>,
}

impl<'a> Waiter<'a> {
    pub(crate) fn new(
        channel: &Channel,
        socket: Option<&'a mut Framed>,
        cancel: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let line = if channel.is_edge() {
            Interest::READ.edge()
        } else {
            Interest::READ
        };
        epoll.add(channel, LINE, line)?;
        if let Some(socket) = &socket {
            epoll.add(socket.as_fd(), SOCKET, Interest::READ)?;
        }
        epoll.add(cancel, CANCEL, Interest::READ)?;
        Ok(Self {
            epoll,
            ready: Ready::with_capacity(3),
            socket,
            asked: None,
        })
    }

    fn say(&mut self, frame: &Frame) -> Result<(), GuestEnd> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        socket.say(frame, &[]).map_err(gone)
    }

    pub(crate) fn wait(
        &mut self,
        channel: &Channel,
        timeout: Option<Duration>,
    ) -> Result<(), GuestEnd> {
        self.epoll.wait(&mut self.ready, timeout)?;
        for event in self.ready.iter() {
            match event.token {
                CANCEL => return Err(GuestEnd::Cancelled),
                SOCKET => {
                    if let Some(socket) = &mut self.socket
                        && let Some((frame, _)) = socket.take().map_err(gone)?
                    {
                        self.asked = Some(frame);
                    }
                }
                _ => channel.woken().map_err(|_| GuestEnd::Rescinded)?,
            }
        }
        Ok(())
    }
}

fn gone(error: FramedError) -> GuestEnd {
    match error {
        FramedError::Closed => GuestEnd::Rescinded,
        error => GuestEnd::Socket(error),
    }
}
