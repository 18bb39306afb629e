//! Pictures as dma-bufs of /dev/udmabuf: those of a virtual GPU, which outlive it and its
//! process, and those whose pages a guest has scattered.

//: about pictures as dma-bufs of /dev/udmabuf, from our GPU and from scattered pages
//: limit 240

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are cut into words"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use linkspan_backends::display::{GpuSource, Memory, Screen, Source as _, SourceError};
use linkspan_sys::dmabuf::DmaBuf;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::udmabuf;
use linkspan_testkit::lab;

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "gpu/rig.rs"]
mod gpu_rig;
#[allow(dead_code, reason = "another test uses all of it")]
#[path = "pci_display/rig.rs"]
mod rig;
/// The same as elsewhere, and here the machine makes dma-bufs.
#[path = "pci_display/scattered.rs"]
mod scattered;

use gpu_rig::{Rig, ids, pattern};

/// B8G8R8X8, as Linux has it.
const XRGB: u32 = 2;
const SIZE: (u32, u32) = (200, 100);
const WHOLE: [u32; 4] = [0, 0, 200, 100];
const BYTES: usize = 80_000;
/// Says to a process of this program that it is the one with the GPU, and what that draws.
const CHILD: &str = "LINKSPAN_TEST_GPU_SEED";

/// Not a test of its own: a process that has a GPU until its standard input ends.
#[test]
fn a_process_with_a_gpu() {
    let Ok(seed) = std::env::var(CHILD) else {
        return;
    };
    let mut rig = Rig::new();
    let wanted = pattern(20_000, seed.parse().unwrap());
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, WHOLE);
    println!("\nsocket {}", rig.dir.path().join("s").display());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn start(seed: u32) -> (Child, GpuSource) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_with_a_gpu", "--nocapture"])
        .env(CHILD, seed.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let path = lines.find_map(|line| {
        let line = line.unwrap();
        line.strip_prefix("socket ").map(ToOwned::to_owned)
    });
    let source = GpuSource::connect(Path::new(&path.unwrap())).unwrap();
    (child, source)
}

fn bytes(pixels: &[u32]) -> Vec<u8> {
    let words = pixels.iter().flat_map(|pixel| pixel.to_le_bytes());
    words.collect()
}

fn read(buffer: &DmaBuf) -> Vec<u8> {
    let mut found = vec![0; BYTES];
    buffer.reading().unwrap().read(0, &mut found).unwrap();
    found
}

fn map(fd: OwnedFd) -> DmaBuf {
    DmaBuf::of_peer(fd, BYTES as u64)
        .map_err(|(error, _)| error)
        .unwrap()
}

#[test]
fn a_dma_buf_of_our_gpu_outlives_its_device_and_its_process() {
    if !lab::guest("a_dma_buf_of_our_gpu_outlives_its_device_and_its_process") {
        return;
    }
    udmabuf::available().unwrap();
    let (mut child, mut source) = start(7);
    let id = ids(&mut source).unwrap()[0];
    let buffer = map(source.descriptor(id, true).unwrap());
    let wanted = bytes(&pattern(20_000, 7));
    assert!(read(&buffer) == wanted);
    // Each question is another descriptor; the file that can only be read is still there.
    let second = source.descriptor(id, true).unwrap();
    assert!(source.descriptor(id, false).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(read(&buffer) == wanted);
    drop(buffer);
    assert!(read(&map(second)) == wanted);
    let error = source.descriptor(id, true).unwrap_err();
    assert!(!matches!(error, SourceError::Unsupported(_)), "{error}");
}

/// What is drawn afterwards is seen through a buffer from before, and an id that is not shown
/// any more is an error while its buffers are good.
#[test]
fn a_dma_buf_of_our_gpu_shows_what_is_drawn_later() {
    if !lab::guest("a_dma_buf_of_our_gpu_shows_what_is_drawn_later") {
        return;
    }
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.show(0, 1, WHOLE);
    let mut source = rig.source();
    let id = ids(&mut source).unwrap()[0];
    let buffer = map(source.descriptor(id, true).unwrap());
    for seed in 1..5 {
        let wanted = pattern(20_000, seed);
        rig.driver.draw(1, SIZE, 0, &wanted);
        assert!(read(&buffer) == bytes(&wanted), "{seed}");
    }
    rig.driver.show(0, 0, [0; 4]);
    rig.driver.done(0x102, &[1, 0]);
    let error = source.descriptor(id, true).unwrap_err();
    assert!(matches!(error, SourceError::Retired { .. }), "{error}");
    assert!(read(&buffer) == bytes(&pattern(20_000, 4)));
    drop(rig);
    assert!(read(&buffer) == bytes(&pattern(20_000, 4)));
}

/// A peer may give anything for one.
#[test]
fn a_dma_buf_is_told_from_other_files_without_asking_them() {
    if !lab::guest("a_dma_buf_is_told_from_other_files_without_asking_them") {
        return;
    }
    let file = memfd::create("guest", 8192, Sealing::Fixed).unwrap();
    let piece = |offset| udmabuf::Piece {
        file: file.as_fd(),
        offset,
        len: 4096,
    };
    let buffer = udmabuf::export_list(&[piece(4096), piece(0), piece(4096)]).unwrap();
    assert_eq!(DmaBuf::size(&buffer).unwrap(), 12288);
    let again = buffer.try_clone().unwrap();
    assert!(DmaBuf::of_peer(buffer, 12288).is_ok());
    // It is shorter than what its peer says.
    assert!(DmaBuf::of_peer(again, 16384).is_err());
    let plain = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(DmaBuf::of_peer(plain.into(), 4096).is_err());
}

/// Here it is no refusal that `scattered` finds.
#[test]
fn scattered_pages_are_seen_by_a_viewer_through_a_dma_buf() {
    if !lab::guest("scattered_pages_are_seen_by_a_viewer_through_a_dma_buf") {
        return;
    }
    udmabuf::available().unwrap();
    let (rig, _files, _guest) = scattered::served();
    let mut source = GpuSource::connect(&rig.path("screen")).unwrap();
    let shown = lab_shown(&mut source);
    assert!(matches!(source.memory(&shown).unwrap(), Memory::DmaBuf(_)));
    let mut screen = Screen::new(Box::new(source), 0).unwrap();
    rig::until(&mut screen, "the picture", scattered::shows);
}

/// The picture, once it is there.
fn lab_shown(source: &mut GpuSource) -> linkspan_backends::display::Shown {
    let mut found = None;
    let there = linkspan_testkit::census::settled(|| {
        found = source
            .planes()
            .ok()
            .and_then(|planes| planes.first().copied());
        found.is_some()
    });
    assert!(there, "no picture");
    found.unwrap()
}
