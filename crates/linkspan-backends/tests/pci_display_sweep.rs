//! Each step by which a PCI display, its sockets, its client and a picture come to be fails
//! in turn. The seam is of the whole process, so this is one test.

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "pci_display/rig.rs"]
mod rig;

use std::error::Error;
use std::path::Path;

use linkspan_backends::display::{
    DisplayOptions, DisplayServer, GpuSource, Model, PciDisplay, Screen,
};
use linkspan_engine::vfio_user::{Connection, serve};
use linkspan_sys::Listener;
use linkspan_sys::socket::Inherited;
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::sweep::sweep;
use linkspan_vfio::Capabilities;
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::wire::PLANE_DMABUF;

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let report = sweep(|| whole(folder.path()));
    println!("{report:?}");
    assert!(report.points >= 15, "{report:?}");
}

fn whole(folder: &Path) -> Result<(), Box<dyn Error>> {
    let device = PciDisplay::new(DisplayOptions {
        model: Model::Fixed,
        mode: (64, 64),
        memory: 1 << 20,
    })?;
    let (vga, screen) = (folder.join("vga"), folder.join("screen"));
    let viewers = DisplayServer::of_display(&device, Listener::bind(&screen)?)?;
    let listener = Inherited::Listener(Listener::bind(&vga)?);
    let server = serve(listener, device, |_| {})?;
    let wish = Capabilities {
        gfx_plane: true,
        ..Capabilities::default()
    };
    let mut client = Connection::open(&vga, wish)?;
    let (index, room) = (0, 4096);
    client.ask(&Ask::Region { index, room }, &[])?;
    let (flags, kind) = (PLANE_DMABUF, 1);
    let (answer, _) = client.ask(&Ask::QueryPlane { flags, kind }, &[])?;
    let Answer::Plane(plane) = answer else {
        return Err("no plane".into());
    };
    client.ask(&Ask::GetPlane { id: plane.handle }, &[])?;
    let mut viewer = Screen::new(Box::new(GpuSource::connect(&screen)?), 0)?;
    viewer.look()?;
    // A look that fails is a reason to show, and no error.
    if let Some(why) = viewer.no_signal() {
        return Err(why.to_string().into());
    }
    drop(viewer);
    drop(client);
    server.stop()?;
    drop(viewers);
    Ok(())
}
