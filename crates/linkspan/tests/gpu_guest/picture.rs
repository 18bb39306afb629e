//! Pictures, and the text in them.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

/// Letters of the kernel's font of 8 by 16, lines 2 to 11; the others are empty.
const LETTERS: &[(char, [u8; 10])] = &[
    (
        'A',
        [0x10, 0x38, 0x6C, 0xC6, 0xC6, 0xFE, 0xC6, 0xC6, 0xC6, 0xC6],
    ),
    (
        'I',
        [0x3C, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x18, 0x3C],
    ),
    (
        'K',
        [0xE6, 0x66, 0x66, 0x6C, 0x78, 0x78, 0x6C, 0x66, 0x66, 0xE6],
    ),
    (
        'L',
        [0xF0, 0x60, 0x60, 0x60, 0x60, 0x60, 0x60, 0x62, 0x66, 0xFE],
    ),
    (
        'N',
        [0xC6, 0xE6, 0xF6, 0xFE, 0xDE, 0xCE, 0xC6, 0xC6, 0xC6, 0xC6],
    ),
    (
        'P',
        [0xFC, 0x66, 0x66, 0x66, 0x7C, 0x60, 0x60, 0x60, 0x60, 0xF0],
    ),
    (
        'S',
        [0x7C, 0xC6, 0xC6, 0x60, 0x38, 0x0C, 0x06, 0xC6, 0xC6, 0x7C],
    ),
];

/// A picture, `0xRRGGBB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: Vec<u32>,
}

impl Picture {
    pub(crate) fn png(path: &Path) -> Self {
        Self::read(BufReader::new(File::open(path).unwrap()))
    }

    /// Of a PNG file.
    pub(crate) fn read(file: impl BufRead + Seek) -> Self {
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let channels = match info.color_type {
            png::ColorType::Rgb => 3,
            png::ColorType::Rgba => 4,
            other => panic!("{other:?}"),
        };
        let pixels = bytes[..info.buffer_size()].chunks_exact(channels);
        Self {
            width: info.width as usize,
            height: info.height as usize,
            pixels: pixels
                .map(|pixel| u32::from_be_bytes([0, pixel[0], pixel[1], pixel[2]]))
                .collect(),
        }
    }

    /// Of a PPM file of QEMU.
    pub(crate) fn ppm(bytes: &[u8]) -> Result<Self, String> {
        let mut words = bytes.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut word = || {
            let word = words.next().unwrap_or_default();
            String::from_utf8_lossy(word).into_owned()
        };
        let (magic, width, height) = (word(), word(), word());
        let rest = words.next().unwrap_or_default();
        let (Ok(width), Ok(height)) = (width.parse(), height.parse()) else {
            return Err("no size".into());
        };
        let pixels = rest.strip_prefix(b"255\n").ok_or("no pixels")?;
        assert_eq!(magic, "P6");
        let pixels = pixels.as_chunks::<3>().0.iter();
        Ok(Self {
            width,
            height,
            pixels: pixels
                .map(|&[r, g, b]| u32::from_be_bytes([0, r, g, b]))
                .collect(),
        })
    }

    /// The text in a row of the console.
    pub(crate) fn row(&self, row: usize, columns: usize) -> String {
        (0..columns)
            .map(|column| self.letter(row, column))
            .collect()
    }

    fn letter(&self, row: usize, column: usize) -> char {
        let line = |y: usize| {
            let start = (row * 16 + y) * self.width + column * 8;
            let pixels = self.pixels[start..start + 8].iter();
            pixels.fold(0u8, |line, pixel| line << 1 | u8::from(*pixel != 0))
        };
        let lines: [u8; 10] = std::array::from_fn(|y| line(y + 2));
        let edges = [0, 1, 12, 13, 14, 15].map(line);
        let known = LETTERS.iter().find(|(_, letter)| *letter == lines);
        match known {
            Some((letter, _)) if edges == [0; 6] => *letter,
            _ if lines == [0; 10] => ' ',
            _ => '?',
        }
    }
}
