//! QEMU's standard VGA without its ports: video memory in the first base address, registers
//! in the third.

use std::io;
use std::os::fd::OwnedFd;

use linkspan_devices::bochs::{self, Bochs, Written};
use linkspan_display::Layout;
use linkspan_display::decode::{self, bochs::BochsError};
use linkspan_engine::vfio_user::Refused;
use linkspan_vfio::Region;
use linkspan_vfio::pci::{Bar, Config, Identity};

use super::super::hub::Hub;
use super::video::Video;
use super::{BAR0, BAR2, DisplayError, Part, show_one};

/// The device.
pub(super) struct Standard {
    registers: Bochs,
    video: Video,
}

impl Standard {
    pub(super) fn offer(memory: u64) -> Result<(Config, Box<dyn Part>), DisplayError> {
        let mut config = Config::new(&Identity {
            vendor: 0x1234,
            device: 0x1111,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x1100,
            // From 2 on drivers look for the extension of the registers.
            revision: 2,
            // A display that is no VGA: it has no ports.
            class: 0x03_80_00,
            pin: 0,
        });
        let size = u32::try_from(memory).map_err(|_| DisplayError::Memory { memory })?;
        let prefetch = true;
        config.add_bar(0, Bar::Memory32 { size, prefetch })?;
        let (size, prefetch) = (4096, false);
        config.add_bar(2, Bar::Memory32 { size, prefetch })?;
        let part = Self {
            registers: Bochs::new(memory),
            video: Video::new(memory)?,
        };
        Ok((config, Box::new(part)))
    }

    /// Does what registers that were written ask for.
    fn written(&self, hub: &Hub, written: Written) {
        if let (true, Ok(Some(layout))) = (written.clears, self.layout()) {
            let start = layout.surface().offset;
            self.video.clear(start, layout.end().saturating_sub(start));
        }
        if written.shows {
            self.show(hub);
        }
    }

    /// What the registers show; nothing for a screen that is off.
    fn layout(&self) -> Result<Option<Layout>, BochsError> {
        decode::bochs::decode(self.registers.registers(), self.video.len())
    }
}

impl Part for Standard {
    fn regions(&self, regions: &mut [Region]) {
        regions[BAR0 as usize] = Region::mapped(self.video.len());
        regions[BAR2 as usize] = Region::of(bochs::BYTES);
    }

    fn read(&mut self, region: u32, offset: u64, target: &mut [u8]) -> Result<(), Refused> {
        match region {
            BAR0 => self.video.read(offset, target),
            BAR2 => self.registers.read(offset, target),
            _ => return Err(Refused::UNSUPPORTED),
        }
        Ok(())
    }

    fn write(&mut self, hub: &Hub, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        match region {
            BAR0 => self.video.write(offset, bytes),
            BAR2 => {
                let written = self.registers.write(offset, bytes);
                self.written(hub, written);
            }
            _ => return Err(Refused::UNSUPPORTED),
        }
        Ok(())
    }

    fn region_fd(&mut self, region: u32) -> io::Result<OwnedFd> {
        match region {
            BAR0 => self.video.fd(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn screen(&mut self, edid: &[u8], up: bool) {
        self.registers.set_edid(edid);
        self.registers.set_link(up);
    }

    fn show(&self, hub: &Hub) {
        let layout = match self.registers.is_shown() {
            true => self.layout().map_err(|error| error.to_string()),
            false => Ok(None),
        };
        show_one(hub, &self.video.memory, layout);
    }

    fn reset(&mut self, hub: &Hub) {
        self.registers.reset();
        self.show(hub);
    }
}
