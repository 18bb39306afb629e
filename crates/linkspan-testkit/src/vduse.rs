//! A kernel with VDUSE that is none: it keeps devices, refuses what the real one
//! refuses, and asks what its drivers want. Devices outlive who serves them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::vduse::{
    Call, DeviceConfig, Kernel, MESSAGE_BYTES, Name, QueueInfo, RegionRecord,
};
use linkspan_sys::{EventFd, PeerEventFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use crate::census::settled;
use crate::disk::DiskRing;
use crate::{PATIENCE, SharedMemory};

const DRIVER_OK: u8 = 4;
const ACCESS_PLATFORM: u64 = 1 << 33;
const NET: u32 = 1;
const BLOCK: u32 = 2;

/// The kernel. Its devices are named; there is one driver on each.
#[derive(Debug, Default)]
pub struct ModelKernel {
    devices: Mutex<BTreeMap<String, Device>>,
}

#[derive(Debug)]
struct Device {
    config: DeviceConfig,
    timeout: u32,
    queues: Vec<Queue>,
    /// On the vDPA bus.
    attached: bool,
    broken: bool,
    /// The socket that was given out last.
    inode: u64,
    /// The kernel's end, while somebody has the device open.
    open: Option<Arc<OwnedFd>>,
    features: u64,
    status: u8,
    /// What was accepted, and is not the status yet.
    held: Option<u8>,
    holds: bool,
    regions: Vec<(RegionRecord, Arc<SharedMemory>)>,
    config_interrupts: u64,
    next_id: u32,
}

#[derive(Debug, Default)]
struct Queue {
    size_max: u16,
    info: QueueInfo,
    kick: Option<PeerEventFd>,
    kicked: bool,
    interrupt: Option<Arc<EventFd>>,
    refused: u64,
}

impl Device {
    fn is_open(&mut self) -> bool {
        // A device end that was closed hangs up.
        let gone = self.open.as_ref().is_some_and(|end| {
            let mut ends = [rustix::event::PollFd::new(
                end,
                rustix::event::PollFlags::empty(),
            )];
            rustix::event::poll(&mut ends, Some(&rustix::event::Timespec::default()))
                .is_ok_and(|count| count > 0)
        });
        if gone {
            self.open = None;
        }
        self.open.is_some()
    }

    fn reset(&mut self) {
        self.status = 0;
        self.features = 0;
        for queue in &mut self.queues {
            queue.info = QueueInfo::default();
            (queue.kick, queue.kicked) = (None, false);
        }
    }

    fn queue(&mut self, index: u32) -> io::Result<&mut Queue> {
        let queue = self.queues.get_mut(index as usize);
        queue.ok_or_else(|| Errno::INVAL.into())
    }
}

fn is_sound(config: &DeviceConfig) -> bool {
    let banned = match config.device_id {
        NET => 1 << 17,
        BLOCK => 1 << 11,
        _ => return false,
    };
    config.features & ACCESS_PLATFORM != 0
        && config.features & banned == 0
        && config.config.len() <= 4096
}

impl Kernel for ModelKernel {
    fn open_control(&self) -> io::Result<OwnedFd> {
        Ok(EventFd::new()?.into())
    }

    fn open_device(&self, name: &Name) -> io::Result<OwnedFd> {
        let mut devices = self.lock();
        let device = devices.get_mut(name.as_str()).ok_or(Errno::NOENT)?;
        if device.is_open() {
            return Err(Errno::BUSY.into());
        }
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        fcntl_setfl(&theirs, fcntl_getfl(&theirs)? | OFlags::NONBLOCK)?;
        if device.broken {
            shutdown(&ours, Shutdown::Both)?;
        }
        device.inode = fstat(&theirs)?.st_ino;
        device.open = Some(Arc::new(ours));
        Ok(theirs)
    }

    fn set_timeout(&self, name: &Name, seconds: u32) -> io::Result<()> {
        let mut devices = self.lock();
        let device = devices.get_mut(name.as_str()).ok_or(Errno::NOENT)?;
        device.timeout = seconds;
        Ok(())
    }

    fn call(&self, fd: BorrowedFd<'_>, call: Call<'_>) -> io::Result<Option<OwnedFd>> {
        let mut devices = self.lock();
        match call {
            Call::SetVersion(0) => return Ok(None),
            Call::SetVersion(_) => return Err(Errno::INVAL.into()),
            Call::Create(config, _) => {
                let name = config.name.as_str().to_owned();
                if !is_sound(config) {
                    return Err(Errno::INVAL.into());
                }
                if devices.contains_key(&name) {
                    return Err(Errno::EXIST.into());
                }
                devices.insert(name, made(config));
                return Ok(None);
            }
            Call::Destroy(name) => {
                let device = devices.get_mut(name.as_str()).ok_or(Errno::INVAL)?;
                if device.attached || device.is_open() {
                    return Err(Errno::BUSY.into());
                }
                devices.remove(name.as_str());
                return Ok(None);
            }
            _ => {}
        }
        // The other calls are for a device; which one, its socket tells.
        let device = served(&mut devices, fd).ok_or(Errno::NOTTY)?;
        if device.broken {
            return Err(Errno::PERM.into());
        }
        device_call(device, call)
    }
}

fn made(config: &DeviceConfig) -> Device {
    Device {
        config: config.clone(),
        timeout: 30,
        queues: (0..config.queues).map(|_| Queue::default()).collect(),
        attached: false,
        broken: false,
        inode: 0,
        open: None,
        features: 0,
        status: 0,
        held: None,
        holds: false,
        regions: Vec::new(),
        config_interrupts: 0,
        next_id: 0,
    }
}

/// The device that a descriptor is of: by the inode of its socket.
fn served<'a>(
    devices: &'a mut BTreeMap<String, Device>,
    fd: BorrowedFd<'_>,
) -> Option<&'a mut Device> {
    let inode = fstat(fd).ok()?.st_ino;
    devices.values_mut().find(|device| device.inode == inode)
}

fn device_call(device: &mut Device, call: Call<'_>) -> io::Result<Option<OwnedFd>> {
    match call {
        Call::Region(record) => {
            let (first, last) = (record.first, record.last);
            let overlaps = |known: &RegionRecord| known.first <= last && first <= known.last;
            let mut found = device.regions.iter().filter(|(known, _)| overlaps(known));
            let (known, memory) = found.next().ok_or(Errno::INVAL)?;
            *record = *known;
            return Ok(Some(memory.as_fd().try_clone_to_owned()?));
        }
        Call::Features(features) => *features = device.features,
        Call::SetConfig(offset, bytes) => {
            let config = &mut device.config.config;
            let place = offset as usize..offset as usize + bytes.len();
            let target = config.get_mut(place).filter(|target| !target.is_empty());
            target.ok_or(Errno::INVAL)?.copy_from_slice(bytes);
        }
        Call::ConfigInterrupt => {
            if device.status & DRIVER_OK == 0 {
                return Err(Errno::INVAL.into());
            }
            device.config_interrupts += 1;
        }
        Call::SetupQueue(index, size_max) => device.queue(index)?.size_max = size_max,
        Call::QueueInfo(info) => {
            let index = info.index;
            *info = device.queue(index)?.info;
            info.index = index;
        }
        Call::SetKick(index, kick) => {
            let kick = PeerEventFd::check(kick.try_clone_to_owned()?).map_err(io::Error::other)?;
            let queue = device.queue(index)?;
            if std::mem::take(&mut queue.kicked) {
                let _ = kick.signal()?;
            }
            queue.kick = Some(kick);
        }
        Call::Interrupt(index) => {
            let runs = device.status & DRIVER_OK != 0;
            let queue = device.queue(index)?;
            if !runs {
                queue.refused += 1;
                return Err(Errno::INVAL.into());
            }
            if let Some(interrupt) = queue.interrupt.as_ref().filter(|_| queue.info.ready != 0) {
                interrupt.signal()?;
            }
        }
        Call::SetVersion(_) | Call::Create(..) | Call::Destroy(_) => {
            unreachable!("these are for the control device")
        }
    }
    Ok(None)
}

/// What a driver of a device does, and what is seen of the kernel from outside.
impl ModelKernel {
    /// A kernel without devices.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Device>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Device) -> T) -> T {
        act(self.lock().get_mut(name).expect("there is such a device"))
    }

    /// The names of all devices.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// What a device was made as; its configuration space is that of now.
    pub fn config(&self, name: &str) -> DeviceConfig {
        self.with(name, |device| device.config.clone())
    }

    /// How long the kernel waits for answers, in seconds.
    pub fn timeout(&self, name: &str) -> u32 {
        self.with(name, |device| device.timeout)
    }

    /// `vdpa dev add`.
    ///
    /// # Panics
    /// When the device has queues without a size.
    pub fn attach(&self, name: &str) {
        self.with(name, |device| {
            assert!(device.queues.iter().all(|queue| queue.size_max > 0));
            device.attached = true;
        });
    }

    /// `vdpa dev del`, once its driver has let go of it.
    pub fn detach(&self, name: &str) {
        self.with(name, |device| device.attached = false);
    }

    /// The largest size of a queue.
    pub fn queue_size_max(&self, name: &str, index: u16) -> u16 {
        self.with(name, |device| device.queues[usize::from(index)].size_max)
    }

    /// The driver accepts features.
    pub fn accept(&self, name: &str, features: u64) {
        self.with(name, |device| device.features = features);
    }

    /// The driver says where a queue is, and that it is ready; the ring's call
    /// descriptor is signalled for it.
    ///
    /// # Panics
    /// When there is no descriptor for that.
    pub fn ready(&self, name: &str, ring: &DiskRing) {
        let interrupt = ring.call.try_clone().expect("a descriptor");
        self.ready_with(name, ring, &Arc::new(interrupt));
    }

    /// The same with a descriptor that there is already.
    pub fn ready_with(&self, name: &str, ring: &DiskRing, interrupt: &Arc<EventFd>) {
        let place = (ring.index(), ring.size(), ring.base());
        self.ready_at(name, place, ring.guest_addresses(), interrupt);
    }

    /// A split ring with these parts, by its index, size, and where it stands, is ready.
    pub fn ready_at(
        &self,
        name: &str,
        (index, size, base): (u16, u16, u16),
        [descriptor, driver, device]: [u64; 3],
        interrupt: &Arc<EventFd>,
    ) {
        let info = QueueInfo {
            size: size.into(),
            descriptor,
            driver,
            device,
            // It goes on, as after `VHOST_SET_VRING_BASE`; a new one begins at 0.
            state: [base, 0, 0, 0],
            ready: 1,
            ..QueueInfo::default()
        };
        self.set_info(name, index, info);
        let interrupt = Arc::clone(interrupt);
        self.with(name, |device| {
            device.queues[usize::from(index)].interrupt = Some(interrupt);
        });
    }

    /// Whatever the kernel is to say of a queue.
    pub fn set_info(&self, name: &str, index: u16, info: QueueInfo) {
        self.with(name, |device| device.queues[usize::from(index)].info = info);
    }

    /// The driver's memory: what there is at which addresses.
    pub fn set_regions(&self, name: &str, regions: Vec<(RegionRecord, Arc<SharedMemory>)>) {
        self.with(name, |device| device.regions = regions);
    }

    /// The driver maps these in place of all others, each at its guest address.
    pub fn map(&self, name: &str, memory: &[&Arc<SharedMemory>]) {
        let regions = memory.iter().map(|memory| {
            let first = memory.guest(0).0;
            let record = RegionRecord {
                offset: 0,
                first,
                last: first + (memory.len() - 1),
                access: 3,
                ..RegionRecord::default()
            };
            (record, Arc::clone(memory))
        });
        self.set_regions(name, regions.collect());
    }

    /// The driver makes something available in a queue, and says so.
    pub fn kick(&self, name: &str, index: u16) {
        self.with(name, |device| {
            let queue = &mut device.queues[usize::from(index)];
            match &queue.kick {
                _ if queue.info.ready == 0 => {}
                Some(kick) => drop(kick.signal().expect("an eventfd")),
                None => queue.kicked = true,
            }
        });
    }

    /// From now on a status that was accepted does not hold until it is
    /// [released](Self::release_status): as the real one's, which is set by whoever
    /// asked, some time after the answer.
    pub fn hold_status(&self, name: &str) {
        self.with(name, |device| device.holds = true);
    }

    /// The status that was accepted holds.
    pub fn release_status(&self, name: &str) {
        self.with(name, |device| {
            device.holds = false;
            if let Some(status) = device.held.take() {
                device.status = status;
            }
        });
    }

    /// Interrupts of a queue that were refused.
    pub fn refused(&self, name: &str, index: u16) -> u64 {
        self.with(name, |device| device.queues[usize::from(index)].refused)
    }

    /// Interrupts for a change of configuration space.
    pub fn config_interrupts(&self, name: &str) -> u64 {
        self.with(name, |device| device.config_interrupts)
    }

    /// The kernel gives the device up.
    pub fn mark_broken(&self, name: &str) {
        self.with(name, |device| {
            device.broken = true;
            if let Some(end) = &device.open {
                shutdown(end, Shutdown::Both).expect("a socket");
            }
        });
    }

    /// Whether somebody serves the device.
    pub fn is_served(&self, name: &str) -> bool {
        self.with(name, Device::is_open)
    }

    /// Asks whether the status may become this; it does then. 0 resets the device,
    /// whatever is answered.
    ///
    /// # Panics
    /// When nobody answers.
    #[track_caller]
    pub fn set_status(&self, name: &str, status: u8) -> bool {
        let answer = self.ask(name, 1, &[status]);
        let done = answer[4..8] == [0; 4];
        self.with(name, |device| match status {
            0 => device.reset(),
            _ if done && device.holds => device.held = Some(status),
            _ if done => device.status = status,
            _ => {}
        });
        done
    }

    /// Brings the driver up, as the kernel's own does; whether it got there.
    #[track_caller]
    pub fn bring_up(&self, name: &str) -> bool {
        [1, 3, 11, 15]
            .into_iter()
            .all(|status| self.set_status(name, status))
    }

    /// Asks where a split queue stands.
    #[track_caller]
    pub fn queue_state(&self, name: &str, index: u32) -> Option<u16> {
        let answer = self.ask(name, 0, &index.to_ne_bytes());
        let done = answer[4..8] == [0; 4];
        done.then(|| u16::from_ne_bytes([answer[28], answer[29]]))
    }

    /// Says that memory changed; whether that was taken in.
    #[track_caller]
    pub fn update_memory(&self, name: &str) -> bool {
        let range = [0_u64.to_ne_bytes(), u64::MAX.to_ne_bytes()].concat();
        self.ask(name, 2, &range)[4..8] == [0; 4]
    }

    /// Sends a request, again if whoever serves the device dies, and gives the answer.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn ask(&self, name: &str, kind: u32, body: &[u8]) -> [u8; MESSAGE_BYTES] {
        let id = self.with(name, |device| {
            device.next_id += 1;
            device.next_id
        });
        let mut request = [0; MESSAGE_BYTES];
        request[..4].copy_from_slice(&kind.to_ne_bytes());
        request[4..8].copy_from_slice(&id.to_ne_bytes());
        request[24..24 + body.len()].copy_from_slice(body);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let served = settled(|| self.is_served(name));
            assert!(served, "nobody serves the device");
            let Some(end) = self.with(name, |device| device.open.clone()) else {
                continue;
            };
            if rustix::io::write(&end, &request).is_err() {
                continue;
            }
            let come = wait_for(end.as_fd(), Direction::Read, None, Some(deadline));
            assert!(matches!(come, Ok(Wake::Ready)), "no answer to {kind}");
            let mut answer = [0; MESSAGE_BYTES];
            match rustix::io::read(&end, answer.as_mut_slice()) {
                Ok(MESSAGE_BYTES) => {
                    assert_eq!(
                        answer[..4],
                        id.to_ne_bytes(),
                        "the answer to another request"
                    );
                    return answer;
                }
                Ok(0) | Err(_) => {}
                Ok(len) => panic!("an answer of {len} bytes"),
            }
        }
    }
}
