//! Ports that go on in another process, all of them at once.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::anyhow;
use linkspan_backends::port::{Fabric, SharedFabric, from_kernel};
use linkspan_engine::vhost_user::{self, Giver, Heir, Place, Successor};
use linkspan_engine::{Server, Shared, Workers};
use linkspan_sys::tap::TapQueue;

use super::spec::{Behind, PortSpec};
use super::{Args, device};
use crate::exit::{Failure, Status};
use crate::{serving, upgrade};

/// Queues of interfaces that the other process lent, in the order of ports.
pub(super) struct Lent(std::vec::IntoIter<OwnedFd>);

impl Lent {
    pub(super) fn new(lent: Vec<OwnedFd>) -> Self {
        Self(lent.into_iter())
    }

    /// The queues of the next port.
    pub(super) fn queues(&mut self, count: u16) -> Result<Vec<TapQueue>, Failure> {
        let queues = self.0.by_ref().take(count.into());
        let queues = queues.map(|fd| TapQueue::from_fd(fd, from_kernel()));
        let queues: Vec<_> = queues.collect::<Result<_, _>>().map_err(super::no_tap)?;
        if queues.len() < usize::from(count) {
            let error = anyhow!("the other process has other ports");
            return Err(Failure::new(Status::Failed, error));
        }
        Ok(queues)
    }
}

/// Goes on with all ports of another process.
pub(super) fn take_over(
    successor: Successor,
    args: &Args,
    fabric: &Arc<Fabric>,
    workers: &Arc<Workers>,
    shared: &Arc<SharedFabric>,
) -> Result<Vec<(u16, Server)>, Failure> {
    let (mut numbers, mut heirs) = (Vec::new(), Vec::new());
    for (number, port) in (0..).zip(&args.port) {
        let Some(place) = place(port) else {
            continue;
        };
        numbers.push(number);
        heirs.push(Heir {
            device: device(port, number, fabric)?,
            place,
            report: Box::new(serving::reporter(Some(port.name.clone()), args.json)),
        });
    }
    upgrade::expect(heirs.len());
    let shared = Arc::clone(shared) as Arc<dyn Shared>;
    let servers = vhost_user::take_over_all(successor, heirs, workers, &shared)?;
    Ok(numbers.into_iter().zip(servers).collect())
}

/// Where the front ends of a port come from, if it has any.
fn place(port: &PortSpec) -> Option<Place> {
    match &port.behind {
        Behind::Listen(path) => Some(Place::Listener(Some(path.clone()))),
        Behind::GuestFd(_) => Some(Place::Listener(None)),
        Behind::Connect(path) => Some(Place::Path(path.clone())),
        Behind::Vduse(_) | Behind::Tap(_) | Behind::TapFd(_) | Behind::Responder => None,
    }
}

/// Who hands all ports over, if that can be.
pub(super) fn giver(servers: &[(u16, Server)], shared: &Arc<SharedFabric>) -> Option<Giver> {
    let givers = servers.iter().map(|(_, server)| server.giver());
    let givers: Vec<_> = givers.collect::<Option<_>>()?;
    let shared = Arc::clone(shared) as Arc<dyn Shared>;
    (!givers.is_empty()).then(|| Giver::together(givers, shared))
}
