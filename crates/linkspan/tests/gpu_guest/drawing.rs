//! What draws in the guest: a program of it that uses the kernel's graphics as a desktop
//! does. It is this test program, which finds itself in a guest by an environment variable.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::dumbbuffer::DumbBuffer;
use drm::control::{Device as Control, connector, crtc};

use linkspan_testkit::census::settled;

use crate::bench::Guest;
use crate::pattern;

/// Where a guest's program finds its orders and leaves its answers, if it is one.
const ORDERS: &str = "LINKSPAN_DRAWING_ORDERS";
const ANSWERS: &str = "LINKSPAN_DRAWING_ANSWERS";
/// Pixels of a side of the pointer.
pub(crate) const SIDE: usize = 64;

/// The pointer's shape, multiplied by its opacity: opaque, half, and not there.
pub(crate) fn shape() -> Vec<u32> {
    let pixel = |at: usize| {
        let (x, y) = (at % SIDE, at / SIDE);
        let shade = u32::try_from(x * 2 + y).unwrap() & 0x7F;
        match (x + y) % 3 {
            0 => 0xFF00_0000 | shade << 17 | 0xC0 << 8 | shade,
            1 => 0x8000_0000 | shade << 16 | (0x7F - shade) << 8 | 0x40,
            _ => 0,
        }
    };
    (0..SIDE * SIDE).map(pixel).collect()
}

/// Tells the program in the guest what to do, which works.
#[track_caller]
pub(crate) fn order(guest: &mut Guest, line: &str) {
    let said = guest.run(&format!(
        "echo '{line}' >/tmp/orders; read answer </tmp/answers; echo \"$answer\""
    ));
    assert_eq!(said, "done", "{line}");
}

/// Starts the program in the guest.
pub(crate) fn start(guest: &mut Guest, program: &str) {
    guest.run(&format!(
        "mkfifo /tmp/orders /tmp/answers; {ORDERS}=/tmp/orders {ANSWERS}=/tmp/answers \
         {program} --exact drawing::in_the_guest >/tmp/drawing.log 2>&1 &"
    ));
}

#[derive(Debug)]
struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl Control for Card {}

/// The program: nothing outside a guest.
#[test]
fn in_the_guest() {
    let (Some(orders), Some(answers)) = (std::env::var_os(ORDERS), std::env::var_os(ANSWERS))
    else {
        return;
    };
    // A pipe with both its ends open does not end between two orders.
    let open = |path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    };
    let (orders, mut answers) = (open(orders), open(answers));
    let card = Card(open("/dev/dri/card0".into()));
    for line in BufReader::new(orders).lines() {
        let answer = match carry_out(&card, &line.unwrap()) {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("{error:?}"),
        };
        writeln!(answers, "{answer}").unwrap();
    }
}

#[expect(
    deprecated,
    reason = "programs that know no planes move the pointer like this, and kernels turn it into a plane"
)]
/// `mode HEAD WIDTH HEIGHT`, `cursor HEAD X Y`, `move HEAD X Y`, `hide HEAD`.
fn carry_out(card: &Card, line: &str) -> std::io::Result<()> {
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or_default();
    let numbers: Vec<i32> = words.map(|word| word.parse().unwrap()).collect();
    let resources = card.resource_handles()?;
    let head = usize::try_from(numbers[0]).unwrap();
    let crtc = resources.crtcs()[head];
    match (verb, &numbers[1..]) {
        ("mode", &[width, height]) => {
            let connector = resources.connectors()[head];
            let size = (
                u16::try_from(width).unwrap(),
                u16::try_from(height).unwrap(),
            );
            show(card, crtc, connector, size, u32::try_from(head).unwrap())
        }
        ("cursor", &[x, y]) => {
            let side = u32::try_from(SIDE).unwrap();
            let mut buffer = card.create_dumb_buffer((side, side), DrmFourcc::Argb8888, 32)?;
            fill(card, &mut buffer, &shape())?;
            card.set_cursor2(crtc, Some(&buffer), (3, 4))?;
            card.move_cursor(crtc, (x, y))
        }
        ("move", &[x, y]) => card.move_cursor(crtc, (x, y)),
        ("hide", []) => card.set_cursor2(crtc, None::<&DumbBuffer>, (0, 0)),
        _ => panic!("{line}"),
    }
}

fn show(
    card: &Card,
    crtc: crtc::Handle,
    connector: connector::Handle,
    size: (u16, u16),
    seed: u32,
) -> std::io::Result<()> {
    // The kernel looks for other modes when it is asked for them.
    let mut found = None;
    let came = settled(|| {
        let info = card.get_connector(connector, true).unwrap();
        found = info
            .modes()
            .iter()
            .find(|mode| mode.size() == size)
            .copied();
        found.is_some()
    });
    assert!(came, "no mode of {size:?}");
    let mode = found;
    let pixels = (u32::from(size.0), u32::from(size.1));
    let mut buffer = card.create_dumb_buffer(pixels, DrmFourcc::Xrgb8888, 32)?;
    fill(
        card,
        &mut buffer,
        &pattern(size.0.into(), size.1.into(), seed),
    )?;
    let framebuffer = card.add_framebuffer(&buffer, 24, 32)?;
    // Buffers are kept until the program ends.
    card.set_crtc(crtc, Some(framebuffer), (0, 0), &[connector], mode)
}

fn fill(card: &Card, buffer: &mut DumbBuffer, pixels: &[u32]) -> std::io::Result<()> {
    let (pitch, width) = (buffer.pitch() as usize, buffer.size().0 as usize);
    let mut mapping = card.map_dumb_buffer(buffer)?;
    for (line, pixels) in mapping.chunks_mut(pitch).zip(pixels.chunks(width)) {
        for (bytes, pixel) in line.as_chunks_mut::<4>().0.iter_mut().zip(pixels) {
            *bytes = pixel.to_le_bytes();
        }
    }
    Ok(())
}
