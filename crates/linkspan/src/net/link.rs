//! Links of ports that go down and come up: by what becomes of interfaces of this machine,
//! and when somebody asks for it.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use linkspan_backends::port::{Fabric, Mode};
use linkspan_sys::interface::Interfaces;

use crate::exit::Failure;
use crate::serving::print;

/// What has to be looked after of the links of a fabric.
pub(super) struct Links<'f> {
    fabric: &'f Fabric,
    /// Interfaces at the ports of a pair.
    interfaces: Option<Interfaces>,
}

impl<'f> Links<'f> {
    /// Has the interfaces at the ports of a pair be watched.
    ///
    /// # Errors
    /// When that cannot be.
    pub(super) fn watch(fabric: &'f Fabric) -> Result<Self, Failure> {
        let mut ports = 0..fabric.ports();
        let watched =
            fabric.mode() == Mode::Pair && ports.any(|port| fabric.interface(port).is_some());
        let interfaces = watched.then(Interfaces::watch).transpose();
        let interfaces = interfaces.context("cannot watch the interfaces of this machine")?;
        let links = Self { fabric, interfaces };
        links.look();
        links.set_carriers();
        Ok(links)
    }

    /// Readable when [`look`](Self::look) has something to look at.
    pub(super) fn news(&self) -> Option<BorrowedFd<'_>> {
        self.interfaces.as_ref().map(Interfaces::as_fd)
    }

    /// Looks which interfaces are up. One that is not in this network any more is
    /// somebody else's business, and counts as up; one that was removed does not.
    pub(super) fn look(&self) {
        let Some(interfaces) = &self.interfaces else {
            return;
        };
        if let Err(error) = interfaces.drain() {
            tracing::warn!("what becomes of interfaces is not known: {error}");
        }
        for port in 0..self.fabric.ports() {
            let name = self.fabric.interface(port);
            let up = name.is_some_and(|name| interfaces.is_up(&name).unwrap_or(true));
            self.fabric.set_interface(port, up);
        }
    }

    /// Tells the kernel which of its interfaces have a carrier.
    pub(super) fn set_carriers(&self) {
        if let Err(error) = self.fabric.set_carriers() {
            tracing::debug!("an interface keeps its carrier: {error}");
        }
    }

    /// Takes the links of all ports down or up.
    pub(super) fn set_all(&self, up: bool, json: bool) {
        for port in 0..self.fabric.ports() {
            self.fabric.set_link(port, up);
        }
        tracing::info!("all links are {}", if up { "up" } else { "down" });
        if json {
            print(&serde_json::json!({ "event": "links", "up": up }));
        }
    }
}
