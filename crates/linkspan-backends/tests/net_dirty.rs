//! The dirty log of a guest that gets frames while it migrates: others fill its rings, so it is
//! other queues' passes that write to its memory. A copy that is brought up to date from
//! nothing but the log is right.

use std::os::fd::AsFd;
use std::sync::Arc;

use linkspan_backends::port::{Count, Fabric, Kind, Mode, NetDevice, PortOptions};
use linkspan_devices::net::features::VIRTIO_NET_F_MRG_RXBUF;
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{NetOptions, OFFLOADS, Speed};
use linkspan_engine::{Device, Workers};
use linkspan_mem::{DirtyLog, Gpa};
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use linkspan_testkit::{Options, Served, SharedMemory};
use linkspan_virtio::Features;

const PAGE: usize = 4096;

/// Frames of a round, for which there are buffers, however many each takes.
const FRAMES: u8 = 8;

fn serve(fabric: &Arc<Fabric>, workers: &Arc<Workers>, port: u16) -> Served {
    let options = NetOptions {
        mac: station(u8::try_from(port).unwrap() + 1),
        mtu: 1500,
        pairs: 1,
        queue_size: 256,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: false,
    };
    let device = NetDevice::new(fabric, port, options, Count::Pairs).unwrap();
    let device: Arc<dyn Device> = Arc::new(device);
    Served::device(tempfile::tempdir().unwrap(), device, Arc::clone(workers))
}

/// Copies the pages of the guest that are marked.
fn sync(log: &DirtyLog, memory: &SharedMemory, copy: &mut [u8]) {
    let first = memory.guest(0).0 / DirtyLog::PAGE;
    log.take(|page| {
        let at = usize::try_from(page - first).unwrap() * PAGE;
        copy[at..at + PAGE].copy_from_slice(&memory.read(at as u64, PAGE));
    });
}

#[track_caller]
fn copies_are_right(front: Options) {
    let workers = Arc::new(Workers::new(2).unwrap());
    let port = |name: &str| PortOptions {
        name: name.into(),
        kind: Kind::Guest { pairs: 1 },
        vlans: PortVlans::Unaware,
        mtu: 1500,
        limit: None,
    };
    let ports = vec![port("receiver"), port("sender")];
    let fabric = Fabric::new(Mode::Pair, ports, 2).unwrap();
    let _running = fabric.run(&workers).unwrap();
    let served = [0, 1].map(|port| serve(&fabric, &workers, port));
    // With buffers that may be merged a frame takes three.
    let merged = front.without & VIRTIO_NET_F_MRG_RXBUF.bits() == 0;
    let options = CardOptions {
        // The descriptors of a ring have a page, and what else is written of it another one.
        size: 256,
        slot_bytes: if merged { 600 } else { 2048 },
        front,
        ..CardOptions::default()
    };
    let mut card = Card::bring_up(&served[0].socket(), &options).unwrap();
    let mut sender = Card::bring_up(&served[1].socket(), &CardOptions::default()).unwrap();
    let memory = Arc::clone(card.pairs[0].memory());
    let whole = usize::try_from(memory.len()).unwrap();
    let bits = DirtyLog::len_for(Gpa(memory.guest(0).0 + memory.len() - 1));
    let file = SharedMemory::new(bits, Gpa(0), Sealing::Open);
    let log = DirtyLog::new(file.region().clone());
    card.front.set_log(file.as_fd(), file.len(), 0).unwrap();
    card.front.log_all(true).unwrap();
    card.pairs[0].log(&card.front).unwrap();
    let mut came = fabric.counts(0).unwrap().frames_out;
    // More rounds than the ring has room for without beginning anew.
    for round in 0..12 {
        // In this order: what is written in between is marked after it.
        log.take(|_| {});
        let mut copy = memory.read(0, whole);
        let frames = (0..FRAMES).map(|number| {
            let mark = round * FRAMES + number;
            frame(station(2), station(1), mark, 1400)
        });
        let frames: Vec<_> = frames.collect();
        for frame in &frames {
            sender.send(0, frame);
            sync(&log, &memory, &mut copy);
        }
        came += u64::from(FRAMES);
        let all = settled(|| {
            sync(&log, &memory, &mut copy);
            fabric.counts(0).unwrap().frames_out == came
        });
        assert!(all, "{:?}", fabric.counts(0));
        // The passes that filled the ring are over then.
        card.enable(0, false).unwrap();
        sync(&log, &memory, &mut copy);
        let now = memory.read(0, whole);
        let pages = now.chunks(PAGE).zip(copy.chunks(PAGE));
        let missed: Vec<_> = (0..)
            .zip(pages)
            .filter(|(_, (now, copy))| now != copy)
            .map(|(page, _)| memory.guest(page * DirtyLog::PAGE))
            .collect();
        assert!(missed.is_empty(), "changed and not marked: {missed:#x?}");
        card.enable(0, true).unwrap();
        let got: Vec<_> = frames.iter().map(|_| card.expect().1).collect();
        assert_eq!(got, frames);
    }
}

#[test]
fn a_copy_of_a_guest_that_gets_frames_is_right() {
    let (order, merge) = (Features::VIRTIO_F_IN_ORDER, VIRTIO_NET_F_MRG_RXBUF);
    for without in [Features::empty(), order, merge, order | merge] {
        for packed in [false, true] {
            copies_are_right(Options {
                packed,
                without: without.bits(),
                ..Options::default()
            });
        }
    }
}
