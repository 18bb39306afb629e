//! A VNC client that types, points, and follows the size of the screen.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

const EXTENDED_SIZE: i32 = -308;

/// A client that knows Raw and ExtendedDesktopSize.
pub(crate) struct Viewer {
    stream: TcpStream,
    /// What it sees.
    pub(crate) size: (usize, usize),
    pub(crate) pixels: Vec<u32>,
}

impl Viewer {
    pub(crate) fn connect(port: u16) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        let mut viewer = Self {
            stream,
            size: (0, 0),
            pixels: Vec::new(),
        };
        assert_eq!(&viewer.read::<12>(), b"RFB 003.008\n");
        viewer.say(b"RFB 003.008\n");
        assert_eq!(viewer.read::<2>(), [1, 1]);
        viewer.say(&[1]);
        assert_eq!(viewer.read::<4>(), [0; 4]);
        viewer.say(&[1]);
        let init = viewer.read::<24>();
        viewer.resize(u16_at(&init, 0), u16_at(&init, 2));
        let name = u32::from_be_bytes(init[20..].try_into().unwrap());
        viewer.bytes(name as usize);
        let mut encodings = vec![2, 0, 0, 2];
        encodings.extend(0i32.to_be_bytes());
        encodings.extend(EXTENDED_SIZE.to_be_bytes());
        viewer.say(&encodings);
        viewer.request(false);
        viewer
    }

    fn resize(&mut self, width: u16, height: u16) {
        self.size = (width.into(), height.into());
        self.pixels = vec![0; self.size.0 * self.size.1];
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

    fn request(&mut self, incremental: bool) {
        self.say(&[
            3,
            u8::from(incremental),
            0,
            0,
            0,
            0,
            u8::MAX,
            u8::MAX,
            u8::MAX,
            u8::MAX,
        ]);
    }

    /// Waits for an update and asks for the next one.
    fn update(&mut self) {
        let [kind, _, high, low] = self.read();
        assert_eq!(kind, 0);
        for _ in 0..u16::from_be_bytes([high, low]) {
            let head = self.read::<12>();
            let [x, y, width, height] = [0, 2, 4, 6].map(|at| usize::from(u16_at(&head, at)));
            match i32::from_be_bytes(head[8..].try_into().unwrap()) {
                0 => {
                    let bytes = self.bytes(width * height * 4);
                    let words = bytes.as_chunks::<4>().0.iter();
                    let words: Vec<u32> = words.map(|word| u32::from_le_bytes(*word)).collect();
                    for (row, words) in words.chunks(width).enumerate() {
                        let start = (y + row) * self.size.0 + x;
                        self.pixels[start..start + width].copy_from_slice(words);
                    }
                }
                EXTENDED_SIZE => {
                    let screens = usize::from(self.read::<4>()[0]);
                    self.bytes(16 * screens);
                    self.resize(u16_at(&head, 4), u16_at(&head, 6));
                }
                other => panic!("encoding {other}"),
            }
        }
        self.request(true);
    }

    /// Looks until this is so.
    pub(crate) fn until(&mut self, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            self.update();
        }
    }

    /// Presses a key and lets go of it.
    pub(crate) fn key(&mut self, keysym: u32) {
        for down in [1, 0] {
            let mut bytes = vec![4, down, 0, 0];
            bytes.extend(keysym.to_be_bytes());
            self.say(&bytes);
        }
    }

    /// The pointer is here, with these buttons down.
    pub(crate) fn point(&mut self, buttons: u8, x: u16, y: u16) {
        let [x, y] = [x, y].map(u16::to_be_bytes);
        self.say(&[5, buttons, x[0], x[1], y[0], y[1]]);
    }

    /// Asks for another size.
    pub(crate) fn want(&mut self, width: u16, height: u16) {
        let [width, height] = [width, height].map(u16::to_be_bytes);
        let mut bytes = vec![251, 0, width[0], width[1], height[0], height[1], 1, 0];
        bytes.extend([0; 8]);
        bytes.extend([width[0], width[1], height[0], height[1]]);
        bytes.extend([0; 4]);
        self.say(&bytes);
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
