//! qcow2 images, made and checked by QEMU's own tools.

mod qemu;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::image::qcow2::{HeaderError, Qcow2Error};
use linkspan_backends::image::{Image, OpenError, Operation, Qcow2Image, ResizeError};
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::{Disk, Io, Options, Served};

use qemu::{Rig, img, img_fails, missing, pattern, raw_of, without_children};

const SIZE: usize = 8 << 20;

fn open(path: &Path) -> Qcow2Image {
    open_allowing(path, &[]).unwrap()
}

fn open_allowing(path: &Path, allowed: &[PathBuf]) -> Result<Qcow2Image, Qcow2Error> {
    without_children(|| Qcow2Image::open(path, false, Duration::ZERO, allowed))
}

/// A folder with a raw file of known content and a qcow2 image of the same.
fn converted(options: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("raw"), folder.path().join("image"));
    fs::write(&raw, pattern(SIZE, 1)).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    img(convert
        .iter()
        .chain(options)
        .map(Path::new)
        .chain([&*raw, &*image]));
    (folder, image)
}

#[test]
fn every_byte_is_that_which_qemu_reads_and_writes() {
    if missing("every_byte_is_that_which_qemu_reads_and_writes") {
        return;
    }
    for options in [
        &[][..],
        &["-c"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=4k"],
        &["-o", "cluster_size=2M"],
        &["-o", "refcount_bits=1"],
    ] {
        let (folder, path) = converted(options);
        let mut want = pattern(SIZE, 1);
        let image = open(&path);
        assert_eq!(image.len(), SIZE as u64);
        let mut rig = Rig::new(&image);
        assert!(rig.read(0, SIZE) == want, "{options:?}");
        // Parts of clusters, whole ones, and across several.
        for (at, len) in [
            (512, 512),
            (65536, 65536),
            (1 << 20, 3 << 20),
            (SIZE - 512, 512),
        ] {
            let bytes = pattern(len, 2);
            rig.write(at, &bytes, at == 512);
            want[at..at + len].copy_from_slice(&bytes);
        }
        for (at, len, unmap) in [(4 << 20, 1 << 20, true), ((5 << 20) + 512, 1 << 20, false)] {
            rig.run(Operation::WriteZeroes {
                offset: at as u64,
                len: len as u64,
                unmap,
                durable: false,
            });
            want[at..at + len].fill(0);
        }
        assert!(rig.read(0, SIZE) == want, "{options:?}");
        rig.run(Operation::Flush);
        drop((rig, image));
        img([
            Path::new("check"),
            Path::new("-f"),
            Path::new("qcow2"),
            &path,
        ]);
        assert!(raw_of(&path, folder.path()) == want, "{options:?}");
    }
}

#[test]
fn what_is_discarded_is_given_back_and_does_not_come_again() {
    if missing("what_is_discarded_is_given_back_and_does_not_come_again") {
        return;
    }
    let (folder, path) = converted(&[]);
    let image = open(&path);
    assert_eq!(image.discard_granularity(), 65536);
    let held = || fs::metadata(&path).unwrap().blocks() * 512;
    let before = held();
    let mut rig = Rig::new(&image);
    rig.run(Operation::Discard {
        offset: 65536,
        len: 4 << 20,
    });
    rig.run(Operation::Flush);
    assert!(rig.read(65536, 4 << 20).iter().all(|byte| *byte == 0));
    assert!(held() < before, "{} bytes of {before} are held", held());
    // Storage that was freed is used again.
    let bytes = pattern(2 << 20, 3);
    rig.write(0, &bytes, false);
    drop((rig, image));
    img([
        Path::new("check"),
        Path::new("-f"),
        Path::new("qcow2"),
        &path,
    ]);
    let mut want = pattern(SIZE, 1);
    want[65536..65536 + (4 << 20)].fill(0);
    want[..2 << 20].copy_from_slice(&bytes);
    assert!(raw_of(&path, folder.path()) == want);
}

/// As a virtual machine uses it: several queues, many requests at a time.
#[test]
fn queues_share_an_image_that_is_served() {
    if missing("queues_share_an_image_that_is_served") {
        return;
    }
    let (folder, path) = converted(&[]);
    let served = Served::image_of(Arc::new(open(&path)), 2);
    let mut disk = Disk::bring_up(served.connect(), &Options::default(), 2, 64).unwrap();
    let mut want = pattern(SIZE, 1);
    let chunk = 16 << 10;
    for round in 0..SIZE / chunk / 16 {
        for (ring, offset) in [(0, 0), (1, 8)] {
            for request in 0..8 {
                let at = (round * 16 + offset + request) * chunk;
                let sector = (at / SECTOR) as u64;
                let data = pattern(chunk, 9);
                disk.rings[ring].submit(Io::Write {
                    sector,
                    data: &data,
                });
                want[at..at + chunk].copy_from_slice(&data);
            }
        }
        for ring in &mut disk.rings {
            for _ in 0..8 {
                assert_eq!(ring.wait().status, 0);
            }
        }
    }
    assert_eq!(disk.rings[1].request(Io::Discard(&[(0, 256, 0)])).status, 0);
    want[..256 * SECTOR].fill(0);
    disk.rings[0].flush();
    for sector in [0, 255, 256, 9999] {
        let at = sector * SECTOR;
        let read = disk.rings[1].read(sector as u64, SECTOR);
        assert_eq!(read, want[at..at + SECTOR], "{sector}");
    }
    disk.shut_down();
    let resized = served.block_device().resize();
    assert!(matches!(resized, Err(ResizeError::Fixed)));
    served.stop();
    img([
        Path::new("check"),
        Path::new("-f"),
        Path::new("qcow2"),
        &path,
    ]);
    assert!(raw_of(&path, folder.path()) == want);
}

#[test]
fn qemu_and_we_exclude_each_other() {
    if missing("qemu_and_we_exclude_each_other") {
        return;
    }
    let (_folder, path) = converted(&[]);
    let image = open(&path);
    let resize = [
        Path::new("resize"),
        Path::new("-f"),
        Path::new("qcow2"),
        &path,
        Path::new("16M"),
    ];
    assert!(img_fails(resize).contains("lock"));
    let again = open_allowing(&path, &[]).unwrap_err();
    assert!(
        matches!(again, Qcow2Error::File(OpenError::InUse { .. })),
        "{again}"
    );
    drop(image);
    img(resize);
    assert_eq!(open(&path).len(), 16 << 20);
}

#[test]
fn read_only_images_are_never_written() {
    if missing("read_only_images_are_never_written") {
        return;
    }
    let (_folder, path) = converted(&[]);
    let before = fs::read(&path).unwrap();
    let image = Qcow2Image::open(&path, true, Duration::ZERO, &[]).unwrap();
    assert!(image.read_only());
    let mut rig = Rig::new(&image);
    assert!(rig.read(0, SIZE) == pattern(SIZE, 1));
    let (offset, len) = (0, 65536);
    assert!(rig.try_run(Operation::Discard { offset, len }).is_err());
    drop((rig, image));
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn what_is_not_served_says_why() {
    if missing("what_is_not_served_says_why") {
        return;
    }
    let (folder, _) = converted(&[]);
    let path = folder.path().join("odd");
    let reason = |options: &[&str]| {
        let _ = fs::remove_file(&path);
        let create = ["create", "-q", "-f", "qcow2"].iter().chain(options);
        img(create.map(Path::new).chain([&*path, Path::new("1M")]));
        match open_allowing(&path, &[]) {
            Err(Qcow2Error::Header { source, .. }) => source,
            other => panic!("{options:?}: {other:?}"),
        }
    };
    let error = reason(&["-o", "extended_l2=on"]);
    assert!(error.to_string().contains("extended L2"), "{error}");
    let secret = [
        "--object",
        "secret,id=s,data=x",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s",
    ];
    assert!(matches!(reason(&secret), HeaderError::Encrypted(2)));
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let error = open_allowing(&path, &[]).unwrap_err();
    assert!(error.to_string().contains("no qcow2 image"), "{error}");
    fs::write(&path, b"QFI").unwrap();
    assert!(open_allowing(&path, &[]).is_err());
    let missing = open_allowing(&folder.path().join("none"), &[]).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}
