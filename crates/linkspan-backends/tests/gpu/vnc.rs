//! VNC viewers of the GPU, by a client that knows Raw alone.

use std::io::ErrorKind::WouldBlock;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use linkspan_backends::display::{Screen, ServeError, VncServer};
use linkspan_engine::Device as _;
use linkspan_sys::EventFd;
use linkspan_sys::tcp::TcpListener;

use crate::rig::{self, Rig, pattern};

const XRGB: u32 = 2;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];
pub(crate) const EXTENDED_SIZE: i32 = -308;

/// A server in a thread of its own.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    cancel: Arc<EventFd>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Served {
    fn of(rig: &Rig) -> Self {
        Self::of_screen(rig.screen())
    }

    pub(crate) fn of_screen(screen: Screen) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut server = VncServer::new(listener, screen).unwrap();
        let cancel = Arc::new(EventFd::new().unwrap());
        let ours = Arc::clone(&cancel);
        Self {
            address: server.address().unwrap(),
            cancel,
            thread: Some(thread::spawn(move || server.run(ours.as_fd()))),
        }
    }

    pub(crate) fn end(self) -> Result<(), ServeError> {
        self.cancel.signal().unwrap();
        self.ended()
    }

    /// Ends by itself.
    fn ended(mut self) -> Result<(), ServeError> {
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A rectangle of an update: its place, its encoding, its pixels.
pub(crate) type Part = ([u16; 4], i32, Vec<u32>);

pub(crate) struct Client {
    stream: TcpStream,
    pub(crate) size: (u16, u16),
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        let mut client = Self {
            stream,
            size: (0, 0),
        };
        assert_eq!(&client.read::<12>(), b"RFB 003.008\n");
        client.say(b"RFB 003.008\n");
        assert_eq!(client.read::<2>(), [1, 1]);
        client.say(&[1]);
        assert_eq!(client.read::<4>(), [0; 4]);
        client.say(&[1]);
        let init = client.read::<24>();
        let side = |at: usize| u16::from_be_bytes([init[at], init[at + 1]]);
        client.size = (side(0), side(2));
        let name = u32::from_be_bytes([init[20], init[21], init[22], init[23]]);
        client.bytes(name as usize);
        client
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn encodings(&mut self, list: &[i32]) {
        let count = u16::try_from(list.len()).unwrap();
        let mut bytes = vec![2, 0];
        bytes.extend(count.to_be_bytes());
        list.iter().for_each(|it| bytes.extend(it.to_be_bytes()));
        self.say(&bytes);
    }

    pub(crate) fn request(&mut self, incremental: bool) {
        let mut bytes = vec![3, u8::from(incremental), 0, 0, 0, 0];
        bytes.extend(u16::MAX.to_be_bytes());
        bytes.extend(u16::MAX.to_be_bytes());
        self.say(&bytes);
    }

    /// Wants a screen of this size.
    pub(crate) fn ask_size(&mut self, width: u16, height: u16) {
        let mut bytes = vec![251, 0];
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([0; 4]);
        self.say(&bytes);
    }

    pub(crate) fn update(&mut self) -> Vec<Part> {
        let [kind, _, high, low] = self.read();
        assert_eq!(kind, 0);
        self.rest(u16::from_be_bytes([high, low]))
    }

    /// The rectangles of an update.
    fn rest(&mut self, count: u16) -> Vec<Part> {
        let part = |_| {
            let head = self.read::<12>();
            let side = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let place = [side(0), side(2), side(4), side(6)];
            let encoding = i32::from_be_bytes([head[8], head[9], head[10], head[11]]);
            let pixels = match encoding {
                0 => {
                    let count = usize::from(place[2]) * usize::from(place[3]);
                    let bytes = self.bytes(count * 4);
                    let words = bytes.as_chunks::<4>().0.iter();
                    words.map(|word| u32::from_le_bytes(*word)).collect()
                }
                EXTENDED_SIZE => {
                    self.size = (place[2], place[3]);
                    self.bytes(20);
                    Vec::new()
                }
                other => panic!("encoding {other}"),
            };
            (place, encoding, pixels)
        };
        (0..count).map(part).collect()
    }

    /// Draws updates over a picture until it is this one.
    pub(crate) fn until(&mut self, wanted: &[u32]) {
        let mut picture = vec![u32::MAX; wanted.len()];
        self.request(false);
        while picture != wanted {
            for (place, encoding, pixels) in self.update() {
                if encoding == EXTENDED_SIZE {
                    continue;
                }
                let [x, y, width, _] = place.map(usize::from);
                for (line, pixels) in (y..).zip(pixels.chunks(width)) {
                    let start = line * usize::from(self.size.0) + x;
                    picture[start..start + width].copy_from_slice(pixels);
                }
            }
            self.request(true);
        }
    }
}

#[test]
fn viewers_see_what_changes_each_for_itself() {
    let mut rig = Rig::new();
    let mut wanted = pattern(20_000, 8);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, WHOLE);
    let served = Served::of(&rig);
    let mut clients = [0; 3].map(|_| Client::connect(served.address));
    for client in &mut clients {
        client.encodings(&[0, EXTENDED_SIZE]);
        // The first one may have come before the screen was looked at.
        if client.size != (200, 100) {
            client.request(true);
            while client.size != (200, 100) {
                client.update();
                client.request(true);
            }
        }
        client.until(&wanted);
    }
    // One pixel: one tile, for each.
    wanted[50 * 200 + 70] ^= 0x00FF_FFFF;
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.flush(1, WHOLE);
    for client in &mut clients {
        let update = client.update();
        let [(place, 0, pixels)] = &update[..] else {
            panic!("{update:?}");
        };
        assert_eq!(place, &[64, 32, 32, 32]);
        assert_eq!(pixels[18 * 32 + 6], wanted[50 * 200 + 70]);
    }
    // Off: a card of another size says why.
    rig.driver.show(0, 0, [0; 4]);
    for client in &mut clients {
        client.request(true);
        while client.size == (200, 100) {
            client.update();
            client.request(true);
        }
        assert_eq!(client.size, (640, 200));
    }
    served.end().unwrap();
}

#[test]
fn a_viewer_gets_the_size_that_it_asks_for_if_the_guest_takes_it() {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    let served = Served::of(&rig);
    let mut client = Client::connect(served.address);
    client.encodings(&[0, EXTENDED_SIZE]);
    client.request(true);
    while client.size != (200, 100) {
        client.update();
        client.request(true);
    }
    let answer = |client: &mut Client| loop {
        let update = client.update();
        client.request(true);
        let asked = update
            .iter()
            .find(|(place, encoding, _)| *encoding == EXTENDED_SIZE && place[0] == 1);
        if let Some((place, ..)) = asked {
            return place[1];
        }
    };
    client.ask_size(320, 240);
    // The guest is told, and takes it.
    let changes = rig.device.config_changes().unwrap();
    while changes.drain().unwrap() == 0 {
        thread::yield_now();
    }
    assert_eq!(rig.driver.display_info()[0], (320, 240));
    rig.driver.create(2, XRGB, (320, 240), 200_000);
    rig.driver.show(0, 2, [0, 0, 320, 240]);
    assert_eq!((answer(&mut client), client.size), (0, (320, 240)));
    // It does not: prohibited. One that cannot be is, too.
    client.ask_size(640, 480);
    assert_eq!((answer(&mut client), client.size), (1, (320, 240)));
    client.ask_size(1, 1);
    assert_eq!(answer(&mut client), 1);
    served.end().unwrap();
}

/// What it asks while the last picture is not sent yet is carried out when that is gone, and
/// what was drawn meanwhile comes then: nobody else would say it.
#[test]
fn what_is_asked_while_there_is_no_room_is_answered_later() {
    let mut rig = Rig::new();
    // More than sockets hold, of which the first lines have memory of the guest.
    let (width, height) = (2048, 1536);
    rig.driver.done(0x101, &[1, XRGB, width, height]);
    rig.driver.back(1, width * 4 * 32, 0);
    rig.driver.show(0, 1, [0, 0, width, height]);
    let served = Served::of(&rig);
    let large = |client: &mut Client| {
        client.encodings(&[0, EXTENDED_SIZE]);
        // It is told the size once in any case.
        let is_size = |(place, encoding, _): &Part| (*encoding, place[2]) == (EXTENDED_SIZE, 2048);
        loop {
            client.request(true);
            if client.update().iter().any(is_size) {
                break;
            }
        }
    };
    let mut slow = Client::connect(served.address);
    let mut quick = Client::connect(served.address);
    large(&mut slow);
    large(&mut quick);
    quick.request(false);
    quick.update();
    // Its update has begun, so this is asked for the next one.
    slow.request(false);
    let begin: [u8; 4] = slow.read();
    assert_eq!(begin, [0, 0, 0, 1]);
    slow.request(true);
    // Both have been seen when it is drawn: they were heard in the order of their words.
    quick.request(true);
    rig.driver.write(rig::PIXELS, &[0xFF; 4]);
    rig.driver.done(0x105, &[0, 0, 1, 1, 0, 0, 1, 0]);
    rig.driver.flush(1, [0, 0, 1, 1]);
    let first = [([0, 0, 32, 32], 0)];
    let places = |update: Vec<Part>| -> Vec<_> {
        let parts = update.into_iter();
        parts
            .map(|(place, encoding, _)| (place, encoding))
            .collect()
    };
    assert_eq!(places(quick.update()), first);
    slow.rest(1);
    assert_eq!(places(slow.update()), first);
    served.end().unwrap();
}

/// Connections that say nothing keep nobody out, and viewers do once there are enough.
#[test]
fn strangers_make_room_for_viewers() {
    let rig = Rig::new();
    let served = Served::of(&rig);
    let silent: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(served.address).unwrap())
        .collect();
    let viewers: Vec<_> = (0..16).map(|_| Client::connect(served.address)).collect();
    let mut refused = TcpStream::connect(served.address).unwrap();
    refused.write_all(b"RFB 003.008\n").unwrap();
    let mut said = String::new();
    refused.read_to_string(&mut said).unwrap();
    assert!(said.ends_with("16 viewers look already"), "{said}");
    drop((silent, viewers));
    served.end().unwrap();
}

/// One that never reads, one that says half a message, one that says a long one slowly, and
/// as many others as may look: these see everything, and the second too when it goes on.
#[test]
fn who_never_reads_or_says_half_a_message_holds_nobody_up() {
    let mut rig = Rig::new();
    let mut wanted = pattern(20_000, 8);
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, WHOLE);
    let served = Served::of(&rig);
    let connect = || {
        let mut client = Client::connect(served.address);
        client.encodings(&[0, EXTENDED_SIZE]);
        client
    };
    // It asks for all of the picture for as long as it is heard.
    let mut deaf = connect();
    deaf.stream.set_nonblocking(true).unwrap();
    let ask = [[3, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]; 512].concat();
    while !matches!(&deaf.stream.write(&ask), Err(error) if error.kind() == WouldBlock) {}
    // A request without its last byte, and a clipboard of 16 MB without its end.
    let mut half = connect();
    half.say(&[3, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF]);
    let mut long = connect();
    long.say(&[6, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, b'x']);
    let mut others: Vec<Client> = (0..13).map(|_| connect()).collect();
    for client in &mut others {
        client.until(&wanted);
    }
    for seed in 0..20 {
        wanted[7 * seed] ^= 0xFF;
        rig.driver.draw(1, SIZE, 0, &wanted);
        rig.driver.flush(1, WHOLE);
        for client in &mut others {
            assert!(!client.update().is_empty());
            client.request(true);
        }
    }
    for client in &mut others {
        client.until(&wanted);
    }
    half.say(&[0xFF]);
    half.until(&wanted);
    // The clipboard goes on, and what comes after it is heard.
    for _ in 0..255 {
        long.say(&[b'x'; 65_536]);
    }
    long.say(&[b'x'; 65_534]);
    long.until(&wanted);
    served.end().unwrap();
}

#[test]
fn a_server_ends_with_its_gpu() {
    let rig = Rig::new();
    let served = Served::of(&rig);
    let mut client = Client::connect(served.address);
    client.encodings(&[0, EXTENDED_SIZE]);
    client.request(false);
    client.update();
    drop(rig);
    let error = served.ended().unwrap_err();
    assert!(matches!(error, ServeError::Source(_)), "{error}");
}
