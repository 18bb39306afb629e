//! A picture whose pages lie anywhere: put together by one dma-buf where the machine makes
//! some, else refused by name.

use std::os::fd::{AsFd as _, OwnedFd};

use linkspan_backends::display::{Model, Screen, Script};
use linkspan_engine::vfio_user::ConnectionError;
use linkspan_mem::Iova;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::udmabuf;
use linkspan_vfio::DmaMap;
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::wire::{PLANE_DMABUF, errno};

use crate::rig::{Guest, Rig, until};

const PAGE: u64 = 4096;
/// Pages of the picture: 256 by 256 in tiles of X.
const PAGES: u64 = 64;
const HIGH: u64 = 4 << 30;

/// A screen of 256 by 256 in tiles of X at graphics page 16.
fn script(memory: &str, page: impl Fn(u64) -> u64) -> Script {
    let mut text = format!(
        "memory {memory}\nregister 0x70008 0x80000000\nregister 0x70180 0x84000400\n\
         register 0x70188 2\nregister 0x70190 0x00FF00FF\nregister 0x7019C 0x00010000\n"
    );
    for number in 0..PAGES {
        text += &format!("table {} {:#x}\n", 16 + number, page(number));
    }
    Script::parse(&text).unwrap()
}

/// Where page `number` of the picture is: every third one above 4 GiB, in no order.
fn place(number: u64) -> u64 {
    let high = if number.is_multiple_of(3) { HIGH } else { 0 };
    high + number * 37 % PAGES * PAGE
}

/// The colour of pixel `at` of a tile, which is a page: 128 by 8.
fn colour(page: u64, at: u64) -> u32 {
    u32::try_from((page << 12) | at).unwrap()
}

fn expected(x: u64, y: u64) -> u32 {
    colour(y / 8 * 2 + x / 128, y % 8 * 128 + x % 128)
}

fn tile(page: u64) -> Vec<u8> {
    (0..PAGE / 4)
        .flat_map(|at| colour(page, at).to_le_bytes())
        .collect()
}

pub(crate) fn shows(screen: &Screen) -> bool {
    let Some(scene) = screen.scene() else {
        return false;
    };
    let frame = scene.frame;
    let right = |(at, pixel): (usize, &u32)| {
        let at = at as u64;
        pixel & 0xFF_FFFF == expected(at % 256, at / 256)
    };
    (frame.width(), frame.height()) == (256, 256) && frame.pixels().iter().enumerate().all(right)
}

fn why(screen: &Screen) -> String {
    screen
        .no_signal()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn map(guest: &mut Guest, address: u64, file: &OwnedFd) {
    let map = DmaMap {
        address: Iova(address),
        size: PAGES * PAGE,
        offset: 0,
        readable: true,
        writable: true,
        shared: true,
    };
    guest.0.ask(&Ask::Map(map), &[file.as_fd()]).unwrap();
}

/// A display whose guest's memory is in two files, in which the picture is scattered.
pub(crate) fn served() -> (Rig, [OwnedFd; 2], Guest) {
    let rig = Rig::new(Model::Intel(Box::new(script("guest", place))));
    let mut guest = rig.guest();
    let files =
        ["low", "high"].map(|name| memfd::create(name, PAGES * PAGE, Sealing::Fixed).unwrap());
    map(&mut guest, 0, &files[0]);
    map(&mut guest, HIGH, &files[1]);
    for number in 0..PAGES {
        let at = place(number);
        let file = &files[usize::from(at >= HIGH)];
        rustix::io::pwrite(file, &tile(number), at % HIGH).unwrap();
    }
    (rig, files, guest)
}

/// Of a guest's memory a viewer sees the picture's pages alone.
#[test]
fn a_picture_scattered_over_a_guests_files_is_seen_as_one() {
    let (rig, files, mut guest) = served();
    let mut screen = rig.viewer(0);
    if let Err(error) = udmabuf::available() {
        println!("without /dev/udmabuf ({error}) it is refused by name");
        until(&mut screen, "the reason", |screen| {
            why(screen).starts_with("its pages are scattered, and there is no /dev/udmabuf")
        });
        return;
    }
    until(&mut screen, "the picture", shows);
    // What the guest draws is seen through the same buffer, by a second viewer too.
    rustix::io::pwrite(&files[1], &[0xAB; 4], place(0) % HIGH).unwrap();
    let mut second = rig.viewer(0);
    for screen in [&mut screen, &mut second] {
        until(screen, "the pixel", |screen| {
            crate::rig::pixel(screen, 0, 0) == Some(0xAB_ABAB)
        });
    }
    let (flags, kind) = (PLANE_DMABUF, 1);
    let query = Ask::QueryPlane { flags, kind };
    let Answer::Plane(plane) = guest.0.ask(&query, &[]).unwrap().0 else {
        panic!("no plane");
    };
    let id = plane.handle;
    assert!(guest.0.ask(&Ask::GetPlane { id }, &[]).is_ok());
    // Memory that goes takes the picture with it, and its id.
    let (address, size) = (Iova(HIGH), PAGES * PAGE);
    guest.0.ask(&Ask::Unmap { address, size }, &[]).unwrap();
    let got = guest.0.ask(&Ask::GetPlane { id }, &[]);
    let gone = ConnectionError::Refused {
        errno: errno::ENOENT,
    };
    assert_eq!(format!("{:?}", got.unwrap_err()), format!("{gone:?}"));
    until(&mut screen, "its end", |screen| {
        why(screen).contains("where the guest has no memory")
    });
    map(&mut guest, HIGH, &files[1]);
    rustix::io::pwrite(&files[1], &tile(0)[..4], place(0) % HIGH).unwrap();
    until(&mut screen, "the picture again", shows);
}

/// The device's own memory, in no order: the same.
#[test]
fn a_picture_scattered_over_the_devices_memory_is_seen_as_one() {
    let page = |number: u64| number * 37 % PAGES * PAGE;
    let rig = Rig::new(Model::Intel(Box::new(script("device", page))));
    let mut guest = rig.guest();
    let memory = guest.map(2);
    for number in 0..PAGES {
        let part = memory.slice(page(number), PAGE).unwrap();
        part.write(&tile(number));
    }
    let mut screen = rig.viewer(0);
    if udmabuf::available().is_err() {
        until(&mut screen, "the reason", |screen| {
            why(screen).starts_with("its pages are scattered, and there is no /dev/udmabuf")
        });
        return;
    }
    until(&mut screen, "the picture", shows);
}

#[test]
fn memory_that_a_monitor_could_take_back_is_no_dma_buf() {
    let rig = Rig::new(Model::Intel(Box::new(script("guest", place))));
    let mut guest = rig.guest();
    let mut screen = rig.viewer(0);
    for address in [0, HIGH] {
        let file = memfd::create("open", PAGES * PAGE, Sealing::Open).unwrap();
        map(&mut guest, address, &file);
    }
    until(&mut screen, "the reason", |screen| {
        why(screen).starts_with("its pages are in memory that is not sealed against shrinking")
    });
}
