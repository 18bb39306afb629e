//! What a VNC client says, with a screen that changes meanwhile.
//!
//! Each step is a byte: what is done; some take more. What the client says comes in pieces
//! of up to 255 bytes. The first byte of a script with its highest bit set begins with a
//! client that is past the beginning.

use linkspan_display::rfb::{Options, Security, SizeAnswer, Viewer};
use linkspan_display::{Cursor, Frame, HotSpot, Position, Rectangle, Scene, Tiles};

use super::Outcome;
use crate::input::Input;

/// The client says so many bytes, which follow.
pub const SAY: u8 = 0;
/// An update is sent.
pub const UPDATE: u8 = 1;
/// So many bytes are taken by the client, times 16.
pub const TAKE: u8 = 2;
/// A part of the screen changes: x, y, a colour.
pub const DRAW: u8 = 3;
/// The screen has another size: width and height.
pub const RESIZE: u8 = 4;
/// Another process takes over.
pub const REPLACE: u8 = 5;
/// The pointer is somewhere: x, y, and whether it has another shape.
pub const POINT: u8 = 6;
/// The client hears what came of the size that it wanted.
pub const ANSWER: u8 = 7;

/// A bit of the first byte: messages are exchanged already.
pub const RUNNING: u8 = 0x80;

/// The target.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// Runs a script.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut screen = Screen::new();
    if input.u8().unwrap_or(0) & RUNNING != 0 {
        screen.say(b"RFB 003.008\n\x01\x01");
        screen.take(usize::MAX);
        screen.outcome = Outcome::default();
    }
    while let Some(step) = input.u8() {
        if !screen.step(step % 8, &mut input) {
            break;
        }
    }
    screen.outcome
}

struct Screen {
    options: Options,
    viewer: Viewer,
    frame: Frame,
    cursor: Cursor,
    place: Position,
    outcome: Outcome,
}

impl Screen {
    fn new() -> Self {
        let options = Options {
            name: "fuzz".into(),
            security: Security::None,
            resizable: true,
        };
        let mut small = Frame::new(9, 5).expect("it is small");
        for (at, pixel) in (0..).zip(small.pixels_mut()) {
            *pixel = at * 0x0506_0708;
        }
        let spot = HotSpot { x: 1, y: 2 };
        Self {
            viewer: Viewer::new(&options, 64, 48),
            options,
            frame: Frame::new(64, 48).expect("it is small"),
            cursor: Cursor::new(&small, Some(spot)).expect("it is small"),
            place: Position::default(),
            outcome: Outcome::default(),
        }
    }

    /// Whether the connection goes on.
    fn step(&mut self, step: u8, input: &mut Input<'_>) -> bool {
        let mut number = || input.u8().unwrap_or(0);
        match step {
            SAY => {
                let len = number().into();
                return self.say(input.bytes(len));
            }
            UPDATE => {
                let wanted = self.viewer.wants_update();
                let scene = Scene {
                    frame: &self.frame,
                    sprites: &[],
                    cursor: Some((&self.cursor, self.place)),
                };
                assert_eq!(self.viewer.update(&scene), wanted);
                self.outcome.done += usize::from(wanted);
            }
            TAKE => self.take(usize::from(number()) * 16),
            DRAW => {
                let (x, y, colour) = (number(), number(), number());
                let part = Rectangle {
                    x: x.into(),
                    y: y.into(),
                    width: 40,
                    height: 20,
                };
                self.draw(part.intersection(self.frame.area()), colour);
            }
            RESIZE => {
                let (width, height) =
                    (u32::from(number()) % 100 + 1, u32::from(number()) % 100 + 1);
                self.frame = Frame::new(width, height).expect("it is small");
                self.viewer.resized(width, height);
            }
            REPLACE => match self.viewer.snapshot() {
                Ok(bytes) => {
                    let again = Viewer::restore(&self.options, &bytes);
                    self.viewer = again.expect("what was saved can be restored");
                }
                Err(_) => self.outcome.refused += 1,
            },
            POINT => {
                let side = |value: u8| i32::from(value) - 20;
                self.place = Position {
                    x: side(number()),
                    y: side(number()),
                };
                let reshaped = number() & 1 != 0;
                self.viewer
                    .pointed(Some((&self.cursor, self.place)), reshaped);
                self.viewer.put(3, 4);
            }
            _ => self.viewer.answer_size(match number() % 4 {
                0 => SizeAnswer::Done,
                1 => SizeAnswer::Prohibited,
                2 => SizeAnswer::NoResources,
                _ => SizeAnswer::Invalid,
            }),
        }
        true
    }

    fn say(&mut self, bytes: &[u8]) -> bool {
        let mut events = Vec::new();
        let result = self.viewer.input(bytes, &mut events);
        self.outcome.done += events.len();
        // What is said costs no more than it is long.
        assert!(events.len() <= bytes.len());
        match result {
            Ok(taken) => assert!(taken <= bytes.len()),
            Err(error) => {
                self.outcome.error = Some(error.to_string());
                return false;
            }
        }
        true
    }

    fn take(&mut self, len: usize) {
        let len = len.min(self.viewer.output().len());
        self.viewer.sent(len);
    }

    fn draw(&mut self, part: Rectangle, colour: u8) {
        let width = self.frame.width();
        for y in part.y..part.bottom() {
            for x in part.x..part.right() {
                let value = u32::from(colour) * (x * 3 + y * y % 5) * 0x0103;
                self.frame.pixels_mut()[(y * width + x) as usize] = value;
            }
        }
        let mut damage = Tiles::new(width, self.frame.height());
        damage.mark(part);
        self.viewer.damaged(&damage);
    }
}
