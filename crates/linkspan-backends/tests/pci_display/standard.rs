//! The model bochs.

use linkspan_backends::display::Model;
use linkspan_display::edid;

use crate::rig::{MEMORY, Rig, draw, pixel, until};

#[test]
fn what_a_guest_draws_is_seen_without_a_word() {
    let rig = Rig::new(Model::Bochs);
    let mut screen = rig.viewer(0);
    screen.look().unwrap();
    assert!(screen.no_signal().is_some());
    let mut guest = rig.guest();
    // As a driver finds it.
    assert_eq!(guest.word(7, 0), 0x1111_1234);
    guest.write(7, 0x10, &[0xFF; 4]).unwrap();
    assert_eq!(u64::from(!(guest.word(7, 0x10) & !0xF)) + 1, MEMORY);
    let memory = guest.map(0);
    draw(&memory, 0, 0xFF_FFFF);
    guest.mode(320, 200);
    let shows = |width: u32, height: u32| {
        move |screen: &linkspan_backends::display::Screen| {
            let scene = screen.scene();
            scene
                .is_some_and(|scene| (scene.frame.width(), scene.frame.height()) == (width, height))
        }
    };
    until(&mut screen, "the mode", shows(320, 200));
    // The mode clears what was there.
    assert_eq!(pixel(&screen, 0, 0), Some(0));
    // No message says that a pixel has changed, and the next look finds it.
    for (x, y, colour) in [(0, 0, 0x12_3456), (319, 199, 0xAB_CDEF), (5, 7, 0xFF)] {
        draw(&memory, u64::from(y * 320 + x) * 4, colour);
        screen.look().unwrap();
        assert_eq!(pixel(&screen, x, y), Some(colour));
    }
    // Messages read the same bytes as the mapping, from where they are asked for (mdpy reads
    // the first ones, mbochs 0x2000 further on).
    assert_eq!(guest.word(0, (199 * 320 + 319) * 4), 0xAB_CDEF);
    guest.write(0, 8, &[1, 2, 3, 0]).unwrap();
    screen.look().unwrap();
    assert_eq!(pixel(&screen, 2, 0), Some(0x03_0201));
    // A flip to other lines, and back.
    draw(&memory, 200 * 320 * 4, 0x77_0000);
    guest.dispi(&[(9, 200)]);
    until(&mut screen, "the flip", |screen| {
        pixel(screen, 0, 0) == Some(0x77_0000)
    });
    guest.dispi(&[(9, 0)]);
    until(&mut screen, "the flip back", |screen| {
        pixel(screen, 0, 0) == Some(0x12_3456)
    });
    guest.mode(640, 480);
    until(&mut screen, "another mode", shows(640, 480));
    // Later kernels blank so.
    guest.read(2, 0x41A, 1);
    guest.write(2, 0x400, &[0]).unwrap();
    until(&mut screen, "the blank screen", |screen| {
        screen.no_signal().is_some()
    });
    guest.read(2, 0x41A, 1);
    guest.write(2, 0x400, &[0x20]).unwrap();
    until(&mut screen, "the screen again", shows(640, 480));
    // The monitor leaves, and another one finds the device as it was.
    drop(guest);
    until(&mut screen, "the end", |screen| {
        screen.no_signal().is_some()
    });
    let mut guest = rig.guest();
    guest.word(7, 0);
    until(&mut screen, "the return", shows(640, 480));
    guest
        .0
        .ask(&linkspan_vfio::client::Ask::Reset, &[])
        .unwrap();
    until(&mut screen, "the reset", |screen| {
        screen.no_signal().is_some()
    });
    assert_eq!(guest.word(7, 0x10), 8);
}

/// Pictures that cannot be are none, and whatever is written, wherever, ends.
#[test]
fn registers_may_be_anything() {
    let rig = Rig::new(Model::Bochs);
    let mut screen = rig.viewer(0);
    let mut guest = rig.guest();
    guest.mode(320, 200);
    for bad in [(1, 0), (2, 0), (3, 7), (9, 0xFFFF), (1, 0xFFFF)] {
        guest.mode(320, 200);
        guest.dispi(&[bad, (8, 0)]);
        until(&mut screen, "no picture", |screen| {
            screen.no_signal().is_some()
        });
    }
    let mut seed = 1u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..4000 {
        let region = [2, 7, 9][usize::try_from(next(3)).unwrap()];
        let offset = next(if region == 7 { 256 } else { 0x640 });
        let len = usize::try_from([1, 2, 4, 8][usize::try_from(next(4)).unwrap()]).unwrap();
        let bytes = (next(u64::MAX) | next(u64::MAX) << 32).to_le_bytes();
        // Refused or done.
        drop(guest.write(region, offset, &bytes[..len]));
    }
    screen.look().unwrap();
    guest
        .0
        .ask(&linkspan_vfio::client::Ask::Reset, &[])
        .unwrap();
    guest.mode(320, 200);
    until(&mut screen, "a picture", |screen| {
        screen.no_signal().is_none()
    });
}

#[test]
fn a_viewer_and_a_client_tell_the_screen() {
    let rig = Rig::new(Model::Bochs);
    let mut screen = rig.viewer(0);
    // The first thing that a client reads is what a viewer wanted before it came.
    screen.source_mut().resize(0, 720, 400).unwrap();
    let mut guest = rig.guest();
    let seen = |guest: &mut crate::rig::Guest| {
        edid::read(&guest.read(2, 0, 128)).map(|edid| (edid.mode.width, edid.mode.height))
    };
    assert_eq!(seen(&mut guest), Ok((720, 400)));
    screen.source_mut().resize(0, 1024, 768).unwrap();
    assert!(linkspan_testkit::census::settled(
        || seen(&mut guest) == Ok((1024, 768))
    ));
    assert!(screen.source_mut().resize(0, 10, 10).is_err());
    assert!(screen.source_mut().resize(1, 640, 480).is_err());
    // Link down, the size, the bytes, link up.
    let blob = edid::make(&edid::Mode::reduced(800, 600, 60).unwrap(), "other", 1);
    assert_eq!(guest.word(9, 20), 1);
    guest.write(9, 20, &2u32.to_le_bytes()).unwrap();
    assert!(seen(&mut guest).is_err());
    assert_eq!(guest.word(9, 20), 2);
    guest.write(9, 8, &128u32.to_le_bytes()).unwrap();
    let offset: u64 = guest.word(9, 0).into();
    // All of it is in the region (GVT-g says 128 bytes, and the EDID is at 2048).
    assert!(offset + u64::from(guest.word(9, 4)) <= 4096);
    guest.write(9, offset, &blob).unwrap();
    guest.write(9, 20, &1u32.to_le_bytes()).unwrap();
    assert_eq!(seen(&mut guest), Ok((800, 600)));
    assert_eq!(guest.word(9, 20), 1);
    assert!(guest.write(9, 20, &7u32.to_le_bytes()).is_err());
    assert!(guest.write(9, 8, &4096u32.to_le_bytes()).is_err());
    // It may be down for long, and a screen that a viewer wants is there again, for who
    // comes next too.
    guest.write(9, 20, &2u32.to_le_bytes()).unwrap();
    drop(guest);
    let mut guest = rig.guest();
    assert_eq!(guest.word(9, 20), 2);
    assert!(seen(&mut guest).is_err());
    screen.source_mut().resize(0, 1280, 720).unwrap();
    assert!(linkspan_testkit::census::settled(
        || seen(&mut guest) == Ok((1280, 720))
    ));
    assert_eq!(guest.word(9, 20), 1);
}
