//! vfio-user with the crate `vfio_user` at the other end: its client drives our display,
//! and our client its server.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::thread;

use linkspan_backends::display::{
    DisplayOptions, DisplayServer, GpuSource, Model, PciDisplay, Screen,
};
use linkspan_engine::vfio_user::{Connection, ConnectionError, serve};
use linkspan_mem::Iova;
use linkspan_peers::VfioUserDisk;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::socket::Inherited;
use linkspan_sys::{EventFd, Listener, PeerMemory, View};
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::vdpa::{Machine, Quirks};
use linkspan_testkit::{Io, Served};
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::pci::{CONFIG, MSIX};
use linkspan_vfio::{Capabilities, DmaMap, IrqAction, IrqData, SetIrqs};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
    vfio_region_sparse_mmap_area,
};
use vfio_user::{
    Client, DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};

/// Registers of a Bochs display, one by one.
fn dispi(client: &mut Client, registers: &[(u64, u16)]) {
    for (index, value) in registers {
        client
            .region_write(2, 0x500 + 2 * index, &value.to_le_bytes())
            .unwrap();
    }
}

#[test]
fn its_client_drives_our_display() {
    let folder = tempfile::tempdir().unwrap();
    let listen = |name| Listener::bind(&folder.path().join(name)).unwrap();
    let device = PciDisplay::new(DisplayOptions {
        model: Model::Bochs,
        mode: (640, 480),
        memory: 4 << 20,
    });
    let device = device.unwrap();
    let viewers = DisplayServer::of_display(&device, listen("screen")).unwrap();
    let server = serve(Inherited::Listener(listen("vga")), device, |_| {}).unwrap();
    // Two, one after the other.
    for colour in [0x0011_2233u32, 0x0044_5566] {
        let mut client = Client::new(&folder.path().join("vga")).unwrap();
        let mut id = [0; 4];
        client.region_read(CONFIG, 0, &mut id).unwrap();
        assert_eq!(id, [0x34, 0x12, 0x11, 0x11]);
        let memory = client.region(0).unwrap();
        assert_eq!((memory.size, memory.sparse_areas.len()), (4 << 20, 1));
        assert_eq!(client.region(9).unwrap().size, 4096);
        let file = memory.file_offset.as_ref().unwrap().file();
        let file = PeerMemory::check(file.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let mapping = file.map(0, 4096, None).unwrap();
        // Its own memory, as a monitor has it, mapped and unmapped.
        let guest = memfd::create("guest", 1 << 20, Sealing::Fixed).unwrap();
        for _ in 0..3 {
            client.dma_map(0, 0, 1 << 20, guest.as_raw_fd()).unwrap();
            client.dma_unmap(0, 1 << 20).unwrap();
        }
        assert_eq!(client.get_irq_info(MSIX).unwrap().count, 0);
        client.reset().unwrap();
        client.region_write(2, 0x400, &[0x20]).unwrap();
        dispi(&mut client, &[(3, 32), (1, 320), (2, 200), (4, 0x41)]);
        let region = linkspan_mem::Region::new(std::sync::Arc::new(mapping));
        region.slice(0, 4).unwrap().write(&colour.to_le_bytes());
        let source = GpuSource::connect(&folder.path().join("screen")).unwrap();
        let mut screen = Screen::new(Box::new(source), 0).unwrap();
        let seen = settled(|| {
            screen.look().unwrap();
            let scene = screen.scene();
            scene.is_some_and(|scene| scene.frame.pixels()[0] & 0xFF_FFFF == colour)
        });
        assert!(seen, "{:?}", screen.no_signal());
        client.shutdown().unwrap();
    }
    server.stop().unwrap();
    drop(viewers);
}

/// A vDPA disk as a PCI device, driven by their client as by a virtual machine: twice, since
/// the device outlives its clients.
#[test]
fn its_client_drives_a_vdpa_disk() {
    let machine = Machine::disk(1, Quirks::default());
    let served = Served::function(&machine, |_| {}).unwrap();
    for round in 1..3 {
        let mut disk = VfioUserDisk::connect(&served.socket()).unwrap();
        let data = [round; SECTOR];
        let (sector, len) = (u64::from(round), SECTOR);
        let write = Io::Write {
            sector,
            data: &data,
        };
        assert_eq!(disk.request(write).unwrap().status, 0);
        let read = disk.request(Io::Read { sector, len }).unwrap();
        assert_eq!((read.status, &read.data[..]), (0, &data[..]));
        disk.leave().unwrap();
        let (reason, fault) = served.next_end();
        assert!(!fault, "{reason}");
    }
    served.stop();
    assert!(machine.is_empty());
}

/// A device of theirs: 4096 bytes of memory, and what it was told.
#[derive(Default)]
struct Theirs {
    memory: Vec<u8>,
    told: Vec<String>,
}

impl ServerBackend for Theirs {
    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.memory[start..start + data.len()]);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.memory[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let shared = fd.is_some();
        let flags = flags.bits();
        self.told
            .push(format!("map {flags} {offset} {address} {size} {shared}"));
        Ok(())
    }

    fn dma_unmap(&mut self, _flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.told.push(format!("unmap {address} {size}"));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.told.push("reset".into());
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        let fds = fds.len();
        self.told
            .push(format!("irqs {index} {flags:#x} {start} {count} {fds}"));
        Ok(())
    }
}

/// Their server for one connection; what it was told.
fn theirs(path: &Path) -> thread::JoinHandle<Vec<String>> {
    let memory = memfd::create("theirs", 4096, Sealing::Fixed).unwrap();
    let flags = VFIO_REGION_INFO_FLAG_READ
        | VFIO_REGION_INFO_FLAG_WRITE
        | VFIO_REGION_INFO_FLAG_MMAP
        | VFIO_REGION_INFO_FLAG_CAPS;
    let region = ServerRegion {
        region_info: vfio_region_info {
            argsz: 32,
            flags,
            index: 0,
            size: 4096,
            ..Default::default()
        },
        sparse_areas: vec![SparseArea {
            area: vfio_region_sparse_mmap_area {
                offset: 0,
                size: 4096,
            },
        }],
        mmap_fd: Some(memory.as_raw_fd()),
    };
    let irqs = (0..3).map(|index| IrqInfo {
        index,
        flags: VFIO_IRQ_INFO_EVENTFD,
        count: 2,
    });
    let server = Server::new(path, true, irqs.collect(), vec![region]).unwrap();
    thread::spawn(move || {
        let mut device = Theirs {
            memory: vec![0; 4096],
            told: Vec::new(),
        };
        server.run(&mut device).unwrap();
        drop(memory);
        device.told
    })
}

#[test]
fn our_client_drives_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("theirs");
    let server = theirs(&path);
    let wish = Capabilities {
        msg_fds: 8,
        write_multiple: true,
        gfx_plane: true,
        ..Capabilities::default()
    };
    let mut client = Connection::open(&path, wish).unwrap();
    // It has neither, and says so.
    let agreed = client.agreed().capabilities;
    assert!(!agreed.write_multiple && !agreed.gfx_plane);
    let Answer::Info(info) = client.ask(&Ask::Info, &[]).unwrap().0 else {
        panic!("no info");
    };
    assert_eq!((info.num_regions, info.num_irqs), (1, 3));
    let room = 4096;
    let (answer, fds) = client.ask(&Ask::Region { index: 0, room }, &[]).unwrap();
    let Answer::Region(info, _) = answer else {
        panic!("no region");
    };
    assert_eq!((info.size, fds.len()), (4096, 1));
    let fd = fds.into_iter().next().unwrap();
    View::of_peer(&PeerMemory::check(fd).unwrap(), 0, 4096).unwrap();
    let (region, offset) = (0, 16);
    let bytes = b"ours";
    client
        .ask(
            &Ask::Write {
                region,
                offset,
                bytes,
            },
            &[],
        )
        .unwrap();
    let count = 4;
    let (answer, _) = client
        .ask(
            &Ask::Read {
                region,
                offset,
                count,
            },
            &[],
        )
        .unwrap();
    assert_eq!(answer, Answer::Bytes(bytes.to_vec()));
    let guest = memfd::create("guest", 8192, Sealing::Fixed).unwrap();
    let map = DmaMap {
        address: Iova(0x1000),
        size: 8192,
        offset: 0,
        readable: true,
        writable: true,
        shared: true,
    };
    client.ask(&Ask::Map(map), &[guest.as_fd()]).unwrap();
    let (address, size) = (Iova(0x1000), 8192);
    client.ask(&Ask::Unmap { address, size }, &[]).unwrap();
    let event = EventFd::new().unwrap();
    let set = SetIrqs {
        index: MSIX,
        start: 1,
        count: 1,
        action: IrqAction::Trigger,
        data: IrqData::Events,
    };
    client.ask(&Ask::SetIrqs(&set), &[event.as_fd()]).unwrap();
    client.ask(&Ask::Reset, &[]).unwrap();
    // What it does not have is an answer.
    let nothing = client.ask(&Ask::Irq { index: 9 }, &[]);
    assert!(
        matches!(nothing, Err(ConnectionError::Refused { .. })),
        "{nothing:?}"
    );
    drop(client);
    let told = server.join().unwrap();
    assert_eq!(
        told,
        [
            "map 3 0 4096 8192 true",
            "unmap 4096 8192",
            "irqs 2 0x24 1 1 1",
            "reset"
        ]
    );
}
