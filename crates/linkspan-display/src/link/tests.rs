//! Messages as they are said and heard.

use super::*;
use alloc::vec;

fn told() -> Told {
    Told {
        head: 3,
        kind: Kind::Cursor,
        id: 7,
        content: 9,
        plane: Plane {
            surface: Surface {
                format: FourCc::ARGB8888,
                modifier: Modifier::LINEAR,
                width: 64,
                height: 64,
                stride: 256,
                offset: 4096,
                x: 3,
                y: 5,
            },
            size: 16384,
            position: Position { x: -3, y: 700 },
            hot_spot: Some(HotSpot { x: 1, y: 2 }),
        },
    }
}

fn refused() -> RefusedPlane {
    RefusedPlane {
        head: 2,
        kind: Kind::Sprite(1),
        why: Reason::new("scaling is not supported"),
    }
}

fn split(bytes: &[u8]) -> ([u8; HEADER], &[u8]) {
    let (header, body) = bytes.split_first_chunk().unwrap();
    (*header, body)
}

fn all(planes: usize) -> Vec<Message> {
    let part = Rectangle {
        x: 1,
        y: 2,
        width: 3,
        height: 4,
    };
    vec![
        Message::Hello { version: VERSION },
        Message::Silent,
        Message::Planes {
            loss: None,
            planes: vec![told(); planes],
            refused: vec![refused(); planes],
        },
        Message::Planes {
            loss: None,
            planes: vec![Told {
                kind: Kind::Sprite(SPRITES_MAX),
                ..told()
            }],
            refused: vec![refused()],
        },
        Message::Planes {
            loss: Some(Loss::Off),
            planes: vec![],
            refused: vec![],
        },
        Message::Damage {
            head: 15,
            parts: vec![part; RECTANGLES_MAX],
        },
        Message::Buffer {
            id: 7,
            got: Got::Retired,
        },
        Message::Size {
            resized: Resized::NotOurs,
        },
        Message::Get {
            id: 7,
            dma_buf: true,
        },
        Message::Resize {
            head: 0,
            width: 1920,
            height: 1080,
        },
    ]
}

#[test]
fn what_is_said_is_heard() {
    for message in all(PLANES_MAX) {
        let bytes = message.to_bytes();
        let (header, body) = split(&bytes);
        assert_eq!(Message::body_len(header), Ok(body.len()));
        assert_eq!(Message::parse(header, body), Ok(message));
    }
}

/// What a peer says goes to terminals and logs.
#[test]
fn a_reason_is_short_and_of_plain_letters() {
    let why = Reason::new("\u{1B}[2J caf\u{e9}\n");
    assert_eq!(why.as_str(), "?[2J caf??");
    assert_eq!(Reason::new(&"a".repeat(1000)).as_str().len(), Reason::MAX);
    let bad: [&[u8]; 4] = [b"", b"\x1B[2J", b"caf\xE9", &[b'a'; Reason::MAX + 1]];
    for words in bad {
        assert_eq!(Reason::from_bytes(words), None);
    }
    assert_eq!(Reason::from_bytes(b"why"), Some(Reason::new("why")));
}

#[test]
fn any_byte_may_be_another_one() {
    for message in all(2) {
        let bytes = message.to_bytes();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let (header, body) = split(&bytes);
                // Whatever comes of it, it ends.
                if let Ok(message) = Message::parse(header, body) {
                    assert_eq!(split(&message.to_bytes()).1.len(), body.len());
                }
            }
        }
    }
}
