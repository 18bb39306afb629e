//! A vDPA device shown as a virtio function on a PCI bus, against a model of the kernel.

mod doorbells;
mod rest;

use std::sync::Arc;

use linkspan_engine::Workers;
use linkspan_mem::{Gpa, Iova};
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::vdpa::{BackendFeatures, Doorbell};
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::{SECTOR, expect_signal, room};
use linkspan_testkit::pci::{Client, Refused};
use linkspan_testkit::vdpa::{Card, Entropy, Machine, Quirks};
use linkspan_testkit::{DiskRing, Io, Served, SharedMemory, VirtioPci};
use linkspan_vfio::pci::{CONFIG, INTX, MSIX};
use linkspan_vfio::wire::{CAP_SPARSE_MMAP, REGION_MMAP, REGION_READ, REGION_WRITE};
use linkspan_virtio::Features;

/// With it a device tells nothing until its driver has said from where on.
const EVENT_IDX: u64 = Features::VIRTIO_F_EVENT_IDX.bits();
const RING_RESET: u64 = Features::VIRTIO_F_RING_RESET.bits();

fn disk(queues: u16) -> (Machine, Served) {
    of(queues, Quirks::default())
}

fn of(queues: u16, quirks: Quirks) -> (Machine, Served) {
    let machine = Machine::disk(queues, quirks);
    let served = Served::function(&machine, |_| {}).unwrap();
    (machine, served)
}

/// A device whose kernel cannot suspend it, as VDUSE.
fn plain() -> Quirks {
    Quirks {
        backend_features: BackendFeatures::IOTLB_MSG_V2,
        ..Quirks::default()
    }
}

fn connect(served: &Served) -> VirtioPci {
    VirtioPci::connect(&served.socket()).unwrap()
}

/// Writes a sector and reads it.
#[track_caller]
fn expect_works(driver: &VirtioPci, ring: &mut DiskRing, sector: u64) {
    let data = [u8::try_from(sector).unwrap() + 1; SECTOR];
    let write = Io::Write {
        sector,
        data: &data,
    };
    assert_eq!(asked(driver, ring, write).status, 0);
    let len = SECTOR;
    let read = asked(driver, ring, Io::Read { sector, len });
    assert_eq!((read.status, &read.data[..]), (0, &data[..]));
}

/// Asks, kicks by the doorbell and waits for the interrupt.
#[track_caller]
fn asked(driver: &VirtioPci, ring: &mut DiskRing, io: Io<'_>) -> linkspan_testkit::disk::Done {
    ring.add(io);
    driver.kick(ring.index());
    ring.wait()
}

/// The next client is served as if nothing had happened.
#[track_caller]
fn expect_serves(served: &Served) {
    let mut driver = connect(served);
    let mut rings = driver.bring_up(1);
    expect_works(&driver, &mut rings[0], 9);
}

#[test]
fn a_driver_writes_reads_and_comes_back() {
    for quirks in [Quirks::default(), plain()] {
        let (machine, served) = of(2, quirks);
        for round in 0..3 {
            let mut driver = connect(&served);
            assert_eq!(driver.queues(), 2);
            let mut rings = driver.bring_up(2);
            for ring in &mut rings {
                expect_works(&driver, ring, round);
            }
            assert!(machine.is_live());
            driver.reset();
            assert!(!machine.is_live());
            // Again on the same connection.
            let mut rings = driver.bring_up_again(rings);
            expect_works(&driver, &mut rings[0], round + 10);
            drop(driver);
            let (reason, fault) = served.next_end();
            assert!(!fault, "{reason}");
            assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
        }
        served.stop();
        assert!(machine.is_empty());
    }
}

/// The driver dies with requests under way: the next one finds a device at rest.
#[test]
fn a_client_that_leaves_at_once_leaves_nothing() {
    let (machine, served) = disk(2);
    for _ in 0..3 {
        let mut driver = connect(&served);
        let mut rings = driver.bring_up(2);
        rings[0].add(Io::Flush);
        driver.kick(0);
        drop(driver);
        served.next_end();
        assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
    }
    expect_serves(&served);
    served.stop();
    assert!(machine.is_empty());
}

/// Only kicks come here, and they are no calls of the kernel's; interrupts go from the
/// device to the client.
#[test]
fn the_data_path_makes_no_call_of_the_device() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let mut rings = driver.bring_up(1);
    machine.calls();
    for number in 0..300 {
        let len = SECTOR;
        let sector = number;
        asked(&driver, &mut rings[0], Io::Read { sector, len });
    }
    assert_eq!(machine.calls(), Vec::<String>::new());
}

/// All maps of before the start are one batch, and what comes with the driver running
/// is mapped at once.
#[test]
fn memory_is_mapped_with_the_start_and_under_running_rings() {
    for quirks in [Quirks::default(), plain()] {
        let (machine, served) = of(1, quirks);
        let mut driver = connect(&served);
        let more = SharedMemory::new(1 << 16, Gpa(0x100_0000), Sealing::Fixed);
        for _ in 0..5 {
            driver.client.map(&more).unwrap();
            driver.client.unmap(&more).unwrap();
        }
        driver.client.map(&more).unwrap();
        assert!(machine.mapped().is_empty());
        machine.calls();
        let mut rings = driver.bring_up(1);
        assert_eq!(machine.mapped().len(), 2);
        let begins = machine.calls();
        let batches = begins
            .iter()
            .filter(|call| call.starts_with("IOTLB_BATCH_B"));
        assert!(batches.count() <= 1, "{begins:?}");
        for _ in 0..3 {
            driver.client.unmap(&more).unwrap();
            assert_eq!(machine.mapped().len(), 1);
            expect_works(&driver, &mut rings[0], 1);
            driver.client.map(&more).unwrap();
            assert!(machine.mapped().contains(&(0, 0x100_0000, 1 << 16)));
            expect_works(&driver, &mut rings[0], 2);
        }
        // A map that the kernel refuses is refused, and nothing else is lost.
        driver.client.unmap(&more).unwrap();
        machine.refuse("IOTLB_UPDATE 0 0x1000000", 12);
        assert_eq!(driver.client.map(&more), Err(Refused::Errno(12)));
        machine.allow();
        expect_works(&driver, &mut rings[0], 3);
        driver.client.map(&more).unwrap();
    }
}

/// A VMM that changes one page of its guest's address space takes back the memory around it,
/// rings too, and gives it anew under running rings: nothing is lost, nothing is done
/// twice, and nobody finds out.
#[test]
fn rings_that_lose_their_memory_for_a_moment_go_on() {
    for quirks in [Quirks::default(), plain()] {
        let (machine, served) = of(2, quirks);
        let mut driver = connect(&served);
        let mut rings = driver.bring_up(2);
        let memory = Arc::clone(rings[0].memory());
        for round in 0..10 {
            for ring in &mut rings {
                expect_works(&driver, ring, round);
            }
            rings[0].add(Io::Read {
                sector: round,
                len: SECTOR,
            });
            if round % 2 == 0 {
                driver.kick(0);
            }
            driver.client.unmap(&memory).unwrap();
            assert!(!machine.is_live() && machine.mapped().is_empty());
            // It is for nobody to kick meanwhile.
            driver.kick(0);
            driver.client.map(&memory).unwrap();
            assert!(machine.is_live());
            assert_eq!(rings[0].wait().status, 0);
        }
        assert_eq!(driver.status(), 15);
        // It may never come again, and then the driver may begin anew.
        driver.client.unmap(&memory).unwrap();
        assert_eq!(driver.status(), 15);
        driver.reset();
        assert_eq!(driver.status(), 0);
        let mut rings = driver.bring_up(1);
        expect_works(&driver, &mut rings[0], 1);
        // And one that does not start again is broken.
        let memory = Arc::clone(rings[0].memory());
        driver.client.unmap(&memory).unwrap();
        machine.refuse("SET_STATUS 15", 5);
        driver.client.map(&memory).unwrap();
        machine.allow();
        assert_eq!(driver.status(), 15 | 64);
    }
}

/// A device that could go on with memory which is not its any more is stopped, and its
/// driver finds out.
#[test]
fn memory_that_cannot_be_taken_back_costs_the_device() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    driver.set_config_vector(0);
    let changed = EventFd::new().unwrap();
    let more = SharedMemory::new(1 << 16, Gpa(0x100_0000), Sealing::Fixed);
    driver.client.map(&more).unwrap();
    let mut rings = driver.bring_up(1);
    driver.client.set_events(MSIX, 0, &[&changed]).unwrap();
    driver.set_config_vector(0);
    expect_works(&driver, &mut rings[0], 1);
    machine.refuse("IOTLB_INVALIDATE 0 0x1000000", 5);
    driver.client.unmap(&more).unwrap();
    machine.allow();
    assert!(!machine.is_live() && machine.mapped().is_empty());
    expect_signal(&changed, "the driver was not told");
    assert_eq!(driver.status() & 64, 64);
    // It is opened anew.
    let mut rings = driver.bring_up_again(rings);
    expect_works(&driver, &mut rings[0], 2);
}

/// Ranges of devices and firmware come without descriptors, and some memory is where
/// the device does not reach.
#[test]
fn ranges_that_are_no_memory_of_the_device_are_left_out() {
    let (machine, served) = of(
        1,
        Quirks {
            iova: (Iova(0), Iova(0xff_ffff)),
            ..Quirks::default()
        },
    );
    let mut driver = connect(&served);
    driver.client.map_range(0xf000_0000, 0x1000, None).unwrap();
    let far = SharedMemory::new(1 << 16, Gpa(0x100_0000), Sealing::Fixed);
    driver.client.map(&far).unwrap();
    let across = SharedMemory::new(1 << 16, Gpa(0xff_8000), Sealing::Fixed);
    // Not that part either which it would reach.
    driver.client.unmap(&far).unwrap();
    driver.client.map(&across).unwrap();
    let odd = SharedMemory::new(1 << 16, Gpa(0x80_0200), Sealing::Fixed);
    driver.client.map(&odd).unwrap();
    let mut rings = driver.bring_up(1);
    assert_eq!(machine.mapped().len(), 1);
    expect_works(&driver, &mut rings[0], 1);
    driver.client.unmap(&across).unwrap();
    expect_works(&driver, &mut rings[0], 2);
    // Overlaps are refused, and the same once more is nothing new.
    driver.client.map(rings[0].memory()).unwrap();
    let over = SharedMemory::new(1 << 12, Gpa(0x10_0000), Sealing::Fixed);
    assert_eq!(driver.client.map(&over), Err(Refused::Errno(17)));
    assert_eq!(machine.mapped().len(), 1);
}

#[test]
fn vectors_are_wired_and_wired_anew_without_a_loss() {
    let (machine, served) = disk(2);
    let mut driver = connect(&served);
    driver.without = EVENT_IDX;
    let mut rings = driver.bring_up(2);
    expect_works(&driver, &mut rings[0], 1);
    for round in 0..20_u64 {
        rings[0].add(Io::Read {
            sector: round,
            len: SECTOR,
        });
        driver.kick(0);
        // Its answer goes here, there, or nowhere.
        if round % 2 == 0 {
            driver.client.unset_event(MSIX, 1).unwrap();
        }
        rings[0].call = EventFd::new().unwrap();
        let call = &rings[0].call;
        driver.client.set_events(MSIX, 1, &[call]).unwrap();
        expect_signal(call, "it was not signalled");
        rings[0].wait();
    }
    // Both queues share one vector, and one is moved to it by its driver.
    let both = EventFd::new().unwrap();
    driver.client.set_events(MSIX, 2, &[&both]).unwrap();
    driver.set_vector(0, 2);
    both.drain().unwrap();
    for ring in &mut rings {
        ring.add(Io::Flush);
        driver.kick(ring.index());
        expect_signal(&both, "one of two");
        assert!(settled(|| ring.poll().is_some()));
        both.drain().unwrap();
    }
    // A vector that does not exist is none, and then nobody is told.
    driver.set_vector(0, 9);
    assert_eq!(driver.vector(0), 0xffff);
    rings[0].add(Io::Flush);
    driver.kick(0);
    assert!(settled(|| rings[0].poll().is_some()));
    assert_eq!(both.drain().unwrap(), 0);
    let refused = driver.client.set_events(MSIX, 3, &[&both]);
    assert!(matches!(refused, Err(Refused::Errno(_))), "of three");
    assert!(machine.is_live());
}

/// A driver without MSI-X: the line is held until it has read why.
#[test]
fn the_line_interrupts_until_its_reason_was_read() {
    let (machine, served) = disk(2);
    let mut driver = connect(&served);
    driver.without = EVENT_IDX;
    let line = EventFd::new().unwrap();
    driver.client.set_events(INTX, 0, &[&line]).unwrap();
    let memory = SharedMemory::new(room(2, 64), Gpa(0x10_0000), Sealing::Fixed);
    driver.client.map(&memory).unwrap();
    assert!(driver.negotiate());
    let mut rings: Vec<_> = (0..2)
        .map(|ring| DiskRing::new(&memory, ring, 64, driver.features()))
        .collect();
    for ring in &rings {
        driver.enable(ring, 0xffff);
    }
    assert!(driver.start());
    for round in 0..5 {
        for ring in &mut rings {
            ring.add(Io::Read {
                sector: round,
                len: SECTOR,
            });
            driver.kick(ring.index());
            expect_signal(&line, "no interrupt");
            // It masked itself, and comes again as long as nobody has read why.
            line.drain().unwrap();
            driver.client.mask(INTX, false).unwrap();
            expect_signal(&line, "it is level-triggered");
            line.drain().unwrap();
            assert!(settled(|| ring.poll().is_some()));
            assert_eq!(driver.isr(), 1);
            assert_eq!(driver.isr(), 0);
            driver.client.mask(INTX, false).unwrap();
            assert_eq!(line.drain().unwrap(), 0);
        }
    }
    machine.config_changed();
    expect_signal(&line, "configuration changed");
    assert_eq!(driver.isr(), 2);
    driver.client.mask(INTX, false).unwrap();
    // By its command register a driver has none of it.
    driver.client.write(CONFIG, 4, &[6, 4]).unwrap();
    line.drain().unwrap();
    machine.config_changed();
    let before = driver.generation();
    assert_eq!(line.drain().unwrap(), 0);
    driver.client.write(CONFIG, 4, &[6, 0]).unwrap();
    expect_signal(&line, "it is still the case");
    machine.config_changed();
    assert_eq!(driver.generation(), (before + 1) % 256);
}

#[test]
fn changes_of_configuration_reach_the_driver_and_writes_the_device() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let rings = driver.bring_up(1);
    let before = driver.generation();
    machine.config_changed();
    assert!(settled(|| driver.generation() != before));
    // Nobody could be told; who listens now is.
    driver.set_config_vector(0);
    let changed = EventFd::new().unwrap();
    driver.client.set_events(MSIX, 0, &[&changed]).unwrap();
    expect_signal(&changed, "it was forgotten");
    changed.drain().unwrap();
    machine.config_changed();
    expect_signal(&changed, "it changed");
    // Read each time, in any width, and only written bytes are written.
    machine.calls();
    assert_eq!(driver.config(0, 8), 4096_u64.to_le_bytes());
    assert_eq!(machine.calls(), ["GET_CONFIG 8 at 0"]);
    assert_eq!(driver.config(0, 60).len(), 60);
    driver.write_config(32, &[0]);
    let calls = machine.calls();
    assert_eq!(calls.last().unwrap(), "SET_CONFIG [00] at 32");
    drop(rings);
}

#[test]
fn one_queue_is_reset_while_the_other_goes_on() {
    let (machine, served) = disk(2);
    let mut driver = connect(&served);
    let mut rings = driver.bring_up(2);
    assert_ne!(driver.features() & RING_RESET, 0);
    // The device has no part in it.
    assert_eq!(machine.accepted() & RING_RESET, 0);
    for round in 0..3 {
        for ring in &mut rings {
            expect_works(&driver, ring, round);
        }
        driver.reset_queue(0);
        expect_works(&driver, &mut rings[1], round + 5);
        let memory = Arc::clone(rings[0].memory());
        if round < 2 {
            let call = std::mem::replace(&mut rings[0], ring_of(&memory, &driver)).call;
            rings[0].call = call;
            driver.enable(&rings[0], 1);
        }
    }
    assert!(machine.is_live());
    // Where nobody says where the others are it is not offered.
    let (_machine, served) = of(2, plain());
    assert_eq!(connect(&served).offered() & RING_RESET, 0);
}

/// Another ring 0 in what is left of the memory, which is enough for a few.
fn ring_of(memory: &Arc<SharedMemory>, driver: &VirtioPci) -> DiskRing {
    DiskRing::new(memory, 0, 2, driver.features())
}

/// QEMU bc85aae420: a start that failed was success.
#[test]
fn a_start_that_fails_is_a_device_that_needs_a_reset() {
    for (call, quirks) in [
        ("SET_STATUS 15", Quirks::default()),
        ("SET_VRING_NUM", plain()),
        ("SET_VRING_Call", plain()),
        ("SET_CONFIG_CALL true", plain()),
        ("IOTLB_UPDATE", plain()),
    ] {
        let (machine, served) = of(1, quirks);
        let mut driver = connect(&served);
        let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
        driver.client.map(&memory).unwrap();
        machine.refuse(call, 5);
        let rings = driver.start_on(&memory, 1);
        assert_eq!(driver.status(), 15 | 64, "{call}");
        assert!(!machine.is_live());
        machine.allow();
        drop(rings);
        drop(driver);
        expect_serves(&served);
        served.stop();
        assert!(machine.is_empty());
    }
}

/// Every call of a device that comes up fails in turn: nothing of the driver's stays in
/// the device, and the next client is served.
#[test]
fn each_call_of_a_start_fails_in_turn() {
    let (machine, served) = disk(1);
    let mut failed = 0;
    for nth in 1.. {
        assert!(nth < 100, "it does not end");
        let mut driver = connect(&served);
        let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
        driver.client.map(&memory).unwrap();
        machine.fail_call(nth, 5);
        let agreed = driver.negotiate();
        if agreed {
            let ring = DiskRing::new(&memory, 0, 64, driver.features());
            driver.enable(&ring, 1);
            driver.start();
        }
        let all = !machine.has_failed();
        machine.fail_call(0, 0);
        let up = agreed && driver.status() == 15;
        failed += usize::from(!up);
        assert!(up || !machine.is_live());
        assert!(up || !all, "nothing failed");
        drop(driver);
        served.next_end();
        assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
        expect_serves(&served);
        served.next_end();
        if all {
            break;
        }
    }
    assert!(failed > 10, "{failed}");
    served.stop();
    assert!(machine.is_empty());
}

#[test]
fn features_that_the_device_refuses_are_not_agreed_upon() {
    let refuses_features = true;
    let (machine, served) = of(
        1,
        Quirks {
            refuses_features,
            ..Quirks::default()
        },
    );
    let mut driver = connect(&served);
    assert!(!driver.negotiate());
    assert_eq!(driver.status(), 3);
    assert!(!machine.is_live());
}

/// The device demands that memory is mapped for it; a driver that does not know of
/// that has its memory mapped all the same.
#[test]
fn the_device_knows_of_mappings_though_the_driver_does_not() {
    let platform = Features::VIRTIO_F_ACCESS_PLATFORM.bits();
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    driver.without = platform;
    assert!(driver.negotiate());
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
    driver.client.map(&memory).unwrap();
    let mut ring = DiskRing::new(&memory, 0, 64, driver.features());
    driver.client.set_events(MSIX, 0, &[&ring.call]).unwrap();
    driver.enable(&ring, 0);
    assert!(driver.start());
    assert_eq!(machine.accepted() & platform, platform);
    expect_works(&driver, &mut ring, 3);
}

#[test]
fn a_ring_outside_the_memory_does_not_start() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
    // It is not shared at all.
    machine.calls();
    let rings = driver.start_on(&memory, 1);
    assert_eq!(driver.status() & 64, 64);
    let calls = machine.calls();
    assert!(!calls.iter().any(|call| call.starts_with("SET_VRING_ADDR")));
    driver.client.map(&memory).unwrap();
    drop(rings);
    let memory = SharedMemory::new(room(1, 64), Gpa(0x800_0000), Sealing::Fixed);
    driver.client.map(&memory).unwrap();
    let mut rings = driver.start_on(&memory, 1);
    expect_works(&driver, &mut rings[0], 1);
}

/// A device that breaks says so to its driver, which resets it.
#[test]
fn a_device_that_breaks_is_told_and_comes_back_by_a_reset() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let changed = EventFd::new().unwrap();
    let mut rings = driver.bring_up(1);
    driver.client.set_events(MSIX, 0, &[&changed]).unwrap();
    driver.set_config_vector(0);
    for _ in 0..2 {
        machine.break_device();
        expect_signal(&changed, "the driver was not told");
        assert_eq!(driver.status() & 64, 64);
        rings = driver.bring_up_again(rings);
        expect_works(&driver, &mut rings[0], 1);
        driver.set_config_vector(0);
        changed.drain().unwrap();
    }
    // It was gone, and is back.
    machine.break_device();
    machine.refuse("SET_STATUS 0", 5);
    driver.set::<1>(20, 0);
    machine.allow();
    assert_eq!(driver.status(), 0);
    let mut rings = driver.bring_up_again(rings);
    expect_works(&driver, &mut rings[0], 2);
}

/// The client's reset is that of the bus: all registers are as new.
#[test]
fn a_reset_of_the_function_leaves_nothing_of_its_driver() {
    let (machine, served) = disk(2);
    let mut driver = connect(&served);
    let rings = driver.bring_up(2);
    assert!(machine.is_live());
    driver.client.reset().unwrap();
    assert!(!machine.is_live());
    assert_eq!(driver.status(), 0);
    assert_eq!((driver.vector(0), driver.vector(1)), (0xffff, 0xffff));
    let command = driver.client.read(CONFIG, 4, 2).unwrap();
    assert_eq!(command, [0, 0]);
    driver.use_memory(true);
    let mut rings = driver.bring_up_again(rings);
    expect_works(&driver, &mut rings[0], 4);
}

/// The client takes its memory back (hostile-peer rule 1).
#[test]
fn memory_that_shrinks_ends_the_connection() {
    let (machine, served) = disk(1);
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Open);
    let mut driver = connect(&served);
    driver.client.map(&memory).unwrap();
    let mut rings = driver.start_on(&memory, 1);
    expect_works(&driver, &mut rings[0], 1);
    memory.truncate(0);
    // The device meets it with its next look.
    let _ = driver.client.post_write(2, 0, &[0, 0]);
    let (reason, fault) = served.next_end();
    assert!(fault && reason.contains("took back"), "{reason}");
    assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
    expect_serves(&served);
}

/// Kicks by writes that nobody answers, as the protocol's cheapest message.
#[test]
fn kicks_need_no_reply() {
    let (_machine, served) = disk(1);
    let mut driver = connect(&served);
    let mut rings = driver.bring_up(1);
    let (bar, at) = driver.doorbell(0);
    for sector in 0..50 {
        let len = SECTOR;
        rings[0].add(Io::Read { sector, len });
        driver.client.post_write(bar, at, &[0, 0]).unwrap();
        rings[0].wait();
    }
    // One of four bytes is one, and what is none does no harm.
    rings[0].add(Io::Flush);
    driver.client.post_write(bar, at + 2, &[0, 0]).unwrap();
    driver.client.post_write(bar, at + 1, &[0]).unwrap();
    driver.client.post_write(bar, at, &[0; 4]).unwrap();
    rings[0].wait();
}

/// Where in configuration space the window is.
fn window(client: &Client) -> u64 {
    let space = client.read(CONFIG, 0, 256).unwrap();
    let mut at = usize::from(space[0x34]);
    while space[at] != 9 || space[at + 3] != 5 {
        at = space[at + 1].into();
    }
    at as u64
}

/// Has it lead somewhere.
fn lead(client: &Client, at: u64, bar: u8, offset: u32, len: u32) {
    client.write(CONFIG, at + 4, &[bar]).unwrap();
    client.write(CONFIG, at + 8, &offset.to_le_bytes()).unwrap();
    client.write(CONFIG, at + 12, &len.to_le_bytes()).unwrap();
}

/// A driver that cannot reach BARs reaches them from configuration space (virtio 1.3,
/// 4.1.4.9).
#[test]
fn registers_are_reached_through_the_window_too() {
    let (_machine, served) = disk(3);
    let client = Client::connect(&served.socket()).unwrap();
    let at = window(&client);
    // How many queues there are; the status.
    lead(&client, at, 0, 18, 2);
    assert_eq!(client.read(CONFIG, at + 16, 2).unwrap(), [3, 0]);
    lead(&client, at, 0, 20, 1);
    client.write(CONFIG, at + 16, &[1]).unwrap();
    assert_eq!(client.read(CONFIG, at + 16, 4).unwrap(), [1, 0, 0, 0]);
    assert_eq!(client.read(0, 20, 1).unwrap(), [1]);
    // Where nothing is there is what was written.
    lead(&client, at, 5, 0, 4);
    client.write(CONFIG, at + 16, &[1; 4]).unwrap();
    assert_eq!(client.read(CONFIG, at + 16, 4).unwrap(), [1; 4]);
}

/// The pages of the device, in the client's own process: a kick is a store.
#[test]
fn doorbells_are_mapped_from_the_device_if_they_are_shared() {
    let doorbells = Quirks {
        doorbells: true,
        ..Quirks::default()
    };
    let machine = Machine::disk(2, doorbells.clone());
    let served = Served::function(&machine, |device| {
        assert!(device.share_doorbells().unwrap());
    });
    let served = served.unwrap();
    let mut driver = connect(&served);
    let (info, body, files) = driver.client.region(2).unwrap();
    let flags = REGION_WRITE | REGION_MMAP;
    assert_eq!(info.flags & (flags | REGION_READ), flags);
    // Two pages, whose places in the file are those in the BAR.
    let words: Vec<u64> = body[32..]
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words[0] & 0xffff, u64::from(CAP_SPARSE_MMAP));
    assert_eq!(words[1..], [2, 0, 0x1000, 0x1000, 0x1000]);
    assert_eq!(info.offset, 0);
    let mut rings = driver.bring_up(2);
    for ring in 0..2 {
        let page = Doorbell::map(&files[0], ring).unwrap();
        // As each ring is when it starts.
        assert!(machine.kicked(ring) && !machine.kicked(ring));
        page.kick();
        assert!(machine.kicked(ring));
    }
    // A message does it too.
    driver.kick(1);
    assert!(machine.kicked(1));
    rings[0].add(Io::Flush);
    driver.kick(0);
    machine.take_kick(0);
    rings[0].wait();
    drop((driver, served));
    // Without being asked for nobody has the device's file.
    let machine = Machine::disk(2, doorbells);
    let served = Served::function(&machine, |_| {}).unwrap();
    let driver = connect(&served);
    let (info, _, files) = driver.client.region(2).unwrap();
    assert_eq!((info.flags & REGION_MMAP, files.len()), (0, 0));
    // And who has no such pages cannot share them.
    let machine = Machine::disk(2, Quirks::default());
    let none = Served::function(&machine, |device| {
        assert!(!device.share_doorbells().unwrap());
    });
    drop(none);
}

/// A device type that no front end of vhost-user has: entropy.
#[test]
fn a_device_type_without_a_front_end_runs() {
    let workers = Arc::new(Workers::new(1).unwrap());
    let machine = Machine::new(Arc::new(Entropy), workers, Quirks::default());
    let served = Served::function(&machine, |device| {
        let identity = device.identity();
        assert_eq!((identity.device, identity.class), (0x1044, 0xff_0000));
    });
    let served = served.unwrap();
    let mut driver = connect(&served);
    let space = driver.client.read(CONFIG, 0, 16).unwrap();
    assert_eq!(space[..4], [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(space[9..12], [0, 0, 0xff]);
    let mut rings = driver.bring_up(1);
    // To this device it is a request for bytes.
    let done = asked(&driver, &mut rings[0], Io::GetId);
    assert_eq!(done.data[..4], [1, 2, 3, 4]);
}

/// All queues of a network card are the driver's, its control queue too: no command of
/// ours, and no address space of its own.
#[test]
fn a_card_has_its_control_queue_from_its_driver() {
    let features = 1 << 17 | 1 << 22 | 1 << 23 | 1 << 5;
    let card = Arc::new(Card::new(2, features));
    let workers = Arc::new(Workers::new(1).unwrap());
    let device = Arc::clone(&card) as Arc<dyn linkspan_engine::Device>;
    let machine = Machine::new(device, workers, Quirks::default());
    let served = Served::function(&machine, |_| {}).unwrap();
    let mut driver = connect(&served);
    assert_eq!(
        (driver.queues(), driver.offered() & features),
        (5, features)
    );
    let mut rings = driver.bring_up(5);
    assert_eq!(machine.accepted() & features, features);
    assert_eq!(card.commands(), Vec::<Vec<u8>>::new());
    rings[4].add(Io::Flush);
    driver.kick(4);
    assert!(settled(|| !card.commands().is_empty()));
    assert_eq!(driver.config(0, 6), [2, 0, 0, 0, 0, 1]);
}

/// What a VMM says, accesses to registers while somebody watches, and what becomes calls of
/// the device.
#[test]
fn messages_and_calls_are_said() {
    let (_machine, served) = disk(1);
    let messages = Arc::clone(served.server().endpoint().messages());
    let texts = || {
        let said = messages.last(0).into_iter();
        said.map(|it| it.text).collect::<Vec<_>>()
    };
    let has = |start: &str| texts().iter().any(|text| text.starts_with(start));
    let driver = connect(&served);
    assert!(has("VFIO_USER_VERSION: 0.") && has("VFIO_USER_VERSION reply: 0."));
    // Nobody watched until now.
    assert!(!has("VFIO_USER_REGION_"));
    drop(driver);
    served.next_end();
    messages.watch();
    let driver = connect(&served);
    assert!(has("VFIO_USER_REGION_READ: region "));
    assert!(has("VFIO_USER_REGION_READ reply: region "));
    drop(driver);
    served.next_end();
    served.stop();
}
