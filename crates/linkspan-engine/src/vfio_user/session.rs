//! One connection of a client: the protocol core, and the device, memory and interrupts
//! that its effects act on.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::fault;
use linkspan_sys::poll::Interest;
use linkspan_sys::{Epoll, EventFd, reaper};
use linkspan_vfio::describe::{Said, Watcher};
use linkspan_vfio::message::Command;
use linkspan_vfio::server::{Answer, Effect};
use linkspan_vfio::{Disposition, FdId, FdSlot, SetIrqs};

use super::error::{Reason, SessionError};
use super::guest::{Device, Guest};
use crate::limit::LogLimit;
use crate::messages::Messages;
use crate::session::{Outgoing, Session};

/// A descriptor that a message to the client carries; which one, its place says.
const FD: FdId = FdId(0);

/// A device offered to one client.
pub struct DeviceSession<'a> {
    guest: Guest,
    device: &'a mut dyn Device,
    /// Descriptors of the message that is being handled, by position.
    fds: Vec<Option<OwnedFd>>,
    /// Those that go with the answer.
    answered: Vec<OwnedFd>,
    outgoing: VecDeque<Outgoing>,
    /// All that wakes the session: `gone`, and what the device has.
    watch: Epoll,
    gone: Arc<EventFd>,
    closing: bool,
    refusals: LogLimit,
    messages: Option<Arc<Messages>>,
    /// What the client says, and what it is told.
    watchers: [Watcher; 2],
}

impl<'a> DeviceSession<'a> {
    /// A session before its first message.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new(device: &'a mut dyn Device) -> io::Result<Self> {
        let gone = Arc::new(EventFd::new()?);
        let watch = Epoll::new()?;
        watch.add(&*gone, 0, Interest::READ)?;
        if let Some(wake) = device.wake_fd() {
            watch.add(wake, 0, Interest::READ)?;
        }
        device.connected();
        Ok(Self {
            guest: Guest::new(device.offer(), Arc::clone(&gone)),
            device,
            fds: Vec::new(),
            answered: Vec::new(),
            outgoing: VecDeque::new(),
            watch,
            gone,
            closing: false,
            refusals: LogLimit::default(),
            messages: None,
            watchers: Default::default(),
        })
    }

    /// Each message can be seen there from now on.
    #[must_use]
    pub(crate) fn seen_by(mut self, messages: &Arc<Messages>) -> Self {
        self.device.be_seen(messages);
        self.messages = Some(Arc::clone(messages));
        self
    }

    /// Carries out effects until none is left.
    fn proceed(&mut self) -> Result<(), SessionError> {
        while let Some(effect) = self.guest.core.poll_effect() {
            let done = match self.carry_out(effect) {
                Ok(None) => continue,
                Ok(Some(answer)) => Ok(answer),
                Err(reason) => Err(reason),
            };
            let (answer, reason) = match done {
                Ok(answer) => (Ok(answer), None),
                Err(reason) => (Err(reason.errno()), Some(reason)),
            };
            self.guest
                .core
                .answer(answer)
                .or_else(|error| self.judge(error, reason))?;
        }
        if !self.guest.core.is_mid_message() {
            // What the message left unclaimed goes, unchecked.
            self.fds.drain(..).flatten().for_each(reaper::dispose);
        }
        Ok(())
    }

    /// A message that was refused ends the session, or the client is told and the session
    /// goes on.
    fn judge(
        &mut self,
        error: linkspan_vfio::Error,
        reason: Option<Reason>,
    ) -> Result<(), SessionError> {
        let nack = error.disposition() == Disposition::Nack;
        // A viewer may ask for what is not shown any more as often as it likes, and for
        // planes that there are not.
        let planes = [Command::QueryGfxPlane, Command::GetGfxDmabuf];
        let of_planes = planes.iter().any(|it| error.command() == Some(it.code()));
        let quiet = of_planes || matches!(reason, Some(Reason::Device(_)));
        let error = match reason {
            Some(reason) => SessionError::Refused { error, reason },
            None => SessionError::Protocol(error),
        };
        if !nack && !self.closing {
            return Err(error);
        }
        let loud = !quiet && !self.closing;
        match loud.then(|| self.refusals.allow()).flatten() {
            Some(more) => tracing::warn!(more, "refused: {error}"),
            None => tracing::debug!("refused: {error}"),
        }
        Ok(())
    }

    /// Does what a message asks for. `None`: it needs no answer.
    fn carry_out(&mut self, effect: Effect) -> Result<Option<Answer>, Reason> {
        let (device, guest) = (&mut *self.device, &mut self.guest);
        match effect {
            Effect::Send { bytes, fds } => {
                let fds = match fds.is_empty() {
                    true => Vec::new(),
                    false => mem::take(&mut self.answered),
                };
                self.outgoing.push_back(Outgoing { bytes, fds });
                return Ok(None);
            }
            Effect::Told { id, result } => {
                device.told(guest, id, result);
                return Ok(None);
            }
            Effect::Map { map, fd } => {
                let fd = fd.map(|slot| taken(&mut self.fds, slot)).transpose()?;
                guest.memory.add(map, fd)?;
                if let Err(refused) = device.mapped(guest, &map) {
                    guest.memory.remove(&map);
                    return Err(refused.into());
                }
            }
            Effect::MapAgain { map, fd } => {
                guest.memory.is_of(&map, taken(&mut self.fds, fd)?)?;
            }
            Effect::Unmap(maps) => {
                for map in maps {
                    device.unmapping(guest, &map);
                    guest.memory.remove(&map);
                }
            }
            Effect::Read {
                region,
                offset,
                count,
            } => {
                let mut bytes = fault::try_with_capacity(count as usize)
                    .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
                bytes.resize(count as usize, 0);
                device.read(guest, region, offset, &mut bytes)?;
                return Ok(Some(Answer::Bytes(bytes)));
            }
            Effect::Write {
                region,
                offset,
                bytes,
            } => device.write(guest, region, offset, &bytes)?,
            Effect::RegionFd { region } => {
                self.answered = vec![device.region_fd(region)?];
                return Ok(Some(Answer::Fd(FD)));
            }
            Effect::DoorbellFds { region, count } => {
                self.answered = device.doorbell_fds(region, count)?;
                return Ok(Some(Answer::Fds(vec![FD; self.answered.len()])));
            }
            Effect::SetIrqs(set) => self.set_irqs(&set)?,
            Effect::Reset => device.reset(guest)?,
            Effect::QueryPlane { kind } => {
                return Ok(Some(Answer::Plane(device.query_plane(kind)?)));
            }
            Effect::GetPlane { id } => {
                let plane = device.plane(id)?;
                self.answered = vec![plane.fd];
                return Ok(Some(Answer::Buffer(plane.buffer, FD)));
            }
            _ => return Err(super::Refused::UNSUPPORTED.into()),
        }
        Ok(Some(Answer::Done))
    }

    fn set_irqs(&mut self, set: &SetIrqs) -> Result<(), Reason> {
        let fds = self.fds.drain(..).flatten().collect();
        self.guest.interrupts.set(set, fds)?;
        self.device.interrupts_changed(&mut self.guest, set);
        Ok(())
    }
}

/// Accesses are of interest to who watches alone.
fn pass(messages: &Messages, by_peer: bool, said: Said<'_>) {
    if said.is_access() {
        messages.pass_watched(by_peer, || said.text());
    } else {
        messages.pass(by_peer, said.text());
    }
}

/// The descriptor that a message came with.
fn taken(fds: &mut [Option<OwnedFd>], slot: FdSlot) -> Result<OwnedFd, Reason> {
    let fd = fds.get_mut(slot.0).and_then(Option::take);
    fd.ok_or(Reason::NoDescriptor)
}

impl Session for DeviceSession<'_> {
    type Error = SessionError;

    fn wanted(&self) -> usize {
        self.guest.core.wanted()
    }

    fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let count = fds.len();
        if let Some(messages) = &self.messages {
            self.watchers[0].take(bytes, count, |said| pass(messages, true, said));
        }
        self.fds.extend(fds.into_iter().map(Some));
        self.guest
            .core
            .receive(bytes, count)
            .or_else(|error| self.judge(error, None))?;
        self.proceed()
    }

    fn poll_send(&mut self) -> Option<Outgoing> {
        let message = self.outgoing.pop_front()?;
        if let Some(messages) = &self.messages {
            let fds = message.fds.len();
            let each = |said: Said<'_>| pass(messages, false, said);
            self.watchers[1].take(&message.bytes, fds, each);
        }
        Some(message)
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn wake(&mut self) -> Result<(), SessionError> {
        if let Err(error) = self.gone.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
        if self.closing {
            return Ok(());
        }
        if self.guest.memory.poisoned() {
            return Err(SessionError::MemoryGone);
        }
        self.device.wake(&mut self.guest);
        self.proceed()
    }

    fn close(&mut self) {
        self.closing = true;
        self.guest.core.disconnect();
        self.device.disconnected();
        self.guest.memory.clear();
        self.guest.interrupts.clear();
        self.outgoing.clear();
        self.fds.drain(..).flatten().for_each(reaper::dispose);
    }

    fn is_quiet(&self) -> bool {
        self.closing
    }
}

impl fmt::Debug for DeviceSession<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceSession")
            .field("core", &self.guest.core)
            .finish_non_exhaustive()
    }
}
