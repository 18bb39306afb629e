//! Each step by which a GPU, its sockets and a picture come to be fails in turn. The seam
//! is of the whole process, so this is one test.

use std::error::Error;
use std::path::Path;

use linkspan_backends::display::{
    DisplayServer, GpuDevice, GpuOptions, GpuSource, Screen, Source as _,
};
use linkspan_engine::Device as _;
use linkspan_sys::{Listener, Stream};
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::sweep::sweep;
use linkspan_virtio::Features;

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let report = sweep(|| gpu(&socket));
    println!("gpu: {report:?}");
    assert!(report.points >= 8, "{report:?}");
}

fn gpu(socket: &Path) -> Result<(), Box<dyn Error>> {
    let device = GpuDevice::new(&GpuOptions::default())?;
    let viewers = DisplayServer::start(&device, Listener::bind(socket)?)?;
    let queue = device.open_queue(0, Features::SPLIT_QUEUE)?;
    drop(queue);
    let mut screen = Screen::new(Box::new(GpuSource::connect(socket)?), 0)?;
    screen.look()?;
    screen
        .source_mut()
        .planes()
        .err()
        .ok_or("nothing is shown")?;
    let (ours, theirs) = Stream::pair()?;
    // The thread ends when its socket does.
    drop(ours);
    device.set_gpu_socket(theirs)?;
    device.front_end_is_gone();
    drop(screen);
    drop(viewers);
    Ok(())
}
