//! Serves a device on a socket: one front end at a time, the next one after
//! each disconnect, until it is stopped.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use linkspan_sys::EventFd;
use linkspan_sys::socket::Inherited;

use super::session::BackendSession;
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
    let changes = device.config_changes();
    begin(source.into(), changes, served(device, workers), report)
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
    begin(source.into(), None, session, report)
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
    let changes = device.config_changes();
    let source = Source::Path(path);
    begin(source, changes, served(device, workers), report)
}

fn begin<S: Session>(
    source: Source,
    changes: Option<Arc<EventFd>>,
    session: impl Fn(&Common) -> io::Result<S> + Send + 'static,
    report: impl Fn(Event) + Send + 'static,
) -> io::Result<Server> {
    let common = Common::new(changes)?;
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

/// Sessions of a device of this process.
fn served(
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
) -> impl Fn(&Common) -> io::Result<BackendSession> + Send + 'static {
    move |common| {
        let changes = Arc::clone(&common.changes);
        let session = BackendSession::new(Arc::clone(&device), Arc::clone(&workers), changes)?;
        Ok(session.shown_by(Arc::clone(&common.endpoint)))
    }
}
