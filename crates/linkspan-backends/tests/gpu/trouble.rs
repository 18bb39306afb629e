//! A GPU that is in the way of those who look: its memory cannot be had for a while, or it
//! shows something else while it is asked.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use linkspan_backends::display::{Change, GpuSource, Memory, Screen, Shown, Source, SourceError};
use linkspan_sys::poll::{Direction, Wake, wait_for};

use crate::rig::{Rig, pattern, pixels, until};
use crate::vnc::{Client, EXTENDED_SIZE, Served};

const XRGB: u32 = 2;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];

struct Troubled {
    source: GpuSource,
    /// How often memory was asked for, and which time it is in vain.
    asked: u32,
    fails: u32,
    why: fn(&Shown) -> SourceError,
    before_resize: Box<dyn FnMut(&GpuSource) + Send>,
}

impl Source for Troubled {
    fn name(&self) -> String {
        self.source.name()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        self.source.planes()
    }

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        self.asked += 1;
        match self.asked == self.fails {
            true => Err((self.why)(shown)),
            false => self.source.memory(shown),
        }
    }

    fn change(&mut self) -> Change {
        self.source.change()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.source.wake_fd()
    }

    fn has_news(&self) -> bool {
        self.source.has_news()
    }

    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError> {
        (self.before_resize)(&self.source);
        self.source.resize(head, width, height)
    }
}

fn troubled(rig: &Rig, fails: u32, why: fn(&Shown) -> SourceError) -> Screen {
    let source = Troubled {
        source: rig.source(),
        asked: 0,
        fails,
        why,
        before_resize: Box::new(|_| {}),
    };
    Screen::new(Box::new(source), 0).unwrap()
}

/// One that knows the size of the picture.
fn viewer(served: &Served) -> Client {
    let mut client = Client::connect(served.address);
    client.encodings(&[0, EXTENDED_SIZE]);
    client.request(true);
    while client.size != (200, 100) {
        client.update();
        client.request(true);
    }
    client
}

/// No descriptor is left for a moment: the picture comes although the guest draws nothing.
#[test]
fn a_failure_that_passes_is_not_seen_for_ever() {
    let mut rig = Rig::new();
    let wanted = pattern(20_000, 8);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, WHOLE);
    let screen = troubled(&rig, 1, |_| SourceError::System {
        what: "no descriptor",
        source: io::Error::from_raw_os_error(24),
    });
    let served = Served::of_screen(screen);
    let mut client = viewer(&served);
    client.until(&wanted);
    served.end().unwrap();
}

/// What is gone between the question and its answer is no reason to show another size.
#[test]
fn a_picture_that_has_just_gone_stays_until_the_next_one() {
    let mut rig = Rig::new();
    let (old, new) = (pattern(20_000, 8), pattern(5_000, 9));
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &old);
    rig.driver.show(0, 1, WHOLE);
    let mut screen = troubled(&rig, 2, |shown| SourceError::Retired { id: shown.id });
    until(&mut screen, |screen| pixels(screen) == old);
    rig.driver.create(2, XRGB, (100, 50), 100_000);
    rig.driver.draw(2, (100, 50), 100_000, &new);
    rig.driver.show(0, 2, [0, 0, 100, 50]);
    // In vain.
    while !screen.has_failed() {
        let update = screen.look().unwrap();
        assert!(update.is_empty(), "{update:?}");
        assert!(screen.no_signal().is_none() && pixels(&screen) == old);
    }
    let update = screen.look().unwrap();
    assert!(update.resized && pixels(&screen) == new);
    assert!(!screen.has_failed());
}

/// What the GPU says before it answers was heard, and its socket does not tell of it again.
#[test]
fn what_is_drawn_while_a_size_is_asked_for_is_seen() {
    let mut rig = Rig::new();
    let mut wanted = pattern(20_000, 8);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, WHOLE);
    let (asks, asked) = channel();
    let (draws, drawn) = channel();
    let source = Troubled {
        source: rig.source(),
        asked: 0,
        fails: 0,
        why: |shown| SourceError::Retired { id: shown.id },
        before_resize: Box::new(move |source| {
            asks.send(()).unwrap();
            drawn.recv().unwrap();
            let limit = Instant::now() + Duration::from_secs(60);
            let wake = source.wake_fd().unwrap();
            let said = wait_for(wake, Direction::Read, None, Some(limit)).unwrap();
            assert_eq!(said, Wake::Ready);
        }),
    };
    let served = Served::of_screen(Screen::new(Box::new(source), 0).unwrap());
    let mut client = viewer(&served);
    client.until(&wanted);
    client.ask_size(320, 240);
    asked.recv().unwrap();
    wanted[50 * 200 + 70] ^= 0x00FF_FFFF;
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.flush(1, WHOLE);
    draws.send(()).unwrap();
    client.until(&wanted);
    served.end().unwrap();
}
