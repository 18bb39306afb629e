//! Each step of a bring-up is made to fail in turn. The seam is of the whole
//! process, so all sweeps are one test.

use std::os::fd::AsFd;
use std::sync::Arc;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::vhost_user;
use linkspan_engine::{Device, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::Listener;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::socket::Inherited;
use linkspan_testkit::census::start_reaper;
use linkspan_testkit::disk::{SECTOR, room};
use linkspan_testkit::served::{content, write_image};
use linkspan_testkit::sweep::{Report, sweep};
use linkspan_testkit::{DiskRing, FrontEnd, Options, Served, SharedMemory};
use linkspan_vhost::message::Request;

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    start_reaper();
    expect("workers", &sweep(workers), 3 * 4 + 1, 0);
    server();
    sessions();
}

#[track_caller]
fn expect(what: &str, report: &Report, points: u64, absorbed: u64) {
    println!("{what}: {report:?}");
    assert!(
        report.points >= points,
        "{what}: only {} points are passed: is a step without one?",
        report.points
    );
    assert_eq!(report.absorbed(), absorbed, "{what}: {report:?}");
}

/// Three threads, each with an eventfd, an epoll and an entry in it.
fn workers() -> std::io::Result<()> {
    Workers::new(3).map(drop)
}

fn server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    write_image(&path);
    let image = RawImage::open(&path, &OpenOptions::default()).unwrap();
    let device: Arc<dyn Device> = Arc::new(BlockDevice::new(Arc::new(image), 2, 256).unwrap());
    let workers = Arc::new(Workers::new(1).unwrap());
    let socket = folder.path().join("socket");
    let report = sweep(|| {
        let listener = Listener::bind(&socket)?;
        let source = Inherited::Listener(listener);
        let server = vhost_user::serve(source, Arc::clone(&device), Arc::clone(&workers), |_| {})?;
        server.stop().map_err(std::io::Error::other)
    });
    // Socket, two eventfds, thread.
    expect("server", &report, 4, 0);
    assert!(!socket.exists());
}

/// What a front end has before it connects: the sweep is for the other end.
struct Prepared {
    memory: [Arc<SharedMemory>; 2],
    rings: [DiskRing; 2],
    log: Arc<SharedMemory>,
}

fn sessions() {
    let served = Served::disk(2);
    let memory =
        [Gpa(0), Gpa(1 << 40)].map(|guest| SharedMemory::new(room(1, 64), guest, Sealing::Fixed));
    let features = {
        let mut front = served.connect();
        front.negotiate(&Options::default()).unwrap();
        front.features()
    };
    served.next_end();
    let rings = [0, 1].map(|index| DiskRing::new(&memory[usize::from(index)], index, 64, features));
    // A bit for each page up to the last of the second region.
    let log = SharedMemory::new(1 << 26, Gpa(0), Sealing::Fixed);
    let mut prepared = Prepared { memory, rings, log };
    for mem_slots in [false, true] {
        for reply_ack in [true, false] {
            let options = Options {
                reply_ack,
                mem_slots,
                ..Options::default()
            };
            let report = sweep(|| session(&served, &mut prepared, &options));
            // The next connection is accepted at the second attempt.
            expect("session", &report, 37, 1);
        }
    }
    served.expect_serves();
    served.stop();
}

/// One session with two rings: memory, socket for requests, dirty log, start, change of memory under the rings,
/// new descriptors, stop. It ends with the server waiting for the next one.
fn session(
    served: &Served,
    prepared: &mut Prepared,
    options: &Options,
) -> Result<(), Box<dyn std::error::Error>> {
    // Our own end is swept as well.
    let front = FrontEnd::connect(&served.socket())?;
    let result = talk(front, prepared, options);
    let (reason, fault) = served.next_end();
    match result {
        Ok(()) if fault => Err(reason.into()),
        Ok(()) => Ok(()),
        Err(error) => Err(format!("{error}; {reason}").into()),
    }
}

fn talk(
    mut front: FrontEnd,
    prepared: &mut Prepared,
    options: &Options,
) -> Result<(), Box<dyn std::error::Error>> {
    front.negotiate(options)?;
    front.share(&prepared.memory)?;
    // Size and offset, which the back end decides, queues and their size.
    let wish = [&[0; 16][..], &[2, 0, 64, 0, 0, 0, 0, 0]].concat();
    let inflight = front.ask(Request::GetInflightFd, &wish, &[])?;
    if inflight[..8] == [0; 8] {
        return Err("there is no in-flight region".into());
    }
    let _requests = front.listen_to_requests()?;
    front.set_log(prepared.log.as_fd(), prepared.log.len(), 0)?;
    for ring in &prepared.rings {
        front.start(ring)?;
        front.enable(ring.index(), true)?;
    }
    front.sync()?;
    // The same memory in another order: the rings are moved.
    let [one, other] = &prepared.memory;
    front.set_table(&[Arc::clone(other), Arc::clone(one)])?;
    front.sync()?;
    for (sector, ring) in (0..).zip(&mut prepared.rings) {
        assert_eq!(ring.read(sector, SECTOR), content(sector));
    }
    let ring = &prepared.rings[0];
    front.set_event(Request::SetVringKick, 0, &ring.kick)?;
    front.set_event(Request::SetVringCall, 0, &ring.call)?;
    for ring in &prepared.rings {
        assert_eq!(front.stop(ring.index())?, ring.base());
    }
    Ok(())
}
