//! Where a guest's channels come from: the kernel's device, or a host of ours.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_engine::vmbus::{Channel, Framed, FramedError};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::Signals;
use linkspan_sys::uio::{Device, Error, Roots};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{Frame, Role};

use super::device;
use crate::exit::{Failure, Status};

/// How long a host may take to give its channel.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a device that is only just made may take until all of it is there, and the
/// pause between two looks: the kernel tells nobody.
const MAKING: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// A channel, and the socket that it came from.
pub(super) type Joined = (Channel, Option<Framed>);

/// Where channels come from.
pub(super) struct Source<'a> {
    connect: Option<&'a Path>,
    roots: Roots,
    /// The first one, which was opened before the sandbox.
    first: Option<Channel>,
    /// Whether it was said that there is none.
    told: bool,
}

impl<'a> Source<'a> {
    /// A host of ours there, or the device of this kernel.
    pub(super) fn new(connect: Option<&'a Path>) -> Self {
        Self {
            connect,
            roots: Roots::default(),
            first: None,
            told: false,
        }
    }

    /// Makes sure that there is a device, and opens it; gives it to its driver if that
    /// is needed. `false` if we were asked to stop meanwhile.
    ///
    /// # Errors
    /// There is no device, or it cannot be used.
    pub(super) fn prepare(&mut self, signals: &Signals) -> Result<bool, Failure> {
        if self.connect.is_some() {
            return Ok(true);
        }
        let deadline = Instant::now() + MAKING;
        loop {
            let error = match self.open_device(device::bound) {
                Ok(channel) => {
                    self.first = Some(channel);
                    return Ok(true);
                }
                Err(Lacking::Channel(failure)) => return Err(failure),
                Err(Lacking::Device(error)) => error,
            };
            let off = matches!(error, Error::NoDevice { .. });
            if off || !error.may_come() || Instant::now() >= deadline {
                return Err(device::failure(error));
            }
            let until = Some(Instant::now() + PAUSE);
            let woken = wait_for(signals.as_fd(), Direction::Read, None, until);
            if woken.context("cannot wait")? == Wake::Ready {
                return Ok(false);
            }
        }
    }

    /// The next channel, if there is one now.
    ///
    /// # Errors
    /// There will be none by waiting.
    pub(super) fn open(&mut self, signals: &Signals) -> Result<Option<Joined>, Failure> {
        let opened = match self.connect {
            Some(path) => match join(path, signals) {
                Ok(joined) => joined.map(|(channel, framed)| (channel, Some(framed))),
                Err(failure) if failure.status == Status::Usage => return Err(failure),
                // Another host may come, or this one by its right mind.
                Err(failure) => {
                    self.tell(&failure);
                    None
                }
            },
            None => self.device()?.map(|channel| (channel, None)),
        };
        if opened.is_some() {
            self.told = false;
        }
        Ok(opened)
    }

    fn device(&mut self) -> Result<Option<Channel>, Failure> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        match self.open_device(device::find) {
            Ok(channel) => Ok(Some(channel)),
            // It was there, and comes back when the host's service does.
            Err(Lacking::Device(error)) if error.may_come() => {
                self.tell(&error);
                Ok(None)
            }
            Err(Lacking::Device(error)) => Err(device::failure(error)),
            // What is in its rings may be better next time.
            Err(Lacking::Channel(failure)) => {
                self.tell(&failure);
                Ok(None)
            }
        }
    }

    fn open_device(
        &self,
        find: fn(&Roots) -> Result<linkspan_sys::uio::Found, Error>,
    ) -> Result<Channel, Lacking> {
        let found = find(&self.roots).map_err(Lacking::Device)?;
        let device = Device::open(&found).map_err(Lacking::Device)?;
        let channel = Channel::device(device);
        channel.map_err(|error| Lacking::Channel(Failure::new(Status::PeerBroke, error)))
    }

    /// Says once that there is nobody, and why.
    fn tell(&mut self, why: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::info!("waiting: {why}");
        }
    }
}

/// What there is not.
enum Lacking {
    /// The device.
    Device(Error),
    /// Rings that can be.
    Channel(Failure),
}

/// A host's channel; `None` if we were asked to stop meanwhile.
fn join(path: &Path, signals: &Signals) -> Result<Option<(Channel, Framed)>, Failure> {
    let unreachable = |error| super::unreachable(path, error);
    let mut framed = Framed::connect(path, Role::Guest).map_err(unreachable)?;
    let deadline = Instant::now() + HANDSHAKE;
    let (frame, fds) = match framed.await_frame(signals.as_fd(), Some(deadline)) {
        Ok(frame) => frame,
        Err(FramedError::Cancelled) => return Ok(None),
        Err(error) => return Err(unreachable(error)),
    };
    match frame {
        Frame::Channel {
            interface, shape, ..
        } if interface == FILE_COPY.interface => {
            let channel = Channel::guest(shape, fds);
            let channel = channel.map_err(|error| Failure::new(Status::PeerBroke, error))?;
            Ok(Some((channel, framed)))
        }
        Frame::Refused(reason) => Err(super::refused(path, reason)),
        _ => {
            let error = anyhow!("the host at {} offers another device", path.display());
            Err(Failure::new(Status::PeerBroke, error))
        }
    }
}
