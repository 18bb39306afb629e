//! A disk that goes on in another process: here both are in this one, each with workers and a
//! device of its own. Nothing is lost, and whoever of them dies, one goes on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::vhost_user::{self, Event, Giver, HandOverError, SavedLink, Successor};
use linkspan_engine::{Device, NotLent, Server, Workers};
use linkspan_sys::Stream;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::content;
use linkspan_testkit::{Disk, FrontEnd, Io, Options, PATIENCE, Served};

/// The process that a link goes on in.
struct Next {
    server: Server,
    device: Arc<BlockDevice>,
    events: Receiver<Event>,
}

impl Next {
    fn event(&self) -> Event {
        self.events
            .recv_timeout(PATIENCE)
            .expect("something happens")
    }
}

fn giver(server: &Server) -> Giver {
    server.giver().expect("it can be handed over")
}

fn disk(image: &Path, lent: Vec<OwnedFd>) -> Arc<BlockDevice> {
    let [lock] = <[OwnedFd; 1]>::try_from(lent).expect("one descriptor");
    let image = RawImage::take_over(image, &OpenOptions::default(), lock).expect("the image");
    Arc::new(BlockDevice::new(Arc::new(image), 2, 1024).expect("a disk"))
}

/// Takes the disk over at the other end of this socket.
fn take(wire: Stream, image: &Path, socket: &Path) -> Result<Next, HandOverError> {
    let (successor, lent) = Successor::begin(wire)?;
    let device = disk(image, lent);
    let workers = Arc::new(Workers::new(2).expect("workers"));
    let (sender, events) = mpsc::channel();
    let report = move |event| {
        // Nobody has to listen.
        let _ = sender.send(event);
    };
    let shared = Arc::clone(&device) as Arc<dyn Device>;
    let server = vhost_user::take_over(successor, shared, workers, Some(socket), report)?;
    Ok(Next {
        server,
        device,
        events,
    })
}

/// Has the disk of this server go on in the next one.
fn upgrade(server: &Server, image: &Path, socket: &Path) -> Next {
    let (ours, theirs) = Stream::pair().expect("a socket");
    let giver = giver(server);
    let old = thread::spawn(move || giver.hand_over(theirs));
    let next = take(ours, image, socket).expect("it is taken over");
    old.join().unwrap().expect("it is handed over");
    assert!(settled(|| server.is_away()));
    next
}

fn submit(disk: &mut Disk, ring: usize, sectors: std::ops::Range<u64>) {
    for sector in sectors {
        disk.rings[ring].submit(Io::Read {
            sector,
            len: SECTOR,
        });
    }
}

#[track_caller]
fn expect(disk: &mut Disk, ring: usize, count: usize) {
    for _ in 0..count {
        let done = disk.rings[ring].wait();
        assert_eq!(done.data.len(), SECTOR);
    }
}

#[test]
fn a_disk_goes_on_in_ten_processes_one_after_the_other() {
    let served = Served::disk(2);
    let (image, socket) = (served.image(), served.socket());
    let mut disk = served.drive(2);
    let mut next: Option<Next> = None;
    for round in 0..10_u64 {
        let pattern = vec![u8::try_from(round).unwrap() ^ 0x5a; SECTOR];
        disk.rings[0].write(100 + round, &pattern);
        // Some that the first one takes, and some that may be left to the next.
        submit(&mut disk, 1, 0..8);
        let before = next.as_ref().map_or(served.server(), |next| &next.server);
        let taken = upgrade(before, &image, &socket);
        let Event::TakenOver { generation, pause } = taken.event() else {
            panic!("it is taken over");
        };
        assert_eq!(generation, 1);
        println!("pause {round}: {:?}", pause.expect("a front end is there"));
        expect(&mut disk, 1, 8);
        for round in 0..=round {
            let pattern = vec![u8::try_from(round).unwrap() ^ 0x5a; SECTOR];
            assert_eq!(disk.rings[0].read(100 + round, SECTOR), pattern);
        }
        assert_eq!(disk.rings[1].read(7, SECTOR), content(7));
        next = Some(taken);
    }
    let last = next.unwrap();
    assert!(last.device.counters()[0].reads.value() > 0);
    // Its front end leaves, and the next one finds it where the first one was.
    disk.shut_down();
    assert!(matches!(last.event(), Event::Ended { fault: false, .. }));
    let again = FrontEnd::connect(&socket).unwrap();
    let mut again = Disk::bring_up(again, &Options::default(), 2, 64).unwrap();
    assert_eq!(last.event(), Event::Connected { generation: 2 });
    assert_eq!(again.rings[0].read(9, SECTOR), content(9));
    drop(again);
    // Who handed the link over has left its socket alone, and the last one takes it along.
    assert!(socket.exists());
    last.server.stop().unwrap();
    assert!(!socket.exists());
}

#[test]
fn a_link_to_which_nobody_is_connected_goes_on() {
    let served = Served::disk(2);
    let next = upgrade(served.server(), &served.image(), &served.socket());
    let expected = Event::TakenOver {
        generation: 0,
        pause: None,
    };
    assert_eq!(next.event(), expected);
    let mut disk = served.drive(2);
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
    assert_eq!(next.event(), Event::Connected { generation: 1 });
}

/// A front end that speaks meanwhile is answered by the next one.
#[test]
fn a_message_that_is_half_sent_is_finished_first_and_the_next_is_answered_there() {
    use linkspan_vhost::message::Request;
    use linkspan_vhost::wire;

    let served = Served::disk(2);
    let disk = served.drive(2);
    let message = wire::encode(Request::GetFeatures.code(), 0, &[]);
    assert!(disk.front.send_raw(&message[..5], &[]));
    let (ours, theirs) = Stream::pair().unwrap();
    let giver = giver(served.server());
    let old = thread::spawn(move || giver.hand_over(theirs));
    let (image, socket) = (served.image(), served.socket());
    let new = thread::spawn(move || take(ours, &image, &socket));
    assert!(disk.front.send_raw(&message[5..], &[]));
    assert!(disk.front.receive().is_some());
    let next = new.join().unwrap().unwrap();
    old.join().unwrap().unwrap();
    disk.front.sync().unwrap();
    assert!(settled(|| served.server().is_away()));
    drop(next);
}

/// What is in flight has a limit, and whoever waits for it goes on where it was.
#[test]
fn requests_that_do_not_end_are_waited_for_no_longer_than_the_limit() {
    let (served, image) = Served::gated(2);
    let mut disk = served.drive(2);
    submit(&mut disk, 0, 0..3);
    image.expect_kept(3);
    let (ours, theirs) = Stream::pair().unwrap();
    let giver = giver(served.server());
    let old = thread::spawn(move || giver.hand_over(theirs));
    let peer = Peer(ours);
    peer.say(1, &hello(), &[]);
    peer.hear(2);
    peer.say(3, &[], &[]);
    // Both rings go on, though the first one has not come to rest, and its front end is heard.
    let (_, why) = peer.hear(9);
    assert!(
        String::from_utf8(why)
            .unwrap()
            .contains("requests in flight")
    );
    disk.front.sync().unwrap();
    submit(&mut disk, 1, 5..6);
    submit(&mut disk, 0, 3..4);
    image.expect_kept(5);
    image.release(5);
    for sector in 0..4 {
        assert_eq!(disk.rings[0].wait().data, content(sector));
    }
    assert_eq!(disk.rings[1].wait().data, content(5));
    let error = old.join().unwrap().unwrap_err();
    assert!(matches!(error, HandOverError::NotQuiet { .. }), "{error}");
    submit(&mut disk, 0, 9..10);
    image.expect_kept(1);
    image.release(1);
    assert_eq!(disk.rings[0].wait().data, content(9));
}

/// A process that is to take a link over and may die, or say anything.
struct Peer(Stream);

fn hello() -> [u8; 8] {
    [1, 0, 0, 0, 1, 0, 0, 0]
}

impl Peer {
    fn say(&self, number: u16, body: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(body);
        // It may have gone.
        let _ = self.0.send(&bytes, fds, Instant::now() + PATIENCE);
    }

    fn next(&self) -> Option<(u16, Vec<u8>, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let head = self.exactly(8, &mut fds)?;
        let number = u16::from_le_bytes([head[0], head[1]]);
        let len = u32::from_le_bytes(head[4..].try_into().unwrap());
        let body = self.exactly(len as usize, &mut fds)?;
        Some((number, body, fds))
    }

    /// The next message, which has this number.
    #[track_caller]
    fn hear(&self, number: u16) -> (Vec<OwnedFd>, Vec<u8>) {
        let (got, body, fds) = self.next().expect("a message");
        assert_eq!(got, number, "{}", String::from_utf8_lossy(&body));
        (fds, body)
    }

    fn exactly(&self, len: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let until = Some(Instant::now() + PATIENCE);
            wait_for(self.0.as_fd(), Direction::Read, None, until).unwrap();
            match self.0.receive(&mut bytes[done..], fds, 253) {
                Ok(received) if received.bytes == 0 => return None,
                Ok(received) => done += received.bytes,
                Err(_) => return None,
            }
        }
        Some(bytes)
    }
}

/// Steps of a successor: what it says, or the number of what it hears.
enum Step {
    Says(u16),
    Hears(u16),
}

const STEPS: [Step; 7] = [
    Step::Says(1),
    Step::Hears(2),
    Step::Says(3),
    Step::Hears(4),
    Step::Hears(5),
    Step::Says(6),
    Step::Hears(7),
];

/// Death of a process closes its sockets, and that is all that anybody sees of it.
#[test]
fn the_old_process_goes_on_whenever_the_new_one_dies_before_it_has_taken_the_link() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    for life in 0..=STEPS.len() {
        submit(&mut disk, 1, 0..8);
        let (ours, theirs) = Stream::pair().unwrap();
        let giver = giver(served.server());
        let old = thread::spawn(move || giver.hand_over(theirs));
        let peer = Peer(ours);
        for step in &STEPS[..life] {
            match step {
                Step::Says(1) => peer.say(1, &hello(), &[]),
                Step::Says(number) => peer.say(*number, &[], &[]),
                Step::Hears(number) => drop(peer.hear(*number)),
            }
        }
        drop(peer);
        let error = old.join().unwrap().unwrap_err();
        let dead = matches!(error, HandOverError::Gone { .. } | HandOverError::Socket(_));
        assert!(dead, "after {life} steps: {error}");
        assert!(!served.server().is_away());
        expect(&mut disk, 1, 8);
        let pattern = vec![u8::try_from(life).unwrap(); SECTOR];
        disk.rings[0].write(200, &pattern);
        assert_eq!(disk.rings[0].read(200, SECTOR), pattern);
    }
    disk.front.sync().unwrap();
    // And it can be handed over after all.
    let next = upgrade(served.server(), &served.image(), &served.socket());
    assert_eq!(disk.rings[0].read(5, SECTOR), content(5));
    drop(next);
}

/// What is between the two passes on so many messages, and then both are dead to each other.
#[test]
fn the_new_process_takes_nothing_when_the_old_one_dies_before_it_has_let_go() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    for passed in 0..=6 {
        submit(&mut disk, 1, 0..8);
        let (to_old, old_end) = Stream::pair().unwrap();
        let (to_new, new_end) = Stream::pair().unwrap();
        let giver = giver(served.server());
        let old = thread::spawn(move || giver.hand_over(old_end));
        let (image, socket) = (served.image(), served.socket());
        let new = thread::spawn(move || take(new_end, &image, &socket).map(drop));
        let (old_side, new_side) = (Peer(to_old), Peer(to_new));
        // hello, lent, prepared, fds, saved, ready.
        let from_new = [true, false, true, false, false, true];
        for from_new in &from_new[..passed] {
            let (from, to) = match from_new {
                true => (&new_side, &old_side),
                false => (&old_side, &new_side),
            };
            let (number, body, fds) = from.next().expect("a message");
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            to.say(number, &body, &fds);
        }
        drop((old_side, new_side));
        let refused = new.join().unwrap().unwrap_err();
        let dead = matches!(
            refused,
            HandOverError::Gone { .. } | HandOverError::Socket(_)
        );
        assert!(dead, "after {passed} messages: {refused}");
        assert!(old.join().unwrap().is_err());
        expect(&mut disk, 1, 8);
        assert_eq!(disk.rings[0].read(5, SECTOR), content(5));
        assert!(served.socket().exists());
    }
}

/// Passes the next message on.
#[track_caller]
fn pass(from: &Peer, to: &Peer) -> u16 {
    let (number, body, fds) = from.next().expect("a message");
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    to.say(number, &body, &fds);
    number
}

/// Whoever waits to hear that the link was taken over hears so.
#[test]
fn a_front_end_that_leaves_meanwhile_is_missed_by_the_new_process() {
    let served = Served::disk(2);
    let disk = served.drive(2);
    let (to_old, old_end) = Stream::pair().unwrap();
    let (to_new, new_end) = Stream::pair().unwrap();
    let giver = giver(served.server());
    let old = thread::spawn(move || giver.hand_over(old_end));
    let (image, socket) = (served.image(), served.socket());
    let new = thread::spawn(move || take(new_end, &image, &socket));
    let (old_side, new_side) = (Peer(to_old), Peer(to_new));
    for from_new in [true, false, true, false, false, true] {
        match from_new {
            true => pass(&new_side, &old_side),
            false => pass(&old_side, &new_side),
        };
    }
    drop(disk);
    assert_eq!(pass(&old_side, &new_side), 7);
    assert_eq!(pass(&new_side, &old_side), 8);
    let next = new.join().unwrap().unwrap();
    old.join().unwrap().unwrap();
    let taken = next.event();
    assert!(matches!(taken, Event::TakenOver { .. }), "{taken:?}");
    let ended = next.event();
    assert!(
        matches!(ended, Event::Ended { fault: false, .. }),
        "{ended:?}"
    );
    let mut disk = served.drive(2);
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
}

/// What the old process gives is not believed.
#[test]
fn a_link_that_makes_no_sense_is_refused_and_the_old_process_goes_on() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    let spoil: [fn(&mut SavedLink); 5] = [
        |saved| saved.device_id = 1,
        |saved| saved.fds.swap(0, 2),
        |saved| {
            saved.fds.pop();
        },
        |saved| saved.session.as_mut().unwrap().core.truncate(50),
        |saved| saved.session.as_mut().unwrap().rings.clear(),
    ];
    for (case, spoil) in spoil.into_iter().enumerate() {
        let (to_old, old_end) = Stream::pair().unwrap();
        let (to_new, new_end) = Stream::pair().unwrap();
        let giver = giver(served.server());
        let old = thread::spawn(move || giver.hand_over(old_end));
        let (image, socket) = (served.image(), served.socket());
        let new = thread::spawn(move || take(new_end, &image, &socket).map(drop));
        let (old_side, new_side) = (Peer(to_old), Peer(to_new));
        for from_new in [true, false, true, false, false, true] {
            let (from, to) = match from_new {
                true => (&new_side, &old_side),
                false => (&old_side, &new_side),
            };
            let (number, mut body, fds) = from.next().expect("a message");
            if number == 5 {
                let mut saved = SavedLink::parse(&body).unwrap();
                assert_eq!(SavedLink::parse(&saved.bytes()).unwrap(), saved);
                spoil(&mut saved);
                body = saved.bytes();
            }
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            to.say(number, &body, &fds);
        }
        let refused = new.join().unwrap().unwrap_err();
        let here = !matches!(refused, HandOverError::Gone { .. });
        assert!(here, "case {case}: {refused}");
        let told = old.join().unwrap().unwrap_err();
        assert_eq!(told.to_string(), refused.to_string(), "case {case}");
        assert_eq!(disk.rings[0].read(5, SECTOR), content(5));
    }
}

/// Nobody waits for a process that says nothing, and only one takes a link over at a time.
#[test]
fn a_second_successor_is_refused_and_so_is_one_of_another_release() {
    let served = Served::disk(2);
    let mut disk = served.drive(2);
    let (ours, theirs) = Stream::pair().unwrap();
    let first = giver(served.server());
    let old = thread::spawn(move || first.hand_over(theirs));
    let peer = Peer(ours);
    peer.say(1, &hello(), &[]);
    peer.hear(2);
    let (_other, theirs) = Stream::pair().unwrap();
    let error = giver(served.server()).hand_over(theirs).unwrap_err();
    assert!(matches!(error, HandOverError::Busy), "{error}");
    drop(peer);
    assert!(old.join().unwrap().is_err());
    for (hello, why) in [
        ([2, 0, 0, 0, 1, 0, 0, 0], "version 2"),
        ([1, 0, 0, 0, 0, 0, 0, 0], "format 0"),
    ] {
        let (ours, theirs) = Stream::pair().unwrap();
        let peer = Peer(ours);
        peer.say(1, &hello, &[]);
        let error = giver(served.server()).hand_over(theirs).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        peer.hear(9);
    }
    assert_eq!(disk.rings[0].read(5, SECTOR), content(5));
}

#[test]
fn a_device_that_cannot_be_lent_says_so() {
    let error = NotLent::of("gpu").to_string();
    assert!(
        error.contains("gpu") && error.contains("restart"),
        "{error}"
    );
}
