//! A display that is served, and a client that stands for a guest and its monitor.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use linkspan_backends::display::{
    DisplayOptions, DisplayServer, GpuSource, Model, PciDisplay, Screen,
};
use linkspan_engine::Server;
use linkspan_engine::vfio_user::{Connection, ConnectionError, serve};
use linkspan_mem::Region;
use linkspan_sys::socket::Inherited;
use linkspan_sys::{Listener, PeerMemory};
use linkspan_testkit::census::settled;
use linkspan_vfio::Capabilities;
use linkspan_vfio::client::{Answer, Ask};

/// Bytes of video memory.
pub(crate) const MEMORY: u64 = 4 << 20;

pub(crate) struct Rig {
    folder: tempfile::TempDir,
    _viewers: DisplayServer,
    _server: Server,
}

impl Rig {
    pub(crate) fn new(model: Model) -> Self {
        let device = PciDisplay::new(DisplayOptions {
            model,
            mode: (640, 480),
            memory: MEMORY,
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listen = |name| Listener::bind(&folder.path().join(name)).unwrap();
        let viewers = DisplayServer::of_display(&device, listen("screen")).unwrap();
        let server = serve(Inherited::Listener(listen("vga")), device, |_| {}).unwrap();
        Self {
            folder,
            _viewers: viewers,
            _server: server,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn guest(&self) -> Guest {
        let wish = Capabilities {
            msg_fds: 8,
            write_multiple: true,
            gfx_plane: true,
            ..Capabilities::default()
        };
        Guest(Connection::open(&self.path("vga"), wish).unwrap())
    }

    /// A viewer on the device's socket for them.
    pub(crate) fn viewer(&self, head: u8) -> Screen {
        let source = GpuSource::connect(&self.path("screen")).unwrap();
        Screen::new(Box::new(source), head).unwrap()
    }
}

/// Looks until the screen is so.
#[track_caller]
pub(crate) fn until(screen: &mut Screen, what: &str, is: impl Fn(&Screen) -> bool) {
    let there = settled(|| {
        screen.look().unwrap();
        is(screen)
    });
    assert!(there, "{what}: {:?}", screen.no_signal());
}

/// The colour of a pixel.
pub(crate) fn pixel(screen: &Screen, x: u32, y: u32) -> Option<u32> {
    let frame = screen.scene()?.frame;
    let at = usize::try_from(y * frame.width() + x).unwrap();
    frame.pixels().get(at).map(|pixel| pixel & 0xFF_FFFF)
}

/// A client.
pub(crate) struct Guest(pub(crate) Connection);

impl Guest {
    pub(crate) fn write(
        &mut self,
        region: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ConnectionError> {
        let write = Ask::Write {
            region,
            offset,
            bytes,
        };
        self.0.ask(&write, &[]).map(drop)
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, count: u32) -> Vec<u8> {
        let read = Ask::Read {
            region,
            offset,
            count,
        };
        match self.0.ask(&read, &[]).unwrap().0 {
            Answer::Bytes(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn word(&mut self, region: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(region, offset, 4).try_into().unwrap())
    }

    /// Memory of a region, mapped as a monitor does.
    pub(crate) fn map(&mut self, index: u32) -> Region {
        let room = 4096;
        let (_, fds) = self.0.ask(&Ask::Region { index, room }, &[]).unwrap();
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        let file = PeerMemory::check(fd).unwrap();
        assert!(file.sealed_shrink());
        let mapping = file.map(0, file.file_len(), None).unwrap();
        Region::new(std::sync::Arc::new(mapping))
    }

    /// Registers of a Bochs display, one by one.
    pub(crate) fn dispi(&mut self, registers: &[(u64, u16)]) {
        for (index, value) in registers {
            self.write(2, 0x500 + 2 * index, &value.to_le_bytes())
                .unwrap();
        }
    }

    /// A mode of 32 bits a pixel, as bochs-drm sets it.
    pub(crate) fn mode(&mut self, width: u16, height: u16) {
        self.write(2, 0x402, &[1]).unwrap();
        self.read(2, 0x41A, 1);
        self.write(2, 0x400, &[0x20]).unwrap();
        let first = [(4, 0), (3, 32), (1, width), (2, height), (5, 0), (6, width)];
        self.dispi(&first);
        self.dispi(&[
            (7, 0x1000),
            (8, 0),
            (9, 0),
            (4, 0x41),
            (6, width),
            (8, 0),
            (9, 0),
        ]);
    }
}

/// Draws one pixel.
pub(crate) fn draw(memory: &Region, offset: u64, colour: u32) {
    memory
        .slice(offset, 4)
        .unwrap()
        .write(&colour.to_le_bytes());
}
