//! Frames of text that nobody can read: cells of 8 by 16 with marks like letters.

/// Pixels of a cell.
const CELL: (usize, usize) = (8, 16);
/// Letters of a line that is typed.
const TYPED: usize = 80;
/// Frames between two that scroll.
const SCROLL: usize = 8;

/// The dots of a letter, eight to a line.
fn letter(number: usize) -> u64 {
    let spread = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    spread & (spread >> 7)
}

/// Draws a letter of a line into memory that is `stride` wide.
fn draw(memory: &mut [u8], stride: usize, column: usize, line: usize) {
    // A third of it is space.
    let number = line.wrapping_mul(131).wrapping_add(column * column * 7);
    let dots = if number.is_multiple_of(3) {
        0
    } else {
        letter(number % 96)
    };
    for y in 0..CELL.1 {
        for x in 0..CELL.0 {
            let on = dots >> ((y / 2) * 8 + x) & 1 != 0;
            let at = y * stride + (column * CELL.0 + x) * 4;
            memory[at..at + 4].copy_from_slice(&(u32::from(on) * 0x00C0_C0C0).to_le_bytes());
        }
    }
}

/// A frame of the sequence: a part of a line more than the one before, or a line further.
pub(super) fn frame(size: (u32, u32), at: usize) -> Vec<u8> {
    let (width, height) = (size.0 as usize, size.1 as usize);
    let stride = width * 4;
    let mut memory = vec![0; stride * height];
    let rows = height / CELL.1;
    let columns = width / CELL.0;
    for (row, band) in memory.chunks_exact_mut(stride * CELL.1).enumerate() {
        let typed = if row + 1 == rows {
            columns * (at % SCROLL) / SCROLL
        } else {
            columns
        };
        for column in 0..typed {
            draw(band, stride, column, row + at / SCROLL);
        }
    }
    memory
}

/// A whole frame whose lines all differ from those of the one before, and where it begins.
pub(super) fn frame_at(size: (u32, u32), number: u32) -> (usize, Vec<u8>) {
    (0, frame(size, (number as usize + 2) * SCROLL))
}

/// A line with other letters, and where it begins.
pub(super) fn line(size: (u32, u32), number: u32) -> (usize, Vec<u8>) {
    let stride = size.0 as usize * 4;
    let mut memory = vec![0; stride * CELL.1];
    for column in 0..TYPED {
        draw(&mut memory, stride, column, 1000 + number as usize);
    }
    (10 * CELL.1 * stride, memory)
}
