//! What a pass over a picture costs, as a ratio to a copy of it with memcpy (of a comparison,
//! to memcmp): `cargo bench -p linkspan-display`. More is better; 1 is the same time.
//!
//! Each is measured in turn with what it is compared with, and the median of the rounds
//! counts. "Untile" makes lines of tiles in memory; "all changed" is a pass of which every
//! pixel differs from the one before, and "unchanged" one of which none does.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

use linkspan_display::{
    BAND_MAX, FourCc, Frame, Layout, Surface, TILE_BYTES, Tiles, Tiling, untile,
};
use linkspan_mem::past_caches;

const ROUNDS: usize = 41;

fn main() {
    println!(
        "{:>9} {:>7} {:>8} {:>10} {:>10} {:>8} {:>12} {:>10}",
        "size", "format", "tiling", "memcpy ms", "memcmp ms", "untile", "all changed", "unchanged"
    );
    for (width, height) in [(1920, 1080), (3840, 2160)] {
        for format in [FourCc::XRGB8888, FourCc::XBGR8888] {
            for tiling in [Tiling::Linear, Tiling::X, Tiling::Y] {
                row(width, height, format, tiling);
            }
        }
    }
}

fn row(width: u32, height: u32, format: FourCc, tiling: Tiling) {
    let lines = (height as usize).next_multiple_of(tiling.height());
    let bytes = width as usize * 4 * lines;
    let surface = Surface {
        format,
        modifier: tiling.modifier(),
        width,
        height,
        stride: width * 4,
        offset: 0,
        x: 0,
        y: 0,
    };
    let layout = Layout::new(&surface, bytes as u64).expect("a picture");
    let first: Vec<u8> = (0..bytes).map(|at| (at * 7 / 5).to_le_bytes()[0]).collect();
    let second: Vec<u8> = first.iter().map(|byte| !byte).collect();
    let mut copy = vec![0; bytes + 64];
    // Lines begin where lines of a cache do, as those of pictures mostly do.
    let copy = copy.as_mut_slice();
    let start = copy.as_ptr().align_offset(64);
    let copy = &mut copy[start..start + bytes];
    let mut frame = Frame::new(width, height).expect("memory");
    let mut damage = Tiles::new(width, height);
    let mut times: [Vec<f64>; 5] = Default::default();
    for round in 0..ROUNDS {
        let picture = if round % 2 == 0 { &first } else { &second };
        let mut measured = [
            time(|| copy.copy_from_slice(black_box(picture))),
            time(|| assert!(black_box(&copy[..]) == black_box(&picture[..]))),
            time(|| lines_of(&layout, picture, copy)),
            time(|| pass(&layout, picture, &mut frame, &mut damage)),
            time(|| pass(&layout, picture, &mut frame, &mut damage)),
        ];
        black_box(&copy);
        for (times, time) in times.iter_mut().zip(&mut measured) {
            times.push(*time);
        }
    }
    let [memcpy, memcmp, untiled, changed, same] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    println!(
        "{:>9} {:>7} {:>8} {:>10.2} {:>10.2} {:>8.2} {:>12.2} {:>10.2}",
        format!("{width}x{height}"),
        format.to_string(),
        tiling.to_string(),
        memcpy * 1e3,
        memcmp * 1e3,
        memcpy / untiled,
        memcpy / changed,
        memcmp / same,
    );
}

fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn pass(layout: &Layout, picture: &[u8], frame: &mut Frame, damage: &mut Tiles) {
    damage.clear();
    let read = |offset: u64, band: &mut [u8]| -> Result<(), Infallible> {
        let start = usize::try_from(offset).expect("memory is addressed");
        band.copy_from_slice(&picture[start..start + band.len()]);
        Ok(())
    };
    let Ok(()) = frame.update(layout, damage, read);
    black_box(damage);
}

/// The picture line by line, from bands that are copied out.
fn lines_of(layout: &Layout, picture: &[u8], out: &mut [u8]) {
    let tiling = layout.tiling();
    let stride = layout.surface().stride as usize;
    let (mut x, mut y) = (0, 0);
    let mut bytes = [0; BAND_MAX];
    past_caches(out, |out| {
        for band in layout.bands() {
            let start = usize::try_from(band.offset).expect("memory is addressed");
            let bytes = &mut bytes;
            bytes[..band.len].copy_from_slice(&picture[start..start + band.len]);
            if tiling == Tiling::Linear {
                out.copy(start, &bytes[..band.len]);
                continue;
            }
            let tiles = &bytes[..band.len];
            untile(tiling, tiles, out, y * stride + x, stride);
            x += tiling.width_bytes() * (tiles.len() / TILE_BYTES);
            if x == stride {
                x = 0;
                y += tiling.height();
            }
        }
    });
}
