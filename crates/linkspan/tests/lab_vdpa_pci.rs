//! Virtio PCI devices of QEMU as vDPA devices: of a type that we have no driver for,
//! with several queues, with memory that the kernel pins behind an IOMMU, and with a
//! page for each queue by which it is kicked.

//: about vDPA devices of hardware: entropy passed on, a disk of four queues driven
//: pack vdpa
//: memory 512
//: limit 300
//: machine q35,kernel-irqchip=split
//: qemu -device intel-iommu,snoop-control=on
//: qemu -device virtio-rng-pci,iommu_platform=on,disable-legacy=on
//: qemu -blockdev driver=null-co,size=67108864,node-name=n,read-zeroes=on
//: qemu -device virtio-blk-pci,drive=n,iommu_platform=on,disable-legacy=on,num-queues=4,packed=on,page-per-vq=on
//: append intel_iommu=on

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use linkspan_engine::vdpa::{BridgedDevice, Opener, PciDevice, VdpaError};
use linkspan_engine::{vfio_user, vhost_user};
use linkspan_mem::Gpa;
use linkspan_sys::Listener;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::socket::Inherited;
use linkspan_sys::vdpa::{Doorbell, KernelVdpa, Vdpa};
use linkspan_testkit::disk::room;
use linkspan_testkit::driven::{answered, ask};
use linkspan_testkit::lab;
use linkspan_testkit::{DiskRing, Driven, FrontEnd, Io, Options, SharedMemory, VirtioPci};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// A PCI device of this virtio type as a character device.
fn device(name: &str, kind: u32) -> PathBuf {
    let script = format!(
        ". /lab/functions.sh; vp_vdpa_add {name} {kind} >&2 && vdpa_bind {name} vhost_vdpa >&2 && vdpa_char {name}"
    );
    lab::run(Command::new("sh").args(["-c", &script]))
        .trim()
        .into()
}

fn linkspan(args: &[&str]) -> String {
    lab::run(Command::new(PROGRAM).args(args))
}

#[test]
fn entropy_runs_the_whole_way_through_the_bridge() {
    if !lab::guest("entropy_runs_the_whole_way_through_the_bridge") {
        return;
    }
    let node = device("rng0", 4);
    let shown = linkspan(&["vdpa", "show", node.to_str().unwrap()]);
    println!("{shown}");
    assert!(shown.contains("entropy (4)"));
    let open: Opener =
        Arc::new(move || Ok::<_, VdpaError>(Box::new(KernelVdpa::open(&node)?) as Box<dyn Vdpa>));
    let device = Arc::new(BridgedDevice::open(open, 0).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = Listener::bind(&socket).unwrap();
    let server = vhost_user::bridge(Inherited::Listener(listener), device, |event| {
        println!("{event:?}");
    });
    let server = server.unwrap();
    for _ in 0..2 {
        let mut front = FrontEnd::connect(&socket).unwrap();
        let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
        front.negotiate(&Options::default()).unwrap();
        front.share(std::slice::from_ref(&memory)).unwrap();
        let mut ring = DiskRing::new(&memory, 0, 8, front.features());
        front.start(&ring).unwrap();
        front.enable(0, true).unwrap();
        let mut seen = Vec::new();
        for _ in 0..20 {
            // To this device it is a request for bytes.
            ring.add(Io::GetId);
            ring.kick();
            let done = ring.wait();
            assert!(done.written > 0);
            seen.push(done.data);
        }
        seen.sort();
        seen.dedup();
        assert!(seen.len() > 15, "20 random bytes do not come again");
        front.stop(0).unwrap();
    }
    server.stop().unwrap();
}

#[test]
fn a_disk_of_four_queues_whose_memory_is_pinned() {
    if !lab::guest("a_disk_of_four_queues_whose_memory_is_pinned") {
        return;
    }
    let node = device("blk0", 2);
    let node = node.to_str().unwrap();
    println!("{}", linkspan(&["vdpa", "show", node]));
    let blk = ["driver", "blk", "--vdpa", node];
    let bench = ["bench", "--queues", "4", "--seconds", "1", "--json"];
    println!("{}", linkspan(&[&blk[..], &bench].concat()));
    println!("{}", linkspan(&[&blk[..], &["--packed", "info"]].concat()));
    rings_are_kicked_on_pages_of_the_device(node);
    rings_are_kicked_by_a_client_on_pages_of_the_device(node);
}

/// What was a PCI device is one again, and its own pages for kicks are in the client: a
/// virtual machine would have them in its guest.
fn rings_are_kicked_by_a_client_on_pages_of_the_device(node: &str) {
    let path = PathBuf::from(node);
    let open: Opener =
        Arc::new(move || Ok::<_, VdpaError>(Box::new(KernelVdpa::open(&path)?) as Box<dyn Vdpa>));
    let mut device = PciDevice::open(open, 64).unwrap();
    assert!(device.share_doorbells().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = Listener::bind(&socket).unwrap();
    let server = vfio_user::serve(Inherited::Listener(listener), device, |event| {
        println!("{event:?}");
    });
    let server = server.unwrap();
    let mut driver = VirtioPci::connect(&socket).unwrap();
    let (_, _, files) = driver.client.region(2).unwrap();
    let mut rings = driver.bring_up(4);
    for ring in &mut rings {
        let page = Doorbell::map(&files[0], ring.index()).unwrap();
        for sector in 0..100 {
            let len = 512;
            ring.add(Io::Read { sector, len });
            page.kick();
            assert_eq!(ring.wait().data, [0; 512]);
        }
    }
    drop((driver, files));
    server.stop().unwrap();
}

/// No call of the kernel is made for a kick, and none of the pages outlives its device.
fn rings_are_kicked_on_pages_of_the_device(node: &str) {
    let path = PathBuf::from(node);
    let open: Opener =
        Arc::new(move || Ok::<_, VdpaError>(Box::new(KernelVdpa::open(&path)?) as Box<dyn Vdpa>));
    let pages = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.ends_with(node)).count()
    };
    let mut driven = Driven::vdpa(open, 4).unwrap();
    assert_eq!(pages(), 4);
    for queue in &mut driven.queues {
        for number in 0..100 {
            ask(queue, number);
            assert_eq!(answered(queue), (number, vec![0; 512]));
        }
    }
    let Driven { queues, link } = driven;
    drop(link);
    assert_eq!(pages(), 0);
    drop(queues);
}
