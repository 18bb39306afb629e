//! Pixels as a PNG file.

use std::io;

use linkspan_display::to_rgba;

/// Appends pixels as a PNG file, with their opacity or without; `fast` for what is seen
/// once.
///
/// # Errors
/// Pixels that are not as many as the sides say.
pub fn png(
    width: u32,
    height: u32,
    pixels: &[u32],
    alpha: bool,
    fast: bool,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    let (color, data) = match alpha {
        true => {
            let mut rgba = vec![0; pixels.len() * 4];
            to_rgba(pixels, &mut rgba);
            (png::ColorType::Rgba, rgba)
        }
        false => {
            let mut rgb = vec![0; pixels.len() * 3];
            for (three, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
                let [_, red, green, blue] = pixel.to_be_bytes();
                *three = [red, green, blue];
            }
            (png::ColorType::Rgb, rgb)
        }
    };
    let mut encoder = png::Encoder::new(bytes, width, height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(color);
    if fast {
        encoder.set_compression(png::Compression::Fastest);
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&data)?;
    writer.finish()?;
    Ok(())
}
