//! The screens of the kernel's sample devices, mdpy (a region) and mbochs (dma-bufs): every
//! pixel is known.

//: about screens of VFIO devices, by group, node, passed descriptor and running process
//: memory 384
//: limit 240

use std::fs;
use std::io::{BufReader, Cursor};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output};

use linkspan_backends::display::{
    Memory, Screen, Shown, Source, SourceError, Sysfs, Verdict, VfioError, VfioOptions, VfioSource,
    VfioSpec, Way,
};
use linkspan_display::edid;
use linkspan_display::{FourCc, Kind, Loss};
use linkspan_sys::vfio::{Call, Kernel as _, Linux};
use linkspan_testkit::lab::{self, Mdev};

mod mdevs;

use mdevs::{Machine, gradient, kernel};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn open(spec: &VfioSpec) -> Result<VfioSource, VfioError> {
    VfioSource::open(&kernel(), &Sysfs::default(), spec, VfioOptions::default())
}

fn program(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("display").args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// A picture that the program writes: its size, and its pixels as 0xRRGGBB.
fn shot(arguments: &[&str]) -> (u32, u32, Vec<u32>) {
    let all = [&["shot", "-o", "-"], arguments].concat();
    let output = program(&all);
    assert!(output.status.success(), "{}", said(&output));
    let decoder = png::Decoder::new(BufReader::new(Cursor::new(output.stdout)));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    let pixels = bytes[..info.buffer_size()].chunks_exact(3);
    let pixels = pixels.map(|rgb| u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]]));
    (info.width, info.height, pixels.collect())
}

/// The pixels of a plane, 64 by 64.
fn pixels(source: &mut VfioSource, shown: &Shown) -> Vec<u32> {
    let memory = source.memory(shown).unwrap();
    let reading = memory.reading().unwrap();
    let mut bytes = vec![0; 64 * 64 * 4];
    reading
        .read(shown.plane.surface.offset, &mut bytes)
        .unwrap();
    let (words, _) = bytes.as_chunks::<4>();
    let words = words.iter().map(|word| u32::from_le_bytes(*word));
    words.collect()
}

#[test]
fn mdpy_is_seen_by_its_name_its_group_and_its_node() {
    if !lab::guest("mdpy_is_seen_by_its_name_its_group_and_its_node") {
        return;
    }
    let mdev = Mdev::new("mdpy", "mdpy-vga");
    let (group, node) = (mdev.group(), mdev.node());
    for source in [
        mdev.uuid(),
        group.to_str().unwrap(),
        node.to_str().unwrap(),
        mdev.dir().to_str().unwrap(),
    ] {
        let (width, height, found) = shot(&[source]);
        assert_eq!((width, height), (640, 480), "{source}");
        assert!(found == gradient(), "{source}");
    }
    let output = program(&["show", mdev.uuid(), "--regions"]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for word in [
        "driver  mdpy",
        "XR24",
        "640x480",
        "stride 2560",
        "region  used",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(text.contains("aperture  no: not supported"), "{text}");
    let text = said(&program(&["list"]));
    assert!(
        text.contains(mdev.uuid()) && text.contains("mdpy-vga"),
        "{text}"
    );
    // One region is all that it has.
    let output = program(&["show", mdev.uuid(), "--way", "dma-buf"]);
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
}

#[test]
fn a_device_that_is_in_use_is_seen_through_its_process_alone() {
    if !lab::guest("a_device_that_is_in_use_is_seen_through_its_process_alone") {
        return;
    }
    let mdev = Mdev::new("mdpy", "mdpy-vga");
    let machine = Machine::new(&mdev);
    let output = program(&["show", mdev.group().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("pid:N"), "{}", said(&output));
    let process = format!("pid:{}", std::process::id());
    let fd = machine.device.as_raw_fd();
    let (_, _, found) = shot(&[&format!("{process}/{fd}")]);
    assert!(found == gradient());
    let text = said(&program(&["list"]));
    assert!(text.contains(&process), "{text}");
    // A passed descriptor, which the program inherits.
    let passed = machine.pass();
    rustix::io::fcntl_setfd(&passed, rustix::io::FdFlags::empty()).unwrap();
    let (_, _, found) = shot(&["--fd", &passed.as_raw_fd().to_string()]);
    assert!(found == gradient());
    let output = program(&["show", "--fd", "0"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = program(&["show", "pid:1"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
}

#[test]
fn mbochs_flips_between_buffers_each_asked_for_once() {
    if !lab::guest("mbochs_flips_between_buffers_each_asked_for_once") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-small");
    let machine = Machine::new(&mdev);
    let mut source = machine.source(None);
    assert!(source.planes().unwrap().is_empty(), "it is off");
    let painted = [machine.paint(64, 1), machine.paint(128, 2)];
    let mut ids = Vec::new();
    // A second request for an id would crash the kernel.
    for flip in 0..20 {
        let page = flip % 2;
        machine.show([64, 128][page]);
        let planes = source.planes().unwrap();
        assert_eq!(planes.len(), 1);
        let surface = &planes[0].plane.surface;
        assert_eq!(
            (surface.width, surface.height, surface.stride),
            (64, 64, 256)
        );
        assert_eq!(surface.format, FourCc::XRGB8888);
        assert!(
            pixels(&mut source, &planes[0]) == painted[page],
            "flip {flip}"
        );
        ids.push(planes[0].id);
    }
    assert!(ids[0] != ids[1] && ids[2..].iter().zip(&ids).all(|(a, b)| a == b));
    // What is written later is seen through the same mapping.
    machine.show(64);
    let planes = source.planes().unwrap();
    let painted = machine.paint(64, 3);
    assert!(pixels(&mut source, &planes[0]) == painted);
    machine.register(4, 0);
    assert!(source.planes().unwrap().is_empty());
}

/// Its registers say the same as its dma-bufs.
#[test]
fn mbochs_is_seen_by_its_registers_too() {
    if !lab::guest("mbochs_is_seen_by_its_registers_too") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-small");
    let machine = Machine::new(&mdev);
    let painted = machine.paint(100, 5);
    // Not at a page, so there is no dma-buf of it.
    machine.show(100);
    let mut source = machine.source(Some(Way::Registers));
    assert!(
        source
            .ways()
            .any(|(way, verdict)| way == Way::Registers && *verdict == Verdict::Used)
    );
    let planes = source.planes().unwrap();
    assert_eq!(planes[0].plane.surface.offset, 100 * 256);
    assert!(pixels(&mut source, &planes[0]) == painted);
    machine.register(4, 0);
    assert!(source.planes().unwrap().is_empty());
}

#[test]
fn mbochs_fails_the_first_query_of_a_mode_and_nobody_sees_it() {
    if !lab::guest("mbochs_fails_the_first_query_of_a_mode_and_nobody_sees_it") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-small");
    let machine = Machine::new(&mdev);
    machine.show(64);
    let first = machine.query().unwrap_err();
    assert_eq!(
        first.raw_os_error(),
        Some(rustix::io::Errno::NOMEM.raw_os_error())
    );
    assert_eq!(machine.query().unwrap().width, 64);
    let mut source = machine.source(None);
    machine.show(128);
    assert_eq!(source.planes().unwrap().len(), 1);
    // A buffer that nobody else asks for: the driver leaves it to be inherited.
    machine.show(192);
    let id = machine
        .query()
        .or_else(|_| machine.query())
        .unwrap()
        .index_or_id;
    let buffer = Linux.call(machine.device.as_fd(), Call::DmaBuf(id));
    let flags = rustix::io::fcntl_getfd(buffer.unwrap().unwrap()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let bad = Linux.call(machine.device.as_fd(), Call::DmaBuf(4711));
    let bad = bad.unwrap_err().raw_os_error();
    assert_eq!(bad, Some(rustix::io::Errno::NOENT.raw_os_error()));
}

#[test]
fn a_dma_buf_outlives_its_device() {
    if !lab::guest("a_dma_buf_outlives_its_device") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-small");
    let machine = Machine::new(&mdev);
    let painted = machine.paint(64, 7);
    machine.show(64);
    let mut source = machine.source(None);
    let shown = source.planes().unwrap()[0];
    let memory = source.memory(&shown).unwrap();
    drop(source);
    drop(machine);
    assert!(matches!(memory, Memory::DmaBuf(_)));
    let mut bytes = vec![0; 64 * 64 * 4];
    memory.reading().unwrap().read(0, &mut bytes).unwrap();
    let expected: Vec<u8> = painted
        .iter()
        .flat_map(|pixel| pixel.to_le_bytes())
        .collect();
    assert!(bytes == expected);
}

#[test]
fn what_another_process_has_is_looked_at_where_it_is_safe() {
    if !lab::guest("what_another_process_has_is_looked_at_where_it_is_safe") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-small");
    let machine = Machine::new(&mdev);
    let painted = machine.paint(64, 9);
    machine.show(64);
    let process = format!("pid:{}/{}", std::process::id(), machine.device.as_raw_fd());
    let output = program(&["shot", &process, "-o", "/tmp/never.png"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("--force"), "{}", said(&output));
    assert!(!Path::new("/tmp/never.png").exists());
    // This process asks for no dma-buf, so there is no second one.
    let (width, height, found) = shot(&[&process, "--force"]);
    assert_eq!((width, height), (64, 64));
    assert!(found == painted);
}

#[test]
fn a_guest_is_told_of_another_screen() {
    if !lab::guest("a_guest_is_told_of_another_screen") {
        return;
    }
    let mdev = Mdev::new("mbochs", "mbochs-medium");
    let machine = Machine::new(&mdev);
    let mut source = machine.source(None);
    let before = source.edid().unwrap().unwrap();
    assert_eq!((before.region.link, before.edid), (0, None));
    assert_eq!(
        (before.region.width_max, before.region.height_max),
        (1920, 1440)
    );
    source.resize(0, 1600, 900).unwrap();
    // What its driver reads.
    let mut bytes = [0; edid::BLOCK];
    machine
        .device
        .read_exact_at(&mut bytes, machine.offset(2))
        .unwrap();
    let read = edid::read(&bytes).unwrap();
    assert_eq!((read.mode.width, read.mode.height), (1600, 900));
    let after = source.edid().unwrap().unwrap();
    assert_eq!((after.region.link, after.edid), (1, Some(Ok(read))));
    let error = source.resize(0, 1921, 1080).unwrap_err();
    assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("1920x1440"), "{error}");
    let error = source.resize(1, 640, 480).unwrap_err();
    assert!(matches!(error, SourceError::Unsupported(_)), "{error}");
    let regions = source.regions().unwrap();
    let region = regions.iter().find(|region| region.kind() == Some((1, 1)));
    assert_eq!(region.unwrap().index, 9);
}

/// The kernel waits for whoever has a device open before it removes it.
#[test]
fn a_device_that_is_removed_is_let_go() {
    if !lab::guest("a_device_that_is_removed_is_let_go") {
        return;
    }
    let mdev = Mdev::new("mdpy", "mdpy-vga");
    let source = open(&VfioSpec::Name(mdev.uuid().into())).unwrap();
    let mut screen = Screen::new(Box::new(source), 0).unwrap();
    assert!(screen.look().unwrap().resized && screen.scene().is_some());
    let remove = mdev.dir().join("remove");
    let removal = std::thread::spawn(move || fs::write(remove, "1"));
    lab::await_true("the end of the device", || !mdev.dir().exists());
    assert!(screen.look().unwrap().resized);
    let why = screen.no_signal().unwrap().to_string();
    assert_eq!(why, Loss::Removed.to_string());
    removal.join().unwrap().unwrap();
    assert!(screen.scene().is_none());
}

#[test]
fn a_reset_is_told_once_and_the_picture_comes_back() {
    if !lab::guest("a_reset_is_told_once_and_the_picture_comes_back") {
        return;
    }
    let mdev = Mdev::new("mdpy", "mdpy-vga");
    let mut source = open(&VfioSpec::Path(mdev.node())).unwrap();
    let shown = source.planes().unwrap()[0];
    assert_eq!(shown.kind, Kind::Primary);
    source.reset().unwrap();
    let error = source.memory(&shown).unwrap_err();
    assert!(matches!(error, SourceError::Retired { .. }), "{error}");
    let error = source.planes().unwrap_err();
    assert!(matches!(error, SourceError::Lost(Loss::Reset)), "{error}");
    assert_eq!(source.planes().unwrap(), [shown]);
    source.memory(&shown).unwrap();
}
