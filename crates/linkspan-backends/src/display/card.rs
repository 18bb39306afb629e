//! What viewers see where there is no picture: why.

use font8x8::legacy::BASIC_LEGACY;
use linkspan_display::Frame;
use linkspan_mem::fault::Injected;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 200;
/// Pixels of a letter's side: each of the font's eight twice.
const LETTER: usize = 16;
const MARGIN: usize = 24;
const INK: u32 = 0xFFC0_C0C0;
const PAPER: u32 = 0xFF20_2030;

/// A picture of some text.
///
/// # Errors
/// There is no memory for it.
pub(super) fn card(text: &str) -> Result<Frame, Injected> {
    let mut frame = Frame::new(WIDTH, HEIGHT)?;
    let pixels = frame.pixels_mut();
    pixels.fill(PAPER);
    let width = WIDTH as usize;
    let columns = (width - 2 * MARGIN) / LETTER;
    let rows = (HEIGHT as usize - 2 * MARGIN) / (LETTER + 4);
    for (row, line) in wrapped(text, columns).into_iter().take(rows).enumerate() {
        for (column, letter) in line.chars().enumerate() {
            let code = usize::try_from(u32::from(letter)).unwrap_or(0);
            let lines = BASIC_LEGACY
                .get(code)
                .unwrap_or(&BASIC_LEGACY[usize::from(b'?')]);
            let (left, top) = (MARGIN + column * LETTER, MARGIN + row * (LETTER + 4));
            for y in 0..LETTER {
                for x in (0..LETTER).filter(|x| lines[y / 2] >> (x / 2) & 1 != 0) {
                    pixels[(top + y) * width + left + x] = INK;
                }
            }
        }
    }
    Ok(frame)
}

/// Lines of at most so many letters; words that fit stay whole.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().expect("there is one always");
            let gap = usize::from(!line.is_empty());
            let used = line.chars().count();
            if used + gap + word.len() <= columns {
                line.extend([' '].iter().take(gap));
                line.extend(&word);
                break;
            }
            if used == 0 {
                line.extend(word.drain(..columns.max(1).min(word.len())));
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_at_words_and_inside_those_that_are_too_long() {
        assert_eq!(wrapped("no signal: off", 9), ["no", "signal:", "off"]);
        assert_eq!(wrapped("abcdefg hi", 3), ["abc", "def", "g", "hi"]);
        assert_eq!(wrapped("", 3), [""]);
    }

    #[test]
    fn a_card_has_ink_and_paper() {
        let frame = card("no signal: \u{e4} the guest has switched its screen off").unwrap();
        let ink = frame.pixels().iter().filter(|pixel| **pixel == INK).count();
        assert!(ink > 1000 && ink < 20_000, "{ink}");
        // However long.
        card(&"reason ".repeat(1000)).unwrap();
    }
}
