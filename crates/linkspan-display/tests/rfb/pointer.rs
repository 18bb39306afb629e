//! The pointer: drawn by the client where it can be, and by us where not.

use linkspan_display::{Cursor, Frame, HotSpot, Position, Scene};

use super::{Pair, area};

fn cursor(spot: Option<HotSpot>) -> Cursor {
    let mut frame = Frame::new(10, 2).unwrap();
    frame.pixels_mut().fill(0);
    frame.pixels_mut()[0] = 0xFF11_2233;
    frame.pixels_mut()[9] = 0x8040_2000;
    frame.pixels_mut()[10] = 0x7F00_0000;
    Cursor::new(&frame, spot).unwrap()
}

const SPOT: Option<HotSpot> = Some(HotSpot { x: 3, y: 1 });

/// Sends an update with this pointer, if one is wanted.
fn show(pair: &mut Pair, cursor: Option<(&Cursor, Position)>) -> bool {
    let scene = Scene {
        frame: &pair.frame,
        sprites: &[],
        cursor,
    };
    let sent = pair.viewer.update(&scene);
    pair.hear();
    sent
}

#[test]
fn a_client_that_can_draws_the_pointer() {
    let mut pair = Pair::new(64, 64);
    pair.encodings(&[0, -239]);
    let cursor = cursor(SPOT);
    let at = |x, y| Some((&cursor, Position { x, y }));
    pair.viewer.pointed(at(5, 5), true);
    pair.ask(false, area(0, 0, 64, 64));
    assert!(show(&mut pair, at(5, 5)));
    assert!(pair.sees(), "it is not in the picture");
    let shape = pair.client.shape.take().unwrap();
    assert_eq!((shape.spot, shape.size), ((3, 1), (10, 2)));
    assert_eq!(shape.pixels[..4], [0x33, 0x22, 0x11, 0]);
    // The colour without its opacity.
    assert_eq!(shape.pixels[36..40], [0, 0x3F, 0x7F, 0]);
    assert_eq!(shape.mask, [0x80, 0x40, 0, 0]);
    // It moves: nothing is sent. Its shape changes: that is.
    pair.ask(true, area(0, 0, 64, 64));
    pair.viewer.pointed(at(20, 20), false);
    assert!(!show(&mut pair, at(20, 20)));
    pair.viewer.pointed(at(20, 20), true);
    assert!(show(&mut pair, at(20, 20)));
    assert!(pair.client.shape.take().is_some());
    // It goes.
    pair.ask(true, area(0, 0, 64, 64));
    pair.viewer.pointed(None, true);
    assert!(show(&mut pair, None));
    assert_eq!(pair.client.shape.take().unwrap().size, (0, 0));
}

#[test]
fn opacity_is_sent_to_who_knows_it() {
    let mut pair = Pair::new(64, 64);
    pair.encodings(&[0, -239, -314]);
    let cursor = cursor(SPOT);
    let place = Some((&cursor, Position::default()));
    pair.viewer.pointed(place, true);
    pair.ask(true, area(0, 0, 64, 64));
    assert!(show(&mut pair, place));
    let shape = pair.client.shape.take().unwrap();
    assert_eq!(shape.pixels[..4], [0x11, 0x22, 0x33, 0xFF]);
    assert_eq!(shape.pixels[36..40], [0x40, 0x20, 0, 0x80]);
}

/// rustdesk #15896: what is not known is not guessed; the pointer is part of the picture.
#[test]
fn a_pointer_without_a_hot_spot_is_drawn_where_it_is() {
    for (encodings, spot) in [(&[0, -239][..], None), (&[0], SPOT)] {
        let mut pair = Pair::new(128, 128);
        pair.encodings(encodings);
        let cursor = cursor(spot);
        let at = |x, y| Some((&cursor, Position { x, y }));
        pair.viewer.pointed(at(5, 6), true);
        pair.ask(false, area(0, 0, 128, 128));
        assert!(show(&mut pair, at(5, 6)));
        assert_eq!(pair.client.shape, None);
        assert_eq!(pair.client.pixels[6 * 128 + 5], 0x11_2233);
        // It moves to another tile: both are sent, and no more.
        let before = pair.client.bytes;
        pair.viewer.pointed(at(100, 100), false);
        pair.ask(true, area(0, 0, 128, 128));
        assert!(show(&mut pair, at(100, 100)));
        assert_eq!(pair.client.pixels[6 * 128 + 5], 0);
        assert_eq!(pair.client.pixels[100 * 128 + 100], 0x11_2233);
        assert_eq!(pair.client.bytes - before, 4 + 2 * (12 + 4096));
        // Partly left of the screen, and gone.
        pair.viewer.pointed(at(-9, 0), false);
        pair.ask(true, area(0, 0, 128, 128));
        assert!(show(&mut pair, at(-9, 0)));
        assert_eq!(pair.client.pixels[0], 0x40_2000);
        pair.viewer.pointed(None, false);
        pair.ask(true, area(0, 0, 128, 128));
        assert!(show(&mut pair, None) && pair.sees());
    }
}

#[test]
fn a_client_that_learns_to_draw_gets_the_shape_and_a_clean_picture() {
    let mut pair = Pair::new(64, 64);
    let cursor = cursor(SPOT);
    let place = Some((&cursor, Position { x: 8, y: 8 }));
    pair.viewer.pointed(place, true);
    pair.ask(false, area(0, 0, 64, 64));
    assert!(show(&mut pair, place));
    assert!(!pair.sees(), "it is in the picture");
    pair.encodings(&[0, -239]);
    pair.ask(true, area(0, 0, 64, 64));
    assert!(show(&mut pair, place));
    assert!(pair.sees() && pair.client.shape.is_some());
}

#[test]
fn a_place_of_the_guest_is_told_to_who_wants_it() {
    let mut pair = Pair::new(64, 64);
    pair.viewer.put(1, 2);
    pair.ask(true, area(0, 0, 64, 64));
    assert!(pair.update());
    assert_eq!(pair.client.places, []);
    pair.encodings(&[0, -232]);
    pair.viewer.put(7, 9);
    pair.ask(true, area(0, 0, 64, 64));
    assert!(pair.update());
    assert_eq!(pair.client.places, [(7, 9)]);
}
