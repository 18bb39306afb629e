//! The page of a screen, by a WebSocket client that others wrote, and by clients that break
//! every rule.

use std::io::{Cursor, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use linkspan_backends::display::{Input, ServeError, WatchServer};
use linkspan_sys::EventFd;
use linkspan_sys::tcp::TcpListener;
use serde_json::Value;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use crate::input::{self, Monitor};
use crate::rig::{Rig, pattern};

const XRGB: u32 = 2;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];

/// A server in a thread of its own.
struct Served {
    address: SocketAddr,
    token: String,
    cancel: Arc<EventFd>,
    thread: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    fn of(rig: &Rig) -> Self {
        Self::with(rig, None)
    }

    /// With keys and a pointer.
    fn with(rig: &Rig, input: Option<Input>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut server = WatchServer::new(listener, rig.screen()).unwrap();
        if let Some(input) = input {
            server.set_input(input);
        }
        let cancel = Arc::new(EventFd::new().unwrap());
        let ours = Arc::clone(&cancel);
        Self {
            address: server.address().unwrap(),
            token: server.token().to_owned(),
            cancel,
            thread: thread::spawn(move || server.run(ours.as_fd())),
        }
    }

    fn end(self) -> Result<(), ServeError> {
        self.cancel.signal().unwrap();
        self.thread.join().unwrap()
    }

    fn stream(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        stream
    }

    /// What is answered, with its head.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.stream();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn get(&self, path: &str, host: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    /// A WebSocket of a page from there.
    fn socket(&self, origin: &str) -> Option<WebSocket<TcpStream>> {
        let url = format!("ws://{}/screen", self.address);
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("Origin", origin.parse().unwrap());
        let client = tungstenite::client(request, self.stream());
        client.ok().map(|it| it.0)
    }

    /// Somebody who knows the token.
    fn viewer(&self) -> Viewer {
        let origin = format!("http://{}", self.address);
        let mut socket = self.socket(&origin).unwrap();
        socket.send(Message::text(&self.token)).unwrap();
        Viewer {
            socket,
            said: Value::Null,
            picture: Vec::new(),
        }
    }
}

struct Viewer {
    socket: WebSocket<TcpStream>,
    /// The last state.
    said: Value,
    picture: Vec<u32>,
}

impl Viewer {
    /// The next message that is no sign of life.
    fn next(&mut self) -> Message {
        loop {
            match self.socket.read().unwrap() {
                Message::Text(text) if text.as_str() == "{}" => {}
                message => return message,
            }
        }
    }

    /// Takes in a message, and has seen it: how many tiles were in it.
    fn take(&mut self) -> usize {
        let tiles = match self.next() {
            Message::Text(text) => {
                self.said = serde_json::from_str(&text).unwrap();
                let side = |name: &str| self.said[name].as_u64().unwrap() as usize;
                self.picture = vec![u32::MAX; side("width") * side("height")];
                0
            }
            Message::Binary(bytes) => self.draw(&bytes),
            other => panic!("{other:?}"),
        };
        self.socket.send(Message::text("seen")).unwrap();
        tiles
    }

    fn draw(&mut self, mut bytes: &[u8]) -> usize {
        let width = self.said["width"].as_u64().unwrap() as usize;
        let mut tiles = 0;
        while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
            let side = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let (file, rest) = rest.split_at(len as usize);
            bytes = rest;
            let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
            let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut rgb).unwrap();
            for (line, pixels) in rgb.chunks_exact(info.width as usize * 3).enumerate() {
                for (column, rgb) in pixels.as_chunks::<3>().0.iter().enumerate() {
                    let at = (side(2) + line) * width + side(0) + column;
                    self.picture[at] = u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]]);
                }
            }
            tiles += 1;
        }
        assert_eq!(bytes, [0u8; 0]);
        tiles
    }

    /// Looks until it sees this.
    fn until(&mut self, wanted: &[u32]) {
        while self.picture != wanted {
            self.take();
        }
    }

    /// Looks until there is no picture: why.
    fn until_lost(&mut self) -> String {
        loop {
            if let Some(why) = self.said["lost"].as_str() {
                return why.to_owned();
            }
            self.take();
        }
    }
}

fn shown(wanted: &[u32]) -> Rig {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, wanted);
    rig.driver.show(0, 1, WHOLE);
    rig
}

#[test]
fn pages_see_what_changes_each_for_itself() {
    let mut wanted = pattern(20_000, 11);
    let mut rig = shown(&wanted);
    let served = Served::of(&rig);
    let mut viewers = [0; 3].map(|_| served.viewer());
    for viewer in &mut viewers {
        viewer.until(&wanted);
        assert_eq!(viewer.said["lost"], Value::Null);
    }
    // One pixel: one tile, for each.
    wanted[50 * 200 + 70] ^= 0xFF;
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.flush(1, WHOLE);
    for viewer in &mut viewers {
        assert_eq!(viewer.take(), 1);
        assert!(viewer.picture == wanted);
    }
    // The pointer is in the picture, and leaves no trace where it was.
    rig.driver.create(2, 1, (64, 64), 100_000);
    rig.driver
        .draw(2, (64, 64), 100_000, &[0xFF12_3456; 64 * 64]);
    rig.driver.pointer(0x300, (10, 20), 2, (0, 0));
    let with = |x: usize| -> Vec<u32> {
        let inside =
            |at: usize| (x..x + 64).contains(&(at % 200)) && (20..84).contains(&(at / 200));
        let pixel = |at: usize| if inside(at) { 0x12_3456 } else { wanted[at] };
        (0..wanted.len()).map(pixel).collect()
    };
    viewers[0].until(&with(10));
    rig.driver.pointer(0x301, (90, 20), 2, (0, 0));
    viewers[0].until(&with(90));
    rig.driver.pointer(0x300, (0, 0), 0, (0, 0));
    // Off: each hears why, and it comes back.
    rig.driver.show(0, 0, [0; 4]);
    for viewer in &mut viewers {
        assert_eq!(viewer.until_lost(), "the guest has switched its screen off");
    }
    rig.driver.show(0, 1, WHOLE);
    for viewer in &mut viewers {
        viewer.until(&wanted);
        assert_eq!(viewer.said["lost"], Value::Null);
    }
    served.end().unwrap();
    for viewer in &mut viewers {
        let Message::Close(Some(frame)) = viewer.next() else {
            panic!("it is not told");
        };
        assert_eq!(frame.reason.as_str(), "linkspan was stopped");
    }
}

#[test]
fn a_page_hears_why_its_source_is_gone() {
    let rig = shown(&pattern(20_000, 12));
    let served = Served::of(&rig);
    let mut viewer = served.viewer();
    viewer.take();
    drop(rig);
    let why = viewer.until_lost();
    let error = served.thread.join().unwrap().unwrap_err();
    assert!(matches!(error, ServeError::Source(_)), "{error}");
    assert_eq!(why, error.to_string());
}

#[test]
fn who_does_not_look_has_two_messages_on_their_way_and_sees_the_newest_then() {
    let mut wanted = pattern(20_000, 13);
    let mut rig = shown(&wanted);
    let served = Served::of(&rig);
    let (mut slow, mut quick) = (served.viewer(), served.viewer());
    quick.until(&wanted);
    for seed in 14..34 {
        wanted = pattern(20_000, seed);
        rig.driver.draw(1, SIZE, 0, &wanted);
        rig.driver.flush(1, WHOLE);
        quick.until(&wanted);
    }
    // It was sent what there was at first, and nothing since; then the last at once.
    let messages = [slow.next(), slow.next()];
    for message in messages {
        slow.socket.send(Message::text("seen")).unwrap();
        if let Message::Text(text) = message {
            slow.said = serde_json::from_str(&text).unwrap();
            slow.picture = vec![u32::MAX; 20_000];
        }
    }
    slow.take();
    assert!(slow.picture == wanted);
    served.end().unwrap();
}

#[test]
fn a_picture_that_is_too_large_for_one_message_comes_in_several() {
    let mut rig = Rig::new();
    let size = (1400, 720);
    let wanted = pattern(1400 * 720, 3);
    rig.driver.create(1, XRGB, size, 0);
    // The guest's memory has room for a part: the rest is drawn from there too.
    let part: Vec<u32> = wanted[..1400 * 700].to_vec();
    rig.driver.draw(1, (1400, 700), 0, &part);
    rig.driver.show(0, 1, [0, 0, 1400, 720]);
    let served = Served::of(&rig);
    let mut viewer = served.viewer();
    viewer.take();
    let mut count = 0;
    while viewer.picture[..1400 * 700] != part {
        assert!(viewer.take() > 0);
        count += 1;
    }
    assert!(count < 4, "{count}");
    served.end().unwrap();
}

#[test]
fn who_does_not_know_the_token_sees_nothing() {
    let rig = shown(&pattern(20_000, 1));
    let served = Served::of(&rig);
    let ours = format!("http://{}", served.address);
    for wrong in ["", "x", &"0".repeat(64), &served.token[1..]] {
        let mut socket = served.socket(&ours).unwrap();
        socket.send(Message::text(wrong)).unwrap();
        let Ok(Message::Close(Some(frame))) = socket.read() else {
            panic!("{wrong:?} is taken");
        };
        assert!(frame.reason.contains("token is wrong"));
    }
    // Pages of others, and names of others that lead here.
    assert!(served.socket("http://evil.example").is_none());
    let port = served.address.port();
    assert!(served.socket(&format!("http://localhost:{port}")).is_none());
    let evil = served.get("/", &format!("evil.example:{port}"));
    assert!(evil.starts_with("HTTP/1.1 421 "), "{evil}");
    let host = served.address.to_string();
    let page = served.get("/", &host);
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.contains("<canvas"),
        "{page}"
    );
    assert!(page.contains("Content-Security-Policy: default-src 'none'"));
    assert!(!page.contains(&served.token));
    let script = served.get("/screen.js", &host);
    assert!(script.contains("createImageBitmap") && script.contains("text/javascript"));
    assert!(served.get("/page.css", &host).contains("text/css"));
    let token = format!("/?token={}", served.token);
    assert!(served.get(&token, &host).starts_with("HTTP/1.1 404 "));
    served.end().unwrap();
}

#[test]
fn who_breaks_the_rules_is_sent_away_and_others_look_on() {
    let mut wanted = pattern(20_000, 2);
    let mut rig = shown(&wanted);
    let served = Served::of(&rig);
    let mut viewer = served.viewer();
    viewer.until(&wanted);
    let host = served.address.to_string();
    // Heads that never end, are too long, or are none.
    let slow: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = served.stream();
            stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
            stream
        })
        .collect();
    let long = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nA: {}\r\n",
        "x".repeat(8192)
    );
    assert!(served.ask(&long).starts_with("HTTP/1.1 431 "));
    assert!(
        served
            .ask("\u{1}\u{2}\r\n\r\n")
            .starts_with("HTTP/1.1 400 ")
    );
    let post = format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\r\nabc");
    assert!(served.ask(&post).starts_with("HTTP/1.1 405 "));
    // Frames that pages do not send: too long, pings, bytes, more than was to be seen,
    // without a mask.
    let known = |message: Message| {
        let mut viewer = served.viewer();
        viewer.take();
        let _ = viewer.socket.send(message);
        gone(&mut viewer.socket);
    };
    known(Message::text("x".repeat(2000)));
    known(Message::Ping("x".into()));
    known(Message::binary(vec![0; 4]));
    known(Message::text("seem"));
    let mut eager = served.viewer();
    for _ in 0..100 {
        if eager.socket.send(Message::text("seen")).is_err() {
            break;
        }
    }
    gone(&mut eager.socket);
    let mut plain = served.viewer();
    plain.take();
    plain.socket.get_mut().write_all(&[0x81, 1, b'x']).unwrap();
    gone(&mut plain.socket);
    // A page of ours among all of them.
    let mut late = served.viewer();
    late.until(&wanted);
    wanted[7] ^= 0xFF;
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.flush(1, WHOLE);
    viewer.until(&wanted);
    drop(slow);
    served.end().unwrap();
}

/// What a monitor hears of a key: its name, and whether it goes down.
fn heard(monitor: &mut Monitor, what: &str, down: bool) {
    let said = monitor.answer("{\"return\": {}}");
    let is_it = said.contains(what) && said.contains(&format!("\"down\":{down}"));
    assert!(is_it, "{what} {down}: {said}");
}

#[test]
fn a_page_types_and_points_and_lets_go_when_nobody_is_there() {
    let rig = shown(&pattern(20_000, 3));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let (input, mut monitor) = input::connect(&path, &listener);
    let served = Served::with(&rig, Some(input));
    let (mut viewer, mut other) = (served.viewer(), served.viewer());
    for viewer in [&mut viewer, &mut other] {
        viewer.take();
        assert_eq!(viewer.said["keys"], true);
    }
    let say = |viewer: &mut Viewer, text: &str| {
        viewer.socket.send(Message::text(text)).unwrap();
    };
    say(&mut viewer, "down KeyA");
    heard(&mut monitor, "\"a\"", true);
    say(&mut viewer, "up KeyA");
    heard(&mut monitor, "\"a\"", false);
    // What no keyboard has is nothing, and what is not down does not go up.
    say(&mut viewer, "down Nowhere");
    say(&mut viewer, "up KeyB");
    say(&mut viewer, "at 199 99 1");
    let place = monitor.answer("{\"return\": {}}");
    assert!(place.matches("32767").count() == 2, "{place}");
    // The button may have come with it.
    if !place.contains("\"left\"") {
        heard(&mut monitor, "\"left\"", true);
    }
    // A page that loses the focus, and one that goes.
    say(&mut viewer, "free");
    heard(&mut monitor, "\"left\"", false);
    say(&mut other, "down ControlLeft");
    heard(&mut monitor, "\"ctrl\"", true);
    drop(other);
    heard(&mut monitor, "\"ctrl\"", false);
    // One that breaks the rules goes, and lets go too.
    say(&mut viewer, "down ShiftLeft");
    heard(&mut monitor, "\"shift\"", true);
    say(&mut viewer, "at 1 2");
    gone(&mut viewer.socket);
    heard(&mut monitor, "\"shift\"", false);
    served.end().unwrap();
}

#[test]
fn who_only_looks_and_says_keys_is_sent_away() {
    let rig = shown(&pattern(20_000, 3));
    let served = Served::of(&rig);
    for text in ["down KeyA", "at 1 2 0", "free"] {
        let mut viewer = served.viewer();
        viewer.take();
        assert_eq!(viewer.said["keys"], false);
        viewer.socket.send(Message::text(text)).unwrap();
        gone(&mut viewer.socket);
    }
    served.end().unwrap();
}

/// QEMU that takes nothing, and a page that never stops: others look on, and nothing grows
/// beyond what may wait.
#[test]
fn a_flood_of_keys_holds_nobody_up() {
    let mut wanted = pattern(20_000, 4);
    let mut rig = shown(&wanted);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let (input, monitor) = input::connect(&path, &listener);
    let served = Served::with(&rig, Some(input));
    let (mut eager, mut viewer) = (served.viewer(), served.viewer());
    viewer.until(&wanted);
    eager.take();
    for count in 0..20_000 {
        let text = match count % 4 {
            0 => "down KeyA".to_owned(),
            1 => "up KeyA".to_owned(),
            _ => format!("at {} 7 {}", count % 200, count % 512),
        };
        eager.socket.send(Message::text(text)).unwrap();
    }
    wanted[7] ^= 0xFF;
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.flush(1, WHOLE);
    viewer.until(&wanted);
    drop(monitor);
    served.end().unwrap();
}

#[test]
fn half_a_message_is_waited_for_and_holds_nobody_up() {
    let mut wanted = pattern(20_000, 6);
    let mut rig = shown(&wanted);
    let served = Served::of(&rig);
    let (mut half, mut viewer) = (served.viewer(), served.viewer());
    viewer.until(&wanted);
    half.take();
    let Message::Binary(first) = half.next() else {
        panic!("no picture");
    };
    half.draw(&first);
    // A frame with a mask that changes nothing.
    let seen = [0x81, 0x84, 0, 0, 0, 0, b's', b'e', b'e', b'n'];
    half.socket.get_mut().write_all(&seen[..7]).unwrap();
    for at in 0..3 {
        wanted[at * 6000] ^= 0xFF;
        rig.driver.draw(1, SIZE, 0, &wanted);
        rig.driver.flush(1, WHOLE);
        viewer.until(&wanted);
    }
    half.socket.get_mut().write_all(&seen[7..]).unwrap();
    half.until(&wanted);
    served.end().unwrap();
}

/// It is sent away, whatever it is sent before.
fn gone(socket: &mut WebSocket<TcpStream>) {
    loop {
        match socket.read() {
            Ok(Message::Close(_)) => return,
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                panic!("it may stay")
            }
            Err(_) => return,
        }
    }
}

#[test]
fn more_viewers_than_there_is_room_for_are_told_so() {
    let rig = shown(&pattern(20_000, 2));
    let served = Served::of(&rig);
    let mut viewers: Vec<Viewer> = (0..16).map(|_| served.viewer()).collect();
    for viewer in &mut viewers {
        viewer.take();
    }
    let mut more = served.viewer();
    let Message::Close(Some(frame)) = more.next() else {
        panic!("it may look");
    };
    assert_eq!(frame.reason.as_str(), "too many look already");
    // When one goes there is room.
    viewers.pop();
    loop {
        let mut viewer = served.viewer();
        if let Message::Text(_) = viewer.next() {
            break;
        }
    }
    served.end().unwrap();
}
