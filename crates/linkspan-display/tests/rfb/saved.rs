//! A viewer saved and restored at every step, under a client that does not notice.

use linkspan_display::rfb::{NotQuiet, Viewer};
use linkspan_display::{Cursor, Frame, HotSpot, Position, RestoreError, Scene};

use super::{Pair, area, options};

/// Another process takes over.
fn replace(pair: &mut Pair) {
    let bytes = pair.viewer.snapshot().unwrap();
    pair.viewer = Viewer::restore(&options(), &bytes).unwrap();
    assert_eq!(pair.viewer.snapshot().unwrap(), bytes);
}

#[test]
fn streams_go_on_in_another_process() {
    for encoding in [0, 6, 7, 16] {
        let mut pair = Pair::new(200, 100);
        pair.encodings(&[encoding, -313, -312]);
        replace(&mut pair);
        for step in 0..6u32 {
            pair.draw(area(step * 20, 3, 64, 64), |x, y| {
                (x * 31 + y * 17) * (step + 1) * 0x10307
            });
            replace(&mut pair);
            pair.ask(true, area(0, 0, 200, 100));
            replace(&mut pair);
            assert!(pair.update() && pair.sees(), "{encoding} {step}");
            replace(&mut pair);
        }
        pair.say(&[150, 1, 0, 0, 0, 0, 0, 200, 0, 100]);
        replace(&mut pair);
        pair.draw(area(0, 0, 9, 9), |_, _| 7);
        assert!(pair.update() && pair.sees());
    }
}

#[test]
fn a_connection_may_be_cut_after_any_byte() {
    let said: &[&[u8]] = &[
        b"RFB 003.008\n",
        &[1],
        &[1],
        &[2, 0, 0, 2, 0, 0, 0, 16, 0xFF, 0xFF, 0xFF, 0x11],
        &[6, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3],
        &[4, 1, 0, 0, 0, 0, 0, 9],
        &[3, 0, 0, 0, 0, 0, 0, 64, 0, 64],
    ];
    let frame = Frame::new(64, 64).unwrap();
    let mut viewer = Viewer::new(&options(), 64, 64);
    viewer.sent(12);
    let (mut out, mut events) = (Vec::new(), Vec::new());
    for byte in said.concat() {
        assert_eq!(viewer.input(&[byte], &mut events), Ok(1));
        out.extend_from_slice(viewer.output());
        viewer.sent(viewer.output().len());
        viewer = Viewer::restore(&options(), &viewer.snapshot().unwrap()).unwrap();
    }
    assert!(viewer.update(&Scene::of(&frame)));
    let mut once = Viewer::new(&options(), 64, 64);
    once.sent(12);
    let mut same = Vec::new();
    once.input(&said.concat(), &mut same).unwrap();
    assert_eq!((once.output(), events), (&out[..], same));
    once.sent(out.len());
    assert!(once.update(&Scene::of(&frame)));
    assert_eq!(once.output(), viewer.output());
}

#[test]
fn what_is_due_is_not_forgotten() {
    let mut pair = Pair::new(64, 64);
    pair.encodings(&[0, -239, -308, -232]);
    let mut small = Frame::new(4, 4).unwrap();
    small.pixels_mut().fill(0xFFFF_FFFF);
    let cursor = Cursor::new(&small, Some(HotSpot { x: 1, y: 1 })).unwrap();
    let place = Some((&cursor, Position { x: 3, y: 3 }));
    pair.viewer.pointed(place, true);
    pair.viewer.put(5, 6);
    pair.frame = Frame::new(100, 50).unwrap();
    pair.viewer.resized(100, 50);
    replace(&mut pair);
    pair.ask(false, area(0, 0, 64, 64));
    assert!(pair.update());
    assert_eq!((pair.client.width, pair.client.height), (100, 50));
    replace(&mut pair);
    pair.ask(false, area(0, 0, 100, 50));
    let scene = Scene {
        frame: &pair.frame,
        sprites: &[],
        cursor: place,
    };
    assert!(pair.viewer.update(&scene));
    pair.hear();
    assert!(pair.sees());
    assert_eq!(pair.client.places, [(5, 6)]);
    assert_eq!(pair.client.shape.as_ref().unwrap().size, (4, 4));
}

#[test]
fn it_is_quiet_when_all_was_sent() {
    let viewer = Viewer::new(&options(), 64, 64);
    let what = "output waits";
    assert_eq!(viewer.snapshot(), Err(NotQuiet { what }));
    let mut ended = Viewer::new(&options(), 64, 64);
    ended.sent(12);
    assert!(ended.input(b"no RFB at all", &mut Vec::new()).is_err());
    let what = "the connection has ended";
    assert_eq!(ended.snapshot(), Err(NotQuiet { what }));
}

#[test]
fn bytes_that_are_no_viewer_are_refused() {
    let mut pair = Pair::new(64, 64);
    pair.encodings(&[16, -313]);
    pair.ask(true, area(0, 0, 64, 64));
    let good = pair.viewer.snapshot().unwrap();
    for len in 0..good.len() {
        assert!(Viewer::restore(&options(), &good[..len]).is_err(), "{len}");
    }
    let long = [&good[..], &[0]].concat();
    let got = long.len();
    assert_eq!(
        Viewer::restore(&options(), &long).unwrap_err(),
        RestoreError::Length { got }
    );
    // Any byte may be any: no panic, and what is taken up can be used.
    for at in 0..good.len() {
        for change in [1, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] ^= change;
            let Ok(mut viewer) = Viewer::restore(&options(), &bytes) else {
                continue;
            };
            if let Ok(frame) = Frame::new(64, 64)
                && viewer.snapshot().is_ok()
                && bytes[..40] == good[..40]
            {
                viewer.update(&Scene::of(&frame));
                let _ = viewer.input(&[3, 0, 0, 0, 0, 0, 0, 64, 0, 64], &mut Vec::new());
            }
        }
    }
}
