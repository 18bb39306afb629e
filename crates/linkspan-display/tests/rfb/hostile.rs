//! Clients that want no picture.

use linkspan_display::Scene;
use linkspan_display::rfb::Error;
use proptest::prelude::*;

use super::{Pair, area};

fn refused(bytes: &[u8]) -> Error {
    let mut pair = Pair::new(64, 64);
    let error = pair.viewer.input(bytes, &mut pair.events).unwrap_err();
    assert!(!pair.viewer.is_running() && !pair.viewer.wants_update());
    let again = pair.viewer.input(&[0], &mut pair.events);
    assert_eq!(again, Err(Error::Ended));
    error
}

#[test]
fn messages_that_are_not_known_end_the_connection() {
    for kind in [1, 7, 8, 100, 127, 151, 249, 250, 252, 253, 255] {
        assert_eq!(refused(&[kind]), Error::Message { kind });
    }
}

fn format(bits: u8, true_colour: u8, max: [u16; 3], shift: [u8; 3]) -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, bits, 24, 0, true_colour];
    message.extend(max.iter().flat_map(|max| max.to_be_bytes()));
    message.extend(shift);
    message.extend([0; 3]);
    message
}

#[test]
fn formats_that_are_none_are_refused_by_name() {
    let shift = [16, 8, 0];
    assert_eq!(
        refused(&format(8, 0, [7, 7, 3], [0, 3, 6])),
        Error::ColourMap
    );
    for bits in [0, 1, 15, 24, 64, 255] {
        assert_eq!(
            refused(&format(bits, 1, [255; 3], shift)),
            Error::BitsPerPixel { bits }
        );
    }
    for (max, at) in [
        (0, 16),
        (254, 16),
        (256, 16),
        (0xFFFF, 17),
        (255, 25),
        (1, 32),
        (1, 255),
    ] {
        let want = Error::Colour {
            max,
            shift: at,
            bits: 32,
        };
        assert_eq!(refused(&format(32, 1, [max, 255, 255], [at, 8, 0])), want);
    }
    let want = Error::Colour {
        max: 31,
        shift: 11,
        bits: 8,
    };
    assert_eq!(refused(&format(8, 1, [31, 63, 31], [11, 5, 0])), want);
}

#[test]
fn lengths_have_limits() {
    assert_eq!(
        refused(&[2, 0, 0xFF, 0xFF]),
        Error::Encodings {
            count: 0xFFFF,
            max: 1024
        }
    );
    // The extended clipboard has negative lengths, and was not offered.
    for len in [0xFFFF_FFFFu32, (16 << 20) + 1] {
        let text = [&[6, 0, 0, 0][..], &len.to_be_bytes()].concat();
        assert_eq!(refused(&text), Error::Text { len, max: 16 << 20 });
    }
    assert_eq!(
        refused(&[248, 0, 0, 0, 0, 0, 0, 0, 65]),
        Error::Fence { len: 65, max: 64 }
    );
}

#[test]
fn a_text_is_read_and_forgotten() {
    let mut pair = Pair::new(64, 64);
    let mut message = vec![6, 0, 0, 0, 0, 1, 0, 0];
    message.resize(8 + 65536, 4);
    for part in message.chunks(1000) {
        pair.say(part);
    }
    pair.say(&[4, 1, 0, 0, 0, 0, 0, b'a']);
    assert_eq!(pair.events.len(), 1);
}

/// A client that asks for answers and does not take them is not read from.
#[test]
fn answers_that_are_not_taken_stop_the_questions() {
    let mut pair = Pair::new(64, 64);
    let mut fence = vec![248, 0, 0, 0, 0x80, 0, 0, 0, 64];
    fence.resize(9 + 64, 7);
    let flood = fence.repeat(1000);
    let taken = pair.viewer.input(&flood, &mut pair.events).unwrap();
    assert!(taken < flood.len() / 10, "{taken}");
    assert!(pair.viewer.output().len() < 8192);
    assert_eq!(pair.viewer.input(&flood, &mut pair.events), Ok(0));
    // Taken, it goes on where it was, and all is answered.
    let (mut at, mut answers) = (taken, 0);
    while at < flood.len() || !pair.viewer.output().is_empty() {
        answers += pair.viewer.output().len() / 73;
        pair.viewer.sent(pair.viewer.output().len());
        at += pair.viewer.input(&flood[at..], &mut pair.events).unwrap();
    }
    assert_eq!(answers, 1000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// However a client's messages are cut, the same comes of them.
    #[test]
    fn any_bytes_in_any_pieces_do_the_same(
        kinds in prop::collection::vec((prop_oneof![
            Just(0u8), Just(2), Just(3), Just(4), Just(5), Just(6), Just(150), Just(248), Just(251), any::<u8>(),
        ], prop::collection::vec(0u8..70, 0..24)), 1..12),
        sizes in prop::collection::vec(1usize..9, 1..40),
    ) {
        let bytes: Vec<u8> = kinds.into_iter().flat_map(|(kind, rest)| [vec![kind], rest].concat()).collect();
        let mut whole = Pair::new(64, 64);
        let mut parts = Pair::new(64, 64);
        let once = whole.viewer.input(&bytes, &mut whole.events);
        let mut last = Ok(0);
        let (mut rest, mut sizes) = (&bytes[..], sizes.into_iter().cycle());
        while !rest.is_empty() && last.is_ok() {
            let size = sizes.next().unwrap().min(rest.len());
            last = parts.viewer.input(&rest[..size], &mut parts.events);
            rest = &rest[last.clone().unwrap_or(0)..];
        }
        prop_assert_eq!(once.is_err(), last.is_err());
        if let (Err(once), Err(last)) = (once, last) {
            prop_assert_eq!(once, last);
        }
        prop_assert_eq!(&whole.events, &parts.events);
        prop_assert_eq!(whole.taken(), parts.taken());
        whole.viewer.update(&Scene::of(&whole.frame));
        parts.viewer.update(&Scene::of(&parts.frame));
        prop_assert_eq!(whole.taken(), parts.taken());
    }

    /// Whatever a client wants of a screen, it is decoded at the other end.
    #[test]
    fn whatever_is_asked_for_can_be_decoded(
        (width, height) in (1u32..200, 1u32..120),
        encoding in prop_oneof![Just(0), Just(6), Just(7), Just(16)],
        steps in prop::collection::vec((any::<bool>(), 0u32..200, 0u32..120, 1u32..100, 1u32..100, 1u32..9), 1..12),
    ) {
        let mut pair = Pair::new(width, height);
        pair.encodings(&[encoding]);
        for (incremental, x, y, across, down, colours) in steps {
            let part = area(x, y, across, down).intersection(pair.frame.area());
            pair.draw(part, |x, y| (x * x + y * 31) % colours * 0x01_1101);
            pair.ask(incremental, area(y, x, down, across));
            pair.update();
        }
        pair.ask(true, area(0, 0, width, height));
        pair.update();
        prop_assert!(pair.sees());
    }
}
