//! Serves a device on a socket: one front end at a time, the next one after
//! each disconnect, until it is stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linkspan_sys::socket::Inherited;

use super::give::{Desk, Giver};
use super::handing::HandOverError;
use super::serve::{Origin, Serving};
use super::take::Successor;
use crate::connecting::{self, Event, Source};
use crate::device::Device;
use crate::serving::{Common, Server};
use crate::session::Session;
use crate::vdpa::BridgedDevice;
use crate::worker::Workers;

/// Begins to serve a device. `report` is called on the server's thread.
///
/// # Errors
/// When a thread or descriptor cannot be had; nothing is left behind.
pub fn serve(
    source: Inherited,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    begin_device(source.into(), device, workers, report)
}

/// Goes on with a link that another process serves at the other end of the successor's
/// socket; its front end notices nothing but a pause. `device` is what the other one has, and
/// opened with what it lent. The listener's `path` goes away at the end if the other process
/// made it.
///
/// # Errors
/// The other process goes on with it; nothing is left behind.
pub fn take_over(
    successor: Successor,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    path: Option<&Path>,
    report: impl Fn(Event) + Send + 'static,
) -> Result<Server, HandOverError> {
    let common = Common::new(device.config_changes())?;
    let taken = successor.take(&device, &workers, &common.changes, path)?;
    let desk = Arc::new(Desk::default());
    // Whoever has to have a thread for it has none here: the link is ours now, and ends.
    start_device(
        common,
        desk,
        device,
        workers,
        report,
        Origin::Another(Box::new(taken)),
    )
    .map_err(Into::into)
}

/// Begins to pass a vDPA device on, as [`serve`] does a device of this process.
///
/// # Errors
/// As [`serve`].
pub fn bridge(
    source: Inherited,
    device: Arc<BridgedDevice>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let session = move |common: &Common| {
        let (changes, endpoint) = (&common.changes, &common.endpoint);
        device.session(Arc::clone(changes), Arc::clone(endpoint))
    };
    begin(source.into(), session, report)
}

/// Begins to serve a front end that listens at `path`, whenever there is one: it
/// is connected to again and again.
///
/// # Errors
/// As [`serve`].
pub fn connect(
    path: PathBuf,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    begin_device(Source::Path(path), device, workers, report)
}

fn begin_device(
    source: Source,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let common = Common::new(device.config_changes())?;
    let desk = Arc::new(Desk::default());
    start_device(
        common,
        desk,
        device,
        workers,
        report,
        Origin::Source(source),
    )
}

/// Serves a device of this process on a thread that may hand the link over.
fn start_device(
    common: Common,
    desk: Arc<Desk>,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
    from: Origin,
) -> io::Result<Server> {
    let giver = Giver {
        desk: Arc::clone(&desk),
        cancel: Arc::clone(&common.cancel),
        device: Arc::clone(&device),
    };
    let serving = Serving {
        common: common.clone(),
        desk,
        device,
        workers,
        report,
    };
    let server = Server::start("vhost-user", common, move || serving.run(from))?;
    Ok(server.with_giver(giver))
}

fn begin<S: Session>(
    source: Source,
    session: impl Fn(&Common) -> io::Result<S> + Send + 'static,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let common = Common::new(None)?;
    Server::start("vhost-user", common.clone(), move || {
        let mut one = |stream: &_| {
            let session = session(&common);
            connecting::run_one(session, stream, &common.cancel)
        };
        let Common {
            cancel, endpoint, ..
        } = &common;
        connecting::run(source, &mut one, cancel, endpoint, &report)
    })
}
