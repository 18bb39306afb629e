//! Devices served through VDUSE to a model of the kernel.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{Image, OpenOptions, RawImage};
use linkspan_engine::vduse::{self, Event, OpenError, Options};
use linkspan_engine::{Device, Phase, Server, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::vduse::{Error, QueueInfo, RegionRecord};
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::{SECTOR, room};
use linkspan_testkit::served::{SECTORS, content, write_image};
use linkspan_testkit::{DiskRing, GatedImage, Io, ModelKernel, PATIENCE, SharedMemory};
use linkspan_vhost::vduse::RestoreError;
use tempfile::TempDir;

const NAME: &str = "disk0";
const NEEDED: u64 = 1 << 32 | 1 << 33;

/// A folder in memory, as the state of devices needs it.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

struct Rig {
    kernel: Arc<ModelKernel>,
    device: Arc<BlockDevice>,
    workers: Arc<Workers>,
    folder: TempDir,
}

impl Rig {
    fn of(image: Arc<dyn Image>, folder: TempDir) -> Self {
        Self {
            kernel: ModelKernel::new(),
            device: Arc::new(BlockDevice::new(image, 2, 256).unwrap()),
            workers: Arc::new(Workers::new(2).unwrap()),
            folder,
        }
    }

    fn new() -> Self {
        let folder = folder();
        let path = folder.path().join("image");
        write_image(&path);
        let image = RawImage::open(&path, &OpenOptions::default()).unwrap();
        Self::of(Arc::new(image), folder)
    }

    fn gated() -> (Self, Arc<GatedImage>) {
        let image = GatedImage::new(SECTORS);
        let rig = Self::of(Arc::clone(&image) as Arc<dyn Image>, folder());
        (rig, image)
    }

    fn options(&self) -> Options {
        Options {
            name: NAME.parse().unwrap(),
            timeout_seconds: 0,
            state: self.folder.path().join("state"),
            kernel: Arc::clone(&self.kernel) as Arc<_>,
        }
    }

    fn try_serve(&self) -> Result<(Server, Receiver<Event>), OpenError> {
        let (sender, events) = mpsc::channel();
        let report = move |event| drop(sender.send(event));
        let device = Arc::clone(&self.device) as Arc<dyn Device>;
        let server = vduse::serve(self.options(), device, Arc::clone(&self.workers), report)?;
        Ok((server, events))
    }

    fn serve(&self) -> (Server, Receiver<Event>) {
        self.try_serve().unwrap()
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder
            .path()
            .join("state")
            .join(format!("vduse-{NAME}"))
    }

    /// A driver in memory of its own, with one ring, up to `DRIVER_OK`.
    fn drive(&self) -> Driver {
        let driver = self.prepare();
        assert!(self.kernel.bring_up(NAME));
        driver
    }

    /// The same before its first status.
    fn prepare(&self) -> Driver {
        let memory = SharedMemory::new(room(1, 64), Gpa(1 << 20), Sealing::Fixed);
        let ring = DiskRing::new(&memory, 0, 64, NEEDED);
        self.kernel.accept(NAME, NEEDED);
        self.kernel.ready(NAME, &ring);
        self.kernel.map(NAME, &[&memory]);
        Driver {
            kernel: Arc::clone(&self.kernel),
            memory,
            ring,
        }
    }
}

struct Driver {
    kernel: Arc<ModelKernel>,
    memory: Arc<SharedMemory>,
    ring: DiskRing,
}

impl Driver {
    fn read(&mut self, sector: u64) -> Vec<u8> {
        let len = SECTOR;
        self.ring.add(Io::Read { sector, len });
        self.kernel.kick(NAME, self.ring.index());
        let done = self.ring.wait();
        assert_eq!(done.status, 0);
        done.data
    }
}

#[track_caller]
fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_device_is_made_driven_reset_and_ended() {
    let rig = Rig::new();
    let (server, events) = rig.serve();
    assert_eq!(next(&events), Event::Offered);
    let config = rig.kernel.config(NAME);
    assert_eq!((config.device_id, config.queues), (2, 2));
    assert_eq!(config.features & NEEDED, NEEDED);
    // Not what needs a write to configuration space, nor what VDUSE cannot say.
    assert_eq!(config.features & (1 << 11 | 1 << 40), 0);
    assert_eq!(config.config[..8], SECTORS.to_le_bytes());
    assert_eq!(rig.kernel.timeout(NAME), 0);
    assert_eq!(rig.kernel.queue_size_max(NAME, 1), 256);

    rig.kernel.attach(NAME);
    for generation in 1..4 {
        let mut driver = rig.drive();
        assert_eq!(next(&events), Event::Running { generation });
        assert_eq!(server.endpoint().phase(), Phase::Running);
        for sector in [0, 7, SECTORS - 1] {
            assert_eq!(driver.read(sector), content(sector));
        }
        assert!(rig.kernel.set_status(NAME, 0));
        assert_eq!(next(&events), Event::Reset { generation });
    }
    rig.kernel.detach(NAME);
    assert!(rig.state().exists());
    server.stop().unwrap();
    assert_eq!(rig.kernel.names(), [""; 0]);
    assert!(!rig.state().exists());
}

/// Linux, `vduse_dev_queue_irq_work`: interrupts are refused until the status that was
/// accepted holds, and libvduse takes no notice: a request that is answered before
/// that is never heard of.
#[test]
fn an_interrupt_that_comes_before_driver_ok_holds_is_not_lost() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let mut driver = rig.prepare();
    driver.ring.add(Io::Read {
        sector: 3,
        len: SECTOR,
    });
    rig.kernel.hold_status(NAME);
    assert!(rig.kernel.bring_up(NAME));
    // The request is found when the ring starts, and answered.
    assert!(settled(|| rig.kernel.refused(NAME, 0) > 1));
    assert_eq!(driver.ring.call.drain().unwrap(), 0);
    rig.kernel.release_status(NAME);
    let done = driver.ring.wait();
    assert_eq!((done.status, done.data), (0, content(3)));
    server.stop().unwrap();
}

/// virtio_vdpa maps its first buffer only after `DRIVER_OK`, and the kernel says so to
/// nobody.
#[test]
fn memory_that_comes_after_the_rings_is_found() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let mut driver = rig.prepare();
    // The rings are mapped, the buffers not yet.
    let all = driver.memory.len();
    let rings = || part(&driver, 0, 8192, 3);
    rig.kernel.set_regions(NAME, vec![rings()]);
    assert!(rig.kernel.bring_up(NAME));
    let both = vec![rings(), part(&driver, 8192, all, 3)];
    rig.kernel.set_regions(NAME, both);
    for sector in 0..20 {
        assert_eq!(driver.read(sector), content(sector));
    }
    server.stop().unwrap();
}

#[test]
fn an_address_that_is_nowhere_breaks_its_ring_alone() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let mut driver = rig.prepare();
    let mut other = DiskRing::new(
        &SharedMemory::new(room(1, 64), Gpa(1 << 30), Sealing::Fixed),
        1,
        64,
        NEEDED,
    );
    rig.kernel.ready(NAME, &other);
    let elsewhere = Arc::clone(other.memory());
    rig.kernel.map(NAME, &[&driver.memory, &elsewhere]);
    assert!(rig.kernel.bring_up(NAME));
    assert_eq!(driver.read(1), content(1));
    // The ring stays, its buffers go.
    let rings = RegionRecord {
        offset: 0,
        first: 1 << 30,
        last: (1 << 30) + 8191,
        access: 3,
        ..RegionRecord::default()
    };
    let whole = RegionRecord {
        first: 1 << 20,
        last: (1 << 20) + driver.memory.len() - 1,
        ..rings
    };
    let regions = vec![
        (whole, Arc::clone(&driver.memory)),
        (rings, Arc::clone(&elsewhere)),
    ];
    rig.kernel.set_regions(NAME, regions);
    assert!(rig.kernel.update_memory(NAME));
    other.add(Io::Read {
        sector: 1,
        len: SECTOR,
    });
    rig.kernel.kick(NAME, 1);
    for sector in 0..20 {
        assert_eq!(driver.read(sector), content(sector));
    }
    assert_eq!(other.poll(), None);
    // A reset heals it.
    assert!(rig.kernel.set_status(NAME, 0));
    other.reset(0);
    let mut driver = rig.drive();
    assert_eq!(driver.read(2), content(2));
    server.stop().unwrap();
}

#[test]
fn memory_changes_once_nothing_in_flight_uses_it() {
    let (rig, gate) = Rig::gated();
    let (server, _events) = rig.serve();
    let mut driver = rig.drive();
    driver.ring.add(Io::Read {
        sector: 0,
        len: SECTOR,
    });
    rig.kernel.kick(NAME, 0);
    gate.expect_kept(1);
    let kernel = Arc::clone(&rig.kernel);
    let update = std::thread::spawn(move || kernel.update_memory(NAME));
    assert!(!update.is_finished());
    gate.release(1);
    assert!(update.join().unwrap());
    assert_eq!(driver.ring.wait().status, 0);
    driver.ring.add(Io::Flush);
    rig.kernel.kick(NAME, 0);
    gate.expect_kept(1);
    gate.release(1);
    assert_eq!(driver.ring.wait().status, 0);
    server.stop().unwrap();
}

#[test]
fn what_is_in_flight_ends_before_a_reset_is_answered() {
    let (rig, gate) = Rig::gated();
    let (server, _events) = rig.serve();
    let mut driver = rig.drive();
    driver.ring.add(Io::Read {
        sector: 0,
        len: SECTOR,
    });
    rig.kernel.kick(NAME, 0);
    gate.expect_kept(1);
    let kernel = Arc::clone(&rig.kernel);
    let reset = std::thread::spawn(move || kernel.set_status(NAME, 0));
    assert!(!reset.is_finished());
    gate.release(1);
    assert!(reset.join().unwrap());
    assert_eq!(driver.ring.poll().unwrap().status, 0);
    server.stop().unwrap();
}

#[test]
fn where_a_ring_stands_is_told() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let mut driver = rig.drive();
    assert_eq!(rig.kernel.queue_state(NAME, 0), Some(0));
    for sector in 0..5 {
        driver.read(sector);
    }
    assert_eq!(rig.kernel.queue_state(NAME, 0), Some(5));
    assert_eq!(driver.read(9), content(9), "it goes on");
    assert_eq!(rig.kernel.queue_state(NAME, 1), Some(0), "never started");
    assert_eq!(rig.kernel.queue_state(NAME, 2), None);
    server.stop().unwrap();
}

#[test]
fn a_device_in_use_outlives_its_server_and_is_taken_over() {
    let rig = Rig::new();
    let (server, events) = rig.serve();
    rig.kernel.attach(NAME);
    let mut driver = rig.drive();
    assert_eq!(driver.read(1), content(1));
    server.stop().unwrap();
    assert_eq!(events.iter().count(), 2);
    assert_eq!(rig.kernel.names(), [NAME]);
    assert!(rig.state().exists() && !rig.kernel.is_served(NAME));
    // Meanwhile its driver goes on.
    driver.ring.add(Io::Read {
        sector: 2,
        len: SECTOR,
    });
    rig.kernel.kick(NAME, 0);
    let (server, events) = rig.serve();
    assert_eq!(next(&events), Event::TakenOver);
    assert_eq!(next(&events), Event::Running { generation: 1 });
    assert_eq!(driver.ring.wait().data, content(2));
    assert_eq!(driver.read(3), content(3));
    // A request that comes while nobody is there waits.
    server.stop().unwrap();
    let kernel = Arc::clone(&rig.kernel);
    let reset = std::thread::spawn(move || kernel.set_status(NAME, 0));
    let (server, events) = rig.serve();
    assert!(reset.join().unwrap());
    assert_eq!(next(&events), Event::TakenOver);
    rig.kernel.detach(NAME);
    server.stop().unwrap();
    assert_eq!(rig.kernel.names(), [""; 0]);
}

#[test]
fn a_device_in_use_is_not_taken_over_as_another_one() {
    let mut rig = Rig::new();
    let (server, _events) = rig.serve();
    rig.kernel.attach(NAME);
    let _driver = rig.drive();
    server.stop().unwrap();
    let saved = std::fs::read(rig.state()).unwrap();
    // With other queues, and then without what was written down.
    let device = Arc::clone(&rig.device);
    let image = GatedImage::new(SECTORS);
    rig.device = Arc::new(BlockDevice::new(image, 1, 256).unwrap());
    let refused = rig.try_serve().unwrap_err();
    assert!(matches!(
        refused,
        OpenError::CannotGoOn {
            reason: RestoreError::Offer(_),
            ..
        }
    ));
    assert_eq!(std::fs::read(rig.state()).unwrap(), saved, "it stays");
    rig.device = device;
    std::fs::remove_file(rig.state()).unwrap();
    let refused = rig.try_serve().unwrap_err();
    assert!(matches!(
        refused,
        OpenError::CannotGoOn {
            reason: RestoreError::Nothing,
            ..
        }
    ));
    assert!(!rig.state().exists());
    assert!(!rig.kernel.is_served(NAME));
    std::fs::write(rig.state(), saved).unwrap();
    let (server, _events) = rig.serve();
    assert!(rig.kernel.set_status(NAME, 0));
    rig.kernel.detach(NAME);
    server.stop().unwrap();
}

#[test]
fn a_device_that_nobody_uses_is_made_anew() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    rig.kernel.attach(NAME);
    server.stop().unwrap();
    assert_eq!(rig.kernel.names(), [NAME]);
    rig.kernel.detach(NAME);
    std::fs::remove_file(rig.state()).unwrap();
    let (server, events) = rig.serve();
    assert_eq!(next(&events), Event::Offered);
    server.stop().unwrap();
}

#[test]
fn two_servers_of_one_name_exclude_each_other() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let refused = rig.try_serve().unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    let other = Options {
        state: rig.folder.path().join("other"),
        ..rig.options()
    };
    let device = Arc::clone(&rig.device) as Arc<dyn Device>;
    let refused = vduse::serve(other, device, Arc::clone(&rig.workers), |_| {});
    assert!(matches!(refused, Err(OpenError::Kernel(Error::Served(_)))));
    server.stop().unwrap();
}

#[test]
fn a_broken_device_is_made_anew_once_it_is_off_the_bus() {
    let rig = Rig::new();
    let (server, events) = rig.serve();
    rig.kernel.attach(NAME);
    let mut driver = rig.drive();
    driver.read(1);
    rig.kernel.mark_broken(NAME);
    assert_eq!(next(&events), Event::Offered);
    assert_eq!(next(&events), Event::Running { generation: 1 });
    assert!(matches!(next(&events), Event::Broken { .. }));
    rig.kernel.detach(NAME);
    assert_eq!(next(&events), Event::Offered);
    let mut driver = rig.drive();
    assert_eq!(driver.read(4), content(4));
    server.stop().unwrap();
    assert_eq!(rig.kernel.names(), [""; 0]);
}

#[test]
fn a_device_that_was_broken_before_is_waited_for() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    rig.kernel.attach(NAME);
    server.stop().unwrap();
    rig.kernel.mark_broken(NAME);
    let (server, events) = rig.serve();
    assert!(matches!(next(&events), Event::Broken { .. }));
    rig.kernel.detach(NAME);
    assert_eq!(next(&events), Event::Offered);
    server.stop().unwrap();
    assert_eq!(rig.kernel.names(), [""; 0]);
}

#[test]
fn a_change_of_configuration_space_is_told() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let _driver = rig.drive();
    let before = rig.kernel.config(NAME).config;
    let image = std::fs::File::options()
        .write(true)
        .open(rig.folder.path().join("image"));
    image.unwrap().set_len(2 * SECTORS * SECTOR as u64).unwrap();
    rig.device.resize().unwrap();
    assert_eq!(rig.kernel.config(NAME).config, before);
    server.config_changed();
    assert!(settled(|| rig.kernel.config_interrupts(NAME) == 1));
    let capacity = (2 * SECTORS).to_le_bytes();
    assert_eq!(rig.kernel.config(NAME).config[..8], capacity);
    server.stop().unwrap();
}

/// Whatever the kernel says of a driver is checked.
#[test]
fn hostile_drivers_are_refused_and_the_next_one_is_served() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    // With addresses: a ring without any was never set up, and is left out.
    let whole = QueueInfo {
        size: 64,
        descriptor: 1 << 20,
        driver: (1 << 20) + 4096,
        device: (1 << 20) + 8192,
        ready: 1,
        ..QueueInfo::default()
    };
    let infos = [
        QueueInfo { size: 0, ..whole },
        QueueInfo { size: 3, ..whole },
        QueueInfo {
            size: 1 << 20,
            ..whole
        },
        // Nowhere, and at odd places.
        QueueInfo {
            descriptor: 8 << 40,
            ..whole
        },
        QueueInfo {
            descriptor: u64::MAX,
            ..whole
        },
        QueueInfo {
            descriptor: (1 << 20) + 1,
            ..whole
        },
    ];
    for info in infos {
        let _driver = rig.prepare();
        rig.kernel.set_info(NAME, 0, info);
        assert!(!rig.kernel.bring_up(NAME), "{info:?}");
        assert!(rig.kernel.set_status(NAME, 0));
    }
    let record = |first, last| RegionRecord {
        first,
        last,
        access: 3,
        ..RegionRecord::default()
    };
    for wrong in [
        record(0, u64::MAX),
        record(0, 1 << 40),
        record(u64::MAX - 4095, u64::MAX - 4096),
    ] {
        let driver = rig.prepare();
        let memory = Arc::clone(&driver.memory);
        rig.kernel.set_regions(NAME, vec![(wrong, memory)]);
        assert!(!rig.kernel.bring_up(NAME), "{wrong:?}");
        assert!(rig.kernel.set_status(NAME, 0));
    }
    let mut driver = rig.drive();
    assert_eq!(driver.read(0), content(0));
    server.stop().unwrap();
}

#[test]
fn a_kernel_without_vduse_says_so() {
    let rig = Rig::new();
    if Path::new("/dev/vduse/control").exists() {
        eprintln!("SKIP a_kernel_without_vduse_says_so: this kernel has it");
        return;
    }
    let options = Options {
        kernel: Arc::new(linkspan_sys::vduse::Linux),
        ..rig.options()
    };
    let device = Arc::clone(&rig.device) as Arc<dyn Device>;
    let refused = vduse::serve(options, device, Arc::clone(&rig.workers), |_| {});
    assert!(matches!(refused, Err(OpenError::Kernel(Error::NoVduse))));
    assert!(!rig.state().exists());
}

/// A region of the memory of a driver.
fn part(driver: &Driver, from: u64, to: u64, access: u8) -> (RegionRecord, Arc<SharedMemory>) {
    let record = RegionRecord {
        offset: from,
        first: (1 << 20) + from,
        last: (1 << 20) + to - 1,
        access,
        ..RegionRecord::default()
    };
    (record, Arc::clone(&driver.memory))
}

#[test]
fn what_a_driver_lets_us_only_read_is_not_written() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    // Neither rings nor buffers.
    let driver = rig.prepare();
    let all = driver.memory.len();
    rig.kernel.set_regions(NAME, vec![part(&driver, 0, all, 1)]);
    assert!(!rig.kernel.bring_up(NAME));
    assert!(rig.kernel.set_status(NAME, 0));
    let mut driver = rig.prepare();
    let parts = vec![part(&driver, 0, 8192, 3), part(&driver, 8192, all, 1)];
    rig.kernel.set_regions(NAME, parts);
    assert!(rig.kernel.bring_up(NAME));
    driver.ring.add(Io::Read {
        sector: 1,
        len: SECTOR,
    });
    rig.kernel.kick(NAME, 0);
    // The answer to this comes after the ring was given up.
    assert!(rig.kernel.update_memory(NAME));
    assert!(rig.kernel.set_status(NAME, 0));
    assert_eq!(driver.ring.poll(), None);
    let mut driver = rig.drive();
    assert_eq!(driver.read(1), content(1));
    server.stop().unwrap();
}

#[test]
fn memory_that_is_taken_back_breaks_its_rings_until_a_reset() {
    let rig = Rig::new();
    let (server, events) = rig.serve();
    let memory = SharedMemory::new(room(1, 64), Gpa(1 << 20), Sealing::Open);
    let mut ring = DiskRing::new(&memory, 0, 64, NEEDED);
    rig.kernel.accept(NAME, NEEDED);
    rig.kernel.ready(NAME, &ring);
    rig.kernel.map(NAME, &[&memory]);
    assert!(rig.kernel.bring_up(NAME));
    memory.truncate(0);
    ring.add(Io::Flush);
    rig.kernel.kick(NAME, 0);
    assert!(rig.kernel.set_status(NAME, 0));
    let mut driver = rig.drive();
    assert_eq!(driver.read(1), content(1));
    server.stop().unwrap();
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, Event::Broken { .. }))
    );
}

/// What the kernel asks and hears, and what was agreed upon, can be seen.
#[test]
fn each_message_of_the_kernel_is_said() {
    let rig = Rig::new();
    let (server, _events) = rig.serve();
    let mut driver = rig.drive();
    assert_eq!(driver.read(1), content(1));
    assert!(rig.kernel.update_memory(NAME));
    let view = server.endpoint().view();
    assert_eq!(view.features, Some(NEEDED));
    assert_eq!(view.rings.len(), 1);
    let said = server.endpoint().messages().last(0);
    let texts: Vec<_> = said
        .iter()
        .map(|it| (it.by_peer, it.text.as_str()))
        .collect();
    for (by_peer, start) in [
        (true, "VDUSE_SET_STATUS "),
        (false, "answer "),
        (true, "VDUSE_UPDATE_IOTLB "),
    ] {
        let is = |(by, text): &(bool, &str)| *by == by_peer && text.starts_with(start);
        assert!(texts.iter().any(is), "{start}: {texts:?}");
    }
    server.stop().unwrap();
}
