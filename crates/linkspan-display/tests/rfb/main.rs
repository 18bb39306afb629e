//! The server's end of RFB against a client that was written for these tests, which decodes
//! everything by the specification.

mod client;
mod encodings;
mod handshake;
mod hostile;
mod pointer;
mod saved;
mod sizes;
mod updates;

use client::Client;
use linkspan_display::rfb::{Event, Options, Security, Viewer};
use linkspan_display::{Frame, Rectangle, Tiles};

fn options() -> Options {
    Options {
        name: "guest".into(),
        security: Security::None,
        resizable: true,
    }
}

fn area(x: u32, y: u32, width: u32, height: u32) -> Rectangle {
    Rectangle {
        x,
        y,
        width,
        height,
    }
}

/// A screen, one viewer of it, and the client at the other end.
struct Pair {
    frame: Frame,
    viewer: Viewer,
    client: Client,
    events: Vec<Event>,
}

impl Pair {
    /// Connected, and past everything that is said before messages.
    fn new(width: u32, height: u32) -> Self {
        let mut pair = Self {
            frame: Frame::new(width, height).unwrap(),
            viewer: Viewer::new(&options(), width, height),
            client: Client::default(),
            events: Vec::new(),
        };
        assert_eq!(pair.taken(), b"RFB 003.008\n");
        pair.say(b"RFB 003.008\n");
        assert_eq!(pair.taken(), [1, 1]);
        pair.say(&[1]);
        assert_eq!(pair.taken(), [0; 4]);
        pair.say(&[1]);
        let init = pair.taken();
        pair.client.init(&init);
        assert_eq!(pair.events, [Event::Joined { shared: true }]);
        pair.events.clear();
        pair
    }

    /// What the viewer has to send.
    fn taken(&mut self) -> Vec<u8> {
        let bytes = self.viewer.output().to_vec();
        self.viewer.sent(bytes.len());
        bytes
    }

    /// The client says this, and all of it is taken.
    fn say(&mut self, bytes: &[u8]) {
        let taken = self.viewer.input(bytes, &mut self.events).unwrap();
        assert_eq!(taken, bytes.len());
    }

    /// Lists encodings.
    fn encodings(&mut self, list: &[i32]) {
        let mut message = vec![2, 0];
        message.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        message.extend(list.iter().flat_map(|number| number.to_be_bytes()));
        self.say(&message);
        self.hear();
    }

    /// Asks for an update.
    fn ask(&mut self, incremental: bool, area: Rectangle) {
        let mut message = vec![3, incremental.into()];
        for side in [area.x, area.y, area.width, area.height] {
            message.extend(u16::try_from(side).unwrap().to_be_bytes());
        }
        self.say(&message);
    }

    /// The client hears what there is.
    fn hear(&mut self) {
        let bytes = self.taken();
        self.client.take(&bytes);
    }

    /// Sends an update if one is wanted, and says whether it was; the client has the picture.
    fn update(&mut self) -> bool {
        let wanted = self.viewer.wants_update();
        let scene = linkspan_display::Scene::of(&self.frame);
        assert_eq!(self.viewer.update(&scene), wanted);
        self.hear();
        wanted
    }

    /// Draws this into a part of the screen and tells the viewer.
    fn draw(&mut self, part: Rectangle, mut pixel: impl FnMut(u32, u32) -> u32) {
        let width = self.frame.width();
        for y in part.y..part.bottom() {
            for x in part.x..part.right() {
                self.frame.pixels_mut()[(y * width + x) as usize] = pixel(x, y);
            }
        }
        let mut damage = Tiles::new(width, self.frame.height());
        damage.mark(part);
        self.viewer.damaged(&damage);
    }

    /// Whether the client sees the screen.
    fn sees(&self) -> bool {
        self.client.shows(self.frame.pixels())
    }
}
