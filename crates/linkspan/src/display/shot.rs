//! `linkspan display shot`: a screen as a PNG file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use linkspan_backends::display::{Screen, png};
use linkspan_display::Kind;

use super::source::{ScreenArgs, status};
use crate::exit::{Failure, Status};

/// Looks at a guest that shows another picture each time.
const LOOKS_MAX: usize = 16;

/// Options of `linkspan display shot`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  linkspan display shot /tmp/screen.sock -o screen.png --cursor\n  \
        linkspan display shot /tmp/screen.sock -o all.png --compose\n  \
        linkspan display shot /tmp/screen.sock -o video.png --plane sprite1\n\n\
        Without a picture it ends with status 1 and says why there is none."
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: ScreenArgs,

    /// Where the picture goes; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Draw the pointer too; --compose does so by itself
    #[arg(long, conflicts_with = "plane")]
    cursor: bool,

    /// One plane alone, with its opacity
    #[arg(long, value_name = "PLANE", value_enum, conflicts_with = "compose")]
    plane: Option<PlaneChoice>,
}

/// A plane of a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PlaneChoice {
    /// The picture.
    Primary,
    /// The lowest plane above it.
    Sprite1,
    /// The next one.
    Sprite2,
    /// The pointer.
    Cursor,
}

impl PlaneChoice {
    const fn kind(self) -> Kind {
        match self {
            Self::Primary => Kind::Primary,
            Self::Sprite1 => Kind::Sprite(1),
            Self::Sprite2 => Kind::Sprite(2),
            Self::Cursor => Kind::Cursor,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut screen = args.source.open()?;
    for _ in 0..LOOKS_MAX {
        if let Err(error) = screen.look() {
            let status = status(&error);
            return Err(Failure::new(status, error));
        }
        // Another picture may have come between the question and its answer.
        if !screen.has_failed() || !screen.source().has_news() {
            break;
        }
    }
    let bytes = match args.plane {
        Some(plane @ (PlaneChoice::Sprite1 | PlaneChoice::Sprite2)) => sprite(&mut screen, plane)?,
        _ => picture(&screen, args)?,
    };
    write(&args.output, &bytes)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    Ok(())
}

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure::new(Status::Failed, anyhow!("{why}"))
}

/// The PNG file of a sprite.
fn sprite(screen: &mut Screen, plane: PlaneChoice) -> Result<Vec<u8>, Failure> {
    let kind = plane.kind();
    let frame = screen.plane(kind);
    let frame = frame.map_err(|why| failed(format!("no signal: {why}")))?;
    let frame = frame.ok_or_else(|| failed(format!("the guest shows no {kind}")))?;
    let pixels: Vec<u32> = frame.pixels().iter().map(|&pixel| plain(pixel)).collect();
    Ok(encode(frame.width(), frame.height(), &pixels, true)?)
}

/// The PNG file.
fn picture(screen: &Screen, args: &Args) -> Result<Vec<u8>, Failure> {
    let with_cursor = args.cursor || args.source.compose;
    let alone = args.plane == Some(PlaneChoice::Cursor);
    if (with_cursor || alone)
        && screen.scene().is_some()
        && let Some(why) = screen.refused(Kind::Cursor)
    {
        return Err(failed(format!("the pointer is not shown: {why}")));
    }
    if alone {
        let Some((cursor, _)) = screen.cursor() else {
            return Err(failed("the guest shows no pointer"));
        };
        let pixels: Vec<u32> = cursor.pixels().iter().map(|&pixel| plain(pixel)).collect();
        return Ok(encode(cursor.width(), cursor.height(), &pixels, true)?);
    }
    let Some(scene) = screen.scene() else {
        let why = screen.no_signal().map(ToString::to_string);
        return Err(failed(format!("no signal: {}", why.unwrap_or_default())));
    };
    let scene = match with_cursor {
        true => scene,
        false => scene.without_cursor(),
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

fn encode(width: u32, height: u32, pixels: &[u32], alpha: bool) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    png(width, height, pixels, alpha, false, &mut bytes)?;
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
