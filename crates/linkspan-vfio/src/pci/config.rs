//! Configuration space of one function: header type 0 (PCI 3.0, 6.1 and 6.7).
//!
//! Every byte has a mask of the bits that can be written, so an access of any width at
//! any place does what the register of each of its bytes says, and nothing else.

use core::ops::Range;

use thiserror::Error;

use super::CONFIG_BYTES;

const BYTES: usize = 256;
const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0C;
const LATENCY: usize = 0x0D;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2C;
const SUBSYSTEM: usize = 0x2E;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;
const INTERRUPT_PIN: usize = 0x3D;
/// Where capabilities may begin.
const FIRST: usize = 0x40;

/// Ports, memory, bus master, parity, SERR, and no INTx.
const COMMAND_BITS: u16 = 0x0547;
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const CAP_MSI: u8 = 0x05;
/// A vendor's capability.
pub(crate) const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;
const MSI_ENABLE: u16 = 1 << 0;
/// Addresses of 64 bits.
const MSI_64: u16 = 1 << 7;

/// What a function is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What it is, by its maker.
    pub device: u16,
    /// Who sells it.
    pub subsystem_vendor: u16,
    /// What it is, by its seller.
    pub subsystem: u16,
    /// Which edition.
    pub revision: u8,
    /// Class, subclass and interface: `0xCCSSII`.
    pub class: u32,
    /// Its interrupt line: 1 to 4 for A to D, or 0.
    pub pin: u8,
}

/// What one base address, or two, are for. Sizes are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Memory below 4 GiB.
    Memory32 {
        /// Bytes, 16 at least.
        size: u32,
        /// Whether reading it changes nothing.
        prefetch: bool,
    },
    /// Memory anywhere; takes the next base address too.
    Memory64 {
        /// Bytes, 16 at least.
        size: u64,
        /// Whether reading it changes nothing.
        prefetch: bool,
    },
    /// Ports.
    Io {
        /// Bytes, 4 to 256.
        size: u32,
    },
}

impl Bar {
    /// Its bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::Memory32 { size, .. } | Self::Io { size } => size as u64,
            Self::Memory64 { size, .. } => size,
        }
    }
}

/// Where MSI-X vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// How many, 1 to 2048.
    pub vectors: u16,
    /// The base address and the offset of their table.
    pub table: (u8, u32),
    /// The same of the bits of those that wait.
    pub pending: (u8, u32),
}

/// What cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A base address that does not exist or is taken.
    #[error("base address {index} cannot be had")]
    Bar {
        /// Which.
        index: u8,
    },
    /// A size that cannot be.
    #[error("a base address for {size:#x} bytes")]
    Size {
        /// Bytes.
        size: u64,
    },
    /// No room is left.
    #[error("a capability of {len} bytes where {left} are left")]
    Full {
        /// Its bytes.
        len: usize,
        /// Those that are left.
        left: usize,
    },
    /// A number of vectors that cannot be.
    #[error("{vectors} vectors")]
    Vectors {
        /// How many.
        vectors: u16,
    },
}

/// What a write has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The command register.
    pub command: bool,
    /// A base address.
    pub bars: bool,
    /// The control of MSI, its address or data.
    pub msi: bool,
    /// The control of MSI-X.
    pub msix: bool,
}

/// Configuration space of one function.
#[derive(Clone, Debug)]
pub struct Config {
    bytes: [u8; BYTES],
    writable: [u8; BYTES],
    initial: [u8; BYTES],
    bars: [Option<Bar>; 6],
    /// The upper half of a base address of 64 bits.
    upper: [bool; 6],
    /// Where the next capability goes.
    free: usize,
    /// Where the pointer to it goes.
    link: usize,
    msi: Option<usize>,
    msix: Option<usize>,
}

impl Config {
    /// A function without base addresses and capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; BYTES],
            writable: [0; BYTES],
            initial: [0; BYTES],
            bars: [None; 6],
            upper: [false; 6],
            free: FIRST,
            link: CAPABILITIES,
            msi: None,
            msix: None,
        };
        for (at, word) in [
            (VENDOR, identity.vendor),
            (DEVICE, identity.device),
            (SUBSYSTEM_VENDOR, identity.subsystem_vendor),
            (SUBSYSTEM, identity.subsystem),
        ] {
            config.put(at, &word.to_le_bytes());
        }
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        config.put(REVISION, &[identity.revision]);
        config.put(CLASS, &[interface, subclass, class]);
        config.put(INTERRUPT_PIN, &[identity.pin.min(4)]);
        config.allow(COMMAND, &COMMAND_BITS.to_le_bytes());
        for at in [CACHE_LINE, LATENCY, INTERRUPT_LINE] {
            config.allow(at, &[0xFF]);
        }
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.initial[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Gives a base address to memory or ports.
    ///
    /// # Errors
    /// There is none, or the size cannot be.
    pub fn add_bar(&mut self, index: u8, bar: Bar) -> Result<(), ConfigError> {
        let at = usize::from(index);
        let size = bar.size();
        let is_wide = matches!(bar, Bar::Memory64 { .. });
        let taken = |at: usize| {
            let bar = self.bars.get(at);
            bar.is_none_or(|bar| bar.is_some() || self.upper[at])
        };
        if taken(at) || (is_wide && taken(at + 1)) {
            return Err(ConfigError::Bar { index });
        }
        let least = if matches!(bar, Bar::Io { .. }) { 4 } else { 16 };
        let most = match bar {
            Bar::Io { .. } => 256,
            Bar::Memory32 { .. } => 1 << 31,
            Bar::Memory64 { .. } => 1 << 63,
        };
        if !size.is_power_of_two() || !(least..=most).contains(&size) {
            return Err(ConfigError::Size { size });
        }
        let flags: u8 = match bar {
            Bar::Memory32 { prefetch, .. } => u8::from(prefetch) << 3,
            Bar::Memory64 { prefetch, .. } => u8::from(prefetch) << 3 | 0b100,
            Bar::Io { .. } => 1,
        };
        let mask = !(size - 1);
        let low = mask.to_le_bytes();
        self.put(BARS + 4 * at, &[flags]);
        self.allow(BARS + 4 * at, &low[..4]);
        if is_wide {
            self.allow(BARS + 4 * at + 4, &low[4..]);
            self.upper[at + 1] = true;
        }
        self.bars[at] = Some(bar);
        Ok(())
    }

    /// Adds a capability: its number and its link, which are made here, then `body`, of
    /// which the bits of `writable` can be written. Returns where it is.
    ///
    /// # Errors
    /// No room is left.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u8, ConfigError> {
        let (at, len) = (self.free, 2 + body.len());
        let left = BYTES - at;
        if len > left {
            return Err(ConfigError::Full { len, left });
        }
        // It fits below 256.
        let place = u8::try_from(at).unwrap_or(0);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        let mask = &writable[..writable.len().min(body.len())];
        self.allow(at + 2, mask);
        self.put(self.link, &[place]);
        self.link = at + 1;
        self.free = (at + len).next_multiple_of(4).min(BYTES);
        let status = u16::from_le_bytes([self.bytes[STATUS], self.bytes[STATUS + 1]]);
        self.put(STATUS, &(status | STATUS_CAPABILITIES).to_le_bytes());
        Ok(place)
    }

    /// Adds a vendor's capability: after its number and its link, its whole length and
    /// `body`. Returns where it is.
    ///
    /// # Errors
    /// No room is left.
    pub fn add_vendor(&mut self, body: &[u8]) -> Result<u8, ConfigError> {
        let len = 3 + body.len();
        let left = BYTES - self.free;
        let length = u8::try_from(len).map_err(|_| ConfigError::Full { len, left })?;
        let mut bytes = alloc::vec![length];
        bytes.extend_from_slice(body);
        self.add_capability(CAP_VENDOR, &bytes, &[])
    }

    /// Adds MSI with so many vectors: a power of two up to 32.
    ///
    /// # Errors
    /// There cannot be so many, or no room is left.
    pub fn add_msi(&mut self, vectors: u16) -> Result<u8, ConfigError> {
        if !vectors.is_power_of_two() || vectors > 32 {
            return Err(ConfigError::Vectors { vectors });
        }
        let exponent = u16::try_from(vectors.trailing_zeros()).unwrap_or(0);
        let mut body = [0; 12];
        body[..2].copy_from_slice(&(exponent << 1 | MSI_64).to_le_bytes());
        // Enable, and how many are used; the address, whose last two bits are zero; data.
        let mask = [
            0x71, 0, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        ];
        let at = self.add_capability(CAP_MSI, &body, &mask)?;
        self.msi = Some(at.into());
        Ok(at)
    }

    /// Adds MSI-X.
    ///
    /// # Errors
    /// There cannot be so many vectors, or no room is left.
    pub fn add_msix(&mut self, msix: &Msix) -> Result<u8, ConfigError> {
        let vectors = msix.vectors;
        if !(1..=2048).contains(&vectors) {
            return Err(ConfigError::Vectors { vectors });
        }
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
        for (at, (bar, offset)) in [(2, msix.table), (6, msix.pending)] {
            let word = (offset & !7) | u32::from(bar & 7);
            body[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let control = (MSIX_ENABLE | MSIX_MASK).to_le_bytes();
        let at = self.add_capability(CAP_MSIX, &body, &control)?;
        self.msix = Some(at.into());
        Ok(at)
    }

    /// Reads; what is outside reads as ones.
    pub fn read(&self, offset: u64, target: &mut [u8]) {
        target.fill(0xFF);
        let places = (offset..CONFIG_BYTES).zip(target);
        for (at, byte) in places {
            *byte = usize::try_from(at).map_or(0xFF, |at| self.bytes[at]);
        }
    }

    /// Writes what can be written, and says what has changed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Changed {
        let mut changed = Changed::default();
        for (at, byte) in (offset..CONFIG_BYTES).zip(bytes) {
            let at = usize::try_from(at).unwrap_or(0);
            let mask = self.writable[at];
            let new = self.bytes[at] & !mask | byte & mask;
            if new == self.bytes[at] {
                continue;
            }
            self.bytes[at] = new;
            let within = |start: Option<usize>, part: Range<usize>| {
                start.is_some_and(|start| (start + part.start..start + part.end).contains(&at))
            };
            changed.command |= within(Some(COMMAND), 0..2);
            changed.bars |= within(Some(BARS), 0..24);
            changed.msi |= within(self.msi, 2..14);
            changed.msix |= within(self.msix, 2..4);
        }
        changed
    }

    /// All is as it was at first.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// All its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 256] {
        &self.bytes
    }

    /// A change of what can only be read, by the device.
    ///
    /// # Panics
    /// If it is not inside.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Whether the device answers on its ports.
    #[must_use]
    pub fn io_enabled(&self) -> bool {
        self.word(COMMAND) & COMMAND_IO != 0
    }

    /// Whether the device answers in its memory.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.word(COMMAND) & COMMAND_MEMORY != 0
    }

    /// Whether the device may use memory and interrupt by messages.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.word(COMMAND) & COMMAND_MASTER != 0
    }

    /// Whether the device may not use its interrupt line.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.word(COMMAND) & COMMAND_NO_INTX != 0
    }

    /// What a base address is for.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<Bar> {
        self.bars.get(usize::from(index)).copied().flatten()
    }

    /// Where it is.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let at = BARS + 4 * usize::from(index);
        let low = u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16;
        Some(match bar {
            Bar::Io { .. } => u64::from(low & !0b11),
            Bar::Memory32 { .. } => u64::from(low & !0xF),
            Bar::Memory64 { .. } => {
                let high = u32::from(self.word(at + 4)) | u32::from(self.word(at + 6)) << 16;
                u64::from(low & !0xF) | u64::from(high) << 32
            }
        })
    }

    /// Whether MSI is switched on.
    #[must_use]
    pub fn msi_enabled(&self) -> bool {
        let control = self.msi.map(|at| self.word(at + 2));
        control.is_some_and(|control| control & MSI_ENABLE != 0)
    }

    /// Whether MSI-X is switched on.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        let control = self.msix.map(|at| self.word(at + 2));
        control.is_some_and(|control| control & MSIX_ENABLE != 0)
    }

    /// Whether all vectors of MSI-X are held back.
    #[must_use]
    pub fn msix_masked(&self) -> bool {
        let control = self.msix.map(|at| self.word(at + 2));
        control.is_some_and(|control| control & MSIX_MASK != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> Config {
        let mut config = Config::new(&Identity {
            vendor: 0x1234,
            device: 0x1111,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x1100,
            revision: 2,
            class: 0x03_80_00,
            pin: 1,
        });
        let prefetch = true;
        let size = 16 << 20;
        config.add_bar(0, Bar::Memory32 { size, prefetch }).unwrap();
        let (size, prefetch) = (4096, false);
        config.add_bar(2, Bar::Memory64 { size, prefetch }).unwrap();
        config.add_bar(4, Bar::Io { size: 32 }).unwrap();
        config
    }

    fn read(config: &Config, at: u64) -> u32 {
        let mut bytes = [0; 4];
        config.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn base_addresses_are_sized_as_drivers_do_it() {
        let mut config = config();
        assert_eq!(read(&config, 0), 0x1111_1234);
        assert_eq!(read(&config, 8), 0x0380_0002);
        assert_eq!(read(&config, 0x2C), 0x1100_1AF4);
        for (at, size) in [
            (0x10, 0xFF00_0008),
            (0x14, 0),
            (0x18, 0xFFFF_F004),
            (0x1C, u32::MAX),
            (0x20, 0xFFFF_FFE1),
            (0x24, 0),
            (0x30, 0),
        ] {
            config.write(at, &[0xFF; 4]);
            assert_eq!(read(&config, at), size, "{at:#x}");
        }
        config.write(0x10, &0xE123_4567u32.to_le_bytes());
        assert_eq!(config.bar_address(0), Some(0xE100_0000));
        config.write(0x18, &0x12_3456_7000u64.to_le_bytes());
        assert_eq!(config.bar_address(2), Some(0x12_3456_7000));
        config.write(0x20, &[0x55, 0xC0, 0, 0]);
        assert_eq!(
            (config.bar_address(4), config.bar_address(1)),
            (Some(0xC040), None)
        );
    }

    #[test]
    fn base_addresses_that_cannot_be_are_refused() {
        let mut config = config();
        let prefetch = false;
        for index in [0, 2, 3, 4, 6, 255] {
            let bar = Bar::Memory32 { size: 16, prefetch };
            assert_eq!(config.add_bar(index, bar), Err(ConfigError::Bar { index }));
        }
        let wide = Bar::Memory64 { size: 16, prefetch };
        assert_eq!(config.add_bar(5, wide), Err(ConfigError::Bar { index: 5 }));
        assert_eq!(config.add_bar(1, wide), Err(ConfigError::Bar { index: 1 }));
        for bar in [
            Bar::Io { size: 512 },
            Bar::Io { size: 3 },
            Bar::Memory32 { size: 8, prefetch },
        ] {
            let size = bar.size();
            assert_eq!(config.add_bar(1, bar), Err(ConfigError::Size { size }));
        }
    }

    #[test]
    fn capabilities_are_a_list_and_their_control_is_told() {
        let mut config = config();
        assert_eq!(config.bytes()[6] & 0x10, 0);
        let vendor = config.add_vendor(b"\0XR24").unwrap();
        let msi = config.add_msi(4).unwrap();
        let msix = config
            .add_msix(&Msix {
                vectors: 3,
                table: (2, 0x800),
                pending: (2, 0xC00),
            })
            .unwrap();
        let bytes = config.bytes();
        assert_eq!((bytes[0x34], bytes[6] & 0x10), (vendor, 0x10));
        let at = |place: u8| &bytes[usize::from(place)..];
        assert_eq!(at(vendor)[..3], [9, msi, 8]);
        assert_eq!(at(msi)[..4], [5, msix, 0x84, 0]);
        assert_eq!(at(msix)[..12], [0x11, 0, 2, 0, 2, 8, 0, 0, 2, 12, 0, 0]);
        let changed = config.write(u64::from(msix) + 2, &[0xFF, 0xFF]);
        let msix_only = Changed {
            msix: true,
            ..Changed::default()
        };
        assert_eq!(changed, msix_only);
        assert!(config.msix_enabled() && config.msix_masked() && !config.msi_enabled());
        assert!(config.write(u64::from(msi) + 2, &[1]).msi && config.msi_enabled());
        assert!(config.write(4, &[0xFF, 0xFF]).command);
        assert!(config.memory_enabled() && config.bus_master() && config.io_enabled());
        assert!(config.intx_disabled());
        assert_eq!(config.write(4, &[0xFF, 0xFF]), Changed::default());
        config.reset();
        assert!(!config.msix_enabled() && !config.memory_enabled());
        let full = config.add_capability(9, &[0; 0xC0], &[]);
        assert!(matches!(full, Err(ConfigError::Full { .. })));
        assert_eq!(config.add_msi(3), Err(ConfigError::Vectors { vectors: 3 }));
    }

    proptest! {
        /// Any access at any place is as bytes one by one, and changes nothing that is fixed.
        #[test]
        fn an_access_of_any_width_is_its_bytes(
            writes in proptest::collection::vec((0u64..300, proptest::collection::vec(any::<u8>(), 0..9)), 0..20),
        ) {
            let (mut whole, mut single) = (config(), config());
            let fixed = whole.clone();
            for (at, bytes) in writes {
                whole.write(at, &bytes);
                for (at, byte) in (at..).zip(bytes) {
                    single.write(at, &[byte]);
                }
            }
            prop_assert_eq!(whole.bytes(), single.bytes());
            for at in 0..BYTES {
                let kept = !whole.writable[at];
                prop_assert_eq!(whole.bytes[at] & kept, fixed.bytes[at] & kept);
            }
        }
    }
}
