//! Each step by which a vDPA device becomes a PCI function, is started by a driver, loses
//! its memory for a moment and goes again fails in turn. The seam is of the whole process,
//! so this is one test.

use std::cell::Cell;
use std::error::Error;
use std::os::fd::AsFd as _;
use std::path::Path;

use linkspan_engine::vdpa::PciDevice;
use linkspan_engine::vfio_user::{Connection, serve};
use linkspan_mem::{Gpa, Iova};
use linkspan_sys::Listener;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::socket::Inherited;
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::disk::room;
use linkspan_testkit::sweep::sweep;
use linkspan_testkit::vdpa::{Machine, Quirks};
use linkspan_testkit::{DiskRing, SharedMemory};
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::pci::{CONFIG, MSIX};
use linkspan_vfio::{Capabilities, DmaMap, IrqAction, IrqData, SetIrqs};

/// `VIRTIO_F_VERSION_1`, in the upper half of features.
const VERSION_1: u32 = 1;

#[test]
fn every_step_of_a_function_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let quirks = Quirks {
        doorbells: true,
        ..Quirks::default()
    };
    let machine = Machine::disk(2, quirks);
    let memory = SharedMemory::new(room(2, 64), Gpa(1 << 20), Sealing::Fixed);
    let rings = [0, 1].map(|ring| DiskRing::new(&memory, ring, 64, 1 << 32));
    let broken = Cell::new(0);
    let report = sweep(|| {
        let done = whole(&socket, &machine, &rings, &broken);
        assert!(machine.is_empty());
        done
    });
    println!("{report:?}");
    assert!(report.points >= 30, "{report:?}");
    assert!(broken.get() >= 4, "{broken:?}");
}

fn whole(
    socket: &Path,
    machine: &Machine,
    rings: &[DiskRing; 2],
    broken: &Cell<u32>,
) -> Result<(), Box<dyn Error>> {
    let device = PciDevice::open(machine.opener(), 0)?;
    let listener = Listener::bind(socket)?;
    let server = serve(Inherited::Listener(listener), device, |_| {})?;
    let mut client = Connection::open(socket, Capabilities::default())?;
    let memory = rings[0].memory();
    let map = DmaMap {
        address: Iova(memory.guest(0).0),
        size: memory.len(),
        offset: 0,
        readable: true,
        writable: true,
        shared: true,
    };
    client.ask(&Ask::Map(map), &[memory.as_fd()])?;
    let set = SetIrqs {
        index: MSIX,
        start: 1,
        count: 2,
        action: IrqAction::Trigger,
        data: IrqData::Events,
    };
    let calls = [rings[0].call.as_fd(), rings[1].call.as_fd()];
    client.ask(&Ask::SetIrqs(&set), &calls)?;
    let (index, room) = (2, 4096);
    client.ask(&Ask::Doorbells { index, room }, &[])?;
    if let Err(error) = start(&mut client, rings) {
        broken.set(broken.get() + u32::from(expect_no_ring(&mut client, machine)));
        return Err(error);
    }
    let (address, size) = (map.address, map.size);
    client.ask(&Ask::Unmap { address, size }, &[])?;
    client.ask(&Ask::Map(map), &[memory.as_fd()])?;
    running(&mut client)?;
    drop(client);
    server.stop()?;
    Ok(())
}

/// A start that failed at one ring leaves none of the others: the device is told of no
/// other interrupt of theirs. Whether it did fail.
fn expect_no_ring(client: &mut Connection, machine: &Machine) -> bool {
    // What failed may be the connection, or only the look at the status.
    if !status(client).is_ok_and(|status| status & 64 != 0) {
        return false;
    }
    machine.calls();
    for ring in 0..2_u16 {
        write(client, 22, &ring.to_le_bytes()).unwrap();
        write(client, 26, &[0, 0]).unwrap();
    }
    let calls = machine.calls();
    let told = calls.iter().any(|call| call.starts_with("SET_VRING"));
    assert!(!told, "{calls:?}");
    true
}

/// What a driver writes (virtio 1.3, 3.1.1 and 4.1.4.3).
fn start(client: &mut Connection, rings: &[DiskRing; 2]) -> Result<(), Box<dyn Error>> {
    // Memory and bus master.
    let (region, offset) = (CONFIG, 4);
    let bytes = &[6, 0];
    let command = Ask::Write {
        region,
        offset,
        bytes,
    };
    client.ask(&command, &[])?;
    write(client, 20, &[1])?;
    write(client, 20, &[3])?;
    write(client, 8, &1_u32.to_le_bytes())?;
    write(client, 12, &VERSION_1.to_le_bytes())?;
    write(client, 20, &[11])?;
    for ring in rings {
        write(client, 22, &ring.index().to_le_bytes())?;
        write(client, 24, &ring.size().to_le_bytes())?;
        write(client, 26, &(ring.index() + 1).to_le_bytes())?;
        for (address, at) in ring.guest_addresses().into_iter().zip((32..).step_by(8)) {
            write(client, at, &address.to_le_bytes())?;
        }
        write(client, 28, &1_u16.to_le_bytes())?;
    }
    write(client, 20, &[15])?;
    running(client)
}

fn write(client: &mut Connection, offset: u64, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let region = 0;
    let ask = Ask::Write {
        region,
        offset,
        bytes,
    };
    client.ask(&ask, &[])?;
    Ok(())
}

fn running(client: &mut Connection) -> Result<(), Box<dyn Error>> {
    match status(client)? {
        15 => Ok(()),
        other => Err(format!("the status is {other:#x}").into()),
    }
}

fn status(client: &mut Connection) -> Result<u8, Box<dyn Error>> {
    let (region, offset, count) = (0, 20, 1);
    let ask = Ask::Read {
        region,
        offset,
        count,
    };
    match client.ask(&ask, &[])?.0 {
        Answer::Bytes(status) => Ok(status[0]),
        other => Err(format!("the answer is {other:?}").into()),
    }
}
