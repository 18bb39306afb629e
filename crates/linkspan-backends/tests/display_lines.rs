//! What a screen logs: a line for each change of state, none for a frame, and few where a
//! guest changes all the time. The log is of the whole process, so this is one test.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use linkspan_backends::display::{
    DisplayOptions, DisplayServer, Memory, Model, PciDisplay, Screen, Shown, Source, SourceError,
    VncServer,
};
use linkspan_display::{
    FourCc, Kind, Loss, Modifier, Plane, Position, Reason, RefusedPlane, Surface,
};
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::tcp::TcpListener;
use linkspan_sys::{EventFd, Listener, PeerMemory, View};
use linkspan_testkit::logs;

#[derive(Clone, Copy, Debug)]
enum State {
    /// A picture of so many lines, another buffer each time.
    Shows(u32),
    /// One of a format that is not shown.
    Palette,
    /// One that its source refuses.
    Refuses,
    Off,
    Lost,
    Fails,
}

struct Changing {
    state: Arc<Mutex<State>>,
    looks: u32,
    refused: Vec<RefusedPlane>,
}

impl Source for Changing {
    fn name(&self) -> String {
        "changing".into()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        self.looks += 1;
        self.refused.clear();
        let state = *self.state.lock().unwrap();
        let (format, height) = match state {
            State::Shows(height) => (FourCc::XRGB8888, height),
            State::Palette => (FourCc::C8, 16),
            State::Refuses => {
                self.refused.push(RefusedPlane {
                    head: 0,
                    kind: Kind::Primary,
                    why: Reason::new("scaling is not supported"),
                });
                return Ok(Vec::new());
            }
            State::Off => return Ok(Vec::new()),
            State::Lost => return Err(SourceError::Lost(Loss::Reset)),
            State::Fails => return Err(SourceError::Unsupported("no way".into())),
        };
        let surface = Surface {
            format,
            modifier: Modifier::LINEAR,
            width: 16,
            height,
            stride: 64,
            offset: 0,
            x: 0,
            y: 0,
        };
        let plane = Plane {
            surface,
            size: 4096,
            position: Position::default(),
            hot_spot: None,
        };
        // A sprite that nobody wants to see comes with each picture.
        let shown = |kind| Shown {
            head: 0,
            kind,
            id: self.looks % 3,
            plane,
            content: self.looks,
        };
        Ok(vec![shown(Kind::Primary), shown(Kind::Sprite(1))])
    }

    fn refused(&self) -> &[RefusedPlane] {
        &self.refused
    }

    fn memory(&mut self, _: &Shown) -> Result<Memory, SourceError> {
        let file = memfd::create("changing", 4096, Sealing::Fixed).unwrap();
        rustix::io::pwrite(&file, &self.looks.to_ne_bytes(), 0).unwrap();
        let file = PeerMemory::check(file)?;
        Ok(View::of_peer(&file, 0, 4096)?.into())
    }

    fn resize(&mut self, _: u8, _: u32, _: u32) -> Result<(), SourceError> {
        Err(SourceError::Unsupported("it is as it is".into()))
    }
}

#[test]
fn a_thousand_frames_of_each_state_are_a_line_each() {
    logs::capture();
    let state = Arc::new(Mutex::new(State::Shows(16)));
    let source = Changing {
        state: Arc::clone(&state),
        looks: 0,
        refused: Vec::new(),
    };
    let mut screen = Screen::new(Box::new(source), 0).unwrap();
    let all = || logs::lines(&["linkspan"]);
    for (next, lines) in [
        (State::Shows(16), 2),
        (State::Shows(32), 1),
        (State::Palette, 1),
        (State::Shows(32), 1),
        (State::Refuses, 1),
        (State::Fails, 1),
        (State::Lost, 1),
        (State::Off, 1),
        (State::Shows(16), 1),
    ] {
        *state.lock().unwrap() = next;
        let before = all().len();
        for _ in 0..1000 {
            screen.look().unwrap();
        }
        let said = all().split_off(before);
        assert_eq!(said.len(), lines, "{next:?}: {said:#?}");
    }
    // A guest that changes it with each look.
    let before = all().len();
    for number in 0..2000 {
        *state.lock().unwrap() = match number % 3 {
            0 => State::Refuses,
            1 => State::Shows(16 + number % 2 * 16),
            _ => State::Palette,
        };
        screen.look().unwrap();
    }
    let said = all().split_off(before).len();
    assert!((10..200).contains(&said), "{said}");
    sizes_that_are_refused_are_few_lines(screen);
    viewers_that_say_nonsense_are_few_lines();
}

fn sizes_that_are_refused_are_few_lines(screen: Screen) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut server = VncServer::new(listener, screen).unwrap();
    let address = server.address().unwrap();
    let cancel = Arc::new(EventFd::new().unwrap());
    let ours = Arc::clone(&cancel);
    let serving = thread::spawn(move || server.run(ours.as_fd()));
    let mut client = TcpStream::connect(address).unwrap();
    let mut heard = [0; 12];
    // Version, security, its result.
    for (len, answer) in [(12, &b"RFB 003.008\n"[..]), (2, &[1][..]), (4, &[1][..])] {
        client.read_exact(&mut heard[..len]).unwrap();
        client.write_all(answer).unwrap();
    }
    // SetDesktopSize: 77 by 77, one screen.
    let ask = [
        251, 0, 0, 77, 0, 77, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 77, 0, 77, 0, 0, 0, 0,
    ];
    client.write_all(&ask.repeat(200)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    drop(client.read_to_end(&mut Vec::new()));
    cancel.signal().unwrap();
    serving.join().unwrap().unwrap();
    let said = logs::lines(&["does not get 77x77"]).len();
    assert!((1..50).contains(&said), "{said}");
}

fn viewers_that_say_nonsense_are_few_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("screen");
    let device = PciDisplay::new(DisplayOptions {
        model: Model::Fixed,
        mode: (64, 64),
        memory: 1 << 20,
    });
    let listener = Listener::bind(&path).unwrap();
    let viewers = DisplayServer::of_display(&device.unwrap(), listener).unwrap();
    for _ in 0..200 {
        let mut viewer = UnixStream::connect(&path).unwrap();
        viewer.write_all(&[0xFF; 8]).unwrap();
        drop(viewer.read_to_end(&mut Vec::new()));
    }
    drop(viewers);
    let said = logs::lines(&["is sent away"]).len();
    assert!((1..50).contains(&said), "{said}");
}
