//! Registers, configuration space, tables and blobs of a device, and the memory of a
//! picture: whatever they say, a picture is read within its memory, or refused.
//!
//! The first byte says which decoder; numbers for it follow, and where they end everything
//! is 0. A picture of up to 256 by 256 is then read from memory of 64 KiB.

use linkspan_display::decode::intel::{self, Generation};
use linkspan_display::decode::{bochs, fixed};
use linkspan_display::{
    Cursor, FORMATS, FourCc, Frame, Layout, Modifier, Position, RECTANGLES_MAX, Scene, Sprite,
    Surface, Tiles, edid, region,
};
use linkspan_mem::Gpa;

use super::Outcome;
use crate::input::Input;

/// Which decoder.
pub const GEN8: u8 = 0;
/// Gen9: pairs of an offset and a value.
pub const GEN9: u8 = 1;
/// Bochs: its registers.
pub const BOCHS: u8 = 2;
/// mdpy: configuration space from byte 0x40 on.
pub const MDPY: u8 = 3;
/// The graphics address table: address, length, entries, their values.
pub const GTT: u8 = 4;
/// EDID.
pub const EDID: u8 = 5;
/// OpRegion, with its type and subtype.
pub const OPREGION: u8 = 6;
/// A surface: format, modifier, sizes.
pub const SURFACE: u8 = 7;

/// A VFIO region's capabilities, behind where the first one is said to be; and the words of
/// an EDID region's head.
pub const REGION: u8 = 8;

const MEMORY: u64 = 64 << 10;

/// The target.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// Runs a script.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut outcome = Outcome::default();
    match input.u8().unwrap_or(0) % 9 {
        GEN8 => planes(Generation::Gen8, &mut input, &mut outcome),
        GEN9 => planes(Generation::Gen9, &mut input, &mut outcome),
        BOCHS => {
            let mut registers = [0; bochs::REGISTERS];
            registers.fill_with(|| input.u16().unwrap_or(0));
            match bochs::decode(&registers, MEMORY) {
                Ok(Some(layout)) => show(&layout, &mut outcome),
                Ok(None) => {}
                Err(error) => outcome.refuse(&error),
            }
        }
        MDPY => {
            let mut config = [0; 256];
            config[0x40..].fill_with(|| input.u8().unwrap_or(0));
            match fixed::mdpy(&config, MEMORY) {
                Ok(layout) => show(&layout, &mut outcome),
                Err(error) => outcome.refuse(&error),
            }
        }
        GTT => table(&mut input, &mut outcome),
        EDID => match edid::read(input.bytes(1024)) {
            Ok(edid) => {
                outcome.done += 1;
                // What was read can be said again.
                let again = edid::read(&edid::make(&edid.mode, &edid.name, 0));
                let again = again.expect("what is made can be read");
                assert_eq!(again.mode.width, edid.mode.width);
                assert_eq!(again.mode.clock_10khz, edid.mode.clock_10khz);
            }
            Err(error) => outcome.refuse(&error),
        },
        OPREGION => {
            let kind = input.u32().unwrap_or(0);
            let subtype = input.u32().unwrap_or(0);
            let mut bytes = input.bytes(256).to_vec();
            bytes.resize(usize::from(input.u16().unwrap_or(0)), 0);
            match intel::opregion(kind, subtype, &bytes) {
                Ok(_) => outcome.done += 1,
                Err(error) => outcome.refuse(&error),
            }
        }
        REGION => regions(&mut input, &mut outcome),
        _ => surface(&mut input, &mut outcome),
    }
    outcome
}

impl Outcome {
    fn refuse(&mut self, error: &impl ToString) {
        self.refused += 1;
        self.error = Some(error.to_string());
    }
}

/// Capabilities of a region are no more than its bytes can say, and an EDID is told only
/// where it does not overwrite the region's head.
fn regions(input: &mut Input<'_>, outcome: &mut Outcome) {
    let first = input.u32().unwrap_or(0);
    let mut words = [0; 6];
    words.fill_with(|| input.u32().unwrap_or(0));
    let chain = input.bytes(1024);
    let mut bytes = vec![0; 32];
    bytes.extend_from_slice(chain);
    match region::capabilities(&bytes, first) {
        Ok(list) => {
            outcome.done += 1;
            assert!(list.len() <= region::CAPABILITIES_MAX);
            let parts = list.iter().map(|capability| match capability {
                region::Capability::SparseMmap(parts) => parts.len(),
                _ => 0,
            });
            assert!(parts.sum::<usize>() * 16 <= bytes.len());
        }
        Err(error) => outcome.refuse(&error),
    }
    let head = region::EdidRegion::from_words(words);
    match head.check(128, 1920, 1080) {
        Ok(()) => {
            outcome.done += 1;
            assert!(head.offset as usize >= region::EDID_HEAD && head.size_max >= 128);
        }
        Err(error) => outcome.refuse(&error),
    }
}

/// Reads a picture, twice: the second time nothing has changed.
fn show(layout: &Layout, outcome: &mut Outcome) {
    outcome.done += 1;
    assert!(layout.end() <= MEMORY);
    let (width, height) = (layout.surface().width, layout.surface().height);
    if width > 256 || height > 256 {
        return;
    }
    let mut frame = Frame::new(width, height).expect("it is small");
    for round in 0..2 {
        let mut damage = Tiles::new(width, height);
        let read = |offset: u64, band: &mut [u8]| {
            assert!(offset + band.len() as u64 <= layout.end());
            for (at, byte) in (offset..).zip(band) {
                *byte = ((at * 37) >> 3).to_le_bytes()[0];
            }
            Ok::<(), ()>(())
        };
        frame
            .update(layout, &mut damage, read)
            .expect("it can be read");
        assert!(round == 0 || damage.is_empty());
        assert!(damage.rectangles(RECTANGLES_MAX).len() <= RECTANGLES_MAX);
    }
    if let Some(cursor) = Cursor::new(&frame, None) {
        let position = Position {
            x: -(width.cast_signed() / 2),
            y: 1,
        };
        let mut above = Frame::new(width, height).expect("it is small");
        above.pixels_mut().copy_from_slice(frame.pixels());
        let sprites = [Sprite {
            number: 1,
            frame: above,
            position,
        }];
        let scene = Scene {
            frame: &frame,
            sprites: &sprites,
            cursor: Some((&cursor, position)),
        };
        let mut line = Vec::new();
        scene.append(height - 1, 0, width, &mut line);
        assert_eq!(line.len(), width as usize);
    }
}

fn planes(generation: Generation, input: &mut Input<'_>, outcome: &mut Outcome) {
    let mut file = Vec::new();
    while let (Some(offset), Some(value)) = (input.u32(), input.u32()) {
        file.push((offset, value));
    }
    let read = |offset| {
        assert!(offset < intel::REGISTERS_BYTES);
        let mut found = file.iter().rev();
        found
            .find(|(at, _)| *at == offset)
            .map_or(0, |(_, value)| *value)
    };
    for found in intel::planes(generation, read) {
        match found.shown {
            Ok(Some(shown)) => {
                assert!(shown.address.is_multiple_of(4096));
                match Layout::new(shown.layout.surface(), MEMORY) {
                    Ok(layout) => show(&layout, outcome),
                    Err(error) => outcome.refuse(&error),
                }
            }
            Ok(None) => {}
            Err(error) => outcome.refuse(&error),
        }
    }
}

fn table(input: &mut Input<'_>, outcome: &mut Outcome) {
    let mut wide =
        || u64::from(input.u32().unwrap_or(0)) << 32 | u64::from(input.u32().unwrap_or(0));
    let (address, len, entries) = (wide(), wide(), wide());
    let pages = match intel::pages_of(address, len, entries.min(64), |_| wide()) {
        Ok(pages) => pages,
        Err(error) => return outcome.refuse(&error),
    };
    assert!(pages.len() <= 64);
    let file_of = |Gpa(page): Gpa| (page < 1 << 30).then_some(((page >> 16) & 1, page >> 1 << 1));
    match intel::pieces(address, &pages, 8, file_of) {
        Ok(pieces) => {
            outcome.done += 1;
            assert!(pieces.len() <= 8);
            let bytes: u64 = pieces.iter().map(|piece| piece.len).sum();
            assert_eq!(bytes, pages.len() as u64 * intel::PAGE);
            assert_eq!(intel::address_of(&pages, bytes), None);
        }
        Err(error) => outcome.refuse(&error),
    }
}

fn surface(input: &mut Input<'_>, outcome: &mut Outcome) {
    let mut number = || input.u32().unwrap_or(0);
    let chosen = number();
    let format = match FORMATS.get(chosen as usize) {
        Some(format) => format.fourcc,
        None => FourCc(chosen),
    };
    let modifier = Modifier(u64::from(number()) << 32 | u64::from(number()));
    let surface = Surface {
        format,
        modifier,
        width: number(),
        height: number(),
        stride: number(),
        offset: number().into(),
        x: number(),
        y: number(),
    };
    match Layout::new(&surface, MEMORY) {
        Ok(layout) => show(&layout, outcome),
        Err(error) => outcome.refuse(&error),
    }
}
