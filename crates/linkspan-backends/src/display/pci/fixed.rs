//! A picture that never changes its place, as the kernel's sample mdpy: what it is stands
//! in a vendor's capability of configuration space.

use std::io;
use std::os::fd::OwnedFd;

use linkspan_display::decode::fixed;
use linkspan_display::{FourCc, Layout};
use linkspan_engine::vfio_user::Refused;
use linkspan_vfio::Region;
use linkspan_vfio::pci::{Bar, Config, Identity};

use super::super::hub::Hub;
use super::video::Video;
use super::{BAR0, DisplayError, Part, show_one};

/// The device.
pub(super) struct Fixed {
    layout: Layout,
    video: Video,
}

impl Fixed {
    pub(super) fn offer(
        (width, height): (u32, u32),
        memory: u64,
    ) -> Result<(Config, Box<dyn Part>), DisplayError> {
        let mut config = Config::new(&Identity {
            vendor: 0x1B36,
            device: 0x000F,
            subsystem_vendor: 0x1B36,
            subsystem: 0x000F,
            revision: 0,
            class: 0x03_80_00,
            pin: 0,
        });
        let size = u32::try_from(memory).map_err(|_| DisplayError::Memory { memory })?;
        let prefetch = true;
        config.add_bar(0, Bar::Memory32 { size, prefetch })?;
        let format = FourCc::XRGB8888;
        let mut body = vec![0];
        for word in [format.0, width, height] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        config.add_vendor(&body)?;
        let layout = fixed::mdpy(config.bytes(), memory);
        let layout = layout.map_err(|_| DisplayError::Picture {
            width,
            height,
            memory,
        })?;
        let video = Video::new(memory)?;
        Ok((config, Box::new(Self { layout, video })))
    }
}

impl Part for Fixed {
    fn regions(&self, regions: &mut [Region]) {
        regions[BAR0 as usize] = Region::mapped(self.video.len());
    }

    fn read(&mut self, region: u32, offset: u64, target: &mut [u8]) -> Result<(), Refused> {
        match region {
            BAR0 => self.video.read(offset, target),
            _ => return Err(Refused::UNSUPPORTED),
        }
        Ok(())
    }

    fn write(&mut self, _hub: &Hub, region: u32, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        match region {
            BAR0 => self.video.write(offset, bytes),
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

    fn show(&self, hub: &Hub) {
        show_one(hub, &self.video.memory, Ok(Some(self.layout)));
    }

    fn reset(&mut self, hub: &Hub) {
        self.video.clear(0, self.video.len());
        self.show(hub);
    }
}
