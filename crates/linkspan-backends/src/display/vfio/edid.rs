//! Which screen the guest is told of: the region with its EDID.

use std::io;
use std::time::Duration;

use linkspan_display::edid::{self, Edid, EdidError, Mode};
use linkspan_display::region::{
    EDID_HEAD, EDID_LINK, EDID_SIZE, EdidRegion, LINK_DOWN, LINK_UP, SUBTYPE_EDID, TYPE_GFX,
};

use super::super::source::SourceError;
use super::device::{Device, Region};
use super::error::failed;

/// How long the screen is away, so that the guest's driver sees it go.
const AWAY: Duration = Duration::from_millis(100);
/// Pictures a second.
const RATE: u32 = 60;
/// The longest EDID that is read, in bytes: a block and 255 extensions.
const READ_MAX: u32 = 128 * 256;

/// What a device says of the screen that its guest is told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    /// What it can be told.
    pub region: EdidRegion,
    /// What it was told, if it was.
    pub edid: Option<Result<Edid, EdidError>>,
}

/// The region for an EDID. Only regions that a driver made up have a type.
fn find(device: &Device) -> io::Result<Option<Region>> {
    let regions = device.regions()?;
    let mut regions = regions.into_iter();
    Ok(regions.find(|region| region.kind() == Some((TYPE_GFX, SUBTYPE_EDID))))
}

fn head(device: &Device, region: &Region) -> io::Result<EdidRegion> {
    let mut words = [0; EDID_HEAD / 4];
    for (word, at) in words.iter_mut().zip((0..).step_by(4)) {
        *word = device.read_word(region, at)?;
    }
    Ok(EdidRegion::from_words(words))
}

pub(super) fn read(device: &Device) -> io::Result<Option<Screen>> {
    let Some(region) = find(device)? else {
        return Ok(None);
    };
    let head = head(device, &region)?;
    let mut edid = None;
    if head.size > 0 && head.size <= head.size_max.min(READ_MAX) {
        let mut bytes = Vec::new();
        for at in (0..head.size).step_by(4) {
            let word = device.read_word(&region, u64::from(head.offset) + u64::from(at))?;
            bytes.extend(word.to_ne_bytes());
        }
        bytes.truncate(usize::try_from(head.size).unwrap_or(0));
        edid = Some(edid::read(&bytes));
    }
    Ok(Some(Screen { region: head, edid }))
}

/// Tells the guest of another screen: it goes, is described anew, and is there again.
pub(super) fn tell(device: &Device, width: u32, height: u32) -> Result<(), SourceError> {
    let what = "the EDID region";
    let unsupported = |why: String| SourceError::Unsupported(why);
    let region = find(device).map_err(failed(what))?;
    let region = region.ok_or_else(|| unsupported("the device has no EDID region".into()))?;
    let mode = Mode::reduced(width, height, RATE);
    let mode = mode.map_err(|error| unsupported(error.to_string()))?;
    let bytes = edid::make(&mode, "Linkspan", 0);
    let head = head(device, &region).map_err(failed(what))?;
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    head.check(len, width, height)
        .map_err(|error| unsupported(error.to_string()))?;
    let write = |at: u64, word: u32| {
        let written = device.write_word(&region, at, word);
        written.map_err(failed(what))
    };
    write(EDID_LINK, LINK_DOWN)?;
    let told = (|| {
        std::thread::sleep(AWAY);
        // The size first: GVT-g takes no byte behind it.
        write(EDID_SIZE, len)?;
        let (words, _) = bytes.as_chunks::<4>();
        for (word, at) in words.iter().zip((u64::from(head.offset)..).step_by(4)) {
            write(at, u32::from_ne_bytes(*word))?;
        }
        Ok(())
    })();
    // Whatever came of it, the screen is there again.
    let up = write(EDID_LINK, LINK_UP);
    told.and(up)
}
