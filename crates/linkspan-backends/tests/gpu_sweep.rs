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
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::Path;

use linkspan_backends::display::{
    DisplayServer, GpuDevice, GpuOptions, GpuSource, Input, QmpError, Screen, Usher, WatchServer,
};
use linkspan_engine::Device as _;
use linkspan_mem::fault;
use linkspan_sys::tcp::TcpListener;
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
    input(&folder.path().join("qmp"));
}

/// The connection with QEMU's monitor.
fn input(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        // Whoever connects is greeted, and each line has an answer, until it leaves.
        while let Ok((mut stream, _)) = listener.accept() {
            drop(stream.write_all(b"{\"QMP\": {}}\n"));
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for _ in lines.map_while(Result::ok) {
                drop(stream.write_all(b"{\"return\": {}}\n"));
            }
        }
    });
    let report = sweep(|| {
        let input = Input::connect(path)?;
        input.seat().keysym(true, 0x61);
        Ok::<(), QmpError>(())
    });
    println!("input: {report:?}");
    assert!(report.points >= 3, "{report:?}");
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
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    drop(WatchServer::new(listener, screen)?);
    // The same for those who were let in elsewhere.
    let (usher, entrance) = Usher::new()?;
    let screen = Screen::new(Box::new(GpuSource::connect(socket)?), 0)?;
    drop(WatchServer::behind(entrance, screen)?);
    drop(usher);
    drop(viewers);
    Ok(())
}
