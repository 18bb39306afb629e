//! A PCI device, and what its client has given it: memory and interrupts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_mem::Iova;
use linkspan_sys::eventfd::{self, Delivery};
use linkspan_sys::{EventFd, PeerEventFd, reaper};
use linkspan_vfio::server::AskError;
use linkspan_vfio::server::PlaneState;
use linkspan_vfio::wire::{IRQ_AUTOMASKED, PlaneBuffer};
use linkspan_vfio::{DmaMap, IRQS_MAX, IrqAction, IrqData, Offer, Server, SetIrqs};

use super::error::Refused;
use super::memory::Memory;
use crate::messages::Messages;

/// A device. It lives on from one connection to the next, and all is said to it by one
/// thread, which it never holds up.
pub trait Device: Send {
    /// What it offers; the same for each connection.
    fn offer(&self) -> Offer;

    /// What else it says to others, for a client, can be seen there from now on.
    fn be_seen(&mut self, messages: &Arc<Messages>) {
        let _ = messages;
    }

    /// Reads bytes of a region: all are inside, and the region can be read.
    ///
    /// # Errors
    /// [`Refused`], which the client is told.
    fn read(
        &mut self,
        guest: &mut Guest,
        region: u32,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), Refused>;

    /// Writes bytes to a region: all are inside, and the region can be written.
    ///
    /// # Errors
    /// [`Refused`], which the client is told.
    fn write(
        &mut self,
        guest: &mut Guest,
        region: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Refused>;

    /// A descriptor of a region of which parts can be mapped.
    ///
    /// # Errors
    /// What the system says.
    fn region_fd(&mut self, region: u32) -> io::Result<OwnedFd> {
        let _ = region;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The eventfds of the first parts of a region that the offer says are
    /// [`doorbells`](linkspan_vfio::Region::doorbells).
    ///
    /// # Errors
    /// What the system says.
    fn doorbell_fds(&mut self, region: u32, count: usize) -> io::Result<Vec<OwnedFd>> {
        let _ = (region, count);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Memory is there from now on ([`Guest::memory`] has it). On an error it is taken
    /// back and the client is told.
    ///
    /// # Errors
    /// [`Refused`].
    fn mapped(&mut self, guest: &mut Guest, map: &DmaMap) -> Result<(), Refused> {
        let _ = (guest, map);
        Ok(())
    }

    /// Memory is to go (it is still in [`Guest::memory`]): nothing of it is used once this
    /// returns.
    fn unmapping(&mut self, guest: &mut Guest, map: &DmaMap) {
        let _ = (guest, map);
    }

    /// Interrupts are told otherwise, or masked, or not any more
    /// ([`Guest::interrupts`] has it). A range of none: all of the kind.
    fn interrupts_changed(&mut self, guest: &mut Guest, set: &SetIrqs) {
        let _ = (guest, set);
    }

    /// The client resets it.
    ///
    /// # Errors
    /// [`Refused`], which the client is told.
    fn reset(&mut self, guest: &mut Guest) -> Result<(), Refused>;

    /// A client has come; it has said nothing yet.
    fn connected(&mut self) {}

    /// The client is gone, with all its memory and interrupts: nothing of them is used
    /// once this returns. State of the device's own stays.
    fn disconnected(&mut self) {}

    /// What a plane shows (`VFIO_DEVICE_QUERY_GFX_PLANE`).
    ///
    /// # Errors
    /// [`Refused`], which the client is told.
    fn query_plane(&mut self, kind: u32) -> Result<PlaneState, Refused> {
        let _ = kind;
        Err(Refused::UNSUPPORTED)
    }

    /// The memory of a plane (`VFIO_DEVICE_GET_GFX_DMABUF`). Its descriptor is made last.
    ///
    /// # Errors
    /// [`Refused`], which the client is told.
    fn plane(&mut self, id: u32) -> Result<PlaneFd, Refused> {
        let _ = id;
        Err(Refused::UNSUPPORTED)
    }

    /// The client has answered [`Guest::ask_read`] or [`Guest::ask_write`]: the bytes, or
    /// an error of Linux.
    fn told(&mut self, guest: &mut Guest, id: u16, result: Result<Vec<u8>, u32>) {
        let _ = (guest, id, result);
    }

    /// Becomes readable when [`wake`](Self::wake) is due.
    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes in what other threads have for it.
    fn wake(&mut self, guest: &mut Guest) {
        let _ = guest;
    }
}

/// The memory of a plane, with its descriptor.
#[derive(Debug)]
pub struct PlaneFd {
    /// What it is.
    pub buffer: PlaneBuffer,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// A client, and what it has given.
#[derive(Debug)]
pub struct Guest {
    pub(super) core: Server,
    /// Its memory.
    pub memory: Memory,
    /// Its interrupts.
    pub interrupts: Interrupts,
}

impl Guest {
    /// Before the first message of a client; `gone` is signalled when it takes memory back.
    pub(super) fn new(offer: Offer, gone: Arc<EventFd>) -> Self {
        Self {
            interrupts: Interrupts::new(&offer),
            memory: Memory::new(gone),
            core: Server::new(offer),
        }
    }

    /// Asks for bytes of memory that came without a descriptor: [`Device::told`] hears
    /// the answer, with the number that this returns.
    ///
    /// # Errors
    /// [`AskError`]: nothing is asked.
    pub fn ask_read(&mut self, address: Iova, count: u32) -> Result<u16, AskError> {
        self.core.ask_read(address, count)
    }

    /// Writes bytes to such memory.
    ///
    /// # Errors
    /// As [`ask_read`](Self::ask_read).
    pub fn ask_write(&mut self, address: Iova, bytes: &[u8]) -> Result<u16, AskError> {
        self.core.ask_write(address, bytes)
    }
}

/// One interrupt.
#[derive(Debug, Default)]
struct Line {
    event: Option<PeerEventFd>,
    masked: bool,
    /// It happened while it was masked.
    pending: bool,
    /// Its line is held up.
    asserted: bool,
}

/// The interrupts of one kind.
#[derive(Debug)]
struct Kind {
    automasked: bool,
    lines: Vec<Line>,
}

/// The interrupts of a device, as its client wants to hear of them. Nothing here waits for
/// a client.
#[derive(Debug)]
pub struct Interrupts {
    kinds: Vec<Kind>,
}

/// What became of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raise {
    /// The client is told.
    Told,
    /// It is held back, and told later.
    Masked,
    /// Nobody wants to know, or there is no such interrupt.
    Nobody,
}

impl Line {
    fn raise(&mut self, automasked: bool) -> Raise {
        let Some(event) = &self.event else {
            return Raise::Nobody;
        };
        if self.masked {
            self.pending = true;
            return Raise::Masked;
        }
        self.pending = false;
        self.masked = automasked;
        // A counter that is full, or that is of no more use, is the client's affair.
        match event.signal() {
            Ok(Delivery::Sent | Delivery::Full) => Raise::Told,
            Err(_) => Raise::Nobody,
        }
    }

    fn set_masked(&mut self, masked: bool, automasked: bool) {
        self.masked = masked;
        if !masked && (self.pending || self.asserted) {
            self.raise(automasked);
        }
    }
}

impl Interrupts {
    fn new(offer: &Offer) -> Self {
        let kinds = offer.irqs.iter().map(|irq| Kind {
            automasked: irq.flags & IRQ_AUTOMASKED != 0,
            lines: (0..irq.count.min(IRQS_MAX))
                .map(|_| Line::default())
                .collect(),
        });
        Self {
            kinds: kinds.collect(),
        }
    }

    fn line(&self, index: u32, number: u32) -> Option<&Line> {
        let kind = self.kinds.get(usize::try_from(index).ok()?)?;
        kind.lines.get(usize::try_from(number).ok()?)
    }

    fn line_mut(&mut self, index: u32, number: u32) -> Option<(&mut Line, bool)> {
        let kind = self.kinds.get_mut(usize::try_from(index).ok()?)?;
        let line = kind.lines.get_mut(usize::try_from(number).ok()?)?;
        Some((line, kind.automasked))
    }

    /// The client's descriptor of an interrupt, for whoever else is to signal it: never
    /// wait on it. `None` while it is masked too.
    #[must_use]
    pub fn fd(&self, index: u32, number: u32) -> Option<BorrowedFd<'_>> {
        let line = self.line(index, number).filter(|line| !line.masked)?;
        line.event.as_ref().map(AsFd::as_fd)
    }

    /// An interrupt happens.
    pub fn raise(&mut self, index: u32, number: u32) -> Raise {
        let line = self.line_mut(index, number);
        line.map_or(Raise::Nobody, |(line, automasked)| line.raise(automasked))
    }

    /// A line is held up, or not any more: while it is, it happens anew each time that it
    /// is unmasked.
    pub fn hold(&mut self, index: u32, number: u32, up: bool) -> Raise {
        let Some((line, automasked)) = self.line_mut(index, number) else {
            return Raise::Nobody;
        };
        line.asserted = up;
        if !up {
            line.pending = false;
            return Raise::Nobody;
        }
        line.raise(automasked)
    }

    /// Does what a client asks; `fds` are the descriptors that it gives.
    pub(super) fn set(&mut self, set: &SetIrqs, fds: Vec<OwnedFd>) -> Result<(), eventfd::Error> {
        // All are checked before the first one counts.
        let mut events = Vec::with_capacity(fds.len());
        let mut fds = fds.into_iter();
        while let Some(fd) = fds.next() {
            match PeerEventFd::check(fd) {
                Ok(event) => events.push(event),
                Err(error) => {
                    // Unchecked, so that closing them could block.
                    fds.for_each(reaper::dispose);
                    return Err(error);
                }
            }
        }
        if set.count == 0 {
            let kind = usize::try_from(set.index).ok();
            let kind = kind.and_then(|index| self.kinds.get_mut(index));
            kind.into_iter()
                .flat_map(|kind| &mut kind.lines)
                .for_each(|line| *line = Line::default());
            return Ok(());
        }
        let mut events = events.into_iter();
        for number in set.meant() {
            let Some((line, automasked)) = self.line_mut(set.index, number) else {
                continue;
            };
            match (set.action, &set.data) {
                (_, IrqData::Events) => {
                    line.event = events.next();
                    // What happened before anybody wanted to know is told now.
                    if line.asserted && !line.masked {
                        line.raise(automasked);
                    }
                }
                (_, IrqData::Unassign) => line.event = None,
                (IrqAction::Mask, _) => line.set_masked(true, automasked),
                (IrqAction::Unmask, _) => line.set_masked(false, automasked),
                (IrqAction::Trigger, _) => {
                    line.raise(automasked);
                }
            }
        }
        Ok(())
    }

    /// The client is gone.
    pub(super) fn clear(&mut self) {
        let lines = self.kinds.iter_mut().flat_map(|kind| &mut kind.lines);
        lines.for_each(|line| *line = Line::default());
    }
}
