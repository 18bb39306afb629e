//! Serves a device on a socket: one front end at a time, the next one after
//! each disconnect, until it is stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linkspan_sys::socket::Inherited;

use super::give::{Desk, Giver};
use super::handing::HandOverError;
use super::serve::{Origin, Serving};
use super::take::{Ground, Successor};
use crate::connecting::{self, Event, Source};
use crate::device::Device;
use crate::serving::{Common, Server};
use crate::session::Session;
use crate::shared::Shared;
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

/// A link that is to go on in this process.
pub struct Heir {
    /// What the other process has, opened with what it lent.
    pub device: Arc<dyn Device>,
    /// Where its front ends come from.
    pub place: Place,
    /// Called on the server's thread.
    pub report: Box<dyn Fn(Event) + Send>,
}

/// Where front ends of a link come from that another process had.
#[derive(Clone, Debug)]
pub enum Place {
    /// They connect to its listener, or it has one connection. The listener's path, which goes
    /// away at the end if the other process made it.
    Listener(Option<PathBuf>),
    /// One listens here.
    Path(PathBuf),
}

impl std::fmt::Debug for Heir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heir")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Goes on with a link that another process serves at the other end of the successor's
/// socket; its front end notices nothing but a pause. `device` is what the other one has, and
/// opened with what it lent. The listener's `path` goes away at the end if the other process
/// made it.
///
/// # Errors
/// The other process goes on with it; nothing is left behind.
///
/// # Panics
/// Never: one link is one server.
pub fn take_over(
    successor: Successor,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    path: Option<&Path>,
    report: impl Fn(Event) + Send + 'static,
) -> Result<Server, HandOverError> {
    let heir = Heir {
        device,
        place: Place::Listener(path.map(Path::to_owned)),
        report: Box::new(report),
    };
    let servers = take(successor, vec![heir], &workers, None)?;
    Ok(servers.into_iter().next().expect("one for each link"))
}

/// The same with all links of another process at once, in the order that it has them, and with
/// what they share, which is held.
///
/// # Errors
/// As [`take_over`].
pub fn take_over_all(
    successor: Successor,
    heirs: Vec<Heir>,
    workers: &Arc<Workers>,
    shared: &Arc<dyn Shared>,
) -> Result<Vec<Server>, HandOverError> {
    take(successor, heirs, workers, Some(shared))
}

fn take(
    successor: Successor,
    heirs: Vec<Heir>,
    workers: &Arc<Workers>,
    shared: Option<&Arc<dyn Shared>>,
) -> Result<Vec<Server>, HandOverError> {
    let commons = heirs.iter().map(|heir| {
        let changes = heir.device.config_changes();
        Ok((Common::new(changes)?, Arc::<Desk>::default()))
    });
    let commons: Vec<_> = commons.collect::<io::Result<_>>()?;
    let grounds = heirs.iter().zip(&commons);
    let grounds = grounds.map(|(heir, (common, _))| Ground {
        device: &heir.device,
        workers,
        changes: &common.changes,
        path: match &heir.place {
            Place::Listener(path) => path.as_deref(),
            Place::Path(_) => None,
        },
    });
    let grounds: Vec<_> = grounds.collect();
    let taken = successor.take(&grounds, shared)?;
    drop(grounds);
    let links = heirs.into_iter().zip(commons).zip(taken);
    let servers = links.map(|((heir, (common, desk)), taken)| {
        let Heir {
            device,
            place,
            report,
        } = heir;
        let path = match place {
            Place::Listener(_) => None,
            Place::Path(path) => Some(path),
        };
        let from = Origin::Another(Box::new(taken), path);
        // Whoever has to have a thread for it has none here: the link is ours now, and ends.
        start_device(common, desk, device, Arc::clone(workers), report, from)
    });
    Ok(servers.collect::<io::Result<_>>()?)
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
    let (at, cancel) = (Arc::clone(&desk), Arc::clone(&common.cancel));
    let giver = Giver::new(at, cancel, Arc::clone(&device));
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
