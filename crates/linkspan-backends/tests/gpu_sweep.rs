//! Each step by which a GPU, its sockets and a picture come to be fails in turn. The seam
//! is of the whole process, so this is one test.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are cut into words"
)]

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "gpu/rig.rs"]
mod rig;

use std::error::Error;
use std::path::Path;

use linkspan_backends::display::{DisplayServer, GpuDevice, GpuOptions, GpuSource, Screen};
use linkspan_engine::Device as _;
use linkspan_mem::fault;
use linkspan_sys::{Listener, Stream};
use linkspan_testkit::census::{Census, start_reaper};
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
    resource();
}

/// A resource whose memory cannot be had is refused by name, and counts for nothing.
fn resource() {
    let mut rig = rig::Rig::new();
    let before = Census::at_rest();
    for nth in 1.. {
        let armed = fault::arm(nth);
        let code = rig.driver.command(0x101, &[1, 2, 64, 64]);
        let fired = armed.fired();
        drop(armed);
        if code == rig::OK {
            assert!(!fired && nth > 3, "{nth}");
            rig.driver.done(0x102, &[1, 0]);
            break;
        }
        assert!(fired && code == rig::OUT_OF_MEMORY, "{nth}: {code:#x}");
        before.assert_restored(&format!("after point {nth} failed"));
    }
    before.assert_restored("at the end");
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
