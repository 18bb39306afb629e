//! `linkspan display shot`: a screen as a PNG file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use linkspan_backends::display::Screen;
use linkspan_display::{Scene, to_rgba};

use super::source::{SourceArgs, status};
use crate::exit::{Failure, Status};

/// Options of `linkspan display shot`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  linkspan display shot /tmp/screen.sock -o screen.png --cursor\n\n\
        Without a picture it ends with status 1 and says why there is none."
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: SourceArgs,

    /// Where the picture goes; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Draw the pointer too
    #[arg(long, conflicts_with = "plane")]
    cursor: bool,

    /// One plane alone, with its opacity
    #[arg(long, value_name = "PLANE", value_enum)]
    plane: Option<PlaneChoice>,
}

/// A plane of a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PlaneChoice {
    /// The picture.
    Primary,
    /// The pointer.
    Cursor,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut screen = args.source.open()?;
    if let Err(error) = screen.look() {
        let status = status(&error);
        return Err(Failure::new(status, error));
    }
    let bytes = picture(&screen, args)?;
    write(&args.output, &bytes)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    Ok(())
}

/// The PNG file.
fn picture(screen: &Screen, args: &Args) -> Result<Vec<u8>, Failure> {
    if args.plane == Some(PlaneChoice::Cursor) {
        let Some((cursor, _)) = screen.cursor() else {
            let error = anyhow!("the guest shows no pointer");
            return Err(Failure::new(Status::Failed, error));
        };
        let pixels: Vec<u32> = cursor.pixels().iter().map(|&pixel| plain(pixel)).collect();
        return Ok(encode(cursor.width(), cursor.height(), &pixels, true)?);
    }
    let Some(scene) = screen.scene() else {
        let why = screen.no_signal().map(ToString::to_string);
        let error = anyhow!("no signal: {}", why.unwrap_or_default());
        return Err(Failure::new(Status::Failed, error));
    };
    let scene = if args.cursor {
        scene
    } else {
        Scene::of(scene.frame)
    };
    let (width, height) = (scene.frame.width(), scene.frame.height());
    let mut pixels = Vec::with_capacity(scene.frame.pixels().len());
    (0..height).for_each(|y| scene.append(y, 0, width, &mut pixels));
    Ok(encode(width, height, &pixels, false)?)
}

/// PNG has colours that are not multiplied by their opacity.
fn plain(pixel: u32) -> u32 {
    let alpha = pixel >> 24;
    let channel = |shift: u32| {
        let value = (pixel >> shift & 0xFF) * 255;
        value.checked_div(alpha).unwrap_or(0).min(255) << shift
    };
    alpha << 24 | channel(16) | channel(8) | channel(0)
}

/// Pixels as a PNG file.
pub(crate) fn encode(
    width: u32,
    height: u32,
    pixels: &[u32],
    alpha: bool,
) -> Result<Vec<u8>, png::EncodingError> {
    let mut rgba = vec![0; pixels.len() * 4];
    to_rgba(pixels, &mut rgba);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(if alpha {
        png::ColorType::Rgba
    } else {
        png::ColorType::Rgb
    });
    if !alpha {
        let rgb = rgba.chunks_exact(4).flat_map(|rgba| &rgba[..3]);
        rgba = rgb.copied().collect();
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&rgba)?;
    writer.finish()?;
    Ok(bytes)
}

/// A file is there whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if path == Path::new("-") {
        return std::io::stdout().lock().write_all(bytes);
    }
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(bytes)?;
    file.flush()
}
