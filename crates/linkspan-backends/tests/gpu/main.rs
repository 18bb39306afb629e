//! The virtual GPU as its driver, its viewers and its front end see it.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are cut into words"
)]

mod clients;
mod flood;
mod front;
mod input;
mod rig;
mod tigervnc;
mod trouble;
mod vnc;
mod watch;

use std::os::fd::{AsFd as _, AsRawFd as _};

use linkspan_backends::display::{GpuOptions, NoSignal, Screen, Source as _, SourceError};
use linkspan_display::{HotSpot, Loss, Position, edid};
use linkspan_engine::Device as _;
use linkspan_sys::{PeerMemory, View, memfd};
use linkspan_testkit::census::settled;

use rig::{
    BAD_PARAMETER, BAD_RESOURCE, BAD_SCANOUT, OK, OUT_OF_MEMORY, Rig, UNSPECIFIED, bytes, ids,
    pattern, pixels, until, word,
};

/// B8G8R8X8, as Linux has it.
const XRGB: u32 = 2;
/// B8G8R8A8.
const ARGB: u32 = 1;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];

fn shows(screen: &mut Screen, wanted: &[u32]) {
    until(screen, |screen| pixels(screen) == wanted);
}

#[test]
fn what_a_driver_draws_is_seen() {
    for packed in [false, true] {
        let mut rig = Rig::with(&GpuOptions::default(), packed);
        let mut screen = rig.screen();
        let _ = screen.look().unwrap();
        assert_eq!(screen.no_signal(), Some(&NoSignal::Lost(Loss::Unused)));
        let wanted = pattern(20_000, 1);
        rig.driver.create(7, XRGB, SIZE, 0);
        rig.driver.draw(7, SIZE, 0, &wanted);
        rig.driver.show(0, 7, WHOLE);
        rig.driver.flush(7, WHOLE);
        shows(&mut screen, &wanted);
        // A part of it; what was not copied is as it was.
        let mut new = pattern(20_000, 2);
        let data: Vec<u8> = new.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        rig.driver.write(16384, &data);
        let offset = (10 * 200 + 20) * 4;
        rig.driver.done(0x105, &[20, 10, 30, 40, offset, 0, 7, 0]);
        rig.driver.flush(7, [20, 10, 30, 40]);
        for (at, pixel) in new.iter_mut().enumerate() {
            let (x, y) = (at % 200, at / 200);
            if !(20..50).contains(&x) || !(10..50).contains(&y) {
                *pixel = wanted[at];
            }
        }
        shows(&mut screen, &new);
        // Off.
        rig.driver.show(0, 0, [0; 4]);
        until(&mut screen, |screen| screen.scene().is_none());
        assert_eq!(screen.no_signal(), Some(&NoSignal::Lost(Loss::Off)));
    }
}

/// Only what the driver says to have changed is looked at, so a pointer that moves costs no
/// look at the picture.
#[test]
fn what_is_not_told_is_not_looked_at() {
    let mut rig = Rig::new();
    let mut screen = rig.screen();
    let old = pattern(20_000, 6);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &old);
    rig.driver.show(0, 1, WHOLE);
    rig.driver.flush(1, WHOLE);
    shows(&mut screen, &old);
    // When a pointer has moved all that was told before is heard, in one of its two messages.
    rig.driver.create(2, ARGB, (64, 64), 100_000);
    rig.driver.pointer(0x300, (7, 7), 2, (0, 0));
    let at = |screen: &Screen, x| {
        let place = screen.cursor().map(|(_, place)| (place.x, place.y));
        place == Some((x, x))
    };
    until(&mut screen, |screen| at(screen, 7));
    rig.driver.pointer(0x301, (8, 8), 2, (0, 0));
    until(&mut screen, |screen| at(screen, 8));
    let new = pattern(20_000, 7);
    rig.driver.draw(1, SIZE, 0, &new);
    rig.driver.pointer(0x301, (9, 9), 2, (0, 0));
    until(&mut screen, |screen| at(screen, 9));
    assert!(pixels(&screen) == old, "the picture was looked at");
    // One pixel is told; the tile of damage that has it is looked at.
    rig.driver.flush(1, [70, 40, 1, 1]);
    until(&mut screen, |screen| pixels(screen) != old);
    let wanted: Vec<u32> = (0..20_000)
        .map(|at| {
            let inside = (64..96).contains(&(at % 200)) && (32..64).contains(&(at / 200));
            if inside { new[at] } else { old[at] }
        })
        .collect();
    // A line that is short is read whole, with others.
    let seen = pixels(&screen);
    let right = |at: usize| seen[at] == wanted[at] || seen[at] == new[at];
    assert!((0..20_000).all(right) && seen[40 * 200 + 70] == new[40 * 200 + 70]);
    assert!(seen[..16 * 200] == old[..16 * 200] && seen[80 * 200..] == old[80 * 200..]);
    // Another picture between two looks: what was drawn meanwhile is seen.
    rig.driver.create(3, XRGB, SIZE, 200_000);
    rig.driver.show(0, 3, WHOLE);
    rig.driver.show(0, 1, WHOLE);
    shows(&mut screen, &new);
}

#[test]
fn a_screen_may_show_a_part_of_a_resource() {
    let mut rig = Rig::new();
    let mut screen = rig.screen();
    let all = pattern(20_000, 3);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &all);
    rig.driver.show(0, 1, [50, 20, 64, 48]);
    let line = |y: usize| all[(20 + y) * 200 + 50..][..64].to_vec();
    let wanted: Vec<u32> = (0..48).flat_map(line).collect();
    shows(&mut screen, &wanted);
    // What is flushed beside it is not seen, and no error.
    rig.driver.flush(1, [0, 0, 50, 100]);
    // Page flips: the same memory has the same name.
    let mut source = rig.source();
    let first = ids(&mut source).unwrap();
    rig.driver.create(2, XRGB, (64, 48), 100_000);
    rig.driver.show(0, 2, [0, 0, 64, 48]);
    let mut source = rig.source();
    assert_ne!(ids(&mut source).unwrap(), first);
    rig.driver.show(0, 1, [50, 20, 64, 48]);
    let mut source = rig.source();
    assert_eq!(ids(&mut source).unwrap(), first);
}

#[test]
fn all_formats_have_their_colours() {
    let mut rig = Rig::new();
    // In memory: the bytes of 0xRRGGBB = 0x112233, with FF where nothing counts.
    let formats = [
        (1, [0x33, 0x22, 0x11, 0xFF]),
        (2, [0x33, 0x22, 0x11, 0]),
        (3, [0xFF, 0x11, 0x22, 0x33]),
        (4, [0, 0x11, 0x22, 0x33]),
        (67, [0x11, 0x22, 0x33, 0xFF]),
        (68, [0, 0x33, 0x22, 0x11]),
        (121, [0xFF, 0x33, 0x22, 0x11]),
        (134, [0x11, 0x22, 0x33, 0]),
    ];
    for (id, (format, bytes)) in (1..).zip(formats) {
        rig.driver.create(id, format, (64, 64), 0);
        let pixel = u32::from_le_bytes(bytes);
        rig.driver.draw(id, (64, 64), 0, &[pixel; 4096]);
        rig.driver.show(0, id, [0, 0, 64, 64]);
        let mut screen = rig.screen();
        shows(&mut screen, &[0x0011_2233; 4096]);
    }
}

#[test]
fn the_pointer_has_a_shape_a_place_and_a_hot_spot() {
    let mut rig = Rig::new();
    let mut screen = rig.screen();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    // A format without opacity, as Linux has it for its pointers too.
    rig.driver.create(2, XRGB, (64, 64), 100_000);
    let shape = [0x8040_2010; 4096];
    rig.driver.draw(2, (64, 64), 100_000, &shape);
    rig.driver.pointer(0x300, (-5, 90), 2, (3, 4));
    until(&mut screen, |screen| screen.cursor().is_some());
    let (cursor, place) = screen.cursor().unwrap();
    assert_eq!(place, Position { x: -5, y: 90 });
    assert_eq!(cursor.hot_spot(), Some(HotSpot { x: 3, y: 4 }));
    assert_eq!(cursor.pixels(), shape);
    let moved = |x, y| {
        move |screen: &Screen| {
            screen
                .cursor()
                .is_some_and(|(_, place)| place == Position { x, y })
        }
    };
    rig.driver.pointer(0x301, (17, 18), 0, (0, 0));
    until(&mut screen, moved(17, 18));
    // Another shape in the same resource.
    rig.driver.draw(2, (64, 64), 100_000, &[0xFF00_00FF; 4096]);
    rig.driver.pointer(0x300, (17, 18), 2, (99, 4));
    until(&mut screen, |screen| {
        screen.cursor().is_some_and(|(cursor, _)| {
            cursor.pixels() == [0xFF00_00FF; 4096] && cursor.hot_spot().is_none()
        })
    });
    rig.driver.pointer(0x300, (17, 18), 0, (0, 0));
    until(&mut screen, |screen| screen.cursor().is_none());
}

#[test]
fn a_viewer_asks_for_another_size() {
    let mut rig = Rig::new();
    assert_eq!(rig.driver.display_info(), [(1280, 800), (0, 0)]);
    let read = edid::read(&rig.driver.edid(0)).unwrap();
    assert_eq!((read.mode.width, read.mode.height), (1280, 800));
    let mut source = rig.source();
    source.resize(0, 1920, 1080).unwrap();
    let config = |rig: &Rig| {
        let mut bytes = [0; 16];
        rig.device.read_config(0, &mut bytes).unwrap();
        [0, 1, 2, 3].map(|at| word(&bytes, at))
    };
    assert_eq!(config(&rig), [1, 0, 1, 0]);
    assert_eq!(rig.device.config_changes().unwrap().drain().unwrap(), 1);
    assert_eq!(rig.driver.display_info(), [(1920, 1080), (0, 0)]);
    let read = edid::read(&rig.driver.edid(0)).unwrap();
    assert_eq!((read.mode.width, read.mode.height), (1920, 1080));
    // The driver clears the event; front ends write all of the space.
    rig.device
        .write_config(0, &[1, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0])
        .unwrap();
    assert_eq!(config(&rig), [0, 0, 1, 0]);
    assert!(rig.device.write_config(20, &[0; 8]).is_err());
    for (width, height) in [(0, 0), (5000, 100), (1, 1)] {
        let error = source.resize(0, width, height).unwrap_err();
        assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
    }
    assert!(source.resize(1, 640, 480).is_err());
}

#[test]
fn what_makes_no_sense_is_named() {
    let mut rig = Rig::new();
    let driver = &mut rig.driver;
    driver.create(1, XRGB, SIZE, 0);
    let cases: &[(u32, &[u32], u32)] = &[
        // Commands that there are not, or not here: capability sets, blobs, 3D.
        (0x10C, &[0; 16], UNSPECIFIED),
        (0x108, &[0, 0], UNSPECIFIED),
        (0x200, &[0; 24], UNSPECIFIED),
        (0, &[], UNSPECIFIED),
        // Short ones.
        (0x101, &[5], BAD_PARAMETER),
        (0x105, &[0; 7], BAD_PARAMETER),
        // Resources.
        (0x101, &[0, XRGB, 8, 8], BAD_RESOURCE),
        (0x101, &[1, XRGB, 8, 8], BAD_RESOURCE),
        (0x101, &[2, 9, 8, 8], BAD_PARAMETER),
        (0x101, &[2, XRGB, 0, 8], BAD_PARAMETER),
        (0x101, &[2, XRGB, 8, 16385], BAD_PARAMETER),
        (0x101, &[2, XRGB, 16384, 16384], BAD_PARAMETER),
        (0x101, &[2, XRGB, u32::MAX, u32::MAX], BAD_PARAMETER),
        (0x102, &[2, 0], BAD_RESOURCE),
        // Memory.
        (0x106, &[2, 0], BAD_RESOURCE),
        (0x106, &[1, 0], UNSPECIFIED),
        (0x106, &[1, 1], BAD_PARAMETER),
        (0x106, &[1, u32::MAX], BAD_PARAMETER),
        (0x107, &[2, 0], BAD_RESOURCE),
        // Screens.
        (0x103, &[0, 0, 8, 8, 1, 1], BAD_SCANOUT),
        (0x103, &[0, 0, 8, 8, 0, 2], BAD_RESOURCE),
        (0x103, &[0, 0, 0, 8, 0, 1], BAD_PARAMETER),
        (0x103, &[0, 0, 201, 8, 0, 1], BAD_PARAMETER),
        (0x103, &[u32::MAX, 0, 2, 8, 0, 1], BAD_PARAMETER),
        (0x10A, &[1, 0], BAD_SCANOUT),
        // Parts.
        (0x104, &[0, 0, 8, 8, 2, 0], BAD_RESOURCE),
        (0x104, &[0, 99, 8, 2, 1, 0], BAD_PARAMETER),
        (0x105, &[0, 0, 8, 8, 0, 0, 2, 0], BAD_RESOURCE),
        (0x105, &[199, 0, 2, 8, 0, 0, 1, 0], BAD_PARAMETER),
        // Offsets: behind the memory, and round the end of numbers.
        (0x105, &[0, 0, 200, 100, 4, 0, 1, 0], BAD_PARAMETER),
        (
            0x105,
            &[0, 0, 1, 1, u32::MAX, u32::MAX, 1, 0],
            BAD_PARAMETER,
        ),
    ];
    for (kind, words, code) in cases {
        let got = driver.command(*kind, words);
        assert_eq!(got, *code, "{kind:#x} {words:?}: {got:#x}");
    }
    // Memory that is not the guest's.
    driver.done(0x107, &[1, 0]);
    assert_eq!(driver.command(0x107, &[1, 0]), UNSPECIFIED);
    assert_eq!(driver.command(0x106, &[1, 1, 0, 0, 4096, 0]), BAD_PARAMETER);
    assert_eq!(
        driver.command(0x105, &[0, 0, 1, 1, 0, 0, 1, 0]),
        UNSPECIFIED
    );
    // No header at all is no command, and has no answer.
    assert!(driver.say(0, &[0; 23], 24).is_empty());
    // Less room than the answer has.
    assert_eq!(driver.say(0, &bytes(0x100, &[]), 30).len(), 30);
    // A pointer that is not there has no answer to be seen; the next works.
    driver.pointer(0x300, (0, 0), 99, (0, 0));
    driver.done(0x102, &[1, 0]);
}

#[test]
fn a_fence_comes_back() {
    let mut rig = Rig::new();
    let mut command = bytes(0x107, &[9, 0]);
    command[4] = 1;
    command[8..16].copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes());
    command[16] = 5;
    let answer = rig.driver.say(0, &command, 24);
    assert_eq!(word(&answer, 0), BAD_RESOURCE);
    assert_eq!(answer[4..20], command[4..20]);
    command[4] = 0;
    let answer = rig.driver.say(0, &command, 24);
    assert_eq!(answer[4..], [0; 20]);
}

#[test]
fn memory_has_a_limit_and_comes_back() {
    let options = GpuOptions {
        memory: 1 << 20,
        ..GpuOptions::default()
    };
    let mut rig = Rig::with(&options, false);
    let driver = &mut rig.driver;
    for _ in 0..20 {
        driver.done(0x101, &[1, XRGB, 512, 256]);
        driver.show(0, 1, [0, 0, 512, 256]);
        driver.done(0x101, &[2, XRGB, 512, 256]);
        assert_eq!(driver.command(0x101, &[3, XRGB, 1, 1]), OUT_OF_MEMORY);
        driver.done(0x102, &[1, 0]);
        driver.done(0x102, &[2, 0]);
    }
    // Lists of guest memory count too, 24 bytes a piece: they were once what a guest could
    // take without a limit.
    let options = GpuOptions {
        memory: 20 << 10,
        ..GpuOptions::default()
    };
    let mut rig = Rig::with(&options, false);
    for id in [1, 2] {
        rig.driver.done(0x101, &[id, XRGB, 1, 1]);
    }
    for _ in 0..20 {
        assert_eq!(rig.driver.back_in_pieces(1, 400), OK);
        assert_eq!(rig.driver.back_in_pieces(2, 400), OUT_OF_MEMORY);
        rig.driver.done(0x107, &[1, 0]);
        assert_eq!(rig.driver.back_in_pieces(2, 400), OK);
        rig.driver.done(0x102, &[2, 0]);
        rig.driver.done(0x101, &[2, XRGB, 1, 1]);
    }
    // As many resources as there may be.
    let mut rig = Rig::new();
    for id in 1..=512 {
        assert_eq!(rig.driver.command(0x101, &[id, XRGB, 1, 1]), OK);
    }
    assert_eq!(rig.driver.command(0x101, &[513, XRGB, 1, 1]), OUT_OF_MEMORY);
}

#[test]
fn an_id_that_is_retired_is_named_and_what_was_fetched_stays() {
    let mut rig = Rig::new();
    let wanted = pattern(20_000, 5);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, WHOLE);
    let mut source = rig.source();
    let id = ids(&mut source).unwrap()[0];
    let first = source.descriptor(id, false).unwrap();
    // Every get gives another one, and none can be written through.
    let second = source.descriptor(id, false).unwrap();
    let flags = rustix::fs::fcntl_getfl(&second).unwrap();
    assert!(!flags.intersects(rustix::fs::OFlags::RDWR | rustix::fs::OFlags::WRONLY));
    // Nor opened anew for that by another user.
    let mode = rustix::fs::fstat(&second).unwrap().st_mode;
    assert_eq!(mode & 0o777, 0o600);
    let fixed = memfd::SealFlags::SHRINK | memfd::SealFlags::GROW;
    assert!(memfd::seals(first.as_fd()).unwrap().contains(fixed));
    let unknown = source.descriptor(id + 1, false).unwrap_err();
    assert!(matches!(unknown, SourceError::Retired { .. }), "{unknown}");
    rig.driver.done(0x102, &[1, 0]);
    let retired = source.descriptor(id, false).unwrap_err();
    assert!(matches!(retired, SourceError::Retired { .. }), "{retired}");
    drop(rig);
    // That the screen shows nothing any more may be heard first.
    let ended = || matches!(source.planes(), Err(SourceError::Lost(Loss::Ended)));
    assert!(settled(ended));
    let memory = PeerMemory::check(first).unwrap();
    let view = View::of_peer(&memory, 0, 80_000).unwrap();
    let mut bytes = vec![0; 80_000];
    view.read(0, &mut bytes).unwrap();
    let seen: Vec<u8> = wanted
        .iter()
        .flat_map(|pixel| pixel.to_le_bytes())
        .collect();
    assert!(bytes == seen);
}

/// Many pointers push out each other, and never the picture, which every new viewer needs.
#[test]
fn pointers_that_come_and_go_leave_the_picture() {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    for id in 2..42 {
        rig.driver.create(id, ARGB, (64, 64), 100_000);
        rig.driver.pointer(0x300, (5, 5), id, (0, 0));
    }
    let mut screen = rig.screen();
    until(&mut screen, |screen| screen.cursor().is_some());
    assert_eq!(pixels(&screen).len(), 20_000);
}

/// Every screen and pointer that may be is seen at once.
#[test]
fn all_screens_and_their_pointers_are_held() {
    let options = GpuOptions {
        heads: 16,
        ..GpuOptions::default()
    };
    let mut rig = Rig::with(&options, false);
    for head in 0..16 {
        rig.driver.create(head + 1, XRGB, SIZE, 0);
        rig.driver.show(head, head + 1, WHOLE);
        rig.driver.create(head + 101, ARGB, (64, 64), 100_000);
        rig.driver.point_on(head, 0x300, (5, 5), head + 101, (0, 0));
    }
    let mut source = rig.source();
    let all = source.planes().unwrap();
    assert_eq!(all.len(), 32);
    for shown in all {
        let descriptor = source.descriptor(shown.id, false);
        assert!(descriptor.is_ok(), "{shown:?}: {descriptor:?}");
    }
}

/// However quick a viewer is, none of its questions is left where it was cut off.
#[test]
fn every_question_of_a_quick_viewer_is_answered() {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    let mut source = rig.source();
    let id = ids(&mut source).unwrap()[0];
    for _ in 0..1000 {
        source.descriptor(id, false).unwrap();
    }
}

#[test]
fn a_dma_buf_is_made_where_the_kernel_makes_some() {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &[0x0012_3456; 20_000]);
    rig.driver.show(0, 1, WHOLE);
    let mut source = rig.source();
    let id = ids(&mut source).unwrap()[0];
    match source.descriptor(id, true) {
        Ok(fd) => {
            let view = View::map(fd.as_fd(), 0, 80_000).unwrap();
            let mut pixel = [0; 4];
            view.read(79_996, &mut pixel).unwrap();
            assert_eq!(u32::from_le_bytes(pixel), 0x0012_3456);
        }
        Err(SourceError::Unsupported(why)) => assert!(why.contains("dma-buf"), "{why}"),
        Err(error) => panic!("{error}"),
    }
    // The other kind works still.
    source.descriptor(id, false).unwrap();
}

/// Whoever opens what a viewer has anew can write to it only where a dma-buf may be wanted,
/// of which the kernel makes none if it is sealed.
#[test]
fn what_viewers_get_is_sealed_against_writing_where_it_can_be() {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    let mut source = rig.source();
    let id = ids(&mut source).unwrap()[0];
    let file = source.descriptor(id, false).unwrap();
    let seals = memfd::seals(&file).unwrap();
    let fixed = memfd::SealFlags::SHRINK | memfd::SealFlags::GROW | memfd::SealFlags::SEAL;
    assert!(seals.contains(fixed), "{seals:?}");
    let without = !linkspan_sys::udmabuf::exists();
    assert_eq!(seals.contains(memfd::SealFlags::FUTURE_WRITE), without);
    let anew = format!("/proc/self/fd/{}", file.as_raw_fd());
    let anew = std::fs::File::options().write(true).open(anew).unwrap();
    assert_eq!(rustix::io::pwrite(&anew, &[1], 0).is_err(), without);
    // The GPU goes on drawing.
    let wanted = pattern(20_000, 3);
    rig.driver.draw(1, SIZE, 0, &wanted);
    shows(&mut rig.screen(), &wanted);
}

#[test]
fn a_driver_that_begins_anew_finds_nothing() {
    let mut rig = Rig::new();
    let mut screen = rig.screen();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    until(&mut screen, |screen| screen.scene().is_some());
    rig.device.reset();
    until(&mut screen, |screen| screen.scene().is_none());
    assert_eq!(screen.no_signal(), Some(&NoSignal::Lost(Loss::Reset)));
    rig.driver.done(0x101, &[1, XRGB, 8, 8]);
}

#[test]
fn a_hostile_viewer_harms_nobody() {
    use linkspan_sys::Stream;
    use std::time::{Duration, Instant};
    let rig = Rig::new();
    let path = rig.dir.path().join("s");
    let soon = || Instant::now() + Duration::from_secs(60);
    for bytes in [
        &[0xFF; 64][..],
        b"\x10\0\0\0\xFF\xFF\xFF\xFF",
        // What only a GPU says.
        b"\x04\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0",
        // A screen that cannot be.
        b"\x11\0\0\0\x0C\0\0\0\xFF\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let stream = Stream::connect(&path).unwrap();
        stream.send(bytes, &[], soon()).unwrap();
        // It is sent away.
        let mut buffer = [0; 4096];
        loop {
            linkspan_sys::poll::wait_for(
                stream.as_fd(),
                linkspan_sys::poll::Direction::Read,
                None,
                Some(soon()),
            )
            .unwrap();
            match stream.receive(&mut buffer, &mut Vec::new(), 0) {
                Ok(received) if received.bytes > 0 => {}
                Ok(_) | Err(_) => break,
            }
        }
    }
    // One that asks and does not listen is not heard; others are.
    let stream = Stream::connect(&path).unwrap();
    let ask = b"\x10\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0".repeat(64);
    while stream.send(&ask, &[], Instant::now()).is_ok() {}
    // Descriptors are for nobody.
    let stream = Stream::connect(&path).unwrap();
    let fd = memfd::create("x", 4096, memfd::Sealing::Fixed).unwrap();
    stream.send(&ask[..16], &[fd.as_fd()], soon()).unwrap();
    rig.source().resize(0, 800, 600).unwrap();
}
