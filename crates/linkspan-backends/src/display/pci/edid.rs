//! The region by which a client tells the guest's screen (`struct vfio_region_gfx_edid`):
//! link down, the size, the bytes, link up.

use linkspan_display::edid::{self, BLOCK, Mode};
use linkspan_display::region::{LINK_DOWN, LINK_UP, SUBTYPE_EDID, TYPE_GFX};
use linkspan_engine::vfio_user::Refused;
use linkspan_vfio::Region;

/// Bytes of the region.
const BYTES: u64 = 4096;
/// Where the EDID is in it.
const OFFSET: u32 = 2048;
/// Its most bytes: all that a Bochs display shows of one.
const SIZE_MAX: u32 = 1024;
/// Where in the head its size and the state of the link are.
const SIZE_AT: u64 = 8;
const LINK_AT: u64 = 20;
/// The largest mode that an EDID tells.
const SIDE_MAX: u32 = 4095;

/// The EDID and the link.
#[derive(Clone, Debug)]
pub(super) struct EdidRegion {
    bytes: [u8; SIZE_MAX as usize],
    size: u32,
    up: bool,
}

impl EdidRegion {
    pub(super) fn new(mode: &Mode) -> Self {
        let mut region = Self {
            bytes: [0; SIZE_MAX as usize],
            size: 0,
            up: true,
        };
        region.set_mode(mode);
        region
    }

    /// An EDID of ours.
    pub(super) fn set_mode(&mut self, mode: &Mode) {
        let blob = edid::make(mode, "Linkspan", 0);
        self.bytes[..BLOCK].copy_from_slice(&blob);
        self.size = u32::try_from(BLOCK).unwrap_or(0);
        self.up = true;
    }

    /// The EDID.
    pub(super) fn blob(&self) -> &[u8] {
        // No larger than the place for it.
        &self.bytes[..self.size as usize]
    }

    /// Whether there is a screen.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    pub(super) fn region(&self) -> Region {
        Region {
            kind: Some((TYPE_GFX, SUBTYPE_EDID)),
            ..Region::of(BYTES)
        }
    }

    pub(super) fn read(&self, offset: u64, target: &mut [u8]) {
        let link = if self.up { LINK_UP } else { LINK_DOWN };
        let head = [OFFSET, SIZE_MAX, self.size, SIDE_MAX, SIDE_MAX, link];
        for (at, byte) in (offset..BYTES).zip(target) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = match at.checked_sub(OFFSET as usize) {
                Some(at) => self.bytes.get(at).copied().unwrap_or(0),
                None => head
                    .get(at / 4)
                    .map_or(0, |word| word.to_le_bytes()[at % 4]),
            };
        }
    }

    /// Writes; says whether the guest is to be told of it.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<bool, Refused> {
        let word = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes);
        match (offset, word) {
            (SIZE_AT, Ok(size)) if size <= SIZE_MAX => {
                self.size = size;
                Ok(false)
            }
            (LINK_AT, Ok(LINK_DOWN)) => {
                self.up = false;
                Ok(true)
            }
            (LINK_AT, Ok(LINK_UP)) => {
                if self.size > 0 && edid::read(self.blob()).is_err() {
                    return Err(Refused::invalid("what is to be told is no EDID"));
                }
                self.up = true;
                Ok(true)
            }
            (SIZE_AT | LINK_AT, _) => Err(Refused::invalid("a size or a state of the link")),
            _ => {
                let start = offset.checked_sub(OFFSET.into());
                let start = start.and_then(|start| usize::try_from(start).ok());
                let end = start.and_then(|start| start.checked_add(bytes.len()));
                let place = start.zip(end);
                let place = place.and_then(|(start, end)| self.bytes.get_mut(start..end));
                match place {
                    Some(place) => place.copy_from_slice(bytes),
                    None => return Err(Refused::invalid("a place that can only be read")),
                }
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(region: &EdidRegion, at: u64) -> u32 {
        let mut bytes = [0; 4];
        region.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_screen_is_told_as_the_kernel_has_it() {
        let mode = Mode::reduced(1280, 800, 60).unwrap();
        let mut region = EdidRegion::new(&mode);
        let head = [0, 4, 8, 12, 16, 20].map(|at| word(&region, at));
        assert_eq!(head, [2048, 1024, 128, 4095, 4095, LINK_UP]);
        let blob = edid::make(&Mode::reduced(640, 480, 60).unwrap(), "other", 1);
        let put =
            |region: &mut EdidRegion, at: u64, word: u32| region.write(at, &word.to_le_bytes());
        assert_eq!(put(&mut region, 20, LINK_DOWN), Ok(true));
        assert!(!region.is_up());
        assert_eq!(put(&mut region, 8, 128), Ok(false));
        assert_eq!(region.write(2048, &blob), Ok(false));
        assert_eq!(put(&mut region, 20, LINK_UP), Ok(true));
        assert_eq!(edid::read(region.blob()).unwrap().mode.width, 640);
        // What is wrong changes nothing.
        region.write(2048 + 20, &[0xEE]).unwrap();
        assert!(put(&mut region, 20, LINK_UP).is_err());
        assert!(put(&mut region, 20, 3).is_err());
        assert!(put(&mut region, 8, 1025).is_err());
        assert!(put(&mut region, 0, 1).is_err());
        assert!(region.write(2048 + 1023, &[0; 2]).is_err());
        assert!(region.write(u64::MAX, &[0; 8]).is_err());
        assert!(region.write(8, &[0]).is_err());
    }
}
