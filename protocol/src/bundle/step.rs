//! The processing steps a manifest may sign, as data. What each does to types and shapes is in
//! [`flow`](super::flow); what it computes, with tolerances, in `docs/processing-steps.md`.
//!
//! A step reads the value that `tensor` names and changes it in place, or writes the result to the
//! new name `into` and leaves `tensor` as it is. An agent that does not know a step or one of its
//! fields refuses the manifest: leaving a field out would compute something else.

mod image;
mod names;
mod scores;
mod tables;

pub use image::{
    CenterCrop, Channels, Crop, DecodeImage, Filter, Fit, ImageFormat, Letterbox, Pad, Resize,
};
pub use scores::{BoxFormat, BoxesToImage, NonMaxSuppression, Threshold, TopK};
pub use tables::{Categories, Impute, MinMax, OneHot, Unknown};

use super::manifest::DType;
use serde::{Deserialize, Serialize};

/// One processing step, applied on the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// `x · mul + add`, element by element, in 32-bit floats, in place.
    Scale {
        /// Tensor changed.
        tensor: String,
        /// Factor.
        mul: f32,
        /// Summand, added after the factor.
        #[serde(default)]
        add: f32,
    },
    /// Softmax over the last dimension, in place.
    Softmax {
        /// Tensor changed.
        tensor: String,
    },
    /// Values that are always the same.
    Constant(Constant),
    /// The same values under one more name.
    Copy(Duplicate),
    /// Other element type.
    Cast(Cast),
    /// Other shape, same elements in the same order.
    Reshape(Reshape),
    /// Dimensions in another order, given by letters.
    Layout(Layout),
    /// A range of one dimension.
    Slice(Slice),
    /// Several tensors side by side, along the last dimension.
    Concat(Concat),
    /// `(x · scale − mean) ÷ std` by channel or feature.
    Normalise(Normalise),
    /// JPEG or PNG bytes to pixels.
    DecodeImage(DecodeImage),
    /// Other height and width, as Pillow resizes.
    Resize(Resize),
    /// A rectangle of the image.
    Crop(Crop),
    /// The rectangle in the middle of the image.
    CenterCrop(CenterCrop),
    /// A border around the image.
    Pad(Pad),
    /// Fits the image into a rectangle, keeps its proportions and fills the rest.
    Letterbox(Letterbox),
    /// Three channels to one, as Pillow's mode `L`.
    Greyscale(InPlace),
    /// Last dimension backwards: RGB to BGR and back.
    ReverseChannels(InPlace),
    /// Integer samples to floats from −1 to 1.
    PcmToFloat(InPlace),
    /// Overlapping frames of a recording.
    Frame(Frame),
    /// What was sent before, as far as `length` reaches, and then what is sent now. Kept by stream.
    SlidingWindow(SlidingWindow),
    /// A graph output of the stream's call before becomes a graph input of this one.
    Carry(Carry),
    /// To a range, feature by feature, from the least and the greatest value in training.
    MinMax(MinMax),
    /// A value in place of each NaN, by feature.
    Impute(Impute),
    /// A category to a row of zeros and a one.
    OneHot(OneHot),
    /// 1 ÷ (1 + e⁻ˣ).
    Sigmoid(InPlace),
    /// Index of the largest element along the last dimension.
    ArgMax(InPlace),
    /// The largest elements along the last dimension, with their indices.
    TopK(TopK),
    /// Whether an element reaches a bound.
    Threshold(Threshold),
    /// Class indices to the manifest's labels.
    Labels(InPlace),
    /// Boxes and class scores to the few detections that count.
    NonMaxSuppression(NonMaxSuppression),
    /// Boxes from the graph's pixels back to those of the image that was sent.
    BoxesToImage(BoxesToImage),
}

/// A step without settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InPlace {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
}

/// See [`Step::Constant`]. For graph inputs that no application should have to send, such as a sample
/// rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    /// Name of the values, a new one.
    pub tensor: String,
    /// Element type, not `BYTES`.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Row-major; each must be one that the element type holds exactly, but for rounding to floats.
    pub values: Vec<f64>,
}

/// See [`Step::Copy`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Duplicate {
    /// Tensor read.
    pub tensor: String,
    /// Name of the copy.
    pub into: String,
}

/// See [`Step::Cast`]. To integers: towards zero, the nearest one that the type holds, NaN to 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Element type of the result.
    pub to: DType,
}

/// See [`Step::Reshape`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reshape {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Dimensions of the result.
    pub shape: Vec<usize>,
}

/// See [`Step::Layout`]. A letter for each dimension; a letter that only `to` has is a new
/// dimension of 1, one that only `from` has must be 1 and goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Dimensions as they are, such as `HWC`.
    pub from: String,
    /// Dimensions of the result, such as `NCHW`.
    pub to: String,
}

/// See [`Step::Slice`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Dimension that is cut, from 0.
    pub axis: usize,
    /// First index kept.
    pub start: usize,
    /// Index after the last one kept.
    pub end: usize,
}

/// See [`Step::Concat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concat {
    /// Tensors read, 2 or more, alike in all but the last dimension.
    pub tensors: Vec<String>,
    /// Name of the result.
    pub into: String,
}

/// See [`Step::Normalise`]. Reads any number, writes `FP32`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Factor before all else, such as 1/255.
    #[serde(default = "one")]
    pub scale: f32,
    /// Subtracted; one value, or one for each element of the last dimension.
    pub mean: Vec<f32>,
    /// Divided by; one value, or one for each element of the last dimension.
    pub std: Vec<f32>,
}

fn one() -> f32 {
    1.0
}

/// See [`Step::Frame`]. `[n]` to `[1 + (n − length) ÷ hop, length]`; what is left over is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Samples of a frame.
    pub length: usize,
    /// Samples from one frame's start to the next one's.
    pub hop: usize,
}

/// See [`Step::SlidingWindow`]. Along the last dimension; zeros where nothing was sent before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlidingWindow {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Elements of the result's last dimension.
    pub length: usize,
}

/// See [`Step::Carry`]. Zeros at a stream's first call. Only before the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carry {
    /// The graph input.
    pub tensor: String,
    /// The graph output, of the same element type and shape; applications do not see it.
    pub from: String,
}

/// Steps before and after the graph, in order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// From what the application sends to the graph's inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<Step>,
    /// From the graph's outputs to what the application gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<Step>,
    /// Bounds of the streams, if a step keeps something between calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<StreamBounds>,
}

/// How many streams are remembered, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamBounds {
    /// Most streams; the one not used for longest makes room.
    pub max: usize,
    /// A stream not used for longer is forgotten, in milliseconds.
    pub idle_ms_max: u64,
}

impl Default for StreamBounds {
    fn default() -> Self {
        Self {
            max: 64,
            idle_ms_max: 300_000,
        }
    }
}
