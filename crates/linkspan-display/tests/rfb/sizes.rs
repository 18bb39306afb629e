//! Screens that change their size.

use linkspan_display::rfb::{Error, Event, Options, SizeAnswer, Viewer};
use linkspan_display::{Frame, Scene};

use super::{Pair, area, options};

fn resize(pair: &mut Pair, width: u32, height: u32) {
    pair.frame = Frame::new(width, height).unwrap();
    pair.frame.pixels_mut().fill(0xFF00_8040);
    pair.viewer.resized(width, height);
}

#[test]
fn a_client_is_told_the_size_before_anything_of_it() {
    for encoding in [-223, -308] {
        let mut pair = Pair::new(640, 480);
        pair.encodings(&[0, encoding]);
        pair.ask(false, area(0, 0, 640, 480));
        assert!(pair.update());
        if encoding == -308 {
            // The first one says that we can.
            assert_eq!(pair.client.sizes, [(0, 0)]);
            pair.ask(false, area(0, 0, 640, 480));
            assert!(pair.update());
        }
        resize(&mut pair, 800, 600);
        pair.ask(true, area(0, 0, 640, 480));
        assert!(pair.update());
        assert_eq!((pair.client.width, pair.client.height), (800, 600));
        pair.ask(true, area(0, 0, 800, 600));
        assert!(pair.update() && pair.sees());
    }
}

/// Such a client has the size that it was told at first, for ever.
#[test]
fn a_client_that_knows_no_sizes_sees_what_fits() {
    let mut pair = Pair::new(100, 100);
    pair.encodings(&[16]);
    pair.ask(false, area(0, 0, 100, 100));
    assert!(pair.update());
    resize(&mut pair, 300, 50);
    pair.ask(true, area(0, 0, 100, 100));
    assert!(pair.update());
    let want = pair.client.want(0xFF00_8040);
    let (upper, lower) = pair.client.pixels.split_at(50 * 100);
    assert!(upper.iter().all(|pixel| *pixel == want));
    assert!(lower.iter().all(|pixel| *pixel == 0));
    // What it cannot see is no reason to send.
    pair.ask(true, area(0, 0, 100, 100));
    assert!(!pair.update());
    pair.draw(area(200, 10, 50, 30), |_, _| 1);
    assert!(!pair.update());
    resize(&mut pair, 300, 300);
    assert!(pair.update());
    assert!(pair.client.pixels.iter().all(|pixel| *pixel == want));
}

#[test]
fn a_client_may_ask_for_a_size_and_hears_what_came_of_it() {
    let ask = |width: u16, height: u16| {
        let mut message = vec![251, 0];
        message.extend(width.to_be_bytes());
        message.extend(height.to_be_bytes());
        message.extend([1, 0]);
        message.extend([0; 16]);
        message
    };
    let mut pair = Pair::new(640, 480);
    pair.encodings(&[0, -308]);
    pair.ask(false, area(0, 0, 640, 480));
    assert!(pair.update());
    pair.client.sizes.clear();
    pair.say(&ask(1024, 768));
    assert_eq!(
        pair.events,
        [Event::Resize {
            width: 1024,
            height: 768
        }]
    );
    resize(&mut pair, 1024, 768);
    pair.viewer.answer_size(SizeAnswer::Done);
    pair.ask(true, area(0, 0, 640, 480));
    assert!(pair.update());
    assert_eq!(pair.client.sizes, [(1, 0)]);
    assert_eq!(pair.client.width, 1024);
    for (answer, status) in [(SizeAnswer::Prohibited, 1), (SizeAnswer::NoResources, 2)] {
        pair.say(&ask(2000, 2000));
        pair.viewer.answer_size(answer);
        pair.ask(true, area(0, 0, 1024, 768));
        assert!(pair.update());
        assert_eq!(pair.client.sizes.pop(), Some((1, status)));
        assert_eq!(pair.client.width, 1024);
    }
    // No size at all is answered at once.
    pair.events.clear();
    pair.say(&ask(0, 768));
    pair.ask(true, area(0, 0, 1024, 768));
    assert!(pair.update());
    assert_eq!(
        (pair.client.sizes.pop(), pair.events.len()),
        (Some((1, 3)), 0)
    );
}

#[test]
fn a_screen_of_fixed_size_says_so() {
    let fixed = Options {
        resizable: false,
        ..options()
    };
    let mut pair = Pair::new(64, 64);
    pair.viewer = Viewer::new(&fixed, 64, 64);
    pair.taken();
    pair.say(b"RFB 003.003\n\x01");
    pair.taken();
    pair.events.clear();
    pair.encodings(&[0, -308]);
    pair.say(&[251, 0, 1, 0, 1, 0, 0, 0]);
    assert_eq!(pair.events, []);
    pair.ask(true, area(0, 0, 64, 64));
    assert!(pair.update());
    assert_eq!(pair.client.sizes, [(1, 1)]);
    let many = [251, 0, 1, 0, 1, 0, 65, 0];
    assert_eq!(
        pair.viewer.input(&many, &mut pair.events),
        Err(Error::Screens { count: 65, max: 64 })
    );
}

#[test]
#[should_panic(expected = "the frame of the screen")]
fn a_frame_of_another_size_is_a_mistake_of_ours() {
    let mut viewer = Viewer::new(&options(), 64, 64);
    let frame = Frame::new(65, 64).unwrap();
    viewer.update(&Scene::of(&frame));
}
