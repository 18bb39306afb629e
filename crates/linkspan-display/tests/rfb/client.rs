//! A client of RFB for tests: it decodes every encoding by RFC 6143 and the text of the
//! community's extensions, and panics at what those do not allow.

use linkspan_display::rfb::PixelFormat;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush};

/// A shape of the pointer: hot spot, size, and its pixels as they came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) spot: (u16, u16),
    pub(crate) size: (u16, u16),
    pub(crate) pixels: Vec<u8>,
    pub(crate) mask: Vec<u8>,
}

pub(crate) struct Client {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: PixelFormat,
    /// Values as the format has them.
    pub(crate) pixels: Vec<u32>,
    pub(crate) name: String,
    pub(crate) shape: Option<Shape>,
    /// Flags and payload of each fence.
    pub(crate) fences: Vec<(u32, Vec<u8>)>,
    pub(crate) ends_of_continuous: usize,
    /// Reason and status of each size that came in the extended form.
    pub(crate) sizes: Vec<(u16, u16)>,
    pub(crate) places: Vec<(u16, u16)>,
    /// How many rectangles of pixels came, and of how many bytes all updates were.
    pub(crate) rectangles: usize,
    pub(crate) bytes: usize,
    streams: [Box<InflateState>; 3],
}

impl Default for Client {
    fn default() -> Self {
        Self {
            width: 0,
            height: 0,
            format: PixelFormat::NATIVE,
            pixels: Vec::new(),
            name: String::new(),
            shape: None,
            fences: Vec::new(),
            ends_of_continuous: 0,
            sizes: Vec::new(),
            places: Vec::new(),
            rectangles: 0,
            bytes: 0,
            streams: std::array::from_fn(|_| InflateState::new_boxed(DataFormat::Zlib)),
        }
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(len);
        self.0 = rest;
        first
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }
}

/// How many bytes of a pixel are sent, and which.
#[derive(Clone, Copy)]
enum Width {
    Whole,
    Compact,
    Tight,
}

impl Client {
    pub(crate) fn init(&mut self, bytes: &[u8]) {
        let mut bytes = Bytes(bytes);
        self.width = bytes.u16().into();
        self.height = bytes.u16().into();
        assert_eq!(
            bytes.take(16),
            [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]
        );
        let len = bytes.u32() as usize;
        self.name = String::from_utf8(bytes.take(len).to_vec()).unwrap();
        assert!(bytes.0.is_empty());
        self.pixels = vec![0xDEAD_BEEF; self.width * self.height];
    }

    /// All messages in `bytes`, which are whole.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let mut bytes = Bytes(bytes);
        while !bytes.0.is_empty() {
            let before = bytes.0.len();
            match bytes.u8() {
                0 => {
                    bytes.u8();
                    let count = bytes.u16();
                    assert!(count > 0, "an update of nothing");
                    for _ in 0..count {
                        self.rectangle(&mut bytes);
                    }
                    self.bytes += before - bytes.0.len();
                }
                150 => self.ends_of_continuous += 1,
                248 => {
                    bytes.take(3);
                    let flags = bytes.u32();
                    let len = bytes.u8().into();
                    self.fences.push((flags, bytes.take(len).to_vec()));
                }
                kind => panic!("message {kind}"),
            }
        }
    }

    fn rectangle(&mut self, bytes: &mut Bytes<'_>) {
        let [x, y, width, height] = [0; 4].map(|_: u8| bytes.u16());
        let encoding = bytes.u32().cast_signed();
        let place = [x, y, width, height].map(usize::from);
        match encoding {
            -239 => {
                let len = place[2] * place[3];
                let pixels = bytes.take(len * usize::from(self.format.bits / 8)).to_vec();
                let mask = bytes.take(place[2].div_ceil(8) * place[3]).to_vec();
                self.shape = Some(Shape {
                    spot: (x, y),
                    size: (width, height),
                    pixels,
                    mask,
                });
            }
            -314 => {
                assert_eq!(bytes.u32(), 0, "the pixels of the pointer are raw");
                let pixels = bytes.take(place[2] * place[3] * 4).to_vec();
                let mask = Vec::new();
                self.shape = Some(Shape {
                    spot: (x, y),
                    size: (width, height),
                    pixels,
                    mask,
                });
            }
            -232 => self.places.push((x, y)),
            -223 => self.resize(place[2], place[3]),
            -308 => {
                self.sizes.push((x, y));
                assert_eq!(bytes.take(4), [1, 0, 0, 0]);
                assert_eq!(bytes.take(8), [0, 0, 0, 1, 0, 0, 0, 0]);
                assert_eq!((bytes.u16(), bytes.u16()), (width, height));
                bytes.u32();
                self.resize(place[2], place[3]);
            }
            0 | 6 | 7 | 16 => {
                self.rectangles += 1;
                assert!(place[0] + place[2] <= self.width && place[1] + place[3] <= self.height);
                assert!(width > 0 && height > 0);
                let pixels = self.decode(encoding, place[2], place[3], bytes);
                assert_eq!(pixels.len(), place[2] * place[3]);
                for (line, pixels) in pixels.chunks(place[2]).enumerate() {
                    let at = (place[1] + line) * self.width + place[0];
                    self.pixels[at..at + place[2]].copy_from_slice(pixels);
                }
            }
            other => panic!("encoding {other}"),
        }
    }

    fn resize(&mut self, width: usize, height: usize) {
        if (width, height) != (self.width, self.height) {
            (self.width, self.height) = (width, height);
            self.pixels = vec![0xDEAD_BEEF; width * height];
        }
    }

    fn decode(
        &mut self,
        encoding: i32,
        width: usize,
        height: usize,
        bytes: &mut Bytes<'_>,
    ) -> Vec<u32> {
        let each = usize::from(self.format.bits / 8);
        match encoding {
            0 => self.values(bytes.take(width * height * each), Width::Whole),
            6 => {
                let len = bytes.u32() as usize;
                let raw = self.inflated(0, bytes.take(len));
                self.values(&raw, Width::Whole)
            }
            7 => self.tight(width, height, bytes),
            _ => {
                let len = bytes.u32() as usize;
                let raw = self.inflated(2, bytes.take(len));
                self.zrle(width, height, &raw)
            }
        }
    }

    fn inflated(&mut self, stream: usize, mut bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let mut part = vec![0; 1 << 16];
            let result = inflate(&mut self.streams[stream], bytes, &mut part, MZFlush::None);
            if result.bytes_consumed == 0 && result.bytes_written == 0 {
                assert!(bytes.is_empty(), "{:?}", result.status);
                return out;
            }
            bytes = &bytes[result.bytes_consumed..];
            out.extend_from_slice(&part[..result.bytes_written]);
        }
    }

    /// The bytes of a compact pixel: without the one that is always 0.
    fn compact(&self) -> (usize, usize) {
        let format = &self.format;
        let all = usize::from(format.bits / 8);
        let white = (0..3).fold(0u32, |all, at| {
            all | u32::from(format.max[at]) << format.shift[at]
        });
        if format.bits != 32 || format.depth > 24 {
            return (0, all);
        }
        let bytes = if format.big_endian {
            white.to_be_bytes()
        } else {
            white.to_le_bytes()
        };
        match (bytes[0], bytes[3]) {
            (_, 0) => (0, 3),
            (0, _) => (1, 4),
            _ => (0, 4),
        }
    }

    fn len(&self, width: Width) -> usize {
        match width {
            Width::Whole => usize::from(self.format.bits / 8),
            Width::Compact => self.compact().1 - self.compact().0,
            Width::Tight
                if (self.format.bits, self.format.depth, self.format.max) == (32, 24, [255; 3]) =>
            {
                3
            }
            Width::Tight => usize::from(self.format.bits / 8),
        }
    }

    /// Values of pixels, as in the whole form.
    fn values(&self, bytes: &[u8], width: Width) -> Vec<u32> {
        let value = |bytes: &[u8]| {
            if self.format.big_endian {
                bytes
                    .iter()
                    .fold(0u32, |value, byte| value << 8 | u32::from(*byte))
            } else {
                bytes
                    .iter()
                    .rev()
                    .fold(0u32, |value, byte| value << 8 | u32::from(*byte))
            }
        };
        let len = self.len(width);
        assert!(
            bytes.len().is_multiple_of(len),
            "{} bytes of {len}",
            bytes.len()
        );
        let chunks = bytes.chunks(len);
        match width {
            Width::Tight if len == 3 => chunks
                .map(|rgb| {
                    (0..3).fold(0, |all, at| {
                        all | u32::from(rgb[at]) << self.format.shift[at]
                    })
                })
                .collect(),
            Width::Compact if len == 3 => {
                let start = self.compact().0;
                chunks
                    .map(|part| {
                        let mut whole = [0; 4];
                        whole[start..start + 3].copy_from_slice(part);
                        value(&whole)
                    })
                    .collect()
            }
            _ => chunks.map(value).collect(),
        }
    }

    fn zrle(&self, width: usize, height: usize, raw: &[u8]) -> Vec<u32> {
        let mut bytes = Bytes(raw);
        let mut pixels = vec![0; width * height];
        for top in (0..height).step_by(64) {
            for left in (0..width).step_by(64) {
                let (w, h) = ((width - left).min(64), (height - top).min(64));
                let tile = self.zrle_tile(w, h, &mut bytes);
                assert_eq!(tile.len(), w * h);
                for (line, part) in tile.chunks(w).enumerate() {
                    let at = (top + line) * width + left;
                    pixels[at..at + w].copy_from_slice(part);
                }
            }
        }
        assert!(bytes.0.is_empty(), "{} bytes are left", bytes.0.len());
        pixels
    }

    fn zrle_tile(&self, w: usize, h: usize, bytes: &mut Bytes<'_>) -> Vec<u32> {
        let each = self.len(Width::Compact);
        let kind = usize::from(bytes.u8());
        let run = |bytes: &mut Bytes<'_>| {
            let mut len = 1;
            loop {
                let more = bytes.u8();
                len += usize::from(more);
                if more < 255 {
                    return len;
                }
            }
        };
        let mut pixels = Vec::new();
        match kind {
            0 => pixels = self.values(bytes.take(w * h * each), Width::Compact),
            1 => pixels = vec![self.values(bytes.take(each), Width::Compact)[0]; w * h],
            2..=16 => {
                let palette = self.values(bytes.take(kind * each), Width::Compact);
                let bits = [1, 2, 4][usize::from(kind > 2) + usize::from(kind > 4)];
                for _ in 0..h {
                    let line = bytes.take((w * bits).div_ceil(8));
                    for x in 0..w {
                        let byte = line[x * bits / 8];
                        let index = byte >> (8 - bits - x * bits % 8) & ((1 << bits) - 1);
                        pixels.push(palette[usize::from(index)]);
                    }
                }
            }
            128 => {
                while pixels.len() < w * h {
                    let value = self.values(bytes.take(each), Width::Compact)[0];
                    pixels.resize(pixels.len() + run(bytes), value);
                }
            }
            130..=255 => {
                let palette = self.values(bytes.take((kind - 128) * each), Width::Compact);
                while pixels.len() < w * h {
                    let index = usize::from(bytes.u8());
                    let len = if index >= 128 { run(bytes) } else { 1 };
                    pixels.resize(pixels.len() + len, palette[index & 127]);
                }
            }
            kind => panic!("a tile of kind {kind}"),
        }
        pixels
    }

    fn tight(&mut self, width: usize, height: usize, bytes: &mut Bytes<'_>) -> Vec<u32> {
        assert!(width <= 2048);
        let control = bytes.u8();
        assert_eq!(control & 0x0F, 0, "no stream is begun anew");
        let each = self.len(Width::Tight);
        if control == 0x80 {
            return vec![self.values(bytes.take(each), Width::Tight)[0]; width * height];
        }
        assert!(control == 0 || control == 0x40);
        let mut palette = None;
        if control == 0x40 {
            assert_eq!(bytes.u8(), 1, "only palettes are a filter here");
            let count = usize::from(bytes.u8()) + 1;
            palette = Some(self.values(bytes.take(count * each), Width::Tight));
        }
        let len = match palette.as_ref().map(Vec::len) {
            None => width * height * each,
            Some(2) => width.div_ceil(8) * height,
            Some(_) => width * height,
        };
        let raw = if len < 12 {
            bytes.take(len).to_vec()
        } else {
            let mut packed = 0;
            for part in 0..3 {
                let byte = usize::from(bytes.u8());
                let mask = if part == 2 { 0xFF } else { 0x7F };
                packed |= (byte & mask) << (7 * part);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            self.inflated(1, bytes.take(packed))
        };
        assert_eq!(raw.len(), len);
        match palette {
            None => self.values(&raw, Width::Tight),
            Some(palette) if palette.len() == 2 => raw
                .chunks(width.div_ceil(8))
                .flat_map(|line| (0..width).map(|x| line[x / 8] >> (7 - x % 8) & 1))
                .map(|index| palette[usize::from(index)])
                .collect(),
            Some(palette) => raw
                .iter()
                .map(|index| palette[usize::from(*index)])
                .collect(),
        }
    }

    /// What the client should have of these pixels.
    pub(crate) fn want(&self, pixel: u32) -> u32 {
        let format = &self.format;
        let colours = [16, 8, 0].map(|shift| pixel >> shift & 0xFF);
        let parts = colours.iter().zip(format.max).zip(format.shift);
        parts.fold(0, |all, ((colour, max), shift)| {
            // To the nearest.
            let value = (2 * colour * u32::from(max) + 255) / 510;
            all | value << shift
        })
    }

    /// Whether it has these pixels.
    pub(crate) fn shows(&self, pixels: &[u32]) -> bool {
        self.pixels.len() == pixels.len()
            && self
                .pixels
                .iter()
                .zip(pixels)
                .all(|(have, pixel)| *have == self.want(*pixel))
    }
}
