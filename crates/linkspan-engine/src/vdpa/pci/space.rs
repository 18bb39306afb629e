//! Configuration space of the function, and the table of its vectors.

use linkspan_vfio::pci::{self, Bar, Config, ConfigError, Msix, MsixTable};
use linkspan_virtio::pci::{
    BAR_DOORBELLS, BAR_INTERRUPTS, BAR_REGISTERS, Identity, Layout, SUBSYSTEM, VENDOR, WINDOW_LEN,
};

/// Where in the capability of the window its parts are (virtio 1.3, 4.1.4.9).
const BAR_AT: usize = 4;
const OFFSET_AT: usize = 8;
const LENGTH_AT: usize = 12;
const DATA_AT: usize = 16;

/// The identifier of a vendor's capability.
const CAP_VENDOR: u8 = 9;

/// What a write meant beside the bytes of configuration space; a long one may mean both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// The window into a BAR, or where it is.
    pub(super) window: bool,
    /// How the function interrupts, or whether it may use memory.
    pub(super) control: bool,
}

/// Which bytes of an access are those of the window, from its first on.
#[derive(Clone, Copy, Debug)]
pub(super) struct WindowData {
    /// Where in the access the window begins; before its start if negative.
    at: i64,
    /// Whether the access reaches all of the window's bytes or some.
    pub(super) hit: bool,
}

impl WindowData {
    fn new(window: u64, offset: u64, len: usize) -> Self {
        // Both are inside of configuration space, as is the access.
        let (window, offset) = (window.cast_signed(), offset.cast_signed());
        let at = window - offset;
        let len = i64::try_from(len).unwrap_or(0);
        let hit = at < len && at > -4;
        Self { at, hit }
    }

    /// Puts what is in the window where it is in the access.
    pub(super) fn read(self, target: &mut [u8], bytes: [u8; 4]) {
        for (at, byte) in (self.at..).zip(bytes) {
            if let Some(place) = usize::try_from(at).ok().and_then(|at| target.get_mut(at)) {
                *place = byte;
            }
        }
    }

    /// What was written to the window, if it was written from its start on.
    pub(super) fn written(self, source: &[u8]) -> Option<[u8; 4]> {
        let at = usize::try_from(self.at).ok().filter(|_| self.hit)?;
        let mut bytes = [0; 4];
        for (byte, written) in bytes.iter_mut().zip(source.get(at..)?) {
            *byte = *written;
        }
        Some(bytes)
    }
}

/// Configuration space, and the vectors.
pub(super) struct Space {
    config: Config,
    table: MsixTable,
    pending_at: u64,
    /// Where the capability of the window is.
    window: usize,
}

impl Space {
    pub(super) fn new(identity: Identity, layout: Layout) -> Self {
        let built = Self::build(identity, layout);
        built.expect("all of it fits into configuration space, however many queues there are")
    }

    fn build(identity: Identity, layout: Layout) -> Result<Self, ConfigError> {
        let mut config = Config::new(&pci::Identity {
            vendor: VENDOR,
            device: identity.device,
            subsystem_vendor: VENDOR,
            subsystem: SUBSYSTEM,
            // Virtio 1.3, 4.1.2.1: not a transitional device.
            revision: 1,
            class: identity.class,
            pin: 1,
        });
        for bar in [BAR_REGISTERS, BAR_INTERRUPTS, BAR_DOORBELLS] {
            let size = u32::try_from(layout.bar_len(bar)).unwrap_or(0);
            let prefetch = false;
            config.add_bar(bar, Bar::Memory32 { size, prefetch })?;
        }
        let pending = u32::try_from(layout.pending_at()).unwrap_or(0);
        config.add_msix(&Msix {
            vectors: layout.vectors(),
            table: (BAR_INTERRUPTS, 0),
            pending: (BAR_INTERRUPTS, pending),
        })?;
        let mut window = 0;
        for capability in layout.capabilities() {
            let bytes = capability.bytes();
            let mut writable = [0; WINDOW_LEN];
            // The last one is written, by a driver that cannot reach a BAR.
            writable[BAR_AT] = 0xff;
            writable[OFFSET_AT..].fill(0xff);
            let last = bytes[1] == PCI_CONFIG;
            let mask = if last { &writable[2..] } else { &[] };
            window = config.add_capability(CAP_VENDOR, bytes, mask)?.into();
        }
        Ok(Self {
            config,
            table: MsixTable::new(layout.vectors()),
            pending_at: layout.pending_at(),
            window,
        })
    }

    pub(super) fn reset(&mut self) {
        self.config.reset();
        self.table.reset();
    }

    /// Reads configuration space, and says which bytes are those of the window.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) -> WindowData {
        self.config.read(offset, target);
        self.data(offset, target.len())
    }

    /// Writes what can be written of it.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> (Touched, WindowData) {
        let changed = self.config.write(offset, bytes);
        let data = self.data(offset, bytes.len());
        let end = offset.saturating_add(bytes.len() as u64);
        let touched = Touched {
            window: offset < (self.window + WINDOW_LEN) as u64 && end > self.window as u64,
            control: changed.msix || changed.command,
        };
        (touched, data)
    }

    /// Where the driver wants the window: BAR, offset and length.
    pub(super) fn window(&self) -> (u8, u32, u32) {
        let bytes = &self.config.bytes()[self.window..];
        let number = |at: usize| {
            let number = bytes
                .get(at..at + 4)
                .and_then(|number| number.try_into().ok());
            number.map_or(0, u32::from_le_bytes)
        };
        (bytes[BAR_AT], number(OFFSET_AT), number(LENGTH_AT))
    }

    pub(super) fn msix_enabled(&self) -> bool {
        self.config.msix_enabled()
    }

    /// Whether the driver lets the function use memory.
    pub(super) fn bus_master(&self) -> bool {
        self.config.bus_master()
    }

    /// Whether the line may be used.
    pub(super) fn has_line(&self) -> bool {
        !self.config.msix_enabled() && !self.config.intx_disabled()
    }

    pub(super) fn read_vectors(&self, offset: u64, target: &mut [u8]) {
        match offset.checked_sub(self.pending_at) {
            Some(offset) => self.table.read_pending(offset, target),
            None => self.table.read(offset, target),
        }
    }

    pub(super) fn write_vectors(&mut self, offset: u64, bytes: &[u8]) {
        if offset < self.pending_at {
            self.table.write(offset, bytes);
        }
    }

    fn data(&self, offset: u64, len: usize) -> WindowData {
        WindowData::new((self.window + DATA_AT) as u64, offset, len)
    }
}

/// `VIRTIO_PCI_CAP_PCI_CFG`.
const PCI_CONFIG: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_virtio::pci::{QUEUES_MAX, identity};

    const WINDOW: Touched = Touched {
        window: true,
        control: false,
    };
    const CONTROL: Touched = Touched {
        window: false,
        control: true,
    };

    fn space(queues: u16) -> Space {
        Space::new(identity(2).unwrap(), Layout::new(queues, 60))
    }

    /// All capabilities as a driver walks them: identifier and place.
    fn walk(space: &Space) -> Vec<(u8, usize)> {
        let bytes = space.config.bytes();
        let (mut at, mut found) = (usize::from(bytes[0x34]), Vec::new());
        while at != 0 {
            found.push((bytes[at], at));
            at = bytes[at + 1].into();
        }
        found
    }

    #[test]
    fn everything_fits_for_any_number_of_queues() {
        for queues in [1, 3, 64, QUEUES_MAX] {
            let space = space(queues);
            let found = walk(&space);
            let ids: Vec<u8> = found.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids, [0x11, 9, 9, 9, 9, 9]);
            let bytes = space.config.bytes();
            assert_eq!(bytes[..4], [0xf4, 0x1a, 0x42, 0x10]);
            let kinds: Vec<u8> = found[1..].iter().map(|(_, at)| bytes[at + 3]).collect();
            assert_eq!(kinds, [1, 2, 3, 4, 5]);
            assert_eq!(found[5].1, space.window);
        }
    }

    #[test]
    fn the_window_is_found_in_accesses_of_any_length() {
        let mut space = space(2);
        let at = space.window as u64;
        let (touched, _) = space.write(at + 4, &[2]);
        assert_eq!(touched, WINDOW);
        space.write(at + 8, &[0, 0x10, 0, 0, 2, 0, 0, 0]);
        assert_eq!(space.window(), (2, 0x1000, 2));
        // All at once, and only what belongs to it.
        let whole = [9, 9, 0, 0, 0, 0, 4, 0, 0, 0, 1, 2, 3, 4, 9, 9];
        let (touched, data) = space.write(at + 6, &whole);
        assert_eq!(touched, WINDOW);
        assert_eq!(data.written(&whole), Some([1, 2, 3, 4]));
        assert_eq!(space.window(), (2, 0, 4));
        let (_, data) = space.write(at + 17, &[7]);
        assert_eq!(data.written(&[7]), None, "not from its start");
        let (_, data) = space.write(at + 16, &[7, 8]);
        assert_eq!(data.written(&[7, 8]), Some([7, 8, 0, 0]));
        let mut target = [0xee; 6];
        let data = space.read(at + 14, &mut target);
        assert!(data.hit);
        data.read(&mut target, [1, 2, 3, 4]);
        assert_eq!(target[2..], [1, 2, 3, 4]);
        let mut target = [0xee; 2];
        let data = space.read(at + 18, &mut target);
        data.read(&mut target, [1, 2, 3, 4]);
        assert_eq!(target, [3, 4]);
        assert!(!space.read(at, &mut [0; 16]).hit);
        space.reset();
        assert_eq!(space.window(), (0, 0, 0));
    }

    #[test]
    fn one_access_may_mean_the_window_and_control() {
        let mut space = space(2);
        // Everything from the command register to the end of the window, with its data.
        let mut bytes = space.config.bytes()[4..space.window + WINDOW_LEN].to_vec();
        bytes[0] = 6;
        let (touched, data) = space.write(4, &bytes);
        assert!(touched.window && touched.control && space.bus_master());
        assert_eq!(data.written(&bytes), Some([0; 4]));
        let msix = walk(&space)[0].1;
        bytes[msix + 3 - 4] |= 0x80;
        let (touched, _) = space.write(4, &bytes);
        assert!(touched.window && touched.control && space.msix_enabled());
        // The same once more changes nothing, and writes to the window all the same.
        assert_eq!(space.write(4, &bytes).0, WINDOW);
        assert_eq!(space.write(0, &[0; 4]).0, Touched::default());
    }

    #[test]
    fn interrupts_are_switched_and_vectors_kept() {
        let mut space = space(2);
        let msix = walk(&space)[0].1 as u64;
        assert!(space.has_line());
        let (touched, _) = space.write(msix + 2, &[0, 0x80]);
        assert_eq!(touched, CONTROL);
        assert!(space.msix_enabled() && !space.has_line());
        space.reset();
        let (touched, _) = space.write(4, &[0, 4]);
        assert_eq!(touched, CONTROL);
        assert!(!space.has_line() && !space.msix_enabled());
        space.write_vectors(0x20, &[4, 0, 0, 0, 5]);
        let mut entry = [0; 16];
        space.read_vectors(0x20, &mut entry);
        assert_eq!((entry[0], entry[4], entry[12]), (4, 5, 1));
        // Nobody writes pending bits.
        space.write_vectors(0x1000, &[0xff; 8]);
        space.read_vectors(0x1000, &mut entry);
        assert_eq!(entry, [0; 16]);
    }
}
