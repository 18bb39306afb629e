//! Requests in flight on a slow image: whoever waits for them waits until they
//! have ended, and not for ever.

use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::Image;
use linkspan_engine::session::{self, End, NotQuiet};
use linkspan_engine::vhost_user::{BackendSession, SessionError};
use linkspan_engine::{Device, Workers};
use linkspan_sys::{EventFd, Stream};
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::front_end::state;
use linkspan_testkit::served::{SECTORS, content};
use linkspan_testkit::{Disk, DiskRing, FrontEnd, GatedImage, Io, Options, Refused, Served};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, Header, VringState};
use zerocopy::{FromBytes, IntoBytes};

fn submit(ring: &mut DiskRing, sectors: std::ops::Range<u64>) {
    for sector in sectors {
        ring.submit(Io::Read {
            sector,
            len: SECTOR,
        });
    }
}

/// Says something without waiting for the answer.
fn say(front: &FrontEnd, request: Request, body: &[u8]) {
    let flags = Header::NEED_REPLY;
    assert!(front.send_raw(&wire::encode(request.code(), flags, body), &[]));
}

#[track_caller]
fn expect_reply(front: &FrontEnd, request: Request) -> Vec<u8> {
    let (header, body) = front.receive().expect("the connection is open");
    assert_eq!(header.request, request.code());
    body
}

#[test]
fn base_is_answered_when_the_ring_is_quiet_and_other_messages_wait() {
    let (served, image) = Served::gated(2);
    let mut disk = served.drive(2);
    submit(&mut disk.rings[0], 0..4);
    image.expect_kept(4);
    say(&disk.front, Request::GetVringBase, &state(0, 0));
    say(&disk.front, Request::GetFeatures, &[]);
    image.release(3);
    for sector in 0..3 {
        assert_eq!(disk.rings[0].wait().data, content(sector));
    }
    assert!(!disk.front.has_message(), "a request is in flight");
    image.release(1);
    let base = expect_reply(&disk.front, Request::GetVringBase);
    let base = VringState::read_from_bytes(&base).unwrap();
    assert_eq!((base.index, base.num), (0, 4));
    // What was taken is answered by then.
    assert_eq!(disk.rings[0].poll().unwrap().data, content(3));
    expect_reply(&disk.front, Request::GetFeatures);
    // It goes on where it stood.
    disk.front.start(&disk.rings[0]).unwrap();
    submit(&mut disk.rings[0], 7..8);
    image.expect_kept(1);
    image.release(1);
    assert_eq!(disk.rings[0].wait().data, content(7));
    disk.shut_down();
}

#[test]
fn front_end_that_leaves_while_it_waits_is_no_harm() {
    for request in [Request::GetVringBase, Request::ResetDevice] {
        let (served, image) = Served::gated(1);
        let mut disk = served.drive(1);
        submit(&mut disk.rings[0], 0..4);
        image.expect_kept(4);
        let body = match request {
            Request::GetVringBase => state(0, 0),
            _ => vec![],
        };
        say(&disk.front, request, &body);
        drop(disk.front);
        // The buffers stay mapped until the last request has ended.
        image.release(4);
        let (reason, fault) = served.next_end();
        assert!(!fault, "{reason}");
        for sector in 0..4 {
            assert_eq!(disk.rings[0].wait_polling().data, content(sector));
        }
        let mut disk = served.drive(1);
        submit(&mut disk.rings[0], 9..10);
        image.expect_kept(1);
        image.release(1);
        assert_eq!(disk.rings[0].wait().data, content(9));
        disk.shut_down();
        served.stop();
    }
}

#[test]
fn memory_changes_when_nothing_uses_the_old_one() {
    let (served, image) = Served::gated(1);
    let mut disk = served.drive(1);
    submit(&mut disk.rings[0], 0..4);
    image.expect_kept(4);
    std::thread::scope(|scope| {
        let table = scope.spawn(|| disk.front.set_table(&[Arc::clone(&disk.memory)]));
        image.release(3);
        // It waits for one more.
        for sector in 0..3 {
            assert_eq!(disk.rings[0].wait_polling().data, content(sector));
        }
        assert!(!table.is_finished());
        image.release(1);
        table.join().unwrap().unwrap();
    });
    assert_eq!(disk.rings[0].wait_polling().data, content(3));
    disk.shut_down();
}

#[test]
fn server_that_stops_finishes_what_is_in_flight() {
    let (served, image) = Served::gated(1);
    let mut disk = served.drive(1);
    submit(&mut disk.rings[0], 0..4);
    image.expect_kept(4);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(move || served.stop());
        assert!(!stopping.is_finished());
        image.release(4);
        stopping.join().unwrap();
    });
    disk.front.expect_closed();
    for sector in 0..4 {
        assert_eq!(disk.rings[0].wait_polling().data, content(sector));
    }
}

/// Lets `ask` wait for requests that never end, in a session that gives them no
/// time at all: how it ended.
fn without_patience(ask: impl FnOnce(&Disk)) -> End<SessionError> {
    let image = GatedImage::new(SECTORS);
    let device = BlockDevice::new(Arc::clone(&image) as Arc<dyn Image>, 1, 64).unwrap();
    let workers = Arc::new(Workers::new(1).unwrap());
    let changes = Arc::new(EventFd::new().unwrap());
    let session = BackendSession::new(Arc::new(device) as Arc<dyn Device>, workers, changes);
    let mut session = session.unwrap().with_quiet_limit(Duration::ZERO);
    let (ours, theirs) = Stream::pair().unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let cancel = EventFd::new().unwrap();
            let end = session::run_until(&mut session, &theirs, &cancel, None, |_| false);
            // Nobody gets it quiet in no time.
            let not_quiet = session::run(&mut session, &theirs, &cancel).unwrap_err();
            (end, not_quiet)
        });
        let front = FrontEnd::over(ours);
        let mut disk = Disk::bring_up(front, &Options::default(), 1, 64).unwrap();
        submit(&mut disk.rings[0], 0..1);
        image.expect_kept(1);
        ask(&disk);
        disk.front.expect_closed();
        let (end, NotQuiet { limit }) = serving.join().unwrap();
        assert_eq!(limit, Duration::ZERO);
        end
    })
}

#[test]
fn request_that_never_ends_ends_the_session_by_name() {
    type Ask = fn(&Disk);
    let asks: [Ask; 3] = [
        |disk| say(&disk.front, Request::GetVringBase, &state(0, 0)),
        |disk| say(&disk.front, Request::ResetDevice, &[]),
        |disk| {
            let refused = disk.front.set_table(&[Arc::clone(&disk.memory)]);
            assert!(matches!(refused, Err(Refused::Closed { .. })));
        },
    ];
    for ask in asks {
        let end = without_patience(ask);
        assert!(
            matches!(
                end,
                End::Failed(SessionError::NotQuiet {
                    limit: Duration::ZERO
                })
            ),
            "{end:?}"
        );
    }
}

/// The status byte of the device.
fn status(front: &FrontEnd) -> u64 {
    let reply = front.ask(Request::GetStatus, &[], &[]).unwrap();
    u64::read_from_bytes(&reply).unwrap()
}

fn set_status(front: &FrontEnd, status: u64) -> Result<(), Refused> {
    front.tell(Request::SetStatus, status.as_bytes(), &[])
}

/// Features and rings are as in the beginning; memory stays
/// (vhost-user: `VHOST_USER_RESET_DEVICE`).
#[test]
fn reset_device_waits_for_requests_and_begins_anew() {
    let (served, image) = Served::gated(2);
    let mut disk = served.drive(2);
    for round in 0..3 {
        set_status(&disk.front, 15).unwrap();
        submit(&mut disk.rings[0], 0..2);
        submit(&mut disk.rings[1], 2..4);
        image.expect_kept(4);
        say(&disk.front, Request::ResetDevice, &[]);
        image.release(3);
        assert!(!disk.front.has_message(), "a request is in flight");
        image.release(1);
        assert_eq!(expect_reply(&disk.front, Request::ResetDevice), [0; 8]);
        for (first, ring) in [0, 2].into_iter().zip(&mut disk.rings) {
            let mut done = [ring.poll().unwrap().data, ring.poll().unwrap().data];
            done.sort();
            let mut data = [content(first), content(first + 1)];
            data.sort();
            assert_eq!(done, data, "round {round}");
        }
        assert_eq!(status(&disk.front), 0);
        // A ring cannot start without features.
        let ring = &disk.rings[0];
        let address = ring.address();
        let front = &disk.front;
        front
            .tell(Request::SetVringNum, &state(0, 64), &[])
            .unwrap();
        front
            .tell(Request::SetVringAddr, address.as_bytes(), &[])
            .unwrap();
        let early = front.set_event(Request::SetVringKick, 0, &ring.kick);
        assert!(matches!(early, Err(Refused::Nack { .. })), "{early:?}");
        front.log_all(false).unwrap();
        for ring in &disk.rings {
            front.start(ring).unwrap();
            front.enable(ring.index(), true).unwrap();
        }
    }
    disk.shut_down();
}

#[test]
fn status_is_kept_and_zero_stops_the_rings() {
    let (served, image) = Served::gated(1);
    let mut disk = served.drive(1);
    assert_eq!(status(&disk.front), 0);
    for value in [1, 3, 11, 15] {
        set_status(&disk.front, value).unwrap();
        assert_eq!(status(&disk.front), value);
    }
    let refused = set_status(&disk.front, 256);
    assert!(matches!(refused, Err(Refused::Nack { .. })), "{refused:?}");
    assert_eq!(status(&disk.front), 15);
    submit(&mut disk.rings[0], 0..1);
    image.expect_kept(1);
    say(&disk.front, Request::SetStatus, 0u64.as_bytes());
    assert!(!disk.front.has_message(), "a request is in flight");
    image.release(1);
    assert_eq!(expect_reply(&disk.front, Request::SetStatus), [0; 8]);
    assert_eq!(disk.rings[0].poll().unwrap().data, content(0));
    assert_eq!(status(&disk.front), 0);
    // Stopped already, it says where it stands, and serves again.
    assert_eq!(disk.front.stop(0).unwrap(), 1);
    disk.front.start(&disk.rings[0]).unwrap();
    submit(&mut disk.rings[0], 5..6);
    image.expect_kept(1);
    image.release(1);
    assert_eq!(disk.rings[0].wait().data, content(5));
    disk.shut_down();
}
