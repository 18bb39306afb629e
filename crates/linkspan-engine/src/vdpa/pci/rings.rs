//! The rings of a function that runs: how they are kicked and whom they interrupt.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_sys::vdpa::Doorbell;
use linkspan_sys::{EventFd, PeerEventFd};
use linkspan_vfio::pci::MSIX;
use linkspan_vhost::vdpa::Wire;
use linkspan_virtio::pci::Queue;

use crate::vdpa::device::Wires;
use crate::vfio_user::Interrupts;

/// A ring and where it goes on, if that is known.
pub(super) type Base = (u16, Option<u32>);

/// The eventfd by which the device hears of kicks of one ring, while one VMM has it.
#[derive(Debug)]
pub(super) enum Kick {
    /// This process's alone.
    Own(EventFd),
    /// The VMM has it too, and can do anything with it.
    Shared(PeerEventFd),
}

impl Kick {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self::Own(EventFd::new()?))
    }

    /// A descriptor for the VMM. From now on it is used as if it were the VMM's; the
    /// device has the same as before.
    pub(super) fn share(&mut self) -> io::Result<OwnedFd> {
        let event = match self {
            Self::Own(event) => event,
            Self::Shared(event) => return event.as_fd().try_clone_to_owned(),
        };
        let (theirs, ours) = (event.try_clone()?, event.try_clone()?);
        *self = Self::Shared(PeerEventFd::check(ours.into()).map_err(io::Error::other)?);
        Ok(theirs.into())
    }

    fn signal(&self) {
        match self {
            Self::Own(event) => {
                if let Err(error) = event.signal() {
                    panic!("our own eventfd cannot be written: {error}");
                }
            }
            // One that is full is signalled.
            Self::Shared(event) => drop(event.signal()),
        }
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(event) => event.as_fd(),
            Self::Shared(event) => event.as_fd(),
        }
    }
}

/// How the device hears of a kick.
#[derive(Debug, Default)]
pub(super) struct RunningRing {
    /// A page of the device, where it has one.
    pub(super) doorbell: Option<Arc<Doorbell>>,
}

impl RunningRing {
    #[inline]
    pub(super) fn kick(&self, kick: Option<&Kick>) {
        match (&self.doorbell, kick) {
            (Some(doorbell), _) => doorbell.kick(),
            (None, Some(kick)) => kick.signal(),
            (None, None) => {}
        }
    }
}

/// The descriptors of all rings.
pub(super) struct FunctionWires<'a> {
    pub(super) kicks: &'a [Option<Kick>],
    pub(super) queues: &'a [Queue],
    pub(super) interrupts: &'a Interrupts,
    /// Who hears of rings that interrupt by the line, of which a driver has to read
    /// whose it is.
    pub(super) by_line: Option<&'a EventFd>,
    pub(super) changes: &'a EventFd,
}

impl<'a> FunctionWires<'a> {
    /// Who hears of a ring: the VMM itself, by its descriptor of the vector.
    pub(super) fn call(&self, ring: u16) -> Option<BorrowedFd<'a>> {
        let queue = self.queues.get(usize::from(ring))?;
        let vector = self.interrupts.fd(MSIX, queue.vector.into());
        vector.or_else(|| self.by_line.map(AsFd::as_fd))
    }
}

impl Wires for FunctionWires<'_> {
    fn ring(&self, ring: u16, wire: Wire) -> Option<BorrowedFd<'_>> {
        match wire {
            Wire::Kick => {
                let kick = self.kicks.get(usize::from(ring))?.as_ref()?;
                Some(kick.as_fd())
            }
            Wire::Call => self.call(ring),
            Wire::Err => None,
        }
    }

    fn config(&self) -> Option<BorrowedFd<'_>> {
        Some(self.changes.as_fd())
    }
}
