//! The front end's side: the socket on which it is shown the screens.

use std::os::fd::AsFd as _;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use linkspan_backends::display::{Source as _, SourceError};
use linkspan_engine::Device as _;
use linkspan_sys::Stream;
use linkspan_sys::poll::{Direction, Wake, wait_for};

use crate::rig::{Rig, pattern};

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

/// Answers questions about the screens.
fn answering(front: FrontEnd) -> JoinHandle<()> {
    thread::spawn(move || {
        front.negotiate();
        while let Some((request, body)) = front.hear() {
            match request {
                3 => {
                    let mut info = [0u32; 102];
                    info[0] = 0x1101;
                    (info[8], info[9], info[10]) = (1600, 900, 1);
                    let bytes: Vec<u8> = info.iter().flat_map(|it| it.to_le_bytes()).collect();
                    front.answer(3, &bytes);
                }
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
    let answers = answering(FrontEnd::of(&rig));
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
    let answers = answering(FrontEnd::of(&rig));
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
