//! Settings of the steps on images.

use serde::{Deserialize, Serialize};

/// A file format of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ImageFormat {
    Jpeg,
    Png,
}

/// Channels of a decoded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// One channel, as Pillow's mode `L`.
    Grey,
}

impl Channels {
    /// How many there are.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Rgb => 3,
            Self::Grey => 1,
        }
    }
}

/// See [`Step::DecodeImage`](super::Step::DecodeImage). `BYTES` of one element to `UINT8` [height, width, channels].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeImage {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// What the pixels are to be.
    pub channels: Channels,
    /// Most pixels (width · height) an image may declare; looked at before anything is decoded.
    pub max_pixels: usize,
    /// Formats accepted; without it, both.
    #[serde(default = "both_formats")]
    pub formats: Vec<ImageFormat>,
}

fn both_formats() -> Vec<ImageFormat> {
    vec![ImageFormat::Jpeg, ImageFormat::Png]
}

/// A resampling filter, named and defined as in Pillow. All but `nearest` are widened when an
/// image is made smaller (antialiasing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Filter {
    Nearest,
    Box,
    #[default]
    Bilinear,
    Bicubic,
    Lanczos,
}

/// How an image meets a height and a width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Exactly, whatever becomes of its proportions.
    #[default]
    Stretch,
    /// Proportions kept, the smallest image that covers both.
    Cover,
    /// Proportions kept, the largest image inside both.
    Inside,
}

/// See [`Step::Resize`](super::Step::Resize). `UINT8` [height, width, channels].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Pixels.
    pub height: usize,
    /// Pixels.
    pub width: usize,
    /// Resampling filter.
    #[serde(default)]
    pub filter: Filter,
    /// What of the proportions.
    #[serde(default)]
    pub fit: Fit,
}

/// See [`Step::Crop`](super::Step::Crop).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crop {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// First row kept.
    pub top: usize,
    /// First column kept.
    pub left: usize,
    /// Rows kept.
    pub height: usize,
    /// Columns kept.
    pub width: usize,
}

/// See [`Step::CenterCrop`](super::Step::CenterCrop). Of an odd remainder, torchvision's rounding to even decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CenterCrop {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Rows kept.
    pub height: usize,
    /// Columns kept.
    pub width: usize,
}

/// See [`Step::Pad`](super::Step::Pad).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Rows added above.
    #[serde(default)]
    pub top: usize,
    /// Rows added below.
    #[serde(default)]
    pub bottom: usize,
    /// Columns added on the left.
    #[serde(default)]
    pub left: usize,
    /// Columns added on the right.
    #[serde(default)]
    pub right: usize,
    /// Colour of what is added: one value, or one for each channel.
    pub value: Vec<u8>,
}

/// See [`Step::Letterbox`](super::Step::Letterbox). Of an odd remainder, the larger half is below and on the right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Letterbox {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Rows of the result.
    pub height: usize,
    /// Columns of the result.
    pub width: usize,
    /// Resampling filter.
    #[serde(default)]
    pub filter: Filter,
    /// Colour of the bars: one value, or one for each channel.
    pub value: Vec<u8>,
}
