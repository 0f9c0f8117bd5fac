//! Images out of their files. What a file declares is held against the signed limit before anything of
//! that size is reserved, so neither a PNG bomb nor a JPEG with a huge header costs memory.

use super::pixels::{Image, luma};
use dunlin_protocol::bundle::step::{Channels, DecodeImage, ImageFormat};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

const PNG_SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
const JPEG_START: [u8; 3] = [0xff, 0xd8, 0xff];
/// Most scans of a JPEG. Each one is a pass over the whole image that a few bytes can ask for; encoders
/// write about ten.
const SCANS_MAX: usize = 100;
/// Memory that a PNG's own structures may take besides the pixels, in bytes.
const PNG_OVERHEAD_BYTES: usize = 4 << 20;

/// Reads a JPEG or PNG file.
///
/// # Errors
/// Another format, more pixels than allowed, or a file that is cut off or broken.
pub(crate) fn decode(file: &[u8], s: &DecodeImage) -> Result<Image, String> {
    let format = match file {
        _ if file.starts_with(&JPEG_START) => Some(ImageFormat::Jpeg),
        _ if file.starts_with(&PNG_SIGNATURE) => Some(ImageFormat::Png),
        _ => None,
    };
    let Some(format) = format.filter(|f| s.formats.contains(f)) else {
        let start = &file[..file.len().min(8)];
        return Err(format!(
            "expected an image of {:?}, got {} bytes that begin with {start:02x?}",
            s.formats,
            file.len()
        ));
    };
    // The decoders are written not to panic; if one does all the same, it is this file's fault alone.
    let run = AssertUnwindSafe(|| match format {
        ImageFormat::Jpeg => jpeg(file, s),
        ImageFormat::Png => png(file, s),
    });
    catch_unwind(run).unwrap_or_else(|_| Err("the decoder failed on this file".to_owned()))
}

fn check_pixels(width: usize, height: usize, max_pixels: usize) -> Result<(), String> {
    let pixels = width.saturating_mul(height);
    if pixels > 0 && pixels <= max_pixels {
        return Ok(());
    }
    Err(format!(
        "the image says {width} by {height}, that is {pixels} pixels; 1 to {max_pixels} are accepted"
    ))
}

fn jpeg(file: &[u8], s: &DecodeImage) -> Result<Image, String> {
    use jpeg_decoder::PixelFormat;
    let broken = |e: jpeg_decoder::Error| format!("not a whole JPEG: {e}");
    let scans = jpeg_scans(file);
    if scans > SCANS_MAX {
        return Err(format!(
            "a JPEG of {scans} scans, at most {SCANS_MAX} are accepted"
        ));
    }
    let mut decoder = jpeg_decoder::Decoder::new(Cursor::new(file));
    decoder.read_info().map_err(broken)?;
    let info = decoder.info().ok_or("a JPEG without a header")?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    check_pixels(width, height, s.max_pixels)?;
    decoder.set_max_decoding_buffer_size(s.max_pixels.saturating_mul(4));
    let source = match info.pixel_format {
        PixelFormat::L8 => Source::Grey,
        PixelFormat::RGB24 => Source::Rgb,
        PixelFormat::L16 | PixelFormat::CMYK32 => {
            let got = info.pixel_format;
            return Err(format!(
                "expected a JPEG in grey or colour of 8 bits, got {got:?}"
            ));
        }
    };
    let pixels = decoder.decode().map_err(broken)?;
    converted(width, height, source, pixels, s.channels)
}

/// How many scans a JPEG has, by its markers. In a scan's data every 0xff is followed by 0.
fn jpeg_scans(file: &[u8]) -> usize {
    const SCAN: u8 = 0xda;
    let mut scans = 0;
    let mut at = 2;
    while let Some(&[mark, kind, ..]) = file.get(at..) {
        let length = match (mark, kind) {
            (0xff, SCAN) => {
                scans += 1;
                None
            }
            // Markers without a length; fill bytes.
            (0xff, 0x01 | 0xd0..=0xd9 | 0x00) => None,
            (0xff, 0xff) => Some(0),
            (0xff, _) => match file.get(at + 2..at + 4) {
                Some(&[high, low]) => Some(usize::from(u16::from_be_bytes([high, low]))),
                _ => return scans,
            },
            _ => None,
        };
        at = match (length, mark) {
            (Some(0), _) => at + 1,
            (Some(length), _) => at + 2 + length,
            // Inside a scan's data: on to the next marker.
            (None, _) => {
                let rest = file.get(at + 1..).unwrap_or_default();
                match rest.iter().position(|b| *b == 0xff) {
                    Some(next) => at + 1 + next,
                    None => return scans,
                }
            }
        };
    }
    scans
}

fn png(file: &[u8], s: &DecodeImage) -> Result<Image, String> {
    use png::{ColorType, DecodeOptions, Limits, Transformations};
    let broken = |e: png::DecodingError| format!("not a whole PNG: {e}");
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    let mut decoder = png::Decoder::new_with_options(Cursor::new(file), options);
    decoder.set_limits(Limits {
        bytes: s
            .max_pixels
            .saturating_mul(8)
            .saturating_add(PNG_OVERHEAD_BYTES),
    });
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let info = decoder.read_header_info().map_err(broken)?;
    let side = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let (width, height) = (side(info.width), side(info.height));
    check_pixels(width, height, s.max_pixels)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader
        .output_buffer_size()
        .ok_or("the image is too large")?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(broken)?;
    pixels.truncate(frame.buffer_size());
    let source = match frame.color_type {
        ColorType::Grayscale => Source::Grey,
        ColorType::GrayscaleAlpha => Source::GreyAlpha,
        ColorType::Rgb => Source::Rgb,
        ColorType::Rgba => Source::Rgba,
        ColorType::Indexed => return Err("the palette was not expanded".to_owned()),
    };
    converted(width, height, source, pixels, s.channels)
}

/// Channels as they come out of a decoder.
#[derive(Debug, Clone, Copy)]
enum Source {
    Grey,
    GreyAlpha,
    Rgb,
    Rgba,
}

/// The channels that are wanted. As Pillow's `convert`: alpha is dropped, not blended.
fn converted(
    width: usize,
    height: usize,
    source: Source,
    pixels: Vec<u8>,
    wanted: Channels,
) -> Result<Image, String> {
    let rgb_of = |p: &[u8; 4]| [p[0], p[1], p[2]];
    let pixels = match (source, wanted) {
        (Source::Grey, Channels::Grey) | (Source::Rgb, Channels::Rgb) => pixels,
        (Source::Grey, Channels::Rgb) => pixels.iter().flat_map(|g| [*g; 3]).collect(),
        (Source::GreyAlpha, Channels::Grey) => {
            pixels.as_chunks::<2>().0.iter().map(|p| p[0]).collect()
        }
        (Source::GreyAlpha, Channels::Rgb) => {
            let all = pixels.as_chunks::<2>().0;
            all.iter().flat_map(|p| [p[0]; 3]).collect()
        }
        (Source::Rgb, Channels::Grey) => {
            pixels.as_chunks::<3>().0.iter().map(|p| luma(*p)).collect()
        }
        (Source::Rgba, Channels::Rgb) => {
            pixels.as_chunks::<4>().0.iter().flat_map(rgb_of).collect()
        }
        (Source::Rgba, Channels::Grey) => {
            let all = pixels.as_chunks::<4>().0;
            all.iter().map(|p| luma(rgb_of(p))).collect()
        }
    };
    let channels = wanted.count();
    if pixels.len() != width * height * channels {
        return Err(format!(
            "expected {} samples, the decoder gave {}",
            width * height * channels,
            pixels.len()
        ));
    }
    Ok(Image {
        height,
        width,
        channels,
        pixels,
    })
}
