//! Each step by which ports are joined, and a guest comes to one, is made to fail in
//! turn. The seam is of the whole process, so all sweeps are one test.

use std::sync::Arc;

use linkspan_backends::port::{Capture, Count, Fabric, Kind, Mode, NetDevice, PortOptions};
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{NetOptions, OFFLOADS, Speed};
use linkspan_engine::{Device, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::net::{CardOptions, Pair, station};
use linkspan_testkit::sweep::{Report, sweep};
use linkspan_testkit::{FrontEnd, Options, Served, SharedMemory};
use linkspan_virtio::Features;

const PAIRS: u16 = 2;

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    // Two workers with a mailbox each, which has an eventfd that is watched and room
    // for frames in one piece, and a table of stations; an eventfd for each guest, and one
    // for the carriers of interfaces.
    let report = sweep(|| join().map(drop));
    expect("fabric", &report, 2 * (4 + 2 + 1 + 2) + 2 + 1);
    sessions();
    control_queue();
    capture();
}

fn control_queue() {
    let fabric = Fabric::new(Mode::Switch, ports(), 2).unwrap();
    let options = NetOptions {
        control_queue: true,
        ..options()
    };
    let device = NetDevice::new(&fabric, 0, options, Count::Pairs).unwrap();
    let features = device.features() | Features::SPLIT_QUEUE;
    let report = sweep(|| device.open_queue(2 * PAIRS, features).map(drop));
    expect("control queue", &report, 1);
}

fn capture() {
    let names = ["a".to_owned()];
    let report = sweep(|| {
        let (_, file) = Capture::begin(tempfile::tempfile()?, &names, 100)?;
        file.finish()
    });
    // Memory, an eventfd, and a thread.
    expect("capture", &report, 3);
}

#[track_caller]
fn expect(what: &str, report: &Report, points: u64) {
    println!("{what}: {} points", report.points);
    let (passed, absorbed) = (report.points, report.absorbed());
    assert!(passed >= points, "{what}: only {passed} points are passed");
    assert!(
        absorbed <= 1,
        "{what}: {absorbed} failures were of no consequence"
    );
}

fn join() -> Result<Arc<Fabric>, Box<dyn std::error::Error>> {
    let workers = Arc::new(Workers::new(2)?);
    let fabric = Fabric::new(Mode::Switch, ports(), 2)?;
    let _running = fabric.run(&workers)?;
    Ok(fabric)
}

fn ports() -> Vec<PortOptions> {
    let port = |name: &str| PortOptions {
        name: name.into(),
        kind: Kind::Guest { pairs: PAIRS },
        vlans: PortVlans::Unaware,
        mtu: 1500,
        limit: None,
    };
    vec![port("a"), port("b")]
}

fn options() -> NetOptions {
    NetOptions {
        mac: station(1),
        mtu: 1500,
        pairs: PAIRS,
        queue_size: 256,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: false,
    }
}

fn sessions() {
    let workers = Arc::new(Workers::new(2).unwrap());
    let fabric = Fabric::new(Mode::Switch, ports(), 2).unwrap();
    let _running = fabric.run(&workers).unwrap();
    let device = NetDevice::new(&fabric, 0, options(), Count::Pairs).unwrap();
    let served = Served::device(tempfile::tempdir().unwrap(), Arc::new(device), workers);
    let features = {
        let mut front = served.connect();
        front.negotiate(&Options::default()).unwrap();
        Features::from_bits_retain(front.features())
    };
    served.next_end();
    let memories = [0, 1].map(|pair| SharedMemory::new(1 << 20, Gpa(pair << 40), Sealing::Fixed));
    let card = CardOptions::default();
    let pairs = [0, 1].map(|pair: u16| {
        let memory = Arc::clone(&memories[usize::from(pair)]);
        Pair::new(memory, pair, features, &card)
    });
    let report = sweep(|| -> Result<(), Box<dyn std::error::Error>> {
        let front = FrontEnd::connect(&served.socket())?;
        let result = talk(front, &memories, &pairs);
        let (reason, fault) = served.next_end();
        match result {
            Ok(()) if fault => Err(reason.into()),
            Ok(()) => Ok(()),
            Err(error) => Err(format!("{error}; {reason}").into()),
        }
    });
    // Among others a chain for each transmit queue, and 64 for each receive queue.
    expect("session", &report, 2 * 64);
    served.stop();
}

fn talk(
    mut front: FrontEnd,
    memories: &[Arc<SharedMemory>],
    pairs: &[Pair],
) -> Result<(), Box<dyn std::error::Error>> {
    front.negotiate(&Options::default())?;
    front.share(memories)?;
    for pair in pairs {
        pair.start(&front)?;
    }
    for ring in 0..2 * PAIRS {
        assert_eq!(front.stop(ring)?, 0);
    }
    Ok(())
}
