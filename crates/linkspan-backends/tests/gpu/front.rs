//! The front end's side: the socket on which it is shown the screens.

use std::os::fd::AsFd as _;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use linkspan_backends::display::{Source as _, SourceError};
use linkspan_engine::{Device as _, Passed};
use linkspan_sys::Stream;
use linkspan_sys::poll::{Direction, Wake, wait_for};

use linkspan_testkit::census::settled;

use crate::rig::{Rig, pattern, pixels, until};

const XRGB: u32 = 2;
const ARGB: u32 = 1;
const SIZE: (u32, u32) = (640, 480);

/// A front end of one screen.
struct FrontEnd(Stream);

impl FrontEnd {
    fn of(rig: &Rig) -> Self {
        let (ours, theirs) = Stream::pair().unwrap();
        rig.device.set_gpu_socket(theirs).unwrap();
        Self(ours)
    }

    fn read(&self, len: usize) -> Option<Vec<u8>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            let waited = wait_for(self.0.as_fd(), Direction::Read, None, Some(deadline));
            assert_eq!(waited.unwrap(), Wake::Ready, "nothing is said");
            match self.0.receive(&mut bytes[have..], &mut Vec::new(), 0) {
                Ok(received) if received.bytes > 0 => have += received.bytes,
                Ok(_) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        Some(bytes)
    }

    /// The next message: its number and its body.
    fn hear(&self) -> Option<(u32, Vec<u8>)> {
        let header = self.read(12)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let body = match word(8) {
            0 => Vec::new(),
            len => self.read(len as usize)?,
        };
        Some((word(0), body))
    }

    fn answer(&self, request: u32, body: &[u8]) {
        let len = u32::try_from(body.len()).unwrap();
        let mut bytes: Vec<u8> = [request, 4, len]
            .iter()
            .flat_map(|it| it.to_ne_bytes())
            .collect();
        bytes.extend_from_slice(body);
        let soon = Instant::now() + Duration::from_secs(60);
        self.0.send(&bytes, &[], soon).unwrap();
    }

    fn negotiated(rig: &Rig) -> Self {
        let front = Self::of(rig);
        front.negotiate();
        front
    }

    /// Says that it has EDID, and hears that it is used.
    fn negotiate(&self) {
        assert_eq!(self.hear(), Some((1, vec![])));
        self.answer(1, &3u64.to_ne_bytes());
        assert_eq!(self.hear(), Some((2, 1u64.to_ne_bytes().to_vec())));
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|word| u32::from_ne_bytes(*word)).collect()
}

#[test]
fn the_front_end_is_shown_what_the_guest_draws() {
    let mut rig = Rig::new();
    let front = FrontEnd::of(&rig);
    front.negotiate();
    let wanted = pattern(640 * 480, 9);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, [0, 0, 640, 480]);
    // A size comes before the first pixels.
    let (request, body) = front.hear().unwrap();
    assert_eq!((request, words(&body)), (7, vec![0, 640, 480]));
    let mut seen = vec![u32::MAX; 640 * 480];
    let mut left = 640 * 480;
    while left > 0 {
        let (request, body) = front.hear().unwrap();
        assert_eq!(request, 8);
        let body = words(&body);
        let [head, x, y, width, height] = body[..5].try_into().unwrap();
        let [x, y, width, height] = [x, y, width, height].map(|it: u32| it as usize);
        assert_eq!((head, body.len() - 5), (0, width * height));
        for (line, pixels) in body[5..].chunks(width).enumerate() {
            let start = (y + line) * 640 + x;
            for (at, pixel) in (start..).zip(pixels) {
                assert_eq!(seen[at], u32::MAX, "told twice");
                seen[at] = pixel & 0x00FF_FFFF;
                left -= 1;
            }
        }
    }
    assert!(seen == wanted);
    // One pixel: its tile, and nothing else.
    let mut new = wanted;
    new[100 * 640 + 100] ^= 0xFF;
    rig.driver.draw(1, SIZE, 0, &new);
    rig.driver.flush(1, [0, 0, 640, 480]);
    let (request, body) = front.hear().unwrap();
    assert_eq!(
        (request, words(&body)[..5].to_vec()),
        (8, vec![0, 96, 96, 32, 32])
    );
    // The pointer: 64 by 64 whatever the guest has.
    rig.driver.create(2, ARGB, (32, 32), 2_000_000);
    rig.driver
        .draw(2, (32, 32), 2_000_000, &[0xFF00_FF00; 1024]);
    rig.driver.pointer(0x300, (5, 6), 2, (1, 2));
    let (request, body) = front.hear().unwrap();
    let body = words(&body);
    assert_eq!((request, body[..5].to_vec()), (6, vec![0, 5, 6, 1, 2]));
    assert_eq!(
        (body[5], body[5 + 31], body[5 + 32]),
        (0xFF00_FF00, 0xFF00_FF00, 0)
    );
    assert_eq!(
        (body.len(), body[5 + 64 * 31], body[5 + 64 * 32]),
        (4101, 0xFF00_FF00, 0)
    );
    rig.driver.pointer(0x301, (7, 8), 0, (0, 0));
    assert_eq!(
        front.hear().map(|(it, body)| (it, words(&body))),
        Some((4, vec![0, 7, 8]))
    );
    rig.driver.pointer(0x300, (7, 8), 0, (0, 0));
    assert_eq!(front.hear().unwrap().0, 5);
    rig.driver.show(0, 0, [0; 4]);
    assert_eq!(
        front.hear().map(|(it, body)| (it, words(&body))),
        Some((7, vec![0, 0, 0]))
    );
}

/// What a front end says of its screens: the first one has this size.
fn display_info(width: u32, height: u32) -> Vec<u8> {
    let mut info = [0u32; 102];
    info[0] = 0x1101;
    (info[8], info[9], info[10]) = (width, height, 1);
    info.iter().flat_map(|it| it.to_le_bytes()).collect()
}

/// Answers questions about the screens.
fn answering(front: FrontEnd) -> JoinHandle<()> {
    thread::spawn(move || {
        while let Some((request, body)) = front.hear() {
            match request {
                3 => front.answer(3, &display_info(1600, 900)),
                11 => {
                    assert_eq!(words(&body), [0]);
                    let mut edid = vec![0xEE; 24 + 8 + 1024];
                    edid[..4].copy_from_slice(&0x1104u32.to_le_bytes());
                    edid[24..28].copy_from_slice(&128u32.to_le_bytes());
                    front.answer(11, &edid);
                }
                other => panic!("{other}"),
            }
        }
    })
}

#[test]
fn the_front_end_says_how_large_screens_are() {
    let mut rig = Rig::new();
    let answers = answering(FrontEnd::negotiated(&rig));
    for _ in 0..3 {
        assert_eq!(rig.driver.display_info()[0], (1600, 900));
        assert_eq!(rig.driver.edid(0), [0xEE; 128]);
    }
    // Then viewers do not.
    let error = rig.source().resize(0, 800, 600).unwrap_err();
    assert!(matches!(&error, SourceError::Unsupported(why) if why.contains("has the say")));
    // When it is gone the guest is told ours, and another one may come.
    rig.device.front_end_is_gone();
    answers.join().unwrap();
    assert_eq!(rig.driver.display_info()[0], (1280, 800));
    let answers = answering(FrontEnd::negotiated(&rig));
    assert_eq!(rig.driver.display_info()[0], (1600, 900));
    drop(rig);
    answers.join().unwrap();
}

/// QEMU may be busy for longer than its guest can wait: that guest is told our own size, and
/// QEMU is asked again the next time.
#[test]
fn a_front_end_that_answers_late_is_not_given_up() {
    let mut rig = Rig::new();
    let front = FrontEnd::of(&rig);
    // Not even what it has was said.
    assert_eq!(rig.driver.display_info()[0], (1280, 800));
    assert_eq!(rig.driver.edid(0)[..2], [0, 0xFF]);
    front.negotiate();
    assert_eq!(rig.driver.display_info()[0], (1280, 800));
    // This one is for nobody.
    assert_eq!(front.hear(), Some((3, vec![])));
    front.answer(3, &display_info(800, 600));
    // And it is still shown the screen.
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, [0, 0, 640, 480]);
    let (request, body) = front.hear().unwrap();
    assert_eq!((request, words(&body)), (7, vec![0, 640, 480]));
    rig.driver.show(0, 0, [0; 4]);
    loop {
        let (request, body) = front.hear().unwrap();
        if (request, words(&body)) == (7, vec![0, 0, 0]) {
            break;
        }
    }
    let answers = answering(front);
    assert_eq!(rig.driver.display_info()[0], (1600, 900));
    drop(rig);
    answers.join().unwrap();
}

/// QEMU may be stopped for long, and is shown the newest picture when it goes on. Meanwhile
/// neither the guest nor viewers wait for it.
#[test]
fn a_front_end_that_does_not_read_is_not_given_up_and_holds_up_nobody() {
    let mut rig = Rig::new();
    let front = FrontEnd::negotiated(&rig);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, [0, 0, 640, 480]);
    let mut screen = rig.screen();
    let mut wanted = Vec::new();
    // Far more than its socket takes.
    for seed in 1..20 {
        wanted = pattern(640 * 480, seed);
        rig.driver.draw(1, SIZE, 0, &wanted);
        rig.driver.flush(1, [0, 0, 640, 480]);
        until(&mut screen, |screen| pixels(screen) == wanted);
    }
    // The guest is told our own size, each time after its limit, and goes on.
    for _ in 0..3 {
        assert_eq!(rig.driver.display_info()[0], (1280, 800));
    }
    let mut seen = vec![0; 640 * 480];
    let mut size = Vec::new();
    let mut asked = 0;
    while seen != wanted || asked < 3 {
        let (request, body) = front.hear().expect("it is not given up");
        let body = words(&body);
        match request {
            3 => asked += 1,
            7 => size = body,
            8 => {
                let [x, y, width] = [body[1], body[2], body[3]].map(|it| it as usize);
                for (line, pixels) in body[5..].chunks(width).enumerate() {
                    let start = (y + line) * 640 + x;
                    for (seen, pixel) in seen[start..].iter_mut().zip(pixels) {
                        *seen = pixel & 0x00FF_FFFF;
                    }
                }
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(size, [0, 640, 480]);
    // Answers that are late are for nobody; the next one counts.
    (0..3).for_each(|_| front.answer(3, &display_info(800, 600)));
    let answers = answering(front);
    assert_eq!(rig.driver.display_info()[0], (1600, 900));
    drop(rig);
    answers.join().unwrap();
}

#[test]
fn a_front_end_that_answers_wrong_or_never_is_done_without() {
    let mut rig = Rig::new();
    // Never.
    let silent = FrontEnd::of(&rig);
    assert_eq!(rig.driver.display_info()[0], (1280, 800));
    // Nonsense.
    let front = FrontEnd::of(&rig);
    front.negotiate();
    front.answer(9, &[0; 100]);
    assert_eq!(front.hear(), None);
    assert_eq!(rig.driver.display_info()[0], (1280, 800));
    // Gone.
    drop(FrontEnd::of(&rig));
    assert_eq!(rig.driver.display_info()[0], (1280, 800));
    drop(silent);
}

/// What is said on the socket can be seen, pixels while somebody watches.
#[test]
fn what_the_front_end_is_told_is_said_in_words() {
    let mut rig = Rig::new();
    rig.device.messages().watch();
    let front = FrontEnd::negotiated(&rig);
    let wanted = pattern(640 * 480, 9);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    // Whoever watched may have been gone for too long by now.
    rig.device.messages().watch();
    rig.driver.show(0, 1, [0, 0, 640, 480]);
    // What is behind these is read when they are on their way.
    while front.hear().unwrap().0 != 8 {}
    let said = rig.device.messages().last(0);
    for (by_peer, text) in [
        (false, "VHOST_USER_GPU_GET_PROTOCOL_FEATURES"),
        (true, "VHOST_USER_GPU_GET_PROTOCOL_FEATURES reply: 0x3"),
        (false, "VHOST_USER_GPU_SET_PROTOCOL_FEATURES: 0x1"),
        (false, "VHOST_USER_GPU_SCANOUT: screen 0, 640 by 480"),
    ] {
        let is = |it: &Passed| it.by_peer == by_peer && it.text == text;
        assert!(said.iter().any(is), "{text}: {said:#?}");
    }
    let update = |it: &Passed| it.text.starts_with("VHOST_USER_GPU_UPDATE: ");
    assert!(settled(|| rig.device.messages().last(0).iter().any(update)));
}
