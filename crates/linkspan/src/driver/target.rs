//! Which device a command drives, how it is reached, and how the command is stopped.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use linkspan_engine::vdpa::{self, Opener, VdpaOptions};
use linkspan_engine::vhost_user::{self, Link, LinkError, LinkOptions, Reach};
use linkspan_engine::{DriverMemory, QueueHandle};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_vhost::frontend::{Misfit, Negotiated};
use linkspan_virtio::Features;

use crate::exit::{Failure, Status};
use crate::vdpa::failure as vdpa_failure;

/// Where a device is.
pub(super) enum Place {
    /// Behind a socket.
    Socket(Reach),
    /// In the kernel.
    Vdpa {
        /// How it is opened.
        open: Opener,
        /// Entries of each queue; `None`: what the command needs.
        queue_size: Option<u32>,
    },
}

/// What is wanted of a device, wherever it is.
pub(super) struct Ways<'a> {
    /// Over a socket.
    pub(super) socket: &'a dyn Fn(Reach) -> LinkOptions,
    /// In the kernel.
    pub(super) vdpa: &'a dyn Fn(Opener) -> VdpaOptions,
}

/// A device that was negotiated with, wherever it is.
pub(super) enum Connection {
    Socket(Box<vhost_user::Connection>),
    Vdpa(Box<vdpa::Connection>, Option<u32>),
}

impl Connection {
    /// What the negotiation came to.
    pub(super) fn negotiated(&self) -> &Negotiated {
        match self {
            Self::Socket(connection) => connection.negotiated(),
            Self::Vdpa(connection, _) => connection.negotiated(),
        }
    }

    /// Wishes for so many queues instead, and gives up these features.
    pub(super) fn revise(
        &mut self,
        queues: u16,
        without: Features,
        hints: &Hints,
    ) -> Result<(), Failure> {
        match self {
            Self::Socket(connection) => connection
                .revise(queues, without)
                .map_err(|error| link_failure(error, hints)),
            Self::Vdpa(connection, _) => connection.revise(queues, without).map_err(vdpa_failure),
        }
    }

    /// The size that each of `queues` queues gets if the command needs `size`
    /// entries, at least `least`.
    pub(super) fn queue_size(&self, queues: u16, size: u16, least: u16) -> Result<u16, Failure> {
        let Self::Vdpa(connection, wanted) = self else {
            return Ok(size);
        };
        let facts = connection.device().facts();
        let most = facts.queue_size(queues, 0)?;
        let size = match wanted {
            Some(wanted) => facts.queue_size(queues, *wanted)?,
            None => size.min(most),
        };
        if size < least {
            let text = anyhow!("{least} entries are needed in a queue, it has {size}");
            return Err(
                Failure::new(Status::Failed, text).hint("less --depth, or a larger --queue-size")
            );
        }
        Ok(size)
    }

    /// Shares the memory and starts all queues.
    pub(super) fn start(
        self,
        memory: Arc<DriverMemory>,
        queues: Vec<QueueHandle>,
        hints: &Hints,
    ) -> Result<Link, Failure> {
        match self {
            Self::Socket(connection) => connection
                .start(memory, queues)
                .map_err(|error| link_failure(error, hints)),
            Self::Vdpa(connection, _) => connection.start(memory, queues).map_err(vdpa_failure),
        }
    }
}

/// Which device, and how a command is stopped.
pub(super) struct Target {
    pub(super) place: Place,
    /// What the queues are to be like.
    pub(super) queue_features: Features,
    pub(super) connect_limit: Duration,
    cancel: Arc<EventFd>,
    stopped: Arc<AtomicBool>,
    /// Whether something is under way, which a stop lets end first.
    running: Arc<AtomicBool>,
}

/// What a device is called in messages.
pub(super) struct Hints {
    /// The command that serves one at a path.
    pub(super) serve: fn(&Path) -> String,
    /// What `--queues` counts, and how many rings each of them has.
    pub(super) unit: &'static str,
    pub(super) rings: u64,
}

/// How long what is under way may take to end after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(20);

impl Target {
    pub(super) fn new(place: Place, connect_seconds: u64, packed: bool) -> Result<Self, Failure> {
        let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
            .context("cannot watch for SIGINT and SIGTERM")?;
        let target = Self {
            place,
            queue_features: if packed {
                Features::PACKED_QUEUE
            } else {
                Features::SPLIT_QUEUE
            },
            connect_limit: Duration::from_secs(connect_seconds),
            cancel: Arc::new(EventFd::new().context("no descriptor can be had")?),
            stopped: Arc::new(AtomicBool::new(false)),
            running: Arc::new(AtomicBool::new(false)),
        };
        let cancel = Arc::clone(&target.cancel);
        let (stopped, running) = (Arc::clone(&target.stopped), Arc::clone(&target.running));
        // Ends with the process: it has nothing to clean up.
        let watch = move || {
            if wait_for(signals.as_fd(), Direction::Read, None, None).is_err() {
                return;
            }
            stopped.store(true, Ordering::Relaxed);
            if running.load(Ordering::Relaxed) {
                // A back end that is gone keeps nobody waiting for ever.
                std::thread::sleep(STOP_LIMIT);
            }
            // It fails only when the counter is full, and then it is readable.
            let _ = cancel.signal();
        };
        linkspan_sys::thread::spawn("signals", watch).context("no thread can be had")?;
        Ok(target)
    }

    /// Whether a person or a service wants the command to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// From now on a stop lets end what is under way.
    pub(super) fn begins(&self) {
        self.running.store(true, Ordering::Relaxed);
    }

    /// Reaches the device, or waits until it connects, and negotiates.
    pub(super) fn connect(&self, wanted: &Ways<'_>, hints: &Hints) -> Result<Connection, Failure> {
        let cancel = Arc::clone(&self.cancel);
        match &self.place {
            Place::Socket(reach) => {
                let options = (wanted.socket)(reach.clone());
                let connection = vhost_user::Connection::open(options, cancel);
                let connection = connection.map_err(|error| link_failure(error, hints))?;
                Ok(Connection::Socket(Box::new(connection)))
            }
            Place::Vdpa { open, queue_size } => {
                let options = (wanted.vdpa)(Arc::clone(open));
                let connection = vdpa::Connection::open(options, cancel).map_err(vdpa_failure)?;
                Ok(Connection::Vdpa(Box::new(connection), *queue_size))
            }
        }
    }
}

/// An error of a link as the end of the command.
fn link_failure(error: LinkError, hints: &Hints) -> Failure {
    let status = match &error {
        LinkError::Cancelled => return Failure::new(Status::Failed, anyhow!("interrupted")),
        LinkError::Wish(_) => Status::Usage,
        error if error.is_peer() => Status::PeerBroke,
        LinkError::Unreachable { .. } | LinkError::Closed | LinkError::Silent { .. } => {
            Status::PeerUnreachable
        }
        _ => Status::Failed,
    };
    let hint = match (&error, error.misfit()) {
        (LinkError::Unreachable { path, .. }, _) => Some(format!(
            "is a back end running? for example: {}",
            (hints.serve)(path)
        )),
        (_, Some(Misfit::Queues { wanted, max })) => Some(format!(
            "fewer --queues, or a back end with more: {} {unit} were wanted, it has {}",
            u64::from(wanted) / hints.rings,
            max / hints.rings,
            unit = hints.unit,
        )),
        (LinkError::Silent { .. }, _) => {
            Some("a back end serves one front end at a time; is another one connected?".into())
        }
        _ => None,
    };
    let failure = Failure::new(status, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
