//! A disk served over vhost-user: its bytes, its answers, its configuration.

use std::fs;
use std::sync::Arc;

use linkspan_backends::block::BlockDevice;
use linkspan_backends::image::{OpenOptions, RawImage};
use linkspan_engine::Workers;
use linkspan_testkit::disk::{DATA_MAX, SECTOR};
use linkspan_testkit::served::{SECTORS, content, write_image};
use linkspan_testkit::{Disk, Io, Options, Served};
use linkspan_vhost::message::Request;

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;

const IOERR: u8 = 1;

#[test]
fn every_byte_is_read_and_every_write_is_in_the_image() {
    for without in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
        let served = Served::disk(2);
        let options = Options {
            without,
            ..Options::default()
        };
        let mut disk = Disk::bring_up(served.connect(), &options, 2, 64).unwrap();
        let step = DATA_MAX / SECTOR;
        let mut expected = Vec::new();
        for first in (0..SECTORS).step_by(step) {
            let old: Vec<u8> = (first..).take(step).flat_map(content).collect();
            let ring = usize::from(first % 64 == 0);
            assert_eq!(disk.rings[ring].read(first, DATA_MAX), old);
            let new: Vec<u8> = old.iter().map(|byte| !byte).collect();
            disk.rings[1 - ring].write(first, &new);
            expected.extend(new);
        }
        disk.rings[0].flush();
        disk.shut_down();
        assert!(fs::read(served.image()).unwrap() == expected);
        served.stop();
    }
}

#[test]
fn serial_number_is_padded_with_zeroes() {
    let served = Served::disk(1);
    let id = served.drive(1).rings[0].id();
    assert_eq!(id, b"linkspan\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn requests_outside_the_disk_are_refused_and_the_ring_goes_on() {
    let served = Served::disk(1);
    let mut disk = served.drive(1);
    let ring = &mut disk.rings[0];
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512] {
        let len = 2 * SECTOR;
        assert_eq!(ring.request(Io::Read { sector, len }).status, IOERR);
        let data = &[7; 2 * SECTOR];
        assert_eq!(ring.request(Io::Write { sector, data }).status, IOERR);
    }
    // A part of a sector is no request, wherever it is.
    for len in [1, SECTOR - 1, SECTOR + 1] {
        assert_eq!(ring.request(Io::Read { sector: 0, len }).status, IOERR);
    }
    assert_eq!(ring.read(SECTORS - 1, SECTOR), content(SECTORS - 1));
    disk.shut_down();
}

#[test]
fn read_only_disk_offers_itself_as_such_and_refuses_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    write_image(&path);
    let image = RawImage::open(
        &path,
        &OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    let device = BlockDevice::new(Arc::new(image), 1, 64).unwrap();
    let workers = Arc::new(Workers::new(1).unwrap());
    let served = Served::device(folder, Arc::new(device), workers);
    let mut disk = served.drive(1);
    assert_ne!(disk.front.features() & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    let write = Io::Write {
        sector: 0,
        data: &[7; SECTOR],
    };
    assert_eq!(disk.rings[0].request(write).status, IOERR);
    assert_eq!(disk.rings[0].read(0, SECTOR), content(0));
}

#[test]
fn configuration_space_says_capacity_and_queues() {
    let served = Served::disk(3);
    let disk = served.drive(1);
    let range = |offset: u32, size: u32| {
        let words = [offset, size, 0].map(u32::to_ne_bytes).concat();
        [words, vec![0; size as usize]].concat()
    };
    let reply = |offset, size| {
        let body = range(offset, size);
        disk.front.ask(Request::GetConfig, &body, &[]).unwrap()
    };
    assert_eq!(reply(0, 8)[12..], SECTORS.to_le_bytes());
    // num_queues (virtio 1.3 5.2.4).
    assert_eq!(reply(34, 2)[12..], 3u16.to_le_bytes());
    // Outside: an empty answer, and the link goes on.
    for (offset, size) in [(0, 257), (256, 1), (u32::MAX, 2), (0, 0)] {
        let body = if size > 256 {
            vec![0; 13]
        } else {
            range(offset, size)
        };
        let answer = disk.front.ask(Request::GetConfig, &body, &[]).unwrap();
        assert!(answer.is_empty(), "{size} bytes at {offset}");
    }
    disk.front.sync().unwrap();
}
