//! Signatures of the steps on images: `UINT8` [height, width, channels].

use super::{Channels, DType, Dim, MAX_ELEMENTS, TensorType, misfit, needs};
use crate::bundle::step::{CenterCrop, Crop, DecodeImage, Fit, Letterbox, Pad, Resize};

/// Most pixels that may be signed.
const MAX_PIXELS: usize = MAX_ELEMENTS / 3;
/// Longest side of an image, in pixels.
const MAX_SIDE: usize = 65_535;

pub(super) fn decode(s: &DecodeImage, of: &TensorType) -> Result<TensorType, String> {
    needs(DType::BYTES, of)?;
    if of.fixed_shape().map(|s| s.iter().product()) != Some(1_usize) {
        return Err(misfit("one element", of));
    }
    if s.max_pixels == 0 || s.max_pixels > MAX_PIXELS {
        let problem = format!("max_pixels must be 1 to {MAX_PIXELS}, got {}", s.max_pixels);
        return Err(problem);
    }
    if s.formats.is_empty() {
        return Err("formats: expected \"jpeg\", \"png\" or both, got none".to_owned());
    }
    let side = Dim::UpTo(MAX_SIDE.min(s.max_pixels));
    Ok(TensorType {
        dtype: DType::UINT8,
        shape: vec![side, side, Dim::Fixed(s.channels.count())],
    })
}

/// Height, width and channels.
fn image(of: &TensorType) -> Result<(Dim, Dim, usize), String> {
    match (of.dtype, of.shape.as_slice()) {
        (DType::UINT8, &[height, width, Dim::Fixed(channels @ 1..=4)]) => {
            Ok((height, width, channels))
        }
        _ => Err(misfit("UINT8 [height, width, 1 to 4 channels]", of)),
    }
}

fn image_of(height: Dim, width: Dim, channels: usize) -> TensorType {
    TensorType {
        dtype: DType::UINT8,
        shape: vec![height, width, Dim::Fixed(channels)],
    }
}

fn sides(height: usize, width: usize) -> Result<(), String> {
    let fits = |n| (1..=MAX_SIDE).contains(&n);
    if fits(height) && fits(width) && height * width <= MAX_PIXELS {
        return Ok(());
    }
    Err(format!(
        "height and width must be 1 to {MAX_SIDE} with at most {MAX_PIXELS} pixels, got {height} and {width}"
    ))
}

pub(super) fn resize(s: &Resize, of: &TensorType) -> Result<TensorType, String> {
    let (_, _, channels) = image(of)?;
    sides(s.height, s.width)?;
    let (height, width) = match s.fit {
        Fit::Stretch => (Dim::Fixed(s.height), Dim::Fixed(s.width)),
        Fit::Inside => (Dim::UpTo(s.height), Dim::UpTo(s.width)),
        Fit::Cover => (Dim::UpTo(MAX_SIDE), Dim::UpTo(MAX_SIDE)),
    };
    Ok(image_of(height, width, channels))
}

pub(super) fn crop(s: &Crop, of: &TensorType) -> Result<TensorType, String> {
    let (height, width, channels) = image(of)?;
    sides(s.height, s.width)?;
    let beyond = |start: usize, length, most: Dim| start.saturating_add(length) > most.max();
    if beyond(s.top, s.height, height) || beyond(s.left, s.width, width) {
        let expected = format!(
            "rows {} to {} and columns {} to {} within the image",
            s.top,
            s.top.saturating_add(s.height),
            s.left,
            s.left.saturating_add(s.width)
        );
        return Err(misfit(&expected, of));
    }
    let (height, width) = (Dim::Fixed(s.height), Dim::Fixed(s.width));
    Ok(image_of(height, width, channels))
}

pub(super) fn center_crop(s: &CenterCrop, of: &TensorType) -> Result<TensorType, String> {
    let (height, width, channels) = image(of)?;
    sides(s.height, s.width)?;
    if s.height > height.max() || s.width > width.max() {
        let expected = format!("an image of {} by {} or more", s.height, s.width);
        return Err(misfit(&expected, of));
    }
    let (height, width) = (Dim::Fixed(s.height), Dim::Fixed(s.width));
    Ok(image_of(height, width, channels))
}

fn colour(value: &[u8], channels: usize) -> Result<(), String> {
    if value.len() == 1 || value.len() == channels {
        return Ok(());
    }
    Err(format!(
        "value: expected 1 number or {channels}, got {}",
        value.len()
    ))
}

pub(super) fn pad(s: &Pad, of: &TensorType) -> Result<TensorType, String> {
    let (height, width, channels) = image(of)?;
    colour(&s.value, channels)?;
    let more = |dim, before: usize, after: usize| {
        let wider = |n: usize| n.saturating_add(before).saturating_add(after);
        match dim {
            Dim::Fixed(n) => Dim::Fixed(wider(n)),
            Dim::UpTo(n) => Dim::UpTo(wider(n)),
        }
    };
    let (height, width) = (more(height, s.top, s.bottom), more(width, s.left, s.right));
    if let (Dim::Fixed(height), Dim::Fixed(width)) = (height, width) {
        sides(height, width)?;
    }
    Ok(image_of(height, width, channels))
}

pub(super) fn letterbox(s: &Letterbox, of: &TensorType) -> Result<TensorType, String> {
    let (_, _, channels) = image(of)?;
    sides(s.height, s.width)?;
    colour(&s.value, channels)?;
    let (height, width) = (Dim::Fixed(s.height), Dim::Fixed(s.width));
    Ok(image_of(height, width, channels))
}

pub(super) fn greyscale(of: &TensorType) -> Result<TensorType, String> {
    match image(of)? {
        (height, width, 3) => Ok(image_of(height, width, Channels::Grey.count())),
        _ => Err(misfit("UINT8 [height, width, 3]", of)),
    }
}

pub(super) fn reverse_channels(of: &TensorType) -> Result<TensorType, String> {
    super::needs_number(of)?;
    super::features(of)?;
    Ok(of.clone())
}
