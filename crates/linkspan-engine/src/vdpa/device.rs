//! A vDPA device with its order of steps: who carries the steps out.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use linkspan_mem::{Iova, Region};
use linkspan_sys::vdpa::{Doorbell, RingAddress, RingFd, Vdpa, page_size};
use linkspan_vhost::vdpa::{
    Command, Consumer, Facts, Mapping, Outcome, Plan, Raw, Reply, Step, Wire,
};

use super::error::{VdpaError, name};
use crate::limit::chain;
use crate::messages::Messages;

/// How a device is opened, and opened again when it was lost.
pub type Opener = Arc<dyn Fn() -> Result<Box<dyn Vdpa>, VdpaError> + Send + Sync>;

/// A vDPA device that this process has for itself, owned and reset.
pub struct VdpaDevice {
    kernel: Box<dyn Vdpa>,
    facts: Facts,
    consumer: Consumer,
    /// The memory behind the mappings, known by their numbers.
    regions: Vec<(Mapping, Region)>,
    next_id: u64,
    /// Its pages in this process, which others have too, by ring.
    doorbells: Vec<(u16, Arc<Doorbell>)>,
    /// Each call is said there.
    messages: Option<Arc<Messages>>,
}

/// The descriptors that a start gives the device.
pub(super) trait Wires {
    /// A descriptor of a ring.
    fn ring(&self, ring: u16, wire: Wire) -> Option<BorrowedFd<'_>>;
    /// What is signalled when configuration space changed.
    fn config(&self) -> Option<BorrowedFd<'_>>;
}

/// For commands that give none.
struct NoWires;

impl Wires for NoWires {
    fn ring(&self, _: u16, _: Wire) -> Option<BorrowedFd<'_>> {
        None
    }

    fn config(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl fmt::Debug for VdpaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VdpaDevice")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl VdpaDevice {
    /// Takes possession of a device.
    ///
    /// # Errors
    /// When it does not answer, or cannot be used.
    pub fn new(kernel: Box<dyn Vdpa>) -> Result<Self, VdpaError> {
        let raw = ask(&*kernel)?;
        let consumer = Consumer::new(raw.backend_features);
        let mut device = Self {
            // Of the queues nothing is known until it is owned.
            facts: Facts::check(raw.clone())?,
            kernel,
            consumer,
            regions: Vec::new(),
            next_id: 0,
            doorbells: Vec::new(),
            messages: None,
        };
        device.run(Command::Open, &NoWires)?;
        device.facts = Facts::check(ask_rings(&*device.kernel, raw))?;
        Ok(device)
    }

    /// Each call can be seen there from now on.
    pub(super) fn be_seen(&mut self, messages: Arc<Messages>) {
        self.messages = Some(messages);
    }

    /// What it says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its calls that have no place in an order.
    pub fn kernel(&self) -> &dyn Vdpa {
        &*self.kernel
    }

    /// Whether it runs.
    pub(super) fn is_live(&self) -> bool {
        self.consumer.is_live()
    }

    /// The device status.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn status(&self) -> Result<u8, VdpaError> {
        self.kernel.status().map_err(probing("its status"))
    }

    /// All `len` first bytes of configuration space, those that it does not have
    /// as zeroes, read from the device now.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn config(&self, len: u32) -> Result<Vec<u8>, VdpaError> {
        let mut bytes = vec![0; len as usize];
        let there = self.facts.config_size.min(len) as usize;
        if there > 0 {
            let read = self.kernel.read_config(0, &mut bytes[..there]);
            read.map_err(probing("its configuration space"))?;
        }
        Ok(bytes)
    }

    /// These regions replace all others: address space, address, memory. What is
    /// there already stays.
    pub(super) fn set_memory(&mut self, memory: Vec<(u32, Iova, Region)>) -> Result<(), VdpaError> {
        let mut mappings = Vec::new();
        for (asid, iova, region) in memory {
            check_memory(&self.facts, iova, &region)?;
            let len = region.len() as u64;
            let known = self.regions.iter().find(|(mapping, old)| {
                (mapping.asid, mapping.iova) == (asid, iova) && same(old, &region)
            });
            let mapping = match known {
                Some((mapping, _)) => *mapping,
                None => {
                    self.next_id += 1;
                    let id = self.next_id;
                    let mapping = Mapping {
                        asid,
                        iova,
                        len,
                        id,
                    };
                    self.regions.push((mapping, region));
                    mapping
                }
            };
            mappings.push(mapping);
        }
        let done = self.run(Command::SetMemory(mappings.clone()), &NoWires);
        // Whichever way it went: what is neither mapped nor to be mapped goes.
        let mapped = self.consumer.mapped();
        let wanted = done.is_ok();
        self.regions.retain(|(mapping, _)| {
            mapped.contains(mapping) || wanted && mappings.contains(mapping)
        });
        done.map(drop)
    }

    /// Whether it accepts these features.
    pub(super) fn try_features(&mut self, features: u64) -> Result<(), VdpaError> {
        self.run(Command::TryFeatures(features), &NoWires).map(drop)
    }

    pub(super) fn start(&mut self, plan: Plan, wires: &dyn Wires) -> Result<(), VdpaError> {
        self.run(Command::Start(plan), wires).map(drop)
    }

    /// The page by which a ring is kicked, where the device has one. It goes with the
    /// device, whoever has it then.
    pub(super) fn doorbell(&mut self, ring: u16) -> Option<Arc<Doorbell>> {
        // One that starts again and again has one page all the time.
        if let Some((_, known)) = self.doorbells.iter().find(|(of, _)| *of == ring) {
            return Some(Arc::clone(known));
        }
        match self.kernel.doorbell(ring) {
            Ok(doorbell) => {
                let doorbell = Arc::new(doorbell);
                self.doorbells.push((ring, Arc::clone(&doorbell)));
                Some(doorbell)
            }
            Err(error) => {
                tracing::debug!("ring {ring} is kicked by its eventfd: {error}");
                None
            }
        }
    }

    pub(super) fn enable(&mut self, rings: Vec<u16>) -> Result<(), VdpaError> {
        self.run(Command::Enable(rings), &NoWires).map(drop)
    }

    /// Suspends it; where its rings are.
    pub(super) fn pause(&mut self) -> Result<Vec<(u16, Option<u32>)>, VdpaError> {
        Ok(self.run(Command::Pause, &NoWires)?.bases)
    }

    pub(super) fn resume(&mut self) -> Result<(), VdpaError> {
        self.run(Command::Resume, &NoWires).map(drop)
    }

    /// Brings it down, whatever goes wrong; where its rings were.
    pub(super) fn stop(&mut self) -> Vec<(u16, Option<u32>)> {
        if !self.is_live() {
            return Vec::new();
        }
        let stopped = self.run(Command::Stop, &NoWires);
        stopped.map_or_else(|_| Vec::new(), |outcome| outcome.bases)
    }

    fn run(&mut self, command: Command, wires: &dyn Wires) -> Result<Outcome, VdpaError> {
        let features = match &command {
            Command::TryFeatures(features) => *features,
            Command::Start(plan) => plan.features,
            _ => 0,
        };
        if let Err(misuse) = self.consumer.begin(command) {
            panic!("a command that this transport made up was refused: {misuse}");
        }
        while let Some(step) = self.consumer.next_step() {
            let done = self.carry_out(&step, wires);
            tracing::trace!("{}: {done:?}", name(&step));
            if let Some(messages) = &self.messages {
                messages.pass(false, said(&step, &done));
            }
            let answer = done.map_err(|error| error.raw_os_error().unwrap_or(EIO));
            if let Err(misuse) = self.consumer.answer(answer) {
                panic!("an answer that this transport made up was refused: {misuse}");
            }
        }
        let outcome = self.consumer.outcome().expect("there is no step left");
        match outcome {
            Ok(outcome) => {
                for trouble in &outcome.troubles {
                    let error = VdpaError::of_step(trouble, features);
                    tracing::warn!("on the way down: {}", chain(&error));
                }
                Ok(outcome)
            }
            Err(error) => Err(VdpaError::of_step(&error, features)),
        }
    }

    fn carry_out(&self, step: &Step, wires: &dyn Wires) -> io::Result<Reply> {
        let kernel = &*self.kernel;
        match *step {
            Step::SetOwner => kernel.set_owner()?,
            Step::SetBackendFeatures(features) => kernel.set_backend_features(features)?,
            Step::SetStatus(status) => kernel.set_status(status)?,
            Step::CheckStatus(_) => return Ok(Reply::Status(kernel.status()?)),
            Step::SetFeatures(features) => kernel.set_features(features)?,
            Step::SetGroupAsid { group, asid } => kernel.set_group_asid(group, asid)?,
            Step::Batch { asid, begin } => kernel.batch(asid, begin)?,
            Step::Map(mapping) => {
                let known = self.regions.iter().find(|(known, _)| *known == mapping);
                let (_, region) = known.ok_or(io::ErrorKind::NotFound)?;
                kernel.map(mapping.asid, mapping.iova, region)?;
            }
            Step::Unmap(mapping) => kernel.unmap(mapping.asid, mapping.iova, mapping.len)?,
            Step::SetSize { ring, size } => kernel.set_ring_size(ring, size)?,
            Step::SetBase { ring, base } => kernel.set_ring_base(ring, base)?,
            Step::SetAddress {
                ring,
                address: [descriptor, driver, device],
            } => kernel.set_ring_address(
                ring,
                RingAddress {
                    descriptor,
                    driver,
                    device,
                },
            )?,
            Step::Wire { ring, wire, bind } => {
                let fd = if bind { wires.ring(ring, wire) } else { None };
                kernel.set_ring_fd(ring, ring_fd(wire), fd)?;
            }
            Step::ConfigCall { bind } => {
                let fd = bind.then(|| wires.config().ok_or(io::ErrorKind::NotFound));
                kernel.set_config_call(fd.transpose()?)?;
            }
            Step::Enable { ring } => kernel.enable_ring(ring, true)?,
            Step::Suspend => kernel.suspend()?,
            Step::Resume => kernel.resume()?,
            Step::ReadBase { ring } => return Ok(Reply::Base(kernel.ring_base(ring)?)),
        }
        Ok(Reply::Done)
    }
}

impl Drop for VdpaDevice {
    fn drop(&mut self) {
        for (_, doorbell) in &self.doorbells {
            if let Err(error) = doorbell.revoke() {
                tracing::warn!("the device stays open for its doorbell: {error}");
            }
        }
        let _ = self.run(Command::Close, &NoWires);
    }
}

/// A call and what came of it, in words.
fn said(step: &Step, done: &io::Result<Reply>) -> String {
    let call = name(step);
    match done {
        Ok(Reply::Done) => call,
        Ok(Reply::Status(status)) => format!("{call}: {status:#x}"),
        Ok(Reply::Base(base)) => format!("{call}: {base:#x}"),
        Err(error) => format!("{call}: {error}"),
    }
}

/// `EIO`, for an error that has no number.
const EIO: i32 = 5;

pub(super) fn ring_fd(wire: Wire) -> RingFd {
    match wire {
        Wire::Kick => RingFd::Kick,
        Wire::Call => RingFd::Call,
        Wire::Err => RingFd::Err,
    }
}

/// Whether this memory can be at that address for a device.
pub(super) fn check_memory(facts: &Facts, iova: Iova, region: &Region) -> Result<(), VdpaError> {
    let len = region.len() as u64;
    facts.check_range(iova, len)?;
    // The kernel maps pages, and would map others than these.
    if !(start(region) as u64 ^ iova.0).is_multiple_of(page_size()) {
        return Err(VdpaError::NoPages { iova: iova.0, len });
    }
    Ok(())
}

/// Whether both are the same mapping of this process.
fn same(a: &Region, b: &Region) -> bool {
    a.len() == b.len() && start(a) == start(b)
}

/// Where it is in this process.
fn start(region: &Region) -> usize {
    region
        .slice(0, 0)
        .map_or(0, |bytes| bytes.as_ptr() as usize)
}

fn probing(what: &'static str) -> impl FnOnce(io::Error) -> VdpaError {
    move |source| VdpaError::Probe { what, source }
}

/// All that a device tells without being owned.
fn ask(kernel: &dyn Vdpa) -> Result<Raw, VdpaError> {
    Ok(Raw {
        device_id: kernel.device_id().map_err(probing("its type"))?,
        features: kernel.features().map_err(probing("its features"))?,
        // A kernel without it has none of them.
        backend_features: kernel.backend_features().unwrap_or(0),
        queues: kernel.queues().ok(),
        queue_size_max: kernel.queue_size_max().map_err(probing("its queue size"))?,
        queue_sizes: Vec::new(),
        config_size: kernel
            .config_size()
            .map_err(probing("the size of its configuration space"))?,
        iova: kernel
            .iova_range()
            .map_err(probing("the range of addresses that it reaches"))?,
        groups: kernel.groups().unwrap_or(1),
        address_spaces: kernel.address_spaces().unwrap_or(1),
        ring_groups: Vec::new(),
    })
}

/// What is asked of each queue, and which many devices do not say.
fn ask_rings(kernel: &dyn Vdpa, raw: Raw) -> Raw {
    let queues = raw.queues.unwrap_or(0);
    let rings = || 0..u16::try_from(queues).unwrap_or(u16::MAX);
    Raw {
        queue_sizes: rings().map(|ring| kernel.queue_size(ring).ok()).collect(),
        ring_groups: rings().map(|ring| kernel.ring_group(ring).ok()).collect(),
        ..raw
    }
}

/// All that a device tells, unchecked, for whoever wants to see it.
///
/// # Errors
/// When it does not answer.
pub fn survey(kernel: &dyn Vdpa) -> Result<Raw, VdpaError> {
    let raw = ask(kernel)?;
    if raw.queues.is_some_and(|queues| queues > 1024) {
        return Ok(raw);
    }
    kernel.set_owner().map_err(probing("VHOST_SET_OWNER"))?;
    Ok(ask_rings(kernel, raw))
}
