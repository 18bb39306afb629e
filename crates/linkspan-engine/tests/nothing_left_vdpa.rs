//! Each call to the kernel fails in turn, with a driver of ours, with a front end that
//! a device is passed on to, and with a client to whom it is a PCI function: no
//! descriptor, mapping, queue or thread stays. A census is of the whole process, so this is one test.

use linkspan_engine::vdpa::PciDevice;
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::vdpa::BackendFeatures;
use linkspan_testkit::census::{settled, start_reaper};
use linkspan_testkit::disk::room;
use linkspan_testkit::vdpa::{Machine, Quirks};
use linkspan_testkit::{
    Census, Disk, DiskRing, Driven, FrontEnd, Options, Served, SharedMemory, VirtioPci,
};

const EIO: i32 = 5;

fn kinds() -> [Quirks; 2] {
    let plain = Quirks {
        backend_features: BackendFeatures::IOTLB_MSG_V2,
        ..Quirks::default()
    };
    let rich = Quirks {
        doorbells: true,
        ..Quirks::default()
    };
    [rich, plain]
}

/// QEMU b430a2bd23 and its review: one label of the way out skipped what stood
/// before it, and memory leaked.
#[test]
fn whichever_call_fails_nothing_is_left() {
    start_reaper();
    for quirks in kinds() {
        let machine = Machine::disk(2, quirks);
        drive(&machine).unwrap();
        let before = Census::at_rest();
        let calls = each_call(&machine, &before, || drive(&machine));
        assert!(calls > 30, "{calls}");
        let calls = each_call(&machine, &before, || pass_on(&machine));
        assert!(calls > 60, "{calls}");
        let calls = each_call(&machine, &before, || show(&machine));
        assert!(calls > 60, "{calls}");
    }
}

/// Runs with the first call failing, then the second, until a run makes none that does.
fn each_call(machine: &Machine, before: &Census, run: impl Fn() -> Result<(), String>) -> usize {
    for nth in 1..1000 {
        machine.fail_call(nth, EIO);
        let result = run();
        let failed = machine.has_failed();
        machine.fail_call(0, 0);
        let when = format!("after call {nth} failed ({result:?})");
        assert!(settled(|| machine.is_empty()), "{when}");
        before.assert_restored(&when);
        if !failed {
            result.expect("nothing failed");
            return nth - 1;
        }
    }
    panic!("it never comes to its end");
}

/// Brings a disk up and down. A failure on the way down changes nothing.
fn drive(machine: &Machine) -> Result<(), String> {
    let driven = Driven::vdpa(machine.opener(), 2);
    driven.map(drop).map_err(|error| error.to_string())
}

/// Passes it on to a front end that uses it, and stops.
fn pass_on(machine: &Machine) -> Result<(), String> {
    let served = Served::bridge(machine).map_err(|error| error.to_string())?;
    let done = use_it(&served);
    served.stop();
    done
}

/// Shows it to a client whose driver starts it, lets it go on in other memory, and
/// starts it anew. What fails there is a status.
fn show(machine: &Machine) -> Result<(), String> {
    let share = |device: &mut PciDevice| {
        // It may be lost just then.
        drop(device.share_doorbells());
    };
    let served = Served::function(machine, share).map_err(|error| error.to_string())?;
    let text = |error: linkspan_testkit::pci::Refused| error.to_string();
    let drive = || {
        let mut driver = VirtioPci::connect(&served.socket()).map_err(text)?;
        let memory = SharedMemory::new(room(2, 64), Gpa(0x10_0000), Sealing::Fixed);
        for _ in 0..2 {
            driver.client.map(&memory).map_err(text)?;
            if !driver.negotiate() {
                return Err("it does not agree".to_owned());
            }
            for ring in 0..2 {
                let ring = DiskRing::new(&memory, ring, 4, driver.features());
                driver.enable(&ring, 0xffff);
            }
            driver.start();
            driver.client.unmap(&memory).map_err(text)?;
            driver.client.map(&memory).map_err(text)?;
            if driver.status() != 15 {
                return Err("it does not run".to_owned());
            }
            driver.client.reset().map_err(text)?;
            driver.use_memory(true);
            driver.client.unmap(&memory).map_err(text)?;
        }
        Ok(())
    };
    let done = drive();
    served.stop();
    done
}

fn use_it(served: &Served) -> Result<(), String> {
    let text = |error: linkspan_testkit::Refused| error.to_string();
    let mut front: FrontEnd = served.connect();
    let memory = SharedMemory::new(room(2, 64), Gpa(0x10_0000), Sealing::Fixed);
    front.negotiate(&Options::default()).map_err(text)?;
    front.share(std::slice::from_ref(&memory)).map_err(text)?;
    let rings: Vec<_> = (0..2)
        .map(|index| DiskRing::new(&memory, index, 64, front.features()))
        .collect();
    for ring in &rings {
        front.start(ring).map_err(text)?;
        front.enable(ring.index(), true).map_err(text)?;
    }
    let mut disk = Disk {
        front,
        memory,
        rings,
    };
    for ring in &disk.rings {
        disk.front.stop(ring.index()).map_err(text)?;
    }
    disk.rings.clear();
    Ok(())
}
