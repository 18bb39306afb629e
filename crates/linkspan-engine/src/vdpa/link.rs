//! A device driven over vhost-vdpa by this process.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_mem::Iova;
use linkspan_sys::poll::{Epoll, Interest, Ready, Wake, wait_for};
use linkspan_sys::{EventFd, poll::Direction, thread::spawn};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::Negotiated;
use linkspan_vhost::vdpa::{Plan, RingPlan, Wire, status};
use linkspan_virtio::{Features, QueueLayout};

use super::device::{Opener, VdpaDevice, Wires};
use super::error::VdpaError;
use crate::config_space::ConfigSpace;
use crate::driver::{DriverMemory, QueueHandle};
use crate::endpoint::{Endpoint, Phase};
use crate::limit::{LogLimit, chain};
use crate::link::Link;
use crate::queues::Queues;

/// Pauses between attempts to open a device that was lost.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is wanted of a vDPA device.
#[derive(Clone)]
pub struct VdpaOptions {
    /// How it is opened.
    pub open: Opener,
    /// Queues to use, at least 1.
    pub queues: u16,
    /// Features that the driver has: those of the device type and of its queues.
    pub features: Features,
    /// Features without which it does not work.
    pub required: Features,
    /// Bytes of configuration space to read.
    pub config_size: u32,
}

/// A device that was opened and negotiated with, and of which no ring runs yet.
#[derive(Debug)]
pub struct Connection {
    ready: Agreed,
    again: Again,
}

/// What the link does once more when the device is lost.
struct Again {
    options: VdpaOptions,
    cancel: Arc<EventFd>,
}

impl std::fmt::Debug for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Again").finish_non_exhaustive()
    }
}

/// A device and what was agreed upon.
#[derive(Debug)]
struct Agreed {
    device: VdpaDevice,
    negotiated: Negotiated,
    /// What the device gets: more than the driver has to know.
    features: u64,
}

impl Connection {
    /// Opens the device and negotiates. `cancel` ends the link later.
    ///
    /// # Errors
    /// When it cannot be opened, or does not fit.
    pub fn open(options: VdpaOptions, cancel: Arc<EventFd>) -> Result<Self, VdpaError> {
        let again = Again { options, cancel };
        Ok(Self {
            ready: again.open()?,
            again,
        })
    }

    /// What the negotiation came to, in the terms of a front end.
    pub fn negotiated(&self) -> &Negotiated {
        &self.ready.negotiated
    }

    /// Wishes for so many queues instead, and gives up these features, as
    /// [`vhost_user::Connection::revise`](crate::vhost_user::Connection::revise).
    ///
    /// # Errors
    /// When the device has fewer queues.
    pub fn revise(&mut self, queues: u16, without: Features) -> Result<(), VdpaError> {
        let (wanted, max) = (queues, self.ready.device.facts().queues);
        if wanted > max {
            return Err(VdpaError::Queues { wanted, max });
        }
        self.again.options.queues = queues;
        self.again.options.features.remove(without);
        self.ready.features &= !without.bits();
        self.ready.negotiated.features &= !without.bits();
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> &VdpaDevice {
        &self.ready.device
    }

    /// Shares the memory and starts one ring for each queue: all or none. From
    /// then on the link keeps them running, and brings the device up anew if it
    /// breaks.
    ///
    /// # Errors
    /// When a step fails; all before it is undone then.
    pub fn start(
        self,
        memory: Arc<DriverMemory>,
        queues: Vec<QueueHandle>,
    ) -> Result<Link, VdpaError> {
        let no_descriptor = |source| VdpaError::System {
            what: "no descriptor can be had",
            source,
        };
        let queues = Queues::new(memory, queues).map_err(no_descriptor)?;
        let changes = EventFd::new().map_err(no_descriptor)?;
        let config =
            ConfigSpace::new(self.ready.negotiated.config.clone()).map_err(no_descriptor)?;
        let epoll = Epoll::new().map_err(no_descriptor)?;
        let watched = [
            (queues.bell(), BELL),
            (changes.as_fd(), CHANGES),
            (self.again.cancel.as_fd(), CANCEL),
        ];
        for (fd, token) in watched {
            epoll
                .add(fd, token, Interest::READ)
                .map_err(no_descriptor)?;
        }
        let mut running = Running {
            ready: Some(self.ready),
            queues,
            changes,
            config: Arc::new(config),
            epoll,
            losses: LogLimit::default(),
        };
        running.start()?;
        running.give_doorbells();
        let endpoint = Arc::new(Endpoint::default());
        endpoint.begin();
        endpoint.enter(Phase::Running);
        let (cancel, config) = (Arc::clone(&self.again.cancel), Arc::clone(&running.config));
        let again = self.again;
        let thread = spawn("vdpa", {
            let endpoint = Arc::clone(&endpoint);
            move || running.keep_alive(&again, &endpoint)
        })
        .map_err(|source| VdpaError::System {
            what: "the link's thread cannot be started",
            source,
        })?;
        Ok(Link {
            cancel,
            endpoint,
            config,
            thread: Some(thread),
        })
    }
}

impl Again {
    /// Opens the device and agrees with it.
    fn open(&self) -> Result<Agreed, VdpaError> {
        let mut device = VdpaDevice::new((self.options.open)()?)?;
        let facts = device.facts();
        let (wanted, max) = (self.options.queues, facts.queues);
        if wanted > max {
            return Err(VdpaError::Queues { wanted, max });
        }
        let offered = Features::from_bits_retain(facts.features);
        let missing = self.options.required.difference(offered);
        if !missing.is_empty() {
            let missing = missing.bits();
            return Err(VdpaError::Missing { missing });
        }
        let agreed = self.options.features & offered;
        // The device sees memory through mappings, which it may insist on.
        let features = (agreed | offered & Features::VIRTIO_F_ACCESS_PLATFORM).bits();
        device.try_features(features)?;
        let negotiated = Negotiated {
            offered: offered.bits(),
            features: agreed.bits(),
            protocol_features: ProtocolFeatures::empty(),
            queues_max: max.into(),
            memory_slots: 0,
            config: device.config(self.options.config_size)?,
        };
        Ok(Agreed {
            device,
            negotiated,
            features,
        })
    }

    /// Tries until the device is there again and fits; `None` when we are to end.
    fn reopen(&self, features: u64, limit: &mut LogLimit) -> Option<Agreed> {
        let mut pause = PAUSE_MIN;
        loop {
            let deadline = Some(Instant::now() + pause);
            let waited = wait_for(self.cancel.as_fd(), Direction::Read, None, deadline);
            if !matches!(waited, Ok(Wake::Deadline)) {
                return None;
            }
            pause = (pause * 2).min(PAUSE_MAX);
            match self.open() {
                // The driver goes on as it began.
                Ok(ready) if ready.negotiated.features == features => return Some(ready),
                Ok(ready) => {
                    if let Some(more) = limit.allow() {
                        let now = ready.negotiated.features;
                        tracing::warn!(
                            more,
                            "the device that came back has the features {now:#x} instead of {features:#x}"
                        );
                    }
                }
                Err(error) => {
                    if let Some(more) = limit.allow() {
                        tracing::warn!(more, "the device is not there yet: {}", chain(&error));
                    }
                }
            }
        }
    }
}

const BELL: u64 = 0;
const CHANGES: u64 = 1;
const CANCEL: u64 = 2;

struct Running {
    ready: Option<Agreed>,
    queues: Queues,
    /// Signalled by the device when configuration space changed.
    changes: EventFd,
    config: Arc<ConfigSpace>,
    epoll: Epoll,
    losses: LogLimit,
}

/// The descriptors of the queues.
struct LinkWires<'a>(&'a Queues, &'a EventFd);

impl Wires for LinkWires<'_> {
    fn ring(&self, ring: u16, wire: Wire) -> Option<BorrowedFd<'_>> {
        let events = self.0.events(ring.into())?;
        match wire {
            Wire::Kick => Some(events.kick.as_fd()),
            Wire::Call => Some(events.call.as_fd()),
            Wire::Err => None,
        }
    }

    fn config(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}

impl Running {
    fn start(&mut self) -> Result<(), VdpaError> {
        let Some(ready) = &mut self.ready else {
            return Ok(());
        };
        let memory = self.queues.memory();
        let base = memory.guest_base().0;
        let region = memory.memory().table().regions()[0].clone();
        ready.device.set_memory(vec![(0, Iova(base), region)])?;
        let features = Features::from_bits_retain(ready.features);
        let layout = QueueLayout::of(features);
        let rings = (0..).zip(memory.rings()).map(|(ring, place)| RingPlan {
            ring,
            size: place.size,
            base: layout.base(layout.start()),
            address: [place.descriptor, place.driver, place.device].map(|at| Iova(base + at)),
            wires: vec![Wire::Call, Wire::Kick],
            enabled: true,
        });
        let plan = Plan {
            features: ready.features,
            groups: Vec::new(),
            rings: rings.collect(),
            config_call: true,
        };
        ready
            .device
            .start(plan, &LinkWires(&self.queues, &self.changes))
    }

    /// Lets queues kick without a system call, where the device has pages for that.
    fn give_doorbells(&mut self) {
        let Some(ready) = &mut self.ready else {
            return;
        };
        for ring in self.queues.all() {
            if let Some(doorbell) = ready.device.doorbell(ring) {
                self.queues.give_doorbell(ring, &doorbell);
            }
        }
    }

    /// Waits for changes of the device, and brings it up anew when it breaks.
    fn keep_alive(mut self, again: &Again, endpoint: &Endpoint) {
        loop {
            let reason = match self.watch() {
                Ok(()) => break,
                Err(error) => error,
            };
            if let Some(more) = self.losses.allow() {
                tracing::warn!(
                    more,
                    "the device is lost: {}; opening it again",
                    chain(&reason)
                );
            }
            endpoint.enter(Phase::Reconnecting);
            let features = self.ready.take().map_or(0, |lost| lost.negotiated.features);
            self.queues.lost();
            self.queues.forget();
            let Some(ready) = again.reopen(features, &mut self.losses) else {
                break;
            };
            endpoint.begin();
            self.ready = Some(ready);
            endpoint.enter(Phase::Ready);
            // A device takes all its rings at once, so all have to be at rest.
            if !self.all_parked() {
                break;
            }
            if let Err(error) = self.start() {
                if let Some(more) = self.losses.allow() {
                    tracing::warn!(more, "the device does not start: {}", chain(&error));
                }
                continue;
            }
            self.give_doorbells();
            let rings = self.queues.all();
            self.queues.started(&rings);
            endpoint.enter(Phase::Running);
            tracing::info!("the device is back");
            self.publish();
        }
        self.ready = None;
        endpoint.enter(Phase::Stopped);
    }

    /// Waits until every queue has parked; `false` when we are to end.
    fn all_parked(&mut self) -> bool {
        let mut ready = Ready::with_capacity(3);
        loop {
            self.queues.listen();
            if self.queues.waiting().len() == self.queues.all().len() {
                return true;
            }
            if self.epoll.wait(&mut ready, None).is_err()
                || ready.iter().any(|event| event.token == CANCEL)
            {
                return false;
            }
            let _ = self.changes.drain();
        }
    }

    /// Takes in changes until the device breaks; `Ok` when we are to end.
    fn watch(&mut self) -> Result<(), VdpaError> {
        let mut ready = Ready::with_capacity(3);
        let Some(device) = self.ready.as_ref().map(|ready| &ready.device) else {
            return Err(VdpaError::NotStarted { status: 0 });
        };
        if !device.is_live() {
            return Err(VdpaError::NotStarted { status: 0 });
        }
        loop {
            let waited = self.epoll.wait(&mut ready, None);
            waited.map_err(|source| VdpaError::System {
                what: "cannot wait for the device",
                source,
            })?;
            if ready.iter().any(|event| event.token == CANCEL) {
                return Ok(());
            }
            self.queues.listen();
            if let Err(error) = self.changes.drain() {
                panic!("our own eventfd cannot be read: {error}");
            }
            let Some(device) = self.ready.as_ref().map(|ready| &ready.device) else {
                continue;
            };
            let now = device.status()?;
            if now & (status::NEEDS_RESET | status::FAILED) != 0 || now & status::DRIVER_OK == 0 {
                return Err(VdpaError::NotStarted { status: now });
            }
            self.publish();
        }
    }

    /// The users of the link see what configuration space is now.
    fn publish(&self) {
        let Some(ready) = &self.ready else {
            return;
        };
        let len = u32::try_from(ready.negotiated.config.len()).unwrap_or(0);
        match ready.device.config(len) {
            Ok(bytes) if self.config.replace(&bytes) => {
                tracing::info!("the configuration space of the device changed");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("{}", chain(&error)),
        }
    }
}
