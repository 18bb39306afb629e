//! Which device a command drives, how it is reached, and how the command is stopped.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use linkspan_engine::vhost_user::{Connection, LinkError, LinkOptions, Reach};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_vhost::frontend::Misfit;
use linkspan_virtio::Features;

use crate::exit::{Failure, Status};

/// Which device, and how a command is stopped.
pub(super) struct Target {
    pub(super) reach: Reach,
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
    pub(super) fn new(reach: Reach, connect_seconds: u64, packed: bool) -> Result<Self, Failure> {
        let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
            .context("cannot watch for SIGINT and SIGTERM")?;
        let target = Self {
            reach,
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

    /// Connects to the device, or waits until it connects, and negotiates.
    pub(super) fn connect(
        &self,
        options: LinkOptions,
        hints: &Hints,
    ) -> Result<Connection, Failure> {
        Connection::open(options, Arc::clone(&self.cancel))
            .map_err(|error| link_failure(error, hints))
    }
}

/// An error of a link as the end of the command.
pub(super) fn link_failure(error: LinkError, hints: &Hints) -> Failure {
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
