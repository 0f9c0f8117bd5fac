//! Steps on decoded images: 8-bit [height, width, channels].

use super::Shaped;
use super::boxes::Move;
use super::decode;
use super::pixels::{Image, luma};
use super::resize::{Size, inside, resample};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::step::{CenterCrop, Crop, DecodeImage, Letterbox, Pad};

impl Image {
    pub(crate) fn of(value: Shaped) -> Result<Self, String> {
        match (value.shape.as_slice(), value.values) {
            (&[height, width, channels], Values::UINT8(pixels))
                if height * width * channels == pixels.len() && channels > 0 =>
            {
                Ok(Self {
                    height,
                    width,
                    channels,
                    pixels,
                })
            }
            (shape, values) => Err(format!(
                "expected UINT8 [height, width, channels], got {} {shape:?}",
                values.dtype().as_str()
            )),
        }
    }

    pub(crate) fn shaped(self) -> Shaped {
        let shape = vec![self.height, self.width, self.channels];
        Shaped::new(shape, Values::UINT8(self.pixels))
    }

    fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks((self.width * self.channels).max(1))
    }
}

/// The one image that was sent.
pub(crate) fn decode_one(s: &DecodeImage, value: Shaped) -> Result<Shaped, String> {
    let Values::BYTES(files) = &value.values else {
        let got = value.values.dtype().as_str();
        return Err(format!("expected BYTES, got {got}"));
    };
    let [file] = files.as_slice() else {
        return Err(format!("expected one image, got {}", files.len()));
    };
    Ok(decode::decode(file, s)?.shaped())
}

#[allow(clippy::cast_precision_loss)]
fn shifted(left: f64, top: f64) -> Move {
    Move {
        scale: [1.0; 2],
        offset: [left, top],
    }
}

#[allow(clippy::cast_precision_loss)]
pub(crate) fn crop(s: &Crop, value: Shaped) -> Result<(Shaped, Move), String> {
    let image = Image::of(value)?;
    let fits = |start: usize, length, whole| start.checked_add(length).is_some_and(|e| e <= whole);
    if !(fits(s.top, s.height, image.height) && fits(s.left, s.width, image.width)) {
        return Err(format!(
            "expected an image of at least {} by {} (height by width), got {} by {}",
            s.top.saturating_add(s.height),
            s.left.saturating_add(s.width),
            image.height,
            image.width
        ));
    }
    let columns = s.left * image.channels..(s.left + s.width) * image.channels;
    let rows = image.rows().skip(s.top).take(s.height);
    let pixels = rows
        .flat_map(|row| &row[columns.clone()])
        .copied()
        .collect();
    let cropped = Image {
        height: s.height,
        width: s.width,
        channels: image.channels,
        pixels,
    };
    Ok((cropped.shaped(), shifted(-(s.left as f64), -(s.top as f64))))
}

/// As torchvision: half of what is left over, rounded to even at .5, goes above and on the left.
pub(crate) fn center_crop(s: &CenterCrop, value: Shaped) -> Result<(Shaped, Move), String> {
    let image = Image::of(value)?;
    let start = |whole: usize, part: usize| whole.saturating_sub(part).div_euclid(2);
    let rounded = |whole: usize, part: usize| {
        let half = start(whole, part);
        let is_odd = !whole.saturating_sub(part).is_multiple_of(2);
        half + usize::from(is_odd && !half.is_multiple_of(2))
    };
    let place = Crop {
        tensor: String::new(),
        into: None,
        top: rounded(image.height, s.height),
        left: rounded(image.width, s.width),
        height: s.height,
        width: s.width,
    };
    if image.height < s.height || image.width < s.width {
        return Err(format!(
            "expected an image of at least {} by {} (height by width), got {} by {}",
            s.height, s.width, image.height, image.width
        ));
    }
    crop(&place, image.shaped())
}

#[allow(clippy::cast_precision_loss)]
pub(crate) fn pad(s: &Pad, value: Shaped) -> Result<(Shaped, Move), String> {
    let image = Image::of(value)?;
    let size = Size {
        height: image.height.saturating_add(s.top).saturating_add(s.bottom),
        width: image.width.saturating_add(s.left).saturating_add(s.right),
    };
    let padded = framed(&image, size, s.top, s.left, &s.value)?;
    Ok((padded.shaped(), shifted(s.left as f64, s.top as f64)))
}

/// Puts an image onto a larger one of a single colour.
fn framed(
    image: &Image,
    size: Size,
    top: usize,
    left: usize,
    value: &[u8],
) -> Result<Image, String> {
    let channels = image.channels;
    let colour = super::numbers::each(value, channels)?;
    size.check(channels)?;
    let mut pixels: Vec<u8> = colour.repeat(size.height * size.width);
    let row_bytes = size.width * channels;
    let onto = pixels.chunks_mut(row_bytes.max(1)).skip(top);
    for (to, from) in onto.zip(image.rows()) {
        let start = left * channels;
        to[start..start + from.len()].copy_from_slice(from);
    }
    Ok(Image {
        height: size.height,
        width: size.width,
        channels,
        pixels,
    })
}

/// The image inside the rectangle, in its middle; of an odd remainder the larger half is below and on
/// the right.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn letterbox(s: &Letterbox, value: Shaped) -> Result<(Shaped, Move), String> {
    let image = Image::of(value)?;
    let size = Size {
        height: s.height,
        width: s.width,
    };
    let old = Size {
        height: image.height,
        width: image.width,
    };
    let fitted = inside(old, size)?;
    let small = resample(image, fitted, s.filter)?;
    let top = (size.height - fitted.height) / 2;
    let left = (size.width - fitted.width) / 2;
    let boxed = framed(&small, size, top, left, &s.value)?;
    let scale = old.scale_to(fitted);
    let moved = Move {
        scale,
        offset: [left as f64, top as f64],
    };
    Ok((boxed.shaped(), moved))
}

pub(crate) fn greyscale(value: Shaped) -> Result<Shaped, String> {
    let image = Image::of(value)?;
    if image.channels != 3 {
        return Err(format!("expected 3 channels, got {}", image.channels));
    }
    let pixels = image.pixels.as_chunks::<3>().0;
    let grey = Image {
        height: image.height,
        width: image.width,
        channels: 1,
        pixels: pixels.iter().map(|p| luma(*p)).collect(),
    };
    Ok(grey.shaped())
}
