//! A device of memory, a register block, and interrupts; and where it is served.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use linkspan_engine::Server;
use linkspan_engine::vfio_user::{Connection, Device, Event, Guest, Refused, serve};
use linkspan_mem::{GuestMemory, Iova, Region as Memory};
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{Listener, PeerMemory};
use linkspan_testkit::census::settled;
use linkspan_vfio::pci::{INTX, IRQS, MSIX};
use linkspan_vfio::wire::{IRQ_AUTOMASKED, IRQ_EVENTFD, IRQ_MASKABLE};
use linkspan_vfio::{Capabilities, Irq, Offer, Region};

/// Bytes of its memory.
pub(crate) const BYTES: u64 = 0x4000;
/// Writing an address here copies 14 bytes from there to the begin of its memory.
pub(crate) const COPY: u64 = 0;
/// Writing here keeps the guest's memory as it is now.
pub(crate) const HOLD: u64 = 8;
/// Writing a kind and a number here has an interrupt happen; a number with bit 31 holds
/// the line up, or lets it down.
pub(crate) const RAISE: u64 = 16;

/// Writing an address here does the same by messages; then it writes these bytes, backwards,
/// behind where they were. What the client refuses is an error at the begin of its memory.
pub(crate) const FETCH: u64 = 24;

pub(crate) struct Ram {
    file: PeerMemory,
    memory: Memory,
    held: Vec<Arc<GuestMemory>>,
    /// The question that waits, and the address that it is about.
    asked: Option<(u16, u64)>,
}

impl Ram {
    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd::create("device", BYTES, Sealing::Fixed)?;
        let file = PeerMemory::check(file).map_err(io::Error::other)?;
        let mapping = file.map(0, BYTES, None).map_err(io::Error::other)?;
        Ok(Self {
            memory: Memory::new(Arc::new(mapping)),
            file,
            held: Vec::new(),
            asked: None,
        })
    }
}

impl Device for Ram {
    fn offer(&self) -> Offer {
        let mut irqs = vec![Irq::default(); IRQS];
        irqs[INTX as usize] = Irq {
            count: 1,
            flags: IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED,
        };
        irqs[MSIX as usize] = Irq {
            count: 4,
            flags: IRQ_EVENTFD,
        };
        Offer {
            regions: vec![Region::mapped(BYTES), Region::of(4096)],
            irqs,
            reset: true,
            dma_maps: 16,
            planes: false,
        }
    }

    fn read(
        &mut self,
        _guest: &mut Guest,
        region: u32,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), Refused> {
        if region != 0 {
            return Err(Refused::invalid("registers that cannot be read"));
        }
        let slice = self.memory.slice(offset, target.len() as u64);
        slice.map_err(|_| Refused::invalid("outside"))?.read(target);
        Ok(())
    }

    fn write(
        &mut self,
        guest: &mut Guest,
        region: u32,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Refused> {
        let word = |at: usize| {
            let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
            word.map_or(0, |word| u32::from_ne_bytes(*word))
        };
        match (region, offset) {
            (0, offset) => {
                let slice = self.memory.slice(offset, bytes.len() as u64);
                slice.map_err(|_| Refused::invalid("outside"))?.write(bytes);
            }
            (_, COPY) => {
                let mut copy = [0; 14];
                let address = u64::from(word(0)) | u64::from(word(4)) << 32;
                let read = guest.memory.read(Iova(address), &mut copy);
                read.map_err(|_| Refused::invalid("not in the guest's memory"))?;
                self.memory.slice(0, 14).unwrap().write(&copy);
            }
            (_, FETCH) => {
                let address = u64::from(word(0)) | u64::from(word(4)) << 32;
                let asked = guest.ask_read(Iova(address), 14);
                let id = asked.map_err(|_| Refused::invalid("not the guest's memory"))?;
                self.asked = Some((id, address));
            }
            (_, HOLD) => self.held.push(Arc::clone(guest.memory.space())),
            (_, RAISE) => {
                let (index, number) = (word(0), word(4));
                match number & 0x8000_0000 {
                    0 => guest.interrupts.raise(index, number),
                    _ => guest.interrupts.hold(index, 0, number & 1 != 0),
                };
            }
            _ => return Err(Refused::invalid("no register")),
        }
        Ok(())
    }

    fn region_fd(&mut self, _region: u32) -> io::Result<OwnedFd> {
        linkspan_mem::fault::point(linkspan_mem::fault::Site::Fd).map_err(io::Error::other)?;
        self.file.as_fd().try_clone_to_owned()
    }

    fn reset(&mut self, _guest: &mut Guest) -> Result<(), Refused> {
        self.memory.slice(0, BYTES).unwrap().clear();
        Ok(())
    }

    fn told(&mut self, guest: &mut Guest, id: u16, result: Result<Vec<u8>, u32>) {
        // A write has no bytes.
        let read = self.asked.take_if(|(asked, _)| *asked == id);
        let bytes = result.and_then(|mut bytes| {
            if let Some((_, address)) = read {
                let copy = bytes.clone();
                bytes.reverse();
                let written = guest.ask_write(Iova(address + 14), &bytes);
                written.map_err(|_| u32::MAX)?;
                return Ok(copy);
            }
            Ok(bytes)
        });
        let bytes = bytes.unwrap_or_else(|errno| errno.to_ne_bytes().to_vec());
        let len = bytes.len() as u64;
        self.memory.slice(0, len).unwrap().write(&bytes);
    }

    fn disconnected(&mut self) {
        self.asked = None;
        self.held.clear();
    }
}

/// A device that is served.
pub(crate) struct Served {
    folder: tempfile::TempDir,
    reasons: Arc<Mutex<Vec<String>>>,
    _server: Server,
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::of(Ram::new().unwrap())
    }

    pub(crate) fn of(device: impl Device + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reasons: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&reasons);
        let listener = Listener::bind(&folder.path().join("s")).unwrap();
        let report = move |event| {
            if let Event::Ended { reason, .. } = event {
                kept.lock().unwrap().push(reason);
            }
        };
        let server = serve(Inherited::Listener(listener), device, report);
        Self {
            folder,
            reasons,
            _server: server.unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub(crate) fn connect(&self) -> Connection {
        self.connect_with(Capabilities {
            msg_fds: 8,
            ..Capabilities::default()
        })
    }

    pub(crate) fn connect_with(&self, wish: Capabilities) -> Connection {
        // The system keeps only so many waiting.
        let mut connection = None;
        let came = settled(|| {
            connection = Connection::open(&self.path(), wish).ok();
            connection.is_some()
        });
        assert!(came, "nobody listens");
        connection.expect("it came")
    }

    /// Why links have ended.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let reasons = || self.reasons.lock().unwrap().clone();
        settled(|| !reasons().is_empty());
        reasons()
    }
}
