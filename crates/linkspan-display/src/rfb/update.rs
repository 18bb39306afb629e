//! Updates of a client's picture.

use super::SizeAnswer;
use super::encode::Body;
use super::pixel::Shape;
use super::viewer::{FENCE_BLOCK_BEFORE, FENCE_REQUEST, Stage, Viewer, side};
use crate::cursor::{Cursor, Scene};
use crate::damage::{RECTANGLES_MAX, Rectangle, SIDE};

const CURSOR: i32 = -239;
const CURSOR_ALPHA: i32 = -314;
const POINTER_POSITION: i32 = -232;
const SIZE: i32 = -223;
const EXTENDED_SIZE: i32 = -308;
/// The number of the one screen.
const SCREEN: u32 = 1;

impl Viewer {
    /// Whether [`update`](Self::update) would send something: the client has asked for what
    /// has changed, and took what it was sent before.
    #[must_use]
    pub fn wants_update(&self) -> bool {
        if self.stage != Stage::Running || !self.out.is_empty() {
            return false;
        }
        let Some(area) = self.wanted() else {
            return false;
        };
        self.size_is_due() || self.says_more() || self.damage.touches(area)
    }

    /// What may be sent now, in whole tiles.
    fn wanted(&self) -> Option<Rectangle> {
        let unasked = self
            .continuous
            .filter(|_| !(self.abilities.fence && self.flow.is_full()));
        let area = match (self.request, unasked) {
            (Some(asked), Some(unasked)) => asked.hull(unasked),
            (asked, unasked) => asked.or(unasked)?,
        };
        let area = area.intersection(self.known).intersection(self.screen);
        let (x, y) = (area.x - area.x % SIDE, area.y - area.y % SIDE);
        let whole = Rectangle {
            x,
            y,
            width: area.right().next_multiple_of(SIDE) - x,
            height: area.bottom().next_multiple_of(SIDE) - y,
        };
        Some(whole.intersection(self.known).intersection(self.screen))
    }

    fn takes_sizes(&self) -> bool {
        self.abilities.size || self.abilities.extended_size
    }

    fn size_is_due(&self) -> bool {
        let told = self.due.size && (self.abilities.extended_size || self.screen != self.known);
        self.takes_sizes() && (told || self.answer_is_due())
    }

    fn answer_is_due(&self) -> bool {
        self.abilities.extended_size && self.due.size_answer.is_some()
    }

    /// Whether there is something to say beside pixels and sizes.
    fn says_more(&self) -> bool {
        let draws = self.abilities.cursor || self.abilities.cursor_alpha;
        let shape = self.due.cursor && draws && (self.has_shape || self.has_cursor);
        shape || self.due.position.is_some()
    }

    /// Sends what has changed of the screen, as far as the client wants to know; says
    /// whether that was anything. The scene is what [`damaged`](Self::damaged),
    /// [`resized`](Self::resized) and [`pointed`](Self::pointed) were told of.
    ///
    /// # Panics
    /// If the frame has another size than the screen.
    pub fn update(&mut self, scene: &Scene<'_>) -> bool {
        assert_eq!(scene.frame.area(), self.screen, "the frame of the screen");
        if !self.wants_update() {
            return false;
        }
        let Some(area) = self.wanted() else {
            return false;
        };
        if self.size_is_due() {
            self.say_size();
            return true;
        }
        let mut body = Body::begin(&mut self.out);
        if let Some((x, y)) = self.due.position.take() {
            body.header(&mut self.out, (x, y, 0, 0), POINTER_POSITION);
        }
        let theirs = scene.cursor.filter(|(cursor, _)| self.draws(cursor));
        if core::mem::take(&mut self.due.cursor) {
            self.say_cursor(theirs.map(|(cursor, _)| cursor), &mut body);
        }
        let scene = match theirs {
            Some(_) => &scene.without_cursor(),
            None => scene,
        };
        for rectangle in self.damage.rectangles(RECTANGLES_MAX) {
            let part = rectangle.intersection(area);
            if !part.is_empty() {
                self.encoder
                    .rectangle(scene, part, &mut body, &mut self.out);
            }
        }
        self.damage.forget(area);
        if body.is_empty() {
            // Only a scene without the pointer that was told of leaves nothing to say.
            self.out.clear();
            return false;
        }
        body.end(&mut self.out);
        self.sent_update();
        true
    }

    /// A client that answers fences says with them when it has seen a picture.
    fn sent_update(&mut self) {
        self.request = None;
        if self.continuous.is_some() && self.abilities.fence {
            self.flow.sent = self.flow.sent.wrapping_add(1);
            let number = self.flow.sent.to_be_bytes();
            self.say_fence(FENCE_REQUEST | FENCE_BLOCK_BEFORE, &number);
        }
    }

    /// The size, alone: what comes next is of the new one.
    fn say_size(&mut self) {
        let mut body = Body::begin(&mut self.out);
        let (width, height) = (side(self.screen.width), side(self.screen.height));
        if self.abilities.extended_size {
            // Why it changes: this client wanted it, or somebody else.
            let (reason, status) = match self.due.size_answer {
                None => (0, 0),
                Some(SizeAnswer::Done) => (1, 0),
                Some(SizeAnswer::Prohibited) => (1, 1),
                Some(SizeAnswer::NoResources) => (1, 2),
                Some(SizeAnswer::Invalid) => (1, 3),
            };
            body.header(
                &mut self.out,
                (reason, status, width, height),
                EXTENDED_SIZE,
            );
            // One screen, which is all of it. libvncclient believes in no screen with number 0.
            self.out.extend([1, 0, 0, 0]);
            self.out.extend(SCREEN.to_be_bytes());
            self.out.extend([0; 4]);
            self.out.extend(width.to_be_bytes());
            self.out.extend(height.to_be_bytes());
            self.out.extend([0; 4]);
        } else {
            body.header(&mut self.out, (0, 0, width, height), SIZE);
        }
        body.end(&mut self.out);
        self.due.size_answer = None;
        self.due.size = false;
        if self.known != self.screen {
            self.known = self.screen;
            self.damage.fill();
        }
        self.sent_update();
    }

    /// The shape of the pointer, or that there is none.
    fn say_cursor(&mut self, cursor: Option<&Cursor>, body: &mut Body) {
        let draws = self.abilities.cursor || self.abilities.cursor_alpha;
        let hidden = cursor.is_none() && !self.has_cursor;
        if !draws || hidden {
            return;
        }
        self.has_cursor = cursor.is_some();
        let alpha = self.abilities.cursor_alpha;
        let number = if alpha { CURSOR_ALPHA } else { CURSOR };
        let (Some(cursor), Some(spot)) = (cursor, cursor.and_then(Cursor::hot_spot)) else {
            body.header(&mut self.out, (0, 0, 0, 0), number);
            if alpha {
                self.out.extend(0i32.to_be_bytes());
            }
            return;
        };
        let area = (
            side(spot.x),
            side(spot.y),
            side(cursor.width()),
            side(cursor.height()),
        );
        body.header(&mut self.out, area, number);
        if alpha {
            // Raw pixels of red, green, blue and opacity, multiplied by it.
            self.out.extend(0i32.to_be_bytes());
            let start = self.out.len();
            self.out.resize(start + cursor.pixels().len() * 4, 0);
            crate::to_rgba(cursor.pixels(), &mut self.out[start..]);
            return;
        }
        for &pixel in cursor.pixels() {
            self.encoder
                .painter
                .paint(&[plain(pixel)], Shape::Whole, &mut self.out);
        }
        for line in cursor.pixels().chunks(cursor.width().max(1) as usize) {
            for eight in line.chunks(8) {
                let bits = eight.iter().enumerate();
                self.out.push(bits.fold(0, |byte, (bit, pixel)| {
                    byte | u8::from(pixel >> 31 != 0) << (7 - bit)
                }));
            }
        }
    }
}

/// The colour of a pixel that is multiplied by its opacity, without that.
fn plain(pixel: u32) -> u32 {
    let alpha = pixel >> 24;
    let channel = |shift: u32| {
        let value = (pixel >> shift & 0xFF) * 255;
        value.checked_div(alpha).unwrap_or(0).min(255) << shift
    };
    channel(16) | channel(8) | channel(0)
}
