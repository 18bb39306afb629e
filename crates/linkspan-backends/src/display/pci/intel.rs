//! Registers and the graphics address table of an Intel display engine, as a script says
//! them at first. What they show lies in the device's own memory, its third base address, or
//! in the guest's, wherever the table says.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use linkspan_display::decode::intel::{
    self, ENTRIES_OFFSET, Generation, OPREGION_SUBTYPE, OPREGION_TYPE, PAGE, Pipe, REGISTERS_BYTES,
    Shown,
};
use linkspan_display::{Reason, RefusedPlane, Surface};
use linkspan_engine::vfio_user::{Mapped, Refused};
use linkspan_vfio::Region;
use linkspan_vfio::pci::{Bar, Config, Identity};

use super::super::hub::{Hub, Layer};
use super::super::memory::Backing;
use super::pages::{PagesError, Spans, scattered};
use super::video::Video;
use super::{BAR0, BAR2, DisplayError, Part};

/// Bytes of registers and the table: the table is in the second half.
const MMIO: u32 = 16 << 20;
/// Entries of the table.
const ENTRIES: usize = 1 << 20;
/// Where registers of the display engine are.
const DISPLAY: std::ops::Range<u64> = 0x6_0000..REGISTERS_BYTES as u64;
/// The longest OpRegion.
const OPREGION_MAX: usize = 1 << 20;

/// What the registers, the table and the OpRegion are at first.
#[derive(Clone, Debug)]
pub struct Script {
    generation: Generation,
    registers: Vec<(u32, u32)>,
    entries: Vec<(usize, u64)>,
    /// The table speaks of the guest's memory, and not of the device's own.
    of_guest: bool,
    /// The file with the OpRegion, if there is one.
    pub opregion: Option<PathBuf>,
    /// What is in it.
    pub opregion_bytes: Vec<u8>,
}

/// A line of a script that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// It begins with no word that is known.
    #[error("line {line}: {word} is none of generation, register, table, memory, opregion")]
    Word {
        /// Which line, from 1.
        line: usize,
        /// The word.
        word: String,
    },
    /// It has too few or too many numbers, or they are none.
    #[error("line {line}: {usage}")]
    Usage {
        /// Which line, from 1.
        line: usize,
        /// How it is written.
        usage: &'static str,
    },
    /// A number is too large, or not aligned.
    #[error("line {line}: {number:#x} is outside")]
    Outside {
        /// Which line, from 1.
        line: usize,
        /// The number.
        number: u64,
    },
}

fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

impl Script {
    /// Reads a script: a line for each thing, and what follows a # is for people.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let mut script = Self {
            generation: Generation::Gen9,
            registers: Vec::new(),
            entries: Vec::new(),
            of_guest: false,
            opregion: None,
            opregion_bytes: Vec::new(),
        };
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.split('#').next().unwrap_or_default();
            let words: Vec<&str> = text.split_whitespace().collect();
            let Some((word, rest)) = words.split_first() else {
                continue;
            };
            script.line(line, word, rest)?;
        }
        Ok(script)
    }

    fn line(&mut self, line: usize, word: &str, rest: &[&str]) -> Result<(), ScriptError> {
        let numbers: Option<Vec<u64>> = rest.iter().map(|word| number(word)).collect();
        let numbers = numbers.as_deref();
        let usage = |usage| ScriptError::Usage { line, usage };
        let outside = |number| ScriptError::Outside { line, number };
        match (word, numbers) {
            ("generation", Some([8])) => self.generation = Generation::Gen8,
            ("generation", Some([9])) => self.generation = Generation::Gen9,
            ("generation", _) => return Err(usage("generation 8 or 9")),
            ("register", Some(&[offset, value])) => {
                let small = u32::try_from(offset)
                    .ok()
                    .filter(|offset| *offset < REGISTERS_BYTES && offset.is_multiple_of(4));
                let offset = small.ok_or(outside(offset))?;
                let value = u32::try_from(value).map_err(|_| outside(value))?;
                self.registers.push((offset, value));
            }
            ("register", _) => return Err(usage("register OFFSET VALUE")),
            ("table", Some(&[page, address])) => self.table(page, address, 1, outside)?,
            ("table", Some(&[page, address, count])) => {
                self.table(page, address, count, outside)?;
            }
            ("table", _) => return Err(usage("table PAGE ADDRESS [COUNT]")),
            ("memory", _) => match rest {
                ["device"] => self.of_guest = false,
                ["guest"] => self.of_guest = true,
                _ => return Err(usage("memory device or guest")),
            },
            ("opregion", _) => match rest {
                [path] => self.opregion = Some(path.into()),
                _ => return Err(usage("opregion FILE")),
            },
            (word, _) => {
                let word = word.to_owned();
                return Err(ScriptError::Word { line, word });
            }
        }
        Ok(())
    }

    /// Pages of the table, one behind the other.
    fn table(
        &mut self,
        page: u64,
        address: u64,
        count: u64,
        outside: impl Fn(u64) -> ScriptError,
    ) -> Result<(), ScriptError> {
        let end = page.checked_add(count).filter(|end| *end <= ENTRIES as u64);
        let end = end.ok_or(outside(page))?;
        let last = count
            .checked_mul(PAGE)
            .and_then(|len| address.checked_add(len));
        if !address.is_multiple_of(PAGE) || last.is_none() {
            return Err(outside(address));
        }
        let mut address = address;
        for page in page..end {
            let page = usize::try_from(page).map_err(|_| outside(page))?;
            // Present.
            self.entries.push((page, address | 1));
            address += PAGE;
        }
        Ok(())
    }
}

/// The device.
pub(super) struct Intel {
    script: Script,
    registers: Vec<u32>,
    entries: Vec<u64>,
    video: Video,
    /// The memory that the table speaks of.
    memory: Spans,
}

impl Intel {
    pub(super) fn offer(
        script: Script,
        memory: u64,
    ) -> Result<(Config, Box<dyn Part>), DisplayError> {
        let mut config = Config::new(&Identity {
            vendor: 0x8086,
            device: match script.generation {
                Generation::Gen8 => 0x1616,
                Generation::Gen9 => 0x1916,
            },
            subsystem_vendor: 0x8086,
            subsystem: 0,
            revision: 0,
            class: 0x03_80_00,
            pin: 0,
        });
        let prefetch = false;
        config.add_bar(
            0,
            Bar::Memory64 {
                size: MMIO.into(),
                prefetch,
            },
        )?;
        let (size, prefetch) = (memory, true);
        config.add_bar(2, Bar::Memory64 { size, prefetch })?;
        let video = Video::new(memory)?;
        let part = Self {
            memory: match script.of_guest {
                true => Spans::default(),
                false => Spans::of(video.memory.file(), video.len()),
            },
            script,
            registers: vec![0; REGISTERS_BYTES as usize / 4],
            entries: vec![0; ENTRIES],
            video,
        };
        Ok((config, Box::new(part)))
    }

    /// The surface within its memory: that of the device if it is there in one piece, else
    /// what its pages are put together to.
    fn place(&self, shown: &Shown) -> Result<(Surface, Backing), PagesError> {
        let address = shown.address.into();
        let entry = |at: u64| usize::try_from(at).map_or(0, |at| self.entries[at]);
        let len = shown.layout.end();
        let pieces = self.memory.pieces(address, len, ENTRIES as u64, entry)?;
        let surface = *shown.layout.surface();
        match &pieces[..] {
            // All of a guest's file is more than a viewer is to see.
            [piece] if !self.script.of_guest => {
                let offset = surface.offset + piece.offset;
                let backing = Backing::Whole(Arc::clone(&self.video.memory));
                Ok((Surface { offset, ..surface }, backing))
            }
            _ => Ok((surface, Backing::Pages(scattered(pieces)?))),
        }
    }

    /// The byte at an offset of the first region.
    fn byte(&self, at: u64) -> u8 {
        let index = |at: u64, unit: u64| usize::try_from(at / unit).unwrap_or(usize::MAX);
        let part = |at: u64, unit: u64| usize::try_from(at % unit).unwrap_or(0);
        match at.checked_sub(ENTRIES_OFFSET) {
            Some(at) => {
                let entry = self.entries.get(index(at, 8)).copied().unwrap_or(0);
                entry.to_le_bytes()[part(at, 8)]
            }
            None => {
                let word = self.registers.get(index(at, 4)).copied().unwrap_or(0);
                word.to_le_bytes()[part(at, 4)]
            }
        }
    }

    fn set_byte(&mut self, at: u64, byte: u8) {
        let index = |at: u64, unit: u64| usize::try_from(at / unit).unwrap_or(usize::MAX);
        let part = |at: u64, unit: u64| usize::try_from(at % unit).unwrap_or(0);
        match at.checked_sub(ENTRIES_OFFSET) {
            Some(at) => {
                if let Some(entry) = self.entries.get_mut(index(at, 8)) {
                    let mut bytes = entry.to_le_bytes();
                    bytes[part(at, 8)] = byte;
                    *entry = u64::from_le_bytes(bytes);
                }
            }
            None => {
                if let Some(word) = self.registers.get_mut(index(at, 4)) {
                    let mut bytes = word.to_le_bytes();
                    bytes[part(at, 4)] = byte;
                    *word = u32::from_le_bytes(bytes);
                }
            }
        }
    }
}

impl Part for Intel {
    fn regions(&self, regions: &mut [Region]) {
        regions[BAR0 as usize] = Region::of(MMIO.into());
        regions[BAR2 as usize] = Region::mapped(self.video.len());
    }

    fn read(&mut self, region: u32, offset: u64, target: &mut [u8]) -> Result<(), Refused> {
        match region {
            BAR0 => {
                for (at, byte) in (offset..u64::from(MMIO)).zip(target) {
                    *byte = self.byte(at);
                }
            }
            BAR2 => self.video.read(offset, target),
            _ => return Err(Refused::UNSUPPORTED),
        }
        Ok(())
    }

    fn write(&mut self, hub: &Hub, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        match region {
            BAR0 => {
                let mut shows = false;
                for (at, byte) in (offset..u64::from(MMIO)).zip(bytes) {
                    self.set_byte(at, *byte);
                    shows |= DISPLAY.contains(&at);
                }
                if shows {
                    self.show(hub);
                }
            }
            BAR2 => self.video.write(offset, bytes),
            _ => return Err(Refused::UNSUPPORTED),
        }
        Ok(())
    }

    fn region_fd(&mut self, region: u32) -> io::Result<OwnedFd> {
        match region {
            BAR2 => self.video.fd(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn opregion(&self) -> Option<(&[u8], (u32, u32))> {
        let bytes = self.script.opregion_bytes.as_slice();
        let bytes = &bytes[..bytes.len().min(OPREGION_MAX)];
        (!bytes.is_empty()).then_some((bytes, (OPREGION_TYPE, OPREGION_SUBTYPE)))
    }

    fn memory_is(&mut self, hub: &Hub, memory: &mut dyn Iterator<Item = &Mapped>) {
        if self.script.of_guest {
            self.memory = Spans::of_guest(memory);
            self.show(hub);
            // By an id of before, a viewer would have what the guest has taken back.
            hub.retire_hidden();
        }
    }

    fn show(&self, hub: &Hub) {
        let read = |offset: u32| self.registers[offset as usize / 4];
        let (mut layers, mut refused) = (Vec::new(), Vec::new());
        for found in intel::planes(self.script.generation, read) {
            let kind = found.kind;
            let head = match found.pipe {
                Pipe::A => 0,
                Pipe::B => 1,
                Pipe::C => 2,
            };
            let placed = match found.shown {
                Ok(None) => continue,
                Ok(Some(shown)) => self.place(&shown).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match (placed, found.shown) {
                (Ok((surface, backing)), Ok(Some(shown))) => layers.push(Layer {
                    head,
                    kind,
                    surface,
                    backing,
                    position: shown.position,
                    hot_spot: shown.hot_spot,
                }),
                (Ok(_), _) => {}
                (Err(why), _) => {
                    let why = Reason::new(&why);
                    refused.push(RefusedPlane { head, kind, why });
                }
            }
        }
        hub.put(layers, refused);
    }

    fn reset(&mut self, hub: &Hub) {
        self.registers.fill(0);
        for (offset, value) in &self.script.registers {
            self.registers[*offset as usize / 4] = *value;
        }
        self.entries.fill(0);
        for (page, entry) in &self.script.entries {
            self.entries[*page] = *entry;
        }
        self.show(hub);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::Pages;
    use super::*;
    use linkspan_display::decode::intel::Piece;
    use linkspan_display::{ExportError, FourCc, Modifier, Position};
    use linkspan_sys::PeerMemory;
    use linkspan_sys::memfd::{self, Sealing};

    /// A guest's memory that is unmapped is for nobody, nor is it kept open: not by an id
    /// of a picture in it either, which viewers may have heard of.
    #[test]
    fn ids_end_with_the_guests_memory() {
        let script = Script::parse("memory guest").unwrap();
        let (_, mut part) = Intel::offer(script, 1 << 20).unwrap();
        let hub = Hub::silent(3, (640, 480), false).unwrap();
        let file = memfd::create("guest", PAGE, Sealing::Fixed).unwrap();
        let file = Arc::new(PeerMemory::check(file).unwrap());
        let piece = Piece {
            file: Arc::clone(&file),
            offset: 0,
            len: PAGE,
        };
        let layer = Layer {
            head: 0,
            kind: linkspan_display::Kind::Primary,
            surface: Surface {
                format: FourCc::XRGB8888,
                modifier: Modifier::LINEAR,
                width: 16,
                height: 16,
                stride: 64,
                offset: 0,
                x: 0,
                y: 0,
            },
            backing: Backing::Pages(Arc::new(Pages::new(vec![piece]))),
            position: Position::default(),
            hot_spot: None,
        };
        hub.put(vec![layer], Vec::new());
        let id = hub.now().planes[0].id;
        assert!(hub.get(id, |_| Ok(())).is_ok());
        part.memory_is(&hub, &mut std::iter::empty());
        let got = hub.get(id, |_| Ok(()));
        assert!(matches!(got, Err(ExportError::Retired { .. })), "{got:?}");
        assert_eq!(Arc::strong_count(&file), 1);
    }

    #[test]
    fn a_script_says_registers_and_pages() {
        let text = "# a screen\ngeneration 8\nmemory guest\nregister 0x70180 0xD8000000 # on\n\
                    table 16 0x2000 2\ntable 0x20 0\nopregion op.bin\n";
        let script = Script::parse(text).unwrap();
        assert_eq!(script.generation, Generation::Gen8);
        assert!(script.of_guest);
        assert_eq!(script.registers, [(0x70180, 0xD800_0000)]);
        assert_eq!(script.entries, [(16, 0x2001), (17, 0x3001), (32, 1)]);
        assert_eq!(script.opregion, Some("op.bin".into()));
    }

    #[test]
    fn lines_that_say_nothing_are_named() {
        let error = |text: &str| Script::parse(text).unwrap_err().to_string();
        assert!(error("\nregistre 1 2").starts_with("line 2: registre is none of"));
        assert_eq!(error("register 1"), "line 1: register OFFSET VALUE");
        assert_eq!(error("register 0x80000 1"), "line 1: 0x80000 is outside");
        assert_eq!(error("register 2 1"), "line 1: 0x2 is outside");
        assert_eq!(
            error("register 4 0x100000000"),
            "line 1: 0x100000000 is outside"
        );
        assert_eq!(error("table 0 1"), "line 1: 0x1 is outside");
        assert_eq!(error("table 0x100000 0"), "line 1: 0x100000 is outside");
        assert_eq!(
            error("table 0 0 0xFFFFFFFFFFFFFFFF"),
            "line 1: 0x0 is outside"
        );
        assert_eq!(
            error("table 1 0xFFFFFFFFFFFFF000"),
            "line 1: 0xfffffffffffff000 is outside"
        );
        assert_eq!(error("generation 7"), "line 1: generation 8 or 9");
        assert_eq!(error("memory all"), "line 1: memory device or guest");
        assert_eq!(error("opregion"), "line 1: opregion FILE");
    }
}
