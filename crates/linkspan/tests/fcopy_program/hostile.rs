//! Hosts, guests and senders that say anything, at the real programs.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Child;

use linkspan_engine::vmbus::{Channel, Framed, Offer};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::census::settled;
use linkspan_vmbus::fcopy::{START_LEN, WRITE_LEN};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{Frame, Reason, Role, VERSION};
use linkspan_vmbus::packet::Header;
use tempfile::tempdir;

use crate::rig::{Program, Rig};

// A host that says anything.

pub(crate) struct RawHost {
    pub(crate) channel: Channel,
    _framed: Framed,
}

fn accept(listener: &Listener) -> Framed {
    let deadline = std::time::Instant::now() + PATIENCE;
    wait_for(listener.as_fd(), Direction::Read, None, Some(deadline)).unwrap();
    let mut framed = Framed::accepted(listener.accept().unwrap());
    let never = linkspan_sys::EventFd::new().unwrap();
    let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    assert_eq!(frame, Frame::hello(Role::Guest));
    framed
}

fn channel_frame(offer: &Offer) -> Frame {
    Frame::Channel {
        version: VERSION,
        interface: FILE_COPY.interface,
        instance: FILE_COPY.instance.unwrap(),
        shape: offer.shape,
    }
}

impl RawHost {
    pub(crate) fn meet(listener: &Listener) -> Self {
        Self::meet_with(listener, 20480)
    }

    /// The same with rings of so many bytes.
    pub(crate) fn meet_with(listener: &Listener, ring: u64) -> Self {
        let mut framed = accept(listener);
        let offer = Offer::new(ring).unwrap();
        framed
            .say(&channel_frame(&offer), &offer.descriptors())
            .unwrap();
        let mut host = Self {
            channel: offer.host().unwrap(),
            _framed: framed,
        };
        let body = [1, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0];
        assert_eq!(host.ask(0, &body), 0);
        host
    }

    /// Sends a request and gives the status of its answer.
    fn ask(&mut self, kind: u16, body: &[u8]) -> u32 {
        let message = message(kind, body);
        self.channel
            .outgoing
            .send(Header::in_band(1), &[&message])
            .unwrap();
        self.channel.flush().unwrap();
        let mut packet = self.channel.packet().unwrap();
        loop {
            self.channel.incoming.refresh().unwrap();
            if self.channel.incoming.receive(&mut packet).unwrap() {
                let status = packet.payload()[20..24].try_into().unwrap();
                return u32::from_le_bytes(status);
            }
            self.channel.flush().unwrap();
            if !self.channel.incoming.arm().unwrap() {
                std::thread::yield_now();
            }
        }
    }
}

pub(crate) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let size = u16::try_from(body.len()).unwrap();
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend((u32::from(size) + 20).to_le_bytes());
    bytes.extend([3, 0, 0, 0]);
    bytes.extend(kind.to_le_bytes());
    bytes.extend([1, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 9, 3, 0, 0]);
    bytes.extend(body);
    bytes
}

pub(crate) fn start(path: &Path, size: u64) -> Vec<u8> {
    let mut body = vec![0; START_LEN];
    let put = |body: &mut Vec<u8>, at: usize, text: &str| {
        for (index, unit) in text.encode_utf16().enumerate() {
            body[at + 2 * index..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    };
    put(&mut body, 36, "file");
    put(&mut body, 556, path.to_str().unwrap());
    body[1080..].copy_from_slice(&size.to_le_bytes());
    body
}

fn resident(child: &Child) -> u64 {
    let path = format!("/proc/{}/statm", child.id());
    let text = fs::read_to_string(path).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Known bug 3 of Linux's daemon: each START kept its names.
#[test]
fn a_hundred_thousand_starts_take_no_memory() {
    let mut rig = Rig::new();
    // In memory, where there is such a place: the file system is not what is tried.
    let quick = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempdir())
        .unwrap();
    rig.root = quick.path().to_owned();
    let listener = Listener::bind(&rig.socket).unwrap();
    let guest = Program::start(rig.guest_command(&[]));
    let mut host = RawHost::meet(&listener);
    let start = start(&rig.root, 5000);
    let mut before = 0;
    for round in 0..100_000 {
        assert_eq!(host.ask(7, &start), 0);
        if round == 1000 {
            before = resident(&guest.child);
        }
    }
    let after = resident(&guest.child);
    assert!(after <= before + 64, "{before} pages became {after}");
    let open = fs::read_dir(format!("/proc/{}/fd", guest.child.id())).unwrap();
    assert!(open.count() < 30);
    guest.stop();
    assert!(rig.names().is_empty());
}

/// Known bugs 13 to 16 and 19 of Linux's daemon, at the running program.
#[test]
fn a_hostile_host_gets_errors_and_the_guest_lives() {
    const FAIL: u32 = 0x8000_4005;
    const INVALID: u32 = 0x8007_0057;
    let rig = Rig::new();
    let listener = Listener::bind(&rig.socket).unwrap();
    let mut guest = Program::start(rig.guest_command(&[]));
    let mut host = RawHost::meet(&listener);
    guest.event("joined");
    let head = |operation: u32| {
        let mut body = operation.to_le_bytes().to_vec();
        body.resize(36, 0);
        body
    };
    let write = |size: u32| {
        let mut body = head(1);
        body.resize(WRITE_LEN, 7);
        body[40..48].copy_from_slice(&0_u64.to_le_bytes());
        body[48..52].copy_from_slice(&size.to_le_bytes());
        body
    };
    assert_eq!(host.ask(7, &head(2)), FAIL);
    assert_eq!(host.ask(7, &write(10)), FAIL);
    assert_eq!(host.ask(7, &[0; 10]), INVALID);
    for len in [0, 35, 36, 1000, START_LEN - 1] {
        assert_eq!(host.ask(7, &start(&rig.root, 10)[..len]), INVALID);
    }
    assert_eq!(host.ask(7, &start(&rig.root, 10)), 0);
    assert_eq!(host.ask(7, &write(200_000)), INVALID);
    assert_eq!(host.ask(7, &write(11)), INVALID);
    assert_eq!(host.ask(7, &write(10)), 0);
    assert_eq!(host.ask(7, &head(2)), 0);
    rig.landed("file", &[7; 10]);
    drop(host);
    guest.event("left");
    assert_eq!(RawHost::meet(&listener).ask(7, &head(3)), 0);
    guest.stop();
}

#[test]
fn rings_of_nonsense_and_other_descriptors_cost_a_channel_only() {
    let rig = Rig::new();
    let listener = Listener::bind(&rig.socket).unwrap();
    let mut guest = Program::start(rig.guest_command(&[]));
    let cancel = [&[3, 0, 0, 0][..], &[0; 32]].concat();
    // Rings of nonsense: the guest leaves, and comes again.
    for seed in 0_u8..8 {
        let mut framed = accept(&listener);
        let offer = Offer::new(20480).unwrap();
        let noise: Vec<u8> = (0..offer.shape.len)
            .map(|at| at.to_le_bytes()[0].wrapping_mul(seed | 1) ^ seed)
            .collect();
        rustix::io::pwrite(&offer.memory, &noise, 0).unwrap();
        // Indices that can be, so that what is behind them is looked at.
        for ring in [0, 20480] {
            rustix::io::pwrite(&offer.memory, &[0; 8], ring).unwrap();
        }
        let write: u32 = 64 * u32::from(seed + 1);
        rustix::io::pwrite(&offer.memory, &write.to_le_bytes(), 20480).unwrap();
        framed
            .say(&channel_frame(&offer), &offer.descriptors())
            .unwrap();
        offer.call.signal().unwrap();
        guest.event("left");
    }
    // A host that does not want it, and is asked again.
    accept(&listener)
        .say(&Frame::Refused(Reason::Busy), &[])
        .unwrap();
    let mut host = RawHost::meet(&listener);
    assert_eq!(host.ask(7, &cancel), 0);
    // Descriptors that are none of a channel.
    drop(host);
    let mut framed = accept(&listener);
    let offer = Offer::new(20480).unwrap();
    let file = File::open("/dev/zero").unwrap();
    let fds = [file.as_fd(), offer.kick.as_fd(), offer.call.as_fd()];
    framed.say(&channel_frame(&offer), &fds).unwrap();
    drop(framed);
    assert_eq!(RawHost::meet(&listener).ask(7, &cancel), 0);
    guest.stop();
    assert!(rig.names().is_empty());
}

// A guest that says anything.

pub(crate) fn join(rig: &Rig) -> (Framed, Vec<std::os::fd::OwnedFd>, linkspan_vmbus::Shape) {
    let mut framed = Framed::connect(&rig.socket, Role::Guest).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let never = linkspan_sys::EventFd::new().unwrap();
    let (frame, fds) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let Frame::Channel { shape, .. } = frame else {
        panic!("{frame:?}");
    };
    (framed, fds, shape)
}

#[test]
fn a_hostile_guest_is_given_up_and_the_host_lives() {
    let rig = Rig::new();
    let mut host = rig.host(&["--ring-size", "20480"]);
    // Indices that no ring has, and a kick.
    for (index, value) in [(0, 4_u32), (0, 1 << 30), (20480 + 4, 12)] {
        let (_framed, fds, _) = join(&rig);
        rustix::io::pwrite(&fds[0], &value.to_le_bytes(), index).unwrap();
        rustix::io::write(&fds[1], &1_u64.to_ne_bytes()).unwrap();
        let left = host.event("left");
        assert!(left["reason"].as_str().unwrap().contains("ring"), "{left}");
    }
    // Messages that are none, and a frame that no guest says.
    for payload in [&[0xFF; 40][..], &[1, 0, 0, 0, 20, 0, 0, 0], &[]] {
        let (_framed, fds, shape) = join(&rig);
        let mut channel = Channel::guest(shape, fds).unwrap();
        channel
            .outgoing
            .send(Header::in_band(1), &[payload])
            .unwrap();
        channel.flush().unwrap();
        host.event("left");
    }
    let (framed, _, _) = join(&rig);
    rustix::io::write(framed.as_fd(), &[6, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    host.event("left");
    // The eventfds are the guest's as well: full, they hold nobody up.
    let (framed, fds, _) = join(&rig);
    for fd in &fds[1..] {
        // What the host has signalled meanwhile leaves less room.
        let filled = settled(|| {
            let _ = rustix::io::read(fd, &mut [0; 8]);
            rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).is_ok()
        });
        assert!(filled);
    }
    // It does not even negotiate.
    let source = rig.source("file", b"x");
    rig.send(&[&source], &["--timeout", "1"])
        .expect(3, &["no-guest"]);
    drop(framed);
    host.event("left");
    let _guest = rig.guest(&[]);
    rig.send(&[source], &[]).expect(0, &["done"]);
    host.stop();
}

#[test]
fn clients_that_say_nonsense_are_left() {
    let rig = Rig::new();
    let (host, _guest) = (rig.host(&[]), rig.guest(&[]));
    let mut silent = Vec::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[1, 0, 0, 0, 8, 0, 0, 0],
        &[255],
    ] {
        let stream = linkspan_sys::Stream::connect(&rig.socket).unwrap();
        rustix::io::write(stream.as_fd(), bytes).unwrap();
        silent.push(stream);
    }
    // What is sent as a file must be one.
    let mut framed = Framed::connect(&rig.socket, Role::Sender).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let never = linkspan_sys::EventFd::new().unwrap();
    framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let request = linkspan_vmbus::link::Request {
        file: "file".into(),
        path: "x".into(),
        overwrite: false,
        create_path: false,
        size: 10,
        patience: 1000,
        verify: false,
        folder: false,
    };
    let zero = File::open("/dev/zero").unwrap();
    framed
        .say(&Frame::Send(request.clone()), &[zero.as_fd()])
        .unwrap();
    let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let source = linkspan_vmbus::link::Outcome::Source;
    assert_eq!(frame, Frame::Done(source));
    // And as long as it was said to be: what was begun is taken back.
    let short = File::open(rig.source("short", b"1234")).unwrap();
    framed.say(&Frame::Send(request), &[short.as_fd()]).unwrap();
    let (frame, _) = framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    assert_eq!(frame, Frame::Done(source));
    assert!(rig.names().is_empty());
    rig.send(&[rig.source("file", b"x")], &[])
        .expect(0, &["done"]);
    host.stop();
}

/// A sender that is there before the guest, and that nothing else wakes the host for.
#[test]
fn a_file_that_waits_for_a_guest_is_sent_when_there_is_one() {
    let rig = Rig::new();
    let _host = rig.host(&[]);
    let mut framed = Framed::connect(&rig.socket, Role::Sender).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let never = linkspan_sys::EventFd::new().unwrap();
    framed.await_frame(never.as_fd(), Some(deadline)).unwrap();
    let request = linkspan_vmbus::link::Request {
        file: "file".into(),
        path: rig.root.to_str().unwrap().into(),
        overwrite: false,
        create_path: false,
        size: 4,
        patience: 60_000,
        verify: false,
        folder: false,
    };
    let source = File::open(rig.source("file", b"1234")).unwrap();
    framed
        .say(&Frame::Send(request), &[source.as_fd()])
        .unwrap();
    let _guest = rig.guest(&[]);
    loop {
        match framed.await_frame(never.as_fd(), Some(deadline)).unwrap() {
            (Frame::Progress { .. }, _) => {}
            (frame, _) => {
                assert_eq!(frame, Frame::Done(linkspan_vmbus::link::Outcome::Done));
                break;
            }
        }
    }
    rig.landed("file", b"1234");
}
