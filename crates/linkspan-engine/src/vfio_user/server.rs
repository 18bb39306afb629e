//! Serves a PCI device on a socket.

use std::io;

use linkspan_sys::socket::Inherited;

use super::guest::Device;
use super::session::DeviceSession;
use crate::connecting::{self, Event};
use crate::serving::{Common, Server};

/// Begins to serve a device: one client at a time, the next one after each disconnect.
/// `report` is called on the server's thread, and so is the device.
///
/// # Errors
/// When a thread or descriptor cannot be had; nothing is left behind.
pub fn serve(
    source: Inherited,
    device: impl Device + 'static,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let common = Common::new(None)?;
    let mut device: Box<dyn Device> = Box::new(device);
    Server::start("vfio-user", common.clone(), move || {
        let mut one = |stream: &_| {
            let session = DeviceSession::new(&mut *device);
            let session = session.map(|it| it.seen_by(common.endpoint.messages()));
            connecting::run_one(session, stream, &common.cancel)
        };
        let Common {
            cancel, endpoint, ..
        } = &common;
        connecting::run(source.into(), &mut one, cancel, endpoint, &report)
    })
}
