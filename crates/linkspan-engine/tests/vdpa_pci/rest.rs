//! When a device is at rest: while its function may not use memory, once it has to be
//! reset, and after a reset of the function, of which nothing of before is left.

use std::sync::Arc;

use linkspan_mem::Gpa;
use linkspan_sys::EventFd;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::{SECTOR, expect_signal, room};
use linkspan_testkit::logs;
use linkspan_testkit::pci::Refused;
use linkspan_testkit::vdpa::Quirks;
use linkspan_testkit::{Io, SharedMemory};
use linkspan_vfio::message::Command;
use linkspan_vfio::pci::{CONFIG, INTX, MSIX};

use super::{connect, disk, expect_serves, expect_works, lead, of, plain, ring_of, window};

/// A VMM that shares no memory by descriptor cannot have a device of the kernel: its driver
/// reads that it needs a reset, as often as it tries, and nothing was mapped.
#[test]
fn memory_without_a_descriptor_is_refused_by_name() {
    logs::capture();
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let size = room(1, 64);
    driver.client.map_range(0x10_0000, size, None).unwrap();
    for _ in 0..2 {
        let memory = SharedMemory::new(size, Gpa(0x10_0000), Sealing::Fixed);
        driver.start_on(&memory, 1);
        assert_eq!(driver.status(), 15 | 64);
        assert!(machine.mapped().is_empty() && !machine.is_live());
    }
    logs::expect_line(&["WARN", "did not come with a file"]);
    // With one it is a disk.
    driver.reset();
    let size = u32::try_from(size).unwrap();
    let body = [24, 0, 0x10_0000, 0, size, 0]
        .map(u32::to_ne_bytes)
        .concat();
    driver.client.ask(Command::DmaUnmap, &body, &[]).unwrap();
    let mut rings = driver.bring_up(1);
    expect_works(&driver, &mut rings[0], 1);
    drop(driver);
    served.stop();
    assert!(machine.is_empty());
}

/// A device that was suspended for a map and does not go on is closed, with the memory that
/// was refused; its driver finds out, and the memory of the others can go.
#[test]
fn a_device_that_does_not_go_on_after_a_map_is_given_up() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let changed = EventFd::new().unwrap();
    let more = SharedMemory::new(1 << 16, Gpa(0x100_0000), Sealing::Fixed);
    let mut rings = driver.bring_up(1);
    driver.client.set_events(MSIX, 0, &[&changed]).unwrap();
    driver.set_config_vector(0);
    for _ in 0..2 {
        expect_works(&driver, &mut rings[0], 1);
        machine.refuse("RESUME", 5);
        assert_eq!(driver.client.map(&more), Err(Refused::Errno(12)));
        machine.allow();
        assert!(!machine.is_live() && machine.mapped().is_empty());
        expect_signal(&changed, "the driver was not told");
        changed.drain().unwrap();
        assert_eq!(driver.status(), 15 | 64);
        // Memory comes and goes as it does of a device at rest.
        driver.client.map(&more).unwrap();
        driver.client.unmap(&more).unwrap();
        assert!(machine.mapped().is_empty());
        rings = driver.bring_up_again(rings);
        driver.set_config_vector(0);
    }
    // The same where memory is taken back.
    driver.client.map(&more).unwrap();
    machine.refuse("RESUME", 5);
    driver.client.unmap(&more).unwrap();
    machine.allow();
    assert!(!machine.is_live() && machine.mapped().is_empty());
    expect_signal(&changed, "the driver was not told");
    assert_eq!(driver.status(), 15 | 64);
    drop(driver);
    expect_serves(&served);
    served.stop();
    assert!(machine.is_empty());
}

/// The window of the one before would have the next one's look at configuration space take
/// its ISR status back.
#[test]
fn a_reset_and_a_disconnect_close_the_window() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let mut rings = driver.bring_up(1);
    for reset in [true, false] {
        let at = window(&driver.client);
        lead(&driver.client, at, 0, 0x1000, 1);
        if reset {
            driver.client.reset().unwrap();
            driver.use_memory(true);
            rings = driver.bring_up_again(rings);
        } else {
            drop(driver);
            driver = connect(&served);
            rings = driver.bring_up(1);
        }
        let before = driver.generation();
        machine.config_changed();
        assert!(settled(|| driver.generation() != before));
        driver.client.read(CONFIG, 0, 256).unwrap();
        assert_eq!(driver.isr() & 2, 2, "reset: {reset}");
    }
    expect_works(&driver, &mut rings[0], 1);
}

/// The guest of after a reset would be interrupted by what the one before did not see.
#[test]
fn a_reset_of_the_function_lets_the_line_down() {
    let (machine, served) = disk(1);
    let mut driver = connect(&served);
    let rings = driver.bring_up(1);
    driver.use_msix(false);
    let line = EventFd::new().unwrap();
    driver.client.set_events(INTX, 0, &[&line]).unwrap();
    machine.config_changed();
    expect_signal(&line, "configuration changed");
    line.drain().unwrap();
    driver.client.reset().unwrap();
    driver.client.mask(INTX, false).unwrap();
    assert_eq!(line.drain().unwrap(), 0);
    drop(rings);
}

/// Bus master, as the command register has it: without it the device is at rest, and goes
/// on where it was.
#[test]
fn a_function_that_may_not_use_memory_does_not() {
    for quirks in [Quirks::default(), plain()] {
        let (machine, served) = of(2, quirks);
        let mut driver = connect(&served);
        let mut rings = driver.bring_up(2);
        let memory = Arc::clone(rings[0].memory());
        for round in 0..5 {
            for ring in &mut rings {
                expect_works(&driver, ring, round);
            }
            driver.use_memory(false);
            assert!(!machine.is_live());
            rings[0].add(Io::Read {
                sector: round,
                len: SECTOR,
            });
            driver.kick(0);
            // Memory that comes back is not leave to use it.
            driver.client.unmap(&memory).unwrap();
            driver.client.map(&memory).unwrap();
            assert!(!machine.is_live());
            driver.use_memory(true);
            assert!(machine.is_live());
            assert_eq!(rings[0].wait().status, 0);
        }
        assert_eq!(driver.status(), 15);
        // Nor is memory the leave to begin.
        driver.reset();
        driver.use_memory(false);
        let mut rings = driver.bring_up_again(rings);
        assert!(!machine.is_live());
        rings[1].add(Io::Flush);
        driver.kick(1);
        driver.use_memory(true);
        assert_eq!(rings[1].wait().status, 0);
        for ring in &mut rings {
            expect_works(&driver, ring, 7);
        }
        // A device that needs a reset does not come back by it.
        driver.use_memory(false);
        driver.use_memory(true);
        machine.break_device();
        assert!(settled(|| driver.status() & 64 != 0));
        driver.use_memory(false);
        driver.use_memory(true);
        assert!(!machine.is_live());
        let mut rings = driver.bring_up_again(rings);
        expect_works(&driver, &mut rings[0], 8);
    }
}

/// One that is reset meanwhile begins anew, and the others go on.
#[test]
fn a_queue_is_reset_while_the_function_may_not_use_memory() {
    let (machine, served) = disk(2);
    let mut driver = connect(&served);
    let mut rings = driver.bring_up(2);
    for ring in &mut rings {
        expect_works(&driver, ring, 1);
    }
    driver.use_memory(false);
    driver.reset_queue(0);
    let memory = Arc::clone(rings[0].memory());
    let call = std::mem::replace(&mut rings[0], ring_of(&memory, &driver)).call;
    rings[0].call = call;
    driver.enable(&rings[0], 1);
    assert!(!machine.is_live());
    driver.use_memory(true);
    assert!(machine.is_live());
    for ring in &mut rings {
        expect_works(&driver, ring, 2);
    }
}

/// The queues of a device that needs a reset wait for that: one that is reset is let go
/// of, and none is started.
#[test]
fn no_queue_comes_to_a_device_that_needs_a_reset() {
    let (machine, served) = disk(2);
    let mut driver = connect(&served);
    let mut rings = driver.bring_up(2);
    for lost in [false, true] {
        expect_works(&driver, &mut rings[0], 1);
        if lost {
            let more = SharedMemory::new(1 << 16, Gpa(0x100_0000), Sealing::Fixed);
            machine.refuse("RESUME", 5);
            assert_eq!(driver.client.map(&more), Err(Refused::Errno(12)));
            machine.allow();
        } else {
            machine.break_device();
            assert!(settled(|| driver.status() & 64 != 0));
        }
        machine.calls();
        driver.reset_queue(0);
        assert!(!machine.is_live());
        driver.enable(&rings[0], 1);
        assert!(!machine.is_live());
        let calls = machine.calls();
        assert!(!calls.iter().any(|call| call.starts_with("SET_VRING_ADDR")));
        assert_eq!(driver.status(), 15 | 64);
        rings = driver.bring_up_again(rings);
    }
    expect_works(&driver, &mut rings[0], 2);
}
