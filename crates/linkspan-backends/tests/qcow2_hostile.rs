//! qcow2 images that somebody broke on purpose: errors by name, never a panic of
//! the process, a hang, or memory without bound.

mod qemu;

use std::fs;
use std::path::Path;
use std::time::Duration;

use linkspan_backends::image::{Image, Operation, Qcow2Image};

use qemu::{Rig, img, missing, pattern, without_children};

const SIZE: usize = 1 << 20;

/// Opens an image and uses all of it; whether it could be opened. What is read and
/// whether it can be written does not matter: that it ends does.
fn use_all(path: &Path) -> bool {
    let open = || Qcow2Image::open(path, false, Duration::ZERO, &[]);
    let Ok(image) = without_children(open) else {
        return false;
    };
    let len = usize::try_from(image.len()).unwrap_or(usize::MAX);
    let mut rig = Rig::new(&image);
    let places = [0, 4096, 65536, SIZE / 2, SIZE - 4096];
    for at in places.into_iter().filter(|at| at + 4096 <= len) {
        let _ = rig.try_read(at, 4096);
        let _ = rig.try_write(at, &pattern(4096, 3), false);
        let _ = rig.try_read(at, 4096);
    }
    if len >= SIZE {
        let (offset, len) = (65536, 4 * 65536);
        let _ = rig.try_run(Operation::Discard { offset, len });
        let _ = rig.try_run(Operation::WriteZeroes {
            offset: 512,
            len,
            unmap: true,
            durable: false,
        });
    }
    let _ = rig.try_run(Operation::Flush);
    true
}

/// A small image with its tables, some of its clusters, and one that is compressed.
fn image(folder: &Path, options: &[&str]) -> Vec<u8> {
    let (raw, path) = (folder.join("raw"), folder.join("image"));
    let mut bytes = pattern(SIZE, 1);
    bytes[SIZE / 4..].fill(0);
    bytes[..4096].fill(7);
    fs::write(&raw, bytes).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    img(convert
        .iter()
        .chain(options)
        .map(Path::new)
        .chain([&*raw, &*path]));
    fs::read(path).unwrap()
}

fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 33
    }
}

#[test]
fn every_broken_image_ends_in_errors_or_data() {
    if missing("every_broken_image_ends_in_errors_or_data") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken");
    let mut opened = 0;
    for options in [&[][..], &["-c"], &["-o", "cluster_size=4k"]] {
        let good = image(folder.path(), options);
        // Header, tables and counts lie among what is not data; find them by what
        // they hold: words that are not those of the pattern.
        let interesting: Vec<usize> = (0..good.len())
            .step_by(8)
            .filter(|at| good[*at..*at + 8] != [0; 8] && (*at < 1 << 9 || good[*at] & 0x3F == 0))
            .collect();
        let mut next = numbers(good.len() as u64);
        let mut pick = |below: usize| usize::try_from(next()).unwrap() % below;
        for _ in 0..120 {
            let mut bytes = good.clone();
            for _ in 0..1 + pick(3) {
                let at = interesting[pick(interesting.len())] + pick(8);
                bytes[at] = match pick(4) {
                    0 => 0xFF,
                    1 => 0,
                    2 => bytes[at] ^ 1 << pick(8),
                    _ => pick(256).to_le_bytes()[0],
                };
            }
            // Behind a cut there is nothing.
            if pick(8) == 0 {
                bytes.truncate(pick(good.len()));
            }
            fs::write(&path, &bytes).unwrap();
            opened += usize::from(use_all(&path));
        }
    }
    assert!(
        opened > 50,
        "most of them were refused at once: {opened} opened"
    );
}

/// Every word of the header in turn.
#[test]
fn every_field_of_the_header_may_be_anything() {
    if missing("every_field_of_the_header_may_be_anything") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let good = image(folder.path(), &[]);
    let path = folder.path().join("broken");
    for at in (0..112).step_by(4) {
        for word in [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x0001_0000_u32] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
            fs::write(&path, &bytes).unwrap();
            use_all(&path);
        }
    }
}

/// All tables point to the header, to themselves, or beyond every file.
#[test]
fn tables_that_point_anywhere_are_no_harm() {
    if missing("tables_that_point_anywhere_are_no_harm") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let good = image(folder.path(), &[]);
    let path = folder.path().join("broken");
    let word = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
    let index = |offset: u64| usize::try_from(offset).unwrap();
    let l1 = index(word(40));
    let l2 = index(word(l1) & 0x00FF_FFFF_FFFF_FE00);
    let counts = index(word(48));
    let block = index(word(counts));
    for target in [
        0,
        1,
        l1 as u64,
        l2 as u64,
        1 << 55,
        u64::MAX,
        1 << 63,
        3 << 62,
        1 << 62,
    ] {
        for table in [l1, l2, counts, block] {
            for flags in [0, 1 << 63] {
                let mut bytes = good.clone();
                for entry in 0..8 {
                    let at = table + 8 * entry;
                    bytes[at..at + 8].copy_from_slice(&(target | flags).to_be_bytes());
                }
                fs::write(&path, &bytes).unwrap();
                use_all(&path);
            }
        }
    }
}
