//! What is sent, and when.

use linkspan_display::rfb::{Event, Viewer};
use linkspan_display::{Scene, Tiles};

use super::{Pair, area, options};

#[test]
fn only_what_has_changed_is_sent_and_only_when_asked_for() {
    let mut pair = Pair::new(640, 480);
    let all = area(0, 0, 640, 480);
    assert!(!pair.update(), "nothing was asked for");
    pair.ask(true, all);
    assert!(pair.update() && pair.sees());
    assert!(!pair.update(), "one request, one update");
    pair.ask(true, all);
    assert!(!pair.update(), "nothing has changed");
    let before = pair.client.bytes;
    pair.draw(area(100, 100, 1, 1), |_, _| 0xFFFF_0000);
    assert!(pair.update() && pair.sees(), "the request was still there");
    assert_eq!(pair.client.bytes - before, 4 + 12 + 32 * 32 * 4);
    pair.draw(area(0, 0, 5, 5), |_, _| 0xFF00_FF00);
    assert!(!pair.update());
    pair.ask(true, all);
    assert!(pair.update() && pair.sees());
}

#[test]
fn a_part_is_sent_in_whole_tiles_and_does_not_come_twice() {
    let mut pair = Pair::new(640, 480);
    pair.ask(false, area(33, 40, 10, 10));
    assert!(pair.update());
    assert_eq!(pair.client.bytes, 4 + 12 + 32 * 32 * 4);
    // The same part again: nothing is left of it.
    pair.ask(true, area(33, 40, 10, 10));
    assert!(!pair.update());
    // All at once asks for what it has, too.
    pair.ask(false, area(0, 0, 640, 480));
    assert!(pair.update() && pair.sees());
    // Outside of the screen there is nothing.
    pair.ask(false, area(640, 480, 100, 100));
    assert!(!pair.update());
    pair.ask(false, area(600, 400, 0xFFFF, 0xFFFF));
    assert!(pair.update());
}

#[test]
fn a_client_that_does_not_read_gets_nothing_more() {
    let mut pair = Pair::new(64, 64);
    let update = |pair: &mut Pair| pair.viewer.update(&Scene::of(&pair.frame));
    pair.ask(false, area(0, 0, 64, 64));
    assert!(update(&mut pair));
    let first = pair.viewer.output().len();
    // Its questions wait as well.
    let question = [3, 0, 0, 0, 0, 0, 0, 64, 0, 64];
    assert_eq!(pair.viewer.input(&question, &mut pair.events), Ok(0));
    assert!(!pair.viewer.wants_update() && !update(&mut pair));
    pair.viewer.sent(first - 1);
    pair.say(&question);
    assert!(!update(&mut pair));
    pair.viewer.sent(1);
    assert!(update(&mut pair));
}

/// What was sent in part goes on where it was, and answers come behind it.
#[test]
fn output_may_be_sent_in_any_pieces() {
    for piece in [1, 7, 1000, 16_000] {
        let mut pair = Pair::new(64, 64);
        pair.ask(false, area(0, 0, 64, 64));
        assert!(pair.viewer.update(&Scene::of(&pair.frame)));
        let all = pair.viewer.output().to_vec();
        let mut seen = Vec::new();
        let mut asked = false;
        while !pair.viewer.output().is_empty() {
            let output = pair.viewer.output();
            let len = piece.min(output.len());
            seen.extend_from_slice(&output[..len]);
            pair.viewer.sent(len);
            if !asked && !pair.viewer.output().is_empty() && all.len() - seen.len() < 4096 {
                // A fence with an answer.
                pair.say(&[248, 0, 0, 0, 0x80, 0, 0, 0, 1, 77]);
                asked = true;
            }
        }
        assert!(seen[..all.len()] == all && asked);
        assert_eq!(seen[all.len()..], [248, 0, 0, 0, 0, 0, 0, 0, 1, 77]);
    }
}

#[test]
fn several_viewers_share_a_screen_and_miss_nothing() {
    let mut pair = Pair::new(320, 200);
    let mut late = Viewer::new(&options(), 320, 200);
    pair.ask(false, area(0, 0, 320, 200));
    assert!(pair.update());
    pair.draw(area(50, 50, 3, 3), |_, _| 0xFF12_3456);
    let mut damage = Tiles::new(320, 200);
    damage.mark(area(50, 50, 3, 3));
    late.damaged(&damage);
    pair.ask(true, area(0, 0, 320, 200));
    assert!(pair.update() && pair.sees());
    // The other one has all of it to come.
    late.sent(late.output().len());
    late.input(b"RFB 003.003\n\x01", &mut Vec::new()).unwrap();
    late.sent(late.output().len());
    late.input(&[3, 1, 0, 0, 0, 0, 1, 64, 0, 200], &mut Vec::new())
        .unwrap();
    assert!(late.update(&Scene::of(&pair.frame)));
    assert_eq!(late.output().len(), 4 + 12 + 320 * 200 * 4);
}

fn enable_continuous(pair: &mut Pair, enable: u8) {
    pair.say(&[150, enable, 0, 0, 0, 0, 1, 64, 0, 200]);
}

#[test]
fn continuous_updates_need_no_requests_and_end_when_told() {
    let mut pair = Pair::new(320, 200);
    pair.encodings(&[16, -313]);
    assert_eq!(
        pair.client.ends_of_continuous, 1,
        "the client hears that we can"
    );
    enable_continuous(&mut pair, 1);
    assert!(pair.update() && pair.sees());
    for step in 0..20 {
        pair.draw(area(step * 9, 9, 5, 5), |_, _| 0xFF00_00FF | step << 8);
        assert!(pair.update() && pair.sees());
    }
    enable_continuous(&mut pair, 0);
    pair.hear();
    assert_eq!(pair.client.ends_of_continuous, 2);
    pair.draw(area(0, 0, 5, 5), |_, _| 1);
    assert!(!pair.update());
}

/// A slow client has a few pictures on their way, and never a queue of old ones.
#[test]
fn fences_hold_back_what_a_client_has_not_seen() {
    let mut pair = Pair::new(320, 200);
    pair.encodings(&[16, -313, -312]);
    // One fence says that we know them.
    assert_eq!(pair.client.fences.len(), 1);
    assert_ne!(pair.client.fences[0].0 & 1 << 31, 0);
    pair.client.fences.clear();
    enable_continuous(&mut pair, 1);
    let mut sent = 0;
    for step in 0..10 {
        pair.draw(area(step * 9, 9, 5, 5), |_, _| 0xFF00_00FF | step << 8);
        sent += u32::from(pair.update());
    }
    assert_eq!(sent, 3);
    assert_eq!(pair.client.fences.len(), 3);
    // What was never asked does not count.
    for wrong in [[0, 0, 0, 9], [0xFF; 4]] {
        pair.say(&[&[248, 0, 0, 0, 0, 0, 0, 0, 4][..], &wrong].concat());
        assert!(!pair.viewer.wants_update());
    }
    let payload = pair.client.fences[0].1.clone();
    pair.say(&[&[248, 0, 0, 0, 0, 0, 0, 1, 4][..], &payload].concat());
    assert!(
        pair.update() && pair.sees(),
        "the latest, with all that came between"
    );
    assert!(!pair.viewer.wants_update());
}

#[test]
fn fences_of_a_client_are_answered_with_what_is_kept_of_them() {
    let mut pair = Pair::new(64, 64);
    pair.encodings(&[-312]);
    pair.client.fences.clear();
    pair.say(&[248, 0, 0, 0, 0x80, 0, 0, 7, 3, b'a', b'b', b'c']);
    pair.hear();
    assert_eq!(pair.client.fences, [(3, b"abc".to_vec())]);
}

#[test]
fn what_a_person_does_comes_out_as_events() {
    let mut pair = Pair::new(320, 200);
    pair.say(&[4, 1, 0, 0, 0, 0, 0xFF, 0x0D]);
    pair.say(&[4, 0, 0, 0, 1, 0, 0x20, 0xAC]);
    pair.say(&[5, 0b101, 0, 10, 0, 20]);
    // A pointer is on the screen, whatever a client says.
    pair.say(&[5, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(
        pair.events,
        [
            Event::Key {
                down: true,
                keysym: 0xFF0D
            },
            Event::Key {
                down: false,
                keysym: 0x0100_20AC
            },
            Event::Pointer {
                buttons: 5,
                x: 10,
                y: 20
            },
            Event::Pointer {
                buttons: 0,
                x: 319,
                y: 199
            },
        ]
    );
}
