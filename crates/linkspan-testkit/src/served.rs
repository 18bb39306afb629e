//! A device served by this process on a socket in a folder of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{Image, OpenOptions, RawImage, ResizeError};
use linkspan_engine::vdpa::{BridgedDevice, PciDevice, VdpaError};
use linkspan_engine::vhost_user::{self, Event};
use linkspan_engine::{Device, Server, Workers, vfio_user};
use linkspan_sys::Listener;
use linkspan_sys::socket::Inherited;
use tempfile::TempDir;

use crate::PATIENCE;
use crate::disk::{Disk, SECTOR};
use crate::front_end::{FrontEnd, Options};
use crate::gated::GatedImage;
use crate::vdpa::Machine;

/// Sectors of the disk that is served.
pub const SECTORS: u64 = 4096;

/// A device that is being served, with all events since its start.
#[derive(Debug)]
pub struct Served {
    server: Option<Server>,
    disk: Option<Arc<BlockDevice>>,
    events: Receiver<Event>,
    // Last: sockets in it go before it does.
    folder: TempDir,
}

impl Served {
    /// Serves a disk of [`SECTORS`] sectors with queues of up to 1024 entries on two workers. Sector
    /// `n` holds [`content`] of `n`.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn disk(queues: u16) -> Self {
        let workers = Arc::new(Workers::new(2).expect("workers"));
        Self::disk_on(workers, queues, |device| device)
    }

    /// The same disk on these workers, once it has been `changed`.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn disk_on(
        workers: Arc<Workers>,
        queues: u16,
        changed: impl FnOnce(BlockDevice) -> BlockDevice,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        write_image(&path);
        let image = RawImage::open(&path, &OpenOptions::default()).expect("an image");
        let device = BlockDevice::new(Arc::new(image), queues, 1024).expect("a disk");
        let device = Arc::new(changed(device));
        let served = Self::device(folder, Arc::clone(&device) as Arc<dyn Device>, workers);
        Self {
            disk: Some(device),
            ..served
        }
    }

    /// Serves an image that keeps every operation until the test releases it.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn gated(queues: u16) -> (Self, Arc<GatedImage>) {
        let image = GatedImage::new(SECTORS);
        let served = Self::image_of(Arc::clone(&image) as Arc<dyn Image>, queues);
        (served, image)
    }

    /// Serves an image on two workers, with queues of up to 1024 entries.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn image_of(image: Arc<dyn Image>, queues: u16) -> Self {
        let device = BlockDevice::new(image, queues, 1024).expect("a disk");
        let folder = tempfile::tempdir().expect("a folder");
        let workers = Arc::new(Workers::new(2).expect("workers"));
        let device = Arc::new(device);
        let served = Self::device(folder, Arc::clone(&device) as Arc<dyn Device>, workers);
        Self {
            disk: Some(device),
            ..served
        }
    }

    /// Serves any device at the path `socket` in `folder`.
    ///
    /// # Panics
    /// When anything cannot be had.
    pub fn device(folder: TempDir, device: Arc<dyn Device>, workers: Arc<Workers>) -> Self {
        let listener = Listener::bind(&folder.path().join("socket")).expect("a socket");
        let (sender, events) = mpsc::channel();
        let report = move |event| {
            // Nobody has to listen.
            let _ = sender.send(event);
        };
        let source = Inherited::Listener(listener);
        let server = vhost_user::serve(source, device, workers, report).expect("a server");
        let served = Self {
            server: Some(server),
            disk: None,
            events,
            folder,
        };
        assert_eq!(served.next_event(), Event::Listening);
        served
    }

    /// Passes a vDPA device on at the path `socket` in a folder of its own.
    ///
    /// # Errors
    /// When the device cannot be had.
    ///
    /// # Panics
    /// When anything else cannot be had.
    pub fn bridge(machine: &Machine) -> Result<Self, VdpaError> {
        let device = Arc::new(BridgedDevice::open(machine.opener(), 0)?);
        let folder = tempfile::tempdir().expect("a folder");
        let listener = Listener::bind(&folder.path().join("socket")).expect("a socket");
        let (sender, events) = mpsc::channel();
        let report = move |event| {
            // Nobody has to listen.
            let _ = sender.send(event);
        };
        let source = Inherited::Listener(listener);
        let server = vhost_user::bridge(source, device, report).expect("a server");
        let served = Self {
            server: Some(server),
            disk: None,
            events,
            folder,
        };
        assert_eq!(served.next_event(), Event::Listening);
        Ok(served)
    }

    /// Shows a vDPA device as a function on a PCI bus at that path, as `changed`.
    ///
    /// # Errors
    /// When the device cannot be had.
    ///
    /// # Panics
    /// When anything else cannot be had.
    pub fn function(
        machine: &Machine,
        changed: impl FnOnce(&mut PciDevice),
    ) -> Result<Self, VdpaError> {
        let mut device = PciDevice::open(machine.opener(), 0)?;
        changed(&mut device);
        let folder = tempfile::tempdir().expect("a folder");
        let listener = Listener::bind(&folder.path().join("socket")).expect("a socket");
        let (sender, events) = mpsc::channel();
        let report = move |event| {
            // Nobody has to listen.
            let _ = sender.send(event);
        };
        let source = Inherited::Listener(listener);
        let server = vfio_user::serve(source, device, report).expect("a server");
        let served = Self {
            server: Some(server),
            disk: None,
            events,
            folder,
        };
        assert_eq!(served.next_event(), Event::Listening);
        Ok(served)
    }

    /// Where front ends connect.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// The image of the disk.
    pub fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// The disk that is served.
    ///
    /// # Panics
    /// When this is no disk.
    pub fn block_device(&self) -> &Arc<BlockDevice> {
        self.disk.as_ref().expect("a disk")
    }

    /// The server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs until it is dropped")
    }

    /// Gives the image another size, as its owner does, lets the disk look at it,
    /// and announces what changed.
    ///
    /// # Errors
    /// When the disk keeps its size.
    ///
    /// # Panics
    /// When this is no disk.
    pub fn resize(&self, bytes: u64) -> Result<Option<u64>, ResizeError> {
        let image = File::options().write(true).open(self.image());
        image
            .and_then(|image| image.set_len(bytes))
            .expect("room for an image");
        let size = self.block_device().resize()?;
        self.server().config_changed();
        Ok(size)
    }

    /// A new connection.
    ///
    /// # Panics
    /// When nobody listens.
    #[track_caller]
    pub fn connect(&self) -> FrontEnd {
        FrontEnd::connect(&self.socket()).expect("a connection")
    }

    /// A new connection with `rings` rings of 64 entries that run.
    ///
    /// # Panics
    /// When the back end refuses.
    #[track_caller]
    pub fn drive(&self, rings: u16) -> Disk {
        Disk::bring_up(self.connect(), &Options::default(), rings, 64).expect("a disk")
    }

    /// What happened next.
    ///
    /// # Panics
    /// When nothing does.
    #[track_caller]
    pub fn next_event(&self) -> Event {
        let event = self.events.recv_timeout(PATIENCE);
        event.expect("something happens to the link")
    }

    /// Drops what happened until now.
    pub fn forget_events(&self) {
        while self.events.try_recv().is_ok() {}
    }

    /// Waits for the end of the next connection that ends: why, and whether
    /// something was wrong.
    ///
    /// # Panics
    /// When none ends.
    #[track_caller]
    pub fn next_end(&self) -> (String, bool) {
        loop {
            if let Event::Ended { reason, fault, .. } = self.next_event() {
                return (reason, fault);
            }
        }
    }

    /// Serves the next front end as if nothing had happened: writes, reads back,
    /// and ends in order.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_serves(&self) {
        self.forget_events();
        let mut disk = self.drive(1);
        let last = SECTORS - 1;
        for data in [[0x5a; SECTOR].as_slice(), &content(last)] {
            disk.rings[0].write(last, data);
            assert_eq!(disk.rings[0].read(last, SECTOR), data);
        }
        disk.shut_down();
        let end = self.next_end();
        assert!(!end.1, "an orderly end is not a fault: {}", end.0);
    }

    /// Stops serving.
    ///
    /// # Panics
    /// When requests in flight do not end.
    #[track_caller]
    pub fn stop(mut self) {
        let server = self.server.take().expect("it runs until it is dropped");
        server.stop().expect("a clean stop");
        assert!(!self.socket().exists(), "the socket went with the server");
    }
}

/// What sector `number` of a fresh image holds.
pub fn content(number: u64) -> Vec<u8> {
    let words = 0..SECTOR as u64 / 8;
    let words = words.flat_map(|word| (number << 16 | word).to_le_bytes());
    words.collect()
}

/// Makes an image in which every sector is known.
///
/// # Panics
/// When the file cannot be written.
pub fn write_image(path: &Path) {
    let file = File::create(path).expect("an image");
    let bytes: Vec<u8> = (0..SECTORS).flat_map(content).collect();
    file.write_all_at(&bytes, 0).expect("room for an image");
}
