//! Serves a VDUSE device, life after life, until it is stopped.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_sys::Epoll;
use linkspan_sys::poll::{Direction, Interest, Ready, Wake, wait_for};
use linkspan_sys::vduse::{self, Control};

use super::error::{OpenError, Reason};
use super::open::{Opened, Options, open};
use super::record::Record;
use super::session::DeviceSession;
use crate::device::Device;
use crate::endpoint::Phase;
use crate::rings::Rings;
use crate::serving::{Common, Server};
use crate::session::{NotQuiet, QUIET_LIMIT};
use crate::worker::Workers;

/// Pauses between attempts to make a device anew: they grow from the first to the
/// last, and go on for ever.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What happens to a device, for whoever tells people or programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel has the device: `vdpa dev add name NAME mgmtdev vduse` puts it on
    /// the bus.
    Offered,
    /// The kernel still has the device of a process that is gone; it goes on.
    TakenOver,
    /// A driver uses it.
    Running {
        /// How many times one has.
        generation: u32,
    },
    /// The driver gave it back.
    Reset {
        /// Which time.
        generation: u32,
    },
    /// The kernel marked it broken, or took it away: it is made anew as soon as it
    /// is off the bus.
    Broken {
        /// What was seen.
        reason: String,
    },
}

/// Makes the device, or takes it over from a process that is gone, and begins to
/// serve it. `report` is called on the server's thread.
///
/// # Errors
/// [`OpenError`]; nothing is left behind then.
pub fn serve(
    options: Options,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: impl Fn(Event) + Send + 'static,
) -> Result<Server, OpenError> {
    let common = Common::new(device.config_changes())?;
    let opened = match open(&options, &*device) {
        Ok(opened) => Ok(opened),
        // It is made anew when it is off the bus; until then there is only this.
        Err(OpenError::Kernel(error @ vduse::Error::Broken(_))) => Err(error),
        Err(error) => return Err(error),
    };
    let life = Life {
        options,
        device,
        workers,
        report: Box::new(report),
        common: common.clone(),
    };
    let first = match opened {
        Ok(opened) => Some(life.session(opened)?),
        Err(error) => {
            life.broken(&error);
            None
        }
    };
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    // Through a channel, so that what was made does not go with a thread that
    // there is not.
    let server = Server::start("vduse", common, move || {
        receiver
            .recv()
            .map_or(Ok(()), |(mut life, first): (Life, _)| life.run(first))
    });
    let server = match server {
        Ok(server) => server,
        Err(error) => {
            if let Some(first) = first {
                life.end(first);
            }
            return Err(error.into());
        }
    };
    if sender.send((life, first)).is_err() {
        panic!("the thread waits for what it is to serve");
    }
    Ok(server)
}

/// A device that is open, with what ends it.
struct Open {
    session: DeviceSession,
    control: Control,
}

/// Why a session came to its end.
enum End {
    Cancelled,
    Broken(Reason),
}

const LINK: u64 = 0;
const WAKE: u64 = 1;
const CANCEL: u64 = 2;
const CHANGES: u64 = 3;

/// What is the same in all lives of a device.
struct Life {
    options: Options,
    device: Arc<dyn Device>,
    workers: Arc<Workers>,
    report: Box<dyn Fn(Event) + Send>,
    common: Common,
}

impl Life {
    /// The session of a device that was opened; one that cannot be had leaves no
    /// device behind.
    fn session(&self, opened: Opened) -> Result<Open, OpenError> {
        let Opened {
            control,
            link,
            core,
            record,
            inflight,
            anew,
        } = opened;
        let (device, workers) = (Arc::clone(&self.device), Arc::clone(&self.workers));
        let rings = match Rings::new(Arc::clone(&device), workers) {
            Ok(rings) => rings,
            Err(error) => {
                drop(link);
                if anew {
                    self.destroy(&control, record);
                }
                return Err(error.into());
            }
        };
        if anew {
            device.reset();
        }
        let session = DeviceSession::new(
            core,
            link,
            (record, inflight),
            device,
            rings,
            Arc::clone(&self.common.endpoint),
        );
        (self.report)(if anew {
            Event::Offered
        } else {
            Event::TakenOver
        });
        Ok(Open { session, control })
    }

    fn broken(&self, error: &dyn std::error::Error) {
        let reason = error.to_string();
        self.common.endpoint.fault(&reason);
        (self.report)(Event::Broken { reason });
        self.common.endpoint.enter(Phase::Reconnecting);
    }

    /// Serves one life after the other.
    fn run(&mut self, mut open: Option<Open>) -> Result<(), NotQuiet> {
        loop {
            let Some(mut now) = open.take() else {
                match self.open_again() {
                    Some(again) => open = Some(again),
                    None => break,
                }
                continue;
            };
            let end = self.serve(&mut now.session);
            self.common.endpoint.enter(Phase::Draining);
            now.session.close();
            quiet(&mut now.session)?;
            match end {
                End::Cancelled => {
                    self.end(now);
                    break;
                }
                End::Broken(reason) => self.broken(&reason),
            }
        }
        self.common.endpoint.enter(Phase::Stopped);
        Ok(())
    }

    /// Ends the kernel's device, or leaves it to whoever comes next.
    fn end(&self, open: Open) {
        let record = open.session.into_record();
        self.destroy(&open.control, record);
    }

    fn destroy(&self, control: &Control, record: Record) {
        match control.destroy(&self.options.name) {
            Ok(()) => record.remove(),
            Err(vduse::Error::Attached(name)) => tracing::info!(
                "the kernel keeps the device, which is on the vDPA bus: start again to go on \
                 with it, or remove it with `vdpa dev del {name}`"
            ),
            Err(error) => tracing::warn!("the device stays behind: {error}"),
        }
    }

    /// Tries to make the device again until that works; `None` when we are to stop.
    fn open_again(&self) -> Option<Open> {
        let mut pause = PAUSE;
        let mut said = String::new();
        loop {
            let deadline = Some(Instant::now() + pause);
            match wait_for(self.common.cancel.as_fd(), Direction::Read, None, deadline) {
                Ok(Wake::Deadline) => {}
                _ => return None,
            }
            let opened = open(&self.options, &*self.device);
            match opened.and_then(|opened| self.session(opened)) {
                Ok(open) => return Some(open),
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        tracing::warn!(
                            "the device cannot be made anew yet: {text}; if it is on the vDPA \
                             bus, remove it with `vdpa dev del {}`",
                            self.options.name
                        );
                        said = text;
                    }
                }
            }
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Serves until something ends it.
    fn serve(&self, session: &mut DeviceSession) -> End {
        match self.converse(session) {
            Ok(end) => end,
            Err(error) => End::Broken(error.into()),
        }
    }

    fn converse(&self, session: &mut DeviceSession) -> io::Result<End> {
        let epoll = Epoll::new()?;
        epoll.add(session.link(), LINK, Interest::READ)?;
        epoll.add(session.wake_fd(), WAKE, Interest::READ)?;
        epoll.add(&*self.common.cancel, CANCEL, Interest::READ)?;
        epoll.add(&*self.common.changes, CHANGES, Interest::READ)?;
        self.common.endpoint.enter(Phase::Ready);
        let mut ready = Ready::with_capacity(4);
        let (mut listening, mut live) = (true, false);
        // A device that is taken over has rings to start.
        if let Err(error) = session.proceed() {
            return Ok(End::Broken(error));
        }
        loop {
            let wants = session.wants_request();
            if wants != listening {
                let interest = if wants {
                    Interest::READ
                } else {
                    Interest::NONE
                };
                epoll.modify(session.link(), LINK, interest)?;
                listening = wants;
            }
            if wants && live != session.is_live() {
                live = !live;
                self.turned(live);
            }
            let left = |until: Instant| until.saturating_duration_since(Instant::now());
            let due = session.deadline().map(left);
            epoll.wait(&mut ready, due)?;
            let mut done = match due {
                Some(_) => session.wake(),
                None => Ok(()),
            };
            for event in ready.iter() {
                done = done.and_then(|()| match event.token {
                    CANCEL => Ok(()),
                    WAKE => session.wake(),
                    CHANGES => {
                        if let Err(error) = self.common.changes.drain() {
                            panic!("our own eventfd cannot be read: {error}");
                        }
                        session.config_changed()
                    }
                    _ if event.closed => {
                        Err(vduse::Error::Broken(self.options.name.clone()).into())
                    }
                    _ if session.wants_request() => session.hear(),
                    _ => Ok(()),
                });
                if event.token == CANCEL {
                    return Ok(End::Cancelled);
                }
            }
            if let Err(error) = done {
                return Ok(End::Broken(error));
            }
        }
    }

    /// A driver came or went.
    fn turned(&self, live: bool) {
        if live {
            let generation = self.common.endpoint.begin();
            self.common.endpoint.enter(Phase::Running);
            (self.report)(Event::Running { generation });
        } else {
            let generation = self.common.endpoint.generation();
            self.common.endpoint.enter(Phase::Ready);
            (self.report)(Event::Reset { generation });
        }
    }
}

/// Waits until the session is quiet.
fn quiet(session: &mut DeviceSession) -> Result<(), NotQuiet> {
    let limit = QUIET_LIMIT;
    let deadline = Instant::now() + limit;
    loop {
        // What goes wrong in a session that is over changes nothing.
        let _ = session.wake();
        if session.is_quiet() {
            return Ok(());
        }
        match wait_for(session.wake_fd(), Direction::Read, None, Some(deadline)) {
            Ok(Wake::Ready) => {}
            _ => return Err(NotQuiet { limit }),
        }
    }
}
