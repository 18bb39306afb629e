//! Each step by which a device, its client, its memory and its interrupts come to be
//! fails in turn. The seam is of the whole process, so this is one test.

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "vfio_user/rig.rs"]
mod rig;

use std::error::Error;
use std::os::fd::AsFd as _;
use std::path::Path;

use linkspan_engine::vfio_user::{Connection, serve};
use linkspan_mem::Iova;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{EventFd, Listener};
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::sweep::sweep;
use linkspan_vfio::client::Ask;
use linkspan_vfio::pci::MSIX;
use linkspan_vfio::{Capabilities, DmaMap, IrqAction, IrqData, SetIrqs};

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let report = sweep(|| whole(&socket));
    println!("{report:?}");
    assert!(report.points >= 12, "{report:?}");
}

fn whole(socket: &Path) -> Result<(), Box<dyn Error>> {
    let listener = Listener::bind(socket)?;
    let server = serve(Inherited::Listener(listener), rig::Ram::new()?, |_| {})?;
    let wish = Capabilities {
        msg_fds: 8,
        ..Capabilities::default()
    };
    let mut client = Connection::open(socket, wish)?;
    let room = 4096;
    client.ask(&Ask::Region { index: 0, room }, &[])?;
    let memory = memfd::create("guest", 4096, Sealing::Fixed)?;
    let map = DmaMap {
        address: Iova(0),
        size: 4096,
        offset: 0,
        readable: true,
        writable: true,
        shared: true,
    };
    client.ask(&Ask::Map(map), &[memory.as_fd()])?;
    let event = EventFd::new()?;
    let set = SetIrqs {
        index: MSIX,
        start: 0,
        count: 1,
        action: IrqAction::Trigger,
        data: IrqData::Events,
    };
    client.ask(&Ask::SetIrqs(&set), &[event.as_fd()])?;
    let (region, offset, count) = (0, 0, 16);
    client.ask(
        &Ask::Read {
            region,
            offset,
            count,
        },
        &[],
    )?;
    server.stop()?;
    Ok(())
}
